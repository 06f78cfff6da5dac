//! One worker's connections to one endpoint.

mod dial_lock;
mod lease;

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use hyper::{body::Body, client::conn::http1};

pub use self::lease::{Lease, Reservation, is_malformed, is_unprocessed};
use self::{dial_lock::DialLock, lease::Connection};
use super::{
    config::{Config, Endpoint, Http2},
    connect::{self, HttpVersions, Protocol, connect},
    http2::Http2Connection,
    response_head::HeadState,
    shared::SharedEndpoint,
    slots::{Counters, PoolSlot},
    sockets::SocketPermit,
};
use crate::base::ticker::{Deadline, Ticker, Ticks};

/// The most that is buffered for a client that reads slowly, in bytes.
const READ_BUFFER: usize = 64 * 1024;

/// The time that a connection has to close in order (TLS `close_notify`).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections to one endpoint. The last one used is reused first, so that the others time out when
/// the load falls.
pub(super) struct Pool<B> {
    endpoint: Endpoint,
    config: Arc<Config>,
    shared: SharedEndpoint,
    idle: RefCell<Vec<Http1Connection<B>>>,
    http2: RefCell<Vec<Rc<Http2Connection<B>>>>,
    /// Whether the last connection that could use any version uses HTTP/2.
    uses_http2: Cell<bool>,
    dial_lock: DialLock,
    idle_timeout: Ticks,
    ticker: Rc<Ticker>,
    counters: Arc<Counters>,
    /// How long the last connection took to open.
    connect_time: Cell<Duration>,
}

