//! A worker: one thread, one single-threaded runtime, its own listeners, connections and pools. Nothing of the data path is
//! shared with other workers but a few relaxed counters.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    fmt,
    future::pending,
    io,
    net::SocketAddr,
    panic,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use http::{HeaderName, HeaderValue, StatusCode, request, response};
use slab::Slab;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{
        clock::{Moment, SharedClock},
        per_second::PerSecond,
        ticker::{Ticker, Ticks},
    },
    net::socket::UnregisteredListener,
    proxy::{
        AccessLog, Config, Greeting,
        connection::{
            limits::{ConnectionLimiter, ConnectionSlot},
            lingering::{self, UnreadBody},
            state as monitor,
            state::ConnState,
        },
        error::{self, Error},
        exchange::{Carrier, Exchange, Peer, recording, request_body::AttemptBody},
        message::{cache_control::CachePolicy, observed as seen, observed::Observer, urls::UrlMap},
        metrics::{CONNECTION_REJECTIONS, ConnectionRejection, Metrics},
        policy::{
            clients::{ClientId, Clients},
            guard::Guard,
        },
        route::{Route, Routes},
        server::listener::accept,
    },
    token::{Credential, Token},
    upstream::{self, Endpoint, Upstream},
};

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) upstreams: Vec<upstream::Shared>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) credential: Credential,
    pub(crate) token_wait: Duration,
    /// By which a request is recognised that has been here before.
    pub(crate) mark: HeaderValue,
    /// Of client connections.
    pub(crate) connection_limiter: Arc<ConnectionLimiter>,
    /// Requests under way.
    pub(crate) requests: AtomicUsize,
    /// Bytes that are kept for sending again.
    pub(crate) kept: Arc<AtomicUsize>,
}

/// One worker's state, reached by everything that runs on its thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: Arc<Config>,
    pub(crate) credential: Credential,
    pub(crate) token_wait: Duration,
    pub(crate) clock: SharedClock,
    token: RefCell<Option<Rc<LocalToken>>>,
    /// In the order of the configuration.
    pub(crate) upstreams: Vec<Upstream<AttemptBody>>,
    pub(crate) routes: Routes,
    pub(crate) rewrites: Rc<UrlMap>,
    pub(crate) clients: Arc<Clients>,
    /// Who may keep answers for others.
    pub(crate) privacy: CachePolicy,
    pub(crate) ticker: Rc<Ticker>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Arc<monitor::Timeouts>,
    pub(crate) tunnel_idle: Ticks,
    pub(crate) recording: recording::ReplayLimits,
    pub(crate) mark: HeaderValue,
    /// Fields of requests that are for us alone.
    pub(crate) stripped: Rc<[HeaderName]>,
    connections: RefCell<Slab<Arc<ConnState>>>,
    all_closed: Notify,
    pub(crate) lingering: mpsc::UnboundedSender<UnreadBody>,
    reported: [PerSecond; error::LABELS.len()],
    connections_reported: [PerSecond; CONNECTION_REJECTIONS.len()],
    sampled: PerSecond,
    observed_rate: PerSecond,
}

/// A token as this worker carries it: with a copy of its own of the header, so that taking it touches no memory that other
/// workers write.
#[derive(Debug)]
pub(crate) struct LocalToken {
    token: Arc<Token>,
    header: HeaderValue,
}

impl LocalToken {
    fn new(token: &Arc<Token>) -> Self {
        Self {
            token: Arc::clone(token),
            header: token.header_copy(),
        }
    }

    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }
}

impl std::ops::Deref for LocalToken {
    type Target = Token;

    fn deref(&self) -> &Token {
        &self.token
    }
}

