//! The state of an address behind its lock, and what changes it.

use std::time::Duration;

use super::{
    Reason, State, Transition,
    window::{Totals, Window},
};
use crate::base::clock::Moment;

/// Connections in a row that could not be made, after which an address is unreachable.
pub(super) const UNCONNECTED: u32 = 2;

/// Failures in a row after which an address is failing.
const FAILURES: u32 = 5;

/// The least number of requests of which half must have failed.
const MIN_REQUESTS: u64 = 20;

/// The time of the first ejection; each further one lasts this much longer.
const EJECTION: Duration = Duration::from_secs(10);
/// The longest time of an ejection.
const LONGEST_EJECTION: Duration = Duration::from_secs(5 * 60);

/// The time in use that takes one off the number of ejections.
const GOOD_TIME: Duration = Duration::from_secs(10 * 60);

/// The whole weight, in tenths.
const WHOLE: u32 = 10;

/// The state of an address, and the rows and times that lead to the next one.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) state: State,
    pub(super) reason: Option<Reason>,
    pub(super) since: Moment,
    pub(super) until: Option<Moment>,
    /// The start of the slow start, while it lasts.
    slow_since: Option<Moment>,
    /// Connections in a row that could not be made.
    pub(super) unconnected: u32,
    /// Failures in a row.
    pub(super) failures: u32,
    pub(super) failed_checks: u32,
    pub(super) good_checks: u32,
    /// How often the address was taken out of use.
    pub(super) ejections: u64,
    /// The number of times of [`EJECTION`] that the last ejection lasted, minus good times since.
    pub(super) times: u32,
    good_since: Moment,
    pub(super) window: Window,
}

impl Inner {
    /// In use since `now`; with slow start unless the address is one of the first list.
    pub(super) fn new(is_first_list: bool, now: Moment) -> Self {
        Self {
            state: State::In,
            reason: None,
            since: now,
            until: None,
            slow_since: (!is_first_list).then_some(now),
            unconnected: 0,
            failures: 0,
            failed_checks: 0,
            good_checks: 0,
            ejections: 0,
            times: 0,
            good_since: now,
            window: Window::new(now, Totals::default()),
        }
    }

    /// Whether a failure takes the address out of use: a row of them, or half of the requests.
    pub(super) fn has_failed_too_often(&self, totals: Totals) -> bool {
        let Totals { requests, failures } = self.window.last_10_seconds(totals);
        self.failures >= FAILURES || requests >= MIN_REQUESTS && failures * 2 >= requests
    }

    /// Takes the address out of use, or from one such state to another.
    pub(super) fn take_out(
        &mut self,
        state: State,
        reason: Reason,
        until: Option<Moment>,
        now: Moment,
    ) -> Transition {
        if matches!(self.state, State::In | State::Trial) {
            self.ejections += 1;
        }
        self.enter(state, reason, until, now)
    }

    /// The time of an ejection is over.
    pub(super) fn begin_trials(&mut self, now: Moment) -> Transition {
        // Always set in this state.
        let reason = self.reason.unwrap_or(Reason::Status);
        self.enter(State::Trial, reason, None, now)
    }

    /// Back in use. Requests that failed before do not count any more.
    pub(super) fn take_in(&mut self, totals: Totals, now: Moment) -> Transition {
        self.failures = 0;
        self.good_since = now;
        self.slow_since = Some(now);
        self.window = Window::new(now, totals);
        let reason = self.reason.unwrap_or(Reason::Status);
        let transition = self.enter(State::In, reason, None, now);
        self.reason = None;
        transition
    }

    fn enter(
        &mut self,
        to: State,
        reason: Reason,
        until: Option<Moment>,
        now: Moment,
    ) -> Transition {
        let from = std::mem::replace(&mut self.state, to);
        (self.reason, self.since, self.until) = (Some(reason), now, until);
        Transition {
            from,
            to,
            reason,
            until,
        }
    }

    /// Takes one off the number of ejections for each good time.
    pub(super) fn forgive(&mut self, now: Moment) {
        if self.state != State::In {
            return;
        }
        while self.times > 0 && now.saturating_since(self.good_since) >= GOOD_TIME {
            self.times -= 1;
            self.good_since = self.good_since + GOOD_TIME;
        }
    }

    /// The weight now. Ends the slow start when it is complete.
    pub(super) fn weight_tenths(&mut self, slow_start: Duration, now: Moment) -> u32 {
        let Some(since) = self.slow_since else {
            return WHOLE;
        };
        let elapsed = now.saturating_since(since);
        if elapsed >= slow_start {
            self.slow_since = None;
            return WHOLE;
        }
        let grown = elapsed.as_nanos() * u128::from(WHOLE - 1) / slow_start.as_nanos();
        1 + u32::try_from(grown).unwrap_or(WHOLE - 1)
    }
}

/// The length of an ejection: [`EJECTION`] times `times`, give or take a fifth.
pub(super) fn ejection(times: u32, random: u64) -> Duration {
    // At most 400 above 800, so that it fits.
    let permille = 800 + u32::try_from(random % 401).unwrap_or_default();
    let longest = LONGEST_EJECTION.as_millis() / EJECTION.as_millis();
    let times = times.min(u32::try_from(longest * 2).unwrap_or(u32::MAX));
    (EJECTION * times * permille / 1000).min(LONGEST_EJECTION)
}
