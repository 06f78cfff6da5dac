//! `max_connections`: connections to one endpoint that carry a request, and their metrics.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::base::counter::Counter;

/// Connections of one worker to one endpoint.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that carry a request.
    pub active: Counter,
    /// Connections in the pool, without a request.
    pub idle: Counter,
}

/// One of the `max_connections` of an endpoint, released on drop.
#[derive(Debug)]
pub(super) struct PoolSlot {
    active: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

impl PoolSlot {
    /// Takes one of `limit` slots. `active` counts those taken by all workers.
    ///
    /// `None` if all are taken.
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
        // Above the limit, dropping `slot` undoes the addition.
        (active.fetch_add(1, Relaxed) < limit).then_some(slot)
    }
}

impl Drop for PoolSlot {
    fn drop(&mut self) {
        self.active.fetch_sub(1, Relaxed);
        self.counters.active.sub(1);
    }
}
