//! How long to wait between attempts, so that a service in trouble is not trampled on.

use std::time::Duration;

/// Exponential backoff with full jitter: the longest wait doubles with every failure, the actual wait is drawn between
/// the shortest and that, so that clients which failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Waits of at least `shortest` and at most `longest`.
    pub const fn new(shortest: Duration, longest: Duration) -> Self {
        Self {
            shortest,
            longest,
            ceiling: shortest,
        }
    }

    /// The wait after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        self.ceiling = self.ceiling.saturating_mul(2).min(self.longest);
        between(self.shortest, self.ceiling)
    }

    /// The wait after one more failure when there is no time to lose: at most `limit`. Such a wait doubles nothing.
    pub fn delay_within(&self, limit: Duration) -> Duration {
        between(
            self.shortest,
            limit.min(self.ceiling.saturating_mul(2)).min(self.longest),
        )
    }

    /// All is well again: the next wait is a short one.
    pub fn reset(&mut self) {
        self.ceiling = self.shortest;
    }
}

/// A random duration between the two; `shortest` if `longest` is not above it.
fn between(shortest: Duration, longest: Duration) -> Duration {
    shortest + longest.saturating_sub(shortest).mul_f64(random())
}

/// A random number, 0 ≤ n < 1.
pub fn random() -> f64 {
    // Without entropy everybody waits for the same time: worse manners, still correct.
    let bits = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FIVE_MINUTES: Duration = Duration::from_secs(300);

    #[test]
    fn the_ceiling_doubles_to_its_limit_and_every_wait_stays_below() {
        for _ in 0..200 {
            let mut backoff = Backoff::new(SECOND, FIVE_MINUTES);
            for ceiling in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
                let wait = backoff.next_delay();
                assert!(
                    wait >= SECOND && wait <= Duration::from_secs(ceiling),
                    "{wait:?} of {ceiling} s"
                );
            }
            backoff.reset();
            assert!(backoff.next_delay() <= 2 * SECOND);
        }
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut backoff = Backoff::new(SECOND, FIVE_MINUTES);
        for _ in 0..20 {
            backoff.next_delay();
        }
        let waits: Vec<_> = (0..1000).map(|_| backoff.next_delay()).collect();
        assert!(waits.iter().any(|wait| *wait < Duration::from_secs(40)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_secs(260)));
    }

    #[test]
    fn hurried_waits_are_short_and_double_nothing() {
        let mut backoff = Backoff::new(SECOND, FIVE_MINUTES);
        for _ in 0..20 {
            assert!(backoff.delay_within(5 * SECOND) <= 2 * SECOND);
        }
        for _ in 0..20 {
            backoff.next_delay();
        }
        for _ in 0..200 {
            let wait = backoff.delay_within(5 * SECOND);
            assert!(wait >= SECOND && wait <= 5 * SECOND);
        }
    }
}
