//! The retry budget of one upstream and worker: retries must not multiply the load of a cloud that
//! is overloaded.

use std::cell::Cell;

use crate::base::clock::Moment;

/// The window over which retries are compared with requests, in seconds, the current one included.
const SECONDS: u64 = 10;

/// One retry is allowed for this many requests in the window: 20 %.
const REQUESTS_PER_RETRY: u64 = 5;

/// Retries that are allowed however few requests there are, on average a second.
const MIN_PER_SECOND: u64 = 3;

/// Requests and retries of one second.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    requests: u64,
    retries: u64,
}

/// Allows as many retries as 20 % of the requests of the last 10 s, and at least 3 a second.
///
/// The least number may be used at once: 30 in the window, and 3 in each second even so. Otherwise a
/// server that dies while there is little traffic would leave requests without a retry.
#[derive(Debug)]
pub(super) struct RetryBudget {
    /// The current second, on the boot clock.
    second: Cell<u64>,
    requests: Cell<u64>,
    retries: Cell<u64>,
    /// The seconds before; the entry of a second is its number modulo the length.
    past: [Cell<Second>; SECONDS as usize - 1],
}

impl RetryBudget {
    /// A budget without any requests yet.
    pub(super) fn new(now: Moment) -> Self {
        Self {
            second: Cell::new(now.elapsed_since_boot().as_secs()),
            requests: Cell::new(0),
            retries: Cell::new(0),
            past: Default::default(),
        }
    }

    /// Counts a request that a client has sent. Retries of it do not count again.
    pub(super) fn request(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// Takes one retry. `false` if the budget is used up: the request must not be sent again.
    pub(super) fn try_take(&self, now: Moment) -> bool {
        self.tick(now);
        let window = self.window();
        let least = MIN_PER_SECOND * SECONDS;
        let is_allowed = self.retries.get() < MIN_PER_SECOND
            || window.retries < least.max(window.requests / REQUESTS_PER_RETRY);
        if is_allowed {
            self.retries.set(self.retries.get() + 1);
        }
        is_allowed
    }

    /// Moves the window on. To be called once a second while there are requests: those since the
    /// last call count for the second of that call.
    pub(super) fn tick(&self, now: Moment) {
        let now = now.elapsed_since_boot().as_secs();
        let last = self.second.get();
        if now <= last {
            return;
        }
        let length = SECONDS - 1;
        let entry = |second: u64| &self.past[(second % length) as usize];
        entry(last).set(Second {
            requests: self.requests.take(),
            retries: self.retries.take(),
        });
        // Nothing happened in the seconds between.
        let between = (now - last - 1).min(length);
        for back in 1..=between {
            entry(now - back).set(Second::default());
        }
        self.second.set(now);
    }

    /// Requests and retries in the window.
    fn window(&self) -> Second {
        let current = Second {
            requests: self.requests.get(),
            retries: self.retries.get(),
        };
        self.past.iter().fold(current, |sum, second| {
            let second = second.get();
            Second {
                requests: sum.requests + second.requests,
                retries: sum.retries + second.retries,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(1000) + Duration::from_millis(millis))
    }

    fn budget() -> RetryBudget {
        RetryBudget::new(at(0))
    }

    /// How many retries are allowed, if all are tried at once.
    fn take_all(budget: &RetryBudget, millis: u64) -> u64 {
        (0..1_000_000)
            .take_while(|_| budget.try_take(at(millis)))
            .count() as u64
    }

    #[test]
    fn without_requests_thirty_are_allowed_at_once_and_three_in_each_second() {
        let budget = budget();
        assert_eq!(take_all(&budget, 0), 30);
        assert_eq!(take_all(&budget, 999), 0);
        for second in 1..=9 {
            assert_eq!(take_all(&budget, second * 1000), 3, "second {second}");
        }
        // The first 30 have left the window, in which 27 are left.
        assert_eq!(take_all(&budget, 10_000), 3);
        assert_eq!(take_all(&budget, 60_000), 30);
    }

    #[test]
    fn a_fifth_of_the_requests_of_ten_seconds_may_be_repeated() {
        let budget = budget();
        for second in 0..10 {
            budget.tick(at(second * 1000));
            (0..100).for_each(|_| budget.request());
        }
        assert_eq!(take_all(&budget, 9_500), 200);
        // The requests of the first second are no longer in the window: 900, of which a fifth is
        // less than the 200 retries.
        assert_eq!(take_all(&budget, 10_000), 3);
        // All of the requests and 200 retries are old.
        assert_eq!(take_all(&budget, 19_500), 30 - 3);
    }

    #[test]
    fn time_that_goes_back_or_far_ahead_changes_nothing_else() {
        let budget = RetryBudget::new(at(50_000));
        assert_eq!(take_all(&budget, 0), 30);
        budget.tick(Moment::since_boot(Duration::MAX));
        let is_allowed = budget.try_take(Moment::since_boot(Duration::MAX));
        assert!(is_allowed && budget.window().retries == 1);
    }

    proptest! {
        /// The same as counting the events of the last ten seconds in a list of all events.
        #[test]
        fn it_counts_the_last_ten_seconds(
            steps in proptest::collection::vec((any::<bool>(), 0..3_u64, 1..60_u64), 1..200),
        ) {
            let budget = budget();
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            let mut second = 0;
            for (is_retry, seconds, count) in steps {
                second += seconds;
                budget.tick(at(second * 1000));
                let in_window = |events: &[u64]| {
                    events.iter().filter(|event| **event + SECONDS > second).count() as u64
                };
                for _ in 0..count {
                    if !is_retry {
                        budget.request();
                        requests.push(second);
                        continue;
                    }
                    let in_second = retries.iter().filter(|retry| **retry == second).count();
                    let expected = in_second < 3
                        || in_window(&retries) < 30.max(in_window(&requests) / 5);
                    prop_assert_eq!(budget.try_take(at(second * 1000)), expected);
                    if expected {
                        retries.push(second);
                    }
                }
            }
        }
    }
}
