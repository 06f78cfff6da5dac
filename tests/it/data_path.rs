//! The data path against upstreams that do exactly as told, over real sockets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::common::{
    Client, LIMIT, eventually, get, in_front_of, issuer, post, proxy, raw, read_head, scripted,
    send,
};

const MULTI: &str = "\r\nContent-Length: ";

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK{MULTI}{}\r\n\r\n{body}", body.len())
}

fn refusal(body: &str) -> String {
    format!(
        "HTTP/1.1 401 Unauthorized\r\nX-Refusal: original{MULTI}{}\r\n\r\n{body}",
        body.len()
    )
}

fn content_length(head: &str) -> usize {
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("content-length: ")?
            .parse()
            .ok()
    });
    length.unwrap_or(0)
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let head = read_head(stream).await?;
    let mut body = vec![0; content_length(&head)];
    stream.read_exact(&mut body).await?;
    Ok((head, body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_sees_one_clean_request() {
    let upstream = scripted(|_, mut stream| async move {
        let (head, body) = read_request(&mut stream).await?;
        let seen = head + &String::from_utf8_lossy(&body);
        stream.write_all(ok(&seen).as_bytes()).await
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let request = "POST /a%2Fb;x=1?q=%C3%BC&r=+ HTTP/1.1\r\nHost: localhost:1\r\nAuthorization: Bearer a\r\nauthorization: Basic b\r\n\
                   Connection: authorization, x-hop\r\nConnection: close\r\nX-Hop: 1\r\nProxy-Authorization: c\r\n\
                   X-Kept: one\r\nTE: trailers\r\nX-Original-URL: /x\r\nX_Original_Url: /x\r\nX-HTTP-Method-Override: PUT\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\nX-Kept: two\r\nContent-Length: 0004\r\n\r\nbody";
    let answer = raw(proxy.address, request.as_bytes(), LIMIT).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let seen = answer.split_once("\r\n\r\n").unwrap().1;
    assert!(
        seen.starts_with("POST /a%2Fb;x=1?q=%C3%BC&r=+ HTTP/1.1\r\n"),
        "{seen}"
    );
    assert!(seen.ends_with("\r\n\r\nbody"), "{seen}");
    let lower = seen.to_ascii_lowercase();
    assert_eq!(
        lower.matches("\r\nauthorization: bearer token-").count(),
        1,
        "{seen}"
    );
    assert_eq!(lower.matches("authorization:").count(), 1, "{seen}");
    for absent in [
        "x-hop",
        "x-original-url",
        "x_original_url",
        "x-http-method",
        "proxy-authorization",
        "upgrade",
        "http2-settings",
        "localhost:1\r\ncont",
    ] {
        assert!(!lower.contains(absent), "{absent} in {seen}");
    }
    // The client can take trailers, and so can we: for this hop only.
    assert!(
        lower.contains("\r\nte: trailers\r\n") && lower.contains("\r\nconnection: te\r\n"),
        "{seen}"
    );
    assert_eq!(lower.matches("connection:").count(), 1, "{seen}");
    assert!(
        lower.contains(&format!("\r\nhost: {upstream}\r\n")),
        "{seen}"
    );
    assert!(
        lower.contains("\r\nx-forwarded-for: 127.0.0.1\r\n")
            && lower.contains("\r\nx-forwarded-host: localhost:1\r\n")
    );
    assert!(lower.contains("\r\ncontent-length: 4\r\n"), "{seen}");
    assert!(
        lower.find("x-kept: one") < lower.find("x-kept: two"),
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_unknown_length_arrives_chunked_with_any_method() {
    let upstream = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        let mut body = Vec::new();
        while !body.ends_with(b"0\r\n\r\n") {
            body.push(stream.read_u8().await?);
        }
        let te = head
            .to_ascii_lowercase()
            .matches("transfer-encoding: chunked")
            .count();
        let text = String::from_utf8_lossy(&body).replace("\r\n", "|");
        stream
            .write_all(ok(&format!("{te} {text}")).as_bytes())
            .await
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    for method in ["GET", "POST", "DELETE"] {
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        );
        let answer = raw(proxy.address, request.as_bytes(), LIMIT).await;
        let seen = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(
            seen.starts_with("1 ") && seen.ends_with("|0||"),
            "{method}: {answer}"
        );
        let data: String = seen.chars().filter(char::is_ascii_lowercase).collect();
        assert_eq!(data, "abcde", "{method}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_stay_without_one() {
    let upstream = scripted(|_, mut stream| async move {
        loop {
            let head = read_head(&mut stream).await?;
            let answer = match head.split(' ').nth(1) {
                Some("/head") => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: \"e\"\r\n\r\n",
                Some("/chunked-head") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\nContent-Length: 1000\r\n\r\n",
                Some("/103") => {
                    "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                }
                _ => return Ok(()),
            };
            stream.write_all(answer.as_bytes()).await?;
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let ask = async |method: &str, path: &str| {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        raw(proxy.address, request.as_bytes(), LIMIT).await
    };
    let head = ask("HEAD", "/head").await;
    assert!(
        head.contains("Content-Length: 1000\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let head = ask("HEAD", "/chunked-head").await;
    assert!(
        !head.to_ascii_lowercase().contains("content-length") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let none = ask("GET", "/204").await;
    assert!(
        none.starts_with("HTTP/1.1 204 ") && none.ends_with("\r\n\r\n"),
        "{none}"
    );
    assert!(
        !none.to_ascii_lowercase().contains("content-length"),
        "{none}"
    );
    let same = ask("GET", "/304").await;
    assert!(
        same.starts_with("HTTP/1.1 304 ") && same.ends_with("\r\n\r\n") && same.contains("\"e\""),
        "{same}"
    );
    let hinted = ask("GET", "/103").await;
    assert!(
        hinted.starts_with("HTTP/1.1 200 OK\r\n") && hinted.ends_with("ok"),
        "{hinted}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_is_served_without_chunks_and_without_a_host() {
    let upstream = scripted(|_, mut stream| async move {
        loop {
            if read_head(&mut stream).await?.is_empty() {
                return Ok(());
            }
            stream
                .write_all(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                )
                .await?;
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let answer = raw(proxy.address, b"GET / HTTP/1.0\r\n\r\n", LIMIT).await;
    assert!(
        answer.contains(" 200 OK\r\n") && answer.ends_with("\r\n\r\nabc"),
        "{answer}"
    );
    assert!(
        !answer.to_ascii_lowercase().contains("transfer-encoding"),
        "{answer}"
    );
    // What ends with the connection does not promise to keep it.
    let answer = raw(
        proxy.address,
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        LIMIT,
    )
    .await;
    assert!(
        answer.contains("\r\nConnection: close\r\n") && answer.ends_with("\r\n\r\nabc"),
        "{answer}"
    );
}

/// An upstream that closes each connection after one answer, without saying so beforehand. It has closed before the client
/// asks again, but the proxy may not have noticed yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_on_a_dead_pooled_connection_is_sent_again() {
    let (close, closed) = tokio::sync::watch::channel(0);
    let close = Arc::new(close);
    let upstream = scripted(move |_, mut stream| {
        let close = Arc::clone(&close);
        async move {
            let (_, body) = read_request(&mut stream).await?;
            stream
                .write_all(ok(&String::from_utf8_lossy(&body)).as_bytes())
                .await?;
            drop(stream);
            close.send_modify(|count| *count += 1);
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[("proxy.workers", "1")]).await;
    let mut closed = closed;
    let mut client = Client::connect(proxy.address).await;
    for round in 0..200 {
        let request = if round % 2 == 0 {
            get("/")
        } else {
            post("/", "payload")
        };
        let expected = if round % 2 == 0 { "" } else { "payload" };
        let answer = client.send(request).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.body()[..]),
            (200, expected.as_bytes()),
            "round {round}"
        );
        closed.wait_for(|count| *count > round).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_may_have_been_applied_is_not_sent_again() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let upstream = scripted(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            read_request(&mut stream).await?;
            stream.write_all(ok("").as_bytes()).await?;
            // The second request on this connection is read, and then the connection is closed without an answer.
            read_request(&mut stream).await?;
            count.fetch_add(1, SeqCst);
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[("proxy.workers", "1")]).await;
    let mut client = Client::connect(proxy.address).await;
    assert_eq!(client.send(post("/", "one")).await.unwrap().status(), 200);
    assert_eq!(client.send(post("/", "two")).await.unwrap().status(), 502);
    assert_eq!(seen.load(SeqCst), 1);
    // A GET in the same place is.
    assert_eq!(client.send(get("/")).await.unwrap().status(), 200);
    assert_eq!(client.send(get("/")).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_body_arrives_whole_when_it_is_sent_again() {
    let upstream = scripted(|number, mut stream| async move {
        loop {
            let (head, body) = read_request(&mut stream).await?;
            if head.is_empty() {
                return Ok(());
            }
            assert_eq!(
                number, 0,
                "a connection that had taken all of a body was thrown away"
            );
            let first = head.to_ascii_lowercase().contains("bearer token-0-1");
            let answer = if first {
                refusal("no")
            } else {
                ok(&String::from_utf8_lossy(&body))
            };
            stream.write_all(answer.as_bytes()).await?;
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let body: String = (0..100_000_u32)
        .map(|n| char::from(b'a' + (n % 23) as u8))
        .collect();
    let answer = proxy.send(post("/upload", body.clone())).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.body(), &body);
    assert_eq!(
        proxy
            .metric("bearer_proxy_retries_total{reason=\"unauthorized\",outcome=\"accepted\"}")
            .await,
        1.0
    );
}

/// The upstream answers as soon as it has seen the head, and closes while the client is still sending.
async fn answers_early(body_length: usize, more: &[(&str, &str)], expected: u16) {
    let upstream = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        if head.to_ascii_lowercase().contains("expect: 100-continue") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            // Some of the body is lost for a replay.
            stream.read_u8().await?;
        }
        if head.to_ascii_lowercase().contains("bearer token-0-1\r\n") {
            return stream.write_all(refusal("early").as_bytes()).await;
        }
        let mut body = vec![0; content_length(&head)];
        stream.read_exact(&mut body).await?;
        stream
            .write_all(ok(&body.len().to_string()).as_bytes())
            .await
    })
    .await;
    let proxy = in_front_of(upstream, more).await;
    let answer = proxy.send(post("/upload", vec![b'x'; body_length])).await;
    let metrics = send(proxy.admin, get("/metrics")).await.into_body();
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    let about: Vec<_> = metrics
        .lines()
        .filter(|line| {
            (line.contains("retries_total{") || line.contains("errors_total{"))
                && !line.ends_with(" 0")
        })
        .collect();
    assert_eq!(answer.status().as_u16(), expected, "{about:?}");
    let text = std::str::from_utf8(answer.body()).unwrap();
    assert_eq!(
        text,
        if expected == 200 {
            body_length.to_string()
        } else {
            "early".to_owned()
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_refusal_of_a_body_that_is_kept_leads_to_a_replay() {
    for _ in 0..100 {
        answers_early(500_000, &[], 200).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_refusal_of_a_body_that_is_too_large_arrives() {
    for _ in 0..100 {
        answers_early(3_000_000, &[], 401).await;
    }
}

/// A client that writes everything before it reads anything, as most do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_only_writes_sees_an_early_answer() {
    let upstream = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch").await
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    for _ in 0..50 {
        let exchange = async {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            stream
                .write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n")
                .await
                .unwrap();
            let chunk = vec![b'x'; 80_000];
            for _ in 0..100 {
                stream.write_all(&chunk).await.unwrap();
            }
            read_head(&mut stream).await.unwrap()
        };
        let head = tokio::time::timeout(LIMIT, exchange).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    }
}

/// It announces that it waits to be asked for its body, and then sends it at once: it must not die of that, and see the
/// refusal.
/// What is read out has bounds of its own: who goes on writing is not silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_only_writes_and_is_slow_sees_an_early_answer() {
    const PIECES: usize = 25;
    let address = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
        stream.read_exact(&mut [0; 1000]).await?;
        stream.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch").await
    })
    .await;
    let proxy = in_front_of(address, &[("proxy.body_idle_timeout", "1s")]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        1000 * PIECES
    );
    stream.write_all(head.as_bytes()).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_wait_to_be_asked_sees_the_refusal() {
    let upstream = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
        stream
            .write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nmuch")
            .await?;
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    for (host, expected) in [
        ("localhost", "HTTP/1.1 413 "),
        ("evil.example", "HTTP/1.1 421 "),
    ] {
        for _ in 0..20 {
            let exchange = async {
                let mut stream = TcpStream::connect(proxy.address).await.unwrap();
                let head = format!(
                    "POST / HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: 8000000\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                let chunk = vec![b'x'; 80_000];
                for _ in 0..100 {
                    stream.write_all(&chunk).await.unwrap();
                }
                read_head(&mut stream).await.unwrap()
            };
            let head = tokio::time::timeout(LIMIT, exchange).await.unwrap();
            assert!(head.starts_with(expected), "{head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_stays_one_arrives_byte_for_byte() {
    let upstream = scripted(|_, mut stream| async move {
        loop {
            if read_head(&mut stream).await?.is_empty() {
                return Ok(());
            }
            stream
                .write_all(refusal("\u{1}the original\n").as_bytes())
                .await?;
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let answer = proxy.get("/").await;
    assert_eq!(answer.status(), 401);
    assert_eq!(answer.headers()["x-refusal"], "original");
    assert_eq!(&answer.body()[..], b"\x01the original\n");
    let hidden = in_front_of(upstream, &[("retry.exhausted", "bad_gateway")]).await;
    let answer = hidden.get("/").await;
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_refusal_is_passed_on_whole() {
    let body = "r".repeat(300_000);
    let refusal = Arc::new(refusal(&body));
    let upstream = scripted(move |_, mut stream| {
        let refusal = Arc::clone(&refusal);
        async move {
            read_request(&mut stream).await?;
            stream.write_all(refusal.as_bytes()).await
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let answer = proxy.send(post("/", "body")).await;
    assert_eq!(
        (answer.status().as_u16(), answer.body().len()),
        (401, body.len())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_18_a_truncated_answer_never_looks_complete() {
    let upstream = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        let framing = if head.contains("/chunked") {
            "Transfer-Encoding: chunked\r\n\r\n5\r\n"
        } else {
            "Content-Length: 10\r\n\r\n"
        };
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\n{framing}12345").as_bytes())
            .await
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    for path in ["/length", "/chunked"] {
        assert!(
            Client::connect(proxy.address)
                .await
                .send(get(path))
                .await
                .is_err(),
            "{path} looked complete"
        );
        // Towards HTTP/1.0 only a reset tells.
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer))
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&answer);
        let length_tells = text.to_ascii_lowercase().contains("content-length: 10");
        assert!(
            ended.is_err() || length_tells || text.contains(" 502 "),
            "{path}: {ended:?} after {text}"
        );
    }
    assert!(
        proxy
            .metric(&format!(
                "bearer_proxy_upstream_errors_total{{endpoint=\"http://{upstream}\",error=\"truncated\"}}"
            ))
            .await
            >= 2.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_by_its_own_limit() {
    let upstream = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        if head.contains("/body") {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
                .await?;
        }
        // Says nothing more, until the proxy gives up.
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    })
    .await;
    let limits = [
        ("upstream.response_timeout", "200ms"),
        ("upstream.body_idle_timeout", "200ms"),
        ("proxy.head_timeout", "200ms"),
        ("proxy.first_byte_timeout", "200ms"),
        ("proxy.idle_timeout", "200ms"),
        ("proxy.body_idle_timeout", "200ms"),
    ];
    let proxy = in_front_of(upstream, &limits).await;
    let answer = proxy.get("/head").await;
    assert_eq!(answer.status(), 504);
    assert_eq!(
        answer.headers()["proxy-status"],
        "bearer-proxy; error=http_response_timeout"
    );
    assert!(
        Client::connect(proxy.address)
            .await
            .send(get("/body"))
            .await
            .is_err()
    );
    let slow_clients = [
        ("", "first byte"),
        ("GET / HTTP/1.1\r\nHost: local", "head"),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n123",
            "body",
        ),
    ];
    for (bytes, what) in slow_clients {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let closed = tokio::time::timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "a connection with a slow {what} stays open");
    }
    eventually("all connections are closed", async || {
        proxy.metric("bearer_proxy_connections_open").await == 0.0
    })
    .await;
    assert_eq!(proxy.metric("bearer_proxy_requests_in_flight").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_failures_have_their_own_answers() {
    let garbage = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
        stream.write_all(b"SMTP ready\r\n\r\n").await
    })
    .await;
    let silent_end =
        scripted(|_, mut stream| async move { read_head(&mut stream).await.map(drop) }).await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for (upstream, status, error) in [
        (garbage, 502, "http_protocol_error"),
        (silent_end, 502, "connection_terminated"),
        (nobody, 502, "connection_refused"),
    ] {
        let proxy = in_front_of(upstream, &[]).await;
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), status);
        assert_eq!(
            answer.headers()["proxy-status"],
            format!("bearer-proxy; error={error}")
        );
    }
    let unknown = issuer().await;
    let proxy = proxy("http://nobody.invalid", &[("token.issuer", &unknown)]);
    proxy.ready().await;
    let answer = proxy.get("/").await;
    assert_eq!(
        (
            answer.status().as_u16(),
            answer.headers()["proxy-status"].to_str().unwrap()
        ),
        (502, "bearer-proxy; error=dns_error")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_one_endpoint_is_down_the_other_serves() {
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let upstream = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
        stream.write_all(ok("here").as_bytes()).await
    })
    .await;
    let issuer = issuer().await;
    let both = format!("http://{nobody},http://{upstream}");
    let proxy = proxy(&both, &[("token.issuer", &issuer)]);
    proxy.ready().await;
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_pages_reach_neither_listener_and_nothing_goes_upstream() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let upstream = scripted(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            read_head(&mut stream).await?;
            count.fetch_add(1, SeqCst);
            stream.write_all(ok("reached").as_bytes()).await
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let table = [
        ("Host: evil.example\r\n", 421),
        ("Host: 0.0.0.0:8080\r\n", 421),
        ("Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
        ("Host: localhost\r\nOrigin: null\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: same-site\r\n", 403),
        ("Host: localhost\r\nHost: localhost\r\n", 400),
        ("Host: localhost\r\nExpect: foo\r\n", 417),
    ];
    for (fields, status) in table {
        for address in [proxy.address, proxy.admin] {
            let request = format!("GET /healthz HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
            let answer = raw(address, request.as_bytes(), LIMIT).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{fields:?}: {answer}"
            );
            assert!(answer.contains("application/problem+json"), "{answer}");
        }
    }
    let trace = raw(
        proxy.address,
        b"TRACE / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        LIMIT,
    )
    .await;
    assert!(trace.starts_with("HTTP/1.1 405 "), "{trace}");
    assert_eq!(asked.load(SeqCst), 0, "something went upstream");
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(asked.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_round_again_is_stopped() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let issuer = issuer().await;
    let itself = address.to_string();
    let proxy = proxy(
        &format!("http://{itself}"),
        &[("token.issuer", &issuer), ("proxy.listen", &itself)],
    );
    proxy.ready().await;
    let answer = send(address, get("/")).await;
    assert_eq!(answer.status(), 508);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_is_under_way_and_takes_nothing_new() {
    let (release, released) = tokio::sync::watch::channel(false);
    let upstream = scripted(move |_, mut stream| {
        let mut released = released.clone();
        async move {
            read_head(&mut stream).await?;
            released
                .wait_for(|released| *released)
                .await
                .map_err(std::io::Error::other)?;
            stream.write_all(ok("late").as_bytes()).await
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let address = proxy.address;
    let mut idle = Client::connect(address).await;
    let under_way = tokio::spawn(async move { send(address, get("/slow")).await });
    eventually("the request is under way", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 1.0
    })
    .await;
    let ending = tokio::spawn(proxy.app.shut_down());
    eventually("nothing listens", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
    assert!(!under_way.is_finished() && !ending.is_finished());
    release.send_replace(true);
    let answer = under_way.await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.body()[..]),
        (200, &b"late"[..])
    );
    assert_eq!(answer.headers()["connection"], "close");
    tokio::time::timeout(LIMIT, ending)
        .await
        .expect("it ends")
        .unwrap();
    assert!(
        idle.send(get("/")).await.is_err(),
        "an idle connection outlived the proxy"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_limited_and_the_rest_turned_away() {
    let upstream = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
        stream.write_all(ok("").as_bytes()).await
    })
    .await;
    let proxy = in_front_of(upstream, &[("proxy.max_connections", "1")]).await;
    let holder = TcpStream::connect(proxy.address).await.unwrap();
    eventually("it is counted", async || {
        proxy.metric("bearer_proxy_connections_open").await == 1.0
    })
    .await;
    let answer = raw(proxy.address, b"", Duration::from_secs(10)).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(holder);
    eventually("the place is free again", async || {
        proxy.metric("bearer_proxy_connections_open").await == 0.0
    })
    .await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

/// An upstream that answers every request on every connection, and counts its connections.
async fn counting(answer: &'static str) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let address = scripted(move |_, mut stream| {
        count.fetch_add(1, SeqCst);
        async move {
            loop {
                if read_request(&mut stream).await?.0.is_empty() {
                    return Ok(());
                }
                stream.write_all(answer.as_bytes()).await?;
            }
        }
    })
    .await;
    (address, connections)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_endpoints_share_the_load_on_connections_that_are_reused() {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let (first, at_first) = counting(OK).await;
    let (second, at_second) = counting(OK).await;
    let issuer = issuer().await;
    let proxy = proxy(
        &format!("http://{first},http://{second}"),
        &[("token.issuer", &issuer), ("proxy.workers", "1")],
    );
    proxy.ready().await;
    let mut client = Client::connect(proxy.address).await;
    for _ in 0..50 {
        assert_eq!(client.send(get("/")).await.unwrap().status(), 200);
    }
    assert_eq!((at_first.load(SeqCst), at_second.load(SeqCst)), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_of_one_worker_do_not_use_up_the_limit_for_another() {
    let (upstream, _) = counting("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = in_front_of(
        upstream,
        &[("upstream.max_connections", "1"), ("proxy.workers", "4")],
    )
    .await;
    for _ in 0..50 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_at_a_time_than_an_endpoint_may_get_are_shed() {
    let upstream =
        scripted(
            |_, mut stream| async move { stream.read_to_end(&mut Vec::new()).await.map(drop) },
        )
        .await;
    let proxy = in_front_of(upstream, &[("upstream.max_connections", "1")]).await;
    let address = proxy.address;
    let holder = tokio::spawn(async move { Client::connect(address).await.send(get("/")).await });
    eventually("it is in flight", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 1.0
    })
    .await;
    let answer = proxy.get("/").await;
    assert_eq!(answer.status(), 503);
    assert_eq!(
        answer.headers()["proxy-status"],
        "bearer-proxy; error=connection_limit_reached"
    );
    holder.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_to_be_asked_and_then_says_nothing_is_closed() {
    let upstream =
        scripted(
            |_, mut stream| async move { stream.read_to_end(&mut Vec::new()).await.map(drop) },
        )
        .await;
    let proxy = in_front_of(upstream, &[("proxy.body_idle_timeout", "200ms")]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head =
        "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer))
        .await
        .expect("it is closed")
        .unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 100 "));
    eventually("nothing is in flight", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_to_be_asked_and_is_refused_may_not_go_on() {
    let (upstream, connections) = counting("").await;
    let proxy = in_front_of(upstream, &[]).await;
    let head = "POST / HTTP/1.1\r\nHost: evil.example\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n";
    let answer = raw(proxy.address, head.as_bytes(), LIMIT).await;
    assert!(
        answer.starts_with("HTTP/1.1 421 ") && !answer.contains(" 100 "),
        "{answer}"
    );
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("\r\nconnection: close\r\n"),
        "{answer}"
    );
    assert_eq!(connections.load(SeqCst), 0);
}

/// The limit for the answer runs from the last byte of the request's body, however that body is framed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_a_body_has_its_own_limit() {
    let upstream =
        scripted(
            |_, mut stream| async move { stream.read_to_end(&mut Vec::new()).await.map(drop) },
        )
        .await;
    let limits = [
        ("upstream.response_timeout", "200ms"),
        ("upstream.body_idle_timeout", "60s"),
    ];
    let proxy = in_front_of(upstream, &limits).await;
    for body in [
        "Content-Length: 4\r\n\r\nbody",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{body}");
        let answer = raw(proxy.address, request.as_bytes(), LIMIT).await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{body}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_has_timeouts_of_its_own() {
    let upstream = scripted(|_, mut stream| async move {
        if read_head(&mut stream).await?.starts_with("GET /quick/body") {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
                .await?;
        }
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    })
    .await;
    // Those of the upstream are a minute.
    let route = [
        ("route[0].prefix", "/quick"),
        ("route[0].response_timeout", "200ms"),
        ("route[0].body_idle_timeout", "200ms"),
    ];
    let proxy = in_front_of(upstream, &route).await;
    assert_eq!(proxy.get("/quick/head").await.status(), 504);
    let mut client = Client::connect(proxy.address).await;
    let cut = client.send(get("/quick/body"));
    assert!(
        tokio::time::timeout(LIMIT, cut)
            .await
            .expect("it is cut")
            .is_err()
    );
}

/// A body that is read out late, because its answer came early, must not bring the idle limit down on the request behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_behind_an_upload_is_not_cut() {
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
            tokio::time::sleep(Duration::from_millis(150)).await; // slower than the idle limit, on purpose
            stream.write_all(b"x").await?;
        }
        Ok(())
    })
    .await;
    let proxy = in_front_of(
        upstream,
        &[("proxy.idle_timeout", "300ms"), ("proxy.workers", "1")],
    )
    .await;
    for _ in 0..2 {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n")
            .await
            .unwrap();
        assert!(
            read_head(&mut stream)
                .await
                .unwrap()
                .starts_with("HTTP/1.1 200 ")
        );
        // The end of the first request and the whole second one arrive together.
        stream
            .write_all(b"bodyGET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(answer.ends_with("\r\n\r\nxxxxxx"), "{answer}");
    }
}

/// hyper takes the end of a body before all of it has left; the idle limit must not begin before that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tail_of_an_answer_reaches_a_client_that_pauses() {
    const LENGTH: usize = 4_300_000;
    let upstream = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes())
            .await?;
        stream.write_all(&vec![b'x'; LENGTH]).await
    })
    .await;
    let proxy = in_front_of(upstream, &[("proxy.idle_timeout", "200ms")]).await;
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..40 {
        let address = proxy.address;
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
            read_head(&mut stream).await.unwrap();
            // Takes part of the answer, then pauses for longer than the idle limit.
            let mut taken = vec![0; n * 100_000];
            stream.read_exact(&mut taken).await.unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await; // the pause is what is tested
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            taken.len() + rest.len()
        });
    }
    for length in clients.join_all().await {
        assert_eq!(length, LENGTH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_breaks_off_is_replayed_or_an_honest_502() {
    for framing in [
        "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        "Content-Length: 10\r\n\r\n12345",
    ] {
        let upstream = scripted(move |_, mut stream| async move {
            let head = read_head(&mut stream).await?;
            if head.contains("/always")
                || head.to_ascii_lowercase().contains("bearer token-0-1\r\n")
            {
                return stream
                    .write_all(format!("HTTP/1.1 401 Unauthorized\r\n{framing}").as_bytes())
                    .await;
            }
            stream.write_all(ok("replayed").as_bytes()).await
        })
        .await;
        let proxy = in_front_of(upstream, &[]).await;
        let answer = proxy.get("/").await;
        assert_eq!(
            (answer.status().as_u16(), &answer.body()[..]),
            (200, &b"replayed"[..]),
            "{framing}"
        );
        // The replay is refused, and breaks off as well: that must be seen.
        assert!(
            Client::connect(proxy.address)
                .await
                .send(get("/always"))
                .await
                .map_or(true, |answer| answer.status() == 502),
            "{framing}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_17_an_answer_that_can_be_read_in_two_ways_is_refused() {
    for head in [
        "200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n",
        "200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n01234",
        "200 OK\r\nContent-Length: 5, 5\r\n\r\n01234",
        "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "200 OK\r\nContent-Length: +5\r\n\r\n01234",
        "200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n01234",
        "20 OK\r\nContent-Length: 0\r\n\r\n",
        "abc OK\r\nContent-Length: 0\r\n\r\n",
        "200 OK\r\nContent Length: 0\r\n\r\n",
        "101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let upstream = scripted(move |_, mut stream| async move {
            read_head(&mut stream).await?;
            stream
                .write_all(format!("HTTP/1.1 {head}").as_bytes())
                .await?;
            stream.read_to_end(&mut Vec::new()).await.map(drop)
        })
        .await;
        let proxy = in_front_of(upstream, &[]).await;
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), 502, "{head}");
        assert_eq!(
            answer.headers()["proxy-status"],
            "bearer-proxy; error=http_protocol_error",
            "{head}"
        );
    }
}

/// Bytes behind an answer would be the answer to somebody else's request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_17_a_connection_with_bytes_behind_an_answer_is_not_used_again() {
    let upstream = scripted(|number, mut stream| async move {
        while !read_head(&mut stream).await?.is_empty() {
            let evil = "HTTP/1.1 200 OK\r\nX-Evil: yes\r\nContent-Length: 4\r\n\r\nevil";
            stream
                .write_all(format!("{}{evil}", ok(&number.to_string())).as_bytes())
                .await?;
        }
        Ok(())
    })
    .await;
    let proxy = in_front_of(upstream, &[("proxy.workers", "1")]).await;
    let mut client = Client::connect(proxy.address).await;
    for turn in 0..20 {
        let answer = client.send(get("/")).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.body()[..]),
            (200, turn.to_string().as_bytes())
        );
        assert!(!answer.headers().contains_key("x-evil"));
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_socket_serves_too_and_knows_no_foreign_host() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("proxy.sock");
    let (upstream, _) = counting("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let listen = format!("127.0.0.1:0,unix:{}", path.display());
    let _proxy = in_front_of(upstream, &[("proxy.listen", &listen)]).await;
    for host in ["localhost", "anything.example"] {
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"),
            "{answer}"
        );
    }
}

/// What a client does not take stays with the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_the_upstream_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let upstream = scripted(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            read_head(&mut stream).await?;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
                .await?;
            let chunk = [b'x'; 64 * 1024];
            loop {
                stream.write_all(&chunk).await?;
                count.fetch_add(chunk.len(), SeqCst);
            }
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    // Until nothing moves any more: twice the same count, a while apart.
    let mut last = 0;
    eventually("the upstream is held back", async || {
        tokio::time::sleep(Duration::from_millis(300)).await; // the while
        let now = sent.load(SeqCst);
        std::mem::replace(&mut last, now) == now && now > 0
    })
    .await;
    // The sockets' buffers hold some megabytes, the proxy itself next to nothing.
    assert!(last < 50_000_000, "{last} bytes went somewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_utf8_in_a_target_is_encoded_and_nothing_else_of_it_changes() {
    let upstream = scripted(|_, mut stream| async move {
        let (head, _) = read_request(&mut stream).await?;
        stream
            .write_all(ok(head.lines().next().unwrap_or_default()).as_bytes())
            .await
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    for (target, expected) in [
        (
            "/文件/a b.txt".replace(' ', "%20"),
            "/%E6%96%87%E4%BB%B6/a%20b.txt",
        ),
        ("/a?name=ü&x=%c3%bc".to_owned(), "/a?name=%C3%BC&x=%c3%bc"),
        ("http://localhost/é".to_owned(), "/%C3%A9"),
    ] {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = raw(proxy.address, request.as_bytes(), LIMIT).await;
        assert!(
            answer.ends_with(&format!("\r\n\r\nGET {expected} HTTP/1.1")),
            "{target}: {answer}"
        );
    }
    // Bytes that are no UTF-8 could mean anything.
    let answer = raw(
        proxy.address,
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        LIMIT,
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_11_and_12_paths_that_are_denied_or_ambiguous_never_arrive() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let upstream = scripted(move |_, mut stream| {
        let seen = Arc::clone(&note);
        async move {
            let (head, _) = read_request(&mut stream).await?;
            seen.lock()
                .unwrap()
                .push(head.split(' ').nth(1).unwrap_or_default().to_owned());
            stream.write_all(ok("").as_bytes()).await
        }
    })
    .await;
    let rules = [
        ("route[0].prefix", "/files"),
        ("route[0].strip_prefix", "true"),
        ("route[0].allow", "/a,/b"),
        ("route[0].deny", "/a/secret,DELETE /"),
    ];
    let proxy = in_front_of(upstream, &rules).await;
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
        let request = format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nX-Original-URL: /api/token.do\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(proxy.address, request.as_bytes(), LIMIT).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected} ")),
            "{request}: {answer}"
        );
    }
    assert_eq!(*seen.lock().unwrap(), ["/a/x", "/a%2Fb;x=1/../c"]);
    assert_eq!(
        proxy
            .metric("bearer_proxy_requests_rejected_total{reason=\"issuer_path\"}")
            .await,
        7.0
    );
}

/// What a client asks for in parts comes in these parts, and what they are conditional on arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_ranges_of_a_coded_file_pass_untouched() {
    const PARTS: &str = "--b\r\nContent-Range: bytes 0-1/9\r\n\r\n\x1f\x01\r\n--b\r\nContent-Range: bytes 4-5/9\r\n\r\nef\r\n--b--\r\n";
    const FIELDS: &str =
        "Content-Type: multipart/byteranges; boundary=b\r\nContent-Encoding: gzip\r\n";
    let upstream = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?.to_ascii_lowercase();
        for field in [
            "range: bytes=0-1,4-5",
            "if-range: \"e\"",
            "accept-encoding: gzip, br",
        ] {
            assert!(head.contains(&format!("\r\n{field}\r\n")), "{head}");
        }
        let answer = format!(
            "HTTP/1.1 206 Partial Content\r\n{FIELDS}Content-Length: {}\r\n\r\n{PARTS}",
            PARTS.len()
        );
        stream.write_all(answer.as_bytes()).await
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nRange: bytes=0-1,4-5\r\nIf-Range: \"e\"\r\n\
                   Accept-Encoding: gzip, br\r\n\r\n";
    let answer = raw(proxy.address, request.as_bytes(), LIMIT).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 206 ") && head.contains(FIELDS.trim_end()),
        "{answer}"
    );
    assert_eq!(body, PARTS);
}
