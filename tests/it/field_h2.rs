//! Faults that operators reported of proxies like this one: connections and HTTP/2.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use crate::common::{
    Client, LIMIT, Proxy, connect,
    frames::{HEADERS, POST, RST_STREAM, greeted, request, until},
    get, in_front_of, read_head, read_to_close, scripted,
    upstream::{Upstream, bytes, ok},
};

/// A proxy with one worker in front of an upstream that closes each connection instead of
/// responding to the second request on it. Returns the number of requests that it received.
async fn closes_under_the_second_request() -> (Proxy, Arc<AtomicUsize>) {
    let received = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&received);
    let address = scripted(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            read_head(&mut stream).await?;
            count.fetch_add(1, SeqCst);
            ok("ok").send(&mut stream).await?;
            read_head(&mut stream).await?;
            count.fetch_add(1, SeqCst);
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(address, &[("proxy.workers", "1")]).await;
    (proxy, received)
}

#[tokio::test]
async fn field_b6_webdav_methods_are_repeated_when_a_kept_connection_closes() {
    let table = [
        ("GET PUT DELETE", 200),
        (
            "PROPFIND REPORT SEARCH COPY MOVE UNLOCK PROPPATCH MKCOL",
            200,
        ),
        (
            "ACL CHECKOUT MERGE MKACTIVITY ORDERPATCH VERSION-CONTROL",
            200,
        ),
        ("POST LOCK PATCH SUBSCRIBE", 502),
    ];
    for (methods, expected) in table {
        for method in methods.split(' ') {
            let (proxy, received) = closes_under_the_second_request().await;
            let mut client = Client::connect(proxy.address).await;
            assert_eq!(client.send(get("/first")).await.unwrap().status(), 200);
            let mut request = get("/second");
            *request.method_mut() = method.parse().unwrap();
            let status = client.send(request).await.unwrap().status();
            assert_eq!(status, expected, "{method}");
            let sent = if expected == 200 { 3 } else { 2 };
            assert_eq!(received.load(SeqCst), sent, "{method}");
        }
    }
}

/// What a POST gets of a response that is cut short, on connections of HTTP/1.1.
const POST_REQUEST: &str = "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi";

/// A response that is cut short, and what a client of HTTP/1.1 gets of its body.
const CUT_SHORT: [(&str, &str); 4] = [
    ("Content-Length: 5\r\n\r\n", ""),
    ("Content-Length: 5\r\n\r\nhal", "hal"),
    ("Transfer-Encoding: chunked\r\n\r\n", ""),
    ("Transfer-Encoding: chunked\r\n\r\n3\r\nhal\r\n", "hal"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d3_the_head_of_a_response_that_is_cut_short_reaches_the_client() {
    for (response, body) in CUT_SHORT {
        let reply = bytes(format!("HTTP/1.1 200 OK\r\nX-Head: whole\r\n{response}")).close();
        let upstream = Upstream::always(reply).start().await;
        let proxy = upstream.proxy(&[]).await;
        for _ in 0..40 {
            let mut client = connect(proxy.address, POST_REQUEST).await;
            // Panics at a reset: HTTP/1.1 shows the cut by the length or the missing last chunk.
            let got = read_to_close(&mut client).await;
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{response}: {got}");
            assert!(got.contains("x-head: whole\r\n") || got.contains("X-Head: whole\r\n"));
            assert!(got.contains(body) && !got.ends_with("0\r\n\r\n"), "{got}");
        }
        for _ in 0..20 {
            let mut client = greeted(proxy.address, &[]).await;
            request(&mut client, 1, POST, "/x").await;
            let head = until(&mut client, HEADERS, 1).await.expect("a head");
            assert_eq!(head.payload[0], 0x88, "{response}: `:status: 200` in HPACK");
            let end = until(&mut client, RST_STREAM, 1).await.expect("a reset");
            assert_ne!(end.reason(), 0, "{response}");
        }
        assert_eq!(upstream.count(), 60, "{response}: each is sent once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d3_a_reset_follows_the_head_where_only_the_close_ends_the_response() {
    let reply = bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").close();
    let upstream = Upstream::always(reply).start().await;
    let proxy = upstream.proxy(&[]).await;
    for _ in 0..40 {
        let mut client = connect(proxy.address, "GET /x HTTP/1.0\r\n\r\n").await;
        let head = tokio::time::timeout(LIMIT, read_head(&mut client))
            .await
            .unwrap();
        assert!(head.unwrap().starts_with("HTTP/1.0 200 OK\r\n"));
        let end = tokio::io::AsyncReadExt::read_u8(&mut client)
            .await
            .unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    }
}
