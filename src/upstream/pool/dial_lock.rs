//! One dial at a time, so that requests share the HTTP/2 connection that it opens.

use std::cell::Cell;

use tokio::sync::Notify;

/// Whether a request is dialing, and the result of the last dial.
#[derive(Debug, Default)]
pub(super) struct DialLock {
    is_locked: Cell<bool>,
    has_succeeded: Cell<bool>,
    unlocked: Notify,
}

impl DialLock {
    pub(super) fn is_locked(&self) -> bool {
        self.is_locked.get()
    }

    /// Locks until the guard is dropped.
    pub(super) fn lock(&self) -> DialGuard<'_> {
        self.is_locked.set(true);
        self.has_succeeded.set(false);
        DialGuard(self)
    }

    /// Waits until the dial under way has ended. Returns whether it succeeded.
    pub(super) async fn wait(&self) -> bool {
        self.unlocked.notified().await;
        self.has_succeeded.get()
    }
}

/// The lock, held by the request that dials.
pub(super) struct DialGuard<'a>(&'a DialLock);

impl DialGuard<'_> {
    /// Reports success to the requests that wait, and unlocks.
    pub(super) fn succeeded(self) {
        self.0.has_succeeded.set(true);
    }
}

impl Drop for DialGuard<'_> {
    fn drop(&mut self) {
        self.0.is_locked.set(false);
        self.0.unlocked.notify_waiters();
    }
}
