use super::*;
use crate::base::clock::Simulated;

const HOUR: Duration = Duration::from_secs(3600);

fn token(text: &str) -> RefreshToken {
    RefreshToken::new(Secret::new(text))
}

fn intent<'a>(record: &'a Record, text: &str) -> Option<&'a Intent> {
    record.intent(token(text).fingerprint())
}

fn record(clock: &dyn Clock) -> Record {
    let mut record = Record {
        epoch: 1_750_000_000_123,
        generation: 42,
        refresh_token: Some(token("r+%&=ü\"\n")),
        refresh_token_expires_at: from_millis(1_760_000_000_000),
        refresh_token_since: from_millis(1_750_000_000_000),
        access: Some(AccessToken {
            secret: Secret::new("abc"),
            lifetime: HOUR,
            requested_at: clock.wall(),
            boot: clock
                .boot_id()
                .map(|id| (id.to_owned(), clock.now() + HOUR)),
        }),
        seed: Some(token("by hand\u{1}")),
        adopted: Vec::new(),
        intents: Vec::new(),
        spent: Spent::default(),
        is_grace_refused: true,
    };
    record.adopt(&token("seed"));
    record.open_intent(&token("sent"), clock);
    record
}

fn owner() -> Owner {
    Owner::new(&crate::token::testing::config(None).issuer)
}

fn read(json: &str) -> Result<Record, Unreadable> {
    Record::from_json(json.as_bytes(), &owner())
}

fn reparsed(record: &Record) -> Record {
    let json = record.to_json(&owner()).expect("JSON");
    Record::from_json(&json, &owner()).expect("readable")
}

/// A machine like `Simulated::new`, with this boot id, uptime and difference to the wall clock of
/// 2025.
fn machine(boot: Option<&str>, uptime: Duration, wall_offset: Duration) -> Simulated {
    let wall =
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000) - 48 * HOUR + wall_offset;
    Simulated::booted(boot, uptime, wall)
}

#[tokio::test(start_paused = true)]
async fn a_record_survives_its_json() {
    let clock = Simulated::new();
    let (old, new) = (record(&clock), reparsed(&record(&clock)));
    assert_eq!((new.epoch, new.generation), (old.epoch, old.generation));
    assert_eq!(
        new.refresh_token.expect("kept").secret().expose(),
        "r+%&=ü\"\n"
    );
    assert_eq!(new.refresh_token_expires_at, old.refresh_token_expires_at);
    assert_eq!(new.refresh_token_since, old.refresh_token_since);
    assert!(new.adopted == old.adopted && new.adopted.len() == 1);
    assert!(new.intents == old.intents && new.intents.len() == 1);
    assert!(new.is_grace_refused && new.seed == old.seed);
    let (new, old) = (new.access.expect("kept"), old.access.expect("there"));
    assert_eq!(new.secret.expose(), "abc");
    assert_eq!((new.lifetime, new.boot), (old.lifetime, old.boot));
}

#[test]
fn serialising_never_reallocates() {
    let clock = Simulated::new();
    let mut record = record(&clock);
    record.refresh_token = Some(token(&"\u{1}".repeat(16 * 1024)));
    record.seed = record.refresh_token.clone();
    for n in 0..MAX_ADOPTED + 10 {
        record.adopt(&token(&n.to_string()));
        record.open_intent(&token(&n.to_string()), &clock);
    }
    let json = record.to_json(&owner()).expect("JSON");
    assert_eq!(record.adopted.len(), MAX_ADOPTED);
    assert!(json.len() > 2 * 6 * 16 * 1024);
    // A vector that had grown would have doubled its capacity.
    assert_eq!(
        json.capacity(),
        6 * (2 * 16 * 1024 + 3 + "http://127.0.0.1:1id".len())
            + 16
            + 80 * MAX_ADOPTED
            + 512 * MAX_INTENTS
            + 1024
    );
}

