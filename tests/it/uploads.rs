//! Uploads of any size; the upstream refuses the token at any point of the upload.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256, digest};
use bearer_proxy::base::clock::Simulated;
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::common::{
    LIMIT, eventually, in_front_of, issuer, proxy, proxy_on, read_head, scripted,
    upstream::{Request, Upstream, grant, response, values},
};

/// The point at which an upstream checks the token, in percent of the body.
type Percent = usize;

/// An upstream that refuses the first token that it receives. It records the requests it receives.
#[derive(Clone)]
struct Judge {
    judges_at: Percent,
    /// Whether it responds to `Expect: 100-continue`.
    says_100: bool,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    refused: Mutex<Option<String>>,
    heads: Mutex<Vec<String>>,
    /// SHA-256 of each accepted body.
    accepted: Mutex<Vec<String>>,
    body_bytes: AtomicUsize,
}

impl Judge {
    fn new(judges_at: Percent, says_100: bool) -> Self {
        Self {
            judges_at,
            says_100,
            seen: Arc::default(),
        }
    }

    async fn start(&self) -> SocketAddr {
        let upstream = self.clone();
        scripted(move |_, stream| {
            let upstream = upstream.clone();
            async move {
                let (read, mut write) = stream.into_split();
                let mut read = BufReader::new(read);
                while upstream.serve(&mut read, &mut write).await? {}
                Ok(())
            }
        })
        .await
    }

    /// Serves one request. Returns whether another request may follow.
    async fn serve(
        &self,
        read: &mut BufReader<OwnedReadHalf>,
        write: &mut OwnedWriteHalf,
    ) -> io::Result<bool> {
        let head = read_head(read).await?;
        if head.is_empty() {
            return Ok(false);
        }
        self.seen.heads.lock().unwrap().push(head.clone());
        let token = field(&head, "authorization").unwrap();
        let is_good = self
            .seen
            .refused
            .lock()
            .unwrap()
            .get_or_insert_with(|| token.clone())
            != &token;
        let size: usize = field(&head, "x-size").unwrap().parse().unwrap();
        let until = if is_good {
            usize::MAX
        } else {
            size * self.judges_at / 100
        };
        if until > 0 && self.says_100 && field(&head, "expect").is_some() {
            write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut body = Body::new(&head);
        let mut hash = Context::new(&SHA256);
        let mut length = 0;
        while length < until {
            let Some(data) = body.next(read).await? else {
                break;
            };
            self.seen.body_bytes.fetch_add(data.len(), Relaxed);
            length += data.len();
            hash.update(&data);
        }
        if !is_good {
            // Servers that do not want the rest of a body do the same.
            write
                .write_all(
                    b"HTTP/1.1 401 No\r\nContent-Length: 7\r\nConnection: close\r\n\r\nrefused",
                )
                .await?;
            write.shutdown().await?;
            return Ok(false);
        }
        let hash = hex(hash.finish().as_ref());
        self.seen.accepted.lock().unwrap().push(hash.clone());
        write
            .write_all(
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{hash}",
                    hash.len()
                )
                .as_bytes(),
            )
            .await?;
        Ok(true)
    }
}

/// A body with its framing.
enum Body {
    Left(usize),
    Chunks,
    Over,
}

impl Body {
    fn new(head: &str) -> Self {
        match field(head, "content-length") {
            Some(length) => Self::Left(length.parse().unwrap()),
            None => Self::Chunks,
        }
    }

    async fn next(
        &mut self,
        read: &mut (impl tokio::io::AsyncBufRead + Unpin),
    ) -> io::Result<Option<Vec<u8>>> {
        use tokio::io::AsyncBufReadExt as _;
        match self {
            Self::Over | Self::Left(0) => Ok(None),
            Self::Left(left) => {
                let mut data = vec![0; (*left).min(1 << 16)];
                let n = read.read(&mut data).await?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                data.truncate(n);
                *left -= n;
                Ok(Some(data))
            }
            Self::Chunks => {
                let mut line = String::new();
                read.read_line(&mut line).await?;
                let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
                let mut data = vec![0; size + 2];
                read.read_exact(&mut data).await?;
                data.truncate(size);
                if size == 0 {
                    *self = Self::Over;
                    return Ok(None);
                }
                Ok(Some(data))
            }
        }
    }
}

