//! Clients that are slow or disconnect: the proxy serves other clients, and leaks no resource.
//!
//! `SOAK_SLOW` sets the number of slow clients (default 400), `SOAK_ABORTS` the number of clients
//! that disconnect (default 3,000).
#![cfg(target_os = "linux")]

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinHandle, JoinSet},
};

use crate::common::{
    Client, LIMIT, Proxy, eventually,
    frames::{
        END_HEADERS, GET, HEADERS, POST, REFUSED_STREAM, RST_STREAM, greeted, head, request, until,
        write,
    },
    get, in_front_of, issuer, metric,
    process::ReadyProgram,
    proxy, read_head, scripted, send, tcp, text_at,
    tls::{authority, identity},
    upstream::{Upstream, ok},
};

fn amount(variable: &str, usual: usize) -> usize {
    std::env::var(variable)
        .ok()
        .map_or(usual, |text| text.parse().unwrap())
}

/// A cloud and issuer: `/large` has 10 MB; the cloud reads request bodies.
async fn cloud() -> SocketAddr {
    let cloud = Upstream::new()
        .on("/large", ok(vec![b'x'; 10_000_000]))
        .issuing()
        .unrecorded();
    cloud.start().await.address
}

/// A client that sends requests continuously; every response must be 200.
struct Good {
    goes_on: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    running: JoinHandle<()>,
}

impl Good {
    async fn start(address: SocketAddr) -> Self {
        let (goes_on, served) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (may, count) = (Arc::clone(&goes_on), Arc::clone(&served));
        let running = tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            while may.load(SeqCst) {
                let response = tokio::time::timeout(LIMIT, client.send(get("/")))
                    .await
                    .expect("in time")
                    .unwrap();
                assert_eq!(response.status(), 200);
                count.fetch_add(1, SeqCst);
                // And on a new connection.
                let response = send(address, get("/")).await;
                assert_eq!(response.status(), 200);
                count.fetch_add(1, SeqCst);
            }
        });
        let good = Self {
            goes_on,
            served,
            running,
        };
        eventually("the good client is served", async || {
            good.served.load(SeqCst) > 10
        })
        .await;
        good
    }

    /// Stops the client, and returns the number of responses that it received.
    async fn end(self) -> usize {
        self.goes_on.store(false, SeqCst);
        self.running.await.unwrap();
        self.served.load(SeqCst)
    }
}

#[derive(Debug, Clone, Copy)]
enum Slow {
    Silent,
    OneLetter,
    HalfAPreface,
    Head,
    Body,
    Reader,
    IdleHttp2,
    BodyOnHttp2,
    Handshake,
}

impl Slow {
    const ALL: [Self; 9] = [
        Self::Silent,
        Self::OneLetter,
        Self::HalfAPreface,
        Self::Head,
        Self::Body,
        Self::Reader,
        Self::IdleHttp2,
        Self::BodyOnHttp2,
        Self::Handshake,
    ];

