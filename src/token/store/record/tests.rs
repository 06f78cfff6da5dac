use super::*;
use crate::base::clock::Simulated;

const HOUR: Duration = Duration::from_secs(3600);

fn record(clock: &dyn Clock) -> Record {
    let mut record = Record {
        epoch: 1_750_000_000_123,
        generation: 42,
        refresh_token: Some(Secret::new("r+%&=ü\"\n")),
        refresh_token_expires_at: from_millis(1_760_000_000_000),
        refresh_token_since: from_millis(1_750_000_000_000),
        access: Some(AccessToken {
            token: Secret::new("abc"),
            lifetime: HOUR,
            obtained_at: clock.wall(),
            boot: clock
                .boot_id()
                .map(|id| (id.to_owned(), clock.now() + HOUR)),
        }),
        adopted: Vec::new(),
        intents: Vec::new(),
    };
    record.adopt(fingerprint(&Secret::new("seed")));
    record.open_intent("a fingerprint", clock);
    record
}

fn reparsed(record: &Record) -> Record {
    Record::from_json(&record.to_json().expect("JSON")).expect("readable")
}

/// A machine like `Simulated::new`, but of that boot, so long up, and with its calendar so far from 2025's.
fn machine(boot: Option<&str>, uptime: Duration, calendar: Duration) -> Simulated {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000) - 48 * HOUR + calendar;
    Simulated::booted(boot, uptime, wall)
}

#[tokio::test(start_paused = true)]
async fn a_record_survives_its_json() {
    let clock = Simulated::new();
    let (old, new) = (record(&clock), reparsed(&record(&clock)));
    assert_eq!((new.epoch, new.generation), (old.epoch, old.generation));
    assert_eq!(new.refresh_token.expect("kept").expose(), "r+%&=ü\"\n");
    assert_eq!(new.refresh_token_expires_at, old.refresh_token_expires_at);
    assert_eq!(new.refresh_token_since, old.refresh_token_since);
    assert!(new.adopted == old.adopted && new.adopted.len() == 1);
    assert!(new.intents == old.intents && new.intents.len() == 1);
    let (new, old) = (new.access.expect("kept"), old.access.expect("there"));
    assert_eq!(new.token.expose(), "abc");
    assert_eq!((new.lifetime, new.boot), (old.lifetime, old.boot));
}

#[test]
fn serialising_never_reallocates() {
    let clock = Simulated::new();
    let mut record = record(&clock);
    record.refresh_token = Some(Secret::new("\u{1}".repeat(16 * 1024)));
    for n in 0..ADOPTED_LIMIT + 10 {
        record.adopt(fingerprint(&Secret::new(n.to_string())));
        record.open_intent(&fingerprint(&Secret::new(n.to_string())), &clock);
    }
    let json = record.to_json().expect("JSON");
    assert_eq!(record.adopted.len(), ADOPTED_LIMIT);
    assert!(json.len() > 6 * 16 * 1024);
    // A vector that had grown would have doubled its capacity.
    assert_eq!(
        json.capacity(),
        6 * (16 * 1024 + 3) + 80 * ADOPTED_LIMIT + 512 * INTENTS_LIMIT + 1024
    );
}

#[tokio::test(start_paused = true)]
async fn an_intent_knows_its_age_over_a_restart_and_counts_its_attempts() {
    let (second, clock) = (Duration::from_secs(1), machine(Some("a"), HOUR, 48 * HOUR));
    let mut record = Record::default();
    record.open_intent("x", &clock);
    let later = machine(Some("a"), HOUR + second, Duration::ZERO);
    record.open_intent("x", &later);
    let intent = reparsed(&record).intent("x").expect("kept").clone();
    assert_eq!(
        (intent.attempts, intent.age(&later)),
        (2, Some(second)),
        "of the first attempt, by the boot clock"
    );
    let rebooted = |calendar| intent.age(&machine(Some("b"), second, calendar));
    assert_eq!(rebooted(49 * HOUR), Some(HOUR));
    assert_eq!(rebooted(47 * HOUR), None, "a calendar that went back");
}

#[tokio::test(start_paused = true)]
async fn the_chains_own_doubt_outlives_those_of_configured_tokens() {
    let clock = Simulated::new();
    let chain = fingerprint(&Secret::new("chain"));
    let mut record = Record {
        refresh_token: Some(Secret::new("chain")),
        ..Record::default()
    };
    record.open_intent(&chain, &clock);
    for n in 0..2 * INTENTS_LIMIT {
        record.open_intent(&n.to_string(), &clock);
    }
    assert_eq!(record.intents.len(), INTENTS_LIMIT);
    assert!(
        record.has_open_intent() && record.intent("31").is_some() && record.intent("0").is_none()
    );
}

