//! The program as its users start it: exit codes, one clear line for each mistake, signals.
#![cfg(unix)]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Output, Stdio},
};

use tokio::io::AsyncWriteExt as _;

use crate::common::{
    LIMIT, cloud, eventually, get, picky,
    process::{Running, free_address, free_port, listens, program},
    read_head, read_head_granting, ready, scripted, send, text_at,
};

fn run(folder: &Path, arguments: &[&str]) -> Output {
    program(folder).args(arguments).output().unwrap()
}

fn words(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A configuration that works, as far as its cloud does.
fn configuration(folder: &Path, cloud: &str) -> (SocketAddr, SocketAddr) {
    let (address, admin) = (free_address(), free_address());
    let text = format!(
        "[proxy]\nlisten = [\"{address}\"]\n[upstream]\nendpoints = [\"{cloud}\"]\n\
         [token]\nclient_id = \"demo\"\nclient_secret = \"secret\"\nrefresh_token = \"seed\"\nstate_file = \"state/token.json\"\n\
         [admin]\nlisten = \"{admin}\"\n"
    );
    fs::write(folder.join("proxy.toml"), text).unwrap();
    (address, admin)
}

/// Changes the configuration.
fn amend(folder: &Path, from: &str, to: &str) {
    let file = folder.join("proxy.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(file, text.replace(from, to)).unwrap();
}

fn start(folder: &Path) -> Running {
    Running(program(folder).stderr(Stdio::piped()).spawn().unwrap())
}

#[test]
fn a_bad_command_line_is_64_and_help_is_fine() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["runn"][..],
        &["run", "--nonsense"],
        &["status", "--live", "--json"],
    ] {
        let (code, _, error) = words(&run(folder.path(), arguments));
        assert_eq!(code, 64, "{arguments:?}");
        assert!(!error.is_empty());
    }
    for command in [
        "run", "init", "check", "login", "status", "demo", "simulate",
    ] {
        let (code, help, _) = words(&run(folder.path(), &[command, "--help"]));
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
        let (code, out, error) = words(&run(folder.path(), &[command]));
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
            "not one line a mistake:\n{error}"
        );
        assert!(!error.contains("panicked") && !error.contains("RUST_BACKTRACE"));
    }
}

#[test]
fn check_says_that_there_are_no_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    configuration(folder.path(), "http://127.0.0.1:1");
    let (code, out, error) = words(&run(folder.path(), &["check"]));
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.contains("no mistakes"), "{out}");
    assert!(
        !folder.path().join("state").exists(),
        "check created something"
    );
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
    let (code, out, _) = words(&run(folder.path(), &arguments));
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
    let (code, _, error) = words(&run(folder.path(), &["check"]));
    assert_eq!(code, 78);
    assert_eq!(
        error.lines().count(),
        2,
        "what is not filled in yet:\n{error}"
    );
    assert!(
        error.lines().all(|line| line.contains("not filled in yet")),
        "{error}"
    );
    let (code, _, error) = words(&run(folder.path(), &["init"]));
    assert_eq!((code, error.lines().count()), (1, 1));
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        text,
        "it was overwritten"
    );
    assert_eq!(
        words(&run(folder.path(), &["init", "--cloud", "cloud"])).0,
        64
    );
}

#[test]
fn a_seed_that_was_taken_away_after_its_use_is_no_mistake() {
    let folder = tempfile::tempdir().unwrap();
    configuration(folder.path(), "http://127.0.0.1:1");
    amend(
        folder.path(),
        "refresh_token = \"seed\"",
        "refresh_token_file = \"gone\"",
    );
    assert_eq!(
        words(&run(folder.path(), &["check"])).0,
        78,
        "there are no tokens yet"
    );
    fs::create_dir(folder.path().join("state")).unwrap();
    fs::write(folder.path().join("state/token.json"), "{}").unwrap();
    let (code, _, error) = words(&run(folder.path(), &["check"]));
    assert_eq!(code, 0, "{error}");
    assert!(
        error.contains("token.refresh_token_file") && error.contains("the stored tokens are used"),
        "{error}"
    );
}

