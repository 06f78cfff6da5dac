//! The state of one stream of an HTTP/2 connection, which carries one exchange.

use std::{cell::Cell, sync::Arc};

use crate::{
    base::ticker::DeadlineHandle,
    proxy::{
        connection::{flood::FloodCounters, http2_state::Http2State, timers::ClientTimers},
        framing::Fault,
        metrics::ClientTimeout,
    },
};

#[derive(Debug)]
pub(crate) struct StreamState {
    pub(super) timers: ClientTimers,
    connection: Arc<Http2State>,
    /// The exchange is over, but the client has not received all of the response.
    is_flushing: Cell<bool>,
    /// The response was handed over to its end.
    is_complete: Cell<bool>,
    /// Why the request is malformed, if it is.
    pub(super) fault: Option<Fault>,
}

impl StreamState {
    pub(crate) fn new(
        connection: &Arc<Http2State>,
        read: DeadlineHandle,
        write: DeadlineHandle,
        fault: Option<Fault>,
    ) -> Self {
        Self {
            timers: ClientTimers::new(read, write, Arc::clone(&connection.timeouts)),
            connection: Arc::clone(connection),
            is_flushing: Cell::new(false),
            is_complete: Cell::new(false),
            fault,
        }
    }

    pub(super) fn connection(&self) -> &Http2State {
        &self.connection
    }

    /// The flood counters of its connection.
    pub(super) fn flood(&self) -> &FloodCounters {
        self.connection.flood()
    }

    pub(super) fn begin_exchange(&self) {
        self.is_flushing.set(false);
        self.timers.begin_exchange();
    }

    /// The response is complete and the request has been read to its end.
    pub(super) fn end_exchange(&self) {
        if !self.is_flushing.replace(true) {
            self.timers.read.arm(self.timers.timeouts.body_idle);
        }
    }

    /// A part of the response was handed to h2, which holds it until the stream's window has room.
    pub(super) fn response_offered(&self) {
        self.timers.write.arm(self.timers.timeouts.body_idle);
    }

    /// The stream's window has room for more of the response.
    pub(super) fn response_accepted(&self) {
        self.flood().progress();
        self.timers.write.disarm();
    }

    /// The response has ended in good order.
    pub(super) fn complete(&self) {
        self.is_complete.set(true);
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete.get()
    }

    /// The timeout that the read deadline stands for.
    pub(crate) fn read_timeout(&self) -> ClientTimeout {
        if !self.is_flushing.get() && self.timers.is_below_minimum_rate() {
            ClientTimeout::BodyRate
        } else {
            ClientTimeout::Body
        }
    }
}
