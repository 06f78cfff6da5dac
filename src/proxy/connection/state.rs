//! Watches a client's side of a connection: whose move it is, and until when.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use crate::{
    base::ticker::{DeadlineHandle, Ticks},
    proxy::{
        config::Config, connection::flood::FloodCounters, framing::Fault, metrics::ClientTimeout,
    },
};

/// How long an idle connection stays open once draining has begun, so that a request that is on its
/// way is served.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How long a client may take to close its side after we have closed ours.
const GOODBYE: Duration = Duration::from_secs(5);

/// Where a connection stands, from its client's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is under way: the next byte begins a request.
    Waiting = 0,
    /// A request's head is on its way.
    Head = 1,
    /// A request is being answered.
    Exchange = 2,
    /// The answer was handed over, but not all of it has left.
    Flushing = 3,
    /// HTTP/2: requests come and go side by side, each with a monitor of its own.
    Http2Connection = 4,
}

/// The limits of an exchange, converted once.
#[derive(Debug)]
pub(crate) struct Timeouts {
    first_byte: Ticks,
    head: Ticks,
    body_idle: Ticks,
    /// Bytes of its body that a client must send while it is waited for as long as that.
    body_quota: u64,
    idle: Ticks,
    drain_grace: Ticks,
    /// The worker is draining.
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
            drain_grace: DRAIN_GRACE.min(config.drain_timeout).into(),
            draining: Arc::clone(draining),
        }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}

fn quota(rate: usize, time: Duration) -> u64 {
    u64::try_from((rate as u128).saturating_mul(time.as_millis()) / 1000).unwrap_or(u64::MAX)
}

/// How long we still wait for a body.
///
/// A byte now and then must not hold a request's slots for ever. So the time for a silence is lent again only when a quota
/// of bytes has come; until then, waits add up. What we wait for others, or they for us, does not count.
#[derive(Debug, Default)]
struct BodyRate {
    /// Bytes until the time is lent again. 0: it was not lent yet.
    owed: AtomicU64,
    /// What is left of it, in ticks.
    left: AtomicU64,
}

impl BodyRate {
    fn renew(&self) {
        self.owed.store(0, Relaxed);
    }

    fn left(&self, limits: &Timeouts) -> Ticks {
        if self.owed.load(Relaxed) == 0 {
            self.owed.store(limits.body_quota, Relaxed);
            self.left.store(limits.body_idle.into(), Relaxed);
        }
        self.left.load(Relaxed).into()
    }

    /// Whether some bytes came, but too few.
    fn was_spent_on_some(&self, limits: &Timeouts) -> bool {
        (1..limits.body_quota).contains(&self.owed.load(Relaxed))
    }

    fn spend(&self, left: Ticks) {
        self.left.store(left.into(), Relaxed);
    }

    fn pay(&self, bytes: u64) {
        self.owed
            .store(self.owed.load(Relaxed).saturating_sub(bytes), Relaxed);
    }
}

/// Sets the deadlines for a client's next moves. Reached from the socket, which must be `Send`.
///
/// Reading and writing have deadlines of their own: a client that owes us bytes may be taking some at the same time.
#[derive(Debug)]
pub(crate) struct ConnState {
    read_due: DeadlineHandle,
    write_due: DeadlineHandle,
    phase: AtomicU8,
    /// Counts the exchanges: what ends one late must not end the next.
    exchange: AtomicU32,
    patience: BodyRate,
    /// The client must not take what it got for a whole answer.
    broken: AtomicBool,
    /// Requests under way on an HTTP/2 connection.
    streams: AtomicU32,
    /// The client of an HTTP/2 connection was told to send no more requests.
    leaving: AtomicBool,
    /// The answer of an HTTP/2 stream was handed over to its end.
    complete: AtomicBool,
    /// How the client of an HTTP/2 connection behaves. Its streams share it.
    conduct: Arc<FloodCounters>,
    /// The last exchange of an HTTP/1 connection, if it began with something that is no request.
    misread: OnceLock<(u32, Fault)>,
    pub(super) limits: Arc<Timeouts>,
}

impl ConnState {
    /// A new connection: its first byte is due.
    pub(crate) fn new(
        read_due: DeadlineHandle,
        write_due: DeadlineHandle,
        limits: Arc<Timeouts>,
    ) -> Self {
        Self::with(Arc::default(), read_due, write_due, limits)
    }

    /// A new stream on an HTTP/2 connection.
    pub(crate) fn of_stream(
        connection: &Self,
        read_due: DeadlineHandle,
        write_due: DeadlineHandle,
    ) -> Self {
        Self::with(
            Arc::clone(&connection.conduct),
            read_due,
            write_due,
            Arc::clone(&connection.limits),
        )
    }

