//! Limits how often something happens in each second: log lines, responses that are inspected.

use std::cell::Cell;

use crate::base::clock::Moment;

/// The latest second in which an event was allowed, and the number of events in it. Uses the clock,
/// as the ticker does not advance on an idle worker.
#[derive(Debug, Default)]
pub struct PerSecond(Cell<(u64, u32)>);

impl PerSecond {
    /// Whether no further event is allowed in the second of `now`, with at most `limit` in each.
    pub fn is_used_up(&self, limit: u32, now: Moment) -> bool {
        let (second, count) = self.0.get();
        second == now.elapsed_since_boot().as_secs() && count >= limit
    }

    /// Whether another event is allowed in the second of `now`, with at most `limit` in each.
    /// Counts it if so.
    pub fn allows(&self, limit: u32, now: Moment) -> bool {
        let now = now.elapsed_since_boot().as_secs();
        let (second, count) = self.0.get();
        let count = if second == now { count } else { 0 };
        let is_allowed = count < limit;
        self.0.set((now, count + u32::from(is_allowed)));
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_second_has_its_own_count_and_the_limit_is_the_callers() {
        let per_second = PerSecond::default();
        let allows = |millis, limit| {
            per_second.allows(limit, Moment::since_boot(Duration::from_millis(millis)))
        };
        assert_eq!(
            [0, 10, 999, 1000, 1999].map(|millis| allows(millis, 2)),
            [true, true, false, true, true]
        );
        // An event that was not allowed is not counted.
        assert_eq!(
            [2, 2, 3, 2].map(|limit| allows(1999, limit)),
            [false, false, true, false]
        );
        let is_used_up =
            |millis| per_second.is_used_up(3, Moment::since_boot(Duration::from_millis(millis)));
        assert_eq!([is_used_up(1999), is_used_up(2000)], [true, false]);
        assert!(allows(7000, 1));
    }
}
