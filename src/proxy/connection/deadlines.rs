//! Until when a client must have sent something, or taken something.

use std::{future::poll_fn, pin::pin, task::Poll};

use crate::{
    base::ticker::Deadline,
    proxy::{
        connection::state::ConnState,
        metrics::{ClientTimeout, Metrics},
    },
};

/// Until when a client must have sent something, or taken something.
pub(crate) struct Due {
    pub(crate) read: Deadline,
    pub(crate) write: Deadline,
}

impl Due {
    /// Runs `work` to its end; `None` if the client was late before.
    pub(crate) async fn cut<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.read.poll_due(cx).is_ready() => Poll::Ready(None),
            Poll::Pending => self.write.poll_due(cx).map(|()| None),
        })
        .await
    }

    /// Counts what a client was late with.
    pub(crate) fn count(&self, monitor: &ConnState, metrics: &Metrics) {
        let late = if self.write.is_due() {
            Some(ClientTimeout::Body)
        } else {
            monitor.passed()
        };
        if let Some(late) = late {
            metrics.client_timeouts[late].add(1);
        }
    }
}
