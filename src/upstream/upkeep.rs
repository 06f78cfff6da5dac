//! What keeps the list of addresses current, on the control runtime, so that no request waits for
//! it: names are resolved again, times in the health of addresses pass, addresses that cannot be
//! reached are tried, and all are checked if that is configured.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    addresses::{Address, AddressId, Listed, Target},
    check::{self, CheckTarget},
    config::HealthCheck,
    connect::{HttpVersions, connect},
    health::State,
    shared::Shared,
};
use crate::{
    base::{backoff, backoff::Backoff},
    net::resolve::{Lookup, SystemResolver, watch_name},
};

/// The time between two looks at the health of all addresses.
const TICK: Duration = Duration::from_millis(250);

/// Between two attempts to connect to an unreachable address.
const FIRST_PROBE: Duration = Duration::from_secs(1);
const MAX_PROBE: Duration = Duration::from_secs(30);

/// What is due for one address, and when.
struct Schedule {
    /// The delays between probes, and when the next one is due. `None` while it can be reached.
    probe: Option<(Backoff, Instant)>,
    /// When the next check is due.
    check_at: Instant,
    /// Whether a probe or a check runs.
    is_busy: bool,
    /// The weight as the workers know it.
    weight: u32,
}

/// What a task of [`Upkeep`] found.
enum Found {
    Probe { is_connected: bool },
    Check { error: Option<String> },
}

impl Shared {
    /// Runs until `stop` is cancelled.
    pub async fn upkeep(self, resolver: SystemResolver, stop: CancellationToken) {
        let mut names = JoinSet::new();
        for endpoint in 0..self.config.endpoints.len() {
            if self.addresses.fixed(endpoint).is_none() {
                names.spawn(self.clone().follow_name(endpoint, resolver.clone()));
            }
        }
        let upkeep = Upkeep {
            shared: self,
            schedules: Vec::new(),
            running: JoinSet::new(),
        };
        // The tasks end with their sets.
        stop.run_until_cancelled(upkeep.run()).await;
    }

    /// Resolves an endpoint's name from time to time. Never completes.
    async fn follow_name(self, endpoint: usize, resolver: SystemResolver) {
        let (publish, mut known) = watch::channel(Lookup::default());
        let name = &self.config.endpoints[endpoint];
        let look_up = || resolver.look_up(&name.host);
        let refresh = self.config.dns_refresh;
        let watching = watch_name(&name.host, name.port, refresh, look_up, publish);
        let following = async {
            while known.changed().await.is_ok() {
                let lookup = known.borrow_and_update().clone();
                self.addresses.follow(endpoint, &lookup);
            }
        };
        tokio::join!(watching, following);
    }
}

/// The upkeep of the addresses of an upstream.
struct Upkeep {
    shared: Shared,
    schedules: Vec<(AddressId, Schedule)>,
    running: JoinSet<(Arc<Address>, Found)>,
}

impl Upkeep {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tick(),
                Some(found) = self.running.join_next() => {
                    // An error means that the task has panicked, which is logged already.
                    if let Ok((address, found)) = found {
                        self.found(&address, found);
                    }
                }
            }
        }
    }

    fn tick(&mut self) {
        let set = self.shared.addresses.load();
        let listed = || set.listed.iter().map(|Listed { address, .. }| address);
        self.schedules
            .retain(|(id, _)| listed().any(|address| address.id == *id));
        let mut is_weight_changed = false;
        for address in listed() {
            self.shared.addresses.tick(address);
            let weight = address.health.weight_tenths();
            let known = self.schedules.iter().position(|(id, _)| *id == address.id);
            let position = known.unwrap_or_else(|| {
                self.schedules.push((address.id, Schedule::new(weight)));
                self.schedules.len() - 1
            });
            let (_, schedule) = &mut self.schedules[position];
            is_weight_changed |= std::mem::replace(&mut schedule.weight, weight) != weight;
            if !schedule.is_busy
                && let Some(task) = schedule.due(&self.shared, address)
            {
                schedule.is_busy = true;
                let address = Arc::clone(address);
                self.running.spawn(async move { (address, task.await) });
            }
        }
        if is_weight_changed {
            self.shared.addresses.bump();
        }
    }

    fn found(&mut self, address: &Address, found: Found) {
        let addresses = &self.shared.addresses;
        match found {
            Found::Probe { is_connected: true } => addresses.connected(address),
            Found::Probe {
                is_connected: false,
            } => {}
            Found::Check { error } => {
                if let Some(health) = &self.shared.config.health {
                    addresses.checked(address, health, error.as_deref());
                }
            }
        }
        let mut schedules = self.schedules.iter_mut();
        if let Some((_, schedule)) = schedules.find(|(id, _)| *id == address.id) {
            schedule.is_busy = false;
        }
    }
}

impl Schedule {
    fn new(weight: u32) -> Self {
        Self {
            probe: None,
            check_at: Instant::now(),
            is_busy: false,
            weight,
        }
    }

    /// The probe or the check that is due.
    fn due(&mut self, shared: &Shared, address: &Address) -> Option<BoxFuture<'static, Found>> {
        let now = Instant::now();
        if address.health.snapshot().state == State::Unreachable {
            let (delays, at) = self.probe.get_or_insert_with(|| {
                let mut delays = Backoff::new(FIRST_PROBE, MAX_PROBE);
                let first = now + delays.next_delay();
                (delays, first)
            });
            if now >= *at {
                *at = now + delays.next_delay();
                let target = address.target.clone();
                return Some(Box::pin(probe(shared.clone(), address.endpoint, target)));
            }
        } else {
            self.probe = None;
        }
        let health = shared.config.health.clone()?;
        if now < self.check_at {
            return None;
        }
        // Jittered, so that replicas do not check at the same moment.
        self.check_at = now + health.interval.mul_f64(0.9 + 0.2 * backoff::random());
        let target = CheckTarget {
            target: address.target.clone(),
            endpoint: shared.config.endpoints[address.endpoint].clone(),
            shared: shared.endpoints[address.endpoint].clone(),
            config: Arc::clone(&shared.config),
        };
        Some(Box::pin(check_health(target, health)))
    }
}

/// Connects as a request would, TLS included, and closes the connection.
async fn probe(shared: Shared, endpoint: usize, target: Target) -> Found {
    let connected = connect(
        &shared.config,
        &shared.config.endpoints[endpoint],
        &target,
        &shared.endpoints[endpoint],
        HttpVersions::Any,
        Instant::now() + shared.config.connect_timeout,
    );
    Found::Probe {
        is_connected: connected.await.is_ok(),
    }
}

async fn check_health(target: CheckTarget, health: HealthCheck) -> Found {
    let checked = check::check(&target, &health).await;
    Found::Check {
        error: checked.err().map(|error| error.to_string()),
    }
}
