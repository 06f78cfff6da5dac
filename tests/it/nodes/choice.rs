//! Which node a request goes to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use http::Method;
use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpSocket};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_node_starts_slowly() {
    let slowly = [("upstream.slow_start", "1h"), ("proxy.workers", "1")];
    let mut fleet = Fleet::start(&[AT_ONCE, Behaviour::Refuses], &slowly).await;
    fleet.get_times(8).await.assert_all(200, 8);
    fleet.until_in(1, false).await;
    fleet.nodes[1].set(AT_ONCE).await;
    fleet.until_in(1, true).await;
    fleet.get_times(220).await.assert_all(200, 220);
    // A tenth of the weight: one of eleven.
    let count = fleet.nodes[1].count();
    assert!((1..=30).contains(&count), "{count}");
}

/// Sends a GET from this address, and returns the status.
async fn get_from(source: SocketAddr, proxy: SocketAddr, path: &str) -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(source).unwrap();
    let mut stream = socket.connect(proxy).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    crate::common::status(&response)
}

/// Sends two GETs from each of 30 addresses. Returns the nodes that each address used.
async fn visit(fleet: &Fleet, round: usize) -> BTreeMap<u8, BTreeSet<usize>> {
    for client in 1..=30_u8 {
        for _ in 0..2 {
            let source = SocketAddr::from(([127, 0, 1, client], 0));
            let path = format!("/{round}/{client}");
            assert_eq!(get_from(source, fleet.proxy.address, &path).await, 200);
        }
    }
    let mut used = BTreeMap::<u8, BTreeSet<usize>>::new();
    for (number, node) in fleet.nodes.iter().enumerate() {
        for seen in node.seen() {
            if let Some(client) = seen.target.strip_prefix(&format!("/{round}/")) {
                used.entry(client.parse().unwrap())
                    .or_default()
                    .insert(number);
            }
        }
    }
    used
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_stays_with_its_node_while_that_is_in() {
    let affinity = [("upstream.affinity", "client"), ("proxy.workers", "2")];
    let mut fleet = Fleet::start(&[AT_ONCE; 3], &affinity).await;
    let first = visit(&fleet, 1).await;
    assert!(first.values().all(|nodes| nodes.len() == 1), "{first:?}");
    let used: BTreeSet<_> = first.values().flatten().collect();
    assert_eq!(used.len(), 3, "{first:?}");
    assert_eq!(visit(&fleet, 2).await, first);

    fleet.nodes[0].set(Behaviour::Refuses).await;
    visit(&fleet, 3).await;
    fleet.until_in(0, false).await;
    let without = visit(&fleet, 4).await;
    for (client, nodes) in &without {
        assert_eq!(nodes.len(), 1, "{without:?}");
        if !first[client].contains(&0) {
            assert_eq!(*nodes, first[client], "only clients of the lost node move");
        }
    }
    let moved: BTreeSet<_> = without
        .iter()
        .filter(|(client, _)| first[client].contains(&0))
        .flat_map(|(_, nodes)| nodes)
        .collect();
    assert_eq!(
        moved.len(),
        2,
        "the clients of the lost node spread: {without:?}"
    );

    fleet.nodes[0].set(AT_ONCE).await;
    fleet.until_in(0, true).await;
    assert_eq!(visit(&fleet, 5).await, first);
}
