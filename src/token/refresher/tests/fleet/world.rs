//! Replicas, their store and their issuer, all simulated.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{
        clock::{Clock as _, Moment, SharedClock, Simulated},
        secret::Secret,
    },
    token::{
        Config, Credential, Failure, FailureClass, TokenResponse,
        deadline::CallDeadline,
        fleet::{
            Fleet, OnStoreFailure,
            testing::{Identity, Link, Seal, Server},
        },
        initial_grant::InitialGrant,
        issuer::Issuer,
        refresher::{Refresher, Storage},
        store::{AccessToken, Grant, Owner, Record, RequestTime},
        testing,
    },
};

pub(super) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What a test decides.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) replicas: usize,
    pub(super) lifetime: Duration,
    /// How long the issuer forgives a repetition.
    pub(super) forgives: Duration,
    pub(super) grace_retry: bool,
    /// Of a call, after the connection stands.
    pub(super) latency: Vec<Duration>,
    pub(super) seed: &'static str,
    pub(super) has_initial_grant: bool,
    pub(super) has_mirror: bool,
    pub(super) on_store_failure: OnStoreFailure,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            replicas: 4,
            lifetime: Duration::from_secs(60),
            forgives: Duration::ZERO,
            grace_retry: false,
            latency: vec![ms(50)],
            seed: "seed",
            has_initial_grant: false,
            has_mirror: false,
            on_store_failure: OnStoreFailure::Wait,
        }
    }
}

/// One call that the issuer received.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) token: String,
    pub(super) replica: usize,
}

/// The issuer. It rotates refresh tokens.
pub(super) struct StrictIssuer {
    clock: Arc<Simulated>,
    rules: Rules,
    state: Mutex<IssuerState>,
}

#[derive(Default)]
struct IssuerState {
    live: BTreeSet<String>,
    spent: BTreeMap<String, Moment>,
    granted: usize,
    received: Vec<Received>,
    /// Tokens that were received once more after the time that is forgiven.
    reused: Vec<Received>,
    in_flight: usize,
    most_in_flight: usize,
    refuses: Option<FailureClass>,
}

impl StrictIssuer {
    fn new(clock: Arc<Simulated>, rules: &Rules) -> Arc<Self> {
        let mut state = IssuerState::default();
        state.live.insert(rules.seed.to_owned());
        Arc::new(Self {
            clock,
            rules: rules.clone(),
            state: Mutex::new(state),
        })
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.state.lock().received.clone()
    }

    pub(super) fn reused(&self) -> Vec<Received> {
        self.state.lock().reused.clone()
    }

    pub(super) fn most_in_flight(&self) -> usize {
        self.state.lock().most_in_flight
    }

    /// All further calls fail like this; `None`: they succeed again.
    pub(super) fn refuse(&self, class: Option<FailureClass>) {
        self.state.lock().refuses = class;
    }

    /// A new refresh token, as `login` brings one.
    pub(super) fn grant_seed(&self, seed: &str) {
        self.state.lock().live.insert(seed.to_owned());
    }

    /// The issuer forgets all refresh tokens.
    pub(super) fn revoke(&self) {
        self.state.lock().live.clear();
    }

    /// The request has arrived.
    fn receive(&self, token: &str, replica: usize) -> Result<TokenResponse, Failure> {
        let at = self.clock.now();
        let received = Received {
            token: token.to_owned(),
            replica,
        };
        let mut state = self.state.lock();
        state.received.push(received.clone());
        if let Some(class) = state.refuses {
            return Err(Failure::new(class, "as scripted"));
        }
        if let Some(spent) = state.spent.get(token) {
            if at.saturating_since(*spent) > self.rules.forgives {
                state.reused.push(received);
                state.live.clear();
                return Err(Failure::new(FailureClass::RefreshTokenRefused, "reused"));
            }
        } else if !token.is_empty() {
            if !state.live.remove(token) {
                return Err(Failure::new(FailureClass::RefreshTokenRefused, "unknown"));
            }
            state.spent.insert(token.to_owned(), at);
        }
        state.granted += 1;
        let n = state.granted;
        state.live.insert(format!("refresh-{n}"));
        Ok(super::super::harness::grant(n, self.rules.lifetime))
    }
}

