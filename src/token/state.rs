//! What people and machines are told about a credential: its state, and what its refreshes came to. Never a secret.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use super::{
    cache::Version,
    token_response::{Failure, FailureClass},
};
use crate::base::{
    clock::Moment,
    labels::{PerLabel, labels},
};

labels! {
    /// The state of a credential.
    pub enum State {
        /// No token yet.
        Starting => "starting",
        /// All is well.
        Fresh => "fresh",
        /// The token is usable, but refreshing it fails.
        Stale => "stale",
        /// No usable token; refreshing goes on being tried.
        Expired => "expired",
        /// The issuer refused the credential: a person must act. What is still valid keeps serving.
        Dead => "dead",
    }
}

labels! {
    /// Why a credential is in its state.
    pub enum Reason {
        /// Nothing is wrong.
        Ok => "ok",
        /// A token is being fetched.
        Refreshing => "refreshing",
        /// There is no refresh token, neither configured nor stored.
        NoCredential => "no_credential",
        /// The issuer cannot be reached, or does not answer.
        IssuerUnreachable => "issuer_unreachable",
        /// The issuer answers with an error.
        IssuerFailing => "issuer_failing",
        /// The issuer asked us to wait.
        IssuerThrottling => "issuer_throttling",
        /// The issuer's success is unreadable.
        IssuerGarbled => "issuer_garbled",
        /// The refresh token is expired, revoked or spent.
        RefreshTokenRefused => "refresh_token_refused",
        /// The client's id or secret is wrong, or the client may not refresh.
        ClientRefused => "client_refused",
        /// The refresh token may be spent, and `token.grace_retry` forbids to try.
        OutcomeUnknown => "outcome_unknown",
    }
}

impl Reason {
    /// The state that goes with a problem.
    pub(super) const fn state(self, usable: bool, had_token: bool) -> State {
        match self {
            Self::RefreshTokenRefused | Self::ClientRefused | Self::OutcomeUnknown => State::Dead,
            Self::Ok if usable => State::Fresh,
            _ if usable => State::Stale,
            _ if had_token => State::Expired,
            _ => State::Starting,
        }
    }
}

impl From<FailureClass> for Reason {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::RefreshTokenRefused => Self::RefreshTokenRefused,
            FailureClass::ClientRefused => Self::ClientRefused,
            FailureClass::Throttled(_) => Self::IssuerThrottling,
            FailureClass::Garbled => Self::IssuerGarbled,
            FailureClass::Ambiguous | FailureClass::Unreachable => Self::IssuerUnreachable,
            FailureClass::Failing => Self::IssuerFailing,
        }
    }
}

/// What subscribers see: changes with every transition and with every new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// Since when it is in this state, for people.
    pub since: SystemTime,
    /// The cached token's.
    pub version: Option<Version>,
}

impl Status {
    /// Whether no newer token will come unless a person acts.
    pub fn needs_operator(&self) -> bool {
        self.state == State::Dead || self.reason == Reason::NoCredential
    }
}

labels! {
    /// How one issuer call ended.
    pub enum Outcome {
        /// A new token.
        Success => "success",
        /// `invalid_grant`.
        RefreshTokenRefused => "refresh_token_refused",
        /// `invalid_client` or `unauthorized_client`.
        ClientRefused => "client_refused",
        /// 429 or 503 with `Retry-After`.
        Throttled => "throttled",
        /// A 2xx that cannot be used.
        Garbled => "garbled",
        /// No answer to a request that went out.
        Ambiguous => "ambiguous",
        /// Anything else.
        Transient => "transient",
    }
}

impl From<FailureClass> for Outcome {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::RefreshTokenRefused => Self::RefreshTokenRefused,
            FailureClass::ClientRefused => Self::ClientRefused,
            FailureClass::Throttled(_) => Self::Throttled,
            FailureClass::Garbled => Self::Garbled,
            FailureClass::Ambiguous => Self::Ambiguous,
            FailureClass::Unreachable | FailureClass::Failing => Self::Transient,
        }
    }
}

/// One issuer call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refresh {
    /// When it was sent.
    pub at: SystemTime,
    /// How it ended.
    pub outcome: Outcome,
    /// From sending to the end of the answer.
    pub duration: Duration,
}

/// Whether a restart would find the newest tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// There is no state file: a restart begins with the configured refresh token.
    Off,
    /// The newest tokens are stored.
    Stored,
    /// They are in memory only, since then; writing goes on being tried.
    Failing {
        /// When the oldest unwritten token came, for people.
        since: SystemTime,
    },
}

/// Calls by duration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DurationHistogram {
    counts: [u64; Self::BOUNDS.len() + 1],
    /// In seconds.
    sum: f64,
}

impl DurationHistogram {
    /// Upper bounds of the buckets, in seconds; one more bucket has no bound.
    pub const BOUNDS: [f64; 9] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

    /// Calls in each bucket (not cumulated), the unbounded one last.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// All durations together, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    fn add(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.counts[Self::BOUNDS.partition_point(|bound| *bound < seconds)] += 1;
        self.sum += seconds;
    }
}

