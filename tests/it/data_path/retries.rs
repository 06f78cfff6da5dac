//! Requests that are sent again: on dead connections, and after a 401.

use std::{collections::BTreeSet, sync::Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{
    Client, get, in_front_of, post, read_head, scripted, text_at,
    upstream::{
        Reply, Request, Upstream, bytes, content_length, ok, read_body, unauthorized, values,
    },
};

/// The upstream closes each connection after one response without announcing it. It has closed before the client sends the
/// next request, but the proxy may not have noticed yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_on_a_dead_pooled_connection_is_sent_again() {
    let (closed, mut closes) = tokio::sync::watch::channel(0);
    let upstream = scripted(move |_, mut stream| {
        let closed = closed.clone();
        async move {
            let head = read_head(&mut stream).await?;
            let body = read_body(&mut stream, &head).await?;
            ok(body).send(&mut stream).await?;
            drop(stream);
            closed.send_modify(|count| *count += 1);
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[("proxy.workers", "1")]).await;
    let mut client = Client::connect(proxy.address).await;
    for round in 0..200 {
        let (request, expected) = match round % 2 {
            0 => (get("/"), ""),
            _ => (post("/", "payload"), "payload"),
        };
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), 200, "round {round}");
        assert_eq!(response.body(), expected, "round {round}");
        closes.wait_for(|count| *count > round).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_may_have_been_applied_is_not_sent_again() {
    // The second request of each connection is read, and then the connection is closed without a response.
    let upstream = Upstream::always(once_per_connection()).start().await;
    let proxy = upstream.proxy(&[("proxy.workers", "1")]).await;
    let mut client = Client::connect(proxy.address).await;
    assert_eq!(client.send(post("/", "one")).await.unwrap().status(), 200);
    assert_eq!(client.send(post("/", "two")).await.unwrap().status(), 502);
    assert_eq!(upstream.count(), 2);
    // A GET is sent again.
    assert_eq!(client.send(get("/")).await.unwrap().status(), 200);
    assert_eq!(client.send(get("/")).await.unwrap().status(), 200);
    assert_eq!(upstream.count(), 5);
}

/// Responds to the first request of each connection.
fn once_per_connection() -> impl Fn(&Request) -> Reply {
    let seen = Mutex::new(BTreeSet::new());
    move |request| {
        if seen.lock().unwrap().insert(request.connection) {
            ok("")
        } else {
            bytes("").close()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_body_is_whole_when_it_is_sent_again() {
    let upstream = Upstream::always(|request: &Request| match request.token() {
        "token-1" => unauthorized("no"),
        _ => ok(&request.body),
    })
    .start()
    .await;
    let proxy = upstream.proxy(&[]).await;
    let body: String = (0..100_000_u32)
        .map(|n| char::from(b'a' + (n % 23) as u8))
        .collect();
    let response = proxy.send(post("/upload", body.clone())).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.body(), &body);
    assert_eq!(
        upstream.connections(),
        1,
        "a connection that had taken the whole body was not reused"
    );
    let accepted = "bearer_proxy_retries_total{reason=\"unauthorized\",outcome=\"accepted\"}";
    assert_eq!(proxy.metric(accepted).await, 1.0);
}

/// The upstream responds as soon as it has read the head, and closes while the client is still sending.
async fn responds_early(body_length: usize, expected: u16) {
    let upstream = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        if !values(&head, "expect").is_empty() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            // More than the proxy records: it cannot be taken back.
            stream.read_exact(&mut vec![0; 2_000_000]).await?;
        }
        if values(&head, "authorization") == ["Bearer token-1"] {
            return unauthorized("early").send(&mut stream).await;
        }
        let mut body = vec![0; content_length(&head)];
        stream.read_exact(&mut body).await?;
        ok(body.len().to_string()).send(&mut stream).await
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let response = proxy.send(post("/upload", vec![b'x'; body_length])).await;
    let metrics = text_at(proxy.admin, "/metrics").await;
    let counted: Vec<_> = metrics
        .lines()
        .filter(|line| line.contains("retries_total{") || line.contains("errors_total{"))
        .filter(|line| !line.ends_with(" 0"))
        .collect();
    assert_eq!(response.status().as_u16(), expected, "{counted:?}");
    let text = match expected {
        200 => body_length.to_string(),
        _ => "early".to_owned(),
    };
    assert_eq!(response.body(), &text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_401_to_a_body_that_is_recorded_leads_to_a_replay() {
    for _ in 0..100 {
        responds_early(500_000, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_401_to_a_body_that_is_too_large_is_relayed() {
    for _ in 0..100 {
        responds_early(3_000_000, 401).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_401_to_both_attempts_is_relayed_byte_for_byte() {
    let upstream = Upstream::always(unauthorized("\u{1}the original\n"))
        .start()
        .await;
    let proxy = upstream.proxy(&[]).await;
    let response = proxy.get("/").await;
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()["x-refusal"], "original");
    assert_eq!(&response.body()[..], b"\x01the original\n");
    let hidden = upstream.proxy(&[("retry.exhausted", "bad_gateway")]).await;
    let response = hidden.get("/").await;
    assert_eq!(response.status(), 502);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_401_is_relayed_whole() {
    let body = "r".repeat(300_000);
    let upstream = Upstream::always(unauthorized(&body).close()).start().await;
    let proxy = upstream.proxy(&[]).await;
    let response = proxy.send(post("/", "body")).await;
    assert_eq!(response.status(), 401);
    assert_eq!(response.body().len(), body.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_401_is_replayed_or_becomes_a_502() {
    for framing in [
        "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        "Content-Length: 10\r\n\r\n12345",
    ] {
        let refused = bytes(format!("HTTP/1.1 401 Unauthorized\r\n{framing}")).close();
        let upstream = Upstream::always(move |request: &Request| {
            if request.path() == "/always" || request.token() == "token-1" {
                refused.clone()
            } else {
                ok("replayed")
            }
        })
        .start()
        .await;
        let proxy = upstream.proxy(&[]).await;
        let response = proxy.get("/").await;
        assert_eq!(response.status(), 200, "{framing}");
        assert_eq!(response.body(), "replayed", "{framing}");
        // The replay is refused and truncated as well: the client must not take it for complete.
        let mut client = Client::connect(proxy.address).await;
        let response = client.send(get("/always")).await;
        assert!(
            response.map_or(true, |response| response.status() == 502),
            "{framing}"
        );
    }
}