/// Starts a worker on a thread of its own. What is returned resolves when it has ended.
///
/// # Errors
/// When the system refuses a thread or what a runtime needs.
pub(crate) fn start(
    index: usize,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    listeners: Vec<(UnregisteredListener, Guard, Option<Greeting>)>,
    stop: CancellationToken,
) -> io::Result<oneshot::Receiver<()>> {
    let (ended, has_ended) = oneshot::channel();
    let (built, is_built) = std::sync::mpsc::channel();
    thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(Default::default())
            {
                Ok(runtime) => runtime,
                Err(error) => return drop(built.send(Err(error))),
            };
            drop(built.send(Ok(())));
            runtime.block_on(run(shared, metrics, listeners, stop));
            // Not a plain drop: that would wait for a look-up of a name that takes for ever.
            runtime.shutdown_background();
            // Nobody may be waiting any more.
            let _ = ended.send(());
        })?;
    is_built.recv().map_err(io::Error::other)??;
    Ok(has_ended)
}

async fn run(
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    listeners: Vec<(UnregisteredListener, Guard, Option<Greeting>)>,
    stop: CancellationToken,
) {
    let (worker, unread_bodies) = Worker::new(shared, metrics);
    // Without any of these the worker is of no use.
    let mut lasting = JoinSet::new();
    lasting.spawn_local(Rc::clone(&worker.ticker).run());
    lasting.spawn_local(lingering::read_out(unread_bodies));
    for upstream in &worker.upstreams {
        lasting.spawn_local(upstream.shed_idle());
    }
    for (seed, gate, greeting) in listeners {
        match seed.register() {
            Ok(listener) => {
                lasting.spawn_local(accept(
                    Rc::clone(&worker),
                    listener,
                    Rc::new(gate),
                    greeting,
                    stop.clone().cancelled_owned(),
                ));
            }
            Err(error) => tracing::error!(%error, "a worker cannot listen"),
        }
    }
    tokio::select! {
        () = stop.cancelled() => {}
        panic = panic_of(&mut lasting) => panic::resume_unwind(panic),
    }
    worker.drain().await;
}

/// Waits for a panic, and for nothing else.
async fn panic_of(tasks: &mut JoinSet<()>) -> Box<dyn Any + Send> {
    loop {
        match tasks.join_next().await {
            Some(Err(ended)) if ended.is_panic() => return ended.into_panic(),
            Some(_) => {}
            None => pending().await,
        }
    }
}

impl Worker {
    fn new(
        shared: Arc<Shared>,
        metrics: Arc<Metrics>,
    ) -> (Rc<Self>, mpsc::UnboundedReceiver<UnreadBody>) {
        let ticker = Ticker::new();
        let upstream = |shared: &upstream::Shared| {
            Upstream::new(shared.clone(), &ticker, |origin| {
                metrics
                    .endpoint(origin)
                    .map(|endpoint| Arc::clone(&endpoint.connections))
                    .unwrap_or_default()
            })
        };
        let upstreams = shared.upstreams.iter().map(upstream).collect();
        let (lingering, unread_bodies) = mpsc::unbounded_channel();
        let config = Arc::clone(&shared.config);
        let kept = Arc::clone(&shared.kept);
        let worker = Rc::new(Self {
            credential: shared.credential.clone(),
            token_wait: shared.token_wait,
            clock: Arc::clone(shared.credential.clock()),
            token: RefCell::default(),
            upstreams,
            routes: Routes::new(&config.routes, &config.rewrites, |upstream| {
                shared.upstreams[upstream].config()
            }),
            rewrites: Rc::new(UrlMap::new(&config.rewrites)),
            clients: Arc::clone(&shared.clients),
            privacy: CachePolicy::of(&config.clients),
            ticker,
            metrics,
            limits: Arc::new(monitor::Timeouts::new(&config)),
            tunnel_idle: config.tunnel_idle_timeout.into(),
            recording: recording::ReplayLimits {
                body: config.retry.body_limit,
                total: config.retry.total_limit,
                kept,
            },
            // A copy of its own, as with the token.
            mark: HeaderValue::from_bytes(shared.mark.as_bytes())
                .unwrap_or_else(|_| shared.mark.clone()),
            stripped: stripped(&config),
            connections: RefCell::default(),
            all_closed: Notify::new(),
            lingering,
            reported: std::array::from_fn(|_| PerSecond::default()),
            connections_reported: Default::default(),
            sampled: PerSecond::default(),
            observed_rate: PerSecond::default(),
            config,
            shared,
        });
        (worker, unread_bodies)
    }

