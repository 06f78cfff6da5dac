//! The replica that owns the claim is killed or stopped around its call.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;

use super::{
    store::Store,
    world::{Setup, World, amount},
};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A takeover takes 3 to 4 seconds, and the call another second. The rest is for a busy machine.
const TAKEN_OVER: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_killed_in_its_call_costs_one_more_call() {
    let store = Store::start(&[]).await;
    let setup = Setup {
        replicas: 3,
        latency: seconds(1),
        // The replicas count 5 seconds from their claim, and the issuer from its response.
        forgives: seconds(5),
        lifetime: seconds(8),
        ..Setup::default()
    };
    let mut world = World::start(&store, setup).await;
    let mut slowest = Duration::ZERO;
    for kill in 0..amount("SOAK_FLEET_KILLS", 5) {
        let call = world.next_call().await;
        let (calls, generation) = (world.spent().len(), world.generation().await);
        world.replicas[call.replica].kill().await;
        let others: Vec<_> = (0..3).filter(|other| *other != call.replica).collect();
        let took = world.until_after(generation, &others).await;
        slowest = slowest.max(took);
        assert!(took < TAKEN_OVER, "kill {kill}: {took:?}\n{}", world.logs());
        assert!(
            world.spent().len() <= calls + 1,
            "kill {kill}: {:#?}",
            world.spent()
        );
        assert_eq!(
            world.cloud.families_revoked(),
            0,
            "kill {kill}\n{}",
            world.logs()
        );
        world.replicas[call.replica].start().await;
        world.ready().await;
    }
    println!("a new token after {slowest:?} at most");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_grace_a_jwt_replaces_the_call_of_a_killed_owner() {
    let store = Store::start(&[]).await;
    let setup = Setup {
        replicas: 3,
        latency: Duration::from_millis(500),
        lifetime: seconds(8),
        more: "token.jwt.key = \"0123456789abcdef0123456789abcdef\"\n".to_owned(),
        ..Setup::default()
    };
    let mut world = World::start(&store, setup).await;
    for kill in 0..amount("SOAK_FLEET_REVIVALS", 3) {
        let call = world.next_call().await;
        let generation = world.generation().await;
        world.replicas[call.replica].kill().await;
        let others: Vec<_> = (0..3).filter(|other| *other != call.replica).collect();
        let took = world.until_after(generation, &others).await;
        assert!(took < TAKEN_OVER, "kill {kill}: {took:?}\n{}", world.logs());
        world.check("killed without grace");
        world.replicas[call.replica].start().await;
        world.ready().await;
    }
}

/// Where the owner is stopped.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Before it claims: a replica that is about to refresh.
    BeforeClaim,
    /// The claim is stored, and the connection to the issuer is not made yet.
    BeforeWrite,
    /// The request has reached the issuer.
    AfterWrite,
    /// The response has arrived, and the store cannot be reached.
    BeforeStore,
}

const PHASES: [Phase; 4] = [
    Phase::BeforeClaim,
    Phase::BeforeWrite,
    Phase::AfterWrite,
    Phase::BeforeStore,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_owner_causes_no_revocation() {
    let mut runs = Vec::new();
    for millis in [300, 2000, 6000] {
        for forgives in [Duration::ZERO, seconds(5)] {
            runs.push(stop(Duration::from_millis(millis), forgives));
        }
    }
    join_all(runs).await;
}

/// Stops owners for this time in each phase.
async fn stop(time: Duration, forgives: Duration) {
    let store = Store::start(&[]).await;
    let setup = Setup {
        forgives,
        lifetime: seconds(8),
        ..Setup::default()
    };
    let world = World::start(&store, setup).await;
    for _ in 0..amount("SOAK_FLEET_STOPS", 1) {
        for phase in PHASES {
            let what = format!("stopped for {time:?} {phase:?}, forgiven {forgives:?}");
            let before = world.spent().len();
            stop_in(&world, &store, phase, time).await;
            // The issuer would forgive what a closed fence keeps back.
            let tokens: Vec<_> = world.spent().split_off(before);
            let tokens: Vec<_> = tokens.into_iter().map(|spent| spent.token).collect();
            let unique: BTreeSet<_> = tokens.iter().collect();
            let is_fenced = matches!(phase, Phase::BeforeWrite);
            assert!(
                !is_fenced || unique.len() == tokens.len(),
                "{what}: {tokens:?}\n{}",
                world.logs()
            );
            if forgives.is_zero() {
                world.check(&what);
            } else {
                let uses = world.uses();
                assert!(uses.values().all(|uses| *uses <= 2), "{what}: {uses:?}");
                assert_eq!(
                    world.cloud.families_revoked(),
                    0,
                    "{what}\n{}",
                    world.logs()
                );
            }
        }
    }
}

async fn stop_in(world: &World, store: &Store, phase: Phase, time: Duration) {
    world.goes_on().await;
    let generation = world.generation().await;
    let each = |change: fn(&super::relay::Relay, bool), is_on| {
        let replicas = world.replicas.iter();
        replicas.for_each(|replica| change(&replica.to_issuer, is_on));
    };
    match phase {
        Phase::BeforeClaim => world.replicas[0].stop_for(time).await,
        Phase::BeforeWrite => {
            let hold: fn(&super::relay::Relay, bool) =
                |relay, is_on| relay.set(|rules| rules.holds_handshakes = is_on);
            each(hold, true);
            let owner = world.next_claim(store).await;
            let stopped = world.replicas[owner].stop_for(time);
            // The connection is made while the owner is stopped.
            let made = async {
                tokio::task::yield_now().await;
                each(hold, false);
            };
            tokio::join!(stopped, made);
        }
        Phase::AfterWrite => {
            world.cloud.faults().issuer_latency = seconds(1);
            let call = world.next_call().await;
            world.replicas[call.replica].stop_for(time).await;
            world.cloud.faults().clear();
        }
        Phase::BeforeStore => {
            world.cloud.faults().issuer_latency = Duration::from_millis(500);
            let call = world.next_call().await;
            let owner = &world.replicas[call.replica];
            owner.to_store.cut(true);
            let granted = world.cloud.issuer_successes();
            world
                .until("the issuer responds", async || {
                    world.cloud.issuer_successes() > granted
                })
                .await;
            owner.stop_for(time).await;
            owner.to_store.cut(false);
            world.cloud.faults().clear();
        }
    }
    world.until_after(generation, &[0, 1]).await;
}
