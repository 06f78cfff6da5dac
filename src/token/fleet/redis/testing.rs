//! Real servers on free ports, and scripted ones.

use std::{
    net::TcpListener as StdListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use redis::Value as Response;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

use super::RedisRegister;
use crate::{
    base::clock,
    token::fleet::{
        config::{RedisConfig, RedisServer},
        register::{Revision, Value},
    },
};

/// How long a condition may take to become true on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The key of the tests, under the default prefix.
pub(super) const KEY: &str = "bearer-proxy:default:0123456789abcdef";

/// A `redis-server` process, killed when it is dropped.
pub(super) struct Server {
    child: Child,
    pub(super) port: u16,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts a server that saves nothing, with these arguments besides.
    pub(super) async fn start(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self::start_with(arguments, &[]).await
    }

    /// A Sentinel that watches `primary` as `mymaster`, with these lines of configuration besides.
    pub(super) async fn sentinel(primary: &Self, lines: &[&str]) -> Self {
        let port = primary.port;
        let watch = format!("sentinel monitor mymaster 127.0.0.1 {port} 1");
        let mut all = vec![
            watch.as_str(),
            "sentinel down-after-milliseconds mymaster 1000",
        ];
        all.extend(lines);
        let arguments = vec!["sentinel.conf".to_owned(), "--sentinel".to_owned()];
        Self::start_with(arguments, &all).await
    }

    async fn start_with(arguments: Vec<String>, sentinel: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("sentinel.conf"), sentinel.join("\n")).expect("written");
        let port = free_port();
        let child = spawn(&arguments, port, folder.path());
        let server = Self {
            child,
            port,
            arguments,
            folder,
        };
        server.ready().await;
        server
    }

    async fn ready(&self) {
        // A server that requires a password is ready, too.
        let is_ready = || match self.try_command(&["PING"]) {
            Ok(_) => true,
            Err(error) => error.code().is_some(),
        };
        until("the server is ready", is_ready).await;
    }

    /// Starts it again, without its data. The port stays the same.
    pub(super) async fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.arguments, self.port, self.folder.path());
        self.ready().await;
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    /// Makes every save to the disk fail from now on.
    pub(super) async fn break_disk(&self) {
        std::fs::remove_dir_all(self.folder.path()).expect("removed");
        self.command(&["CONFIG", "SET", "save", "3600 1"]);
        self.command(&["BGSAVE"]);
        until("a save has failed", || {
            let info = self.command(&["INFO", "persistence"]);
            format!("{info:?}").contains("rdb_last_bgsave_status:err")
        })
        .await;
    }

    /// Sends `STOP` or `CONT`.
    pub(super) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Sends a command as the default user without a password.
    pub(super) fn command(&self, parts: &[&str]) -> Response {
        let response = self.try_command(parts);
        response.unwrap_or_else(|error| panic!("{parts:?}: {error}"))
    }

    fn try_command(&self, parts: &[&str]) -> redis::RedisResult<Response> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let mut connection = client.get_connection()?;
        redis::cmd(parts[0]).arg(&parts[1..]).query(&mut connection)
    }

    /// As a configured server.
    pub(super) fn address(&self) -> RedisServer {
        address(self.port)
    }

    pub(super) fn config(&self) -> RedisConfig {
        config(vec![self.address()])
    }

    pub(super) fn register(&self) -> RedisRegister {
        register(&self.config())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already, or is killed, also if it is stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(arguments: &[String], port: u16, folder: &Path) -> Child {
    let mut command = Command::new("redis-server");
    command.current_dir(folder).args(arguments);
    if !arguments.iter().any(|argument| argument == "--sentinel") {
        command.args(["--save", ""]);
    }
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server runs (Debian: redis-server)")
}

pub(super) fn free_port() -> u16 {
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

pub(super) fn address(port: u16) -> RedisServer {
    RedisServer {
        host: "127.0.0.1".to_owned(),
        port,
        is_tls: false,
    }
}

pub(super) fn config(servers: Vec<RedisServer>) -> RedisConfig {
    RedisConfig {
        servers,
        database: 0,
        user: None,
        password: None,
        tls: crate::net::tls::Config::default(),
        sentinel: None,
        sentinel_password: None,
    }
}

pub(super) fn register(config: &RedisConfig) -> RedisRegister {
    RedisRegister::new(config, KEY.to_owned(), clock::system()).expect("a register")
}

pub(super) fn value(revision: u64, bytes: &[u8]) -> Value {
    Value {
        revision: Revision(revision),
        bytes: Zeroizing::new(bytes.to_vec()),
    }
}

/// Waits for a condition.
pub(super) async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let waiting = async {
        while !is_true() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect(what);
}

/// Repeats a call until its result is as expected.
pub(super) async fn eventually<T, F: Future<Output = T>>(
    what: &str,
    mut call: impl FnMut() -> F,
    is_expected: impl Fn(&T) -> bool,
) -> T {
    let waiting = async {
        loop {
            let result = call().await;
            if is_expected(&result) {
                return result;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect(what)
}

/// What a scripted server does with a command.
pub(super) enum Reply {
    /// Responds with these bytes.
    Bytes(Vec<u8>),
    /// Responds with the first bytes, and repeats the others until the connection fails.
    Endless(&'static str, Vec<u8>),
    /// Closes the connection.
    Close,
}

impl From<&str> for Reply {
    fn from(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

/// The response of a server that works and is empty.
pub(super) fn usual(command: &[String]) -> Reply {
    match command[0].as_str() {
        "PING" => "+PONG\r\n",
        "TIME" => "*2\r\n$10\r\n1700000000\r\n$1\r\n5\r\n",
        "HMGET" => "*2\r\n$-1\r\n$-1\r\n",
        "HGET" => "$-1\r\n",
        "ROLE" => "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
        "INFO" => "$22\r\nredis_version:7.0.15\r\n\r\n",
        "EVAL" => ":1\r\n",
        other => panic!("{other} is not expected"),
    }
    .into()
}

/// A server that responds to each command as `script` says. Returns its port.
pub(super) async fn scripted(script: impl Fn(&[String]) -> Reply + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let script = Arc::new(script);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let script = Arc::clone(&script);
            tokio::spawn(async move { serve(stream, &*script).await });
        }
    });
    port
}

async fn serve(stream: TcpStream, script: &(dyn Fn(&[String]) -> Reply + Send + Sync)) {
    let mut stream = BufReader::new(stream);
    while let Some(command) = next_command(&mut stream).await {
        let result = match script(&command) {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await,
            Reply::Close => return,
            Reply::Endless(first, bytes) => {
                let mut result = stream.write_all(first.as_bytes()).await;
                while result.is_ok() {
                    result = stream.write_all(&bytes).await;
                }
                result
            }
        };
        if result.is_err() {
            return;
        }
    }
}

/// The parts of the next command; `None` at the end.
async fn next_command(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let count = number(stream).await?;
    let mut parts = Vec::new();
    for _ in 0..count {
        let length = number(stream).await?;
        let mut part = vec![0; length + 2];
        stream.read_exact(&mut part).await.ok()?;
        parts.push(String::from_utf8_lossy(&part[..length]).into_owned());
    }
    Some(parts)
}

/// The number in a line such as `*3`.
async fn number(stream: &mut BufReader<TcpStream>) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    line.get(1..)?.trim().parse().ok()
}
