//! Configuration of one upstream.

use std::{net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use http::{
    HeaderValue, StatusCode,
    uri::{PathAndQuery, Scheme},
};

use crate::net::{outbound_proxy::OutboundProxy, tls};

/// One upstream: its endpoints, and how to connect to them.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name in the configuration; that of the plain `[upstream]` is `default`.
    pub name: String,
    /// At least one. Requests are distributed over several round-robin.
    pub endpoints: Vec<Endpoint>,
    /// The share of the requests that each endpoint gets, relative to the others: one weight above
    /// zero for each endpoint.
    pub weights: Vec<u32>,
    /// Whether a client's requests go to the same address.
    pub affinity: Affinity,
    /// The `Host` of requests to the upstream.
    pub host: Host,
    /// Connect to this address instead of resolving the endpoint's host.
    pub connect_to: Option<SocketAddr>,
    /// The time between two resolutions of the endpoints' names.
    pub dns_refresh: Duration,
    /// The proxy that connections pass. It resolves the endpoints' hosts.
    pub proxy: Option<Arc<OutboundProxy>>,
    /// Limit for name resolution and the TCP handshake, and for the response of the proxy.
    pub connect_timeout: Duration,
    /// Limit for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Limit from the last byte of the request's body to the head of the response.
    pub response_timeout: Duration,
    /// Limit between two reads of a response's body.
    pub body_idle_timeout: Duration,
    /// How long a pooled connection stays open without a request.
    pub idle_timeout: Duration,
    /// Connections to one endpoint that carry a request, in all workers together. Idle ones do not
    /// count.
    pub max_connections: usize,
    /// Requests to one endpoint at the same time, of all workers together.
    pub max_requests: usize,
    /// How many requests may wait while every endpoint has reached `max_connections` or
    /// `max_requests`; zero if none may.
    pub queue: usize,
    /// How long a request waits in the queue.
    pub queue_timeout: Duration,
    /// Statuses of responses after which a request is sent again to another address.
    pub retry_statuses: Vec<StatusCode>,
    /// The time in which the weight of a new or returned address grows from a tenth to the whole;
    /// zero if it has its whole weight at once.
    pub slow_start: Duration,
    /// The active health checks, if a path is configured.
    pub health: Option<HealthCheck>,
    /// The size of the largest head of a response, in bytes.
    pub max_head_size: usize,
    /// Which version of HTTP to use.
    pub http2: Http2,
    /// Whether clients get the cookies that the upstream sets.
    pub cookies: Cookies,
    /// Trust anchors and client certificate for `https` endpoints.
    pub tls: tls::Config,
}

/// Whether the requests of one client go to the same address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Each request goes to the address that is least loaded.
    #[default]
    None,
    /// The requests of one `[[client]]`, or of one client address, go to the same address while it
    /// is in use.
    Client,
}

/// Active health checks: a request without a token that is sent to each address from time to time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The path of the request.
    pub path: PathAndQuery,
    /// The time between two checks of an address.
    pub interval: Duration,
    /// Limit from the start of the connection to the head of the response.
    pub timeout: Duration,
    /// The number of failed checks in a row after which the address is unhealthy.
    pub fall: u32,
    /// The number of successful checks in a row after which it is healthy again.
    pub rise: u32,
    /// The statuses of a successful check.
    pub expect: Vec<RangeInclusive<u16>>,
}

impl HealthCheck {
    /// Whether a response with this status is a success.
    pub fn expects(&self, status: StatusCode) -> bool {
        self.expect
            .iter()
            .any(|range| range.contains(&status.as_u16()))
    }
}

/// When HTTP/2 is used to an upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Http2 {
    /// If the server selects it by ALPN (RFC 7301); never over plain TCP.
    #[default]
    Auto,
    /// Always; over plain TCP with prior knowledge (RFC 9113 §3.3).
    Always,
    /// Never.
    Never,
}

/// Whether clients get the cookies that an upstream sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cookies {
    /// `Set-Cookie` is forwarded.
    #[default]
    Pass,
    /// `Set-Cookie` is dropped: a cookie may be the session of the account that all clients share.
    Drop,
}

/// A server: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// A name or an IP address (IPv6 without brackets).
    pub host: String,
    /// The port; the scheme's default if none is configured.
    pub port: u16,
    /// `host[:port]` as in `Host`, without the scheme's default port.
    pub authority: HeaderValue,
    /// `scheme://host[:port]` as in `Origin` (RFC 6454 §6.2).
    pub origin: String,
}

/// The `Host` of requests to an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// The endpoint's authority.
    Endpoint,
    /// The client's `Host`.
    Client,
    /// This value.
    Fixed(HeaderValue),
}
