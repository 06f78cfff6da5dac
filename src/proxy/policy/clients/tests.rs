use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::*;
use crate::{base::clock::Simulated, net::reload};

fn client(name: &str) -> Client {
    Client {
        name: name.to_owned(),
        key: None,
        header: None,
        basic: None,
        tls_subject: None,
        networks: Vec::new(),
        rules: Rules::default(),
        rate: None,
        concurrency: None,
    }
}

fn by_header(name: &str, header: &'static str, key: &str) -> Client {
    Client {
        key: Some(Secret::new(key)),
        header: Some(HeaderName::from_static(header)),
        ..client(name)
    }
}

fn all(clients: &[Client]) -> Arc<Clients> {
    let clock: SharedClock = Arc::new(Simulated::new());
    Arc::new(Clients::new(clients, &clock).unwrap())
}

fn credentials(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

/// The client's name, or the status of the error response.
fn who(
    clients: &Clients,
    identity: &ConnectionIdentity,
    fields: &[(&'static str, &str)],
) -> String {
    match clients.authenticate(identity, &credentials(fields)) {
        Ok(client_id) => clients.name(client_id).to_owned(),
        Err(error) => error.status().as_u16().to_string(),
    }
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[test]
fn a_key_is_accepted_in_the_schemes_of_its_client_alone() {
    let clients = all(&[
        by_header("a", "x-api-key", "key-a"),
        Client {
            basic: Some("b".to_owned()),
            ..by_header("b", "x-api-key", "key:b")
        },
        Client {
            header: None,
            basic: Some("c c".to_owned()),
            ..by_header("c", "x-api-key", "key-c")
        },
        by_header("d", "authorization", "key-d"),
        by_header("e", "x-other", "key-e"),
    ]);
    let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
    let (b, c, wrong_user) = (basic("b:key:b"), basic("c c:key-c"), basic("a:key-a"));
    let lower = b.replace("Basic", "basic");
    for (fields, expected) in [
        (&[("x-api-key", "key-a")][..], "a"),
        (&[("x-api-key", "key:b")], "b"),
        (&[("authorization", &b)], "b"),
        (&[("authorization", &lower)], "b"),
        (&[("authorization", &c)], "c"),
        (&[("authorization", "Bearer key-d")], "d"),
        (&[("authorization", "bearer  key-d ")], "d"),
        (&[("x-other", "key-e")], "e"),
        // The first client in the configuration, in any order of the fields.
        (&[("x-other", "key-e"), ("x-api-key", "key-a")], "a"),
        // A wrong key beside a valid one is ignored.
        (&[("x-other", "key-e"), ("x-api-key", "wrong")], "e"),
        (&[], "401"),
        (&[("x-api-key", "")], "401"),
        (&[("x-api-key", "key-")], "401"),
        (&[("x-api-key", "key-ab")], "401"),
        (&[("x-api-key", "KEY-A")], "401"),
        (&[("x-api-key", "key-c")], "401"),
        (&[("x-api-key", "key-e")], "401"),
        (&[("x-api-key", "key-a"), ("x-api-key", "key-a")], "401"),
        (&[("authorization", &wrong_user)], "401"),
        (&[("authorization", "key-d")], "401"),
        (&[("authorization", "Bearerkey-d")], "401"),
        (&[("authorization", "Basic key-d")], "401"),
        (&[("authorization", "Basic")], "401"),
    ] {
        let identity = clients.identity(None, &CertificateNames::default());
        assert_eq!(who(&clients, &identity, fields), expected, "{fields:?}");
    }
}

#[test]
fn cached_credentials_admit_no_others() {
    let clients = all(&[
        by_header("a", "x-api-key", "key-a"),
        by_header("b", "x-other", "key-b"),
    ]);
    let identity = clients.identity(None, &CertificateNames::default());
    for (fields, expected) in [
        (&[("x-api-key", "key-a")][..], "a"),
        (&[("x-api-key", "key-a")], "a"),
        (&[("x-api-key", "key-b")], "401"),
        (&[], "401"),
        (&[("x-other", "key-a")], "401"),
        (&[("x-other", "key-b")], "b"),
        (&[("x-api-key", "key-a")], "a"),
    ] {
        assert_eq!(who(&clients, &identity, fields), expected, "{fields:?}");
    }
}

#[test]
fn keys_are_reloaded_and_invalid_files_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let write = |key: &str| std::fs::write(&file, key).unwrap();
    write("first\n");
    let key = Secret::from_file(file.clone()).unwrap();
    let clients = all(&[
        by_header("a", "x-api-key", "key-a"),
        Client {
            key: Some(key),
            ..by_header("b", "x-api-key", "")
        },
    ]);
    let identity = clients.identity(None, &CertificateNames::default());
    let client_of = |key: &str| who(&clients, &identity, &[("x-api-key", key)]);
    assert_eq!(client_of("first"), "b");
    for (content, is_loaded) in [
        ("", false),
        ("two words", false),
        ("two\nlines", false),
        ("key-a", false),
        ("second", true),
    ] {
        write(content);
        assert_eq!(client_of("first"), "b", "the file is not reloaded yet");
        assert_eq!(
            reload::Reload::reload(&*clients.keys()).unwrap_or_default(),
            is_loaded,
            "{content:?}"
        );
    }
    // The reload invalidates the cached credentials of this connection.
    assert_eq!(
        [client_of("first"), client_of("second"), client_of("key-a")],
        ["401", "b", "a"]
    );
    std::fs::remove_file(&file).unwrap();
    let error = reload::Reload::reload(&*clients.keys()).unwrap_err();
    assert!(
        error.contains("key") && client_of("second") == "b",
        "{error}"
    );
}

#[test]
fn networks_and_certificate_names_are_required_beside_the_key() {
    let networks = |networks: &[&str]| {
        networks
            .iter()
            .map(|network| network.parse().unwrap())
            .collect()
    };
    let clients = all(&[
        Client {
            networks: networks(&["192.0.2.0/24", "2001:db8::/32"]),
            ..by_header("office", "x-api-key", "key")
        },
        Client {
            tls_subject: Some("Backup".to_owned()),
            networks: networks(&["198.51.100.7/32"]),
            ..client("backup")
        },
    ]);
    let key = [("x-api-key", "key")];
    let no_names = CertificateNames::default();
    for (from, expected, without_key) in [
        (address("192.0.2.77"), "office", "401"),
        (address("::ffff:192.0.2.77"), "office", "401"),
        (address("2001:db8:1::1"), "office", "401"),
        // No key is accepted.
        (address("203.0.113.1"), "403", "403"),
        (address("198.51.100.7"), "403", "403"),
        (None, "403", "403"),
    ] {
        let identity = clients.identity(from, &no_names);
        assert_eq!(who(&clients, &identity, &key), expected, "{from:?}");
        assert_eq!(who(&clients, &identity, &[]), without_key, "{from:?}");
    }
}

#[test]
fn a_401_has_a_challenge_for_each_scheme() {
    let clients = all(&[
        Client {
            basic: Some("b".to_owned()),
            ..by_header("a", "x-api-key", "key-a")
        },
        by_header("d", "authorization", "d"),
    ]);
    let identity = clients.identity(None, &CertificateNames::default());
    let response = clients
        .authenticate(&identity, &HeaderMap::new())
        .unwrap_err()
        .to_response();
    let challenges: Vec<_> = response
        .headers()
        .get_all("www-authenticate")
        .iter()
        .collect();
    assert_eq!(
        challenges,
        [
            r#"Basic realm="bearer-proxy", charset="UTF-8""#,
            r#"ApiKey realm="bearer-proxy", header="x-api-key""#,
            r#"Bearer realm="bearer-proxy""#
        ]
    );
}

#[test]
fn debug_output_contains_no_key() {
    let clients = [by_header("a", "x-api-key", "k3y-of-a")];
    let known = all(&clients);
    let identity = known.identity(None, &CertificateNames::default());
    assert_eq!(who(&known, &identity, &[("x-api-key", "k3y-of-a")]), "a");
    let printed = format!("{clients:?} {known:?} {identity:?}");
    let digest = format!("{:?}", digest(&SHA256, b"k3y-of-a").as_ref());
    assert!(
        !printed.contains("k3y-of-a") && !printed.contains(digest.trim_matches(['[', ']'])),
        "{printed}"
    );
}

#[test]
fn a_rate_refills_and_retry_after_says_when() {
    let clock = Arc::new(Simulated::new());
    let rate = Rate {
        requests: NonZeroU32::new(3).unwrap(),
        per: Duration::from_secs(60),
    };
    let shared: SharedClock = Arc::clone(&clock) as SharedClock;
    let clients = Arc::new(
        Clients::new(
            &[
                Client {
                    rate: Some(rate),
                    ..client("a")
                },
                client("b"),
            ],
            &shared,
        )
        .unwrap(),
    );
    let [a, b] = [0, 1].map(|client| ClientId {
        client,
        scheme: None,
        by_password: false,
    });
    let retry_after = |error: &Error| {
        error.to_response().headers()["retry-after"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    for _ in 0..3 {
        assert!(clients.admit(a).is_ok());
    }
    let error = clients.admit(a).unwrap_err();
    assert_eq!(
        (error.status().as_u16(), retry_after(&error)),
        (429, "20".to_owned())
    );
    assert!(clients.admit(b).is_ok());
    clock.suspend(Duration::from_millis(19_500));
    assert_eq!(retry_after(&clients.admit(a).unwrap_err()), "1");
    clock.suspend(Duration::from_millis(500));
    assert!(clients.admit(a).is_ok() && clients.admit(a).is_err());
}

#[test]
fn permits_are_released() {
    let clients = all(&[Client {
        concurrency: Some(2),
        ..client("a")
    }]);
    let a = ClientId {
        client: 0,
        scheme: None,
        by_password: false,
    };
    let (first, second) = (clients.admit(a).unwrap(), clients.admit(a).unwrap());
    for _ in 0..3 {
        let error = clients.admit(a).unwrap_err();
        assert_eq!(
            (
                error.reason().label(),
                &error.to_response().headers()["retry-after"]
            ),
            ("concurrency", &HeaderValue::from_static("1"))
        );
    }
    drop(first);
    let third = clients.admit(a).unwrap();
    assert!(clients.admit(a).is_err());
    drop((second, third));
    assert!(clients.admit(a).is_ok());
}
