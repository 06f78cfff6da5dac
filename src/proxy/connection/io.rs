//! A client's socket, watched.

use std::{
    io,
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

/// In clear, or through TLS.
pub(crate) type Transport = Either<Stream, Box<TlsStream<Stream>>>;

/// A client's socket, watched.
pub(crate) struct Io {
    stream: Transport,
    /// Read already, to tell the protocols apart.
    ahead: Bytes,
    monitor: Arc<ConnState>,
    metrics: Arc<Metrics>,
}

impl Io {
    pub(crate) fn new(stream: Transport, monitor: Arc<ConnState>, metrics: Arc<Metrics>) -> Self {
        Self {
            stream,
            ahead: Bytes::new(),
            monitor,
            metrics,
        }
    }

    /// What ALPN agreed on (RFC 7301), if the client speaks TLS.
    pub(crate) fn agreed_protocol(&self) -> Option<Option<&[u8]>> {
        match &self.stream {
            Either::Left(_) => None,
            Either::Right(stream) => Some(stream.get_ref().1.alpn_protocol()),
        }
    }

    /// Gives bytes back that were read to tell the protocols apart.
    pub(crate) fn unread(&mut self, ahead: Bytes) {
        self.ahead = ahead;
    }

    fn socket(&self) -> &Stream {
        match &self.stream {
            Either::Left(stream) => stream,
            Either::Right(stream) => stream.get_ref().0,
        }
    }

    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &written {
            self.metrics.sent_bytes.add(*n as u64);
        }
        self.monitor.written(&written);
        written
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let n = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let n = buf.filled().len() - before;
        if n > 0 {
            self.metrics.received_bytes.add(n as u64);
            self.monitor.received();
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
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper does not read while a request is answered, since a client may close its side and wait for the answer. One that
        // broke off would hold its slots until the upstream has answered.
        if self.monitor.is_answering() && self.socket().poll_reset(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            self.monitor.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.monitor.is_broken() {
            // A half-close would look like a clean end to a client that reads until the close.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        // After a panic it is not known how much of an answer has left.
        if self.monitor.is_broken() || std::thread::panicking() {
            self.socket().reset_on_close();
        }
    }
}
