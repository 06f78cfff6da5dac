//! What unit tests of upstreams share.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, uri::Scheme};

use super::{
    addresses::Addresses,
    config::{Affinity, Config, Cookies, Endpoint, Host, Http2},
};
use crate::{base::clock, net::tls};

/// A limit that is reached only where a test waits for it.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// An endpoint without TLS at this `host:port`.
pub(crate) fn endpoint(host: &str, port: u16) -> Endpoint {
    let authority = format!("{host}:{port}");
    Endpoint {
        scheme: Scheme::HTTP,
        origin: format!("http://{authority}"),
        authority: HeaderValue::try_from(authority).expect("a host"),
        port,
        host: host.to_owned(),
    }
}

/// An upstream of these endpoints, with room for one request.
pub(crate) fn config(endpoints: Vec<Endpoint>) -> Config {
    Config {
        name: "default".to_owned(),
        weights: vec![1; endpoints.len()],
        endpoints,
        affinity: Affinity::None,
        proxy: None,
        dns_refresh: LIMIT,
        max_connections: 1,
        max_requests: 1,
        queue: 0,
        queue_timeout: LIMIT,
        retry_statuses: Vec::new(),
        slow_start: Duration::ZERO,
        health: None,
        host: Host::Endpoint,
        connect_to: None,
        connect_timeout: LIMIT,
        handshake_timeout: LIMIT,
        response_timeout: LIMIT,
        body_idle_timeout: LIMIT,
        idle_timeout: LIMIT,
        max_head_size: 64 * 1024,
        http2: Http2::Auto,
        cookies: Cookies::Pass,
        tls: tls::Config::default(),
    }
}

/// The addresses of one worker's upstream, one for each port of 127.0.0.1.
pub(super) fn addresses(ports: &[u16]) -> Arc<Addresses> {
    let endpoints = ports.iter().map(|port| endpoint("127.0.0.1", *port));
    let config = Arc::new(config(endpoints.collect()));
    Arc::new(Addresses::new(config, 1, clock::system()))
}
