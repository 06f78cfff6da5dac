//! Faults that operators reported of the token store: volumes, processes that share it, copies of
//! secrets.
#![cfg(target_os = "linux")]

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::{Command, Stdio},
};

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config},
};
use serde_json::Value;

use crate::common::{eventually, post, process::Program, send, toml};

/// A cloud that rotates refresh tokens and revokes all tokens at the first reuse.
async fn strict_cloud() -> Cloud {
    let config = Config {
        seeds: vec!["seed".into()],
        ..Config::new("demo", "secret")
    };
    Cloud::start(config, clock::system()).await.unwrap()
}

fn stored(program: &Program) -> Value {
    serde_json::from_str(&program.read("state/token.json")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a12_a_secret_that_is_kept_in_sync_with_the_state_file_revokes_nothing() {
    let cloud = strict_cloud().await;
    let more = "token.refresh_token_file = \"refresh_token\"\nretry.cooldown = \"50ms\"\n";
    let program = Program::with_state(cloud.origin(), more);
    program.write("refresh_token", "seed");
    let _running = program.start_ready().await;
    for _ in 0..3 {
        let current = stored(&program)["refresh_token"].clone();
        program.write("refresh_token", current.as_str().unwrap());
        program.refresh().await;
        program.refresh().await;
    }
    assert_eq!(cloud.families_revoked(), 0);
    assert_eq!(program.credential().await["state"], "fresh");
}

/// The system calls that rename, as far as the machine has them.
const RENAMES: &str = "?rename,?renameat,?renameat2";

/// A system call that fails on this volume, and how: injected into the program by strace.
fn on_a_volume_where(program: &Program, call: &str, error: &str) -> Command {
    on_a_volume_with(program, &[(call, error)])
}

/// The same with several such calls.
fn on_a_volume_with(program: &Program, failures: &[(&str, &str)]) -> Command {
    let calls: Vec<_> = failures.iter().map(|(call, _)| *call).collect();
    let mut command = Command::new("strace");
    command
        .args(["-D", "-f", "-qq", "--seccomp-bpf", "-o", "trace", "-e"])
        .arg(format!("trace={}", calls.join(",")));
    for (call, error) in failures {
        command
            .arg("-e")
            .arg(format!("inject={call}:error={error}"));
    }
    command
        .arg(env!("CARGO_BIN_EXE_bearer-proxy"))
        .current_dir(program.folder.path())
        .stdin(Stdio::null());
    command
}

/// A program that keeps its tokens in `state/token.json`, in front of a strict cloud.
async fn with_cloud(more: &str) -> (Cloud, Program) {
    let cloud = strict_cloud().await;
    let more = format!("retry.cooldown = \"50ms\"\n{more}");
    let program = Program::with_state(cloud.origin(), &more);
    (cloud, program)
}

fn mode(program: &Program, name: &str) -> u32 {
    fs::metadata(program.path(name)).unwrap().mode() & 0o777
}

fn set_mode(program: &Program, name: &str, mode: u32) {
    fs::set_permissions(program.path(name), fs::Permissions::from_mode(mode)).unwrap();
}

/// Starts the program, which must work with the volume, and warn once.
async fn works(cloud: &Cloud, program: &Program, command: Command, warning: Option<&str>) {
    let mut running = program.start_as(command);
    program.ready().await;
    program.refresh().await;
    program.refresh().await;
    assert_eq!(program.metric("bearer_proxy_token_store_up").await, 1.0);
    running.terminate().await;
    let log = program.log();
    let count = |warning| log.matches(warning).count();
    match warning {
        Some(warning) => assert_eq!(count(warning), 1, "{warning}: {log}"),
        None => assert_eq!(count("state file"), 0, "{log}"),
    }
    let mut restarted = program.start_ready().await;
    assert_eq!(cloud.families_revoked(), 0);
    restarted.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a6_a_mode_for_a_group_is_mended_with_a_warning() {
    let (cloud, program) = with_cloud("").await;
    program.start_ready().await.terminate().await;
    for before in [0o660, 0o644, 0o777] {
        set_mode(&program, "state/token.json", before);
        let warning = format!("its mode {before:o}");
        works(&cloud, &program, program.command(), Some(&warning)).await;
        assert_eq!(mode(&program, "state/token.json"), 0o600);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a6_a_mode_that_cannot_be_changed() {
    let (cloud, program) = with_cloud("").await;
    program.start_ready().await.terminate().await;
    let fixed = || on_a_volume_where(&program, "fchmod", "EPERM");
    // Only a group: it works.
    set_mode(&program, "state/token.json", 0o660);
    works(&cloud, &program, fixed(), Some("it cannot be changed here")).await;
    // Every user: refused, unless the volume is known to have no modes.
    for mode in [0o644, 0o777] {
        set_mode(&program, "state/token.json", mode);
        let output = fixed().output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("chmod 600") && text.contains("state_file_permissions"));
    }
    let more = "retry.cooldown = \"50ms\"\ntoken.state_file = \"state/token.json\"\n\
        token.state_file_permissions = \"ignore\"\n";
    program.configure(cloud.origin(), more);
    works(&cloud, &program, fixed(), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a7_a_volume_without_locks_is_used_with_one_warning() {
    for error in ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EBADF"] {
        let (cloud, program) = with_cloud("").await;
        let command = on_a_volume_where(&program, "flock", error);
        works(&cloud, &program, command, Some("cannot be locked")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a8_a_volume_that_cannot_sync_is_used_with_one_warning() {
    for error in ["EINVAL", "ENOSYS", "EOPNOTSUPP"] {
        let (cloud, program) = with_cloud("").await;
        let command = on_a_volume_where(&program, "fsync", error);
        works(&cloud, &program, command, Some("cannot sync")).await;
    }
}

/// Also where the file is overwritten, and where the copy of an unfinished write is recovered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a8_a_volume_that_cannot_sync_is_used_however_the_file_is_replaced() {
    let (cloud, program) = with_cloud("").await;
    fs::create_dir(program.path("state")).unwrap();
    program.write("state/token.json", "");
    let failures = [("fsync", "EINVAL"), (RENAMES, "EBUSY")];
    let command = on_a_volume_with(&program, &failures);
    works(&cloud, &program, command, Some("cannot sync")).await;
    let copy = "state/.token.json.0123456789abcdef.tmp";
    let stored = program.read("state/token.json");
    for failures in [&failures[..1], &failures] {
        program.write(copy, &stored);
        set_mode(&program, copy, 0o600);
        program.write("state/token.json", &stored[..stored.len() / 2]);
        let command = on_a_volume_with(&program, failures);
        let mut running = program.start_as(command);
        program.ready().await;
        running.terminate().await;
        assert!(!program.path(copy).exists());
    }
    assert_eq!(cloud.families_revoked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a9_a_file_that_cannot_be_replaced_is_overwritten() {
    let (cloud, program) = with_cloud("").await;
    fs::create_dir(program.path("state")).unwrap();
    program.write("state/token.json", "");
    let command = on_a_volume_where(&program, RENAMES, "EBUSY");
    works(&cloud, &program, command, Some("only overwritten")).await;
}

/// Killed between a complete copy and its rename; then there is no space for another copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a9_a_newer_copy_is_used_on_a_full_volume() {
    for call in ["fsync", RENAMES] {
        let (cloud, program) = with_cloud("").await;
        let mut running = program.start_ready().await;
        let old = program.read("state/token.json");
        program.refresh().await;
        running.terminate().await;
        let new = stored(&program)["generation"].clone();
        let copy = "state/.token.json.0123456789abcdef.tmp";
        fs::rename(program.path("state/token.json"), program.path(copy)).unwrap();
        for (name, text) in [("state/token.json", &*old), (copy, &*program.read(copy))] {
            program.write(name, text);
            set_mode(&program, name, 0o600);
        }
        let mut full = program.start_as(on_a_volume_where(&program, call, "ENOSPC"));
        program.ready().await;
        assert_eq!(program.credential().await["generation"], new, "{call}");
        assert!(program.log().contains("free space"), "{}", program.log());
        // The newest tokens are only in its memory.
        full.signal(rustix::process::Signal::KILL);
        full.ended().await;
        let _restarted = program.start_ready().await;
        assert_eq!(program.credential().await["generation"], new, "{call}");
        assert_eq!(cloud.families_revoked(), 0, "{call}");
    }
}

/// As `docker run -v token.json:/state/token.json` does. Only root may mount.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a9_a_single_file_that_is_mounted_is_overwritten() {
    let (cloud, program) = with_cloud("").await;
    fs::create_dir(program.path("state")).unwrap();
    program.write("state/token.json", "");
    program.write("mounted.json", "");
    set_mode(&program, "mounted.json", 0o600);
    let mounting = "mount --bind mounted.json state/token.json && exec \"$@\"";
    let in_namespace = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", mounting, "sh"])
            .args(arguments)
            .current_dir(program.folder.path())
            .stdin(Stdio::null());
        command
    };
    if !in_namespace(&["true"])
        .output()
        .is_ok_and(|it| it.status.success())
    {
        return;
    }
    for _ in 0..2 {
        let mut running = program.start_as(in_namespace(&[env!("CARGO_BIN_EXE_bearer-proxy")]));
        program.ready().await;
        program.refresh().await;
        running.terminate().await;
        assert!(program.log().contains("mount its folder instead"));
        let stored: Value = serde_json::from_str(&program.read("mounted.json")).unwrap();
        assert!(stored["generation"].as_u64().unwrap() >= 2);
    }
    assert_eq!(cloud.families_revoked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a13_a_lost_state_file_comes_back_and_a_restart_finds_it() {
    let (cloud, program) = with_cloud("").await;
    let mut running = program.start_ready().await;
    let backup = program.read("state/token.json");
    program.refresh().await;
    let is_back = async |how: &str| {
        let generation = program.generation().await;
        eventually(how, async || {
            let text = program.read("state/token.json");
            let stored: Option<Value> = serde_json::from_str(&text).ok();
            stored.is_some_and(|it| it["generation"] == generation)
        })
        .await;
        assert_eq!(mode(&program, "state/token.json"), 0o600);
    };
    fs::remove_file(program.path("state/token.json")).unwrap();
    is_back("the removed file is written again").await;
    program.write("state/token.json", &backup);
    is_back("the older file is replaced").await;
    fs::rename(program.path("state"), program.path("moved")).unwrap();
    is_back("the moved folder is created again").await;
    fs::remove_file(program.path("state/token.json")).unwrap();
    is_back("the new folder is watched, too").await;
    fs::remove_dir_all(program.path("state")).unwrap();
    is_back("the removed folder is created again").await;
    // Just before the end.
    program.write("state/token.json", &backup);
    running.terminate().await;
    assert!(program.log().contains("is written again"));
    let _running = program.start_ready().await;
    program.refresh().await;
    assert_eq!(cloud.families_revoked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a15_a_newer_versions_record_is_neither_used_nor_overwritten() {
    let (cloud, program) = with_cloud("token.wait = \"100ms\"\n").await;
    let mut running = program.start_ready().await;
    let newer = "{\"format\": 2, \"refresh_token\": \"theirs\"}";
    program.write("state/token.json", newer);
    eventually("it is noticed", async || {
        program.credential().await["reason"] == "store_unreadable"
    })
    .await;
    assert_eq!(program.metric("bearer_proxy_token_store_up").await, 0.0);
    let calls = cloud.issuer_calls();
    cloud.revoke_access_tokens();
    for _ in 0..3 {
        program.get("/api/file").await;
        send(program.admin, post("/token/refresh", "")).await;
    }
    assert_eq!(cloud.issuer_calls(), calls);
    running.terminate().await;
    assert_eq!(program.read("state/token.json"), newer);
    let (code, _, text) = program.run(&["run"]);
    assert!(code == 1 && text.contains("format 2"), "{text}");
    assert_eq!(program.read("state/token.json"), newer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a15_two_processes_and_something_that_keeps_the_mode_at_0644() {
    let (cloud, program) = with_cloud("").await;
    let more = format!(
        "retry.cooldown = \"50ms\"\ntoken.state_file = \"{}\"\n",
        program.path("state/token.json").display()
    );
    let other = Program::new(cloud.origin(), &more);
    let mut running = [program.start_ready().await, other.start_ready().await];
    for _ in 0..4 {
        for program_ in [&program, &other] {
            set_mode(&program, "state/token.json", 0o644);
            program_.refresh().await;
        }
    }
    assert_eq!(cloud.families_revoked(), 0);
    for running in &mut running {
        running.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a18_the_tokens_of_another_issuer_or_client_are_refused() {
    let (_cloud, program) = with_cloud("").await;
    program.start_ready().await.terminate().await;
    let before = program.read("state/token.json");
    let another = strict_cloud().await;
    let state = "token.state_file = \"state/token.json\"\n";
    let client = format!("{state}token.client_id = \"another\"\n");
    for (origin, more) in [(another.origin(), state), (_cloud.origin(), &client)] {
        program.configure(origin, more);
        for (command, expected) in [("run", 1), ("check", 78), ("login", 78)] {
            let (code, _, text) = program.run(&[command]);
            assert_eq!(code, expected, "{command}: {text}");
            if command != "login" {
                assert!(
                    text.contains("holds the tokens of client \"demo\""),
                    "{text}"
                );
            }
        }
    }
    assert_eq!(another.issuer_calls(), 0);
    assert_eq!(program.read("state/token.json"), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a19_secrets_that_every_user_can_read_are_warned_of() {
    let more = "token.client_secret_file = \"client_secret\"\n";
    let (_cloud, program) = with_cloud(more).await;
    program.write("client_secret", "secret");
    for (file, config, in_file, in_config) in [
        (0o600, 0o600, false, false),
        (0o640, 0o660, false, false),
        (0o666, 0o600, true, false),
        (0o604, 0o600, true, false),
        (0o600, 0o644, false, true),
    ] {
        set_mode(&program, "client_secret", file);
        set_mode(&program, "proxy.toml", config);
        let (code, _, text) = program.run(&["check"]);
        assert_eq!(code, 0, "{text}");
        let mut running = program.start_ready().await;
        running.terminate().await;
        for text in [text, program.log()] {
            let has = |warning: &str| text.contains(warning);
            assert_eq!(has("names a file of mode"), in_file, "{file:o}: {text}");
            assert_eq!(
                has("is a secret in a file"),
                in_config,
                "{config:o}: {text}"
            );
        }
    }
}

#[test]
fn field_c6_check_refuses_what_run_refuses() {
    let state = "token.state_file = \"token.json\"\n";
    let program = Program::new("http://127.0.0.1:1", state);
    for (text, mode, expected) in [
        ("", 0o600, 0),
        ("{\"format\": 1, \"refresh_token\": \"r\"}", 0o600, 0),
        ("{\"format\": 1, \"refresh_token\": \"r\"}", 0o660, 0),
        ("{\"format\": 1, \"refresh_token\": \"r\"}", 0o644, 78),
        ("{\"format\": 1, \"refresh_token\": \"s3cr", 0o600, 78),
        ("\0\0\0\0", 0o600, 78),
        ("{\"format\": 3}", 0o600, 78),
    ] {
        program.write("token.json", text);
        set_mode(&program, "token.json", mode);
        let (code, _, output) = program.run(&["check"]);
        assert_eq!(code, expected, "{text} {mode:o}: {output}");
        assert_eq!(
            output.contains("token.state_file: "),
            expected == 78 || mode != 0o600
        );
        assert!(!output.contains("s3cr"));
        assert_eq!(program.read("token.json"), text);
    }
    for (own, key) in [
        (program.address, "upstream.endpoints"),
        (program.admin, "upstream.endpoints"),
        (program.address, "token.issuer"),
        (program.address, "upstream.connect_to"),
    ] {
        let other = Program::new("http://127.0.0.1:1", "");
        let text = match key {
            "upstream.endpoints" => String::new(),
            "token.issuer" => format!("token.issuer = \"http://{own}\"\n"),
            _ => format!("{key} = \"{own}\"\n"),
        };
        let cloud = match key {
            "upstream.endpoints" => format!("http://localhost:{}", own.port()),
            _ => "http://127.0.0.1:1".to_owned(),
        };
        let text = toml::text(program.address, program.admin, &cloud, &text);
        other.write("proxy.toml", text);
        for command in ["check", "run"] {
            let (code, _, output) = other.run(&[command]);
            assert_eq!(code, 78, "{command} {key}: {output}");
            assert!(output.contains(&format!("{key}: is ")), "{output}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a17_the_holder_of_the_lock_is_named() {
    let (cloud, program) = with_cloud("token.timeout = \"1s\"\n").await;
    let mut running = program.start_ready().await;
    // Another descriptor of this process, as a stopped sibling or a backup tool.
    let lock = fs::File::options()
        .write(true)
        .open(program.path("state/token.json.lock"))
        .unwrap();
    lock.lock().unwrap();
    let calls = cloud.issuer_calls();
    eventually("the holder is named", async || {
        send(program.admin, post("/token/refresh", "")).await;
        let credential = program.credential().await;
        let problem = credential["problem"].as_str().unwrap_or_default();
        credential["reason"] == "lock_held"
            && problem.contains(&format!("process {} ", std::process::id()))
    })
    .await;
    assert_eq!(cloud.issuer_calls(), calls);
    assert_eq!(program.get("/api/echo.do").await, 200);
    drop(lock);
    program.refresh().await;
    eventually("the reason is gone", async || {
        program.credential().await["reason"] == "ok"
    })
    .await;
    running.terminate().await;
    let log = program.log();
    assert_eq!(log.matches("has held the lock").count(), 1, "{log}");
}
