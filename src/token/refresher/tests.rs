//! The refresher under paused time, with a scripted issuer and a scripted store.

mod chains;
mod harness;
mod intents;
mod properties;

use std::{io, time::Duration};

use tokio::time::Instant;

use self::harness::{Bench, Setup, failure, grant, refused, seconds};
use super::*;
use crate::{
    base::{
        clock::{Clock as _, Jump},
        secret::Secret,
    },
    token::{ManualRefreshError, Outcome, Persistence, Rejection, refresh_token::RefreshToken},
};

const HOUR: Duration = seconds(3600);
const DAY: Duration = seconds(24 * 3600);

#[tokio::test(start_paused = true)]
async fn refreshes_ahead_of_expiry_without_traffic() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    bench.token().await;
    for _ in 0..100 {
        bench.pass(HOUR / 4).await;
        assert!(bench.usable().is_some());
    }
    let calls = bench.calls();
    assert!(calls.len() > 25);
    for gap in bench.gaps() {
        assert!(
            gap >= seconds(3600 - 792) && gap <= seconds(3600 - 648),
            "{gap:?}"
        );
    }
    // Each call spends the refresh token that the one before brought.
    let spent: Vec<_> = calls.iter().map(|call| call.spent.as_str()).collect();
    assert_eq!(spent[..3], ["seed", "refresh-1", "refresh-2"]);
}

#[tokio::test(start_paused = true)]
async fn expiry_counts_from_before_the_request() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(8))
        .start();
    let token = bench.token().await;
    assert_eq!(token.expires_at(), bench.calls()[0].at + HOUR);
}

#[tokio::test(start_paused = true)]
async fn a_failing_issuer_is_retried_with_backoff_and_the_token_serves_until_its_expiry() {
    let bench = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Failing)
        }
    })
    .start();
    let token = bench.token().await;
    bench.until(State::Stale, Reason::IssuerFailing).await;
    let expires_at = token.expires_at();
    bench.clock.sleep_until(expires_at).await;
    assert!(bench.usable().is_none());
    bench.until(State::Expired, Reason::IssuerFailing).await;
    bench.pass(DAY).await;

    let calls = bench.calls();
    let last_minute = |call: &harness::Call| {
        call.at < expires_at && expires_at.saturating_since(call.at) <= seconds(60)
    };
    for pair in calls[1..].windows(2) {
        let gap = pair[1].at.saturating_since(pair[0].at);
        assert!(gap >= seconds(1) && gap <= seconds(300), "{gap:?}");
        if last_minute(&pair[0]) {
            assert!(gap <= Duration::from_millis(5001), "{gap:?}");
        }
    }
    assert!(
        calls.iter().filter(|call| last_minute(call)).count() >= 12,
        "the last minute is used"
    );
    assert!(calls.len() < 1000, "{} calls in a day", calls.len());
    assert!(
        calls.iter().filter(|call| call.at > expires_at).count() > 400,
        "it never gives up"
    );
}

#[tokio::test(start_paused = true)]
async fn it_recovers_within_one_backoff_step() {
    let bench = Setup::new(|n| {
        if n == 31 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Unreachable)
        }
    })
    .start();
    bench
        .until(State::Starting, Reason::IssuerUnreachable)
        .await;
    bench.until(State::Fresh, Reason::Ok).await;
    let gaps = bench.gaps();
    assert!(gaps.len() == 30 && gaps.iter().all(|gap| *gap <= seconds(300)));
    assert!(bench.credential.snapshot().problem.is_none());
    bench.pass(HOUR).await;
    assert!(
        bench.gaps()[31] <= seconds(2),
        "a success ends the doubling"
    );
}

#[tokio::test(start_paused = true)]
async fn the_expiry_is_told_when_it_comes_also_between_calls() {
    let throttled = FailureClass::Throttled(seconds(300));
    let bench = Setup::new(move |n| {
        if n == 1 {
            Ok(grant(n, seconds(60)))
        } else {
            failure(throttled)
        }
    })
    .start();
    let token = bench.token().await;
    bench.until(State::Stale, Reason::IssuerThrottling).await;
    bench.until(State::Expired, Reason::IssuerThrottling).await;
    assert_eq!(bench.clock.now(), token.expires_at());
}