    /// A valid token; waits for one if there is none.
    pub(crate) async fn token(&self, now: Moment) -> Result<Rc<LocalToken>, Error> {
        if let Some(carried) = self.carried(now) {
            return Ok(carried);
        }
        let newest = self.credential.newer_than(None, self.token_wait).await;
        newest
            .map(|token| self.carry(&token))
            .ok_or_else(|| Error::NoToken {
                reason: self.credential.snapshot().reason.label(),
                retry_after: self.credential.retry_after(),
            })
    }

    fn carried(&self, now: Moment) -> Option<Rc<LocalToken>> {
        let current = self.credential.token();
        let current = current.as_ref().filter(|token| token.usable(now))?;
        Some(self.carry(current))
    }

    /// The worker's own copy of a token.
    pub(crate) fn carry(&self, token: &Arc<Token>) -> Rc<LocalToken> {
        let mut carried = self.token.borrow_mut();
        match &*carried {
            Some(known) if known.version() == token.version() => Rc::clone(known),
            _ => Rc::clone(carried.insert(Rc::new(LocalToken::new(token)))),
        }
    }

    /// What the parts of an exchange share, for a connection or one of its streams.
    pub(crate) fn exchange(
        &self,
        peer: &Rc<Peer>,
        carrier: Carrier,
        monitor: &Arc<ConnState>,
    ) -> Rc<Exchange> {
        Rc::new(Exchange {
            peer: Rc::clone(peer),
            carrier,
            upstream_deadline: self.ticker.deadline(),
            limits: Cell::new(self.routes.default_limits()),
            monitor: Arc::clone(monitor),
            lingering: self.lingering.clone(),
            stripped: Rc::clone(&self.stripped),
            caller: Cell::default(),
            permit: Cell::default(),
            tunnel: RefCell::default(),
        })
    }

    /// Takes one of the slots for connections, in all and from this address.
    pub(crate) fn connection_slot(&self, peer: Option<SocketAddr>) -> Option<ConnectionSlot> {
        match self.shared.connection_limiter.take(peer) {
            Ok(source) => {
                self.metrics.connections_open.add(1);
                Some(ConnectionSlot {
                    limiter: Arc::clone(&self.shared.connection_limiter),
                    metrics: Arc::clone(&self.metrics),
                    source,
                })
            }
            Err(reason) => {
                self.connection_failed(reason, peer, None);
                None
            }
        }
    }

    /// Turns a request away when there are too many already, this one counted.
    pub(crate) fn admit(&self) -> Result<(), Error> {
        if self.shared.requests.load(Relaxed) > self.config.limits.requests {
            Err(Error::Overloaded)
        } else {
            Ok(())
        }
    }

    /// Counts a connection that is turned away, and reports it: each kind at most once a second.
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
        self.metrics.connections_rejected[reason as usize].add(1);
        if self.connections_reported[reason as usize].allows(1, self.clock.now()) {
            let (peer, error) = (
                peer.map(tracing::field::display),
                error.map(tracing::field::display),
            );
            tracing::warn!(peer, error, rule = reason.label(), "{}", reason.words());
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.limits.draining.load(Relaxed)
    }

    /// Enters a connection into the list that draining goes through, until what is returned is dropped.
    pub(crate) fn register(self: &Rc<Self>, monitor: &Arc<ConnState>) -> Registered {
        let key = self.connections.borrow_mut().insert(Arc::clone(monitor));
        Registered {
            worker: Rc::clone(self),
            key,
        }
    }

