//! Connections that stop speaking HTTP: WebSocket and every other `Upgrade` (RFC 9110 §7.8).
//!
//! The handshake is a request like any other, with the token and its replay. After the upstream's 101 both connections are
//! one: bytes both ways, each half closed when its sender is done.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderValue, Request, Version, header};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::{OnUpgrade, Parts},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::{
    base::ticker::Deadline,
    proxy::{
        exchange::request_body::AttemptBody,
        metrics::{ClientTimeout, ConnectionRejection},
        policy::clients::Permit,
        server::http1::strict_reader::StrictReader,
        worker::Worker,
    },
    upstream::{self, Lease},
};

/// What is under way in each direction.
const BUFFER: usize = 16 * 1024;

/// A client's wish to speak something else.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// As the client names it.
    pub(crate) protocol: HeaderValue,
    client: RefCell<Option<OnUpgrade>>,
}

impl Upgrade {
    /// The wish of an HTTP/1.1 request without a body. HTTP/2 is not reached this way: that would take the connection out
    /// of our hands, and the token with it.
    pub(crate) fn wished(request: &mut Request<Incoming>) -> Option<Self> {
        let protocol = request.headers().get(header::UPGRADE)?;
        let is_wished = request.version() == Version::HTTP_11 && request.body().is_end_stream();
        if !is_wished || !names(request.headers(), &header::CONNECTION, b"upgrade") {
            return None;
        }
        if names(request.headers(), &header::UPGRADE, b"h2c")
            || names(request.headers(), &header::UPGRADE, b"h2")
        {
            return None;
        }
        let protocol = protocol.clone();
        let client = request.extensions_mut().remove::<OnUpgrade>()?;
        Some(Self {
            protocol,
            client: RefCell::new(Some(client)),
        })
    }

    /// The upstream has agreed.
    pub(crate) fn agreed(
        &self,
        upstream: OnUpgrade,
        lease: Lease<AttemptBody>,
        permit: Option<Permit>,
    ) -> Option<Tunnel> {
        Some(Tunnel {
            client: self.client.take()?,
            upstream,
            lease,
            permit,
        })
    }
}

/// Whether a list field holds this element, in any case.
fn names(headers: &HeaderMap, field: &http::HeaderName, element: &[u8]) -> bool {
    let mut elements = headers
        .get_all(field)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    elements.any(|other| other.trim_ascii().eq_ignore_ascii_case(element))
}

/// Two connections that are about to become one.
#[derive(Debug)]
pub(crate) struct Tunnel {
    client: OnUpgrade,
    upstream: OnUpgrade,
    /// Its place among the upstream's connections is held to the end.
    lease: Lease<AttemptBody>,
    /// Its place among the requests of its client likewise.
    permit: Option<Permit>,
}

impl Tunnel {
    /// Carries bytes both ways until both sides are done, one of them breaks, or nothing moves for too long.
    pub(crate) async fn run(self, worker: &Worker) {
        let Self {
            client,
            upstream,
            lease,
            permit,
        } = self;
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
        let limit = worker.tunnel_idle;
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
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER)
                .await
        };
        if until_idle(carry, &idle).await {
            worker.metrics.late(ClientTimeout::Tunnel);
        }
        worker.metrics.tunnels_open.sub(1);
        drop((lease, permit));
    }
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
