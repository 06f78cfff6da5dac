//! How chains begin and change: seeds, other processes, initial grants.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_initial_grant_begins_a_chain_when_there_is_no_refresh_token() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .no_refresh_token()
        .initial_grant(|n| Ok(grant(n + 200, HOUR)))
        .start();
    harness.token().await;
    harness.until(State::Fresh, Reason::Ok).await;
    harness.pass(HOUR).await;
    assert_eq!(
        (
            harness.first_calls().len(),
            harness.calls()[0].sent.as_str()
        ),
        (1, "refresh-201")
    );
}

#[tokio::test(start_paused = true)]
async fn an_initial_grant_replaces_a_refused_refresh_token() {
    let harness = Setup::new(|_| failure(FailureClass::RefreshTokenRefused))
        .latency(seconds(1))
        .initial_grant(|n| Ok(grant(n + 200, HOUR)))
        .start();
    let mut statuses = harness.credential.subscribe();
    assert!(
        harness
            .credential
            .newer_than(None, seconds(3))
            .await
            .is_some(),
        "waiting requests get it"
    );
    assert_ne!(statuses.borrow_and_update().state, State::Dead);
    assert_eq!((harness.calls().len(), harness.first_calls().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_initial_grant_is_retried_once_a_minute() {
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
        let harness = Setup::new(|n| Ok(grant(n, HOUR)))
            .no_refresh_token()
            .initial_grant(answer)
            .start();
        harness.until(State::Dead, class.into()).await;
        harness.until(State::Fresh, Reason::Ok).await;
        let calls = harness.first_calls();
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
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let old = harness.token().await;
    let bad = |n| {
        if n == 1 {
            failure(FailureClass::RefreshTokenRefused)
        } else {
            Ok(grant(n + 100, HOUR))
        }
    };
    let harness = harness
        .restart(Setup::new(bad).refresh_token("bad seed"))
        .await;
    harness.pass(seconds(60)).await;
    let snapshot = harness.credential.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.reason, snapshot.seed_refused),
        (State::Fresh, Reason::Ok, true)
    );
    assert_eq!(log.lines("refused the newly configured refresh token"), 1);
    assert_eq!(harness.usable().expect("a token").version(), old.version());
    harness.pass(HOUR).await;
    let sent: Vec<_> = harness.calls().into_iter().map(|call| call.sent).collect();
    assert_eq!(sent, ["bad seed", "refresh-1"]);
    assert_eq!(
        harness.stored().epoch,
        old.version().epoch(),
        "the same chain"
    );
    // Not after a restart either.
    let harness = harness
        .restart(Setup::new(|n| Ok(grant(n + 200, HOUR))).refresh_token("bad seed"))
        .await;
    harness.pass(HOUR).await;
    assert!(harness.calls().iter().all(|call| call.sent != "bad seed"));
}

/// A credential that is dead because of the refresh token in this file. Any other token is
/// accepted.
async fn dead(file: &std::path::Path) -> Harness {
    std::fs::write(file, "bad").expect("written");
    let answer = |n| {
        if n == 1 {
            failure(FailureClass::RefreshTokenRefused)
        } else {
            Ok(grant(n, HOUR))
        }
    };
    let harness = Setup::new(answer).refresh_token_file(file).start();
    harness
        .until(State::Dead, Reason::RefreshTokenRefused)
        .await;
    harness
}

#[tokio::test(start_paused = true)]
async fn a_new_refresh_token_in_its_file_revives_a_dead_credential() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    let harness = dead(&file).await;
    // Neither an unchanged nor an empty file causes a call, not even on request.
    for contents in ["bad\n", ""] {
        std::fs::write(&file, contents).expect("written");
        harness.credential.reload();
        assert_eq!(
            harness.credential.refresh_now(),
            Err(ManualRefreshError::NoCredential)
        );
        harness.pass(HOUR).await;
        assert_eq!(harness.calls().len(), 1);
    }
    std::fs::write(&file, "good").expect("written");
    harness.credential.reload();
    harness.until(State::Fresh, Reason::Ok).await;
    assert_eq!(harness.calls()[1].sent, "good");
    // A configured token that began a chain before is not tried again.
    std::fs::write(&file, "bad").expect("written");
    harness.credential.reload();
    harness.pass(HOUR).await;
    std::fs::write(&file, "good").expect("written");
    harness.credential.reload();
    harness.pass(HOUR).await;
    let again: Vec<_> = harness
        .calls()
        .into_iter()
        .skip(2)
        .map(|call| call.sent)
        .collect();
    assert_eq!(again, ["refresh-2", "refresh-3"]);
}

#[tokio::test(start_paused = true)]
async fn changed_files_are_noticed_without_a_reload() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    let harness = dead(&file).await;
    std::fs::write(&file, "good").expect("written");
    harness.until(State::Fresh, Reason::Ok).await;
    assert!(harness.calls()[1].at <= harness.calls()[0].at + seconds(31));
}

