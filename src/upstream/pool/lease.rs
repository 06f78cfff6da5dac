//! The use of a connection by one request.

use std::{
    cell::Cell,
    fmt,
    rc::Rc,
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use futures_util::future::Either;

use http::{Request, Response, response};
use hyper::{
    body::{Body, Incoming},
    client::conn::TrySendError,
};

use super::{CLOSE_TIMEOUT, Http1Connection, Pool};
use crate::{
    base::{clock::Moment, ticker::Ticks},
    net::http2,
    upstream::{
        addresses::AddressId,
        config::Endpoint,
        connect,
        counters::{Counters, Failure},
        expect::ExpectSupport,
        handle::{ActiveConnection, InFlight},
        health::Reason,
        http2::Stream,
        sockets::SocketPermit,
    },
};

/// What carries the request of a lease.
pub(in crate::upstream) enum Connection<B> {
    /// A connection of its own.
    Http1(Http1Connection<B>, ActiveConnection),
    /// A stream of a shared connection.
    Http2(Stream<B>),
}

/// The use of a connection by one request. Dropping it closes an HTTP/1.1 connection and resets an
/// HTTP/2 stream; [`Lease::release`] returns the connection to the pool.
pub struct Lease<B> {
    /// `None` only while `self` is consumed.
    connection: Option<Connection<B>>,
    pool: Rc<Pool<B>>,
    /// `None` only while `self` is consumed.
    in_flight: Option<InFlight>,
    is_reused: bool,
    /// The ticker's sweep in which the request was sent.
    sent_at: u64,
    /// No other request may use the connection.
    retired: Cell<bool>,
}

/// What the loss of a connection before any byte of the response means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The server may have closed it while it was idle: no failure.
    Idle,
    /// The same may be true, but it is the second loss in a row: the address has failed.
    IdleAgain,
    /// The server had the request: the address has failed.
    InUse,
}

/// A connection that the server has closed while it was idle is lost about a round trip after the
/// request was written.
pub(super) const IDLE_LOSS: Duration = Duration::from_secs(1);

