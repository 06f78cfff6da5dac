//! Opening a connection: name resolution, TCP, TLS, and the choice of the HTTP version.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use super::{
    addresses::Target,
    config::{Config, Endpoint, Http2},
    counters::Failure,
    response_head::{HeadReader, HeadState},
    shared::{EndpointTls, HTTP2, SharedEndpoint},
};
use crate::{
    base::coop::CoopBudget,
    net::{
        outbound_proxy,
        socket::{self, Stream},
        tls,
    },
};

/// Bytes that are read before the task yields: a server can send 1xx responses without end, and
/// hyper reads and drops them as long as there are any.
const READ_BUDGET: usize = 64 * 1024;

/// The least that a read costs of [`READ_BUDGET`]: a read of TLS can take long and return little.
const MIN_READ_COST: usize = 4 * 1024;

/// Why a connection could not be opened. `endpoint` is the origin of the endpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TCP or TLS handshake did not complete in time.
    #[error("no connection to {endpoint} within {limit:?}")]
    Timeout {
        /// The origin of the endpoint.
        endpoint: String,
        /// `connect_timeout` or `handshake_timeout`.
        limit: Duration,
    },
    /// The name has not been resolved.
    #[error("cannot resolve {endpoint}: {detail}")]
    Resolve {
        /// The origin of the endpoint.
        endpoint: String,
        /// The resolver's error.
        detail: Arc<str>,
    },
    /// No server listens at the address, or it cannot be reached.
    #[error("cannot connect to {endpoint}: {source}")]
    Refused {
        /// The origin of the endpoint.
        endpoint: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The outbound proxy cannot be reached or refuses. Nothing of a request was sent.
    #[error("no connection to {endpoint}: {source}")]
    Proxy {
        /// The origin of the endpoint.
        endpoint: String,
        /// The proxy's error.
        source: outbound_proxy::Error,
    },
    /// The TLS handshake failed.
    #[error(
        "TLS handshake with {endpoint} failed: {source}{}",
        tls::cause(.source).map_or("", tls::server_advice)
    )]
    Tls {
        /// The origin of the endpoint.
        endpoint: String,
        /// The error of rustls.
        source: io::Error,
    },
    /// As many requests or connections are in flight as the limits of the endpoints allow, and no
    /// place became free in time.
    #[error(
        "all places for requests to {endpoint} are taken (upstream.max_connections, \
         upstream.max_requests), and none became free in time (upstream.queue, \
         upstream.queue_timeout)"
    )]
    Full {
        /// The origin of the endpoint.
        endpoint: String,
    },
    /// Connections to upstreams use all file descriptors that they may use.
    #[error(
        "no file descriptor is left for a connection to {endpoint}: raise the limit of open files"
    )]
    NoSocket {
        /// The origin of the endpoint.
        endpoint: String,
    },
}

impl Error {
    /// The origin of the endpoint.
    pub fn endpoint(&self) -> &str {
        match self {
            Self::Timeout { endpoint, .. }
            | Self::Resolve { endpoint, .. }
            | Self::Refused { endpoint, .. }
            | Self::Proxy { endpoint, .. }
            | Self::Tls { endpoint, .. }
            | Self::Full { endpoint }
            | Self::NoSocket { endpoint } => endpoint,
        }
    }

    /// The server that is at fault, for `Proxy-Status`: the endpoint, or the outbound proxy. `None`
    /// where a limit of this proxy is the cause.
    pub fn next_hop(&self) -> Option<&str> {
        match self {
            Self::Timeout { endpoint, .. }
            | Self::Resolve { endpoint, .. }
            | Self::Refused { endpoint, .. }
            | Self::Tls { endpoint, .. } => Some(endpoint),
            Self::Proxy { source, .. } => Some(source.next_hop()),
            Self::Full { .. } | Self::NoSocket { .. } => None,
        }
    }

