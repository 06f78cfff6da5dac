//! Whether an address is in use: passive health checks (outlier ejection), and what active ones
//! found. One state for all workers. Pure: time, random numbers and events are arguments.
//!
//! | state | begins | ends |
//! |---|---|---|
//! | `in` | at the start, and after any other state | |
//! | `unreachable` | two connections in a row could not be made | a connection is made |
//! | `failing` | five failures in a row, or half of at least 20 requests in 10 s | after 10 s × the number of times |
//! | `trial` | the time of `failing` is over; one request at a time | a success: `in`; a failure: `failing` |
//! | `unhealthy` | `fall` active checks in a row failed | `rise` in a row succeeded |
//!
//! An active check that is configured has the last word: `unhealthy` replaces every other state,
//! and only checks end it.
//!
//! Workers read one word, [`Health::published`], which changes with the state and with the first
//! failure of a row. A success costs a load of it and its worker's own counter. Everything else is
//! behind a lock that only failures, returns and ticks take.

mod inner;
mod window;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;

use self::{
    inner::{Inner, UNCONNECTED, ejection},
    window::Totals,
};
use crate::base::{cache_line::CacheLine, clock::Moment, counter::Counter, labels::labels};

labels! {
    /// The state of an address; the table above says when each begins and ends.
    pub enum State {
        /// In use.
        In => "in",
        /// No connection can be made.
        Unreachable => "unreachable",
        /// Too many requests have failed.
        Failing => "failing",
        /// Was failing; gets one request at a time until one succeeds.
        Trial => "trial",
        /// Active health checks fail.
        Unhealthy => "unhealthy",
    }
}

labels! {
    /// Why an address is not in use.
    pub enum Reason {
        /// A connection could not be made.
        Connect => "connect",
        /// A response with the status 502, 503 or 504.
        Status => "status",
        /// The connection broke before the head of the response.
        Broken => "broken",
        /// No response in time.
        Timeout => "timeout",
        /// A token was refused that another address accepts.
        TokenRefused => "token_refused",
        /// An active health check failed.
        Check => "check",
    }
}

/// A change of the state. Exactly one event returns it, for the log and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transition {
    /// The state before.
    pub(super) from: State,
    /// The state now.
    pub(super) to: State,
    /// Why the address is not in use, or was not if it is again.
    pub(super) reason: Reason,
    /// When the state ends, if that is known.
    pub(super) until: Option<Moment>,
}

/// What `/status` shows of the health of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// The state.
    pub state: State,
    /// Why the address is not in use.
    pub(super) reason: Option<Reason>,
    /// When the state began.
    pub(super) since: Moment,
    /// When the state ends, if that is known.
    pub(super) until: Option<Moment>,
    /// How often the address was taken out of use.
    pub(super) ejections: u64,
    /// The weight in tenths of the configured one: less than ten during slow start.
    pub(super) weight_tenths: u32,
}

/// The health of one address, shared by all workers.
#[derive(Debug)]
pub(super) struct Health {
    /// See [`Published`]. Written with the lock held, only on changes.
    published: CacheLine<AtomicU32>,
    /// Whether a request is under way as a trial.
    has_trial: AtomicBool,
    slow_start: Duration,
    /// Each worker's requests and failures.
    counts: Box<[CacheLine<Counts>]>,
    inner: Mutex<Inner>,
}

/// One worker's requests with a verdict.
#[derive(Debug, Default)]
struct Counts {
    requests: Counter,
    failures: Counter,
}

/// What workers read: the state, the weight, and whether a success or a new connection must reset a
/// row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Published(u32);

impl Published {
    const HAS_FAILURE: u32 = 1 << 16;
    const HAS_UNCONNECTED: u32 = 1 << 17;

    fn new(inner: &Inner, weight_tenths: u32) -> Self {
        let mut word = inner.state.index() as u32 | weight_tenths << 8;
        if inner.failures > 0 {
            word |= Self::HAS_FAILURE;
        }
        if inner.unconnected > 0 {
            word |= Self::HAS_UNCONNECTED;
        }
        Self(word)
    }

    fn is(self, state: State) -> bool {
        self.0 & 0xff == state.index() as u32
    }

    fn weight_tenths(self) -> u32 {
        self.0 >> 8 & 0xff
    }

    fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// A request under way as a trial. The next one begins after it is dropped.
#[derive(Debug)]
pub(super) struct Trial(Arc<Health>);

impl Drop for Trial {
    fn drop(&mut self) {
        self.0.has_trial.store(false, Relaxed);
    }
}

impl Health {
    /// An address in use. Its weight grows within `slow_start` unless it is one of the first list
    /// of addresses at the start of the process; zero turns slow start off.
    pub(super) fn new(
        workers: usize,
        slow_start: Duration,
        is_first_list: bool,
        now: Moment,
    ) -> Self {
        let health = Self {
            published: CacheLine::default(),
            has_trial: AtomicBool::default(),
            slow_start,
            counts: (0..workers).map(|_| CacheLine::default()).collect(),
            inner: Mutex::new(Inner::new(is_first_list, now)),
        };
        health.publish(&mut health.inner.lock(), now);
        health
    }

    /// Whether the address is in.
    pub(super) fn is_in(&self) -> bool {
        self.published().is(State::In)
    }

    /// Whether requests may go to the address: it is in, or it awaits a trial. If no address is
    /// available, the caller treats all as available.
    pub(super) fn is_available(&self) -> bool {
        let published = self.published();
        published.is(State::In) || published.is(State::Trial) && !self.has_trial.load(Relaxed)
    }

    /// Whether a request to the address must be a [`Trial`].
    pub(super) fn is_trial(&self) -> bool {
        self.published().is(State::Trial)
    }

    /// Whether the address was taken out of use because of failures, and is not back yet. No more
    /// than half of the addresses may be so.
    pub(super) fn is_ejected(&self) -> bool {
        let published = self.published();
        published.is(State::Failing) || published.is(State::Trial)
    }

    /// The weight in tenths of the configured one, from 1 to 10.
    pub(super) fn weight_tenths(&self) -> u32 {
        self.published().weight_tenths()
    }

    /// Begins a trial. `None` if another one is under way, or the state has changed: the caller
    /// then chooses again.
    pub(super) fn try_begin_trial(self: &Arc<Self>) -> Option<Trial> {
        let begins = self.is_trial() && !self.has_trial.swap(true, Relaxed);
        begins.then(|| Trial(Arc::clone(self)))
    }

    /// A connection was made, by a worker or by the control runtime.
    pub(super) fn connected(&self, now: Moment) -> Option<Transition> {
        let published = self.published();
        if !published.has(Published::HAS_UNCONNECTED) && !published.is(State::Unreachable) {
            return None;
        }
        self.change(now, |inner, totals| {
            inner.unconnected = 0;
            (inner.state == State::Unreachable).then(|| inner.take_in(totals, now))
        })
    }

    /// A connection could not be made.
    pub(super) fn connect_failed(&self, now: Moment) -> Option<Transition> {
        self.change(now, |inner, _| {
            inner.unconnected = inner.unconnected.saturating_add(1);
            let is_out = matches!(inner.state, State::Unreachable | State::Unhealthy);
            (inner.unconnected >= UNCONNECTED && !is_out)
                .then(|| inner.take_out(State::Unreachable, Reason::Connect, None, now))
        })
    }

    /// A request of this worker succeeded. `now` reads the clock; it is called only if the success
    /// changes something.
    ///
    /// During a trial a success counts even if its request began before the trial: the address
    /// works.
    pub(super) fn succeeded(
        &self,
        worker: usize,
        now: impl FnOnce() -> Moment,
    ) -> Option<Transition> {
        if let Some(counts) = self.counts.get(worker) {
            counts.requests.add(1);
        }
        let published = self.published();
        if !published.has(Published::HAS_FAILURE) && !published.is(State::Trial) {
            return None;
        }
        let now = now();
        self.change(now, |inner, totals| {
            inner.failures = 0;
            (inner.state == State::Trial).then(|| inner.take_in(totals, now))
        })
    }

