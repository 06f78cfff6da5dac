//! HTTP/2 at its edges: servers that say goodbye, clients that are late, and what breaks off. Written in frames, since a
//! well-behaved library does none of this.

use std::{
    net::SocketAddr,
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
    LIMIT, Proxy, eventually,
    frames::{
        ACK, CANCEL, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, NO_ERROR, PING, POST,
        PREFACE, REFUSED_STREAM, RST_STREAM, SETTINGS, WINDOW_UPDATE, greeted, head, read, until,
        write,
    },
    get, post, proxy, read_head_granting, scripted, send,
    strict::Strict,
};

/// What an upstream does with a request.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Answer,
    /// It has not done anything with it.
    Refuse,
    /// It leaves, and has not seen this one.
    LeaveBefore,
    /// It answers this one, and leaves.
    AnswerAndLeave,
    /// It has seen it, and is gone.
    Vanish,
    /// It breaks off in the middle of its answer.
    Truncate,
    /// The same, and it says that nothing is wrong.
    Reset,
}

/// An upstream that does one deed after the other, whichever connection a request comes by, and then answers. Counts what
/// it has taken upon itself.
async fn upstream(deeds: &'static [Deed]) -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (taken, next, connections) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (count, dialled) = (Arc::clone(&taken), Arc::clone(&connections));
    let address = scripted(move |_, mut stream| {
        let (taken, next) = (Arc::clone(&count), Arc::clone(&next));
        dialled.fetch_add(1, SeqCst);
        async move {
            stream.read_exact(&mut [0; PREFACE.len()]).await?;
            write(&mut stream, SETTINGS, 0, 0, &[]).await?;
            loop {
                let frame = read(&mut stream).await?;
                let is_whole =
                    matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0;
                if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                    write(&mut stream, SETTINGS, ACK, 0, &[]).await?;
                }
                if !is_whole {
                    continue;
                }
                let deed = deeds
                    .get(next.fetch_add(1, SeqCst))
                    .copied()
                    .unwrap_or(Deed::Answer);
                let number = frame.stream;
                if !matches!(deed, Deed::Refuse | Deed::LeaveBefore) {
                    taken.fetch_add(1, SeqCst);
                }
                match deed {
                    Deed::Refuse => {
                        write(
                            &mut stream,
                            RST_STREAM,
                            0,
                            number,
                            &REFUSED_STREAM.to_be_bytes(),
                        )
                        .await?
                    }
                    Deed::LeaveBefore | Deed::AnswerAndLeave => {
                        let last = if matches!(deed, Deed::LeaveBefore) {
                            number.saturating_sub(2)
                        } else {
                            number
                        };
                        let goodbye = [last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat();
                        write(&mut stream, GOAWAY, 0, 0, &goodbye).await?;
                    }
                    Deed::Vanish => return Ok(()),
                    Deed::Answer | Deed::Truncate | Deed::Reset => {}
                }
                if !matches!(deed, Deed::Refuse | Deed::LeaveBefore) {
                    // `:status: 200` and `content-type`, as HPACK writes them.
                    let block = b"\x88\x0f\x10\x10application/json";
                    write(&mut stream, HEADERS, END_HEADERS, number, block).await?;
                    let end = if matches!(deed, Deed::Truncate | Deed::Reset) {
                        0
                    } else {
                        END_STREAM
                    };
                    write(&mut stream, DATA, end, number, b"done").await?;
                }
                match deed {
                    Deed::Truncate => return Ok(()),
                    Deed::Reset => {
                        write(&mut stream, RST_STREAM, 0, number, &NO_ERROR.to_be_bytes()).await?
                    }
                    _ => {}
                }
            }
        }
    })
    .await;
    (address, taken, connections)
}

