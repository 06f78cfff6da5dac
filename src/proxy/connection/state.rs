//! The state of a client's connection, by role.

use std::{io, rc::Rc, sync::Arc, task::Poll};

use crate::proxy::{
    connection::{
        http1_state::Http1State, http2_state::Http2State, stream_state::StreamState,
        timers::ClientTimers,
    },
    framing::Fault,
};

/// A connection, as its socket and the worker see it.
#[derive(Debug, Clone)]
pub(crate) enum ConnState {
    /// HTTP/1, or not known yet.
    Http1(Arc<Http1State>),
    Http2(Arc<Http2State>),
}

impl ConnState {
    /// Draining has begun.
    pub(crate) fn drain(&self) {
        match self {
            Self::Http1(state) => state.drain(),
            Self::Http2(state) => state.drain(),
        }
    }

    /// Bytes were read from the socket.
    pub(super) fn received(&self) {
        match self {
            Self::Http1(state) => state.received(),
            Self::Http2(_) => {}
        }
    }

    /// A write to the socket was tried.
    pub(super) fn written(&self, written: &Poll<io::Result<usize>>) {
        match self {
            Self::Http1(state) => state.written(written),
            Self::Http2(state) => state.written(written),
        }
    }

    /// All that was written has reached the socket.
    pub(super) fn flushed(&self) {
        match self {
            Self::Http1(state) => state.flushed(),
            Self::Http2(state) => state.backlog.flushed(),
        }
    }

    /// The client has closed its side during an exchange.
    pub(super) fn half_closed(&self) {
        match self {
            Self::Http1(state) => state.half_closed(),
            Self::Http2(_) => {}
        }
    }

    /// Whether the socket must be closed with a reset. On HTTP/2 the stream alone is reset.
    pub(super) fn is_aborted(&self) -> bool {
        match self {
            Self::Http1(state) => state.is_aborted(),
            Self::Http2(_) => false,
        }
    }
}

/// What carries an exchange: an HTTP/1 connection, which serves its exchanges one after the other,
/// or one stream of an HTTP/2 connection.
#[derive(Debug, Clone)]
pub(crate) enum ExchangeState {
    Http1(Arc<Http1State>),
    Http2(Rc<StreamState>),
}

impl ExchangeState {
    pub(crate) fn is_http1(&self) -> bool {
        matches!(self, Self::Http1(_))
    }

    fn timers(&self) -> &ClientTimers {
        match self {
            Self::Http1(state) => &state.timers,
            Self::Http2(state) => &state.timers,
        }
    }

    /// Whether the client may be about to reset what it has just requested, see
    /// [`FloodCounters::is_unproven`](super::flood::FloodCounters::is_unproven).
    pub(crate) fn is_unproven(&self) -> bool {
        match self {
            Self::Http1(_) => false,
            Self::Http2(state) => state.flood().is_unproven(),
        }
    }

    /// A request's head has been received. Returns the exchange's number, which is 0 on a stream.
    pub(crate) fn begin_exchange(&self) -> u32 {
        match self {
            Self::Http1(state) => state.begin_exchange(),
            Self::Http2(state) => {
                state.begin_exchange();
                0
            }
        }
    }

    /// The exchange may turn the connection into a tunnel.
    pub(crate) fn expect_upgrade(&self) {
        match self {
            Self::Http1(state) => state.expect_upgrade(),
            Self::Http2(_) => {}
        }
    }

    /// The response is complete and the request has been read to its end.
    pub(crate) fn end_exchange(&self, number: u32) {
        match self {
            Self::Http1(state) => state.end_exchange(number),
            Self::Http2(state) => state.end_exchange(),
        }
    }

    /// Whether the client has sent, in this request or an earlier one, a field whose name is not
    /// spelled like `Content-Type`.
    pub(crate) fn has_unusual_names(&self) -> bool {
        match self {
            Self::Http1(state) => state.has_unusual_names(),
            Self::Http2(_) => false,
        }
    }

    /// Why this exchange's request is malformed, if it is.
    pub(crate) fn fault(&self, exchange: u32) -> Option<Fault> {
        match self {
            Self::Http1(state) => state.fault(exchange),
            Self::Http2(state) => state.fault,
        }
    }

    /// The proxy waits for more of the request body.
    pub(crate) fn wait_for_body(&self) {
        self.timers().wait_for_body();
    }

    /// Bytes of the request body have arrived.
    pub(crate) fn body_received(&self, bytes: u64) {
        self.timers().body_received(bytes);
        self.progress();
    }

    /// The proxy does not read the request body at the moment.
    pub(crate) fn pause_body(&self) {
        self.timers().pause_body();
    }

    /// The request body is complete, or it made progress while its rate is no longer limited.
    pub(crate) fn end_body_wait(&self) {
        self.timers().end_body_wait();
        self.progress();
    }

    /// The response has begun: from now on only a pause of the body is limited, not its rate.
    pub(crate) fn begin_response(&self) {
        self.timers().begin_response();
    }

    fn progress(&self) {
        match self {
            Self::Http1(_) => {}
            Self::Http2(state) => state.flood().progress(),
        }
    }

    /// A part of the response is ready for the client. On HTTP/1 the socket reports when the client
    /// accepts it.
    pub(crate) fn response_offered(&self) {
        match self {
            Self::Http1(_) => {}
            Self::Http2(state) => state.response_offered(),
        }
    }

    /// The client has room for more of the response.
    pub(crate) fn response_accepted(&self) {
        match self {
            Self::Http1(_) => {}
            Self::Http2(state) => state.response_accepted(),
        }
    }

    /// The response was handed over to its end.
    pub(crate) fn complete(&self) {
        match self {
            Self::Http1(_) => {}
            Self::Http2(state) => state.complete(),
        }
    }

    /// Waits until the part of the response that was handed over has reached the socket.
    pub(crate) async fn drained(self) {
        match self {
            Self::Http1(state) => state.backlog.drained().await,
            Self::Http2(state) => state.connection().backlog.drained().await,
        }
    }

    /// The response is cut short, and no length shows it: an HTTP/1 connection is closed with a
    /// reset. A stream is reset by h2, since its body fails.
    pub(crate) fn abort(&self) {
        match self {
            Self::Http1(state) => state.abort(),
            Self::Http2(_) => {}
        }
    }
}
