//! Refresh tokens that may be spent: intents, crashes, lost answers.

use super::*;

/// A process that was killed in the middle of its second refresh, `age` ago.
async fn killed(age: Duration, setup: Setup) -> Bench {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(2))
        .start();
    let token = bench.token().await;
    bench.credential.rejected(token.version());
    bench.pass(seconds(1)).await;
    assert_eq!(bench.calls().len(), 2);
    let killed = bench
        .crash(Setup::new(|_| failure(FailureClass::Unreachable)).no_refresh_token())
        .await;
    // Nothing has happened yet: the record is as the killed process left it.
    let killed = killed
        .crash(Setup::new(|_| failure(FailureClass::Unreachable)).no_refresh_token())
        .await;
    killed.clock.suspend(age.saturating_sub(seconds(1)));
    killed.crash(setup).await
}

fn spent(bench: &Bench) -> Vec<String> {
    bench.calls().into_iter().map(|call| call.spent).collect()
}

#[tokio::test(start_paused = true)]
async fn an_intent_is_durable_before_the_call_and_closed_by_the_new_tokens() {
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::from_millis(500), |_| Ok(()))
        .start();
    bench.token().await;
    let writes = bench.writes();
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
        bench.calls()[0].at,
        writes[0].at + Duration::from_millis(500),
        "the call waits for its intent"
    );
}

#[tokio::test(start_paused = true)]
async fn an_intent_that_cannot_be_written_raises_an_alarm_and_stops_nothing() {
    let log = harness::Log::capture();
    let full = |_| Err(io::ErrorKind::StorageFull.into());
    let bench = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| Duration::ZERO, full)
        .latency(seconds(2))
        .start();
    bench.pass(seconds(1)).await;
    assert_eq!(
        (bench.calls().len(), log.lines("cannot be written")),
        (1, 1)
    );
    bench.token().await;
}

