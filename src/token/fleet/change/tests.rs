//! What each change makes of the record, and that a change that is repeated does nothing.

use std::time::Duration;

use super::*;
use crate::{
    base::{
        clock::{Clock as _, Simulated},
        secret::Secret,
    },
    token::store::{AccessToken, RequestTime},
};

const AT: SystemTime = SystemTime::UNIX_EPOCH;

fn id(owner: u64, number: u64) -> ClaimId {
    ClaimId { owner, number }
}

fn token(text: &str) -> RefreshToken {
    RefreshToken::new(Secret::new(text))
}

/// The record after a call that brought this refresh token.
fn advanced(record: &Record, grant: &Grant, refresh_token: &str) -> Record {
    let clock = Simulated::new();
    let hour = Duration::from_secs(3600);
    let access = AccessToken::new(
        Secret::new(format!("access of {refresh_token}")),
        hour,
        RequestTime::now(&clock),
        &clock,
    );
    let mut next = record.clone();
    next.advance(Some(Secret::new(refresh_token)), None, access, grant);
    assert!(clock.boot_id().is_some());
    next
}

/// A chain whose newest refresh token is `a`.
fn stored() -> Shared {
    Shared {
        serial: 5,
        life: 1,
        record: advanced(&Record::default(), &Grant::Initial, "a"),
        announced: 1,
        ..Shared::default()
    }
}

fn claim(owner: u64, stored: &Shared) -> Change {
    Change::Claim(NewClaim {
        id: id(owner, 1),
        name: format!("replica-{owner}"),
        grant: Grant::Chain(stored.record.refresh_token.clone().expect("one")),
        version: stored.record.version(),
        orphan: None,
        at: AT,
        budget_whole_at: None,
    })
}

fn result(owner: u64, before: &Shared, spent: &str, refresh_token: &str) -> Change {
    let grant = Grant::Chain(token(spent));
    Change::Result(Box::new(CallResult {
        claim: Some(id(owner, 1)),
        record: advanced(&before.record, &grant, refresh_token),
        grant,
        before: before.record.version(),
        client: Some("right".to_owned()),
    }))
}

