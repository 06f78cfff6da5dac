//! The program when file descriptors run out: apps have to wait, the token and its admin endpoint do not.
#![cfg(target_os = "linux")]

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config},
};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::Instant,
};

use crate::common::{
    eventually, get,
    process::{Running, free_address, listens},
    read_head, ready, scripted, send, text_at,
};

const LIMIT: usize = 256;
/// What `LIMIT` leaves for apps with two workers and one listener.
const PLACES: f64 = 79.0;

/// A proxy that may open few files, an issuer whose tokens live for seconds, and a cloud that answers when it is told to.
struct Bench {
    _issuer: Cloud,
    cloud: SocketAddr,
    folder: tempfile::TempDir,
    address: SocketAddr,
    admin: SocketAddr,
    answers: watch::Sender<bool>,
    running: Running,
}

impl Bench {
    async fn start(more: &str) -> Self {
        let mut config = Config::new("demo", "secret");
        config.token_lifetime = Duration::from_secs(2);
        let issuer = Cloud::start(config, clock::system()).await.unwrap();
        let (answers, told) = watch::channel(true);
        let cloud = scripted(move |_, mut stream| {
            let mut told = told.clone();
            async move {
                while !read_head(&mut stream).await?.is_empty() {
                    told.wait_for(|answers| *answers)
                        .await
                        .map_err(std::io::Error::other)?;
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                        .await?;
                }
                Ok(())
            }
        })
        .await;
        let (address, admin) = (free_address(), free_address());
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[proxy]\nlisten = [\"{address}\"]\nworkers = 2\n[upstream]\nendpoints = [\"http://{cloud}\"]\n{more}\
             [token]\nclient_id = \"demo\"\nclient_secret = \"secret\"\nrefresh_token = \"{}\"\nissuer = \"{}\"\n\
             state_file = \"state/token.json\"\n[admin]\nlisten = \"{admin}\"\n",
            issuer.seed(),
            issuer.origin(),
        );
        fs::write(folder.path().join("proxy.toml"), text).unwrap();
        // The soft limit is the lower one: the program has to raise it.
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nofile=64:{LIMIT}"))
            .arg(env!("CARGO_BIN_EXE_bearer-proxy"));
        command
            .current_dir(folder.path())
            .env_clear()
            .stdin(Stdio::null());
        command.stderr(fs::File::create(folder.path().join("log")).unwrap());
        let running = Running(command.spawn().unwrap());
        listens(admin).await;
        ready(admin).await;
        Self {
            _issuer: issuer,
            cloud,
            folder,
            address,
            admin,
            answers,
            running,
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = text_at(self.admin, "/metrics").await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Whether a token is in use that was issued after this moment, and stored.
    async fn is_refreshed(&self) {
        let credential = async || {
            let status: Value =
                serde_json::from_slice(send(self.admin, get("/status")).await.body()).unwrap();
            status["credentials"][0].clone()
        };
        let before = credential().await["generation"].as_u64().unwrap();
        eventually("two refreshes", async || {
            let credential = credential().await;
            credential["generation"].as_u64().unwrap() >= before + 2
                && credential["persisted"] == true
        })
        .await;
    }

    /// Does `work` and asserts that the process does not spin meanwhile.
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

    /// User and system time in seconds: of `/metrics` no scrape may be needed.
    fn cpu(&self) -> f64 {
        let stat = procfs::process::Process::new(self.running.0.id() as i32)
            .unwrap()
            .stat()
            .unwrap();
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
    }

    /// Connections that send a request and keep what they get.
    async fn flood(&self, connections: usize) -> Vec<TcpStream> {
        let mut flood = Vec::new();
        for _ in 0..connections {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            // Those that are turned away may be closed already.
            let _ = stream
                .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await;
            flood.push(stream);
        }
        flood
    }

    async fn serves(&self) {
        let serves = async || {
            let Ok(mut stream) = TcpStream::connect(self.address).await else {
                return false;
            };
            let mut answer = [0; 12];
            let asked = stream
                .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await;
            asked.is_ok()
                && stream.read_exact(&mut answer).await.is_ok()
                && answer == *b"HTTP/1.1 200"
        };
        eventually("it serves again", serves).await;
    }
}

impl Bench {
    /// Connections of apps, and those to the cloud that carry a request.
    async fn open(&self) -> (f64, f64) {
        let active = format!(
            r#"bearer_proxy_upstream_connections{{endpoint="http://{}",state="active"}}"#,
            self.cloud
        );
        (
            self.metric("bearer_proxy_connections_open").await,
            self.metric(&active).await,
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_a_flood_that_would_use_up_all_descriptors() {
    let mut bench = Bench::start("").await;
    let told: Vec<_> = bench
        .log()
        .lines()
        .filter(|line| line.contains("max_connections"))
        .map(str::to_owned)
        .collect();
    assert!(
        told.len() == 1 && told[0].contains("256") && told[0].contains("10000"),
        "{told:?}"
    );
    assert_eq!(bench.metric("process_max_fds").await, LIMIT as f64);
    bench.answers.send_replace(false);
    let flood = bench.flood(2 * LIMIT).await;
    eventually("apps have all that is for them", async || {
        bench.open().await == (PLACES, PLACES)
    })
    .await;
    bench.at_rest(bench.is_refreshed()).await;
    assert_eq!(bench.open().await, (PLACES, PLACES));
    assert_eq!(bench.metric(ACCEPT_FAILED).await, 0.0);
    bench.answers.send_replace(true);
    drop(flood);
    bench.serves().await;
    bench.running.signal(rustix::process::Signal::TERM);
    assert_eq!(
        bench.running.ended().await.code(),
        Some(0),
        "{}",
        bench.log()
    );
}

const ACCEPT_FAILED: &str = r#"bearer_proxy_connections_rejected_total{reason="accept_failed"}"#;

/// Those who watch are to take nothing from apps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_a_flood_of_the_admin_endpoint() {
    let bench = Bench::start("").await;
    let mut flood = Vec::new();
    for _ in 0..LIMIT {
        flood.push(TcpStream::connect(bench.admin).await.unwrap());
    }
    let open = || {
        fs::read_dir(format!("/proc/{}/fd", bench.running.0.id()))
            .unwrap()
            .count()
    };
    eventually("admin has what is for it", async || open() >= 32).await;
    for _ in 0..PLACES as usize {
        bench.serves().await;
    }
    drop(flood);
    assert_eq!(bench.metric(ACCEPT_FAILED).await, 0.0);
}

/// Whoever runs the machine may take descriptors away while the program runs, and the machine may have none left.
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
    let scraper = TcpStream::connect(bench.admin).await.unwrap();
    bench
        .at_rest(tokio::time::sleep(Duration::from_secs(2)))
        .await; // The time over which is measured.
    limited(LIMIT);
    drop((flood, scraper));
    bench.serves().await;
    let failed = bench.metric(ACCEPT_FAILED).await;
    let told = bench
        .log()
        .lines()
        .filter(|line| line.contains("cannot accept connections"))
        .count();
    assert!(
        told > 0 && failed > told as f64,
        "told {told} times of {failed}"
    );
    bench.is_refreshed().await;
    bench.running.signal(rustix::process::Signal::TERM);
    assert_eq!(
        bench.running.ended().await.code(),
        Some(0),
        "{}",
        bench.log()
    );
}

/// Each stream of HTTP/2 may need a connection of its own, so apps with few connections could ask for many descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_a_flood_of_streams() {
    let bench = Bench::start("connect_timeout = \"1s\"\n").await;
    bench.answers.send_replace(false);
    let mut streams = JoinSet::new();
    for _ in 0..4 {
        let stream = TokioIo::new(TcpStream::connect(bench.address).await.unwrap());
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
    bench.answers.send_replace(true);
    while let Some(answer) = streams.join_next().await {
        assert_eq!(answer.unwrap().status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_give_way_to_those_that_are_needed() {
    let other = scripted(|_, mut stream| async move {
        while !read_head(&mut stream).await?.is_empty() {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
                .await?;
        }
        Ok(())
    })
    .await;
    let route = format!(
        "[upstreams.other]\nendpoints = [\"http://{other}\"]\n[[route]]\nprefix = \"/other\"\nupstream = \"other\"\n"
    );
    let bench = Bench::start(&route).await;
    bench.answers.send_replace(false);
    let mut apps = bench.flood(PLACES as usize).await;
    eventually("each has a connection", async || {
        bench.open().await == (PLACES, PLACES)
    })
    .await;
    bench.answers.send_replace(true);
    for app in &mut apps {
        assert!(read_head(app).await.unwrap().starts_with("HTTP/1.1 200"));
    }
    eventually("all wait for their next request", async || {
        bench.open().await == (PLACES, 0.0)
    })
    .await;
    for app in &mut apps {
        app.write_all(b"GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
    }
    for app in &mut apps {
        let head = read_head(app).await.unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200") && head.contains("Content-Length: 5"),
            "{head}"
        );
    }
}
