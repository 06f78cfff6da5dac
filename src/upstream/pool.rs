//! One worker's connections to one endpoint.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    client::conn::{TrySendError, http1},
};
use tokio::sync::Notify;

use super::{
    config::{Config, Endpoint, Http2},
    connect::{self, Protocol, Wanted, connect},
    http2::{Http2Connection, Stream},
    shared::SharedEndpoint,
    slots::{Counters, PoolSlot},
    sockets,
};
use crate::{
    base::{
        clock::Moment,
        ticker::{Deadline, Ticker, Ticks},
    },
    net::http2,
};

/// The largest head of an answer, and the most that is read ahead for a client that is slow to take it.
const READ_BUFFER: usize = 64 * 1024;

/// How long an endpoint is not waited for since it last left `Expect: 100-continue` unanswered.
const IGNORES_EXPECT: Duration = Duration::from_secs(600);

/// Time for a connection that is given up to close in good order.
const GOODBYE: Duration = Duration::from_secs(5);

/// Connections to one endpoint, most recently used first: the tail grows old and is closed when load falls.
pub(super) struct Pool<B> {
    pub(super) endpoint: Endpoint,
    config: Arc<Config>,
    shared: SharedEndpoint,
    idle: RefCell<Vec<Connection<B>>>,
    multiplexed: RefCell<Vec<Rc<Http2Connection<B>>>>,
    /// What the last connection turned out to speak.
    is_multiplexed: Cell<bool>,
    dialling: DialLock,
    idle_timeout: Ticks,
    ticker: Rc<Ticker>,
    pub(super) counters: Arc<Counters>,
    /// Until when it is known to leave `Expect: 100-continue` unanswered.
    ignores_expect_until: Cell<Moment>,
}

struct Connection<B> {
    sender: http1::SendRequest<B>,
    /// Armed while the connection is idle; when it is due, the connection's task ends.
    too_old: Rc<Deadline>,
    /// Given back when the connection's task has ended as well.
    _socket: Rc<sockets::SocketPermit>,
}

