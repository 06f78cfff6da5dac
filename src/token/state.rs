//! The state of a credential and the statistics of its refreshes, for status, metrics and logs.
//! None of it is secret.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use super::{
    cache::Version,
    fleet::FleetSnapshot,
    token_response::{Failure, FailureClass},
};
use crate::base::{
    clock::Moment,
    labels::{PerLabel, labels},
};

labels! {
    /// The state of a credential.
    pub enum State {
        /// There was no token yet.
        Starting => "starting",
        /// The token is usable and refreshing works.
        Fresh => "fresh",
        /// The token is usable, but a refresh is overdue or fails.
        Stale => "stale",
        /// There is no usable token; refreshing is retried.
        Expired => "expired",
        /// The issuer refused the credential: an operator must act. A valid token stays in use.
        Dead => "dead",
    }
}

labels! {
    /// Why a credential is in its state.
    pub enum Reason {
        /// No problem.
        Ok => "ok",
        /// A token is being requested.
        Refreshing => "refreshing",
        /// There is no refresh token, neither configured nor stored.
        NoCredential => "no_credential",
        /// The issuer cannot be reached or does not respond.
        IssuerUnreachable => "issuer_unreachable",
        /// The issuer responds with an error.
        IssuerFailing => "issuer_failing",
        /// The issuer stated a `Retry-After`.
        IssuerThrottling => "issuer_throttling",
        /// The issuer's 2xx is not a usable token response.
        IssuerGarbled => "issuer_garbled",
        /// The refresh token is expired, revoked or already used.
        RefreshTokenRefused => "refresh_token_refused",
        /// The client's id or secret is wrong, or the client must not refresh.
        ClientRefused => "client_refused",
        /// The refresh token may have been used, and `token.grace_retry` forbids to send it again.
        OutcomeUnknown => "outcome_unknown",
        /// The state file cannot be read. It may hold newer tokens of another process.
        StoreUnreadable => "store_unreadable",
        /// The shared token store cannot be reached, so no refresh is safe.
        StoreUnreachable => "store_unreachable",
        /// The shared token store refuses: password, rights, memory or role.
        StoreRefused => "store_refused",
        /// The shared token store holds something else than this credential's record.
        StoreGarbled => "store_garbled",
        /// Another process has held the lock of the state file for longer than a refresh takes.
        LockHeld => "lock_held",
    }
}

impl Reason {
    /// The state that follows from the reason, from whether there is a usable token, and from
    /// whether there ever was one.
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

/// What subscribers see. It changes with every transition and with every new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// Since when, by the wall clock.
    pub since: SystemTime,
    /// The cached token's version.
    pub version: Option<Version>,
    /// A call takes longer than `token.timeout`: requests do not wait for it.
    pub is_overdue: bool,
}

impl Status {
    /// Whether there will be no newer token until an operator acts.
    pub fn needs_operator(&self) -> bool {
        self.state == State::Dead || self.reason == Reason::NoCredential
    }
}

labels! {
    /// How one call to the issuer ended.
    pub enum Outcome {
        /// A new token.
        Success => "success",
        /// `invalid_grant`.
        RefreshTokenRefused => "refresh_token_refused",
        /// `invalid_client` or `unauthorized_client`.
        ClientRefused => "client_refused",
        /// 429 or 503 with `Retry-After`.
        Throttled => "throttled",
        /// A 2xx that is not a usable token response.
        Garbled => "garbled",
        /// The request was sent, and no complete response arrived.
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

/// One call to the issuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refresh {
    /// When it was sent.
    pub at: SystemTime,
    /// How it ended.
    pub outcome: Outcome,
    /// From sending the request to the end of the response.
    pub duration: Duration,
}

/// Whether the newest tokens would survive a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// There is no state file: after a restart the configured refresh token is used.
    Off,
    /// The newest tokens are stored.
    Stored,
    /// They are in memory only; writing is retried.
    Failing {
        /// Since when, by the wall clock.
        since: SystemTime,
    },
}

