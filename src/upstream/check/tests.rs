//! Health checks against servers that are scripted byte by byte, and a real HTTP/2 server.

use std::{convert::Infallible, net::SocketAddr};

use http::uri::Scheme;
use http_body_util::Full;
use hyper::{server, service::service_fn};
use hyper_util::rt::TokioExecutor;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::oneshot,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    base::clock,
    net::tls,
    upstream::{Http2, Shared, Sockets, testing},
};

const SECOND: Duration = Duration::from_secs(1);

/// A limit that is reached only where the test waits for it.
const LIMIT: Duration = Duration::from_secs(30);

fn config() -> HealthCheck {
    HealthCheck {
        path: PathAndQuery::from_static("/health?x=1"),
        interval: LIMIT,
        timeout: LIMIT,
        fall: 1,
        rise: 1,
        expect: vec![100..=499],
    }
}

/// A target at this address that is named `cloud.test`.
fn target(address: SocketAddr, scheme: Scheme, http2: Http2, tls: tls::Config) -> CheckTarget {
    let mut endpoint = testing::endpoint("cloud.test", address.port());
    endpoint.origin = format!("{scheme}://cloud.test:{}", address.port());
    endpoint.scheme = scheme;
    let config = Config {
        http2,
        tls,
        ..testing::config(vec![endpoint.clone()])
    };
    let shared = Shared::new(config, &Sockets::new(1), 1, clock::system()).unwrap();
    CheckTarget {
        target: Target::Socket(address),
        endpoint,
        shared: shared.endpoints[0].clone(),
        config: shared.config,
    }
}

fn plain(address: SocketAddr) -> CheckTarget {
    target(address, Scheme::HTTP, Http2::Auto, tls::Config::default())
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).unwrap()
}

/// A server that sends these bytes on its first connection and keeps it open. Resolves with the
/// head of the request once the connection has closed.
async fn server(response: impl Into<Vec<u8>>) -> (SocketAddr, oneshot::Receiver<String>) {
    let ((listener, address), response) = (listener().await, response.into());
    let (sender, received) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = head(&mut stream).await;
        // A check that has ended does not read all.
        let _ = stream.write_all(&response).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
        let _ = sender.send(request);
    });
    (address, received)
}

fn with_status(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok")
}

#[tokio::test]
async fn the_request_carries_no_token_and_closes_its_connection() {
    let (address, request) = server(with_status("200 OK")).await;
    let target = plain(address);
    check(&target, &config()).await.unwrap();
    let expected = format!(
        "GET /health?x=1 HTTP/1.1\r\nUser-Agent: bearer-proxy/{}\r\nAccept: */*\r\n\
         Host: cloud.test:{}\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION"),
        address.port()
    );
    assert_eq!(request.await.unwrap(), expected);

    let (address, request) = server(with_status("200 OK")).await;
    let mut target = plain(address);
    Arc::make_mut(&mut target.config).host = Host::Fixed(HeaderValue::from_static("fixed.test"));
    check(&target, &config()).await.unwrap();
    assert!(request.await.unwrap().contains("\r\nHost: fixed.test\r\n"));
}