    /// Connects, behaves slowly, and waits for the end of the connection.
    async fn run(self, plain: SocketAddr, tls: SocketAddr) {
        let at = if matches!(self, Self::Handshake) {
            tls
        } else {
            plain
        };
        let mut stream = match self {
            Self::IdleHttp2 | Self::BodyOnHttp2 => greeted(at, &[]).await,
            _ => TcpStream::connect(at).await.unwrap(),
        };
        match self {
            Self::Silent | Self::IdleHttp2 => {}
            Self::OneLetter => stream.write_all(b"P").await.unwrap(),
            Self::HalfAPreface => stream.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap(),
            Self::Body => {
                stream
                    .write_all(
                        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf",
                    )
                    .await
                    .unwrap();
            }
            Self::BodyOnHttp2 => write(&mut stream, HEADERS, END_HEADERS, 1, &head(POST, "/"))
                .await
                .unwrap(),
            // The header of a record of 512 bytes, and one byte of it.
            Self::Handshake => stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap(),
            Self::Reader => {
                stream
                    .write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .await
                    .unwrap();
                // The client reads nothing, and detects the close when it sends more.
                while stream.write_all(b"GET").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await; // polls until the close
                }
                return;
            }
            Self::Head => {
                // A line from time to time does not complete the request.
                let mut trickle = "GET / HTTP/1.1\r\nHost: localhost\r\n".to_owned();
                while stream.write_all(trickle.as_bytes()).await.is_ok() {
                    "X-Slow: yes\r\n".clone_into(&mut trickle);
                    tokio::time::sleep(Duration::from_millis(100)).await; // the pace of the attack
                }
                return;
            }
        }
        let end = tokio::time::timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "{self:?} stays open");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_23_slow_clients_are_closed_by_their_deadline_and_good_ones_served() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = identity(&authority(), "localhost", false);
    let (cert_file, key_file) = (
        folder.path().join("server.pem"),
        folder.path().join("server.key"),
    );
    std::fs::write(&cert_file, chain).unwrap();
    std::fs::write(&key_file, key).unwrap();
    let (issuer, cloud) = (issuer().await, cloud().await);
    let more = [
        ("token.issuer", issuer.as_str()),
        ("listener[0].address", "127.0.0.1:0"),
        ("listener[1].address", "127.0.0.1:0"),
        ("listener[1].tls.cert_file", cert_file.to_str().unwrap()),
        ("listener[1].tls.key_file", key_file.to_str().unwrap()),
        ("proxy.first_byte_timeout", "1s"),
        ("proxy.head_timeout", "1s"),
        ("proxy.body_idle_timeout", "1s"),
        // The good client keeps one connection idle while it uses another one.
        ("proxy.idle_timeout", "5s"),
    ];
    let proxy: Proxy = proxy(&format!("http://{cloud}"), &more);
    proxy.ready().await;
    let good = Good::start(proxy.address).await;
    let tls = tcp(&proxy.app.addresses()[1]);

    let each = amount("SOAK_SLOW", 400) / Slow::ALL.len();
    let slow = Slow::ALL
        .into_iter()
        .flat_map(|slow| std::iter::repeat_n(slow, each));
    let slow: Vec<_> = slow
        .map(|slow| tokio::spawn(slow.run(proxy.address, tls)))
        .collect();
    for slow in slow {
        tokio::time::timeout(2 * LIMIT, slow)
            .await
            .expect("all connections are closed")
            .unwrap();
    }
    println!(
        "{} good responses beside {} slow clients",
        good.end().await,
        each * Slow::ALL.len()
    );
    proxy.until_open(0).await;
    proxy.until_in_flight(0).await;
}

/// slowhttptest, in its three modes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slowhttptest_with_a_thousand_connections_does_not_affect_other_clients() {
    let timeouts = "proxy.head_timeout = \"2s\"\nproxy.body_idle_timeout = \"2s\"\nproxy.first_byte_timeout = \"2s\"\n";
    let proxy = ReadyProgram::start(cloud().await, timeouts).await;
    for (mode, path) in [("-H", "/"), ("-B", "/"), ("-X", "/large")] {
        let good = Good::start(proxy.address).await;
        let mut tool = Command::new("slowhttptest");
        tool.args([
            mode, "-c", "1000", "-r", "1000", "-i", "1", "-l", "4", "-p", "3", "-x", "8", "-v", "0",
        ])
        .args(["-u", &format!("http://{}{path}", proxy.address)])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
        let mut tool = tool
            .spawn()
            .expect("slowhttptest, which scripts/test installs");
        let most = Arc::new(AtomicUsize::new(0));
        eventually("the tool ends", async || {
            most.fetch_max(proxy.descriptors(), SeqCst);
            tool.try_wait().unwrap().is_some()
        })
        .await;
        println!(
            "{mode}: {} good responses, {} descriptors at most",
            good.end().await,
            most.load(SeqCst)
        );
        assert!(most.load(SeqCst) > 500, "the attack had no effect");
        eventually("the tool's connections are closed", async || {
            proxy.descriptors() < 100
        })
        .await;
    }
}

