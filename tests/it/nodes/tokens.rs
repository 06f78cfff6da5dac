//! Nodes that refuse tokens.

use http::Method;

use super::{Fleet, marked};
use crate::common::{
    closed_address,
    node::{Behaviour, GOOD, Node, REFUSES_TOKENS},
    proxy,
    upstream::Upstream,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_refuses_every_token_causes_no_refreshes() {
    let fleet = Fleet::start(&[GOOD, GOOD, REFUSES_TOKENS], &[]).await;
    // With 12 clients and 20 ms, about five seconds.
    let tally = fleet
        .load(12, 2500, |number| marked(&Method::GET, number))
        .await;
    tally.assert_all(200, 2500);
    assert!(fleet.refreshes() <= 4, "{}", fleet.refreshes());
    fleet.until_in(2, false).await;
    assert!(fleet.nodes[2].count() < 50, "{:?}", fleet.counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_is_replayed_beside_a_node_that_refuses_every_token() {
    let fleet = Fleet::start(&[GOOD, REFUSES_TOKENS], &[]).await;
    let tally = fleet
        .load(8, 200, |number| marked(&Method::POST, number))
        .await;
    tally.assert_all(200, 200);
    assert_eq!(fleet.nodes[0].count(), 200, "once each");
    assert!(fleet.refreshes() <= 4, "{}", fleet.refreshes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_all_nodes_refuse_is_refreshed_once() {
    let mut fleet = Fleet::start(&[Behaviour::Requires(1); 3], &[]).await;
    fleet.get_times(12).await.assert_all(200, 12);
    assert_eq!(fleet.refreshes(), 0);
    for node in &mut fleet.nodes {
        node.set(Behaviour::Requires(2)).await;
    }
    let tally = fleet
        .load(12, 60, |number| marked(&Method::GET, number))
        .await;
    tally.assert_all(200, 60);
    assert_eq!(fleet.refreshes(), 1);
    for node in 0..3 {
        assert!(
            fleet.is_in(node).await,
            "a revoked token is no node's fault"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_two_nodes_refused_is_not_tried_on_a_third() {
    let mut fleet = Fleet::start(&[Behaviour::Requires(1); 3], &[]).await;
    fleet.get_times(12).await.assert_all(200, 12);
    for node in &mut fleet.nodes {
        node.set(Behaviour::Requires(2)).await;
    }
    let before = fleet.received();
    fleet.get_times(1).await.assert_all(200, 1);
    // Refused, refused by another one, accepted with the next token.
    assert_eq!(fleet.received(), before + 3, "{:?}", fleet.counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_always_refused_are_shown_and_eject_nothing() {
    let fleet = Fleet::start(&[REFUSES_TOKENS; 2], &[("token.wait", "1s")]).await;
    let tally = fleet.load(2, 20, |_| marked(&Method::GET, 0)).await;
    tally.assert_all(401, 20);
    assert!(fleet.refreshes() <= 4, "{}", fleet.refreshes());
    assert!(fleet.is_in(0).await && fleet.is_in(1).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_endpoint_that_is_down_at_the_start() {
    let black_hole = Node::start(Behaviour::DropsSyns).await;
    for first in [closed_address(), black_hole.address] {
        let second = Upstream::new().issuing().start().await;
        let proxy = proxy(&format!("http://{first},{}", second.origin()), &[]);
        proxy.ready().await;
        assert_eq!(proxy.get("/").await.status(), 200, "{first}");
    }
}
