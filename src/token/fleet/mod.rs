//! Several replicas with one credential: they share one record in a compare-and-set register.
//!
//! | file | contents |
//! |---|---|
//! | `register.rs` | what a shared store must offer |
//! | `seal.rs` | encryption of the record at rest |
//! | `config.rs` | `[token.store]` |

#![expect(dead_code, reason = "under construction")]

mod config;
mod register;
mod seal;

pub use self::config::{Config, OnStoreFailure, RedisConfig, RedisServer};
pub use self::seal::{KeyError, check_key};
