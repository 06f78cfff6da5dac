//! Connections to the cloud: endpoints, dialling, pooling. Knows nothing of tokens.

mod config;
mod connect;
mod http2;
mod pool;
mod shared;
mod slots;
mod sockets;

use std::{cell::Cell, rc::Rc, sync::Arc};

use hyper::body::Body;

pub use self::{
    config::{Config, Cookies, Endpoint, Host, Http2},
    connect::{Error, upgraded},
    pool::{Lease, Reservation, is_unprocessed},
    shared::{SetupError, Shared},
    slots::Counters,
    sockets::Sockets,
};
use self::{connect::Wanted, pool::Pool};
use crate::base::ticker::Ticker;

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
