//! What the states of connections and streams have in common: the configured timeouts, the
//! deadlines of the request body and of the response, and the minimum rate of a body.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use crate::{
    base::ticker::{DeadlineHandle, Ticks},
    proxy::config::Config,
};

/// Time that an idle connection stays open after draining has begun: a request that is already on
/// the wire is still served.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Time for the client to close its side, after the proxy has closed its own or sent GOAWAY.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The configured timeouts of a client, converted to ticks once.
#[derive(Debug)]
pub(crate) struct Timeouts {
    pub(super) first_byte: Ticks,
    pub(super) head: Ticks,
    pub(super) body_idle: Ticks,
    /// Bytes of its body that a client must send during each `body_idle`.
    body_quota: u64,
    pub(super) idle: Ticks,
    pub(super) half_closed: Ticks,
    pub(super) drain_grace: Ticks,
    /// Whether the worker is draining.
    draining: Arc<AtomicBool>,
}

impl Timeouts {
    pub(crate) fn new(config: &Config, draining: &Arc<AtomicBool>) -> Self {
        Self {
            first_byte: config.first_byte_timeout.into(),
            head: config.head_timeout.into(),
            body_idle: config.body_idle_timeout.into(),
            body_quota: quota(config.min_body_rate, config.body_idle_timeout),
            idle: config.idle_timeout.into(),
            half_closed: config.half_closed_timeout.into(),
            drain_grace: DRAIN_GRACE.min(config.drain_timeout).into(),
            draining: Arc::clone(draining),
        }
    }

