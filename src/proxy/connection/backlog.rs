//! What was handed to a connection and has not reached its socket.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::Poll,
};

use tokio::sync::Notify;

/// Whether the socket accepts no more at the moment. Atomic, as in
/// [`Http1State`](super::http1_state::Http1State).
#[derive(Debug, Default)]
pub(super) struct Backlog {
    is_blocked: AtomicBool,
    flushed: Notify,
}

impl Backlog {
    /// A write to the socket was tried.
    pub(super) fn written(&self, written: &Poll<io::Result<usize>>) {
        if written.is_pending() {
            self.is_blocked.store(true, Relaxed);
        }
    }

    /// All that was written has reached the socket.
    pub(super) fn flushed(&self) {
        if self.is_blocked.load(Relaxed) {
            self.is_blocked.store(false, Relaxed);
            self.flushed.notify_waiters();
        }
    }

    /// Waits until what was handed to the connection before has reached the socket.
    ///
    /// Two turns: in the first, hyper hands the head over to h2; in the second, the connection's
    /// task writes it.
    pub(super) async fn drained(&self) {
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        while self.is_blocked.load(Relaxed) {
            self.flushed.notified().await;
        }
    }
}
