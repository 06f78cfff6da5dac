//! Input that is meant to harm, over real sockets, in front of an upstream that counts what reaches it.

use std::net::TcpListener;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::common::{LIMIT, Proxy, get, in_front_of, raw, read_head, scripted, strict::Strict};

async fn counted(more: &[(&str, &str)]) -> (Proxy, Strict) {
    let upstream = Strict::start().await;
    (in_front_of(upstream.address, more).await, upstream)
}

/// Sends bytes and reads until the proxy closes, which it must.
async fn answers(proxy: &Proxy, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    read.unwrap_or_else(|_| panic!("left open after {}", request.escape_ascii()))
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn is_problem(answer: &str, status: u16) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status} "))
        && answer.contains("application/problem+json")
}

/// Addresses that nobody may call.
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

    fn assert_unheard(&self) {
        assert_eq!(
            self.0.accept().expect_err("somebody called").kind(),
            std::io::ErrorKind::WouldBlock
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_01_nominating_our_fields_removes_the_clients_and_never_ours() {
    let (proxy, upstream) = counted(&[]).await;
    let request = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: Authorization\r\nConnection: close, Host\r\n\
        connection: x-forwarded-for,Content-Length , X-Hop\r\nX-Forwarded-For: 192.0.2.66\r\nX-Hop: 1\r\n\
        Authorization: Bearer evil\r\nContent-Length: 2\r\n\r\nhi";
    assert!(answers(&proxy, request).await.contains("X-Reached"));
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
async fn bad_input_02_a_clients_credentials_go_nowhere_not_even_as_trailers() {
    let (proxy, upstream) = counted(&[]).await;
    let request = b"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer evil\r\nauthorization: Basic evil\r\n\
        Proxy-Authorization: Basic evil\r\nTE: trailers\r\nConnection: TE, close\r\n\
        Trailer: X-Sum, Authorization, Host, Content-Length, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n\
        2\r\nhi\r\n0\r\nX-Sum: 17\r\nAuthorization: Bearer evil\r\nHost: evil\r\nContent-Length: 666\r\n\
        Transfer-Encoding: evil\r\n\r\n";
    assert!(answers(&proxy, request).await.contains("X-Reached"));
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
        "the trailer that is legal passes: {seen}"
    );
}

/// Two servers would see different requests in these.
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
async fn bad_input_03_lengths_and_chunks_that_servers_disagree_about_are_refused() {
    let (proxy, upstream) = counted(&[]).await;
    for fields in SMUGGLED {
        let request = format!("POST / HTTP/1.1\r\nHost: localhost\r\n{fields}");
        let answer = answers(&proxy, request.as_bytes()).await;
        assert!(
            is_problem(&answer, 400) && answer.matches("HTTP/1.1 ").count() == 1,
            "{fields:?}: {answer}"
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
        let answer = answers(&proxy, request.as_bytes()).await;
        assert!(is_problem(&answer, status), "{status}: {answer}");
        let name = format!("bearer_proxy_requests_rejected_total{{reason=\"{reason}\"}}");
        assert!(proxy.metric(&name).await > 0.0, "{reason}");
    }
    assert_eq!(upstream.requests(), [""; 0]);
}

/// What is good before something bad on a connection is answered; the bad one, and what follows it, is not a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_03_what_came_before_is_answered_and_what_follows_is_not() {
    let (proxy, upstream) = counted(&[]).await;
    let good = "POST /good HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi";
    let bad = "POST /bad HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n";
    let all = [good, good, bad, good].concat();
    for pace in [all.len(), 50, 1] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in all.as_bytes().chunks(pace) {
            if stream.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut answer = Vec::new();
        tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.matches("X-Reached").count(), 2, "{pace}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 400 ").count(),
            1,
            "{pace}: {answer}"
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
    // Somebody who sends on for long still gets to read why.
    let answer = answers(&proxy, &[bad.as_bytes(), &[b'x'; 500_000]].concat()).await;
    assert!(is_problem(&answer, 400), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_03_chunks_that_go_bad_on_their_way_never_look_whole() {
    let (proxy, upstream) = counted(&[]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head =
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    stream.write_all(head).await.unwrap();
    crate::common::eventually("it is under way", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 1.0
    })
    .await;
    stream
        .write_all(b"3\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(
        !String::from_utf8_lossy(&answer).contains("X-Reached"),
        "{answer:?}"
    );
    crate::common::eventually("it is over", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
    })
    .await;
    let log = upstream.take();
    assert!(log.requests.is_empty() && log.odd.is_empty(), "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_04_expectations_bodies_of_gets_and_early_answers() {
    let (proxy, upstream) = counted(&[]).await;
    let ask = |fields: &str| {
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\r\n")
    };
    for expectation in ["foo", "100-continue, foo", "100-continued", ""] {
        let answer = answers(
            &proxy,
            ask(&format!("Expect: {expectation}\r\n")).as_bytes(),
        )
        .await;
        assert!(is_problem(&answer, 417), "{expectation}: {answer}");
    }
    assert_eq!(upstream.requests(), [""; 0]);
    let body = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let request = ask(&format!("Content-Length: {}\r\n", body.len())) + body;
    assert_eq!(
        answers(&proxy, request.as_bytes())
            .await
            .matches("HTTP/1.1 ")
            .count(),
        1
    );
    assert!(matches!(&upstream.requests()[..], [seen] if seen.ends_with(body)));

    // An upstream that answers before it has read a body, which holds something like a request.
    let upstream = scripted(|_, mut stream| async move {
        while read_head(&mut stream).await?.starts_with("POST ") {
            stream
                .write_all(b"HTTP/1.1 413 Too Large\r\nX-Reached: yes\r\nContent-Length: 0\r\n\r\n")
                .await?;
            let mut rest = vec![0; 1 << 20];
            stream.read_exact(&mut rest).await?;
        }
        panic!("something else came");
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
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
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
        "POST / HTTP/1.0\r\nHost: localhost\r\n\r\nbody",
        "PUT / HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\nbody",
        "POST / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answer = answers(&proxy, request.as_bytes())
            .await
            .replacen("HTTP/1.0", "HTTP/1.1", 1);
        assert!(is_problem(&answer, 400), "{request:?}: {answer}");
    }
    assert_eq!(upstream.requests(), [""; 0]);
    // Without a length, there is no body.
    let answer = raw(
        proxy.address,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\nbody",
        LIMIT,
    )
    .await;
    assert!(answer.contains("X-Reached"), "{answer}");
    assert!(matches!(&upstream.requests()[..], [seen] if !seen.contains("body")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_09_where_a_request_goes_is_for_the_configuration_to_say() {
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
            let answer = answers(&proxy, request.as_bytes()).await;
            let is_reached = answer.contains("X-Reached");
            assert!(
                is_reached || answer.starts_with("HTTP/1.1 4"),
                "{target} {host}: {answer}"
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
        canary.assert_unheard();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_16_redirects_are_passed_on_and_not_followed() {
    let canary = Canary::new();
    let to = canary.address();
    let upstream = scripted(move |_, mut stream| async move {
        while let head = read_head(&mut stream).await?
            && !head.is_empty()
        {
            let code = head.split([' ', '/']).nth(2).unwrap_or_default().to_owned();
            let answer =
                format!("HTTP/1.1 {code} Elsewhere\r\nLocation: http://{to}/there\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await?;
        }
        Ok(())
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    for code in [301, 302, 303, 307, 308] {
        let answer = proxy.get(&format!("/{code}")).await;
        assert_eq!(answer.status(), code);
        assert_eq!(answer.headers()["location"], format!("http://{to}/there"));
        assert!(!format!("{answer:?}").contains("token-"), "{answer:?}");
    }
    canary.assert_unheard();
}

/// NTLM and Negotiate vouch for a connection: who came next by it would be taken for who came before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_19_a_connection_that_speaks_for_somebody_is_not_shared() {
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
        let upstream = scripted(move |number, mut stream| async move {
            let mut turn = 0;
            while !read_head(&mut stream).await?.is_empty() {
                turn += 1;
                let answer = format!(
                    "HTTP/1.1 {challenge}\r\nX-Seen: {number}.{turn}\r\nContent-Length: 2\r\n\r\nok"
                );
                stream.write_all(answer.as_bytes()).await?;
            }
            Ok(())
        })
        .await;
        let more = [("proxy.workers", "1"), ("retry.statuses", "418")];
        let proxy = in_front_of(upstream, &more).await;
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(
                proxy.get("/").await.headers()["x-seen"]
                    .to_str()
                    .unwrap()
                    .to_owned(),
            );
        }
        assert_eq!(
            seen,
            if is_shared {
                ["0.1", "0.2", "0.3"]
            } else {
                ["0.1", "1.1", "2.1"]
            },
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
        let answer = answers(
            &proxy,
            format!("{request}Connection: close\r\n\r\n").as_bytes(),
        )
        .await;
        let expected = if request.starts_with('t') { 400 } else { 405 };
        assert!(
            is_problem(&answer.replacen("HTTP/1.0", "HTTP/1.1", 1), expected),
            "{request}: {answer}"
        );
        assert!(!answer.contains("token-"), "{answer}");
    }
    assert_eq!(upstream.requests(), [""; 0]);
    assert_eq!(proxy.send(get("/")).await.status(), 200);
}
