//! Connections to upstreams. Independent of tokens and of what requests mean.
//!
//! | file | contents |
//! |---|---|
//! | `config` | the configuration of an upstream: endpoints, timeouts, HTTP version, cookies |
//! | `shared` | what all workers share of an upstream: TLS configuration, addresses |
//! | `addresses` | the list of addresses, requests in flight to each, the queue when all are full |
//! | `health` | whether an address gets requests: a state machine of failures and returns |
//! | `upkeep` | the task that resolves names, checks addresses, and brings them back |
//! | `check` | one active health check |
//! | `status` | a snapshot of all this, for the admin endpoint |
//! | `choice` | a worker's copy of the list; the address of a request |
//! | `balance` | the rule of the choice |
//! | `budget` | how many requests may be sent again |
//! | `handle` | an address as one worker uses it, and a request's count there |
//! | `sockets` | the limit of open sockets to all upstreams |
//! | `counters` | the metrics of an endpoint |
//! | `dial` | a connection to the first address that accepts one |
//! | `connect` | TCP and TLS handshake, ALPN; the I/O object that hyper uses |
//! | `response_head` | repairs the heads of HTTP/1 responses before hyper reads them |
//! | `expect` | how an endpoint treats `Expect: 100-continue` |
//! | `http2` | an HTTP/2 connection and its streams |
//! | `pool` | one worker's connections to one address; a `Lease` is the use of one by a request |

mod addresses;
mod balance;
mod budget;
mod check;
mod choice;
mod config;
mod connect;
mod counters;
mod dial;
mod expect;
mod handle;
mod health;
mod http2;
mod pool;
mod response_head;
mod shared;
mod sockets;
mod status;
#[cfg(test)]
pub(crate) mod testing;
mod upkeep;

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use hyper::body::Body;

pub use self::{
    addresses::{AddressId, affinity_key},
    choice::{Place, Visited},
    config::{Affinity, Config, Cookies, Endpoint, HealthCheck, Host, Http2},
    connect::{Error, upgraded},
    counters::{Counters, Failure},
    dial::Dial,
    expect::ExpectSupport,
    health::{Reason, State},
    pool::{Lease, Loss, Reservation, is_malformed, is_unprocessed},
    shared::{SetupError, Shared},
    sockets::Sockets,
    status::{AddressStatus, EndpointStatus, Status},
};
use self::{budget::RetryBudget, choice::LocalSet, connect::HttpVersions};
use crate::base::ticker::Ticker;

/// One worker's connections to one upstream.
#[derive(Debug)]
pub struct Upstream<B> {
    shared: Shared,
    local: Rc<RefCell<LocalSet<B>>>,
    budget: Rc<RetryBudget>,
}

impl<B: Body + Unpin + 'static> Upstream<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// No connection yet. `worker` is the position of the worker, `counters` returns the counters of
    /// the endpoint with an origin.
    pub fn new(
        shared: Shared,
        worker: usize,
        ticker: &Rc<Ticker>,
        counters: impl Fn(&str) -> Arc<Counters>,
    ) -> Self {
        let endpoints = shared.config.endpoints.iter();
        let counters = endpoints.map(|endpoint| counters(&endpoint.origin));
        let local = LocalSet::new(worker, ticker, counters.collect());
        Self {
            budget: Rc::new(RetryBudget::new(shared.addresses.now())),
            shared,
            local: Rc::new(RefCell::new(local)),
        }
    }

    /// The configuration of the upstream.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Closes idle connections each time a worker waits for a socket. Never completes.
    pub fn shed_idle(&self) -> impl Future<Output = ()> + use<B> {
        let (local, sockets) = (Rc::clone(&self.local), Arc::clone(&self.shared.sockets));
        async move {
            loop {
                sockets.exhausted().await;
                local.borrow().close_idle();
            }
        }
    }

    /// Moves the retry budget on. Never completes.
    pub fn move_budget(&self) -> impl Future<Output = ()> + use<B> {
        let (budget, addresses) = (Rc::clone(&self.budget), Arc::clone(&self.shared.addresses));
        async move {
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                seconds.tick().await;
                budget.tick(addresses.now());
            }
        }
    }

    /// Counts a request, which allows for a part of a retry.
    pub fn count_request(&self) {
        self.budget.request();
    }

    /// Takes one retry from the budget, if there is one.
    pub fn may_retry(&self) -> bool {
        self.budget.try_take(self.shared.addresses.now())
    }

    /// Whether HTTP/1.1 upgrades (RFC 9110 §7.8) are possible: HTTP/2 has none.
    pub fn supports_upgrade(&self) -> bool {
        self.shared.config.http2 != Http2::Always
    }
}

fn versions(is_upgrade: bool) -> HttpVersions {
    if is_upgrade {
        HttpVersions::Http1
    } else {
        HttpVersions::Any
    }
}
