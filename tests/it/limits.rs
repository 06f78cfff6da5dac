//! What a client may take up: each limit is a key, answered with words, counted, and no harm to others.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{Request, StatusCode};
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Semaphore,
};

use crate::common::{
    LIMIT, Proxy, eventually,
    frames::{
        ACK, CANCEL, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, PING, POST, RST_STREAM,
        WINDOW_UPDATE, greeted, head, read, until, write,
    },
    get, in_front_of, scripted, send,
    web::{self, Identity, Speech},
};

/// An upstream that answers each request when it may. Counts those that wait.
async fn held() -> (SocketAddr, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (may, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (permits, count) = (Arc::clone(&may), Arc::clone(&waiting));
    let address = scripted(move |_, mut stream| {
        let (may, waiting) = (Arc::clone(&permits), Arc::clone(&count));
        async move {
            while !crate::common::read_head(&mut stream).await?.is_empty() {
                waiting.fetch_add(1, SeqCst);
                may.acquire().await.unwrap().forget();
                waiting.fetch_sub(1, SeqCst);
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await?;
            }
            Ok(())
        }
    })
    .await;
    (address, may, waiting)
}

async fn rejected(proxy: &Proxy, reason: &str) -> f64 {
    proxy
        .metric(&format!(
            "bearer_proxy_requests_rejected_total{{reason=\"{reason}\"}}"
        ))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_have_a_size_a_number_of_fields_and_a_length_of_their_target() {
    let (address, may, _) = held().await;
    may.add_permits(1000);
    let more = [
        ("proxy.max_head_size", "3KB"),
        ("proxy.max_uri_length", "500B"),
        ("proxy.max_headers", "20"),
    ];
    let proxy = in_front_of(address, &more).await;
    let target = |length: usize| get(&format!("/{}", "x".repeat(length - 1)));
    let fields = |number: usize, size: usize| {
        let mut request = get("/");
        for name in 1..number {
            let name: http::HeaderName = format!("x-{name}").parse().unwrap();
            request
                .headers_mut()
                .insert(name, "y".repeat(size).parse().unwrap());
        }
        request
    };
    let listing = |number: usize| {
        let mut request = get("/");
        request
            .headers_mut()
            .insert("connection", vec!["x"; number].join(",").parse().unwrap());
        request
    };
    let table: [(Request<Full<bytes::Bytes>>, u16, &str); 8] = [
        (target(500), 200, ""),
        (target(501), 414, "target_too_long"),
        (fields(20, 10), 200, ""),
        (fields(21, 10), 431, "head_too_large"),
        (listing(19), 200, ""),
        (listing(20), 431, "head_too_large"),
        (fields(2, 2800), 200, ""),
        (fields(2, 3100), 431, "head_too_large"),
    ];
    for (request, status, reason) in table {
        let before = if reason.is_empty() {
            0.0
        } else {
            rejected(&proxy, reason).await
        };
        let what = format!(
            "{} {:?}",
            request.uri().path().len(),
            request.headers().len()
        );
        let answer = proxy.send(request).await;
        assert_eq!(answer.status(), status, "{what}");
        if !reason.is_empty() {
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            assert_eq!(rejected(&proxy, reason).await, before + 1.0, "{what}");
        }
    }

    // On HTTP/2 as well.
    let mut stream = greeted(proxy.address, &[]).await;
    let mut many = head(GET, "/");
    for name in 0..21 {
        let name = format!("x-{name}");
        many.extend([0, name.len() as u8]);
        many.extend(name.as_bytes());
        many.extend(b"\x01y");
    }
    let mut long = head(GET, "");
    // HPACK writes lengths from 127 on in several bytes: 501 = 127 + 374.
    let at = 3;
    long.splice(
        at..=at,
        [0x7f, 0xf6, 0x02]
            .into_iter()
            .chain(std::iter::repeat_n(b'/', 501)),
    );
    for (number, block, reason) in [(1, many, "head_too_large"), (3, long, "target_too_long")] {
        let before = rejected(&proxy, reason).await;
        write(
            &mut stream,
            HEADERS,
            END_HEADERS | END_STREAM,
            number,
            &block,
        )
        .await
        .unwrap();
        until(&mut stream, HEADERS, number)
            .await
            .expect("an answer");
        assert_eq!(rejected(&proxy, reason).await, before + 1.0, "{reason}");
    }
    let mut client = web::Client::connect(Speech::Http2, proxy.address, &Identity::new()).await;
    for (size, status) in [(2700, 200), (3100, 431), (100, 200)] {
        let request = Request::get("/")
            .header("host", "localhost")
            .header("x", "y".repeat(size));
        let answer =
            tokio::time::timeout(LIMIT, client.send(request.body(web::whole("")).unwrap()))
                .await
                .unwrap();
        assert_eq!(answer.unwrap().status(), status, "{size}");
    }
}

/// Encoding makes it three times as long. A longer one arrived without any target: the library takes 64 KiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_address_arrives_encoded() {
    let address = scripted(|_, mut stream| async move {
        let head = crate::common::read_head(&mut stream).await?;
        let length = head.split(' ').nth(1).map_or(0, str::len).to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{length}",
            length.len()
        );
        stream.write_all(answer.as_bytes()).await
    })
    .await;
    let more = [
        ("proxy.max_uri_length", "21KiB"),
        ("route[0].prefix", "/_x"),
        ("route[0].strip_prefix", "true"),
    ];
    let proxy = in_front_of(address, &more).await;
    for prefix in ["", "/_x"] {
        let names = "é".repeat((21 * 1024 - 1) / 2 - 2);
        let request = format!(
            "DELETE {prefix}/{names} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        );
        let answer = crate::common::raw(proxy.address, request.as_bytes(), LIMIT).await;
        assert!(
            answer.ends_with(&format!("\r\n\r\n{}", 1 + 3 * names.len())),
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_silence_has_a_deadline_of_its_own() {
    let (address, may, _) = held().await;
    may.add_permits(1000);
    let whole = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let preface = String::from_utf8_lossy(crate::common::frames::PREFACE).into_owned();
    let idle_http2 = preface.clone() + "\0\0\0\x04\0\0\0\0\0";
    for (key, sent) in [
        ("first_byte", &[""][..]),
        ("head", &["G", &whole[..20], &preface[..3], &preface[..20]]),
        (
            "body_idle",
            &["POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"],
        ),
        ("idle", &[whole, &idle_http2]),
    ] {
        let keys =
            ["first_byte", "head", "body_idle", "idle"].map(|name| format!("proxy.{name}_timeout"));
        let short = format!("proxy.{key}_timeout");
        let more = keys
            .each_ref()
            .map(|name| (name.as_str(), if *name == short { "200ms" } else { "10m" }));
        let proxy = in_front_of(address, &more).await;
        for words in sent {
            let mut stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
            stream.write_all(words.as_bytes()).await.unwrap();
            // How it ends, by a close or a reset, is not the point here.
            let end =
                tokio::time::timeout(LIMIT, tokio::io::copy(&mut stream, &mut tokio::io::sink()))
                    .await;
            assert!(end.is_ok(), "{key}: left open after {words:?}");
        }
        let late = format!("bearer_proxy_clients_late_total{{limit=\"{key}_timeout\"}}");
        eventually("they are counted", async || {
            proxy.metric(&late).await == sent.len() as f64
        })
        .await;
    }
}

/// Sends a body piece by piece, and returns what comes back.
async fn sent_slowly(proxy: &Proxy, piece: &'static str, pieces: usize) -> String {
    let (mut answer, mut body) = tokio::net::TcpStream::connect(proxy.address)
        .await
        .unwrap()
        .into_split();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        piece.len() * pieces
    );
    body.write_all(head.as_bytes()).await.unwrap();
    let sending = tokio::spawn(async move {
        for _ in 0..pieces {
            tokio::time::sleep(Duration::from_millis(100)).await; // the pace of the client
            if body.write_all(piece.as_bytes()).await.is_err() {
                break;
            }
        }
        body
    });
    let mut words = Vec::new();
    // A reset is an end as well.
    let end = tokio::time::timeout(LIMIT, answer.read_to_end(&mut words)).await;
    assert!(end.is_ok(), "left open");
    sending.abort();
    String::from_utf8(words).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_now_and_then_does_not_keep_a_request_and_a_slow_upload_is_no_attack() {
    let address = scripted(|_, mut stream| async move {
        while let Some(length) = crate::common::read_head(&mut stream)
            .await?
            .lines()
            .find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.parse::<u64>().ok())
                    .flatten()
            })
        {
            tokio::io::copy(&mut (&mut stream).take(length), &mut tokio::io::sink()).await?;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await?;
        }
        Ok(())
    })
    .await;
    let with = async |rate: &str| {
        in_front_of(
            address,
            &[
                ("proxy.body_idle_timeout", "2s"),
                ("proxy.min_body_rate", rate),
            ],
        )
        .await
    };
    let (strict, lenient) = (with("100B").await, with("0B").await);
    let fifty = "01234567890123456789012345678901234567890123456789";
    let (trickle, slow, allowed) = tokio::join!(
        sent_slowly(&strict, "x", 300),
        sent_slowly(&strict, fifty, 40),
        sent_slowly(&lenient, "x", 40),
    );
    assert_eq!(trickle, "", "closed, long before its half a minute is over");
    assert!(slow.starts_with("HTTP/1.1 200 "), "{slow}");
    assert!(allowed.starts_with("HTTP/1.1 200 "), "{allowed}");
    assert_eq!(
        strict
            .metric(r#"bearer_proxy_clients_late_total{limit="min_body_rate"}"#)
            .await,
        1.0
    );
}

/// The head of a body of 2,000 bytes.
fn announced() -> Vec<u8> {
    let mut block = head(POST, "/");
    block.extend(b"\x0f\x0d\x042000");
    block
}

/// Pieces that come at once are one wait: the later ones are there before anybody waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_counts_of_a_body_that_comes_in_many_small_pieces_at_once() {
    let (address, may, _) = held().await;
    let more = [
        ("proxy.body_idle_timeout", "2s"),
        ("proxy.min_body_rate", "100B"),
    ];
    let proxy = in_front_of(address, &more).await;
    let mut stream = greeted(proxy.address, &[]).await;
    write(&mut stream, HEADERS, END_HEADERS, 1, &announced())
        .await
        .unwrap();
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await; // the pace of the client
        let mut pieces = Vec::new();
        for _ in 0..50 {
            write(&mut pieces, DATA, 0, 1, b"x").await.unwrap();
        }
        stream.write_all(&pieces).await.unwrap();
    }
    may.add_permits(1);
    until(&mut stream, HEADERS, 1).await.expect("an answer");
    assert_eq!(
        proxy
            .metric(r#"bearer_proxy_clients_late_total{limit="min_body_rate"}"#)
            .await,
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_began_slowly_may_be_silent_as_long_as_any_once_it_is_answered() {
    const SLOWLY: usize = 20;
    let address = scripted(|_, mut stream| async move {
        crate::common::read_head(&mut stream).await?;
        stream.read_exact(&mut [0; SLOWLY]).await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            .await?;
        stream.read_exact(&mut [0; 2000 - SLOWLY]).await?;
        stream.write_all(b"ok").await
    })
    .await;
    let more = [
        ("proxy.body_idle_timeout", "4s"),
        ("proxy.min_body_rate", "100B"),
    ];
    let proxy = in_front_of(address, &more).await;
    let mut stream = greeted(proxy.address, &[]).await;
    write(&mut stream, HEADERS, END_HEADERS, 1, &announced())
        .await
        .unwrap();
    for _ in 0..SLOWLY {
        tokio::time::sleep(Duration::from_millis(100)).await; // the pace of the client
        write(&mut stream, DATA, 0, 1, b"x").await.unwrap();
    }
    until(&mut stream, HEADERS, 1).await.expect("an answer");
    tokio::time::sleep(Duration::from_secs(3)).await; // a silence within the limit, but not within what was left
    write(&mut stream, DATA, END_STREAM, 1, &[b'x'; 2000 - SLOWLY])
        .await
        .unwrap();
    assert!(
        until(&mut stream, DATA, 1)
            .await
            .is_some_and(|frame| frame.payload == b"ok")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_new_token_is_waited_for_nobody_is_late_with_a_body_that_is_not_read() {
    let (may, calls) = (Arc::new(Semaphore::new(1)), Arc::new(AtomicUsize::new(0)));
    let (permits, count) = (Arc::clone(&may), Arc::clone(&calls));
    let address = scripted(move |_, mut stream| {
        let (may, calls) = (Arc::clone(&permits), Arc::clone(&count));
        async move {
            loop {
                let head = crate::common::read_head(&mut stream).await?;
                if head.starts_with("POST /api/refreshToken.do") {
                    let token = format!("token-{}", calls.fetch_add(1, SeqCst));
                    may.acquire().await.unwrap().forget();
                    stream
                        .write_all(crate::common::grant(&token, 3600).as_bytes())
                        .await?;
                } else if head.contains("Bearer token-0\r\n") {
                    stream.read_exact(&mut [0; 4]).await?;
                    stream
                        .write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
                        .await?;
                } else if head.is_empty() {
                    return Ok(());
                } else {
                    stream.read_exact(&mut [0; 9]).await?;
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .await?;
                }
            }
        }
    })
    .await;
    let proxy = crate::common::proxy(
        &format!("http://{address}"),
        &[("proxy.body_idle_timeout", "500ms")],
    );
    proxy.ready().await;
    let mut stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let head =
        b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhalf";
    stream.write_all(head).await.unwrap();
    eventually("its token is refused", async || calls.load(SeqCst) == 2).await;
    stream.write_all(b" more").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await; // longer than a client may be silent
    may.add_permits(1);
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer))
        .await
        .expect("in time")
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_are_told_to_come_back_and_those_under_way_are_answered() {
    let (address, may, waiting) = held().await;
    let proxy = in_front_of(address, &[("proxy.max_requests", "3")]).await;
    let asked = |number: usize| {
        let address = proxy.address;
        (0..number)
            .map(move |_| tokio::spawn(async move { send(address, get("/")).await }))
            .collect::<Vec<_>>()
    };
    let under_way = asked(3);
    eventually("three are under way", async || waiting.load(SeqCst) == 3).await;
    for refused in asked(20) {
        let refused = refused.await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()["retry-after"], "1");
        assert_eq!(
            refused.headers()["proxy-status"],
            "bearer-proxy; error=destination_unavailable"
        );
    }
    assert_eq!(
        (rejected(&proxy, "overloaded").await, waiting.load(SeqCst)),
        (20.0, 3)
    );
    may.add_permits(4);
    for answer in under_way {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    eventually("their places are free", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
    })
    .await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_and_resets_streams_is_shown_out_and_who_uses_them_may_reset_some() {
    let (address, may, waiting) = held().await;
    let proxy = in_front_of(
        address,
        &[("proxy.max_resets", "10"), ("proxy.workers", "1")],
    )
    .await;
    let open = async |stream: &mut tokio::net::TcpStream, number: u32| {
        write(
            stream,
            HEADERS,
            END_HEADERS | END_STREAM,
            number,
            &head(GET, "/"),
        )
        .await
    };
    // As many resets as answers, again and again.
    let mut fair = greeted(proxy.address, &[]).await;
    for round in 0..30 {
        open(&mut fair, 4 * round + 1).await.unwrap();
        eventually("it is under way", async || waiting.load(SeqCst) == 1).await;
        write(
            &mut fair,
            RST_STREAM,
            0,
            4 * round + 1,
            &CANCEL.to_be_bytes(),
        )
        .await
        .unwrap();
        eventually("it is given up", async || {
            proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
        })
        .await;
        // The upstream's side of it is answered, and nobody listens.
        may.add_permits(2);
        open(&mut fair, 4 * round + 3).await.unwrap();
        until(&mut fair, HEADERS, 4 * round + 3)
            .await
            .expect("an answer");
        eventually("nothing waits", async || waiting.load(SeqCst) == 0).await;
    }

    // Resets that come before a request was looked at, and those of requests that are under way already.
    for (is_patient, times) in [(false, 1000), (true, 12)] {
        let counted = r#"bearer_proxy_connections_rejected_total{reason="http2_flood"}"#;
        let before = proxy.metric(counted).await;
        eventually("nothing waits", async || waiting.load(SeqCst) == 0).await;
        may.forget_permits(usize::MAX);
        let mut rapid = greeted(proxy.address, &[]).await;
        for round in 0..times {
            let number = 2 * round + 1;
            let Ok(()) = open(&mut rapid, number).await else {
                break;
            };
            if is_patient {
                let under_way =
                    async || waiting.load(SeqCst) > 0 || proxy.metric(counted).await > before;
                eventually("it is under way", under_way).await;
            }
            let Ok(()) = write(&mut rapid, RST_STREAM, 0, number, &CANCEL.to_be_bytes()).await
            else {
                break;
            };
            if is_patient {
                // Else the answer could overtake the reset.
                eventually("it is given up", async || {
                    proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
                })
                .await;
            }
            may.add_permits(1);
            if is_patient {
                eventually("nothing waits", async || waiting.load(SeqCst) == 0).await;
            }
        }
        until(&mut rapid, GOAWAY, 0).await.expect("a goodbye");
        assert!(
            until(&mut rapid, HEADERS, u32::MAX).await.is_none(),
            "and the end"
        );
        eventually("it is counted", async || {
            proxy.metric(counted).await == before + 1.0
        })
        .await;
    }
    may.add_permits(1000);
    assert_eq!(
        tokio::time::timeout(LIMIT, proxy.get("/"))
            .await
            .unwrap()
            .status(),
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_streams_that_are_reset_at_once_nobody_is_called() {
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&connections), Arc::clone(&requests));
    let address = scripted(move |_, mut stream| {
        let (connections, requests) = (Arc::clone(&counts.0), Arc::clone(&counts.1));
        connections.fetch_add(1, SeqCst);
        async move {
            while !crate::common::read_head(&mut stream).await?.is_empty() {
                requests.fetch_add(1, SeqCst);
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await?;
            }
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(address, &[("proxy.workers", "1")]).await;
    let mut stream = greeted(proxy.address, &[]).await;
    let mut said = Vec::new();
    for number in (1..60).step_by(4) {
        write(
            &mut said,
            HEADERS,
            END_HEADERS | END_STREAM,
            number,
            &head(GET, "/"),
        )
        .await
        .unwrap();
        write(&mut said, RST_STREAM, 0, number, &CANCEL.to_be_bytes())
            .await
            .unwrap();
        write(
            &mut said,
            HEADERS,
            END_HEADERS | END_STREAM,
            number + 2,
            &head(GET, "/"),
        )
        .await
        .unwrap();
        // A window beyond its bounds makes the server reset the stream: RFC 9113 §6.9.1.
        write(
            &mut said,
            WINDOW_UPDATE,
            0,
            number + 2,
            &[0x7f, 0xff, 0xff, 0xff],
        )
        .await
        .unwrap();
    }
    write(
        &mut said,
        HEADERS,
        END_HEADERS | END_STREAM,
        61,
        &head(GET, "/"),
    )
    .await
    .unwrap();
    stream.write_all(&said).await.unwrap();
    until(&mut stream, HEADERS, 61).await.expect("an answer");
    assert_eq!((connections.load(SeqCst), requests.load(SeqCst)), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_much_beside_its_requests_is_shown_out_and_who_asks_in_between_may_say_more() {
    let (address, may, _) = held().await;
    may.add_permits(1000);
    let proxy = in_front_of(
        address,
        &[("proxy.max_control_frames", "50"), ("proxy.workers", "1")],
    )
    .await;
    let pings = async |stream: &mut tokio::net::TcpStream, number: usize| {
        let mut said = Vec::new();
        for _ in 0..number {
            write(&mut said, PING, 0, 0, &[0; 8]).await.unwrap();
        }
        stream.write_all(&said).await.unwrap();
    };
    let mut fair = greeted(proxy.address, &[]).await;
    for round in 0..10 {
        pings(&mut fair, 40).await;
        let mut answered = 0;
        while answered < 40 {
            let frame = tokio::time::timeout(LIMIT, read(&mut fair))
                .await
                .unwrap()
                .unwrap();
            answered += usize::from(frame.kind == PING && frame.flags == ACK);
        }
        write(
            &mut fair,
            HEADERS,
            END_HEADERS | END_STREAM,
            2 * round + 1,
            &head(GET, "/"),
        )
        .await
        .unwrap();
        until(&mut fair, HEADERS, 2 * round + 1)
            .await
            .expect("an answer");
    }

    let counted = r#"bearer_proxy_connections_rejected_total{reason="http2_flood"}"#;
    let before = proxy.metric(counted).await;
    let mut chatty = greeted(proxy.address, &[]).await;
    pings(&mut chatty, 100).await;
    until(&mut chatty, GOAWAY, 0).await.expect("a goodbye");
    eventually("it is counted", async || {
        proxy.metric(counted).await == before + 1.0
    })
    .await;
}
