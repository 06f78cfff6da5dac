//! The program on a machine that misbehaves: a disk that fills up or fails, a calendar that jumps.
#![cfg(target_os = "linux")]

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config},
};
use rustix::process::Signal;
use serde_json::Value;

use crate::common::{
    eventually, get, post,
    process::{Running, free_address, listens, program},
    ready, send, text_at,
};

/// A proxy in front of a cloud of its own, with a log.
struct Bench {
    cloud: Cloud,
    folder: tempfile::TempDir,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Bench {
    async fn new() -> Self {
        let cloud = Cloud::start(Config::new("demo", "secret"), clock::system())
            .await
            .unwrap();
        let (address, admin) = (free_address(), free_address());
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[proxy]\nlisten = [\"{address}\"]\n[upstream]\nendpoints = [\"{}\"]\n[token]\nclient_id = \"demo\"\n\
             client_secret = \"secret\"\nrefresh_token = \"{}\"\nstate_file = \"state/token.json\"\n\
             [retry]\ncooldown = \"100ms\"\n[admin]\nlisten = \"{admin}\"\n",
            cloud.origin(),
            cloud.seed(),
        );
        fs::write(folder.path().join("proxy.toml"), text).unwrap();
        Self {
            cloud,
            folder,
            address,
            admin,
        }
    }

    /// Starts the program, changed by `with`, and waits until it is ready.
    async fn start(&self, with: impl FnOnce(&mut Command)) -> Running {
        let mut command = program(self.folder.path());
        command.stderr(fs::File::create(self.folder.path().join("log")).unwrap());
        with(&mut command);
        let running = Running(command.spawn().unwrap());
        listens(self.admin).await;
        ready(self.admin).await;
        running
    }

    async fn credential(&self) -> Value {
        let status: Value =
            serde_json::from_slice(send(self.admin, get("/status")).await.body()).unwrap();
        status["credentials"][0].clone()
    }

    async fn metric(&self, name: &str) -> Option<String> {
        let text = text_at(self.admin, "/metrics").await;
        text.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(' ')
                .map(str::to_owned)
        })
    }

    async fn refresh(&self) {
        let generation = self.credential().await["generation"].as_u64().unwrap();
        eventually("a refresh", async || {
            send(self.admin, post("/token/refresh", "")).await;
            self.credential().await["generation"].as_u64().unwrap() > generation
        })
        .await;
    }

    async fn serves(&self) {
        assert_eq!(send(self.address, get("/api/echo.do")).await.status(), 200);
    }

    fn stored(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("state/token.json")).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

/// Lets these calls of a running process fail, until what is returned is told to end.
async fn failing(running: &Running, calls: &str, error: &str, folder: &Path) -> Running {
    let words = folder.join("strace");
    let child = Command::new("strace")
        .args([
            "-f",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={calls}"),
            "-e",
            &format!("inject={calls}:error={error}"),
        ])
        .args(["-p", &running.0.id().to_string()])
        .stdin(Stdio::null())
        .stderr(fs::File::create(&words).unwrap())
        .spawn()
        .expect("strace is needed: scripts/test installs it");
    let strace = Running(child);
    eventually("strace is attached", async || {
        fs::read_to_string(&words).unwrap().contains("attached")
    })
    .await;
    strace
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_12_a_disk_that_is_full_or_broken_or_read_only() {
    for (calls, error, words) in [
        ("fsync", "ENOSPC", "No space left on device"),
        ("fsync", "EIO", "Input/output error"),
        ("openat", "EROFS", "Read-only file system"),
    ] {
        let bench = Bench::new().await;
        let running = bench.start(|_| {}).await;
        eventually("it is stored", async || {
            bench.credential().await["persisted"] == true
        })
        .await;
        let old = bench.stored();
        let mut strace = failing(&running, calls, error, bench.folder.path()).await;
        bench.refresh().await;
        bench.serves().await;
        assert_eq!(bench.credential().await["persisted"], false, "{error}");
        assert_eq!(
            bench.metric("bearer_proxy_token_store_up").await.as_deref(),
            Some("0.0"),
            "{error}"
        );
        assert_eq!(
            send(bench.admin, get("/readyz")).await.status(),
            200,
            "{error}: served from memory"
        );
        let log = bench.log();
        assert!(
            log.contains("ERROR") && log.contains(words),
            "{error}: {log}"
        );
        assert_eq!(bench.stored(), old, "{error}: the old file is intact");
        strace.signal(Signal::TERM);
        strace.ended().await;
        eventually("it is written", async || {
            bench.credential().await["persisted"] == true
        })
        .await;
        assert_eq!(
            bench.metric("bearer_proxy_token_store_up").await.as_deref(),
            Some("1.0")
        );
        assert_ne!(bench.stored(), old);
        drop(running);
        let calls = bench.cloud.issuer_calls();
        let _again = bench.start(|_| {}).await;
        assert_eq!(
            bench.cloud.issuer_calls(),
            calls,
            "{error}: what was written serves"
        );
        assert_eq!(bench.cloud.families_revoked(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_13_the_calendar_of_a_real_process_jumps() {
    const TWO_DAYS: i64 = 2 * 24 * 3600;
    let shown = Command::new("faketime")
        .args(["-f", "+0", "sh", "-c", "echo $LD_PRELOAD"])
        .output();
    let library = String::from_utf8(
        shown
            .expect("faketime is needed: scripts/test installs it")
            .stdout,
    )
    .unwrap();
    let bench = Bench::new().await;
    let offset = bench.folder.path().join("offset");
    let jump = |seconds: i64| fs::write(&offset, format!("{seconds:+}")).unwrap();
    jump(0);
    let on_false_time = |command: &mut Command| {
        command
            .env("LD_PRELOAD", library.trim())
            .env("FAKETIME_TIMESTAMP_FILE", &offset);
        command
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    };
    let mut running = bench.start(on_false_time).await;
    for (round, days) in [2, -2, 0].into_iter().enumerate() {
        jump(days / 2 * TWO_DAYS);
        bench.serves().await;
        let credential = bench.credential().await;
        assert!(
            credential["expires_in"].as_u64().unwrap() > 3500,
            "{days} days: {credential}"
        );
        assert_eq!(
            bench.cloud.issuer_calls(),
            1 + round as u64,
            "{days} days: a jump is no reason to refresh"
        );
        // By its own dates the process believes in the jump.
        bench.refresh().await;
        let at = bench.credential().await["last_refreshes"][0]["at"]
            .as_str()
            .unwrap()
            .to_owned();
        let at = humantime::parse_rfc3339(&at)
            .unwrap()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(
            (at as i64 - now as i64 - days / 2 * TWO_DAYS).abs() < 120,
            "{days} days: {at} at {now}"
        );
        assert!(bench.credential().await["expires_in"].as_u64().unwrap() > 3500);
    }
    // In the same boot, a restart does not ask the calendar either.
    for days in [1, -1] {
        running.signal(Signal::TERM);
        running.ended().await;
        jump(days * TWO_DAYS);
        let calls = bench.cloud.issuer_calls();
        running = bench.start(on_false_time).await;
        assert_eq!(bench.cloud.issuer_calls(), calls, "the stored token serves");
        let left = Duration::from_secs(bench.credential().await["expires_in"].as_u64().unwrap());
        assert!(
            left > Duration::from_secs(3400) && left <= Duration::from_secs(3600),
            "{left:?}"
        );
        bench.serves().await;
    }
}
