//! The addresses of an upstream's endpoints: what all workers share of each, and the current list.
//!
//! The control runtime replaces the list as a whole, and health changes on failures only. Both
//! raise the version, the one thing that a request reads to know whether its worker's copy of the
//! list is current.

use std::{
    fmt,
    hash::Hasher as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use fnv::FnvHasher;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{
    config::{Affinity, Config, HealthCheck},
    health::{Health, Reason, State, Transition},
};
use crate::{
    base::{
        cache_line::CacheLine,
        clock::{Moment, SharedClock},
        labels::PerLabel,
    },
    net::{outbound_proxy::OutboundProxy, resolve::Lookup},
};

/// Where connections to an endpoint lead.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// To this address.
    Socket(SocketAddr),
    /// To the endpoint's name, which the outbound proxy resolves.
    Proxy(Arc<OutboundProxy>),
}

impl Target {
    fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            Self::Proxy(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Proxy(_) => f.write_str("through the outbound proxy"),
        }
    }
}

/// Identifies an address of an upstream; never used again after its removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressId(u64);

/// A key for [`Upstream::place`](super::Upstream::place): the same in all replicas.
pub fn affinity_key(client: &[u8]) -> u64 {
    hash(&[client])
}

/// FNV-1a, whose results do not change with the process, as those of the standard library may.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = FnvHasher::default();
    parts.iter().for_each(|part| hasher.write(part));
    hasher.finish()
}

/// One address of an endpoint, shared by all workers.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) id: AddressId,
    /// For rendezvous hashing: the same in all replicas for the same target.
    pub(super) hash: u64,
    /// The position of the endpoint in the configuration.
    pub(super) endpoint: usize,
    pub(super) target: Target,
    pub(super) health: Arc<Health>,
    pub(super) in_flight: InFlightCount,
}

impl Address {
    /// `origin` is that of the endpoint.
    pub(super) fn new(
        id: u64,
        endpoint: usize,
        origin: &str,
        target: Target,
        health: Health,
    ) -> Self {
        Self {
            id: AddressId(id),
            hash: hash(&[origin.as_bytes(), target.to_string().as_bytes()]),
            endpoint,
            target,
            health: Arc::new(health),
            in_flight: InFlightCount::default(),
        }
    }
}

/// Requests under way to an address, of all workers. On a cache line of its own: each request writes
/// it twice.
///
/// In the upper half, failed requests that still count for the choice, and for no limit: one read
/// finds both.
#[derive(Debug, Default)]
pub(super) struct InFlightCount(CacheLine<AtomicU64>);

/// One failed request.
const PENALTY: u64 = 1 << 32;

impl InFlightCount {
    /// Requests.
    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed) as u32
    }

    /// Requests, and those that failed a moment ago.
    pub(super) fn with_penalties(&self) -> u32 {
        let counts = self.0.load(Ordering::Relaxed);
        (counts as u32).saturating_add((counts / PENALTY) as u32)
    }

    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_penalty(&self) {
        self.0.fetch_add(PENALTY, Ordering::Relaxed);
    }

    pub(super) fn remove_penalty(&self) {
        self.0.fetch_sub(PENALTY, Ordering::Relaxed);
    }

    /// Sequentially consistent, see [`Queue`].
    pub(super) fn remove(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An address in the list.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) address: Arc<Address>,
    /// Of the address family that the resolver does not prefer: the same server on another way, used
    /// while no address of the preferred family connects.
    pub(super) is_alternative: bool,
}

/// The addresses of all endpoints, in their order. Immutable.
#[derive(Debug, Default)]
pub(super) struct AddressSet {
    pub(super) listed: Vec<Listed>,
    /// Of each endpoint, why its last look-up has failed; `None` before the first has ended, too.
    pub(super) errors: Vec<Option<Arc<str>>>,
    /// Whether each endpoint's first look-up has ended.
    pub(super) is_complete: bool,
}

/// The addresses of an upstream.
pub(super) struct Addresses {
    config: Arc<Config>,
    workers: usize,
    clock: SharedClock,
    set: ArcSwap<AddressSet>,
    /// Each request reads it, and it is seldom written.
    version: CacheLine<AtomicU64>,
    /// The version, for tasks that wait for a change.
    changed: watch::Sender<u64>,
    /// Serializes changes of the list, and ejections: those count what is out already.
    changes: Mutex<Changes>,
    pub(super) queue: Queue,
    /// Of each endpoint, how often its addresses were taken out of use.
    pub(super) ejections: Vec<PerLabel<Reason, AtomicU64>>,
}

