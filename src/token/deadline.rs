//! Deadlines of calls to the issuer.
//!
//! A process can be stopped while a response waits in its socket: by a suspend, a pause of the
//! virtual machine, or a signal. The timer then fires together with the data. So every deadline of
//! a call looks at what has arrived before it gives up ([`data_first`]): a response that is thrown
//! away costs a refresh token.

use std::{pin::pin, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fleet::Fence;
use crate::base::clock::{Moment, SharedClock};

/// The time between two looks at the clock of [`while_running`], and what a busy machine adds to it.
const SLICE: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_millis(250);

/// How long after a deadline what has arrived may take to be read.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// When a call to the issuer is given up, on the boot clock. It is earlier for a process that ends.
#[derive(Debug, Clone)]
pub(super) struct CallDeadline {
    clock: SharedClock,
    at: Moment,
    stop: CancellationToken,
    at_stop: Moment,
    /// Of a replica.
    fence: Option<Fence>,
}

impl CallDeadline {
    /// At `at`; at `at_stop` if `stop` is cancelled.
    pub(super) fn new(
        clock: SharedClock,
        at: Moment,
        stop: CancellationToken,
        at_stop: Moment,
    ) -> Self {
        Self {
            clock,
            at,
            stop,
            at_stop,
            fence: None,
        }
    }

    /// Requests of this call are written only while the fence is open.
    pub(super) fn behind(self, fence: Option<Fence>) -> Self {
        Self { fence, ..self }
    }

    /// Whether a request may be written now.
    pub(super) fn may_send(&self) -> bool {
        self.fence.as_ref().is_none_or(Fence::is_open)
    }

    /// After `limit`, from now.
    pub(super) fn after(clock: &SharedClock, limit: Duration) -> Self {
        let at = clock.now() + limit;
        Self::new(SharedClock::clone(clock), at, CancellationToken::new(), at)
    }

    /// The deadline of a request that uses nothing, within this call: after `limit` at the latest, and
    /// at once if the process ends.
    pub(super) fn of_harmless_request(&self, limit: Duration) -> Self {
        let now = self.clock.now();
        Self {
            at: self.at.min(now + limit),
            at_stop: now,
            ..self.clone()
        }
    }

    /// Runs `work`, which comes before the request. `None` if the process ends or the call is given
    /// up by then: what can be used once is not sent when nothing awaits the response.
    pub(super) async fn before_request<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            done = work => (self.clock.now() < self.at).then_some(done),
            () = self.clock.sleep_until(self.at) => None,
        }
    }

    /// Runs `work` until the deadline. `None` if it has not ended by then.
    pub(super) async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        data_first(work, self.passed()).await
    }

    async fn passed(&self) {
        let stopped = async {
            self.stop.cancelled().await;
            self.clock.sleep_until(self.at_stop).await;
        };
        tokio::select! {
            () = self.clock.sleep_until(self.at) => {}
            () = stopped => {}
        }
    }
}

/// Runs `work` until `deadline` resolves, and then for as long as reading what has already arrived
/// may take. `None` if it has not ended by then.
pub(super) async fn data_first<T>(
    work: impl Future<Output = T>,
    deadline: impl Future<Output = ()>,
) -> Option<T> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return Some(done),
        () = deadline => {}
    }
    tokio::time::timeout(LAST_LOOK, work).await.ok()
}

/// The output of `work`, if it ends while the process runs for `limit`. The time in which the process
/// is stopped (a signal, a pause of the virtual machine) does not count: nothing that `work` waits
/// for could happen in it.
pub(super) async fn while_running<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = limit;
    while !left.is_zero() {
        let slice = left.min(SLICE);
        let begin = Instant::now();
        match tokio::time::timeout(slice, work.as_mut()).await {
            Ok(output) => return Some(output),
            Err(_) => left -= begin.elapsed().min(slice + LATE).min(left),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc};

    use super::*;
    use crate::base::clock::{Clock as _, Simulated};

    #[tokio::test(start_paused = true)]
    async fn field_a16_a_call_that_is_given_up_while_it_connects_sends_nothing() {
        let clock = Arc::new(Simulated::new());
        let at = clock.now() + Duration::from_secs(10);
        let stop = CancellationToken::new();
        let shared: SharedClock = Arc::<Simulated>::clone(&clock);
        let deadline = CallDeadline::new(shared, at, stop.clone(), at);
        assert_eq!(deadline.before_request(async { 1 }).await, Some(1));
        let after = |seconds| {
            let clock = Arc::clone(&clock);
            async move {
                clock
                    .sleep_until(clock.now() + Duration::from_secs(seconds))
                    .await;
            }
        };
        assert_eq!(deadline.before_request(after(9)).await, Some(()));
        let stopped = async {
            after(1).await;
            stop.cancel();
        };
        let (connected, ()) = tokio::join!(deadline.before_request(pending::<()>()), stopped);
        assert_eq!(connected, None, "stopped meanwhile");
        assert_eq!(deadline.before_request(async { 1 }).await, None, "before");
        let deadline = CallDeadline::after(&deadline.clock, Duration::from_secs(1));
        assert_eq!(deadline.before_request(after(2)).await, None, "too late");
        let deadline = CallDeadline::after(&deadline.clock, Duration::from_secs(1));
        let connecting = deadline.before_request(pending::<()>());
        let limited = tokio::time::timeout(Duration::from_secs(10), connecting);
        assert_eq!(limited.await, Ok(None), "it never connects");
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_process_is_stopped_does_not_count() {
        const LIMIT: Duration = Duration::from_secs(5);
        assert_eq!(while_running(LIMIT, async { 1 }).await, Some(1));
        let begin = Instant::now();
        assert_eq!(while_running(LIMIT, pending::<()>()).await, None);
        assert_eq!(begin.elapsed(), LIMIT);

        let waiting = tokio::spawn(while_running(LIMIT, async {
            tokio::time::sleep(Duration::from_secs(64)).await;
        }));
        tokio::task::yield_now().await;
        // The clock jumps while nothing runs.
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(waiting.await.expect("no panic"), Some(()));
    }
}
