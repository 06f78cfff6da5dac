//! Nameservers that fail, hang, or do not know a name for a moment.

use std::time::Duration;

use tokio::time::Instant;

use super::{Machine, REFRESH, closing};
use crate::common::{
    names::{Mode, Nameserver},
    process::listens,
    upstream::Upstream,
};

/// The resolver waits two seconds for the first nameserver, longer than a request waits for a
/// connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c3_a_dead_first_nameserver() {
    let more = format!("upstream.connect_timeout = \"500ms\"\n{REFRESH}");
    let machine = Machine::new("cloud.test", &more).await;
    let upstream = machine.upstream("127.0.0.2").await;
    let (dead, alive) = (Nameserver::start().await, Nameserver::start().await);
    dead.mode(Mode::Hangs).await;
    alive.set("cloud.test", &["127.0.0.2"]);
    let both = [dead.address, alive.address];
    machine.names.nameservers(&both, "timeout:2");
    let _running = machine.start();
    machine.program.ready().await;
    machine.serves().await;
    let (queries, before) = (alive.queries(), upstream.count());
    machine
        .serves_until("the name resolves again, twice", async || {
            alive.queries() > queries + 3
        })
        .await;
    assert!(dead.queries() > 0 && upstream.count() > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c3_a_name_that_is_gone_for_a_moment_and_comes_back() {
    let machine = Machine::new("cloud.test", REFRESH).await;
    let first = machine.upstream("127.0.0.2").await;
    let nameserver = Nameserver::start().await;
    nameserver.set("cloud.test", &["127.0.0.2"]);
    machine.names.nameservers(&[nameserver.address], "");
    let _running = machine.start();
    machine.program.ready().await;
    machine.all_are_served(4).await;
    // Served by new connections, while look-ups fail in every way.
    for mode in [Mode::Fails, Mode::Refuses, Mode::Empty, Mode::Serves] {
        if mode == Mode::Serves {
            nameserver.set("cloud.test", &[]); // does not exist
        }
        nameserver.mode(mode).await;
        let queries = nameserver.queries();
        let is_over = async || nameserver.queries() > queries + 6;
        machine.serves_until("look-ups fail", is_over).await;
    }
    assert!(first.connections() > 4);
    let log = machine.program.log();
    let warnings = log
        .lines()
        .filter(|line| line.contains("cannot resolve cloud.test"));
    assert_eq!(warnings.count(), 1, "{log}");
    // The name comes back with another address.
    let second = machine.upstream("127.0.0.3").await;
    nameserver.set("cloud.test", &["127.0.0.3"]);
    machine
        .serves_until("the new address is used", async || second.count() > 0)
        .await;
    let log = machine.program.log();
    assert!(log.contains("cloud.test resolves again"), "{log}");
}

/// The upstream of the name is reached late; everything else is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resolver_that_hangs_at_the_start_delays_no_other_request() {
    let other = Upstream::always(closing()).start().await;
    let machine = Machine::new("cloud.test", "").await;
    machine.configure(
        &machine.origin(),
        &format!(
            "upstream.connect_timeout = \"300ms\"\n\
             [upstreams.other]\nendpoints = [\"{other}\"]\n\
             [upstreams.both]\nendpoints = [\"{}\", \"{other}\"]\n\
             [[route]]\nprefix = \"/other\"\nupstream = \"other\"\n\
             [[route]]\nprefix = \"/both\"\nupstream = \"both\"\n",
            machine.origin(),
            other = other.origin(),
        ),
    );
    let nameserver = Nameserver::start().await;
    nameserver.set("cloud.test", &["127.0.0.2"]);
    nameserver.mode(Mode::Hangs).await;
    machine
        .names
        .nameservers(&[nameserver.address], "timeout:30 attempts:1");
    let upstream = machine.upstream("127.0.0.2").await;
    let _running = machine.start();
    machine.program.ready().await;
    // In all less than the resolver takes for one of them.
    let began = Instant::now();
    for _ in 0..20 {
        for path in ["/other", "/both"] {
            let response = machine.get(path).await;
            assert_eq!(response.status(), 200, "{path}: {}", machine.program.log());
        }
    }
    for _ in 0..3 {
        let response = machine.get("/").await;
        assert_eq!(response.status(), 502);
        let status = response.headers()["proxy-status"].to_str().unwrap();
        assert!(status.contains("error=dns_error"), "{status}");
    }
    assert!(began.elapsed() < Duration::from_secs(20));
    // One look-up at a time, of both families, although the name stands in two upstreams.
    assert_eq!((nameserver.kept(), upstream.count()), (2, 0));
    nameserver.mode(Mode::Serves).await;
    machine.serves().await;
    machine.all_are_served(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_the_first_look_up() {
    let machine = Machine::new("cloud.test", "upstream.connect_timeout = \"25s\"\n").await;
    let nameserver = Nameserver::start().await;
    nameserver.set("cloud.test", &["127.0.0.2"]);
    nameserver.mode(Mode::Hangs).await;
    let options = "timeout:30 attempts:1";
    machine.names.nameservers(&[nameserver.address], options);
    let _upstream = machine.upstream("127.0.0.2").await;
    let _running = machine.start();
    machine.program.ready().await;
    let mut request = std::pin::pin!(machine.get("/"));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut request);
    assert!(early.await.is_err(), "the name has no address yet");
    nameserver.mode(Mode::Serves).await;
    assert_eq!(request.await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_to_needs_no_look_up() {
    let machine = Machine::new("cloud.test", REFRESH).await;
    let address = machine.at("127.0.0.2");
    let more = format!("upstream.connect_to = \"{address}\"\n{REFRESH}");
    machine.configure(&machine.origin(), &more);
    let nameserver = Nameserver::start().await;
    machine.names.nameservers(&[nameserver.address], "");
    let _upstream = machine.upstream("127.0.0.2").await;
    let _running = machine.start();
    machine.program.ready().await;
    machine.all_are_served(10).await;
    assert_eq!(nameserver.queries(), 0);
}

/// A resolver that hangs holds one thread for each name, not one for each of its users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstreams_and_the_issuer_share_the_look_up_of_a_name() {
    let machine = Machine::new("cloud.test", "").await;
    let cloud = Upstream::new().issuing();
    let _cloud = cloud.start_at(machine.at("127.0.0.2")).await;
    let origin = machine.origin();
    let more = format!(
        "upstream.connect_timeout = \"300ms\"\ntoken.wait = \"300ms\"\n\
         [upstreams.other]\nendpoints = [\"{origin}\"]\n\
         [[route]]\nprefix = \"/other\"\nupstream = \"other\"\n"
    );
    // The issuer is the cloud.
    machine.program.configure(&origin, &more);
    let nameserver = Nameserver::start().await;
    nameserver.set("cloud.test", &["127.0.0.2"]);
    nameserver.mode(Mode::Hangs).await;
    let options = "timeout:30 attempts:1";
    machine.names.nameservers(&[nameserver.address], options);
    let _running = machine.start();
    listens(machine.program.address).await;
    for path in ["/", "/other", "/"] {
        let response = machine.get(path).await;
        assert!(response.status().is_server_error(), "{response:?}");
    }
    nameserver.mode(Mode::Serves).await;
    machine.program.ready().await;
    // One for each family of addresses.
    assert_eq!(nameserver.queries(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resolver_that_hangs_later_delays_no_request_and_no_stop() {
    let machine = Machine::new("cloud.test", REFRESH).await;
    let nameserver = Nameserver::start().await;
    nameserver.set("cloud.test", &["127.0.0.2"]);
    machine
        .names
        .nameservers(&[nameserver.address], "timeout:30 attempts:1");
    let _upstream = machine.upstream("127.0.0.2").await;
    let mut running = machine.start();
    machine.program.ready().await;
    machine.all_are_served(4).await;
    nameserver.mode(Mode::Hangs).await;
    machine
        .serves_until("a look-up hangs", async || nameserver.kept() > 0)
        .await;
    let began = Instant::now();
    // Longer than `dns_refresh`: no second look-up begins.
    while began.elapsed() < Duration::from_secs(2) {
        machine.all_are_served(10).await;
    }
    assert!(nameserver.kept() <= 2, "{} queries", nameserver.kept());
    running.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_does_not_exist_at_the_start_is_named_and_used_once_it_does() {
    let machine = Machine::new("cloud.test", REFRESH).await;
    let nameserver = Nameserver::start().await;
    machine.names.nameservers(&[nameserver.address], "");
    let upstream = machine.upstream("127.0.0.2").await;
    let _running = machine.start();
    machine.program.ready().await;
    let began = Instant::now();
    for _ in 0..10 {
        let response = machine.get("/").await;
        assert_eq!(response.status(), 502);
        let text = String::from_utf8_lossy(response.body());
        assert!(text.contains("cloud.test"), "{text}");
        let status = response.headers()["proxy-status"].to_str().unwrap();
        assert!(status.contains("error=dns_error"), "{status}");
    }
    // No look-up for each request, and none without a pause.
    let rounds = usize::try_from(began.elapsed().as_millis() / 300).unwrap();
    assert!(
        nameserver.queries() <= 2 * (3 * rounds + 6),
        "{}",
        nameserver.queries()
    );
    nameserver.set("cloud.test", &["127.0.0.2"]);
    machine.serves().await;
    machine.all_are_served(4).await;
    assert_eq!(upstream.count(), 5);
}
