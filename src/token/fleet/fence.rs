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
