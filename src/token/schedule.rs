//! When to refresh: pure functions of lifetimes and moments.

use std::time::Duration;

use super::token_response::FailureClass;
use crate::base::{backoff::Backoff, clock::Moment};

const MIN_MARGIN: Duration = Duration::from_secs(300);
const MARGIN_SHARE: f64 = 0.2;
/// How much the margin varies, so that a fleet that started together does not refresh together.
const JITTER: f64 = 0.1;
/// The shortest time between scheduled calls, however short a token lives.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// In the last minute of a token's life, failures are retried quickly.
const LAST_MINUTE: Duration = Duration::from_secs(60);
const URGENT_WAIT: Duration = Duration::from_secs(5);

/// How long before expiry to refresh: `configured`, or max(5 min, 20 % of the lifetime); ±10 %;
/// never more than half the lifetime. `random` is 0 ≤ n < 1.
pub(super) fn margin(lifetime: Duration, configured: Option<Duration>, random: f64) -> Duration {
    let margin = configured.unwrap_or_else(|| MIN_MARGIN.max(lifetime.mul_f64(MARGIN_SHARE)));
    // Limited before the jitter, in which a margin of centuries would overflow.
    margin
        .min(lifetime)
        .mul_f64(1.0 - JITTER + 2.0 * JITTER * random)
        .min(lifetime / 2)
}

/// When to refresh a token of this lifetime that was requested at `requested_at`.
pub(super) fn refresh_at(requested_at: Moment, lifetime: Duration, margin: Duration) -> Moment {
    requested_at + lifetime.saturating_sub(margin).max(MIN_INTERVAL)
}

/// How long to wait after a failure, with this much life left in the cached token.
///
/// In the last minute at most five seconds; before that, at most until the last minute; without a
/// usable token at most five seconds if the issuer was not reached, so that nothing was used and
/// nothing is overloaded, and otherwise the normal backoff.
pub(super) fn wait_after_failure(
    backoff: &mut Backoff,
    left: Duration,
    class: FailureClass,
) -> Duration {
    let is_reached = class != FailureClass::Unreachable;
    if left.is_zero() && is_reached {
        backoff.next_delay()
    } else if left <= LAST_MINUTE {
        backoff.delay_within(URGENT_WAIT)
    } else {
        backoff
            .next_delay()
            .min((left - LAST_MINUTE).max(MIN_INTERVAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn margins() {
        let unjittered = |lifetime, configured| {
            margin(seconds(lifetime), configured, 0.5)
                .as_secs_f64()
                .round()
        };
        assert_eq!(unjittered(3600, None), 720.0, "20 %");
        assert_eq!(unjittered(1000, None), 300.0, "five minutes");
        assert_eq!(unjittered(400, None), 200.0, "half the lifetime");
        assert_eq!(unjittered(10, None), 5.0);
        assert_eq!(unjittered(3600, Some(seconds(60))), 60.0);
        assert_eq!(unjittered(3600, Some(seconds(7200))), 1800.0);
        assert_eq!(unjittered(3600, Some(Duration::MAX)), 1800.0);
    }

    #[test]
    fn jitter_is_a_tenth_both_ways_and_never_passes_half_the_lifetime() {
        assert_eq!(margin(seconds(3600), None, 0.0).as_secs(), 648);
        assert_eq!(margin(seconds(3600), None, 0.999_999_9).as_secs(), 791);
        assert_eq!(margin(seconds(600), None, 0.999_999_9), seconds(300));
    }

    #[test]
    fn refreshes_by_schedule_are_a_second_apart() {
        let now = Moment::since_boot(seconds(100));
        assert_eq!(
            refresh_at(now, seconds(3600), seconds(720)),
            now + seconds(2880)
        );
        assert_eq!(
            refresh_at(now, seconds(1), Duration::from_millis(500)),
            now + seconds(1)
        );
    }

    #[test]
    fn waits_hurry_in_the_last_minute_and_aim_at_it_before() {
        let exhausted = || {
            let mut backoff = Backoff::new(seconds(1), seconds(300));
            for _ in 0..20 {
                backoff.next_delay();
            }
            backoff
        };
        let wait = |left| wait_after_failure(&mut exhausted(), left, FailureClass::Failing);
        for _ in 0..100 {
            assert!(wait(seconds(60)) <= seconds(5));
            assert!(wait(seconds(1)) >= seconds(1));
            assert!(wait(seconds(100)) <= seconds(40));
            assert!(wait(Duration::from_millis(60_001)) >= seconds(1));
        }
        let longest = (0..200).map(|_| wait(Duration::ZERO)).max();
        assert!(longest > Some(seconds(200)), "{longest:?}");
    }

    #[test]
    fn field_a3_without_a_token_an_unreachable_issuer_is_called_every_five_seconds() {
        let mut backoff = Backoff::new(seconds(1), seconds(300));
        for _ in 0..1000 {
            let wait = wait_after_failure(&mut backoff, Duration::ZERO, FailureClass::Unreachable);
            assert!((seconds(1)..=seconds(5)).contains(&wait), "{wait:?}");
        }
        for _ in 0..20 {
            backoff.next_delay();
        }
        let waits = (0..1000)
            .map(|_| wait_after_failure(&mut backoff, Duration::ZERO, FailureClass::Unreachable));
        assert!(
            waits.into_iter().all(|wait| wait <= seconds(5)),
            "after other failures, too"
        );
    }
}
