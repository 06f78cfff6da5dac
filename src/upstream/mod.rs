//! Connections to the cloud: endpoints, dialling, pooling. Knows nothing of tokens.

mod connect;
mod http2;
mod pool;
mod sockets;

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use http::{HeaderValue, uri::Scheme};
use hyper::body::Body;
use rustls::pki_types::ServerName;

use self::{connect::Wanted, pool::Pool};
pub use self::{
    connect::{Error, upgraded},
    pool::{Counters, Lease, is_unprocessed},
    sockets::Sockets,
};
use crate::{
    base::ticker::Ticker,
    net::{reload, tls},
};

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

/// What all workers share of one upstream.
#[derive(Debug, Clone)]
pub struct Shared {
    config: Arc<Config>,
    greetings: Option<Arc<reload::Reloadable<TlsConfigs>>>,
    endpoints: Vec<SharedEndpoint>,
    sockets: Arc<Sockets>,
}

#[derive(Debug, Clone)]
struct SharedEndpoint {
    tls: Option<Tls>,
    /// Connections of all workers that carry a request.
    active: Arc<AtomicUsize>,
    sockets: Arc<Sockets>,
}

/// How to greet, and which name to send and to verify.
#[derive(Debug, Clone)]
struct Tls {
    greetings: Arc<reload::Reloadable<TlsConfigs>>,
    server_name: ServerName<'static>,
}

/// What the files of `tls` come to.
struct TlsConfigs {
    /// Offers what `http2` says.
    any: Arc<rustls::ClientConfig>,
    /// Offers HTTP/1.1 alone.
    http1: Arc<rustls::ClientConfig>,
}

/// Their names in the TLS handshake, RFC 7301.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why an upstream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A TLS file cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// There is no way to verify such a name.
    #[error("\"{0}\" is not a name that a TLS certificate can carry")]
    ServerName(String),
}

impl Shared {
    /// Reads the TLS files, if an endpoint needs them. `sockets` are those of all upstreams.
    ///
    /// # Errors
    /// When a TLS file or a server's name cannot be used.
    pub fn new(config: Config, sockets: &Arc<Sockets>) -> Result<Self, SetupError> {
        let needs_tls = config
            .endpoints
            .iter()
            .any(|endpoint| endpoint.scheme == Scheme::HTTPS);
        let greetings = needs_tls
            .then(|| TlsConfigs::following(&config))
            .transpose()?
            .map(Arc::new);
        let target = |endpoint: &Endpoint| -> Result<_, SetupError> {
            match &greetings {
                Some(greetings) if endpoint.scheme == Scheme::HTTPS => {
                    let name = config
                        .tls
                        .server_name
                        .clone()
                        .unwrap_or_else(|| endpoint.host.clone());
                    let server_name = ServerName::try_from(name.clone())
                        .map_err(|_| SetupError::ServerName(name))?;
                    Ok(Some(Tls {
                        greetings: Arc::clone(greetings),
                        server_name,
                    }))
                }
                _ => Ok(None),
            }
        };
        let endpoints = config
            .endpoints
            .iter()
            .map(|endpoint| {
                Ok(SharedEndpoint {
                    tls: target(endpoint)?,
                    active: Arc::default(),
                    sockets: Arc::clone(sockets),
                })
            })
            .collect::<Result<_, SetupError>>()?;
        Ok(Self {
            config: Arc::new(config),
            greetings,
            endpoints,
            sockets: Arc::clone(sockets),
        })
    }

    /// What was configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What follows the files of `tls`, if an endpoint needs them.
    pub fn reloadable(&self) -> Option<Arc<dyn reload::Reload>> {
        Some(Arc::clone(self.greetings.as_ref()?) as Arc<dyn reload::Reload>)
    }
}

impl TlsConfigs {
    fn following(config: &Config) -> Result<reload::Reloadable<Self>, tls::Error> {
        let name = format!("upstream:{}:client", config.name);
        let (tls, http2) = (config.tls.clone(), config.http2);
        let make = move || Self::new(&tls, http2);
        reload::Reloadable::new(
            name,
            config.tls.files(),
            config.tls.client_cert_file.clone(),
            make,
        )
    }

