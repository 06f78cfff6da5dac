//! A lock that another process holds for long.

use super::*;

fn problem(harness: &Harness) -> String {
    harness.credential.snapshot().problem.unwrap_or_default()
}

/// A refresher with a valid token that another process locks out.
async fn locked_out(setup: Setup) -> Harness {
    let harness = setup.start();
    let token = harness.token().await;
    harness.pass(seconds(60)).await;
    harness.hold_lock(true);
    harness.credential.rejected(token.version());
    harness
}

#[tokio::test(start_paused = true)]
async fn field_a17_a_lock_that_is_held_for_long_is_named_once() {
    let log = harness::Log::capture();
    let harness = locked_out(Setup::new(|n| Ok(grant(n, HOUR)))).await;
    // Within token.timeout and five seconds, another process may be refreshing.
    harness.pass(seconds(14)).await;
    assert_eq!(harness.credential.snapshot().state, State::Fresh);
    harness.until(State::Stale, Reason::LockHeld).await;
    assert!(
        problem(&harness).contains("process 4242"),
        "{}",
        problem(&harness)
    );
    harness.pass(seconds(600)).await;
    assert_eq!(log.lines("lock_held"), 1, "{}", log.text());
    assert_eq!(harness.calls().len(), 1);
    assert!(harness.usable().is_some());
    // As soon as it is free, the refresh that is due is made.
    harness.hold_lock(false);
    harness.pass(seconds(2)).await;
    assert_eq!(harness.calls().len(), 2);
    harness.until(State::Fresh, Reason::Ok).await;
    assert_eq!(problem(&harness), "");
}

#[tokio::test(start_paused = true)]
async fn field_a17_the_last_chance_does_not_wait_for_the_lock() {
    let harness = locked_out(Setup::new(|n| Ok(grant(n, HOUR)))).await;
    let token = harness.usable().expect("a token");
    harness.hold_lock(true);
    harness.pass(HOUR).await;
    let calls = harness.calls();
    let left = token.expires_at().saturating_since(calls[1].at);
    assert!(left <= HOUR / 5 && left > HOUR / 5 - seconds(2), "{left:?}");
    assert!(harness.usable().is_some(), "no request is without a token");
    assert_eq!(harness.stored().generation, 2, "the new tokens are stored");
}

#[tokio::test(start_paused = true)]
async fn field_a17_without_a_token_the_wait_ends_after_the_time_of_a_refresh() {
    let holder = Setup::new(|n| Ok(grant(n, HOUR)))
        .no_refresh_token()
        .start();
    holder.hold_lock(true);
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).beside(&holder).start();
    let begin = harness.clock.now();
    let token = harness.credential.newer_than(None, seconds(60)).await;
    assert!(token.is_some());
    let waited = harness.calls()[0].at.saturating_since(begin);
    assert!(waited >= seconds(15) && waited < seconds(17), "{waited:?}");
}

/// A sibling that is stopped in the middle of its call: it holds the lock, its intent is old.
#[tokio::test(start_paused = true)]
async fn field_a17_a_stopped_siblings_intent_counts() {
    for (grace_retry, expected) in [(true, 1), (false, 0)] {
        let harness = locked_out(Setup::new(|n| Ok(grant(n, HOUR)))).await;
        let mut stored = harness.stored();
        let token = stored.refresh_token.clone().expect("there");
        stored.open_intent(&token, &*harness.clock);
        let harness = harness.stop().await;
        harness.put(stored);
        harness.clock.suspend(seconds(60));
        let setup = Setup::new(|n| Ok(grant(n + 100, HOUR)));
        let setup = match grace_retry {
            true => setup,
            false => setup.no_grace_retry(),
        };
        let harness = setup.beside(&harness).start();
        harness.hold_lock(true);
        harness.pass(seconds(2000)).await;
        assert!(harness.calls().is_empty() && harness.usable().is_some());
        harness.pass(seconds(1000)).await;
        assert_eq!(harness.calls().len(), expected, "{grace_retry}");
    }
}

#[tokio::test(start_paused = true)]
async fn field_a17_a_siblings_new_tokens_end_the_wait() {
    let harness = locked_out(Setup::new(|n| Ok(grant(n, HOUR)))).await;
    harness.until(State::Stale, Reason::LockHeld).await;
    let mut newer = harness.stored();
    let sent = newer.refresh_token.clone().expect("there");
    let access = newer.access.clone().expect("there");
    newer.advance(
        Some(Secret::new("theirs")),
        None,
        AccessToken {
            secret: Secret::new("their access token"),
            ..access
        },
        &Grant::Chain(sent),
    );
    harness.put(newer);
    harness.credential.reload();
    harness.pass(seconds(1)).await;
    assert_eq!(harness.credential.snapshot().reason, Reason::Ok);
    assert_eq!(harness.calls().len(), 1);
}