    fn with(
        conduct: Arc<FloodCounters>,
        read_due: DeadlineHandle,
        write_due: DeadlineHandle,
        limits: Arc<Timeouts>,
    ) -> Self {
        read_due.arm(if limits.is_draining() {
            limits.drain_grace
        } else {
            limits.first_byte
        });
        Self {
            read_due,
            write_due,
            phase: AtomicU8::default(),
            exchange: AtomicU32::default(),
            patience: BodyRate::default(),
            broken: AtomicBool::default(),
            streams: AtomicU32::default(),
            leaving: AtomicBool::default(),
            complete: AtomicBool::default(),
            conduct,
            misread: OnceLock::new(),
            limits,
        }
    }

    /// Whether a request of an HTTP/1 connection is being answered.
    pub(crate) fn is_answering(&self) -> bool {
        self.is(Phase::Exchange)
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// A request has come; who answers it sets the limits now. Returns the exchange's number.
    pub(crate) fn begin_exchange(&self) -> u32 {
        self.enter(Phase::Exchange);
        self.read_due.disarm();
        self.patience.renew();
        let number = self.exchange.load(Relaxed).wrapping_add(1);
        self.exchange.store(number, Relaxed);
        number
    }

    /// The answer was handed over, and the request was read to its end.
    pub(crate) fn end_exchange(&self, number: u32) {
        if self.is(Phase::Exchange) && self.exchange.load(Relaxed) == number {
            self.enter(Phase::Flushing);
            self.read_due.arm(self.limits.body_idle);
        }
    }

    /// Draining has begun: a connection on which nothing happens closes after a grace, in which a request that is on its
    /// way arrives.
    pub(crate) fn drain(&self) {
        if self.is(Phase::Waiting) || self.is(Phase::Http2Connection) {
            self.read_due.arm(self.limits.drain_grace);
        }
    }

    /// The client owes us more of its body.
    pub(crate) fn waiting_for_body(&self) {
        self.read_due.arm_if_idle(self.patience.left(&self.limits));
    }

    /// So much of its body came.
    pub(crate) fn body_moved(&self, n: u64) {
        self.body_pauses();
        self.patience.pay(n);
        self.moved();
    }

    /// We do not wait for it now.
    pub(crate) fn body_pauses(&self) {
        if let Some(left) = self.read_due.pause() {
            self.patience.spend(left);
        }
    }

    /// The answer has begun: from now on only silence is late.
    pub(crate) fn answer_begins(&self) {
        let is_waiting = self.read_due.pause().is_some();
        self.patience.renew();
        if is_waiting {
            self.waiting_for_body();
        }
    }

    /// All of it came, or it may take its time: somebody was told how this ends.
    pub(crate) fn body_is_free(&self) {
        self.read_due.disarm();
        self.patience.renew();
        self.moved();
    }

    /// Bytes came from the client.
    pub(crate) fn received(&self) {
        if self.is(Phase::Waiting) || self.is(Phase::Flushing) {
            self.enter(Phase::Head);
            self.read_due.arm(self.limits.head);
        }
    }

    /// A write to the client was tried.
    pub(crate) fn written(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(_)) => {
                self.write_due.disarm();
                if self.is(Phase::Flushing) {
                    self.read_due.arm(self.limits.body_idle);
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.write_due.arm_if_idle(self.limits.body_idle),
        }
    }

    /// Everything has left.
    pub(crate) fn flushed(&self) {
        if self.is(Phase::Flushing) {
            self.enter(Phase::Waiting);
            self.read_due.arm(if self.limits.is_draining() {
                self.limits.drain_grace
            } else {
                self.limits.idle
            });
        }
    }

    /// The client speaks HTTP/2: requests are counted, and the deadline is for the time without one.
    pub(crate) fn multiplex(&self) {
        self.enter(Phase::Http2Connection);
        self.rest();
    }

    fn moved(&self) {
        self.conduct.moved();
    }

    /// Frames came on an HTTP/2 connection that carry nothing of a body.
    pub(crate) fn control_frames_read(&self, frames: u32) {
        self.conduct
            .control_frames_read(frames, self.read_due.now());
    }

    pub(crate) fn conduct(&self) -> &FloodCounters {
        &self.conduct
    }

    /// A request has come on an HTTP/2 connection.
    pub(crate) fn stream_opened(&self) {
        self.moved();
        self.streams.fetch_add(1, Relaxed);
        // While draining, what is due is the farewell, and requests do not put it off.
        if !self.limits.is_draining() {
            self.read_due.disarm();
        }
    }

    /// A request on an HTTP/2 connection is over.
    pub(crate) fn stream_closed(&self) {
        self.moved();
        if self.streams.fetch_sub(1, Relaxed) == 1 {
            self.rest();
        }
    }

    fn rest(&self) {
        self.read_due.arm(match () {
            () if self.leaving.load(Relaxed) => GOODBYE.into(),
            () if self.limits.is_draining() => self.limits.drain_grace,
            () => self.limits.idle,
        });
    }

    /// The client of an HTTP/2 connection is told to send no more requests; those under way are answered. False if it was
    /// told before, and has had its time.
    pub(crate) fn leave(&self) -> bool {
        if self.leaving.swap(true, Relaxed) {
            return false;
        }
        match self.streams.load(Relaxed) {
            0 => self.rest(),
            _ => self.read_due.disarm(),
        }
        true
    }

    /// The limit that a client has passed who is late with what it sends. None: that its connection closes is our wish.
    pub(crate) fn passed(&self) -> Option<ClientTimeout> {
        if self.leaving.load(Relaxed) {
            return None;
        }
        Some(match () {
            () if self.is(Phase::Head) => ClientTimeout::Head,
            () if self.is(Phase::Exchange) && self.patience.was_spent_on_some(&self.limits) => {
                ClientTimeout::BodyRate
            }
            () if self.is(Phase::Exchange) || self.is(Phase::Flushing) => ClientTimeout::Body,
            () if self.limits.is_draining() => return None,
            () if self.is(Phase::Waiting) && self.exchange.load(Relaxed) == 0 => {
                ClientTimeout::FirstByte
            }
            () => ClientTimeout::Idle,
        })
    }

    /// A piece of an answer is there for the client to take.
    pub(crate) fn offered(&self) {
        self.write_due.arm(self.limits.body_idle);
    }

    /// The client has room for more.
    pub(crate) fn taken(&self) {
        self.moved();
        self.write_due.disarm();
    }

    /// What the client sent for this exchange is no request.
    pub(crate) fn misread(&self, exchange: u32, fault: Fault) {
        // Cannot be set already: nothing is read after a fault.
        let _ = self.misread.set((exchange, fault));
    }

    /// Why what the client sent for this exchange is no request, if it is none.
    pub(crate) fn fault(&self, exchange: u32) -> Option<Fault> {
        self.misread
            .get()
            .filter(|(misread, _)| *misread == exchange)
            .map(|(_, fault)| *fault)
    }

    /// We have closed our side for good. The client has a moment to do the same.
    pub(crate) fn say_goodbye(&self) {
        if !self.leaving.swap(true, Relaxed) {
            // Bytes that still come change nothing.
            self.enter(Phase::Exchange);
            self.read_due.arm(GOODBYE.into());
        }
    }

    /// The answer has ended, and not because somebody gave up.
    pub(crate) fn complete(&self) {
        self.complete.store(true, Relaxed);
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Relaxed)
    }

