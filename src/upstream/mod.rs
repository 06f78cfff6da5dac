//! Connections to upstreams. Independent of tokens and of what requests mean.
//!
//! | file | contents |
//! |---|---|
//! | `config` | the configuration of an upstream: endpoints, timeouts, HTTP version, cookies |
//! | `shared` | what all workers share of an upstream: TLS configuration, number of connections |
//! | `balance` | the choice of the address for a request: weights, load, affinity |
//! | `health` | whether an address is in use: ejection and return, slow start |
//! | `budget` | how many requests may be sent again |
//! | `sockets` | the limit of open sockets to all upstreams |
//! | `slots` | `max_connections` of an endpoint, and the metrics of its connections |
//! | `connect` | resolve, TCP and TLS handshake, ALPN; the I/O object that hyper uses |
//! | `response_head` | repairs the heads of HTTP/1 responses before hyper reads them |
//! | `expect` | how an endpoint treats `Expect: 100-continue` |
//! | `http2` | an HTTP/2 connection and its streams |
//! | `pool` | one worker's connections to one endpoint; a `Lease` is the use of one by a request |

mod balance;
mod budget;
mod config;
mod connect;
mod expect;
mod health;
mod http2;
mod pool;
mod response_head;
mod shared;
mod slots;
mod sockets;

use std::{cell::Cell, rc::Rc, sync::Arc};

use hyper::body::Body;

pub use self::{
    config::{Config, Cookies, Endpoint, Host, Http2},
    connect::{Error, upgraded},
    expect::ExpectSupport,
    pool::{Lease, Reservation, is_malformed, is_unprocessed},
    shared::{SetupError, Shared},
    slots::Counters,
    sockets::Sockets,
};
use self::{connect::HttpVersions, pool::Pool};
use crate::base::ticker::Ticker;

/// One worker's pools of connections to one upstream.
#[derive(Debug)]
pub struct Upstream<B> {
    shared: Shared,
    pools: Vec<Rc<Pool<B>>>,
    /// The endpoint of the next attempt (round-robin).
    next: Cell<usize>,
}

/// The endpoint that was selected for an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointIndex(usize);

/// Which connection an attempt uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionChoice {
    /// A pooled one to this endpoint, or a new one.
    Any(EndpointIndex),
    /// A new one to this endpoint.
    New(EndpointIndex),
}

impl ConnectionChoice {
    /// The endpoint.
    pub fn endpoint(self) -> EndpointIndex {
        let (Self::Any(endpoint) | Self::New(endpoint)) = self;
        endpoint
    }
}

impl<B: Body + Unpin + 'static> Upstream<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Empty pools. `counters` returns the counters of the endpoint with an origin.
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
            next: Cell::new(0),
        }
    }

    /// The configuration of the upstream.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Closes idle connections each time a worker waits for a socket. Never completes.
    pub fn shed_idle(&self) -> impl Future<Output = ()> + use<B> {
        let (pools, sockets) = (self.pools.clone(), Arc::clone(&self.shared.sockets));
        async move {
            loop {
                sockets.exhausted().await;
                pools.iter().for_each(|pool| pool.close_idle());
            }
        }
    }

    /// Selects the endpoint for the next attempt (round-robin).
    pub fn next_endpoint(&self) -> EndpointIndex {
        let index = self.next.get();
        self.next.set((index + 1) % self.pools.len());
        EndpointIndex(index)
    }

    /// A connection that leads elsewhere than this one: to the next endpoint, or, where there is
    /// only one, a new one, which a load balancer may connect to another server.
    pub fn elsewhere(&self, lease: &Lease<B>) -> ConnectionChoice {
        let used = self.pools.iter().position(|pool| lease.is_of(pool));
        let next = used.map_or(0, |used| (used + 1) % self.pools.len());
        if self.pools.len() == 1 {
            ConnectionChoice::New(EndpointIndex(next))
        } else {
            ConnectionChoice::Any(EndpointIndex(next))
        }
    }

    /// Whether HTTP/1.1 upgrades (RFC 9110 §7.8) are possible: HTTP/2 has none.
    pub fn supports_upgrade(&self) -> bool {
        self.shared.config.http2 != Http2::Always
    }

    /// A pooled connection to the selected endpoint. An upgrade needs HTTP/1.1.
    pub fn reuse(&self, endpoint: EndpointIndex, is_upgrade: bool) -> Option<Lease<B>> {
        self.pools[endpoint.0].reuse(versions(is_upgrade))
    }

    /// A new connection to the selected endpoint, or to the first one after it that accepts a
    /// connection. Requests that dial at the same time share an HTTP/2 connection, unless
    /// [`ConnectionChoice::New`] wants one that no other request has opened.
    ///
    /// # Errors
    /// That of the last endpoint.
    pub async fn dial(
        &self,
        choice: ConnectionChoice,
        is_upgrade: bool,
    ) -> Result<Lease<B>, Error> {
        let endpoint = choice.endpoint();
        let mut tried = 0;
        loop {
            let pool = &self.pools[(endpoint.0 + tried) % self.pools.len()];
            let versions = versions(is_upgrade);
            let dialled = match choice {
                ConnectionChoice::Any(_) => pool.dial(versions).await,
                ConnectionChoice::New(_) => pool.dial_alone(versions).await,
            };
            match dialled {
                Ok(lease) => return Ok(lease),
                Err(error) if tried + 1 == self.pools.len() => return Err(error),
                // The limit is common to all endpoints.
                Err(error @ Error::NoSocket { .. }) => return Err(error),
                Err(error) => tracing::debug!(%error, "trying the next endpoint"),
            }
            tried += 1;
        }
    }
}

fn versions(is_upgrade: bool) -> HttpVersions {
    if is_upgrade {
        HttpVersions::Http1
    } else {
        HttpVersions::Any
    }
}