#[derive(Debug, Default)]
struct Changes {
    next_id: u64,
    /// Which endpoints' first look-up has ended.
    has_looked_up: Vec<bool>,
}

/// Requests that wait because all addresses are full.
///
/// A waiting request first counts itself and then looks for a place; a request that ends first gives
/// up its place and then looks for waiting ones. Both in one order for all threads, so that one of
/// the two sees the other.
///
/// With affinity, each request waits for its client's own address, and the first one may have no use
/// for the place that became free. All are then woken, and look in their order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: AtomicUsize,
    freed: Notify,
    wakes_all: bool,
}

impl Addresses {
    pub(super) fn new(config: Arc<Config>, workers: usize, clock: SharedClock) -> Self {
        let endpoints = config.endpoints.len();
        let addresses = Self {
            workers,
            clock,
            set: ArcSwap::default(),
            version: CacheLine::default(),
            changed: watch::channel(0).0,
            changes: Mutex::new(Changes {
                next_id: 0,
                has_looked_up: vec![false; endpoints],
            }),
            queue: Queue::new(config.affinity),
            ejections: (0..endpoints).map(|_| PerLabel::default()).collect(),
            config,
        };
        addresses.set.store(Arc::new(AddressSet {
            listed: Vec::new(),
            errors: vec![None; endpoints],
            is_complete: false,
        }));
        for endpoint in 0..endpoints {
            if let Some(target) = addresses.fixed(endpoint) {
                addresses.set_targets(endpoint, [(target, false)], None);
            }
        }
        addresses
    }

