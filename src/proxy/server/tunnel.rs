//! A connection after a protocol upgrade: bytes are copied in both directions, and each direction
//! is closed when its sender closes it.

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

/// The buffer of each direction.
const BUFFER: usize = 16 * 1024;

/// Copies bytes in both directions until both sides have closed, one of them fails, or nothing is
/// transferred for `proxy.tunnel_idle_timeout`.
pub(crate) async fn run(tunnel: Tunnel, worker: &Worker) {
    let Tunnel {
        client,
        upstream,
        reservation,
        permit,
    } = tunnel;
    let (Ok(client), Ok((mut upstream, read_ahead))) =
        (client.await, upstream::upgraded(upstream).await)
    else {
        return;
    };
    let Ok(Parts { io, read_buf, .. }) = client.downcast::<TokioIo<StrictReader>>() else {
        return;
    };
    let Some(client) = io.into_inner().into_inner().filter(|_| read_buf.is_empty()) else {
        // The client sent these bytes before it knew that the upstream would agree. The upstream
        // may take them for anything, another request included.
        worker.connection_rejected(ConnectionRejection::BytesBeforeUpgrade);
        return;
    };
    worker.metrics.tunnels_open.add(1);
    let idle = Rc::new(worker.ticker.deadline());
    let timeout = worker.view().tunnel_idle;
    idle.arm(timeout);
    let on_transfer = || {
        let idle = Rc::clone(&idle);
        move || idle.arm(timeout)
    };
    let mut client = Monitored {
        inner: client,
        on_transfer: on_transfer(),
    };
    let copying = async {
        client.write_all(&read_ahead).await?;
        let mut upstream = Monitored {
            inner: &mut upstream,
            on_transfer: on_transfer(),
        };
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await
    };
    if is_idle_before_end(copying, &idle).await {
        worker.metrics.client_timeouts[ClientTimeout::Tunnel].add(1);
    }
    worker.metrics.tunnels_open.sub(1);
    drop((reservation, permit));
}

/// Whether the idle timeout expired before the copying ended. How it ended is known to both sides.
async fn is_idle_before_end(
    copying: impl Future<Output = io::Result<(u64, u64)>>,
    idle: &Deadline,
) -> bool {
    let mut copying = pin!(copying);
    poll_fn(|cx| match copying.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(false),
        Poll::Pending => idle.poll_due(cx).map(|()| true),
    })
    .await
}

/// Calls `on_transfer` when bytes were read or written.
struct Monitored<S, F> {
    inner: S,
    on_transfer: F,
}

impl<S: AsyncRead + Unpin, F: Fn() + Unpin> AsyncRead for Monitored<S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            (self.on_transfer)();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, F: Fn() + Unpin> AsyncWrite for Monitored<S, F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if written.is_ready() {
            (self.on_transfer)();
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
