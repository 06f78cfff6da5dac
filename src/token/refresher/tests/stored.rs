//! A stored record that is missing, older than the one in memory, or unreadable.

use super::*;

fn is_persisted(harness: &Harness) -> bool {
    harness.credential.snapshot().persistence == Persistence::Stored
}

/// What is stored is what a restart needs.
fn assert_newest_is_stored(harness: &Harness) {
    let stored = harness.stored();
    assert_eq!(
        stored.generation,
        harness.credential.snapshot().generation,
        "the newest record is stored"
    );
    assert!(is_persisted(harness));
}

#[tokio::test(start_paused = true)]
async fn field_a13_a_removed_or_older_record_is_written_again_at_once() {
    let log = harness::Log::capture();
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .store(|_| seconds(1), |_| Ok(()))
        .start();
    let backups = || async {
        let old = harness.stored();
        harness.pass(HOUR).await;
        old
    };
    harness.token().await;
    let (oldest, old) = (backups().await, backups().await);
    let calls = harness.calls().len();
    let mut without_tokens = old.clone();
    (without_tokens.refresh_token, without_tokens.access) = (None, None);
    for (n, lost) in [
        None,
        Some(oldest),
        Some(old),
        Some(without_tokens),
        Some(Record::default()),
    ]
    .into_iter()
    .enumerate()
    {
        match lost {
            Some(record) => harness.put(record),
            None => harness.remove_stored(),
        }
        harness.credential.reload();
        harness.pass(Duration::from_millis(100)).await;
        assert!(!is_persisted(&harness), "while it is written");
        harness.pass(seconds(1)).await;
        assert_newest_is_stored(&harness);
        assert_eq!(log.lines("is written again"), n + 1);
        // Its own write is a change of the file, too.
        harness.credential.reload();
        harness.pass(seconds(1)).await;
    }
    assert_eq!(harness.calls().len(), calls, "no refresh token was sent");
}

#[tokio::test(start_paused = true)]
async fn field_a13_a_lost_record_is_written_under_the_lock() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    harness.token().await;
    let writes = harness.writes().len();
    harness.hold_lock(true);
    harness.remove_stored();
    harness.credential.reload();
    harness.pass(seconds(2)).await;
    assert_eq!(harness.writes().len(), writes);
    assert!(!is_persisted(&harness));
    harness.hold_lock(false);
    harness.pass(seconds(1)).await;
    assert_newest_is_stored(&harness);
    // The holder of the lock may have stored newer tokens itself.
    let newest = harness.stored();
    harness.hold_lock(true);
    harness.remove_stored();
    harness.credential.reload();
    harness.pass(seconds(2)).await;
    harness.put(newest);
    harness.hold_lock(false);
    let writes = harness.writes().len();
    harness.pass(seconds(1)).await;
    assert_eq!(harness.writes().len(), writes);
    assert!(is_persisted(&harness));
}

#[tokio::test(start_paused = true)]
async fn field_a13_the_end_of_the_process_finds_a_lost_record() {
    for is_removed in [false, true] {
        let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
        harness.token().await;
        let old = harness.stored();
        harness.pass(HOUR).await;
        match is_removed {
            false => harness.put(old),
            true => harness.remove_stored(),
        }
        let harness = harness.stop().await;
        assert_newest_is_stored(&harness);
        let harness = harness
            .restart_after(Setup::new(|n| Ok(grant(n + 100, HOUR))))
            .await;
        harness.pass(HOUR).await;
        assert_eq!(harness.calls()[0].sent, "refresh-2");
    }
}

