//! Certificates that are replaced while the proxy runs: those of listeners, and those towards the cloud and its issuer.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bearer_proxy::{
    base::clock,
    config::{self, Source},
    token::FailureClass,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{
    self, eventually, issuer, metric, proxy,
    tls::{
        Authority, Pair, authority, client_config, cloud_named, identity, identity_for,
        identity_until, with_tls, write,
    },
};

/// Sends a request over TLS and reads to the end, by which time a ticket to resume the session has arrived. Returns the
/// listener's certificate.
async fn asks(
    address: SocketAddr,
    config: &Arc<rustls::ClientConfig>,
) -> std::io::Result<CertificateDer<'static>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    let mut stream = connector
        .connect("localhost".try_into().unwrap(), stream)
        .await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    let connection = stream.get_ref().1;
    Ok(connection.peer_certificates().unwrap()[0].clone())
}

/// The day on which a certificate expires by the metrics, counted from 1970.
async fn ends(admin: SocketAddr, what: &str) -> Option<u64> {
    let name = format!("bearer_proxy_certificate_expiry_timestamp_seconds{{use=\"{what}\"}}");
    let value = metric(admin, &name).await;
    (value > 0.0).then_some(value as u64 / (24 * 3600))
}

fn der(pair: &Pair) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_presented_without_a_restart_and_its_expiry_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let cloud = common::cloud().await;
    let proxy = with_tls(folder.path(), &authority, &cloud).await;
    let (address, admin) = (proxy.address, proxy.admin);
    let clients = Arc::new(client_config(
        &authority,
        Some(identity(&authority, "app", false)),
    ));
    let first = asks(address, &clients).await.unwrap();
    let what = format!("listener:{address}");
    assert!(
        ends(admin, &what).await.is_some_and(|day| day > 100_000),
        "rcgen's default does not expire late"
    );

    let second = identity_until(&authority, "localhost", (2080, 1, 1));
    assert_ne!(first, der(&second));
    write(folder.path(), "proxy.pem", &second.0);
    proxy.app.reload_files();
    // Half of the new pair is not presented, whether it was read already or not.
    assert_eq!(asks(address, &clients).await.unwrap(), first);
    write(folder.path(), "proxy.key", &second.1);
    eventually("the new one is presented", async || {
        asks(address, &clients).await.unwrap() == der(&second)
    })
    .await;
    assert_eq!(ends(admin, &what).await, Some(40_177));

    // Another way to renew: both files at once, by rename.
    let third = identity_until(&authority, "localhost", (2070, 1, 1));
    for (name, text) in [("proxy.key", &third.1), ("proxy.pem", &third.0)] {
        let new = write(folder.path(), &format!("{name}.new"), text);
        std::fs::rename(new, folder.path().join(name)).unwrap();
    }
    eventually("the third one is presented", async || {
        asks(address, &clients).await.unwrap() == der(&third)
    })
    .await;
    proxy.app.shut_down().await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_certificates_that_kubernetes_swaps_is_noticed() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let pairs = [
        identity(&authority, "localhost", false),
        identity(&authority, "localhost", false),
    ];
    for (version, pair) in ["..1", "..2"].iter().zip(&pairs) {
        let inner = folder.path().join(version);
        std::fs::create_dir(&inner).unwrap();
        write(&inner, "proxy.pem", &pair.0);
        write(&inner, "proxy.key", &pair.1);
    }
    symlink("..1", folder.path().join("..data")).unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["proxy.pem", "proxy.key"] {
        symlink(Path::new("..data").join(name), at(name)).unwrap();
    }
    let (cert, key) = (at("proxy.pem"), at("proxy.key"));
    let proxy = proxy(
        &common::cloud().await,
        &[
            ("listener[0].address", "127.0.0.1:0"),
            ("listener[0].tls.cert_file", cert.to_str().unwrap()),
            ("listener[0].tls.key_file", key.to_str().unwrap()),
        ],
    );
    proxy.ready().await;
    let clients = Arc::new(client_config(&authority, None));
    assert_eq!(asks(proxy.address, &clients).await.unwrap(), der(&pairs[0]));
    symlink("..2", at("..tmp")).unwrap();
    std::fs::rename(at("..tmp"), at("..data")).unwrap();
    let new = der(&pairs[1]);
    eventually("the new one", async || {
        asks(proxy.address, &clients).await.unwrap() == new
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_replaced_authority_are_refused_though_they_could_resume_a_session() {
    let folder = tempfile::tempdir().unwrap();
    let (former, new) = (authority(), authority());
    let cloud = common::cloud().await;
    let proxy = with_tls(folder.path(), &former, &cloud).await;
    let address = proxy.address;
    let old_client = Arc::new(client_config(
        &former,
        Some(identity(&former, "app", false)),
    ));
    asks(address, &old_client).await.unwrap();
    write(folder.path(), "ca.pem", &new.pem());
    let new_client = Arc::new(client_config(&former, Some(identity(&new, "app", false))));
    eventually("the new authority counts", async || {
        asks(address, &new_client).await.is_ok()
    })
    .await;
    assert!(asks(address, &old_client).await.is_err());
    proxy.app.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_certificate_expired_is_refused_though_it_could_resume_a_session() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let cloud = common::cloud().await;
    let proxy = with_tls(folder.path(), &authority, &cloud).await;
    let address = proxy.address;
    let client = Arc::new(client_config(
        &authority,
        Some(identity_for(&authority, "app", Duration::from_secs(5))),
    ));
    asks(address, &client).await.unwrap();
    eventually("it is refused", async || {
        asks(address, &client).await.is_err()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_towards_the_cloud_and_its_issuer_are_replaced_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (authority(), authority());
    let cloud = cloud_named(&right, "localhost", true).await;
    let origin = cloud.origin();
    let put = |authority: &Authority, until| {
        let (chain, key) = identity_until(authority, "client", until);
        let files = [
            ("ca.pem", authority.pem()),
            ("client.pem", chain),
            ("client.key", key),
        ];
        files.map(|(name, text)| {
            write(folder.path(), name, &text)
                .to_str()
                .unwrap()
                .to_owned()
        })
    };
    let [ca, chain, key] = put(&wrong, (2080, 1, 1));
    let given = [
        ("upstream.tls.ca_file", ca.as_str()),
        ("upstream.tls.client_cert_file", &chain),
        ("upstream.tls.client_key_file", &key),
        ("token.wait", "10ms"),
    ];
    let plain_issuer = issuer().await;
    let beside = proxy(
        &origin,
        &[
            given[0],
            given[1],
            given[2],
            ("token.issuer", &plain_issuer),
        ],
    );
    let proxy = proxy(&origin, &given);
    beside.ready().await;
    assert_eq!(beside.get("/").await.status(), 502);
    assert_eq!(proxy.get("/").await.status(), 503);
    for what in ["upstream:default:client", "issuer:client"] {
        assert_eq!(ends(proxy.admin, what).await, Some(40_177), "{what}");
    }
    assert_eq!(ends(beside.admin, "issuer:client").await, None, "in clear");
    put(&right, (2070, 1, 1));
    eventually("the cloud is reached", async || {
        beside.get("/").await.status() == 200
    })
    .await;
    eventually("the issuer is reached as well", async || {
        proxy.get("/").await.status() == 200
    })
    .await;
    for what in ["upstream:default:client", "issuer:client"] {
        assert_eq!(ends(proxy.admin, what).await, Some(36_525), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_jwt_grant_uses_new_certificates_too() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (authority(), authority());
    let cloud = cloud_named(&right, "localhost", false).await;
    let ca = write(folder.path(), "ca.pem", &wrong.pem());
    let origin = cloud.origin();
    let overrides = [
        ("proxy.listen", "127.0.0.1:0"),
        ("upstream.endpoints", &origin),
        ("upstream.tls.ca_file", ca.to_str().unwrap()),
        ("token.client_id", "demo"),
        ("token.client_secret", "secret"),
        ("token.jwt.key", "key"),
    ];
    let overrides = overrides
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let config = config::load(Source {
        file: None,
        env: Vec::new(),
        overrides,
    })
    .unwrap()
    .config;
    let tokens = config
        .initial_grant
        .build(&config.token.issuer, clock::system())
        .unwrap()
        .unwrap();
    assert_eq!(
        tokens.request_tokens().await.unwrap_err().class,
        FailureClass::Unreachable
    );
    assert!(cloud.is_untouched());
    write(folder.path(), "ca.pem", &right.pem());
    assert_eq!(
        tokens.request_tokens().await.unwrap().access_token.expose(),
        "token"
    );
}
