//! Field reports about calls that are late, and about when to call again.

use super::{super::plan::give_up_at, harness::*};
use crate::{
    base::clock::{Clock as _, Moment},
    token::{FailureClass, ManualRefreshError, Outcome, Reason, State},
};

const HOUR: std::time::Duration = seconds(3600);

#[test]
fn field_a11_a_call_lasts_as_long_as_the_access_token() {
    let at = |n| Moment::since_boot(seconds(n));
    for (expires_at, given_up_at) in [
        (None, 130),
        (Some(at(50)), 130),
        (Some(at(129)), 130),
        (Some(at(200)), 200),
        (Some(at(399)), 399),
        (Some(at(4000)), 400),
    ] {
        assert_eq!(
            give_up_at(at(100), seconds(10), expires_at),
            at(given_up_at),
            "{expires_at:?}"
        );
    }
    assert_eq!(give_up_at(at(100), HOUR, None), at(100 + 3 * 3600));
}

#[tokio::test(start_paused = true)]
async fn field_a11_a_late_call_is_reported_and_holds_up_no_request() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .latency(seconds(25))
        .start();
    let began = harness.clock.now();
    let token = harness
        .credential
        .newer_than(None, seconds(60))
        .await
        .map(|token| token.version());
    assert_eq!(token, None);
    assert_eq!(harness.clock.now().saturating_since(began), seconds(10));
    harness
        .until(State::Starting, Reason::IssuerUnreachable)
        .await;
    let problem = harness.credential.snapshot().problem.expect("a problem");
    assert!(problem.contains("token.timeout"), "{problem}");
    // Requests that come later do not wait either.
    assert!(
        harness
            .credential
            .newer_than(None, seconds(60))
            .await
            .is_none()
    );
    assert_eq!(harness.clock.now().saturating_since(began), seconds(10));
    harness.until(State::Fresh, Reason::Ok).await;
    assert_eq!(harness.clock.now().saturating_since(began), seconds(25));
    assert_eq!(harness.calls().len(), 1);
    assert_eq!(harness.credential.snapshot().problem, None);
    assert!(
        harness
            .credential
            .newer_than(None, seconds(1))
            .await
            .is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn field_a3_without_a_token_an_unreachable_issuer_is_tried_every_five_seconds() {
    let harness = Setup::new(|n| match n {
        1..60 => failure(FailureClass::Unreachable),
        _ => Ok(grant(n, HOUR)),
    })
    .start();
    harness.token().await;
    assert_eq!(harness.count(Outcome::Transient), 59);
    assert!(
        harness.gaps().iter().all(|gap| *gap <= seconds(5)),
        "{:?}",
        harness.gaps()
    );
    assert!(
        harness.gaps().iter().all(|gap| *gap >= seconds(1)),
        "{:?}",
        harness.gaps()
    );
}

/// A refresher without a token that has called seven times, with a backoff of a minute on average.
async fn backing_off(setup: Setup) -> Harness {
    let harness = setup.start();
    while harness.calls().len() < 7 {
        harness.pass(seconds(1)).await;
    }
    harness
}

#[tokio::test(start_paused = true)]
async fn field_a3_an_operator_and_a_changed_file_act_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    for act in ["refresh", "reload", "seed", "secret"] {
        std::fs::write(&file, "first").expect("written");
        let setup = Setup::new(|_| failure(FailureClass::Failing)).refresh_token_file(&file);
        let harness = backing_off(setup).await;
        match act {
            "refresh" => assert_eq!(harness.credential.refresh_now(), Ok(())),
            "reload" => harness.credential.reload(),
            "seed" => {
                std::fs::write(&file, "second").expect("written");
                harness.reread_files();
            }
            _ => {
                harness.change_client_secret();
                harness.reread_files();
            }
        }
        harness.pass(std::time::Duration::from_millis(100)).await;
        assert_eq!(harness.calls().len(), 8, "{act}");
    }
}

