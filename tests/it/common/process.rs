//! The program as a process of its own.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{eventually, get, metric, post, ready, send, text_at, toml};

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

/// Runs the program to its end: its exit code, standard output and standard error.
pub fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = program(folder).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A port that is free, and not one of those that the system gives out by itself: a connection of another test could take
/// such a one before the program does.
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

/// A free port of this machine.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Ends the process with the test, however the test ends.
pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", async || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// Asks it to end, and waits until it has ended in order.
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
            .unwrap_or_else(|| panic!("no {name}"))
            .trim()
            .to_owned()
    }

    /// A line of `/proc/PID/status` that is a size, in KiB.
    pub fn memory(&self, name: &str) -> u64 {
        let value = self.proc_status(name);
        value.trim_end_matches(" kB").parse().unwrap()
    }

    /// Open file descriptors.
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

/// Waits until a server listens there.
pub async fn listens(address: SocketAddr) {
    eventually("it listens", async || {
        tokio::net::TcpStream::connect(address).await.is_ok()
    })
    .await;
}

/// A folder with a configuration of the program, which is not started yet.
pub struct Program {
    pub folder: tempfile::TempDir,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

impl Program {
    /// In front of `cloud`, which is the issuer as well, with further lines as in `toml::text`.
    pub fn new(cloud: &str, more: &str) -> Self {
        let this = Self {
            folder: tempfile::tempdir().unwrap(),
            address: free_address(),
            admin: free_address(),
        };
        this.configure(cloud, more);
        this
    }

    /// The same with a state file.
    pub fn with_state(cloud: &str, more: &str) -> Self {
        let more = format!("token.state_file = \"state/token.json\"\n{more}");
        Self::new(cloud, &more)
    }

    /// The same without tokens.
    pub fn without_token(cloud: &str, more: &str) -> Self {
        let this = Self::new(cloud, more);
        let text = this.read("proxy.toml");
        this.write(
            "proxy.toml",
            text.replace("token.refresh_token = \"seed\"\n", ""),
        );
        this
    }

    /// Writes its configuration anew.
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

    /// A file's text; empty if there is no such file.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn command(&self) -> Command {
        program(self.folder.path())
    }

    /// Runs another command of the program in its folder to its end.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        run(self.folder.path(), arguments)
    }

    /// Starts it; standard error goes to the file `log`.
    pub fn start(&self) -> Running {
        self.start_as(self.command())
    }

    /// Starts this command instead, with the same log.
    pub fn start_as(&self, mut command: Command) -> Running {
        let command = command.stdout(Stdio::null()).stderr(self.new_log());
        Running(command.spawn().unwrap())
    }

    /// The file that `log` reads, empty.
    pub fn new_log(&self) -> fs::File {
        fs::File::create(self.path("log")).unwrap()
    }

    /// Starts it and waits until it is ready.
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

    /// How often its token was replaced.
    pub async fn generation(&self) -> u64 {
        self.credential().await["generation"].as_u64().unwrap()
    }

    /// Asks for a refresh and waits for it.
    pub async fn refresh(&self) {
        let before = self.generation().await;
        eventually("a refresh", async || {
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

/// A started program in front of a cloud that is its issuer too.
pub struct ReadyProgram {
    pub running: Running,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl ReadyProgram {
    /// Starts it, with further lines of configuration, and waits until it is ready.
    pub async fn start(cloud: SocketAddr, more: &str) -> Self {
        Self::start_with(cloud, more, None).await
    }

    /// The same, and freed memory goes back to the system at once: what is resident is in use.
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

    /// A line of `/proc/PID/status`, in KiB.
    pub fn memory(&self, line: &str) -> u64 {
        self.running.memory(line)
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        self.running.descriptors()
    }
}
