//! Limits on the resources that a client may use: each limit has a key, a response that explains it
//! and a counter, and does not affect other clients.

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
    LIMIT, Proxy, connect, eventually,
    frames::{
        ACK, CANCEL, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, PING, POST, PREFACE,
        RST_STREAM, WINDOW_UPDATE, greeted, head, read, request, reset, until, write,
    },
    get, in_front_of, read_head, read_to_close, scripted, send, status,
    upstream::{self, Respond, Upstream, grant, ok, unauthorized, values},
    web::{self, Identity, Speech},
};

/// An upstream that responds to one request per permit.
struct Held {
    address: SocketAddr,
    permits: Arc<Semaphore>,
    /// The number of requests that wait for a permit.
    waiting: Arc<AtomicUsize>,
}

impl Held {
    async fn start() -> Self {
        Self::replying(|_: &upstream::Request| ok("ok")).await
    }

    /// An issuer of `token-1`, `token-2`, …
    async fn start_issuer() -> Self {
        let calls = AtomicUsize::new(0);
        Self::replying(move |_: &upstream::Request| {
            grant(&format!("token-{}", calls.fetch_add(1, SeqCst) + 1), 3600)
        })
        .await
    }

    async fn replying(reply: impl Respond) -> Self {
        let (permits, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (may, count) = (Arc::clone(&permits), Arc::clone(&waiting));
        let reply = move |request: &upstream::Request| {
            let (may, count) = (Arc::clone(&may), Arc::clone(&count));
            reply.reply(request).after(move || {
                let (may, count) = (Arc::clone(&may), Arc::clone(&count));
                async move {
                    count.fetch_add(1, SeqCst);
                    may.acquire().await.unwrap().forget();
                    count.fetch_sub(1, SeqCst);
                }
            })
        };
        let upstream = Upstream::always(reply).early().start().await;
        Self {
            address: upstream.address,
            permits,
            waiting,
        }
    }

    fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn until_waiting(&self, count: usize) {
        eventually(&format!("{count} requests wait"), async || {
            self.waiting.load(SeqCst) == count
        })
        .await;
    }
}

/// The number of clients that were too late, by the limit that they exceeded.
async fn late(proxy: &Proxy, limit: &str) -> f64 {
    let name = format!("bearer_proxy_clients_late_total{{limit=\"{limit}\"}}");
    proxy.metric(&name).await
}

const FLOODS: &str = r#"bearer_proxy_connections_rejected_total{reason="http2_flood"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_is_limited_in_size_number_of_fields_and_length_of_the_target() {
    let upstream = Upstream::new().start().await;
    let more = [
        ("proxy.max_head_size", "3KB"),
        ("proxy.max_uri_length", "500B"),
        ("proxy.max_headers", "20"),
    ];
    let proxy = upstream.proxy(&more).await;
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
            proxy.rejected(reason).await
        };
        let what = format!(
            "{} {:?}",
            request.uri().path().len(),
            request.headers().len()
        );
        let response = proxy.send(request).await;
        assert_eq!(response.status(), status, "{what}");
        if !reason.is_empty() {
            assert_eq!(
                response.headers()["content-type"],
                "application/problem+json"
            );
            assert_eq!(proxy.rejected(reason).await, before + 1.0, "{what}");
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
        let before = proxy.rejected(reason).await;
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
            .expect("a response");
        assert_eq!(proxy.rejected(reason).await, before + 1.0, "{reason}");
    }
    let mut client = web::Client::connect(Speech::Http2, proxy.address, &Identity::new()).await;
    for (size, status) in [(2700, 200), (3100, 431), (100, 200)] {
        let request = Request::get("/")
            .header("host", "localhost")
            .header("x", "y".repeat(size));
        let response =
            tokio::time::timeout(LIMIT, client.send(request.body(web::whole("")).unwrap()))
                .await
                .unwrap();
        assert_eq!(response.unwrap().status(), status, "{size}");
    }
}

/// Percent-encoding triples its length. hyper discards a request line's target beyond 64 KiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_target_is_forwarded_encoded() {
    let upstream = Upstream::new().start().await;
    let more = [
        ("proxy.max_uri_length", "21KiB"),
        ("route[0].prefix", "/_x"),
        ("route[0].strip_prefix", "true"),
    ];
    let proxy = upstream.proxy(&more).await;
    let names = "é".repeat((21 * 1024 - 1) / 2 - 2);
    for prefix in ["", "/_x"] {
        let request = format!("DELETE {prefix}/{names}");
        let response = proxy.ask(&request, "Host: localhost\r\n").await;
        assert_eq!(status(&response), 200, "{response}");
    }
    for target in upstream.targets() {
        assert_eq!(target.len(), 1 + 3 * names.len(), "{target}");
    }
    assert_eq!(upstream.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_silence_has_a_deadline_of_its_own() {
    let upstream = Upstream::new().early().start().await;
    let whole = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let preface = String::from_utf8_lossy(PREFACE).into_owned();
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
        let proxy = upstream.proxy(&more).await;
        for words in sent {
            let mut stream = connect(proxy.address, words).await;
            // The test accepts both a close and a reset.
            let end =
                tokio::time::timeout(LIMIT, tokio::io::copy(&mut stream, &mut tokio::io::sink()))
                    .await;
            assert!(end.is_ok(), "{key}: stays open after {words:?}");
        }
        eventually("the clients are counted", async || {
            late(&proxy, &format!("{key}_timeout")).await == sent.len() as f64
        })
        .await;
    }
}

