use super::*;
use crate::{base::clock::Simulated, base::secret::Secret, token::store::Record};

const fn at(seconds: u64) -> Moment {
    Moment::since_boot(Duration::from_secs(seconds))
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn token(name: &str) -> RefreshToken {
    RefreshToken::new(Secret::new(name))
}

fn candidate(name: &str, standing: Standing) -> Option<Candidate> {
    Some(Candidate {
        token: token(name),
        standing,
    })
}

/// A good chain whose token is refreshed at 3000 and expires at 4000. A fifth of its life is left
/// at 3280.
fn situation() -> Situation {
    Situation {
        rejection_allowed_at: Moment::default(),
        seed: None,
        chain: candidate("chain", Standing::Good),
        has_initial_grant: false,
        grace_retry: true,
        is_requested: false,
        is_in_doubt: false,
        is_rejected: false,
        refresh_at: at(3000),
        backoff_until: at(0),
        throttled_until: at(0),
        expires_at: Some(at(4000)),
        lifetime: seconds(3600),
    }
}

fn with_chain(standing: Standing) -> Situation {
    Situation {
        chain: candidate("chain", standing),
        ..situation()
    }
}

fn with_seed(standing: Standing) -> Situation {
    Situation {
        seed: candidate("seed", standing),
        ..situation()
    }
}

fn chain_at(seconds: u64) -> Plan {
    Plan::Call {
        grant: Grant::Chain(token("chain")),
        due: at(seconds),
    }
}

fn seed_at(seconds: u64) -> Plan {
    Plan::Call {
        grant: Grant::Seed(token("seed")),
        due: at(seconds),
    }
}

fn initial_at(seconds: u64) -> Plan {
    Plan::Call {
        grant: Grant::Initial,
        due: at(seconds),
    }
}

fn rejected(situation: Situation) -> Situation {
    Situation {
        is_rejected: true,
        ..situation
    }
}

fn requested(situation: Situation) -> Situation {
    Situation {
        is_requested: true,
        ..situation
    }
}

fn backing_off(situation: Situation) -> Situation {
    Situation {
        backoff_until: at(500),
        ..situation
    }
}

fn throttled(situation: Situation) -> Situation {
    Situation {
        throttled_until: at(700),
        ..situation
    }
}

fn with_initial_grant(situation: Situation) -> Situation {
    Situation {
        has_initial_grant: true,
        ..situation
    }
}

fn without_grace_retry(situation: Situation) -> Situation {
    Situation {
        grace_retry: false,
        ..situation
    }
}

fn check(cases: impl IntoIterator<Item = (&'static str, Situation, Plan)>) {
    for (name, situation, plan) in cases {
        assert_eq!(situation.plan(), plan, "{name}");
    }
}

#[test]
fn a_good_chain_is_refreshed_on_schedule_or_on_request() {
    check([
        ("scheduled", situation(), chain_at(3000)),
        ("rejected", rejected(situation()), chain_at(0)),
        ("requested", requested(situation()), chain_at(0)),
    ]);
}

#[test]
fn a_seed_goes_first_and_at_once() {
    check([
        ("good", with_seed(Standing::Good), seed_at(0)),
        ("refused", with_seed(Standing::Refused), chain_at(3000)),
        (
            "possibly used",
            with_seed(Standing::PossiblyUsed),
            seed_at(3280),
        ),
        (
            "possibly used, requested",
            requested(with_seed(Standing::PossiblyUsed)),
            seed_at(0),
        ),
        (
            "possibly used, no grace retry",
            without_grace_retry(with_seed(Standing::PossiblyUsed)),
            chain_at(3000),
        ),
    ]);
}

#[test]
fn field_a3_an_operator_alone_shortens_a_backoff_and_nothing_a_retry_after() {
    let initial = || Situation {
        chain: None,
        ..with_initial_grant(situation())
    };
    check([
        (
            "rejected",
            backing_off(rejected(situation())),
            chain_at(500),
        ),
        (
            "requested",
            backing_off(requested(situation())),
            chain_at(0),
        ),
        (
            "requested during Retry-After",
            throttled(backing_off(requested(situation()))),
            chain_at(700),
        ),
        (
            "rejected during Retry-After",
            throttled(rejected(situation())),
            chain_at(700),
        ),
        (
            "seed during Retry-After",
            throttled(with_seed(Standing::Good)),
            seed_at(700),
        ),
        ("seed", backing_off(with_seed(Standing::Good)), seed_at(500)),
        ("initial", backing_off(rejected(initial())), initial_at(500)),
        ("scheduled", backing_off(situation()), chain_at(3000)),
    ]);
}

#[test]
fn a_possibly_used_token_waits_until_little_of_the_access_token_is_left() {
    let doubtful = || with_chain(Standing::PossiblyUsed);
    check([
        ("a fifth", doubtful(), chain_at(3280)),
        ("rejected", rejected(doubtful()), chain_at(3280)),
        ("requested", requested(doubtful()), chain_at(0)),
        (
            "a minute",
            Situation {
                lifetime: seconds(100),
                ..doubtful()
            },
            chain_at(3940),
        ),
        (
            "no usable token",
            Situation {
                expires_at: None,
                ..doubtful()
            },
            chain_at(0),
        ),
    ]);
}

#[test]
fn an_initial_grant_replaces_a_token_that_is_possibly_used_refused_or_missing() {
    let missing = Situation {
        chain: None,
        ..situation()
    };
    for (name, situation) in [
        ("possibly used", with_chain(Standing::PossiblyUsed)),
        ("refused", with_chain(Standing::Refused)),
        ("missing", missing),
    ] {
        let situation = with_initial_grant(situation);
        check([
            (name, situation.clone(), initial_at(3000)),
            (name, rejected(situation.clone()), initial_at(0)),
            (name, requested(situation), initial_at(0)),
        ]);
    }
    check([(
        "a good chain",
        with_initial_grant(situation()),
        chain_at(3000),
    )]);
}

#[test]
fn without_a_grant_no_call_is_made() {
    let missing = Situation {
        chain: None,
        ..situation()
    };
    for (situation, blocker, reason) in [
        (missing, Blocker::NoRefreshToken, Some(Reason::NoCredential)),
        (with_chain(Standing::Refused), Blocker::Refused, None),
        (
            without_grace_retry(with_chain(Standing::PossiblyUsed)),
            Blocker::OutcomeUnknown,
            Some(Reason::OutcomeUnknown),
        ),
    ] {
        let plan = requested(situation).plan();
        assert_eq!(plan, Plan::Blocked(blocker));
        assert_eq!((plan.due(), plan.grant()), (None, None));
        assert_eq!(blocker.problem().map(|problem| problem.reason), reason);
    }
}

#[test]
fn a_possible_call_resolves_what_only_an_operator_could_solve() {
    let call = chain_at(0);
    for (reason, has_initial_grant, is_resolved) in [
        (Reason::NoCredential, false, true),
        (Reason::OutcomeUnknown, true, true),
        (Reason::RefreshTokenRefused, false, true),
        (Reason::RefreshTokenRefused, true, false),
        (Reason::ClientRefused, false, false),
        (Reason::IssuerUnreachable, false, false),
    ] {
        assert_eq!(
            call.resolves(reason, has_initial_grant),
            is_resolved,
            "{reason:?}"
        );
        let blocked = Plan::Blocked(Blocker::Refused);
        assert!(!blocked.resolves(reason, has_initial_grant), "{reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_standing_depends_on_the_intent_its_age_and_its_attempts() {
    let clock = Simulated::new();
    let mut record = Record::default();
    record.open_intent(&token("once"), &clock);
    for _ in 0..2 {
        record.open_intent(&token("twice"), &clock);
    }
    let (once, twice) = (
        record.intent(token("once").fingerprint()),
        record.intent(token("twice").fingerprint()),
    );
    let (young, old) = (Some(seconds(4)), Some(seconds(5)));
    let (none, grace, longer) = (Duration::ZERO, seconds(5), seconds(6));
    for (is_refused, intent, age, grace_period, standing) in [
        (false, None, None, grace, Standing::Good),
        (false, None, None, none, Standing::Good),
        (true, None, None, grace, Standing::Refused),
        (true, once, young, grace, Standing::Refused),
        (false, once, young, grace, Standing::Good),
        (false, once, young, none, Standing::PossiblyUsed),
        (false, once, Some(none), none, Standing::PossiblyUsed),
        (false, once, old, grace, Standing::PossiblyUsed),
        (false, once, old, longer, Standing::Good),
        (false, once, None, grace, Standing::PossiblyUsed),
        (false, twice, young, grace, Standing::PossiblyUsed),
    ] {
        assert_eq!(
            Standing::new(is_refused, intent, age, grace_period),
            standing,
            "{is_refused} {intent:?} {age:?} {grace_period:?}"
        );
    }
}

/// A call of a chain's refresh token, sent at 100; it failed at 102.
fn failed(class: FailureClass) -> FailedCall {
    FailedCall {
        class,
        sent_at: at(100),
        now: at(102),
        is_client_refused: false,
        standing: Some(Standing::Good),
        is_initial_grant_next: false,
    }
}

#[test]
fn each_class_of_failure_has_its_retry() {
    let throttled = FailureClass::Throttled(seconds(30));
    for (class, retry, while_client_refused) in [
        (
            FailureClass::RefreshTokenRefused,
            Retry::At(at(160)),
            Retry::At(at(160)),
        ),
        (
            FailureClass::ClientRefused,
            Retry::WithNewSecretOrAt(at(160)),
            Retry::At(at(160)),
        ),
        (throttled, Retry::At(at(132)), Retry::At(at(160))),
        (
            FailureClass::Throttled(seconds(300)),
            Retry::At(at(402)),
            Retry::At(at(402)),
        ),
        (
            FailureClass::Unreachable,
            Retry::WithBackoff,
            Retry::At(at(160)),
        ),
        (
            FailureClass::Failing,
            Retry::WithBackoff,
            Retry::At(at(160)),
        ),
        (
            FailureClass::Ambiguous,
            Retry::At(at(102)),
            Retry::At(at(160)),
        ),
        (
            FailureClass::Garbled,
            Retry::At(at(102)),
            Retry::At(at(160)),
        ),
    ] {
        let call = failed(class);
        assert_eq!(call.retry(), retry, "{class:?}");
        let call = FailedCall {
            is_client_refused: true,
            ..call
        };
        assert_eq!(call.retry(), while_client_refused, "{class:?}");
        let late = FailedCall {
            now: at(170),
            ..call
        };
        assert!(
            matches!(late.retry(), Retry::At(moment) if moment >= at(160)),
            "{class:?}"
        );
    }
}

#[test]
fn an_unknown_outcome_is_repeated_within_the_grace_period_only() {
    for class in [FailureClass::Ambiguous, FailureClass::Garbled] {
        for (standing, is_initial_grant_next, retry) in [
            (Some(Standing::Good), false, Retry::At(at(102))),
            (Some(Standing::PossiblyUsed), false, Retry::WithBackoff),
            (Some(Standing::PossiblyUsed), true, Retry::At(at(102))),
            (None, true, Retry::WithBackoff),
        ] {
            let call = FailedCall {
                standing,
                is_initial_grant_next,
                ..failed(class)
            };
            assert_eq!(call.retry(), retry, "{standing:?} {is_initial_grant_next}");
        }
        let fast = FailedCall {
            now: at(100),
            ..failed(class)
        };
        assert_eq!(fast.retry(), Retry::At(at(101)), "never within a second");
    }
}
