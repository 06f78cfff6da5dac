//! The refresher under paused time, with a scripted issuer and a scripted store.

mod calls;
mod chains;
mod fleet;
mod handwritten;
mod harness;
mod intents;
mod locks;
mod properties;
mod rejections;
mod seeds;
mod stored;

use std::{io, time::Duration};

use tokio::time::Instant;

use self::harness::{Harness, Setup, failure, grant, refused, seconds};
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
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    harness.token().await;
    for _ in 0..100 {
        harness.pass(HOUR / 4).await;
        assert!(harness.usable().is_some());
    }
    let calls = harness.calls();
    assert!(calls.len() > 25);
    for gap in harness.gaps() {
        assert!(
            gap >= seconds(3600 - 792) && gap <= seconds(3600 - 648),
            "{gap:?}"
        );
    }
    // Each call sends the refresh token of the previous response.
    let sent: Vec<_> = calls.iter().map(|call| call.sent.as_str()).collect();
    assert_eq!(sent[..3], ["seed", "refresh-1", "refresh-2"]);
}

#[tokio::test(start_paused = true)]
async fn expiry_counts_from_before_the_request() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(8))
        .start();
    let token = harness.token().await;
    assert_eq!(token.expires_at(), harness.calls()[0].at + HOUR);
}

#[tokio::test(start_paused = true)]
async fn a_failing_issuer_is_retried_with_backoff_and_the_token_serves_until_its_expiry() {
    let harness = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Failing)
        }
    })
    .start();
    let token = harness.token().await;
    harness.until(State::Stale, Reason::IssuerFailing).await;
    let expires_at = token.expires_at();
    harness.clock.sleep_until(expires_at).await;
    assert!(harness.usable().is_none());
    harness.until(State::Expired, Reason::IssuerFailing).await;
    harness.pass(DAY).await;

    let calls = harness.calls();
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
        "retries never stop"
    );
}

#[tokio::test(start_paused = true)]
async fn it_recovers_within_one_backoff_step() {
    let harness = Setup::new(|n| {
        if n == 31 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Unreachable)
        }
    })
    .start();
    harness
        .until(State::Starting, Reason::IssuerUnreachable)
        .await;
    harness.until(State::Fresh, Reason::Ok).await;
    let gaps = harness.gaps();
    assert!(gaps.len() == 30 && gaps.iter().all(|gap| *gap <= seconds(300)));
    assert!(harness.credential.snapshot().problem.is_none());
    harness.pass(HOUR).await;
    assert!(
        harness.gaps()[31] <= seconds(2),
        "a success ends the doubling"
    );
}

#[tokio::test(start_paused = true)]
async fn the_expiry_is_reported_at_once_also_between_calls() {
    let throttled = FailureClass::Throttled(seconds(300));
    let harness = Setup::new(move |n| {
        if n == 1 {
            Ok(grant(n, seconds(60)))
        } else {
            failure(throttled)
        }
    })
    .start();
    let token = harness.token().await;
    harness.until(State::Stale, Reason::IssuerThrottling).await;
    harness
        .until(State::Expired, Reason::IssuerThrottling)
        .await;
    assert_eq!(harness.clock.now(), token.expires_at());
}

#[tokio::test(start_paused = true)]
async fn a_rejection_of_a_token_that_expired_waits_for_a_newer_one() {
    let harness = Setup::new(|n| Ok(grant(n, seconds(1))))
        .latency(Duration::from_millis(500))
        .start();
    let token = harness.token().await;
    harness
        .credential
        .replay_rejected(&token, harness.credential.request_key("never"));
    harness.clock.suspend(Duration::from_millis(600));
    assert!(matches!(
        harness.credential.rejected(token.version()),
        Rejection::Refreshing { ask_again: None }
    ));
}

#[tokio::test(start_paused = true)]
async fn nothing_shortens_a_retry_after() {
    let throttled = FailureClass::Throttled(seconds(120));
    let harness = Setup::new(move |n| {
        if n == 2 {
            failure(throttled)
        } else {
            Ok(grant(n, HOUR))
        }
    })
    .start();
    let token = harness.token().await;
    assert!(matches!(
        harness.credential.rejected(token.version()),
        Rejection::Refreshing { .. }
    ));
    harness.until(State::Stale, Reason::IssuerThrottling).await;
    for _ in 0..110 {
        harness.credential.rejected(token.version());
        assert!(matches!(
            harness.credential.refresh_now(),
            Err(ManualRefreshError::TooEarly { .. })
        ));
        harness.pass(seconds(1)).await;
    }
    assert_eq!(harness.calls().len(), 2);
    assert!(harness.credential.retry_after() <= seconds(10));
    harness.until(State::Fresh, Reason::Ok).await;
    assert_eq!(harness.gaps()[1], seconds(120));
}