    /// The target of an endpoint that needs no look-up.
    pub(super) fn fixed(&self, endpoint: usize) -> Option<Target> {
        let Config {
            connect_to,
            endpoints,
            proxy,
            ..
        } = &*self.config;
        if let Some(proxy) = proxy {
            return Some(Target::Proxy(Arc::clone(proxy)));
        }
        let endpoint = &endpoints[endpoint];
        let address = connect_to.or_else(|| {
            let ip = endpoint.host.parse().ok()?;
            Some(SocketAddr::new(ip, endpoint.port))
        });
        address.map(Target::Socket)
    }

    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// The calendar time of a moment, to be shown only: the wall clock may jump.
    pub(super) fn date(&self, moment: Moment) -> SystemTime {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let date = if moment > now {
            wall.checked_add(moment.saturating_since(now))
        } else {
            wall.checked_sub(now.saturating_since(moment))
        };
        date.unwrap_or(wall)
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn load(&self) -> Arc<AddressSet> {
        self.set.load_full()
    }

    /// Resolves when the version is another one.
    pub(super) async fn changed_from(&self, version: u64) {
        let mut changed = self.changed.subscribe();
        // The sender lives as long as `self`.
        let _ = changed.wait_for(|current| *current != version).await;
    }

    /// Resolves when an address is known, or when every name's first look-up has ended.
    pub(super) async fn wait_until_known(&self) {
        loop {
            let version = self.version();
            let set = self.load();
            if set.is_complete || !set.listed.is_empty() {
                return;
            }
            self.changed_from(version).await;
        }
    }

    /// If there is no address: the endpoint to name, and why its name has none.
    pub(super) fn unresolved(&self) -> Option<(usize, Arc<str>)> {
        let set = self.load();
        if !set.listed.is_empty() {
            return None;
        }
        let errors = set.errors.iter().enumerate();
        let (endpoint, error) = errors.max_by_key(|(_, error)| error.is_some())?;
        let pending = || "the look-up has not ended yet".into();
        Some((endpoint, error.clone().unwrap_or_else(pending)))
    }

    /// Follows the look-ups of an endpoint's name. Addresses that stay keep their state; while look-ups
    /// fail, all stay.
    pub(super) fn follow(&self, endpoint: usize, lookup: &Lookup) {
        let targets = |addresses: &[SocketAddr], is_alternative| {
            let targets = addresses.iter().copied().map(Target::Socket);
            targets
                .map(|target| (target, is_alternative))
                .collect::<Vec<_>>()
        };
        let list: Vec<_> = match &lookup.list {
            Some(list) => [targets(&list.first, false), targets(&list.other, true)].concat(),
            None => Vec::new(),
        };
        let error = lookup.error.as_deref().map(Arc::from);
        self.set_targets(endpoint, list, error);
    }

    /// Replaces what is known of one endpoint: its targets, each with whether it is an alternative,
    /// and why its last look-up has failed.
    fn set_targets(
        &self,
        endpoint: usize,
        targets: impl IntoIterator<Item = (Target, bool)>,
        error: Option<Arc<str>>,
    ) {
        let mut changes = self.changes.lock();
        let old = self.load();
        let is_first_list = !changes.has_looked_up[endpoint];
        changes.has_looked_up[endpoint] = true;
        let now = self.clock.now();
        let origin = &self.config.endpoints[endpoint].origin;
        let (own, others): (Vec<_>, Vec<_>) = old
            .listed
            .iter()
            .cloned()
            .partition(|listed| listed.address.endpoint == endpoint);
        let mut listed = others;
        for (target, is_alternative) in targets {
            let known = own
                .iter()
                .find(|listed| listed.address.target.socket() == target.socket());
            let address = known.map(|listed| Arc::clone(&listed.address));
            let address = address.unwrap_or_else(|| {
                changes.next_id += 1;
                let id = changes.next_id;
                let health = Health::new(self.workers, self.config.slow_start, is_first_list, now);
                Arc::new(Address::new(id, endpoint, origin, target, health))
            });
            listed.push(Listed {
                address,
                is_alternative,
            });
        }
        // Stable: those of one endpoint stay in the order of its list.
        listed.sort_by_key(|listed| listed.address.endpoint);
        let mut errors = old.errors.clone();
        errors[endpoint] = error;
        self.set.store(Arc::new(AddressSet {
            listed,
            errors,
            is_complete: changes.has_looked_up.iter().all(|looked_up| *looked_up),
        }));
        self.bump();
    }

    /// The state or the weight of an address is another one.
    pub(super) fn bump(&self) {
        let version = self.version.fetch_add(1, Ordering::Release) + 1;
        self.changed.send_replace(version);
        self.queue.freed.notify_waiters();
    }

    /// Logs, counts and publishes a change of an address's health.
    pub(super) fn report(&self, address: &Address, transition: Option<Transition>) {
        let Some(transition) = transition else {
            return;
        };
        let Transition {
            from,
            to,
            reason,
            until,
        } = transition;
        let upstream = &*self.config.name;
        let endpoint = &*self.config.endpoints[address.endpoint].origin;
        let target = &address.target;
        let seconds = until.map(|until| until.saturating_since(self.clock.now()).as_secs());
        match to {
            State::Unreachable | State::Failing | State::Unhealthy => {
                if matches!(from, State::In | State::Trial) {
                    self.ejections[address.endpoint][reason].fetch_add(1, Ordering::Relaxed);
                }
                tracing::warn!(
                    upstream,
                    endpoint,
                    address = %target,
                    reason = reason.label(),
                    seconds,
                    "an address is out: it gets requests again when it works"
                );
            }
            State::Trial => tracing::info!(
                upstream,
                endpoint,
                address = %target,
                "an address is tried with one request at a time"
            ),
            State::In => tracing::info!(
                upstream,
                endpoint,
                address = %target,
                "an address gets requests again"
            ),
        }
        self.bump();
    }

    /// A request to the address failed there.
    pub(super) fn failed(&self, address: &Address, worker: usize, reason: Reason) {
        let may_eject = || {
            let guard = self.changes.lock();
            let set = self.load();
            let preferred = || set.listed.iter().filter(|listed| !listed.is_alternative);
            let others = || preferred().filter(|listed| !std::ptr::eq(&*listed.address, address));
            let ejected = others().filter(|listed| listed.address.health.is_ejected());
            // The last one that is in stays.
            let may_leave = others().any(|listed| listed.address.health.is_in());
            (may_leave && ejected.count() < preferred().count() / 2).then_some(guard)
        };
        let random = getrandom::u64().unwrap_or_default();
        let now = self.clock.now();
        let transition = address
            .health
            .failed(worker, now, reason, random, may_eject);
        self.report(address, transition);
    }

    /// A request to the address got a response.
    pub(super) fn succeeded(&self, address: &Address, worker: usize) {
        let transition = address.health.succeeded(worker, || self.clock.now());
        self.report(address, transition);
    }

    /// Time has passed.
    pub(super) fn tick(&self, address: &Address) {
        let transition = address.health.tick(self.clock.now());
        self.report(address, transition);
    }

    /// An active check of the address has ended; `error` says why it failed.
    pub(super) fn checked(&self, address: &Address, config: &HealthCheck, error: Option<&str>) {
        let now = self.clock.now();
        let transition = address
            .health
            .checked(error.is_none(), config.fall, config.rise, now);
        if let Some(error) = error {
            let endpoint = &*self.config.endpoints[address.endpoint].origin;
            tracing::debug!(endpoint, address = %address.target, error, "a health check failed");
        }
        self.report(address, transition);
    }

    /// A connection to the address was made.
    pub(super) fn connected(&self, address: &Address) {
        let transition = address.health.connected(self.clock.now());
        self.report(address, transition);
    }

    /// A connection to the address could not be made.
    pub(super) fn connect_failed(&self, address: &Address) {
        let transition = address.health.connect_failed(self.clock.now());
        self.report(address, transition);
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses")
            .field("upstream", &self.config.name)
            .finish_non_exhaustive()
    }
}

impl Queue {
    fn new(affinity: Affinity) -> Self {
        Self {
            wakes_all: affinity != Affinity::None,
            ..Self::default()
        }
    }