/// A replica's way to the issuer.
struct Caller {
    issuer: Arc<StrictIssuer>,
    gate: Arc<Gate>,
    replica: usize,
}

impl Caller {
    async fn call(&self, token: String, deadline: &CallDeadline) -> Result<TokenResponse, Failure> {
        let clock = Arc::clone(&self.issuer.clock);
        let connecting = self.gate.next_connect_time();
        clock.sleep_until(clock.now() + connecting).await;
        if self.gate.is_cut_off(clock.now()) || !deadline.may_send() {
            return Err(Failure::not_sent());
        }
        let (issuer, replica) = (Arc::clone(&self.issuer), self.replica);
        let (sender, response) = oneshot::channel();
        let number = {
            let mut state = issuer.state.lock();
            state.in_flight += 1;
            state.most_in_flight = state.most_in_flight.max(state.in_flight);
            state.received.len()
        };
        let gate = Arc::clone(&self.gate);
        // What was written is processed whether or not the replica lives.
        tokio::spawn(async move {
            let latency = issuer.rules.latency[number % issuer.rules.latency.len()];
            let clock = Arc::clone(&issuer.clock);
            clock.sleep_until(clock.now() + latency / 2).await;
            let response = issuer.receive(&token, replica);
            clock.sleep_until(clock.now() + latency / 2).await;
            issuer.state.lock().in_flight -= 1;
            if !gate.is_cut_off(clock.now()) {
                let _ = sender.send(response);
            }
        });
        let lost = || Failure::new(FailureClass::Ambiguous, "lost");
        match deadline.run(response).await {
            Some(Ok(response)) => response,
            Some(Err(_)) | None => Err(lost()),
        }
    }
}

impl Issuer for Caller {
    fn refresh<'a>(
        &'a self,
        refresh_token: &'a Secret,
        deadline: &'a CallDeadline,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>> {
        Box::pin(self.call(refresh_token.expose().to_owned(), deadline))
    }

    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }

    fn client_refused(&mut self) {}

    fn client_fingerprint(&self) -> String {
        "secret".to_owned()
    }
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Caller")
    }
}

impl InitialGrant for Caller {
    fn request_tokens<'a>(
        &'a self,
        deadline: &'a CallDeadline,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>> {
        Box::pin(self.call(String::new(), deadline))
    }
}

/// What happens to a replica.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    stopped_until: Moment,
    cut_off_until: Moment,
    connect_times: Vec<Duration>,
}

impl Gate {
    fn next_connect_time(&self) -> Duration {
        self.state.lock().connect_times.pop().unwrap_or(ms(10))
    }

    fn is_cut_off(&self, now: Moment) -> bool {
        self.state.lock().cut_off_until > now
    }

    fn stopped_until(&self) -> Moment {
        self.state.lock().stopped_until
    }
}

/// One replica. Its life continues in a process after this one.
pub(super) struct Replica {
    pub(super) link: Link,
    gate: Arc<Gate>,
    pub(super) credential: Credential,
    /// The newest record that was published: what its state file holds.
    mirror: Option<Record>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

pub(super) struct World {
    pub(super) clock: Arc<Simulated>,
    pub(super) server: Arc<Server>,
    pub(super) issuer: Arc<StrictIssuer>,
    pub(super) replicas: Vec<Replica>,
    rules: Rules,
}

pub(super) fn owner() -> Owner {
    Owner::new(&testing::config(None).issuer)
}

impl World {
    pub(super) fn new(rules: Rules) -> Self {
        let clock = Arc::new(Simulated::new());
        let server = Server::new(Arc::clone(&clock));
        let issuer = StrictIssuer::new(Arc::clone(&clock), &rules);
        let mut world = Self {
            clock,
            server,
            issuer,
            replicas: Vec::new(),
            rules,
        };
        for _ in 0..world.rules.replicas {
            world.add(Some(world.rules.seed), None);
        }
        world
    }

