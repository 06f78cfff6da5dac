//! What the client sees of a response.

use tokio::io::AsyncReadExt as _;

use crate::common::{
    Client, LIMIT, closed_address, connect, get, in_front_of, issuer, proxy, status,
    upstream::{Request, Upstream, bytes, ok},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_without_a_body_stay_without_one() {
    let upstream = Upstream::new()
        .on(
            "/head",
            bytes("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: \"e\"\r\n\r\n"),
        )
        .on(
            "/chunked-head",
            bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        )
        .on("/204", bytes("HTTP/1.1 204 No Content\r\n\r\n"))
        .on(
            "/304",
            bytes("HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\nContent-Length: 1000\r\n\r\n"),
        )
        .on(
            "/103",
            bytes(
                "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            ),
        )
        .start()
        .await;
    let proxy = upstream.proxy(&[]).await;
    let ask = async |request: &str| proxy.ask(request, "Host: localhost\r\n").await;
    let has_length = |response: &str| response.to_ascii_lowercase().contains("content-length");

    let head = ask("HEAD /head").await;
    assert!(
        head.contains("Content-Length: 1000\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let head = ask("HEAD /chunked-head").await;
    assert!(!has_length(&head) && head.ends_with("\r\n\r\n"), "{head}");
    let none = ask("GET /204").await;
    assert_eq!(status(&none), 204, "{none}");
    assert!(!has_length(&none) && none.ends_with("\r\n\r\n"), "{none}");
    let same = ask("GET /304").await;
    assert_eq!(status(&same), 304, "{same}");
    assert!(
        same.ends_with("\r\n\r\n") && same.contains("\"e\""),
        "{same}"
    );
    let hinted = ask("GET /103").await;
    assert_eq!(status(&hinted), 200, "{hinted}");
    assert!(hinted.ends_with("ok"), "{hinted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_is_served_without_chunks_and_without_a_host() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let upstream = Upstream::always(bytes(chunked)).start().await;
    let proxy = upstream.proxy(&[]).await;
    let response = proxy.raw("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(response.ends_with("\r\n\r\nabc"), "{response}");
    assert!(
        !response.to_ascii_lowercase().contains("transfer-encoding"),
        "{response}"
    );
    // A body that ends with the connection cannot keep it alive.
    let kept = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let response = proxy.raw(kept).await;
    assert!(
        response.contains("\r\nConnection: close\r\n") && response.ends_with("\r\n\r\nabc"),
        "{response}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_18_a_truncated_response_never_looks_complete() {
    let upstream = Upstream::new()
        .on(
            "/chunked",
            bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345").close(),
        )
        .on(
            "/length",
            bytes("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345").close(),
        )
        .start()
        .await;
    let proxy = upstream.proxy(&[]).await;
    for path in ["/length", "/chunked"] {
        let mut client = Client::connect(proxy.address).await;
        assert!(
            client.send(get(path)).await.is_err(),
            "{path} looked complete"
        );
        // Towards HTTP/1.0 only a reset shows it.
        let mut stream = connect(proxy.address, format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        let mut response = Vec::new();
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut response))
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&response);
        let has_length = text.to_ascii_lowercase().contains("content-length: 10");
        assert!(
            ended.is_err() || has_length || text.contains(" 502 "),
            "{path}: {ended:?} after {text}"
        );
    }
    let truncated = format!(
        "bearer_proxy_upstream_errors_total{{endpoint=\"{}\",error=\"truncated\"}}",
        upstream.origin()
    );
    assert!(proxy.metric(&truncated).await >= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_of_the_upstream_has_its_own_response() {
    let garbage = Upstream::always(bytes("SMTP ready\r\n\r\n").close())
        .start()
        .await;
    let silent_end = Upstream::always(bytes("").close()).start().await;
    for (upstream, error) in [
        (garbage.address, "http_protocol_error"),
        (silent_end.address, "connection_terminated"),
        (closed_address(), "connection_refused"),
    ] {
        let proxy = in_front_of(upstream, &[]).await;
        let response = proxy.get("/").await;
        assert_eq!(response.status(), 502);
        assert_eq!(
            response.headers()["proxy-status"],
            format!("bearer-proxy; error={error}; next-hop=\"http://{upstream}\"")
        );
    }
    let issuer = issuer().await;
    let proxy = proxy("http://nobody.invalid", &[("token.issuer", &issuer)]);
    proxy.ready().await;
    let response = proxy.get("/").await;
    assert_eq!(response.status(), 502);
    assert_eq!(
        response.headers()["proxy-status"],
        "bearer-proxy; error=dns_error; next-hop=\"http://nobody.invalid\""
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_17_an_ambiguous_response_is_refused() {
    for head in [
        "200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n",
        "200 OK\r\nContent-Length: 5, 6\r\n\r\n01234",
        "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "200 OK\r\nContent-Length: +5\r\n\r\n01234",
        "200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n01234",
        "20 OK\r\nContent-Length: 0\r\n\r\n",
        "abc OK\r\nContent-Length: 0\r\n\r\n",
        "200 OK\r\nContent Length: 0\r\n\r\n",
        "101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let reply = bytes(format!("HTTP/1.1 {head}")).hold();
        let upstream = Upstream::always(reply).start().await;
        let proxy = upstream.proxy(&[]).await;
        let response = proxy.get("/").await;
        assert_eq!(response.status(), 502, "{head}");
        let expected = format!(
            "bearer-proxy; error=http_protocol_error; next-hop=\"{}\"",
            upstream.origin()
        );
        assert_eq!(response.headers()["proxy-status"], expected, "{head}");
    }
}

/// Bytes behind a response would become the response to another request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_17_a_connection_with_bytes_behind_a_response_is_not_used_again() {
    let evil = "HTTP/1.1 200 OK\r\nX-Evil: yes\r\nContent-Length: 4\r\n\r\nevil";
    let upstream = Upstream::always(move |request: &Request| {
        ok(request.connection.to_string()).followed_by(evil)
    })
    .start()
    .await;
    let proxy = upstream.proxy(&[("proxy.workers", "1")]).await;
    let mut client = Client::connect(proxy.address).await;
    for turn in 0..20 {
        let response = client.send(get("/")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.body(), &turn.to_string());
        assert!(!response.headers().contains_key("x-evil"));
    }
}