    /// A request of this worker failed, and the address is to blame.
    ///
    /// `random` is a random number for the length of the ejection. `may_eject` is called if the
    /// address is to be ejected; it refuses by `None` if the number of *other* addresses that
    /// [are ejected](Self::is_ejected) is already half of all, rounded down. It returns the guard of
    /// a lock that is common to all addresses of the upstream, which is held until the state has
    /// changed: two workers at the same moment would otherwise eject one too many. It must not call
    /// methods that change the health of an address.
    pub(super) fn failed<G>(
        &self,
        worker: usize,
        now: Moment,
        reason: Reason,
        random: u64,
        may_eject: impl FnOnce() -> Option<G>,
    ) -> Option<Transition> {
        // The guard outlives the publication of the new state.
        let mut guard = None;
        self.change(now, |inner, totals| {
            inner.window.advance(now, totals);
            if let Some(counts) = self.counts.get(worker) {
                counts.requests.add(1);
                counts.failures.add(1);
            }
            inner.failures = inner.failures.saturating_add(1);
            let is_due = match inner.state {
                State::Trial => true,
                State::In => inner.has_failed_too_often(self.totals()),
                State::Unreachable | State::Failing | State::Unhealthy => false,
            };
            if !is_due {
                return None;
            }
            guard = Some(may_eject()?);
            inner.times = inner.times.saturating_add(1);
            let until = now + ejection(inner.times, random);
            Some(inner.take_out(State::Failing, reason, Some(until), now))
        })
    }

    /// An active check ended. `fall` failures in a row take the address out of use, `rise`
    /// successes in a row bring it back.
    pub(super) fn checked(
        &self,
        is_healthy: bool,
        fall: u32,
        rise: u32,
        now: Moment,
    ) -> Option<Transition> {
        self.change(now, |inner, totals| {
            if is_healthy {
                inner.failed_checks = 0;
                inner.unconnected = 0;
                inner.good_checks = inner.good_checks.saturating_add(1);
            } else {
                inner.good_checks = 0;
                inner.failed_checks = inner.failed_checks.saturating_add(1);
            }
            match inner.state {
                State::Unhealthy if inner.good_checks >= rise && is_healthy => {
                    Some(inner.take_in(totals, now))
                }
                // The check has made a connection.
                State::Unreachable if is_healthy => Some(inner.take_in(totals, now)),
                State::In | State::Trial | State::Failing | State::Unreachable
                    if inner.failed_checks >= fall && !is_healthy =>
                {
                    Some(inner.take_out(State::Unhealthy, Reason::Check, None, now))
                }
                _ => None,
            }
        })
    }

    /// Moves time on: the end of an ejection, slow start, the window of failures. To be called a
    /// few times a second.
    pub(super) fn tick(&self, now: Moment) -> Option<Transition> {
        self.change(now, |inner, totals| {
            inner.window.advance(now, totals);
            inner.forgive(now);
            // Only ejections have an end.
            let is_over = inner.until.is_some_and(|until| now >= until);
            is_over.then(|| inner.begin_trials(now))
        })
    }

    /// The state for `/status`.
    pub(super) fn snapshot(&self) -> Snapshot {
        let inner = self.inner.lock();
        Snapshot {
            state: inner.state,
            reason: inner.reason,
            since: inner.since,
            until: inner.until,
            ejections: inner.ejections,
            weight_tenths: self.weight_tenths(),
        }
    }

    fn published(&self) -> Published {
        Published(self.published.load(Relaxed))
    }

    /// Changes the state with the lock held, and publishes it.
    fn change(
        &self,
        now: Moment,
        change: impl FnOnce(&mut Inner, Totals) -> Option<Transition>,
    ) -> Option<Transition> {
        let mut inner = self.inner.lock();
        let transition = change(&mut inner, self.totals());
        self.publish(&mut inner, now);
        transition
    }

    fn publish(&self, inner: &mut Inner, now: Moment) {
        let weight_tenths = inner.weight_tenths(self.slow_start, now);
        let published = Published::new(inner, weight_tenths);
        // An unchanged word is not written: the write would take the cache line from all readers.
        if self.published() != published {
            self.published.store(published.0, Relaxed);
        }
    }

    /// The requests and failures of all workers.
    fn totals(&self) -> Totals {
        let sum = |of: fn(&Counts) -> &Counter| {
            let values = self.counts.iter().map(|counts| of(counts).value());
            values.fold(0, u64::wrapping_add)
        };
        Totals {
            requests: sum(|counts| &counts.requests),
            failures: sum(|counts| &counts.failures),
        }
    }
}

#[cfg(test)]
mod tests;
