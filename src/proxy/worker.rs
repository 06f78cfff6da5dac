//! A worker's state, reached by everything that runs on its thread. Nothing of the data path is
//! shared with other workers but a few relaxed counters.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use http::{Extensions, HeaderValue, StatusCode, request, response};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::{Notify, mpsc};

use crate::{
    base::{
        clock::{Moment, SharedClock},
        labels::PerLabel,
        per_second::PerSecond,
        ticker::Ticker,
    },
    proxy::{
        config::AccessLog,
        connection::{
            limits::{ConnectionLimiter, ConnectionSlot},
            lingering::UnreadBody,
            state::{ConnState, ExchangeState},
        },
        error::{Error, RejectionReason},
        exchange::{Exchange, Peer, request_body::AttemptBody},
        message::{
            forwarded::ClientConnection,
            observed::{self, Observer},
        },
        metrics::{ConnectionRejection, Metrics},
        policy::clients::ClientId,
        route::Route,
        settings::{Settings, View},
        token_source::TokenSource,
    },
    token::Credential,
    upstream::{self, Upstream},
};

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// With which a worker begins.
    pub(crate) settings: Arc<Settings>,
    pub(crate) upstreams: Vec<upstream::Shared>,
    pub(crate) credentials: Vec<Credential>,
    pub(crate) clock: SharedClock,
    /// Marks requests that have passed this instance, RFC 8586.
    pub(crate) loop_id: HeaderValue,
    pub(crate) connection_limiter: Arc<ConnectionLimiter>,
    /// Requests under way.
    pub(crate) requests: AtomicUsize,
    /// Bytes that are kept for sending again.
    pub(crate) kept: Arc<AtomicUsize>,
    /// Origins that were reported by [`Worker::other_scheme`].
    pub(crate) other_schemes: Mutex<BTreeSet<String>>,
}

/// One worker's state.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    view: RefCell<Rc<View>>,
    pub(crate) clock: SharedClock,
    /// In the order of the configuration.
    pub(crate) upstreams: Vec<Upstream<AttemptBody>>,
    /// In the order of the configuration.
    pub(crate) token_sources: Vec<TokenSource>,
    pub(crate) ticker: Rc<Ticker>,
    pub(crate) metrics: Arc<Metrics>,
    /// A copy of its own, as with tokens.
    pub(crate) loop_id: HeaderValue,
    draining: Arc<AtomicBool>,
    connections: RefCell<Slab<ConnState>>,
    all_closed: Notify,
    pub(crate) lingering: mpsc::UnboundedSender<UnreadBody>,
    rejections_logged: PerLabel<RejectionReason, PerSecond>,
    connections_logged: PerLabel<ConnectionRejection, PerSecond>,
    requests_logged: PerSecond,
    responses_observed: PerSecond,
    /// The spelling of field names in messages that did not come over HTTP/1.
    pub(crate) usual_names: Extensions,
}

impl Worker {
    /// `position` is that among the workers.
    pub(crate) fn new(
        position: usize,
        shared: Arc<Shared>,
        metrics: Arc<Metrics>,
        usual_names: Extensions,
    ) -> (Rc<Self>, mpsc::UnboundedReceiver<UnreadBody>) {
        let ticker = Ticker::new();
        let upstreams = shared.upstreams.iter().map(|shared| {
            Upstream::new(shared.clone(), position, &ticker, |origin| {
                metrics.endpoints.get(origin)
            })
        });
        let waits = shared
            .settings
            .config
            .credentials
            .iter()
            .map(|config| config.wait);
        let token_sources = shared.credentials.iter().cloned().zip(waits);
        let (lingering, unread_bodies) = mpsc::unbounded_channel();
        let draining = Arc::default();
        let view = View::new(&shared.settings, &metrics, &draining);
        let worker = Rc::new(Self {
            view: RefCell::new(Rc::new(view)),
            clock: Arc::clone(&shared.clock),
            upstreams: upstreams.collect(),
            token_sources: token_sources
                .map(|(credential, wait)| TokenSource::new(credential, wait))
                .collect(),
            ticker,
            metrics,
            loop_id: HeaderValue::from_bytes(shared.loop_id.as_bytes())
                .unwrap_or_else(|_| shared.loop_id.clone()),
            draining,
            connections: RefCell::default(),
            all_closed: Notify::new(),
            lingering,
            rejections_logged: PerLabel::default(),
            connections_logged: PerLabel::default(),
            requests_logged: PerSecond::default(),
            responses_observed: PerSecond::default(),
            usual_names,
            shared,
        });
        (worker, unread_bodies)
    }

