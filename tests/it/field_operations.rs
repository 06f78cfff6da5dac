//! Faults that operators reported of proxies like this one: logs, signals, output.
#![cfg(unix)]

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::Signal;

use crate::common::{
    Client, eventually, get, metric,
    process::{Running, Standing, free_address, listens, program},
    ready, send,
    upstream::{Upstream, ok},
};

/// A configuration with `more` behind it, in front of nothing.
fn configure(folder: &Path, more: &str) -> std::net::SocketAddr {
    let address = free_address();
    let text = format!(
        "[proxy]\nlisten = [\"{address}\"]\n[upstream]\nendpoints = [\"http://127.0.0.1:1\"]\n[token]\n\
         client_id = \"demo\"\nclient_secret = \"secret\"\nrefresh_token = \"seed\"\n{more}\n"
    );
    fs::write(folder.join("proxy.toml"), text).unwrap();
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c1_a_log_that_nothing_reads_blocks_no_request_and_no_shutdown() {
    let upstream = Upstream::new().on("/x", ok("body")).issuing().start().await;
    let folder = tempfile::tempdir().unwrap();
    let (address, admin) = (free_address(), free_address());
    let text = format!(
        "[proxy]\nlisten = [\"{address}\"]\n[upstream]\nendpoints = [\"http://{}\"]\n[token]\n\
         client_id = \"demo\"\nclient_secret = \"secret\"\nrefresh_token = \"seed\"\n\
         [admin]\nlisten = \"{admin}\"\n[log]\naccess = \"all\"\nformat = \"json\"\n",
        upstream.address
    );
    fs::write(folder.path().join("proxy.toml"), text).unwrap();
    // A pipe that is open and never read.
    let mut running = Running(
        program(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    listens(admin).await;
    ready(admin).await;
    let mut client = Client::connect(address).await;
    let dropped = async || metric(admin, "bearer_proxy_log_lines_dropped_total").await;
    eventually("lines are dropped", async || {
        for _ in 0..500 {
            assert_eq!(client.send(get("/x")).await.unwrap().status(), 200);
        }
        dropped().await > 0.0
    })
    .await;
    running.signal(Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[test]
fn field_c5_an_error_that_ends_the_process_obeys_the_format_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let address = configure(folder.path(), "[log]\nformat = \"json\"");
    let _occupant = TcpListener::bind(address).unwrap();
    let output = program(folder.path()).arg("run").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let last = lines.last().unwrap();
    assert_eq!(last["level"], "ERROR");
    let message = last["message"].as_str().unwrap();
    assert!(message.contains(&address.to_string()), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c7_sigquit_ends_in_order_and_sigusr_is_ignored() {
    let upstream = Upstream::new().on("/x", ok("body")).issuing().start().await;
    let mut standing = Standing::start(upstream.address, "").await;
    for ignored in [Signal::USR1, Signal::USR2] {
        standing.running.signal(ignored);
        let response = send(standing.address, get("/x")).await;
        assert_eq!(response.status(), 200);
    }
    standing.running.signal(Signal::QUIT);
    assert_eq!(standing.running.ended().await.code(), Some(0));
}

#[test]
fn field_c9_no_color_and_dumb_terminals_get_no_colours() {
    for (variables, has_colours) in [
        (&[("TERM", "xterm")][..], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "")], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        // It warns of the variable, and ends since the port is taken.
        let _occupant = TcpListener::bind(configure(folder.path(), "")).unwrap();
        let command = format!("{} run", env!("CARGO_BIN_EXE_bearer-proxy"));
        // `script` gives the program a terminal.
        let output = Command::new("script")
            .args(["--quiet", "--command", &command, "/dev/null"])
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("SHELL", "/bin/sh")
            .env("HTTPS_PROXY", "http://127.0.0.1:1")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("has no effect"), "{text:?}");
        assert_eq!(
            text.contains("\x1b["),
            has_colours,
            "{variables:?}: {text:?}"
        );
    }
}
