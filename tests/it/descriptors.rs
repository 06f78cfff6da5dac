//! The program without free file descriptors: clients wait; the token refresh and the admin
//! endpoint work.
#![cfg(target_os = "linux")]

use std::{net::SocketAddr, process::Command, time::Duration};

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config},
};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::Instant,
};

use crate::common::{
    eventually,
    process::{Program, Running, command},
    read_head,
    upstream::{Upstream, ok},
};

const LIMIT: usize = 256;
/// The number of client connections that `LIMIT` permits with two workers and one listener.
const PLACES: f64 = 79.0;

/// A proxy with few file descriptors, an issuer with tokens that live for seconds, and a cloud that
/// responds only while `responds` is true.
struct Bench {
    _issuer: Cloud,
    cloud: SocketAddr,
    program: Program,
    responds: watch::Sender<bool>,
    running: Running,
}

impl Bench {
    async fn start(more: &str) -> Self {
        let config = Config {
            token_lifetime: Duration::from_secs(2),
            seeds: vec!["seed".into()],
            ..Config::new("demo", "secret")
        };
        let issuer = Cloud::start(config, clock::system()).await.unwrap();
        let (responds, may) = watch::channel(true);
        let reply = ok("").after(move || {
            let mut may = may.clone();
            async move { drop(may.wait_for(|responds| *responds).await) }
        });
        let cloud = Upstream::always(reply).start().await.address;
        let more = format!(
            "proxy.workers = 2\ntoken.issuer = \"{}\"\n{more}",
            issuer.origin()
        );
        let program = Program::with_state(&format!("http://{cloud}"), &more);
        // The soft limit is lower: the program has to raise it.
        let mut command = command("prlimit", program.folder.path());
        command
            .arg(format!("--nofile=64:{LIMIT}"))
            .arg(env!("CARGO_BIN_EXE_bearer-proxy"));
        let running = program.start_as(command);
        program.ready().await;
        Self {
            _issuer: issuer,
            cloud,
            program,
            responds,
            running,
        }
    }

    /// Waits for a token that was issued after this moment and is stored and in use.
    async fn is_refreshed(&self) {
        let before = self.program.generation().await;
        eventually("two refreshes", async || {
            let credential = self.program.credential().await;
            credential["generation"].as_u64().unwrap() >= before + 2
                && credential["persisted"] == true
        })
        .await;
    }

    /// Runs `work` and asserts that the process does not spin in the meantime.
    async fn at_rest(&self, work: impl Future<Output = ()>) {
        let started = Instant::now();
        let before = self.cpu();
        work.await;
        let (used, passed) = (self.cpu() - before, started.elapsed());
        assert!(
            used < passed.as_secs_f64() * 0.2,
            "{used} s of CPU time in {passed:?}"
        );
    }

    /// User and system time in seconds, without a request for `/metrics`.
    fn cpu(&self) -> f64 {
        let stat = procfs::process::Process::new(self.running.0.id() as i32)
            .unwrap()
            .stat()
            .unwrap();
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
    }

    /// Connections that send a request and read nothing.
    async fn flood(&self, connections: usize) -> Vec<TcpStream> {
        let mut flood = Vec::new();
        for _ in 0..connections {
            let mut stream = TcpStream::connect(self.program.address).await.unwrap();
            // The proxy may have closed a rejected connection already.
            let _ = stream
                .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await;
            flood.push(stream);
        }
        flood
    }

    async fn serves(&self) {
        let serves = async || {
            let Ok(mut stream) = TcpStream::connect(self.program.address).await else {
                return false;
            };
            let mut begin = [0; 12];
            let sent = stream
                .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await;
            sent.is_ok() && stream.read_exact(&mut begin).await.is_ok() && begin == *b"HTTP/1.1 200"
        };
        eventually("the proxy serves again", serves).await;
    }
}