/// A proxy that speaks HTTP/2 with this upstream.
async fn in_front_of(address: SocketAddr, more: &[(&str, &str)]) -> Proxy {
    let given = [
        &[("upstream.http2", "always"), ("proxy.workers", "1")],
        more,
    ]
    .concat();
    crate::common::in_front_of(address, &given).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_has_not_processed_is_sent_again_and_nothing_else() {
    use Deed::{Answer, AnswerAndLeave, LeaveBefore, Refuse, Truncate, Vanish};
    // What happens to the second request; the first one opens the connection.
    type Story = (&'static str, &'static [Deed], u16, u16);
    let table: [Story; 8] = [
        ("refused", &[Answer, Refuse], 200, 200),
        (
            "refused on a new connection too",
            &[Answer, Refuse, Refuse],
            200,
            200,
        ),
        (
            "refused again and again",
            &[Answer, Refuse, Refuse, Refuse, Refuse, Refuse],
            502,
            502,
        ),
        ("goodbye before it", &[Answer, LeaveBefore], 200, 200),
        ("goodbye after it", &[Answer, AnswerAndLeave], 200, 200),
        ("goodbye before it came", &[AnswerAndLeave], 200, 200),
        // It may have been done: only what can be done twice is sent again.
        ("vanished", &[Answer, Vanish], 200, 502),
        ("broken off", &[Answer, Truncate], 0, 0),
    ];
    for (what, deeds, for_get, for_post) in table {
        for (method, expected) in [("GET", for_get), ("POST", for_post)] {
            let (address, taken, _) = upstream(deeds).await;
            let proxy = in_front_of(address, &[]).await;
            assert_eq!(proxy.get("/").await.status(), 200);
            let request = if method == "GET" {
                get("/")
            } else {
                post("/", "x".repeat(10_000))
            };
            let mut client = crate::common::Client::connect(proxy.address).await;
            let answer = tokio::time::timeout(LIMIT, client.send(request))
                .await
                .unwrap();
            let status = answer.map_or(0, |answer| answer.status().as_u16());
            assert_eq!(status, expected, "{method}: {what}");
            let done = taken.load(SeqCst);
            if method == "POST" {
                assert!(done <= 2, "{what}: done {} times", done - 1);
            }
            // The connection, or its successor, serves on.
            assert_eq!(proxy.get("/").await.status(), 200, "{method}: {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_at_once_share_a_connection() {
    let (address, taken, connections) = upstream(&[]).await;
    let proxy = in_front_of(address, &[]).await;
    let all = (0..30).map(|_| {
        let address = proxy.address;
        tokio::spawn(async move { send(address, get("/")).await.status() })
    });
    for answer in all.collect::<Vec<_>>() {
        assert_eq!(answer.await.unwrap(), 200);
    }
    assert_eq!((taken.load(SeqCst), connections.load(SeqCst)), (30, 1));
}

/// An upstream on HTTP/1.1: a grant, a quick answer, a slow one, and one without end.
async fn plain() -> SocketAddr {
    scripted(|_, mut stream| async move {
        loop {
            let head = read_head_granting(&mut stream).await?;
            match head.split(' ').nth(1) {
                None => return Ok(()),
                Some("/large") => {
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
                        .await?;
                    let piece = vec![b'x'; 100_000];
                    for _ in 0..1000 {
                        stream.write_all(&piece).await?;
                    }
                }
                Some("/upload") => {
                    // It never comes whole.
                    stream.read_to_end(&mut Vec::new()).await?;
                    return Ok(());
                }
                Some(_) => {
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .await?
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_late_lose_what_they_are_late_with_and_no_more() {
    let origin = format!("http://{}", plain().await);
    let short = [
        ("proxy.first_byte_timeout", "300ms"),
        ("proxy.head_timeout", "300ms"),
        ("proxy.body_idle_timeout", "300ms"),
        ("proxy.idle_timeout", "1s"),
        ("proxy.workers", "1"),
    ];
    let proxy = proxy(&origin, &short);
    proxy.ready().await;

    // Not even the protocol is told.
    for beginning in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n"] {
        let answer = crate::common::raw(proxy.address, beginning, LIMIT).await;
        assert!(answer.is_empty(), "{answer}");
    }
    // Told, and nothing more: it hears a goodbye when it was idle for too long.
    let mut idle = greeted(proxy.address, &[]).await;
    assert_eq!(
        until(&mut idle, GOAWAY, 0).await.unwrap().reason(),
        NO_ERROR
    );
    assert!(
        until(&mut idle, DATA, 99).await.is_none(),
        "and then the end"
    );

    // A body that stalls costs its own stream; the one beside it goes on.
    let mut stream = greeted(proxy.address, &[]).await;
    write(&mut stream, HEADERS, END_HEADERS, 1, &head(POST, "/upload"))
        .await
        .unwrap();
    write(&mut stream, DATA, 0, 1, b"half").await.unwrap();
    assert_eq!(
        until(&mut stream, RST_STREAM, 1).await.unwrap().reason(),
        CANCEL
    );
    write(
        &mut stream,
        HEADERS,
        END_HEADERS | END_STREAM,
        3,
        &head(GET, "/"),
    )
    .await
    .unwrap();
    assert_eq!(until(&mut stream, DATA, 3).await.unwrap().payload, b"ok");

    // So does an answer that is not taken: the window of each stream is a thousand bytes.
    let mut stream = greeted(proxy.address, &[0, 4, 0, 0, 3, 0xe8]).await;
    write(
        &mut stream,
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &head(GET, "/large"),
    )
    .await
    .unwrap();
    assert_eq!(
        until(&mut stream, DATA, 1).await.unwrap().payload.len(),
        1000
    );
    write(
        &mut stream,
        HEADERS,
        END_HEADERS | END_STREAM,
        3,
        &head(GET, "/"),
    )
    .await
    .unwrap();
    assert_eq!(until(&mut stream, DATA, 3).await.unwrap().payload, b"ok");
    assert_eq!(
        until(&mut stream, RST_STREAM, 1).await.unwrap().reason(),
        CANCEL
    );
    write(
        &mut stream,
        HEADERS,
        END_HEADERS | END_STREAM,
        5,
        &head(GET, "/"),
    )
    .await
    .unwrap();
    assert_eq!(until(&mut stream, DATA, 5).await.unwrap().payload, b"ok");
    eventually("nothing is under way any more", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_do_not_keep_an_idle_connection_and_a_steady_client_is_not_late() {
    let origin = format!("http://{}", plain().await);
    let proxy = proxy(
        &origin,
        &[
            ("proxy.idle_timeout", "1s"),
            ("proxy.body_idle_timeout", "1s"),
        ],
    );
    proxy.ready().await;
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
        () = tokio::time::sleep(LIMIT) => panic!("kept open by pings"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_18_a_truncated_answer_is_a_reset_and_a_reset_request_is_given_up() {
    let gone = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&gone);
    let address = scripted(move |_, mut stream| {
        let gone = Arc::clone(&count);
        async move {
            let head = crate::common::read_head(&mut stream).await?;
            if head.starts_with("GET /cut") {
                return stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
                    .await;
            }
            // It thinks, for ever, until the proxy gives up.
            stream.read_to_end(&mut Vec::new()).await?;
            gone.fetch_add(1, SeqCst);
            Ok(())
        }
    })
    .await;
    let proxy = crate::common::in_front_of(address, &[]).await;
    let mut stream = greeted(proxy.address, &[]).await;
    write(
        &mut stream,
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &head(GET, "/cut"),
    )
    .await
    .unwrap();
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
    write(
        &mut stream,
        HEADERS,
        END_HEADERS | END_STREAM,
        3,
        &head(GET, "/slow"),
    )
    .await
    .unwrap();
    eventually("it is on its way", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 1.0
    })
    .await;
    write(&mut stream, RST_STREAM, 0, 3, &CANCEL.to_be_bytes())
        .await
        .unwrap();
    eventually("the upstream's connection is closed", async || {
        gone.load(SeqCst) == 1
    })
    .await;
    eventually("nothing is under way", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
    })
    .await;
}

/// hyper takes such a reset for the end of the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_18_an_answer_that_is_reset_without_an_error_is_not_whole() {
    let read_ahead = [
        ("retry.json.pointer", "/code"),
        ("retry.json.values", "401"),
    ];
    for (more, expected) in [(&[][..], 0), (&read_ahead, 502)] {
        let (address, ..) = upstream(&[Deed::Reset]).await;
        let proxy = in_front_of(address, more).await;
        let mut client = crate::common::Client::connect(proxy.address).await;
        let answer = tokio::time::timeout(LIMIT, client.send(get("/")))
            .await
            .unwrap();
        assert_eq!(
            answer.map_or(0, |answer| answer.status().as_u16()),
            expected
        );
        assert_eq!(proxy.get("/").await.status(), 200);
    }
}

/// And for the end of a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_18_a_request_that_is_reset_without_an_error_is_not_whole() {
    let (arrived, mut arrival) = tokio::sync::mpsc::unbounded_channel();
    let address = scripted(move |_, mut stream| {
        let arrived = arrived.clone();
        async move {
            crate::common::read_head(&mut stream).await?;
            let mut body = Vec::new();
            while stream.read_buf(&mut body).await.is_ok_and(|n| n > 0) {
                arrived.send(Some(body.clone())).unwrap();
            }
            arrived.send(None).unwrap();
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(address, &[("upstream.http2", "never")]).await;
    let mut stream = greeted(proxy.address, &[]).await;
    write(&mut stream, HEADERS, END_HEADERS, 1, &head(POST, "/"))
        .await
        .unwrap();
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
    write(&mut rest, RST_STREAM, 0, 1, &NO_ERROR.to_be_bytes())
        .await
        .unwrap();
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

/// A server that lets no request begin, with a body or without, is as silent as one that does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lets_no_request_begin_is_not_waited_for_for_ever() {
    let address = scripted(|_, mut stream| async move {
        stream.read_exact(&mut [0; PREFACE.len()]).await?;
        // SETTINGS_MAX_CONCURRENT_STREAMS
        write(&mut stream, SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]).await?;
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    })
    .await;
    let limits = [
        ("upstream.response_timeout", "300ms"),
        ("upstream.body_idle_timeout", "300ms"),
    ];
    let proxy = in_front_of(address, &limits).await;
    for _ in 0..2 {
        assert_eq!(proxy.get("/").await.status(), 504);
        assert_eq!(proxy.send(post("/", "body")).await.status(), 504);
    }
}

/// The client goes away while its request is about to be sent again: nobody is left to end the refused attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_nobody_will_repeat_is_reset() {
    let refused = Arc::new(tokio::sync::Notify::new());
    let (reset, mut is_reset) = tokio::sync::mpsc::unbounded_channel();
    let has_refused = Arc::clone(&refused);
    let address = scripted(move |_, mut stream| {
        let (refused, reset) = (Arc::clone(&has_refused), reset.clone());
        async move {
            stream.read_exact(&mut [0; PREFACE.len()]).await?;
            write(&mut stream, SETTINGS, 0, 0, &[]).await?;
            loop {
                let frame = read(&mut stream).await?;
                match frame.kind {
                    SETTINGS if frame.flags & ACK == 0 => {
                        write(&mut stream, SETTINGS, ACK, 0, &[]).await?
                    }
                    DATA => {
                        // `:status: 401`, and a body that does not end.
                        let refusal = b"\x08\x03401";
                        write(&mut stream, HEADERS, END_HEADERS, frame.stream, refusal).await?;
                        write(&mut stream, PING, 0, 0, b"arrived?").await?;
                    }
                    PING if frame.flags & ACK != 0 => refused.notify_one(),
                    RST_STREAM => reset.send(frame.reason()).unwrap(),
                    _ => {}
                }
            }
        }
    })
    .await;
    let proxy = in_front_of(address, &[]).await;
    let mut client = greeted(proxy.address, &[]).await;
    write(&mut client, HEADERS, END_HEADERS, 1, &head(POST, "/"))
        .await
        .unwrap();
    write(&mut client, DATA, 0, 1, b"some").await.unwrap();
    tokio::time::timeout(LIMIT, refused.notified())
        .await
        .unwrap();
    write(&mut client, RST_STREAM, 0, 1, &CANCEL.to_be_bytes())
        .await
        .unwrap();
    tokio::time::timeout(LIMIT, is_reset.recv())
        .await
        .expect("the attempt is ended");
    eventually("nothing is under way", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
    })
    .await;
}

/// Fields that HTTP/1 would read as more than one, or as its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_08_what_http1_would_read_otherwise_never_arrives() {
    let upstream = Strict::start().await;
    let proxy = crate::common::in_front_of(upstream.address, &[]).await;
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
                    // Refused as a frame, or as a request.
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
            .unwrap_or_else(|_| panic!("{what} is left open"));
        let log = upstream.take();
        assert!(
            log.requests.is_empty() && log.odd.is_empty(),
            "{what}: {log:?}"
        );
    }
    eventually("nothing is under way", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
    })
    .await;
    let log = upstream.take();
    assert!(log.requests.is_empty() && log.odd.is_empty(), "{log:?}");
    assert_eq!(proxy.get("/").await.status(), 200);
}

/// A server that answers early and in full, and leaves the stream as it is, its window shut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_only_writes_sees_the_early_answer_of_a_stream() {
    let address = scripted(|_, mut stream| async move {
        stream.read_exact(&mut [0; PREFACE.len()]).await?;
        write(&mut stream, SETTINGS, 0, 0, &[]).await?;
        let mut answered = 0;
        loop {
            let frame = read(&mut stream).await?;
            if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                write(&mut stream, SETTINGS, ACK, 0, &[]).await?;
            }
            if frame.kind == DATA && frame.stream > answered {
                answered = frame.stream;
                // `:status: 413`
                write(
                    &mut stream,
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    answered,
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
    let proxy = in_front_of(address, &[]).await;
    for _ in 0..3 {
        let exchange = async {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            let head = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 20000000\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&vec![b'x'; 20_000_000]).await.unwrap();
            crate::common::read_head(&mut stream).await.unwrap()
        };
        let head = tokio::time::timeout(LIMIT, exchange)
            .await
            .expect("its body is read");
        assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    }
    let open = async || proxy.metric("bearer_proxy_connections_open").await;
    eventually("its connections are over", async || open().await == 0.0).await;
}
