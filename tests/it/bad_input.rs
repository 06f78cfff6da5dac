//! Malicious input, in front of an upstream that records every byte that reaches it.

use std::net::TcpListener;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{
    Proxy, connect, in_front_of, read_head, read_to_close, scripted,
    strict::Strict,
    upstream::{Request, Upstream, bytes, response},
};

async fn counted(more: &[(&str, &str)]) -> (Proxy, Strict) {
    let upstream = Strict::start().await;
    (in_front_of(upstream.address, more).await, upstream)
}

/// Sends bytes and reads until the proxy closes, which it must.
async fn exchange(proxy: &Proxy, request: impl AsRef<[u8]>) -> String {
    read_to_close(&mut connect(proxy.address, request).await).await
}

fn is_problem(response: &str, status: u16) -> bool {
    response.starts_with(&format!("HTTP/1.1 {status} "))
        && response.contains("application/problem+json")
}

/// An address that the proxy must not connect to.
struct Canary(TcpListener);

impl Canary {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn address(&self) -> std::net::SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn assert_untouched(&self) {
        assert_eq!(
            self.0.accept().expect_err("the proxy connected").kind(),
            std::io::ErrorKind::WouldBlock
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_01_nominating_the_proxys_fields_removes_the_clients_and_never_the_proxys() {
    let (proxy, upstream) = counted(&[]).await;
    let request = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: Authorization\r\nConnection: close, Host\r\n\
        connection: x-forwarded-for,Content-Length , X-Hop\r\nX-Forwarded-For: 192.0.2.66\r\nX-Hop: 1\r\n\
        Authorization: Bearer evil\r\nContent-Length: 2\r\n\r\nhi";
    assert!(exchange(&proxy, request).await.contains("X-Reached"));
    let [seen] = &upstream.requests()[..] else {
        panic!("not one request")
    };
    let lower = seen.to_ascii_lowercase();
    let values = |name: &str| -> Vec<&str> {
        lower
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .collect()
    };
    assert!(
        matches!(values("authorization")[..], [token] if token.starts_with("bearer token-")),
        "{seen}"
    );
    assert_eq!(values("host"), [upstream.address.to_string()], "{seen}");
    assert_eq!(values("x-forwarded-for"), ["127.0.0.1"], "{seen}");
    assert!(
        values("x-hop").is_empty()
            && values("connection").is_empty()
            && seen.ends_with("\r\n\r\nhi"),
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_02_a_clients_credentials_are_not_forwarded_not_even_as_trailers() {
    let (proxy, upstream) = counted(&[]).await;
    let request = b"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer evil\r\nauthorization: Basic evil\r\n\
        Proxy-Authorization: Basic evil\r\nTE: trailers\r\nConnection: TE, close\r\n\
        Trailer: X-Sum, Authorization, Host, Content-Length, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n\
        2\r\nhi\r\n0\r\nX-Sum: 17\r\nAuthorization: Bearer evil\r\nHost: evil\r\nContent-Length: 666\r\n\
        Transfer-Encoding: evil\r\n\r\n";
    assert!(exchange(&proxy, request).await.contains("X-Reached"));
    let [seen] = &upstream.requests()[..] else {
        panic!("not one request")
    };
    let lower = seen.to_ascii_lowercase();
    assert_eq!(
        lower.matches("\r\nauthorization: bearer token-").count(),
        1,
        "{seen}"
    );
    assert!(!lower.contains("evil") && !lower.contains("666"), "{seen}");
    assert!(
        lower.ends_with("\r\n0\r\nx-sum: 17\r\n\r\n"),
        "the permitted trailer is forwarded: {seen}"
    );
}

/// Two servers could parse these as different requests.
const SMUGGLED: &[&str] = &[
    "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGPOST",
    "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "Content-Length: 5, 5\r\n\r\nhello",
    "Content-Length: +5\r\n\r\nhello",
    "Content-Length: 0x5\r\n\r\nhello",
    "Content-Length: 5 6\r\n\r\nhello",
    "Content-Length : 5\r\n\r\nhello",
    "Content_Length: 5\r\n\r\nhello",
    "Content-Length:\r\n 5\r\n\r\nhello",
    "Content-Length: -5\r\n\r\nhello",
    "Content-Length: 18446744073709551621\r\n\r\nhello",
    "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding\r\n : chunked\r\n\r\n0\r\n\r\n",
    " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "X: y\n\r\n",
    "X: y\r\n\nGET / HTTP/1.1\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n3;\nabc\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff3\r\nabc\r\n0\r\n\r\n",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_03_ambiguous_lengths_and_chunks_are_refused() {
    let (proxy, upstream) = counted(&[]).await;
    for fields in SMUGGLED {
        let request = format!("POST / HTTP/1.1\r\nHost: localhost\r\n{fields}");
        let response = exchange(&proxy, &request).await;
        assert!(
            is_problem(&response, 400) && response.matches("HTTP/1.1 ").count() == 1,
            "{fields:?}: {response}"
        );
    }
    assert_eq!(upstream.requests(), [""; 0]);
    let refused = proxy
        .metric("bearer_proxy_requests_rejected_total{reason=\"bad_request\"}")
        .await;
    assert_eq!(refused, SMUGGLED.len() as f64, "each is counted");
    for (request, status, reason) in [
        (
            format!(
                "GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
                "x".repeat(60_000)
            ),
            414,
            "target_too_long",
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
                "x".repeat(90_000)
            ),
            431,
            "head_too_large",
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
                "x: y\r\n".repeat(200)
            ),
            431,
            "head_too_large",
        ),
        (
            "PRI / HTTP/2.0\r\nHost: localhost\r\n\r\n".to_owned(),
            505,
            "version",
        ),
    ] {
        let response = exchange(&proxy, &request).await;
        assert!(is_problem(&response, status), "{status}: {response}");
        let name = format!("bearer_proxy_requests_rejected_total{{reason=\"{reason}\"}}");
        assert!(proxy.metric(&name).await > 0.0, "{reason}");
    }
    assert_eq!(upstream.requests(), [""; 0]);
}

/// Valid requests before an invalid one on a connection are served; the invalid one, and what follows it, is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_03_requests_before_an_invalid_one_are_served_and_those_behind_it_are_not() {
    let (proxy, upstream) = counted(&[]).await;
    let good = "POST /good HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi";
    let bad = "POST /bad HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n";
    let all = [good, good, bad, good].concat();
    for pace in [all.len(), 50, 1] {
        let mut stream = connect(proxy.address, "").await;
        for piece in all.as_bytes().chunks(pace) {
            if stream.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let response = read_to_close(&mut stream).await;
        assert_eq!(
            response.matches("X-Reached").count(),
            2,
            "{pace}: {response}"
        );
        assert_eq!(
            response.matches("HTTP/1.1 400 ").count(),
            1,
            "{pace}: {response}"
        );
        assert!(
            upstream
                .requests()
                .iter()
                .map(|seen| seen.starts_with("POST /good "))
                .eq([true, true]),
            "{pace}"
        );
    }
    // A client that goes on sending for long still gets the error.
    let response = exchange(&proxy, &[bad.as_bytes(), &[b'x'; 500_000]].concat()).await;
    assert!(is_problem(&response, 400), "{response}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_03_chunks_that_become_invalid_never_look_complete() {
    let (proxy, upstream) = counted(&[]).await;
    let head =
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let mut stream = connect(proxy.address, head).await;
    proxy.until_in_flight(1).await;
    stream
        .write_all(b"3\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let response = read_to_close(&mut stream).await;
    assert!(!response.contains("X-Reached"), "{response}");
    proxy.until_in_flight(0).await;
    let log = upstream.take();
    assert!(log.requests.is_empty() && log.odd.is_empty(), "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_04_expectations_bodies_of_gets_and_early_responses() {
    let (proxy, upstream) = counted(&[]).await;
    let ask = |fields: &str| {
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\r\n")
    };
    for expectation in ["foo", "100-continue, foo", "100-continued", "\"\""] {
        let response = exchange(&proxy, ask(&format!("Expect: {expectation}\r\n"))).await;
        assert!(is_problem(&response, 417), "{expectation}: {response}");
    }
    assert_eq!(upstream.requests(), [""; 0]);
    let body = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let request = ask(&format!("Content-Length: {}\r\n", body.len())) + body;
    assert_eq!(
        exchange(&proxy, &request)
            .await
            .matches("HTTP/1.1 ")
            .count(),
        1
    );
    assert!(matches!(&upstream.requests()[..], [seen] if seen.ends_with(body)));

    // An upstream that responds before it has read a body, which contains something like a request.
    let upstream = scripted(|_, mut stream| async move {
        while read_head(&mut stream).await?.starts_with("POST ") {
            stream
                .write_all(b"HTTP/1.1 413 Too Large\r\nX-Reached: yes\r\nContent-Length: 0\r\n\r\n")
                .await?;
            let mut rest = vec![0; 1 << 20];
            stream.read_exact(&mut rest).await?;
        }
        panic!("a part of the body was parsed as a request");
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let body = body.repeat((1 << 20) / body.len() + 1);
    let request = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{}",
        1 << 20,
        &body[..1 << 20]
    );
    for _ in 0..3 {
        let mut stream = connect(proxy.address, "").await;
        let (mut from, mut to) = stream.split();
        let (_, head) = tokio::join!(to.write_all(request.as_bytes()), async {
            let mut head = vec![0; 12];
            from.read_exact(&mut head).await.unwrap();
            head
        });
        assert_eq!(head, b"HTTP/1.1 413");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_06_a_body_without_an_end_is_refused() {
    let (proxy, upstream) = counted(&[]).await;
    for request in [
        "POST / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let response = exchange(&proxy, &request)
            .await
            .replacen("HTTP/1.0", "HTTP/1.1", 1);
        assert!(is_problem(&response, 400), "{request:?}: {response}");
    }
    assert_eq!(upstream.requests(), [""; 0]);
    // Without a length, there is no body.
    let response = proxy
        .raw("POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\nbody")
        .await;
    assert!(response.contains("X-Reached"), "{response}");
    assert!(matches!(&upstream.requests()[..], [seen] if !seen.contains("body")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_09_only_the_configuration_decides_where_a_request_goes() {
    for host in ["endpoint", "client"] {
        let (proxy, upstream) = counted(&[("upstream.host", host)]).await;
        let canary = Canary::new();
        let to = canary.address();
        let mut reached = 0;
        for (target, host) in [
            (format!("http://{to}/x"), to.to_string()),
            (format!("http://{to}/x"), "localhost".to_owned()),
            (format!("http://u@{to}/x"), to.to_string()),
            (format!("//{to}/x"), "localhost".to_owned()),
            (format!("///{to}/x"), "localhost".to_owned()),
            (format!("/@{to}/x"), "localhost".to_owned()),
            (format!("@{to}/x"), "localhost".to_owned()),
            (to.to_string(), to.to_string()),
            (format!("/\\{to}/x"), "localhost".to_owned()),
            (format!("/x?http://{to}/"), "localhost".to_owned()),
            ("/x".to_owned(), to.to_string()),
            ("/x".to_owned(), format!("localhost@{to}")),
            ("/x".to_owned(), format!("{to}/y")),
        ] {
            let request = format!(
                "GET {target} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: {to}\r\nForwarded: host={to}\r\n\
                 X-Original-URL: http://{to}/\r\nConnection: close\r\n\r\n"
            );
            let response = exchange(&proxy, &request).await;
            let is_reached = response.contains("X-Reached");
            assert!(
                is_reached || response.starts_with("HTTP/1.1 4"),
                "{target} {host}: {response}"
            );
            reached += usize::from(is_reached);
        }
        let seen = upstream.requests();
        assert_eq!(seen.len(), reached);
        assert!(
            reached >= 3,
            "the harmless ones reach the upstream: {reached}"
        );
        assert!(
            seen.iter().all(|request| request.starts_with("GET /")),
            "{seen:?}"
        );
        canary.assert_untouched();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_16_redirects_are_relayed_and_not_followed() {
    let canary = Canary::new();
    let to = canary.address();
    let upstream = Upstream::always(move |request: &Request| {
        let status = format!("{} Elsewhere", &request.path()[1..]);
        response(&status, &format!("Location: http://{to}/there\r\n"), "")
    });
    let proxy = upstream.start().await.proxy(&[]).await;
    for code in [301, 302, 303, 307, 308] {
        let redirect = proxy.get(&format!("/{code}")).await;
        assert_eq!(redirect.status(), code);
        assert_eq!(redirect.headers()["location"], format!("http://{to}/there"));
        assert!(!format!("{redirect:?}").contains("token-"), "{redirect:?}");
    }
    canary.assert_untouched();
}

/// NTLM and Negotiate authenticate the connection: the next client on it would act as the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_19_an_authenticated_connection_is_not_shared() {
    for (challenge, is_shared) in [
        ("401 No\r\nWWW-Authenticate: NTLM", false),
        (
            "401 No\r\nWWW-Authenticate: Basic realm=\"x\", Negotiate",
            false,
        ),
        (
            "401 No\r\nWWW-Authenticate: Basic realm=\"x\"\r\nWWW-Authenticate: negotiate oRQ=",
            false,
        ),
        ("200 OK\r\nWWW-Authenticate: Negotiate oRQ=", false),
        ("200 OK\r\nWWW-Authenticate: Basic realm=\"NTLM\"", true),
    ] {
        let reply = bytes(format!(
            "HTTP/1.1 {challenge}\r\nContent-Length: 2\r\n\r\nok"
        ));
        let upstream = Upstream::always(reply).start().await;
        let more = [("proxy.workers", "1"), ("retry.statuses", "418")];
        let proxy = upstream.proxy(&more).await;
        for _ in 0..3 {
            proxy.get("/").await;
        }
        let requests = upstream.requests();
        let connections: Vec<_> = requests.iter().map(|request| request.connection).collect();
        assert_eq!(
            connections,
            if is_shared { [0, 0, 0] } else { [0, 1, 2] },
            "{challenge}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_26_trace_and_connect_are_not_served() {
    let (proxy, upstream) = counted(&[]).await;
    let at = proxy.address;
    for request in [
        "TRACE / HTTP/1.1\r\nHost: localhost\r\n".to_owned(),
        "TRACE * HTTP/1.1\r\nHost: localhost\r\nMax-Forwards: 0\r\n".to_owned(),
        format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n"),
        "CONNECT / HTTP/1.1\r\nHost: localhost\r\n".to_owned(),
        "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n".to_owned(),
        "CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n".to_owned(),
        "TRACE / HTTP/1.1\r\nHost: evil.example\r\n".to_owned(),
        "TRACE / HTTP/1.0\r\n".to_owned(),
        "trace / HTTP/1.1\r\nHost: localhost\r\n".to_owned(),
    ] {
        let response = exchange(&proxy, format!("{request}Connection: close\r\n\r\n")).await;
        let expected = if request.starts_with('t') { 400 } else { 405 };
        assert!(
            is_problem(&response.replacen("HTTP/1.0", "HTTP/1.1", 1), expected),
            "{request}: {response}"
        );
        assert!(!response.contains("token-"), "{response}");
    }
    assert_eq!(upstream.requests(), [""; 0]);
    assert_eq!(proxy.get("/").await.status(), 200);
}