#[tokio::test(start_paused = true)]
async fn a_rejection_of_a_doubtful_token_that_expired_is_worth_waiting() {
    let bench = Setup::new(|n| Ok(grant(n, seconds(1))))
        .latency(Duration::from_millis(500))
        .start();
    let token = bench.token().await;
    bench.credential.rejected(token.version());
    let unproven = bench
        .credential
        .newer_than(Some(token.version()), seconds(10))
        .await
        .expect("a newer token");
    unproven.replay_rejected();
    assert!(matches!(
        bench.credential.rejected(unproven.version()),
        Rejection::Futile
    ));
    // Past its expiry, but within the cooldown of a second.
    bench.clock.suspend(Duration::from_millis(600));
    assert!(matches!(
        bench.credential.rejected(unproven.version()),
        Rejection::Refreshing
    ));
}

#[tokio::test(start_paused = true)]
async fn nothing_shortens_a_retry_after() {
    let throttled = FailureClass::Throttled(seconds(120));
    let bench = Setup::new(move |n| {
        if n == 2 {
            failure(throttled)
        } else {
            Ok(grant(n, HOUR))
        }
    })
    .start();
    let token = bench.token().await;
    assert!(matches!(
        bench.credential.rejected(token.version()),
        Rejection::Refreshing
    ));
    bench.until(State::Stale, Reason::IssuerThrottling).await;
    for _ in 0..110 {
        bench.credential.rejected(token.version());
        assert!(matches!(
            bench.credential.refresh_now(),
            Err(ManualRefreshError::TooEarly { .. })
        ));
        bench.pass(seconds(1)).await;
    }
    assert_eq!(bench.calls().len(), 2);
    assert!(bench.credential.retry_after() <= seconds(10));
    bench.until(State::Fresh, Reason::Ok).await;
    assert_eq!(bench.gaps()[1], seconds(120));
}

#[tokio::test(start_paused = true)]
async fn rejections_do_not_shorten_a_backoff() {
    let bench = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, DAY))
        } else {
            failure(FailureClass::Failing)
        }
    })
    .start();
    let token = bench.token().await;
    for _ in 0..36_000 {
        bench.credential.rejected(token.version());
        bench.pass(Duration::from_millis(100)).await;
    }
    let calls = bench.calls().len();
    assert!(calls > 12 && calls < 80, "{calls} calls in an hour");
    assert_eq!(bench.count(Outcome::Transient), calls as u64 - 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_refresh_token_ends_all_calls_but_not_the_service() {
    let bench = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::RefreshTokenRefused)
        }
    })
    .start();
    let token = bench.token().await;
    bench.until(State::Dead, Reason::RefreshTokenRefused).await;
    assert!(bench.usable().is_some(), "what is still valid serves");
    let before = Instant::now();
    bench.credential.rejected(token.version());
    assert!(
        bench
            .credential
            .newer_than(Some(token.version()), seconds(10))
            .await
            .is_none()
    );
    assert_eq!(Instant::now(), before, "nobody waits for a dead credential");
    assert_eq!(
        bench.credential.refresh_now(),
        Err(ManualRefreshError::NoCredential)
    );
    bench.pass(7 * DAY).await;
    assert_eq!(bench.calls().len(), 2);
    let snapshot = bench.credential.snapshot();
    assert_eq!(
        (
            snapshot.state,
            snapshot.is_ready(),
            snapshot.next_attempt_in
        ),
        (State::Dead, false, None)
    );
    assert_eq!(bench.credential.retry_after(), seconds(300));
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_calls_once_a_minute_and_comes_back() {
    let bench = Setup::new(|n| {
        if n <= 60 {
            refused(n)
        } else {
            Ok(grant(n, HOUR))
        }
    })
    .start();
    bench.until(State::Dead, Reason::ClientRefused).await;
    assert!(
        bench
            .credential
            .newer_than(None, seconds(10))
            .await
            .is_none()
    );
    bench.until(State::Fresh, Reason::Ok).await;
    assert!(
        bench.gaps().iter().all(|gap| *gap >= seconds(60)),
        "{:?}",
        bench.gaps()
    );
    assert_eq!(bench.calls().len(), 61);
}

