//! `[[client]]`: who may call, and how each is known.

use super::{listeners::Listening, routes::path_rules};
use crate::{
    base::secret::Secret,
    config::{
        findings::{Fault, fault},
        raw::Value,
        reader::Reader,
        values,
    },
    proxy::{Client, Rules},
};

/// Shorter keys can be found by trying.
const GOOD_KEY_LENGTH: usize = 16;

/// The clients whose entries have no mistake.
pub(super) fn clients(r: &mut Reader, listening: &[Listening]) -> Vec<Client> {
    let mut clients: Vec<Client> = Vec::new();
    for section in r.tables("client") {
        let Some(client) = client(r, &section, listening) else {
            continue;
        };
        refuse_twins(r, &section, &client, &clients);
        clients.push(client);
    }
    const OPEN: &str = "proxy.allow_unauthenticated";
    if !clients.is_empty()
        && r.value_of(OPEN)
            .is_some_and(|value| values::boolean(value) == Ok(true))
    {
        let fault = fault(
            "has no effect: where there is [[client]], nobody else is served",
            "remove it",
        )
        .or_variable("unset it");
        r.warning(r.place(OPEN), OPEN, fault);
    }
    clients
}

fn client(r: &mut Reader, section: &str, listening: &[Listening]) -> Option<Client> {
    let key_of = |name: &str| format!("{section}.{name}");
    let name = r.read(&key_of("name"), |value| {
        values::text(value).map(str::to_owned)
    });
    let key = r.secret(&key_of("key"));
    let header = given(r, &key_of("header"), values::key_header);
    let basic = given(r, &key_of("basic"), values::user_name);
    let tls_subject = given(r, &key_of("tls_subject"), |value| {
        values::text(value).map(str::to_owned)
    });
    let networks_key = key_of("networks");
    let networks = if r.is_given(&networks_key) {
        r.some_of(&networks_key, values::network)
    } else {
        Vec::new()
    };
    let rules = Rules {
        allow: path_rules(r, &key_of("allow")),
        deny: path_rules(r, &key_of("deny")),
    };
    let rate = given(r, &key_of("rate"), values::rate);
    let concurrency = if r.is_given(&key_of("concurrency")) {
        r.count(&key_of("concurrency"), 1_000_000)
    } else {
        None
    };
    check_proof(r, section, key.as_ref());
    if tls_subject.is_some() {
        check_subject(r, &key_of("tls_subject"), listening);
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

/// A value that need not be there.
fn given<T>(r: &mut Reader, key: &str, parse: fn(&Value) -> Result<T, Fault>) -> Option<T> {
    if r.is_given(key) {
        r.read(key, parse)
    } else {
        None
    }
}

/// What is shown must be there, it must be told how, and something must be shown at all.
fn check_proof(r: &mut Reader, section: &str, key: Option<&Secret>) {
    let key_of = |name: &str| format!("{section}.{name}");
    let has = |r: &Reader, name: &str| r.is_given(&key_of(name));
    let has_key = r.is_secret_given(&key_of("key"));
    let (has_header, has_basic) = (has(r, "header"), has(r, "basic"));
    let secret_place = r.place_of_secret(&key_of("key"));
    if has_key && !has_header && !has_basic {
        let instead =
            r#"write header = "x-api-key", or basic = "user name" for HTTP Basic, or both"#;
        r.missing(
            secret_place.clone(),
            &key_of("key"),
            fault("is shown in no way", instead),
        );
    }
    for (name, is_given) in [("header", has_header), ("basic", has_basic)] {
        if is_given && !has_key {
            let instead = "write key_file = and a file that holds the client's key, or key = and the key itself";
            r.missing(
                r.place(&key_of(name)),
                &key_of(name),
                fault("has no key to show", instead),
            );
        }
    }
    if !has_key && !has_header && !has_basic && !has(r, "tls_subject") && !has(r, "networks") {
        let instead = "write key_file and header or basic, tls_subject, or networks";
        r.missing(
            r.place_of_section(section),
            section,
            fault("says nothing by which the client is known", instead),
        );
    }
    if has_header && key.is_some_and(|key| !key.fits_header()) {
        let fault = fault(
            "cannot stand in an HTTP header",
            "use letters, digits and punctuation without spaces",
        );
        r.mistake(secret_place.clone(), &key_of("key"), fault);
    }
    if key.is_some_and(|key| key.expose().chars().count() < GOOD_KEY_LENGTH) {
        let reason = format!(
            "is shorter than {GOOD_KEY_LENGTH} characters: whoever can connect may find it by trying"
        );
        r.warning(
            secret_place,
            &key_of("key"),
            fault(
                reason,
                "let chance choose one, as `openssl rand -hex 24` does",
            ),
        );
    }
}

/// Only where certificates are asked for can there be a name in one.
fn check_subject(r: &mut Reader, key: &str, listening: &[Listening]) {
    let asks = |one: &Listening| {
        one.listener
            .tls
            .as_ref()
            .is_some_and(|tls| tls.client_ca_file.is_some())
    };
    if !listening.is_empty() && !listening.iter().any(asks) {
        let instead =
            "write a [[listener]] with tls.cert_file, tls.key_file and tls.client_ca_file";
        r.missing(
            r.place(key),
            key,
            fault(
                "never holds: no listener asks clients for certificates",
                instead,
            ),
        );
    }
}

/// Two clients of one name or one key cannot be told apart.
fn refuse_twins(r: &mut Reader, section: &str, client: &Client, earlier: &[Client]) {
    let key_of = |name: &str| format!("{section}.{name}");
    if earlier.iter().any(|other| other.name == client.name) {
        let key = key_of("name");
        r.mistake(
            r.place(&key),
            &key,
            fault("is the name of another client", "choose another one"),
        );
    }
    let is_same = |other: &Client| {
        other
            .key
            .as_ref()
            .zip(client.key.as_ref())
            .is_some_and(|(other, own)| other.expose() == own.expose())
    };
    if let Some(other) = earlier.iter().find(|other| is_same(other)) {
        let fault = fault(
            format!("is the key of {:?} as well", other.name),
            "give each client a key of its own",
        );
        r.mistake(r.place_of_secret(&key_of("key")), &key_of("key"), fault);
    }
}
