//! Field reports about uploads: bodies that are larger than what is kept for a replay, and upstreams
//! that do not cope with `Expect: 100-continue`.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use crate::common::{
    Proxy, connect, in_front_of, issuer, post, proxy, read_head, scripted, status, tls,
    upstream::{Request, Upstream, content_length, grant, ok, read_body, unauthorized, values},
};

/// One byte more than `retry.body_limit`.
const LARGE: usize = (1 << 20) + 1;

/// How a client frames its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
}

/// Sends a request with a body of this size. Returns the status and the body of the response.
async fn upload(proxy: &Proxy, size: usize, framing: Framing) -> (u16, String) {
    if framing == Framing::Length {
        let response = proxy.send(post("/upload", vec![b'x'; size])).await;
        let text = String::from_utf8_lossy(response.body()).into_owned();
        return (response.status().as_u16(), text);
    }
    let head = "POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
        Transfer-Encoding: chunked\r\n\r\n";
    let body = "x".repeat(size);
    let bytes = format!("{head}{size:x}\r\n{body}\r\n0\r\n\r\n");
    let (mut read, mut write) = connect(proxy.address, "").await.into_split();
    let writing = tokio::spawn(async move {
        // The upstream may respond before it has read everything.
        let _ = write.write_all(bytes.as_bytes()).await;
        write
    });
    let mut response = String::new();
    read.read_to_string(&mut response).await.unwrap();
    drop(writing.await);
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status(&response), body.to_owned())
}

/// An HTTP/2 upstream that rejects the first token when it has read this much of the body.
async fn http2_upstream(window: u32, rejects_after: usize) -> SocketAddr {
    let rejection = Rejection {
        after: rejects_after,
        time: Duration::ZERO,
        stalls: false,
    };
    scripted(move |_, stream| serve_http2(stream, window, rejection)).await
}

/// A response that rejects the first token.
#[derive(Debug, Clone, Copy)]
struct Rejection {
    /// It comes when this much of the request's body was read, and the time has passed.
    after: usize,
    time: Duration,
    /// Its body never ends.
    stalls: bool,
}

async fn serve_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    window: u32,
    rejection: Rejection,
) -> io::Result<()> {
    let service = service_fn(move |request: http::Request<Incoming>| async move {
        let is_rejected = request.headers()[header::AUTHORIZATION] == "Bearer token-1";
        let has_expectation = request.headers().contains_key(header::EXPECT);
        let limit = if is_rejected {
            rejection.after
        } else {
            usize::MAX
        };
        let mut body = request.into_body();
        let mut length = 0;
        while length < limit
            && let Some(Ok(frame)) = body.frame().await
        {
            length += frame.data_ref().map_or(0, Bytes::len);
        }
        let text = Full::new(Bytes::from(length.to_string()));
        let mut response = Response::new(Either::Left(text));
        if has_expectation {
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
        } else if is_rejected {
            tokio::time::sleep(rejection.time).await;
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            if rejection.stalls {
                let endless = StreamBody::new(stream::pending::<Result<_, Infallible>>());
                *response.body_mut() = Either::Right(endless);
            }
        }
        Ok::<_, Infallible>(response)
    });
    http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

/// What exceeds the recording waits for the upstream, for longer if that is far away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b17_the_rest_of_a_large_upload_over_http2_waits_for_a_rejection() {
    let authority = tls::authority();
    let identity = tls::identity(&authority, "localhost", false);
    let mut config = tls::server_config(&authority, identity, false);
    Arc::get_mut(&mut config).unwrap().alpn_protocols = vec![b"h2".to_vec()];
    let folder = tempfile::tempdir().unwrap();
    let ca = tls::write(folder.path(), "ca.pem", &authority.pem());
    let address = scripted(move |_, stream| {
        let acceptor = TlsAcceptor::from(Arc::clone(&config));
        async move {
            // The distance: three times that is a second, and so is the wait.
            tokio::time::sleep(Duration::from_millis(350)).await;
            let stream = acceptor.accept(stream).await?;
            let rejection = Rejection {
                after: 0,
                time: Duration::from_millis(300),
                stalls: false,
            };
            serve_http2(stream, 16 << 20, rejection).await
        }
    })
    .await;
    let issuer = issuer().await;
    let settings = [
        ("token.issuer", &*issuer),
        ("upstream.tls.ca_file", ca.to_str().unwrap()),
    ];
    let proxy = proxy(&format!("https://localhost:{}", address.port()), &settings);
    proxy.ready().await;
    let size = 8_000_000;
    assert_eq!(
        upload(&proxy, size, Framing::Length).await,
        (200, size.to_string())
    );
}

