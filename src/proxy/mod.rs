//! The data path: requests and responses, on single-threaded workers.
//!
//! # Folders and files
//!
//! Each may import from itself and from those below it; `tests/layering.rs` holds the order.
//!
//! | module | purpose |
//! |---|---|
//! | `runtime.rs` | a worker's thread: start, run, drain |
//! | `server/` | the client's side: listeners, HTTP/1, HTTP/2, tunnels |
//! | `handler.rs` | a request's life on one page |
//! | `forward/` | one attempt, its response on the way back, the replay after a rejection |
//! | `worker.rs` | what one worker owns |
//! | `token_source.rs` | the worker's way to a credential |
//! | `exchange.rs`, `exchange/` | what the parts of one exchange share: the request's body, its recording, the gate |
//! | `settings.rs` | the configuration as one value, and each worker's view of it |
//! | `connection/` | one client connection: socket, deadlines, state, limits |
//! | `metrics.rs` | the counters of one worker |
//! | `config.rs`, `route.rs` | what is configured; which upstream a request goes to |
//! | `message/` | heads and bodies: what is read from them, and what is changed |
//! | `policy/` | which requests are served: the guard, path rules, clients, CORS |
//! | `error.rs` | the error responses of this proxy's own |
//! | `framing.rs` | the strict reading of HTTP/1.1 messages |
//!
//! # The life of a connection
//!
//! `server/listener.rs` accepts it, if `connection/limits.rs` has a slot, reads the PROXY header of
//! a load balancer, and performs the TLS handshake. `server/connection.rs` finds out the protocol
//! (ALPN, or the HTTP/2 preface), then `server/http1.rs` or `server/http2.rs` serves it with hyper.
//! `connection/state.rs` sets the deadlines for the client's next moves. After a 101
//! `server/tunnel.rs` carries bytes both ways. Draining closes it after its request under way, or
//! after a grace if there is none.
//!
//! # The life of a request
//!
//! `handler.rs`: accept → forwarding fields → guard → client → path rules → token → attempt → judge
//! → (refresh → replay) → response → counters. What goes out is built by `message/headers.rs`, which
//! injects the token last; what comes back passes `forward/response.rs` and
//! `forward/response_body.rs`.

mod config;
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
mod runtime;
mod server;
mod settings;
mod token_source;
mod worker;

use std::{
    io,
    pin::pin,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll},
};

use http::HeaderValue;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use self::{
    config::{AccessLog, Config, CredentialConfig, Limits, Listener, ServerTls},
    message::{
        forwarded::ForwardedHeaders,
        judge::{Exhausted, Retry, RetryJson},
        urls::Rewrite,
    },
    metrics::Metrics,
    policy::{
        clients::{Client, Rate},
        guard::GuardConfig,
        rules::Rules,
        trusted::{TrustedNetworks, TrustedPeer},
    },
    route::RouteConfig as Route,
};
use self::{
    connection::limits::ConnectionLimiter,
    policy::clients::{self, Clients},
    runtime::WorkerListener,
    settings::Settings,
};
use crate::{
    base::clock::SharedClock,
    net::{reload, socket::Bound},
    token::Credential,
    upstream,
};

/// What a listener with TLS offers, RFC 7301.
pub const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// The running workers.
#[derive(Debug)]
pub struct Proxy {
    stop: CancellationToken,
    workers: Vec<oneshot::Receiver<()>>,
    metrics: Arc<[Arc<Metrics>]>,
    keys: Arc<clients::Keys>,
}

impl Proxy {
    /// Starts the workers on what was bound for `config.listeners`, in that order, each with its TLS
    /// if it speaks that, with `credentials` in the order of `config.credentials`. Of
    /// `max_connections` and `config.limits.connections` the smaller holds. Cancelling `stop` drains
    /// the workers.
    ///
    /// # Errors
    /// When the system refuses a socket or a thread, or the file of a client's key has become
    /// unusable.
    pub fn start(
        config: Config,
        bound: Vec<(Bound, Option<ServerTls>)>,
        upstreams: Vec<upstream::Shared>,
        credentials: Vec<Credential>,
        clock: SharedClock,
        max_connections: usize,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let clients = Clients::new(&config.clients, &clock).map_err(io::Error::other)?;
        let keys = clients.keys();
        let (workers, limits) = (config.workers, config.limits);
        let settings = Settings {
            clients: Arc::new(clients),
            upstreams: upstreams
                .iter()
                .map(|upstream| upstream.config().clone())
                .collect(),
            addresses: bound
                .iter()
                .map(|(bound, _)| bound.address().clone())
                .collect(),
            config,
        };
        let shared = Arc::new(worker::Shared {
            settings: Arc::new(settings),
            upstreams,
            credentials,
            clock,
            loop_id: loop_id()?,
            connection_limiter: Arc::new(ConnectionLimiter::new(
                max_connections.min(limits.connections),
                limits.connections_per_address,
            )),
            requests: AtomicUsize::new(0),
            kept: Arc::default(),
            other_schemes: parking_lot::Mutex::default(),
        });
        let mut listeners: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        for (position, (bound, tls)) in bound.into_iter().enumerate() {
            for (worker, socket) in listeners.iter_mut().zip(bound.into_listeners(workers)?) {
                worker.push(WorkerListener {
                    position,
                    socket,
                    tls: tls.clone(),
                });
            }
        }
        let metrics: Arc<[_]> = (0..workers).map(|_| Arc::<Metrics>::default()).collect();
        let workers = listeners.into_iter().zip(metrics.iter()).enumerate();
        let workers = workers.map(|(index, (listeners, metrics))| {
            let (shared, metrics) = (Arc::clone(&shared), Arc::clone(metrics));
            runtime::start(index, shared, metrics, listeners, stop.clone())
        });
        Ok(Self {
            workers: workers.collect::<io::Result<_>>()?,
            stop,
            metrics,
            keys,
        })
    }

    /// What follows its files: the keys of clients.
    pub fn reloadable(&self) -> Arc<dyn reload::Reload> {
        Arc::<clients::Keys>::clone(&self.keys)
    }

    /// The counters of each worker.
    pub fn metrics(&self) -> Arc<[Arc<Metrics>]> {
        Arc::clone(&self.metrics)
    }

    /// Resolves when a worker has ended by itself, after a panic in a task that serves all its requests.
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
            // An error means that the worker has ended already.
            let _ = worker.await;
        }
    }
}

/// A random name for this instance.
fn loop_id() -> io::Result<HeaderValue> {
    let random = getrandom::u64().map_err(io::Error::other)?;
    HeaderValue::try_from(format!("bearer-proxy-{random:016x}")).map_err(io::Error::other)
}
