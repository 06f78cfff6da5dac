//! A client's socket, read in small pieces.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    base::coop::CoopBudget,
    proxy::{
        connection::state::ConnState,
        metrics::Metrics,
        server::http2::frames::{Frames, RefusedStreams},
    },
};

/// A client's socket, for HTTP/2.
pub(crate) struct ThrottledIo<T> {
    io: T,
    frames: Frames,
    refusals: RefusedStreams,
    metrics: Arc<Metrics>,
    monitor: Arc<ConnState>,
    budget: CoopBudget,
}

impl<T> ThrottledIo<T> {
    pub(crate) fn new(io: T, metrics: Arc<Metrics>, monitor: Arc<ConnState>) -> Self {
        let (frames, refusals) = (Frames::behind_preface(), RefusedStreams::default());
        Self {
            io,
            frames,
            refusals,
            metrics,
            monitor,
            budget: CoopBudget::default(),
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let refused = self.refusals.count(bytes);
        if refused > 0 {
            self.metrics.streams_refused.add(refused);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ThrottledIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let quota = this.monitor.conduct().quota();
        ready!(this.budget.poll_ready(cx, quota.frames as usize));
        let most = buf.remaining().min(this.frames.skip + quota.bytes);
        let mut piece = ReadBuf::new(buf.initialize_unfilled_to(most));
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, &mut piece) else {
            this.budget.reset();
            return Poll::Pending;
        };
        read?;
        let frames = this.frames.count(piece.filled());
        let read = piece.filled().len();
        buf.advance(read);
        this.budget.spend(frames as usize);
        this.monitor.control_frames_read(frames);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ThrottledIo<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        let mut rest = written;
        for buf in bufs {
            let sent = rest.min(buf.len());
            self.sent(&buf[..sent]);
            rest -= sent;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
