//! The configuration of a shared token store: `[token.store]`.

use std::fmt;

use crate::{base::secret::Secret, net::tls};

/// The store that the replicas of a gateway share.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server.
    pub redis: RedisConfig,
    /// The first part of the key's name.
    pub key_prefix: String,
    /// Encrypts the record at rest: 32 bytes in Base64 each line. The first line encrypts, all
    /// decrypt.
    pub key: Option<Secret>,
    /// What to do while the store cannot be reached and the token expires soon.
    pub on_store_failure: OnStoreFailure,
}

/// What to do while the store cannot be reached and the token expires soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStoreFailure {
    /// No refresh: another replica may have sent the refresh token.
    Wait,
    /// Refresh without the others. Only for credentials that this costs nothing.
    RefreshAlone,
}

/// How to reach a Redis or Valkey server.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// The server, or the Sentinels, or nodes of one cluster.
    pub servers: Vec<RedisServer>,
    /// `SELECT`ed on each connection, unless 0.
    pub database: u32,
    /// The ACL user.
    pub user: Option<String>,
    /// The user's password. Its file is read at each connection.
    pub password: Option<Secret>,
    /// For servers with `rediss://`.
    pub tls: tls::Config,
    /// The name of the primary that the Sentinels know.
    pub sentinel: Option<String>,
    /// The password of the Sentinels, if they have one.
    pub sentinel_password: Option<Secret>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisServer {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `rediss://`.
    pub is_tls: bool,
}

impl fmt::Display for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, is_tls } = self;
        let scheme = if *is_tls { "rediss" } else { "redis" };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}