    /// How it counts in the metrics of the endpoint.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Timeout { .. } => Failure::ConnectTimeout,
            Self::Resolve { .. } => Failure::Resolve,
            Self::Refused { .. } => Failure::ConnectRefused,
            Self::Tls { .. } => Failure::Tls,
            Self::Proxy { source, .. } => match source {
                outbound_proxy::Error::Timeout { .. } => Failure::ProxyTimeout,
                outbound_proxy::Error::Unreachable { .. } => Failure::ProxyUnreachable,
                outbound_proxy::Error::Refused { .. } => Failure::ProxyRefused,
            },
            Self::Full { .. } | Self::NoSocket { .. } => Failure::ConnectionsFull,
        }
    }

    /// Whether the address, or the network on the way to it, is at fault.
    pub(super) fn is_of_address(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Refused { .. } | Self::Proxy { .. } | Self::Tls { .. } => {
                true
            }
            Self::Resolve { .. } | Self::Full { .. } | Self::NoSocket { .. } => false,
        }
    }

    /// Whether the TLS handshake failed because of the server's certificate.
    pub fn is_certificate(&self) -> bool {
        let Self::Tls { source, .. } = self else {
            return false;
        };
        matches!(
            tls::cause(source),
            Some(rustls::Error::InvalidCertificate(_))
        )
    }
}

/// The HTTP versions that a connection may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HttpVersions {
    /// Those that the configuration allows.
    Any,
    /// HTTP/1.1 alone, for an upgrade.
    Http1,
}

/// The HTTP version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Opens a connection to an address of `endpoint`, with TLS if its scheme is `https`. TCP connects
/// until `deadline`, TLS within its own limit from then on.
pub(super) async fn connect(
    config: &Config,
    endpoint: &Endpoint,
    target: &Target,
    shared: &SharedEndpoint,
    versions: HttpVersions,
    deadline: Instant,
) -> Result<(Io, Protocol), Error> {
    let stream = connect_tcp(config, endpoint, target, shared, deadline).await?;
    establish(stream, config, endpoint, shared.tls.as_ref(), versions).await
}

/// Makes a TCP connection one to `endpoint`: with TLS if its scheme is `https`, and with the HTTP
/// version that the configuration or ALPN selects.
async fn establish(
    stream: Stream,
    config: &Config,
    endpoint: &Endpoint,
    tls: Option<&EndpointTls>,
    versions: HttpVersions,
) -> Result<(Io, Protocol), Error> {
    let origin = || endpoint.origin.clone();
    let always_http2 = config.http2 == Http2::Always;
    let Some(tls) = tls else {
        let protocol = if always_http2 {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        return Ok((Io::new(UpstreamIo::new(Either::Left(stream))), protocol));
    };
    let configs = tls.configs.load();
    let tls_config = match versions {
        HttpVersions::Any => &configs.any,
        HttpVersions::Http1 => &configs.http1,
    };
    let handshake =
        TlsConnector::from(Arc::clone(tls_config)).connect(tls.server_name.clone(), stream);
    match tokio::time::timeout(config.handshake_timeout, handshake).await {
        Ok(Ok(stream)) => {
            let is_http2 = always_http2 || stream.get_ref().1.alpn_protocol() == Some(HTTP2);
            let protocol = if is_http2 {
                Protocol::Http2
            } else {
                Protocol::Http1
            };
            Ok((
                Io::new(UpstreamIo::new(Either::Right(Box::new(stream)))),
                protocol,
            ))
        }
        Ok(Err(source)) => Err(Error::Tls {
            endpoint: origin(),
            source,
        }),
        Err(_) => Err(Error::Timeout {
            endpoint: origin(),
            limit: config.handshake_timeout,
        }),
    }
}

/// The error of a response that the outbound proxy has made without forwarding the request.
pub(super) fn proxy_refusal(
    endpoint: &Endpoint,
    shared: &SharedEndpoint,
    status: StatusCode,
    headers: &HeaderMap,
) -> Option<Error> {
    let source = shared.absolute_form.as_ref()?.refusal(status, headers)?;
    Some(Error::Proxy {
        endpoint: endpoint.origin.clone(),
        source,
    })
}

/// A TCP connection to the address, or to the proxy that forwards requests to the endpoint.
async fn connect_tcp(
    config: &Config,
    endpoint: &Endpoint,
    target: &Target,
    shared: &SharedEndpoint,
    deadline: Instant,
) -> Result<Stream, Error> {
    let origin = || endpoint.origin.clone();
    match target {
        Target::Socket(address) => {
            let connected = tokio::time::timeout_at(deadline, socket::connect_to(*address)).await;
            match connected {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(source)) => Err(Error::Refused {
                    endpoint: origin(),
                    source,
                }),
                Err(_) => Err(Error::Timeout {
                    endpoint: origin(),
                    limit: config.connect_timeout,
                }),
            }
        }
        Target::Proxy(proxy) => {
            let limit = deadline.saturating_duration_since(Instant::now());
            let forwards_requests = shared.absolute_form.is_some();
            let reached = proxy
                .reach(forwards_requests, &endpoint.host, endpoint.port, limit)
                .await;
            reached.map_err(|source| Error::Proxy {
                endpoint: origin(),
                source,
            })
        }
    }
}

