//! The program as a process of its own.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{eventually, ready};

/// The program in this folder, in an empty environment.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bearer-proxy"));
    command.current_dir(folder).env_clear().stdin(Stdio::null());
    command
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
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until somebody listens there.
pub async fn listens(address: SocketAddr) {
    eventually("it listens", async || {
        tokio::net::TcpStream::connect(address).await.is_ok()
    })
    .await;
}

/// The program in front of a cloud that is its issuer too.
pub struct Standing {
    pub running: Running,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Standing {
    /// Starts it, with further lines for `[proxy]`, and waits until it is ready.
    pub async fn start(cloud: SocketAddr, more: &str) -> Self {
        Self::start_with(cloud, more, None).await
    }

    /// The same, where what is free goes back to the system at once, so that what is resident is what is in use.
    pub async fn start_thrifty(cloud: SocketAddr, more: &str) -> Self {
        Self::start_with(cloud, more, Some(("MIMALLOC_PURGE_DELAY", "0"))).await
    }

    async fn start_with(cloud: SocketAddr, more: &str, env: Option<(&str, &str)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (address, admin) = (free_address(), free_address());
        let text = format!(
            "[proxy]\nlisten = [\"{address}\"]\n{more}\n[upstream]\nendpoints = [\"http://{cloud}\"]\n[token]\n\
             client_id = \"demo\"\nclient_secret = \"secret\"\nrefresh_token = \"seed\"\n[admin]\nlisten = \"{admin}\"\n"
        );
        fs::write(folder.path().join("proxy.toml"), text).unwrap();
        let running = Running(
            program(folder.path())
                .envs(env)
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        listens(admin).await;
        ready(admin).await;
        Self {
            running,
            address,
            admin,
            _folder: folder,
        }
    }

    /// A line of `/proc/PID/status`, in KiB.
    pub fn memory(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.running.0.id())).unwrap();
        let value = status
            .lines()
            .find_map(|other| other.strip_prefix(line))
            .unwrap();
        value
            .trim_start_matches(':')
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.running.0.id()))
            .unwrap()
            .count()
    }
}
