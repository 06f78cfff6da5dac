//! `redis-server` processes.

use std::{net::SocketAddr, time::Duration};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::common::{
    eventually,
    process::{Running, free_address, start_installed},
};

/// A server, and its folder.
pub(super) struct Store {
    pub(super) address: SocketAddr,
    arguments: Vec<String>,
    running: Running,
    pub(super) folder: tempfile::TempDir,
}

impl Store {
    /// A server that keeps its data in memory, with these arguments besides.
    pub(super) async fn start(more: &[&str]) -> Self {
        let (address, folder) = (free_address(), tempfile::tempdir().unwrap());
        let (port, path) = (
            address.port().to_string(),
            folder.path().display().to_string(),
        );
        let usual = [
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--dir",
            &path,
            "--save",
            "",
            "--enable-debug-command",
            "yes",
        ];
        let arguments: Vec<String> = [&usual, more]
            .concat()
            .iter()
            .map(ToString::to_string)
            .collect();
        let running = spawn(&arguments);
        let store = Self {
            address,
            arguments,
            running,
            folder,
        };
        store.responds().await;
        store
    }

    async fn responds(&self) {
        eventually("the store responds", async || {
            self.try_command(&["PING"])
                .await
                .is_some_and(|text| text.contains("PONG"))
        })
        .await;
    }

    pub(super) fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    pub(super) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.running.ended().await;
    }

    /// Starts it again after a kill.
    pub(super) async fn revive(&mut self) {
        self.running = spawn(&self.arguments);
        self.responds().await;
    }

    /// The response to a command, as it is sent.
    pub(super) async fn command(&self, parts: &[&str]) -> String {
        self.try_command(parts)
            .await
            .unwrap_or_else(|| panic!("the store does not respond to {parts:?}"))
    }

    /// `None` if the server does not respond within a few seconds.
    pub(super) async fn try_command(&self, parts: &[&str]) -> Option<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.ok()?;
            stream.write_all(&encoded(parts)).await.ok()?;
            stream.write_all(&encoded(&["QUIT"])).await.ok()?;
            let mut response = Vec::new();
            stream.read_to_end(&mut response).await.ok()?;
            Some(String::from_utf8_lossy(&response).into_owned())
        };
        timeout(Duration::from_secs(5), exchange).await.ok()?
    }

    /// The names of all keys.
    pub(super) async fn keys(&self) -> Vec<String> {
        let response = self.command(&["KEYS", "*"]).await;
        let names = response
            .lines()
            .filter(|line| line.starts_with("bearer-proxy:"));
        names.map(str::to_owned).collect()
    }

    /// What replicas share, from the only record; `None` if there is none.
    pub(super) async fn shared(&self) -> Option<serde_json::Value> {
        let keys = self.keys().await;
        let data = self.command(&["HGET", keys.first()?, "data"]).await;
        let json = data.lines().find(|line| line.starts_with('{'))?;
        serde_json::from_str(json).ok()
    }
}

fn spawn(arguments: &[String]) -> Running {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    start_installed("redis-server", &arguments)
}

pub(super) fn encoded(parts: &[&str]) -> Vec<u8> {
    let parts = parts
        .iter()
        .fold(format!("*{}\r\n", parts.len()), |text, part| {
            text + &format!("${}\r\n{part}\r\n", part.len())
        });
    parts.into_bytes()
}
