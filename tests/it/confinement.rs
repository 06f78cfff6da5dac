//! The program in a restricted environment: an unprivileged user that can write only the state.
#![cfg(target_os = "linux")]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{
    cloud, eventually, picky,
    process::{Program, Running, command, free_address, listens},
};

/// The user `nobody`.
const NOBODY: u32 = 65534;

/// A folder with the program, its configuration, secrets and state, owned by user 65534 if the test
/// runs as root.
struct Home {
    program: Program,
    redirect: SocketAddr,
    is_root: bool,
}

impl Home {
    fn new(cloud: &str) -> Self {
        let redirect = free_address();
        let more = format!(
            "token.client_secret_file = \"secrets/client_secret\"\ntoken.refresh_token_file = \"secrets/refresh_token\"\n\
             token.redirect_uri = \"http://{redirect}/callback\"\n"
        );
        let program = Program::with_state(cloud, &more);
        let path = program.folder.path();
        for inner in ["secrets", "state"] {
            fs::create_dir(path.join(inner)).unwrap();
        }
        program.write("secrets/client_secret", "secret");
        program.write("secrets/refresh_token", "good");
        // Another user may have no access to the build folder. A separate process copies the
        // program: a child process of another test would inherit a descriptor of the file that this
        // process writes, and a file that is open for writing cannot be executed.
        let copied = Command::new("cp")
            .args([Path::new(env!("CARGO_BIN_EXE_bearer-proxy")), path])
            .status();
        assert!(copied.unwrap().success());
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            for path in [path, &path.join("state")] {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        Self {
            program,
            redirect,
            is_root,
        }
    }

    fn path(&self, inner: &str) -> PathBuf {
        self.program.path(inner)
    }

    /// A command that runs as `nobody`, or as this user if the test does not run as root.
    fn as_nobody(&self, program: &Path) -> Command {
        let folder = self.program.folder.path();
        if !self.is_root {
            return command(program, folder);
        }
        // Core dumps are allowed, so that only the program can forbid them.
        let mut command = command("prlimit", folder);
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
    }
}

fn proc(running: &Running, file: &str) -> PathBuf {
    format!("/proc/{}/{file}", running.0.id()).into()
}

fn mask(running: &Running, field: &str) -> u64 {
    u64::from_str_radix(&running.proc_status(field), 16).unwrap()
}

/// For a process that is not dumpable, root owns `/proc/PID`, and no other user can read or trace
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_22_no_other_user_reads_the_memory_of_a_running_process() {
    let home = Home::new(&cloud().await);
    for command in ["run", "login"] {
        let mut program = home.as_nobody(&home.path("bearer-proxy"));
        program
            .arg(command)
            .env("BEARER_PROXY__ADMIN__TOKEN", "environ");
        let running = home.program.start_as(program);
        listens(if command == "run" {
            home.program.admin
        } else {
            home.redirect
        })
        .await;
        for file in ["environ", "mem", "fd"] {
            // In a user namespace root has another number, but never the number of the process.
            let owner = fs::metadata(proc(&running, file)).unwrap().uid();
            assert_ne!(
                running
                    .proc_status("Uid")
                    .split_whitespace()
                    .next()
                    .unwrap(),
                owner.to_string(),
                "{command}: {file}"
            );
        }
        // `cat` runs as the same user, and can read every other process of this user.
        let read = home
            .as_nobody(Path::new("/bin/cat"))
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
            "{command}: SIGPIPE ends the process"
        );
        if command == "run" {
            home.program.ready().await;
            assert!(
                home.program.metric("process_open_fds").await > 0.0,
                "the process cannot read its own /proc"
            );
        }
    }
}

/// Runs its arguments without capabilities, in a mount namespace in which only `state` is writable.
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
        let mut command = command("unshare", self.program.folder.path());
        if !self.is_root {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "sh", "-c", CONFINED, "sh"]);
        if self.is_root {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        command.arg(self.path("bearer-proxy")).args(arguments);
        self.program.start_as(command)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_system_and_no_capability_are_enough() {
    let home = Home::new(&picky().await);
    home.program.write("secrets/refresh_token", "bad");
    let mut running = home.confined(&["run"]);
    listens(home.program.admin).await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(mask(&running, set), 0, "{set}");
    }
    assert_eq!(running.proc_status("NoNewPrivs"), "1");
    eventually("the refresh token is refused", async || {
        home.program
            .status()
            .await
            .contains("refresh_token_refused")
    })
    .await;
    // The program watches files and stores tokens.
    home.program.write("secrets/refresh_token", "good");
    home.program.ready().await;
    assert_eq!(home.program.get("/").await, 200);
    assert!(home.program.read("state/token.json").contains("next"));
    running.terminate().await;

    fs::remove_file(home.path("state/token.json")).unwrap();
    let mut login = home.confined(&["login", "--code", "CODE"]);
    assert_eq!(
        login.ended().await.code(),
        Some(0),
        "{}",
        home.program.log()
    );
    assert!(home.program.read("state/token.json").contains("next"));
}
