//! Names with several addresses, of both families, and lists of addresses that change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Notify,
    task::JoinHandle,
};

use super::{Machine, REFRESH, closing};
use crate::common::{
    Client, connect, eventually, get,
    names::BlackHole,
    post, read_head, read_to_close, scripted_at,
    upstream::{Request, Upstream, ok},
    web::{self, Identity, Speech},
};

/// Each address of a name that is dead in some way stands before a good one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c3_a_name_with_a_dead_ipv6_address_and_a_live_ipv4_address() {
    for is_silent in [false, true] {
        let machine = Machine::new("cloud.test", "").await;
        machine.names.host("cloud.test", &["::1", "127.0.0.1"]);
        let upstream = machine.upstream("127.0.0.1").await;
        let _hole = is_silent.then(|| BlackHole::at(machine.at("::1")));
        let _running = machine.start();
        machine.program.ready().await;
        machine.all_are_served(10).await;
        assert_eq!(upstream.count(), 10);
    }
}

/// Two families of addresses are two ways to one server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_family_is_used_only_while_the_first_does_not_connect() {
    let machine = Machine::new("cloud.test", REFRESH).await;
    let ipv4 = machine.upstream("127.0.0.1").await;
    let ipv6 = Switch::start(machine.at("::1")).await;
    // The resolver puts IPv6 first (RFC 6724).
    machine.names.host("cloud.test", &["127.0.0.1", "::1"]);
    let _running = machine.start();
    machine.program.ready().await;
    machine.all_are_served(20).await;
    assert_eq!((ipv6.served(), ipv4.count()), (20, 0));
    let ipv6 = ipv6.off().await;
    machine
        .serves_until("IPv4 is used", async || ipv4.count() > 4)
        .await;
    let ipv6 = ipv6.on().await;
    machine
        .serves_until("IPv6 is used again", async || ipv6.served() > 4)
        .await;
    machine
        .serves_until("IPv6 alone is used", async || {
            let before = ipv4.count();
            machine.all_are_served(20).await;
            ipv4.count() == before
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_25_a_new_address_is_used_and_a_removed_one_only_ends_its_downloads() {
    for (speech, version) in [(Speech::Http11, "never"), (Speech::Http2, "always")] {
        let more = format!("upstream.dns_refresh = \"1s\"\nupstream.http2 = \"{version}\"\n");
        let machine = Machine::new("cloud.test", &more).await;
        let resume = Arc::<Notify>::default();
        let old = with_download(machine.at("127.0.0.2"), speech, &resume).await;
        let new = with_download(machine.at("127.0.0.3"), speech, &resume).await;
        let (old, new) = (|| old.load(SeqCst), || new.load(SeqCst));
        machine.names.host("cloud.test", &["127.0.0.2"]);
        let mut running = machine.start();
        machine.program.ready().await;
        machine.all_are_served(4).await;

        let mut download = connect(
            machine.program.address,
            "GET /download HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
        .await;
        read_head(&mut download).await.unwrap();
        let mut half = [0; 5];
        download.read_exact(&mut half).await.unwrap();

        machine.names.host("cloud.test", &["127.0.0.3"]);
        let noticed = machine.serves_until("the new address is used", async || new() > 0);
        // dns_refresh and 5 s.
        let limit = Duration::from_secs(6);
        tokio::time::timeout(limit, noticed).await.expect("in time");
        // Workers learn of it one after the other.
        machine
            .serves_until("the old address is no longer used", async || {
                let before = old();
                machine.all_are_served(20).await;
                old() == before
            })
            .await;
        let before = old();
        machine.all_are_served(40).await;
        assert_eq!(old(), before);

        resume.notify_one();
        assert_eq!(read_to_close(&mut download).await, "other");
        let log = machine.program.log();
        let change = "the addresses of cloud.test changed to: 127.0.0.3";
        assert!(log.contains(change), "{log}");
        running.terminate().await;
    }
}

/// Clients with kept connections, whose requests are under way at each change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_changes_all_the_time_fails_no_request() {
    let more = "upstream.dns_refresh = \"50ms\"\nupstream.slow_start = \"100ms\"\n";
    let machine = Machine::new("cloud.test", more).await;
    let mut upstreams = Vec::new();
    for ip in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        let upstream = Upstream::new().unrecorded();
        // One response of three closes its connection.
        let upstream = upstream.on("*", |request: &Request| match request.number % 3 {
            0 => closing(),
            _ => ok("ok"),
        });
        upstreams.push(upstream.start_at(machine.at(ip)).await);
    }
    machine.names.host("cloud.test", &["127.0.0.2"]);
    let _running = machine.start();
    machine.program.ready().await;
    machine.serves().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let clients = (0..6).map(|number| {
        let (address, is_over) = (machine.program.address, Arc::clone(&is_over));
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            let mut statuses = BTreeMap::<u16, usize>::new();
            while !is_over.load(SeqCst) {
                let request = match number % 2 {
                    0 => get("/"),
                    _ => post("/", "body"),
                };
                let response = client.send(request).await.unwrap();
                *statuses.entry(response.status().as_u16()).or_default() += 1;
            }
            statuses
        })
    });
    let clients: Vec<_> = clients.collect();
    let changes = || machine.program.log().matches("changed to").count();
    for round in 0..12 {
        let lists: [&[&str]; 5] = [
            &["127.0.0.3"],
            &["127.0.0.2", "127.0.0.4"],
            &["127.0.0.4"],
            &["127.0.0.3", "127.0.0.4"],
            &["127.0.0.2"],
        ];
        let before = changes();
        machine.names.host("cloud.test", lists[round % lists.len()]);
        eventually("the change is seen", async || changes() > before).await;
        // A failed look-up between two changes.
        machine.names.hosts("");
    }
    is_over.store(true, SeqCst);
    for client in clients {
        let statuses = client.await.unwrap();
        let seen: Vec<_> = statuses.keys().copied().collect();
        assert_eq!(seen, [200], "{statuses:?} {}", machine.program.log());
    }
    assert!(upstreams.iter().all(|upstream| upstream.count() > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_address_gets_its_share() {
    let machine = Machine::new("cloud.test", REFRESH).await;
    let (first, second) = (
        machine.upstream("127.0.0.2").await,
        machine.upstream("127.0.0.3").await,
    );
    machine.names.host("cloud.test", &["127.0.0.2"]);
    let _running = machine.start();
    machine.program.ready().await;
    machine.all_are_served(4).await;
    assert_eq!((first.count(), second.count()), (4, 0));
    machine
        .names
        .host("cloud.test", &["127.0.0.2", "127.0.0.3"]);
    machine
        .serves_until("both are used", async || second.count() > 4)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_with_65_and_more_addresses_uses_64() {
    for count in [65, 200] {
        let machine = Machine::new("cloud.test", REFRESH).await;
        let reached = server_on_all_addresses(machine.port).await;
        let addresses: Vec<_> = (1..=count).map(|n| format!("127.9.9.{n}")).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        machine.names.host("cloud.test", &addresses);
        let _running = machine.start();
        machine.program.ready().await;
        let reached = || reached.lock().unwrap().len();
        machine
            .serves_until("64 are used", async || reached() >= 64)
            .await;
        machine.all_are_served(100).await;
        assert_eq!(reached(), 64);
    }
}

/// A server whose port can be closed. Each response closes its connection.
struct Switch {
    address: SocketAddr,
    served: Arc<AtomicUsize>,
    task: Option<JoinHandle<()>>,
}

impl Switch {
    async fn start(address: SocketAddr) -> Self {
        let this = Self {
            address,
            served: Arc::default(),
            task: None,
        };
        this.on().await
    }

    async fn on(mut self) -> Self {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let served = Arc::clone(&self.served);
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if read_head(&mut stream)
                    .await
                    .is_ok_and(|head| !head.is_empty())
                {
                    served.fetch_add(1, SeqCst);
                    let _ = stream.write_all(CLOSING).await;
                }
            }
        });
        self.task = Some(task);
        self
    }

    /// Closes the port.
    async fn off(mut self) -> Self {
        let task = self.task.take().unwrap();
        task.abort();
        let _ = task.await;
        self
    }

    fn served(&self) -> usize {
        self.served.load(SeqCst)
    }
}

