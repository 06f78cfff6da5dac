//! DialLock an endpoint: resolve, connect, TLS, and which HTTP it speaks.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use super::{
    config::{Config, Endpoint, Http2},
    shared::{HTTP2, Tls},
};
use crate::{
    base::coop::CoopBudget,
    net::{
        socket::{self, Stream},
        tls,
    },
};

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither refused nor accepted in time.
    #[error("no connection to {endpoint} within {limit:?}")]
    Timeout {
        /// Whom we called.
        endpoint: String,
        /// `connect_timeout` or `handshake_timeout`.
        limit: Duration,
    },
    /// The name did not resolve.
    #[error("cannot resolve {endpoint}: {source}")]
    Resolve {
        /// Whom we called.
        endpoint: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody listens there, or the network says no.
    #[error("cannot connect to {endpoint}: {source}")]
    Refused {
        /// Whom we called.
        endpoint: String,
        /// What the system said.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake with {endpoint} failed: {source}{}", tls::cause(.source).map_or("", tls::server_advice))]
    Tls {
        /// Whom we called.
        endpoint: String,
        /// What rustls said.
        source: io::Error,
    },
    /// As many connections carry a request as `upstream.max_connections` allows.
    #[error("{limit} connections to {endpoint} are in use, the limit of upstream.max_connections")]
    Full {
        /// Whom we would have called.
        endpoint: String,
        /// The limit.
        limit: usize,
    },
    /// The connections to all upstreams together have used up their share of the process's file descriptors.
    #[error(
        "no file descriptor is left for a connection to {endpoint}: raise the limit of open files"
    )]
    NoSocket {
        /// Whom we would have called.
        endpoint: String,
    },
}

impl Error {
    /// The origin of the endpoint that was called.
    pub fn endpoint(&self) -> &str {
        match self {
            Self::Timeout { endpoint, .. }
            | Self::Resolve { endpoint, .. }
            | Self::Refused { endpoint, .. }
            | Self::Tls { endpoint, .. }
            | Self::Full { endpoint, .. }
            | Self::NoSocket { endpoint } => endpoint,
        }
    }

    /// Whether the certificate was at fault, rather than the protocol.
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

/// Which version of HTTP a new connection may turn out to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What the configuration and the server agree on.
    Any,
    /// HTTP/1.1 alone: an upgrade needs a connection of its own.
    Http1,
}

/// What a new connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Connects to `endpoint`, with TLS if its scheme asks for it.
pub(super) async fn connect(
    config: &Config,
    endpoint: &Endpoint,
    tls: Option<&Tls>,
    wanted: Wanted,
) -> Result<(Io, Protocol), Error> {
    let name = || endpoint.origin.clone();
    let limit = config.connect_timeout;
    let dialled = match config.connect_to {
        Some(address) => socket::connect(&address.ip().to_string(), address.port(), limit).await,
        None => socket::connect(&endpoint.host, endpoint.port, limit).await,
    };
    let stream = dialled.map_err(|source| match source.kind() {
        io::ErrorKind::TimedOut => Error::Timeout {
            endpoint: name(),
            limit,
        },
        _ if is_resolver(&source) => Error::Resolve {
            endpoint: name(),
            source,
        },
        _ => Error::Refused {
            endpoint: name(),
            source,
        },
    })?;
    let always = config.http2 == Http2::Always;
    let Some(tls) = tls else {
        let protocol = if always {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        return Ok((Io::new(Patient::new(Either::Left(stream))), protocol));
    };
    let greetings = tls.greetings.load();
    let greeting = match wanted {
        Wanted::Any => &greetings.any,
        Wanted::Http1 => &greetings.http1,
    };
    let handshake =
        TlsConnector::from(Arc::clone(greeting)).connect(tls.server_name.clone(), stream);
    match tokio::time::timeout(config.handshake_timeout, handshake).await {
        Ok(Ok(stream)) => {
            let is_http2 = always || stream.get_ref().1.alpn_protocol() == Some(HTTP2);
            let protocol = if is_http2 {
                Protocol::Http2
            } else {
                Protocol::Http1
            };
            Ok((
                Io::new(Patient::new(Either::Right(Box::new(stream)))),
                protocol,
            ))
        }
        Ok(Err(source)) => Err(Error::Tls {
            endpoint: name(),
            source,
        }),
        Err(_) => Err(Error::Timeout {
            endpoint: name(),
            limit: config.handshake_timeout,
        }),
    }
}

/// The connection of an answer of 101, and what came behind it.
///
/// # Errors
/// When it broke meanwhile.
pub async fn upgraded(
    answer: OnUpgrade,
) -> io::Result<(impl AsyncRead + AsyncWrite + Unpin, Bytes)> {
    let upgraded = answer.await.map_err(io::Error::other)?;
    let parts = upgraded
        .downcast::<Io>()
        .map_err(|_| io::Error::other("another kind of connection"))?;
    Ok((parts.io.into_inner().into_transport(), parts.read_buf))
}

/// A failed look-up carries no number of the system's, a failed connection does.
fn is_resolver(error: &io::Error) -> bool {
    error.raw_os_error().is_none() && error.kind() != io::ErrorKind::TimedOut
}

/// So many bytes are read in a row before others have their turn: heads of 1xx may come without an end, and hyper reads and
/// drops them as long as there are any.
const TURN: usize = 64 * 1024;

/// What a read costs at least, as bytes: TLS can bring very few of them in much.
const READ: usize = 4 * 1024;

/// In clear, or through TLS.
type Transport = Either<Stream, Box<TlsStream<Stream>>>;

/// An upstream's connection as hyper uses it.
pub(super) type Io = TokioIo<Patient>;

/// An upstream connection that lets others be heard, and keeps listening when it can no longer speak.
///
/// An upstream may answer in the middle of an upload and close. Our next write then fails, and hyper would report that
/// failure although the answer is already in our receive queue. So a failed write turns into waiting: the read side
/// finds the answer, or the real end.
pub(super) struct Patient {
    transport: Transport,
    write_failed: bool,
    budget: CoopBudget,
}

impl Patient {
    fn new(transport: Transport) -> Self {
        Self {
            transport,
            write_failed: false,
            budget: CoopBudget::default(),
        }
    }

    /// What is left when HTTP is over: a write error is an error again.
    fn into_transport(self) -> Transport {
        self.transport
    }

    fn unless_failed<T>(
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
            // hyper reads before it writes: it must come round once more.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        written
    }
}

impl fmt::Debug for Patient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patient")
            .field("write_failed", &self.write_failed)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.budget.poll_ready(cx, TURN));
        let before = buf.filled().len();
        let read = Pin::new(&mut this.transport).poll_read(cx, buf);
        match read {
            Poll::Ready(_) => this.budget.spend(READ.max(buf.filled().len() - before)),
            Poll::Pending => this.budget.reset(),
        }
        read
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_failed(cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_failed(cx, AsyncWrite::poll_flush)
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
        self.unless_failed(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }
}
