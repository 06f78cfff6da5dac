//! Field reports about rejected tokens: when they are refreshed, what is sent again, and what the
//! client gets.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
    time::Instant,
};

use crate::common::{
    Client, LIMIT, Proxy, connect, get, post, proxy, read_head, read_to_close, scripted,
    upstream::{
        Reply, Request, RunningUpstream, Upstream, bytes, grant, issuer, oauth_error, ok,
        read_body, response, unauthorized,
    },
};

/// A proxy in front of this upstream, and its issuer.
async fn with_issuer(
    upstream: &RunningUpstream,
    more: &[(&str, &str)],
) -> (Proxy, RunningUpstream) {
    let issuer = issuer().start().await;
    let origin = issuer.origin();
    let settings: Vec<_> = [("token.issuer", &*origin), ("proxy.workers", "1")]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    let proxy = proxy(&upstream.origin(), &settings);
    proxy.ready().await;
    (proxy, issuer)
}

/// The number of the token that a request carries, from 1.
fn token_number(request: &Request) -> usize {
    let number = request.token().strip_prefix("token-");
    number.and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// Rejects the first token with this reply.
fn rejecting_once(rejection: Reply) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| match token_number(request) {
        1 => rejection.clone(),
        _ => ok("replayed"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a4_no_client_notices_a_revoked_token_beside_a_path_that_is_always_rejected() {
    let oldest = Arc::new(AtomicUsize::new(1));
    let accepted = Arc::clone(&oldest);
    let upstream = Upstream::new()
        .on("/never", unauthorized("never"))
        .on("*", move |request: &Request| {
            if token_number(request) < accepted.load(SeqCst) {
                unauthorized("revoked")
            } else {
                ok("")
            }
        })
        .start()
        .await;
    let (proxy, issuer) = with_issuer(&upstream, &[("retry.cooldown", "300ms")]).await;
    for round in 0..5 {
        for _ in 0..10 {
            assert_eq!(proxy.get("/never").await.status(), 401);
            assert_eq!(proxy.get("/good").await.status(), 200);
        }
        oldest.store(issuer.count() + 1, SeqCst);
        assert_eq!(proxy.get("/good").await.status(), 200, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a4_a_path_with_accepted_and_rejected_requests_does_not_hide_a_revocation() {
    let oldest = Arc::new(AtomicUsize::new(1));
    let accepted = Arc::clone(&oldest);
    let upstream = Upstream::always(move |request: &Request| {
        let is_revoked = token_number(request) < accepted.load(SeqCst);
        if is_revoked || request.target() == "/rpc?never" {
            unauthorized("")
        } else {
            ok("")
        }
    })
    .start()
    .await;
    let (proxy, issuer) = with_issuer(&upstream, &[("retry.cooldown", "10s")]).await;
    assert_eq!(proxy.get("/rpc?never").await.status(), 401);
    assert_eq!(proxy.get("/rpc?good").await.status(), 200);
    oldest.store(issuer.count() + 1, SeqCst);
    assert_eq!(proxy.get("/rpc?good").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a5_a_node_that_rejects_every_token_is_left_for_another() {
    // A balancer connects each third connection to the sick node.
    let upstream = Upstream::always(|request: &Request| match request.connection % 3 {
        1 => unauthorized("sick"),
        _ => ok("").close(),
    })
    .start()
    .await;
    let (proxy, issuer) = with_issuer(&upstream, &[]).await;
    for _ in 0..200 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    assert_eq!(issuer.count(), 1, "no refresh");
    let verified = r#"bearer_proxy_retries_total{reason="other_connection",outcome="accepted"}"#;
    assert!(proxy.metric(verified).await > 50.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a5_over_http2_the_connection_to_a_node_that_rejects_is_left() {
    let rejections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&rejections);
    // The first connection leads to a node that rejects everything but its first request.
    let address = scripted(move |connection, stream| {
        let count = Arc::clone(&count);
        async move {
            let requests = AtomicUsize::new(0);
            let service = service_fn(|_| {
                let is_rejected = connection == 0 && requests.fetch_add(1, SeqCst) > 0;
                count.fetch_add(is_rejected.into(), SeqCst);
                let mut response = http::Response::new(Full::<Bytes>::default());
                if is_rejected {
                    *response.status_mut() = StatusCode::UNAUTHORIZED;
                }
                async { Ok::<_, Infallible>(response) }
            });
            http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
                .map_err(io::Error::other)
        }
    })
    .await;
    let issuer = issuer().start().await;
    let settings = [
        ("token.issuer", &*issuer.origin()),
        ("proxy.workers", "1"),
        ("upstream.http2", "always"),
    ];
    let proxy = proxy(&format!("http://{address}"), &settings);
    proxy.ready().await;
    for _ in 0..20 {
        assert_eq!(proxy.send(post("/", "body")).await.status(), 200);
    }
    assert_eq!(issuer.count(), 1, "no refresh");
    assert_eq!(
        rejections.load(SeqCst),
        1,
        "its connection is not used again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a5_of_several_endpoints_another_one_is_asked() {
    let sick = Upstream::always(unauthorized("sick")).start().await;
    let (first, second) = (Upstream::new().start().await, Upstream::new().start().await);
    let endpoints = [first.origin(), sick.origin(), second.origin()].join(",");
    let issuer = issuer().start().await;
    let settings = [
        ("token.issuer", &*issuer.origin()),
        ("proxy.workers", "1"),
        ("upstream.endpoints", &endpoints),
    ];
    let usual = proxy(&first.origin(), &settings);
    usual.ready().await;
    for _ in 0..100 {
        assert_eq!(usual.get("/").await.status(), 200);
    }
    assert_eq!(issuer.count(), 1, "no refresh");
    // A failure counts as a request in flight for a second: others are less loaded.
    assert!((1..20).contains(&sick.count()), "{}", sick.count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a5_while_the_budget_is_spent_requests_wait_and_are_replayed() {
    // Each token is rejected after its first use.
    let used = Arc::new(AtomicUsize::new(0));
    let upstream = Upstream::always(move |request: &Request| {
        let number = token_number(request);
        if used.swap(number, SeqCst) < number {
            ok("")
        } else {
            unauthorized("")
        }
    })
    .start()
    .await;
    let (proxy, issuer) = with_issuer(&upstream, &[("retry.cooldown", "500ms")]).await;
    let begin = Instant::now();
    for _ in 0..7 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    assert_eq!(issuer.count(), 7);
    assert!(begin.elapsed() >= Duration::from_millis(1500), "three wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b1_a_rejection_is_replayed_whatever_its_size() {
    let body = "x".repeat(70_000);
    let chunks = format!("11170\r\n{body}\r\n0\r\n\r\n");
    let chunked = bytes("HTTP/1.1 401 Unauthorized\r\nTransfer-Encoding: chunked\r\n\r\n")
        .followed_by(chunks);
    let endless = format!(
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 10000000000\r\n\r\n{}",
        "x".repeat(200_000)
    );
    for rejection in [
        unauthorized(&body),
        chunked,
        unauthorized("x".repeat(3_000_000)),
        bytes(endless).hold(),
    ] {
        for request in [get("/"), post("/", "body"), post("/", vec![b'x'; 500_000])] {
            let upstream = Upstream::always(rejecting_once(rejection.clone()))
                .start()
                .await;
            let (proxy, issuer) = with_issuer(&upstream, &[]).await;
            let answer = proxy.send(request).await;
            assert_eq!(
                (answer.status().as_u16(), &answer.body()[..]),
                (200, &b"replayed"[..])
            );
            assert_eq!(issuer.count(), 2);
        }
        if format!("{rejection:?}").contains("10000000000") {
            continue;
        }
        // It is relayed whole when the replay is rejected as well, or there is none.
        let upstream = Upstream::always(rejection).start().await;
        let (proxy, _issuer) = with_issuer(&upstream, &[]).await;
        for _ in 0..2 {
            let answer = proxy.get("/").await;
            assert_eq!(answer.status(), 401);
            assert!(answer.body().len() >= body.len());
        }
    }
}

/// Grants one token, and refuses the next one after some time.
async fn refusing_issuer() -> RunningUpstream {
    let refusal = || oauth_error("invalid_grant");
    Upstream::always(move |request: &Request| match request.number {
        0 => grant("token-1", 3600),
        _ => refusal().after(|| tokio::time::sleep(Duration::from_millis(300))),
    })
    .start()
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b1_a_rejection_that_was_read_in_part_is_relayed_whole() {
    for size in [0, 1, 70_000, 3_000_000] {
        let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let rejection = unauthorized(&body);
        let upstream = Upstream::always(move |request: &Request| match request.number {
            // It proves the token, so that the next rejection is verified before the refresh.
            0 => ok("accepted"),
            _ => rejection.clone(),
        });
        let upstream = upstream.start().await;
        let issuer = refusing_issuer().await;
        let proxy = proxy(&upstream.origin(), &[("token.issuer", &issuer.origin())]);
        proxy.ready().await;
        assert_eq!(proxy.get("/").await.status(), 200);
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), 401);
        assert!(*answer.body() == body, "{size}: {}", answer.body().len());
        assert_eq!((upstream.count(), issuer.count()), (3, 2));
    }
}

/// The upstream ends its rejection when it has read the request, which the client then completes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b1_a_request_whose_rejection_is_relayed_goes_on() {
    let address = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        let rejection = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 10\r\n\r\n12345";
        bytes(rejection).send(&mut stream).await?;
        let body = read_body(&mut stream, &head).await?;
        assert_eq!(body, b"0123456789");
        bytes("67890").send(&mut stream).await
    })
    .await;
    let issuer = refusing_issuer().await;
    let origin = format!("http://{address}");
    let proxy = proxy(&origin, &[("token.issuer", &issuer.origin())]);
    proxy.ready().await;
    let request = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                   Content-Length: 10\r\n\r\n0123";
    let mut client = connect(proxy.address, request).await;
    let head = tokio::time::timeout(LIMIT, read_head(&mut client)).await;
    assert!(head.unwrap().unwrap().starts_with("HTTP/1.1 401 "));
    client.write_all(b"456789").await.unwrap();
    assert_eq!(read_to_close(&mut client).await, "1234567890");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b1_a_rejection_without_end_is_not_read_without_end() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let address = scripted(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            let head = read_head(&mut stream).await?;
            if head.contains("token-2\r\n") {
                return ok("replayed").send(&mut stream).await;
            }
            let endless = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 100000000000\r\n\r\n";
            bytes(endless).send(&mut stream).await?;
            loop {
                stream.write_all(&[b'x'; 65_536]).await?;
                count.fetch_add(65_536, SeqCst);
            }
        }
    })
    .await;
    let issuer = Upstream::always(|request: &Request| match request.number {
        0 => grant("token-1", 3600),
        _ => grant("token-2", 3600).after(|| tokio::time::sleep(Duration::from_secs(1))),
    });
    let issuer = issuer.start().await;
    let origin = format!("http://{address}");
    let proxy = proxy(&origin, &[("token.issuer", &issuer.origin())]);
    proxy.ready().await;
    assert_eq!(proxy.get("/").await.body(), "replayed");
    // What the kernel holds; a proxy that reads gets many times that in a second.
    assert!(sent.load(SeqCst) < 128 << 20, "{}", sent.load(SeqCst));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b18_the_client_gets_the_outcome_of_the_replay_that_was_sent() {
    let cut = bytes("HTTP/1.1 200 OK\r\nContent-Length: 5").close();
    for (second, expected) in [
        (bytes("").close(), 502),
        (cut, 502),
        (bytes("HTTP/1.1 2x0 what\r\n\r\n").close(), 502),
        (bytes("").hold(), 504),
    ] {
        let reply = second.clone();
        let upstream = Upstream::always(move |request: &Request| match token_number(request) {
            1 => unauthorized("not applied"),
            _ => reply.clone(),
        })
        .start()
        .await;
        let (proxy, _issuer) =
            with_issuer(&upstream, &[("upstream.response_timeout", "500ms")]).await;
        let answer = proxy.send(post("/", "order")).await;
        assert_eq!(answer.status().as_u16(), expected, "{second:?}");
        assert_eq!(
            upstream.count(),
            2,
            "{second:?}: the first one and one replay"
        );
        let failed = r#"bearer_proxy_retries_total{reason="unauthorized",outcome="failed"}"#;
        assert_eq!(proxy.metric(failed).await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b18_the_same_holds_for_a_request_that_is_sent_again_with_the_same_token() {
    let upstream = Upstream::new()
        .on("/order", |request: &Request| match request.number {
            1 => unauthorized("not applied"),
            _ => bytes("").close(),
        })
        .start()
        .await;
    let (proxy, issuer) = with_issuer(&upstream, &[]).await;
    assert_eq!(proxy.get("/").await.status(), 200, "the token is proven");
    assert_eq!(proxy.send(post("/order", "1")).await.status(), 502);
    assert_eq!((upstream.count(), issuer.count()), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_that_fails_does_not_stand_in_the_way_of_a_refresh() {
    for verification in [
        bytes("").close(),
        bytes("").hold(),
        bytes("what is this\r\n\r\n").close(),
    ] {
        let reply = verification.clone();
        let old = Arc::new(OnceLock::new());
        let upstream = Upstream::always(move |request: &Request| {
            let token = request.fields("authorization")[0].to_owned();
            if *old.get_or_init(|| token.clone()) != token {
                return ok("replayed");
            }
            match request.number {
                0 => ok("proof"),
                1 => unauthorized("revoked"),
                _ => reply.clone(),
            }
        })
        .start()
        .await;
        let (proxy, issuer) =
            with_issuer(&upstream, &[("upstream.response_timeout", "500ms")]).await;
        assert_eq!(proxy.get("/").await.body(), "proof");
        assert_eq!(proxy.get("/").await.body(), "replayed", "{verification:?}");
        assert_eq!(issuer.count(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_that_hangs_delays_a_refresh_by_seconds_if_the_request_can_be_repeated() {
    let upstream =
        Upstream::always(
            |request: &Request| match (request.number, token_number(request)) {
                (0, _) => ok("proof"),
                (1, _) => unauthorized("revoked"),
                (_, 1) => bytes("").hold(),
                _ => ok("replayed"),
            },
        );
    let upstream = upstream.start().await;
    // Longer than the test may take.
    let settings = [("upstream.response_timeout", "100s")];
    let (proxy, issuer) = with_issuer(&upstream, &settings).await;
    assert_eq!(proxy.get("/").await.body(), "proof");
    let mut request = post("/", vec![b'x'; 100_000]);
    *request.method_mut() = Method::PUT;
    assert_eq!(proxy.send(request).await.body(), "replayed");
    assert_eq!((upstream.count(), issuer.count()), (4, 2));
    let received = upstream.requests();
    assert!(received[1..].iter().all(|one| one.body.len() == 100_000));
}

/// Otherwise what the client still sends would go to the upstream that hangs, and be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_that_was_given_up_reads_no_more_of_the_request() {
    let address = scripted(|_, stream| async move {
        let number = AtomicUsize::new(0);
        let service = service_fn(|request: http::Request<Incoming>| {
            let token = request.headers()[header::AUTHORIZATION].clone();
            let is_first = number.fetch_add(1, SeqCst) == 0;
            async move {
                let is_upload = request.method() == Method::PUT;
                let mut body = request.into_body();
                let mut length = 0;
                if is_upload && token == "Bearer token-1" && is_first {
                    // The verification is on another connection.
                    while let Some(Ok(_)) = body.frame().await {}
                    std::future::pending::<()>().await;
                }
                let mut response = http::Response::new(Full::<Bytes>::default());
                if is_upload && token == "Bearer token-1" {
                    *response.status_mut() = StatusCode::UNAUTHORIZED;
                    return Ok(response);
                }
                while let Some(frame) = body.frame().await {
                    length += frame.map_or(0, |frame| frame.data_ref().map_or(0, Bytes::len));
                }
                *response.body_mut() = Full::from(length.to_string());
                Ok::<_, Infallible>(response)
            }
        });
        http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(16 << 20)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(io::Error::other)
    })
    .await;
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let issuer = Upstream::always(move |request: &Request| match request.number {
        0 => grant("token-1", 3600),
        _ => {
            let released = Arc::clone(&released);
            grant("token-2", 3600).after(move || {
                let released = Arc::clone(&released);
                async move { released.notified().await }
            })
        }
    });
    let issuer = issuer.start().await;
    let settings = [
        ("token.issuer", &*issuer.origin()),
        ("proxy.workers", "1"),
        ("upstream.http2", "always"),
    ];
    let proxy = proxy(&format!("http://{address}"), &settings);
    proxy.ready().await;
    assert_eq!(proxy.get("/").await.status(), 200, "the token is proven");
    let head = "PUT / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Content-Length: 2000000\r\n\r\n";
    let begun = [head.as_bytes(), &[b'x'; 500_000]].concat();
    let mut client = connect(proxy.address, begun).await;
    let failed = r#"bearer_proxy_retries_total{reason="other_connection",outcome="failed"}"#;
    proxy.until(failed, 1.0).await;
    let (mut read, mut write) = client.split();
    let rest = async {
        write.write_all(&[b'x'; 1_500_000]).await.unwrap();
    };
    let released = async {
        // Time in which it would be read.
        tokio::time::sleep(Duration::from_secs(1)).await;
        release.notify_one();
    };
    let ((), (), response) = tokio::join!(rest, released, read_to_close(&mut read));
    assert!(response.ends_with("\r\n\r\n2000000"), "{response}");
}

/// It may have been applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_of_another_request_that_is_slow_is_waited_for() {
    let upstream = Upstream::always(|request: &Request| match request.number {
        0 => ok("proof"),
        1 => unauthorized("sick"),
        _ => ok("slow").after(|| tokio::time::sleep(Duration::from_millis(3500))),
    });
    let upstream = upstream.start().await;
    let (proxy, issuer) = with_issuer(&upstream, &[]).await;
    assert_eq!(proxy.get("/").await.body(), "proof");
    assert_eq!(proxy.send(post("/", "order")).await.body(), "slow");
    assert_eq!((upstream.count(), issuer.count()), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b19_a_rejection_whose_body_stalls_is_replayed_at_once() {
    for framing in [
        "Content-Length: 10\r\n\r\n12345",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        "Content-Length: 10\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n",
        "\r\n",
    ] {
        let stalled = bytes(format!("HTTP/1.1 401 Unauthorized\r\n{framing}")).hold();
        for request in [get("/"), post("/", "body")] {
            let upstream = Upstream::always(rejecting_once(stalled.clone()))
                .start()
                .await;
            let (proxy, _issuer) = with_issuer(&upstream, &[]).await;
            let answer = proxy.send(request).await;
            assert_eq!(answer.status(), 200, "{framing:?}");
            // Its connection was closed.
            proxy
                .until(
                    &format!(
                        "bearer_proxy_upstream_connections{{endpoint=\"{}\",state=\"active\"}}",
                        upstream.origin()
                    ),
                    0.0,
                )
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b19_json_that_stalls_is_relayed_after_a_second() {
    let stalled = bytes(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"a\"",
    )
    .hold();
    let upstream = Upstream::always(stalled).start().await;
    let json = [
        ("retry.json.pointer", "/code"),
        ("retry.json.values", "401"),
    ];
    let (proxy, _issuer) = with_issuer(&upstream, &json).await;
    let mut stream = connect(proxy.address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"{\"a\"") {
        seen.push(stream.read_u8().await.unwrap());
    }
    assert!(seen.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_in_json_is_verified_too() {
    let upstream = Upstream::always(|request: &Request| {
        let code = if request.connection % 2 == 1 { 401 } else { 0 };
        let fields = "Content-Type: application/json\r\n";
        response("200 OK", fields, format!("{{\"code\":{code}}}")).close()
    })
    .start()
    .await;
    let json = [
        ("retry.json.pointer", "/code"),
        ("retry.json.values", "401"),
    ];
    let (proxy, issuer) = with_issuer(&upstream, &json).await;
    let mut client = Client::connect(proxy.address).await;
    for _ in 0..20 {
        let answer = client.send(get("/")).await.unwrap();
        assert_eq!(&answer.body()[..], b"{\"code\":0}");
    }
    assert_eq!(issuer.count(), 1);
}