#[tokio::test(start_paused = true)]
async fn tokens_that_another_process_stores_revive_a_dead_credential() {
    let harness = Setup::new(|_| failure(FailureClass::RefreshTokenRefused)).start();
    harness
        .until(State::Dead, Reason::RefreshTokenRefused)
        .await;
    let logged_in = Setup::new(|n| Ok(grant(n + 200, HOUR))).start();
    logged_in.token().await;
    harness.put(logged_in.stored());
    harness.credential.reload();
    harness.until(State::Fresh, Reason::Ok).await;
    assert_eq!(
        harness.usable().expect("a token").header(),
        logged_in.usable().expect("a token").header()
    );
    assert_eq!(harness.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handwritten_state_file_acts_as_a_seed() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let old = harness.token().await;
    let mut by_hand = Record::default();
    by_hand.refresh_token = Some(RefreshToken::new(Secret::new("by hand")));
    for _ in 0..2 {
        harness.put(by_hand.clone());
        harness.credential.reload();
        harness.pass(seconds(1)).await;
        assert_eq!(harness.calls().len(), 2, "once");
    }
    assert_eq!(harness.calls()[1].sent, "by hand");
    assert!(harness.usable().expect("a token").version().epoch() > old.version().epoch());
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_is_probed_once_a_minute_and_on_request_once_a_cooldown() {
    let harness = Setup::new(|_| failure(FailureClass::ClientRefused)).start();
    harness.until(State::Dead, Reason::ClientRefused).await;
    harness.pass(seconds(600)).await;
    assert!(harness.gaps().iter().all(|gap| *gap >= seconds(60)));
    assert!(harness.calls().len() >= 10);
    for _ in 0..600 {
        let _ = harness.credential.refresh_now();
        harness.pass(seconds(1)).await;
    }
    let gaps = harness.gaps();
    assert!(gaps[1..].iter().all(|gap| *gap >= seconds(10)), "{gaps:?}");
    assert!(harness.calls().len() >= 60);
}

#[tokio::test(start_paused = true)]
async fn processes_that_share_a_state_file_send_each_token_once() {
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
    let mut sent: Vec<_> = first
        .calls()
        .into_iter()
        .chain(second.calls())
        .map(|call| call.sent)
        .collect();
    let calls = sent.len();
    assert!(calls > 200 && calls < 350, "{calls}");
    sent.sort();
    sent.dedup();
    assert_eq!(sent.len(), calls, "a refresh token was sent twice");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_waits_for_the_lock_and_adopts_newer_tokens() {
    let log = harness::Log::capture();
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = harness.token().await;
    let mut newer = harness.stored();
    let mut access = newer.access.clone().expect("there");
    access.secret = Secret::new("theirs");
    let sent = newer.refresh_token.clone().expect("there");
    newer.advance(
        Some(Secret::new("their refresh token")),
        None,
        access,
        &Grant::Chain(sent),
    );
    harness.pass(seconds(60)).await;
    harness.hold_lock(true);
    harness.credential.rejected(token.version());
    harness.pass(seconds(30)).await;
    assert_eq!(harness.calls().len(), 1);
    harness.put(newer);
    harness.hold_lock(false);
    let adopted = harness
        .credential
        .newer_than(Some(token.version()), seconds(10))
        .await
        .expect("a newer token");
    assert_eq!(adopted.header().as_bytes(), b"Bearer theirs");
    assert_eq!(
        (
            harness.calls().len(),
            log.lines("another process stored newer tokens")
        ),
        (1, 1)
    );
    harness.pass(HOUR).await;
    assert_eq!(harness.calls()[1].sent, "their refresh token");
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_lock() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = harness.token().await;
    harness.hold_lock(true);
    harness.credential.rejected(token.version());
    harness.pass(seconds(5)).await;
    let before = harness.clock.now();
    let harness = harness.stop().await;
    assert_eq!((harness.calls().len(), harness.clock.now()), (1, before));
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
        "it would have sent the seed again"
    );
}

#[tokio::test(start_paused = true)]
async fn an_older_record_is_ignored() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    harness.token().await;
    let backup = harness.stored();
    harness.pass(HOUR).await;
    harness.put(backup);
    harness.pass(HOUR).await;
    assert_eq!(harness.calls()[2].sent, "refresh-2");
}

#[tokio::test(start_paused = true)]
async fn the_expiry_of_a_refresh_token_is_reported_and_warned_of() {
    let log = harness::Log::capture();
    let unstated = |n| {
        Ok(TokenResponse {
            refresh_token: None,
            refresh_lifetime: None,
            ..grant(n, HOUR)
        })
    };
    let harness = Setup::new(unstated).start();
    harness.token().await;
    let expiry = harness
        .credential
        .snapshot()
        .refresh_token_expires_at
        .expect("reported");
    assert_eq!(expiry, harness.clock.wall() + 30 * DAY);
    for (days, warnings) in [(22, 0), (2, 1), (2, 1), (2, 2), (1, 2), (1, 3)] {
        harness.pass(days * DAY).await;
        assert_eq!(log.lines("expires soon"), warnings, "{}", log.text());
    }
    assert_eq!(
        harness.credential.snapshot().refresh_token_expires_at,
        Some(expiry),
        "the token is the same"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refresh_of_another_process_does_not_block_the_credential() {
    let slow = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(8))
        .start();
    slow.pass(seconds(1)).await;
    let harness = Setup::new(|n| Ok(grant(n + 200, HOUR)))
        .no_grace_retry()
        .beside(&slow)
        .start();
    harness.until(State::Fresh, Reason::Ok).await;
    assert!(harness.calls().is_empty() && slow.calls().len() == 1);

    let token = slow.token().await;
    slow.credential.rejected(token.version());
    slow.pass(seconds(1)).await;
    harness.credential.reload();
    harness.pass(seconds(1)).await;
    assert_eq!(harness.credential.snapshot().state, State::Fresh);
}
