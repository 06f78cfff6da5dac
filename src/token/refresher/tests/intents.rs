//! Refresh tokens that may have been used: intents, crashes, lost responses.

use super::*;

/// A process that was killed during its second refresh, `age` ago.
async fn killed(age: Duration, setup: Setup) -> Harness {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(2))
        .start();
    let token = harness.token().await;
    harness.credential.rejected(token.version());
    harness.pass(seconds(1)).await;
    assert_eq!(harness.calls().len(), 2);
    let killed = harness
        .crash(Setup::new(|_| failure(FailureClass::Unreachable)).no_refresh_token())
        .await;
    // The record is as the killed process left it.
    let killed = killed
        .crash(Setup::new(|_| failure(FailureClass::Unreachable)).no_refresh_token())
        .await;
    killed.clock.suspend(age.saturating_sub(seconds(1)));
    killed.crash(setup).await
}

fn sent(harness: &Harness) -> Vec<String> {
    harness.calls().into_iter().map(|call| call.sent).collect()
}

#[tokio::test(start_paused = true)]
async fn an_intent_is_durable_before_the_call_and_closed_by_the_new_tokens() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::from_millis(500), |_| Ok(()))
        .start();
    harness.token().await;
    let writes = harness.writes();
    let intents: Vec<_> = writes
        .iter()
        .map(|write| write.record.intents.len())
        .collect();
    assert_eq!(intents, [1, 0]);
    assert!(
        writes[0]
            .record
            .intent(RefreshToken::new(Secret::new("seed")).fingerprint())
            .is_some()
    );
    assert_eq!(
        harness.calls()[0].at,
        writes[0].at + Duration::from_millis(500),
        "the call waits for its intent"
    );
}

#[tokio::test(start_paused = true)]
async fn field_a16_a_process_that_ends_while_the_intent_is_stored_sends_nothing() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::from_millis(500), |_| Ok(()))
        .start();
    harness.pass(Duration::from_millis(100)).await;
    let harness = harness.stop().await;
    assert_eq!(sent(&harness), [""; 0]);
    let writes = harness.writes();
    let intents: Vec<_> = writes
        .iter()
        .map(|write| write.record.intents.len())
        .collect();
    assert_eq!(intents, [1, 0], "the next process sends it as unused");
}

#[tokio::test(start_paused = true)]
async fn field_a1_the_new_refresh_token_of_an_unusable_response_is_stored_and_used_next() {
    let harness = Setup::new(|n| match n {
        2 => Err(Failure {
            rotated: Some(RefreshToken::new(Secret::new("refresh-2"))),
            ..Failure::new(FailureClass::Garbled, "as scripted")
        }),
        n => Ok(grant(n, HOUR)),
    })
    .start();
    let token = harness.token().await;
    harness.credential.rejected(token.version());
    harness.pass(seconds(10)).await;
    assert_eq!(sent(&harness), ["seed", "refresh-1", "refresh-2"]);
    let writes = harness.writes();
    let stored = writes
        .iter()
        .find(|write| write.refresh_token == "refresh-2")
        .expect("stored");
    assert!(stored.at < harness.calls()[2].at);
    assert!(stored.record.intents.is_empty(), "{:?}", stored.record);
    assert_eq!(harness.credential.snapshot().state, State::Fresh);
}

#[tokio::test(start_paused = true)]
async fn an_intent_that_cannot_be_written_is_logged_and_stops_nothing() {
    let log = harness::Log::capture();
    let full = |_| Err(io::ErrorKind::StorageFull.into());
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::ZERO, full)
        .latency(seconds(2))
        .start();
    harness.pass(seconds(1)).await;
    assert_eq!(
        (harness.calls().len(), log.lines("cannot be written")),
        (1, 1)
    );
    harness.token().await;
}