#[tokio::test(start_paused = true)]
async fn an_intent_knows_its_age_over_a_restart_and_counts_its_attempts() {
    let (second, clock) = (Duration::from_secs(1), machine(Some("a"), HOUR, 48 * HOUR));
    let mut record = Record::default();
    record.open_intent(&token("x"), &clock);
    let later = machine(Some("a"), HOUR + second, Duration::ZERO);
    record.open_intent(&token("x"), &later);
    let intent = intent(&reparsed(&record), "x").expect("kept").clone();
    assert_eq!(
        (intent.attempts, intent.age(&later)),
        (2, Some(second)),
        "of the first attempt, by the boot clock"
    );
    let rebooted = |wall_offset| intent.age(&machine(Some("b"), second, wall_offset));
    assert_eq!(rebooted(49 * HOUR), Some(HOUR));
    assert_eq!(rebooted(47 * HOUR), None, "the wall clock went back");
}

#[tokio::test(start_paused = true)]
async fn the_chains_own_intent_outlives_those_of_seeds() {
    let clock = Simulated::new();
    let mut record = Record {
        refresh_token: Some(token("chain")),
        ..Record::default()
    };
    record.open_intent(&token("chain"), &clock);
    for n in 0..2 * MAX_INTENTS {
        record.open_intent(&token(&n.to_string()), &clock);
    }
    assert_eq!(record.intents.len(), MAX_INTENTS);
    assert!(
        record.has_open_intent()
            && intent(&record, "31").is_some()
            && intent(&record, "0").is_none()
    );
}

#[tokio::test(start_paused = true)]
async fn new_tokens_close_the_intents_of_their_own_chain_only() {
    let clock = Simulated::new();
    let access = || AccessToken {
        secret: Secret::new("a"),
        lifetime: HOUR,
        requested_at: clock.wall(),
        boot: None,
    };
    for grant in [
        Grant::Chain(token("chain")),
        Grant::Seed(token("b")),
        Grant::Initial,
    ] {
        let mut record = Record {
            refresh_token: Some(token("chain")),
            ..Record::default()
        };
        for name in ["chain", "a", "b"] {
            record.open_intent(&token(name), &clock);
        }
        record.advance(Some(Secret::new("next")), None, access(), &grant);
        assert!(intent(&record, "chain").is_none());
        assert!(
            intent(&record, "a").is_some(),
            "a rolled-back configuration may bring it back"
        );
        assert_eq!(intent(&record, "b").is_none(), grant.is_seed());
    }
}