/// Sends a body piece by piece, and returns the response.
async fn sent_slowly(proxy: &Proxy, piece: &'static str, pieces: usize) -> String {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        piece.len() * pieces
    );
    let (mut response, mut body) = connect(proxy.address, head).await.into_split();
    let sending = tokio::spawn(async move {
        for _ in 0..pieces {
            tokio::time::sleep(Duration::from_millis(100)).await; // the pace of the client
            if body.write_all(piece.as_bytes()).await.is_err() {
                break;
            }
        }
        body
    });
    let mut bytes = Vec::new();
    // A reset counts as an end too.
    let end = tokio::time::timeout(LIMIT, response.read_to_end(&mut bytes)).await;
    assert!(end.is_ok(), "still open");
    sending.abort();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trickle_of_bytes_does_not_keep_a_request_and_a_slow_upload_is_not_cut() {
    let upstream = Upstream::new().start().await;
    let with = async |rate: &str| {
        let limits = [
            ("proxy.body_idle_timeout", "2s"),
            ("proxy.min_body_rate", rate),
        ];
        upstream.proxy(&limits).await
    };
    let (strict, lenient) = (with("100B").await, with("0B").await);
    let fifty = "01234567890123456789012345678901234567890123456789";
    let (trickle, slow, allowed) = tokio::join!(
        sent_slowly(&strict, "x", 300),
        sent_slowly(&strict, fifty, 40),
        sent_slowly(&lenient, "x", 40),
    );
    assert_eq!(trickle, "", "not closed within its thirty seconds");
    assert!(slow.starts_with("HTTP/1.1 200 "), "{slow}");
    assert!(allowed.starts_with("HTTP/1.1 200 "), "{allowed}");
    assert_eq!(late(&strict, "min_body_rate").await, 1.0);
}

/// The head of a body of 2,000 bytes.
fn announced() -> Vec<u8> {
    let mut block = head(POST, "/");
    block.extend(b"\x0f\x0d\x042000");
    block
}