    /// The settings as they are now. A request takes them once.
    pub(crate) fn view(&self) -> Rc<View> {
        Rc::clone(&self.view.borrow())
    }

    /// The upstream of a route.
    pub(crate) fn upstream(&self, route: &Route) -> &Upstream<AttemptBody> {
        &self.upstreams[route.upstream]
    }

    /// Where a route's requests get their token from; `None` if they carry none.
    pub(crate) fn token_source(&self, route: &Route) -> Option<&TokenSource> {
        route
            .credential
            .map(|position| &self.token_sources[position])
    }

    /// What the parts of an exchange share, for a connection or one of its streams.
    pub(crate) fn exchange(&self, peer: &Rc<Peer>, state: ExchangeState) -> Rc<Exchange> {
        let view = self.view();
        Rc::new(Exchange {
            peer: Rc::clone(peer),
            state,
            upstream_deadline: self.ticker.deadline(),
            timeouts: Cell::new(view.routes.default_timeouts()),
            lingering: self.lingering.clone(),
            view: RefCell::new(view),
            caller: Cell::default(),
            permit: Cell::default(),
            tunnel: RefCell::default(),
        })
    }

    /// Takes one of the slots for connections.
    pub(crate) fn connection_slot(&self) -> Result<ConnectionSlot, ConnectionRejection> {
        self.shared.connection_limiter.acquire(&self.metrics)
    }

    /// Rejects a request when too many are under way, this one included.
    pub(crate) fn admit(&self, limit: usize) -> Result<(), Error> {
        if self.shared.requests.load(Relaxed) > limit {
            Err(Error::Overloaded)
        } else {
            Ok(())
        }
    }

    /// Counts a connection that is closed or not accepted, and logs it: each reason at most once a
    /// second.
    pub(crate) fn connection_rejected(&self, reason: ConnectionRejection) {
        self.connection_failed(reason, None, None);
    }

