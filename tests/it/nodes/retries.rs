//! How often a request is sent, and which requests are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Method;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::Instant};

use super::{Fleet, Load, Tally, marked};
use crate::common::{
    issuer,
    node::{Behaviour, GOOD, Node},
    proxy, read_head, scripted,
};

const AT_ONCE: Behaviour = Behaviour::Good(Duration::ZERO);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_post_is_seen_twice_while_nodes_are_killed() {
    const POSTS: usize = 10_000;
    let mut fleet = Fleet::start(&[AT_ONCE; 3], &[]).await;
    let request = |number| marked(&Method::POST, number);
    let address = fleet.proxy.address;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let load = tokio::spawn(async move {
        let tally = Load::start(address, 16, POSTS, request).finish().await;
        over.store(true, Relaxed);
        tally
    });
    let mut kills = 0;
    while !is_over.load(Relaxed) {
        let before = fleet.received();
        fleet.nodes[kills % 3].restart().await;
        kills += 1;
        // Some requests between two kills.
        while fleet.received() < before + 50 && !is_over.load(Relaxed) {
            tokio::task::yield_now().await;
        }
    }
    let tally = load.await.unwrap();
    assert!(kills >= 20, "{kills}");

    let mut seen = BTreeMap::<String, usize>::new();
    for one in fleet.nodes.iter().flat_map(Node::seen) {
        *seen.entry(one.target).or_default() += 1;
    }
    let twice: BTreeSet<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // A request fails if its connection broke after its first byte was written, and for no other
    // reason: the app can know from the status whether it may have been processed.
    assert_eq!(tally.of(200) + tally.of(502), POSTS, "{tally:?}");
    let broken = fleet.proxy.rejected("broken_off").await;
    assert_eq!(broken, tally.of(502) as f64, "{tally:?}");
    assert!(seen.len() >= tally.of(200));
    assert!(tally.of(502) <= 16 * kills, "{tally:?}, {kills} kills");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_have_a_budget() {
    const REQUESTS: usize = 1500;
    for kind in [Behaviour::Status(503), Behaviour::Breaks] {
        let fleet = Fleet::start(&[kind; 3], &[]).await;
        let begin = Instant::now();
        let tally = fleet
            .load(12, REQUESTS, |number| marked(&Method::GET, number))
            .await;
        let status = if kind == Behaviour::Breaks { 502 } else { 503 };
        tally.assert_all(status, REQUESTS);
        // A fifth of the requests; at least 30 in 10 s, and three a second, for each of two workers.
        let seconds = begin.elapsed().as_secs() as usize + 2;
        let at_most = REQUESTS / 5 + 60 + 6 * seconds;
        let retries = fleet.received() - REQUESTS;
        assert!(retries <= at_most, "{kind:?}: {retries} in {seconds} s");
        assert!(retries > 0, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_sent_three_times_at_most() {
    for kind in [Behaviour::Status(503), Behaviour::Breaks] {
        let fleet = Fleet::start(&[kind; 5], &[]).await;
        fleet.get_times(1).await;
        assert_eq!(fleet.received(), 3, "{kind:?}: {:?}", fleet.counts());
        assert!(fleet.counts().iter().all(|count| *count <= 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_repetition_without_an_expectation_adds_no_retries() {
    let heads = Arc::new(AtomicUsize::new(0));
    let mut origins = Vec::new();
    for _ in 0..5 {
        let heads = Arc::clone(&heads);
        let node = scripted(move |_, mut stream| {
            let heads = Arc::clone(&heads);
            async move {
                read_head(&mut stream).await?;
                heads.fetch_add(1, Relaxed);
                Ok(())
            }
        });
        origins.push(format!("http://{}", node.await));
    }
    let issuer = issuer().await;
    let proxy = proxy(&origins.join(","), &[("token.issuer", issuer.as_str())]);
    proxy.ready().await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = "PUT /file HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\
                Expect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut response = read_head(&mut stream).await.unwrap();
    while response.starts_with("HTTP/1.1 100") {
        response = read_head(&mut stream).await.unwrap();
    }
    assert!(response.starts_with("HTTP/1.1 502"), "{response}");
    // Two retries, and the repetition.
    assert_eq!(heads.load(Relaxed), 1 + 2 + 1);
}

/// Four requests with a method, one after the other, to a bad node and a good one. Returns the
/// statuses, and how many requests the bad node got.
async fn beside(kind: Behaviour, method: &Method, more: &[(&str, &str)]) -> (Tally, usize) {
    let fleet = Fleet::start(&[kind, GOOD], more).await;
    let sent = method.clone();
    let tally = fleet.load(1, 4, move |number| marked(&sent, number)).await;
    let (bad, all) = (fleet.nodes[0].count(), fleet.received());
    assert!(bad > 0, "{kind:?} {method}");
    let retries = all - 4;
    assert!(retries == 0 || retries == bad, "{kind:?} {method}: {all}");
    assert_eq!(tally.of(200), 4 - bad + retries, "{kind:?} {method}");
    (tally, bad)
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_is_retried_for_methods_that_read() {
    for name in ["GET", "HEAD", "OPTIONS"] {
        for status in [502, 503, 504] {
            let (tally, _) = beside(Behaviour::Status(status), &method(name), &[]).await;
            tally.assert_all(200, 4);
        }
    }
    for name in ["POST", "PUT", "DELETE", "PATCH", "PROPFIND"] {
        let (tally, bad) = beside(Behaviour::Status(503), &method(name), &[]).await;
        assert_eq!(tally.of(503), bad, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_statuses_that_are_retried_can_be_configured() {
    for (list, status, is_retried) in [
        ("500,503", 500, true),
        ("500", 503, false),
        ("", 503, false),
        ("502,503,504", 500, false),
    ] {
        let more = [("upstream.retry_statuses", list)];
        let (tally, bad) = beside(Behaviour::Status(status), &Method::GET, &more).await;
        let relayed = if is_retried { 0 } else { bad };
        assert_eq!(tally.of(status), relayed, "{list:?}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_is_retried_for_idempotent_methods() {
    for name in [
        "GET", "HEAD", "PUT", "DELETE", "PROPFIND", "REPORT", "SEARCH",
    ] {
        let (tally, _) = beside(Behaviour::Breaks, &method(name), &[]).await;
        tally.assert_all(200, 4);
    }
    for name in ["POST", "PATCH", "LOCK"] {
        let (tally, bad) = beside(Behaviour::Breaks, &method(name), &[]).await;
        assert_eq!(tally.of(502), bad, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_response_in_time_is_never_retried() {
    let limit = [("upstream.response_timeout", "200ms")];
    for name in ["GET", "POST"] {
        let (tally, bad) = beside(Behaviour::Silent, &method(name), &limit).await;
        assert_eq!(tally.of(504), bad, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_whose_head_has_come_is_never_retried() {
    let limit = [("upstream.body_idle_timeout", "200ms")];
    let (tally, bad) = beside(Behaviour::Half, &Method::GET, &limit).await;
    assert_eq!(tally.of(0), bad);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_is_relayed_if_no_other_node_is_in() {
    let fleet = Fleet::start(&[Behaviour::Status(503), Behaviour::Refuses], &[]).await;
    fleet.get_times(20).await.assert_all(503, 20);
    // Of these, some were retried before the other node was out.
    fleet.until_in(1, false).await;
    let before = fleet.received();
    let response = fleet.proxy.get("/").await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.body(), "ok", "the node's own response");
    assert_eq!(fleet.received(), before + 1);
}
