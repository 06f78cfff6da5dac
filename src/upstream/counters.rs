//! The counters of one endpoint in one worker.

use crate::base::{
    counter::Counter,
    labels::{PerLabel, labels},
};

labels! {
    /// Values of the label `error` of `upstream_errors_total`.
    pub enum Failure {
        /// No connection in time.
        ConnectTimeout => "connect_timeout",
        /// No address is known.
        Resolve => "resolve",
        /// No connection.
        ConnectRefused => "connect_refused",
        /// The TLS handshake failed.
        Tls => "tls",
        /// The outbound proxy did not respond in time.
        ProxyTimeout => "proxy_timeout",
        /// No connection to the outbound proxy.
        ProxyUnreachable => "proxy_unreachable",
        /// The outbound proxy refused the connection.
        ProxyRefused => "proxy_refused",
        /// A limit of connections or requests is reached.
        ConnectionsFull => "connections_full",
        /// No response, or no more of it, in time.
        ResponseTimeout => "response_timeout",
        /// The connection closed before the response.
        ConnectionClosed => "broken_off",
        /// The response is not valid HTTP.
        InvalidResponse => "invalid_answer",
        /// The connection closed within the response's body.
        Truncated => "truncated",
    }
}

/// One endpoint in one worker.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that carry a request.
    pub active: Counter,
    /// Connections that wait for the next request.
    pub idle: Counter,
    /// Requests and connections that failed there.
    pub failures: PerLabel<Failure, Counter>,
}