#[test]
fn a_refresh_token_is_as_old_as_its_last_change() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let access = |requested_at| AccessToken {
        secret: Secret::new("a"),
        lifetime: HOUR,
        requested_at,
        boot: None,
    };
    let mut record = Record::default();
    let (first, second) = (token("r"), token("s"));
    record.advance(None, None, access(at(10)), &Grant::Seed(first.clone()));
    assert_eq!(record.refresh_token_expiry(HOUR), Some(at(3610)));
    for same in [None, Some(Secret::new("r"))] {
        record.advance(same, None, access(at(20)), &Grant::Chain(first.clone()));
        assert_eq!(record.refresh_token_expiry(HOUR), Some(at(3610)));
    }
    let grant = Grant::Chain(first);
    record.advance(Some(Secret::new("s")), None, access(at(30)), &grant);
    assert_eq!(record.refresh_token_expiry(HOUR), Some(at(3630)));
    let grant = Grant::Chain(second);
    record.advance(None, Some(2 * HOUR), access(at(40)), &grant);
    assert_eq!(
        record.refresh_token_expiry(HOUR),
        Some(at(7240)),
        "the issuer's statement wins"
    );
    record.advance(None, None, access(at(50)), &Grant::Initial);
    assert!(
        record.refresh_token.is_none(),
        "a new chain takes over nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn in_the_same_boot_the_wall_clock_does_not_matter() {
    let access = record(&machine(Some("a"), HOUR, 48 * HOUR))
        .access
        .expect("there");
    for wall_offset in [Duration::ZERO, 48 * HOUR, 96 * HOUR] {
        let clock = machine(Some("a"), HOUR + HOUR / 4, wall_offset);
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
        let left = |wall_offset| {
            let clock = machine(boot, Duration::from_secs(10), wall_offset);
            let expiry = access.expiry(&clock);
            (expiry.at.saturating_since(clock.now()), expiry.is_certain)
        };
        assert_eq!(left(48 * HOUR + HOUR / 4), (HOUR / 4 * 3, true));
        assert_eq!(left(96 * HOUR), (Duration::ZERO, true));
        assert_eq!(
            left(Duration::ZERO),
            (HOUR, false),
            "the wall clock went back"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_expiry_of_another_time_namespace_is_ignored() {
    let access = record(&machine(Some("a"), 1000 * HOUR, 48 * HOUR))
        .access
        .expect("there");
    let clock = machine(Some("a"), HOUR, 48 * HOUR + HOUR / 2);
    assert_eq!(access.expiry(&clock).at, clock.now() + HOUR / 2);
}

#[test]
fn the_least_state_file_holds_a_refresh_token() {
    let record = read(r#"{"format": 1, "refresh_token": "r"}"#).expect("readable");
    assert_eq!(record.refresh_token.expect("there").secret().expose(), "r");
    assert!(record.access.is_none());
}

#[test]
fn an_access_token_of_unknown_age_is_dropped() {
    let record =
        read(r#"{"format": 1, "refresh_token": "r", "access_token": "a", "lifetime_ms": 1}"#);
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
        ("{\"refresh_token\": \"s3cret\"}", "line 1"),
        (
            "{\"format\": 1, \"access_token\": \"s3cret\\r\\n\", \"lifetime_ms\": 1, \
             \"obtained_at_ms\": 1}",
            "access token",
        ),
    ] {
        let Err(Unreadable::Garbled(error)) = read(json) else {
            panic!("{json} is garbled")
        };
        assert!(error.contains(says) && !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn field_a15_records_of_another_format_are_told_apart_from_garbage() {
    for (format, says) in [
        ("2", "format 2 is"),
        ("0", "format 0 is"),
        ("-1", "format -1 is"),
        ("1.5", "format 1.5 is"),
        ("1e300", "format 1e+300 is"),
        ("\"s3cret\"", "format is"),
        ("null", "format is"),
        ("[\"s3cret\"]", "format is"),
    ] {
        let json = format!("{{\"refresh_token\": {{}}, \"format\": {format}}}");
        let Err(Unreadable::Foreign(error)) = read(&json) else {
            panic!("{json} is of another format")
        };
        assert!(error.contains(says) && !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn field_a18_a_record_names_its_issuer_and_client() {
    let json = Record::default().to_json(&owner()).expect("JSON");
    let owned_by = |url: &str, client_id: &str| {
        let mut config = crate::token::testing::config(None).issuer;
        config.origins = vec![url.parse().expect("a URL")];
        config.client_id = client_id.to_owned();
        Record::from_json(&json, &Owner::new(&config))
    };
    for (url, client_id) in [
        ("http://127.0.0.1:1/", "id"),
        ("http://127.0.0.1:1/another/path.do?x", "id"),
        ("https://127.0.0.1:1/", "id"),
    ] {
        assert!(owned_by(url, client_id).is_ok(), "{url}");
    }
    for (url, client_id) in [
        ("http://127.0.0.1:2/", "id"),
        ("http://127.0.0.2:1/", "id"),
        ("http://127.0.0.1:1/", "another"),
        ("http://127.0.0.1:1/", "ID"),
    ] {
        let Err(Unreadable::Foreign(error)) = owned_by(url, client_id) else {
            panic!("{url}, {client_id}: another owner")
        };
        assert!(error.contains("client \"id\""), "{error}");
    }
    for (json, is_ours) in [
        (r#"{"format": 1}"#, true),
        (r#"{"format": 1, "client_id": "id"}"#, true),
        (r#"{"format": 1, "client_id": "another"}"#, false),
        (r#"{"format": 1, "issuer": "http://127.0.0.1:1"}"#, true),
        (r#"{"format": 1, "issuer": ""}"#, false),
    ] {
        assert_eq!(read(json).is_ok(), is_ours, "{json}");
    }
}

#[test]
fn servers_of_the_issuer_can_be_added_and_removed() {
    let owner = |origins: &[&str]| {
        let mut config = crate::token::testing::config(None).issuer;
        let origins = origins.iter();
        config.origins = origins
            .map(|origin| origin.parse().expect("a URL"))
            .collect();
        Owner::new(&config)
    };
    let (a, b, c) = ("http://a", "http://b:81", "https://c");
    for (stored, current, is_same) in [
        (&[a][..], &[a, b][..], true),
        (&[a, b], &[b], true),
        (&[a, b], &[c, a], true),
        (&[a, b, c], &["http://c:443", "https://c:444"], false),
        (&[a, b, c], &["http://c"], true),
        (&[a, b], &[c], false),
        (&[a], &[b, c], false),
    ] {
        let json = Record::default().to_json(&owner(stored)).expect("JSON");
        let read = Record::from_json(&json, &owner(current));
        assert_eq!(read.is_ok(), is_same, "{stored:?} {current:?}");
    }
    let error = Record::from_json(
        &Record::default().to_json(&owner(&[a, b])).expect("JSON"),
        &owner(&[c]),
    );
    let Err(Unreadable::Foreign(error)) = error else {
        panic!("another issuer's")
    };
    assert!(error.contains("http://a, http://b:81"), "{error}");
    // As versions that know one server only wrote it, and as they read it.
    let old = r#"{"format": 1, "issuer": "http://b:81", "client_id": "id"}"#;
    assert!(Record::from_json(old.as_bytes(), &owner(&[a, b])).is_ok());
    let json = Record::default().to_json(&owner(&[a, b])).expect("JSON");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(json["issuer"], a);
    // In one allocation, whatever the number of servers.
    let names: Vec<_> = (0..500).map(|n| format!("http://n{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let json = Record::default().to_json(&owner(&names)).expect("JSON");
    let expected: usize = names.iter().map(|name| 6 * name.len() + 16).sum();
    assert_eq!(json.capacity(), expected + 6 * "id".len() + 1024);
}

#[tokio::test(start_paused = true)]
async fn field_a13_notes_about_the_same_chain_are_united() {
    let clock = Simulated::new();
    let chain = || Record {
        refresh_token: Some(token("chain")),
        ..Record::default()
    };
    let mut ours = chain();
    ours.open_intent(&token("chain"), &clock);
    ours.open_intent(&token("chain"), &clock);
    ours.adopt(&token("our seed"));
    let opened = ours.intents.clone();
    // A backup from before the call.
    ours.merge_notes(chain());
    assert_eq!(ours.intents, opened);
    clock.sleep_until(clock.now() + HOUR).await;
    let mut theirs = chain();
    theirs.open_intent(&token("chain"), &clock);
    theirs.open_intent(&token("their seed"), &clock);
    theirs.adopt(&token("their seed"));
    ours.merge_notes(theirs);
    assert_eq!(ours.intents.len(), 2);
    assert_eq!(ours.intents[..1], opened, "first sent, and most often");
    for seed in ["our seed", "their seed"] {
        assert!(ours.has_adopted(token(seed).fingerprint()), "{seed}");
    }
    // Hostile contents are bounded, and the chain's own intent stays.
    let mut many = chain();
    for n in 0..MAX_INTENTS {
        many.open_intent(&token(&n.to_string()), &clock);
    }
    ours.merge_notes(many);
    assert_eq!(ours.intents.len(), MAX_INTENTS);
    assert!(ours.has_open_intent());
}
