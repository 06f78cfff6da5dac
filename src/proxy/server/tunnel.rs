//! After 101.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use hyper::upgrade::Parts;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::{
    base::ticker::Deadline,
    proxy::{
        exchange::upgrade::Tunnel,
        metrics::{ClientTimeout, ConnectionRejection},
        server::http1::strict_reader::StrictReader,
        worker::Worker,
    },
    upstream,
};

/// What is under way in each direction.
const BUFFER: usize = 16 * 1024;

/// Carries bytes both ways until both sides are done, one of them breaks, or nothing moves for too long.
pub(crate) async fn run(tunnel: Tunnel, worker: &Worker) {
    let Tunnel {
        client,
        upstream,
        reservation,
        permit,
    } = tunnel;
    let (Ok(client), Ok((mut upstream, ahead))) =
        (client.await, upstream::upgraded(upstream).await)
    else {
        return;
    };
    let Ok(Parts { io, read_buf, .. }) = client.downcast::<TokioIo<StrictReader>>() else {
        return;
    };
    let Some(client) = io.into_inner().into_inner().filter(|_| read_buf.is_empty()) else {
        // The upstream has not agreed yet when these were sent: to it they may be anything, another request included.
        worker.connection_rejected(ConnectionRejection::BytesBeforeUpgrade);
        return;
    };
    worker.metrics.tunnels_open.add(1);
    let idle = Rc::new(worker.ticker.deadline());
    let limit = worker.view().tunnel_idle;
    idle.arm(limit);
    let moved = || {
        let idle = Rc::clone(&idle);
        move || idle.arm(limit)
    };
    let mut client = Watched {
        inner: client,
        moved: moved(),
    };
    let carry = async {
        client.write_all(&ahead).await?;
        let mut upstream = Watched {
            inner: &mut upstream,
            moved: moved(),
        };
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await
    };
    if until_idle(carry, &idle).await {
        worker.metrics.client_timeouts[ClientTimeout::Tunnel].add(1);
    }
    worker.metrics.tunnels_open.sub(1);
    drop((reservation, permit));
}

/// Whether nothing moved for too long. How it ends otherwise is for the two sides to know.
async fn until_idle(carry: impl Future<Output = io::Result<(u64, u64)>>, idle: &Deadline) -> bool {
    let mut carry = pin!(carry);
    poll_fn(|cx| match carry.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(false),
        Poll::Pending => idle.poll_due(cx).map(|()| true),
    })
    .await
}

/// Tells when bytes have come.
struct Watched<S, F> {
    inner: S,
    moved: F,
}

impl<S: AsyncRead + Unpin, F: Fn() + Unpin> AsyncRead for Watched<S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            (self.moved)();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, F: Fn() + Unpin> AsyncWrite for Watched<S, F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if written.is_ready() {
            (self.moved)();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