#[tokio::test(start_paused = true)]
async fn rejections_do_not_shorten_a_backoff() {
    let harness = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, DAY))
        } else {
            failure(FailureClass::Failing)
        }
    })
    .start();
    let token = harness.token().await;
    for _ in 0..36_000 {
        harness.credential.rejected(token.version());
        harness.pass(Duration::from_millis(100)).await;
    }
    let calls = harness.calls().len();
    assert!(calls > 12 && calls < 80, "{calls} calls in an hour");
    assert_eq!(harness.count(Outcome::Transient), calls as u64 - 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_refresh_token_ends_all_calls_and_the_valid_token_stays_in_use() {
    let harness = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::RefreshTokenRefused)
        }
    })
    .start();
    let token = harness.token().await;
    harness
        .until(State::Dead, Reason::RefreshTokenRefused)
        .await;
    assert!(harness.usable().is_some(), "a valid token stays in use");
    let before = Instant::now();
    harness.credential.rejected(token.version());
    assert!(
        harness
            .credential
            .newer_than(Some(token.version()), seconds(10))
            .await
            .is_none()
    );
    assert_eq!(
        Instant::now(),
        before,
        "no request waits for a dead credential"
    );
    assert_eq!(
        harness.credential.refresh_now(),
        Err(ManualRefreshError::NoCredential)
    );
    harness.pass(7 * DAY).await;
    assert_eq!(harness.calls().len(), 2);
    let snapshot = harness.credential.snapshot();
    assert_eq!(
        (
            snapshot.state,
            snapshot.is_ready(),
            snapshot.next_attempt_in
        ),
        (State::Dead, false, None)
    );
    assert_eq!(harness.credential.retry_after(), seconds(300));
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_calls_once_a_minute_and_recovers() {
    let harness = Setup::new(|n| {
        if n <= 60 {
            refused(n)
        } else {
            Ok(grant(n, HOUR))
        }
    })
    .start();
    harness.until(State::Dead, Reason::ClientRefused).await;
    assert!(
        harness
            .credential
            .newer_than(None, seconds(10))
            .await
            .is_none()
    );
    harness.until(State::Fresh, Reason::Ok).await;
    assert!(
        harness.gaps().iter().all(|gap| *gap >= seconds(60)),
        "{:?}",
        harness.gaps()
    );
    assert_eq!(harness.calls().len(), 61);
}

