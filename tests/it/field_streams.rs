//! Header blocks on streams of HTTP/2 that are not new, RFC 9113 §5.1: on one that the client ended
//! they end the connection, on one that it did not end they are trailers.

use std::{convert::Infallible, io, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::Notify};

use crate::common::{
    Proxy,
    frames::{
        CANCEL, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, POST, REFUSED_STREAM,
        RST_STREAM, begin, greeted, head, request, reset, until, write,
    },
    in_front_of, scripted,
    upstream::{RunningUpstream, Upstream, ok},
};

const CONTINUATION: u8 = 9;

const PROTOCOL_ERROR: u32 = 1;
const STREAM_CLOSED: u32 = 5;

/// `:status: 200` and `:status: 400` in HPACK.
const STATUS_200: u8 = 0x88;
const STATUS_400: u8 = 0x8c;

/// How a client ends a stream.
#[derive(Debug, Clone, Copy)]
enum End {
    /// END_STREAM on HEADERS; the response is under way.
    Head,
    /// END_STREAM on DATA; the response is under way.
    Data,
    /// END_STREAM on trailers; the response is under way.
    Trailers,
    /// RST_STREAM without END_STREAM before it.
    Reset,
    /// RST_STREAM after END_STREAM.
    LateReset,
    /// END_STREAM, and the response is complete.
    Response,
    /// A stream with a higher number is opened (RFC 9113 §5.1.1).
    Skipped { higher: u32 },
}

impl End {
    /// Opens and ends stream 3.
    async fn act(self, client: &mut TcpStream, proxy: &Proxy) {
        match self {
            Self::Head | Self::LateReset => request(client, 3, GET, "/slow").await,
            Self::Data | Self::Trailers | Self::Reset => begin(client, 3, POST, "/slow").await,
            Self::Response => {
                request(client, 3, GET, "/fast").await;
                until(client, HEADERS, 3).await.expect("a response");
                return;
            }
            Self::Skipped { higher } => {
                request(client, higher, GET, "/slow").await;
                proxy.until_in_flight(1).await;
                return;
            }
        }
        match self {
            Self::Data => write(client, DATA, END_STREAM, 3, b"x").await.unwrap(),
            Self::Trailers => send(client, true, 3, &field("a", "b")).await,
            Self::Reset | Self::LateReset => return reset(client, 3, CANCEL).await,
            _ => {}
        }
        proxy.until_in_flight(1).await;
    }
}

/// A literal in HPACK that enters the dynamic table.
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0x40];
    for string in [name, value] {
        field.push(string.len() as u8);
        field.extend(string.as_bytes());
    }
    field
}

async fn send(client: &mut TcpStream, is_last: bool, number: u32, block: &[u8]) {
    let flags = END_HEADERS | if is_last { END_STREAM } else { 0 };
    write(client, HEADERS, flags, number, block).await.unwrap();
}

/// A second block of a stream: heads and trailers, valid and malformed.
fn second_blocks() -> [Vec<u8>; 6] {
    [
        head(GET, "/again"),
        [head(POST, "/again"), field("Upper", "x")].concat(),
        field(":path", "/again"),
        field("a", "b"),
        field("A", "b"),
        Vec::new(),
    ]
}

/// An upstream whose responses for `/slow` wait until they are released.
async fn upstream() -> (RunningUpstream, Arc<Notify>) {
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let slow = ok("slow").after(move || {
        let released = Arc::clone(&released);
        async move { released.notified().await }
    });
    let upstream = Upstream::new().on("/slow", slow).on("/fast", ok("fast"));
    (upstream.start().await, release)
}

