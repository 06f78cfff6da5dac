//! Property test: the invariants of a credential hold for any responses of the issuer, clock jumps,
//! crashes and configuration changes.

mod model;

use proptest::{prelude::*, test_runner::Config as Cases};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::model::{Model, ScriptedResponse};
use super::*;
use crate::token::{Token, testing};

/// The longest time to a usable token: the longest `Retry-After`, and a margin for the call.
const RECOVERY: Duration = seconds(330);

#[derive(Debug, Clone)]
enum Step {
    Pass(Duration),
    /// To the cached token's expiry, plus this duration.
    PassToExpiry(Duration),
    /// A request without a token, or one whose token was rejected, waits this long.
    Wait(Duration),
    Reject(Duration, Verdict),
    JumpWall(bool, Duration),
    Suspend(Duration),
    NewClientSecret,
    NewSeed,
    /// Another process refreshes; this one may be asked to reload.
    AnotherProcess(bool, Duration),
    Restart,
    Crash,
}

/// How the upstream treats a replay.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    Accepted,
    Rejected,
    Unknown,
}

fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![0..6_000_u64, 0..100_000_u64, 0..7_200_000_u64].prop_map(Duration::from_millis)
}

fn two_days() -> impl Strategy<Value = Duration> {
    prop_oneof![0..600_u64, 0..=2 * 24 * 3600_u64].prop_map(Duration::from_secs)
}

fn lifetime() -> impl Strategy<Value = Duration> {
    prop_oneof![1..=10_u64, 10..=600_u64, 600..=7200_u64].prop_map(Duration::from_secs)
}

fn step() -> impl Strategy<Value = Step> {
    let wait = || (0..12_000_u64).prop_map(Duration::from_millis);
    let verdict = || {
        prop_oneof![
            Just(Verdict::Accepted),
            Just(Verdict::Rejected),
            Just(Verdict::Unknown)
        ]
    };
    prop_oneof![
        8 => time().prop_map(Step::Pass),
        3 => (0..3_u64).prop_map(|n| Step::PassToExpiry(Duration::from_millis(n))),
        3 => wait().prop_map(Step::Wait),
        6 => (wait(), verdict()).prop_map(|(wait, verdict)| Step::Reject(wait, verdict)),
        2 => (any::<bool>(), two_days())
            .prop_map(|(is_forwards, by)| Step::JumpWall(is_forwards, by)),
        2 => two_days().prop_map(Step::Suspend),
        1 => Just(Step::NewClientSecret),
        2 => Just(Step::NewSeed),
        1 => (any::<bool>(), lifetime())
            .prop_map(|(reload, lifetime)| Step::AnotherProcess(reload, lifetime)),
        1 => Just(Step::Restart),
        2 => Just(Step::Crash),
    ]
}

fn response() -> impl Strategy<Value = ScriptedResponse> {
    let latency = prop_oneof![Just(0_u64), 1..9_000_u64].prop_map(Duration::from_millis);
    let failure = prop_oneof![
        2 => Just(FailureClass::Garbled),
        1 => Just(FailureClass::Failing),
        1 => Just(FailureClass::Unreachable),
        2 => (1..=300_u64).prop_map(|n| FailureClass::Throttled(seconds(n))),
        2 => Just(FailureClass::RefreshTokenRefused),
        2 => Just(FailureClass::ClientRefused),
        2 => Just(FailureClass::Ambiguous),
    ];
    prop_oneof![
        4 => (latency.clone(), any::<bool>(), lifetime())
            .prop_map(|(latency, rotates, lifetime)| ScriptedResponse {
                latency,
                outcome: Ok((rotates, lifetime)),
            }),
        4 => (latency, failure)
            .prop_map(|(latency, class)| ScriptedResponse { latency, outcome: Err(class) }),
        1 => Just(ScriptedResponse { latency: seconds(10), outcome: Err(FailureClass::Ambiguous) }),
    ]
}

/// Consecutive processes on one machine, and the waiting requests.
struct Run {
    model: Arc<Model>,
    folder: tempfile::TempDir,
    seeds: usize,
    credential: Credential,
    stop: CancellationToken,
    task: JoinHandle<()>,
    waiters: Vec<JoinHandle<()>>,
}

