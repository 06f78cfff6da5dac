//! The data path: a request's life, on single-threaded workers.

pub(crate) mod connection;
mod error;
mod exchange;
mod forward;
mod framing;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handler;
pub mod message;
pub mod metrics;
pub mod policy;
mod route;
mod server;
mod worker;

use std::{
    io,
    pin::pin,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, uri::Scheme};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::{
    connection::limits::ConnectionLimiter,
    policy::{
        clients::{self, Clients},
        guard,
    },
};
pub use self::{
    message::{
        headers::ForwardedHeaders,
        judge::{Exhausted, Retry, RetryJson},
        urls::Rewrite,
    },
    metrics::Metrics,
    policy::{
        clients::{Client, Rate},
        guard::GuardConfig,
        rules::Rules,
    },
};
use crate::{
    net::{
        reload,
        socket::{Address, Bound},
        tls,
    },
    token::Credential,
    upstream,
};

/// What a listener with TLS offers, RFC 7301.
pub const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// A listener's TLS, as its files have it.
pub type Greeting = Arc<reload::Reloadable<rustls::ServerConfig>>;

/// The running data path.
#[derive(Debug)]
pub struct Proxy {
    stop: CancellationToken,
    workers: Vec<oneshot::Receiver<()>>,
    metrics: Arc<[Arc<Metrics>]>,
    keys: Arc<clients::Keys>,
}

impl Proxy {
    /// Starts the workers on the addresses bound for `config.listeners`, in that order, each with its
    /// TLS settings if it has any. Cancelling `stop` drains them.
    ///
    /// # Errors
    /// When the system refuses a socket or a thread, or the file of a client's key no longer is what it was.
    pub fn start(
        config: Config,
        bound: Vec<(Bound, Option<Greeting>)>,
        upstreams: Vec<upstream::Shared>,
        credential: Credential,
        token_wait: Duration,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let mut origins: Vec<String> = Vec::new();
        for endpoint in upstreams
            .iter()
            .flat_map(|upstream| &upstream.config().endpoints)
        {
            if !origins.contains(&endpoint.origin) {
                origins.push(endpoint.origin.clone());
            }
        }
        let clients =
            Clients::new(&config.clients, credential.clock()).map_err(io::Error::other)?;
        let keys = clients.keys();
        let shared = Arc::new(worker::Shared {
            clients: Arc::new(clients),
            upstreams,
            credential,
            token_wait,
            mark: mark()?,
            connection_limiter: Arc::new(ConnectionLimiter::new(&config.limits)),
            requests: AtomicUsize::new(0),
            kept: Arc::default(),
            config: Arc::new(config),
        });
        let workers = shared.config.workers;
        let mut listeners: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        for ((bound, greeting), listener) in bound.into_iter().zip(&shared.config.listeners) {
            let exposure = guard::exposure(bound.address());
            let scheme = if greeting.is_some() {
                Scheme::HTTPS
            } else {
                Scheme::HTTP
            };
            for (worker, seed) in listeners.iter_mut().zip(bound.into_listeners(workers)?) {
                let gate = guard::Guard::new(listener.guard.clone(), exposure, scheme.clone());
                worker.push((seed, gate, greeting.clone()));
            }
        }
        let metrics: Arc<[_]> = (0..workers)
            .map(|_| Arc::new(Metrics::new(&origins, &shared.config)))
            .collect();
        let workers = listeners.into_iter().zip(metrics.iter()).enumerate().map(
            |(index, (listeners, metrics))| {
                worker::start(
                    index,
                    Arc::clone(&shared),
                    Arc::clone(metrics),
                    listeners,
                    stop.clone(),
                )
            },
        );
        Ok(Self {
            workers: workers.collect::<io::Result<_>>()?,
            stop,
            metrics,
            keys,
        })
    }

    /// What follows files: the keys of clients.
    pub fn reloadable(&self) -> Arc<dyn reload::Reload> {
        Arc::<clients::Keys>::clone(&self.keys)
    }

    /// The numbers of each worker.
    pub fn metrics(&self) -> Arc<[Arc<Metrics>]> {
        Arc::clone(&self.metrics)
    }

