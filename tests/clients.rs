//! Who may call, over real sockets: pages, programs, and clients by name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};

use common::{
    LIMIT, Proxy, issuer, proxy, raw, read_head, scripted,
    web::{self, Identity, Speech},
};
use tokio::io::AsyncWriteExt as _;

/// The heads that reached the upstream.
type Seen = Arc<Mutex<Vec<String>>>;

/// An upstream that answers 200 with these fields, and notes what it sees.
async fn upstream(fields: &'static str) -> (std::net::SocketAddr, Seen) {
    let seen = Seen::default();
    let note = Arc::clone(&seen);
    let address = scripted(move |_, mut stream| {
        let seen = Arc::clone(&note);
        async move {
            loop {
                let head = read_head(&mut stream).await?;
                if head.is_empty() {
                    return Ok(());
                }
                seen.lock().unwrap().push(head.to_ascii_lowercase());
                let answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok");
                stream.write_all(answer.as_bytes()).await?;
            }
        }
    })
    .await;
    (address, seen)
}

async fn in_front_of(upstream: std::net::SocketAddr, more: &[(&str, &str)]) -> Proxy {
    let issuer = issuer().await;
    let mut all = vec![("token.issuer", issuer.as_str())];
    all.extend_from_slice(more);
    let proxy = proxy(&format!("http://{upstream}"), &all);
    proxy.ready().await;
    proxy
}

