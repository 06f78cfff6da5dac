//! The processes of `deploy/compose.yaml`, with its configurations and other ports: two nodes of the
//! simulated cloud, Redis, three replicas, HAProxy. `tests/deploy/manifests.py` checks the files,
//! `scripts/container` runs the containers.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::common::{
    eventually, metric,
    process::{self, Running, free_address, listens, start_installed},
    ready,
    web::{Body, Client, Identity, Speech, whole},
};

const REPLICAS: usize = 3;
const CLIENTS: usize = 6;
/// So many of the clients upload, the others read.
const UPLOADERS: usize = 2;
/// Bytes of an upload.
const UPLOAD: usize = 100_000;
const GENERATION: &str = "bearer_proxy_token_generation{credential=\"default\"}";

/// A file in `deploy/`.
fn deployed(name: &str) -> String {
    fs::read_to_string(Path::new("deploy").join(name)).unwrap()
}

/// Replaces a text that must be there.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from} is not in {text}");
    text.replace(from, to)
}

/// The variables that the image and `compose.yaml` set.
fn variables() -> HashMap<String, String> {
    let compose = deployed("compose.yaml");
    let dockerfile = fs::read_to_string("Dockerfile").unwrap();
    let in_image = dockerfile.lines().filter_map(|line| {
        let line = line.trim().trim_start_matches("ENV ");
        line.trim_end_matches(" \\").split_once('=')
    });
    let in_compose = compose
        .lines()
        .filter_map(|line| line.trim().split_once(": "));
    let variables = in_image
        .chain(in_compose)
        .filter(|(name, _)| name.starts_with("BEARER_PROXY_") && !name.ends_with("IMAGE"));
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let variables: HashMap<_, _> = variables.map(owned).collect();
    assert!(variables.len() > 5, "{variables:?}");
    variables
}

/// A process that writes its output into a file.
fn start(mut command: Command, log: &Path) -> Running {
    let log = fs::File::create(log).unwrap();
    command.stderr(log.try_clone().unwrap());
    Running(command.stdout(log).stdin(Stdio::null()).spawn().unwrap())
}

struct Replica {
    folder: PathBuf,
    address: SocketAddr,
    admin: SocketAddr,
    balancer: Balancer,
    running: Option<Running>,
}

/// What distributes requests to the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Balancer {
    /// As in `deploy/`.
    HaProxy,
    /// With the lines that `docs/configuration.md` recommends.
    Nginx,
}

impl Replica {
    /// A replica with the configuration in `deploy/`.
    fn new(folder: PathBuf, clouds: &[SocketAddr], redis: SocketAddr, balancer: Balancer) -> Self {
        let mut text = deployed("proxy.toml");
        for (index, cloud) in clouds.iter().enumerate() {
            let name = format!("cloud-{}:8400", index + 1);
            text = replaced(&text, &name, &cloud.to_string());
        }
        text = replaced(&text, "redis:6379", &redis.to_string());
        text = replaced(&text, "172.30.9.250", "127.0.0.1");
        let secrets = fs::canonicalize("deploy/secrets").unwrap();
        text = replaced(&text, "/run/secrets", secrets.to_str().unwrap());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("proxy.toml"), text).unwrap();
        Self {
            folder,
            address: free_address(),
            admin: free_address(),
            balancer,
            running: None,
        }
    }

    fn command(&self) -> Command {
        let mut command = process::program(&self.folder);
        command.envs(variables());
        let any = |address: SocketAddr| format!("0.0.0.0:{}", address.port());
        command
            .env("BEARER_PROXY_CONFIG", "proxy.toml")
            .env("BEARER_PROXY__PROXY__LISTEN", any(self.address))
            .env("BEARER_PROXY__ADMIN__LISTEN", any(self.admin))
            .env("BEARER_PROXY__TOKEN__STATE_FILE", "token.json");
        if self.balancer == Balancer::Nginx {
            // It has neither a PROXY header for HTTP nor checks of /readyz: it goes on to the next
            // replica when one refuses connections.
            command
                .env("BEARER_PROXY__PROXY__PROXY_PROTOCOL", "false")
                .env("BEARER_PROXY__PROXY__DRAIN_DELAY", "1s");
        }
        command
    }

    async fn start(&mut self) {
        self.running = Some(start(self.command(), &self.folder.join("log")));
        listens(self.admin).await;
        ready(self.admin).await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }
}