#[tokio::test(start_paused = true)]
async fn field_a3_nothing_acts_within_the_issuers_retry_after() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    std::fs::write(&file, "first").expect("written");
    let harness = Setup::new(|_| failure(FailureClass::Throttled(seconds(200))))
        .refresh_token_file(&file)
        .start();
    harness
        .until(State::Starting, Reason::IssuerThrottling)
        .await;
    std::fs::write(&file, "second").expect("written");
    harness.change_client_secret();
    harness.credential.reload();
    assert!(matches!(
        harness.credential.refresh_now(),
        Err(ManualRefreshError::TooEarly { retry_after }) if retry_after > seconds(190)
    ));
    harness.pass(seconds(199)).await;
    assert_eq!(harness.calls().len(), 1);
    harness.pass(seconds(2)).await;
    assert_eq!(harness.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn field_a3_reading_unchanged_files_ends_no_backoff() {
    let harness = backing_off(Setup::new(|_| failure(FailureClass::Failing))).await;
    let due = || {
        let left = harness.credential.snapshot().next_attempt_in;
        left.map(|left| harness.clock.now() + left)
    };
    let before = due();
    harness.reread_files();
    harness.pass(std::time::Duration::from_millis(1)).await;
    assert_eq!(due(), before);
    assert_eq!(harness.calls().len(), 7);
}

#[tokio::test(start_paused = true)]
async fn field_a14_a_changed_client_secret_is_tried_at_once() {
    let harness = Setup::new(|n| match n {
        1 | 2 => failure(FailureClass::ClientRefused),
        3 => failure(FailureClass::Unreachable),
        _ => Ok(grant(n, HOUR)),
    })
    .start();
    harness.until(State::Dead, Reason::ClientRefused).await;
    harness.pass(seconds(15)).await;
    assert_eq!(harness.calls().len(), 1);
    // A wrong one is refused: a minute passes until the next call with it.
    for calls in [2, 3] {
        harness.change_client_secret();
        harness.reread_files();
        harness.pass(seconds(1)).await;
        assert_eq!(harness.calls().len(), calls);
    }
    // The third one was never refused: the outage in between costs seconds.
    harness.pass(seconds(5)).await;
    assert_eq!(harness.calls().len(), 4);
    harness.until(State::Fresh, Reason::Ok).await;
}

#[tokio::test(start_paused = true)]
async fn field_a14_with_a_changed_client_secret_an_operator_need_not_wait() {
    let harness = Setup::new(|n| match n {
        1 => failure(FailureClass::ClientRefused),
        _ => Ok(grant(n, HOUR)),
    })
    .start();
    harness.until(State::Dead, Reason::ClientRefused).await;
    // Otherwise the call with it would have begun.
    harness.hold_lock(true);
    let too_early = harness.credential.refresh_now();
    assert!(matches!(
        too_early,
        Err(ManualRefreshError::TooEarly { .. })
    ));
    harness.change_client_secret();
    harness.reread_files();
    harness.pass(seconds(1)).await;
    assert_eq!(harness.credential.refresh_now(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn field_a11_an_operators_request_ends_a_late_call() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    harness.token().await;
    let late = Setup::new(|n| Ok(grant(n + 10, HOUR))).latency(seconds(250));
    let harness = harness.restart(late).await;
    let token = harness.usable().expect("a token");
    harness.credential.rejected(token.version());
    harness.pass(seconds(5)).await;
    assert!(matches!(
        harness.credential.refresh_now(),
        Err(ManualRefreshError::TooEarly { .. })
    ));
    harness.pass(seconds(20)).await;
    // Neither a rejection nor changed files end it.
    harness.credential.rejected(token.version());
    harness.credential.reload();
    harness.pass(seconds(20)).await;
    assert_eq!(harness.calls().len(), 1);
    assert_eq!(harness.count(Outcome::Ambiguous), 0);
    assert_eq!(harness.credential.refresh_now(), Ok(()));
    harness.pass(seconds(2)).await;
    assert_eq!(harness.count(Outcome::Ambiguous), 1);
    // It asks for another call at once, with the refresh token that may have been used.
    assert_eq!(harness.calls().len(), 2);
    assert_eq!(harness.calls()[1].sent, harness.calls()[0].sent);
}
