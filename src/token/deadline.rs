//! Deadlines of calls to the issuer.
//!
//! A process can be stopped while a response waits in its socket: by a suspend, a pause of the
//! virtual machine, or a signal. The timer then fires together with the data. So every deadline of
//! a call looks at what has arrived before it gives up ([`data_first`]): a response that is thrown
//! away costs a refresh token.

use std::{pin::pin, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::base::clock::{Moment, SharedClock};

/// How long after a deadline what has arrived may take to be read.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// When a call to the issuer is given up, on the boot clock. It is earlier for a process that ends.
#[derive(Debug, Clone)]
pub(super) struct CallDeadline {
    clock: SharedClock,
    at: Moment,
    stop: CancellationToken,
    at_stop: Moment,
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
        }
    }

    /// After `limit`, from now.
    pub(super) fn after(clock: &SharedClock, limit: Duration) -> Self {
        let at = clock.now() + limit;
        Self::new(SharedClock::clone(clock), at, CancellationToken::new(), at)
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
