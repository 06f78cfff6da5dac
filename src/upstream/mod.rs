//! Connections to the cloud: endpoints, dialling, pooling. Knows nothing of tokens.

use std::{net::SocketAddr, time::Duration};

use http::{HeaderValue, uri::Scheme};

use crate::net::tls;

/// One upstream: the endpoints that serve the same files, and how to talk to them.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name in the configuration; the plain `[upstream]` is `default`.
    pub name: String,
    /// At least one; several share the load in turn.
    pub endpoints: Vec<Endpoint>,
    /// What the upstream sees as `Host`.
    pub host: Host,
    /// Dial this address, whatever the endpoint's name resolves to.
    pub connect_to: Option<SocketAddr>,
    /// Limit for resolving and connecting; a TLS handshake has ten seconds more.
    pub connect_timeout: Duration,
    /// Limit from the last byte of the request body to the head of the answer.
    pub response_timeout: Duration,
    /// Limit for silence within an answer's body.
    pub body_idle_timeout: Duration,
    /// How long a pooled connection may wait for its next request.
    pub idle_timeout: Duration,
    /// Open connections to one endpoint, in all workers together.
    pub max_connections: usize,
    /// Trust and greeting for `https` endpoints.
    pub tls: tls::Config,
}

/// Where requests go: scheme, host and port, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// A name or an IP address (IPv6 without brackets).
    pub host: String,
    /// The port, the scheme's default filled in.
    pub port: u16,
    /// `host[:port]` as `Host` wants it: the scheme's default port left out.
    pub authority: HeaderValue,
    /// `scheme://host[:port]`, as it is printed and as `Origin` wants it.
    pub origin: String,
}

/// What the upstream sees as `Host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// The endpoint's own authority.
    Endpoint,
    /// What the client sent.
    Client,
    /// Always this name.
    Fixed(HeaderValue),
}
