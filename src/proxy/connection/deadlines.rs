//! Runs the work of a client's connection or stream until a deadline expires.

use std::{future::poll_fn, pin::Pin, task::Poll};

use crate::{
    base::ticker::Deadline,
    proxy::metrics::{ClientTimeout, Metrics},
};

/// The deadlines of one connection or stream. Its state arms and disarms them.
pub(crate) struct ClientDeadlines {
    /// The client must have sent something by then.
    pub(crate) read: Deadline,
    /// The client must have accepted some of the response by then.
    pub(crate) write: Deadline,
}

impl ClientDeadlines {
    /// Runs `work` to completion; `None` if a deadline expires before. Pinned by the caller: by value
    /// it would take its size twice in the caller's future.
    pub(crate) async fn run<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.read.poll_due(cx).is_ready() => Poll::Ready(None),
            Poll::Pending => self.write.poll_due(cx).map(|()| None),
        })
        .await
    }

    /// Counts the timeout that has expired. The two are what the deadlines stood for; `None`: closing
    /// was the proxy's decision.
    pub(crate) fn count_expired(
        &self,
        read_timeout: Option<ClientTimeout>,
        write_timeout: ClientTimeout,
        metrics: &Metrics,
    ) {
        let timeout = if self.write.is_due() {
            Some(write_timeout)
        } else {
            read_timeout
        };
        if let Some(timeout) = timeout {
            metrics.client_timeouts[timeout].add(1);
        }
    }
}