#[test]
fn init_writes_where_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = words(&run(folder.path(), &["init", "--config", "other.toml"]));
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
            words(&run(folder.path(), &[command, "--config", "other.toml"])).0,
            64
        );
    }
}

/// A health check needs the admin endpoint's address and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_does_not_mind_what_else_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (_, admin) = configuration(folder.path(), &cloud().await);
    let _running = start(folder.path());
    listens(admin).await;
    amend(
        folder.path(),
        "client_secret = \"secret\"",
        "client_secret_file = \"gone\"",
    );
    amend(folder.path(), "[admin]\n", "[log]\nlevle = 1\n[admin]\n");
    assert_eq!(run(folder.path(), &["check"]).status.code(), Some(78));
    assert_eq!(
        run(folder.path(), &["status", "--live"]).status.code(),
        Some(0)
    );
    fs::write(
        folder.path().join("proxy.toml"),
        "[admin]\nlisten = \"nowhere\"\n",
    )
    .unwrap();
    let (code, _, error) = words(&run(folder.path(), &["status"]));
    assert_eq!((code, error.lines().count()), (78, 1), "{error}");
}

/// The refresh token must not be spent if its successor cannot be stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_file_that_cannot_be_written_stops_the_start_before_a_token_is_spent() {
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&calls);
    let cloud = scripted(move |_, mut stream| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            stream
                .write_all(crate::common::grant("token", 3600).as_bytes())
                .await
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    configuration(folder.path(), &format!("http://{cloud}"));
    // A place where not even root can make a file.
    amend(folder.path(), "state/token.json", "/proc/self/token.json");
    let (code, _, error) = words(&run(folder.path(), &["run"]));
    assert!(code == 78 || code == 1, "{code}: {error}");
    assert!(
        error.contains("/proc/self") && !error.contains("panicked"),
        "{error}"
    );
    assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn an_occupied_port_is_one_clear_line_and_the_state_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let (address, _) = configuration(folder.path(), "http://127.0.0.1:1");
    let _occupant = TcpListener::bind(address).unwrap();
    let (code, _, error) = words(&run(folder.path(), &["run"]));
    assert_eq!(code, 1);
    let lines: Vec<_> = error
        .lines()
        .filter(|line| !line.contains("WARN") && !line.contains("\"level\""))
        .collect();
    assert_eq!(lines.len(), 1, "{error}");
    assert!(
        lines[0].contains(&address.to_string()) && lines[0].contains("another process"),
        "{error}"
    );
    assert!(!folder.path().join("state").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_instance_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let (address, _) = configuration(folder.path(), &cloud().await);
    let _first = start(folder.path());
    listens(address).await;
    let (code, _, error) = words(&run(folder.path(), &["run"]));
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("another process listens there"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_signals_finish_what_is_under_way_and_exit_0() {
    use rustix::process::Signal;

    for signal in [Signal::TERM, Signal::INT] {
        let (release, released) = tokio::sync::watch::channel(false);
        let cloud = scripted(move |_, mut stream| {
            let mut released = released.clone();
            async move {
                while !read_head_granting(&mut stream).await?.is_empty() {
                    released
                        .wait_for(|released| *released)
                        .await
                        .map_err(std::io::Error::other)?;
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
                        .await?;
                }
                Ok(())
            }
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let (address, admin) = configuration(folder.path(), &format!("http://{cloud}"));
        let mut running = start(folder.path());
        listens(admin).await;
        ready(admin).await;
        let under_way = tokio::spawn(async move { send(address, get("/slow")).await });
        let in_flight = async || {
            text_at(admin, "/metrics")
                .await
                .contains("bearer_proxy_requests_in_flight 1.0")
        };
        eventually("the request is under way", in_flight).await;
        running.signal(signal);
        eventually("it is not ready any more", async || {
            send(admin, get("/readyz")).await.status() == 503
        })
        .await;
        release.send_replace(true);
        let answer = tokio::time::timeout(LIMIT, under_way)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.body()[..]),
            (200, &b"late"[..])
        );
        assert_eq!(running.ended().await.code(), Some(0));
        assert!(
            fs::read_to_string(folder.path().join("state/token.json"))
                .unwrap()
                .contains("next")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_ready_not_ready_and_unreachable_apart() {
    let folder = tempfile::tempdir().unwrap();
    let refusing = scripted(|_, mut stream| async move {
        read_head(&mut stream).await?;
        stream
            .write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
            .await
    })
    .await;
    let (_, admin) = configuration(folder.path(), &format!("http://{refusing}"));
    assert_eq!(run(folder.path(), &["status"]).status.code(), Some(2));
    assert_eq!(
        run(folder.path(), &["status", "--live"]).status.code(),
        Some(1)
    );
    let not_ready = start(folder.path());
    listens(admin).await;
    assert_eq!(run(folder.path(), &["status"]).status.code(), Some(1));
    assert_eq!(
        run(folder.path(), &["status", "--live"]).status.code(),
        Some(0)
    );
    drop(not_ready);
    let (_, admin) = configuration(folder.path(), &cloud().await);
    let _ready = start(folder.path());
    listens(admin).await;
    eventually("it is ready", async || {
        run(folder.path(), &["status"]).status.code() == Some(0)
    })
    .await;
    let (_, json, _) = words(&run(folder.path(), &["status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["credentials"][0]["state"], "fresh");
    let (_, text, _) = words(&run(folder.path(), &["status"]));
    assert!(text.contains("token default: fresh"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_proxy_comes_back_when_its_refresh_token_file_changes_and_survives_a_hangup() {
    let folder = tempfile::tempdir().unwrap();
    let (_, admin) = configuration(folder.path(), &picky().await);
    amend(
        folder.path(),
        "refresh_token = \"seed\"",
        "refresh_token_file = \"seed\"",
    );
    fs::write(folder.path().join("seed"), "bad").unwrap();
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let mut running = Running(program(folder.path()).stderr(log).spawn().unwrap());
    listens(admin).await;
    let status = async || text_at(admin, "/status").await;
    eventually("it is dead", async || {
        status().await.contains("refresh_token_refused")
    })
    .await;
    running.signal(rustix::process::Signal::HUP);
    let log = || fs::read_to_string(folder.path().join("log")).unwrap();
    eventually("it hears the hangup", async || log().contains("SIGHUP")).await;
    assert!(status().await.contains("refresh_token_refused"));
    fs::write(folder.path().join("seed"), "good").unwrap();
    ready(admin).await;
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_new_refresh_token_is_told_everywhere_and_the_old_chain_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (_, admin) = configuration(folder.path(), &picky().await);
    amend(
        folder.path(),
        "refresh_token = \"seed\"",
        "refresh_token_file = \"seed\"",
    );
    fs::write(folder.path().join("seed"), "good").unwrap();
    let _running = start(folder.path());
    listens(admin).await;
    ready(admin).await;
    let refused = async || {
        let (_, words, _) = words(&run(folder.path(), &["status"]));
        let metric = r#"bearer_proxy_token_seed_refused{credential="default"} 1.0"#;
        [
            text_at(admin, "/metrics").await.contains(metric),
            text_at(admin, "/status")
                .await
                .contains(r#""seed_refused": true"#),
            words.contains("NOT TAKEN"),
        ]
    };
    assert_eq!(refused().await, [false; 3]);
    fs::write(folder.path().join("seed"), "bad").unwrap();
    eventually("it is told", async || refused().await == [true; 3]).await;
    assert_eq!(send(admin, get("/readyz")).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_a_refresh_it_knows_so_and_goes_on() {
    let (call, mut called) = tokio::sync::watch::channel(false);
    let cloud = scripted(move |number, mut stream| {
        let call = call.clone();
        async move {
            let head = read_head(&mut stream).await?;
            if number == 0 {
                call.send_replace(true);
                // The answer never comes.
                return read_head(&mut stream).await.map(drop);
            }
            let answer = if head.contains("refresh_token=seed ") {
                crate::common::grant("token", 3600)
            } else {
                "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n".to_owned()
            };
            stream.write_all(answer.as_bytes()).await
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let (_, admin) = configuration(folder.path(), &format!("http://{cloud}"));
    let state = || fs::read_to_string(folder.path().join("state/token.json")).unwrap_or_default();
    let mut killed = start(folder.path());
    tokio::time::timeout(LIMIT, called.wait_for(|called| *called))
        .await
        .unwrap()
        .unwrap();
    killed.signal(rustix::process::Signal::KILL);
    killed.ended().await;
    assert!(
        state().contains("\"spends\"") && !state().contains("seed"),
        "stored before the call, and as a hash"
    );
    let _running = start(folder.path());
    listens(admin).await;
    ready(admin).await;
    assert!(!state().contains("\"spends\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_alone_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = cloud().await;
    let port = free_port();
    let child = program(folder.path())
        .env("BEARER_PROXY__PROXY__LISTEN", format!("127.0.0.1:{port}"))
        .env("BEARER_PROXY__UPSTREAM__ENDPOINTS", &cloud)
        .env("BEARER_PROXY__TOKEN__CLIENT_ID", "demo")
        .env("BEARER_PROXY__TOKEN__CLIENT_SECRET", "secret")
        .env("BEARER_PROXY__TOKEN__REFRESH_TOKEN", "seed")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _running = Running(child);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    listens(address).await;
    assert_eq!(send(address, get("/")).await.status(), 200);
}

/// A second report has to come however little else happens: the worker's ticker stands still meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_speak_tls_is_told_of_each_second() {
    let folder = tempfile::tempdir().unwrap();
    let (address, _) = configuration(folder.path(), &cloud().await);
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("own.pem"), own.cert.pem()).unwrap();
    fs::write(
        folder.path().join("own.key"),
        own.signing_key.serialize_pem(),
    )
    .unwrap();
    let listener = format!(
        "workers = 1\n[[listener]]\naddress = \"{address}\"\ntls = {{ cert_file = \"own.pem\", key_file = \"own.key\" }}\n"
    );
    amend(
        folder.path(),
        &format!("listen = [\"{address}\"]\n"),
        &listener,
    );
    let log = folder.path().join("log");
    let _running = Running(
        program(folder.path())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap(),
    );
    listens(address).await;
    eventually("two are told", async || {
        crate::common::raw(address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", LIMIT).await;
        let told = fs::read_to_string(&log).unwrap();
        told.lines()
            .filter(|line| line.contains("does not use TLS") && line.contains("\"peer\""))
            .count()
            > 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_whose_a_request_was_and_nothing_of_its_query() {
    let folder = tempfile::tempdir().unwrap();
    let (address, _) = configuration(folder.path(), &cloud().await);
    let more = "[log]\naccess = \"all\"\n[[client]]\nname = \"backup\"\nkey = \"key-of-the-backup\"\nheader = \"x-key\"\nrate = \"1/h\"\n";
    let path = folder.path().join("proxy.toml");
    fs::write(&path, fs::read_to_string(&path).unwrap() + more).unwrap();
    let log = folder.path().join("log");
    let _running = Running(
        program(folder.path())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap(),
    );
    listens(address).await;
    for key in ["key-of-the-backup", "key-of-somebody", "key-of-the-backup"] {
        let mut request = get("/some/file?ticket=s3cret");
        request.headers_mut().insert("x-key", key.parse().unwrap());
        send(address, request).await;
    }
    let told = || fs::read_to_string(&log).unwrap();
    let requests = || -> Vec<serde_json::Value> {
        let lines = told()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect::<Vec<_>>();
        lines
            .into_iter()
            .filter(|line: &serde_json::Value| line["target"] == "bearer_proxy::access")
            .collect()
    };
    eventually("all are told", async || requests().len() == 3).await;
    let [known, stranger, refused] = &requests()[..] else {
        panic!("{}", told())
    };
    let fields = |line: &serde_json::Value| {
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
    assert!(told().lines().any(is_named), "{}", told());
    assert!(
        !told().contains("s3cret") && !told().contains("key-of-"),
        "{}",
        told()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_and_every_value_of_its_labels_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    let (address, admin) = configuration(folder.path(), &cloud().await);
    let _running = start(folder.path());
    listens(address).await;
    let metrics = text_at(admin, "/metrics").await;
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
            let listed =
                labels.filter(|(label, _)| ["reason", "outcome", "error", "state"].contains(label));
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
