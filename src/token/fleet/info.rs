//! What is known of the server of a shared store, for the status.

use std::{fmt, time::SystemTime};

/// A snapshot. Contains no secret, and nothing that a server sent but its version.
#[derive(Debug, Clone, Default)]
pub(in crate::token) struct RegisterInfo {
    /// The address of the server that is connected, or was connected last: the primary that a
    /// Sentinel named, the node that a cluster named, or what is configured. Before the first
    /// connection, all that are configured.
    pub(in crate::token) server: String,
    /// Counts the connections of this process.
    pub(in crate::token) connection: u64,
    /// When the present connection was made, by the wall clock. `None`: there is none.
    pub(in crate::token) connected_since: Option<SystemTime>,
    /// Name and number, such as `Redis 7.2.4`.
    pub(in crate::token) version: Option<String>,
    /// Whether the server can be written.
    pub(in crate::token) role: Role,
    /// The server's replicas.
    pub(in crate::token) replicas: u64,
    /// What survives a restart of the server.
    pub(in crate::token) persistence: Persistence,
    /// What endangers the record, as of the last look at the server.
    pub(in crate::token) findings: Vec<Finding>,
    /// Writes that no replica has confirmed in time.
    pub(in crate::token) unconfirmed_writes: u64,
    /// The last error and when it occurred, also when calls succeed again.
    pub(in crate::token) last_error: Option<(SystemTime, String)>,
}

/// What a server is for writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::token) enum Role {
    /// The user has no right to ask.
    #[default]
    Unknown,
    /// It can be written.
    Primary,
    /// It cannot be written.
    Replica,
}

/// What of the data survives a restart of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::token) enum Persistence {
    /// The user has no right to ask.
    #[default]
    Unknown,
    /// It keeps no append-only file, and has neither read nor made a snapshot since its start.
    None,
    /// What was in the last snapshot.
    Snapshots,
    /// All but the last second, or all.
    AppendOnlyFile,
}

/// A setting of a server that endangers the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) enum Finding {
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
