//! One worker's connections to one address of an endpoint.

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

use tokio::time::Instant;

use hyper::{body::Body, client::conn::http1};

use self::dial_lock::DialLock;
pub(super) use self::lease::Connection;
pub use self::lease::{Lease, Loss, Reservation, is_malformed, is_unprocessed};
use super::{
    config::{Config, Endpoint, Http2},
    connect::{self, HttpVersions, Io, Protocol, connect},
    handle::{ActiveConnection, AddressHandle},
    http2::{Http2Connection, Http2Slot, Stream},
    response_head::HeadState,
    shared::{Shared, SharedEndpoint},
    sockets::SocketPermit,
};
use crate::base::ticker::{Deadline, Ticker, Ticks};

/// The most that is buffered for a client that reads slowly, in bytes.
const READ_BUFFER: usize = 64 * 1024;

/// The time that a connection has to close in order (TLS `close_notify`).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections to one address. The last one used is reused first, so that the others time out when
/// the load falls.
pub(super) struct Pool<B> {
    pub(super) handle: Rc<AddressHandle>,
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
    /// No connection is kept: the address was removed.
    is_closed: Cell<bool>,
    /// How long the last connection took to open.
    connect_time: Cell<Duration>,
    /// Whether a reused connection was lost since the last response.
    has_lost: Cell<bool>,
}

/// An HTTP/1.1 connection.
pub(super) struct Http1Connection<B> {
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
    pub(super) fn new(handle: Rc<AddressHandle>, shared: &Shared, ticker: &Rc<Ticker>) -> Rc<Self> {
        let config = Arc::clone(&shared.config);
        let endpoint = handle.address.endpoint;
        Rc::new(Self {
            endpoint: config.endpoints[endpoint].clone(),
            shared: shared.endpoints[endpoint].clone(),
            handle,
            idle: RefCell::default(),
            http2: RefCell::default(),
            uses_http2: Cell::new(config.http2 == Http2::Always),
            dial_lock: DialLock::default(),
            idle_timeout: config.idle_timeout.into(),
            ticker: Rc::clone(ticker),
            is_closed: Cell::default(),
            connect_time: Cell::default(),
            has_lost: Cell::default(),
            config,
        })
    }

    /// How many requests may be in flight to the endpoint.
    pub(super) fn limit(&self) -> usize {
        let Config {
            max_connections,
            max_requests,
            ..
        } = &*self.config;
        if self.uses_http2.get() {
            *max_requests
        } else {
            // Each request has a connection of its own.
            (*max_requests).min(*max_connections)
        }
    }

