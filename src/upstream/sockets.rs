//! The limit of connections to all upstreams, idle ones included: each takes a file descriptor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The sockets that all workers may open to upstreams.
#[derive(Debug)]
pub struct Sockets {
    permits: Arc<Semaphore>,
    waiters: AtomicUsize,
    exhausted: Notify,
}

/// Permission to hold one socket, released on drop.
pub(super) type SocketPermit = OwnedSemaphorePermit;

impl Sockets {
    /// At most `limit` open sockets.
    pub fn new(limit: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self {
            permits,
            waiters: AtomicUsize::new(0),
            exhausted: Notify::new(),
        })
    }

    /// A permit for one more socket. If all are taken, the pools of all workers close idle
    /// connections; `None` if none is released within `timeout`.
    pub(super) async fn acquire(&self, timeout: Duration) -> Option<SocketPermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        self.waiters.fetch_add(1, Relaxed);
        let _waiter = WaiterSlot(&self.waiters);
        self.exhausted.notify_waiters();
        tokio::time::timeout(timeout, Arc::clone(&self.permits).acquire_owned())
            .await
            .ok()?
            .ok()
    }

    /// Whether a task waits for a permit. No connection may go to the pool then.
    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.load(Relaxed) > 0
    }

    /// Resolves when a task begins to wait for a permit.
    pub(super) async fn exhausted(&self) {
        self.exhausted.notified().await;
    }
}

struct WaiterSlot<'a>(&'a AtomicUsize);

impl Drop for WaiterSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