    /// Starts one more replica.
    pub(super) fn add(&mut self, seed: Option<&str>, mirror: Option<Record>) {
        let number = self.replicas.len();
        let replica = self.start(number, seed, mirror, self.server.link(), Arc::default());
        self.replicas.push(replica);
    }

    fn start(
        &self,
        number: usize,
        seed: Option<&str>,
        mirror: Option<Record>,
        link: Link,
        gate: Arc<Gate>,
    ) -> Replica {
        let clock: SharedClock = Arc::<Simulated>::clone(&self.clock);
        let caller = || Caller {
            issuer: Arc::clone(&self.issuer),
            gate: Arc::clone(&gate),
            replica: number,
        };
        let identity = Identity {
            owner: owner(),
            replica: format!("replica-{number}"),
            key: "key".to_owned(),
        };
        let seal = Seal::new(None).expect("no key");
        let fleet = Fleet::new(
            Box::new(link.clone()),
            seal,
            identity,
            SharedClock::clone(&clock),
        );
        let config = Config {
            grace_retry: self.rules.grace_retry,
            grace_period: match self.rules.grace_retry {
                true => Duration::from_secs(5),
                false => Duration::ZERO,
            },
            refresh_margin: Some(self.rules.lifetime / 5),
            ..testing::config(seed.map(Secret::new))
        };
        let (refresher, credential) = Refresher::with(
            config,
            clock,
            Box::new(caller()),
            self.rules
                .has_initial_grant
                .then(|| Box::new(caller()) as Box<dyn InitialGrant>),
            Storage {
                store: None,
                fleet: Some((fleet, self.rules.on_store_failure)),
            },
            mirror.clone().unwrap_or_default(),
        );
        let stop = CancellationToken::new();
        let running = refresher.run(stop.clone());
        let task = tokio::spawn(stoppable(
            Box::pin(running),
            Arc::clone(&gate),
            Arc::clone(&self.clock),
        ));
        Replica {
            link,
            gate,
            credential,
            mirror,
            stop,
            task: Some(task),
        }
    }

    /// What `login` does in a process of its own.
    pub(super) async fn log_in(&self, refresh_token: &str) {
        let clock: SharedClock = Arc::<Simulated>::clone(&self.clock);
        let identity = Identity {
            owner: owner(),
            replica: "login".to_owned(),
            key: "key".to_owned(),
        };
        let seal = Seal::new(None).expect("no key");
        let link = Box::new(self.server.link());
        let fleet = Fleet::new(link, seal, identity, SharedClock::clone(&clock));
        self.issuer.grant_seed(refresh_token);
        let stored = fleet.store_login("secret", |stored| {
            let mut record = stored.unwrap_or_default();
            let access = AccessToken::new(
                Secret::new(format!("access-of-{refresh_token}")),
                self.rules.lifetime,
                RequestTime::now(&*clock),
                &*clock,
            );
            let refresh_token = Some(Secret::new(refresh_token));
            record.advance(refresh_token, None, access, &Grant::Initial);
            record
        });
        stored.await.expect("stored");
    }

    /// The replica whose claim is stored.
    pub(super) fn claimant(&self) -> Option<usize> {
        let claim = self.server.shared(&owner())?.claim?;
        claim.name.strip_prefix("replica-")?.parse().ok()
    }

    pub(super) async fn pass(&self, time: Duration) {
        self.clock.sleep_until(self.clock.now() + time).await;
    }

    /// Waits at most `limit` until all replicas have a usable token, and returns how long it took.
    pub(super) async fn ready(&self, limit: Duration) -> Option<Duration> {
        let begin = self.clock.now();
        while self.clock.now() < begin + limit {
            if (0..self.replicas.len()).all(|n| self.version(n).is_some()) {
                return Some(self.clock.now().saturating_since(begin));
            }
            self.pass(ms(10)).await;
        }
        None
    }