    /// The same for everything, without a minimum rate.
    #[cfg(test)]
    pub(super) fn of(time: Duration) -> Self {
        Self {
            first_byte: time.into(),
            head: time.into(),
            body_idle: time.into(),
            body_quota: 0,
            idle: time.into(),
            half_closed: time.into(),
            drain_grace: time.into(),
            draining: Arc::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn begin_draining(&self) {
        self.draining.store(true, Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// How long a connection without a request may stay open.
    pub(super) fn idle(&self) -> Ticks {
        if self.is_draining() {
            self.drain_grace
        } else {
            self.idle
        }
    }

    /// How long a new connection may take to send its first byte.
    pub(super) fn first_byte(&self) -> Ticks {
        if self.is_draining() {
            self.drain_grace
        } else {
            self.first_byte
        }
    }
}

/// The bytes that must arrive within `time` at `rate` bytes a second.
fn quota(rate: usize, time: Duration) -> u64 {
    u64::try_from((rate as u128).saturating_mul(time.as_millis()) / 1000).unwrap_or(u64::MAX)
}

/// The minimum rate of a request body.
///
/// A client that sends a byte now and then must not hold a request's slots for ever. The idle
/// timeout is therefore granted again only after a quota of bytes has arrived; until then the time
/// spent waiting adds up. Time during which the proxy does not read from the client does not count.
#[derive(Debug, Default)]
struct BodyRate {
    /// Bytes until the timeout is granted again; 0: not granted yet.
    missing: AtomicU64,
    /// Ticks that remain of it.
    remaining: AtomicU64,
}

impl BodyRate {
    /// Grants the whole timeout at the next wait.
    fn reset(&self) {
        self.missing.store(0, Relaxed);
    }

    /// The time that the client has left to send more.
    fn remaining(&self, timeouts: &Timeouts) -> Ticks {
        if self.missing.load(Relaxed) == 0 {
            self.missing.store(timeouts.body_quota, Relaxed);
            self.remaining.store(timeouts.body_idle.into(), Relaxed);
        }
        self.remaining.load(Relaxed).into()
    }

    fn set_remaining(&self, remaining: Ticks) {
        self.remaining.store(remaining.into(), Relaxed);
    }

    fn received(&self, bytes: u64) {
        self.missing
            .store(self.missing.load(Relaxed).saturating_sub(bytes), Relaxed);
    }

    /// Whether some bytes of the quota have arrived, but not all.
    fn is_below_minimum(&self, timeouts: &Timeouts) -> bool {
        (1..timeouts.body_quota).contains(&self.missing.load(Relaxed))
    }
}

/// The deadlines of one connection or stream, as its state sets them.
///
/// Reading and writing have a deadline each: a client that has to send something may be receiving
/// at the same time.
#[derive(Debug)]
pub(crate) struct ClientTimers {
    pub(super) read: DeadlineHandle,
    pub(super) write: DeadlineHandle,
    pub(super) timeouts: Arc<Timeouts>,
    body_rate: BodyRate,
}

impl ClientTimers {
    pub(super) fn new(
        read: DeadlineHandle,
        write: DeadlineHandle,
        timeouts: Arc<Timeouts>,
    ) -> Self {
        Self {
            read,
            write,
            timeouts,
            body_rate: BodyRate::default(),
        }
    }

    /// A request's head has been read. What follows sets the deadlines from here on.
    pub(super) fn begin_exchange(&self) {
        self.read.disarm();
        self.body_rate.reset();
    }

    /// The proxy waits for more of the request body.
    pub(super) fn wait_for_body(&self) {
        self.read
            .arm_if_idle(self.body_rate.remaining(&self.timeouts));
    }

    /// Bytes of the request body have arrived.
    pub(super) fn body_received(&self, bytes: u64) {
        self.pause_body();
        self.body_rate.received(bytes);
    }

    /// The proxy does not read the request body at the moment.
    pub(super) fn pause_body(&self) {
        if let Some(remaining) = self.read.pause() {
            self.body_rate.set_remaining(remaining);
        }
    }

    /// The response has begun: from now on only a pause of the body is limited, not its rate.
    pub(super) fn begin_response(&self) {
        let is_waiting = self.read.pause().is_some();
        self.body_rate.reset();
        if is_waiting {
            self.wait_for_body();
        }
    }

    /// The request body is complete, or it made progress while its rate is no longer limited.
    pub(super) fn end_body_wait(&self) {
        self.read.disarm();
        self.body_rate.reset();
    }

    /// A write to the client's socket was tried. True if it was accepted.
    pub(super) fn written(&self, written: &Poll<io::Result<usize>>) -> bool {
        written_to(&self.write, &self.timeouts, written)
    }

    /// Whether the client sent some of its body, but too little.
    pub(super) fn is_below_minimum_rate(&self) -> bool {
        self.body_rate.is_below_minimum(&self.timeouts)
    }
}

/// Sets the write deadline after a write was tried. True if bytes were accepted.
pub(super) fn written_to(
    deadline: &DeadlineHandle,
    timeouts: &Timeouts,
    written: &Poll<io::Result<usize>>,
) -> bool {
    match written {
        Poll::Ready(Ok(_)) => {
            deadline.disarm();
            true
        }
        Poll::Ready(Err(_)) => false,
        Poll::Pending => {
            deadline.arm_if_idle(timeouts.body_idle);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_is_granted_again_after_a_quota_and_until_then_waits_add_up() {
        let timeouts = |body_quota| Timeouts {
            body_idle: 20.into(),
            body_quota,
            ..Timeouts::of(Duration::from_secs(1))
        };
        let (strict, lenient) = (timeouts(100), timeouts(0));
        let rate = BodyRate::default();
        let remaining = |timeouts| u64::from(rate.remaining(timeouts));
        assert_eq!(remaining(&strict), 20);
        assert!(!rate.is_below_minimum(&strict), "no byte at all is a pause");
        rate.set_remaining(12.into());
        rate.received(60);
        assert_eq!(remaining(&strict), 12, "sixty bytes are too few");
        assert!(rate.is_below_minimum(&strict));
        rate.set_remaining(5.into());
        rate.received(40);
        assert_eq!(remaining(&strict), 20);
        rate.set_remaining(1.into());
        rate.received(99);
        rate.reset();
        assert_eq!(remaining(&strict), 20, "another request");
        rate.reset();
        assert_eq!(remaining(&lenient), 20);
        rate.set_remaining(1.into());
        rate.received(1);
        assert_eq!(remaining(&lenient), 20, "any byte is enough");
    }

    #[test]
    fn the_quota_is_the_rate_over_the_time() {
        assert_eq!(quota(240, Duration::from_secs(60)), 14_400);
        assert_eq!(quota(100, Duration::from_millis(250)), 25);
        assert_eq!(quota(0, Duration::from_secs(60)), 0);
        assert_eq!(quota(usize::MAX, Duration::MAX), u64::MAX);
    }
}
