//! What is known of the server of a shared store, for the status.

use std::{fmt, time::SystemTime};

use crate::base::labels::labels;

/// A snapshot. Contains no secret, and nothing that a server sent but its version.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegisterInfo {
    /// As in `token.store.kind`.
    pub kind: &'static str,
    /// The address of the server that is connected, or was connected last: the primary that a
    /// Sentinel named, the node that a cluster named, or what is configured. Before the first
    /// connection, all that are configured.
    pub server: String,
    /// Counts the connections of this process.
    pub connection: u64,
    /// When the present connection was made, by the wall clock. `None`: there is none.
    pub connected_since: Option<SystemTime>,
    /// Name and number, such as `Redis 7.2.4`.
    pub version: Option<String>,
    /// Whether the server can be written.
    pub role: Role,
    /// The server's replicas.
    pub replicas: u64,
    /// What survives a restart of the server.
    pub persistence: Persistence,
    /// What endangers the record, as of the last look at the server.
    pub findings: Vec<Finding>,
    /// Writes that no replica has confirmed in time.
    pub unconfirmed_writes: u64,
    /// The last error and when it occurred, also when calls succeed again.
    pub last_error: Option<(SystemTime, String)>,
}

labels! {
    /// What a server is for writes.
    #[derive(Default)]
    pub enum Role {
        /// The user has no right to ask.
        #[default]
        Unknown => "unknown",
        /// It can be written.
        Primary => "primary",
        /// It cannot be written.
        Replica => "replica",
    }
}

labels! {
    /// What of the data survives a restart of the server.
    #[derive(Default)]
    pub enum Persistence {
        /// The user has no right to ask.
        #[default]
        Unknown => "unknown",
        /// It keeps no append-only file, and has neither read nor made a snapshot since its start.
        None => "none",
        /// What was in the last snapshot.
        Snapshots => "snapshots",
        /// All but the last second, or all.
        AppendOnlyFile => "append_only_file",
    }
}

/// A setting of a server that endangers the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The record may be evicted.
    Eviction,
    /// The record may be lost at a restart.
    NoPersistence,
    /// Writes may be lost at a failover.
    NoMinReplicas,
    /// No replica has confirmed a write in time.
    Unconfirmed,
    /// The store's clock is wrong, or ours.
    Skew,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eviction => {
                "it evicts keys without an expiry when its memory is full, and so the tokens: set \
                 maxmemory-policy noeviction there"
            }
            Self::NoPersistence => {
                "it keeps no append-only file, and has made no snapshot since its start: a restart \
                 may lose the tokens, which the replicas then write back; set appendonly yes there"
            }
            Self::NoMinReplicas => {
                "it has replicas, but accepts writes without them: a primary that is cut off \
                 accepts writes that are lost later; set min-replicas-to-write 1 there"
            }
            Self::Unconfirmed => {
                "no replica has confirmed a write within 100 ms: a failover now would lose it; see \
                 INFO replication there"
            }
            Self::Skew => {
                "its clock and that of this machine differ by more than 30 s: synchronise them (NTP)"
            }
        })
    }
}