#[tokio::test(start_paused = true)]
async fn a_known_outcome_closes_the_intent() {
    for class in [
        FailureClass::Unreachable,
        FailureClass::Failing,
        FailureClass::Throttled(seconds(300)),
        FailureClass::RefreshTokenRefused,
    ] {
        let bench = Setup::new(move |_| failure(class)).start();
        bench.pass(Duration::from_millis(100)).await;
        assert_eq!(
            (bench.calls().len(), bench.stored().intents.len()),
            (1, 0),
            "{class:?}"
        );
    }
    for class in [FailureClass::Ambiguous, FailureClass::Garbled] {
        let bench = Setup::new(move |_| failure(class)).start();
        bench.pass(Duration::from_millis(100)).await;
        assert_eq!(bench.stored().intents.len(), 1, "{class:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_a_young_intent_is_repeated_at_once() {
    let bench = killed(seconds(4), Setup::new(|n| Ok(grant(n + 100, HOUR)))).await;
    bench.pass(Duration::from_millis(1)).await;
    assert_eq!(spent(&bench), ["refresh-1"]);
    bench.until(State::Fresh, Reason::Ok).await;
    assert!(bench.stored().intents.is_empty());
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_an_old_intent_waits_until_there_is_little_to_lose() {
    let bench = killed(seconds(5), Setup::new(|n| Ok(grant(n + 100, HOUR)))).await;
    let token = bench.usable().expect("the stored token serves");
    // Neither the schedule nor a rejection is worth the risk.
    bench.credential.rejected(token.version());
    bench.pass(seconds(2800)).await;
    assert!(bench.calls().is_empty());
    bench.pass(seconds(80)).await;
    assert_eq!(spent(&bench), ["refresh-1"]);
    let left = token.expires_at().saturating_since(bench.calls()[0].at);
    assert!(left <= HOUR / 5 && left > HOUR / 5 - seconds(1), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_a_person_may_take_the_risk() {
    let bench = killed(seconds(60), Setup::new(|n| Ok(grant(n + 100, HOUR)))).await;
    bench.pass(seconds(60)).await;
    assert!(bench.calls().is_empty());
    assert_eq!(bench.credential.refresh_now(), Ok(()));
    bench.pass(seconds(1)).await;
    assert_eq!(spent(&bench), ["refresh-1"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_an_old_intent_leads_to_first_tokens_if_they_can_be_had() {
    let setup = Setup::new(|_| failure(FailureClass::RefreshTokenRefused))
        .initial_grant(|n| Ok(grant(n + 200, HOUR)));
    let bench = killed(seconds(60), setup).await;
    let old = bench.usable().expect("the stored token");
    bench.pass(seconds(1)).await;
    assert!(bench.calls().is_empty());
    assert_eq!(bench.first_calls().len(), 1);
    assert!(
        bench.usable().expect("a token").version().epoch() > old.version().epoch(),
        "a new chain"
    );
    assert_eq!(
        bench
            .stored()
            .refresh_token
            .expect("stored")
            .secret()
            .expose(),
        "refresh-201"
    );
}

#[tokio::test(start_paused = true)]
async fn without_permission_a_doubtful_token_is_never_sent_again() {
    for age in [0, 60] {
        let bench = killed(
            seconds(age),
            Setup::new(|n| Ok(grant(n, HOUR))).no_grace_retry(),
        )
        .await;
        bench.until(State::Dead, Reason::OutcomeUnknown).await;
        assert!(bench.usable().is_some(), "what is still valid serves");
        let problem = bench.credential.snapshot().problem.expect("a problem");
        assert!(
            problem.contains("grace_retry") && problem.contains("get a new one"),
            "{problem}"
        );
        bench.pass(DAY).await;
        assert!(bench.calls().is_empty());
    }
    let lost = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Ambiguous)
        }
    });
    let bench = lost.no_grace_retry().start();
    bench.until(State::Dead, Reason::OutcomeUnknown).await;
    bench.pass(DAY).await;
    assert_eq!(bench.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_asked_for_once_more_within_the_grace() {
    for class in [FailureClass::Ambiguous, FailureClass::Garbled] {
        let bench = Setup::new(move |n| {
            if n == 2 {
                failure(class)
            } else {
                Ok(grant(n, HOUR))
            }
        })
        .start();
        bench.pass(HOUR).await;
        assert_eq!(spent(&bench)[..3], ["seed", "refresh-1", "refresh-1"]);
        assert_eq!(bench.gaps()[1], seconds(1));
        assert_eq!(bench.usable().expect("a token").version().generation(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_stay_lost_are_asked_for_again_when_there_is_little_to_lose() {
    let bench = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Ambiguous)
        }
    })
    .start();
    let token = bench.token().await;
    bench.credential.rejected(token.version());
    bench.until(State::Stale, Reason::IssuerUnreachable).await;
    bench.pass(seconds(2870)).await;
    assert_eq!(bench.calls().len(), 3, "the call and its repetition");
    bench.pass(HOUR).await;
    bench.until(State::Expired, Reason::IssuerUnreachable).await;
    assert!(
        bench.calls().len() > 10,
        "with nothing to lose it is tried again"
    );
    assert!(bench.gaps()[1..].iter().all(|gap| *gap >= seconds(1)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_by_a_timeout_is_not_repeated_too_late() {
    let lost = Setup::new(|n| {
        if n == 1 {
            Ok(grant(n, HOUR))
        } else {
            failure(FailureClass::Ambiguous)
        }
    });
    let bench = lost.latency(seconds(10)).start();
    let token = bench.token().await;
    bench.credential.rejected(token.version());
    bench.pass(seconds(600)).await;
    assert_eq!(bench.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_away_after_a_crash_does_not_settle_the_doubt() {
    let away = |n| {
        if n == 1 {
            failure(FailureClass::Unreachable)
        } else {
            Ok(grant(n + 100, HOUR))
        }
    };
    let bench = killed(seconds(4), Setup::new(away)).await;
    bench.pass(seconds(1)).await;
    assert_eq!(bench.calls().len(), 1);
    bench.pass(seconds(60)).await;
    assert_eq!(
        (bench.calls().len(), bench.stored().intents.len()),
        (1, 1),
        "the first attempt may have spent it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_repetition_is_not_repeated_after_another_crash() {
    let bench = killed(
        seconds(2),
        Setup::new(|n| Ok(grant(n, HOUR))).latency(seconds(5)),
    )
    .await;
    bench.pass(Duration::from_millis(100)).await;
    assert_eq!(bench.calls().len(), 1);
    let bench = bench.crash(Setup::new(|n| Ok(grant(n, HOUR)))).await;
    bench.pass(seconds(60)).await;
    assert!(bench.calls().is_empty());
}
