//! Holds a request's body back, so that a response that rejects the token comes before the body can
//! no longer be sent again.
//!
//! With `Expect: 100-continue` (RFC 9110 §10.1.1) the head is sent alone, and the body follows when
//! the upstream responds 100 or, since not every server does, after a timeout. A final response that
//! comes instead costs nothing: no byte of the body was read from the client. Where the expectation
//! does not work (HTTP/2, servers that ignore or refuse it), the body is sent as far as it is
//! recorded, and the rest after a shorter time.

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
use tokio::time::Instant;

/// How long to wait for the 100 response.
pub(crate) const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the rest of a body that is too large to be recorded is held back at least; more for
/// endpoints that are far away. Most servers reject a token as soon as they have read the head.
pub(crate) const MIN_REST_TIME: Duration = Duration::from_millis(200);

/// What is held back of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// All of it, until the upstream responds 100.
    All,
    /// What exceeds the recording, for a shorter time.
    Rest,
}

/// Holds a request body back. Atomics, since hyper requires `Send + Sync` of the callback that
/// reports the 100 response; one thread uses them.
#[derive(Debug)]
pub(crate) struct ContinueGate {
    held: Held,
    sends_expect: bool,
    /// When the rest is sent at the latest.
    rest_from: Instant,
    is_open: AtomicBool,
    /// The upstream has responded 100.
    is_confirmed: AtomicBool,
    waiting: AtomicWaker,
}

impl ContinueGate {
    /// Holds the whole body back, and asks the upstream for a 100 response.
    pub(crate) fn all() -> Arc<Self> {
        Arc::new(Self::new(Held::All, true, Instant::now()))
    }

    /// Holds the rest of a body back for this time.
    pub(crate) fn rest(time: Duration, sends_expect: bool) -> Arc<Self> {
        Arc::new(Self::new(Held::Rest, sends_expect, Instant::now() + time))
    }

    fn new(held: Held, sends_expect: bool, rest_from: Instant) -> Self {
        Self {
            held,
            sends_expect,
            rest_from,
            is_open: AtomicBool::new(false),
            is_confirmed: AtomicBool::new(false),
            waiting: AtomicWaker::new(),
        }
    }

    pub(crate) fn held(&self) -> Held {
        self.held
    }

    /// Adds the `Expect` field to a request, unless it is sent without; the 100 response to it opens
    /// the gate.
    pub(crate) fn prepare<B>(self: &Arc<Self>, request: &mut Request<B>) {
        if !self.sends_expect {
            return;
        }
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

    /// When the rest is sent at the latest.
    pub(crate) fn rest_from(&self) -> Instant {
        self.rest_from
    }

    pub(crate) fn sends_expect(&self) -> bool {
        self.sends_expect
    }

    /// Whether nothing of the body was sent.
    pub(crate) fn holds_all(&self) -> bool {
        self.held == Held::All && !self.is_open()
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
