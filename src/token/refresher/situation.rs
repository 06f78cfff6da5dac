//! The refresher's state as the input of [`plan`](super::plan), and the problem that follows from
//! it.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::{
    Refresher,
    chain::Attempt,
    plan::{FailedCall, Plan, Situation},
};
use crate::{
    base::clock::Moment,
    token::{
        state::{Problem, Reason},
        store::Grant,
        token_response::Failure,
    },
};

impl Refresher {
    /// Sets the problem that only an operator can solve, and clears it when a call is possible
    /// again.
    pub(super) fn assess(&mut self) {
        let plan = self.plan();
        if let Plan::Blocked(blocker) = plan {
            match blocker.problem() {
                Some(problem) => self.problem = Some(problem),
                // The issuer's own words are better.
                None if self.problem.is_some() => {}
                None => {
                    self.problem = Some(Problem {
                        reason: Reason::RefreshTokenRefused,
                        detail:
                            "the issuer refused the refresh token, as another replica reports: \
                                 run bearer-proxy login, or configure a new refresh token"
                                .to_owned(),
                    });
                }
            }
            return;
        }
        let has_initial_grant = self.initial_grant.is_some();
        let is_resolved = |problem: &Problem| plan.resolves(problem.reason, has_initial_grant);
        if self.problem.as_ref().is_some_and(is_resolved) {
            self.problem = None;
            self.timing.retry_now();
        }
    }

    /// What to do next.
    pub(super) fn plan(&self) -> Plan {
        self.situation().plan()
    }

    /// When to refresh without the lock, if another process holds it for longer than a refresh
    /// takes: it may have sent the refresh token.
    pub(super) fn due_without_lock(&self) -> Option<Moment> {
        self.lock_wait.overdue()?;
        let situation = Situation {
            is_in_doubt: true,
            ..self.situation()
        };
        situation.plan().due()
    }

    pub(super) fn situation(&self) -> Situation {
        let (chain, clock) = (&self.chain, &*self.shared.clock);
        let candidate = |token| chain.candidate(token, self.policy.grace_period, clock);
        let cached = self.shared.token.load();
        Situation {
            seed: chain.seed.as_ref().map(candidate),
            chain: chain.record.refresh_token.as_ref().map(candidate),
            has_initial_grant: self.initial_grant.is_some(),
            grace_retry: self.policy.grace_retry,
            is_requested: self.shared.refresh_requested.load(Relaxed),
            is_in_doubt: self.stored.is_in_doubt(),
            is_rejected: self.shared.early_refresh.load(Relaxed)
                || cached
                    .as_ref()
                    .is_some_and(|token| token.is_refresh_requested()),
            rejection_allowed_at: self.followed.rejection_allowed_at,
            refresh_at: self.timing.refresh_at,
            backoff_until: self.timing.backoff_until,
            throttled_until: self.timing.throttled_until,
            expires_at: self.expiry(),
            lifetime: chain
                .record
                .access
                .as_ref()
                .map_or(Duration::ZERO, |access| access.lifetime),
        }
    }

    /// The failed call as [`FailedCall::retry`] takes it.
    pub(super) fn failed_call(
        &self,
        failure: &Failure,
        attempt: &Attempt,
        sent_at: Moment,
        now: Moment,
    ) -> FailedCall {
        let standing = attempt.grant.refresh_token().map(|token| {
            self.chain
                .standing(token, self.policy.grace_period, &*self.shared.clock)
        });
        FailedCall {
            class: failure.class,
            sent_at,
            now,
            is_client_refused: self.is_client_refused(),
            standing,
            is_initial_grant_next: self.plan().grant() == Some(&Grant::Initial),
        }
    }

    /// When the cached token expires; `None` if there is no usable one.
    pub(super) fn expiry(&self) -> Option<Moment> {
        let now = self.shared.clock.now();
        self.shared
            .token
            .load()
            .as_ref()
            .filter(|token| token.is_usable(now))
            .map(|token| token.expires_at())
    }

    /// Whether the issuer refused the client with the current secret.
    pub(super) fn is_client_refused(&self) -> bool {
        !self.has_new_secret
            && self
                .problem
                .as_ref()
                .is_some_and(|problem| problem.reason == Reason::ClientRefused)
    }
}
