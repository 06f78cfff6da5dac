//! Where chains come from: configured refresh tokens, other processes, first tokens.

use super::*;

#[tokio::test(start_paused = true)]
async fn first_tokens_begin_a_chain_when_there_is_no_refresh_token() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .no_refresh_token()
        .initial_grant(|n| Ok(grant(n + 200, HOUR)))
        .start();
    bench.token().await;
    bench.until(State::Fresh, Reason::Ok).await;
    bench.pass(HOUR).await;
    assert_eq!(
        (bench.first_calls().len(), bench.calls()[0].spent.as_str()),
        (1, "refresh-201")
    );
}

#[tokio::test(start_paused = true)]
async fn first_tokens_take_over_when_the_refresh_token_is_refused() {
    let bench = Setup::new(|_| failure(FailureClass::RefreshTokenRefused))
        .latency(seconds(1))
        .initial_grant(|n| Ok(grant(n + 200, HOUR)))
        .start();
    let mut statuses = bench.credential.subscribe();
    assert!(
        bench
            .credential
            .newer_than(None, seconds(3))
            .await
            .is_some(),
        "those who wait get it"
    );
    assert_ne!(statuses.borrow_and_update().state, State::Dead);
    assert_eq!((bench.calls().len(), bench.first_calls().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn refused_first_tokens_are_asked_for_once_a_minute() {
    for class in [
        FailureClass::RefreshTokenRefused,
        FailureClass::ClientRefused,
    ] {
        let answer = move |n| {
            if n <= 5 {
                failure(class)
            } else {
                Ok(grant(n, HOUR))
            }
        };
        let bench = Setup::new(|n| Ok(grant(n, HOUR)))
            .no_refresh_token()
            .initial_grant(answer)
            .start();
        bench.until(State::Dead, class.into()).await;
        bench.until(State::Fresh, Reason::Ok).await;
        let calls = bench.first_calls();
        assert!(
            calls
                .windows(2)
                .all(|pair| pair[1].at.saturating_since(pair[0].at) >= seconds(60)),
            "{calls:?}"
        );
        assert_eq!(calls.len(), 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_seed_that_is_refused_leaves_the_old_chain_in_place() {
    let log = harness::Log::capture();
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let old = bench.token().await;
    let bad = |n| {
        if n == 1 {
            failure(FailureClass::RefreshTokenRefused)
        } else {
            Ok(grant(n + 100, HOUR))
        }
    };
    let bench = bench
        .restart(Setup::new(bad).refresh_token("bad seed"))
        .await;
    bench.pass(seconds(60)).await;
    let snapshot = bench.credential.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.reason, snapshot.seed_refused),
        (State::Fresh, Reason::Ok, true)
    );
    assert_eq!(log.lines("refused the newly configured refresh token"), 1);
    assert_eq!(bench.usable().expect("a token").version(), old.version());
    bench.pass(HOUR).await;
    let spent: Vec<_> = bench.calls().into_iter().map(|call| call.spent).collect();
    assert_eq!(spent, ["bad seed", "refresh-1"]);
    assert_eq!(
        bench.stored().epoch,
        old.version().epoch(),
        "the same chain"
    );
    // Not after a restart either.
    let bench = bench
        .restart(Setup::new(|n| Ok(grant(n + 200, HOUR))).refresh_token("bad seed"))
        .await;
    bench.pass(HOUR).await;
    assert!(bench.calls().iter().all(|call| call.spent != "bad seed"));
}

/// A credential that is dead because of the refresh token in this file; any other is good.
async fn dead(file: &std::path::Path) -> Bench {
    std::fs::write(file, "bad").expect("written");
    let answer = |n| {
        if n == 1 {
            failure(FailureClass::RefreshTokenRefused)
        } else {
            Ok(grant(n, HOUR))
        }
    };
    let bench = Setup::new(answer).refresh_token_file(file).start();
    bench.until(State::Dead, Reason::RefreshTokenRefused).await;
    bench
}

#[tokio::test(start_paused = true)]
async fn a_new_refresh_token_in_its_file_revives_a_dead_credential() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    let bench = dead(&file).await;
    // Neither a file that says nothing new nor an empty one is worth a call, whoever asks.
    for contents in ["bad\n", ""] {
        std::fs::write(&file, contents).expect("written");
        bench.credential.reload();
        assert_eq!(
            bench.credential.refresh_now(),
            Err(ManualRefreshError::NoCredential)
        );
        bench.pass(HOUR).await;
        assert_eq!(bench.calls().len(), 1);
    }
    std::fs::write(&file, "good").expect("written");
    bench.credential.reload();
    bench.until(State::Fresh, Reason::Ok).await;
    assert_eq!(bench.calls()[1].spent, "good");
    // Back to a token that once was good: it is spent.
    std::fs::write(&file, "bad").expect("written");
    bench.credential.reload();
    bench.pass(HOUR).await;
    std::fs::write(&file, "good").expect("written");
    bench.credential.reload();
    bench.pass(HOUR).await;
    let again: Vec<_> = bench
        .calls()
        .into_iter()
        .skip(2)
        .map(|call| call.spent)
        .collect();
    assert_eq!(again, ["refresh-2", "refresh-3"]);
}

#[tokio::test(start_paused = true)]
async fn files_are_looked_at_without_being_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    let bench = dead(&file).await;
    std::fs::write(&file, "good").expect("written");
    bench.until(State::Fresh, Reason::Ok).await;
    assert!(bench.calls()[1].at <= bench.calls()[0].at + seconds(31));
}

#[tokio::test(start_paused = true)]
async fn tokens_that_another_process_stores_revive_a_dead_credential() {
    let bench = Setup::new(|_| failure(FailureClass::RefreshTokenRefused)).start();
    bench.until(State::Dead, Reason::RefreshTokenRefused).await;
    let logged_in = Setup::new(|n| Ok(grant(n + 200, HOUR))).start();
    logged_in.token().await;
    bench.put(logged_in.stored());
    bench.credential.reload();
    bench.until(State::Fresh, Reason::Ok).await;
    assert_eq!(
        bench.usable().expect("a token").header(),
        logged_in.usable().expect("a token").header()
    );
    assert_eq!(bench.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_state_file_by_hand_is_as_good_as_a_configured_refresh_token() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let old = bench.token().await;
    let mut by_hand = Record::default();
    by_hand.refresh_token = Some(RefreshToken::new(Secret::new("by hand")));
    for _ in 0..2 {
        bench.put(by_hand.clone());
        bench.credential.reload();
        bench.pass(seconds(1)).await;
        assert_eq!(bench.calls().len(), 2, "once");
    }
    assert_eq!(bench.calls()[1].spent, "by hand");
    assert!(bench.usable().expect("a token").version().epoch() > old.version().epoch());
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_is_probed_once_a_minute_whoever_asks() {
    let bench = Setup::new(|_| failure(FailureClass::ClientRefused)).start();
    bench.until(State::Dead, Reason::ClientRefused).await;
    for _ in 0..600 {
        bench.credential.reload();
        let _ = bench.credential.refresh_now();
        bench.pass(seconds(1)).await;
    }
    assert!(
        bench.gaps().iter().all(|gap| *gap >= seconds(60)),
        "{:?}",
        bench.gaps()
    );
    assert!(bench.calls().len() >= 10);
}

#[tokio::test(start_paused = true)]
async fn processes_that_share_a_state_file_spend_each_token_once() {
    let issuer = |n| move |m| Ok(grant(n + m, HOUR));
    let first = Setup::new(issuer(0)).latency(seconds(2)).start();
    let second = Setup::new(issuer(100_000))
        .latency(seconds(2))
        .beside(&first)
        .start();
    let (one, other) = (first.token().await, second.token().await);
    assert_eq!(one.version(), other.version());
    assert_eq!(one.header(), other.header());
    first.pass(10 * DAY).await;
    let mut spent: Vec<_> = first
        .calls()
        .into_iter()
        .chain(second.calls())
        .map(|call| call.spent)
        .collect();
    let calls = spent.len();
    assert!(calls > 200 && calls < 350, "{calls}");
    spent.sort();
    spent.dedup();
    assert_eq!(spent.len(), calls, "a refresh token was spent twice");
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_waited_for_and_what_was_stored_meanwhile_is_adopted() {
    let log = harness::Log::capture();
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = bench.token().await;
    let mut newer = bench.stored();
    let mut access = newer.access.clone().expect("there");
    access.secret = Secret::new("theirs");
    let sent = newer.refresh_token.clone().expect("there");
    newer.advance(
        Some(Secret::new("their refresh token")),
        None,
        access,
        &Grant::Chain(sent),
    );
    bench.pass(seconds(60)).await;
    bench.hold_lock(true);
    bench.credential.rejected(token.version());
    bench.pass(seconds(30)).await;
    assert_eq!(bench.calls().len(), 1);
    bench.put(newer);
    bench.hold_lock(false);
    let adopted = bench
        .credential
        .newer_than(Some(token.version()), seconds(10))
        .await
        .expect("a newer token");
    assert_eq!(adopted.header().as_bytes(), b"Bearer theirs");
    assert_eq!(
        (
            bench.calls().len(),
            log.lines("another process stored newer tokens")
        ),
        (1, 1)
    );
    bench.pass(HOUR).await;
    assert_eq!(bench.calls()[1].spent, "their refresh token");
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_lock() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = bench.token().await;
    bench.hold_lock(true);
    bench.credential.rejected(token.version());
    bench.pass(seconds(5)).await;
    let before = bench.clock.now();
    let bench = bench.stop().await;
    assert_eq!((bench.calls().len(), bench.clock.now()), (1, before));
}

#[tokio::test(start_paused = true)]
async fn the_lock_is_held_until_the_newest_tokens_are_stored() {
    let full = |n| {
        if (2..5).contains(&n) {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    };
    let first = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::ZERO, full)
        .start();
    first.token().await;
    let second = Setup::new(|n| Ok(grant(n + 200, HOUR)))
        .beside(&first)
        .start();
    second.token().await;
    assert!(
        second.calls().is_empty(),
        "it would have spent the seed again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_backup_is_not_taken_for_news() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR))).start();
    bench.token().await;
    let backup = bench.stored();
    bench.pass(HOUR).await;
    bench.put(backup);
    bench.pass(HOUR).await;
    assert_eq!(bench.calls()[2].spent, "refresh-2");
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_refresh_token_is_told_and_warned_of() {
    let log = harness::Log::capture();
    let untold = |n| {
        Ok(TokenResponse {
            refresh_token: None,
            refresh_lifetime: None,
            ..grant(n, HOUR)
        })
    };
    let bench = Setup::new(untold).start();
    bench.token().await;
    let expiry = bench
        .credential
        .snapshot()
        .refresh_token_expires_at
        .expect("told");
    assert_eq!(expiry, bench.clock.wall() + 30 * DAY);
    for (days, warnings) in [(22, 0), (2, 1), (2, 1), (2, 2), (1, 2), (1, 3)] {
        bench.pass(days * DAY).await;
        assert_eq!(log.lines("expires soon"), warnings, "{}", log.text());
    }
    assert_eq!(
        bench.credential.snapshot().refresh_token_expires_at,
        Some(expiry),
        "the token is the same"
    );
}

#[tokio::test(start_paused = true)]
async fn another_processs_refresh_under_way_is_no_reason_to_give_up() {
    let slow = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(8))
        .start();
    slow.pass(seconds(1)).await;
    let bench = Setup::new(|n| Ok(grant(n + 200, HOUR)))
        .no_grace_retry()
        .beside(&slow)
        .start();
    bench.until(State::Fresh, Reason::Ok).await;
    assert!(bench.calls().is_empty() && slow.calls().len() == 1);

    let token = slow.token().await;
    slow.credential.rejected(token.version());
    slow.pass(seconds(1)).await;
    bench.credential.reload();
    bench.pass(seconds(1)).await;
    assert_eq!(bench.credential.snapshot().state, State::Fresh);
}
