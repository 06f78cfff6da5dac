//! More requests than the cloud can serve. A crate of its own: it compares throughput, which other tests would change.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "it/common/mod.rs"]
#[allow(dead_code, reason = "the helpers of all integration tests")]
mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::Instant};

use common::{
    Client, LIMIT, get,
    process::ReadyProgram,
    upstream::{RunningUpstream, Upstream, ok},
};

/// A cloud that serves so many requests at a time.
async fn busy_cloud(at_once: usize, each: Duration) -> RunningUpstream {
    let slots = Arc::new(Semaphore::new(at_once));
    let reply = ok("ok").after(move || {
        let slots = Arc::clone(&slots);
        async move {
            let _slot = slots.acquire().await.unwrap();
            tokio::time::sleep(each).await; // the work of each request
        }
    });
    Upstream::always(reply).issuing().start().await
}

/// So many clients send requests without a pause for a while. Returns how many were served and rejected.
async fn load(address: SocketAddr, count: usize, length: Duration) -> (usize, usize) {
    let end = Instant::now() + length;
    let clients: Vec<_> = (0..count)
        .map(|_| {
            tokio::spawn(async move {
                let (mut served, mut rejected) = (0, 0);
                let mut client = Client::connect(address).await;
                while Instant::now() < end {
                    let response = tokio::time::timeout(LIMIT, client.send(get("/")))
                        .await
                        .expect("in time")
                        .unwrap();
                    match response.status().as_u16() {
                        200 => served += 1,
                        503 => {
                            assert_eq!(response.headers()["retry-after"], "1");
                            rejected += 1;
                            tokio::time::sleep(Duration::from_millis(25)).await; // a client that waits a little
                        }
                        other => panic!("{other}"),
                    }
                }
                (served, rejected)
            })
        })
        .collect();
    let mut sum = (0, 0);
    for one in clients {
        let (served, rejected) = one.await.unwrap();
        sum = (sum.0 + served, sum.1 + rejected);
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_30_requests_beyond_the_capacity_are_rejected_and_the_others_served() {
    const CAPACITY: usize = 20;
    const ROUNDS: usize = 2;
    let cloud = busy_cloud(CAPACITY, Duration::from_millis(100)).await;
    let limit = format!("proxy.max_requests = {CAPACITY}\n");
    let proxy = ReadyProgram::start(cloud.address, &limit).await;
    let length = Duration::from_secs(1);
    let (mut peak, mut served, mut rejected, mut memory) = (0, 0, 0, None);
    // In turns, so that a busy machine affects both alike.
    for _ in 0..ROUNDS {
        let (at_peak, none) = load(proxy.address, CAPACITY, length).await;
        assert_eq!(none, 0);
        memory.get_or_insert_with(|| proxy.memory("VmRSS"));
        let before = cloud.count();
        let (beyond, more) = load(proxy.address, 2 * CAPACITY, length).await;
        assert_eq!(cloud.count() - before, beyond);
        (peak, served, rejected) = (peak + at_peak, served + beyond, rejected + more);
    }
    let grown = proxy.memory("VmHWM").saturating_sub(memory.unwrap());
    println!(
        "{peak} served at the peak; {served} served and {rejected} rejected at twice that, {grown} KiB more"
    );
    assert!(rejected > 0);
    assert!(10 * served >= 9 * peak, "{served} of {peak}");
    assert!(grown < 10 * 1024, "{grown} KiB");
}
