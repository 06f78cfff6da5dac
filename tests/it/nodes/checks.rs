//! Active health checks.

use super::Fleet;
use crate::common::{
    eventually,
    node::{Behaviour, Node},
};

/// Checks as often as a test wants them.
const OFTEN: [(&str, &str); 4] = [
    ("upstream.health.path", "/healthz"),
    ("upstream.health.interval", "100ms"),
    ("upstream.health.fall", "2"),
    ("upstream.health.rise", "2"),
];

fn checks(node: &Node) -> usize {
    let seen = node.seen();
    seen.iter().filter(|one| one.target == "/healthz").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fails_its_checks_is_out_until_it_passes() {
    let healthy = Behaviour::Health(204);
    for kind in [
        Behaviour::Health(500),
        Behaviour::Health(503),
        Behaviour::Closes,
        Behaviour::Breaks,
    ] {
        let mut fleet = Fleet::start(&[healthy, kind], &OFTEN).await;
        fleet.until_in(1, false).await;
        assert!(fleet.is_in(0).await, "{kind:?}");
        let of_clients = fleet.nodes[1].count() - checks(&fleet.nodes[1]);
        assert_eq!(of_clients, 0, "no client's request was needed");

        fleet.get_times(20).await.assert_all(200, 20);
        let of_clients = fleet.nodes[1].count() - checks(&fleet.nodes[1]);
        assert_eq!(of_clients, 0, "{kind:?}");

        fleet.nodes[1].set(healthy).await;
        fleet.until_in(1, true).await;
        fleet.get_times(40).await.assert_all(200, 40);
        assert!(fleet.nodes[1].count() > checks(&fleet.nodes[1]), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_hangs_has_failed() {
    let limit = [("upstream.health.timeout", "200ms")];
    let kinds = [Behaviour::Health(200), Behaviour::Stopped];
    let fleet = Fleet::start(&kinds, &[&OFTEN[..], &limit].concat()).await;
    fleet.until_in(1, false).await;
    assert!(fleet.is_in(0).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_has_no_token_and_by_default_a_401_is_a_sign_of_life() {
    for (expect, is_in) in [(None, true), (Some("2xx"), false), (Some("200,401"), true)] {
        let expect: Vec<_> = expect
            .map(|list| ("upstream.health.expect", list))
            .into_iter()
            .collect();
        let kinds = [Behaviour::Health(200), Behaviour::Health(401)];
        let fleet = Fleet::start(&kinds, &[&OFTEN[..], &expect].concat()).await;
        eventually("both are checked", async || {
            fleet.nodes.iter().all(|node| checks(node) >= 6)
        })
        .await;
        fleet.until_in(1, is_in).await;
        for seen in fleet.nodes.iter().flat_map(Node::seen) {
            assert_eq!((&*seen.method, &*seen.token), ("GET", ""), "{seen:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_fail_their_checks_are_used() {
    let fleet = Fleet::start(&[Behaviour::Health(500); 2], &OFTEN).await;
    eventually("both are checked", async || {
        fleet.nodes.iter().all(|node| checks(node) >= 4)
    })
    .await;
    fleet.get_times(10).await.assert_all(200, 10);
}
