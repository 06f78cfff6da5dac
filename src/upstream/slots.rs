//! The limit of connections to one endpoint, and their number.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::base::counter::Counter;

/// Numbers of one endpoint in one worker.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that carry a request.
    pub active: Counter,
    /// Connections that wait for one.
    pub idle: Counter,
}

/// One of the `max_connections` of an endpoint, held by a connection that carries a request.
#[derive(Debug)]
pub(super) struct PoolSlot {
    active: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

impl PoolSlot {
    /// One of `limit` slots; `None` if all are taken.
    pub(super) fn reserve(
        active: &Arc<AtomicUsize>,
        counters: &Arc<Counters>,
        limit: usize,
    ) -> Option<Self> {
        counters.active.add(1);
        let slot = Self {
            active: Arc::clone(active),
            counters: Arc::clone(counters),
        };
        (active.fetch_add(1, Relaxed) < limit).then_some(slot)
    }
}

impl Drop for PoolSlot {
    fn drop(&mut self) {
        self.active.fetch_sub(1, Relaxed);
        self.counters.active.sub(1);
    }
}
