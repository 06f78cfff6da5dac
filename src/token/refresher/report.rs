//! What the refresher reports: the status for subscribers, telemetry for snapshots, and one log
//! line for each transition.

use super::Refresher;
use crate::{
    base::clock::Moment,
    token::{
        state::{Outcome, Problem, Reason, Refresh, State, Status},
        store::{Grant, RequestTime},
        token_response::{Failure, FailureClass, TokenResponse},
    },
};

/// Days of remaining lifetime of the refresh token at which the log warns.
const WARNING_DAYS: [u64; 3] = [1, 3, 7];
const SECONDS_PER_DAY: u64 = 24 * 3600;

impl Refresher {
    /// Publishes what has changed.
    pub(super) fn report(&mut self) {
        self.store_problem = self.fleet.as_ref().and_then(|fleet| fleet.problem());
        let expiry = self.expiry();
        let reason = match self.current_problem() {
            Some(problem) => problem.reason,
            None if expiry.is_none() => Reason::Refreshing,
            None => Reason::Ok,
        };
        let token = self.shared.token.load();
        let state = reason.state(expiry.is_some(), token.is_some());
        self.update_telemetry();
        let old = *self.status.borrow();
        let new = Status {
            state,
            reason,
            since: if state == old.state {
                old.since
            } else {
                self.shared.clock.wall()
            },
            version: token.as_ref().map(|token| token.version()),
            is_overdue: false,
        };
        if new != old {
            self.status.send_replace(new);
        }
        if (new.state, new.reason) != (old.state, old.reason) {
            self.log_transition(old.state, new);
        }
        self.warn_of_expiry();
    }

    fn current_problem(&self) -> Option<&Problem> {
        let problem = self.problem.as_ref();
        problem
            .or_else(|| self.stored.problem())
            .or(self.store_problem.as_ref())
            .or_else(|| self.lock_wait.overdue())
    }

    fn update_telemetry(&self) {
        let next_attempt = self.plan().due();
        let mut telemetry = self.shared.telemetry();
        telemetry.problem = self.current_problem().map(|problem| problem.detail.clone());
        telemetry.refresh_token_expires_at = self
            .chain
            .record
            .refresh_token_expiry(self.policy.refresh_lifetime);
        telemetry.seed_refused = self.chain.is_seed_refused;
        telemetry.persistence = self.stored.persistence(self.writer.persistence());
        telemetry.next_attempt = next_attempt;
        telemetry.manual_refresh_at = telemetry.manual_refresh_at.max(self.timing.throttled_until);
    }

    /// Warns once at each of [`WARNING_DAYS`] before the refresh token expires.
    fn warn_of_expiry(&mut self) {
        let expiry = self
            .chain
            .record
            .refresh_token_expiry(self.policy.refresh_lifetime);
        let left = expiry.map(|expiry| {
            expiry
                .duration_since(self.shared.clock.wall())
                .unwrap_or_default()
        });
        let reached = left.and_then(|left| {
            WARNING_DAYS
                .into_iter()
                .find(|days| left.as_secs() <= days * SECONDS_PER_DAY)
        });
        if reached.is_some_and(|days| self.warned_days.is_none_or(|warned| days < warned)) {
            let hours_left = left.unwrap_or_default().as_secs() / 3600;
            tracing::warn!(
                credential = self.shared.name,
                hours_left,
                "the refresh token expires soon, and the issuer does not replace it: run \
                 bearer-proxy login, or configure a new refresh token"
            );
        }
        self.warned_days = reached;
    }

    /// A call begins.
    pub(super) fn announce_call(&self, sent_at: Moment) {
        let mut telemetry = self.shared.telemetry();
        telemetry.next_attempt = Some(sent_at);
        telemetry.manual_refresh_at = sent_at + self.policy.cooldown;
    }

    /// A call has failed. A refresh by hand may follow at once, unless it was one itself and has
    /// reached the issuer, or the issuer refused the client: these are a cooldown apart.
    pub(super) fn allow_manual_refresh(
        &self,
        class: FailureClass,
        is_requested: bool,
        sent_at: Moment,
    ) {
        let has_cooldown = match class {
            FailureClass::ClientRefused => true,
            FailureClass::Unreachable => false,
            _ => is_requested,
        };
        if !has_cooldown {
            self.shared.telemetry().manual_refresh_at = sent_at;
        }
    }

    /// A call takes longer than `token.timeout`. Its response is still awaited, but no request
    /// waits for it any more.
    pub(super) fn report_overdue_call(&self) {
        let is_usable = self.expiry().is_some();
        let detail = "the issuer has not responded in time (token.timeout): a late response is \
                      still awaited, because the refresh token may have been used";
        if self.problem.is_none() {
            tracing::warn!(credential = self.shared.name, detail, "refresh is late");
            self.shared.telemetry().problem = Some(detail.to_owned());
        }
        self.status.send_modify(|status| {
            status.is_overdue = true;
            if self.problem.is_none() {
                let reason = Reason::IssuerUnreachable;
                let state = reason.state(is_usable, status.version.is_some());
                if state != status.state {
                    status.since = self.shared.clock.wall();
                }
                (status.state, status.reason) = (state, reason);
            }
        });
    }

    /// A call has ended.
    pub(super) fn count_call(&self, sent_at: RequestTime, result: &Result<TokenResponse, Failure>) {
        let outcome = result
            .as_ref()
            .map_or_else(|failure| failure.class.into(), |_| Outcome::Success);
        self.shared.telemetry().record(Refresh {
            at: sent_at.wall,
            outcome,
            duration: self.shared.clock.now().saturating_since(sent_at.moment),
        });
    }

    pub(super) fn log_new_chain(&self, grant: &Grant) {
        let from = match grant {
            Grant::Chain(_) => return,
            Grant::Seed(_) => "the configured refresh token",
            Grant::Initial => "[token.jwt]",
        };
        tracing::info!(
            credential = self.shared.name,
            from,
            "a new chain of refresh tokens begins"
        );
    }

    fn log_transition(&self, from: State, to: Status) {
        let (credential, from, state, reason) = (
            &self.shared.name,
            from.label(),
            to.state.label(),
            to.reason.label(),
        );
        let detail = self.current_problem().map_or("", |problem| &problem.detail);
        match to.state {
            State::Starting if to.reason == Reason::Refreshing => {
                tracing::info!(credential, from, state, reason, "token state");
            }
            State::Fresh => tracing::info!(credential, from, state, reason, "token state"),
            State::Starting | State::Stale | State::Expired => {
                tracing::warn!(credential, from, state, reason, detail, "token state");
            }
            State::Dead => tracing::error!(credential, from, state, reason, detail, "token state"),
        }
    }
}
