//! One situation each.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime},
};

use super::world::{Rules, World, ms, owner};
use crate::{
    base::{clock::Clock as _, secret::Secret},
    token::{
        FailureClass, Reason, RejectedRequest, Replacement, State,
        fleet::{OnStoreFailure, testing::Shared},
        refresh_token::RefreshToken,
        store::Record,
    },
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test(start_paused = true)]
async fn replicas_refresh_once_a_generation() {
    let world = World::new(Rules {
        replicas: 5,
        ..Rules::default()
    });
    assert!(world.ready(seconds(5)).await.is_some());
    for _ in 0..20 {
        world.pass(seconds(30)).await;
        for replica in 0..5 {
            assert!(world.version(replica).is_some());
        }
    }
    assert_eq!(world.issuer.reused().len(), 0);
    let calls = world.issuer.received().len();
    assert!((12..=14).contains(&calls), "{calls} calls in 10 minutes");
    assert_eq!(world.issuer.most_in_flight(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_token_reaches_all_within_a_second_or_so() {
    let world = World::new(Rules::default());
    assert!(world.ready(seconds(5)).await.is_some());
    for _ in 0..5 {
        let before = world.version(0).expect("a token").0;
        while (0..4).all(|n| world.version(n).is_some_and(|version| version.0 == before)) {
            world.pass(ms(10)).await;
        }
        world.pass(ms(1100)).await;
        assert!(world.agree());
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_killed_in_its_call_costs_one_more_call_where_that_is_forgiven() {
    let mut world = World::new(Rules {
        forgives: seconds(5),
        grace_retry: true,
        latency: vec![seconds(1)],
        ..Rules::default()
    });
    assert!(world.ready(seconds(6)).await.is_some());
    for _ in 0..50 {
        let calls = world.issuer.received().len();
        let before = world.version(0).expect("a token").0;
        let after = world.survives_a_kill_in_a_call(seconds(5)).await;
        // The lost response would have had the generation between.
        assert_eq!(after, before + 2);
        assert!(world.issuer.received().len() <= calls + 2);
        world.pass(seconds(3)).await;
    }
    assert_eq!(world.issuer.reused().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_grace_an_initial_grant_replaces_a_lost_call() {
    let mut world = World::new(Rules {
        has_initial_grant: true,
        latency: vec![seconds(1)],
        ..Rules::default()
    });
    assert!(world.ready(seconds(6)).await.is_some());
    for _ in 0..10 {
        world.survives_a_kill_in_a_call(seconds(5) + ms(500)).await;
        world.pass(seconds(3)).await;
    }
    assert_eq!(world.issuer.reused().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_stopped_before_it_writes_sends_nothing_once_it_continues() {
    for stopped in [ms(300), seconds(2), seconds(6)] {
        let world = World::new(Rules::default());
        assert!(world.ready(seconds(5)).await.is_some());
        for replica in 0..4 {
            world.delay_connection(replica, ms(200));
        }
        let owner = loop {
            match world.claimant() {
                Some(owner) => break owner,
                None => world.pass(ms(5)).await,
            }
        };
        world.stop_for(owner, stopped);
        world.pass(seconds(60)).await;
        assert_eq!(world.issuer.reused().len(), 0, "{stopped:?}");
        assert!(world.agree());
    }
}

/// It was stopped while its response was on the way: the late result is used.
#[tokio::test(start_paused = true)]
async fn a_late_result_is_taken() {
    let world = World::new(Rules {
        latency: vec![ms(400)],
        ..Rules::default()
    });
    assert!(world.ready(seconds(5)).await.is_some());
    let calls = world.issuer.received().len();
    while world.issuer.received().len() == calls {
        world.pass(ms(10)).await;
    }
    let owner = world.issuer.received()[calls].replica;
    world.stop_for(owner, seconds(6));
    world.pass(seconds(8)).await;
    assert_eq!(world.issuer.received().len(), calls + 1);
    assert!(world.agree());
    assert_eq!(world.issuer.reused().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_emptied_store_gets_the_newest_record_back() {
    let world = World::new(Rules::default());
    assert!(world.ready(seconds(5)).await.is_some());
    for _ in 0..5 {
        let before = world.version(0);
        world.server.wipe();
        world.pass(seconds(2)).await;
        assert_eq!(world.version(0), before);
        let stored = world.server.shared(&owner()).expect("written back");
        assert_eq!(
            Some(stored.record.generation),
            before.map(|version| version.0)
        );
        world.pass(seconds(100)).await;
        assert!(world.agree());
    }
    assert_eq!(world.issuer.reused().len(), 0);
}

/// A single node moves into a fleet: the others know nothing but the seed of long ago.
#[tokio::test(start_paused = true)]
async fn a_replica_offers_its_copy_before_another_sends_the_seed() {
    let mut world = World::new(Rules {
        replicas: 1,
        ..Rules::default()
    });
    assert!(world.ready(seconds(5)).await.is_some());
    let stored = world.server.shared(&owner()).expect("stored").record;
    let store_now = world.clock.wall();
    let copy = stored.in_local_time(&*world.clock, store_now);
    world.kill(0).await;
    world.server.wipe();
    world.replicas.clear();
    world.add(None, Some(copy));
    world.add(Some("seed"), None);
    world.pass(seconds(20)).await;
    assert_eq!(world.issuer.reused().len(), 0);
    assert_eq!(world.issuer.received().len(), 1);
    assert!(world.agree());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_emptied_during_the_first_call_gets_the_claim_back() {
    let world = World::new(Rules {
        replicas: 2,
        latency: vec![seconds(6)],
        ..Rules::default()
    });
    while world.claimant().is_none() {
        world.pass(ms(10)).await;
    }
    world.pass(seconds(1)).await;
    world.server.wipe();
    world.pass(seconds(30)).await;
    assert_eq!(world.issuer.received().len(), 1);
    assert!(world.agree());
}

/// The store's clock went back: limits seem to end in the far future.
#[tokio::test(start_paused = true)]
async fn no_shared_limit_lasts_for_longer_than_one_that_a_replica_sets() {
    let world = World::new(Rules::default());
    assert!(world.ready(seconds(5)).await.is_some());
    let mut shared = world.server.shared(&owner()).expect("stored");
    let end = Some(SystemTime::UNIX_EPOCH + seconds(100_000_000_000));
    shared.limits.set_not_before(end);
    shared.limits.set_throttled_until(end);
    shared.serial += 1;
    world
        .server
        .put(&shared.to_bytes(&owner()).expect("encoded"));
    world.pass(seconds(310)).await;
    assert!(world.agree());
}

#[tokio::test(start_paused = true)]
async fn a_replica_without_memory_does_not_send_the_old_seed_to_an_emptied_store() {
    let mut world = World::new(Rules {
        latency: vec![seconds(1)],
        ..Rules::default()
    });
    assert!(world.ready(seconds(6)).await.is_some());
    let calls = world.issuer.received().len();
    while world
        .server
        .shared(&owner())
        .expect("stored")
        .claim
        .is_none()
    {
        world.pass(ms(10)).await;
    }
    world.server.wipe();
    world.add(Some("seed"), None);
    world.pass(seconds(70)).await;
    let seeds = world.issuer.received();
    assert_eq!(seeds.iter().filter(|call| call.token == "seed").count(), 1);
    assert!(seeds.len() > calls);
    assert_eq!(world.issuer.reused().len(), 0);
    assert!(world.agree());
}

#[tokio::test(start_paused = true)]
async fn what_one_replica_learns_from_the_issuer_holds_for_all() {
    // Refused: no further call. A new chain revives all of them.
    let mut world = World::new(Rules::default());
    assert!(world.ready(seconds(5)).await.is_some());
    let calls = world.issuer.received().len();
    world.issuer.revoke();
    world.pass(seconds(70)).await;
    assert_eq!(world.issuer.received().len(), calls + 1);
    for replica in &world.replicas {
        let snapshot = replica.credential.snapshot();
        assert_eq!(
            (snapshot.state, snapshot.reason),
            (State::Dead, Reason::RefreshTokenRefused)
        );
    }
    world.issuer.grant_seed("new");
    world.kill(0).await;
    world.revive_with(0, Some("new"));
    assert!(world.ready(seconds(6)).await.is_some());
    assert_eq!(world.issuer.received().len(), calls + 2);
    world.pass(seconds(2)).await;
    assert!(world.agree());

    // A refused client: one call a minute in all. A server error: one call at a time, with backoff.
    for (class, most) in [
        (FailureClass::ClientRefused, 6),
        (FailureClass::Throttled(seconds(30)), 11),
    ] {
        let world = World::new(Rules::default());
        assert!(world.ready(seconds(5)).await.is_some());
        let calls = world.issuer.received().len();
        world.issuer.refuse(Some(class));
        world.pass(seconds(300)).await;
        let made = world.issuer.received().len() - calls;
        assert!((3..=most).contains(&made), "{class:?}: {made}");
        assert_eq!(world.issuer.most_in_flight(), 1);
        world.issuer.refuse(None);
        assert!(world.agreed(seconds(65)).await, "{class:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_cut_off_leaves_the_call_to_others_and_serves_its_token() {
    let world = World::new(Rules::default());
    assert!(world.ready(seconds(5)).await.is_some());
    world.replicas[0].link.cut(seconds(30));
    world.cut_off(1, seconds(200));
    let before = world.issuer.received().len();
    world.pass(seconds(29)).await;
    assert!(world.version(0).is_some());
    world.pass(seconds(170)).await;
    assert!(world.agree());
    let calls = world.issuer.received().len() - before;
    assert!((3..=5).contains(&calls), "{calls}");
    assert_eq!(world.issuer.reused().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_all_have_stopped_one_call_makes_them_ready() {
    let mut world = World::new(Rules::default());
    assert!(world.ready(seconds(5)).await.is_some());
    for replica in 0..4 {
        world.end(replica).await;
    }
    world.pass(seconds(100)).await;
    let calls = world.issuer.received().len();
    for replica in 0..4 {
        world.revive(replica);
    }
    assert!(world.ready(seconds(5)).await.is_some());
    assert_eq!(world.issuer.received().len(), calls + 1);
}

#[tokio::test(start_paused = true)]
async fn without_the_store_nothing_is_spent_and_the_token_serves_until_its_end() {
    let world = World::new(Rules::default());
    assert!(world.ready(seconds(5)).await.is_some());
    let calls = world.issuer.received().len();
    world.server.restart(seconds(300));
    world.pass(seconds(40)).await;
    assert!(world.version(0).is_some());
    let snapshot = world.replicas[0].credential.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.reason),
        (State::Stale, Reason::StoreUnreachable)
    );
    world.pass(seconds(100)).await;
    assert_eq!(
        world.replicas[0].credential.snapshot().state,
        State::Expired
    );
    assert_eq!(world.issuer.received().len(), calls);
    world.pass(seconds(160)).await;
    let ready = world.ready(seconds(5)).await;
    assert!(ready.is_some());
    assert_eq!(world.issuer.received().len(), calls + 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_a_record_of_this_credential_is_left_as_it_is() {
    let mut other = crate::token::testing::config(None).issuer;
    other.client_id = "another client".to_owned();
    let foreign = crate::token::store::Owner::new(&other);
    let foreign = crate::token::fleet::testing::empty_record(&foreign);
    for bytes in [
        b"".to_vec(),
        b"x".to_vec(),
        b"{}".to_vec(),
        b"{\"format\":2}".to_vec(),
        b"[1,2,3]".to_vec(),
        b"{\"format\":1,\"serial\":18446744073709551616".to_vec(),
        foreign,
    ] {
        let world = World::new(Rules {
            replicas: 1,
            ..Rules::default()
        });
        world.server.put(&bytes);
        world.pass(seconds(30)).await;
        let snapshot = world.replicas[0].credential.snapshot();
        assert_eq!(snapshot.reason, Reason::StoreGarbled, "{bytes:?}");
        assert_eq!(world.issuer.received().len(), 0);
        assert_eq!(world.server.bytes(), Some(bytes));
    }
}

/// Paths that are always rejected, at each replica: the budget is that of the fleet.
#[tokio::test(start_paused = true)]
async fn rejections_at_all_replicas_share_one_budget() {
    let world = World::new(Rules {
        lifetime: seconds(3600),
        ..Rules::default()
    });
    assert!(world.ready(seconds(5)).await.is_some());
    let before = world.issuer.received().len();
    for second in 0..60 {
        for replica in &world.replicas {
            let version = replica
                .credential
                .token()
                .as_ref()
                .map(|token| token.version());
            let _ = replica.credential.rejected(version.expect("a token"));
        }
        world.pass(seconds(1)).await;
        let calls = world.issuer.received().len() - before;
        assert!(calls <= 4 + second / 10, "{calls} calls after {second} s");
    }
    assert!(world.issuer.received().len() - before >= 6);
    assert_eq!(world.issuer.reused().len(), 0);
}

/// Three hundred requests whose token was revoked.
#[tokio::test(start_paused = true)]
async fn a_token_that_is_rejected_at_all_replicas_is_refreshed_once() {
    let world = World::new(Rules {
        lifetime: seconds(3600),
        ..Rules::default()
    });
    assert!(world.ready(seconds(5)).await.is_some());
    world.pass(seconds(2)).await;
    let before = world.issuer.received().len();
    let mut waiting = Vec::new();
    for n in 0..300 {
        let credential = world.replicas[n % 4].credential.clone();
        waiting.push(tokio::spawn(async move {
            let version = credential.token().as_ref().map(|token| token.version());
            let key = credential.request_key(n);
            let mut request = RejectedRequest::new(version.expect("a token"), key);
            credential.replacement(&mut request, seconds(10)).await
        }));
    }
    for request in waiting {
        let replacement = request.await.expect("no panic");
        assert!(
            matches!(replacement, Replacement::Newer(_)),
            "{replacement:?}"
        );
    }
    assert!(world.issuer.received().len() - before <= 2);
}

#[tokio::test(start_paused = true)]
async fn without_the_store_a_replica_with_an_initial_grant_may_refresh_alone() {
    for on_store_failure in [OnStoreFailure::Wait, OnStoreFailure::RefreshAlone] {
        let world = World::new(Rules {
            has_initial_grant: true,
            on_store_failure,
            ..Rules::default()
        });
        assert!(world.ready(seconds(5)).await.is_some());
        let calls = world.issuer.received().len();
        world.server.restart(seconds(150));
        world.pass(seconds(100)).await;
        let made = world.issuer.received().split_off(calls);
        match on_store_failure {
            OnStoreFailure::Wait => assert_eq!(made.len(), 0),
            OnStoreFailure::RefreshAlone => {
                assert!(made.iter().all(|call| call.token.is_empty()), "{made:?}");
                for replica in 0..4 {
                    assert!(world.version(replica).is_some());
                }
            }
        }
        assert!(world.agreed(seconds(80)).await);
        assert_eq!(world.issuer.reused().len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn two_hundred_replicas_call_once_a_period_and_agree_within_a_second() {
    const REPLICAS: usize = 200;
    let world = World::new(Rules {
        replicas: REPLICAS,
        lifetime: seconds(600),
        ..Rules::default()
    });
    assert!(world.ready(seconds(8)).await.is_some());
    let mut slowest = Duration::ZERO;
    for period in 1..=3 {
        let generation = world.version(0).expect("a token").0;
        let is_newer = |n: usize| {
            world
                .version(n)
                .is_some_and(|version| version.0 > generation)
        };
        // At rest.
        let reads = world.server.reads.load(Relaxed);
        world.pass(seconds(100)).await;
        let reads = world.server.reads.load(Relaxed) - reads;
        assert!(reads <= 100 * REPLICAS as u64, "{reads} in 100 s");
        while !(0..REPLICAS).any(is_newer) {
            world.pass(ms(20)).await;
        }
        let first = world.clock.now();
        while !(0..REPLICAS).all(is_newer) {
            world.pass(ms(20)).await;
        }
        slowest = slowest.max(world.clock.now().saturating_since(first));
        assert_eq!(world.issuer.received().len(), 1 + period);
    }
    println!("all replicas have a new token after {slowest:?}");
    assert!(slowest <= ms(1100), "{slowest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_the_store_and_who_refreshes() {
    let world = World::new(Rules {
        latency: vec![seconds(3)],
        ..Rules::default()
    });
    let store = |replica: usize| {
        let snapshot = world.replicas[replica].credential.snapshot();
        snapshot.store.expect("a store")
    };
    assert!(!store(0).is_up && !store(0).is_settled);
    assert!(world.ready(seconds(9)).await.is_some());
    world.pass(seconds(8)).await;
    assert!(store(0).is_up && store(0).is_settled);
    assert_eq!(
        (store(0).replica.as_str(), store(0).claim),
        ("replica-0", None)
    );
    let serial = store(0).serial;
    let owner = loop {
        match world.claimant() {
            Some(owner) => break owner,
            None => world.pass(ms(10)).await,
        }
    };
    // At rest, another replica reads once a second.
    world.pass(ms(1100)).await;
    let claim = store((owner + 1) % 4).claim.expect("a claim");
    assert_eq!(claim.replica, format!("replica-{owner}"));
    assert_eq!((claim.generation, claim.is_orphaned), (2, false));
    assert!(store(owner).serial > serial);
    let life = store(0).life;

    world.pass(seconds(5)).await;
    world.server.wipe();
    world.pass(seconds(2)).await;
    let restores: u64 = (0..4).map(|replica| store(replica).restores[0].1).sum();
    assert_eq!(restores, 1);
    assert!(!store(0).is_settled && store(0).life != life);

    world.server.restart(seconds(30));
    world.pass(seconds(10)).await;
    assert!(!store(0).is_up && store(0).problem.is_some());
    assert!(store(0).errors[0].1 > 0);
}

#[tokio::test(start_paused = true)]
async fn the_refresh_token_of_a_handwritten_file_is_a_seed() {
    let mut world = World::new(Rules {
        replicas: 0,
        ..Rules::default()
    });
    world.issuer.grant_seed("by hand");
    let token = RefreshToken::new(Secret::new("by hand"));
    for _ in 0..2 {
        let mut handwritten = Record::default();
        handwritten.generation = 7;
        handwritten.refresh_token = Some(token.clone());
        world.add(None, Some(handwritten));
    }
    world.pass(seconds(2)).await;
    assert!(world.server.shared(&owner()).is_none(), "it is no chain");
    assert!(world.ready(seconds(4)).await.is_some());
    assert!(world.agreed(seconds(2)).await);
    let stored = world.server.shared(&owner()).expect("a record").record;
    assert!(stored.epoch > 0 && stored.has_adopted(token.fingerprint()));
    assert_eq!(world.issuer.received().len(), 1);
    // Another replica with the same file.
    let mut handwritten = Record::default();
    handwritten.refresh_token = Some(token);
    world.add(None, Some(handwritten));
    world.pass(seconds(20)).await;
    assert_eq!(world.issuer.received().len(), 1);
    assert!(world.agree());
}

#[tokio::test(start_paused = true)]
async fn a_draining_replica_claims_nothing_while_its_token_is_valid() {
    let world = World::new(Rules {
        replicas: 1,
        ..Rules::default()
    });
    assert!(world.ready(seconds(5)).await.is_some());
    world.replicas[0].credential.drain();
    let calls = world.issuer.received().len();
    while world.version(0).is_some() {
        let _ = world.replicas[0].credential.refresh_now();
        assert_eq!(world.issuer.received().len(), calls);
        world.pass(ms(100)).await;
    }
    // Requests that it still has wait for a token.
    assert!(world.ready(seconds(5)).await.is_some());
    assert_eq!(world.issuer.received().len(), calls + 1);
}

/// `login` finds the store emptied, before a replica has written the old record back.
#[tokio::test(start_paused = true)]
async fn a_login_revives_dead_replicas_also_in_an_emptied_store() {
    for is_emptied in [false, true] {
        let world = World::new(Rules::default());
        assert!(world.ready(seconds(5)).await.is_some());
        world.pass(seconds(100)).await;
        let calls = world.issuer.received().len();
        world.issuer.revoke();
        world.pass(seconds(70)).await;
        assert_eq!(world.issuer.received().len(), calls + 1);
        if is_emptied {
            world.server.wipe();
        }
        world.log_in("logged-in").await;
        world.pass(ms(1100)).await;
        for replica in 0..4 {
            let (_, header) = world.version(replica).expect("a token");
            assert_eq!(header, "Bearer access-of-logged-in");
        }
        world.pass(seconds(100)).await;
        assert!(world.agree());
        let last = world.issuer.received().len() - calls - 1;
        assert!((1..=3).contains(&last), "{last} calls");
        assert_eq!(world.issuer.received()[calls + 1].token, "logged-in");
        assert_eq!(world.issuer.reused().len(), 0);
    }
}

/// The replica whose call was refused has died.
#[tokio::test(start_paused = true)]
async fn a_spare_is_tried_by_a_replica_that_finds_the_chain_refused() {
    let token = |text| RefreshToken::new(Secret::new(text));
    let mut world = World::new(Rules {
        replicas: 0,
        ..Rules::default()
    });
    let mut shared = Shared::default();
    shared.record.epoch = 1;
    shared.record.refresh_token = Some(token("refused"));
    shared.refuse(token("refused").fingerprint());
    shared.add_spare(&token("spare"));
    world.server.put(&shared.to_bytes(&owner()).expect("JSON"));
    world.issuer.grant_seed("spare");
    for _ in 0..2 {
        world.add(None, None);
    }
    assert!(world.ready(seconds(8)).await.is_some());
    let sent: Vec<_> = world.issuer.received();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(sent[0].token, "spare");
}

/// A reading also connects.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_is_tried_four_times_a_second() {
    let world = World::new(Rules {
        replicas: 1,
        lifetime: seconds(3600),
        ..Rules::default()
    });
    assert!(world.ready(seconds(5)).await.is_some());
    world.server.restart(seconds(60));
    world.pass(seconds(5)).await;
    let reads = world.server.reads.load(Relaxed);
    world.pass(seconds(10)).await;
    let reads = world.server.reads.load(Relaxed) - reads;
    assert!((25..=45).contains(&reads), "{reads} in 10 s");
}
