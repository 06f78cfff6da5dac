//! Thousands of connections at once. A crate of its own: they take most of the file descriptors that this process may open.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "it/common/mod.rs"]
#[allow(dead_code, reason = "the helpers of all integration tests")]
mod common;

use bearer_proxy::base::{clock, process};
use tokio::task::JoinSet;

use common::{Client, LIMIT, get, proxy, simulated_cloud};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_18_thousands_are_refused_at_once() {
    // Four descriptors each, for both ends of both connections.
    let descriptors = process::usage().map_or(1024, |usage| usage.descriptor_limit);
    let count = usize::try_from(descriptors / 5).unwrap().min(4000);
    let cloud = simulated_cloud(clock::system()).await;
    let proxy = proxy(cloud.origin(), &[("upstream.max_connections", "4000")]);
    proxy.ready().await;
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::connect(proxy.address).await);
    }
    cloud.revoke_access_tokens();
    let mut requests = JoinSet::new();
    for mut client in clients {
        requests.spawn(async move {
            let first = client.send(get("/api/echo.do")).await.unwrap().status();
            let second = client.send(get("/api/echo.do")).await.unwrap().status();
            (first.as_u16(), second.as_u16())
        });
    }
    let statuses = tokio::time::timeout(LIMIT, requests.join_all())
        .await
        .unwrap();
    assert_eq!(
        statuses.iter().filter(|both| **both == (200, 200)).count(),
        count
    );
    assert_eq!(
        cloud.issuer_calls(),
        2,
        "the first token, and one for all of them"
    );
}
