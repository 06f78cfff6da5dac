//! The state of an HTTP/2 connection. Each of its streams has a state of its own.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::Poll,
};

use crate::{
    base::ticker::DeadlineHandle,
    proxy::{
        connection::{
            backlog::Backlog,
            flood::FloodCounters,
            timers::{CLOSE_TIMEOUT, Timeouts, written_to},
        },
        metrics::ClientTimeout,
    },
};

/// The read deadline limits the time without a stream. Atomics, as in
/// [`Http1State`](super::http1_state::Http1State).
#[derive(Debug)]
pub(crate) struct Http2State {
    read: DeadlineHandle,
    write: DeadlineHandle,
    pub(super) timeouts: Arc<Timeouts>,
    open_streams: AtomicU32,
    /// GOAWAY has been sent.
    is_closing: AtomicBool,
    pub(super) backlog: Backlog,
    flood: FloodCounters,
}

impl Http2State {
    /// A connection without a stream: its idle deadline is armed.
    pub(crate) fn new(
        read: DeadlineHandle,
        write: DeadlineHandle,
        timeouts: Arc<Timeouts>,
    ) -> Self {
        let state = Self {
            read,
            write,
            timeouts,
            open_streams: AtomicU32::default(),
            is_closing: AtomicBool::default(),
            backlog: Backlog::default(),
            flood: FloodCounters::default(),
        };
        state.arm_idle();
        state
    }

    pub(crate) fn flood(&self) -> &FloodCounters {
        &self.flood
    }

    /// Frames were read that carry nothing of a body.
    pub(crate) fn control_frames_received(&self, frames: u32) {
        self.flood.control_frames_received(frames, self.read.now());
    }

    pub(crate) fn stream_opened(&self) {
        self.flood.progress();
        self.open_streams.fetch_add(1, Relaxed);
        // While draining, the deadline is for GOAWAY, and new streams do not postpone that.
        if !self.timeouts.is_draining() {
            self.read.disarm();
        }
    }

    pub(crate) fn stream_closed(&self) {
        self.flood.progress();
        let is_last = self.open_streams.fetch_sub(1, Relaxed) == 1;
        // The same: otherwise a client that sends one request after another would never get GOAWAY.
        if is_last && (self.is_closing.load(Relaxed) || !self.timeouts.is_draining()) {
            self.arm_idle();
        }
    }

    fn arm_idle(&self) {
        self.read.arm(if self.is_closing.load(Relaxed) {
            CLOSE_TIMEOUT.into()
        } else {
            self.timeouts.idle()
        });
    }

    /// GOAWAY is sent: no new stream is accepted, those that are open may finish. False if it was
    /// sent before, and the client's time to close has passed.
    pub(crate) fn begin_close(&self) -> bool {
        if self.is_closing.swap(true, Relaxed) {
            return false;
        }
        match self.open_streams.load(Relaxed) {
            0 => self.arm_idle(),
            _ => self.read.disarm(),
        }
        true
    }

    /// Draining has begun: GOAWAY follows after a grace period, in which a request that is already
    /// on the wire arrives.
    pub(super) fn drain(&self) {
        self.read.arm(self.timeouts.drain_grace);
    }

    /// A write to the socket was tried.
    pub(super) fn written(&self, written: &Poll<io::Result<usize>>) {
        self.backlog.written(written);
        written_to(&self.write, &self.timeouts, written);
    }

    /// The timeout that the read deadline stands for; `None` if its expiry is no fault of the
    /// client.
    pub(crate) fn read_timeout(&self) -> Option<ClientTimeout> {
        let is_ending = self.is_closing.load(Relaxed) || self.timeouts.is_draining();
        (!is_ending).then_some(ClientTimeout::Idle)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::ticker::Ticker;

    #[test]
    fn the_idle_deadline_applies_while_no_stream_is_open_and_goaway_is_sent_once() {
        let ticker = Ticker::new();
        let (read, write) = (ticker.deadline().handle(), ticker.deadline().handle());
        let timeouts = Arc::new(Timeouts::of(Duration::from_secs(60)));
        let state = Http2State::new(read.clone(), write, timeouts);
        let is_armed = || {
            let remaining = read.pause();
            remaining.into_iter().for_each(|ticks| read.arm(ticks));
            remaining.is_some()
        };
        assert!(is_armed(), "no stream yet");
        state.stream_opened();
        state.stream_opened();
        state.stream_closed();
        assert!(!is_armed(), "one stream is open");
        assert_eq!(state.read_timeout(), Some(ClientTimeout::Idle));
        assert!(state.begin_close());
        assert!(!is_armed(), "the stream may finish");
        state.stream_closed();
        assert!(is_armed(), "the client has time to close");
        assert!(!state.begin_close());
        assert_eq!(state.read_timeout(), None);
    }

    #[test]
    fn streams_do_not_postpone_the_goaway_of_draining() {
        let ticker = Ticker::new();
        let (read, write) = (ticker.deadline().handle(), ticker.deadline().handle());
        let timeouts = Arc::new(Timeouts::of(Duration::from_secs(60)));
        let state = Http2State::new(read.clone(), write, Arc::clone(&timeouts));
        timeouts.begin_draining();
        state.drain();
        let granted = read.pause();
        for _ in 0..3 {
            state.stream_opened();
            state.stream_closed();
        }
        assert!(granted.is_some());
        assert_eq!(read.pause(), None, "the deadline is not armed again");
    }
}
