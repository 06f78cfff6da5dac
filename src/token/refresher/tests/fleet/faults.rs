//! Random faults, as many as fit.

use std::time::Duration;

use proptest::{prelude::*, sample::select};

use super::world::{Rules, World, ms};
use crate::base::clock::Clock as _;

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Stop,
    CutFromStore,
    CutFromIssuer,
    Freeze,
    Restart,
    Failover(usize),
    Wipe,
    RestartEmpty,
    SlowConnection,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Kill),
        Just(Fault::Stop),
        Just(Fault::CutFromStore),
        Just(Fault::CutFromIssuer),
        Just(Fault::Freeze),
        Just(Fault::Restart),
        (0_usize..=3).prop_map(Fault::Failover),
        Just(Fault::Wipe),
        Just(Fault::RestartEmpty),
        Just(Fault::SlowConnection),
    ]
}

/// The time from the fault before, whether it then waits for a call to be claimed, the fault, the
/// replica, and how long it lasts.
type Step = (u64, bool, Fault, usize, u64);

fn step() -> impl Strategy<Value = Step> {
    // Faults that coincide can lose a store and the owner of a claim in the same second, which no
    // rule survives.
    let after = 15_000_u64..60_000;
    (
        after,
        any::<bool>(),
        fault(),
        0_usize..4,
        select(vec![300_u64, 1000, 3000, 6000, 12_000]),
    )
}

/// Runs the faults, and checks what must always hold.
async fn run(rules: Rules, steps: &[Step]) -> Result<(), TestCaseError> {
    let (replicas, has_initial_grant) = (rules.replicas, rules.has_initial_grant);
    let mut world = World::new(rules);
    let mut newest = vec![(0, String::new()); replicas];
    prop_assert!(world.ready(Duration::from_secs(40)).await.is_some());
    for (after, at_call, fault, replica, time) in steps {
        let end = world.clock.now() + ms(*after);
        while world.clock.now() < end {
            world
                .pass(ms(100).min(end.saturating_since(world.clock.now())))
                .await;
            check(&world, &mut newest)?;
        }
        let (mut replica, time) = (*replica, ms(*time));
        if *at_call {
            for replica in 0..replicas {
                world.delay_connection(replica, ms(after % 1500));
            }
            // A refresh begins in this time, unless faults are in its way.
            for _ in 0..6000 {
                if let Some(owner) = world.claimant() {
                    replica = owner;
                    break;
                }
                world.pass(ms(10)).await;
                check(&world, &mut newest)?;
            }
        }
        match fault {
            Fault::Kill => {
                world.kill(replica).await;
                world.revive(replica);
                newest[replica] = (0, String::new());
            }
            Fault::Stop => world.stop_for(replica, time),
            Fault::CutFromStore => world.replicas[replica].link.cut(time),
            Fault::CutFromIssuer => world.cut_off(replica, time),
            Fault::Freeze => world.server.freeze(time),
            Fault::Restart => world.server.restart(time),
            Fault::Failover(writes) => {
                world.server.restart(time);
                world.server.lose(*writes);
            }
            Fault::Wipe => world.server.wipe(),
            Fault::RestartEmpty => {
                world.server.restart(time);
                world.server.wipe();
            }
            Fault::SlowConnection => world.delay_connection(replica, time.min(ms(4000))),
        }
    }
    // The faults end.
    if has_initial_grant {
        let last = steps.last().map_or(0, |step| step.4);
        world.pass(ms(last)).await;
        prop_assert!(world.agreed(Duration::from_secs(6)).await, "no agreement");
    }
    for _ in 0..1200 {
        world.pass(ms(100)).await;
        check(&world, &mut newest)?;
    }
    Ok(())
}

/// No refresh token was received twice, and the version of no replica has fallen or names two tokens.
fn check(world: &World, newest: &mut [(u64, String)]) -> Result<(), TestCaseError> {
    let reused = world.issuer.reused();
    prop_assert!(reused.is_empty(), "{reused:?}");
    for (replica, newest) in newest.iter_mut().enumerate() {
        if let Some(version) = world.version(replica) {
            prop_assert!(
                version.0 >= newest.0,
                "{replica}: {version:?} after {newest:?}"
            );
            *newest = version;
        }
    }
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

/// For each of the three properties; `SOAK_FLEET`: another number.
fn cases() -> u32 {
    std::env::var("SOAK_FLEET")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(167)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// An issuer that forgives nothing: not one reuse.
    #[test]
    fn no_refresh_token_is_sent_twice(steps in proptest::collection::vec(step(), 1..12)) {
        let rules = Rules { latency: vec![ms(50), ms(1000), ms(300), ms(3000)], ..Rules::default() };
        runtime().block_on(run(rules, &steps))?;
    }

    /// With an initial grant nothing is lost for long.
    #[test]
    fn once_the_faults_end_all_replicas_have_one_token(
        steps in proptest::collection::vec(step(), 1..12),
    ) {
        let rules = Rules {
            latency: vec![ms(50), ms(1000), ms(300)],
            has_initial_grant: true,
            ..Rules::default()
        };
        runtime().block_on(run(rules, &steps))?;
    }

    /// An issuer that forgives repetitions for five seconds.
    #[test]
    fn refresh_tokens_are_repeated_within_the_grace_period_alone(
        steps in proptest::collection::vec(step(), 1..12),
    ) {
        let rules = Rules {
            latency: vec![ms(50), ms(1000), ms(300), ms(3000)],
            forgives: Duration::from_secs(5) + ms(100),
            grace_retry: true,
            ..Rules::default()
        };
        runtime().block_on(run(rules, &steps))?;
    }
}