/// Otherwise the rest would be sent to the upstream that has rejected it, and be lost for the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b1_the_body_waits_while_the_token_is_refreshed() {
    let issuer = Upstream::always(|request: &Request| match request.number {
        0 => grant("token-1", 3600),
        _ => grant("token-2", 3600).after(|| tokio::time::sleep(Duration::from_secs(1))),
    })
    .start()
    .await;
    for framing in [Framing::Length, Framing::Chunked] {
        let rejection = Rejection {
            after: 100_000,
            time: Duration::ZERO,
            stalls: true,
        };
        let address = scripted(move |_, stream| serve_http2(stream, 16 << 20, rejection)).await;
        let settings = [
            ("token.issuer", &*issuer.origin()),
            ("upstream.http2", "always"),
        ];
        let proxy = proxy(&format!("http://{address}"), &settings);
        proxy.ready().await;
        let size = 8_000_000;
        assert_eq!(
            upload(&proxy, size, framing).await,
            (200, size.to_string()),
            "{framing:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b17_a_large_upload_over_http2_is_replayed() {
    for window in [65_535, 1 << 20, 16 << 20] {
        for rejects_after in [0, 100_000] {
            for size in [LARGE, 8_000_000] {
                for framing in [Framing::Length, Framing::Chunked] {
                    let address = http2_upstream(window, rejects_after).await;
                    let proxy = in_front_of(address, &[("upstream.http2", "always")]).await;
                    assert_eq!(
                        upload(&proxy, size, framing).await,
                        (200, size.to_string()),
                        "window {window}, rejected after {rejects_after}, {size} {framing:?}"
                    );
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b17_a_large_upload_to_a_cloud_that_ignores_expect_is_replayed() {
    for rejects_after in [0, 300_000] {
        // Tokens up to this one are rejected.
        let revoked = Arc::new(AtomicUsize::new(0));
        let oldest = Arc::clone(&revoked);
        let upstream = scripted(move |_, mut stream| {
            let revoked = Arc::clone(&oldest);
            async move {
                let head = read_head(&mut stream).await?;
                let token = values(&head, "authorization").concat();
                let number: usize = token["Bearer token-".len()..].parse().unwrap();
                if number <= revoked.load(SeqCst) {
                    stream.read_exact(&mut vec![0; rejects_after]).await?;
                    unauthorized("").send(&mut stream).await?;
                    // The rest is read, so that the response is not lost with a reset.
                    stream.shutdown().await?;
                    return stream.read_to_end(&mut Vec::new()).await.map(drop);
                }
                let body = read_body(&mut stream, &head).await?;
                ok(body.len().to_string()).close().send(&mut stream).await
            }
        })
        .await;
        let more = [("retry.cooldown", "10ms"), ("proxy.workers", "1")];
        let proxy = in_front_of(upstream, &more).await;
        for round in 1..6 {
            for framing in [Framing::Length, Framing::Chunked] {
                revoked.fetch_add(1, SeqCst);
                let size = 3_000_000;
                assert_eq!(
                    upload(&proxy, size, framing).await,
                    (200, size.to_string()),
                    "round {round}, rejected after {rejects_after}, {framing:?}"
                );
            }
        }
    }
}

/// What a server does when it sees an expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Closes,
    Resets,
    Responds(u16),
    RespondsAndKeeps(u16),
}

/// A server that does not cope with `Expect`, and the heads that it has received.
async fn without_expect(refusal: Refusal) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&heads);
    let address = scripted(move |_, mut stream: TcpStream| {
        let heads = Arc::clone(&seen);
        async move {
            loop {
                let head = read_head(&mut stream).await?;
                if head.is_empty() {
                    return Ok(());
                }
                heads.lock().unwrap().push(head.clone());
                if values(&head, "expect").is_empty() {
                    let body = read_body(&mut stream, &head).await?;
                    ok(body.len().to_string()).send(&mut stream).await?;
                    continue;
                }
                let (status, connection) = match refusal {
                    Refusal::Closes => return Ok(()),
                    Refusal::Resets => {
                        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                        return Ok(());
                    }
                    Refusal::Responds(status) => (status, "close"),
                    Refusal::RespondsAndKeeps(status) => (status, "keep-alive"),
                };
                let response = format!(
                    "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: {connection}\r\n\r\n"
                );
                stream.write_all(response.as_bytes()).await?;
                return match connection {
                    "close" => Ok(()),
                    _ => stream.read_to_end(&mut Vec::new()).await.map(drop),
                };
            }
        }
    })
    .await;
    (address, heads)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b4_a_server_that_does_not_cope_with_expect_gets_the_request_without() {
    let statuses = [400, 417, 501, 505];
    let responds = statuses.map(Refusal::Responds);
    let keeps = statuses.map(Refusal::RespondsAndKeeps);
    let refusals = [&[Refusal::Closes, Refusal::Resets][..], &responds, &keeps].concat();
    for refusal in refusals {
        let (address, heads) = without_expect(refusal).await;
        let proxy = in_front_of(address, &[]).await;
        // A kept connection, as most requests find one.
        assert_eq!(proxy.send(post("/", "x")).await.status(), 200);
        for (size, framing) in [
            (3_000_000, Framing::Length),
            (100_000, Framing::Chunked),
            (3_000_000, Framing::Chunked),
            (LARGE, Framing::Length),
        ] {
            assert_eq!(
                upload(&proxy, size, framing).await,
                (200, size.to_string()),
                "{refusal:?} {size} {framing:?}"
            );
        }
        let heads = heads.lock().unwrap();
        let expecting = heads
            .iter()
            .filter(|head| !values(head, "expect").is_empty());
        // A kept connection may be closed for another reason: a new one is tried as well.
        assert!(
            expecting.count() <= 2,
            "{refusal:?}: it is remembered by all workers"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b4_a_small_body_of_unknown_length_is_sent_without_expect() {
    let (address, heads) = without_expect(Refusal::Closes).await;
    let proxy = in_front_of(address, &[]).await;
    for size in [0, 1, 3, 4000] {
        assert_eq!(
            upload(&proxy, size, Framing::Chunked).await,
            (200, size.to_string())
        );
    }
    let heads = heads.lock().unwrap();
    assert_eq!(heads.len(), 4);
    assert!(heads.iter().all(|head| values(head, "expect").is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_also_comes_without_expect_is_not_held_against_it() {
    let expectations = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&expectations);
    let upstream = scripted(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            let head = read_head(&mut stream).await?;
            if values(&head, "expect").is_empty() {
                stream
                    .read_exact(&mut vec![0; content_length(&head)])
                    .await?;
            } else {
                count.fetch_add(1, SeqCst);
            }
            stream
                .write_all(b"HTTP/1.1 400 Bad\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbad")
                .await
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    for uploads in 1..4 {
        let answer = upload(&proxy, LARGE, Framing::Length).await;
        assert_eq!(answer, (400, "bad".to_owned()));
        assert_eq!(expectations.load(SeqCst), uploads);
    }
}
