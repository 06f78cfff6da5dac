//! Coarse deadlines for a single-threaded worker: one timer for each worker instead of several for
//! each request.
//!
//! A proxy needs a timeout for every wait: for the rest of a head, for more of a body, for a
//! response. A Tokio timer for each costs a few hundred nanoseconds per request. Here, arming a
//! deadline is one store, and a sweep every [`PERIOD`] wakes what is due. The accepted cost is
//! precision: a deadline fires up to two periods late, never early.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::sync::Notify;

/// The time between two sweeps.
pub const PERIOD: Duration = Duration::from_millis(100);

const NEVER: u64 = u64::MAX;

/// A duration in sweeps. Converted once from the configuration, so that no request needs a
/// division.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks(u64);

impl From<Duration> for Ticks {
    /// Rounds up and adds one, as the current period is partly over: never early.
    fn from(length: Duration) -> Self {
        let periods = length.as_nanos().div_ceil(PERIOD.as_nanos());
        Self(u64::try_from(periods).unwrap_or(NEVER / 2).min(NEVER / 2) + 1)
    }
}

impl From<Ticks> for u64 {
    fn from(length: Ticks) -> Self {
        length.0
    }
}

impl From<u64> for Ticks {
    fn from(sweeps: u64) -> Self {
        Self(sweeps)
    }
}

/// The worker's timer. Sleeps while no [`Deadline`] exists.
#[derive(Debug)]
pub struct Ticker {
    now: Arc<AtomicU64>,
    deadlines: RefCell<Slab<Rc<Entry>>>,
    first: Notify,
}

#[derive(Debug)]
struct Entry {
    due: Arc<AtomicU64>,
    waker: RefCell<Option<Waker>>,
}

impl Ticker {
    /// A ticker that does not advance until [`Ticker::run`] is polled.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            now: Arc::default(),
            deadlines: RefCell::default(),
            first: Notify::new(),
        })
    }

    /// The number of the current sweep.
    pub fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    /// Registers a deadline, disarmed.
    pub fn deadline(self: &Rc<Self>) -> Deadline {
        let entry = Rc::new(Entry {
            due: Arc::new(AtomicU64::new(NEVER)),
            waker: RefCell::default(),
        });
        let mut deadlines = self.deadlines.borrow_mut();
        if deadlines.is_empty() {
            self.first.notify_one();
        }
        let key = deadlines.insert(Rc::clone(&entry));
        Deadline {
            entry,
            key,
            ticker: Rc::clone(self),
        }
    }

    /// Sweeps until dropped; the worker spawns it once.
    pub async fn run(self: Rc<Self>) {
        loop {
            while self.deadlines.borrow().is_empty() {
                self.first.notified().await;
            }
            tokio::time::sleep(PERIOD).await;
            self.sweep();
        }
    }

    fn sweep(&self) {
        let now = self.now.load(Relaxed) + 1;
        self.now.store(now, Relaxed);
        for (_, entry) in &*self.deadlines.borrow() {
            if entry.due.load(Relaxed) <= now
                && let Some(waker) = entry.waker.borrow_mut().take()
            {
                waker.wake();
            }
        }
    }
}

/// A timeout that is armed and disarmed any number of times, at the cost of a store. One task
/// awaits it.
#[derive(Debug)]
pub struct Deadline {
    entry: Rc<Entry>,
    key: usize,
    ticker: Rc<Ticker>,
}

impl Deadline {
    /// Sets it to `length` from now.
    pub fn arm(&self, length: Ticks) {
        self.entry
            .due
            .store(self.ticker.now.load(Relaxed) + length.0, Relaxed);
    }

    /// Like [`Deadline::arm`], but leaves an armed deadline unchanged.
    pub fn arm_if_idle(&self, length: Ticks) {
        if self.entry.due.load(Relaxed) == NEVER {
            self.arm(length);
        }
    }

    /// Clears it: it is never due.
    pub fn disarm(&self) {
        self.entry.due.store(NEVER, Relaxed);
    }

    /// Whether it is due.
    pub fn is_due(&self) -> bool {
        self.entry.due.load(Relaxed) <= self.ticker.now.load(Relaxed)
    }

    /// Ready when due. Only the task that polled last is woken.
    pub fn poll_due(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_due() {
            return Poll::Ready(());
        }
        let mut waker = self.entry.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Resolves when due.
    pub async fn due(&self) {
        poll_fn(|cx| self.poll_due(cx)).await;
    }

    /// A handle that is `Send`.
    pub fn handle(&self) -> DeadlineHandle {
        DeadlineHandle {
            due: Arc::clone(&self.entry.due),
            now: Arc::clone(&self.ticker.now),
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.ticker.deadlines.borrow_mut().remove(self.key);
    }
}

/// Arms and disarms a [`Deadline`] from a type that must be `Send`, such as an IO wrapper.
#[derive(Debug, Clone)]
pub struct DeadlineHandle {
    due: Arc<AtomicU64>,
    now: Arc<AtomicU64>,
}

impl DeadlineHandle {
    /// The number of the current sweep.
    pub fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    /// Like [`Deadline::arm`].
    pub fn arm(&self, length: Ticks) {
        self.due.store(self.now.load(Relaxed) + length.0, Relaxed);
    }

    /// Like [`Deadline::arm`], but leaves an armed deadline unchanged.
    pub fn arm_if_idle(&self, length: Ticks) {
        if self.due.load(Relaxed) == NEVER {
            self.arm(length);
        }
    }

    /// Disarms it and returns the remaining time, if it was armed.
    pub fn pause(&self) -> Option<Ticks> {
        let due = self.due.load(Relaxed);
        self.disarm();
        (due != NEVER).then(|| Ticks(due.saturating_sub(self.now())))
    }

    /// Like [`Deadline::disarm`].
    pub fn disarm(&self) {
        self.due.store(NEVER, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{task::LocalSet, time::timeout};

    use super::*;

    async fn with_ticker<T>(test: impl AsyncFnOnce(Rc<Ticker>) -> T) -> T {
        LocalSet::new()
            .run_until(async {
                let ticker = Ticker::new();
                tokio::task::spawn_local(Rc::clone(&ticker).run());
                test(ticker).await
            })
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn fires_never_early_and_at_most_two_periods_late() {
        with_ticker(async |ticker| {
            let deadline = ticker.deadline();
            let start = tokio::time::Instant::now();
            deadline.arm(Duration::from_millis(950).into());
            deadline.due().await;
            let waited = start.elapsed();
            assert!(waited >= Duration::from_millis(950), "early: {waited:?}");
            assert!(
                waited <= Duration::from_millis(950) + 2 * PERIOD,
                "late: {waited:?}"
            );
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_disarmed_deadline_never_fires_and_a_rearmed_one_fires_later() {
        with_ticker(async |ticker| {
            let deadline = ticker.deadline();
            deadline.arm(PERIOD.into());
            deadline.disarm();
            assert!(
                timeout(Duration::from_secs(60), deadline.due())
                    .await
                    .is_err()
            );
            deadline.arm(Duration::from_secs(1).into());
            assert!(
                timeout(Duration::from_millis(900), deadline.due())
                    .await
                    .is_err()
            );
            deadline.handle().arm(Duration::from_secs(1).into());
            assert!(
                timeout(Duration::from_millis(900), deadline.due())
                    .await
                    .is_err()
            );
            deadline.due().await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn sleeps_while_no_deadline_exists() {
        with_ticker(async |ticker| {
            drop(ticker.deadline());
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let sweeps = ticker.now.load(Relaxed);
            assert!(sweeps <= 1, "{sweeps} sweeps without a deadline");
        })
        .await;
    }
}