impl<B: Body + Unpin + 'static> Pool<B>
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
        let is_multiplexed = Cell::new(config.http2 == Http2::Always);
        Rc::new(Self {
            endpoint,
            config,
            multiplexed: RefCell::default(),
            is_multiplexed,
            dialling: DialLock::default(),
            shared,
            idle: RefCell::default(),
            idle_timeout,
            ticker,
            counters,
            ignores_expect_until: Cell::default(),
        })
    }

    /// A connection that has served before and still seems alive.
    pub(super) fn reuse(self: &Rc<Self>, wanted: Wanted) -> Option<Lease<B>> {
        if wanted == Wanted::Any
            && let Some(lease) = self.share()
        {
            return Some(lease);
        }
        if self.idle.borrow().is_empty() {
            return None;
        }
        let place = self.reserve().ok()?;
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            self.counters.idle.sub(1);
            if connection.sender.is_ready() {
                connection.too_old.disarm();
                return Some(self.lease(Carrier::Http1(connection, place), true));
            }
        }
    }

    /// A stream on an HTTP/2 connection that is there. The first one that has room is filled first, so that others grow old.
    fn share(self: &Rc<Self>) -> Option<Lease<B>> {
        let mut multiplexed = self.multiplexed.borrow_mut();
        if multiplexed.is_empty() {
            return None;
        }
        multiplexed.retain(|connection| connection.is_open());
        let connection = multiplexed
            .iter()
            .find(|connection| connection.has_room())?;
        let place = connection
            .is_idle()
            .then(|| self.reserve())
            .transpose()
            .ok()?;
        Some(self.lease(Carrier::Http2(connection.open(place)), true))
    }

    /// A new connection, or a share of one that somebody else is dialling.
    pub(super) async fn dial(self: &Rc<Self>, wanted: Wanted) -> Result<Lease<B>, connect::Error> {
        let mut dialling = None;
        // Where connections are shared, a hundred requests that come at once need not dial a hundred of them.
        if wanted == Wanted::Any && self.is_multiplexed.get() {
            loop {
                if !self.dialling.is_busy.get() {
                    dialling = Some(self.dialling.begin());
                    break;
                }
                // Somebody's failure is not passed on; but the others do not queue up behind it either.
                if !self.dialling.ended().await {
                    break;
                }
                if let Some(lease) = self.share() {
                    return Ok(lease);
                }
            }
        }
        let place = self.reserve()?;
        let socket = self.shared.sockets.place(self.config.connect_timeout).await;
        let socket = Rc::new(socket.ok_or_else(|| connect::Error::NoSocket {
            endpoint: self.endpoint.origin.clone(),
        })?);
        let (io, protocol) = connect(
            &self.config,
            &self.endpoint,
            self.shared.tls.as_ref(),
            wanted,
        )
        .await?;
        let too_old = Rc::new(self.ticker.deadline());
        let broken = |error| connect::Error::Refused {
            endpoint: self.endpoint.origin.clone(),
            source: std::io::Error::other(error),
        };
        let carrier = match protocol {
            Protocol::Http1 => {
                let handshake = http1::Builder::new()
                    .max_buf_size(READ_BUFFER)
                    .writev(false)
                    .handshake(io);
                let (sender, connection) = handshake.await.map_err(broken)?;
                self.drive(connection.with_upgrades(), &too_old, Rc::clone(&socket));
                Carrier::Http1(
                    Connection {
                        sender,
                        too_old,
                        _socket: socket,
                    },
                    place,
                )
            }
            Protocol::Http2 => {
                let handshake = {
                    let (too_old, counters) = (Rc::clone(&too_old), Arc::clone(&self.counters));
                    Http2Connection::handshake(io, too_old, self.idle_timeout, counters)
                };
                let (multiplexed, connection) = handshake.await.map_err(broken)?;
                self.drive(connection, &too_old, socket);
                let stream = multiplexed.open(Some(place));
                self.multiplexed.borrow_mut().push(multiplexed);
                Carrier::Http2(stream)
            }
        };
        if wanted == Wanted::Any {
            self.is_multiplexed.set(protocol == Protocol::Http2);
        }
        if let Some(dialling) = dialling {
            dialling.succeeded();
        }
        Ok(self.lease(carrier, false))
    }

    /// Moves a connection's bytes until it closes or is too old.
    fn drive(
        self: &Rc<Self>,
        connection: impl Future<Output = hyper::Result<()>> + 'static,
        too_old: &Rc<Deadline>,
        socket: Rc<sockets::SocketPermit>,
    ) {
        let (pool, too_old) = (Rc::clone(self), Rc::clone(too_old));
        tokio::task::spawn_local(async move {
            let mut connection = std::pin::pin!(connection);
            std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
                // Errors reach whoever waits for an answer; on an idle connection nobody cares.
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => too_old.poll_due(cx),
            })
            .await;
            drop(socket);
            pool.forget_closed();
        });
    }

    /// A place among `max_connections`, given back when dropped.
    fn reserve(&self) -> Result<PoolSlot, connect::Error> {
        let limit = self.config.max_connections;
        PoolSlot::reserve(&self.shared.active, &self.counters, limit).ok_or_else(|| {
            connect::Error::Full {
                endpoint: self.endpoint.origin.clone(),
                limit,
            }
        })
    }

    fn lease(self: &Rc<Self>, carrier: Carrier<B>, reused: bool) -> Lease<B> {
        Lease {
            carrier: Some(carrier),
            pool: Rc::clone(self),
            reused,
            retired: Cell::default(),
        }
    }

    fn put(&self, connection: Connection<B>) {
        if self.shared.sockets.are_wanted() {
            return connection.too_old.arm(GOODBYE.into());
        }
        connection.too_old.arm(self.idle_timeout);
        self.counters.idle.add(1);
        self.idle.borrow_mut().push(connection);
    }

    /// Gives up what waits for its next request.
    pub(super) fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        self.counters.idle.sub(idle.len() as u64);
        for connection in idle {
            connection.too_old.arm(GOODBYE.into());
        }
        self.multiplexed
            .borrow_mut()
            .retain(|connection| !connection.is_idle());
    }

    fn forget_closed(&self) {
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        idle.retain(|connection| !connection.sender.is_closed());
        self.counters.idle.sub((before - idle.len()) as u64);
        self.multiplexed
            .borrow_mut()
            .retain(|connection| connection.is_open());
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("endpoint", &self.endpoint.origin)
            .finish_non_exhaustive()
    }
}

/// Whether somebody is dialling, and how it ended.
#[derive(Debug, Default)]
struct DialLock {
    is_busy: Cell<bool>,
    has_succeeded: Cell<bool>,
    ended: Notify,
}

impl DialLock {
    fn begin(&self) -> Dialler<'_> {
        self.is_busy.set(true);
        self.has_succeeded.set(false);
        Dialler(self)
    }

    /// Waits until it has ended; whether with success.
    async fn ended(&self) -> bool {
        self.ended.notified().await;
        self.has_succeeded.get()
    }
}

/// Whoever dials for the others, until it is dropped.
struct Dialler<'a>(&'a DialLock);

impl Dialler<'_> {
    fn succeeded(&self) {
        self.0.has_succeeded.set(true);
    }
}