    /// Makes the close a reset.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Relaxed);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_lent_again_when_a_quota_has_come_and_until_then_waits_add_up() {
        let limits = |body_quota| Timeouts {
            first_byte: 1.into(),
            head: 1.into(),
            body_idle: 20.into(),
            body_quota,
            idle: 1.into(),
            drain_grace: 1.into(),
            draining: Arc::default(),
        };
        let (strict, lenient) = (limits(100), limits(0));
        let patience = BodyRate::default();
        let left = |limits| u64::from(patience.left(limits));
        assert_eq!(left(&strict), 20);
        assert!(
            !patience.was_spent_on_some(&strict),
            "silence is not a trickle"
        );
        patience.spend(12.into());
        patience.pay(60);
        assert_eq!(left(&strict), 12, "sixty bytes are too few");
        assert!(patience.was_spent_on_some(&strict));
        patience.spend(5.into());
        patience.pay(40);
        assert_eq!(left(&strict), 20);
        patience.spend(1.into());
        patience.pay(99);
        patience.renew();
        assert_eq!(left(&strict), 20, "another request");
        patience.renew();
        assert_eq!(left(&lenient), 20);
        patience.spend(1.into());
        patience.pay(1);
        assert_eq!(left(&lenient), 20, "any byte will do");
    }

    #[test]
    fn the_quota_is_the_rate_over_the_time() {
        assert_eq!(quota(240, Duration::from_secs(60)), 14_400);
        assert_eq!(quota(100, Duration::from_millis(250)), 25);
        assert_eq!(quota(0, Duration::from_secs(60)), 0);
        assert_eq!(quota(usize::MAX, Duration::MAX), u64::MAX);
    }
}
