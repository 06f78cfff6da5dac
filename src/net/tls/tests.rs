//! TLS settings from files: their effect in handshakes, and the errors of those that cannot be
//! used.

use std::fs;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, date_time_ymd, generate_simple_self_signed,
};
use rustls::{
    ClientConnection, HandshakeKind, ProtocolVersion, ServerConnection, pki_types::ServerName,
};

use super::*;
use crate::net::reload::{Reload as _, Reloadable};

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("written");
        path
    }
}

fn pair() -> (String, String) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["cloud.example.com".to_owned()]).expect("a certificate");
    (cert.pem(), signing_key.serialize_pem())
}

fn error(config: &Config) -> String {
    client_config(config, &[]).expect_err("refused").to_string()
}

#[test]
fn a_private_ca_a_client_certificate_and_alpn() {
    let files = Files::new();
    let (certificate, key) = pair();
    let config = Config {
        ca_file: Some(files.write("ca.pem", &certificate)),
        client_cert_file: Some(files.write("client.pem", &certificate)),
        client_key_file: Some(files.write("client.key", &key)),
        ..Config::default()
    };
    let client = client_config(&config, &[b"http/1.1"]).expect("usable");
    assert_eq!(client.alpn_protocols, [b"http/1.1"]);
    assert!(client.client_auth_cert_resolver.has_certs());
}