    /// Whether requests wait. A new request waits behind them.
    pub(super) fn is_empty(&self) -> bool {
        self.length() == 0
    }

    /// How many requests wait.
    pub(super) fn length(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A request has ended.
    pub(super) fn freed(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        if self.wakes_all {
            self.freed.notify_waiters();
        } else {
            self.freed.notify_one();
        }
    }

    /// Waits for a place in order; `None` if `limit` requests wait already, or after `timeout`.
    pub(super) async fn wait_for<T>(
        &self,
        limit: usize,
        timeout: Duration,
        place: impl Fn() -> Option<T>,
    ) -> Option<T> {
        let ticket = Ticket::take(&self.waiting, limit)?;
        let mut is_next = ticket.is_first || self.wakes_all;
        let waiting = async {
            loop {
                let mut freed = std::pin::pin!(self.freed.notified());
                freed.as_mut().enable();
                if std::mem::replace(&mut is_next, true)
                    && let Some(place) = place()
                {
                    return place;
                }
                freed.await;
            }
        };
        let taken = tokio::time::timeout(timeout, waiting).await.ok();
        drop(ticket);
        if taken.is_some() && !self.wakes_all {
            // Several places may have become free at once, which woke this request alone. If there is
            // another one, to give it up wakes the next request; none is woken in vain, since that
            // would lose its turn.
            drop(place());
        }
        taken
    }
}

/// A place in the queue, given up on drop.
struct Ticket<'a> {
    waiting: &'a AtomicUsize,
    /// Whether no request waited before.
    is_first: bool,
}

impl<'a> Ticket<'a> {
    fn take(waiting: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let ticket = Self {
            waiting,
            is_first: before == 0,
        };
        (before < limit).then_some(ticket)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::pin};

    use futures_util::future::{join3, poll_immediate};

    use super::*;
    use crate::{net::resolve::AddressList, upstream::testing};

    const TIMEOUT: Duration = Duration::from_secs(1);

    /// Gives its place up on drop, as a request does.
    struct Taken<'a>(&'a Queue, &'a Cell<u32>);

