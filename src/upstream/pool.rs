//! One worker's connections to one endpoint.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    client::conn::{TrySendError, http1},
};

use super::{
    Config, Endpoint, SharedEndpoint,
    connect::{self, connect},
};
use crate::base::{
    counter::Counter,
    ticker::{Deadline, Ticker, Ticks},
};

/// The largest head of an answer, and the most that is read ahead for a client that is slow to take it.
const READ_BUFFER: usize = 64 * 1024;

/// How long an endpoint that leaves `Expect: 100-continue` unanswered is not waited for.
const IGNORES_EXPECT: Duration = Duration::from_secs(600);

/// Time for a connection that is given up to close in good order.
const GOODBYE: Duration = Duration::from_secs(5);

/// Numbers of one endpoint in one worker.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that carry a request.
    pub active: Counter,
    /// Connections that wait for one.
    pub idle: Counter,
}

/// Connections to one endpoint, most recently used first: the tail grows old and is closed when load falls.
pub(super) struct Pool<B> {
    pub(super) endpoint: Endpoint,
    config: Arc<Config>,
    shared: SharedEndpoint,
    idle: RefCell<Vec<Connection<B>>>,
    idle_timeout: Ticks,
    ticker: Rc<Ticker>,
    pub(super) counters: Arc<Counters>,
    /// Until when it is known to leave `Expect: 100-continue` unanswered.
    ignores_expect_until: Cell<u64>,
}

struct Connection<B> {
    sender: http1::SendRequest<B>,
    /// Armed while the connection is idle; when it is due, the connection's task ends.
    too_old: Rc<Deadline>,
}

impl<B: Body + 'static> Pool<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub(super) fn new(
        endpoint: Endpoint,
        config: Arc<Config>,
        shared: SharedEndpoint,
        ticker: Rc<Ticker>,
        counters: Arc<Counters>,
    ) -> Rc<Self> {
        let idle_timeout = config.idle_timeout.into();
        Rc::new(Self {
            endpoint,
            config,
            shared,
            idle: RefCell::default(),
            idle_timeout,
            ticker,
            counters,
            ignores_expect_until: Cell::new(0),
        })
    }

    /// A connection that has served before and still seems alive.
    pub(super) fn reuse(self: &Rc<Self>) -> Option<Lease<B>> {
        if self.idle.borrow().is_empty() {
            return None;
        }
        let place = self.reserve().ok()?;
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            self.counters.idle.sub(1);
            if connection.sender.is_ready() {
                connection.too_old.disarm();
                return Some(self.lease(connection, place, true));
            }
        }
    }

    /// A new connection.
    pub(super) async fn dial(self: &Rc<Self>) -> Result<Lease<B>, connect::Error> {
        let place = self.reserve()?;
        let io = connect(&self.config, &self.endpoint, self.shared.tls.as_ref()).await?;
        let (sender, connection) =
            http1::Builder::new().max_buf_size(READ_BUFFER).writev(false).handshake(io).await.map_err(|error| {
                let source = std::io::Error::other(error);
                connect::Error::Refused { endpoint: self.endpoint.origin.clone(), source }
            })?;
        let too_old = Rc::new(self.ticker.deadline());
        let pool = Rc::clone(self);
        let watch = Rc::clone(&too_old);
        let connection = connection.with_upgrades();
        tokio::task::spawn_local(async move {
            let mut connection = std::pin::pin!(connection);
            std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
                // Errors reach whoever waits for an answer; on an idle connection nobody cares.
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => watch.poll_due(cx),
            })
            .await;
            pool.forget_closed();
        });
        Ok(self.lease(Connection { sender, too_old }, place, false))
    }

    /// A place among `max_connections`, given back when dropped.
    fn reserve(&self) -> Result<Place, connect::Error> {
        let limit = self.config.max_connections;
        let place = Place(Arc::clone(&self.shared.active));
        if self.shared.active.fetch_add(1, Relaxed) < limit {
            Ok(place)
        } else {
            Err(connect::Error::Full { endpoint: self.endpoint.origin.clone(), limit })
        }
    }

    fn lease(self: &Rc<Self>, connection: Connection<B>, place: Place, reused: bool) -> Lease<B> {
        self.counters.active.add(1);
        Lease { connection: Some(connection), pool: Rc::clone(self), reused, _place: place }
    }

    fn put(&self, connection: Connection<B>) {
        connection.too_old.arm(self.idle_timeout);
        self.counters.idle.add(1);
        self.idle.borrow_mut().push(connection);
    }

    fn forget_closed(&self) {
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        idle.retain(|connection| !connection.sender.is_closed());
        self.counters.idle.sub((before - idle.len()) as u64);
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("endpoint", &self.endpoint.origin).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A connection in somebody's hands. Dropping it closes the connection; [`Lease::release`] gives it back.
pub struct Lease<B> {
    connection: Option<Connection<B>>,
    pool: Rc<Pool<B>>,
    reused: bool,
    _place: Place,
}

impl<B: Body + 'static> Lease<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Whether it has carried a request before, and so may have been closed by the upstream without our knowing.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Whether it can take a request, as far as is known.
    pub fn is_open(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.sender.is_ready())
    }

    /// Whom it leads to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.pool.endpoint
    }

    /// Whether its endpoint has lately let an `Expect: 100-continue` pass without a word.
    pub fn ignores_expect(&self) -> bool {
        self.pool.ticker.now() < self.pool.ignores_expect_until.get()
    }

    /// Remembers, for a while, whether its endpoint answers `Expect: 100-continue`.
    pub fn remember_expect(&self, answered: bool) {
        let until = if answered { 0 } else { self.pool.ticker.after(IGNORES_EXPECT.into()) };
        self.pool.ignores_expect_until.set(until);
    }

    /// Sends one request.
    ///
    /// # Errors
    /// Hands the request back if nothing of it was written.
    pub async fn send(&mut self, request: Request<B>) -> Result<Response<Incoming>, TrySendError<Request<B>>> {
        // A lease holds its connection from checkout to release, and release consumes it.
        let connection = self.connection.as_mut().expect("a lease that is not released holds a connection");
        connection.sender.try_send_request(request).await
    }

    /// Gives the connection back, once its answer was read to the end. If it is not ready yet, since the rest of an
    /// upload is still on its way, it returns to the pool when it is.
    pub fn release(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if connection.sender.is_ready() {
            self.pool.put(connection);
        } else if !connection.sender.is_closed() {
            let pool = Rc::clone(&self.pool);
            connection.too_old.arm(pool.idle_timeout);
            tokio::task::spawn_local(async move {
                if connection.sender.ready().await.is_ok() {
                    pool.put(connection);
                }
            });
        }
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        self.pool.counters.active.sub(1);
        // A connection that is given up closes by itself, but to say goodbye over TLS it has to write, and a peer that has
        // stopped reading would keep it for ever.
        if let Some(connection) = &self.connection {
            connection.too_old.arm(GOODBYE.into());
        }
    }
}

impl<B> fmt::Debug for Lease<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("pool", &self.pool).field("reused", &self.reused).finish_non_exhaustive()
    }
}
