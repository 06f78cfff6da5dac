//! Refresh tokens of a chain that are configured again.

use super::*;

/// Writes `token` to the file, as an operator does who keeps a secret in sync, and rotates twice.
async fn configure(harness: &Harness, file: &std::path::Path, token: &str) {
    std::fs::write(file, token).expect("written");
    harness.credential.reload();
    harness.pass(Duration::from_millis(100)).await;
    for _ in 0..2 {
        harness.pass(seconds(1)).await;
        rotate(harness).await;
    }
}

async fn rotate(harness: &Harness) {
    harness.pass(seconds(10)).await;
    assert_eq!(harness.credential.refresh_now(), Ok(()));
    harness.pass(seconds(3)).await;
}

fn assert_each_sent_once(harness: &Harness) {
    let mut sent: Vec<_> = harness.calls().into_iter().map(|call| call.sent).collect();
    let calls = sent.len();
    sent.sort();
    sent.dedup();
    assert_eq!(sent.len(), calls, "a refresh token was sent twice");
}

#[tokio::test(start_paused = true)]
async fn field_a12_a_spent_token_is_no_seed_whenever_it_is_copied() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    std::fs::write(&file, "seed").expect("written");
    let setup = |n| Setup::new(move |m| Ok(grant(n + m, HOUR))).latency(seconds(2));
    let harness = setup(0).refresh_token_file(&file).start();
    harness.token().await;
    // The current one, older ones, and copies with blanks around them.
    for copy in ["refresh-1", "refresh-1", "seed", " refresh-2 \r\n\n"] {
        configure(&harness, &file, copy).await;
    }
    // In a call, which replaces it.
    harness.pass(seconds(10)).await;
    let current = harness.stored().refresh_token.expect("there");
    assert_eq!(harness.credential.refresh_now(), Ok(()));
    harness.pass(seconds(1)).await;
    configure(&harness, &file, current.secret().expose()).await;
    assert_each_sent_once(&harness);
    // After a restart, in a file and in the configuration; and in the state file, by hand.
    let harness = harness.restart(setup(100).refresh_token_file(&file)).await;
    rotate(&harness).await;
    let harness = harness
        .restart(setup(200).refresh_token("refresh-101"))
        .await;
    let mut by_hand = Record::default();
    by_hand.refresh_token = Some(RefreshToken::new(Secret::new("refresh-2")));
    harness.put(by_hand);
    harness.credential.reload();
    rotate(&harness).await;
    let sent: Vec<_> = harness.calls().into_iter().map(|call| call.sent).collect();
    assert_eq!(sent, ["refresh-101"]);
    let epoch = harness.stored().epoch;
    assert_eq!(harness.usable().expect("a token").version().epoch(), epoch);
}

#[tokio::test(start_paused = true)]
async fn field_a12_hundreds_of_rotations_later_and_in_every_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    std::fs::write(&file, "seed").expect("written");
    let first = Setup::new(|n| Ok(grant(n, HOUR))).refresh_token_file(&file);
    let first = first.start();
    first.token().await;
    let second = Setup::new(|n| Ok(grant(n + 10_000, HOUR)))
        .refresh_token_file(&file)
        .beside(&first)
        .start();
    first.pass(8 * DAY).await;
    let sent = || {
        let calls = first.calls().into_iter().chain(second.calls());
        calls.map(|call| call.sent).collect::<Vec<_>>()
    };
    let spent = sent();
    assert!(spent.len() > 200, "{}", spent.len());
    for copy in spent.iter().step_by(20).chain(spent.last()) {
        std::fs::write(&file, copy).expect("written");
        first.credential.reload();
        second.credential.reload();
        first.pass(HOUR / 2).await;
    }
    let mut all = sent();
    let calls = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), calls, "a refresh token was sent twice");
}

#[tokio::test(start_paused = true)]
async fn field_a12_what_another_process_stored_and_was_copied_is_no_seed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    std::fs::write(&file, "seed").expect("written");
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .refresh_token_file(&file)
        .start();
    let token = harness.token().await;
    harness.pass(seconds(60)).await;
    // Another process holds the lock while it rotates; its new token is copied before this process
    // has read it.
    harness.hold_lock(true);
    harness.credential.rejected(token.version());
    std::fs::write(&file, "theirs").expect("written");
    harness.credential.reload();
    harness.pass(seconds(1)).await;
    let mut newer = harness.stored();
    let (sent, access) = (newer.refresh_token.clone(), newer.access.clone());
    newer.advance(
        Some(Secret::new("theirs")),
        None,
        access.expect("there"),
        &Grant::Chain(sent.expect("there")),
    );
    harness.put(newer);
    harness.hold_lock(false);
    harness.pass(seconds(60)).await;
    rotate(&harness).await;
    rotate(&harness).await;
    assert_each_sent_once(&harness);
    assert_eq!(harness.calls()[1].sent, "theirs");
    assert_eq!(harness.stored().epoch, token.version().epoch());
}

#[tokio::test(start_paused = true)]
async fn field_a12_a_refused_token_stays_refused_after_a_new_chain_and_a_restart() {
    let refuse_first = |n| match n {
        1 => failure(FailureClass::RefreshTokenRefused),
        n => Ok(grant(n, HOUR)),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    std::fs::write(&file, "bad").expect("written");
    let harness = Setup::new(refuse_first).refresh_token_file(&file).start();
    harness
        .until(State::Dead, Reason::RefreshTokenRefused)
        .await;
    std::fs::write(&file, "good").expect("written");
    harness.credential.reload();
    harness.until(State::Fresh, Reason::Ok).await;
    let setup = Setup::new(|n| Ok(grant(n + 100, HOUR))).refresh_token("bad");
    let harness = harness.restart(setup).await;
    harness.pass(HOUR).await;
    assert_eq!(harness.calls()[0].sent, "refresh-2");
}
