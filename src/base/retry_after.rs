//! The `Retry-After` field of responses.

use std::time::Duration;

use http::HeaderValue;

/// The field value for a wait, in whole seconds (RFC 9110 §10.2.3): rounded up, so that no client
/// retries too early, and at least one, as `0` would mean at once.
pub fn retry_after(wait: Duration) -> HeaderValue {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    HeaderValue::from(seconds.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_whole_seconds_and_never_too_short() {
        for (millis, seconds) in [(0, "1"), (1, "1"), (2000, "2"), (2001, "3")] {
            assert_eq!(retry_after(Duration::from_millis(millis)), seconds);
        }
    }
}
