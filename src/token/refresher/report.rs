//! What the refresher tells: one log line a transition, and the books for status and metrics.

use super::Refresher;
use crate::token::state::{Reason, State, Status};

/// Days left to the refresh token at which a person is warned.
const WARNING_DAYS: [u64; 3] = [1, 3, 7];
/// In seconds.
const DAY: u64 = 24 * 3600;

impl Refresher {
    /// Tells everybody what has changed; one log line a transition.
    pub(super) fn report(&mut self) {
        let reason = match &self.problem {
            Some(problem) => problem.reason,
            None if self.expiry().is_none() => Reason::Refreshing,
            None => Reason::Ok,
        };
        let token = self.shared.token.load();
        let state = reason.state(self.expiry().is_some(), token.is_some());
        {
            let mut telemetry = self.shared.telemetry();
            telemetry.problem = self.problem.as_ref().map(|problem| problem.detail.clone());
            telemetry.refresh_token_expires_at =
                self.record.refresh_token_expiry(self.refresh_lifetime);
            telemetry.seed_refused = self.seed_refused;
            telemetry.persistence = self.writer.persistence();
            telemetry.next_attempt = self.due();
            telemetry.next_request = telemetry.next_request.max(self.not_before);
        }
        let version = token.as_ref().map(|token| token.version());
        let old = *self.status.borrow();
        let since = if state == old.state {
            old.since
        } else {
            self.shared.clock.wall()
        };
        let new = Status {
            state,
            reason,
            since,
            version,
        };
        if new != old {
            self.status.send_replace(new);
        }
        if (new.state, new.reason) != (old.state, old.reason) {
            self.log(old.state, new);
        }
        self.warn_of_age();
    }

    /// One line at each of the thresholds.
    fn warn_of_age(&mut self) {
        let expiry = self.record.refresh_token_expiry(self.refresh_lifetime);
        let left = expiry.map(|expiry| {
            expiry
                .duration_since(self.shared.clock.wall())
                .unwrap_or_default()
        });
        let reached = left.and_then(|left| {
            WARNING_DAYS
                .into_iter()
                .find(|days| left.as_secs() <= days * DAY)
        });
        if reached.is_some_and(|days| self.warned_days.is_none_or(|warned| days < warned)) {
            let hours_left = left.unwrap_or_default().as_secs() / 3600;
            tracing::warn!(
                credential = self.shared.name,
                hours_left,
                "the refresh token expires soon, and the issuer sends no new one: log in again, or configure a new one"
            );
        }
        self.warned_days = reached;
    }

    fn log(&self, from: State, to: Status) {
        let (credential, from, state, reason) = (
            &self.shared.name,
            from.label(),
            to.state.label(),
            to.reason.label(),
        );
        let detail = self.problem.as_ref().map_or("", |problem| &problem.detail);
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