    impl Drop for Taken<'_> {
        fn drop(&mut self) {
            self.1.set(self.1.get() + 1);
            self.0.freed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn places_that_become_free_at_once_wake_all_that_wait() {
        let (queue, free) = (Queue::default(), Cell::new(0));
        let take = || {
            let left = free.get();
            (left > 0).then(|| {
                free.set(left - 1);
                Taken(&queue, &free)
            })
        };
        let mut first = pin!(queue.wait_for(10, TIMEOUT, take));
        assert!(poll_immediate(first.as_mut()).await.is_none());
        free.set(4);
        for _ in 0..4 {
            queue.freed();
        }
        // They come before the first one has run.
        let mut others = pin!(join3(
            queue.wait_for(10, TIMEOUT, take),
            queue.wait_for(10, TIMEOUT, take),
            queue.wait_for(10, TIMEOUT, take),
        ));
        let polled = poll_immediate(others.as_mut()).await;
        let first = first.await;
        let (second, third, fourth) = match polled {
            Some(others) => others,
            None => others.await,
        };
        assert!([first, second, third, fourth].iter().all(Option::is_some));
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_limited_in_length_and_time() {
        let queue = Queue::default();
        let none = || None::<()>;
        let mut first = pin!(queue.wait_for(1, TIMEOUT, none));
        assert!(poll_immediate(first.as_mut()).await.is_none());
        assert!(!queue.is_empty());
        assert_eq!(queue.wait_for(1, TIMEOUT, || Some(())).await, None);
        assert_eq!(first.await, None);
        assert!(queue.is_empty());
    }

    /// The ports of the addresses that are in.
    fn in_service(addresses: &Addresses) -> Vec<u16> {
        let set = addresses.load();
        let listed = set.listed.iter().map(|listed| &listed.address);
        let ports = listed.filter(|address| address.health.is_in());
        ports
            .filter_map(|address| Some(address.target.socket()?.port()))
            .collect()
    }

    fn fail(addresses: &Addresses, position: usize) {
        let address = Arc::clone(&addresses.load().listed[position].address);
        for _ in 0..5 {
            addresses.failed(&address, 0, Reason::Status);
        }
    }

    #[test]
    fn half_of_the_addresses_are_ejected_and_never_the_last_one_that_is_in() {
        let addresses = testing::addresses(&[1]);
        fail(&addresses, 0);
        assert_eq!(in_service(&addresses), [1], "the only one");

        let addresses = testing::addresses(&[1, 2, 3, 4]);
        for position in 0..4 {
            fail(&addresses, position);
        }
        assert_eq!(in_service(&addresses), [3, 4]);

        let addresses = testing::addresses(&[1, 2]);
        let first = Arc::clone(&addresses.load().listed[0].address);
        for _ in 0..2 {
            addresses.connect_failed(&first);
        }
        fail(&addresses, 1);
        assert_eq!(in_service(&addresses), [2]);
    }

    #[test]
    fn an_address_that_stays_in_the_list_keeps_its_state() {
        let addresses = Addresses::new(
            Arc::new(testing::config(vec![
                testing::endpoint("cloud.test", 80),
                testing::endpoint("127.0.0.1", 9),
            ])),
            1,
            crate::base::clock::system(),
        );
        let lookup = |first: &[u16], other: &[u16], error: Option<&str>| {
            let list = |ports: &[u16]| {
                let ports = ports.iter().map(|port| ([127, 0, 0, 1], *port).into());
                ports.collect::<Vec<SocketAddr>>()
            };
            let list = AddressList {
                first: list(first),
                other: list(other),
            };
            Lookup {
                list: Some(Arc::new(list)),
                error: error.map(ToOwned::to_owned),
            }
        };
        let listed = || {
            let set = addresses.load();
            let listed = set.listed.iter().map(|listed| {
                let port = listed.address.target.socket().map(|address| address.port());
                (port.unwrap_or(0), listed.address.id, listed.is_alternative)
            });
            listed.collect::<Vec<_>>()
        };
        assert!(!addresses.load().is_complete);
        addresses.follow(0, &lookup(&[1, 2], &[3], None));
        let before = listed();
        let shown: Vec<_> = before
            .iter()
            .map(|(port, _, other)| (*port, *other))
            .collect();
        assert_eq!(shown, [(1, false), (2, false), (3, true), (9, false)]);
        assert!(addresses.load().is_complete);

        addresses.follow(0, &lookup(&[1, 2], &[3], Some("no nameserver")));
        assert_eq!(listed(), before, "a failed look-up");
        assert_eq!(addresses.load().errors[0].as_deref(), Some("no nameserver"));

        addresses.follow(0, &lookup(&[2, 4], &[], None));
        let after = listed();
        assert_eq!(after[0], before[1]);
        assert_eq!(after[2], before[3]);
        assert!(
            before.iter().all(|(_, id, _)| *id != after[1].1),
            "a new one"
        );
        assert_eq!(addresses.load().errors[0], None);
    }
}