const CLOSING: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// An upstream whose responses to `/download` stop in the middle until `resume`. Counts requests.
async fn with_download(
    address: SocketAddr,
    speech: Speech,
    resume: &Arc<Notify>,
) -> Arc<AtomicUsize> {
    let (requests, resume) = (Arc::<AtomicUsize>::default(), Arc::clone(resume));
    let count = Arc::clone(&requests);
    web::serve_at(address, speech, &Identity::new(), move |request| {
        count.fetch_add(1, SeqCst);
        let (is_download, resume) = (request.uri().path() == "/download", Arc::clone(&resume));
        let second = async move {
            if is_download {
                resume.notified().await;
            }
            Ok(Frame::data(Bytes::from("other")))
        };
        let first = stream::once(async { Ok(Frame::data(Bytes::from("first"))) });
        let body = StreamBody::new(first.chain(stream::once(second))).boxed_unsync();
        let mut response = Response::new(body);
        let length = HeaderValue::from_static("10");
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
        async { response }
    })
    .await;
    requests
}

/// The addresses that a server on all of them was reached at.
async fn server_on_all_addresses(port: u16) -> Arc<Mutex<BTreeSet<IpAddr>>> {
    let reached = Arc::<Mutex<BTreeSet<IpAddr>>>::default();
    let shared = Arc::clone(&reached);
    scripted_at(
        SocketAddr::from(([0, 0, 0, 0], port)),
        move |_, mut stream| {
            let reached = Arc::clone(&shared);
            async move {
                if !read_head(&mut stream).await?.is_empty() {
                    reached.lock().unwrap().insert(stream.local_addr()?.ip());
                    stream.write_all(CLOSING).await?;
                }
                Ok(())
            }
        },
    )
    .await;
    reached
}