#[tokio::test(start_paused = true)]
async fn a_changed_client_secret_is_tried_once_at_once() {
    let harness = Setup::new(|n| {
        if n <= 1 {
            failure(FailureClass::ClientRefused)
        } else {
            Ok(grant(n, HOUR))
        }
    })
    .client_secrets(1)
    .start();
    let mut statuses = harness.credential.subscribe();
    harness.token().await;
    assert_eq!(harness.gaps(), [Duration::ZERO]);
    assert_ne!(statuses.borrow_and_update().state, State::Dead);

    let harness = Setup::new(|_| failure(FailureClass::ClientRefused))
        .client_secrets(1000)
        .start();
    harness.until(State::Dead, Reason::ClientRefused).await;
    harness.pass(HOUR).await;
    let gaps = harness.gaps();
    assert_eq!(gaps[0], Duration::ZERO);
    assert!(
        gaps.len() > 50 && gaps[1..].iter().all(|gap| *gap >= seconds(60)),
        "{gaps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_thousand_rejections_cost_one_call() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(1))
        .start();
    let token = harness.token().await;
    let requests: Vec<_> = (0..1000)
        .map(|_| {
            let (credential, version) = (harness.credential.clone(), token.version());
            tokio::spawn(async move {
                assert!(matches!(
                    credential.rejected(version),
                    Rejection::Refreshing { .. }
                ));
                credential.newer_than(Some(version), seconds(10)).await
            })
        })
        .collect();
    for request in requests {
        let newer = request.await.expect("no panic").expect("a newer token");
        assert!(newer.version() > token.version());
    }
    assert_eq!(harness.calls().len(), 2);
    // Late rejections of the old token do not cause another call.
    assert!(matches!(
        harness.credential.rejected(token.version()),
        Rejection::Newer(_)
    ));
    harness.pass(seconds(60)).await;
    assert_eq!(harness.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_waiter_does_not_cancel_the_refresh() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(3))
        .start();
    let waiting = harness.credential.newer_than(None, seconds(10));
    assert!(tokio::time::timeout(seconds(1), waiting).await.is_err());
    assert!(
        harness
            .credential
            .newer_than(None, seconds(10))
            .await
            .is_some()
    );
    assert_eq!(harness.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_at_its_deadline() {
    let harness = Setup::new(|_| failure(FailureClass::Unreachable)).start();
    let before = Instant::now();
    assert!(
        harness
            .credential
            .newer_than(None, seconds(10))
            .await
            .is_none()
    );
    assert_eq!(before.elapsed(), seconds(10));
}

#[tokio::test(start_paused = true)]
async fn a_truly_revoked_token_is_replaced_at_once_also_a_second_time() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    for _ in 0..3 {
        let token = harness.token().await;
        assert!(matches!(
            harness.credential.rejected(token.version()),
            Rejection::Refreshing { .. }
        ));
        let newer = harness
            .credential
            .newer_than(Some(token.version()), seconds(10));
        assert!(newer.await.is_some());
    }
    assert_eq!(harness.calls().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn wall_clock_jumps_change_nothing() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = harness.token().await;
    for direction in [Jump::Forwards, Jump::Backwards, Jump::Backwards] {
        harness.clock.jump_wall(direction, 2 * DAY);
        harness.pass(seconds(60)).await;
        assert!(harness.usable().is_some());
        assert_eq!(harness.calls().len(), 1);
    }
    harness.pass(HOUR).await;
    assert_eq!(harness.calls().len(), 2);
    assert!(harness.calls()[1].at < token.expires_at());
}

#[tokio::test(start_paused = true)]
async fn after_a_suspend_no_expired_token_is_handed_out_and_a_new_one_comes_at_once() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(1))
        .start();
    let token = harness.token().await;
    harness.clock.suspend(2 * HOUR);
    assert!(harness.usable().is_none());
    let snapshot = harness.credential.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.reason),
        (State::Expired, Reason::Refreshing)
    );
    assert!(matches!(
        harness.credential.rejected(token.version()),
        Rejection::Refreshing { .. }
    ));
    let newer = harness
        .credential
        .newer_than(None, seconds(10))
        .await
        .expect("a new token");
    assert!(newer.version() > token.version());
    assert_eq!(
        harness.calls()[1].at,
        harness.calls()[0].at + seconds(1) + 2 * HOUR
    );
}

