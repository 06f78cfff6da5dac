//! Exponential backoff: delays between attempts, so that retries do not overload a failing service.

use std::time::Duration;

/// Exponential backoff with full jitter: the ceiling doubles with every failure, and the delay is
/// drawn between `min` and the ceiling, so that clients that failed together do not retry together.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Delays between `min` and `max`.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            ceiling: min,
        }
    }

    /// The delay after one more failure. Doubles the ceiling.
    pub fn next_delay(&mut self) -> Duration {
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        jitter(self.min, self.ceiling)
    }

    /// The delay after one more failure when time is short: at most `limit`. The ceiling stays as
    /// it is.
    pub fn delay_within(&self, limit: Duration) -> Duration {
        jitter(
            self.min,
            limit.min(self.ceiling.saturating_mul(2)).min(self.max),
        )
    }

    /// An attempt succeeded: the next delay starts from `min` again.
    pub fn reset(&mut self) {
        self.ceiling = self.min;
    }
}

/// A random duration between the two; `min` if `max` is not above it.
fn jitter(min: Duration, max: Duration) -> Duration {
    min + max.saturating_sub(min).mul_f64(random())
}

/// A random number, 0 ≤ n < 1.
pub fn random() -> f64 {
    // Without entropy the jitter is constant: retries may coincide, which is accepted.
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
    fn delays_within_a_limit_are_short_and_leave_the_ceiling() {
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
