//! Responses that arrive before the request's body has been sent.

use std::{net::SocketAddr, time::Duration};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{
    LIMIT, connect, in_front_of, read_head, read_to_close, scripted, silent_upstream,
    upstream::{Reply, Upstream, response},
};

fn too_large() -> Reply {
    response("413 Content Too Large", "Connection: close\r\n", "much")
}

/// A POST that is written completely before anything is read, as most clients do; the head of the response.
async fn write_then_read(address: SocketAddr, fields: &str) -> String {
    let exchange = async {
        let head = format!("POST / HTTP/1.1\r\n{fields}Content-Length: 8000000\r\n\r\n");
        let mut stream = connect(address, head).await;
        let chunk = vec![b'x'; 80_000];
        for _ in 0..100 {
            stream.write_all(&chunk).await.unwrap();
        }
        read_head(&mut stream).await.unwrap()
    };
    tokio::time::timeout(LIMIT, exchange).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_writes_before_it_reads_gets_an_early_response() {
    let upstream = Upstream::always(too_large().close()).early().start().await;
    let proxy = upstream.proxy(&[]).await;
    for _ in 0..50 {
        let head = write_then_read(proxy.address, "Host: localhost\r\n").await;
        assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    }
}

/// The body that is discarded has limits of its own: a client that goes on writing is not idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_that_writes_before_it_reads_gets_an_early_response() {
    const PIECES: usize = 25;
    let address = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
        stream.read_exact(&mut [0; 1000]).await?;
        too_large().send(&mut stream).await
    })
    .await;
    let proxy = in_front_of(address, &[("proxy.body_idle_timeout", "1s")]).await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        1000 * PIECES
    );
    let mut stream = connect(proxy.address, head).await;
    for _ in 0..PIECES {
        stream.write_all(&[b'x'; 1000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await; // the pace of the client
    }
    let head = tokio::time::timeout(LIMIT, read_head(&mut stream))
        .await
        .unwrap()
        .unwrap();
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
}

/// The client sends `Expect: 100-continue` and does not wait for the 100: it must get the refusal and not a reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_wait_for_100_gets_the_refusal() {
    let reply = response("413 Content Too Large", "", "much").hold();
    let upstream = Upstream::always(reply).early().start().await;
    let proxy = upstream.proxy(&[]).await;
    for (host, expected) in [
        ("localhost", "HTTP/1.1 413 "),
        ("evil.example", "HTTP/1.1 421 "),
    ] {
        for _ in 0..20 {
            let fields = format!("Host: {host}\r\nExpect: 100-continue\r\n");
            let head = write_then_read(proxy.address, &fields).await;
            assert!(head.starts_with(expected), "{head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_and_is_refused_must_close() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    let head = "POST / HTTP/1.1\r\nHost: evil.example\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n";
    let response = proxy.raw(head).await;
    assert!(
        response.starts_with("HTTP/1.1 421 ") && !response.contains(" 100 "),
        "{response}"
    );
    let lower = response.to_ascii_lowercase();
    assert!(lower.contains("\r\nconnection: close\r\n"), "{response}");
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_got_100_and_sends_nothing_is_closed() {
    let upstream = silent_upstream().await;
    let proxy = in_front_of(upstream, &[("proxy.body_idle_timeout", "200ms")]).await;
    let head =
        "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n";
    let mut stream = connect(proxy.address, head).await;
    let response = read_to_close(&mut stream).await;
    assert!(response.starts_with("HTTP/1.1 100 "), "{response}");
    proxy.until_in_flight(0).await;
}