impl Run {
    fn new(responses: Vec<ScriptedResponse>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("seed"), "seed-0").expect("written");
        let model = Model::new(responses);
        let (credential, stop, task) = start(&model, folder.path());
        Self {
            model,
            folder,
            seeds: 0,
            credential,
            stop,
            task,
            waiters: Vec::new(),
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Pass(time) => self.pass(time).await,
            Step::PassToExpiry(more) => {
                let expiry = self
                    .credential
                    .token()
                    .as_ref()
                    .map(|token| token.expires_at());
                let left = expiry.map_or(Duration::ZERO, |at| {
                    at.saturating_since(self.model.clock.now())
                });
                self.pass(left + more).await;
            }
            Step::Wait(wait) => self.wait(None, wait, Verdict::Accepted),
            Step::Reject(wait, verdict) => self.reject(wait, verdict),
            Step::JumpWall(is_forwards, by) => {
                self.model.clock.jump_wall(
                    if is_forwards {
                        Jump::Forwards
                    } else {
                        Jump::Backwards
                    },
                    by,
                );
            }
            Step::Suspend(time) => self.model.clock.suspend(time),
            Step::NewClientSecret => self.model.change_client_secret(),
            Step::NewSeed => self.configure_seed(),
            Step::AnotherProcess(reload, lifetime) => {
                self.model.refresh_in_another_process(lifetime);
                if reload {
                    self.reload();
                }
            }
            Step::Restart => self.restart(true).await,
            Step::Crash => self.restart(false).await,
        }
        self.model.observe(&self.credential);
    }

    async fn pass(&self, time: Duration) {
        for _ in 0..4 {
            self.model
                .clock
                .sleep_until(self.model.clock.now() + time / 4)
                .await;
            self.model.observe(&self.credential);
        }
    }

    fn configure_seed(&mut self) {
        self.seeds += 1;
        std::fs::write(
            self.folder.path().join("seed"),
            format!("seed-{}", self.seeds),
        )
        .expect("written");
        self.reload();
    }

    fn reload(&self) {
        self.model.operator_acts();
        self.credential.reload();
    }

    fn reject(&mut self, wait: Duration, verdict: Verdict) {
        let now = self.model.clock.now();
        let Some(token) = self
            .credential
            .token()
            .as_ref()
            .filter(|token| token.is_usable(now))
            .cloned()
        else {
            return;
        };
        match self.credential.rejected(token.version()) {
            Rejection::Newer(newer) => self
                .model
                .violated(&format!("{:?} is the newest", newer.version())),
            Rejection::Refreshing { .. } | Rejection::Waiting { .. } => {
                self.wait(Some(token), wait, verdict);
            }
            Rejection::Verify(_) | Rejection::Futile => {
                self.model.violated("a request without a key was verified");
            }
        }
    }

    fn wait(&mut self, rejected: Option<Arc<Token>>, wait: Duration, verdict: Verdict) {
        let (model, credential) = (Arc::clone(&self.model), self.credential.clone());
        self.waiters.push(tokio::spawn(async move {
            let version = rejected.map(|token| token.version());
            let response = credential.newer_than(version, wait);
            let Ok(response) =
                tokio::time::timeout(wait + Duration::from_millis(2), response).await
            else {
                return model.violated("a waiter did not return by its deadline");
            };
            let Some(token) = response else {
                return model.observe_none(&credential, version);
            };
            model.observe_handed_out(&token, version);
            let key = credential.request_key("one");
            match verdict {
                Verdict::Accepted => credential.accepted(&token, key),
                Verdict::Rejected => credential.replay_rejected(&token, key),
                Verdict::Unknown => {}
            }
        }));
    }

    async fn restart(&mut self, is_orderly: bool) {
        self.model.let_responses_arrive().await;
        if is_orderly {
            self.stop.cancel();
            let end = tokio::time::timeout(seconds(11), &mut self.task).await;
            end.expect("it ends with its call")
                .expect("without a panic");
        } else {
            self.task.abort();
            assert!(
                (&mut self.task)
                    .await
                    .is_err_and(|error| error.is_cancelled()),
                "it panicked"
            );
        }
        self.model.observe_end(is_orderly);
        let (credential, stop, task) = start(&self.model, self.folder.path());
        (self.credential, self.stop, self.task) = (credential, stop, task);
    }

    /// The issuer works again, and an operator configures a new refresh token.
    async fn recover(&mut self) {
        self.model.heal();
        self.configure_seed();
        if self.credential.newer_than(None, seconds(1)).await.is_none() {
            self.pass(RECOVERY).await;
        }
        if self.model.usable(&self.credential).is_none() {
            self.model
                .violated(&format!("no recovery: {:?}", self.credential.snapshot()));
        }
        for waiter in self.waiters.drain(..) {
            waiter.await.expect("without a panic");
        }
        assert!(!self.task.is_finished(), "the refresher ended");
    }
}

fn start(
    model: &Arc<Model>,
    folder: &std::path::Path,
) -> (Credential, CancellationToken, JoinHandle<()>) {
    let (issuer, store, record) = model.boot();
    let seed = Secret::from_file(folder.join("seed")).expect("readable");
    let config = testing::config(Some(seed));
    let clock = Arc::clone(&model.clock) as SharedClock;
    let storage = Storage {
        store: Some(store),
        fleet: None,
    };
    let (refresher, credential) = Refresher::with(config, clock, issuer, None, storage, record);
    model.watch(credential.clone());
    let stop = CancellationToken::new();
    let task = tokio::spawn(refresher.run(stop.clone()));
    (credential, stop, task)
}

proptest! {
    #![proptest_config(Cases { cases: 256, failure_persistence: None, ..Cases::default() })]

    #[test]
    fn invariants_hold(
        responses in prop::collection::vec(response(), 0..40),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        let violations = runtime.expect("a runtime").block_on(async {
            let mut run = Run::new(responses);
            for step in steps {
                run.step(step).await;
            }
            run.recover().await;
            run.model.violations()
        });
        prop_assert!(violations.is_empty(), "{violations:#?}");
    }
}
