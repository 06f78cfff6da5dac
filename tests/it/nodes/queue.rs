//! Requests beyond what the nodes may take at a time.

use std::time::Duration;

use http::Method;
use socket2::SockRef;
use tokio::task::JoinSet;

use super::{Fleet, marked};
use crate::common::{
    connect, eventually, get,
    node::{Behaviour, GOOD, Node},
    send,
};

/// Starts a GET and waits until it holds a place: at the node, or in the queue.
async fn start(fleet: &Fleet, clients: &mut JoinSet<u16>, path: &'static str) {
    let (address, before) = (fleet.proxy.address, clients.len());
    clients.spawn(async move { send(address, get(path)).await.status().as_u16() });
    fleet
        .proxy
        .until_in_flight(u32::try_from(before + 1).unwrap())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_in_order() {
    let more = [
        ("upstream.max_requests", "1"),
        ("upstream.queue_timeout", "30s"),
        ("proxy.workers", "1"),
    ];
    let mut fleet = Fleet::start(&[Behaviour::Stopped], &more).await;
    let mut clients = JoinSet::new();
    for path in ["/1", "/2", "/3", "/4", "/5"] {
        start(&fleet, &mut clients, path).await;
    }
    fleet.nodes[0].set(GOOD).await;
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    let targets: Vec<_> = fleet.nodes[0]
        .seen()
        .into_iter()
        .map(|one| one.target)
        .collect();
    assert_eq!(targets, ["/1", "/2", "/3", "/4", "/5"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_and_a_long_wait_get_503() {
    let more = [
        ("upstream.max_requests", "1"),
        ("upstream.queue", "2"),
        ("upstream.queue_timeout", "30s"),
        ("proxy.workers", "1"),
    ];
    let mut fleet = Fleet::start(&[Behaviour::Stopped, Behaviour::Stopped], &more).await;
    let mut clients = JoinSet::new();
    for path in ["/1", "/2", "/3", "/4"] {
        start(&fleet, &mut clients, path).await;
    }
    let response = fleet.proxy.get("/full").await;
    assert_eq!(response.status(), 503);
    assert!(
        response.headers().contains_key("retry-after"),
        "{response:?}"
    );
    for node in &mut fleet.nodes {
        node.set(GOOD).await;
    }
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    fleet.get_times(4).await.assert_all(200, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_leaves_the_queue_after_its_time() {
    let more = [
        ("upstream.max_requests", "1"),
        ("upstream.queue_timeout", "200ms"),
    ];
    let mut fleet = Fleet::start(&[Behaviour::Stopped], &more).await;
    let mut clients = JoinSet::new();
    start(&fleet, &mut clients, "/1").await;
    let response = fleet.proxy.get("/late").await;
    assert_eq!(response.status(), 503);
    assert!(
        response.headers().contains_key("retry-after"),
        "{response:?}"
    );
    fleet.nodes[0].set(GOOD).await;
    assert_eq!(clients.join_next().await.unwrap().unwrap(), 200);
    assert_eq!(fleet.received(), 1, "the late one was never sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_the_queue_frees_its_place() {
    let more = [
        ("upstream.max_requests", "1"),
        ("upstream.queue", "1"),
        ("upstream.queue_timeout", "30s"),
        ("proxy.workers", "1"),
    ];
    let mut fleet = Fleet::start(&[Behaviour::Stopped], &more).await;
    let mut clients = JoinSet::new();
    start(&fleet, &mut clients, "/1").await;
    let request = "GET /2 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let leaving = connect(fleet.proxy.address, request).await;
    fleet.proxy.until_in_flight(2).await;
    SockRef::from(&leaving)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(leaving);
    fleet.proxy.until_in_flight(1).await;
    start(&fleet, &mut clients, "/3").await;
    fleet.nodes[0].set(GOOD).await;
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_at_most_max_requests_and_none_fails() {
    let more = [
        ("upstream.max_requests", "2"),
        ("upstream.queue_timeout", "30s"),
    ];
    let delay = Behaviour::Good(Duration::from_millis(5));
    let fleet = Fleet::start(&[delay; 3], &more).await;
    let tally = fleet
        .load(40, 800, |number| marked(&Method::GET, number))
        .await;
    tally.assert_all(200, 800);
    eventually("no request is in flight", async || {
        fleet.proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
    })
    .await;
    let most: Vec<_> = fleet.nodes.iter().map(Node::most_at_once).collect();
    assert!(most.iter().all(|most| *most <= 2), "{most:?}");
}
