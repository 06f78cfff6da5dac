//! The state of an HTTP/1 connection, and of every connection until its protocol is known.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    task::Poll,
};

use crate::{
    base::ticker::DeadlineHandle,
    proxy::{
        connection::{
            backlog::Backlog,
            timers::{CLOSE_TIMEOUT, ClientTimers, Timeouts},
        },
        framing::Fault,
        metrics::ClientTimeout,
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request is under way: the next byte begins one.
    Idle = 0,
    /// A request's head is being received.
    Head = 1,
    /// A request is being served.
    Exchange = 2,
    /// The response is complete, but not all of it has been written to the socket.
    Flushing = 3,
    /// The proxy has closed its side. The client has [`CLOSE_TIMEOUT`] to close its own.
    Closing = 4,
}

/// Atomics, since hyper requires of a socket that can be upgraded, and so of all that it refers to,
/// that it is `Send`. One thread uses them.
#[derive(Debug)]
pub(crate) struct Http1State {
    pub(super) timers: ClientTimers,
    phase: AtomicU8,
    /// Number of the current exchange: what ends an earlier one late must not end this one.
    exchange: AtomicU32,
    pub(super) backlog: Backlog,
    /// The client has closed its side during the exchange.
    is_half_closed: AtomicBool,
    /// The exchange may turn the connection into a tunnel.
    may_upgrade: AtomicBool,
    /// A response that only the close delimits was cut short: a FIN would complete it.
    is_aborted: AtomicBool,
    /// The number of an exchange, the connection's last one, whose request is malformed, and why.
    malformed: OnceLock<(u32, Fault)>,
    has_unusual_names: AtomicBool,
}

impl Http1State {
    /// A new connection: the deadline for its first byte is armed.
    pub(crate) fn new(
        read: DeadlineHandle,
        write: DeadlineHandle,
        timeouts: Arc<Timeouts>,
    ) -> Self {
        read.arm(timeouts.first_byte());
        Self {
            timers: ClientTimers::new(read, write, timeouts),
            phase: AtomicU8::new(Phase::Idle as u8),
            exchange: AtomicU32::default(),
            backlog: Backlog::default(),
            is_half_closed: AtomicBool::default(),
            may_upgrade: AtomicBool::default(),
            is_aborted: AtomicBool::default(),
            malformed: OnceLock::new(),
            has_unusual_names: AtomicBool::default(),
        }
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// Whether a request is being served.
    pub(crate) fn is_in_exchange(&self) -> bool {
        self.is(Phase::Exchange)
    }

    /// A request's head has been received. Returns the exchange's number.
    pub(super) fn begin_exchange(&self) -> u32 {
        self.enter(Phase::Exchange);
        self.may_upgrade.store(false, Relaxed);
        self.timers.begin_exchange();
        let number = self.exchange.load(Relaxed).wrapping_add(1);
        self.exchange.store(number, Relaxed);
        number
    }

    /// The exchange may turn the connection into a tunnel, whose bytes must stay unread until then.
    pub(crate) fn expect_upgrade(&self) {
        self.may_upgrade.store(true, Relaxed);
    }

    /// Whether bytes of the client may be read that are not part of this exchange.
    pub(crate) fn may_read_ahead(&self) -> bool {
        !self.may_upgrade.load(Relaxed)
    }

    /// The client has closed its side during the exchange: it waits for the response, or has gone.
    pub(super) fn half_closed(&self) {
        if !self.is_half_closed.swap(true, Relaxed) {
            let timeouts = &self.timers.timeouts;
            self.timers.write.arm_if_idle(timeouts.half_closed);
        }
    }

    /// The timeout that the write deadline stands for.
    pub(crate) fn write_timeout(&self) -> ClientTimeout {
        if self.is_half_closed.load(Relaxed) {
            ClientTimeout::HalfClosed
        } else {
            ClientTimeout::Body
        }
    }

    /// The response is complete and the request has been read to its end.
    pub(crate) fn end_exchange(&self, number: u32) {
        if self.is(Phase::Exchange) && self.exchange.load(Relaxed) == number {
            self.enter(Phase::Flushing);
            self.timers.read.arm(self.timers.timeouts.body_idle);
        }
    }

    /// Draining has begun: an idle connection closes after a grace period, in which a request that
    /// is already on the wire arrives.
    pub(super) fn drain(&self) {
        if self.is(Phase::Idle) {
            self.timers.read.arm(self.timers.timeouts.drain_grace);
        }
    }

    /// Bytes were read from the socket.
    pub(super) fn received(&self) {
        if self.is(Phase::Idle) || self.is(Phase::Flushing) {
            self.enter(Phase::Head);
            self.timers.read.arm(self.timers.timeouts.head);
        }
    }

    /// A write to the socket was tried.
    pub(super) fn written(&self, written: &Poll<io::Result<usize>>) {
        self.backlog.written(written);
        if !self.timers.written(written) {
            return;
        }
        if self.is(Phase::Flushing) {
            self.timers.read.arm(self.timers.timeouts.body_idle);
        }
        if self.is_half_closed.load(Relaxed) {
            self.timers.write.arm(self.timers.timeouts.half_closed);
        }
    }

    /// All that was written has reached the socket.
    pub(super) fn flushed(&self) {
        self.backlog.flushed();
        if self.is(Phase::Flushing) {
            if self.is_half_closed.load(Relaxed) {
                self.is_half_closed.store(false, Relaxed);
                self.timers.write.disarm();
            }
            self.enter(Phase::Idle);
            self.timers.read.arm(self.timers.timeouts.idle());
        }
    }

    /// The proxy has closed its side.
    pub(crate) fn begin_close(&self) {
        if !self.is(Phase::Closing) {
            self.enter(Phase::Closing);
            self.timers.read.arm(CLOSE_TIMEOUT.into());
        }
    }

    /// The timeout that the read deadline stands for; `None` if its expiry is no fault of the
    /// client.
    pub(crate) fn read_timeout(&self) -> Option<ClientTimeout> {
        match () {
            () if self.is(Phase::Closing) => None,
            () if self.is(Phase::Head) => Some(ClientTimeout::Head),
            () if self.is(Phase::Exchange) && self.timers.is_below_minimum_rate() => {
                Some(ClientTimeout::BodyRate)
            }
            () if self.is(Phase::Exchange) || self.is(Phase::Flushing) => Some(ClientTimeout::Body),
            () if self.timers.timeouts.is_draining() => None,
            () if self.exchange.load(Relaxed) == 0 => Some(ClientTimeout::FirstByte),
            () => Some(ClientTimeout::Idle),
        }
    }

    /// The client has sent a field whose name is not spelled like `Content-Type`.
    pub(crate) fn set_unusual_names(&self) {
        self.has_unusual_names.store(true, Relaxed);
    }

    pub(super) fn has_unusual_names(&self) -> bool {
        self.has_unusual_names.load(Relaxed)
    }

    /// What the client sent as this exchange's request is malformed.
    pub(crate) fn set_malformed(&self, exchange: u32, fault: Fault) {
        // Cannot be set already: nothing is read after a fault.
        let _ = self.malformed.set((exchange, fault));
    }

    /// Why this exchange's request is malformed, if it is.
    pub(super) fn fault(&self, exchange: u32) -> Option<Fault> {
        self.malformed
            .get()
            .filter(|(malformed, _)| *malformed == exchange)
            .map(|(_, fault)| *fault)
    }

    /// The response is cut short: the socket is closed with a reset.
    pub(super) fn abort(&self) {
        self.is_aborted.store(true, Relaxed);
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.is_aborted.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::ticker::Ticker;

    fn state() -> Http1State {
        let ticker = Ticker::new();
        let (read, write) = (ticker.deadline().handle(), ticker.deadline().handle());
        Http1State::new(read, write, Arc::new(Timeouts::of(Duration::from_secs(60))))
    }

    #[test]
    fn the_read_deadline_stands_for_what_the_phase_waits_for() {
        let state = state();
        let mut timeouts = vec![state.read_timeout()];
        for step in [
            Http1State::received as fn(&Http1State),
            |state| assert_eq!(state.begin_exchange(), 1),
            |state| state.end_exchange(1),
            Http1State::flushed,
            Http1State::received,
            Http1State::begin_close,
            Http1State::received,
        ] {
            step(&state);
            timeouts.push(state.read_timeout());
        }
        use ClientTimeout::{Body, FirstByte, Head, Idle};
        assert_eq!(
            timeouts,
            [
                Some(FirstByte),
                Some(Head),
                Some(Body),
                Some(Body),
                Some(Idle),
                Some(Head),
                None,
                None
            ]
        );
    }

    #[test]
    fn the_late_end_of_an_exchange_does_not_end_the_next_one() {
        let state = state();
        let (first, second) = (state.begin_exchange(), state.begin_exchange());
        state.end_exchange(first);
        assert!(state.is_in_exchange());
        state.end_exchange(second);
        assert!(!state.is_in_exchange());
    }

    #[test]
    fn draining_shortens_the_wait_of_idle_connections_alone() {
        let (idle, busy) = (state(), state());
        busy.begin_exchange();
        for state in [&idle, &busy] {
            state.timers.read.disarm();
            state.drain();
        }
        assert!(idle.timers.read.pause().is_some());
        assert!(busy.timers.read.pause().is_none());
    }
}
