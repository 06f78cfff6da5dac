//! What the data path is configured with. Types that one file acts on stand in that file.

use std::{sync::Arc, time::Duration};

use http::uri::Scheme;

use crate::{
    net::{reload, socket::Address, tls},
    proxy::{
        message::{forwarded::ForwardedHeaders, judge::Retry, urls::Rewrite},
        policy::{
            clients::Client, guard::GuardConfig, issuer_path::IssuerPath, trusted::TrustedNetworks,
        },
        route::RouteConfig,
    },
};

/// Settings of the data path: `[proxy]`, `[[listener]]`, `[[route]]`, `[[rewrite]]`, `[[client]]`,
/// `[retry]`, and what concerns it of `[token]` and `[log]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where apps connect; at least one.
    pub listeners: Vec<Listener>,
    /// Single-threaded workers.
    pub workers: usize,
    /// What clients may use.
    pub limits: Limits,
    /// Which forwarding fields the upstream sees, and trusted peers are believed.
    pub forwarded_headers: ForwardedHeaders,
    /// Whose forwarding fields and PROXY headers say who the client is.
    pub trusted_networks: TrustedNetworks,
    /// Limit for the first byte on a new connection.
    pub first_byte_timeout: Duration,
    /// Limit for a request's head, from its first byte.
    pub head_timeout: Duration,
    /// Limit for a pause within a request's body, and for a client that does not read its response.
    pub body_idle_timeout: Duration,
    /// Bytes a second that a client must send of a request's body, on average over
    /// `body_idle_timeout`; 0: any.
    pub min_body_rate: usize,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long a client that has closed its sending side may take no byte of its response.
    pub half_closed_timeout: Duration,
    /// How long an upgraded connection may carry no bytes.
    pub tunnel_idle_timeout: Duration,
    /// How long to go on accepting after readiness is off, so that load balancers notice.
    pub drain_delay: Duration,
    /// Limit for requests in flight at shutdown.
    pub drain_timeout: Duration,
    /// When a response rejects the token, and what is sent again.
    pub retry: Retry,
    /// Where requests go. What matches none goes to the plain `[upstream]`, with the first credential's
    /// token.
    pub routes: Vec<RouteConfig>,
    /// URLs in responses that are mapped to this proxy.
    pub rewrites: Vec<Rewrite>,
    /// Which clients may send requests; empty: all that the guard lets pass.
    pub clients: Vec<Client>,
    /// Credentials, the first of which is the default; at least one.
    pub credentials: Vec<CredentialConfig>,
    /// Which requests are logged.
    pub access_log: AccessLog,
}

/// What clients may use. Totals are for all workers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections, in all.
    pub connections: usize,
    /// Open connections from one IPv4 address or one /64 of IPv6. Loopback is not counted.
    pub connections_per_address: usize,
    /// Requests under way, in all.
    pub requests: usize,
    /// Bytes of a request's head.
    pub head_size: usize,
    /// Bytes of a request's target.
    pub uri_length: usize,
    /// Fields of a request's head.
    pub headers: usize,
    /// Requests under way on one HTTP/2 connection.
    pub streams: usize,
    /// Streams of one HTTP/2 connection that may end in a reset, beyond the number that completed.
    pub resets: usize,
    /// Frames of one HTTP/2 connection without body data, while none of its requests makes progress.
    /// Ten more each second.
    pub control_frames: usize,
}

/// One listening address.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Where to listen.
    pub address: Address,
    /// Exceptions to the local guard.
    pub guard: GuardConfig,
    /// Certificate and key, if the listener speaks TLS.
    pub tls: Option<tls::ServerConfig>,
    /// Whether each connection begins with a PROXY header.
    pub proxy_protocol: bool,
}

impl Listener {
    /// The scheme of its URLs.
    pub fn scheme(&self) -> Scheme {
        match self.tls {
            Some(_) => Scheme::HTTPS,
            None => Scheme::HTTP,
        }
    }
}

/// A listener's TLS settings, which follow their files.
pub type ServerTls = Arc<reload::Reloadable<rustls::ServerConfig>>;

/// What the data path knows of a credential.
#[derive(Debug, Clone)]
pub struct CredentialConfig {
    /// How long a request waits for a token.
    pub wait: Duration,
    /// Its issuer's own paths.
    pub issuer_paths: Vec<IssuerPath>,
}

/// Which requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// At most a few each second, server errors first.
    Sampled,
    /// Every one.
    All,
}
