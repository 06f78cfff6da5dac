//! The program from the user's side: exit codes, one clear line for each mistake, signals.
#![cfg(unix)]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::Stdio,
    sync::Arc,
};

use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::common::{
    LIMIT, cloud, eventually, get, picky,
    process::{Program, Running, free_port, listens, program, run},
    raw, send, text_at,
    upstream::{Request, Upstream, grant, oauth_error, ok, response, silence},
};

#[test]
fn a_bad_command_line_is_64_and_help_is_fine() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["runn"][..],
        &["run", "--nonsense"],
        &["status", "--live", "--json"],
    ] {
        let (code, _, error) = run(folder.path(), arguments);
        assert_eq!(code, 64, "{arguments:?}");
        assert!(!error.is_empty());
    }
    for command in [
        "run", "init", "check", "login", "status", "demo", "simulate",
    ] {
        let (code, help, _) = run(folder.path(), &[command, "--help"]);
        assert_eq!(code, 0);
        assert!(
            help.contains("Example"),
            "{command} --help shows no example:\n{help}"
        );
    }
}

#[test]
fn a_bad_configuration_is_78_and_names_every_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[proxy]\nlisten = [\"127.0.0.1\"]\n[upstream]\nendpoints = [\"cloud.example.com\"]\n\
                [token]\nclient_idd = \"a\"\nclient_secret_file = \"absent\"\nrefresh_token = \"r\"\nwait = \"soon\"\n";
    fs::write(folder.path().join("proxy.toml"), text).unwrap();
    for command in ["run", "check"] {
        let (code, out, error) = run(folder.path(), &[command]);
        assert_eq!((code, out.as_str()), (78, ""), "{error}");
        for expected in [
            "proxy.toml:2:",
            "proxy.listen",
            "proxy.toml:4:",
            "upstream.endpoints",
            "proxy.toml:6:",
            "client_idd",
            "proxy.toml:7:",
            "token.client_secret_file",
            "proxy.toml:9:",
            "token.wait",
        ] {
            assert!(
                error.contains(expected),
                "{expected} is missing in:\n{error}"
            );
        }
        assert!(
            error.lines().all(|line| line.contains("proxy.toml:")),
            "not one line per mistake:\n{error}"
        );
        assert!(!error.contains("panicked") && !error.contains("RUST_BACKTRACE"));
    }
}

#[test]
fn check_says_that_there_are_no_mistakes() {
    let program = Program::with_state("http://127.0.0.1:1", "");
    program.make_private("proxy.toml");
    let (code, out, error) = program.run(&["check"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.contains("no mistakes"), "{out}");
    assert!(!program.path("state").exists(), "check created files");
}

#[test]
fn init_writes_a_private_file_once() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "init",
        "--cloud",
        "https://cloud.example.com",
        "--client-id",
        "my-app",
    ];
    let (code, out, _) = run(folder.path(), &arguments);
    assert_eq!(code, 0);
    assert!(
        out.contains("client secret")
            && out.contains("redirect URI")
            && out.contains("/api/token.do?"),
        "{out}"
    );
    let file = folder.path().join("proxy.toml");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("https://cloud.example.com") && text.contains("my-app"));
    let (code, _, error) = run(folder.path(), &["check"]);
    assert_eq!(code, 78);
    assert_eq!(error.lines().count(), 2, "the unfilled fields:\n{error}");
    assert!(
        error.lines().all(|line| line.contains("not filled in yet")),
        "{error}"
    );
    let (code, _, error) = run(folder.path(), &["init"]);
    assert_eq!((code, error.lines().count()), (1, 1));
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        text,
        "the file was overwritten"
    );
    assert_eq!(run(folder.path(), &["init", "--cloud", "cloud"]).0, 64);
}

#[test]
fn a_refresh_token_file_that_was_removed_after_its_use_is_no_mistake() {
    let removed = "token.refresh_token_file = \"gone\"\n";
    let program = Program::with_state("http://127.0.0.1:1", removed);
    assert_eq!(program.run(&["check"]).0, 78, "there are no tokens yet");
    fs::create_dir(program.path("state")).unwrap();
    program.write("state/token.json", "{\"format\": 1}");
    program.make_private("state/token.json");
    let (code, _, error) = program.run(&["check"]);
    assert_eq!(code, 0, "{error}");
    assert!(
        error.contains("token.refresh_token_file") && error.contains("the stored tokens are used"),
        "{error}"
    );
}

