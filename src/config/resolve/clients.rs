//! `[[client]]`: authentication and limits of clients.

use super::{listeners::ListenerEntry, routes::path_rules};
use crate::{
    base::secret::Secret,
    config::{
        findings::{Problem, problem},
        raw::Value,
        reader::Reader,
        values,
    },
    proxy::{Client, Rules},
};

/// Shorter keys can be guessed.
const MIN_KEY_LENGTH: usize = 16;

/// The clients whose tables have no mistake.
pub(super) fn clients(r: &mut Reader, listeners: &[ListenerEntry]) -> Vec<Client> {
    let mut clients: Vec<Client> = Vec::new();
    for section in r.tables("client") {
        let Some(client) = client(r, &section, listeners) else {
            continue;
        };
        reject_duplicates(r, &section, &client, &clients);
        clients.push(client);
    }
    const OPEN: &str = "proxy.allow_unauthenticated";
    if !clients.is_empty()
        && r.raw_value(OPEN)
            .is_some_and(|value| values::boolean(value) == Ok(true))
    {
        let problem = problem(
            "has no effect: with [[client]], only those clients are served",
            "remove it",
        )
        .or_variable("unset it");
        r.warning(r.pos(OPEN), OPEN, problem);
    }
    clients
}

fn client(r: &mut Reader, section: &str, listeners: &[ListenerEntry]) -> Option<Client> {
    let key_of = |name: &str| format!("{section}.{name}");
    let name = r.read(&key_of("name"), |value| {
        values::text(value).map(str::to_owned)
    });
    let key = r.secret(&key_of("key"));
    let header = optional(r, &key_of("header"), values::key_header);
    let basic = optional(r, &key_of("basic"), values::user_name);
    let tls_subject = optional(r, &key_of("tls_subject"), |value| {
        values::text(value).map(str::to_owned)
    });
    let networks_key = key_of("networks");
    let networks = if r.is_given(&networks_key) {
        r.non_empty_list(&networks_key, values::network)
    } else {
        Vec::new()
    };
    let rules = Rules {
        allow: path_rules(r, &key_of("allow")),
        deny: path_rules(r, &key_of("deny")),
    };
    let rate = optional(r, &key_of("rate"), values::rate);
    let concurrency = if r.is_given(&key_of("concurrency")) {
        r.count(&key_of("concurrency"), 1_000_000)
    } else {
        None
    };
    check_credentials(r, section, key.as_ref());
    if tls_subject.is_some() {
        check_tls_subject(r, &key_of("tls_subject"), listeners);
    }
    let networks = networks.into_iter().map(|(network, _)| network).collect();
    Some(Client {
        name: name?,
        key,
        header,
        basic,
        tls_subject,
        networks,
        rules,
        rate,
        concurrency,
    })
}

/// The value of an optional key.
fn optional<T>(r: &mut Reader, key: &str, parse: fn(&Value) -> Result<T, Problem>) -> Option<T> {
    if r.is_given(key) {
        r.read(key, parse)
    } else {
        None
    }
}

/// A key needs a header or a user name, and they need a key; a client needs at least one kind of
/// credential.
fn check_credentials(r: &mut Reader, section: &str, key: Option<&Secret>) {
    let key_of = |name: &str| format!("{section}.{name}");
    let has = |r: &Reader, name: &str| r.is_given(&key_of(name));
    let has_key = r.is_secret_given(&key_of("key"));
    let (has_header, has_basic) = (has(r, "header"), has(r, "basic"));
    let secret_pos = r.pos_of_secret(&key_of("key"));
    if has_key && !has_header && !has_basic {
        let hint = r#"write header = "x-api-key", or basic = "user name" for HTTP Basic, or both"#;
        r.missing(
            secret_pos.clone(),
            &key_of("key"),
            problem("has no effect without header or basic", hint),
        );
    }
    for (name, is_given) in [("header", has_header), ("basic", has_basic)] {
        if is_given && !has_key {
            let hint = "set key_file to a file with the client's key, or key to the key itself";
            r.missing(
                r.pos(&key_of(name)),
                &key_of(name),
                problem("has no effect without a key", hint),
            );
        }
    }
    if !has_key && !has_header && !has_basic && !has(r, "tls_subject") && !has(r, "networks") {
        let hint = "write key_file and header or basic, tls_subject, or networks";
        r.missing(
            r.pos_of_section(section),
            section,
            problem("has nothing that identifies the client", hint),
        );
    }
    if has_header && key.is_some_and(|key| !key.fits_header()) {
        let problem = problem(
            "is not allowed in an HTTP header",
            "use letters, digits and punctuation without spaces",
        );
        r.mistake(secret_pos.clone(), &key_of("key"), problem);
    }
    if key.is_some_and(|key| key.expose().chars().count() < MIN_KEY_LENGTH) {
        let reason = format!(
            "is shorter than {MIN_KEY_LENGTH} characters: an attacker who can connect may guess it"
        );
        r.warning(
            secret_pos,
            &key_of("key"),
            problem(reason, "use a random one, as from `openssl rand -hex 24`"),
        );
    }
}

/// A subject needs a listener that requests client certificates.
fn check_tls_subject(r: &mut Reader, key: &str, listeners: &[ListenerEntry]) {
    let requests_certificates = |entry: &ListenerEntry| {
        entry
            .listener
            .tls
            .as_ref()
            .is_some_and(|tls| tls.client_ca_file.is_some())
    };
    if !listeners.is_empty() && !listeners.iter().any(requests_certificates) {
        let hint = "write a [[listener]] with tls.cert_file, tls.key_file and tls.client_ca_file";
        r.missing(
            r.pos(key),
            key,
            problem(
                "never matches: no listener requests client certificates",
                hint,
            ),
        );
    }
}

/// Rejects clients with the same name or key: they are indistinguishable.
fn reject_duplicates(r: &mut Reader, section: &str, client: &Client, earlier: &[Client]) {
    let key_of = |name: &str| format!("{section}.{name}");
    if earlier.iter().any(|other| other.name == client.name) {
        let key = key_of("name");
        r.mistake(
            r.pos(&key),
            &key,
            problem("is also the name of another client", "choose another name"),
        );
    }
    if let Some(other) = earlier.iter().find(|other| client.has_key_of(other)) {
        let problem = problem(
            format!("is also the key of {:?}", other.name),
            "give each client a key of its own",
        );
        r.mistake(r.pos_of_secret(&key_of("key")), &key_of("key"), problem);
    }
}