    fn new(config: &tls::Config, http2: Http2) -> Result<Self, tls::Error> {
        let any: &[&[u8]] = match http2 {
            Http2::Auto => &[HTTP2, HTTP1],
            Http2::Always => &[HTTP2],
            Http2::Never => &[HTTP1],
        };
        let any = tls::client_config(config, any)?;
        let mut http1 = any.clone();
        http1.alpn_protocols = vec![HTTP1.to_vec()];
        Ok(Self {
            any: Arc::new(any),
            http1: Arc::new(http1),
        })
    }
}

/// One worker's way to one upstream.
#[derive(Debug)]
pub struct Upstream<B> {
    shared: Shared,
    pools: Vec<Rc<Pool<B>>>,
    endpoint_index: Cell<usize>,
}

impl<B: Body + Unpin + 'static> Upstream<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Pools without a connection yet. `counters` gives the numbers of the endpoint at an origin.
    pub fn new(
        shared: Shared,
        ticker: &Rc<Ticker>,
        counters: impl Fn(&str) -> Arc<Counters>,
    ) -> Self {
        let pools = shared.config.endpoints.iter().zip(&shared.endpoints);
        let pools = pools
            .map(|(endpoint, shared_endpoint)| {
                let (ticker, counters) = (Rc::clone(ticker), counters(&endpoint.origin));
                Pool::new(
                    endpoint.clone(),
                    Arc::clone(&shared.config),
                    shared_endpoint.clone(),
                    ticker,
                    counters,
                )
            })
            .collect();
        Self {
            shared,
            pools,
            endpoint_index: Cell::new(0),
        }
    }

    /// What was configured.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Closes idle connections whenever somebody, in any worker, finds no place for a new one. Does not end by itself.
    pub fn shed_idle(&self) -> impl Future<Output = ()> + use<B> {
        let (pools, sockets) = (self.pools.clone(), Arc::clone(&self.shared.sockets));
        async move {
            loop {
                sockets.wanted().await;
                pools.iter().for_each(|pool| pool.close_idle());
            }
        }
    }

    /// Chooses the endpoint for the next attempt.
    pub fn endpoint_index(&self) -> EndpointIndex {
        let endpoint_index = self.endpoint_index.get();
        self.endpoint_index
            .set((endpoint_index + 1) % self.pools.len());
        EndpointIndex(endpoint_index)
    }

    /// Whether requests may become something else than HTTP: HTTP/2 does not allow it.
    pub fn takes_upgrades(&self) -> bool {
        self.shared.config.http2 != Http2::Always
    }

    /// A connection that has served before, to the endpoint whose turn it is.
    pub fn reuse(&self, endpoint_index: EndpointIndex, is_upgrade: bool) -> Option<Lease<B>> {
        self.pools[endpoint_index.0].reuse(wanted(is_upgrade))
    }

    /// A new connection, to the endpoint whose turn it is, or to the first one after it that can be reached.
    ///
    /// # Errors
    /// What the last endpoint answered.
    pub async fn dial(
        &self,
        endpoint_index: EndpointIndex,
        is_upgrade: bool,
    ) -> Result<Lease<B>, Error> {
        let mut tried = 0;
        loop {
            match self.pools[(endpoint_index.0 + tried) % self.pools.len()]
                .dial(wanted(is_upgrade))
                .await
            {
                Ok(lease) => return Ok(lease),
                Err(error) if tried + 1 == self.pools.len() => return Err(error),
                // The others have no other descriptors.
                Err(error @ Error::NoSocket { .. }) => return Err(error),
                Err(error) => tracing::debug!(%error, "trying the next endpoint"),
            }
            tried += 1;
        }
    }
}

fn wanted(is_upgrade: bool) -> Wanted {
    if is_upgrade {
        Wanted::Http1
    } else {
        Wanted::Any
    }
}

/// An endpoint that was chosen for an attempt.
#[derive(Debug, Clone, Copy)]
pub struct EndpointIndex(usize);
