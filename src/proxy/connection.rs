//! One client connection: its socket, its deadlines, HTTP/1.1 on top.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::{
    guard::{Gate, KnownHost},
    handler,
    headers::Client,
    metrics::Metrics,
    monitor::Monitor,
    route,
    tunnel::Tunnel,
    worker::Worker,
};
use crate::{base::ticker::Deadline, net::socket::Stream};

/// The largest request head, and the largest piece of a body that is read at once.
const READ_BUFFER: usize = 64 * 1024;

/// Serves a connection until either side has had enough.
pub(crate) async fn serve(worker: Rc<Worker>, stream: Transport, client: Client, gate: Rc<Gate>) {
    let (read_due, write_due) = (worker.ticker.deadline(), worker.ticker.deadline());
    let monitor = Monitor::new(read_due.remote(), write_due.remote(), Arc::clone(&worker.limits));
    let monitor = Arc::new(monitor);
    let _registered = worker.register(&monitor);
    let exchange = Rc::new(Exchange {
        client,
        gate,
        known_host: KnownHost::default(),
        answer_due: worker.ticker.deadline(),
        limits: Cell::new(worker.routes.default_limits()),
        monitor: Arc::clone(&monitor),
        lingering: worker.lingering.clone(),
        tunnel: RefCell::default(),
    });
    let io = TokioIo::new(Io { stream, monitor, metrics: Arc::clone(&worker.metrics) });
    let service = service_fn(|request| handler::handle(Rc::clone(&worker), Rc::clone(&exchange), request));
    let connection = http1::Builder::new()
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(READ_BUFFER)
        .title_case_headers(true)
        .writev(false)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
        // What went wrong on a client's connection was the client's doing, or was counted where it happened.
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending if read_due.poll_due(cx).is_ready() => Poll::Ready(()),
        Poll::Pending => write_due.poll_due(cx),
    })
    .await;
    if let Some(tunnel) = exchange.tunnel.take() {
        tunnel.run(&worker).await;
    }
}

/// What all parts of an exchange on one connection share.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) client: Client,
    pub(crate) gate: Rc<Gate>,
    pub(crate) known_host: KnownHost,
    /// When the upstream has been silent for too long.
    pub(crate) answer_due: Deadline,
    /// What the upstream of this request may take its time with.
    pub(crate) limits: Cell<route::Limits>,
    pub(crate) monitor: Arc<Monitor>,
    lingering: mpsc::UnboundedSender<Abandoned>,
    /// What becomes of the connection after an answer of 101.
    pub(crate) tunnel: RefCell<Option<Tunnel>>,
}

/// A client's body that nobody wants any more.
#[derive(Debug)]
pub(crate) struct Abandoned {
    pub(crate) body: Incoming,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) exchange: u32,
}

impl Exchange {
    /// The client owes us more of its body; the upstream nothing.
    pub(crate) fn waiting_for_client(&self, before_answer: bool) {
        self.monitor.waiting_for_body();
        if before_answer {
            self.answer_due.disarm();
        }
    }

    /// The client sent something; the upstream must take it.
    pub(crate) fn client_moved(&self, before_answer: bool) {
        self.monitor.body_moved();
        if before_answer {
            self.answer_due.arm(self.limits.get().body_idle);
        }
    }

    /// The client has sent everything; the upstream must answer.
    pub(crate) fn client_finished(&self, before_answer: bool) {
        self.monitor.body_moved();
        if before_answer {
            self.answer_due.arm(self.limits.get().response);
        }
    }

    /// The upstream must go on with its answer's body.
    pub(crate) fn waiting_for_upstream(&self) {
        self.answer_due.arm_if_idle(self.limits.get().body_idle);
    }

    /// Reads a client's body out that nobody wants any more.
    pub(crate) fn linger(&self, body: Incoming, exchange: u32) {
        // Fails only when the worker is gone, and the connection with it.
        let _ = self.lingering.send(Abandoned { body, monitor: Arc::clone(&self.monitor), exchange });
    }
}

/// In clear, or through TLS.
pub(crate) type Transport = Either<Stream, Box<TlsStream<Stream>>>;

/// A client's socket, watched.
pub(crate) struct Io {
    stream: Transport,
    monitor: Arc<Monitor>,
    metrics: Arc<Metrics>,
}

impl Io {
    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &written {
            self.metrics.sent_bytes.add(*n as u64);
        }
        self.monitor.written(&written);
        written
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
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
        if self.monitor.is_broken() {
            match &self.stream {
                Either::Left(stream) => stream.reset_on_close(),
                Either::Right(stream) => stream.get_ref().0.reset_on_close(),
            }
        }
    }
}