    /// Lets what is under way finish, within the limit. Accepting has stopped.
    async fn drain(&self) {
        self.limits.draining.store(true, Relaxed);
        // The queues of the listeners are emptied by their own tasks, which the same signal has woken.
        tokio::task::yield_now().await;
        for (_, connection) in &*self.connections.borrow() {
            connection.drain();
        }
        let closed = async {
            while !self.connections.borrow().is_empty() {
                self.all_closed.notified().await;
            }
        };
        if tokio::time::timeout(self.config.drain_timeout, closed)
            .await
            .is_err()
        {
            let open = self.connections.borrow().len();
            tracing::warn!(open, "connections are cut off: proxy.drain_timeout is over");
        }
    }

    /// Counts an error of an endpoint.
    pub(crate) fn upstream_failed(&self, endpoint: &Endpoint, label: &str) {
        self.metrics.upstream_failed(&endpoint.origin, label);
    }

    /// Counts a connection that did not come about.
    pub(crate) fn upstream_unreachable(&self, error: upstream::Error) -> Error {
        let origin = error.endpoint().to_owned();
        let error = Error::Connect(error);
        self.metrics.upstream_failed(&origin, error.label());
        error
    }

    /// Counts and reports an answer of our own, each kind at most once a second.
    pub(crate) fn refused(&self, error: &Error, exchange: &Exchange) {
        self.metrics.refused(error);
        if self.reported[error.index()].allows(1, self.clock.now()) {
            let peer = exchange.peer.client.address().map(tracing::field::display);
            let client = exchange
                .caller
                .get()
                .map(|caller| self.clients.name(caller));
            let status = error.status().as_u16();
            tracing::warn!(peer, client, status, rule = error.label(), "{error}");
        }
    }

    /// Counts an answer and, if asked to, logs it. The query is left out: it may hold a secret.
    pub(crate) fn answered(
        &self,
        route: &Route,
        caller: Option<ClientId>,
        request: &request::Parts,
        status: StatusCode,
        received: Moment,
    ) {
        self.metrics
            .answered(route.position, caller.map(|caller| caller.client), status);
        let log = match self.config.access_log {
            AccessLog::Off => false,
            AccessLog::All => true,
            AccessLog::Sampled => self.is_sampled(status, received),
        };
        if log {
            let millis = self.clock.now().saturating_since(received).as_secs_f64() * 1000.0;
            let (method, path) = (&request.method, request.uri.path());
            let (client, status) = (
                caller.map(|caller| self.clients.name(caller)),
                status.as_u16(),
            );
            tracing::info!(target: "bearer_proxy::access", client, %method, path, status, millis, "request");
        }
    }

    /// Whether an answer is observed_rate into while it passes: a few of each second are.
    pub(crate) fn look(&self, head: &response::Parts) -> Option<Box<Observer>> {
        let is_looked_into = Observer::is_worth_it(head)
            && self
                .observed_rate
                .allows(seen::EACH_SECOND, self.clock.now());
        is_looked_into.then(Box::default)
    }

    /// An answer that was observed_rate into has passed.
    pub(crate) fn observed(&self, look: &Observer) {
        look.note(
            &self.metrics.seen,
            self.config.retry.json.as_ref(),
            &self.rewrites,
            self.clock.wall(),
        );
    }

    /// A few of each second: half of them are kept for server errors.
    fn is_sampled(&self, status: StatusCode, received: Moment) -> bool {
        const EACH_SECOND: u32 = 10;
        self.sampled.allows(
            if status.is_server_error() {
                EACH_SECOND
            } else {
                EACH_SECOND / 2
            },
            received,
        )
    }
}

/// What clients have to show, once each.
fn stripped(config: &Config) -> Rc<[HeaderName]> {
    let required = config
        .listeners
        .iter()
        .filter_map(|listener| listener.guard.required_header.clone());
    let mut names: Vec<_> = required
        .chain(
            config
                .clients
                .iter()
                .filter_map(|client| client.header.clone()),
        )
        .collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names.into()
}

/// A connection's entry in the worker's list, struck out however the connection ends.
#[derive(Debug)]
pub(crate) struct Registered {
    worker: Rc<Worker>,
    key: usize,
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