/// Pieces that arrive together count as one wait: the proxy does not wait for the later ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_counts_of_a_body_that_arrives_in_many_small_pieces_at_once() {
    let upstream = Held::start().await;
    let more = [
        ("proxy.body_idle_timeout", "2s"),
        ("proxy.min_body_rate", "100B"),
    ];
    let proxy = in_front_of(upstream.address, &more).await;
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
    upstream.permits.add_permits(1);
    until(&mut stream, HEADERS, 1).await.expect("a response");
    assert_eq!(late(&proxy, "min_body_rate").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_began_slowly_has_the_whole_idle_timeout_after_the_response_began() {
    const SLOWLY: usize = 20;
    let address = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
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
    until(&mut stream, HEADERS, 1).await.expect("a response");
    tokio::time::sleep(Duration::from_secs(3)).await; // longer than the rest of the limit
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
async fn a_body_that_the_proxy_does_not_read_while_it_waits_for_a_token_is_not_late() {
    let issuer = Held::start_issuer().await;
    issuer.permits.add_permits(1);
    let upstream = scripted(|_, mut stream| async move {
        loop {
            let head = read_head(&mut stream).await?;
            if head.is_empty() {
                return Ok(());
            }
            let is_first = values(&head, "authorization") == ["Bearer token-1"];
            let (read, reply) = match is_first {
                true => (4, unauthorized("")),
                false => (9, ok("ok")),
            };
            stream.read_exact(&mut vec![0; read]).await?;
            reply.send(&mut stream).await?;
        }
    })
    .await;
    let more = [
        ("token.issuer", &*issuer.origin()),
        ("proxy.body_idle_timeout", "500ms"),
    ];
    let proxy = in_front_of(upstream, &more).await;
    let head =
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhalf";
    let mut stream = connect(proxy.address, head).await;
    issuer.until_waiting(1).await;
    stream.write_all(b" more").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await; // longer than the idle timeout of a body
    issuer.permits.add_permits(1);
    let response = read_to_close(&mut stream).await;
    assert_eq!(status(&response), 200, "{response}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_the_limit_get_503_and_those_in_flight_are_served() {
    let upstream = Held::start().await;
    let proxy = in_front_of(upstream.address, &[("proxy.max_requests", "3")]).await;
    let requests = |count: usize| {
        let address = proxy.address;
        (0..count)
            .map(move |_| tokio::spawn(async move { send(address, get("/")).await }))
            .collect::<Vec<_>>()
    };
    let in_flight = requests(3);
    upstream.until_waiting(3).await;
    for rejected in requests(20) {
        let rejected = rejected.await.unwrap();
        assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(rejected.headers()["retry-after"], "1");
        assert_eq!(
            rejected.headers()["proxy-status"],
            "bearer-proxy; error=destination_unavailable"
        );
    }
    assert_eq!(proxy.rejected("overloaded").await, 20.0);
    assert_eq!(upstream.waiting.load(SeqCst), 3);
    upstream.permits.add_permits(4);
    for response in in_flight {
        assert_eq!(response.await.unwrap().status(), 200);
    }
    proxy.until_in_flight(0).await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_opens_and_resets_streams_is_closed_and_one_that_uses_them_may_reset_some() {
    let upstream = Held::start().await;
    let (permits, waiting) = (&upstream.permits, &upstream.waiting);
    let limits = [("proxy.max_resets", "10"), ("proxy.workers", "1")];
    let proxy = in_front_of(upstream.address, &limits).await;
    // As many resets as responses, repeatedly.
    let mut fair = greeted(proxy.address, &[]).await;
    for round in 0..30 {
        let (first, second) = (4 * round + 1, 4 * round + 3);
        request(&mut fair, first, GET, "/").await;
        upstream.until_waiting(1).await;
        reset(&mut fair, first, CANCEL).await;
        proxy.until_in_flight(0).await;
        // One permit is for the upstream's side of the cancelled request.
        permits.add_permits(2);
        request(&mut fair, second, GET, "/").await;
        until(&mut fair, HEADERS, second).await.expect("a response");
        upstream.until_waiting(0).await;
    }

    // Resets that arrive before the proxy processes a request, and resets of requests in flight.
    for (is_patient, times) in [(false, 1000), (true, 12)] {
        let before = proxy.metric(FLOODS).await;
        upstream.until_waiting(0).await;
        permits.forget_permits(usize::MAX);
        let mut rapid = greeted(proxy.address, &[]).await;
        for round in 0..times {
            let number = 2 * round + 1;
            let flags = END_HEADERS | END_STREAM;
            let Ok(()) = write(&mut rapid, HEADERS, flags, number, &head(GET, "/")).await else {
                break;
            };
            if is_patient {
                let in_flight =
                    async || waiting.load(SeqCst) > 0 || proxy.metric(FLOODS).await > before;
                eventually("the request is in flight", in_flight).await;
            }
            let Ok(()) = write(&mut rapid, RST_STREAM, 0, number, &CANCEL.to_be_bytes()).await
            else {
                break;
            };
            if is_patient {
                // Otherwise the response could arrive before the reset.
                proxy.until_in_flight(0).await;
            }
            permits.add_permits(1);
            if is_patient {
                upstream.until_waiting(0).await;
            }
        }
        until(&mut rapid, GOAWAY, 0).await.expect("GOAWAY");
        let end = until(&mut rapid, HEADERS, u32::MAX).await;
        assert!(end.is_none(), "still open");
        proxy.until(FLOODS, before + 1.0).await;
    }
    permits.add_permits(1000);
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_reset_at_once_causes_no_upstream_request() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[("proxy.workers", "1")]).await;
    let mut stream = greeted(proxy.address, &[]).await;
    let mut frames = Vec::new();
    for number in (1..60).step_by(4) {
        request(&mut frames, number, GET, "/").await;
        reset(&mut frames, number, CANCEL).await;
        request(&mut frames, number + 2, GET, "/").await;
        // A window beyond its bounds makes the server reset the stream: RFC 9113 §6.9.1.
        write(
            &mut frames,
            WINDOW_UPDATE,
            0,
            number + 2,
            &[0x7f, 0xff, 0xff, 0xff],
        )
        .await
        .unwrap();
    }
    request(&mut frames, 61, GET, "/").await;
    stream.write_all(&frames).await.unwrap();
    until(&mut stream, HEADERS, 61).await.expect("a response");
    assert_eq!((upstream.connections(), upstream.count()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_many_control_frames_is_closed_and_requests_in_between_permit_more() {
    let upstream = Upstream::new().start().await;
    let limits = [("proxy.max_control_frames", "50"), ("proxy.workers", "1")];
    let proxy = upstream.proxy(&limits).await;
    let pings = async |stream: &mut tokio::net::TcpStream, number: usize| {
        let mut frames = Vec::new();
        for _ in 0..number {
            write(&mut frames, PING, 0, 0, &[0; 8]).await.unwrap();
        }
        stream.write_all(&frames).await.unwrap();
    };
    let mut fair = greeted(proxy.address, &[]).await;
    for round in 0..10 {
        pings(&mut fair, 40).await;
        let mut acknowledged = 0;
        while acknowledged < 40 {
            let frame = tokio::time::timeout(LIMIT, read(&mut fair))
                .await
                .unwrap()
                .unwrap();
            acknowledged += usize::from(frame.kind == PING && frame.flags == ACK);
        }
        request(&mut fair, 2 * round + 1, GET, "/").await;
        until(&mut fair, HEADERS, 2 * round + 1)
            .await
            .expect("a response");
    }

    let before = proxy.metric(FLOODS).await;
    let mut flooding = greeted(proxy.address, &[]).await;
    pings(&mut flooding, 100).await;
    until(&mut flooding, GOAWAY, 0).await.expect("GOAWAY");
    proxy.until(FLOODS, before + 1.0).await;
}