#[tokio::test(start_paused = true)]
async fn new_tokens_settle_the_doubt_about_their_own_chain_alone() {
    let clock = Simulated::new();
    let access = || AccessToken {
        token: Secret::new("a"),
        lifetime: HOUR,
        obtained_at: clock.wall(),
        boot: None,
    };
    let seed = |name: &str| RefreshToken {
        token: Secret::new(name),
        fingerprint: fingerprint(&Secret::new(name)),
    };
    for origin in [Grant::Chain, Grant::Seed(seed("b")), Grant::Initial] {
        let mut record = Record {
            refresh_token: Some(Secret::new("chain")),
            ..Record::default()
        };
        for token in ["chain", "a", "b"] {
            record.open_intent(&seed(token).fingerprint, &clock);
        }
        let is_seed = matches!(origin, Grant::Seed(_));
        record.advance(Some(Secret::new("next")), None, access(), origin);
        assert!(record.intent(&seed("chain").fingerprint).is_none());
        assert!(
            record.intent(&seed("a").fingerprint).is_some(),
            "a rolled-back configuration may bring it back"
        );
        assert_eq!(record.intent(&seed("b").fingerprint).is_none(), is_seed);
    }
}

#[test]
fn a_refresh_token_is_as_old_as_its_last_change() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let access = |obtained_at| AccessToken {
        token: Secret::new("a"),
        lifetime: HOUR,
        obtained_at,
        boot: None,
    };
    let mut record = Record::default();
    let seed = RefreshToken {
        token: Secret::new("r"),
        fingerprint: fingerprint(&Secret::new("r")),
    };
    record.advance(None, None, access(at(10)), Grant::Seed(seed));
    assert_eq!(record.refresh_token_expiry(HOUR), Some(at(3610)));
    for same in [None, Some(Secret::new("r"))] {
        record.advance(same, None, access(at(20)), Grant::Chain);
        assert_eq!(record.refresh_token_expiry(HOUR), Some(at(3610)));
    }
    record.advance(Some(Secret::new("s")), None, access(at(30)), Grant::Chain);
    assert_eq!(record.refresh_token_expiry(HOUR), Some(at(3630)));
    record.advance(None, Some(2 * HOUR), access(at(40)), Grant::Chain);
    assert_eq!(
        record.refresh_token_expiry(HOUR),
        Some(at(7240)),
        "the issuer knows better"
    );
    record.advance(None, None, access(at(50)), Grant::Initial);
    assert!(
        record.refresh_token.is_none(),
        "a new chain takes nothing over"
    );
}

#[tokio::test(start_paused = true)]
async fn in_the_same_boot_the_calendar_does_not_matter() {
    let access = record(&machine(Some("a"), HOUR, 48 * HOUR))
        .access
        .expect("there");
    for calendar in [Duration::ZERO, 48 * HOUR, 96 * HOUR] {
        let clock = machine(Some("a"), HOUR + HOUR / 4, calendar);
        let expiry = access.expiry(&clock);
        assert_eq!(
            expiry,
            Expiry {
                at: Moment::since_boot(2 * HOUR),
                is_certain: true
            }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_another_boot_the_smaller_of_remainder_and_lifetime_counts() {
    let access = record(&machine(Some("a"), HOUR, 48 * HOUR))
        .access
        .expect("there");
    for boot in [Some("b"), None] {
        let left = |calendar| {
            let clock = machine(boot, Duration::from_secs(10), calendar);
            let expiry = access.expiry(&clock);
            (expiry.at.saturating_since(clock.now()), expiry.is_certain)
        };
        assert_eq!(left(48 * HOUR + HOUR / 4), (HOUR / 4 * 3, true));
        assert_eq!(left(96 * HOUR), (Duration::ZERO, true));
        assert_eq!(
            left(Duration::ZERO),
            (HOUR, false),
            "a calendar that went back"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_moment_of_another_time_namespace_is_not_believed() {
    let access = record(&machine(Some("a"), 1000 * HOUR, 48 * HOUR))
        .access
        .expect("there");
    let clock = machine(Some("a"), HOUR, 48 * HOUR + HOUR / 2);
    assert_eq!(access.expiry(&clock).at, clock.now() + HOUR / 2);
}

#[test]
fn the_least_state_file_holds_a_refresh_token() {
    let record = Record::from_json(br#"{"format": 1, "refresh_token": "r"}"#).expect("readable");
    assert_eq!(record.refresh_token.expect("there").expose(), "r");
    assert!(record.access.is_none());
}

#[test]
fn an_access_token_of_unknown_age_is_dropped() {
    let record = Record::from_json(
        br#"{"format": 1, "refresh_token": "r", "access_token": "a", "lifetime_ms": 1}"#,
    );
    assert!(record.expect("readable").access.is_none());
}

#[test]
fn mistakes_are_placed_and_never_quoted() {
    for (json, says) in [
        ("", "line 1, column 0"),
        (
            "{\"format\": 1,\n \"generation\": \"s3cret\"}",
            "line 2, column 23",
        ),
        ("{\"format\": 2, \"refresh_token\": \"s3cret\"}", "format 2"),
        ("{\"refresh_token\": \"s3cret\"}", "line 1"),
        (
            "{\"format\": 1, \"access_token\": \"s3cret\\r\\n\", \"lifetime_ms\": 1, \"obtained_at_ms\": 1}",
            "access token",
        ),
    ] {
        let error = Record::from_json(json.as_bytes()).expect_err("refused");
        assert!(error.contains(says) && !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn fingerprints_are_sha_256() {
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(fingerprint(&Secret::new("abc")), abc);
}
