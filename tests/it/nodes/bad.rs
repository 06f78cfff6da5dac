//! One bad node beside two good ones.

use std::{collections::BTreeMap, time::Duration};

use http::Method;

use super::{Fleet, Load, marked};
use crate::common::{
    eventually,
    node::{Behaviour, GOOD, REFUSES_TOKENS},
};

const CLIENTS: usize = 12;

/// The share of a node that fails fast: five failures, and what was under way meanwhile.
const BEFORE_EJECTION: usize = 5 + 2 * CLIENTS;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_beside_a_bad_node() {
    for kind in [
        Behaviour::Refuses,
        Behaviour::DropsSyns,
        Behaviour::Resets,
        Behaviour::Closes,
        Behaviour::Breaks,
        Behaviour::Status(502),
        Behaviour::Status(503),
        Behaviour::Status(504),
        REFUSES_TOKENS,
    ] {
        let fleet = Fleet::start(&[GOOD, GOOD, kind], &[]).await;
        let tally = fleet
            .load(CLIENTS, 400, |number| marked(&Method::GET, number))
            .await;
        assert_eq!(tally.0, BTreeMap::from([(200, 400)]), "{kind:?}");
        fleet.use_until_out(2).await;
        assert!(fleet.is_in(0).await && fleet.is_in(1).await, "{kind:?}");
        let bad = &fleet.nodes[2];
        let attempts = bad.count().max(bad.connections());
        assert!(attempts <= BEFORE_EJECTION, "{kind:?}: {attempts}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_beside_a_bad_node_over_http2() {
    // A reset may come while the connection preface is written.
    let limit = [("upstream.handshake_timeout", "1s")];
    for kind in [
        Behaviour::Refuses,
        Behaviour::DropsSyns,
        Behaviour::Resets,
        Behaviour::Status(503),
        REFUSES_TOKENS,
    ] {
        let fleet = Fleet::start_http2(&[GOOD, GOOD, kind], &limit).await;
        let tally = fleet
            .load(CLIENTS, 400, |number| marked(&Method::GET, number))
            .await;
        assert_eq!(tally.0, BTreeMap::from([(200, 400)]), "{kind:?}");
        fleet.use_until_out(2).await;
        let attempts = fleet.nodes[2].count();
        assert!(attempts <= BEFORE_EJECTION, "{kind:?}: {attempts}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_node_is_used_less_and_not_ejected() {
    let slow = Behaviour::Good(Duration::from_secs(1));
    let fleet = Fleet::start(&[GOOD, GOOD, slow], &[]).await;
    let tally = fleet
        .load(CLIENTS, 600, |number| marked(&Method::GET, number))
        .await;
    tally.assert_all(200, 600);
    // In flight it has at most one request more than the least loaded node: a third of the clients,
    // for one second each.
    assert!(fleet.nodes[2].count() < 120, "{:?}", fleet.counts());
    assert!(fleet.is_in(2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_requests_wait_for_a_stopped_node() {
    let mut fleet = Fleet::start(&[GOOD, GOOD, GOOD], &[]).await;
    // Connections to it are pooled when it stops.
    let request = |number| marked(&Method::GET, number);
    fleet.load(CLIENTS, 100, request).await.assert_all(200, 100);
    fleet.nodes[2].set(Behaviour::Stopped).await;
    let mut load = Load::start(fleet.proxy.address, CLIENTS, 400, request);
    // The stopped node has at most one request more than the least loaded one: of 12 requests that
    // are in flight, 5.
    load.until_waiting(5).await;
    fleet.nodes[2].set(GOOD).await;
    load.finish().await.assert_all(200, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_while_nodes_are_killed_and_started() {
    let mut fleet = Fleet::start(&[GOOD, GOOD, GOOD], &[]).await;
    let request = |number| marked(&Method::GET, number);
    let load = Load::start(fleet.proxy.address, CLIENTS, 900, request);
    for node in 0..3 {
        let target = fleet.received() + 150;
        eventually("requests are under way", async || {
            fleet.received() >= target
        })
        .await;
        fleet.nodes[node].restart().await;
    }
    load.finish().await.assert_all(200, 900);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_node_returns_when_it_accepts_connections() {
    for is_black_hole in [false, true] {
        let kind = if is_black_hole {
            Behaviour::DropsSyns
        } else {
            Behaviour::Refuses
        };
        let mut fleet = Fleet::start(&[GOOD, kind], &[]).await;
        fleet.get_times(8).await.assert_all(200, 8);
        fleet.until_in(1, false).await;
        fleet.nodes[1].set(GOOD).await;
        fleet.until_in(1, true).await;
        // With no request from a client.
        assert_eq!(fleet.nodes[1].count(), 0, "{kind:?}");
        fleet.get_times(40).await.assert_all(200, 40);
        assert!(fleet.nodes[1].count() > 0, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_node_returns_with_its_first_success() {
    let mut fleet = Fleet::start(&[GOOD, GOOD, Behaviour::Status(503)], &[]).await;
    let request = |number| marked(&Method::GET, number);
    fleet.load(CLIENTS, 100, request).await.assert_all(200, 100);
    fleet.until_in(2, false).await;
    let failed = fleet.nodes[2].count();
    fleet.nodes[2].set(GOOD).await;
    // It gets no request until its time is over, then one, and after that its share.
    eventually("the node gets requests again", async || {
        fleet.get_times(3).await.assert_all(200, 3);
        fleet.nodes[2].count() >= failed + 2
    })
    .await;
    assert!(fleet.is_in(2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_breaks_open_connections_is_out_before_all_of_them_are_used_up() {
    let mut fleet = Fleet::start(&[GOOD, GOOD], &[("proxy.workers", "1")]).await;
    let request = |number| marked(&Method::GET, number);
    fleet.load(32, 320, request).await.assert_all(200, 320);
    let (open, before) = (fleet.nodes[1].connections(), fleet.nodes[1].count());
    assert!(open > 8, "{open}");
    fleet.nodes[1].set(Behaviour::Breaks).await;
    fleet.use_until_out(1).await;
    // The first one may have been closed while it was idle, and five failures take the node out.
    let lost = fleet.nodes[1].count() - before;
    assert!(lost <= 1 + 5, "{lost} of {open}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sole_endpoint_is_never_ejected() {
    let mut fleet = Fleet::start(&[Behaviour::Status(503)], &[]).await;
    fleet.get_times(30).await.assert_all(503, 30);
    assert_eq!(fleet.received(), 30);
    assert!(fleet.is_in(0).await);

    fleet.nodes[0].set(Behaviour::Refuses).await;
    fleet.get_times(10).await.assert_all(502, 10);
    fleet.nodes[0].set(GOOD).await;
    // Used by the next request, not by the next attempt of the control runtime.
    fleet.get_times(3).await.assert_all(200, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_half_of_the_nodes_are_failing() {
    let fleet = Fleet::start(&[Behaviour::Status(500); 4], &[]).await;
    fleet.get_times(40).await.assert_all(500, 40);
    for node in 0..4 {
        assert!(fleet.is_in(node).await, "500 is the application's");
    }
    let fleet = Fleet::start(&[Behaviour::Status(503); 4], &[]).await;
    fleet.get_times(100).await.assert_all(503, 100);
    let mut out = 0;
    for node in 0..4 {
        out += usize::from(!fleet.is_in(node).await);
    }
    assert_eq!(out, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_all_unreachable_are_tried_all_the_same() {
    for (kind, status) in [(Behaviour::Refuses, 502), (Behaviour::DropsSyns, 504)] {
        // The third address is dialled after two thirds of the time.
        let limit = [("upstream.connect_timeout", "700ms")];
        let mut fleet = Fleet::start(&[kind; 3], &limit).await;
        for method in [Method::GET, Method::POST] {
            let tally = fleet
                .load(4, 20, move |number| marked(&method, number))
                .await;
            tally.assert_all(status, 20);
        }
        fleet.nodes[1].set(GOOD).await;
        // Each request tries the others at once, or beside.
        let tally = fleet
            .load(2, 10, |number| marked(&Method::POST, number))
            .await;
        tally.assert_all(200, 10);
        assert_eq!(fleet.received(), 10, "no POST was sent twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_is_dialled_within_the_time_to_connect() {
    const HOLE: Behaviour = Behaviour::DropsSyns;
    // Less than three times the usual delay between two dials.
    let limit = [("upstream.connect_timeout", "740ms")];
    let fleet = Fleet::start(&[HOLE, HOLE, HOLE, GOOD], &limit).await;
    fleet.get_times(1).await.assert_all(200, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_names_the_endpoint_as_configured() {
    let limits = [
        ("upstream.connect_timeout", "300ms"),
        ("upstream.response_timeout", "300ms"),
    ];
    for kind in [
        Behaviour::Refuses,
        Behaviour::DropsSyns,
        Behaviour::Breaks,
        Behaviour::Silent,
    ] {
        let fleet = Fleet::start(&[kind], &limits).await;
        let response = fleet.proxy.get("/").await;
        let status = response.headers()["proxy-status"].to_str().unwrap();
        let (_, next_hop) = status.split_once("next-hop=").unwrap_or_default();
        let address = fleet.nodes[0].address.to_string();
        assert!(next_hop.contains(&address), "{kind:?}: {status}");
    }
}
