//! Requests and failures of the last 10 seconds.

use crate::base::clock::Moment;

/// Seconds in the window, the current one included.
const SECONDS: u64 = 10;

/// Requests and failures since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) requests: u64,
    pub(super) failures: u64,
}

/// The totals at the start of each of the last seconds.
#[derive(Debug)]
pub(super) struct Window {
    second: u64,
    starts: [Totals; SECONDS as usize],
}

impl Window {
    /// A window in which nothing has happened yet.
    pub(super) fn new(now: Moment, totals: Totals) -> Self {
        Self {
            second: second(now),
            starts: [totals; SECONDS as usize],
        }
    }

    /// Moves the window on. What happened since the last call counts for the second of that call.
    pub(super) fn advance(&mut self, now: Moment, totals: Totals) {
        let now = second(now);
        let missed = now.saturating_sub(self.second).min(SECONDS);
        for back in 0..missed {
            self.starts[((now - back) % SECONDS) as usize] = totals;
        }
        self.second = self.second.max(now);
    }

    /// The requests and failures in the window, which is from 9 to 10 seconds long.
    pub(super) fn last_10_seconds(&self, totals: Totals) -> Totals {
        let oldest = self.starts[((self.second % SECONDS + 1) % SECONDS) as usize];
        Totals {
            requests: totals.requests.wrapping_sub(oldest.requests),
            failures: totals.failures.wrapping_sub(oldest.failures),
        }
    }
}

fn second(moment: Moment) -> u64 {
    moment.elapsed_since_boot().as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    fn totals(requests: u64, failures: u64) -> Totals {
        Totals { requests, failures }
    }

    #[test]
    fn what_is_ten_seconds_old_does_not_count() {
        let mut window = Window::new(at(100), totals(7, 7));
        assert_eq!(window.last_10_seconds(totals(7, 7)), totals(0, 0));
        // 5 requests in second 100, 2 in second 105.
        window.advance(at(101), totals(12, 10));
        window.advance(at(105), totals(12, 10));
        window.advance(at(109), totals(14, 10));
        assert_eq!(window.last_10_seconds(totals(14, 10)), totals(7, 3));
        window.advance(at(110), totals(14, 10));
        assert_eq!(window.last_10_seconds(totals(14, 10)), totals(2, 0));
        window.advance(at(119), totals(14, 10));
        assert_eq!(window.last_10_seconds(totals(15, 11)), totals(1, 1));
    }

    #[test]
    fn long_pauses_empty_the_window_and_time_never_goes_back() {
        let mut window = Window::new(at(0), totals(0, 0));
        window.advance(at(u64::MAX), totals(50, 50));
        assert_eq!(window.last_10_seconds(totals(51, 50)), totals(1, 0));
        window.advance(at(3), totals(60, 50));
        window.advance(at(u64::MAX), totals(60, 50));
        assert_eq!(window.last_10_seconds(totals(61, 50)), totals(11, 0));
    }
}