#[tokio::test(start_paused = true)]
async fn a_changed_client_secret_is_tried_once_at_once() {
    let bench = Setup::new(|n| {
        if n <= 1 {
            failure(FailureClass::ClientRefused)
        } else {
            Ok(grant(n, HOUR))
        }
    })
    .client_secrets(1)
    .start();
    let mut statuses = bench.credential.subscribe();
    bench.token().await;
    assert_eq!(bench.gaps(), [Duration::ZERO]);
    assert_ne!(statuses.borrow_and_update().state, State::Dead);

    let bench = Setup::new(|_| failure(FailureClass::ClientRefused))
        .client_secrets(1000)
        .start();
    bench.until(State::Dead, Reason::ClientRefused).await;
    bench.pass(HOUR).await;
    let gaps = bench.gaps();
    assert_eq!(gaps[0], Duration::ZERO);
    assert!(
        gaps.len() > 50 && gaps[1..].iter().all(|gap| *gap >= seconds(60)),
        "{gaps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_thousand_rejections_cost_one_call() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(1))
        .start();
    let token = bench.token().await;
    let requests: Vec<_> = (0..1000)
        .map(|_| {
            let (credential, version) = (bench.credential.clone(), token.version());
            tokio::spawn(async move {
                assert!(matches!(
                    credential.rejected(version),
                    Rejection::Refreshing
                ));
                credential.newer_than(Some(version), seconds(10)).await
            })
        })
        .collect();
    for request in requests {
        let newer = request.await.expect("no panic").expect("a newer token");
        assert!(newer.version() > token.version());
        newer.replay_accepted();
    }
    assert_eq!(bench.calls().len(), 2);
    // Stragglers under the old token do not cause another one.
    assert!(matches!(
        bench.credential.rejected(token.version()),
        Rejection::Newer(_)
    ));
    bench.pass(seconds(60)).await;
    assert_eq!(bench.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_goes_away_cancels_nothing() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(3))
        .start();
    let waiting = bench.credential.newer_than(None, seconds(10));
    assert!(tokio::time::timeout(seconds(1), waiting).await.is_err());
    assert!(
        bench
            .credential
            .newer_than(None, seconds(10))
            .await
            .is_some()
    );
    assert_eq!(bench.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_at_its_deadline() {
    let bench = Setup::new(|_| failure(FailureClass::Unreachable)).start();
    let before = Instant::now();
    assert!(
        bench
            .credential
            .newer_than(None, seconds(10))
            .await
            .is_none()
    );
    assert_eq!(before.elapsed(), seconds(10));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_always_rejects_gets_a_refresh_a_cooldown_and_they_grow() {
    let bench = Setup::new(|n| Ok(grant(n, DAY))).start();
    bench.token().await;
    for _ in 0..3600 {
        bench.reject_once().await;
        bench.pass(seconds(1)).await;
    }
    let gaps = bench.gaps();
    for (gap, cooldown) in gaps[1..].iter().zip([10, 20, 40, 80, 160, 300, 300]) {
        assert!(
            *gap >= seconds(cooldown) && *gap <= seconds(cooldown + 2),
            "{gap:?} of {cooldown}"
        );
    }
    assert!(gaps.len() > 10);
}

#[tokio::test(start_paused = true)]
async fn a_bad_path_beside_good_traffic_stays_within_the_cooldown_too() {
    let bench = Setup::new(|n| Ok(grant(n, DAY))).start();
    bench.token().await;
    for _ in 0..600 {
        bench.usable().expect("a token").accepted();
        bench.reject_once().await;
        bench.usable().expect("a token").accepted();
        bench.pass(seconds(1)).await;
    }
    assert!(bench.gaps()[1..].iter().all(|gap| *gap >= seconds(10)));
    assert!(bench.calls().len() <= 8, "{}", bench.calls().len());
}

#[tokio::test(start_paused = true)]
async fn a_truly_revoked_token_is_replaced_at_once_also_a_second_time() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    for _ in 0..3 {
        let token = bench.token().await;
        assert!(matches!(
            bench.credential.rejected(token.version()),
            Rejection::Refreshing
        ));
        let newer = bench
            .credential
            .newer_than(Some(token.version()), seconds(10))
            .await
            .expect("a newer token");
        newer.replay_accepted();
    }
    assert_eq!(bench.calls().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn calendar_jumps_change_nothing() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = bench.token().await;
    for direction in [Jump::Forwards, Jump::Backwards, Jump::Backwards] {
        bench.clock.jump_wall(direction, 2 * DAY);
        bench.pass(seconds(60)).await;
        assert!(bench.usable().is_some());
        assert_eq!(bench.calls().len(), 1);
    }
    bench.pass(HOUR).await;
    assert_eq!(bench.calls().len(), 2);
    assert!(bench.calls()[1].at < token.expires_at());
}

#[tokio::test(start_paused = true)]
async fn after_a_suspend_no_expired_token_is_handed_out_and_a_new_one_comes_at_once() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(1))
        .start();
    let token = bench.token().await;
    bench.clock.suspend(2 * HOUR);
    assert!(bench.usable().is_none());
    let snapshot = bench.credential.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.reason),
        (State::Expired, Reason::Refreshing)
    );
    assert!(matches!(
        bench.credential.rejected(token.version()),
        Rejection::Refreshing
    ));
    let newer = bench
        .credential
        .newer_than(None, seconds(10))
        .await
        .expect("a new token");
    assert!(newer.version() > token.version());
    assert_eq!(
        bench.calls()[1].at,
        bench.calls()[0].at + seconds(1) + 2 * HOUR
    );
}

