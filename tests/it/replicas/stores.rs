//! The store is paused, restarted, emptied and replaced, at rest and in the middle of a call; and
//! connections to it and to the issuer are cut.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{
    store::Store,
    world::{Load, Setup, World, amount},
};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Settling takes 3 seconds, and connections half a second. The rest is for a busy machine.
const RESUMED: Duration = Duration::from_secs(12);

/// What happens to the store.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// `CLIENT PAUSE` for two seconds.
    Pause,
    /// SIGSTOP for this many seconds.
    Stop(u64),
    /// `DEBUG SLEEP` for two seconds.
    Sleep,
    /// Killed, and started again after a second, with what it has stored on disk.
    Restart,
    /// `FLUSHALL` on an open connection.
    Flush,
    /// The key is evicted.
    Evict,
    /// A server takes over that has only what it had before the fault.
    Failover,
}

async fn inflict(world: &World, store: &mut Store, other: &mut Option<Store>, fault: Fault) {
    match fault {
        Fault::Pause => {
            store.command(&["CLIENT", "PAUSE", "2000", "ALL"]).await;
            sleep(seconds(2)).await; // the pause
        }
        Fault::Stop(time) => {
            store.signal(Signal::STOP);
            sleep(seconds(time)).await; // the time that the store is stopped
            store.signal(Signal::CONT);
        }
        Fault::Sleep => {
            store.command(&["DEBUG", "SLEEP", "2"]).await;
        }
        Fault::Restart => {
            store.kill().await;
            sleep(seconds(1)).await; // the store is down
            store.revive().await;
        }
        Fault::Flush => {
            store.command(&["FLUSHALL"]).await;
        }
        Fault::Evict => {
            for key in store.keys().await {
                store.command(&["DEL", &key]).await;
            }
        }
        Fault::Failover => {
            let replacement = other.take().unwrap();
            for replica in &world.replicas {
                replica.to_store.retarget(replacement.address);
            }
            // The old primary runs on, and no replica uses it.
            *other = Some(std::mem::replace(store, replacement));
        }
    }
}

/// A stale copy of the store.
async fn copy_of(store: &Store) -> Store {
    let copy = Store::start(&[]).await;
    let port = store.address.port().to_string();
    copy.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    crate::common::eventually("the copy is complete", async || {
        !copy.keys().await.is_empty()
    })
    .await;
    // It loses what is written from now on.
    copy.command(&["REPLICAOF", "NO", "ONE"]).await;
    copy
}

/// Each fault at rest and in the middle of a call.
async fn run(arguments: &[&str], faults: &[Fault]) {
    let mut store = Store::start(arguments).await;
    let setup = Setup {
        replicas: 3,
        lifetime: seconds(40),
        ..Setup::default()
    };
    let world = World::start(&store, setup).await;
    let all = [0, 1, 2];
    let mut newest = vec![0; all.len()];
    for round in 0..amount("SOAK_FLEET_FAULTS", 1) {
        for (number, fault) in faults.iter().enumerate() {
            for is_in_call in [false, true] {
                let what = format!("{fault:?}, in a call: {is_in_call}, round {round}");
                let load: Load = world.load(&all);
                let generation = world.generation().await;
                let mut other = match fault {
                    Fault::Failover => Some(copy_of(&store).await),
                    _ => None,
                };
                let requested = &world.replicas[number % all.len()];
                if is_in_call {
                    world.cloud.faults().issuer_latency = seconds(1);
                    requested.request_refresh().await;
                    world.next_call().await;
                }
                inflict(&world, &mut store, &mut other, *fault).await;
                let back = Instant::now();
                if !is_in_call {
                    requested.request_refresh().await;
                }
                world.until_after(generation, &all).await;
                let took = back.elapsed();
                assert!(took < RESUMED, "{what}: {took:?}\n{}", world.logs());
                world.cloud.faults().clear();
                // Spending resumes as well: a further refresh.
                let generation = world.generation().await;
                world.replicas[0].request_refresh().await;
                world.until_after(generation, &all).await;
                for (replica, newest) in newest.iter_mut().enumerate() {
                    let generation = world.replicas[replica].generation().await;
                    assert!(generation >= *newest, "{what}: replica {replica}");
                    *newest = generation;
                }
                load.finish(&what).await;
                world.check(&what);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_store_delays_refreshes() {
    run(
        &[],
        &[Fault::Pause, Fault::Stop(1), Fault::Stop(6), Fault::Sleep],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_store_keeps_or_gets_back_the_tokens() {
    run(
        &["--appendonly", "yes", "--appendfsync", "always"],
        &[Fault::Restart],
    )
    .await;
    run(&[], &[Fault::Restart]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_store_gets_the_tokens_back() {
    run(&[], &[Fault::Flush, Fault::Evict, Fault::Failover]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_serves_its_token() {
    let store = Store::start(&[]).await;
    let setup = Setup {
        replicas: 3,
        lifetime: seconds(16),
        ..Setup::default()
    };
    let world = World::start(&store, setup).await;
    for (to_store, to_issuer) in [(true, false), (false, true), (true, true)] {
        let what = format!("cut from the store: {to_store}, from the issuer: {to_issuer}");
        let load = world.load(&[0, 1, 2]);
        let generation = world.generation().await;
        let cut = &world.replicas[0];
        cut.to_store.cut(to_store);
        cut.to_issuer.cut(to_issuer);
        let calls = world.spent().len();
        world.until_after(generation, &[1, 2]).await;
        assert_eq!(world.spent().len(), calls + 1, "{what}\n{}", world.logs());
        if !to_store {
            world.until_after(generation, &[0]).await;
        }
        cut.to_store.cut(false);
        cut.to_issuer.cut(false);
        world.until_after(generation, &[0]).await;
        load.finish(&what).await;
        world.check(&what);
    }
}
