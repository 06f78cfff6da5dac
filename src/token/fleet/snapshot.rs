//! What status and metrics show of the shared store, and of this replica's part in it. None of it is
//! secret.

use std::sync::Arc;

use super::{info::RegisterInfo, register::RegisterError};
use crate::base::labels::{Label, PerLabel, labels};

labels! {
    /// Why the store could not be used.
    pub enum StoreError {
        /// No connection, or no response in time.
        Unreachable => "store_unreachable",
        /// The server refused: password, rights, memory, persistence, role.
        Refused => "store_refused",
        /// The key holds something else than this credential's record.
        Garbled => "store_garbled",
    }
}

impl From<&RegisterError> for StoreError {
    fn from(error: &RegisterError) -> Self {
        match error {
            RegisterError::Unreachable(_) => Self::Unreachable,
            RegisterError::Refused(_) => Self::Refused,
            RegisterError::Garbled(_) => Self::Garbled,
        }
    }
}

labels! {
    /// Why a record was written back.
    pub enum RestoreReason {
        /// The store was empty.
        Empty => "empty",
        /// The store had lost the last writes.
        Behind => "behind",
    }
}

labels! {
    /// What became of a claim of this replica.
    pub enum ClaimOutcome {
        /// The store has confirmed it.
        Claimed => "claimed",
        /// Another replica was faster, or what is stored excludes the call.
        Refused => "refused",
        /// The store has not confirmed it in time, so no call was made.
        Unconfirmed => "unconfirmed",
        /// It was confirmed, and nothing was sent to the issuer.
        Withdrawn => "withdrawn",
        /// It replaced the claim of a replica that had stopped to renew it.
        Orphaned => "orphaned",
    }
}

/// What has happened since the process started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) errors: PerLabel<StoreError, u64>,
    pub(super) restores: PerLabel<RestoreReason, u64>,
    pub(super) claims: PerLabel<ClaimOutcome, u64>,
}

/// The store as this replica sees it, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetSnapshot {
    /// This replica's name.
    pub replica: String,
    /// The last command has succeeded.
    pub is_up: bool,
    /// Why the store cannot be used.
    pub problem: Option<String>,
    /// The server.
    pub server: Arc<RegisterInfo>,
    /// The writes of the record, as they were read last. `None`: the store is empty, or was not read.
    pub serial: Option<u64>,
    /// Identifies the history of the record: another one after the store has lost writes.
    pub life: Option<u64>,
    /// The replica that is calling the issuer.
    pub claim: Option<ClaimSnapshot>,
    /// The store was watched for long enough, so this replica may call the issuer.
    pub is_settled: bool,
    /// Failed commands.
    pub errors: Vec<(StoreError, u64)>,
    /// Records that this replica has written back.
    pub restores: Vec<(RestoreReason, u64)>,
    /// Claims of this replica.
    pub claims: Vec<(ClaimOutcome, u64)>,
}

/// A claim as it was read last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimSnapshot {
    /// The name of the replica that holds it.
    pub replica: String,
    /// The generation of the tokens that its call brings.
    pub generation: u64,
    /// It is not renewed any more.
    pub is_orphaned: bool,
}

/// The values with their counts, in the order of declaration.
pub(super) fn counts<L: Label>(table: &PerLabel<L, u64>) -> Vec<(L, u64)> {
    table.iter().map(|(label, count)| (label, *count)).collect()
}