    /// The same, with what is known about it.
    pub(crate) fn connection_failed(
        &self,
        reason: ConnectionRejection,
        peer: Option<SocketAddr>,
        error: Option<&dyn fmt::Display>,
    ) {
        self.metrics.connections_rejected[reason].add(1);
        if self.connections_logged[reason].allows(1, self.clock.now()) {
            let (peer, error) = (
                peer.map(tracing::field::display),
                error.map(tracing::field::display),
            );
            tracing::warn!(peer, error, rule = reason.label(), "{}", reason.message());
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Enters a connection into the list that draining goes through, until what is returned is
    /// dropped.
    pub(crate) fn register(self: &Rc<Self>, connection: ConnState) -> Registered {
        let key = self.connections.borrow_mut().insert(connection);
        Registered {
            worker: Rc::clone(self),
            key,
        }
    }

    /// Lets requests under way finish, within `drain_timeout`. Accepting has stopped.
    pub(crate) async fn drain(&self) {
        self.draining.store(true, Relaxed);
        // The listeners' queues are emptied by their own tasks, which the same signal has woken.
        tokio::task::yield_now().await;
        for (_, connection) in &*self.connections.borrow() {
            connection.drain();
        }
        let closed = async {
            while !self.connections.borrow().is_empty() {
                self.all_closed.notified().await;
            }
        };
        let limit = self.view().config().drain_timeout;
        if tokio::time::timeout(limit, closed).await.is_err() {
            let open = self.connections.borrow().len();
            tracing::warn!(
                open,
                "connections are closed with requests under way: proxy.drain_timeout has passed"
            );
        }
    }

    /// Counts and logs a response of this proxy's own, each reason at most once a second.
    pub(crate) fn rejected(
        &self,
        view: &View,
        error: &Error,
        exchange: &Exchange,
        client: &ClientConnection,
    ) {
        let reason = error.reason();
        self.metrics.rejected[reason].add(1);
        if self.rejections_logged[reason].allows(1, self.clock.now()) {
            let peer = client.address().known().map(tracing::field::display);
            let caller = exchange.caller.get();
            let client = caller.map(|caller| view.clients().name(caller));
            let status = error.status().as_u16();
            tracing::warn!(peer, client, status, rule = reason.label(), "{error}");
        }
    }

    /// Counts a response and, where the access log wants it, logs it. The query is left out: it may
    /// hold a secret.
    pub(crate) fn responded(&self, view: &View, entry: &AccessEntry<'_>) {
        let AccessEntry {
            route,
            caller,
            client,
            request,
            status,
            received,
        } = *entry;
        view.route_counters(route).count(status);
        if let Some(caller) = caller {
            view.client_counters(caller).count(status);
        }
        let is_logged = match view.config().access_log {
            AccessLog::Off => false,
            AccessLog::All => true,
            AccessLog::Sampled => self.is_sampled(status, received),
        };
        if is_logged {
            let millis = self.clock.now().saturating_since(received).as_secs_f64() * 1000.0;
            let (method, path) = (&request.method, request.uri.path());
            let peer = client.address().known().map(tracing::field::display);
            let client = caller.map(|caller| view.clients().name(caller));
            let status = status.as_u16();
            tracing::info!(
                target: "bearer_proxy::access",
                peer, client, %method, path, status, millis, "request"
            );
        }
    }

    /// What reads a response while it passes; a few each second.
    pub(crate) fn observer(
        &self,
        head: &response::Parts,
        received: Moment,
    ) -> Option<Box<Observer>> {
        const LIMIT: u32 = observed::MAX_PER_SECOND;
        let observed = &self.responses_observed;
        // Most responses of a busy worker need no look at their heads.
        let is_observed = !observed.is_used_up(LIMIT, received)
            && Observer::applies_to(head)
            && observed.allows(LIMIT, self.clock.now());
        is_observed.then(Box::default)
    }

    /// A response that was observed has passed.
    pub(crate) fn observed(&self, view: &View, observer: &Observer) {
        observer.record(
            &self.metrics.observed,
            view.config().retry.json.as_ref(),
            &view.url_map,
            self.clock.wall(),
        );
    }

    /// Reports an origin in responses that differs from a configured one by its scheme alone, once
    /// for all workers. Called once per worker and origin.
    pub(crate) fn other_scheme(&self, found: &str, configured: &str) {
        let now = self.clock.wall();
        self.metrics.observed.other_scheme(found, now);
        if self.shared.other_schemes.lock().insert(found.to_owned()) {
            tracing::warn!(
                found,
                configured,
                "the upstream sends URLs of its own origin with another scheme: they are mapped to \
                 the proxy as well; if requests are redirected again and again, write this origin \
                 in upstream.endpoints or [[rewrite]]"
            );
        }
    }

    /// A few each second: half of them are kept for server errors.
    fn is_sampled(&self, status: StatusCode, received: Moment) -> bool {
        const MAX_PER_SECOND: u32 = 10;
        self.requests_logged.allows(
            if status.is_server_error() {
                MAX_PER_SECOND
            } else {
                MAX_PER_SECOND / 2
            },
            received,
        )
    }
}

/// A response, as the access log and the counters see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AccessEntry<'a> {
    pub(crate) route: &'a Route,
    pub(crate) caller: Option<ClientId>,
    pub(crate) client: &'a ClientConnection,
    pub(crate) request: &'a request::Parts,
    pub(crate) status: StatusCode,
    pub(crate) received: Moment,
}

/// A connection's entry in the worker's list, removed however the connection ends.
#[derive(Debug)]
pub(crate) struct Registered {
    worker: Rc<Worker>,
    key: usize,
}

impl Registered {
    /// Replaces the connection's state, once its protocol is known.
    pub(crate) fn replace(&self, connection: ConnState) {
        self.worker.connections.borrow_mut()[self.key] = connection;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut connections = self.worker.connections.borrow_mut();
        connections.remove(self.key);
        if connections.is_empty() {
            self.worker.all_closed.notify_one();
        }
    }
}
