//! `/status`: the state of the proxy as JSON, without secrets.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Sources;
use crate::{
    proxy::{
        Metrics,
        message::observed::{self as seen, Note},
    },
    token::{
        Persistence, Refresh, Snapshot,
        fleet::{FleetSnapshot, RegisterInfo},
    },
    upstream,
};

pub(super) fn status(sources: &Sources, draining: bool) -> Value {
    let now = sources.credential.clock().wall();
    let upstreams = sources.upstreams.iter();
    let upstreams = upstreams.map(|shared| upstream(shared, sources));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "draining": draining,
        "credentials": [credential(&sources.credential.snapshot(), now)],
        "upstreams": upstreams.collect::<Vec<_>>(),
        "seen_in_json": seen_in_json(sources),
        "other_schemes": other_schemes(sources),
        "rejected_links": {
            "count": sources.total(Metrics::rejected_links),
            "key": "proxy.allow_navigation",
        },
        "requests_in_flight": sources.total(|worker| worker.in_flight.value()),
        "connections_open": sources.total(|worker| worker.connections_open.value()),
    })
}

fn credential(snapshot: &Snapshot, now: SystemTime) -> Value {
    let seconds_until = |moment: SystemTime| match moment.duration_since(now) {
        Ok(left) => json!(left.as_secs()),
        Err(_) => json!(0),
    };
    let last_refreshes = snapshot.last_refreshes.iter().map(refresh);
    json!({
        "name": snapshot.name,
        "state": snapshot.state.label(),
        "reason": snapshot.reason.label(),
        "since": date(snapshot.since),
        "problem": snapshot.problem,
        "generation": snapshot.generation,
        "expires_in": snapshot.expires_in.map(|left| left.as_secs()),
        "refresh_token_expires_in": snapshot.refresh_token_expires_at.map(seconds_until),
        "seed_refused": snapshot.seed_refused,
        "next_refresh_in": snapshot.next_attempt_in.map(|left| left.as_secs()),
        "persisted": match snapshot.persistence {
            Persistence::Off => Value::Null,
            Persistence::Stored => json!(true),
            Persistence::Failing { .. } => json!(false),
        },
        "last_refreshes": last_refreshes.collect::<Vec<_>>(),
        "store": snapshot.store.as_ref().map(store),
    })
}

/// The store that replicas share, and this replica's part in it.
fn store(store: &FleetSnapshot) -> Value {
    let RegisterInfo {
        kind,
        server,
        connection: _,
        connected_since,
        version,
        role,
        replicas,
        persistence,
        findings,
        unconfirmed_writes,
        last_error,
    } = &*store.server;
    let claim = store.claim.as_ref().map(|claim| {
        json!({
            "replica": claim.replica,
            "generation": claim.generation,
            "orphaned": claim.is_orphaned,
        })
    });
    let last_error = last_error
        .as_ref()
        .map(|(at, error)| json!({ "at": date(*at), "error": error }));
    json!({
        "kind": kind,
        "server": server,
        "up": store.is_up,
        "since": connected_since.map(date),
        "problem": store.problem,
        "last_error": last_error,
        "version": version,
        "role": role.label(),
        "replicas": replicas,
        "persistence": persistence.label(),
        "findings": findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "unconfirmed_writes": unconfirmed_writes,
        "serial": store.serial,
        // In digits that a JSON number of 53 bits would round.
        "life": store.life.map(|life| format!("{life:016x}")),
        "claim": claim,
        "settled": store.is_settled,
        "replica": store.replica,
    })
}

fn refresh(refresh: &Refresh) -> Value {
    json!({
        "at": date(refresh.at),
        "outcome": refresh.outcome.label(),
        "milliseconds": u64::try_from(refresh.duration.as_millis()).unwrap_or(u64::MAX),
    })
}

fn upstream(shared: &upstream::Shared, sources: &Sources) -> Value {
    let status = shared.status();
    let endpoints = status.endpoints.iter().map(|endpoint| {
        let connections = |count: fn(&upstream::Counters) -> u64| {
            sources.total(|worker| count(&worker.endpoints.get(&endpoint.origin)))
        };
        json!({
            "origin": endpoint.origin,
            "connections": {
                "active": connections(|counters| counters.active.value()),
                "idle": connections(|counters| counters.idle.value()),
            },
            "healthy": endpoint.is_healthy(),
            "resolve_error": endpoint.resolve_error.as_deref(),
            "addresses": endpoint.addresses.iter().map(address).collect::<Vec<_>>(),
        })
    });
    json!({
        "name": shared.config().name,
        "queue_length": status.queue_length,
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn address(address: &upstream::AddressStatus) -> Value {
    json!({
        "address": address.address,
        "state": address.state.label(),
        "reason": address.reason.map(upstream::Reason::label),
        "since": date(address.since),
        "until": address.until.map(date),
        "in_flight": address.in_flight,
        "ejections": address.ejections,
        "weight_tenths": address.weight_tenths,
        "other_family": address.is_alternative,
    })
}

/// What recent JSON responses contained that the configuration does not handle, and the key that
/// would.
fn seen_in_json(sources: &Sources) -> Value {
    let (mut codes, mut origins) = (Vec::new(), Vec::new());
    for worker in &*sources.workers {
        let notes = worker.observed.notes();
        for (all, some) in [(&mut codes, &notes.codes), (&mut origins, &notes.origins)] {
            for note in some {
                seen::add(all, &note.value, note.responses, note.last_seen);
            }
        }
    }
    let rows = |notes: Vec<Note>, name: &str, key: &str| {
        let rows = notes.into_iter().map(|note| {
            let last = date(note.last_seen);
            json!({ name: note.value, "answers": note.responses, "last": last, "key": key })
        });
        rows.collect::<Vec<_>>()
    };
    json!({
        "pointer": sources.json_pointer,
        "codes": rows(codes, "code", "retry.json"),
        "origins": rows(origins, "origin", "[[rewrite]]"),
    })
}

/// Origins in responses that differ from a configured one by their scheme alone, and the key in
/// which to write them.
fn other_schemes(sources: &Sources) -> Value {
    let mut origins = Vec::new();
    for worker in &*sources.workers {
        for note in &worker.observed.notes().other_schemes {
            seen::add(&mut origins, &note.value, note.responses, note.last_seen);
        }
    }
    let rows = origins.into_iter().map(|note| {
        json!({ "origin": note.value, "last": date(note.last_seen), "key": "upstream.endpoints" })
    });
    rows.collect()
}

/// The date in RFC 3339 format, in UTC, in whole seconds.
pub(super) fn date(moment: SystemTime) -> String {
    let since_1970 = moment
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(since_1970)).to_string()
}