/// Asks for `target` with these fields; the whole answer.
async fn ask(proxy: &Proxy, request: &str, fields: &str) -> String {
    let request = format!("{request} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
    raw(proxy.address, request.as_bytes(), LIMIT).await
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

fn field<'a>(answer: &'a str, name: &str) -> Vec<&'a str> {
    let head = answer.split_once("\r\n\r\n").unwrap_or((answer, "")).0;
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_10_foreign_pages_and_rebound_names_reach_nothing_in_any_version() {
    let (upstream, seen) = upstream("").await;
    let proxy = in_front_of(upstream, &[("proxy.allowed_hosts", "proxy.lan,0.0.0.0")]).await;
    let page = ("origin", "https://evil.example");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16, &'a str);
    let table: &[Case<'_>] = &[
        ("evil.example", &[], 421, "proxy.allowed_hosts"),
        ("127.0.0.1.evil.example", &[], 421, "proxy.allowed_hosts"),
        ("0.0.0.0:8080", &[], 421, ""),
        ("[::]", &[], 421, ""),
        ("192.0.2.1", &[], 421, "proxy.allowed_hosts"),
        ("localhost:8080", &[page], 403, "proxy.allowed_origins"),
        ("localhost:8080", &[("origin", "null")], 403, "proxy.allowed_origins"),
        ("localhost:8080", &[("origin", "http://localhost:3000")], 403, "proxy.allowed_origins"),
        ("localhost:8080", &[("sec-fetch-site", "cross-site")], 403, "proxy.allowed_origins"),
        ("localhost:8080", &[("sec-fetch-site", "same-site")], 403, "proxy.allowed_origins"),
        ("localhost:8080", &[page, ("access-control-request-method", "PUT")], 403, "proxy.allowed_origins"),
    ];
    let identity = Identity::new();
    for (host, fields, expected, key) in table {
        for (address, speech) in
            [(proxy.address, Speech::Http11), (proxy.address, Speech::Http2), (proxy.admin, Speech::Http11)]
        {
            let mut client = web::Client::connect(speech, address, &identity).await;
            let method = if fields.len() == 2 { "OPTIONS" } else { "GET" };
            let mut request = http::Request::builder().method(method).uri("/healthz").header("host", *host);
            for (name, value) in *fields {
                request = request.header(*name, *value);
            }
            let (answer, body) = client.send(request.body(web::whole("")).unwrap()).await.unwrap().into_parts();
            assert_eq!(answer.status, *expected, "{host} {fields:?} {speech:?}");
            let words = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
            let words = String::from_utf8_lossy(&words);
            assert!(words.contains(key), "{host} {fields:?}: {words}");
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
        }
    }
    assert!(seen.lock().unwrap().is_empty(), "something went upstream");
    for fields in [
        "Host: proxy.lan\r\n",
        "Host: a.localhost:1\r\nOrigin: http://a.localhost:1\r\nSec-Fetch-Site: same-origin\r\n",
    ] {
        assert_eq!(status(&ask(&proxy, "GET /", fields).await), 200, "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_allowed_origins_may_call_and_read() {
    let (plain, seen) = upstream("").await;
    let more = [("proxy.allowed_origins", "https://app.example.com"), ("proxy.required_header", "x-app")];
    let proxy = in_front_of(plain, &more).await;
    let page = "Host: localhost\r\nOrigin: https://app.example.com\r\nSec-Fetch-Site: cross-site\r\n";
    // The browser asks first, and can show nothing yet.
    let asking = format!("{page}Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-app\r\n");
    let answer = ask(&proxy, "OPTIONS /x", &asking).await;
    assert_eq!(status(&answer), 204, "{answer}");
    assert_eq!(field(&answer, "access-control-allow-origin"), ["https://app.example.com"]);
    assert_eq!(field(&answer, "access-control-allow-methods"), ["PUT"]);
    assert_eq!(field(&answer, "access-control-allow-headers"), ["x-app"]);
    assert!(field(&answer, "vary").contains(&"Origin"), "{answer}");
    assert!(seen.lock().unwrap().is_empty(), "a preflight went upstream");

    let answer = ask(&proxy, "PUT /x", &format!("{page}X-App: 1\r\n")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(field(&answer, "access-control-allow-origin"), ["https://app.example.com"]);
    assert_eq!(field(&answer, "vary"), ["Origin"]);
    // An answer of ours can be read as well, and others are not opened.
    let refused = ask(&proxy, "PUT /x", page).await;
    assert_eq!((status(&refused), field(&refused, "access-control-allow-origin").len()), (403, 1), "{refused}");
    let program = ask(&proxy, "GET /x", "Host: localhost\r\nX-App: 1\r\n").await;
    assert_eq!((status(&program), field(&program, "access-control-allow-origin").len()), (200, 0), "{program}");
    // OPTIONS that are no preflight are the upstream's business.
    assert_eq!(status(&ask(&proxy, "OPTIONS /x", &format!("{page}X-App: 1\r\n")).await), 200);
    assert_eq!(seen.lock().unwrap().len(), 3);

    let (own, _) = upstream("Access-Control-Allow-Origin: https://other.example\r\nVary: Accept\r\n").await;
    let proxy = in_front_of(own, &more).await;
    let answer = ask(&proxy, "GET /x", &format!("{page}X-App: 1\r\n")).await;
    assert_eq!(field(&answer, "access-control-allow-origin"), ["https://other.example"]);
    assert_eq!(field(&answer, "vary"), ["Accept"]);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_required_header_is_asked_for_over_tcp_and_goes_no_further() {
    use tokio::io::AsyncReadExt as _;

    let (upstream, seen) = upstream("").await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("proxy.sock");
    let listen = format!("127.0.0.1:0,unix:{}", socket.display());
    let proxy = in_front_of(upstream, &[("proxy.listen", &listen), ("proxy.required_header", "X-App")]).await;
    let refused = ask(&proxy, "GET /", "Host: localhost\r\n").await;
    assert_eq!(status(&refused), 403);
    assert!(refused.contains("proxy.required_header"), "{refused}");
    assert_eq!(proxy.metric("bearer_proxy_requests_rejected_total{reason=\"required_header\"}").await, 1.0);
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(status(&ask(&proxy, "GET /", "Host: localhost\r\nX-App: anything\r\n").await), 200);
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 2 && !seen.iter().any(|head| head.contains("x-app")), "{seen:?}");
}