#[tokio::test(start_paused = true)]
async fn short_lifetimes_never_cause_more_than_a_call_a_second() {
    let harness = Setup::new(|n| Ok(grant(n, seconds(1)))).start();
    harness.pass(seconds(60)).await;
    assert!(harness.calls().len() <= 61, "{}", harness.calls().len());
    let harness = Setup::new(|_| failure(FailureClass::Garbled)).start();
    harness.pass(seconds(60)).await;
    assert_eq!(
        harness.count(Outcome::Garbled),
        harness.calls().len() as u64,
        "counted apart"
    );
    assert!(harness.gaps().iter().all(|gap| *gap >= seconds(1)));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_stored_before_they_are_published() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::from_millis(500), |_| Ok(()))
        .start();
    let token = harness.token().await;
    assert_eq!(
        harness.clock.now(),
        harness.calls()[0].at + Duration::from_millis(500)
    );
    let saves = harness.saves();
    assert_eq!(
        (saves.len(), saves[0].generation, saves[0].published),
        (1, 1, None)
    );
    assert_eq!(saves[0].refresh_token, "refresh-1");
    harness.credential.rejected(token.version());
    harness
        .credential
        .newer_than(Some(token.version()), seconds(10))
        .await
        .expect("a newer token");
    assert_eq!(
        (harness.saves()[1].generation, harness.saves()[1].published),
        (2, Some(1))
    );
    assert_eq!(
        harness.credential.snapshot().persistence,
        Persistence::Stored
    );
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
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::ZERO, full)
        .start();
    harness.token().await;
    assert_eq!(
        harness.clock.now(),
        harness.calls()[0].at,
        "the token does not wait for a failed write"
    );
    let failing = |harness: &Harness| {
        matches!(
            harness.credential.snapshot().persistence,
            Persistence::Failing { .. }
        )
    };
    harness.pass(seconds(1)).await;
    assert!(failing(&harness));
    while failing(&harness) {
        harness.pass(seconds(10)).await;
    }
    // The intent, then the retries of the new record.
    let writes = harness.writes();
    assert_eq!(writes.len(), 11);
    assert!(
        writes[1..]
            .windows(2)
            .all(|pair| pair[1].at.saturating_since(pair[0].at) >= seconds(1))
    );
    assert_eq!(
        harness.credential.snapshot().persistence,
        Persistence::Stored
    );
    assert_eq!(
        log.lines("cannot be written"),
        1,
        "an outage is logged once"
    );
    assert_eq!(log.lines("up to date again"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_delays_a_token_by_a_second_at_most_and_is_never_overtaken() {
    let harness = Setup::new(|n| Ok(grant(n, seconds(60))))
        .store(|_| seconds(90), |_| Ok(()))
        .start();
    harness.token().await;
    assert_eq!(harness.clock.now(), harness.calls()[0].at + seconds(1));
    assert!(matches!(
        harness.credential.snapshot().persistence,
        Persistence::Failing { .. }
    ));
    harness.pass(seconds(400)).await;
    let writes = harness.writes();
    assert!(writes.len() >= 4 && harness.calls().len() > writes.len());
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
async fn shutdown_waits_for_a_call_in_progress_and_stores_its_result() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(8))
        .store(|_| seconds(3), |_| Ok(()))
        .start();
    harness.pass(seconds(2)).await;
    assert_eq!(harness.calls().len(), 1);
    let harness = harness.stop().await;
    assert_eq!(harness.saves().len(), 1);
    assert_eq!(
        harness.clock.now(),
        harness.calls()[0].at + seconds(11),
        "also beyond the second that a token waits"
    );
    assert_eq!(
        harness.credential.snapshot().persistence,
        Persistence::Stored
    );
}

#[tokio::test(start_paused = true)]
async fn shutdown_starts_no_call_and_waits_a_limited_time_for_a_failing_store() {
    let full = |_| Err(io::ErrorKind::StorageFull.into());
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::ZERO, full)
        .start();
    let token = harness.token().await;
    harness.credential.rejected(token.version());
    let before = harness.clock.now();
    let saves = harness.saves().len();
    let harness = harness.stop().await;
    assert_eq!(harness.calls().len(), 1);
    assert!(harness.saves().len() > saves);
    assert_eq!(harness.clock.now(), before + seconds(5));
    assert!(
        harness
            .credential
            .newer_than(Some(token.version()), seconds(10))
            .await
            .is_none(),
        "the refresher has ended"
    );
    assert_eq!(harness.clock.now(), before + seconds(5));
}

#[tokio::test(start_paused = true)]
async fn shutdown_comes_before_a_refresh_that_is_due_at_the_same_moment() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    harness.token().await;
    harness.clock.suspend(2 * HOUR);
    let harness = harness.stop().await;
    assert_eq!(harness.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restart_continues_with_the_stored_tokens() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let old = harness.token().await;
    harness.pass(seconds(600)).await;
    let harness = harness
        .restart(Setup::new(|n| Ok(grant(n + 100, HOUR))))
        .await;
    let token = harness
        .usable()
        .expect("the stored token is published at once");
    assert_eq!(
        (token.version(), token.header()),
        (old.version(), old.header())
    );
    assert_eq!(token.expires_at(), old.expires_at());
    harness.until(State::Fresh, Reason::Ok).await;
    harness.pass(seconds(600)).await;
    assert!(harness.calls().is_empty());
    harness.pass(HOUR).await;
    assert_eq!(
        harness.calls()[0].sent,
        "refresh-1",
        "the stored refresh token wins over its seed"
    );
    let new = harness.usable().expect("a token").version();
    assert_eq!((new.epoch(), new.generation()), (old.version().epoch(), 2));
}

#[tokio::test(start_paused = true)]
async fn a_new_seed_begins_a_new_chain_while_the_stored_token_serves() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let old = harness.token().await;
    let setup = || Setup::new(|n| Ok(grant(n + 100, HOUR))).latency(seconds(2));
    let harness = harness.restart(setup().refresh_token("another seed")).await;
    harness.pass(seconds(1)).await;
    assert_eq!(harness.calls()[0].sent, "another seed");
    assert_eq!(
        harness.usable().expect("the stored token").version(),
        old.version()
    );
    harness.pass(seconds(2)).await;
    let new = harness.usable().expect("the new token").version();
    assert!(
        new.epoch() > old.version().epoch() && new.generation() == 2,
        "{new}"
    );
    let record = harness.stop().await.stored();
    // Each seed is adopted once: going back to the first one changes nothing.
    for seed in ["seed", "another seed"] {
        let harness = Setup::new(|n| Ok(grant(n, HOUR)))
            .refresh_token(seed)
            .record(record.clone())
            .start();
        harness.pass(HOUR).await;
        assert_eq!(harness.calls()[0].sent, "refresh-101");
    }
}