/// An HTTP/1.1 connection.
struct Http1Connection<B> {
    sender: http1::SendRequest<B>,
    heads: Arc<HeadState>,
    /// Armed while the connection is idle. When it is due, the connection's task ends.
    close_deadline: Rc<Deadline>,
    /// Released when the connection's task has ended as well.
    socket: Rc<SocketPermit>,
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
        let uses_http2 = Cell::new(config.http2 == Http2::Always);
        Rc::new(Self {
            endpoint,
            config,
            shared,
            idle: RefCell::default(),
            http2: RefCell::default(),
            uses_http2,
            dial_lock: DialLock::default(),
            idle_timeout,
            ticker,
            counters,
            connect_time: Cell::default(),
        })
    }

    /// A connection that is open already, as far as is known.
    pub(super) fn reuse(self: &Rc<Self>, versions: HttpVersions) -> Option<Lease<B>> {
        if versions == HttpVersions::Any
            && let Some(lease) = self.open_stream()
        {
            return Some(lease);
        }
        if self.idle.borrow().is_empty() {
            return None;
        }
        let slot = self.reserve_slot().ok()?;
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            self.counters.idle.sub(1);
            if connection.sender.is_ready() {
                connection.close_deadline.disarm();
                return Some(self.lease(Connection::Http1(connection, slot), true));
            }
        }
    }

    /// A stream on an open HTTP/2 connection: the first one that has capacity, so that the others
    /// time out.
    fn open_stream(self: &Rc<Self>) -> Option<Lease<B>> {
        let mut connections = self.http2.borrow_mut();
        if connections.is_empty() {
            return None;
        }
        connections.retain(|connection| connection.is_open());
        let connection = connections
            .iter()
            .find(|connection| connection.has_capacity())?;
        let slot = connection
            .is_idle()
            .then(|| self.reserve_slot())
            .transpose()
            .ok()?;
        Some(self.lease(Connection::Http2(connection.open(slot)), true))
    }

    /// A new connection, or a stream on one that another request has just opened.
    pub(super) async fn dial(
        self: &Rc<Self>,
        versions: HttpVersions,
    ) -> Result<Lease<B>, connect::Error> {
        let mut dialing = None;
        // With HTTP/2, requests that arrive at the same time share the first new connection.
        if versions == HttpVersions::Any && self.uses_http2.get() {
            loop {
                if !self.dial_lock.is_locked() {
                    dialing = Some(self.dial_lock.lock());
                    break;
                }
                // After a failure every waiting request dials for itself: an error is not passed
                // on, and one attempt after the other would take too long.
                if !self.dial_lock.wait().await {
                    break;
                }
                if let Some(lease) = self.open_stream() {
                    return Ok(lease);
                }
            }
        }
        let lease = self.dial_alone(versions).await?;
        if let Some(dialing) = dialing {
            dialing.succeeded();
        }
        Ok(lease)
    }

    /// A new connection.
    pub(super) async fn dial_alone(
        self: &Rc<Self>,
        versions: HttpVersions,
    ) -> Result<Lease<B>, connect::Error> {
        let slot = self.reserve_slot()?;
        let socket = self
            .shared
            .sockets
            .acquire(self.config.connect_timeout)
            .await;
        let socket = Rc::new(socket.ok_or_else(|| connect::Error::NoSocket {
            endpoint: self.endpoint.origin.clone(),
        })?);
        let begin = tokio::time::Instant::now();
        let (mut io, protocol) =
            connect(&self.config, &self.endpoint, &self.shared, versions).await?;
        self.connect_time.set(begin.elapsed());
        let close_deadline = Rc::new(self.ticker.deadline());
        let handshake_error = |error| connect::Error::Refused {
            endpoint: self.endpoint.origin.clone(),
            source: std::io::Error::other(error),
        };
        let connection = match protocol {
            Protocol::Http1 => {
                let heads = io.inner_mut().repair_heads(self.config.max_head_size);
                let handshake = http1::Builder::new()
                    // Larger than the largest head, which ends here at the latest.
                    .max_buf_size(READ_BUFFER.max(self.config.max_head_size) + 1)
                    // RFC 9112 §5.1: a proxy removes whitespace before the colon.
                    .allow_spaces_after_header_name_in_responses(true)
                    .preserve_header_case(true)
                    // For the fields that the proxy adds, and those of HTTP/2 clients.
                    .title_case_headers(true)
                    .writev(false)
                    .handshake(io);
                let (sender, driver) = handshake.await.map_err(handshake_error)?;
                self.spawn(driver.with_upgrades(), &close_deadline, Rc::clone(&socket));
                Connection::Http1(
                    Http1Connection {
                        sender,
                        heads,
                        close_deadline,
                        socket,
                    },
                    slot,
                )
            }
            Protocol::Http2 => {
                let handshake = Http2Connection::handshake(
                    io,
                    self.config.max_head_size,
                    Rc::clone(&close_deadline),
                    self.idle_timeout,
                    Arc::clone(&self.counters),
                );
                let (connection, driver) = handshake.await.map_err(handshake_error)?;
                self.spawn(driver, &close_deadline, socket);
                let stream = connection.open(Some(slot));
                self.http2.borrow_mut().push(connection);
                Connection::Http2(stream)
            }
        };
        if versions == HttpVersions::Any {
            self.uses_http2.set(protocol == Protocol::Http2);
        }
        Ok(self.lease(connection, false))
    }

    /// Spawns the task that drives a connection until it closes or its deadline is due.
    fn spawn(
        self: &Rc<Self>,
        driver: impl Future<Output = hyper::Result<()>> + 'static,
        close_deadline: &Rc<Deadline>,
        socket: Rc<SocketPermit>,
    ) {
        let (pool, close_deadline) = (Rc::clone(self), Rc::clone(close_deadline));
        tokio::task::spawn_local(async move {
            let mut driver = std::pin::pin!(driver);
            std::future::poll_fn(|cx| match driver.as_mut().poll(cx) {
                // A request under way gets the error from its sender; on an idle connection there
                // is nothing to report.
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => close_deadline.poll_due(cx),
            })
            .await;
            drop(socket);
            pool.remove_closed();
        });
    }

    fn reserve_slot(&self) -> Result<PoolSlot, connect::Error> {
        let limit = self.config.max_connections;
        PoolSlot::reserve(&self.shared.active, &self.counters, limit).ok_or_else(|| {
            connect::Error::Full {
                endpoint: self.endpoint.origin.clone(),
                limit,
            }
        })
    }

    fn lease(self: &Rc<Self>, connection: Connection<B>, is_reused: bool) -> Lease<B> {
        Lease::new(connection, Rc::clone(self), is_reused)
    }

    /// Makes a connection available to other requests.
    fn put(&self, connection: Http1Connection<B>) {
        if self.shared.sockets.has_waiters() {
            return connection.close_deadline.arm(CLOSE_TIMEOUT.into());
        }
        connection.close_deadline.arm(self.idle_timeout);
        self.counters.idle.add(1);
        self.idle.borrow_mut().push(connection);
    }

    /// Closes the connections that carry no request.
    pub(super) fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        self.counters.idle.sub(idle.len() as u64);
        for connection in idle {
            connection.close_deadline.arm(CLOSE_TIMEOUT.into());
        }
        self.http2
            .borrow_mut()
            .retain(|connection| !connection.is_idle());
    }

    fn remove_closed(&self) {
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        idle.retain(|connection| !connection.sender.is_closed());
        self.counters.idle.sub((before - idle.len()) as u64);
        self.http2
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
