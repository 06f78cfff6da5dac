//! The client's socket on an HTTP/2 connection: read in small batches, between which the task
//! yields.

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
        connection::http2_state::Http2State,
        metrics::Metrics,
        server::http2::frames::{Frames, RefusedStreams},
    },
};

/// Counts frames, and limits how much h2 reads before other tasks run.
pub(crate) struct ThrottledIo<T> {
    io: T,
    received: Frames,
    refused: RefusedStreams,
    metrics: Arc<Metrics>,
    state: Arc<Http2State>,
    budget: CoopBudget,
}

impl<T> ThrottledIo<T> {
    pub(crate) fn new(io: T, metrics: Arc<Metrics>, state: Arc<Http2State>) -> Self {
        Self {
            io,
            received: Frames::after_preface(),
            refused: RefusedStreams::default(),
            metrics,
            state,
            budget: CoopBudget::default(),
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let refused = self.refused.count(bytes);
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
        let quota = this.state.flood().quota();
        ready!(this.budget.poll_ready(cx, quota.frames as usize));
        let limit = buf.remaining().min(this.received.skip + quota.bytes);
        let mut batch = ReadBuf::new(buf.initialize_unfilled_to(limit));
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, &mut batch) else {
            this.budget.reset();
            return Poll::Pending;
        };
        read?;
        let frames = this.received.count(batch.filled());
        let read = batch.filled().len();
        buf.advance(read);
        this.budget.spend(frames as usize);
        this.state.control_frames_received(frames);
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
