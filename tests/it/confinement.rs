//! The program as a careful administrator runs it: as nobody in particular, with nothing to write to but its state.
#![cfg(target_os = "linux")]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
    process::{Command, Stdio},
};

use crate::common::{
    cloud, eventually, get, picky,
    process::{Running, free_address, listens},
    ready, send, text_at,
};

/// `nobody`.
const STRANGER: u32 = 65534;

/// A folder with the program, its configuration, secrets and state, as user 65534 if this test may choose.
struct Home {
    folder: tempfile::TempDir,
    address: SocketAddr,
    admin: SocketAddr,
    redirect: SocketAddr,
    is_root: bool,
}

impl Home {
    fn new(cloud: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (address, admin, redirect) = (free_address(), free_address(), free_address());
        let text = format!(
            "[proxy]\nlisten = [\"{address}\"]\n[upstream]\nendpoints = [\"{cloud}\"]\n[token]\nclient_id = \"demo\"\n\
             client_secret_file = \"secrets/client_secret\"\nrefresh_token_file = \"secrets/refresh_token\"\n\
             redirect_uri = \"http://{redirect}/callback\"\nstate_file = \"state/token.json\"\n[admin]\nlisten = \"{admin}\"\n"
        );
        let path = folder.path();
        for inner in ["secrets", "state"] {
            fs::create_dir(path.join(inner)).unwrap();
        }
        for (file, content) in [
            ("proxy.toml", text.as_str()),
            ("secrets/client_secret", "secret"),
            ("secrets/refresh_token", "good"),
        ] {
            fs::write(path.join(file), content).unwrap();
        }
        // Where it was built, a stranger may have no way in. Copied by another process: a child that another test starts
        // would hold a file that this one is writing, and what is being written cannot be started.
        let copied = Command::new("cp")
            .args([Path::new(env!("CARGO_BIN_EXE_bearer-proxy")), path])
            .status();
        assert!(copied.unwrap().success());
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            for path in [path, &path.join("state")] {
                chown(path, Some(STRANGER), Some(STRANGER)).unwrap();
            }
        }
        Self {
            folder,
            address,
            admin,
            redirect,
            is_root,
        }
    }

    fn path(&self, inner: &str) -> std::path::PathBuf {
        self.folder.path().join(inner)
    }

    /// A program run as the stranger; as this user if there is no choice.
    fn as_stranger(&self, program: &Path) -> Command {
        let mut command = if self.is_root {
            // Core dumps are allowed, so that it is the program that forbids them.
            let mut command = Command::new("prlimit");
            command
                .args([
                    "--core=unlimited",
                    "setpriv",
                    "--reuid=65534",
                    "--regid=65534",
                    "--clear-groups",
                ])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .current_dir(self.folder.path())
            .env_clear()
            .stdin(Stdio::null());
        command
    }

    fn start(&self, mut command: Command) -> Running {
        command
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.path("log")).unwrap());
        Running(command.spawn().unwrap())
    }

    async fn is_ready(&self) {
        listens(self.admin).await;
        ready(self.admin).await;
    }
}

fn proc(running: &Running, file: &str) -> std::path::PathBuf {
    format!("/proc/{}/{file}", running.0.id()).into()
}

fn status(running: &Running, field: &str) -> String {
    let status = fs::read_to_string(proc(running, "status")).unwrap();
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value
        .unwrap_or_else(|| panic!("no {field}"))
        .trim()
        .to_owned()
}

fn mask(running: &Running, field: &str) -> u64 {
    u64::from_str_radix(&status(running, field), 16).unwrap()
}

/// The kernel gives `/proc/PID` of what may not be dumped to the superuser, and lets nobody else read or trace it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_22_nobody_reads_the_memory_of_a_running_process() {
    let home = Home::new(&cloud().await);
    for command in ["run", "login"] {
        let mut program = home.as_stranger(&home.path("bearer-proxy"));
        program
            .arg(command)
            .env("BEARER_PROXY__ADMIN__TOKEN", "environ");
        let running = home.start(program);
        listens(if command == "run" {
            home.admin
        } else {
            home.redirect
        })
        .await;
        for file in ["environ", "mem", "fd"] {
            // Within a namespace of users root has another number, but never the process's own.
            let owner = fs::metadata(proc(&running, file)).unwrap().uid();
            assert_ne!(
                status(&running, "Uid").split_whitespace().next().unwrap(),
                owner.to_string(),
                "{command}: {file}"
            );
        }
        // The same user's `cat`, which reads any other process of this user.
        let read = home
            .as_stranger(Path::new("/bin/cat"))
            .arg(proc(&running, "environ"))
            .output()
            .unwrap();
        let (out, error) = (
            String::from_utf8_lossy(&read.stdout),
            String::from_utf8_lossy(&read.stderr),
        );
        assert!(
            out.is_empty() && error.contains("Permission denied"),
            "{command}: {out}{error}"
        );

        let limits = fs::read_to_string(proc(&running, "limits")).unwrap();
        let core = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max core file size"))
            .unwrap();
        assert_eq!(
            core.split_whitespace().take(2).collect::<Vec<_>>(),
            ["0", "0"],
            "{command}"
        );
        assert_ne!(
            mask(&running, "SigIgn") & 1 << 12,
            0,
            "{command}: SIGPIPE ends it"
        );
        if command == "run" {
            home.is_ready().await;
            let metrics = text_at(home.admin, "/metrics").await;
            assert!(
                metrics.contains("\nprocess_open_fds "),
                "it can still look at itself"
            );
        }
    }
}

/// Runs its arguments in a world of mounts of its own, where nothing but `state` can be written, without any capability.
const CONFINED: &str = r#"
set -e
mount --bind . .
cd "$PWD"
mount --bind state state
mount -o remount,bind,ro .
mount -o remount,bind,ro /
for place in . secrets /; do
    if touch "$place/probe" 2>/dev/null; then echo "$place can be written"; exit 99; fi
done
exec setpriv --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"#;

impl Home {
    fn confined(&self, arguments: &[&str]) -> Running {
        let mut command = Command::new("unshare");
        if !self.is_root {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "sh", "-c", CONFINED, "sh"]);
        if self.is_root {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        command.arg(self.path("bearer-proxy")).args(arguments);
        command
            .current_dir(self.folder.path())
            .env_clear()
            .stdin(Stdio::null());
        self.start(command)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_system_and_no_capability_are_enough() {
    let home = Home::new(&picky().await);
    fs::write(home.path("secrets/refresh_token"), "bad").unwrap();
    let mut running = home.confined(&["run"]);
    listens(home.admin).await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(mask(&running, set), 0, "{set}");
    }
    assert_eq!(status(&running, "NoNewPrivs"), "1");
    let told = async || text_at(home.admin, "/status").await;
    eventually("it is dead", async || {
        told().await.contains("refresh_token_refused")
    })
    .await;
    // Files are watched, tokens are stored.
    fs::write(home.path("secrets/refresh_token"), "good").unwrap();
    home.is_ready().await;
    assert_eq!(send(home.address, get("/")).await.status(), 200);
    assert!(
        fs::read_to_string(home.path("state/token.json"))
            .unwrap()
            .contains("next")
    );
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.ended().await.code(), Some(0), "{}", home.log());

    fs::remove_file(home.path("state/token.json")).unwrap();
    let mut login = home.confined(&["login", "--code", "CODE"]);
    assert_eq!(login.ended().await.code(), Some(0), "{}", home.log());
    assert!(
        fs::read_to_string(home.path("state/token.json"))
            .unwrap()
            .contains("next")
    );
}