impl Balancer {
    async fn start(self, folder: &Path, replicas: &[Replica]) -> (Running, SocketAddr) {
        let address = free_address();
        let (name, text) = match self {
            Self::HaProxy => ("haproxy.cfg", haproxy(address, replicas)),
            Self::Nginx => ("nginx.conf", nginx(folder, address, replicas)),
        };
        let conf = folder.join(name).display().to_string();
        fs::write(&conf, text).unwrap();
        let running = match self {
            Self::HaProxy => start_installed("haproxy", &["-db", "-f", &conf]),
            Self::Nginx => {
                let log = folder.join("nginx.log").display().to_string();
                start_installed("nginx", &["-e", &log, "-c", &conf])
            }
        };
        listens(address).await;
        (running, address)
    }
}

/// The configuration of nginx, with one server for all replicas.
fn nginx(folder: &Path, address: SocketAddr, replicas: &[Replica]) -> String {
    let document = fs::read_to_string("docs/configuration.md").unwrap();
    let (_, rest) = document.split_once("```nginx\nproxy_pass").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let location = replaced(
        &format!("proxy_pass{example}"),
        "http://192.0.2.20:8080",
        "http://gateway",
    );
    // A replica that refused a connection would otherwise be left out for ten seconds.
    let servers = replicas
        .iter()
        .map(|replica| format!("server {} max_fails=0;\n", replica.address));
    let servers: String = servers.collect();
    let path = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {path}/{name};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid {path}/nginx.pid;\n\
         events {{ worker_connections 256; }}\nhttp {{\naccess_log off;\n{temporary}\
         upstream gateway {{\n{servers}}}\n\
         server {{ listen {address}; location / {{\n{location}\n}} }}\n}}\n"
    )
}

/// `haproxy.cfg` with these addresses.
fn haproxy(address: SocketAddr, replicas: &[Replica]) -> String {
    let mut text = replaced(
        &deployed("haproxy.cfg"),
        "bind :8080",
        &format!("bind {address}"),
    );
    for (index, replica) in replicas.iter().enumerate() {
        let name = format!("proxy-{}", index + 1);
        let from = format!("server {name} {name}:8080\n");
        let to = format!(
            "server {name} {} port {}\n",
            replica.address,
            replica.admin.port()
        );
        text = replaced(&text, &from, &to);
    }
    text
}

/// The arguments of the simulated cloud in `compose.yaml`.
fn cloud_arguments(address: SocketAddr, state: &Path) -> Vec<String> {
    let compose = deployed("compose.yaml");
    let (_, rest) = compose.split_once("x-cloud:").unwrap();
    let (block, _) = rest.split_once("volumes:").unwrap();
    let arguments = block
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "));
    let mut arguments: Vec<String> = arguments.map(str::to_owned).collect();
    let mut set = |flag: &str, value: String| {
        let argument = arguments.iter_mut().find(|one| one.starts_with(flag));
        *argument.unwrap() = format!("{flag}={value}");
    };
    set("--listen", address.to_string());
    set("--state", state.display().to_string());
    // Every restart then sees several refreshes.
    // A machine that is busy with other tests may stop everything for a second.
    set("--token-lifetime", "6s".to_owned());
    arguments.push("--document-listen=127.0.0.1:0".to_owned());
    arguments
}

/// All processes of `compose.yaml`.
struct Gateway {
    address: SocketAddr,
    replicas: Vec<Replica>,
    clouds: Vec<PathBuf>,
    _others: Vec<Running>,
    _folder: tempfile::TempDir,
}

impl Gateway {
    async fn start(balancer: Balancer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut others = Vec::new();
        let (mut clouds, mut logs) = (Vec::new(), Vec::new());
        for index in 1..=2 {
            let (address, log) = (free_address(), path(&format!("cloud-{index}")));
            let mut command = process::program(folder.path());
            command.args(cloud_arguments(address, &path("cloud.json")));
            others.push(start(command, &log));
            listens(address).await;
            clouds.push(address);
            logs.push(log);
        }
        let redis = free_address();
        fs::create_dir(path("redis")).unwrap();
        let port = redis.port().to_string();
        let data = path("redis").display().to_string();
        let conf = path("redis.conf");
        fs::write(
            &conf,
            replaced(&deployed("redis.conf"), "dir /data", &format!("dir {data}")),
        )
        .unwrap();
        let conf = conf.to_str().unwrap();
        let arguments = [conf, "--port", &port, "--bind", "127.0.0.1"];
        others.push(start_installed("redis-server", &arguments));
        listens(redis).await;
        let mut replicas = Vec::new();
        for index in 1..=REPLICAS {
            let mut replica =
                Replica::new(path(&format!("proxy-{index}")), &clouds, redis, balancer);
            replica.start().await;
            replicas.push(replica);
        }
        let (running, address) = balancer.start(folder.path(), &replicas).await;
        others.push(running);
        Self {
            address,
            replicas,
            clouds: logs,
            _others: others,
            _folder: folder,
        }
    }

