//! Which node a request goes to.

use std::time::Duration;

use http::Method;

use super::{Fleet, marked};
use crate::common::node::{Behaviour, GOOD};

const AT_ONCE: Behaviour = Behaviour::Good(Duration::ZERO);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_equal_shares_or_shares_by_weight() {
    for (weights, shares) in [
        ("", vec![100_usize, 100, 100]),
        ("3,1,1", vec![180, 60, 60]),
        ("10,1,1", vec![250, 25, 25]),
    ] {
        let weights: &[_] = if weights.is_empty() {
            &[]
        } else {
            &[("upstream.weights", weights)]
        };
        let one_worker = [("proxy.workers", "1")];
        let fleet = Fleet::start(&[AT_ONCE; 3], &[&one_worker, weights].concat()).await;
        fleet.get_times(300).await.assert_all(200, 300);
        for (count, share) in fleet.counts().into_iter().zip(shares) {
            assert!(
                share.abs_diff(count) <= 1,
                "{weights:?}: {:?}",
                fleet.counts()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_hold_under_load() {
    let fleet = Fleet::start(&[GOOD, GOOD], &[("upstream.weights", "10,1")]).await;
    let tally = fleet
        .load(16, 880, |number| marked(&Method::GET, number))
        .await;
    tally.assert_all(200, 880);
    // 80, and more if responses of the first node are late.
    assert!(fleet.nodes[1].count() <= 160, "{:?}", fleet.counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_nodes_gets_requests() {
    let fleet = Fleet::start(&[AT_ONCE; 20], &[]).await;
    let tally = fleet
        .load(8, 2000, |number| marked(&Method::GET, number))
        .await;
    tally.assert_all(200, 2000);
    assert!(
        fleet.counts().iter().all(|count| *count > 20),
        "{:?}",
        fleet.counts()
    );
}