    /// The generation of the usable token that a replica has.
    pub(super) fn version(&self, replica: usize) -> Option<(u64, String)> {
        let now = self.clock.now();
        let token = self.replicas[replica].credential.token();
        let token = token.as_ref().filter(|token| token.is_usable(now))?;
        let header = token.header().to_str().expect("text").to_owned();
        Some((token.version().generation(), header))
    }

    /// All replicas have the same usable token.
    pub(super) fn agree(&self) -> bool {
        let first = self.version(0);
        first.is_some() && (1..self.replicas.len()).all(|n| self.version(n) == first)
    }

    /// Waits at most `limit` until all replicas have the same usable token.
    pub(super) async fn agreed(&self, limit: Duration) -> bool {
        let end = self.clock.now() + limit;
        while !self.agree() && self.clock.now() < end {
            self.pass(ms(50)).await;
        }
        self.agree()
    }

    /// `SIGSTOP`, and `SIGCONT` after `time`.
    pub(super) fn stop_for(&self, replica: usize, time: Duration) {
        let until = self.clock.now() + time;
        self.replicas[replica].gate.state.lock().stopped_until = until;
    }

    /// Nothing passes between the replica and the issuer.
    pub(super) fn cut_off(&self, replica: usize, time: Duration) {
        let until = self.clock.now() + time;
        self.replicas[replica].gate.state.lock().cut_off_until = until;
    }

    /// The next connection to the issuer takes this long.
    pub(super) fn delay_connection(&self, replica: usize, time: Duration) {
        let mut state = self.replicas[replica].gate.state.lock();
        state.connect_times.push(time);
    }

    /// `SIGKILL`.
    pub(super) async fn kill(&mut self, replica: usize) {
        let task = self.replicas[replica].task.take().expect("running");
        task.abort();
        let _ = task.await;
    }

    /// Kills a replica in its next call to the issuer. Another one has a newer token within `limit`:
    /// its generation.
    pub(super) async fn survives_a_kill_in_a_call(&mut self, limit: Duration) -> u64 {
        let calls = self.issuer.received().len();
        let generation = self.version(0).expect("a token").0;
        while self.issuer.received().len() == calls {
            self.pass(ms(10)).await;
        }
        let owner = self.issuer.received()[calls].replica;
        self.kill(owner).await;
        let end = self.clock.now() + limit;
        self.revive(owner);
        let other = (owner + 1) % self.replicas.len();
        loop {
            match self.version(other) {
                Some((newer, _)) if newer > generation => return newer,
                _ => assert!(self.clock.now() < end),
            }
            self.pass(ms(10)).await;
        }
    }

    /// A process after one that was killed or has ended.
    pub(super) fn revive(&mut self, replica: usize) {
        let seed = self.rules.seed;
        self.revive_with(replica, Some(seed));
    }

    pub(super) fn revive_with(&mut self, replica: usize, seed: Option<&str>) {
        let mirror = self.replicas[replica].mirror.clone();
        let mirror = mirror.filter(|_| self.rules.has_mirror);
        let link = self.server.link();
        let next = self.start(replica, seed, mirror, link, Arc::default());
        self.replicas[replica] = next;
    }

    /// `SIGTERM`, and the end of the process.
    pub(super) async fn end(&mut self, replica: usize) {
        self.replicas[replica].stop.cancel();
        let task = self.replicas[replica].task.take().expect("running");
        task.await.expect("no panic");
    }
}

/// Polls `inner` only while the replica is not stopped.
async fn stoppable(
    mut inner: Pin<Box<impl Future<Output = ()> + Send>>,
    gate: Arc<Gate>,
    clock: Arc<Simulated>,
) {
    let mut sleep: Option<BoxFuture<'static, ()>> = None;
    poll_fn(move |context| {
        loop {
            if gate.stopped_until() <= clock.now() {
                return inner.as_mut().poll(context);
            }
            let sleeping = sleep.get_or_insert_with(|| {
                let (gate, clock) = (Arc::clone(&gate), Arc::clone(&clock));
                Box::pin(async move { clock.sleep_until(gate.stopped_until()).await })
            });
            match sleeping.as_mut().poll(context) {
                Poll::Ready(()) => sleep = None,
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
