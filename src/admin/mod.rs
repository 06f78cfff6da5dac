//! The admin listener: health, metrics, status. Reads snapshots and never drives the data path.

use crate::{base::secret::Secret, proxy::Listener};

/// What the admin listener needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen, and the local guard's exceptions (those of the data listeners).
    pub listener: Listener,
    /// Needed for everything but `/healthz`, `/readyz` and `/metrics` when listening beyond loopback.
    pub token: Option<Secret>,
}