/// Everything that status, readiness and metrics say about a credential at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The credential's name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// Why it is in this state.
    pub reason: Reason,
    /// Since when it is in this state, for people.
    pub since: SystemTime,
    /// The last failure, in words, while it lasts.
    pub problem: Option<String>,
    /// The cached token's generation; 0 without one.
    pub generation: u64,
    /// How long the cached token may still be sent; `None`: there is no usable one.
    pub expires_in: Option<Duration>,
    /// The same as a calendar date, which is only as good as the machine's calendar.
    pub expires_at: Option<SystemTime>,
    /// When the refresh token expires: as the issuer said, or by the configured lifetime. `None`: nobody knows.
    pub refresh_token_expires_at: Option<SystemTime>,
    /// The newest configured refresh token was refused, and the chain before it goes on.
    pub seed_refused: bool,
    /// The last calls, the newest first.
    pub last_refreshes: Vec<Refresh>,
    /// Whether a restart would find the newest tokens.
    pub persistence: Persistence,
    /// How long until the next call; zero while one is under way; `None`: none is planned.
    pub next_attempt_in: Option<Duration>,
    /// Calls by outcome, since the program's start.
    pub refreshes: Vec<(Outcome, u64)>,
    /// Calls by duration, since the program's start.
    pub refresh_durations: DurationHistogram,
}

impl Snapshot {
    /// Whether requests can be served.
    pub fn is_ready(&self) -> bool {
        self.expires_in.is_some()
    }
}

/// The refresher's books, which snapshots copy. Behind a lock that the data path never takes.
#[derive(Debug)]
pub(super) struct Telemetry {
    pub(super) problem: Option<String>,
    pub(super) refresh_token_expires_at: Option<SystemTime>,
    pub(super) seed_refused: bool,
    pub(super) persistence: Persistence,
    pub(super) next_attempt: Option<Moment>,
    /// A person's wish for a refresh is heard from then on.
    pub(super) next_request: Moment,
    last_refreshes: VecDeque<Refresh>,
    counts: PerLabel<Outcome, u64>,
    durations: DurationHistogram,
}

impl Telemetry {
    const REMEMBERED: usize = 20;

    pub(super) fn new(persistence: Persistence) -> Self {
        Self {
            problem: None,
            refresh_token_expires_at: None,
            seed_refused: false,
            persistence,
            next_attempt: None,
            next_request: Moment::default(),
            last_refreshes: VecDeque::with_capacity(Self::REMEMBERED),
            counts: PerLabel::default(),
            durations: DurationHistogram::default(),
        }
    }

    pub(super) fn record(&mut self, refresh: Refresh) {
        self.last_refreshes.truncate(Self::REMEMBERED - 1);
        self.last_refreshes.push_front(refresh);
        self.durations.add(refresh.duration);
        self.counts[refresh.outcome] += 1;
    }

    pub(super) fn last_refreshes(&self) -> Vec<Refresh> {
        self.last_refreshes.iter().copied().collect()
    }

    pub(super) fn refreshes(&self) -> Vec<(Outcome, u64)> {
        self.counts
            .iter()
            .map(|(outcome, count)| (outcome, *count))
            .collect()
    }

    pub(super) fn durations(&self) -> DurationHistogram {
        self.durations.clone()
    }
}

/// What keeps a credential from being refreshed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) reason: Reason,
    pub(super) detail: String,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self {
            reason: failure.class.into(),
            detail: failure.detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_follow_from_the_token_and_the_problem() {
        use Reason::*;
        for (reason, usable, had_token, state) in [
            (Refreshing, false, false, State::Starting),
            (NoCredential, false, false, State::Starting),
            (IssuerUnreachable, false, false, State::Starting),
            (Ok, true, true, State::Fresh),
            (IssuerUnreachable, true, true, State::Stale),
            (NoCredential, true, true, State::Stale),
            (IssuerGarbled, false, true, State::Expired),
            (Refreshing, false, true, State::Expired),
            (RefreshTokenRefused, true, true, State::Dead),
            (ClientRefused, false, false, State::Dead),
            (OutcomeUnknown, true, true, State::Dead),
        ] {
            assert_eq!(
                reason.state(usable, had_token),
                state,
                "{reason:?} {usable} {had_token}"
            );
        }
    }

    #[test]
    fn the_ledger_is_bounded_and_counts_everything() {
        let mut telemetry = Telemetry::new(Persistence::Off);
        for n in 0..100_u64 {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(n);
            let outcome = if n % 4 == 0 {
                Outcome::Garbled
            } else {
                Outcome::Success
            };
            telemetry.record(Refresh {
                at,
                outcome,
                duration: Duration::from_millis(200),
            });
        }
        let last = telemetry.last_refreshes();
        assert_eq!(last.len(), Telemetry::REMEMBERED);
        assert_eq!(last[0].at, SystemTime::UNIX_EPOCH + Duration::from_secs(99));
        let counts = telemetry.refreshes();
        assert!(
            counts.contains(&(Outcome::Success, 75)) && counts.contains(&(Outcome::Garbled, 25))
        );
        assert_eq!(
            telemetry.durations().counts(),
            [0, 0, 0, 0, 100, 0, 0, 0, 0, 0]
        );
        assert!((telemetry.durations().sum() - 20.0).abs() < 1e-6);
    }

    #[test]
    fn durations_beyond_every_bound_are_counted_too() {
        let mut durations = DurationHistogram::default();
        durations.add(Duration::from_secs(60));
        durations.add(Duration::from_secs(10));
        assert_eq!(durations.counts()[8..], [1, 1]);
    }
}