#[test]
fn init_writes_where_config_says() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = run(folder.path(), &["init", "--config", "other.toml"]);
    assert_eq!(code, 0);
    assert!(out.contains("other.toml") && folder.path().join("other.toml").exists());
    let named = program(folder.path())
        .arg("init")
        .env("BEARER_PROXY_CONFIG", "third.toml")
        .output()
        .unwrap();
    assert!(named.status.success() && folder.path().join("third.toml").exists());
    assert!(!folder.path().join("proxy.toml").exists());
    for command in ["demo", "simulate"] {
        assert_eq!(
            run(folder.path(), &[command, "--config", "other.toml"]).0,
            64
        );
    }
}

/// A health check needs only the admin endpoint's address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_ignores_other_mistakes() {
    let cloud = cloud().await;
    let program = Program::new(&cloud, "");
    let _running = program.start();
    listens(program.admin).await;
    program.configure(
        &cloud,
        "token.client_secret_file = \"gone\"\nlog.levle = 1\n",
    );
    assert_eq!(program.run(&["check"]).0, 78);
    assert_eq!(program.run(&["status", "--live"]).0, 0);
    program.write("proxy.toml", "[admin]\nlisten = \"nowhere\"\n");
    let (code, _, error) = program.run(&["status"]);
    assert_eq!((code, error.lines().count()), (78, 1), "{error}");
}

/// The program must not spend the refresh token if it cannot store the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_file_that_cannot_be_written_stops_the_start_before_a_token_is_spent() {
    let cloud = Upstream::always(grant("token", 3600)).start().await;
    // Even root cannot create a file there.
    let state = "token.state_file = \"/proc/self/token.json\"\n";
    let program = Program::new(&cloud.origin(), state);
    let (code, _, error) = program.run(&["run"]);
    assert!(code == 78 || code == 1, "{code}: {error}");
    assert!(
        error.contains("/proc/self") && !error.contains("panicked"),
        "{error}"
    );
    assert_eq!(cloud.connections(), 0);
}

