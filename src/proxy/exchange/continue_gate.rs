//! `Expect: 100-continue` toward the upstream, RFC 9110 §10.1.1.
//!
//! A body that cannot be recorded for a replay would be lost with the first response that rejects
//! the token. Its head is therefore sent alone, and the body follows when the upstream responds 100
//! or, since not every server does, after a timeout. A final response that comes instead costs
//! nothing: no byte of the body was read from the client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use atomic_waker::AtomicWaker;
use http::{HeaderValue, Request, StatusCode, header};

/// How long to wait for the 100 response.
pub(crate) const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Holds a request body back. Atomics, since hyper requires `Send + Sync` of the callback that
/// reports the 100 response; one thread uses them.
#[derive(Debug, Default)]
pub(crate) struct ContinueGate {
    is_open: AtomicBool,
    /// The upstream has responded 100.
    is_confirmed: AtomicBool,
    waiting: AtomicWaker,
}

impl ContinueGate {
    /// Adds the `Expect` field to a request; the 100 response to it opens the gate.
    pub(crate) fn expect_continue<B>(self: &Arc<Self>, request: &mut Request<B>) {
        let gate = Arc::clone(self);
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                gate.is_confirmed.store(true, Relaxed);
                gate.open();
            }
        });
        request
            .headers_mut()
            .insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    }

    /// Lets the body pass.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Relaxed);
        self.waiting.wake();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Relaxed)
    }

    /// Whether the upstream has responded 100.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.is_confirmed.load(Relaxed)
    }

    pub(crate) fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting.register(cx.waker());
        if self.is_open() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
