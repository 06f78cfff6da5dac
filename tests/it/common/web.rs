//! Clients and a server for every HTTP version, in plaintext and over TLS.

use std::{convert::Infallible, io, net::SocketAddr, path::Path, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn,
    server,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body of these frames and trailers, sent without its length.
pub fn stream(frames: Vec<Bytes>, trailers: Option<HeaderMap>) -> Body {
    let frames = frames
        .into_iter()
        .map(Frame::data)
        .chain(trailers.map(Frame::trailers));
    StreamBody::new(futures_util::stream::iter(frames.map(Ok))).boxed_unsync()
}

/// A body of these bytes, sent with its length.
pub fn whole(data: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(data.into()).boxed_unsync()
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type BoxIo = Pin<Box<dyn Io>>;

/// A certificate for `localhost`, and the root store that contains its authority.
pub struct Identity {
    chain: String,
    key: String,
    roots: rustls::RootCertStore,
    authority: String,
}

impl Identity {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let chain = params.signed_by(&key, &authority).unwrap().pem();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        Self {
            chain,
            key: key.serialize_pem(),
            roots,
            authority: authority.pem(),
        }
    }

    /// Writes `ca.pem`, `server.pem` and `server.key`.
    pub fn write(&self, folder: &Path) {
        for (name, text) in [
            ("ca.pem", &self.authority),
            ("server.pem", &self.chain),
            ("server.key", &self.key),
        ] {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }

    fn acceptor(&self, alpn: &[u8]) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions();
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes())
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let mut config = builder
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn connector(&self, alpn: &[u8]) -> TlsConnector {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions();
        let mut config = builder
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

/// An HTTP version, in plaintext or over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    Http10,
    Http10KeepAlive,
    Http11,
    Http2,
    Http11OverTls,
    Http2OverTls,
}

impl Speech {
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Http11OverTls | Self::Http2OverTls)
    }

    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Http2OverTls)
    }

    pub fn is_http10(self) -> bool {
        matches!(self, Self::Http10 | Self::Http10KeepAlive)
    }

    fn alpn(self) -> &'static [u8] {
        if self.is_http2() { b"h2" } else { b"http/1.1" }
    }
}

/// Starts a server that responds with `answer` in one HTTP version.
pub async fn serve<F: Future<Output = Response<Body>> + Send + 'static>(
    speech: Speech,
    identity: &Identity,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> SocketAddr {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    serve_at(any, speech, identity, answer).await
}

/// The same server at this address.
pub async fn serve_at<F: Future<Output = Response<Body>> + Send + 'static>(
    address: SocketAddr,
    speech: Speech,
    identity: &Identity,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = speech.is_tls().then(|| identity.acceptor(speech.alpn()));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let io: BoxIo = match acceptor {
                    Some(acceptor) => {
                        Box::pin(acceptor.accept(stream).await.map_err(io::Error::other)?)
                    }
                    None => Box::pin(stream),
                };
                let service = service_fn(|request| {
                    let answer = answer(request);
                    async { Ok::<_, Infallible>(answer.await) }
                });
                if speech.is_http2() {
                    let server = server::conn::http2::Builder::new(TokioExecutor::new());
                    server
                        .serve_connection(TokioIo::new(io), service)
                        .await
                        .map_err(io::Error::other)
                } else {
                    let server = server::conn::http1::Builder::new();
                    server
                        .serve_connection(TokioIo::new(io), service)
                        .await
                        .map_err(io::Error::other)
                }
            });
        }
    });
    address
}

/// A client connection.
pub enum Client {
    Http1(Version, conn::http1::SendRequest<Body>),
    Http2(conn::http2::SendRequest<Body>),
}

impl Client {
    pub async fn connect(speech: Speech, address: SocketAddr, identity: &Identity) -> Self {
        Self::over(speech, TcpStream::connect(address).await.unwrap(), identity).await
    }

    /// A client on this connection.
    pub async fn over(speech: Speech, stream: TcpStream, identity: &Identity) -> Self {
        stream.set_nodelay(true).unwrap();
        let io: BoxIo = if speech.is_tls() {
            let connector = identity.connector(speech.alpn());
            Box::pin(
                connector
                    .connect("localhost".try_into().unwrap(), stream)
                    .await
                    .unwrap(),
            )
        } else {
            Box::pin(stream)
        };
        if speech.is_http2() {
            let (sender, connection) =
                conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            Self::Http2(sender)
        } else {
            let (sender, connection) = conn::http1::handshake(TokioIo::new(io)).await.unwrap();
            tokio::spawn(connection);
            Self::Http1(
                if speech.is_http10() {
                    Version::HTTP_10
                } else {
                    Version::HTTP_11
                },
                sender,
            )
        }
    }

    /// A second handle to the same HTTP/2 connection.
    pub fn another(&self) -> Self {
        match self {
            Self::Http1(..) => panic!("an HTTP/1 connection has only one handle"),
            Self::Http2(sender) => Self::Http2(sender.clone()),
        }
    }

    /// Sends a request with a path as its target and the authority in `Host`.
    pub async fn send(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(version, sender) => {
                *request.version_mut() = *version;
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                let host = request.headers_mut().remove(http::header::HOST).unwrap();
                let target = format!("http://{}{}", host.to_str().unwrap(), request.uri());
                *request.uri_mut() = target.parse().unwrap();
                *request.version_mut() = Version::HTTP_2;
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}
