//! Several replicas with one credential. They share one record in a compare-and-set register
//! (`register.rs`), so that a refresh token is sent once, whichever replica fails.
//!
//! - Before each call to the issuer a replica stores a **claim**, and renews it until the result is
//!   stored. While a claim is renewed, no other replica calls. What the store has not confirmed has
//!   not happened: without a confirmed claim there is no call.
//! - The request is written only if the last confirmed renewal was sent less than a second ago: the
//!   **fence**. A claim that is not renewed for three seconds is **orphaned**; the fence of its owner
//!   is closed by then.
//! - A replica makes a claim only after it has **watched** the store for three seconds in which
//!   nothing was missing or new: a store that fails over or loses its contents gets back what any
//!   replica has seen last, claims included.
//! - A result is accepted if the store still holds the refresh token that was spent.
//!
//! | file | contents |
//! |---|---|
//! | `register.rs` | what a shared store must offer |
//! | `info.rs`, `snapshot.rs` | what status and metrics show: the server, and the record |
//! | `redis/` | the register on a Redis or Valkey server |
//! | `seal.rs` | encryption of the record at rest |
//! | `shared.rs` | the shared record, and its format |
//! | `claim.rs`, `change.rs` | claims, and all changes of the record: pure functions |
//! | `watch.rs` | what a replica has seen of the store: a pure function too |
//! | `member.rs` | reads, renews and writes, beside the refresher |
//! | `fence.rs` | the last check before a request is written |
//! | `store_time.rs` | the store's clock |
//! | `config.rs`, `open.rs` | `[token.store]`, and what is built from it |

mod change;
mod claim;
mod config;
mod fence;
mod info;
mod member;
mod open;
mod redis;
mod register;
mod seal;
mod shared;
mod snapshot;
mod store_time;
#[cfg(test)]
pub(super) mod testing;
mod watch;

pub use self::config::{Config, OnStoreFailure, RedisConfig, RedisServer};
pub(super) use self::{
    change::{CallResult, Note},
    fence::Fence,
    member::{CallOutcome, Claimed, Fleet, ForCall, View},
    open::configured,
    register::Revision,
    shared::ClientRefused,
};
pub use self::{
    info::{Finding, Persistence, RegisterInfo, Role},
    open::Error,
    seal::{KeyError, check_key},
    snapshot::{ClaimOutcome, ClaimSnapshot, FleetSnapshot, RestoreReason, StoreError},
};