#[test]
fn an_occupied_port_is_one_clear_line_and_the_state_is_not_touched() {
    let program = Program::with_state("http://127.0.0.1:1", "");
    let _occupant = TcpListener::bind(program.address).unwrap();
    let (code, _, error) = program.run(&["run"]);
    assert_eq!(code, 1);
    let lines: Vec<_> = error
        .lines()
        .filter(|line| !line.contains("WARN") && !line.contains("\"level\""))
        .collect();
    assert_eq!(lines.len(), 1, "{error}");
    assert!(
        lines[0].contains(&program.address.to_string()) && lines[0].contains("another process"),
        "{error}"
    );
    assert!(!program.path("state").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_instance_does_not_start() {
    let program = Program::new(&cloud().await, "");
    let _first = program.start();
    listens(program.address).await;
    let (code, _, error) = program.run(&["run"]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("another process listens there"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_and_sigint_finish_requests_in_flight_and_exit_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let (release, released) = watch::channel(false);
        let late = ok("late").after(move || {
            let mut released = released.clone();
            async move { drop(released.wait_for(|released| *released).await) }
        });
        let cloud = Upstream::always(late).issuing().start().await;
        let program = Program::with_state(&cloud.origin(), "");
        let mut running = program.start_ready().await;
        let address = program.address;
        let in_flight = tokio::spawn(async move { send(address, get("/slow")).await });
        eventually("the request is in flight", async || {
            program.metric("bearer_proxy_requests_in_flight").await == 1.0
        })
        .await;
        running.signal(signal);
        eventually("the program is not ready", async || {
            send(program.admin, get("/readyz")).await.status() == 503
        })
        .await;
        release.send_replace(true);
        let response = tokio::time::timeout(LIMIT, in_flight)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.body(), "late");
        assert_eq!(running.ended().await.code(), Some(0));
        assert!(program.read("state/token.json").contains("next"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_distinguishes_ready_not_ready_and_unreachable() {
    let refusing = Upstream::always(response("500 No", "", "")).start().await;
    let program = Program::new(&refusing.origin(), "");
    assert_eq!(program.run(&["status"]).0, 2);
    assert_eq!(program.run(&["status", "--live"]).0, 1);
    let not_ready = program.start();
    listens(program.admin).await;
    assert_eq!(program.run(&["status"]).0, 1);
    assert_eq!(program.run(&["status", "--live"]).0, 0);
    drop(not_ready);
    let program = Program::new(&cloud().await, "");
    let _ready = program.start();
    eventually("the program is ready", async || {
        program.run(&["status"]).0 == 0
    })
    .await;
    let (_, json, _) = program.run(&["status", "--json"]);
    let status: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["credentials"][0]["state"], "fresh");
    let (_, text, _) = program.run(&["status"]);
    assert!(text.contains("token default: fresh"), "{text}");
}

/// A program in front of the cloud of `picky`, with its refresh token in a file.
async fn with_refresh_token_in_a_file(refresh_token: &str) -> Program {
    let file = "token.refresh_token_file = \"seed\"\n";
    let program = Program::with_state(&picky().await, file);
    program.write("seed", refresh_token);
    program
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_credential_recovers_when_its_refresh_token_file_changes_and_survives_sighup() {
    let program = with_refresh_token_in_a_file("bad").await;
    let mut running = program.start();
    listens(program.admin).await;
    let is_refused = async || program.status().await.contains("refresh_token_refused");
    eventually("the refresh token is refused", is_refused).await;
    running.signal(Signal::HUP);
    eventually("the program logs the signal", async || {
        program.log().contains("SIGHUP")
    })
    .await;
    assert!(is_refused().await);
    program.write("seed", "good");
    program.ready().await;
    running.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_new_refresh_token_is_reported_and_the_old_chain_goes_on() {
    let program = with_refresh_token_in_a_file("good").await;
    let _running = program.start_ready().await;
    let refused = async || {
        let (_, text, _) = program.run(&["status"]);
        let metric = r#"bearer_proxy_token_seed_refused{credential="default"}"#;
        [
            program.metric(metric).await == 1.0,
            program.status().await.contains(r#""seed_refused": true"#),
            text.contains("NOT TAKEN"),
        ]
    };
    assert_eq!(refused().await, [false; 3]);
    program.write("seed", "bad");
    eventually("the refusal is reported", async || {
        refused().await == [true; 3]
    })
    .await;
    assert_eq!(send(program.admin, get("/readyz")).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_during_a_refresh_is_detected_at_the_next_start() {
    let called = Arc::new(Notify::new());
    let call = Arc::clone(&called);
    let cloud = Upstream::always(move |request: &Request| {
        match (request.number, &*request.refresh_token()) {
            (0, _) => {
                call.notify_one();
                silence()
            }
            (_, "seed") => grant("token", 3600),
            _ => oauth_error("invalid_grant"),
        }
    })
    .start()
    .await;
    let program = Program::with_state(&cloud.origin(), "");
    let state = || program.read("state/token.json");
    let mut killed = program.start();
    tokio::time::timeout(LIMIT, called.notified())
        .await
        .unwrap();
    killed.signal(Signal::KILL);
    killed.ended().await;
    assert!(
        state().contains("\"spends\"") && !state().contains("seed"),
        "stored before the call, and as a hash"
    );
    let _running = program.start_ready().await;
    assert!(!state().contains("\"spends\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_alone_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = cloud().await;
    let port = free_port();
    let mut command = program(folder.path());
    command
        .env("BEARER_PROXY__PROXY__LISTEN", format!("127.0.0.1:{port}"))
        .env("BEARER_PROXY__UPSTREAM__ENDPOINTS", &cloud)
        .env("BEARER_PROXY__TOKEN__CLIENT_ID", "demo")
        .env("BEARER_PROXY__TOKEN__CLIENT_SECRET", "secret")
        .env("BEARER_PROXY__TOKEN__REFRESH_TOKEN", "seed");
    let _running = Running(command.stderr(Stdio::null()).spawn().unwrap());
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    listens(address).await;
    assert_eq!(send(address, get("/")).await.status(), 200);
}

/// A second report must be logged without other traffic: the worker's ticker does not run in the
/// meantime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_use_tls_is_logged_each_second() {
    let program = Program::new("", "");
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    program.write("own.pem", own.cert.pem());
    program.write("own.key", own.signing_key.serialize_pem());
    let listener = format!(
        "proxy.workers = 1\n[[listener]]\naddress = \"{}\"\ntls = {{ cert_file = \"own.pem\", key_file = \"own.key\" }}\n",
        program.address
    );
    program.configure(&cloud().await, &listener);
    let _running = program.start();
    listens(program.address).await;
    eventually("two warnings are logged", async || {
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        raw(program.address, request, LIMIT).await;
        let log = program.log();
        log.lines()
            .filter(|line| line.contains("does not use TLS") && line.contains("\"peer\""))
            .count()
            > 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_log_names_the_client_and_no_query() {
    let client = "log.access = \"all\"\n[[client]]\nname = \"backup\"\nkey = \"key-of-the-backup\"\nheader = \"x-key\"\nrate = \"1/h\"\n";
    let program = Program::new(&cloud().await, client);
    let _running = program.start();
    listens(program.address).await;
    for key in ["key-of-the-backup", "key-of-another", "key-of-the-backup"] {
        let mut request = get("/some/file?ticket=s3cret");
        request.headers_mut().insert("x-key", key.parse().unwrap());
        send(program.address, request).await;
    }
    let log = || program.log();
    let requests = || -> Vec<Value> {
        let lines = log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect::<Vec<_>>();
        lines
            .into_iter()
            .filter(|line: &Value| line["target"] == "bearer_proxy::access")
            .collect()
    };
    eventually("all requests are logged", async || requests().len() == 3).await;
    let [known, stranger, refused] = &requests()[..] else {
        panic!("{}", log())
    };
    let fields = |line: &Value| {
        ["client", "method", "path", "status"].map(|field| {
            line["fields"]
                .get(field)
                .unwrap_or(&line[field])
                .to_string()
        })
    };
    assert_eq!(
        fields(known),
        ["\"backup\"", "\"GET\"", "\"/some/file\"", "200"],
        "{known}"
    );
    assert_eq!(
        fields(stranger),
        ["null", "\"GET\"", "\"/some/file\"", "401"],
        "{stranger}"
    );
    assert_eq!(fields(refused)[3], "429", "{refused}");
    let is_named =
        |line: &str| line.contains(r#""client":"backup""#) && line.contains(r#""rule":"rate""#);
    assert!(log().lines().any(is_named), "{}", log());
    assert!(
        !log().contains("s3cret") && !log().contains("key-of-"),
        "{}",
        log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_and_every_value_of_its_labels_is_documented() {
    let program = Program::new(&cloud().await, "");
    let _running = program.start();
    listens(program.admin).await;
    let metrics = text_at(program.admin, "/metrics").await;
    let documented = include_str!("../../METRICS.md");
    let is_documented = |word: &str| documented.contains(&format!("`{word}`"));
    let names = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE bearer_proxy_")?.split(' ').next());
    let values = metrics
        .lines()
        .filter_map(|line| line.split_once('{')?.1.split_once('}'))
        .flat_map(|(labels, _)| {
            let labels = labels.split(',').filter_map(|label| label.split_once('='));
            let listed = labels.filter(|(label, _)| {
                ["reason", "outcome", "error", "state", "limit"].contains(label)
            });
            listed.map(|(_, value)| value.trim_matches('"'))
        });
    let words: Vec<_> = names.chain(values).collect();
    assert!(words.len() > 60, "{metrics}");
    let missing: Vec<_> = words
        .into_iter()
        .filter(|word| !is_documented(word))
        .collect();
    assert!(missing.is_empty(), "not in METRICS.md: {missing:?}");
}