    /// Resolves when a worker has ended by itself, after a panic in what carries all its requests.
    pub(crate) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let has_ended = |worker: &mut oneshot::Receiver<()>| pin!(worker).poll(cx).is_ready();
        if self.workers.iter_mut().any(has_ended) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Stops accepting and lets requests in flight finish, within `drain_timeout`.
    pub async fn drain(self) {
        self.stop.cancel();
        for worker in self.workers {
            // An error means that the worker is gone already.
            let _ = worker.await;
        }
    }
}

/// A name for this instance that nobody else has.
fn mark() -> io::Result<HeaderValue> {
    let random = getrandom::u64().map_err(io::Error::other)?;
    HeaderValue::try_from(format!("bearer-proxy-{random:016x}")).map_err(io::Error::other)
}

/// What the data path needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where apps reach us; at least one.
    pub listeners: Vec<Listener>,
    /// Single-threaded workers.
    pub workers: usize,
    /// What clients may take up.
    pub limits: Limits,
    /// Which forwarding fields the upstream sees.
    pub forwarded_headers: ForwardedHeaders,
    /// Limit for the first byte on a new connection.
    pub first_byte_timeout: Duration,
    /// Limit for a request's head, from its first byte.
    pub head_timeout: Duration,
    /// Limit for silence within a request's body, and for a client that does not take its answer.
    pub body_idle_timeout: Duration,
    /// Bytes a second that a client must send of its body on average, while it is waited for; 0: any. Measured over
    /// `body_idle_timeout`.
    pub min_body_rate: usize,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long nothing may move through an upgraded connection.
    pub tunnel_idle_timeout: Duration,
    /// How long to go on accepting after readiness is off, so that load balancers notice.
    pub drain_delay: Duration,
    /// Limit for requests in flight at shutdown.
    pub drain_timeout: Duration,
    /// When to refresh and send again.
    pub retry: Retry,
    /// Where requests go. What none of them matches goes to the plain `[upstream]`, with our token.
    pub routes: Vec<Route>,
    /// Addresses in answers that are brought home.
    pub rewrites: Vec<Rewrite>,
    /// Who may call; empty: everybody whom the guard lets in.
    pub clients: Vec<Client>,
    /// The last segments of the issuer's own paths, see [`rules::issuer_segment`].
    pub issuer_segments: Vec<String>,
    /// Which requests are logged.
    pub access_log: AccessLog,
}

/// What clients may take up. Numbers in all are for all workers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections, in all.
    pub connections: usize,
    /// Open connections from one IPv4 address or one /64 of IPv6. This machine's own are not counted.
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
    /// Streams of one HTTP/2 connection that may end in a reset, beyond as many as ended well.
    pub resets: usize,
    /// Frames of one HTTP/2 connection that carry nothing of a body, while nothing of its requests moves. Ten more a second.
    pub control_frames: usize,
}

/// One listening address and what may reach it.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Where to listen.
    pub address: Address,
    /// The local guard's exceptions.
    pub guard: GuardConfig,
    /// Certificate and key, if the listener speaks TLS.
    pub tls: Option<tls::ServerConfig>,
}

/// Requests that go to one upstream, in the same way. Chosen by host first, then by the longest prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The only host that it is for, in lower case, without a port; `None`: every host.
    pub host: Option<String>,
    /// The paths that it is for: this one and everything below it. Begins with `/`, does not end with one; `""` is every
    /// path.
    pub prefix: String,
    /// Position of its upstream in the configuration; 0 is the plain `[upstream]`.
    pub upstream: usize,
    /// Whether the upstream sees paths without the prefix.
    pub strip_prefix: bool,
    /// Whether requests get our token. Without it, an answer says nothing about the token either.
    pub inject: bool,
    /// Which paths may be asked for, as the upstream sees them.
    pub rules: Rules,
    /// Instead of the upstream's `response_timeout`.
    pub response_timeout: Option<Duration>,
    /// Instead of the upstream's `body_idle_timeout`.
    pub body_idle_timeout: Option<Duration>,
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
