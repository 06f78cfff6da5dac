//! A compare-and-set register: one value that can be read, and replaced if it is still the one that
//! was read. All that replicas share is in such a value.

use std::{sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::info::RegisterInfo;

/// The largest value that is read. A record is a few kilobytes.
pub(super) const VALUE_LIMIT: usize = 1 << 20;

/// Identifies a value: a random number, because a store that fails over or loses writes would repeat
/// a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) struct Revision(pub(super) u64);

/// What the register holds.
#[derive(Clone)]
pub(in crate::token) struct Value {
    pub(super) revision: Revision,
    pub(super) bytes: Zeroizing<Vec<u8>>,
}

/// One look at the register.
#[derive(Clone)]
pub(in crate::token) struct Reading {
    /// `None`: the register is empty.
    pub(super) value: Option<Value>,
    /// The store's wall clock, asked beside the value.
    pub(super) time: SystemTime,
    /// Counts the connections of this process to the store. A new connection may lead to a store that
    /// has lost writes.
    pub(super) connection: u64,
}

/// How a conditional write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) enum Replaced {
    /// The new value is stored.
    Done,
    /// The register holds another value than the one that was expected; nothing was written.
    Moved,
}

/// Why the register was not read or written. No text contains a secret, or anything that the server
/// sent beyond its error code.
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::token) enum RegisterError {
    /// There is no connection, or no response in time. A write may have been carried out, or may be
    /// carried out later.
    #[error("{0}")]
    Unreachable(String),
    /// The server refused: password, rights, memory, persistence, role. Nothing was written.
    #[error("{0}")]
    Refused(String),
    /// The key holds something else than a register. It is left as it is.
    #[error("{0}")]
    Garbled(String),
}

/// A register on a server. Its methods end on their own, within a second or two, whatever the server
/// does; connections are made and made again inside.
pub(in crate::token) trait Register: Send + Sync {
    /// The value, and the store's time.
    fn read(&self) -> BoxFuture<'_, Result<Reading, RegisterError>>;

    /// Replaces the value with revision `seen` (`None`: the register is empty) by `new`.
    fn replace(
        &self,
        seen: Option<Revision>,
        new: Value,
    ) -> BoxFuture<'_, Result<Replaced, RegisterError>>;

    /// What is known of the server. Waits for nothing.
    fn info(&self) -> Arc<RegisterInfo>;
}