/// Connects, sends half of the announced body, and disconnects by a close or by a reset.
async fn abort(address: SocketAddr, number: usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (size, rest) = [(100, 50), (100_000, 50_000), (900_000, 400_000)][number % 3];
    let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
    // The proxy may respond and close the connection first.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&vec![b'x'; rest]).await;
    if number.is_multiple_of(2) {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_32_clients_that_disconnect_leave_nothing_behind() {
    let proxy = ReadyProgram::start_thrifty(cloud().await, "").await;
    let wave = async |times: usize| {
        for round in 0..times.div_ceil(20) {
            let all: Vec<_> = (0..20)
                .map(|n| tokio::spawn(abort(proxy.address, 20 * round + n)))
                .collect();
            for one in all {
                one.await.unwrap();
            }
        }
        eventually("their resources are released", async || {
            let metrics = text_at(proxy.admin, "/metrics").await;
            metrics.contains("bearer_proxy_connections_open 0.0\n")
                && metrics.contains("bearer_proxy_requests_in_flight 0.0\n")
        })
        .await;
    };
    let request = async || {
        assert_eq!(send(proxy.address, get("/")).await.status(), 200);
        proxy.memory("VmRSS")
    };
    // After two waves, the buffers that the proxy keeps for reuse exist.
    let times = amount("SOAK_ABORTS", 3000) / 3;
    wave(times).await;
    wave(times).await;
    let mut memory = u64::MAX;
    for _ in 0..100 {
        memory = memory.min(request().await);
    }
    let descriptors = proxy.descriptors();
    wave(times).await;
    // The allocator may keep some memory for a while; leaked memory would remain.
    eventually("memory use returns to its level", async || {
        request().await <= memory + memory / 20
    })
    .await;
    eventually("descriptor use returns to its level", async || {
        proxy.descriptors() <= descriptors + 2
    })
    .await;
    println!("{times} more: {descriptors} descriptors, {memory} KiB, as before");
}

/// A client that opens more streams than the limit receives REFUSED_STREAM for the additional ones,
/// and responses for the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_their_number_are_refused() {
    let slow = ok("ok").after(|| tokio::time::sleep(Duration::from_millis(300))); // until all have arrived
    let cloud = Upstream::always(slow).issuing().start().await;
    let proxy = ReadyProgram::start(cloud.address, "proxy.max_streams = 3\n").await;
    let mut stream = greeted(proxy.address, &[]).await;
    for number in [1, 3, 5, 7] {
        request(&mut stream, number, GET, "/").await;
    }
    let refused = until(&mut stream, RST_STREAM, 7).await.expect("a refusal");
    assert_eq!(refused.reason(), REFUSED_STREAM);
    // The proxy counts the refusal after it writes it, so the client may be faster.
    eventually("the refusal is counted", async || {
        metric(proxy.admin, "bearer_proxy_streams_refused_total").await == 1.0
    })
    .await;
    until(&mut stream, HEADERS, 1).await.expect("a response");
}

/// The measure is the number of bytes that the upstream sends while another client waits for a
/// response. It is valid on a slow machine too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_responses_without_an_end_do_not_delay_other_requests() {
    let flooded = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&flooded);
    let address = scripted(move |_, mut stream| {
        let flooded = Arc::clone(&count);
        async move {
            let interim = format!(
                "HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n",
                "x".repeat(1000)
            )
            .repeat(64);
            while read_head(&mut stream).await?.starts_with("GET /other ") {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await?;
            }
            loop {
                stream.write_all(interim.as_bytes()).await?;
                flooded.fetch_add(interim.len(), SeqCst);
            }
        }
    })
    .await;
    let proxy = Arc::new(
        in_front_of(
            address,
            &[("proxy.workers", "1"), ("upstream.response_timeout", "3s")],
        )
        .await,
    );
    assert_eq!(proxy.get("/other").await.status(), 200);
    let mut floods = JoinSet::new();
    for _ in 0..4 {
        let proxy = Arc::clone(&proxy);
        floods.spawn(async move { proxy.get("/flood").await.status() });
    }
    eventually("a flood", async || flooded.load(SeqCst) > 16 << 20).await;
    let (before, mut others) = (flooded.load(SeqCst), 0);
    let first = loop {
        assert_eq!(proxy.get("/other").await.status(), 200);
        others += 1;
        if let Some(flood) = floods.try_join_next() {
            break flood;
        }
    };
    let each = (flooded.load(SeqCst) - before) / others;
    assert!(
        each < 16 << 20,
        "{each} bytes for each of {others} responses"
    );
    assert_eq!(first.unwrap(), 504);
    while let Some(flood) = floods.join_next().await {
        assert_eq!(flood.unwrap(), 504);
    }
}
