//! Edge cases of HTTP/2: GOAWAY, refused streams, late clients, truncated messages. The tests write
//! frames, because correct libraries do not send these.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{
    Client, LIMIT, Proxy, connect, eventually,
    frames::{
        ACK, CANCEL, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, NO_ERROR, PING, POST,
        REFUSED_STREAM, RST_STREAM, WINDOW_UPDATE, accept, begin, greeted, head,
        next as next_frame, read, request, reset, until, write,
    },
    get, in_front_of, post, read_head, scripted, send,
    strict::Strict,
    upstream::{Upstream, ok, silence},
};

/// What an upstream does with a request.
#[derive(Debug, Clone, Copy)]
enum Action {
    Respond,
    /// REFUSED_STREAM: the request was not processed.
    Refuse,
    /// GOAWAY with a last stream before this one.
    GoAwayBefore,
    /// Sends a response, and GOAWAY with this stream as the last.
    GoAwayAfter,
    /// Closes the connection without a response.
    Close,
    /// Closes the connection in the middle of the response.
    Truncate,
    /// Ends the response in its middle by RST_STREAM with NO_ERROR.
    Reset,
}

/// What an upstream has received.
#[derive(Debug, Default)]
struct Seen {
    /// The number of requests that it processed.
    processed: AtomicUsize,
    connections: AtomicUsize,
    actions: AtomicUsize,
}