#[tokio::test(start_paused = true)]
async fn a_known_outcome_closes_the_intent() {
    for class in [
        FailureClass::Unreachable,
        FailureClass::Failing,
        FailureClass::Throttled(seconds(300)),
        FailureClass::RefreshTokenRefused,
    ] {
        let harness = Setup::new(move |_| failure(class)).start();
        harness.pass(Duration::from_millis(100)).await;
        assert_eq!(
            (harness.calls().len(), harness.stored().intents.len()),
            (1, 0),
            "{class:?}"
        );
    }
    for class in [FailureClass::Ambiguous, FailureClass::Garbled] {
        let harness = Setup::new(move |_| failure(class)).start();
        harness.pass(Duration::from_millis(100)).await;
        assert_eq!(harness.stored().intents.len(), 1, "{class:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_a_young_intent_is_repeated_at_once() {
    let harness = killed(seconds(4), Setup::new(|n| Ok(grant(n + 100, HOUR)))).await;
    harness.pass(Duration::from_millis(1)).await;
    assert_eq!(sent(&harness), ["refresh-1"]);
    harness.until(State::Fresh, Reason::Ok).await;
    assert!(harness.stored().intents.is_empty());
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_an_old_intent_waits_until_little_of_the_access_token_is_left() {
    let harness = killed(seconds(5), Setup::new(|n| Ok(grant(n + 100, HOUR)))).await;
    let token = harness.usable().expect("the stored token is published");
    // Neither the schedule nor a rejection justifies the risk.
    harness.credential.rejected(token.version());
    harness.pass(seconds(2800)).await;
    assert!(harness.calls().is_empty());
    harness.pass(seconds(80)).await;
    assert_eq!(sent(&harness), ["refresh-1"]);
    let left = token.expires_at().saturating_since(harness.calls()[0].at);
    assert!(left <= HOUR / 5 && left > HOUR / 5 - seconds(1), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_an_operator_may_take_the_risk() {
    let harness = killed(seconds(60), Setup::new(|n| Ok(grant(n + 100, HOUR)))).await;
    harness.pass(seconds(60)).await;
    assert!(harness.calls().is_empty());
    assert_eq!(harness.credential.refresh_now(), Ok(()));
    harness.pass(seconds(1)).await;
    assert_eq!(sent(&harness), ["refresh-1"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_an_old_intent_leads_to_the_initial_grant_if_there_is_one() {
    let setup = Setup::new(|_| failure(FailureClass::RefreshTokenRefused))
        .initial_grant(|n| Ok(grant(n + 200, HOUR)));
    let harness = killed(seconds(60), setup).await;
    let old = harness.usable().expect("the stored token");
    harness.pass(seconds(1)).await;
    assert!(harness.calls().is_empty());
    assert_eq!(harness.first_calls().len(), 1);
    assert!(
        harness.usable().expect("a token").version().epoch() > old.version().epoch(),
        "a new chain"
    );
    assert_eq!(
        harness
            .stored()
            .refresh_token
            .expect("stored")
            .secret()
            .expose(),
        "refresh-201"
    );
}

#[tokio::test(start_paused = true)]
async fn without_grace_retry_a_possibly_used_token_is_never_sent_again() {
    for age in [0, 60] {
        let harness = killed(
            seconds(age),
            Setup::new(|n| Ok(grant(n, HOUR))).no_grace_retry(),
        )
        .await;
        harness.until(State::Dead, Reason::OutcomeUnknown).await;
        assert!(harness.usable().is_some(), "a valid token stays in use");
        let problem = harness.credential.snapshot().problem.expect("a problem");
        assert!(
            problem.contains("grace_retry") && problem.contains("get a new one"),
            "{problem}"
        );
        harness.pass(DAY).await;
        assert!(harness.calls().is_empty());
    }
    let lost = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Ambiguous)
        }
    });
    let harness = lost.no_grace_retry().start();
    harness.until(State::Dead, Reason::OutcomeUnknown).await;
    harness.pass(DAY).await;
    assert_eq!(harness.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_response_the_call_is_repeated_once_within_the_grace_period() {
    for class in [FailureClass::Ambiguous, FailureClass::Garbled] {
        let harness = Setup::new(move |n| {
            if n == 2 {
                failure(class)
            } else {
                Ok(grant(n, HOUR))
            }
        })
        .start();
        harness.pass(HOUR).await;
        assert_eq!(sent(&harness)[..3], ["seed", "refresh-1", "refresh-1"]);
        assert_eq!(harness.gaps()[1], seconds(1));
        assert_eq!(harness.usable().expect("a token").version().generation(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn after_two_lost_responses_the_call_waits_until_little_of_the_access_token_is_left() {
    let harness = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Ambiguous)
        }
    })
    .start();
    let token = harness.token().await;
    harness.credential.rejected(token.version());
    harness.until(State::Stale, Reason::IssuerUnreachable).await;
    harness.pass(seconds(2870)).await;
    assert_eq!(harness.calls().len(), 3, "the call and its repetition");
    harness.pass(HOUR).await;
    harness
        .until(State::Expired, Reason::IssuerUnreachable)
        .await;
    assert!(
        harness.calls().len() > 10,
        "without a usable token it is retried"
    );
    assert!(harness.gaps()[1..].iter().all(|gap| *gap >= seconds(1)));
}

#[tokio::test(start_paused = true)]
async fn after_a_timeout_the_call_is_not_repeated_beyond_the_grace_period() {
    let lost = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Ambiguous)
        }
    });
    let harness = lost.latency(seconds(10)).start();
    let token = harness.token().await;
    harness.credential.rejected(token.version());
    harness.pass(seconds(600)).await;
    assert_eq!(harness.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_grace_period_is_the_configured_one() {
    for (grace_period, age, calls) in [(3, 2, 1), (3, 4, 0), (20, 15, 1), (20, 21, 0), (0, 1, 0)] {
        let next = Setup::new(|n| Ok(grant(n, HOUR))).grace_period(seconds(grace_period));
        let harness = killed(seconds(age), next).await;
        harness.pass(seconds(1)).await;
        assert_eq!(harness.calls().len(), calls, "{grace_period} {age}");
    }
    // Without a grace period, the last chance remains.
    let lost = Setup::new(|n| match n {
        2 => failure(FailureClass::Ambiguous),
        n => Ok(grant(n, HOUR)),
    });
    let harness = lost.grace_period(Duration::ZERO).start();
    let token = harness.token().await;
    harness.credential.rejected(token.version());
    harness.pass(seconds(2800)).await;
    assert_eq!(harness.calls().len(), 2);
    harness.pass(seconds(200)).await;
    assert_eq!(sent(&harness), ["seed", "refresh-1", "refresh-1"]);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_issuer_after_a_crash_does_not_close_the_intent() {
    let away = |n| {
        if n == 1 {
            failure(FailureClass::Unreachable)
        } else {
            Ok(grant(n + 100, HOUR))
        }
    };
    let harness = killed(seconds(4), Setup::new(away)).await;
    harness.pass(seconds(1)).await;
    assert_eq!(harness.calls().len(), 1);
    harness.pass(seconds(60)).await;
    assert_eq!(
        (harness.calls().len(), harness.stored().intents.len()),
        (1, 1),
        "the first attempt may have used it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_repetition_is_not_repeated_after_another_crash() {
    let harness = killed(
        seconds(2),
        Setup::new(|n| Ok(grant(n, HOUR))).latency(seconds(5)),
    )
    .await;
    harness.pass(Duration::from_millis(100)).await;
    assert_eq!(harness.calls().len(), 1);
    let harness = harness.crash(Setup::new(|n| Ok(grant(n, HOUR)))).await;
    harness.pass(seconds(60)).await;
    assert!(harness.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn field_d9_an_issuer_that_refused_a_grace_retry_is_not_tried_that_way_again() {
    let refuses_all = |_| failure(FailureClass::RefreshTokenRefused);
    let harness = killed(seconds(4), Setup::new(refuses_all)).await;
    harness
        .until(State::Dead, Reason::RefreshTokenRefused)
        .await;
    assert_eq!(sent(&harness), ["refresh-1"]);
    assert!(harness.stored().is_grace_refused);
    // A new chain at the same issuer loses a response, too.
    let lost = Setup::new(|n| match n {
        2 => failure(FailureClass::Ambiguous),
        n => Ok(grant(n + 10, HOUR)),
    });
    let harness = harness.restart(lost.refresh_token("new")).await;
    harness.pass(seconds(1)).await;
    let token = harness.usable().expect("a token");
    harness.credential.rejected(token.version());
    harness.pass(seconds(2800)).await;
    assert_eq!(sent(&harness), ["new", "refresh-11"], "no grace retry");
    // It is sent again when little of the access token is left.
    harness.pass(seconds(100)).await;
    assert_eq!(sent(&harness), ["new", "refresh-11", "refresh-11"]);
    assert!(harness.stored().is_grace_refused, "for good");
}

#[tokio::test(start_paused = true)]
async fn field_d9_only_a_grace_retry_teaches_that() {
    // A first call that is refused, and one that is sent when little is left.
    let refuses_all = |_| failure(FailureClass::RefreshTokenRefused);
    let first = Setup::new(refuses_all).start();
    first.until(State::Dead, Reason::RefreshTokenRefused).await;
    assert!(!first.stored().is_grace_refused);
    let late = killed(seconds(60), Setup::new(refuses_all)).await;
    late.until(State::Dead, Reason::RefreshTokenRefused).await;
    assert!(!late.stored().is_grace_refused);
    // A grace retry that succeeds.
    let forgiven = killed(seconds(4), Setup::new(|n| Ok(grant(n + 100, HOUR)))).await;
    forgiven.until(State::Fresh, Reason::Ok).await;
    forgiven.pass(seconds(1)).await;
    assert!(!forgiven.stored().is_grace_refused);
}
