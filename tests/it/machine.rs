//! The program on a faulty machine: a full or failing disk, a wall clock that jumps.
#![cfg(target_os = "linux")]

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use bearer_proxy::{base::clock, cloud::Cloud};
use rustix::process::Signal;

use crate::common::{
    eventually, get,
    process::{Program, Running},
    send, simulated_cloud,
};

/// The program in front of a simulated cloud.
async fn started() -> (Cloud, Program) {
    let cloud = simulated_cloud(clock::system()).await;
    let program = Program::with_state(cloud.origin(), "retry.cooldown = \"100ms\"\n");
    (cloud, program)
}

const STORE_UP: &str = "bearer_proxy_token_store_up";

/// Makes these system calls of a running process fail while the returned process runs.
async fn failing(program: &Program, running: &Running, calls: &str, error: &str) -> Running {
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
        .stderr(fs::File::create(program.path("strace")).unwrap())
        .spawn()
        .expect("strace is needed: scripts/test installs it");
    let strace = Running(child);
    eventually("strace is attached", async || {
        program.read("strace").contains("attached")
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
        let (cloud, program) = started().await;
        let persisted = async || program.credential().await["persisted"] == true;
        let stored = || program.read("state/token.json");
        let running = program.start_ready().await;
        eventually("the token is stored", persisted).await;
        let old = stored();
        let mut strace = failing(&program, &running, calls, error).await;
        program.refresh().await;
        assert_eq!(program.get("/api/echo.do").await, 200);
        assert!(!persisted().await, "{error}");
        assert_eq!(program.metric(STORE_UP).await, 0.0, "{error}");
        let readiness = send(program.admin, get("/readyz")).await.status();
        assert_eq!(readiness, 200, "{error}: served from memory");
        let log = program.log();
        assert!(
            log.contains("ERROR") && log.contains(words),
            "{error}: {log}"
        );
        assert_eq!(stored(), old, "{error}: the old file is not intact");
        strace.signal(Signal::TERM);
        strace.ended().await;
        eventually("the token is stored", persisted).await;
        assert_eq!(program.metric(STORE_UP).await, 1.0);
        assert_ne!(stored(), old);
        drop(running);
        let calls = cloud.issuer_calls();
        let _again = program.start_ready().await;
        assert_eq!(
            cloud.issuer_calls(),
            calls,
            "{error}: the stored token is not used"
        );
        assert_eq!(cloud.families_revoked(), 0);
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
    let (cloud, program) = started().await;
    let offset = program.path("offset");
    let jump = |seconds: i64| fs::write(&offset, format!("{seconds:+}")).unwrap();
    jump(0);
    let start_on_fake_time = async || {
        let mut command = program.command();
        command
            .env("LD_PRELOAD", library.trim())
            .env("FAKETIME_TIMESTAMP_FILE", &offset)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let running = program.start_as(command);
        program.ready().await;
        running
    };
    let mut running = start_on_fake_time().await;
    for (round, days) in [2, -2, 0].into_iter().enumerate() {
        jump(days / 2 * TWO_DAYS);
        assert_eq!(program.get("/api/echo.do").await, 200);
        let credential = program.credential().await;
        assert!(
            credential["expires_in"].as_u64().unwrap() > 3500,
            "{days} days: {credential}"
        );
        assert_eq!(
            cloud.issuer_calls(),
            1 + round as u64,
            "{days} days: the jump caused a refresh"
        );
        // The process uses the new time: its own dates show it.
        program.refresh().await;
        let at = program.credential().await["last_refreshes"][0]["at"]
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
        assert!(program.credential().await["expires_in"].as_u64().unwrap() > 3500);
    }
    // During the same boot, a restart does not depend on the wall clock either.
    for days in [1, -1] {
        running.signal(Signal::TERM);
        running.ended().await;
        jump(days * TWO_DAYS);
        let calls = cloud.issuer_calls();
        running = start_on_fake_time().await;
        assert_eq!(cloud.issuer_calls(), calls, "the stored token is not used");
        let left = Duration::from_secs(program.credential().await["expires_in"].as_u64().unwrap());
        assert!(
            left > Duration::from_secs(3400) && left <= Duration::from_secs(3600),
            "{left:?}"
        );
        assert_eq!(program.get("/api/echo.do").await, 200);
    }
}