fn field(head: &str, name: &str) -> Option<String> {
    values(head, name).first().map(|value| (*value).to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a client sends its body.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sends {
    WithLength,
    Chunked,
    /// Sends `Content-Length`, and waits for `100 Continue` before it sends the body.
    WhenAsked,
}

/// What a client received: status, body, and whether it received `100 Continue`.
struct Answer {
    status: u16,
    body: String,
    asked: bool,
}

/// Sends the whole body before it reads, as old programs do.
async fn upload(proxy: SocketAddr, body: Bytes, sends: Sends) -> Answer {
    let (mut read, mut write) = TcpStream::connect(proxy).await.unwrap().into_split();
    let size = body.len();
    let framing = match sends {
        Sends::WithLength => format!("Content-Length: {size}\r\n"),
        Sends::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
        Sends::WhenAsked => format!("Content-Length: {size}\r\nExpect: 100-continue\r\n"),
    };
    let request = format!(
        "POST /x HTTP/1.1\r\nHost: localhost\r\nX-Size: {size}\r\nConnection: close\r\n{framing}\r\n"
    );
    write.write_all(request.as_bytes()).await.unwrap();
    let (ask, asked) = tokio::sync::oneshot::channel();
    let writing = tokio::spawn(async move {
        if sends == Sends::WhenAsked && asked.await.is_err() {
            return Ok(write);
        }
        for data in body.chunks(100_000) {
            if sends == Sends::Chunked {
                write
                    .write_all(format!("{:x}\r\n", data.len()).as_bytes())
                    .await?;
                write.write_all(data).await?;
                write.write_all(b"\r\n").await?;
            } else {
                write.write_all(data).await?;
            }
        }
        if sends == Sends::Chunked {
            write.write_all(b"0\r\n\r\n").await?;
        }
        io::Result::Ok(write)
    });
    let answer = async {
        let mut first = read_head(&mut read).await.unwrap();
        let asked = first.starts_with("HTTP/1.1 100");
        if asked {
            let _ = ask.send(());
            first = read_head(&mut read).await.unwrap();
        } else {
            drop(ask);
        }
        let status = first
            .split(' ')
            .nth(1)
            .unwrap_or_else(|| panic!("{first}"))
            .parse()
            .unwrap();
        let mut body = vec![0; field(&first, "content-length").unwrap().parse().unwrap()];
        read.read_exact(&mut body).await.unwrap();
        Answer {
            status,
            body: String::from_utf8(body).unwrap(),
            asked,
        }
    };
    let answer = tokio::time::timeout(LIMIT, answer)
        .await
        .expect("a response in time");
    writing.abort();
    answer
}

fn body(size: usize) -> Bytes {
    (0..size)
        .map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8)
        .collect::<Vec<_>>()
        .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_can_be_sent_again_is_and_the_rest_gets_the_refusal() {
    let issuer = issuer().await;
    for size in [10_000, 1_000_000, LARGE] {
        let body = body(size);
        let mut cases = Vec::new();
        for judges_at in [0, 50, 99] {
            for says_100 in [true, false] {
                for sends in [Sends::WithLength, Sends::Chunked, Sends::WhenAsked] {
                    cases.push(upload_with_a_dead_token(
                        &issuer,
                        &body,
                        Judge::new(judges_at, says_100),
                        sends,
                    ));
                }
            }
        }
        futures_util::future::join_all(cases).await;
    }
}

/// Larger than the bodies that the proxy keeps for a second attempt.
const LARGE: usize = 100_000_000;

async fn upload_with_a_dead_token(issuer: &str, body: &Bytes, upstream: Judge, sends: Sends) {
    let (size, judges_at) = (body.len(), upstream.judges_at);
    let what = format!(
        "{size} bytes, judged at {judges_at} %, says 100: {}, {sends:?}",
        upstream.says_100
    );
    let expected = hex(digest(&SHA256, body).as_ref());
    let address = upstream.start().await;
    let proxy = proxy(
        &format!("http://{address}"),
        &[("token.issuer", issuer), ("proxy.workers", "1")],
    );
    proxy.ready().await;
    let answer = upload(proxy.address, body.clone(), sends).await;
    let heads = upstream.seen.heads.lock().unwrap().clone();
    let accepted = upstream.seen.accepted.lock().unwrap().clone();
    let is_kept = size < LARGE;
    if is_kept || judges_at == 0 {
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, expected.as_str()),
            "{what}"
        );
        assert_eq!((accepted, heads.len()), (vec![expected], 2), "{what}");
    } else {
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (401, "refused"),
            "{what}"
        );
        assert_eq!((accepted, heads.len()), (vec![], 1), "{what}");
        let counted =
            r#"bearer_proxy_retries_total{reason="unauthorized",outcome="body_not_kept"}"#;
        assert_eq!(proxy.metric(counted).await, 1.0, "{what}");
    }
    assert_eq!(answer.asked, sends == Sends::WhenAsked, "{what}");
    let is_held_back = size == LARGE || sends != Sends::WithLength;
    assert_eq!(field(&heads[0], "expect").is_some(), is_held_back, "{what}");
    if judges_at == 0 && is_held_back {
        assert_eq!(
            upstream.seen.body_bytes.load(Relaxed),
            size,
            "{what}: the body was sent to no purpose"
        );
    }
    proxy.app.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_asked_for_its_body_only_when_the_upstream_wants_it() {
    let origin = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        assert!(head.contains("100-continue"));
        stream
            .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
            .await?;
        // A server waits for the body until the connection closes.
        let rest = stream.read_u8().await;
        assert!(rest.is_err(), "a body arrived");
        Ok(())
    })
    .await;
    let proxy = in_front_of(origin, &[]).await;
    for sends in [Sends::WhenAsked, Sends::WithLength] {
        let answer = upload(proxy.address, body(3_000_000), sends).await;
        assert_eq!(
            (answer.status, answer.body.as_str(), answer.asked),
            (413, "large", false),
            "{sends:?}"
        );
    }
    let active = format!(
        r#"bearer_proxy_upstream_connections{{endpoint="http://{origin}",state="active"}}"#
    );
    eventually("its connections are given up", async || {
        proxy.metric(&active).await == 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_lets_the_expectation_pass_is_not_waited_for_within_ten_minutes() {
    let upstream = Judge::new(100, false);
    *upstream.seen.refused.lock().unwrap() = Some("none".to_owned());
    let address = upstream.start().await;
    let issuer = issuer().await;
    let more = [("token.issuer", issuer.as_str()), ("proxy.workers", "1")];
    let clock = Arc::new(Simulated::new());
    let proxy = proxy_on(clock.clone(), &format!("http://{address}"), &more);
    let mut was_waited_for = Vec::new();
    for minutes_before in [0, 9, 9, 11] {
        clock.suspend(Duration::from_secs(60 * minutes_before));
        let begun = tokio::time::Instant::now();
        assert_eq!(
            upload(proxy.address, body(2_000_000), Sends::WithLength)
                .await
                .status,
            200
        );
        was_waited_for.push(begun.elapsed() >= Duration::from_secs(1));
    }
    assert_eq!(was_waited_for, [true, false, false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expectation_that_is_refused_is_dropped() {
    let origin = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        if head.contains("100-continue") {
            return stream
                .write_all(b"HTTP/1.1 417 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                .await;
        }
        let mut body = vec![0; field(&head, "content-length").unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ngood")
            .await
    })
    .await;
    let proxy = in_front_of(origin, &[]).await;
    for (sends, size) in [(Sends::WithLength, 2_000_000), (Sends::WhenAsked, 10)] {
        let answer = upload(proxy.address, body(size), sends).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "good"),
            "{sends:?}"
        );
    }
}

/// An upstream refuses a chunked body in its middle and reads no more of it. The proxy sends the
/// second attempt on the same connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_were_refused_end_in_good_order() {
    let (ended, connections) = (
        Arc::new(tokio::sync::Notify::new()),
        Arc::new(AtomicUsize::new(0)),
    );
    let (tell, count) = (Arc::clone(&ended), Arc::clone(&connections));
    let address = scripted(move |_, mut stream| {
        let tell = Arc::clone(&tell);
        count.fetch_add(1, Relaxed);
        async move {
            loop {
                let head = read_head(&mut stream).await?;
                if head.is_empty() {
                    return Ok(());
                }
                let is_fresh = !head.contains("Bearer token-1\r\n");
                if head.contains("100-continue") {
                    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                }
                let mut seen = vec![0; 5];
                if !is_fresh {
                    stream.read_exact(&mut seen).await?;
                    stream
                        .write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
                        .await?;
                }
                while !seen.ends_with(b"0\r\n\r\n") {
                    seen.push(stream.read_u8().await?);
                }
                if is_fresh {
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", seen.len());
                    stream
                        .write_all(&[answer.as_bytes(), &seen].concat())
                        .await?;
                } else {
                    tell.notify_one();
                }
            }
        }
    })
    .await;
    let proxy = in_front_of(address, &[("retry.cooldown", "1ms")]).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    client
        .write_all(format!("{head}5\r\nfirst\r\n").as_bytes())
        .await
        .unwrap();
    tokio::time::timeout(LIMIT, ended.notified())
        .await
        .expect("the refused chunked body ends");
    client.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.contains("first") && answer.contains("second"),
        "{answer}"
    );
    let idle = format!(
        "bearer_proxy_upstream_connections{{endpoint=\"http://{address}\",state=\"idle\"}}"
    );
    let all_idle = async || proxy.metric(&idle).await == connections.load(Relaxed) as f64;
    eventually("every connection can be used again", all_idle).await;
}

/// A token that expires in less than a minute would not outlive a large upload, which cannot be
/// sent again. A token that expires while the proxy waits for a newer one is not sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_begins_with_a_token_that_will_last() {
    const HOUR: Duration = Duration::from_secs(3600);
    for (left, expected, tokens) in [(45, 200, &["Bearer long"][..]), (2, 503, &[])] {
        let issuer = Upstream::always(move |request: &Request| match request.number {
            0 => grant("short", HOUR.as_secs()),
            2.. if expected == 200 => grant("long", HOUR.as_secs()),
            _ => response("500 Not now", "", ""),
        })
        .start()
        .await;
        let upstream = Judge::new(100, true);
        *upstream.seen.refused.lock().unwrap() = Some("none".to_owned());
        let origin = format!("http://{}", upstream.start().await);
        let clock = Arc::new(Simulated::new());
        let proxy = proxy_on(
            clock.clone(),
            &origin,
            &[("token.issuer", &issuer.origin()), ("token.wait", "6s")],
        );
        proxy.ready().await;
        clock.suspend(HOUR - Duration::from_secs(left));
        eventually("a refresh has failed", async || issuer.count() > 1).await;
        assert_eq!(
            upload(proxy.address, body(2_000_000), Sends::WithLength)
                .await
                .status,
            expected
        );
        let heads = upstream.seen.heads.lock().unwrap().clone();
        let seen: Vec<_> = heads
            .iter()
            .map(|head| field(head, "authorization").unwrap())
            .collect();
        assert_eq!(seen, tokens);
    }
}
