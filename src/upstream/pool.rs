//! One worker's connections to one endpoint.

use std::{
    cell::RefCell,
    fmt,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
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
        Rc::new(Self { endpoint, config, shared, idle: RefCell::default(), idle_timeout, ticker, counters })
    }

    /// A connection that has served before and still seems alive.
    pub(super) fn reuse(self: &Rc<Self>) -> Option<Lease<B>> {
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            self.counters.idle.sub(1);
            if connection.sender.is_ready() {
                connection.too_old.disarm();
                return Some(self.lease(connection, true));
            }
        }
    }

    /// A new connection.
    pub(super) async fn dial(self: &Rc<Self>) -> Result<Lease<B>, connect::Error> {
        let place = self.reserve()?;
        let io = connect(&self.config, &self.endpoint, self.shared.tls.as_ref()).await?;
        let (sender, connection) = http1::Builder::new().writev(false).handshake(io).await.map_err(|error| {
            let source = std::io::Error::other(error);
            connect::Error::Refused { endpoint: self.endpoint.origin.clone(), source }
        })?;
        let too_old = Rc::new(self.ticker.deadline());
        let pool = Rc::clone(self);
        let watch = Rc::clone(&too_old);
        tokio::task::spawn_local(async move {
            let mut connection = std::pin::pin!(connection);
            std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
                // Errors reach whoever waits for an answer; on an idle connection nobody cares.
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => watch.poll_due(cx),
            })
            .await;
            drop(place);
            pool.forget_closed();
        });
        Ok(self.lease(Connection { sender, too_old }, false))
    }

    /// A place among `max_connections`, given back when dropped.
    fn reserve(&self) -> Result<Place, connect::Error> {
        let limit = self.config.max_connections;
        let place = Place(Arc::clone(&self.shared.open));
        if self.shared.open.fetch_add(1, Relaxed) < limit {
            Ok(place)
        } else {
            Err(connect::Error::Full { endpoint: self.endpoint.origin.clone(), limit })
        }
    }

    fn lease(self: &Rc<Self>, connection: Connection<B>, reused: bool) -> Lease<B> {
        self.counters.active.add(1);
        Lease { connection: Some(connection), pool: Rc::clone(self), reused }
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
    }
}

impl<B> fmt::Debug for Lease<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("pool", &self.pool).field("reused", &self.reused).finish_non_exhaustive()
    }
}
