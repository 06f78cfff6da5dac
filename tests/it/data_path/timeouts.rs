//! Limits on silence, and what must not count as silence.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{
    Client, LIMIT, connect, get, in_front_of, read_head, read_to_close, scripted, silent_upstream,
    status,
    upstream::{Upstream, bytes, ok, silence},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_silence_ends_by_its_own_limit() {
    let half = bytes("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345").hold();
    let upstream = Upstream::new()
        .on("/body", half)
        .on("*", silence())
        .start()
        .await;
    let limits = [
        ("upstream.response_timeout", "200ms"),
        ("upstream.body_idle_timeout", "200ms"),
        ("proxy.head_timeout", "200ms"),
        ("proxy.first_byte_timeout", "200ms"),
        ("proxy.idle_timeout", "200ms"),
        ("proxy.body_idle_timeout", "200ms"),
    ];
    let proxy = upstream.proxy(&limits).await;
    let response = proxy.get("/head").await;
    assert_eq!(response.status(), 504);
    let expected = format!(
        "bearer-proxy; error=http_response_timeout; next-hop=\"{}\"",
        upstream.origin()
    );
    assert_eq!(response.headers()["proxy-status"], expected);
    let mut client = Client::connect(proxy.address).await;
    assert!(client.send(get("/body")).await.is_err());
    for (bytes, what) in [
        ("", "first byte"),
        ("GET / HTTP/1.1\r\nHost: local", "head"),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n123",
            "body",
        ),
    ] {
        let mut stream = connect(proxy.address, bytes).await;
        let closed = tokio::time::timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "a connection with a slow {what} stays open");
    }
    proxy.until_open(0).await;
    assert_eq!(proxy.metric("bearer_proxy_requests_in_flight").await, 0.0);
}

/// The limit for the response runs from the last byte of the request's body, however that body is framed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_to_a_body_has_its_own_limit() {
    let limits = [
        ("upstream.response_timeout", "200ms"),
        ("upstream.body_idle_timeout", "60s"),
    ];
    let proxy = in_front_of(silent_upstream().await, &limits).await;
    for body in [
        "Content-Length: 4\r\n\r\nbody",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{body}");
        let response = proxy.raw(&request).await;
        assert_eq!(status(&response), 504, "{body}: {response}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_has_timeouts_of_its_own() {
    let half = bytes("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").hold();
    let upstream = Upstream::new()
        .on("/quick/body", half)
        .on("*", silence())
        .start()
        .await;
    // Those of the upstream are a minute.
    let route = [
        ("route[0].prefix", "/quick"),
        ("route[0].response_timeout", "200ms"),
        ("route[0].body_idle_timeout", "200ms"),
    ];
    let proxy = upstream.proxy(&route).await;
    assert_eq!(proxy.get("/quick/head").await.status(), 504);
    let mut client = Client::connect(proxy.address).await;
    let response = tokio::time::timeout(LIMIT, client.send(get("/quick/body"))).await;
    assert!(response.expect("it ends in time").is_err());
}

/// A body that is read late, because its response came early, must not apply the idle limit to the request behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_response_behind_an_upload_is_not_cut() {
    let upstream = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        if head.starts_with("POST ") {
            return stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n")
            .await?;
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(150)).await; // six of them exceed the idle limit
            stream.write_all(b"x").await?;
        }
        Ok(())
    })
    .await;
    let limits = [("proxy.idle_timeout", "300ms"), ("proxy.workers", "1")];
    let proxy = in_front_of(upstream, &limits).await;
    for _ in 0..2 {
        let head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n";
        let mut stream = connect(proxy.address, head).await;
        let first = read_head(&mut stream).await.unwrap();
        assert_eq!(status(&first), 200, "{first}");
        // The end of the first request and the whole second one arrive together.
        stream
            .write_all(b"bodyGET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let response = read_to_close(&mut stream).await;
        assert!(response.ends_with("\r\n\r\nxxxxxx"), "{response}");
    }
}

/// hyper takes the end of a body before all of it has been written; the idle limit must not begin before that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_response_reaches_a_client_that_pauses() {
    const LENGTH: usize = 4_300_000;
    let reply = ok(vec![b'x'; LENGTH]).close();
    let upstream = Upstream::always(reply).start().await;
    let proxy = upstream.proxy(&[("proxy.idle_timeout", "200ms")]).await;
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..40 {
        let address = proxy.address;
        clients.spawn(async move {
            let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            let mut stream = connect(address, request).await;
            read_head(&mut stream).await.unwrap();
            // Reads part of the response, then pauses for longer than the idle limit.
            let mut begin = vec![0; n * 100_000];
            stream.read_exact(&mut begin).await.unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await; // the pause is what is tested
            begin.len() + read_to_close(&mut stream).await.len()
        });
    }
    for length in clients.join_all().await {
        assert_eq!(length, LENGTH);
    }
}
