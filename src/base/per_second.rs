//! Only so many in each second: lines in the log, answers that are observed_rate into.

use std::cell::Cell;

use crate::base::clock::Moment;

/// The latest second in which there was one, and how many there were. By the clock, since the ticker stands still on a quiet
/// worker.
#[derive(Debug, Default)]
pub struct PerSecond(Cell<(u64, u32)>);

impl PerSecond {
    /// Whether there may be one more in the second of `now`, which is then counted.
    pub fn allows(&self, most: u32, now: Moment) -> bool {
        let now = now.elapsed_since_boot().as_secs();
        let (second, count) = self.0.get();
        let count = if second == now { count } else { 0 };
        let is_allowed = count < most;
        self.0.set((now, count + u32::from(is_allowed)));
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_second_allows_its_own_and_a_larger_share_reaches_further() {
        let each_second = PerSecond::default();
        let asked = |millis, most| {
            each_second.allows(most, Moment::since_boot(Duration::from_millis(millis)))
        };
        assert_eq!(
            [0, 10, 999, 1000, 1999].map(|millis| asked(millis, 2)),
            [true, true, false, true, true]
        );
        // What was not allowed takes nothing from those that are.
        assert_eq!(
            [2, 2, 3, 2].map(|most| asked(1999, most)),
            [false, false, true, false]
        );
        assert!(asked(7000, 1));
    }
}
