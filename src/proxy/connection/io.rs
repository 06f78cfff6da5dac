//! The client's socket: counts bytes, and reports reads and writes to the connection's state.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::{
    net::socket::Stream,
    proxy::{connection::state::ConnState, metrics::Metrics},
};

/// Plain TCP or a Unix socket, or TLS over it.
pub(crate) type Transport = Either<Stream, Box<TlsStream<Stream>>>;

/// The most that is read of a client during an exchange and not yet needed.
const READ_AHEAD: usize = 4096;

/// The client's socket.
pub(crate) struct Io {
    transport: Transport,
    /// Bytes that were read to detect the protocol.
    unread: Bytes,
    state: ConnState,
    metrics: Arc<Metrics>,
}

impl Io {
    pub(crate) fn new(transport: Transport, state: ConnState, metrics: Arc<Metrics>) -> Self {
        Self {
            transport,
            unread: Bytes::new(),
            state,
            metrics,
        }
    }

    /// Reports to this state from now on.
    pub(crate) fn set_state(&mut self, state: ConnState) {
        self.state = state;
    }

    /// The protocol that ALPN agreed on (RFC 7301), `Some(None)` if none; `None` without TLS.
    pub(crate) fn alpn_protocol(&self) -> Option<Option<&[u8]>> {
        match &self.transport {
            Either::Left(_) => None,
            Either::Right(stream) => Some(stream.get_ref().1.alpn_protocol()),
        }
    }

    /// Puts bytes back that were read: the next read returns them again.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        self.unread = bytes;
    }

    /// Whether bytes were read that no reader has taken.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Fails if the client has reset the connection. Wakes the task when this may have changed.
    pub(crate) fn check_reset(&self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.socket().poll_reset(cx) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }

    /// Notices that the client has closed its side; fails if it has reset the connection. Wakes the
    /// task when this may have changed.
    ///
    /// Both stand behind what the client has sent: with TLS its `close_notify`, or the next request.
    /// That is read, up to a limit, and kept.
    pub(crate) fn read_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); READ_AHEAD];
        while self.unread.len() < READ_AHEAD {
            let mut buf = ReadBuf::uninit(&mut buffer);
            match Pin::new(&mut self.transport).poll_read(cx, &mut buf) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.metrics.received_bytes.add(buf.filled().len() as u64);
                    self.unread = [&self.unread, buf.filled()].concat().into();
                }
                Poll::Ready(Ok(())) => {
                    self.state.half_closed();
                    break;
                }
                // TLS without `close_notify`.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.state.half_closed();
                    break;
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn socket(&self) -> &Stream {
        match &self.transport {
            Either::Left(stream) => stream,
            Either::Right(stream) => stream.get_ref().0,
        }
    }

    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &written {
            self.metrics.sent_bytes.add(*n as u64);
        }
        self.state.written(&written);
        written
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let n = self.unread.len().min(buf.remaining());
            buf.put_slice(&self.unread.split_to(n));
            self.state.received();
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.transport).poll_read(cx, buf);
        let n = buf.filled().len() - before;
        if n > 0 {
            self.metrics.received_bytes.add(n as u64);
            self.state.received();
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.transport).poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            self.state.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.is_aborted() {
            // A FIN would be the regular end of a response that is delimited by the close.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        // After a panic it is unknown how much of a response was written.
        if self.state.is_aborted() || std::thread::panicking() {
            self.socket().reset_on_close();
        }
    }
}