#[tokio::test(start_paused = true)]
async fn field_a13_before_there_are_tokens_nothing_is_lost() {
    let log = harness::Log::capture();
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .no_refresh_token()
        .start();
    harness.until(State::Starting, Reason::NoCredential).await;
    harness.credential.reload();
    harness.pass(HOUR).await;
    let harness = harness.stop().await;
    assert_eq!((harness.writes().len(), log.lines("written again")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn field_a15_an_unreadable_record_puts_the_refresh_token_in_doubt() {
    let log = harness::Log::capture();
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = harness.token().await;
    harness.make_unreadable(true);
    harness.credential.reload();
    harness.until(State::Stale, Reason::StoreUnreadable).await;
    let snapshot = harness.credential.snapshot();
    assert!(snapshot.problem.is_some_and(|it| it.contains("format 2")));
    assert!(!is_persisted(&harness));
    // Neither a rejection nor an operator changes what another process may have done.
    harness.credential.rejected(token.version());
    harness.pass(seconds(20)).await;
    assert_eq!(harness.credential.refresh_now(), Ok(()));
    harness.pass(seconds(2800)).await;
    assert_eq!(harness.calls().len(), 1);
    assert!(harness.usable().is_some(), "the access token stays in use");
    // The last chance.
    harness.pass(seconds(120)).await;
    assert_eq!(harness.calls().len(), 2);
    let left = token.expires_at().saturating_since(harness.calls()[1].at);
    assert!(left <= HOUR / 5 && left > HOUR / 5 - seconds(1), "{left:?}");
    assert_eq!(log.lines("the state file cannot be read"), 1);
    assert_eq!(harness.stored().generation, 1, "it was not overwritten");
    // Once it is readable again, the newest tokens are stored.
    harness.make_unreadable(false);
    harness.credential.reload();
    harness.pass(seconds(301)).await;
    assert_newest_is_stored(&harness);
    assert_eq!(harness.credential.snapshot().reason, Reason::Ok);
}

#[tokio::test(start_paused = true)]
async fn field_a15_in_doubt_no_seed_is_sent_while_a_token_serves() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("refresh_token");
    std::fs::write(&file, "seed").expect("written");
    let harness = Setup::new(|n| Ok(grant(n, HOUR)))
        .refresh_token_file(&file)
        .start();
    harness.token().await;
    harness.make_unreadable(true);
    harness.credential.reload();
    harness.pass(seconds(1)).await;
    std::fs::write(&file, "another").expect("written");
    harness.credential.reload();
    harness.pass(seconds(600)).await;
    assert_eq!(harness.calls().len(), 1);
    harness.make_unreadable(false);
    harness.credential.reload();
    harness.pass(seconds(1)).await;
    assert_eq!(harness.calls()[1].sent, "another");
}

#[tokio::test(start_paused = true)]
async fn field_a15_without_a_usable_token_there_is_nothing_to_lose() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    harness.token().await;
    harness.make_unreadable(true);
    harness.credential.reload();
    harness.pass(seconds(1)).await;
    harness.clock.suspend(2 * HOUR);
    harness.pass(seconds(1)).await;
    assert_eq!(harness.calls().len(), 2);
    assert!(harness.usable().is_some());
}

/// A rotation without an access token changes the record for other processes, too.
#[tokio::test(start_paused = true)]
async fn field_a15_every_rotation_makes_the_record_newer() {
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    let token = harness.token().await;
    let mut newer = harness.stored();
    let sent = newer.refresh_token.clone().expect("there");
    newer.rotate(
        RefreshToken::new(Secret::new("rotated")),
        harness.clock.wall(),
        &Grant::Chain(sent),
    );
    harness.pass(seconds(60)).await;
    harness.put(newer);
    harness.credential.rejected(token.version());
    harness.pass(seconds(1)).await;
    let sent: Vec<_> = harness.calls().into_iter().map(|call| call.sent).collect();
    assert_eq!(sent, ["seed", "rotated"]);
}

/// The holder of the lock may have stored newer tokens just before.
#[tokio::test(start_paused = true)]
async fn field_a13_at_the_end_nothing_is_written_beside_the_holder_of_the_lock() {
    let log = harness::Log::capture();
    let harness = Setup::new(|n| Ok(grant(n, HOUR))).start();
    harness.token().await;
    let old = harness.stored();
    harness.pass(HOUR).await;
    harness.put(old);
    harness.hold_lock(true);
    let (writes, before) = (harness.writes().len(), harness.clock.now());
    let harness = harness.stop().await;
    assert!(harness.clock.now() <= before + seconds(1));
    assert_eq!(harness.writes().len(), writes);
    assert_eq!(log.lines("holds the lock"), 1, "{}", log.text());
    assert!(!is_persisted(&harness));
}

/// Without locks, another process can store newer tokens while this one cannot write.
#[tokio::test(start_paused = true)]
async fn field_a7_an_older_record_is_not_written_over_a_newer_one_of_another_process() {
    // The write waits for its repetition, or an older one is in progress; the process ends at once,
    // or goes on.
    let millis = Duration::from_millis;
    let cases = [
        (0, 100, 0),
        (2500, 2200, 0),
        (0, 100, 6000),
        (2500, 2200, 6000),
    ];
    for (write_time, found_after, goes_on_for) in cases {
        let [write_time, found_after] = [write_time, found_after].map(millis);
        let is_failing = write_time.is_zero();
        let harness = Setup::new(|n| Ok(grant(n, HOUR)))
            .store(
                move |n| if n > 2 { write_time } else { Duration::ZERO },
                move |n| match n {
                    3 | 4 if is_failing => Err(io::ErrorKind::StorageFull.into()),
                    _ => Ok(()),
                },
            )
            .start();
        let token = harness.token().await;
        harness.pass(seconds(60)).await;
        harness.credential.rejected(token.version());
        harness.pass(found_after).await;
        assert_eq!(harness.calls().len(), 2);
        let mut newer = harness.stored();
        for theirs in ["theirs-1", "theirs-2"] {
            let sent = newer.refresh_token.clone().expect("there");
            let theirs = RefreshToken::new(Secret::new(theirs));
            newer.rotate(theirs, harness.clock.wall(), &Grant::Chain(sent));
        }
        harness.put(newer);
        harness.credential.reread_files();
        harness.pass(millis(1)).await;
        let is_theirs = |harness: &Harness| {
            let stored = harness.stored().refresh_token.expect("there");
            stored.secret().expose() == "theirs-2"
        };
        if goes_on_for > 0 {
            harness.pass(millis(goes_on_for)).await;
            assert!(is_theirs(&harness), "{write_time:?}");
        }
        let harness = harness.stop().await;
        assert!(is_theirs(&harness), "{write_time:?} {goes_on_for}");
    }
}