#[tokio::test]
async fn by_default_any_status_below_500_is_healthy() {
    let teapot = HealthCheck {
        expect: vec![200..=299, 418..=418],
        ..config()
    };
    for (status, by_default, as_teapot) in [
        ("200 OK", true, true),
        ("299 Odd", true, true),
        ("302 Found", true, false),
        ("401 Unauthorized", true, false),
        ("418 Teapot", true, true),
        ("499 Odd", true, false),
        ("500 Internal Server Error", false, false),
        ("503 Service Unavailable", false, false),
        ("999 Odd", false, false),
    ] {
        for (config, is_healthy) in [(&config(), by_default), (&teapot, as_teapot)] {
            let (address, _request) = server(with_status(status)).await;
            match check(&plain(address), config).await {
                Ok(()) => assert!(is_healthy, "{status}"),
                Err(error @ CheckError::Status { .. }) => {
                    assert!(!is_healthy, "{status}");
                    let text = error.to_string();
                    assert!(
                        text.contains(&status[..3]) && text.contains("/health?x=1"),
                        "{text}"
                    );
                }
                Err(error) => panic!("{status}: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn odd_responses() {
    // The head counts, whatever happens to the body.
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 16 << 20]].concat();
    let interim = format!("HTTP/1.1 103 Early Hints\r\n\r\n{}", with_status("200 OK"));
    for response in [
        endless,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n".to_vec(),
        b"HTTP/1.0 200\r\nContent-Length: 0\r\n\r\n".to_vec(),
        interim.into_bytes(),
        // Served by the proxy too: a control character in a value.
        b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ] {
        let (address, _request) = server(response).await;
        let limited = HealthCheck {
            timeout: 10 * SECOND,
            ..config()
        };
        let began = Instant::now();
        check(&plain(address), &limited).await.unwrap();
        assert!(began.elapsed() < limited.timeout, "all of a body was read");
    }
    for response in [
        "nonsense\r\n\r\n",
        "SSH-2.0-x\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
    ] {
        let (address, _request) = server(response).await;
        let error = check(&plain(address), &config()).await.expect_err(response);
        assert!(
            matches!(error, CheckError::Http { .. }),
            "{response}: {error}"
        );
    }
}

/// Otherwise the server would log a broken connection at each check.
#[tokio::test]
async fn a_small_body_is_read_to_its_end() {
    let (listener, address) = listener().await;
    let (resume, wait) = oneshot::channel();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        let begin = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst";
        stream.write_all(begin).await.unwrap();
        wait.await.unwrap();
        stream.write_all(b"other").await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap()
    });
    let (target, config) = (plain(address), config());
    let mut checking = std::pin::pin!(check(&target, &config));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut checking);
    assert!(early.await.is_err(), "the check ended before the body");
    resume.send(()).unwrap();
    checking.await.unwrap();
    assert_eq!(served.await.unwrap(), 0);
}

#[tokio::test]
async fn a_server_that_closes_the_connection() {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = head(&mut stream).await;
        }
    });
    let error = check(&plain(address), &config()).await.expect_err("closed");
    assert!(matches!(error, CheckError::Http { .. }), "{error}");
}

#[tokio::test]
async fn silence_at_each_step_ends_with_the_timeout_and_the_connection() {
    let short = HealthCheck {
        timeout: Duration::from_millis(200),
        ..config()
    };
    let (with_tls, http2) = (tls::Config::default(), Http2::Always);
    for (scheme, http2) in [
        (Scheme::HTTP, Http2::Auto),
        (Scheme::HTTP, http2),
        (Scheme::HTTPS, Http2::Auto),
    ] {
        let (listener, address) = listener().await;
        let closed = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Without the end of the check's tasks the connection would stay open.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let target = target(address, scheme, http2, with_tls.clone());
        let error = check(&target, &short).await.expect_err("silent");
        assert!(matches!(error, CheckError::Timeout { .. }), "{error}");
        tokio::time::timeout(LIMIT, closed)
            .await
            .expect("closed")
            .unwrap();
    }
}

/// Interim responses without end do not block the other tasks of this thread.
#[tokio::test]
async fn interim_responses_without_end() {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = head(&mut stream).await;
        let interim = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(1000);
        while stream.write_all(&interim).await.is_ok() {}
    });
    let short = HealthCheck {
        timeout: Duration::from_millis(500),
        ..config()
    };
    let target = plain(address);
    let checking = tokio::time::timeout(LIMIT, check(&target, &short));
    let error = checking
        .await
        .expect("an end")
        .expect_err("no final response");
    assert!(matches!(error, CheckError::Timeout { .. }), "{error}");
}

