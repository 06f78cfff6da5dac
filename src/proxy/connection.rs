//! One client connection: its socket, its deadlines, HTTP/1.1 on top.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};

use super::{
    Config,
    guard::{Gate, KnownHost},
    handler,
    headers::Client,
    metrics::Metrics,
    worker::Worker,
};
use crate::{
    base::ticker::{Deadline, Remote, Ticks},
    net::socket::Stream,
};

/// The largest request head, and the largest piece of a body that is read at once.
const READ_BUFFER: usize = 64 * 1024;

/// Serves a connection until either side has had enough.
pub(crate) async fn serve(worker: Rc<Worker>, stream: Stream, client: Client, gate: Rc<Gate>) {
    let due = worker.ticker.deadline();
    let monitor = Arc::new(Monitor::new(due.remote(), Arc::clone(&worker.limits)));
    let key = worker.connections.borrow_mut().insert(Arc::clone(&monitor));
    let exchange = Rc::new(Exchange {
        client,
        gate,
        known_host: KnownHost::default(),
        answer_due: worker.ticker.deadline(),
        monitor: Arc::clone(&monitor),
        lingering: worker.lingering.clone(),
    });
    let io = TokioIo::new(Io { stream, monitor: Arc::clone(&monitor), metrics: Arc::clone(&worker.metrics) });
    let service = service_fn(|request| handler::handle(Rc::clone(&worker), Rc::clone(&exchange), request));
    let connection = http1::Builder::new()
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(READ_BUFFER)
        .title_case_headers(true)
        .writev(false)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
        // What went wrong on a client's connection was the client's doing, or was counted where it happened.
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => due.poll_due(cx),
    })
    .await;
    worker.connections.borrow_mut().remove(key);
    worker.connection_closed();
}

/// What all parts of an exchange on one connection share.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) client: Client,
    pub(crate) gate: Rc<Gate>,
    pub(crate) known_host: KnownHost,
    /// When the upstream has been silent for too long.
    pub(crate) answer_due: Deadline,
    pub(crate) monitor: Arc<Monitor>,
    lingering: mpsc::UnboundedSender<(Incoming, Arc<Monitor>)>,
}

/// Where a connection stands, from its client's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is under way: the next byte begins a request.
    Waiting = 0,
    /// A request's head is on its way.
    Head = 1,
    /// A request is being answered.
    Exchange = 2,
}

/// Sets the deadline for the client's next move. Reached from the socket, which must be `Send`.
#[derive(Debug)]
pub(crate) struct Monitor {
    due: Remote,
    phase: AtomicU8,
    /// The client must not take what it got for a whole answer.
    broken: AtomicBool,
    limits: Arc<ClientLimits>,
}

/// Limits for a client's silence.
#[derive(Debug)]
pub(crate) struct ClientLimits {
    first_byte: Ticks,
    head: Ticks,
    body_idle: Ticks,
    idle: Ticks,
    drain_grace: Ticks,
    /// Set once, when the worker begins to drain.
    pub(crate) draining: AtomicBool,
    response: Ticks,
    upstream_body_idle: Ticks,
}

impl ClientLimits {
    pub(crate) fn new(config: &Config, upstream: &crate::upstream::Config) -> Self {
        Self {
            first_byte: config.first_byte_timeout.into(),
            head: config.head_timeout.into(),
            body_idle: config.body_idle_timeout.into(),
            idle: config.idle_timeout.into(),
            drain_grace: super::DRAIN_GRACE.min(config.drain_timeout).into(),
            draining: AtomicBool::new(false),
            response: upstream.response_timeout.into(),
            upstream_body_idle: upstream.body_idle_timeout.into(),
        }
    }
}

impl Monitor {
    fn new(due: Remote, limits: Arc<ClientLimits>) -> Self {
        due.arm(limits.first_byte);
        Self { due, phase: AtomicU8::new(Phase::Waiting as u8), broken: AtomicBool::new(false), limits }
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    /// A request has come; who answers it sets the limits now.
    pub(crate) fn begin_exchange(&self) {
        self.phase.store(Phase::Exchange as u8, Relaxed);
        self.due.disarm();
    }

    /// The answer is complete, and so is the request.
    pub(crate) fn end_exchange(&self) {
        self.phase.store(Phase::Waiting as u8, Relaxed);
        let draining = self.limits.draining.load(Relaxed);
        self.due.arm(if draining { self.limits.drain_grace } else { self.limits.idle });
    }

    /// Draining has begun: a connection on which nothing happens closes after a grace, in which a request that is on its
    /// way arrives.
    pub(crate) fn drain(&self) {
        if self.is(Phase::Waiting) {
            self.due.arm(self.limits.drain_grace);
        }
    }

    /// Makes the close a reset.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Relaxed);
    }
}

impl Exchange {
    /// The client owes us more of its body; the upstream nothing.
    pub(crate) fn waiting_for_client(&self, before_answer: bool) {
        self.monitor.due.arm_if_idle(self.monitor.limits.body_idle);
        if before_answer {
            self.answer_due.disarm();
        }
    }

    /// The client sent something; the upstream must take it.
    pub(crate) fn client_moved(&self, before_answer: bool) {
        self.monitor.due.disarm();
        if before_answer {
            self.answer_due.arm(self.monitor.limits.upstream_body_idle);
        }
    }

    /// The client has sent everything; the upstream must answer.
    pub(crate) fn client_finished(&self, before_answer: bool) {
        self.monitor.due.disarm();
        if before_answer {
            self.answer_due.arm(self.monitor.limits.response);
        }
    }

    /// The upstream must go on with its answer's body.
    pub(crate) fn waiting_for_upstream(&self) {
        self.answer_due.remote().arm_if_idle(self.monitor.limits.upstream_body_idle);
    }

    /// Reads a client's body out that nobody wants any more.
    pub(crate) fn linger(&self, client: Incoming) {
        // Fails only when the worker is gone, and the connection with it.
        let _ = self.lingering.send((client, Arc::clone(&self.monitor)));
    }
}

/// A client's socket, watched.
struct Io {
    stream: Stream,
    monitor: Arc<Monitor>,
    metrics: Arc<Metrics>,
}

impl Io {
    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(n)) => {
                self.metrics.sent_bytes.add(n as u64);
                if self.monitor.is(Phase::Exchange) {
                    self.monitor.due.disarm();
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.monitor.due.arm_if_idle(self.monitor.limits.body_idle),
        }
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
            if self.monitor.is(Phase::Waiting) {
                self.monitor.phase.store(Phase::Head as u8, Relaxed);
                self.monitor.due.arm(self.monitor.limits.head);
            }
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
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.monitor.broken.load(Relaxed) {
            // A half-close would look like a clean end to a client that reads until the close.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.monitor.broken.load(Relaxed) {
            self.stream.reset_on_close();
        }
    }
}
