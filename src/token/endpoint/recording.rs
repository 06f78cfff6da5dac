//! What a connection has sent and received, whatever the HTTP parser makes of it.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::Zeroizing;

/// The first bytes of a connection that are kept, in bytes: head, body and its framing.
pub(super) const RECORDED: usize = 256 * 1024;

/// The record of one connection, shared with its [`Recorder`].
#[derive(Clone, Default)]
pub(super) struct Recording(Arc<Mutex<Recorded>>);

/// What has passed through a connection.
#[derive(Default)]
pub(super) struct Recorded {
    /// At most [`RECORDED`] bytes.
    pub(super) received: Zeroizing<Vec<u8>>,
    /// Whether a byte of the request was written.
    pub(super) is_sent: bool,
}

impl Recording {
    pub(super) fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock()
    }
}

impl Recorded {
    fn receive(&mut self, bytes: &[u8]) {
        if self.received.capacity() == 0 {
            // In one allocation: a vector that grows would leave unwiped copies behind.
            self.received.reserve_exact(RECORDED);
        }
        let room = RECORDED - self.received.len();
        self.received
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// A transport that records what it transports.
pub(super) struct Recorder<T> {
    transport: T,
    recording: Recording,
}

impl<T> Recorder<T> {
    pub(super) fn new(transport: T, recording: Recording) -> Self {
        Self {
            transport,
            recording,
        }
    }

    fn note_sent(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.recording.lock().is_sent = true;
        }
    }
}

impl<T> fmt::Debug for Recorder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Recorder<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.transport).poll_read(cx, buf);
        if let Some(new) = buf.filled().get(before..)
            && !new.is_empty()
        {
            this.recording.lock().receive(new);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Recorder<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.note_sent(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.note_sent(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
