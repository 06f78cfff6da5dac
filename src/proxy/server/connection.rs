//! One client connection: its socket, its deadlines, which protocol it speaks, and HTTP/1 on top.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::{
    base::ticker::Deadline,
    net::{certificate::CertificateNames, socket::Stream},
    proxy::{
        connection::state::ConnState,
        exchange::{Carrier, Exchange, Peer},
        framing,
        message::headers::Client,
        metrics::{ClientTimeout, Metrics},
        policy::{
            clients::ConnectionIdentity,
            guard::{Guard, KnownHost},
        },
        server::{catch_panic as shield, http1::strict_reader::StrictReader, http2 as multiplex},
        worker::Worker,
    },
};

/// The largest piece of a body that is read at once.
pub(crate) const READ_BUFFER: usize = 64 * 1024;

/// For so many fields of a head hyper has room without allocating.
const USUAL_HEADERS: usize = 100;

/// What begins every HTTP/2 connection: RFC 9113 §3.4.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Room for what is read while it is not known yet which protocol it is.
const FIRST_READ: usize = 4096;

/// Serves a connection until either side has had enough.
pub(crate) async fn serve(worker: Rc<Worker>, stream: Transport, client: Client, gate: Rc<Guard>) {
    let (read_due, write_due) = (worker.ticker.deadline(), worker.ticker.deadline());
    let monitor = ConnState::new(
        read_due.handle(),
        write_due.handle(),
        Arc::clone(&worker.limits),
    );
    let monitor = Arc::new(monitor);
    let _registered = worker.register(&monitor);
    let identity = identity(&worker, &client, &stream);
    let peer = Rc::new(Peer {
        client,
        gate,
        known_host: KnownHost::default(),
        identity,
    });
    let metrics = Arc::clone(&worker.metrics);
    let mut io = Io {
        stream,
        ahead: Bytes::new(),
        monitor: Arc::clone(&monitor),
        metrics: Arc::clone(&metrics),
    };
    let due = Due {
        read: read_due,
        write: write_due,
    };
    match due.cut(io.protocol()).await {
        Some(Ok(Protocol::Http1)) => http1(worker, io, peer, monitor, due).await,
        // Rarer, larger, and longer-lived.
        Some(Ok(Protocol::Http2)) => {
            Box::pin(multiplex::serve(worker, io, peer, monitor, due)).await
        }
        Some(Err(_)) => {}
        None => due.count(&monitor, &metrics),
    }
}

/// Whom a connection may belong to. Without clients that have names nobody asks.
fn identity(worker: &Worker, client: &Client, stream: &Transport) -> ConnectionIdentity {
    if worker.clients.is_empty() {
        return ConnectionIdentity::default();
    }
    let shown = match stream {
        Either::Right(stream) if worker.clients.wants_names() => {
            stream.get_ref().1.peer_certificates()
        }
        Either::Right(_) | Either::Left(_) => None,
    };
    let names = shown
        .and_then(|chain| chain.first())
        .map(CertificateNames::of)
        .unwrap_or_default();
    worker
        .clients
        .identity(client.address().map(|address| address.ip()), &names)
}

async fn http1(worker: Rc<Worker>, io: Io, peer: Rc<Peer>, monitor: Arc<ConnState>, due: Due) {
    let exchange = Exchange::new(&worker, &peer, Carrier::Connection, &monitor);
    let service =
        service_fn(|request| shield::handle(Rc::clone(&worker), Rc::clone(&exchange), request));
    let limits = &worker.config.limits;
    let heads = framing::HeadLimits {
        target: limits.uri_length,
        head: limits.head_size,
        fields: limits.headers,
    };
    let intake = StrictReader::new(io, Arc::clone(&monitor), heads);
    let mut builder = http1::Builder::new();
    if limits.headers > USUAL_HEADERS {
        builder.max_headers(limits.headers);
    }
    let connection = builder
        .half_close(true)
        .header_read_timeout(None)
        // hyper must not find a head too large that is not: it would answer in its own way.
        .max_buf_size(READ_BUFFER.max(limits.head_size) + 1)
        .title_case_headers(true)
        .writev(false)
        .serve_connection(TokioIo::new(intake), service)
        .with_upgrades();
    // What went wrong on a client's connection was the client's doing, or was counted where it happened.
    if due.cut(connection).await.is_none() {
        due.count(&exchange.monitor, &worker.metrics);
    }
    if let Some(tunnel) = exchange.tunnel.take() {
        tunnel.run(&worker).await;
    }
}

/// Until when a client must have sent something, or taken something.
pub(crate) struct Due {
    pub(crate) read: Deadline,
    pub(crate) write: Deadline,
}

impl Due {
    /// Runs `work` to its end; `None` if the client was late before.
    pub(crate) async fn cut<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.read.poll_due(cx).is_ready() => Poll::Ready(None),
            Poll::Pending => self.write.poll_due(cx).map(|()| None),
        })
        .await
    }
}

impl Due {
    /// Counts what a client was late with.
    pub(crate) fn count(&self, monitor: &ConnState, metrics: &Metrics) {
        let late = if self.write.is_due() {
            Some(ClientTimeout::Body)
        } else {
            monitor.passed()
        };
        if let Some(late) = late {
            metrics.late(late);
        }
    }
}

/// Which protocol a client speaks. HTTP/1.0 and 1.1 are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

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
    /// Finds out what the client speaks: TLS has agreed on it, and in clear the first bytes tell.
    async fn protocol(&mut self) -> io::Result<Protocol> {
        if let Either::Right(stream) = &self.stream {
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            return Ok(if is_http2 {
                Protocol::Http2
            } else {
                Protocol::Http1
            });
        }
        let mut read = BytesMut::with_capacity(FIRST_READ);
        let protocol = loop {
            let is_end = self.read_buf(&mut read).await? == 0;
            let known = read.len().min(PREFACE.len());
            if is_end || read[..known] != PREFACE[..known] {
                break Protocol::Http1;
            }
            if known == PREFACE.len() {
                break Protocol::Http2;
            }
        };
        self.ahead = read.freeze();
        Ok(protocol)
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
