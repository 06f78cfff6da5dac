//! The data path: a request's life, on single-threaded workers.

use std::{collections::BTreeSet, time::Duration};

use http::StatusCode;

use crate::net::socket::Address;

/// What the data path needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where apps reach us; at least one.
    pub listeners: Vec<Listener>,
    /// Single-threaded workers.
    pub workers: usize,
    /// Open client connections, in all workers together.
    pub max_connections: usize,
    /// Which forwarding fields the upstream sees.
    pub forwarded_headers: ForwardedHeaders,
    /// Limit for the first byte on a new connection.
    pub first_byte_timeout: Duration,
    /// Limit for a request's head, from its first byte.
    pub head_timeout: Duration,
    /// Limit for silence within a request's body, and for a client that does not take its answer.
    pub body_idle_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long to go on accepting after readiness is off, so that load balancers notice.
    pub drain_delay: Duration,
    /// Limit for requests in flight at shutdown.
    pub drain_timeout: Duration,
    /// When to refresh and send again.
    pub retry: Retry,
    /// Which requests are logged.
    pub access_log: AccessLog,
}

/// One listening address and what may reach it.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Where to listen.
    pub address: Address,
    /// The local guard's exceptions.
    pub guard: Guard,
}

/// Exceptions to the local guard (see `guard.rs`), by default none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// Further names that `Host` may carry, in lower case, without a port.
    pub allowed_hosts: BTreeSet<String>,
    /// Further origins of web pages that may call, as `Origin` spells them, in lower case.
    pub allowed_origins: BTreeSet<String>,
}

/// Which forwarding fields the upstream sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedHeaders {
    /// `X-Forwarded-For`, `X-Forwarded-Host`, `X-Forwarded-Proto`.
    XForwarded,
    /// `Forwarded`, RFC 7239.
    Forwarded,
    /// None.
    Off,
}

/// When an answer is an authorization failure, and what may be sent again.
#[derive(Debug, Clone)]
pub struct Retry {
    /// The statuses that say "this token is not good".
    pub statuses: Vec<StatusCode>,
    /// Send again whatever the method, also for a status other than 401.
    pub any_method: bool,
    /// Bytes of a request's body that are kept for sending again.
    pub body_limit: usize,
    /// Bytes kept by all requests together.
    pub total_limit: usize,
    /// What the client gets when sending again did not help.
    pub exhausted: Exhausted,
}

/// What the client gets when a fresh token was refused as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The upstream's answer, byte for byte.
    Relay,
    /// 502, so that an app does not ask its user for a password.
    BadGateway,
}

/// Which requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// At most a few a second, and every server error among them first.
    Sampled,
    /// Every one.
    All,
}
