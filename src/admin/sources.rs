//! The data that the admin endpoint reads: snapshots and counters.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{net::reload, proxy::Metrics, token::Credential, upstream};

/// What the admin endpoint reports on.
#[derive(Debug)]
pub struct Sources {
    /// The credential.
    pub credential: Credential,
    /// The counters of each worker.
    pub workers: Arc<[Arc<Metrics>]>,
    /// The upstreams, in the order of the configuration.
    pub upstreams: Vec<upstream::Shared>,
    /// The certificates that the proxy presents.
    pub reload: reload::ReloadHandle,
    /// The JSON pointer to the code in JSON responses.
    pub json_pointer: String,
    /// Cancelled when the process begins to shut down.
    pub draining: CancellationToken,
}

impl Sources {
    /// One counter of all workers, added up.
    pub(super) fn total(&self, counter: impl Fn(&Metrics) -> u64) -> u64 {
        self.workers.iter().map(|worker| counter(worker)).sum()
    }
}