    /// What the nodes of the cloud report.
    fn cloud_log(&self) -> String {
        let logs = self.clouds.iter();
        logs.map(|log| fs::read_to_string(log).unwrap()).collect()
    }
}

/// A body that takes a fifth of a second.
fn slow_upload() -> Body {
    let pieces = stream::unfold(0, async |piece| {
        tokio::time::sleep(Duration::from_millis(20)).await; // a slow client
        let data = Bytes::from_static(&[7; UPLOAD / 10]);
        (piece < 10).then(|| (Ok(Frame::data(data)), piece + 1))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// Sends a request to the gateway by its name, in one of two ways. An error tells what is
/// wrong with the response.
async fn request(client: &mut Client, is_upload: bool) -> Result<(), String> {
    let (method, body, length) = if is_upload {
        ("POST", slow_upload(), UPLOAD)
    } else {
        ("GET", whole(""), 0)
    };
    let request = Request::builder()
        .method(method)
        .uri("/api/echo.do")
        .header(header::HOST, "bearer-proxy:8080")
        .body(body)
        .unwrap();
    let error = |error: hyper::Error| format!("{method}: {error:?}");
    let (head, body) = client.send(request).await.map_err(error)?.into_parts();
    let body = body.collect().await.map_err(error)?.to_bytes();
    let seen: Value = serde_json::from_slice(&body).unwrap_or_default();
    if head.status == 200 && seen["authorization_count"] == 1 && seen["body_length"] == length {
        return Ok(());
    }
    Err(format!(
        "{method}: {}: {}",
        head.status,
        String::from_utf8_lossy(&body)
    ))
}

/// Clients that send requests through the load balancer until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let identity = Arc::new(Identity::new());
        let client = |number| {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            let identity = Arc::clone(&identity);
            tokio::spawn(async move {
                let mut failures = Vec::new();
                let connect = || Client::connect(Speech::Http11, address, &identity);
                let mut client = connect().await;
                while !stop.load(SeqCst) {
                    if let Err(failure) = request(&mut client, number < UPLOADERS).await {
                        failures.push(failure);
                        client = connect().await;
                    }
                    sent.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(10)).await; // the rate of the load
                }
                failures
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self {
            stop,
            sent,
            clients,
        }
    }

    /// Stops the clients. Returns the number of requests, and the failures.
    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, SeqCst);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.unwrap());
        }
        (self.sent.load(SeqCst), failures)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_behind_haproxy_fails_no_request() {
    rolling_restart(Balancer::HaProxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_behind_nginx_fails_no_request() {
    rolling_restart(Balancer::Nginx).await;
}

async fn rolling_restart(balancer: Balancer) {
    let mut gateway = Gateway::start(balancer).await;
    let load = Load::start(gateway.address);
    for index in 0..REPLICAS {
        let sent = load.sent.load(SeqCst);
        let replica = &mut gateway.replicas[index];
        let mut running = replica.running.take().unwrap();
        running.terminate().await;
        assert!(load.sent.load(SeqCst) > sent + 10, "the load stands still");
        replica.start().await;
    }
    let (sent, failures) = load.end().await;
    assert_eq!(failures, [""; 0], "{sent} requests");
    let log = gateway.cloud_log();
    assert!(
        !log.contains("revoked") && !log.contains("refused"),
        "{log}"
    );
    eventually("all replicas have one token", async || {
        let mut generations = Vec::new();
        for replica in &gateway.replicas {
            generations.push(metric(replica.admin, GENERATION).await);
        }
        // With tokens of their own, the issuer would have issued more of them.
        let issued = gateway.cloud_log().matches("issued token").count();
        issued > 3 && generations.iter().all(|one| *one == issued as f64)
    })
    .await;
    for replica in &gateway.replicas {
        let log = replica.log();
        assert!(!log.contains("ERROR"), "{log}");
    }
}
