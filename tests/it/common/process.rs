//! The program in a separate process.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicU16, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{LIMIT, eventually, get, metric, post, ready, send, text_at, toml};

/// A command in this folder, in an empty environment.
pub fn command(program: impl AsRef<Path>, folder: &Path) -> Command {
    let mut command = Command::new(program.as_ref());
    command.current_dir(folder).env_clear().stdin(Stdio::null());
    command
}

/// The program in this folder, in an empty environment.
pub fn program(folder: &Path) -> Command {
    command(env!("CARGO_BIN_EXE_bearer-proxy"), folder)
}

/// Runs the program until it exits, within [`LIMIT`]. Returns its exit code, standard output and
/// standard error.
pub fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = program(folder);
    let command = command.args(arguments).stdout(Stdio::piped());
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(LIMIT) else {
        kill_process(pid, Signal::KILL).unwrap();
        panic!("{arguments:?}: the program does not exit");
    };
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A free port outside the ephemeral range of the system. A connection of another test could use an
/// ephemeral port before the program binds it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let begin = u16::try_from(process::id() % 1000 * 18).unwrap();
        let port = 12_000 + (begin + NEXT.fetch_add(1, Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A loopback address with a free port.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Starts a program that a Debian package has installed.
pub fn start_installed(program: &str, arguments: &[&str]) -> Running {
    let path = ["/usr/sbin", "/usr/bin", "/usr/local/sbin"]
        .map(|folder| PathBuf::from(folder).join(program));
    let path = path
        .iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program} is missing: scripts/test installs it"));
    let mut command = Command::new(path);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Running(command.spawn().unwrap())
}

/// A process that is killed when the test ends, also when the test fails.
pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process exits", async || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// Sends SIGTERM and waits until the process exits with code 0.
    pub async fn terminate(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended().await.code(), Some(0));
    }

    /// The value of a line of `/proc/PID/status`.
    pub fn proc_status(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .unwrap_or_else(|| panic!("the process status has no line {name}"))
            .trim()
            .to_owned()
    }

    /// The value of a line of `/proc/PID/status` that is a size, in KiB.
    pub fn memory(&self, name: &str) -> u64 {
        let value = self.proc_status(name);
        value.trim_end_matches(" kB").parse().unwrap()
    }

    /// The number of open file descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id()))
            .unwrap()
            .count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a server listens on this address.
pub async fn listens(address: SocketAddr) {
    eventually("the server listens", async || {
        tokio::net::TcpStream::connect(address).await.is_ok()
    })
    .await;
}

/// A folder with a configuration of the program. The program does not run yet.
pub struct Program {
    pub folder: tempfile::TempDir,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

impl Program {
    /// A program in front of `cloud`, which is also the issuer, with further lines as in
    /// `toml::text`.
    pub fn new(cloud: &str, more: &str) -> Self {
        let this = Self {
            folder: tempfile::tempdir().unwrap(),
            address: free_address(),
            admin: free_address(),
        };
        this.configure(cloud, more);
        this
    }

    /// The same program with a state file.
    pub fn with_state(cloud: &str, more: &str) -> Self {
        let more = format!("token.state_file = \"state/token.json\"\n{more}");
        Self::new(cloud, &more)
    }

    /// The same program without a refresh token.
    pub fn without_token(cloud: &str, more: &str) -> Self {
        let this = Self::new(cloud, more);
        let text = this.read("proxy.toml");
        this.write(
            "proxy.toml",
            text.replace("token.refresh_token = \"seed\"\n", ""),
        );
        this
    }

    /// Writes the configuration again.
    pub fn configure(&self, cloud: &str, more: &str) {
        let text = toml::text(self.address, self.admin, cloud, more);
        self.write("proxy.toml", text);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Closes a file to other users.
    pub fn make_private(&self, name: &str) {
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(self.path(name), private).unwrap();
    }

    /// The text of a file; empty if the file does not exist.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn command(&self) -> Command {
        program(self.folder.path())
    }

    /// Runs the program with these arguments in its folder until it exits.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        run(self.folder.path(), arguments)
    }

    /// Starts the program and writes its standard error to the file `log`.
    pub fn start(&self) -> Running {
        self.start_as(self.command())
    }

    /// Starts this command with the same log.
    pub fn start_as(&self, mut command: Command) -> Running {
        let command = command.stdout(Stdio::null()).stderr(self.new_log());
        Running(command.spawn().unwrap())
    }

    /// Creates the file that `log` reads.
    pub fn new_log(&self) -> fs::File {
        fs::File::create(self.path("log")).unwrap()
    }

    /// Starts the program and waits until it is ready.
    pub async fn start_ready(&self) -> Running {
        let running = self.start();
        self.ready().await;
        running
    }

    pub async fn ready(&self) {
        listens(self.admin).await;
        ready(self.admin).await;
    }

    pub fn log(&self) -> String {
        self.read("log")
    }

    pub async fn metric(&self, name: &str) -> f64 {
        metric(self.admin, name).await
    }

    /// The text of `/status`.
    pub async fn status(&self) -> String {
        text_at(self.admin, "/status").await
    }

    /// The credential in `/status`.
    pub async fn credential(&self) -> Value {
        let status: Value = serde_json::from_str(&self.status().await).unwrap();
        status["credentials"][0].clone()
    }

    /// The number of token replacements.
    pub async fn generation(&self) -> u64 {
        self.credential().await["generation"].as_u64().unwrap()
    }

    /// Requests a refresh and waits until it completes.
    pub async fn refresh(&self) {
        let before = self.generation().await;
        eventually("the program refreshes the token", async || {
            send(self.admin, post("/token/refresh", "")).await;
            self.generation().await > before
        })
        .await;
    }

    /// The status of the response to a GET.
    pub async fn get(&self, path: &str) -> u16 {
        send(self.address, get(path)).await.status().as_u16()
    }
}

/// A running program in front of a cloud that is also its issuer.
pub struct ReadyProgram {
    pub running: Running,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl ReadyProgram {
    /// Starts the program with further lines of configuration, and waits until it is ready.
    pub async fn start(cloud: SocketAddr, more: &str) -> Self {
        Self::start_with(cloud, more, None).await
    }

    /// The same, but the program returns freed memory to the system immediately, so that resident
    /// memory is memory in use.
    pub async fn start_thrifty(cloud: SocketAddr, more: &str) -> Self {
        Self::start_with(cloud, more, Some(("MIMALLOC_PURGE_DELAY", "0"))).await
    }

    async fn start_with(cloud: SocketAddr, more: &str, env: Option<(&str, &str)>) -> Self {
        let program = Program::new(&format!("http://{cloud}"), more);
        let mut command = program.command();
        command.envs(env);
        let running = program.start_as(command);
        program.ready().await;
        Self {
            running,
            address: program.address,
            admin: program.admin,
            _folder: program.folder,
        }
    }

    /// The value of a line of `/proc/PID/status`, in KiB.
    pub fn memory(&self, line: &str) -> u64 {
        self.running.memory(line)
    }

    /// The number of open file descriptors.
    pub fn descriptors(&self) -> usize {
        self.running.descriptors()
    }
}
