//! The number of connections to all upstreams together, idle ones included: each takes a file descriptor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// What all workers share.
#[derive(Debug)]
pub struct Sockets {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    wanted: Notify,
}

/// A socket's place, given back when dropped.
pub(super) type SocketPermit = OwnedSemaphorePermit;

impl Sockets {
    /// At most `limit` at a time.
    pub fn new(limit: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self {
            places,
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
        })
    }

    /// A place for one more. If there is none, idle connections have to go; `None` if that does not help in time.
    pub(super) async fn place(&self, limit: Duration) -> Option<SocketPermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        self.waiting.fetch_add(1, Relaxed);
        let _waiting = WaiterSlot(&self.waiting);
        self.wanted.notify_waiters();
        tokio::time::timeout(limit, Arc::clone(&self.places).acquire_owned())
            .await
            .ok()?
            .ok()
    }

    /// Whether somebody waits for a place, so that none may be held for later.
    pub(super) fn are_wanted(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Resolves when somebody begins to wait for a place.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

struct WaiterSlot<'a>(&'a AtomicUsize);

impl Drop for WaiterSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
