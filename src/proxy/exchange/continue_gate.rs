//! A body that waits until its upstream wants it: `Expect: 100-continue`, RFC 9110 §10.1.1.
//!
//! A body that cannot be kept for sending again would be lost with the first refusal. So its head goes ahead, and the body
//! follows when the upstream says 100, or, since not every server does, after a while. A refusal that comes instead costs
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

/// How long an upstream may take to say 100.
pub(crate) const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a body waits behind. hyper reports the 100 through something that must be `Send + Sync`, hence atomics, although all
/// of this happens on one thread.
#[derive(Debug, Default)]
pub(crate) struct ContinueGate {
    is_open: AtomicBool,
    /// The upstream has said 100.
    is_wanted: AtomicBool,
    waiting: AtomicWaker,
}

impl ContinueGate {
    /// Asks this request's upstream to say 100, which opens the gate.
    pub(crate) fn ask<B>(self: &Arc<Self>, request: &mut Request<B>) {
        let gate = Arc::clone(self);
        hyper::ext::on_informational(request, move |answer| {
            if answer.status() == StatusCode::CONTINUE {
                gate.is_wanted.store(true, Relaxed);
                gate.open();
            }
        });
        request
            .headers_mut()
            .insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    }

    /// Lets the body through.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Relaxed);
        self.waiting.wake();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Relaxed)
    }

    /// Whether the upstream has said 100.
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Relaxed)
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