#[tokio::test(start_paused = true)]
async fn short_lifetimes_never_cause_more_than_a_call_a_second() {
    let bench = Setup::new(|n| Ok(grant(n, seconds(1)))).start();
    bench.pass(seconds(60)).await;
    assert!(bench.calls().len() <= 61, "{}", bench.calls().len());
    let bench = Setup::new(|_| failure(FailureClass::Garbled)).start();
    bench.pass(seconds(60)).await;
    assert_eq!(
        bench.count(Outcome::Garbled),
        bench.calls().len() as u64,
        "counted apart"
    );
    assert!(bench.gaps().iter().all(|gap| *gap >= seconds(1)));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_stored_before_they_are_published() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::from_millis(500), |_| Ok(()))
        .start();
    let token = bench.token().await;
    assert_eq!(
        bench.clock.now(),
        bench.calls()[0].at + Duration::from_millis(500)
    );
    let saves = bench.saves();
    assert_eq!(
        (saves.len(), saves[0].generation, saves[0].published),
        (1, 1, None)
    );
    assert_eq!(saves[0].refresh_token, "refresh-1");
    bench.credential.rejected(token.version());
    bench
        .credential
        .newer_than(Some(token.version()), seconds(10))
        .await
        .expect("a newer token");
    assert_eq!(
        (bench.saves()[1].generation, bench.saves()[1].published),
        (2, Some(1))
    );
    assert_eq!(bench.credential.snapshot().persistence, Persistence::Stored);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_stored_is_published_and_its_write_retried() {
    let log = harness::Log::capture();
    let full = |n| {
        if n <= 10 {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    };
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::ZERO, full)
        .start();
    bench.token().await;
    assert_eq!(
        bench.clock.now(),
        bench.calls()[0].at,
        "nobody waits for a write that failed"
    );
    let failing = |bench: &Bench| {
        matches!(
            bench.credential.snapshot().persistence,
            Persistence::Failing { .. }
        )
    };
    bench.pass(seconds(1)).await;
    assert!(failing(&bench));
    while failing(&bench) {
        bench.pass(seconds(10)).await;
    }
    // The intent, then the token's record again and again.
    let writes = bench.writes();
    assert_eq!(writes.len(), 11);
    assert!(
        writes[1..]
            .windows(2)
            .all(|pair| pair[1].at.saturating_since(pair[0].at) >= seconds(1))
    );
    assert_eq!(bench.credential.snapshot().persistence, Persistence::Stored);
    assert_eq!(
        log.lines("cannot be written"),
        1,
        "an outage is logged once"
    );
    assert_eq!(log.lines("up to date again"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_delays_a_token_by_a_second_at_most_and_is_never_overtaken() {
    let bench = Setup::new(|n| Ok(grant(n, seconds(60))))
        .store(|_| seconds(90), |_| Ok(()))
        .start();
    bench.token().await;
    assert_eq!(bench.clock.now(), bench.calls()[0].at + seconds(1));
    assert!(matches!(
        bench.credential.snapshot().persistence,
        Persistence::Failing { .. }
    ));
    bench.pass(seconds(400)).await;
    let writes = bench.writes();
    assert!(writes.len() >= 4 && bench.calls().len() > writes.len());
    for pair in writes.windows(2) {
        assert!(
            pair[1].at.saturating_since(pair[0].at) >= seconds(90),
            "one write at a time"
        );
        assert!(
            pair[1].generation > pair[0].generation,
            "the newest record is written"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_a_call_in_flight_end_and_stores_its_result() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(8))
        .store(|_| seconds(3), |_| Ok(()))
        .start();
    bench.pass(seconds(2)).await;
    assert_eq!(bench.calls().len(), 1);
    let bench = bench.stop().await;
    assert_eq!(bench.saves().len(), 1);
    assert_eq!(
        bench.clock.now(),
        bench.calls()[0].at + seconds(11),
        "also beyond the second that a token waits"
    );
    assert_eq!(bench.credential.snapshot().persistence, Persistence::Stored);
}

#[tokio::test(start_paused = true)]
async fn shutdown_starts_no_call_and_gives_a_broken_store_a_bounded_chance() {
    let full = |_| Err(io::ErrorKind::StorageFull.into());
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::ZERO, full)
        .start();
    let token = bench.token().await;
    bench.credential.rejected(token.version());
    let before = bench.clock.now();
    let saves = bench.saves().len();
    let bench = bench.stop().await;
    assert_eq!(bench.calls().len(), 1);
    assert!(bench.saves().len() > saves);
    assert_eq!(bench.clock.now(), before + seconds(5));
    assert!(
        bench
            .credential
            .newer_than(Some(token.version()), seconds(10))
            .await
            .is_none(),
        "nobody is left to call"
    );
    assert_eq!(bench.clock.now(), before + seconds(5));
}

#[tokio::test(start_paused = true)]
async fn shutdown_comes_before_a_refresh_that_is_due_at_the_same_moment() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    bench.token().await;
    bench.clock.suspend(2 * HOUR);
    let bench = bench.stop().await;
    assert_eq!(bench.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_where_the_process_before_it_ended() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let old = bench.token().await;
    bench.pass(seconds(600)).await;
    let bench = bench
        .restart(Setup::new(|n| Ok(grant(n + 100, HOUR))))
        .await;
    let token = bench.usable().expect("the stored token serves at once");
    assert_eq!(
        (token.version(), token.header()),
        (old.version(), old.header())
    );
    assert_eq!(token.expires_at(), old.expires_at());
    bench.until(State::Fresh, Reason::Ok).await;
    bench.pass(seconds(600)).await;
    assert!(bench.calls().is_empty());
    bench.pass(HOUR).await;
    assert_eq!(
        bench.calls()[0].spent,
        "refresh-1",
        "the stored refresh token wins over its seed"
    );
    let new = bench.usable().expect("a token").version();
    assert_eq!((new.epoch(), new.generation()), (old.version().epoch(), 2));
}

#[tokio::test(start_paused = true)]
async fn a_new_seed_begins_a_new_chain_while_the_stored_token_serves() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let old = bench.token().await;
    let setup = || Setup::new(|n| Ok(grant(n + 100, HOUR))).latency(seconds(2));
    let bench = bench.restart(setup().refresh_token("another seed")).await;
    bench.pass(seconds(1)).await;
    assert_eq!(bench.calls()[0].spent, "another seed");
    assert_eq!(
        bench.usable().expect("the stored token").version(),
        old.version()
    );
    bench.pass(seconds(2)).await;
    let new = bench.usable().expect("the new token").version();
    assert!(
        new.epoch() > old.version().epoch() && new.generation() == 2,
        "{new}"
    );
    let record = bench.stop().await.stored();
    // Each seed is adopted once: going back to the first one changes nothing.
    for seed in ["seed", "another seed"] {
        let bench = Setup::new(|n| Ok(grant(n, HOUR)))
            .refresh_token(seed)
            .record(record.clone())
            .start();
        bench.pass(HOUR).await;
        assert_eq!(bench.calls()[0].spent, "refresh-101");
    }
}

#[tokio::test(start_paused = true)]
async fn a_seed_that_was_never_good_is_not_adopted() {
    let bench = Setup::new(|_| failure(FailureClass::RefreshTokenRefused)).start();
    bench.until(State::Dead, Reason::RefreshTokenRefused).await;
    assert!(bench.saves().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stored_token_of_unknown_age_is_refreshed_at_once() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    bench.token().await;
    let mut record = bench.stored();
    record.access.as_mut().expect("there").boot = None;
    record.access.as_mut().expect("there").requested_at += 10 * DAY;
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .record(record.clone())
        .start();
    bench.pass(seconds(1)).await;
    assert_eq!(bench.calls()[0].spent, "refresh-1");
    record.access = None;
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).record(record).start();
    bench.pass(seconds(1)).await;
    assert_eq!(bench.calls()[0].spent, "refresh-1");
}

#[tokio::test(start_paused = true)]
async fn without_a_refresh_token_nothing_is_called_and_nobody_waits() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .no_refresh_token()
        .start();
    bench.until(State::Starting, Reason::NoCredential).await;
    let before = Instant::now();
    assert!(
        bench
            .credential
            .newer_than(None, seconds(10))
            .await
            .is_none()
    );
    assert_eq!(Instant::now(), before);
    bench.pass(DAY).await;
    assert!(bench.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_person_may_ask_once_a_cooldown() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = bench.token().await;
    let Err(ManualRefreshError::TooEarly { retry_after }) = bench.credential.refresh_now() else {
        panic!("too early")
    };
    assert!(retry_after > seconds(9) && retry_after <= seconds(10));
    bench.pass(retry_after).await;
    assert_eq!(bench.credential.refresh_now(), Ok(()));
    assert!(matches!(
        bench.credential.refresh_now(),
        Err(ManualRefreshError::TooEarly { .. })
    ));
    let newer = bench
        .credential
        .newer_than(Some(token.version()), seconds(10))
        .await
        .expect("a newer token");
    // Nobody rejected the old one: the new one need not prove itself.
    assert!(matches!(
        bench.credential.rejected(newer.version()),
        Rejection::Refreshing
    ));
}

#[tokio::test(start_paused = true)]
async fn a_missing_refresh_token_in_the_answer_keeps_the_old_one() {
    let bench = Setup::new(|n| {
        Ok(TokenResponse {
            refresh_token: None,
            ..grant(n, HOUR)
        })
    })
    .start();
    bench.pass(DAY).await;
    assert!(bench.calls().len() > 20 && bench.calls().iter().all(|call| call.spent == "seed"));
}

#[tokio::test(start_paused = true)]
async fn one_log_line_a_transition_and_none_a_retry() {
    let log = harness::Log::capture();
    let bench = Setup::new(|n| match n {
        1 | 500.. => Ok(grant(n, HOUR)),
        _ => failure(FailureClass::Unreachable),
    })
    .start();
    bench.until(State::Fresh, Reason::Ok).await;
    bench.until(State::Stale, Reason::IssuerUnreachable).await;
    bench.until(State::Expired, Reason::IssuerUnreachable).await;
    bench.until(State::Fresh, Reason::Ok).await;
    assert_eq!(bench.calls().len(), 500);
    assert_eq!(log.lines("token state"), 4, "{}", log.text());
    assert!(
        !log.text().contains("refresh-") && !log.text().contains("seed"),
        "no secret"
    );
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_tells_all_but_secrets() {
    let bench = Setup::new(|n| {
        if n == 2 {
            failure(FailureClass::Failing)
        } else {
            Ok(grant(n, HOUR))
        }
    })
    .latency(seconds(2))
    .start();
    bench.token().await;
    let snapshot = bench.credential.snapshot();
    assert_eq!(
        (snapshot.name.as_str(), snapshot.generation),
        ("default", 1)
    );
    assert_eq!(snapshot.expires_in, Some(HOUR - seconds(2)));
    assert_eq!(
        snapshot.expires_at,
        Some(bench.clock.wall() + HOUR - seconds(2))
    );
    assert_eq!(
        snapshot.refresh_token_expires_at,
        Some(bench.clock.wall() + 30 * DAY - seconds(2))
    );
    bench.until(State::Stale, Reason::IssuerFailing).await;
    let snapshot = bench.credential.snapshot();
    assert_eq!(snapshot.problem.as_deref(), Some("as scripted"));
    assert!(
        snapshot
            .next_attempt_in
            .is_some_and(|next| next <= seconds(2))
    );
    let outcomes: Vec<_> = snapshot
        .last_refreshes
        .iter()
        .map(|refresh| refresh.outcome)
        .collect();
    assert_eq!(outcomes, [Outcome::Transient, Outcome::Success]);
    assert!(
        snapshot
            .last_refreshes
            .iter()
            .all(|refresh| refresh.duration == seconds(2))
    );
    assert_eq!(bench.count(Outcome::Transient), 1);
    let text = format!("{snapshot:?}").replace("seed_refused", "");
    assert!(
        !text.contains("access-") && !text.contains("refresh-1") && !text.contains("seed"),
        "{text}"
    );
}
