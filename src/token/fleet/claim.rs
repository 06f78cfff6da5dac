//! A claim: the announcement of a call to the issuer. While its owner renews it, no other replica
//! calls.

use serde::{Deserialize, Serialize};

/// Identifies a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(in crate::token) struct ClaimId {
    /// A random number of the process.
    pub(in crate::token) owner: u64,
    /// Counts the owner's claims.
    pub(in crate::token) number: u64,
}

/// The announcement of a call to the issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::token) struct Claim {
    #[serde(flatten)]
    pub(in crate::token) id: ClaimId,
    /// The replica's name, for operators.
    pub(in crate::token) name: String,
    /// The generation that its result will have.
    pub(in crate::token) generation: u64,
    /// Increases every half second.
    pub(in crate::token) beat: u64,
    /// The fingerprint of the refresh token that is sent; `None` for a grant without one.
    pub(in crate::token) spends: Option<String>,
}

impl Claim {
    /// What changes with every sign of life.
    pub(in crate::token) fn pulse(&self) -> Pulse {
        Pulse {
            id: self.id,
            beat: self.beat,
        }
    }
}

/// A claim at one beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) struct Pulse {
    pub(in crate::token) id: ClaimId,
    pub(in crate::token) beat: u64,
}