/// An upstream that executes one action per request, on any connection, and then responds to all
/// further requests.
async fn upstream(actions: &'static [Action]) -> (SocketAddr, Arc<Seen>) {
    let seen = Arc::<Seen>::default();
    let shared = Arc::clone(&seen);
    let address = scripted(move |_, mut stream| {
        let seen = Arc::clone(&shared);
        seen.connections.fetch_add(1, SeqCst);
        async move {
            accept(&mut stream, &[]).await?;
            loop {
                let frame = next_frame(&mut stream).await?;
                let is_whole =
                    matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0;
                if !is_whole {
                    continue;
                }
                let action = actions
                    .get(seen.actions.fetch_add(1, SeqCst))
                    .copied()
                    .unwrap_or(Action::Respond);
                let number = frame.stream;
                let go_away = |last: u32| [last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat();
                match action {
                    Action::Refuse => {
                        let reason = REFUSED_STREAM.to_be_bytes();
                        write(&mut stream, RST_STREAM, 0, number, &reason).await?;
                        continue;
                    }
                    Action::GoAwayBefore => {
                        let frame = go_away(number.saturating_sub(2));
                        write(&mut stream, GOAWAY, 0, 0, &frame).await?;
                        continue;
                    }
                    Action::GoAwayAfter => {
                        write(&mut stream, GOAWAY, 0, 0, &go_away(number)).await?;
                    }
                    Action::Respond | Action::Close | Action::Truncate | Action::Reset => {}
                }
                seen.processed.fetch_add(1, SeqCst);
                if matches!(action, Action::Close) {
                    return Ok(());
                }
                // `:status: 200` and `content-type` in HPACK.
                let block = b"\x88\x0f\x10\x10application/json";
                write(&mut stream, HEADERS, END_HEADERS, number, block).await?;
                let end = match action {
                    Action::Truncate | Action::Reset => 0,
                    _ => END_STREAM,
                };
                write(&mut stream, DATA, end, number, b"done").await?;
                match action {
                    Action::Truncate => return Ok(()),
                    Action::Reset => {
                        write(&mut stream, RST_STREAM, 0, number, &NO_ERROR.to_be_bytes()).await?;
                    }
                    _ => {}
                }
            }
        }
    })
    .await;
    (address, seen)
}

/// A proxy that uses HTTP/2 towards this upstream.
async fn over_http2(address: SocketAddr, more: &[(&str, &str)]) -> Proxy {
    let http2 = [("upstream.http2", "always"), ("proxy.workers", "1")];
    in_front_of(address, &[&http2, more].concat()).await
}

/// The status of a response; 0 if it was truncated or did not arrive.
async fn status_of(proxy: &Proxy, request: http::Request<http_body_util::Full<Bytes>>) -> u16 {
    let mut client = Client::connect(proxy.address).await;
    let response = tokio::time::timeout(LIMIT, client.send(request)).await;
    response
        .unwrap()
        .map_or(0, |response| response.status().as_u16())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_the_server_has_not_processed_is_sent_again_and_no_other() {
    use Action::{Close, GoAwayAfter, GoAwayBefore, Refuse, Respond, Truncate};
    // The action for the second request; the first request opens the connection.
    type Case = (&'static str, &'static [Action], u16, u16);
    let table: [Case; 8] = [
        ("refused", &[Respond, Refuse], 200, 200),
        (
            "refused on a new connection too",
            &[Respond, Refuse, Refuse],
            200,
            200,
        ),
        (
            "refused again and again",
            &[Respond, Refuse, Refuse, Refuse, Refuse, Refuse],
            502,
            502,
        ),
        ("GOAWAY before it", &[Respond, GoAwayBefore], 200, 200),
        ("GOAWAY after it", &[Respond, GoAwayAfter], 200, 200),
        ("GOAWAY before it arrived", &[GoAwayAfter], 200, 200),
        // The upstream may have processed the request: the proxy repeats only idempotent requests.
        ("closed", &[Respond, Close], 200, 502),
        ("truncated", &[Respond, Truncate], 0, 0),
    ];
    for (what, actions, for_get, for_post) in table {
        for (request, expected) in [
            (get("/"), for_get),
            (post("/", "x".repeat(10_000)), for_post),
        ] {
            let (address, seen) = upstream(actions).await;
            let proxy = over_http2(address, &[]).await;
            assert_eq!(proxy.get("/").await.status(), 200);
            let method = request.method().clone();
            let status = status_of(&proxy, request).await;
            assert_eq!(status, expected, "{method}: {what}");
            let processed = seen.processed.load(SeqCst) - 1;
            assert!(
                method == "GET" || processed <= 1,
                "{what}: processed {processed} times"
            );
            // The connection, or its successor, serves further requests.
            assert_eq!(proxy.get("/").await.status(), 200, "{method}: {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_the_same_time_share_a_connection() {
    let (address, seen) = upstream(&[]).await;
    let proxy = over_http2(address, &[]).await;
    let all = (0..30).map(|_| {
        let address = proxy.address;
        tokio::spawn(async move { send(address, get("/")).await.status() })
    });
    for status in all.collect::<Vec<_>>() {
        assert_eq!(status.await.unwrap(), 200);
    }
    assert_eq!(seen.processed.load(SeqCst), 30);
    assert_eq!(seen.connections.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_client_loses_the_stream_or_connection_that_is_late_and_no_more() {
    let upstream = Upstream::new()
        .on("/large", ok(vec![b'x'; 100_000_000]))
        .on("/upload", silence())
        .early()
        .start()
        .await;
    let short = [
        ("proxy.first_byte_timeout", "300ms"),
        ("proxy.head_timeout", "300ms"),
        ("proxy.body_idle_timeout", "300ms"),
        ("proxy.idle_timeout", "1s"),
        ("proxy.workers", "1"),
    ];
    let proxy = upstream.proxy(&short).await;

    // Before the proxy detects the protocol.
    for beginning in ["", "P", "PRI * HTTP/2.0\r\n"] {
        assert_eq!(proxy.raw(beginning).await, "");
    }
    // A connection that is idle for too long: GOAWAY, then a close.
    let mut idle = greeted(proxy.address, &[]).await;
    assert_eq!(
        until(&mut idle, GOAWAY, 0).await.unwrap().reason(),
        NO_ERROR
    );
    assert!(until(&mut idle, DATA, 99).await.is_none(), "still open");

    // A body that stalls ends only its own stream; the other stream continues.
    let mut stream = greeted(proxy.address, &[]).await;
    begin(&mut stream, 1, POST, "/upload").await;
    write(&mut stream, DATA, 0, 1, b"half").await.unwrap();
    assert_eq!(
        until(&mut stream, RST_STREAM, 1).await.unwrap().reason(),
        CANCEL
    );
    request(&mut stream, 3, GET, "/").await;
    assert_eq!(until(&mut stream, DATA, 3).await.unwrap().payload, b"ok");

    // A response that the client does not read does the same: each stream has a window of a
    // thousand bytes.
    let mut stream = greeted(proxy.address, &[0, 4, 0, 0, 3, 0xe8]).await;
    request(&mut stream, 1, GET, "/large").await;
    assert_eq!(
        until(&mut stream, DATA, 1).await.unwrap().payload.len(),
        1000
    );
    request(&mut stream, 3, GET, "/").await;
    assert_eq!(until(&mut stream, DATA, 3).await.unwrap().payload, b"ok");
    assert_eq!(
        until(&mut stream, RST_STREAM, 1).await.unwrap().reason(),
        CANCEL
    );
    request(&mut stream, 5, GET, "/").await;
    assert_eq!(until(&mut stream, DATA, 5).await.unwrap().payload, b"ok");
    proxy.until_in_flight(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_do_not_keep_an_idle_connection_open() {
    let upstream = Upstream::new().start().await;
    let limits = [
        ("proxy.idle_timeout", "1s"),
        ("proxy.body_idle_timeout", "1s"),
    ];
    let proxy = upstream.proxy(&limits).await;
    let mut stream = greeted(proxy.address, &[]).await;
    let (mut reading, mut writing) = stream.split();
    let pinging = async {
        while writing
            .write_all(&[0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
            .await
            .is_ok()
        {
            tokio::time::sleep(Duration::from_millis(50)).await; // the pace of the client
        }
    };
    let mut rest = Vec::new();
    let closed = async { reading.read_to_end(&mut rest).await };
    tokio::select! {
        () = pinging => {}
        _ = closed => {}
        () = tokio::time::sleep(LIMIT) => panic!("pings keep the connection open"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_18_a_truncated_response_is_a_reset_and_a_reset_request_is_cancelled() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&closed);
    let address = scripted(move |_, mut stream| {
        let closed = Arc::clone(&count);
        async move {
            let head = read_head(&mut stream).await?;
            if head.starts_with("GET /cut") {
                return stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
                    .await;
            }
            // No response until the proxy closes the connection.
            stream.read_to_end(&mut Vec::new()).await?;
            closed.fetch_add(1, SeqCst);
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(address, &[]).await;
    let mut stream = greeted(proxy.address, &[]).await;
    request(&mut stream, 1, GET, "/cut").await;
    let frame = loop {
        let frame = tokio::time::timeout(LIMIT, read(&mut stream))
            .await
            .unwrap()
            .unwrap();
        assert!(
            frame.stream != 1 || frame.flags & END_STREAM == 0 || frame.kind == RST_STREAM,
            "{frame:?}"
        );
        if frame.stream == 1 && frame.kind == RST_STREAM {
            break frame;
        }
    };
    assert_ne!(frame.reason(), NO_ERROR);
    request(&mut stream, 3, GET, "/slow").await;
    proxy.until_in_flight(1).await;
    reset(&mut stream, 3, CANCEL).await;
    eventually("the upstream's connection is closed", async || {
        closed.load(SeqCst) == 1
    })
    .await;
    proxy.until_in_flight(0).await;
}

/// hyper takes RST_STREAM with NO_ERROR for the end of the response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_18_a_response_that_is_reset_without_an_error_is_not_complete() {
    let read_ahead = [
        ("retry.json.pointer", "/code"),
        ("retry.json.values", "401"),
    ];
    for (more, expected) in [(&[][..], 0), (&read_ahead, 502)] {
        let (address, _) = upstream(&[Action::Reset]).await;
        let proxy = over_http2(address, more).await;
        assert_eq!(status_of(&proxy, get("/")).await, expected);
        assert_eq!(proxy.get("/").await.status(), 200);
    }
}

/// The same reset towards the proxy must not end a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_18_a_request_that_is_reset_without_an_error_is_not_complete() {
    let (arrived, mut arrival) = tokio::sync::mpsc::unbounded_channel();
    let address = scripted(move |_, mut stream| {
        let arrived = arrived.clone();
        async move {
            read_head(&mut stream).await?;
            let mut body = Vec::new();
            while stream.read_buf(&mut body).await.is_ok_and(|n| n > 0) {
                arrived.send(Some(body.clone())).unwrap();
            }
            arrived.send(None).unwrap();
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(address, &[("proxy.workers", "1")]).await;
    let mut stream = greeted(proxy.address, &[]).await;
    begin(&mut stream, 1, POST, "/").await;
    write(&mut stream, DATA, 0, 1, b"half").await.unwrap();
    let mut next = async || {
        tokio::time::timeout(LIMIT, arrival.recv())
            .await
            .expect("in time")
            .unwrap()
    };
    let mut body = next().await.unwrap();
    let mut rest = Vec::new();
    write(&mut rest, DATA, 0, 1, b"more").await.unwrap();
    reset(&mut rest, 1, NO_ERROR).await;
    stream.write_all(&rest).await.unwrap();
    while let Some(more) = next().await {
        body = more;
    }
    assert!(
        body.starts_with(b"4\r\nhalf\r\n") && !body.ends_with(b"0\r\n\r\n"),
        "{}",
        body.escape_ascii()
    );
}

/// A server that permits no streams causes the same timeout as a server that does not respond, for
/// requests with a body and without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_permits_no_streams_is_waited_for_until_the_timeout() {
    let address = scripted(|_, mut stream| async move {
        // SETTINGS_MAX_CONCURRENT_STREAMS
        accept(&mut stream, &[0, 3, 0, 0, 0, 0]).await?;
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    })
    .await;
    let limits = [
        ("upstream.response_timeout", "300ms"),
        ("upstream.body_idle_timeout", "300ms"),
    ];
    let proxy = over_http2(address, &limits).await;
    for _ in 0..2 {
        assert_eq!(proxy.get("/").await.status(), 504);
        assert_eq!(proxy.send(post("/", "body")).await.status(), 504);
    }
}

/// The client cancels its request just before the proxy sends it again: the proxy must also end the
/// refused attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_refused_attempt_of_a_cancelled_request_is_reset() {
    let refused = Arc::new(tokio::sync::Notify::new());
    let (resets, mut is_reset) = tokio::sync::mpsc::unbounded_channel();
    let has_refused = Arc::clone(&refused);
    let address = scripted(move |_, mut stream| {
        let (refused, resets) = (Arc::clone(&has_refused), resets.clone());
        async move {
            accept(&mut stream, &[]).await?;
            loop {
                let frame = next_frame(&mut stream).await?;
                match frame.kind {
                    DATA => {
                        // `:status: 401`, and an endless body.
                        let refusal = b"\x08\x03401";
                        write(&mut stream, HEADERS, END_HEADERS, frame.stream, refusal).await?;
                        write(&mut stream, PING, 0, 0, b"arrived?").await?;
                    }
                    PING if frame.flags & ACK != 0 => refused.notify_one(),
                    RST_STREAM => resets.send(frame.reason()).unwrap(),
                    _ => {}
                }
            }
        }
    })
    .await;
    let proxy = over_http2(address, &[]).await;
    let mut client = greeted(proxy.address, &[]).await;
    begin(&mut client, 1, POST, "/").await;
    write(&mut client, DATA, 0, 1, b"some").await.unwrap();
    tokio::time::timeout(LIMIT, refused.notified())
        .await
        .unwrap();
    reset(&mut client, 1, CANCEL).await;
    tokio::time::timeout(LIMIT, is_reset.recv())
        .await
        .expect("the attempt is ended");
    proxy.until_in_flight(0).await;
}

/// Messages with fields that HTTP/1.1 would parse as several fields or as framing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_08_what_http1_would_parse_differently_is_not_forwarded() {
    let upstream = Strict::start().await;
    let proxy = in_front_of(upstream.address, &[]).await;
    let field = |name: &[u8], value: &[u8]| {
        [
            &[0, u8::try_from(name.len()).unwrap()],
            name,
            &[u8::try_from(value.len()).unwrap()],
            value,
        ]
        .concat()
    };
    let with =
        |method: u8, name: &[u8], value: &[u8]| [head(method, "/"), field(name, value)].concat();
    let cases: Vec<(&str, Vec<u8>, &[u8])> = vec![
        (
            "CR LF in a value",
            with(GET, b"x", b"a\r\nauthorization: b"),
            b"",
        ),
        ("LF in a value", with(GET, b"x", b"a\nb"), b""),
        ("CR in a value", with(GET, b"x", b"a\rb"), b""),
        ("NUL in a value", with(GET, b"x", b"a\0b"), b""),
        ("CR LF in a name", with(GET, b"x\r\ny", b"a"), b""),
        ("a colon in a name", with(GET, b"x:y", b"a"), b""),
        ("a space in a name", with(GET, b"x y", b"a"), b""),
        ("capitals in a name", with(GET, b"X", b"a"), b""),
        ("a space in the path", head(GET, "/a b"), b""),
        ("CR LF in the path", head(GET, "/a HTTP/1.1\r\nx: y"), b""),
        ("no slash", head(GET, "a"), b""),
        ("an empty path", head(GET, ""), b""),
        ("Connection", with(GET, b"connection", b"close"), b""),
        (
            "Transfer-Encoding",
            with(POST, b"transfer-encoding", b"chunked"),
            b"",
        ),
        ("TE", with(GET, b"te", b"gzip"), b""),
        ("Upgrade", with(GET, b"upgrade", b"h2c"), b""),
        ("another Host", with(GET, b"host", b"evil"), b""),
        ("an unknown pseudo field", with(GET, b":x", b"y"), b""),
        (
            "two paths",
            [head(GET, "/"), field(b":path", b"/x")].concat(),
            b"",
        ),
        (
            "too short a body",
            with(POST, b"content-length", b"5"),
            b"abc",
        ),
        (
            "too long a body",
            with(POST, b"content-length", b"2"),
            b"abc",
        ),
        (
            "two lengths",
            [
                with(POST, b"content-length", b"3"),
                field(b"content-length", b"4"),
            ]
            .concat(),
            b"abc",
        ),
        (
            "the same length twice",
            [
                with(POST, b"content-length", b"3"),
                field(b"content-length", b"3"),
            ]
            .concat(),
            b"abc",
        ),
        (
            "no number for a length",
            with(POST, b"content-length", b"+3"),
            b"abc",
        ),
        ("an empty length", with(POST, b"content-length", b""), b""),
    ];
    for (what, block, body) in cases {
        let mut stream = greeted(proxy.address, &[]).await;
        let end = if body.is_empty() { END_STREAM } else { 0 };
        write(&mut stream, HEADERS, END_HEADERS | end, 1, &block)
            .await
            .unwrap();
        if !body.is_empty() {
            let _ = write(&mut stream, DATA, END_STREAM, 1, body).await;
        }
        let ends = async {
            loop {
                match read(&mut stream).await {
                    // The proxy refuses it as a frame or as a request.
                    Ok(frame)
                        if frame.stream == 1 && matches!(frame.kind, RST_STREAM | HEADERS) =>
                    {
                        break;
                    }
                    Ok(frame) if frame.kind == GOAWAY => break,
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        };
        tokio::time::timeout(LIMIT, ends)
            .await
            .unwrap_or_else(|_| panic!("{what} stays open"));
        let log = upstream.take();
        assert!(
            log.requests.is_empty() && log.odd.is_empty(),
            "{what}: {log:?}"
        );
    }
    proxy.until_in_flight(0).await;
    let log = upstream.take();
    assert!(log.requests.is_empty() && log.odd.is_empty(), "{log:?}");
    assert_eq!(proxy.get("/").await.status(), 200);
}

/// The server sends a complete response early and does not read the stream: the stream's window
/// stays at zero.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_writes_before_it_reads_gets_the_early_response_of_a_stream() {
    let address = scripted(|_, mut stream| async move {
        accept(&mut stream, &[]).await?;
        let mut responded = 0;
        loop {
            let frame = next_frame(&mut stream).await?;
            if frame.kind == DATA && frame.stream > responded {
                responded = frame.stream;
                // `:status: 413`
                write(
                    &mut stream,
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    responded,
                    b"\x08\x03413",
                )
                .await?;
            }
            if frame.kind == DATA && !frame.payload.is_empty() {
                let credit = (frame.payload.len() as u32).to_be_bytes();
                write(&mut stream, WINDOW_UPDATE, 0, 0, &credit).await?;
            }
        }
    })
    .await;
    let proxy = over_http2(address, &[]).await;
    for _ in 0..3 {
        let exchange = async {
            let head = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 20000000\r\n\r\n";
            let mut stream = connect(proxy.address, head).await;
            stream.write_all(&vec![b'x'; 20_000_000]).await.unwrap();
            read_head(&mut stream).await.unwrap()
        };
        let head = tokio::time::timeout(LIMIT, exchange)
            .await
            .expect("the body is read");
        assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    }
    proxy.until_open(0).await;
}
