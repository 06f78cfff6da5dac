//! The rule for rejected tokens, in simulated clouds: what good apps notice, and what the issuer
//! notices.

use std::{
    hash::Hash,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::task::JoinHandle;

use super::*;
use crate::{
    base::clock::Moment,
    token::{RejectedRequest, Replacement, Token},
};

/// A round trip to the cloud and to the issuer.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// What the cloud knows of a request.
#[derive(Debug, Clone, Copy)]
struct Received<'a> {
    path: &'a str,
    /// Requests are distributed over the cloud's nodes one after the other.
    number: usize,
    token_age: Duration,
    is_revoked: bool,
}

type Cloud = Box<dyn Fn(&Received<'_>) -> bool + Send + Sync>;

/// A cloud, its issuer and a proxy.
struct World {
    harness: Harness,
    /// Whether a request is accepted.
    accepts: Cloud,
    received: AtomicUsize,
    /// Tokens that were issued until then are revoked.
    revoked: Mutex<Option<Moment>>,
}

/// What an app noticed of its requests.
#[derive(Debug, Default)]
struct Noticed {
    requests: AtomicUsize,
    rejected: AtomicUsize,
    latest: Mutex<Duration>,
}

impl World {
    async fn new(accepts: impl Fn(&Received<'_>) -> bool + Send + Sync + 'static) -> Arc<Self> {
        let setup = Setup::new(|n| Ok(grant(n, DAY)));
        Self::with(setup.latency(ROUND_TRIP), accepts).await
    }

    async fn with(
        setup: Setup,
        accepts: impl Fn(&Received<'_>) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        let harness = setup.start();
        harness.token().await;
        Arc::new(Self {
            harness,
            accepts: Box::new(accepts),
            received: AtomicUsize::new(0),
            revoked: Mutex::new(None),
        })
    }

    fn revoke(&self) {
        *self.revoked.lock().expect("not poisoned") = Some(self.harness.clock.now());
    }

    async fn send(&self, path: &str, token: &Token) -> bool {
        let issued = token.expires_at().elapsed_since_boot().saturating_sub(DAY);
        let issued = Moment::since_boot(issued);
        let received = Received {
            path,
            number: self.received.fetch_add(1, Relaxed),
            token_age: self.harness.clock.now().saturating_since(issued),
            is_revoked: self
                .revoked
                .lock()
                .expect("not poisoned")
                .is_some_and(|at| issued < at),
        };
        self.harness.pass(ROUND_TRIP).await;
        !received.is_revoked && (self.accepts)(&received)
    }

    /// What the data path does with one request. True for a 200.
    async fn serve(&self, path: &str, properties: impl Hash) -> bool {
        let credential = &self.harness.credential;
        let token = self.harness.usable().expect("a token");
        let key = credential.request_key(properties);
        let accepted = |token: &Token| {
            if token.needs_proof() {
                credential.accepted(token, key);
            }
            true
        };
        if self.send(path, &token).await {
            return accepted(&token);
        }
        let mut request = RejectedRequest::new(token.version(), key);
        loop {
            match credential.replacement(&mut request, seconds(10)).await {
                Replacement::Newer(newer) => {
                    let is_accepted = self.send(path, &newer).await;
                    if is_accepted {
                        accepted(&newer);
                    } else {
                        credential.replay_rejected(&newer, key);
                    }
                    return is_accepted;
                }
                Replacement::Verify(verification) => {
                    if self.send(path, &token).await {
                        verification.accepted();
                        return accepted(&token);
                    }
                    verification.rejected(false);
                }
                Replacement::Futile | Replacement::Late => return false,
            }
        }
    }

    /// An app that sends a request each `interval`, whether or not the last one was served. The
    /// path of its nth request is `path(n)`.
    fn app(
        self: &Arc<Self>,
        interval: Duration,
        path: impl Fn(usize) -> String + Send + 'static,
    ) -> Arc<Noticed> {
        let (world, noticed) = (Arc::clone(self), Arc::<Noticed>::default());
        let ours = Arc::clone(&noticed);
        tokio::spawn(async move {
            for n in 0.. {
                tokio::spawn(Arc::clone(&world).request(path(n), Arc::clone(&ours)));
                world.harness.pass(interval).await;
            }
        });
        noticed
    }

    async fn request(self: Arc<Self>, path: String, noticed: Arc<Noticed>) {
        let begin = self.harness.clock.now();
        // The query is no property of the key.
        let key = path.split('?').next().map(ToOwned::to_owned);
        let is_accepted = self.serve(&path, key).await;
        noticed.requests.fetch_add(1, Relaxed);
        noticed.rejected.fetch_add((!is_accepted).into(), Relaxed);
        let took = self.harness.clock.now().saturating_since(begin);
        let mut latest = noticed.latest.lock().expect("not poisoned");
        *latest = took.max(*latest);
    }

    fn calls(&self) -> usize {
        self.harness.calls().len()
    }

    /// The most calls of the issuer in any minute, without the first call of all.
    fn calls_in_a_minute(&self) -> usize {
        let calls: Vec<_> = self
            .harness
            .calls()
            .iter()
            .skip(1)
            .map(|call| call.at)
            .collect();
        let in_minute = |from: &Moment| {
            let within = |at: &&Moment| *at >= from && at.saturating_since(*from) < seconds(60);
            calls.iter().filter(within).count()
        };
        calls.iter().map(in_minute).max().unwrap_or_default()
    }
}

impl Noticed {
    fn rejected(&self) -> usize {
        self.rejected.load(Relaxed)
    }

    fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    fn latest(&self) -> Duration {
        *self.latest.lock().expect("not poisoned")
    }
}

/// The longest that a request takes: it waits for its turn, and is sent three times.
const LATEST: Duration = Duration::from_millis(10_100);

/// The most calls in a minute: three at once, and one each ten seconds.
const MOST: usize = 3 + 6;

#[tokio::test(start_paused = true)]
async fn field_a4_a_revoked_token_is_noticed_by_nobody_beside_a_path_that_is_always_rejected() {
    for (good, bad) in [
        ("/good", "/never"),
        // One path for all calls, as RPC interfaces have.
        ("/rpc?method=good", "/rpc?method=never"),
    ] {
        for interval in [300, 3000] {
            for revocation in [10, 25, 60, 120, 200, 330] {
                let world = World::new(|received| !received.path.ends_with("never")).await;
                let app = world.app(Duration::from_millis(interval), move |_| good.to_owned());
                let never = world.app(seconds(1), move |_| bad.to_owned());
                world.harness.pass(seconds(revocation)).await;
                world.revoke();
                world.harness.pass(seconds(60)).await;
                let case = format!("{good} each {interval} ms, revoked after {revocation} s");
                assert_eq!(app.rejected(), 0, "{case}");
                assert!(app.requests() > 20, "{case}");
                assert!(app.latest() <= LATEST, "{case}: {:?}", app.latest());
                assert!(never.rejected() > 40, "{case}");
                assert!(world.calls_in_a_minute() <= MOST, "{case}");
                if good == "/good" {
                    // A refresh after 0, 10, 30, 70, 150 and 310 s, and the one that was needed.
                    assert!(world.calls() <= 8, "{case}: {} calls", world.calls());
                    assert!(app.latest() < seconds(1), "{case}: {:?}", app.latest());
                }
            }
        }
    }
}

/// That a request of a futile key is accepted matters also after the token's first proof.
#[tokio::test(start_paused = true)]
async fn field_a4_a_request_that_is_accepted_after_the_proof_ends_the_futility_of_its_path() {
    let world = World::new(|received| !received.path.ends_with("never")).await;
    let serve = |path: &'static str| world.serve(path, path.split('?').next());
    assert!(!serve("/rpc?method=never").await);
    assert!(serve("/other").await, "the token is proven");
    assert!(serve("/rpc?method=good").await);
    world.revoke();
    assert!(serve("/rpc?method=good").await);
    assert_eq!(world.calls(), 3);
}

/// The third refresh leaves seven seconds to the next one, which takes another second.
#[tokio::test(start_paused = true)]
async fn field_a4_the_wait_for_a_refresh_to_be_allowed_is_not_part_of_the_wait_for_it() {
    let harness = Setup::new(|n| Ok(grant(n, DAY)))
        .latency(seconds(1))
        .start();
    harness.token().await;
    for n in 1..=4 {
        let mut request = RejectedRequest::new(
            harness.usable().expect("a token").version(),
            harness.credential.request_key("/"),
        );
        let wait = Duration::from_millis(7500);
        let replacement = harness.credential.replacement(&mut request, wait).await;
        assert!(
            matches!(replacement, Replacement::Newer(_)),
            "{n}: {replacement:?}"
        );
        assert_eq!(harness.calls().len(), n + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn field_a5_a_node_that_rejects_every_token_costs_few_refreshes() {
    for nodes in [2, 3, 10] {
        let world = World::new(move |received| !received.number.is_multiple_of(nodes)).await;
        let apps: Vec<_> = (0..5)
            .map(|app| world.app(Duration::from_millis(150 + app), move |_| format!("/{app}")))
            .collect();
        world.harness.pass(seconds(130)).await;
        assert!(
            world.calls_in_a_minute() <= MOST,
            "1 of {nodes}: {} calls",
            world.calls()
        );
        let rejected: usize = apps.iter().map(|app| app.rejected()).sum();
        let requests: usize = apps.iter().map(|app| app.requests()).sum();
        // It meets the node again with the same token and with the newer one.
        assert!(
            rejected * nodes * nodes <= requests,
            "1 of {nodes}: {rejected} of {requests} rejected"
        );
    }
}

/// The token came from a file: whether it was ever accepted is unknown.
#[tokio::test(start_paused = true)]
async fn field_a5_while_the_issuer_hangs_an_unproven_token_is_verified_after_the_wait() {
    const REQUESTS: usize = 10;
    for is_revoked in [false, true] {
        let before = Setup::new(|n| Ok(grant(n, DAY))).start();
        before.token().await;
        before.pass(seconds(1)).await;
        let setup = Setup::new(|_| unreachable!("no call ends")).latency(seconds(60));
        let setup = setup.beside(&before);
        let world = World::with(setup, |received| received.number >= REQUESTS).await;
        if is_revoked {
            world.revoke();
        }
        let noticed = Arc::new(Noticed::default());
        for n in 0..REQUESTS {
            tokio::spawn(Arc::clone(&world).request(format!("/{n}"), Arc::clone(&noticed)));
        }
        world.harness.pass(seconds(12)).await;
        assert_eq!(noticed.requests(), REQUESTS);
        assert!(noticed.latest() <= LATEST, "{:?}", noticed.latest());
        let received = world.received.load(Relaxed);
        if is_revoked {
            assert_eq!(noticed.rejected(), REQUESTS);
            assert_eq!(received, REQUESTS + 1, "one verifies for all");
        } else {
            assert_eq!(noticed.rejected(), 0);
            assert_eq!(received, 2 * REQUESTS);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn field_a5_tokens_that_are_rejected_while_they_are_young_cost_few_refreshes() {
    let world = World::new(|received| received.token_age >= seconds(2)).await;
    let apps: Vec<_> = (0..5)
        .map(|app| world.app(Duration::from_millis(90 + app), move |_| format!("/{app}")))
        .collect();
    world.harness.pass(seconds(300)).await;
    assert!(world.calls() <= 5, "{}", world.calls());
    let (rejected, requests) = apps.iter().fold((0, 0), |(rejected, requests), app| {
        (rejected + app.rejected(), requests + app.requests())
    });
    assert!(rejected * 100 < requests * 5, "{rejected} of {requests}");
}

#[tokio::test(start_paused = true)]
async fn field_a5_an_upstream_that_rejects_everything_costs_few_refreshes() {
    // One path: the memory of its key grows to five minutes.
    let world = World::new(|_| false).await;
    let app = world.app(Duration::from_millis(100), |_| "/".to_owned());
    world.harness.pass(seconds(1000)).await;
    assert_eq!(app.rejected(), app.requests());
    // After 0, 10, 30, 70, 150, 310, 610 and 910 s.
    assert_eq!(world.calls(), 9);
    assert!(app.latest() < seconds(1), "{:?}", app.latest());
}

#[tokio::test(start_paused = true)]
async fn field_a5_a_crawler_over_forbidden_paths_costs_others_nothing_but_time() {
    for parallel in [1, 100] {
        let world = World::new(|received| received.path == "/good").await;
        let app = world.app(Duration::from_millis(100), |_| "/good".to_owned());
        let next = Arc::new(AtomicUsize::new(0));
        let noticed = Arc::<Noticed>::default();
        let crawlers: Vec<_> = (0..parallel)
            .map(|_| {
                let (world, next) = (Arc::clone(&world), Arc::clone(&next));
                let noticed = Arc::clone(&noticed);
                tokio::spawn(async move {
                    loop {
                        let n = next.fetch_add(1, Relaxed);
                        if n >= 10_000 {
                            return;
                        }
                        let (world, noticed) = (Arc::clone(&world), Arc::clone(&noticed));
                        world.request(format!("/forbidden/{n}"), noticed).await;
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            world.harness.pass(seconds(47)).await;
            world.revoke();
        }
        world.harness.pass(seconds(60)).await;
        crawlers.iter().for_each(JoinHandle::abort);
        assert_eq!(app.rejected(), 0, "{parallel} at a time");
        assert!(app.latest() <= LATEST, "{:?}", app.latest());
        assert_eq!(noticed.rejected(), noticed.requests());
        assert!(noticed.requests() >= 15 * parallel, "{noticed:?}");
        assert!(world.calls_in_a_minute() <= MOST, "{}", world.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn field_a5_ten_thousand_concurrent_rejections_cost_one_refresh_and_one_more_attempt() {
    let world = World::new(|_| true).await;
    assert!(world.serve("/", "/").await, "the token is proven");
    world.revoke();
    let noticed = Arc::<Noticed>::default();
    let requests: Vec<_> = (0..10_000)
        .map(|n| tokio::spawn(Arc::clone(&world).request(format!("/{n}"), Arc::clone(&noticed))))
        .collect();
    for request in requests {
        request.await.expect("without a panic");
    }
    assert_eq!((noticed.requests(), noticed.rejected()), (10_000, 0));
    assert_eq!(world.calls(), 2);
    // The proof, 10,000 rejections, one verification, 10,000 replays.
    assert_eq!(world.received.load(Relaxed), 20_002);
    assert!(noticed.latest() < seconds(1), "{:?}", noticed.latest());
}

/// The issuer refuses the client, so that no newer token comes while the cached one is valid.
#[tokio::test(start_paused = true)]
async fn field_a5_a_node_that_rejects_every_token_is_avoided_also_while_refreshes_are_refused() {
    let setup = Setup::new(|n| match n {
        1 => Ok(grant(n, DAY)),
        _ => failure(FailureClass::ClientRefused),
    })
    .latency(ROUND_TRIP);
    // The first request is accepted, and all that arrive together after it meet the node.
    const TOGETHER: usize = 10;
    let world = World::with(setup, |received| !(1..=TOGETHER).contains(&received.number)).await;
    let harness = &world.harness;
    harness.pass(seconds(10)).await;
    harness.credential.refresh_now().expect("allowed");
    harness.until(State::Dead, Reason::ClientRefused).await;
    assert!(world.serve("/", "/").await, "the token is proven");
    let noticed = Arc::<Noticed>::default();
    let requests: Vec<_> = (0..TOGETHER)
        .map(|n| tokio::spawn(Arc::clone(&world).request(format!("/{n}"), Arc::clone(&noticed))))
        .collect();
    for request in requests {
        request.await.expect("without a panic");
    }
    assert_eq!((noticed.requests(), noticed.rejected()), (TOGETHER, 0));
}

/// Requests with the proven token that are sent together. Their longest durations.
async fn together<const N: usize>(world: &Arc<World>) -> [Duration; N] {
    assert!(world.serve("/", "/").await, "the token is proven");
    let requests = std::array::from_fn(|n| {
        let noticed = Arc::<Noticed>::default();
        let path = format!("/{n}");
        tokio::spawn(Arc::clone(world).request(path, Arc::clone(&noticed)));
        noticed
    });
    // Longer than any of them takes.
    world.harness.pass(seconds(25)).await;
    requests.map(|noticed: Arc<Noticed>| {
        assert_eq!((noticed.requests(), noticed.rejected()), (1, 0));
        noticed.latest()
    })
}

#[tokio::test(start_paused = true)]
async fn field_a5_the_outcome_of_a_verification_is_known_at_once() {
    let world = World::new(|received| !(1..=5).contains(&received.number)).await;
    for latest in together::<5>(&world).await {
        assert!(latest < seconds(1), "{latest:?}");
    }
    assert_eq!(world.calls(), 1);
}

/// Two requests and the verification of one of them meet a node that rejects; after a second the
/// other request verifies the token itself.
#[tokio::test(start_paused = true)]
async fn field_a5_a_request_that_waits_for_a_refresh_may_meet_another_node_before() {
    let setup = Setup::new(|n| Ok(grant(n, DAY))).latency(seconds(9));
    let world = World::with(setup, |received| !(1..=3).contains(&received.number)).await;
    let [first, second] = together(&world).await;
    assert!(
        first > seconds(9) && second < seconds(2),
        "{first:?} {second:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn field_a5_a_request_that_waits_for_its_turn_may_meet_another_node_before() {
    let world = World::new(|received| !(1..=3).contains(&received.number)).await;
    let harness = &world.harness;
    for _ in 0..3 {
        harness
            .credential
            .rejected(harness.usable().expect("a token").version());
        harness.pass(seconds(1)).await;
    }
    assert_eq!(world.calls(), 4, "the budget is spent");
    let [first, second] = together(&world).await;
    assert!(
        first > seconds(5) && second < seconds(2),
        "{first:?} {second:?}"
    );
}
