//! Names of upstreams, as the program resolves them with its own hosts file and nameservers.

mod addresses;
mod nameservers;
mod seen;

use std::{net::SocketAddr, process::Stdio, time::Duration};

use bytes::Bytes;
use http::Response;
use tokio::net::TcpStream;

use crate::common::{
    eventually, get, issuer,
    names::{BlackHole, Mode, Names, Nameserver},
    post,
    process::{Program, Running, free_port},
    send,
    tls::{authority, identity, server_config},
    upstream::{Reply, RunningUpstream, Upstream, ok, response},
};

/// How often the tests resolve names.
const REFRESH: &str = "upstream.dns_refresh = \"300ms\"\n";

/// The program in front of a name, with its own files for name resolution.
struct Machine {
    names: Names,
    program: Program,
    port: u16,
}

impl Machine {
    /// In front of `http://NAME:PORT`, with an issuer at an IP address and further lines of
    /// configuration.
    async fn new(name: &str, more: &str) -> Self {
        let (names, port) = (Names::new(), free_port());
        let more = format!("token.issuer = \"{}\"\n{more}", issuer().await);
        let program = Program::new(&format!("http://{name}:{port}"), &more);
        Self {
            names,
            program,
            port,
        }
    }

    /// Writes the configuration again, with the same issuer.
    fn configure(&self, endpoint: &str, more: &str) {
        let text = self.program.read("proxy.toml");
        let issuer = text
            .lines()
            .find(|line| line.starts_with("token.issuer"))
            .unwrap();
        self.program
            .configure(endpoint, &format!("{issuer}\n{more}"));
    }

    fn start(&self) -> Running {
        self.program.start_as(self.names.command(&self.program))
    }

    fn at(&self, ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), self.port)
    }

    /// An upstream at this address, which closes each connection after its response: every request
    /// needs a new connection.
    async fn upstream(&self, ip: &str) -> RunningUpstream {
        let upstream = Upstream::always(closing()).unrecorded();
        upstream.start_at(self.at(ip)).await
    }

    fn origin(&self) -> String {
        format!("http://cloud.test:{}", self.port)
    }

    async fn get(&self, path: &str) -> Response<Bytes> {
        send(self.program.address, get(path)).await
    }

    /// Waits until a request is served.
    async fn serves(&self) {
        eventually("a request is served", async || {
            self.get("/").await.status() == 200
        })
        .await;
    }

    /// Sends requests, all of which are served, until the condition is true.
    async fn serves_until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        eventually(what, async || {
            self.all_are_served(2).await;
            condition().await
        })
        .await;
    }

    async fn all_are_served(&self, requests: usize) {
        for number in 0..requests {
            let request = if number % 2 == 0 {
                get("/")
            } else {
                post("/", "body")
            };
            let response = send(self.program.address, request).await;
            assert_eq!(
                response.status(),
                200,
                "{number}: {response:?} {}",
                self.program.log()
            );
        }
    }
}

/// A response that announces the end of its connection.
fn closing() -> Reply {
    response("200 OK", "Connection: close\r\n", "ok").close()
}