impl Drop for Dialler<'_> {
    fn drop(&mut self) {
        self.0.is_busy.set(false);
        self.0.ended.notify_waiters();
    }
}

/// What carries a request.
enum Carrier<B> {
    /// A connection of its own.
    Http1(Connection<B>, PoolSlot),
    /// A stream of a shared one.
    Http2(Stream<B>),
}

/// A connection, or a share of one, in somebody's hands. Dropping it closes an HTTP/1.1 connection, or resets the stream;
/// [`Lease::release`] gives it back.
pub struct Lease<B> {
    carrier: Option<Carrier<B>>,
    pool: Rc<Pool<B>>,
    reused: bool,
    /// No other request may use the connection.
    retired: Cell<bool>,
}

impl<B: Body + Unpin + 'static> Lease<B>
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
        match &self.carrier {
            Some(Carrier::Http1(connection, _)) => connection.sender.is_ready(),
            Some(Carrier::Http2(stream)) => stream.is_open(),
            None => false,
        }
    }

    /// Whether the request must be written for HTTP/2: an absolute target, and nothing about the connection.
    pub fn is_http2(&self) -> bool {
        matches!(self.carrier, Some(Carrier::Http2(_)))
    }

    /// Sees to it that no other request uses this one's connection: it may be dead, or speak for somebody.
    pub fn retire(&self) {
        self.retired.set(true);
        if let Some(Carrier::Http2(stream)) = &self.carrier {
            stream.retire();
        }
    }

    /// Whom it leads to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.pool.endpoint
    }

    /// Whether its endpoint has lately let an `Expect: 100-continue` pass without a word.
    pub fn ignores_expect(&self, now: Moment) -> bool {
        now < self.pool.ignores_expect_until.get()
    }

    /// Remembers, for a while, whether its endpoint answers `Expect: 100-continue`.
    pub fn remember_expect(&self, answered: bool, now: Moment) {
        let until = if answered {
            Moment::default()
        } else {
            now + IGNORES_EXPECT
        };
        self.pool.ignores_expect_until.set(until);
    }

    /// Sends one request.
    ///
    /// # Errors
    /// Hands the request back if nothing of it was written.
    pub async fn send(
        &mut self,
        request: Request<B>,
    ) -> Result<Response<Incoming>, TrySendError<Request<B>>> {
        // A lease holds its connection from checkout to release, and release consumes it.
        match self
            .carrier
            .as_mut()
            .expect("a lease that is not released holds a connection")
        {
            Carrier::Http1(connection, _) => connection.sender.try_send_request(request).await,
            Carrier::Http2(stream) => {
                let sent = stream.sender.try_send_request(request).await;
                if sent
                    .as_ref()
                    .is_err_and(|failed| !is_of_stream(failed.error()))
                {
                    stream.retire();
                }
                sent
            }
        }
    }

    /// Keeps the slots alone, once the connection was upgraded. `None` for an HTTP/2 stream, which cannot be.
    pub fn into_reservation(mut self) -> Option<Reservation> {
        match self.carrier.take()? {
            Carrier::Http1(connection, slot) => Some(Reservation {
                _slot: slot,
                _socket: connection._socket,
            }),
            Carrier::Http2(_) => None,
        }
    }

    /// Gives the connection back, once its answer was read to the end. If it is not ready yet, since the rest of an
    /// upload is still on its way, it returns to the pool when it is.
    pub fn release(mut self) {
        if self.retired.get() {
            return;
        }
        let Some(Carrier::Http1(mut connection, place)) = self.carrier.take() else {
            return;
        };
        drop(place);
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

/// What a connection occupies that was upgraded and left the pool: its slot among `max_connections` and its descriptor.
#[derive(Debug)]
pub struct Reservation {
    _slot: PoolSlot,
    _socket: Rc<sockets::SocketPermit>,
}

/// Whether an error is of one HTTP/2 stream alone, and its connection as good as before.
fn is_of_stream(error: &hyper::Error) -> bool {
    http2::cause(error).is_some_and(h2::Error::is_reset)
}

/// Whether the server says that it has done nothing with a request: RFC 9113 §8.7. Sending it again is safe, whatever it is.
pub fn is_unprocessed(error: &hyper::Error) -> bool {
    // h2 gives the GOAWAY to those streams alone that came after the last one that the server promises to answer.
    http2::cause(error).is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        // A connection that is given up closes by itself, but to say goodbye over TLS it has to write, and a peer that has
        // stopped reading would keep it for ever.
        if let Some(Carrier::Http1(connection, _)) = &self.carrier {
            connection.too_old.arm(GOODBYE.into());
        }
    }
}

impl<B> fmt::Debug for Lease<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("pool", &self.pool)
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}
