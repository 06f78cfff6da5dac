//! Configured refresh tokens and client secrets that change while replicas are restarted.

use std::time::Duration;

use super::{
    store::Store,
    world::{Setup, World, amount},
};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn seed(number: u64) -> String {
    format!("seed-{number}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_seed_of_a_rollout_is_sent_once() {
    let rounds = amount("SOAK_FLEET_ROLLOUTS", 4);
    let store = Store::start(&[]).await;
    // Every third one is not valid at the issuer.
    let valid = (0..=rounds).filter(|number| number % 3 != 2).map(seed);
    let setup = Setup {
        replicas: 4,
        lifetime: seconds(20),
        seeds: valid.collect(),
        ..Setup::default()
    };
    let mut world = World::prepare(&store, setup).await;
    let configured = |number| format!("token.refresh_token = \"{}\"\n", seed(number));
    for replica in 0..4 {
        world.configure(replica, &configured(0));
        world.replicas[replica].start().await;
    }
    world.ready().await;
    for round in 1..=rounds {
        // Half of the replicas gets the new one, and goes back to the old one, and gets it again.
        for number in [round, round - 1, round] {
            for replica in [0, 1] {
                world.configure(replica, &configured(number));
                world.replicas[replica].terminate().await;
                world.replicas[replica].start().await;
            }
            world.ready().await;
        }
        world
            .until("the new seed is sent", async || {
                world.uses().contains_key(&seed(round))
            })
            .await;
        for replica in [2, 3] {
            world.configure(replica, &configured(round));
            world.replicas[replica].terminate().await;
            world.replicas[replica].start().await;
        }
        world.ready().await;
        world.check(&format!("rollout {round}"));
    }
    world.replicas[0].request_refresh().await;
    world.goes_on().await;
    world.check("after all rollouts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_client_secret_costs_one_call_a_minute() {
    let store = Store::start(&[]).await;
    let setup = Setup {
        replicas: 4,
        lifetime: seconds(6),
        ..Setup::default()
    };
    let mut world = World::start(&store, setup).await;
    let refused = |world: &World| world.cloud.issuer_calls() - world.cloud.issuer_successes();
    for _ in 0..2 {
        for more in ["token.client_secret = \"wrong\"\n", ""] {
            for replica in [0, 1] {
                world.configure(replica, more);
                world.replicas[replica].terminate().await;
                world.replicas[replica].start().await;
            }
            world.ready().await;
            world.goes_on().await;
            world.goes_on().await;
            assert!(
                refused(&world) <= 1,
                "{}\n{}",
                refused(&world),
                world.logs()
            );
            assert_eq!(world.cloud.families_revoked(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_memory_does_not_send_the_old_seed_to_an_emptied_store() {
    for _ in 0..amount("SOAK_FLEET_EMPTIED", 2) {
        let store = Store::start(&[]).await;
        let setup = Setup {
            replicas: 3,
            lifetime: seconds(40),
            latency: seconds(2),
            ..Setup::default()
        };
        let mut world = World::prepare(&store, setup).await;
        for replica in [0, 1] {
            world.replicas[replica].start().await;
            world.replicas[replica].program.ready().await;
        }
        let generation = world.generation().await;
        world.replicas[0].request_refresh().await;
        world.next_call().await;
        store.command(&["FLUSHALL"]).await;
        world.replicas[2].start().await;
        world.until_after(generation, &[0, 1, 2]).await;
        let generation = world.generation().await;
        world.replicas[2].request_refresh().await;
        world.until_after(generation, &[0, 1, 2]).await;
        world.check("emptied while a replica starts");
        assert_eq!(world.uses()["seed"], 1);
    }
}
