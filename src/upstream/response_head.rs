//! The heads of HTTP/1 responses, before hyper reads them.
//!
//! hyper refuses a response for one byte that its parser does not expect: a control character in a
//! value, the hundred-and-first field. Other proxies forward such a response. So a head is repaired
//! first: the byte is replaced, and fields beyond the number that hyper accepts are added to the
//! response afterwards. A head that needs no repair is neither copied nor changed.
//!
//! Bodies are not read: the users of the connection announce each request, and the reader is
//! transparent from the end of the response's head to the next request. The end of a head is the
//! first empty line, as for hyper, and fields that frame the body are never repaired. So the repair
//! changes no decision about where a message ends.

mod repair;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Response};
use hyper::ext::ReasonPhrase;
use parking_lot::Mutex;
use tokio::io::ReadBuf;

use self::repair::{Scan, Scanner};

/// What hyper reads in place of a head that is too large: no valid status line.
const SUBSTITUTE: &[u8] = b"too large\r\n\r\n";

/// What hyper does not take from a head.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remainder {
    /// A reason phrase with bytes outside ASCII (RFC 9112 §4).
    reason: Option<ReasonPhrase>,
    /// The last fields of a head with many.
    fields: Vec<(HeaderName, HeaderValue)>,
}

/// The state of a connection's [`HeadReader`], which the users of the connection share. Atomics,
/// since hyper requires `Send` of a connection that can be upgraded; one thread uses them.
#[derive(Debug, Default)]
pub(super) struct HeadState {
    phase: AtomicU8,
    /// Whether the head of the response has begun and is not complete.
    is_partial: AtomicBool,
    /// Interim responses so far (RFC 9110 §15.2).
    pub(super) interim: AtomicU32,
    remainder: Mutex<Remainder>,
}

/// No head is expected: bytes pass as they are.
const BODY: u8 = 0;
/// A request was sent; the head of its final response has not been read.
const HEAD: u8 = 1;
/// As `BODY`; hyper has not taken all of the head.
const BODY_WITH_REMAINDER: u8 = 2;

impl HeadState {
    /// A request is about to be sent.
    pub(super) fn expect_head(&self) {
        self.phase.store(HEAD, Relaxed);
        self.is_partial.store(false, Relaxed);
    }

    /// Whether a part of the head has arrived, and not all of it.
    pub(super) fn is_partial(&self) -> bool {
        self.is_partial.load(Relaxed)
    }

    /// Adds to a response what hyper has not taken from its head.
    pub(super) fn complete<B>(&self, response: &mut Response<B>) {
        if self.phase.load(Relaxed) != BODY_WITH_REMAINDER {
            return;
        }
        self.phase.store(BODY, Relaxed);
        let Remainder { reason, fields } = std::mem::take(&mut *self.remainder.lock());
        if let Some(reason) = reason {
            response.extensions_mut().insert(reason);
        }
        for (name, value) in fields {
            response.headers_mut().append(name, value);
        }
    }

    fn end_head(&self, remainder: Remainder) {
        let phase = if remainder == Remainder::default() {
            BODY
        } else {
            *self.remainder.lock() = remainder;
            BODY_WITH_REMAINDER
        };
        self.phase.store(phase, Relaxed);
    }
}

/// Reads the heads of the responses on one connection.
#[derive(Debug)]
pub(super) struct HeadReader {
    state: Arc<HeadState>,
    scanner: Scanner,
    /// The beginning of a head that is not complete yet.
    partial: BytesMut,
    /// Read, and not taken by hyper yet.
    ready: Bytes,
}

impl HeadReader {
    /// `limit` is the size of the largest head, in bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            state: Arc::default(),
            scanner: Scanner::new(limit),
            partial: BytesMut::new(),
            ready: Bytes::new(),
        }
    }

    pub(super) fn state(&self) -> &Arc<HeadState> {
        &self.state
    }

    /// Moves what was held back to `buf`. Returns whether there was any.
    pub(super) fn take_ready(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        if self.ready.is_empty() {
            return false;
        }
        let n = self.ready.len().min(buf.remaining());
        buf.put_slice(&self.ready.split_to(n));
        true
    }

    /// What hyper has not read when the connection becomes a tunnel.
    pub(super) fn into_ready(self) -> Bytes {
        self.ready
    }

    /// Takes what was read behind `before`, and leaves in the buffer what hyper may have of it. The
    /// rest is held back until the head is complete.
    pub(super) fn read(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if self.state.phase.load(Relaxed) != HEAD {
            return;
        }
        let read = &buf.filled()[before..];
        if read.is_empty() {
            // The end of the stream: hyper reports the incomplete head.
            self.ready = std::mem::take(&mut self.partial).freeze();
            return;
        }
        let mut good = 0;
        if self.partial.is_empty() {
            while let Scan::Complete(head) = self.scanner.scan(&read[good..])
                && head.is_regular
            {
                self.scanner.reset();
                good += head.length;
                if head.is_final {
                    return self.state.end_head(Remainder::default());
                }
                self.state.interim.fetch_add(1, Relaxed);
                if good == read.len() {
                    return;
                }
            }
            self.scanner.reset();
        }
        self.partial.extend_from_slice(&read[good..]);
        self.state.is_partial.store(true, Relaxed);
        buf.set_filled(before + good);
        self.ready = self.read_partial();
    }

    /// The complete heads in `partial`, repaired where necessary, and the body after them.
    fn read_partial(&mut self) -> Bytes {
        let mut ready = BytesMut::new();
        loop {
            let head = match self.scanner.scan(&self.partial) {
                Scan::Partial => return ready.freeze(),
                Scan::Foreign => {
                    // hyper fails at these bytes.
                    self.state.end_head(Remainder::default());
                    ready.unsplit(std::mem::take(&mut self.partial));
                    return ready.freeze();
                }
                Scan::TooLarge => {
                    self.state.end_head(Remainder::default());
                    self.partial = BytesMut::new();
                    ready.extend_from_slice(SUBSTITUTE);
                    return ready.freeze();
                }
                Scan::Complete(head) => head,
            };
            self.scanner.reset();
            let bytes = self.partial.split_to(head.length);
            let (is_final, remainder) = if head.is_regular {
                ready.unsplit(bytes);
                (head.is_final, Remainder::default())
            } else {
                let repaired = repair::repair(&bytes);
                ready.extend_from_slice(&repaired.head);
                (repaired.is_final, repaired.remainder)
            };
            if is_final {
                self.state.end_head(remainder);
                ready.unsplit(std::mem::take(&mut self.partial));
                return ready.freeze();
            }
            self.state.interim.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