impl Bench {
    /// The number of client connections, and of cloud connections that carry a request.
    async fn open(&self) -> (f64, f64) {
        let active = format!(
            r#"bearer_proxy_upstream_connections{{endpoint="http://{}",state="active"}}"#,
            self.cloud
        );
        (
            self.program.metric("bearer_proxy_connections_open").await,
            self.program.metric(&active).await,
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_a_flood_that_would_use_up_all_descriptors() {
    let mut bench = Bench::start("").await;
    let logged: Vec<_> = bench
        .program
        .log()
        .lines()
        .filter(|line| line.contains("max_connections"))
        .map(str::to_owned)
        .collect();
    assert!(
        logged.len() == 1 && logged[0].contains("256") && logged[0].contains("10000"),
        "{logged:?}"
    );
    assert_eq!(bench.program.metric("process_max_fds").await, LIMIT as f64);
    bench.responds.send_replace(false);
    let flood = bench.flood(2 * LIMIT).await;
    eventually("clients use all their connections", async || {
        bench.open().await == (PLACES, PLACES)
    })
    .await;
    bench.at_rest(bench.is_refreshed()).await;
    assert_eq!(bench.open().await, (PLACES, PLACES));
    assert_eq!(bench.program.metric(ACCEPT_FAILED).await, 0.0);
    bench.responds.send_replace(true);
    drop(flood);
    bench.serves().await;
    bench.running.terminate().await;
}

const ACCEPT_FAILED: &str = r#"bearer_proxy_connections_rejected_total{reason="accept_failed"}"#;

/// Connections of the admin endpoint must not reduce the number of client connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_a_flood_of_the_admin_endpoint() {
    let bench = Bench::start("").await;
    let mut flood = Vec::new();
    for _ in 0..LIMIT {
        flood.push(TcpStream::connect(bench.program.admin).await.unwrap());
    }
    eventually("the admin endpoint uses all its connections", async || {
        bench.running.descriptors() >= 32
    })
    .await;
    for _ in 0..PLACES as usize {
        bench.serves().await;
    }
    drop(flood);
    assert_eq!(bench.program.metric(ACCEPT_FAILED).await, 0.0);
}

/// An operator may lower the limit while the program runs, and the machine may have no free
/// descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_no_descriptor_at_all() {
    let mut bench = Bench::start("").await;
    let limited = |soft: usize| {
        let limit = format!("--nofile={soft}:{LIMIT}");
        let done = Command::new("prlimit")
            .arg(format!("--pid={}", bench.running.0.id()))
            .arg(limit)
            .status();
        assert!(done.unwrap().success());
    };
    limited(3);
    let flood = bench.flood(LIMIT).await;
    let scraper = TcpStream::connect(bench.program.admin).await.unwrap();
    bench
        .at_rest(tokio::time::sleep(Duration::from_secs(2)))
        .await; // the period of the CPU measurement
    limited(LIMIT);
    drop((flood, scraper));
    bench.serves().await;
    let failed = bench.program.metric(ACCEPT_FAILED).await;
    let logged = bench
        .program
        .log()
        .lines()
        .filter(|line| line.contains("cannot accept connections"))
        .count();
    assert!(
        logged > 0 && failed > logged as f64,
        "logged {logged} of {failed}"
    );
    bench.is_refreshed().await;
    bench.running.terminate().await;
}

/// Each HTTP/2 stream may need an upstream connection of its own: a few clients could use many
/// descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_a_flood_of_streams() {
    let bench = Bench::start("upstream.connect_timeout = \"1s\"\n").await;
    bench.responds.send_replace(false);
    let mut streams = JoinSet::new();
    for _ in 0..4 {
        let stream = TokioIo::new(TcpStream::connect(bench.program.address).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        for _ in 0..30 {
            let mut sender: http2::SendRequest<Empty<Bytes>> = sender.clone();
            let request = Request::get("http://localhost/")
                .body(Empty::new())
                .unwrap();
            streams.spawn(async move { sender.send_request(request).await.unwrap() });
        }
    }
    for _ in 0..120 - PLACES as usize {
        let refused = streams.join_next().await.unwrap().unwrap();
        assert_eq!(refused.status(), 503);
        assert_eq!(
            refused.headers()["proxy-status"],
            "bearer-proxy; error=connection_limit_reached"
        );
        assert_eq!(refused.headers()["retry-after"], "1");
    }
    bench.at_rest(bench.is_refreshed()).await;
    bench.responds.send_replace(true);
    while let Some(response) = streams.join_next().await {
        assert_eq!(response.unwrap().status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_closed_for_those_that_are_needed() {
    let other = Upstream::always(ok("other")).start().await.origin();
    let route = format!(
        "[upstreams.other]\nendpoints = [\"{other}\"]\n[[route]]\nprefix = \"/other\"\nupstream = \"other\"\n"
    );
    let bench = Bench::start(&route).await;
    bench.responds.send_replace(false);
    let mut clients = bench.flood(PLACES as usize).await;
    eventually("each client has a connection", async || {
        bench.open().await == (PLACES, PLACES)
    })
    .await;
    bench.responds.send_replace(true);
    for client in &mut clients {
        assert!(read_head(client).await.unwrap().starts_with("HTTP/1.1 200"));
    }
    eventually("all connections wait for their next request", async || {
        bench.open().await == (PLACES, 0.0)
    })
    .await;
    for client in &mut clients {
        client
            .write_all(b"GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
    }
    for client in &mut clients {
        let head = read_head(client).await.unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200") && head.contains("Content-Length: 5"),
            "{head}"
        );
    }
}