/// Sends a second block on stream 3 after its end. Panics unless the connection ends.
async fn second_block_ends_the_connection(ends: &[End]) {
    let (upstream, _release) = upstream().await;
    let proxy = upstream.proxy(&[("proxy.workers", "1")]).await;
    for end in ends {
        for block in second_blocks() {
            for (is_last, is_translated) in
                [(true, false), (true, true), (false, false), (false, true)]
            {
                let what = format!("{end:?} {} {is_last} {is_translated}", block.escape_ascii());
                let mut client = greeted(proxy.address, &[]).await;
                if is_translated {
                    let malformed = [head(GET, "/"), field("Upper", "x")].concat();
                    send(&mut client, true, 1, &malformed).await;
                    let head = until(&mut client, HEADERS, 1).await.expect(&what);
                    assert_eq!(head.payload[0], STATUS_400);
                }
                end.act(&mut client, &proxy).await;
                send(&mut client, is_last, 3, &block).await;
                let go_away = until(&mut client, GOAWAY, 0).await.expect(&what);
                let reason = go_away.reason();
                assert!(
                    [PROTOCOL_ERROR, STREAM_CLOSED].contains(&reason),
                    "{what}: {reason}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d2_a_block_after_end_stream_ends_the_connection() {
    second_block_ends_the_connection(&[End::Head, End::Data, End::Trailers]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d2_a_block_after_a_reset_ends_the_connection() {
    second_block_ends_the_connection(&[End::Reset, End::LateReset]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d2_a_block_on_a_closed_stream_ends_the_connection() {
    second_block_ends_the_connection(&[End::Response]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d2_a_block_on_a_stream_that_was_skipped_ends_the_connection() {
    let ends = [7, 4001].map(|higher| End::Skipped { higher });
    second_block_ends_the_connection(&ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d2_malformed_trailers_cost_their_own_stream_alone() {
    let (upstream, release) = upstream().await;
    let proxy = upstream.proxy(&[("proxy.workers", "1")]).await;
    let mut client = greeted(proxy.address, &[]).await;
    request(&mut client, 1, POST, "/slow").await;
    proxy.until_in_flight(1).await;
    let mut number = 1;
    // More of them than h2 would reset before it ends the connection.
    for block in second_blocks().iter().cycle().take(60) {
        for is_last in [true, false] {
            let is_valid = is_last && (block.is_empty() || *block == field("a", "b"));
            number += 2;
            begin(&mut client, number, POST, "/fast").await;
            write(&mut client, DATA, 0, number, b"x").await.unwrap();
            send(&mut client, is_last, number, block).await;
            if is_last {
                let head = until(&mut client, HEADERS, number).await.expect("a head");
                let status = if is_valid { STATUS_200 } else { STATUS_400 };
                assert_eq!(head.payload[0], status, "{}", block.escape_ascii());
            }
            if !is_valid {
                let end = until(&mut client, RST_STREAM, number)
                    .await
                    .expect("a reset");
                assert_eq!(end.reason(), PROTOCOL_ERROR, "{}", block.escape_ascii());
            }
        }
    }
    release.notify_one();
    let head = until(&mut client, HEADERS, 1).await.expect("a response");
    assert_eq!(head.payload[0], STATUS_200);
}

/// Starts a request with a body, with its length announced or not, that reaches the upstream before
/// trailers follow, if it is not small.
async fn upload(client: &mut TcpStream, number: u32, length: usize, is_announced: bool) {
    let mut block = head(POST, "/upload");
    if is_announced {
        let name = "content-length";
        block.extend(field(name, &length.to_string()));
    }
    send(client, false, number, &block).await;
    for part in vec![b'x'; length].chunks(10_000) {
        write(client, DATA, 0, number, part).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d2_hundreds_of_malformed_trailers_cost_no_other_stream_and_no_request_is_complete() {
    let (upstream, release) = upstream().await;
    let proxy = upstream.proxy(&[("proxy.workers", "1")]).await;
    let mut client = greeted(proxy.address, &[]).await;
    request(&mut client, 1, POST, "/slow").await;
    proxy.until_in_flight(1).await;
    let malformed = [
        field("A", "b"),
        field(":path", "/again"),
        field("a", "b\0"),
        field("connection", "close"),
        field("bearer-proxy-malformed-trailers", "0"),
        field("a", &"b".repeat(100)).repeat(900),
    ];
    let mut number = 1;
    for (round, block) in malformed.iter().cycle().take(420).enumerate() {
        number += 2;
        let is_announced = round % 4 < 2;
        upload(&mut client, number, [1, 12_000][round % 2], is_announced).await;
        let (first, rest) = block.split_at(block.len().min(16_000));
        if rest.is_empty() {
            send(&mut client, true, number, first).await;
        } else {
            write(&mut client, HEADERS, END_STREAM, number, first)
                .await
                .unwrap();
            let mut parts = rest.chunks(16_000).peekable();
            while let Some(part) = parts.next() {
                let flags = if parts.peek().is_none() {
                    END_HEADERS
                } else {
                    0
                };
                write(&mut client, CONTINUATION, flags, number, part)
                    .await
                    .unwrap();
            }
        }
        let what = format!("{round}: {:.40}", block.escape_ascii().to_string());
        let head = until(&mut client, HEADERS, number).await.expect(&what);
        assert_eq!(head.payload[0], STATUS_400, "{what}");
        let end = until(&mut client, RST_STREAM, number).await.expect(&what);
        assert_eq!(end.reason(), PROTOCOL_ERROR, "{what}");
    }
    assert_eq!(proxy.rejected("client_body").await, 420.0);
    // A neighbour with a body and valid trailers, of which the length is announced.
    for is_announced in [true, false] {
        number += 2;
        upload(&mut client, number, 12_000, is_announced).await;
        send(&mut client, true, number, &field("a", "b")).await;
        let head = until(&mut client, HEADERS, number)
            .await
            .expect("a response");
        assert_eq!(head.payload[0], STATUS_200);
    }
    release.notify_one();
    let head = until(&mut client, HEADERS, 1).await.expect("a response");
    assert_eq!(head.payload[0], STATUS_200);
    assert_eq!(upstream.targets(), ["/slow", "/upload", "/upload"]);
    let lengths: Vec<_> = upstream
        .requests()
        .iter()
        .map(|one| one.body.len())
        .collect();
    assert_eq!(lengths, [0, 12_000, 12_000]);
}

/// The last data waits for the end of the stream, and must not take the place of the trailers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d2_trailers_behind_a_body_of_announced_length_are_forwarded() {
    let address = scripted(|_, stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let received = request.into_body().collect().await.unwrap();
            let trailer = received.trailers().map(|all| all["a"].clone());
            let length = received.to_bytes().len();
            let body = Full::new(Bytes::from(format!("{length} {trailer:?}")));
            Ok::<_, Infallible>(Response::new(body))
        });
        http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(io::Error::other)
    })
    .await;
    let proxy = in_front_of(address, &[("upstream.http2", "always")]).await;
    let mut client = greeted(proxy.address, &[]).await;
    let mut number = 1;
    for length in [1, 12_000] {
        for is_announced in [true, false] {
            upload(&mut client, number, length, is_announced).await;
            send(&mut client, true, number, &field("a", "b")).await;
            let body = until(&mut client, DATA, number).await.expect("a response");
            let expected = format!("{length} Some(\"b\")");
            assert_eq!(String::from_utf8_lossy(&body.payload), expected);
            number += 2;
            // The end of the stream without trailers, in a frame of its own.
            upload(&mut client, number, length, is_announced).await;
            write(&mut client, DATA, END_STREAM, number, b"")
                .await
                .unwrap();
            let body = until(&mut client, DATA, number).await.expect("a response");
            assert_eq!(
                String::from_utf8_lossy(&body.payload),
                format!("{length} None")
            );
            number += 2;
        }
    }
}

/// Streams over the limit of concurrent ones are reset by h2 as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d2_many_refused_streams_cost_no_other_stream() {
    let (upstream, release) = upstream().await;
    let settings = [("proxy.workers", "1"), ("proxy.max_streams", "1")];
    let proxy = upstream.proxy(&settings).await;
    let mut client = greeted(proxy.address, &[]).await;
    request(&mut client, 1, POST, "/slow").await;
    proxy.until_in_flight(1).await;
    for number in (3..400).step_by(2) {
        request(&mut client, number, GET, "/fast").await;
        let end = until(&mut client, RST_STREAM, number).await.expect("reset");
        assert_eq!(end.reason(), REFUSED_STREAM, "{number}");
    }
    release.notify_one();
    let head = until(&mut client, HEADERS, 1).await.expect("a response");
    assert_eq!(head.payload[0], STATUS_200);
    request(&mut client, 401, GET, "/fast").await;
    let head = until(&mut client, HEADERS, 401).await.expect("a response");
    assert_eq!(head.payload[0], STATUS_200);
}