impl<B: Body + Unpin + 'static> Lease<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub(in crate::upstream) fn new(
        connection: Connection<B>,
        pool: Rc<Pool<B>>,
        in_flight: InFlight,
        is_reused: bool,
    ) -> Self {
        Self {
            connection: Some(connection),
            pool,
            in_flight: Some(in_flight),
            is_reused,
            sent_at: 0,
            retired: Cell::default(),
        }
    }

    /// Whether the connection has carried a request before. The upstream may have closed it in the
    /// meantime.
    pub fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Whether the connection is open, as far as is known.
    pub fn is_open(&self) -> bool {
        match &self.connection {
            Some(Connection::Http1(connection, _)) => connection.sender.is_ready(),
            Some(Connection::Http2(stream)) => stream.is_open(),
            None => false,
        }
    }

    /// Whether the request needs the form of HTTP/2: an absolute target, no connection fields.
    pub fn is_http2(&self) -> bool {
        matches!(self.connection, Some(Connection::Http2(_)))
    }

    /// Lets no other request use the connection: it may be dead, or authenticated for one client.
    pub fn retire(&self) {
        self.retired.set(true);
        if let Some(Connection::Http2(stream)) = &self.connection {
            stream.retire();
        }
    }

    /// The address that the connection leads to.
    pub fn address(&self) -> AddressId {
        self.pool.handle.address.id
    }

    /// Whether the connection was lost within the head of the response.
    pub fn has_received(&self) -> bool {
        matches!(&self.connection, Some(Connection::Http1(connection, _)) if connection.heads.is_partial())
    }

    /// What the loss of the connection means. To be called once, for a response of which nothing was
    /// received.
    ///
    /// Two losses in a row count, though a server may close all idle connections at once: otherwise a
    /// server that resets what is open would stay in use until all of it is gone. Requests on one
    /// HTTP/2 connection are lost together.
    pub fn loss(&self) -> Loss {
        let age = self.pool.ticker.now().saturating_sub(self.sent_at);
        if !self.is_reused || age > Ticks::from(IDLE_LOSS).into() {
            Loss::InUse
        } else if !self.is_http2() && self.pool.has_lost.replace(true) {
            Loss::IdleAgain
        } else {
            Loss::Idle
        }
    }

    /// The counters of the endpoint.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.pool.handle.counters)
    }

    /// The pool of the connection, which closes, and the request's count.
    pub(in crate::upstream) fn into_parts(mut self) -> (Rc<Pool<B>>, InFlight) {
        // Only methods that consume the lease take the count.
        let in_flight = self
            .in_flight
            .take()
            .expect("a lease that is not consumed counts");
        (Rc::clone(&self.pool), in_flight)
    }

    /// The address responded to the request.
    pub fn succeeded(&self) {
        self.pool.has_lost.set(false);
        self.pool.handle.succeeded();
        self.end_trial();
    }

    /// The request failed at the address.
    pub fn failed(&self, reason: Reason) {
        self.pool.handle.failed(reason);
        self.end_trial();
    }

    fn end_trial(&self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.end_trial();
        }
    }

    /// Counts a failure of the endpoint.
    pub fn count(&self, failure: Failure) {
        self.pool.handle.counters.failures[failure].add(1);
    }

    /// The endpoint of the connection.
    pub fn endpoint(&self) -> &Endpoint {
        &self.pool.endpoint
    }

    /// How the endpoint treats `Expect: 100-continue`, as far as is known.
    pub fn expect_support(&self, now: Moment) -> ExpectSupport {
        self.pool.shared.expect.get(now)
    }

    /// Records how the endpoint treated `Expect: 100-continue`, for the requests of all workers.
    pub fn remember_expect(&self, support: ExpectSupport, now: Moment) {
        self.pool.shared.expect.remember(support, now);
    }

    /// How long the last connection to the endpoint took to open: a few round trips.
    pub fn connect_time(&self) -> Duration {
        self.pool.connect_time.get()
    }

    /// Sends a request. Meanwhile the number counts the interim responses (RFC 9110 §15.2): on
    /// HTTP/2, those to other requests on the connection as well.
    ///
    /// # Errors
    /// Returns the request if nothing of it was written.
    pub fn send(
        &mut self,
        mut request: Request<B>,
    ) -> (
        impl Future<Output = Result<Response<Incoming>, TrySendError<Request<B>>>>,
        &AtomicU32,
    ) {
        self.sent_at = self.pool.ticker.now();
        if let Some(form) = &self.pool.shared.absolute_form {
            form.apply(&mut request);
        }
        // Only methods that consume the lease take its connection.
        match self
            .connection
            .as_mut()
            .expect("a lease that is not consumed has a connection")
        {
            Connection::Http1(Http1Connection { sender, heads, .. }, _) => {
                let heads = &**heads;
                heads.expect_head();
                let sending = sender.try_send_request(request);
                let sending = async move {
                    let mut sent = sending.await;
                    if let Ok(response) = &mut sent {
                        heads.complete(response);
                    }
                    sent
                };
                (Either::Left(sending), &heads.interim)
            }
            Connection::Http2(stream) => {
                let (sender, connection) = stream.parts();
                let sending = sender.try_send_request(request);
                let sending = async move {
                    let sent = sending.await;
                    if sent
                        .as_ref()
                        .is_err_and(|failed| !is_stream_error(failed.error()))
                    {
                        connection.retire();
                    }
                    sent
                };
                (Either::Right(sending), connection.interim())
            }
        }
    }

    /// The error of a response that the outbound proxy has made without forwarding the request.
    pub fn proxy_refusal(&self, response: &response::Parts) -> Option<connect::Error> {
        let Pool {
            shared, endpoint, ..
        } = &*self.pool;
        connect::proxy_refusal(endpoint, shared, response.status, &response.headers)
    }

    /// Keeps the slots alone, after an upgrade. `None` for an HTTP/2 stream, which cannot be
    /// upgraded.
    pub fn into_reservation(mut self) -> Option<Reservation> {
        match self.connection.take()? {
            Connection::Http1(connection, active) => Some(Reservation {
                _in_flight: self.in_flight.take()?,
                _active: active,
                _socket: connection.socket,
            }),
            Connection::Http2(_) => None,
        }
    }

    /// Returns the connection to the pool, once the response was read to its end. If the request's
    /// body is still being sent, the connection returns when that is done.
    pub fn release(mut self) {
        if self.retired.get() {
            return;
        }
        let Some(Connection::Http1(mut connection, active)) = self.connection.take() else {
            return;
        };
        drop(active);
        if connection.sender.is_ready() {
            self.pool.put(connection);
        } else if !connection.sender.is_closed() {
            let pool = Rc::clone(&self.pool);
            connection.close_deadline.arm(pool.idle_timeout);
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
        // Dropping the sender closes the connection, but TLS writes a `close_notify` first, and a
        // peer that does not read would block that for ever.
        if let Some(Connection::Http1(connection, _)) = &self.connection {
            connection.close_deadline.arm(CLOSE_TIMEOUT.into());
        }
    }
}

impl<B> fmt::Debug for Lease<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("pool", &self.pool)
            .field("is_reused", &self.is_reused)
            .finish_non_exhaustive()
    }
}

/// The limits that an upgraded connection still counts towards: `max_connections` and open sockets.
/// Released on drop.
#[derive(Debug)]
pub struct Reservation {
    _in_flight: InFlight,
    _active: ActiveConnection,
    _socket: Rc<SocketPermit>,
}

/// Whether an error concerns one HTTP/2 stream and leaves its connection usable.
fn is_stream_error(error: &hyper::Error) -> bool {
    http2::cause(error).is_some_and(h2::Error::is_reset)
}

/// Whether the response on a stream is malformed (RFC 9113 §8.1.1): h2 has reset the stream.
pub fn is_malformed(error: &hyper::Error) -> bool {
    http2::cause(error).is_some_and(|error| error.is_reset() && error.is_library())
}

/// Whether the server states that it did not process a request (RFC 9113 §8.7). A request of any
/// method may then be sent again.
pub fn is_unprocessed(error: &hyper::Error) -> bool {
    // h2 reports a GOAWAY only to the streams after the last one that the server processes.
    http2::cause(error).is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}