#[tokio::test(start_paused = true)]
async fn a_seed_that_was_never_good_is_not_adopted() {
    let harness = Setup::new(|_| failure(FailureClass::RefreshTokenRefused)).start();
    harness
        .until(State::Dead, Reason::RefreshTokenRefused)
        .await;
    assert!(harness.saves().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stored_token_of_unknown_age_is_refreshed_at_once() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    harness.token().await;
    let mut record = harness.stored();
    record.access.as_mut().expect("there").boot = None;
    record.access.as_mut().expect("there").requested_at += 10 * DAY;
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .record(record.clone())
        .start();
    harness.pass(seconds(1)).await;
    assert_eq!(harness.calls()[0].sent, "refresh-1");
    record.access = None;
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).record(record).start();
    harness.pass(seconds(1)).await;
    assert_eq!(harness.calls()[0].sent, "refresh-1");
}

#[tokio::test(start_paused = true)]
async fn without_a_refresh_token_no_call_is_made_and_no_request_waits() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .no_refresh_token()
        .start();
    harness.until(State::Starting, Reason::NoCredential).await;
    let before = Instant::now();
    assert!(
        harness
            .credential
            .newer_than(None, seconds(10))
            .await
            .is_none()
    );
    assert_eq!(Instant::now(), before);
    harness.pass(DAY).await;
    assert!(harness.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_operator_may_ask_once_per_cooldown() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = harness.token().await;
    let Err(ManualRefreshError::TooEarly { retry_after }) = harness.credential.refresh_now() else {
        panic!("too early")
    };
    assert!(retry_after > seconds(9) && retry_after <= seconds(10));
    harness.pass(retry_after).await;
    assert_eq!(harness.credential.refresh_now(), Ok(()));
    assert!(matches!(
        harness.credential.refresh_now(),
        Err(ManualRefreshError::TooEarly { .. })
    ));
    let newer = harness
        .credential
        .newer_than(Some(token.version()), seconds(10))
        .await
        .expect("a newer token");
    assert!(matches!(
        harness.credential.rejected(newer.version()),
        Rejection::Refreshing { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_missing_refresh_token_in_the_response_keeps_the_old_one() {
    let harness = Setup::new(|n| {
        Ok(TokenResponse {
            refresh_token: None,
            ..grant(n, HOUR)
        })
    })
    .start();
    harness.pass(DAY).await;
    assert!(harness.calls().len() > 20 && harness.calls().iter().all(|call| call.sent == "seed"));
}

#[tokio::test(start_paused = true)]
async fn one_log_line_a_transition_and_none_a_retry() {
    let log = harness::Log::capture();
    let harness = Setup::new(|n| match n {
        1 | 500.. => Ok(grant(n, HOUR)),
        _ => failure(FailureClass::Unreachable),
    })
    .start();
    harness.until(State::Fresh, Reason::Ok).await;
    harness.until(State::Stale, Reason::IssuerUnreachable).await;
    harness
        .until(State::Expired, Reason::IssuerUnreachable)
        .await;
    harness.until(State::Fresh, Reason::Ok).await;
    assert_eq!(harness.calls().len(), 500);
    assert_eq!(log.lines("token state"), 4, "{}", log.text());
    assert!(
        !log.text().contains("refresh-") && !log.text().contains("seed"),
        "no secret"
    );
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_contains_everything_but_secrets() {
    let harness = Setup::new(|n| {
        if n == 2 {
            failure(FailureClass::Failing)
        } else {
            Ok(grant(n, HOUR))
        }
    })
    .latency(seconds(2))
    .start();
    harness.token().await;
    let snapshot = harness.credential.snapshot();
    assert_eq!(
        (snapshot.name.as_str(), snapshot.generation),
        ("default", 1)
    );
    assert_eq!(snapshot.expires_in, Some(HOUR - seconds(2)));
    assert_eq!(
        snapshot.expires_at,
        Some(harness.clock.wall() + HOUR - seconds(2))
    );
    assert_eq!(
        snapshot.refresh_token_expires_at,
        Some(harness.clock.wall() + 30 * DAY - seconds(2))
    );
    harness.until(State::Stale, Reason::IssuerFailing).await;
    let snapshot = harness.credential.snapshot();
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
    assert_eq!(harness.count(Outcome::Transient), 1);
    let text = format!("{snapshot:?}").replace("seed_refused", "");
    assert!(
        !text.contains("access-") && !text.contains("refresh-1") && !text.contains("seed"),
        "{text}"
    );
}