/// The connection of a 101 response, and the bytes that were read after the response.
///
/// # Errors
/// When the connection failed meanwhile.
pub async fn upgraded(
    upgrade: OnUpgrade,
) -> io::Result<(impl AsyncRead + AsyncWrite + Unpin, Bytes)> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let parts = upgraded
        .downcast::<Io>()
        .map_err(|_| io::Error::other("another kind of connection"))?;
    let (transport, unread) = parts.io.into_inner().into_transport();
    let read_ahead = if unread.is_empty() {
        parts.read_buf
    } else {
        [parts.read_buf, unread].concat().into()
    };
    Ok((transport, read_ahead))
}

/// TCP, or TLS over it.
type Transport = Either<Stream, Box<TlsStream<Stream>>>;

/// A connection to an upstream as hyper uses it.
pub(super) type Io = TokioIo<UpstreamIo>;

/// A connection to an upstream that yields after [`READ_BUDGET`] bytes, and that can still be read
/// after a write has failed.
///
/// An upstream may respond in the middle of an upload and close. The next write then fails, and
/// hyper would report that error although the response is already in the receive buffer. So a
/// failed write stays pending: the reader finds the response, or the end of the stream.
pub(super) struct UpstreamIo {
    transport: Transport,
    write_failed: bool,
    budget: CoopBudget,
    /// Reads the heads of responses, on HTTP/1.
    heads: Option<HeadReader>,
}

impl UpstreamIo {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            write_failed: false,
            budget: CoopBudget::default(),
            heads: None,
        }
    }

    /// Repairs the heads of HTTP/1 responses, which are not larger than `limit` bytes. The users of
    /// the connection report to the returned state when they expect a head.
    pub(super) fn repair_heads(&mut self, limit: usize) -> Arc<HeadState> {
        let heads = self.heads.insert(HeadReader::new(limit));
        Arc::clone(heads.state())
    }

    /// The transport for a tunnel, in which a write error is an error again, and what was read of it
    /// and not by hyper.
    fn into_transport(self) -> (Transport, Bytes) {
        let unread = self.heads.map(HeadReader::into_ready);
        (self.transport, unread.unwrap_or_default())
    }

    /// Writes, and stays pending after an error.
    fn poll_write_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Transport>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.write_failed {
            return Poll::Pending;
        }
        let written = write(Pin::new(&mut self.transport), cx);
        if let Poll::Ready(Err(_)) = written {
            self.write_failed = true;
            // hyper reads before it writes, so only another poll makes it read.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        written
    }
}

impl fmt::Debug for UpstreamIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamIo")
            .field("write_failed", &self.write_failed)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(heads) = &mut this.heads
            && heads.take_ready(buf)
        {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(this.budget.poll_ready(cx, READ_BUDGET));
            let before = buf.filled().len();
            let read = Pin::new(&mut this.transport).poll_read(cx, buf);
            let n = buf.filled().len() - before;
            match read {
                Poll::Ready(_) => this.budget.spend(MIN_READ_COST.max(n)),
                Poll::Pending => this.budget.reset(),
            }
            let Some(heads) = &mut this.heads else {
                return read;
            };
            if !matches!(read, Poll::Ready(Ok(()))) {
                return read;
            }
            heads.read(buf, before);
            // Without new bytes hyper would take the stream for closed.
            if heads.take_ready(buf) || buf.filled().len() > before || n == 0 {
                return read;
            }
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_with(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }
}