/// Calls to the issuer by duration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DurationHistogram {
    counts: [u64; Self::BOUNDS.len() + 1],
    /// In seconds.
    sum: f64,
}

impl DurationHistogram {
    /// Upper bounds of the buckets, in seconds; one more bucket has no bound.
    pub const BOUNDS: [f64; 9] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

    /// Calls in each bucket (not cumulative), the unbounded one last.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The sum of all durations, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    fn add(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.counts[Self::BOUNDS.partition_point(|bound| *bound < seconds)] += 1;
        self.sum += seconds;
    }
}

/// Everything that status, readiness and metrics show of a credential, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The credential's name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// Why it is in this state.
    pub reason: Reason,
    /// Since when it is in this state, by the wall clock.
    pub since: SystemTime,
    /// The detail of the current problem.
    pub problem: Option<String>,
    /// The cached token's generation; 0 without one.
    pub generation: u64,
    /// The cached token's remaining lifetime; `None` without a usable one.
    pub expires_in: Option<Duration>,
    /// The same by the wall clock, which may be wrong.
    pub expires_at: Option<SystemTime>,
    /// When the refresh token expires: as the issuer stated it, or by the configured lifetime.
    /// `None` if unknown.
    pub refresh_token_expires_at: Option<SystemTime>,
    /// The newest configured refresh token was refused, and the previous chain stays in use.
    pub seed_refused: bool,
    /// The last calls, the newest first.
    pub last_refreshes: Vec<Refresh>,
    /// Whether the newest tokens would survive a restart.
    pub persistence: Persistence,
    /// The shared store, with `[token.store]`.
    pub store: Option<FleetSnapshot>,
    /// Time until the next call; zero during a call; `None` if none is planned.
    pub next_attempt_in: Option<Duration>,
    /// Calls by outcome, since the process started.
    pub refreshes: Vec<(Outcome, u64)>,
    /// Calls by duration, since the process started.
    pub refresh_durations: DurationHistogram,
}

impl Snapshot {
    /// Whether there is a usable token.
    pub fn is_ready(&self) -> bool {
        self.expires_in.is_some()
    }
}

/// What the refresher records for snapshots. It is behind a lock that the data path never takes.
#[derive(Debug)]
pub(super) struct Telemetry {
    pub(super) problem: Option<String>,
    pub(super) refresh_token_expires_at: Option<SystemTime>,
    pub(super) seed_refused: bool,
    pub(super) persistence: Persistence,
    pub(super) next_attempt: Option<Moment>,
    /// `POST /token/refresh` is rejected before that.
    pub(super) manual_refresh_at: Moment,
    last_refreshes: VecDeque<Refresh>,
    counts: PerLabel<Outcome, u64>,
    durations: DurationHistogram,
}

impl Telemetry {
    /// Calls that `/status` lists.
    const MAX_LAST_REFRESHES: usize = 20;

    pub(super) fn new(persistence: Persistence) -> Self {
        Self {
            problem: None,
            refresh_token_expires_at: None,
            seed_refused: false,
            persistence,
            next_attempt: None,
            manual_refresh_at: Moment::default(),
            last_refreshes: VecDeque::with_capacity(Self::MAX_LAST_REFRESHES),
            counts: PerLabel::default(),
            durations: DurationHistogram::default(),
        }
    }

    pub(super) fn record(&mut self, refresh: Refresh) {
        self.last_refreshes.truncate(Self::MAX_LAST_REFRESHES - 1);
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

/// Why a credential is not refreshed at present.
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
    fn telemetry_is_bounded_and_counts_every_call() {
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
        assert_eq!(last.len(), Telemetry::MAX_LAST_REFRESHES);
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
    fn durations_above_the_last_bound_are_counted() {
        let mut durations = DurationHistogram::default();
        durations.add(Duration::from_secs(60));
        durations.add(Duration::from_secs(10));
        assert_eq!(durations.counts()[8..], [1, 1]);
    }
}
