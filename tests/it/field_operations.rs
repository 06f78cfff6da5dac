//! Faults that operators reported of proxies like this one: logs, signals, output.
#![cfg(unix)]

use std::{
    net::TcpListener,
    process::{Command, Stdio},
};

use rustix::process::Signal;

use crate::common::{
    Client, eventually, get,
    process::{Program, Running},
    upstream::{Upstream, ok},
};

/// The origin of a cloud that is not there.
const NOWHERE: &str = "http://127.0.0.1:1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c1_a_log_that_nothing_reads_blocks_no_request_and_no_shutdown() {
    let upstream = Upstream::new().on("/x", ok("body")).issuing().start().await;
    let origin = format!("http://{}", upstream.address);
    let program = Program::new(&origin, "log.access = \"all\"\nlog.format = \"json\"");
    // A pipe that is open and never read.
    let mut running = Running(program.command().stderr(Stdio::piped()).spawn().unwrap());
    program.ready().await;
    let mut client = Client::connect(program.address).await;
    eventually("lines are dropped", async || {
        for _ in 0..500 {
            assert_eq!(client.send(get("/x")).await.unwrap().status(), 200);
        }
        program.metric("bearer_proxy_log_lines_dropped_total").await > 0.0
    })
    .await;
    running.terminate().await;
}

#[test]
fn field_c5_an_error_that_ends_the_process_obeys_the_format_of_the_log() {
    let program = Program::new(NOWHERE, "log.format = \"json\"");
    let _occupant = TcpListener::bind(program.address).unwrap();
    let (code, _, text) = program.run(&["run"]);
    assert_eq!(code, 1);
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let last = lines.last().unwrap();
    assert_eq!(last["level"], "ERROR");
    let message = last["message"].as_str().unwrap();
    assert!(message.contains(&program.address.to_string()), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c7_sigquit_ends_in_order_and_sigusr_is_ignored() {
    let upstream = Upstream::new().on("/x", ok("body")).issuing().start().await;
    let program = Program::new(&format!("http://{}", upstream.address), "");
    let mut running = program.start_ready().await;
    for ignored in [Signal::USR1, Signal::USR2] {
        running.signal(ignored);
        assert_eq!(program.get("/x").await, 200);
    }
    running.signal(Signal::QUIT);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[test]
fn field_c9_no_color_and_dumb_terminals_get_no_colours() {
    for (variables, has_colours) in [
        (&[("TERM", "xterm")][..], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "")], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
    ] {
        let program = Program::new(NOWHERE, "");
        // It warns of the variable, and ends since the port is taken.
        let _occupant = TcpListener::bind(program.address).unwrap();
        let command = format!("{} run", env!("CARGO_BIN_EXE_bearer-proxy"));
        // `script` gives the program a terminal.
        let output = Command::new("script")
            .args(["--quiet", "--command", &command, "/dev/null"])
            .current_dir(program.folder.path())
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
