//! What the upstream sees of a request.

use tokio::{io::copy_bidirectional, net::TcpStream};

use crate::common::{
    LIMIT, closed_address, get, issuer, proxy, raw, scripted, send, status,
    upstream::{Upstream, response},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_gets_one_clean_request() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    let request = "POST /a%2Fb;x=1?q=%C3%BC&r=+ HTTP/1.1\r\nHost: localhost:1\r\nAuthorization: Bearer a\r\nauthorization: Basic b\r\n\
                   Connection: authorization, x-hop\r\nConnection: close\r\nX-Hop: 1\r\nProxy-Authorization: c\r\n\
                   X-Kept: one\r\nTE: trailers\r\nX-Original-URL: /x\r\nX_Original_Url: /x\r\nX-HTTP-Method-Override: PUT\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAA\r\nX-Kept: two\r\nContent-Length: 0004\r\n\r\nbody";
    let response = proxy.raw(request).await;
    assert_eq!(status(&response), 200, "{response}");
    let [seen] = &upstream.requests()[..] else {
        panic!("not one request")
    };
    let head = &seen.head;
    assert!(
        head.starts_with("POST /a%2Fb;x=1?q=%C3%BC&r=+ HTTP/1.1\r\n"),
        "{head}"
    );
    assert_eq!(seen.body, b"body");
    for (name, expected) in [
        ("authorization", vec!["Bearer token-1"]),
        ("host", vec![&*upstream.address.to_string()]),
        ("x-forwarded-for", vec!["127.0.0.1"]),
        ("x-forwarded-host", vec!["localhost:1"]),
        ("content-length", vec!["4"]),
        ("x-kept", vec!["one", "two"]),
        // The client takes trailers, and so does the proxy: for this hop only.
        ("te", vec!["trailers"]),
        ("connection", vec!["te"]),
    ] {
        assert_eq!(seen.fields(name), expected, "{name} in {head}");
    }
    for absent in [
        "x-hop",
        "x-original-url",
        "x_original_url",
        "x-http-method-override",
        "proxy-authorization",
        "upgrade",
        "http2-settings",
    ] {
        assert!(seen.fields(absent).is_empty(), "{absent} in {head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_unknown_length_is_sent_chunked_with_any_method() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    for method in ["GET", "POST", "DELETE"] {
        let body = "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let request =
            format!("{method} / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{body}");
        assert_eq!(status(&proxy.raw(&request).await), 200, "{method}");
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 3);
    for request in requests {
        assert_eq!(request.fields("transfer-encoding"), ["chunked"]);
        assert_eq!(request.body, b"abcde", "{}", request.head);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_in_a_target_is_percent_encoded_and_nothing_else_of_it_changes() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    let targets = [
        ("/文件/a%20b.txt", "/%E6%96%87%E4%BB%B6/a%20b.txt"),
        ("/a?name=ü&x=%c3%bc", "/a?name=%C3%BC&x=%c3%bc"),
        ("http://localhost/é", "/%C3%A9"),
    ];
    for (target, _) in targets {
        proxy
            .ask(&format!("GET {target}"), "Host: localhost\r\n")
            .await;
    }
    assert_eq!(upstream.targets(), targets.map(|(_, expected)| expected));
    let request = b"GET /\xff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    raw(proxy.address, request, LIMIT).await;
    assert_eq!(upstream.targets().last().unwrap(), "/%FF");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_pages_reach_neither_listener_and_nothing_is_forwarded() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    for (fields, expected) in [
        ("Host: evil.example\r\n", 421),
        ("Host: 0.0.0.0:8080\r\n", 421),
        ("Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
        ("Host: localhost\r\nOrigin: null\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: same-site\r\n", 403),
        ("Host: localhost\r\nHost: localhost\r\n", 400),
        ("Host: localhost\r\nExpect: foo\r\n", 417),
    ] {
        for address in [proxy.address, proxy.admin] {
            let request = format!("GET /healthz HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
            let response = raw(address, request.as_bytes(), LIMIT).await;
            assert_eq!(status(&response), expected, "{fields:?}: {response}");
            assert!(response.contains("application/problem+json"), "{response}");
        }
    }
    let trace = proxy.ask("TRACE /", "Host: localhost\r\n").await;
    assert_eq!(status(&trace), 405, "{trace}");
    assert_eq!(upstream.count(), 0, "a refused request was forwarded");
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_a_loop_is_stopped() {
    let address = closed_address();
    let issuer = issuer().await;
    let itself = address.to_string();
    // Its own address would be a mistake.
    let detour = scripted(move |_, mut stream| async move {
        let mut proxy = TcpStream::connect(address).await?;
        copy_bidirectional(&mut stream, &mut proxy).await.map(drop)
    })
    .await;
    let proxy = proxy(
        &format!("http://{detour}"),
        &[("token.issuer", &issuer), ("proxy.listen", &itself)],
    );
    proxy.ready().await;
    assert_eq!(send(address, get("/")).await.status(), 508);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_11_and_12_paths_that_are_denied_or_ambiguous_are_not_forwarded() {
    let upstream = Upstream::new().start().await;
    let rules = [
        ("route[0].prefix", "/files"),
        ("route[0].strip_prefix", "true"),
        ("route[0].allow", "/a,/b"),
        ("route[0].deny", "/a/secret,DELETE /"),
    ];
    let proxy = upstream.proxy(&rules).await;
    for (request, expected) in [
        ("GET /api/token.do", 403),
        ("POST /API/refreshToken.do?grant_type=refresh_token", 403),
        ("GET /nd/api/Token.do/", 403),
        ("GET /api%2ftoken.do", 403),
        ("GET /api/%2574oken.do", 403),
        ("GET /api/x/..;/authorize.do", 403),
        ("GET /files/api/authorizeByJWT.do", 403),
        ("GET /%zz", 400),
        ("GET /a%00b", 400),
        ("GET /files/a/../a/secret", 400),
        ("GET /files/a%2fsecret", 400),
        ("GET /files/a/%73ecret/x", 403),
        ("GET /files/c", 403),
        ("DELETE /files/a", 403),
        ("GET /files/a/x", 200),
        ("GET /a%2Fb;x=1/../c", 200),
    ] {
        let fields = "Host: localhost\r\nX-Original-URL: /api/token.do\r\n";
        let response = proxy.ask(request, fields).await;
        assert_eq!(status(&response), expected, "{request}: {response}");
    }
    assert_eq!(upstream.targets(), ["/a/x", "/a%2Fb;x=1/../c"]);
    assert_eq!(proxy.rejected("issuer_path").await, 7.0);
}

/// The ranges and conditions of a request reach the upstream, and its parts reach the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_ranges_of_an_encoded_file_are_relayed_unchanged() {
    const PARTS: &str = "--b\r\nContent-Range: bytes 0-1/9\r\n\r\n\x1f\x01\r\n--b\r\nContent-Range: bytes 4-5/9\r\n\r\nef\r\n--b--\r\n";
    const FIELDS: &str =
        "Content-Type: multipart/byteranges; boundary=b\r\nContent-Encoding: gzip\r\n";
    let partial = response("206 Partial Content", FIELDS, PARTS);
    let upstream = Upstream::always(partial).start().await;
    let proxy = upstream.proxy(&[]).await;
    let asked = "Host: localhost\r\nRange: bytes=0-1,4-5\r\nIf-Range: \"e\"\r\nAccept-Encoding: gzip, br\r\n";
    let got = proxy.ask("GET /", asked).await;
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert_eq!(status(&got), 206, "{got}");
    assert!(head.contains(FIELDS.trim_end()), "{got}");
    assert_eq!(body, PARTS);
    let request = &upstream.requests()[0];
    assert_eq!(request.fields("range"), ["bytes=0-1,4-5"]);
    assert_eq!(request.fields("if-range"), ["\"e\""]);
    assert_eq!(request.fields("accept-encoding"), ["gzip, br"]);
}
