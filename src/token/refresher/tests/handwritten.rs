//! A refresh token that an operator writes into the state file while the proxy runs: until its
//! outcome is known, it survives a crash, although the proxy writes the file itself.

use std::sync::atomic::AtomicBool;

use super::*;

/// The file that an operator writes.
fn by_hand(token: &str) -> Record {
    let mut record = Record::default();
    record.refresh_token = Some(RefreshToken::new(Secret::new(token)));
    record
}

/// The chain is refused; afterwards calls fail with `class`. An operator writes `by-hand`.
async fn dead_and_written(class: FailureClass) -> Harness {
    let harness = Setup::new(move |n| match n {
        1 => Ok(grant(1, HOUR)),
        2 => failure(FailureClass::RefreshTokenRefused),
        _ => failure(class),
    })
    .latency(seconds(2))
    .start();
    let token = harness.token().await;
    harness.pass(seconds(60)).await;
    harness.credential.rejected(token.version());
    harness
        .until(State::Dead, Reason::RefreshTokenRefused)
        .await;
    harness.put(by_hand("by-hand"));
    harness.credential.reload();
    harness
}

fn sent(harness: &Harness) -> Vec<String> {
    harness.calls().into_iter().map(|call| call.sent).collect()
}

fn good() -> Setup {
    Setup::new(|n| Ok(grant(n + 100, HOUR)))
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_the_token_has_worked_loses_nothing() {
    use FailureClass::{Ambiguous, ClientRefused, Failing, Unreachable};
    for class in [Unreachable, Failing, Ambiguous, ClientRefused] {
        // In the first call, after it, and much later.
        for crash_after in [seconds(1), seconds(3), seconds(600)] {
            let harness = dead_and_written(class).await;
            harness.pass(crash_after).await;
            assert_eq!(sent(&harness)[2], "by-hand");
            assert!(harness.writes().len() > 4, "the file was written again");
            let harness = harness.crash(good()).await;
            harness.pass(HOUR).await;
            let (first, later) = (sent(&harness)[0].clone(), sent(&harness).split_off(1));
            assert_eq!(first, "by-hand", "{class:?} {crash_after:?}");
            assert!(!later.contains(&first), "it has begun a chain");
            assert!(harness.stored().seed.is_none());
            let harness = harness.crash(good()).await;
            harness.pass(HOUR).await;
            assert!(!sent(&harness).contains(&first));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_not_kept() {
    let harness = dead_and_written(FailureClass::RefreshTokenRefused).await;
    harness.pass(seconds(10)).await;
    assert_eq!(sent(&harness).len(), 3);
    assert!(harness.stored().seed.is_none());
    let harness = harness.crash(good()).await;
    harness.pass(seconds(10)).await;
    assert!(!sent(&harness).contains(&"by-hand".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_waiting_does_not_drop_the_token() {
    // The disk is full from the third write on. Later there is room again, but the issuer demands a
    // wait, so that the new token cannot be tried.
    let is_full = Arc::new(AtomicBool::new(true));
    let fails = Arc::clone(&is_full);
    let harness = Setup::new(|n| match n {
        1 => Ok(grant(1, HOUR)),
        _ => failure(FailureClass::Throttled(seconds(200))),
    })
    .store(
        |_| Duration::ZERO,
        move |n| match n > 2 && fails.load(Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        },
    )
    .start();
    let token = harness.token().await;
    harness.pass(seconds(60)).await;
    harness.credential.rejected(token.version());
    harness.pass(seconds(10)).await;
    harness.put(by_hand("by-hand"));
    harness.credential.reread_files();
    harness.pass(seconds(1)).await;
    is_full.store(false, Relaxed);
    harness.pass(seconds(100)).await;
    assert_eq!(harness.stored().generation, 1, "the file was written again");
    assert_eq!(sent(&harness).len(), 2);
    let harness = harness.crash(good()).await;
    harness.pass(seconds(1)).await;
    assert_eq!(sent(&harness), ["by-hand"]);
}

#[tokio::test(start_paused = true)]
async fn a_configured_token_that_is_refused_does_not_hide_the_kept_one() {
    let harness = dead_and_written(FailureClass::Unreachable).await;
    harness.pass(seconds(10)).await;
    let setup = Setup::new(|n| match n {
        1 => failure(FailureClass::RefreshTokenRefused),
        _ => Ok(grant(n + 100, HOUR)),
    });
    let harness = harness.crash(setup.refresh_token("configured")).await;
    harness.pass(seconds(10)).await;
    assert_eq!(sent(&harness), ["configured", "by-hand"]);
    assert!(harness.stored().seed.is_none());
}

#[tokio::test(start_paused = true)]
async fn another_process_keeps_and_tries_the_token_once() {
    let first = dead_and_written(FailureClass::Unreachable).await;
    first.pass(seconds(10)).await;
    let second = good().no_refresh_token().beside(&first).start();
    second.pass(seconds(10)).await;
    assert_eq!(sent(&second), ["by-hand"]);
    // The first one goes on with the chain of the second one.
    first.credential.reload();
    first.pass(seconds(10)).await;
    let calls = first.calls().len();
    assert!(first.usable().is_some());
    first.pass(seconds(600)).await;
    assert_eq!(first.calls().len(), calls);
    assert!(first.stored().seed.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_process_with_newer_tokens_keeps_the_token_of_another_one() {
    let first = dead_and_written(FailureClass::Unreachable).await;
    first.pass(seconds(10)).await;
    // Between two calls: during one, this process holds the lock.
    let begun = || u64::try_from(first.calls().len()).expect("few");
    while first.count(Outcome::Transient) + 2 < begun() {
        first.pass(Duration::from_millis(1)).await;
    }
    // Another process stores newer tokens of the old chain, and does not know the token.
    let mut newer = first.stored();
    newer.seed = None;
    let chain = newer.refresh_token.clone().expect("there");
    newer.rotate(
        RefreshToken::new(Secret::new("theirs")),
        first.clock.wall(),
        &Grant::Chain(chain),
    );
    first.put(newer);
    let calls = first.calls().len();
    first.credential.reload();
    first.pass(seconds(600)).await;
    assert!(first.calls().len() > calls);
    assert_eq!(first.stored().generation, 2);
    assert!(first.stored().seed.is_some());
    assert_eq!(sent(&first).last().expect("a call"), "by-hand");
    let harness = first.crash(good()).await;
    harness.pass(seconds(10)).await;
    assert_eq!(sent(&harness), ["by-hand"]);
}
