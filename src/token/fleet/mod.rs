//! Several replicas with one credential: they share one record in a compare-and-set register.
//!
//! | file | contents |
//! |---|---|
//! | `register.rs` | what a shared store must offer |
//! | `info.rs` | what is known of its server, for the status |
//! | `redis/` | the register on a Redis or Valkey server |
//! | `seal.rs` | encryption of the record at rest |
//! | `config.rs` | `[token.store]` |

#![cfg_attr(not(test), expect(dead_code, reason = "under construction"))]

mod config;
mod info;
mod redis;
mod register;
mod seal;

pub use self::config::{Config, OnStoreFailure, RedisConfig, RedisServer};
pub use self::seal::{KeyError, check_key};