#[track_caller]
fn replaced(change: &Change, stored: Option<&Shared>) -> Shared {
    match change.apply(stored, 77) {
        Effect::Replace(next) => *next,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn does_nothing(change: &Change, stored: &Shared) {
    let effect = change.apply(Some(stored), 78);
    assert!(matches!(effect, Effect::Nothing), "{effect:?}");
}

#[track_caller]
fn is_excluded(change: &Change, stored: &Shared) {
    let effect = change.apply(Some(stored), 79);
    assert!(matches!(effect, Effect::Excluded), "{effect:?}");
}

fn newest(shared: &Shared) -> Option<&RefreshToken> {
    shared.record.refresh_token.as_ref()
}

#[test]
fn one_claim_at_a_time_and_an_orphan_makes_room() {
    let before = stored();
    let claimed = replaced(&claim(1, &before), Some(&before));
    assert_eq!(claimed.announced, 2);
    does_nothing(&claim(1, &before), &claimed);
    is_excluded(&claim(2, &before), &claimed);
    let pulse = claimed.claim.as_ref().map(Claim::pulse);
    let Change::Claim(theirs) = claim(2, &before) else {
        unreachable!()
    };
    let taking_over = Change::Claim(NewClaim {
        orphan: pulse,
        ..theirs
    });
    let taken = replaced(&taking_over, Some(&claimed));
    let intent = taken.record.intent(token("a").fingerprint()).expect("open");
    assert_eq!(intent.attempts, 2, "it may have been sent before");
    assert_eq!(
        taken.announced, 3,
        "the late result would have the generation before"
    );
    // Its owner lives after all.
    let held = Held {
        claim: claimed.claim.clone().expect("a claim"),
        version: before.record.version(),
        at: AT,
    };
    let beaten = replaced(&Change::Beat(held.clone()), Some(&claimed));
    is_excluded(&taking_over, &beaten);
    is_excluded(&Change::Beat(held), &taken);
}

#[test]
fn what_must_not_be_sent_is_not_claimed() {
    let before = stored();
    let mut refused = before.clone();
    refused.refuse(token("a").fingerprint());
    is_excluded(&claim(1, &before), &refused);
    let newer = replaced(&result(9, &before, "a", "b"), Some(&before));
    is_excluded(&claim(1, &before), &newer);
    let Change::Claim(seed) = claim(1, &newer) else {
        unreachable!()
    };
    let known = Change::Claim(NewClaim {
        grant: Grant::Seed(token("a")),
        ..seed
    });
    is_excluded(&known, &newer);
}

#[test]
fn a_withdrawn_claim_leaves_no_intent_and_an_older_one_stays() {
    let before = stored();
    let claimed = replaced(&claim(1, &before), Some(&before));
    let withdrawn = replaced(&Change::Withdraw(id(1, 1)), Some(&claimed));
    assert!(withdrawn.claim.is_none() && withdrawn.record.intents.is_empty());
    does_nothing(&Change::Withdraw(id(1, 1)), &withdrawn);
    does_nothing(&Change::Withdraw(id(1, 2)), &claimed);
    let Change::Claim(second) = claim(2, &before) else {
        unreachable!()
    };
    let second = Change::Claim(NewClaim {
        orphan: claimed.claim.as_ref().map(Claim::pulse),
        ..second
    });
    let taken = replaced(&second, Some(&claimed));
    let withdrawn = replaced(&Change::Withdraw(id(2, 1)), Some(&taken));
    assert_eq!(withdrawn.record.intents[0].attempts, 1);
}

#[test]
fn a_result_is_accepted_by_its_parent_whenever_it_comes() {
    let before = stored();
    let claimed = replaced(&claim(1, &before), Some(&before));
    let ours = result(1, &claimed, "a", "b");
    // Another replica took the claim over, and has not called yet.
    let Change::Claim(theirs) = claim(2, &before) else {
        unreachable!()
    };
    let theirs = Change::Claim(NewClaim {
        orphan: claimed.claim.as_ref().map(Claim::pulse),
        ..theirs
    });
    let taken = replaced(&theirs, Some(&claimed));
    for stored in [&claimed, &taken] {
        let next = replaced(&ours, Some(stored));
        assert_eq!(newest(&next), Some(&token("b")));
        assert!(next.claim.is_none() && next.record.intents.is_empty());
        assert_eq!(next.life, stored.life);
        does_nothing(&ours, &next);
    }
    // The store is empty, or older.
    let next = replaced(&ours, None);
    assert_eq!((newest(&next), next.life), (Some(&token("b")), 77));
    let older = Shared {
        record: Record::default(),
        ..before.clone()
    };
    let next = replaced(&ours, Some(&older));
    assert_eq!((newest(&next), next.life), (Some(&token("b")), 77));
}

#[test]
fn a_result_that_comes_too_late_is_kept_as_a_spare() {
    let before = stored();
    let ours = result(1, &before, "a", "b");
    let theirs = replaced(&result(2, &before, "a", "c"), Some(&before));
    let next = replaced(&ours, Some(&theirs));
    assert_eq!(newest(&next), Some(&token("c")));
    assert_eq!(next.spares, [token("b")]);
    // Of several, two are kept, and one that is refused or sent is none any more.
    let mut next = replaced(&result(1, &before, "a", "d"), Some(&next));
    next = replaced(&result(1, &before, "a", "e"), Some(&next));
    assert_eq!(next.spares, [token("d"), token("e")]);
    next.refuse(token("d").fingerprint());
    assert_eq!(next.spares, [token("e")]);
    let sent = Change::Claim(NewClaim {
        id: id(3, 1),
        name: String::new(),
        grant: Grant::Seed(token("e")),
        version: next.record.version(),
        orphan: None,
        at: AT,
        budget_whole_at: None,
    });
    assert_eq!(replaced(&sent, Some(&next)).spares, []);
}

#[test]
fn what_the_store_has_lost_is_written_back_with_its_claim() {
    let before = stored();
    let claimed = replaced(&claim(1, &before), Some(&before));
    let seen = Shared {
        serial: 6,
        ..claimed
    };
    let restore = Change::Restore(Arc::new(seen.clone()));
    for lost in [None, Some(&before)] {
        let next = replaced(&restore, lost);
        assert_eq!(next.claim, seen.claim);
        assert_eq!((next.life, next.serial), (77, 6));
    }
    does_nothing(&restore, &seen);
    // Another replica has written back what it saw before the claim.
    let without = Shared {
        life: 3,
        ..before.clone()
    };
    let held = Held {
        claim: seen.claim.clone().expect("a claim"),
        version: before.record.version(),
        at: AT,
    };
    let next = replaced(&Change::Beat(held.clone()), Some(&without));
    assert_eq!(next.claim.map(|claim| claim.id), Some(id(1, 1)));
    assert_eq!(next.record.intents[0].attempts, 1);
    let newer = replaced(&result(2, &before, "a", "c"), Some(&before));
    is_excluded(&Change::Beat(held), &newer);
}

#[test]
fn what_the_issuer_said_is_noted_once() {
    let before = stored();
    let claimed = replaced(&claim(1, &before), Some(&before));
    let at = AT + Duration::from_secs(100);
    let note = Change::Note(Note {
        claim: Some(id(1, 1)),
        refused: Some(token("a")),
        not_before: Some(at),
        throttled_until: Some(at),
        ..Note::default()
    });
    let next = replaced(&note, Some(&claimed));
    assert!(next.claim.is_none() && next.record.intents.is_empty());
    assert!(next.is_refused(&token("a")));
    assert_eq!(next.limits.throttled_until(), Some(at));
    does_nothing(&note, &next);
    // Unknown outcome: the claim ends, the intent stays.
    let note = Change::Note(Note {
        claim: Some(id(1, 1)),
        ..Note::default()
    });
    let next = replaced(&note, Some(&claimed));
    assert!(next.claim.is_none());
    assert_eq!(next.record.intents.len(), 1);
    does_nothing(&note, &next);
}

#[test]
fn a_success_with_one_secret_does_not_end_the_refusal_of_another() {
    for (refused, stays) in [("wrong", true), ("right", false)] {
        let mut before = stored();
        before.limits.client_refused = Some(ClientRefused::new(refused.to_owned(), AT));
        before.limits.set_not_before(Some(AT));
        let after = replaced(&result(1, &before, "a", "b"), Some(&before));
        assert_eq!(after.limits.client_refused.is_some(), stays, "{refused}");
        assert_eq!(after.limits.not_before(), None);
    }
}