/// What the system's resolver finds, as a program in these namespaces sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_and_the_nameserver_of_these_tests() {
    let (names, nameserver) = (Names::new(), Nameserver::start().await);
    names.nameservers(&[nameserver.address], "timeout:30 attempts:1");
    let look_up = || {
        let mut command = names.command_of("getent");
        command
            .args(["ahosts", "cloud.test"])
            .stdout(Stdio::piped());
        Running(command.spawn().unwrap())
    };
    let found = async || {
        let mut running = look_up();
        running.ended().await;
        let text = std::io::read_to_string(running.0.stdout.take().unwrap()).unwrap();
        let lines = text.lines().filter(|line| line.contains("STREAM"));
        let mut found: Vec<String> = lines
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        found.sort();
        found
    };
    assert!(found().await.is_empty());
    names.host("cloud.test", &["127.0.0.2", "::1"]);
    assert_eq!(found().await, ["127.0.0.2", "::1"]);
    names.hosts("");
    nameserver.set("cloud.test", &["127.0.0.3", "::2", "127.0.0.4"]);
    assert_eq!(found().await, ["127.0.0.3", "127.0.0.4", "::2"]);
    for mode in [Mode::Fails, Mode::Refuses, Mode::Empty] {
        let before = nameserver.queries();
        nameserver.mode(mode).await;
        assert!(found().await.is_empty(), "{mode:?}");
        assert!(nameserver.queries() > before);
    }
    nameserver.mode(Mode::Hangs).await;
    let mut running = look_up();
    eventually("both queries arrive", async || nameserver.kept() == 2).await;
    assert!(running.0.try_wait().unwrap().is_none());
    nameserver.mode(Mode::Serves).await;
    assert_eq!(running.ended().await.code(), Some(0));
    nameserver.set("cloud.test", &[]);
    assert!(found().await.is_empty());

    let at = SocketAddr::from(([127, 0, 0, 2], free_port()));
    let hole = BlackHole::at(at);
    let limit = Duration::from_millis(300);
    let connecting = tokio::time::timeout(limit, TcpStream::connect(at));
    assert!(connecting.await.is_err(), "no SYN is dropped");
    drop(hole);
}

/// The issuer has the same name, which only the hosts file knows without the dot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_an_issuer_may_end_in_a_dot() {
    let machine = Machine::new("cloud.test.", "").await;
    machine.names.host("cloud.test", &["127.0.0.2"]);
    let cloud = Upstream::new().issuing();
    let _cloud = cloud.start_at(machine.at("127.0.0.2")).await;
    let origin = format!("http://cloud.test.:{}", machine.port);
    machine.program.configure(&origin, "");
    let _running = machine.start();
    machine.program.ready().await;
    machine.all_are_served(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_with_an_underscore_or_a_dot_at_the_end() {
    for name in ["cloud_1.test", "cloud.test.", "cloud_1.test."] {
        let machine = Machine::new(name, "").await;
        let upstream = machine.upstream("127.0.0.2").await;
        let nameserver = Nameserver::start().await;
        nameserver.set(name.trim_end_matches('.'), &["127.0.0.2"]);
        machine.names.nameservers(&[nameserver.address], "");
        let _running = machine.start();
        machine.program.ready().await;
        machine.all_are_served(4).await;
        assert_eq!(upstream.count(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dot_at_the_end_works_with_the_hosts_file_and_with_tls() {
    let authority = authority();
    let machine = Machine::new("cloud.test.", "").await;
    machine.names.host("cloud.test", &["127.0.0.2"]);
    let tls = server_config(&authority, identity(&authority, "cloud.test", false), false);
    let upstream = Upstream::always(ok("ok")).unrecorded();
    let upstream = upstream.start_tls_at(machine.at("127.0.0.2"), tls).await;
    machine.program.write("ca.pem", authority.pem());
    machine.configure(
        &format!("https://cloud.test.:{}", machine.port),
        "upstream.tls.ca_file = \"ca.pem\"\n",
    );
    let _running = machine.start();
    machine.program.ready().await;
    machine.all_are_served(4).await;
    assert_eq!(upstream.count(), 4);
}

/// RFC 6761 §6.3: these names are loopback, whatever nameservers know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_below_localhost_need_neither_a_file_nor_a_nameserver() {
    for name in ["localhost", "app.localhost", "app.localhost."] {
        let machine = Machine::new(name, "").await;
        let nameserver = Nameserver::start().await;
        machine.names.nameservers(&[nameserver.address], "");
        let upstream = machine.upstream("127.0.0.1").await;
        let _running = machine.start();
        machine.program.ready().await;
        machine.all_are_served(4).await;
        assert_eq!(upstream.count(), 4);
    }
}
