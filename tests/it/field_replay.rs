//! Field reports about rejected tokens: when they are refreshed, what is sent again, and what the
//! client gets.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncReadExt as _, time::Instant};

use crate::common::{
    Client, Proxy, connect, get, post, proxy, scripted,
    upstream::{
        Reply, Request, RunningUpstream, Upstream, bytes, issuer, ok, response, unauthorized,
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
    assert!(sick.count() > 20);
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
        let upstream = Upstream::always(move |request: &Request| match request.number {
            0 => ok("proof"),
            1 => unauthorized("revoked"),
            2 => reply.clone(),
            _ => ok("replayed"),
        })
        .start()
        .await;
        let (proxy, issuer) =
            with_issuer(&upstream, &[("upstream.response_timeout", "500ms")]).await;
        assert_eq!(proxy.get("/").await.body(), "proof");
        assert_eq!(proxy.get("/").await.body(), "replayed", "{verification:?}");
        assert_eq!((upstream.count(), issuer.count()), (4, 2));
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
    *request.method_mut() = http::Method::PUT;
    assert_eq!(proxy.send(request).await.body(), "replayed");
    assert_eq!((upstream.count(), issuer.count()), (4, 2));
    let received = upstream.requests();
    assert!(received[1..].iter().all(|one| one.body.len() == 100_000));
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