#[test]
fn every_error_names_its_file() {
    let files = Files::new();
    let (certificate, key) = pair();
    let (_, foreign_key) = pair();
    let good = files.write("good.pem", &certificate);
    let key = files.write("good.key", &key);
    let foreign_key = files.write("foreign.key", &foreign_key);
    let empty = files.write("empty.pem", "");
    let torn = files.write(
        "torn.pem",
        "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
    );
    let no_der = files.write(
        "noder.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let missing = files.folder.path().join("missing.pem");

    let ca = |path: &PathBuf| Config {
        ca_file: Some(path.clone()),
        ..Config::default()
    };
    let client = |certificate: Option<&PathBuf>, key: Option<&PathBuf>| Config {
        ca_file: Some(good.clone()),
        client_cert_file: certificate.cloned(),
        client_key_file: key.cloned(),
        ..Config::default()
    };
    for (config, file, says) in [
        (ca(&missing), &missing, "cannot be read"),
        (ca(&empty), &empty, "no certificate"),
        (ca(&torn), &torn, "not valid PEM"),
        (ca(&no_der), &no_der, "cannot be trusted"),
        (client(Some(&good), Some(&good)), &good, "no private key"),
        (
            client(Some(&good), Some(&foreign_key)),
            &foreign_key,
            "does not match the certificate",
        ),
        (client(Some(&good), None), &good, "needs both"),
        (client(None, Some(&key)), &key, "needs both"),
    ] {
        let error = error(&config);
        assert!(
            error.contains(&file.display().to_string()) && error.contains(says),
            "{error}"
        );
    }
}

#[test]
fn a_private_ca_replaces_those_of_the_system() {
    let files = Files::new();
    let (certificate, _) = pair();
    let roots = roots_of_file(&files.write("ca.pem", &certificate)).expect("usable");
    assert_eq!(roots.len(), 1);
}

/// A handshake in memory: the negotiated version, or the side that refused and its error.
fn handshake(
    client: ClientConfig,
    server: rustls::ServerConfig,
) -> Result<Option<ProtocolVersion>, String> {
    shake_hands(&Arc::new(client), Arc::new(server)).map(|server| server.protocol_version())
}

fn shake_hands(
    client: &Arc<ClientConfig>,
    server: Arc<rustls::ServerConfig>,
) -> Result<ServerConnection, String> {
    let name = ServerName::try_from("cloud.example.com").expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut server = ServerConnection::new(server).expect("a server");
    while client.is_handshaking()
        || server.is_handshaking()
        || client.wants_write()
        || server.wants_write()
    {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory");
        server.read_tls(&mut &wire[..]).expect("memory");
        server
            .process_new_packets()
            .map_err(|error| format!("server: {error}{}", client_advice(&error)))?;
        wire.clear();
        server.write_tls(&mut wire).expect("memory");
        client.read_tls(&mut &wire[..]).expect("memory");
        client
            .process_new_packets()
            .map_err(|error| format!("client: {error}"))?;
    }
    Ok(server)
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn identity(
    files: &Files,
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["cloud.example.com".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    (
        files.write(&format!("{name}.pem"), &certificate.pem()),
        files.write(&format!("{name}.key"), &key.serialize_pem()),
    )
}

#[test]
fn a_server_presents_its_certificate_and_requests_one_only_if_configured() {
    let files = Files::new();
    let (ours, other) = (authority(), authority());
    let (ca, other_ca) = (
        files.write("ca.pem", &ours.pem()),
        files.write("other.pem", &other.pem()),
    );
    let (cert_file, key_file) = identity(&files, &ours, "server");
    let shown = identity(&files, &ours, "client");
    let open = ServerConfig {
        cert_file,
        key_file,
        client_ca_file: None,
        min_version: MinVersion::default(),
    };
    let closed = |ca: &PathBuf| ServerConfig {
        client_ca_file: Some(ca.clone()),
        ..open.clone()
    };
    let try_with = |server: &ServerConfig, shown: Option<&(PathBuf, PathBuf)>| {
        let client = Config {
            ca_file: Some(ca.clone()),
            client_cert_file: shown.map(|(certificate, _)| certificate.clone()),
            client_key_file: shown.map(|(_, key)| key.clone()),
            ..Config::default()
        };
        handshake(
            client_config(&client, &[]).expect("a client"),
            server_config(server, &[b"h2"]).expect("a server"),
        )
    };
    let tls13 = Ok(Some(ProtocolVersion::TLSv1_3));
    assert_eq!(try_with(&open, None), tls13);
    assert_eq!(try_with(&open, Some(&shown)), tls13);
    assert_eq!(try_with(&closed(&ca), Some(&shown)), tls13);
    let without = try_with(&closed(&ca), None).expect_err("no certificate was shown");
    assert!(
        without.starts_with("server: ") && without.contains("no certificates"),
        "{without}"
    );
    let unknown = try_with(&closed(&other_ca), Some(&shown)).expect_err("the wrong authority");
    assert!(
        unknown.starts_with("server: ") && unknown.contains("certificate"),
        "{unknown}"
    );
    assert_eq!(
        server_config(&open, &[b"h2"])
            .expect("a server")
            .alpn_protocols,
        [b"h2"]
    );
}

#[test]
fn the_error_about_a_refused_client_contains_advice() {
    let files = Files::new();
    let ours = authority();
    let (cert_file, key_file) = identity(&files, &ours, "server");
    let client_ca_file = Some(files.write("apps.pem", &ours.pem()));
    let server = ServerConfig {
        cert_file,
        key_file,
        client_ca_file,
        min_version: MinVersion::default(),
    };
    let error_of = |shown: Option<(String, String)>| {
        let (certificate, key) = shown.unzip();
        let client = Config {
            ca_file: server.client_ca_file.clone(),
            client_cert_file: certificate.map(|pem| files.write("client.pem", &pem)),
            client_key_file: key.map(|pem| files.write("client.key", &pem)),
            ..Config::default()
        };
        let client = client_config(&client, &[]).expect("a client");
        handshake(client, server_config(&server, &[]).expect("a server")).expect_err("refused")
    };
    let issued = |by: &CertifiedIssuer<'static, KeyPair>, change: fn(&mut CertificateParams)| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["app".to_owned()]).expect("parameters");
        change(&mut params);
        Some((
            params.signed_by(&key, by).expect("a certificate").pem(),
            key.serialize_pem(),
        ))
    };
    for (shown, advice) in [
        (None, "configure one and its key in the client"),
        (
            issued(&authority(), |_| {}),
            "not issued by an authority in tls.client_ca_file",
        ),
        (
            issued(&ours, |app| app.not_after = date_time_ymd(2021, 1, 1)),
            "needs a new certificate",
        ),
        (
            issued(&ours, |app| app.not_before = date_time_ymd(4000, 1, 1)),
            "clock may be wrong",
        ),
        (
            issued(&ours, |app| {
                app.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            "clientAuth",
        ),
        (
            issued(&ours, |app| {
                app.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            "presents the certificate of an authority",
        ),
    ] {
        let error = error_of(shown);
        assert!(
            error.starts_with("server: ") && error.contains(advice),
            "{advice}: {error}"
        );
    }
}

#[test]
fn every_error_of_a_server_names_its_file() {
    let files = Files::new();
    let (certificate, key) = pair();
    let cert_file = files.write("server.pem", &certificate);
    let key_file = files.write("server.key", &key);
    let foreign_key = files.write("foreign.key", &pair().1);
    let no_der = files.write(
        "noder.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let missing = files.folder.path().join("missing.pem");
    let good = ServerConfig {
        cert_file: cert_file.clone(),
        key_file,
        client_ca_file: None,
        min_version: MinVersion::default(),
    };
    let ca = |path: &PathBuf| ServerConfig {
        client_ca_file: Some(path.clone()),
        ..good.clone()
    };
    for (config, file, says) in [
        (
            ServerConfig {
                cert_file: missing.clone(),
                ..good.clone()
            },
            &missing,
            "cannot be read",
        ),
        (
            ServerConfig {
                key_file: missing.clone(),
                ..good.clone()
            },
            &missing,
            "cannot be read",
        ),
        (
            ServerConfig {
                key_file: cert_file.clone(),
                ..good.clone()
            },
            &cert_file,
            "no private key",
        ),
        (
            ServerConfig {
                key_file: foreign_key.clone(),
                ..good.clone()
            },
            &foreign_key,
            "does not match the certificate",
        ),
        (ca(&missing), &missing, "cannot be read"),
        (ca(&good.key_file), &good.key_file, "no certificate"),
        (ca(&no_der), &no_der, "cannot be trusted"),
    ] {
        let error = server_config(&config, &[])
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains(&file.display().to_string()) && error.contains(says),
            "{error}"
        );
    }
}

/// The reloadable TLS settings of a listener, and those of a client that it accepts.
fn reloadable(
    files: &Files,
    authority: &CertifiedIssuer<'static, KeyPair>,
) -> (Reloadable<rustls::ServerConfig>, Config) {
    let ca = files.write("ca.pem", &authority.pem());
    let (cert_file, key_file) = identity(files, authority, "server");
    let client_ca_file = Some(files.write("apps.pem", &authority.pem()));
    let config = ServerConfig {
        cert_file,
        key_file,
        client_ca_file,
        min_version: MinVersion::Tls12,
    };
    let shown = identity(files, authority, "client");
    let client = Config {
        ca_file: Some(ca),
        client_cert_file: Some(shown.0),
        client_key_file: Some(shown.1),
        ..Config::default()
    };
    let made_of = config.files().collect::<Vec<_>>();
    let certificate = Some(config.cert_file.clone());
    let current = Reloadable::new("listener:x".to_owned(), made_of, certificate, move || {
        server_config(&config, &[])
    });
    (current.expect("usable"), client)
}

#[test]
fn a_half_changed_pair_is_not_used() {
    let files = Files::new();
    let authority = authority();
    let (current, _) = reloadable(&files, &authority);
    let before = current.load();
    assert_eq!(current.reload(), Ok(false), "nothing has changed");
    let fresh = identity(&files, &authority, "fresh");
    fs::copy(&fresh.0, files.folder.path().join("server.pem")).expect("copied");
    let error = current.reload().expect_err("the key is still the old one");
    assert!(
        error.contains("server.pem") && error.contains("server.key") && error.contains("not match"),
        "{error}"
    );
    fs::write(files.folder.path().join("server.key"), "-----BEGIN PRIV").expect("written");
    let error = current.reload().expect_err("half a key");
    assert!(error.contains("server.key"), "{error}");
    fs::remove_file(files.folder.path().join("server.key")).expect("removed");
    let error = current.reload().expect_err("no key");
    assert!(
        error.contains("server.key") && error.contains("cannot be read"),
        "{error}"
    );
    assert!(Arc::ptr_eq(&before, &current.load()));
    fs::copy(&fresh.1, files.folder.path().join("server.key")).expect("copied");
    assert_eq!(current.reload(), Ok(true));
    assert!(!Arc::ptr_eq(&before, &current.load()));
    assert_eq!(current.reload(), Ok(false));
}

#[test]
fn sessions_are_resumed_only_without_client_certificates() {
    let files = Files::new();
    let authority = authority();
    let (closed, client) = reloadable(&files, &authority);
    let (cert_file, key_file) = identity(&files, &authority, "server");
    let open = ServerConfig {
        cert_file,
        key_file,
        client_ca_file: None,
        min_version: MinVersion::Tls12,
    };
    let open = Arc::new(server_config(&open, &[]).expect("usable"));
    for versions in [&[&TLS13] as &[_], &[&TLS12]] {
        for (server, again) in [
            (&open, HandshakeKind::Resumed),
            (&closed.load(), HandshakeKind::Full),
        ] {
            let shown = client_config(&client, &[])
                .expect("a client")
                .client_auth_cert_resolver;
            let client = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(versions)
                .expect("a version")
                .with_root_certificates(
                    roots_of_file(&files.folder.path().join("ca.pem")).expect("roots"),
                )
                .with_client_cert_resolver(shown);
            let client = Arc::new(client);
            let kind =
                || shake_hands(&client, Arc::clone(server)).map(|server| server.handshake_kind());
            assert_eq!(kind(), Ok(Some(HandshakeKind::Full)));
            assert_eq!(kind(), Ok(Some(again)));
        }
    }
}

#[test]
fn min_version_holds_for_both_sides() {
    let files = Files::new();
    let authority = authority();
    let (cert_file, key_file) = identity(&files, &authority, "server");
    let ca_file = Some(files.write("ca.pem", &authority.pem()));
    let old_client = || {
        let builder =
            ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS12]);
        let roots = roots_of_file(&files.folder.path().join("ca.pem")).expect("roots");
        builder
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth()
    };
    let old_server = || {
        let builder = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS12]);
        let (chain, key) = (
            certificates(&cert_file).expect("a chain"),
            private_key(&key_file).expect("a key"),
        );
        builder
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a server")
    };
    let tls12 = Ok(Some(ProtocolVersion::TLSv1_2));
    for (min_version, is_refused) in [(MinVersion::Tls12, false), (MinVersion::Tls13, true)] {
        let config = Config {
            ca_file: ca_file.clone(),
            min_version,
            ..Config::default()
        };
        let ours = client_config(&config, &[]).expect("a client");
        let version = handshake(ours, old_server());
        assert_eq!(version.is_err(), is_refused, "{version:?}");
        assert!(is_refused || version == tls12, "{version:?}");

        let (cert_file, key_file) = (cert_file.clone(), key_file.clone());
        let config = ServerConfig {
            cert_file,
            key_file,
            client_ca_file: None,
            min_version,
        };
        let ours = server_config(&config, &[]).expect("a server");
        let version = handshake(old_client(), ours);
        assert_eq!(
            version
                .as_ref()
                .is_err_and(|error| error.contains("see tls.min_version")),
            is_refused,
            "{version:?}"
        );
        assert!(is_refused || version == tls12, "{version:?}");
    }
}
