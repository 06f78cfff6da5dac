//! The fence before the issuer: a request is written only while the claim to it is certain.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::base::clock::{Moment, SharedClock};

/// The longest time between sending the last confirmed beat and writing the request.
const FRESHNESS: Duration = Duration::from_secs(1);

/// Whether a claimed call may still be written.
#[derive(Debug, Clone)]
pub(in crate::token) struct Fence {
    clock: SharedClock,
    /// When the last confirmed beat was sent; `None` after the claim was lost.
    confirmed: Arc<Mutex<Option<Moment>>>,
    /// A repetition within the grace period is written before its end.
    until: Option<Moment>,
}

impl Fence {
    /// A claim was confirmed that was sent at `sent_at`.
    pub(super) fn new(clock: SharedClock, sent_at: Moment, until: Option<Moment>) -> Self {
        Self {
            clock,
            confirmed: Arc::new(Mutex::new(Some(sent_at))),
            until,
        }
    }

    pub(super) fn confirm(&self, sent_at: Moment) {
        if let Some(confirmed) = &mut *self.confirmed.lock() {
            *confirmed = (*confirmed).max(sent_at);
        }
    }

    /// The claim is another replica's now.
    pub(super) fn lose(&self) {
        *self.confirmed.lock() = None;
    }

    /// Whether the request may be written at this moment.
    pub(in crate::token) fn is_open(&self) -> bool {
        let now = self.clock.now();
        let is_fresh = self
            .confirmed
            .lock()
            .is_some_and(|at| now.saturating_since(at) < FRESHNESS);
        is_fresh && self.until.is_none_or(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::{Clock as _, Simulated};

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[tokio::test(start_paused = true)]
    async fn it_closes_a_second_after_the_last_confirmed_renewal_was_sent() {
        let clock = Arc::new(Simulated::new());
        let begin = clock.now();
        let fence = Fence::new(Arc::<Simulated>::clone(&clock), begin, None);
        clock.sleep_until(begin + ms(999)).await;
        assert!(fence.is_open());
        fence.confirm(begin + ms(500));
        fence.confirm(begin + ms(100));
        clock.sleep_until(begin + ms(1499)).await;
        assert!(fence.is_open());
        clock.sleep_until(begin + ms(1500)).await;
        assert!(!fence.is_open());
        fence.confirm(begin + ms(1400));
        assert!(fence.is_open());
        // The time of a suspend counts.
        clock.suspend(ms(2000));
        assert!(!fence.is_open());
        fence.confirm(clock.now());
        fence.lose();
        assert!(!fence.is_open());
        fence.confirm(clock.now());
        assert!(!fence.is_open(), "a lost claim stays lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_repetition_is_not_written_after_the_grace_period() {
        let clock = Arc::new(Simulated::new());
        let begin = clock.now();
        let until = Some(begin + ms(300));
        let fence = Fence::new(Arc::<Simulated>::clone(&clock), begin, until);
        assert!(fence.is_open());
        clock.sleep_until(begin + ms(300)).await;
        assert!(!fence.is_open());
    }
}
