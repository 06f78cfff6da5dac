//! Limits what a server can make this process hold: bytes are read from a connection only as far as
//! the commands that were sent justify. Remembers why the connection ended, which the crate forgets
//! for several commands at once.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::fault::Fault;
use crate::token::fleet::register::VALUE_LIMIT;

/// What a response may have beside values: a few numbers, `INFO`, errors.
pub(super) const OVERHEAD: usize = 64 * 1024;

/// Lines of one response. `INFO` has a few hundred, encrypted values have one in 64 KiB. A parsed
/// element takes twenty times the memory of the shortest line.
const LINES: usize = 4096;

/// The number of commands that add up. They are sent one at a time, or two: a look and a beat.
const MAX_COMMANDS: usize = 2;

/// What may still be received on one connection.
#[derive(Debug, Default)]
struct Left {
    /// Why nothing more is received.
    end: Option<Fault>,
    /// Commands whose response is awaited.
    commands: usize,
    bytes: usize,
    lines: usize,
    ends_with_cr: bool,
}

/// The allowance of one connection, shared by the sender of commands and the stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowance(Arc<Mutex<Left>>);

/// A command whose response is awaited.
pub(super) struct Awaited<'a>(&'a Allowance);

impl Allowance {
    /// Allows a response with a value of [`VALUE_LIMIT`], until the result is dropped. What is left
    /// then covers a response that comes late.
    pub(super) fn for_command(&self) -> Awaited<'_> {
        let mut left = self.0.lock();
        left.commands += 1;
        left.bytes = (left.bytes + VALUE_LIMIT + OVERHEAD).min(MAX_COMMANDS * VALUE_LIMIT);
        left.lines = (left.lines + LINES).min(MAX_COMMANDS * LINES);
        Awaited(self)
    }

    /// Why the connection has ended; `None` if the stream has not.
    pub(super) fn end(&self) -> Option<Fault> {
        self.0.lock().end.clone()
    }

    /// Notes the first cause.
    fn ended(&self, cause: Fault) {
        self.0.lock().end.get_or_insert(cause);
    }

    fn failed(&self, error: io::Error) -> io::Error {
        self.ended(Fault::of_stream(&error));
        error
    }

    fn take(&self, received: &[u8]) -> io::Result<()> {
        let mut left = self.0.lock();
        let lines = left.lines_in(received);
        let after = left
            .bytes
            .checked_sub(received.len())
            .zip(left.lines.checked_sub(lines));
        let Some((bytes, lines)) = after else {
            left.end.get_or_insert(Fault::TooLarge);
            // Of this kind the client of the protocol knows that the connection cannot be used.
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        (left.bytes, left.lines) = (bytes, lines);
        Ok(())
    }
}

impl Left {
    /// The line ends in `received`, also if one is split between two reads.
    fn lines_in(&mut self, received: &[u8]) -> usize {
        let is_split = self.ends_with_cr && received.first() == Some(&b'\n');
        if let Some(last) = received.last() {
            self.ends_with_cr = *last == b'\r';
        }
        usize::from(is_split) + memchr::memmem::find_iter(received, b"\r\n").count()
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let mut left = self.0.0.lock();
        left.commands -= 1;
        if left.commands == 0 {
            left.bytes = left.bytes.min(OVERHEAD);
            left.lines = left.lines.min(LINES);
        }
    }
}

/// A connection from which no more is read than its [`Allowance`].
#[derive(Debug)]
pub(super) struct Bounded<S> {
    stream: S,
    allowance: Allowance,
}

impl<S> Bounded<S> {
    pub(super) fn new(stream: S, allowance: Allowance) -> Self {
        Self { stream, allowance }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        read.map_err(|error| self.allowance.failed(error))?;
        let received = &buf.filled()[before..];
        if received.is_empty() {
            self.allowance.ended(Fault::closed());
        }
        Poll::Ready(self.allowance.take(received))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(result.map_err(|error| self.allowance.failed(error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(result.map_err(|error| self.allowance.failed(error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_received_is_limited_by_what_was_asked() {
        let allowance = Allowance::default();
        assert!(allowance.take(b"+OK\r\n").is_err(), "nothing was asked");
        assert_eq!(allowance.end(), Some(Fault::TooLarge));

        let allowance = Allowance::default();
        let first = allowance.for_command();
        allowance.take(&[b'x'; VALUE_LIMIT]).expect("a value");
        allowance.take(b"+OK\r\n").expect("and the rest");
        drop(first);
        allowance.take(b"+OK\r\n").expect("a late response");
        assert_eq!(allowance.end(), None);
        assert!(allowance.take(&[b'x'; OVERHEAD]).is_err(), "too much");
        assert_eq!(allowance.end(), Some(Fault::TooLarge));

        // What was left over does not add up.
        let allowance = Allowance::default();
        for _ in 0..10 {
            drop(allowance.for_command());
        }
        let _awaited = allowance.for_command();
        assert!(allowance.take(&[b'x'; VALUE_LIMIT * 5 / 4]).is_err());
    }

    #[test]
    fn lines_are_limited_too_wherever_reads_split_them() {
        for size in [1, 2, 3, 4, 5, 7, 64] {
            let allowance = Allowance::default();
            let _awaited = allowance.for_command();
            let hostile = b"*0\r\n".repeat(LINES);
            for part in hostile.chunks(size) {
                allowance.take(part).expect("as many as are allowed");
            }
            assert!(allowance.take(b"*0\r\n").is_err(), "reads of {size}");
        }
    }
}