/// The client of HTTP/2 must respond to each PING, and cannot: nothing reads its responses.
#[tokio::test]
async fn a_connection_that_cannot_be_closed_in_order_ends_with_the_check() {
    let (listener, address) = listener().await;
    let closed = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let _ = stream.write_all(&settings).await;
        while stream.write_all(&ping.repeat(1000)).await.is_ok() {}
    });
    let short = HealthCheck {
        timeout: SECOND,
        ..config()
    };
    let target = target(address, Scheme::HTTP, Http2::Always, tls::Config::default());
    check(&target, &short).await.expect_err("no response");
    tokio::time::timeout(LIMIT, closed)
        .await
        .expect("closed")
        .unwrap();
}

/// Serves HTTP/2 with this status. Resolves with the first request.
fn http2_server(
    status: StatusCode,
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    requests: tokio::sync::mpsc::UnboundedSender<http::request::Parts>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let _ = requests.send(request.into_parts().0);
        let mut response = Response::new(Full::<Bytes>::from("ok"));
        *response.status_mut() = status;
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service);
    tokio::spawn(serving);
}

/// A folder with `ca.pem`, and a server's side of TLS for `cloud.test` that selects this protocol.
fn identity(alpn: &[u8]) -> (tempfile::TempDir, TlsAcceptor, tls::Config) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["cloud.test".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, cert.pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![alpn.to_vec()];
    let client = tls::Config {
        ca_file: Some(ca),
        ..tls::Config::default()
    };
    (folder, TlsAcceptor::from(Arc::new(server)), client)
}

#[tokio::test]
async fn the_endpoints_version_of_http_with_and_without_tls() {
    for (scheme, http2) in [
        (Scheme::HTTP, Http2::Always),
        (Scheme::HTTPS, Http2::Auto),
        (Scheme::HTTPS, Http2::Always),
    ] {
        for status in [StatusCode::UNAUTHORIZED, StatusCode::BAD_GATEWAY] {
            let (listener, address) = listener().await;
            let (_folder, acceptor, tls) = identity(b"h2");
            let (requests, mut received) = tokio::sync::mpsc::unbounded_channel();
            let is_tls = scheme == Scheme::HTTPS;
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                if is_tls {
                    let stream = acceptor.accept(stream).await.unwrap();
                    http2_server(status, stream, requests);
                } else {
                    http2_server(status, stream, requests);
                }
            });
            let tls = if is_tls { tls } else { tls::Config::default() };
            let target = target(address, scheme.clone(), http2, tls);
            let checked = check(&target, &config()).await;
            assert_eq!(
                checked.is_ok(),
                status == StatusCode::UNAUTHORIZED,
                "{checked:?}"
            );
            let request = received.recv().await.unwrap();
            let expected = format!("{}/health?x=1", target.endpoint.origin);
            assert_eq!(
                (request.method.as_str(), request.uri.to_string()),
                ("GET", expected)
            );
            let names: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
            assert_eq!(names, ["user-agent", "accept"]);
            // The connection closes with the check, which ends the server.
            let closed = tokio::time::timeout(LIMIT, received.recv()).await;
            assert!(closed.expect("closed").is_none());
        }
    }
}

#[tokio::test]
async fn tls_of_the_endpoint() {
    let (_folder, acceptor, trusting) = identity(b"http/1.1");
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let _ = head(&mut stream).await;
                let _ = stream.write_all(with_status("200 OK").as_bytes()).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    let trusted = target(address, Scheme::HTTPS, Http2::Auto, trusting);
    check(&trusted, &config()).await.unwrap();
    let (_folder, _, other) = identity(b"http/1.1");
    let untrusted = target(address, Scheme::HTTPS, Http2::Auto, other);
    let error = check(&untrusted, &config()).await.expect_err("untrusted");
    assert!(
        matches!(error, CheckError::Connect(connect::Error::Tls { .. })),
        "{error}"
    );
}

#[test]
fn futures_are_send() {
    fn is_send(_: impl Send) {}
    let target = plain(([127, 0, 0, 1], 1).into());
    is_send(check(&target, &config()));
}
