//! What is configured of one upstream.

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
    /// Limit for resolving and connecting.
    pub connect_timeout: Duration,
    /// Limit for the TLS handshake after it.
    pub handshake_timeout: Duration,
    /// Limit from the last byte of the request body to the head of the answer.
    pub response_timeout: Duration,
    /// Limit for silence within an answer's body.
    pub body_idle_timeout: Duration,
    /// How long a pooled connection may wait for its next request.
    pub idle_timeout: Duration,
    /// Connections to one endpoint that carry a request, in all workers together. Idle ones do not count.
    pub max_connections: usize,
    /// Which version of HTTP to speak.
    pub http2: Http2,
    /// What becomes of the cookies that it sets.
    pub cookies: Cookies,
    /// Trust and greeting for `https` endpoints.
    pub tls: tls::Config,
}

/// Whether an upstream is spoken to in HTTP/2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Http2 {
    /// If the server agrees to it in the TLS handshake (ALPN); never in clear.
    #[default]
    Auto,
    /// Always; in clear without asking (prior knowledge, RFC 9113 §3.3).
    Always,
    /// Never.
    Never,
}

/// What becomes of the cookies that an upstream sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cookies {
    /// Clients get them.
    #[default]
    Pass,
    /// Nobody gets them: they may be the session of the account that all clients share.
    Drop,
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