    /// A connection that is open already, as far as is known.
    pub(super) fn reuse(&self, versions: HttpVersions) -> Option<Connection<B>> {
        if versions == HttpVersions::Any
            && let Some(stream) = self.open_stream(false)
        {
            return Some(Connection::Http2(stream));
        }
        if self.idle.borrow().is_empty() {
            return None;
        }
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            self.handle.counters.idle.sub(1);
            if connection.sender.is_ready() {
                connection.close_deadline.disarm();
                let active = ActiveConnection::new(&self.handle);
                return Some(Connection::Http1(connection, active));
            }
        }
    }

    /// A stream on an open HTTP/2 connection: the first one that has capacity, so that the others
    /// time out; or the newest, since a connection that is open may be dead.
    fn open_stream(&self, is_newest: bool) -> Option<Stream<B>> {
        let mut connections = self.http2.borrow_mut();
        if connections.is_empty() {
            return None;
        }
        connections.retain(|connection| connection.is_open());
        let mut with_capacity = connections
            .iter()
            .filter(|connection| connection.has_capacity());
        let connection = if is_newest {
            with_capacity.next_back()
        } else {
            with_capacity.next()
        };
        Some(connection?.open())
    }

    /// A new connection, or a stream on one that another request has just opened; not on one that is
    /// open already, if `skips_open`. TCP connects until `deadline`. Returns whether the connection
    /// existed already.
    pub(super) async fn dial(
        self: &Rc<Self>,
        versions: HttpVersions,
        skips_open: bool,
        mut deadline: Instant,
    ) -> Result<(Connection<B>, bool), connect::Error> {
        let (mut dialing, mut is_first) = (None, true);
        // With HTTP/2, requests that arrive at the same time share the first new connection.
        if versions == HttpVersions::Any && self.uses_http2.get() {
            loop {
                // Another request may have connected since this one has found no connection.
                let is_first = std::mem::replace(&mut is_first, false);
                if !(is_first && skips_open)
                    && let Some(stream) = self.open_stream(skips_open)
                {
                    return Ok((Connection::Http2(stream), true));
                }
                if !self.dial_lock.is_locked() {
                    dialing = Some(self.dial_lock.lock());
                    break;
                }
                // After a failure every waiting request dials for itself: an error is not passed
                // on, and one attempt after the other would take too long.
                if !self.dial_lock.wait().await {
                    // The wait was no time of the address.
                    deadline = deadline.max(Instant::now() + self.config.connect_timeout / 2);
                    break;
                }
            }
        }
        let connection = self.dial_alone(versions, deadline).await?;
        if let Some(dialing) = dialing {
            dialing.succeeded();
        }
        Ok((connection, false))
    }

    /// A new connection. TCP connects until `deadline`.
    pub(super) async fn dial_alone(
        self: &Rc<Self>,
        versions: HttpVersions,
        deadline: Instant,
    ) -> Result<Connection<B>, connect::Error> {
        let active = ActiveConnection::new(&self.handle);
        let limit = deadline.saturating_duration_since(Instant::now());
        let socket = self.shared.sockets.acquire(limit).await;
        // Too little time for a handshake, which would count against the address.
        let is_late = Instant::now() + limit / 10 > deadline;
        let socket = socket.filter(|_| !is_late);
        let socket = Rc::new(socket.ok_or_else(|| connect::Error::NoSocket {
            endpoint: self.endpoint.origin.clone(),
        })?);
        let begin = Instant::now();
        let (io, protocol) = connect(
            &self.config,
            &self.endpoint,
            &self.handle.address.target,
            &self.shared,
            versions,
            deadline,
        )
        .await?;
        self.connect_time.set(begin.elapsed());
        let connection = match protocol {
            Protocol::Http1 => Connection::Http1(self.open_http1(io, socket).await?, active),
            Protocol::Http2 => {
                let stream = self.open_http2(io, socket).await?;
                drop(active);
                Connection::Http2(stream)
            }
        };
        if versions == HttpVersions::Any {
            self.uses_http2.set(protocol == Protocol::Http2);
        }
        Ok(connection)
    }

    async fn open_http1(
        self: &Rc<Self>,
        mut io: Io,
        socket: Rc<SocketPermit>,
    ) -> Result<Http1Connection<B>, connect::Error> {
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
        let (sender, driver) = handshake.await.map_err(|error| self.not_opened(error))?;
        let close_deadline = Rc::new(self.ticker.deadline());
        self.spawn(driver.with_upgrades(), &close_deadline, Rc::clone(&socket));
        Ok(Http1Connection {
            sender,
            heads,
            close_deadline,
            socket,
        })
    }

    async fn open_http2(
        self: &Rc<Self>,
        io: Io,
        socket: Rc<SocketPermit>,
    ) -> Result<Stream<B>, connect::Error> {
        let close_deadline = Rc::new(self.ticker.deadline());
        let handshake = Http2Connection::handshake(
            io,
            self.config.max_head_size,
            Rc::clone(&close_deadline),
            self.idle_timeout,
            Rc::clone(&self.handle),
            self.http2_slot()?,
        );
        // It only writes, and a write that fails stays pending until a read says why: without a limit,
        // a reset at this moment would hold the dial lock for ever.
        let limit = self.config.handshake_timeout;
        let handshake = tokio::time::timeout(limit, handshake).await;
        let (connection, driver) = handshake
            .map_err(|_| connect::Error::Timeout {
                endpoint: self.endpoint.origin.clone(),
                limit,
            })?
            .map_err(|error| self.not_opened(error))?;
        self.spawn(driver, &close_deadline, socket);
        let stream = connection.open();
        if !self.is_closed.get() {
            self.http2.borrow_mut().push(connection);
        }
        Ok(stream)
    }

    fn not_opened(&self, error: hyper::Error) -> connect::Error {
        connect::Error::Refused {
            endpoint: self.endpoint.origin.clone(),
            source: std::io::Error::other(error),
        }
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

    fn http2_slot(&self) -> Result<Http2Slot, connect::Error> {
        let limit = self.config.max_connections;
        Http2Slot::take(&self.shared.http2_connections, limit).ok_or_else(|| connect::Error::Full {
            endpoint: self.endpoint.origin.clone(),
        })
    }

    /// Makes a connection available to other requests.
    fn put(&self, connection: Http1Connection<B>) {
        if self.is_closed.get() || self.shared.sockets.has_waiters() {
            return connection.close_deadline.arm(CLOSE_TIMEOUT.into());
        }
        connection.close_deadline.arm(self.idle_timeout);
        self.handle.counters.idle.add(1);
        self.idle.borrow_mut().push(connection);
    }

    /// Keeps no connection from now on.
    pub(super) fn close(&self) {
        self.is_closed.set(true);
        self.close_idle();
        self.http2.borrow_mut().clear();
    }

    /// Closes the connections that carry no request.
    pub(super) fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        self.handle.counters.idle.sub(idle.len() as u64);
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
        self.handle.counters.idle.sub((before - idle.len()) as u64);
        self.http2
            .borrow_mut()
            .retain(|connection| connection.is_open());
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("endpoint", &self.endpoint.origin)
            .field("address", &self.handle.address.target)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
