//! Certificates change while the proxy runs: those of listeners, and those towards the cloud and its issuer.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bearer_proxy::{
    base::clock,
    config::{self, Source},
    token::FailureClass,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{
    eventually, issuer, proxy, text_at,
    tls::{
        Authority, Pair, authority, client_config, cloud, identity, identity_for, identity_until,
        server_config, with_tls, write,
    },
};

/// Asks for something over TLS and reads to the end, by which time a session to resume has arrived if there is one. Returns
/// the listener's certificate.
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
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let connection = stream.get_ref().1;
    Ok(connection.peer_certificates().unwrap()[0].clone())
}

/// A metric's value of a certificate's end, in days since 1970.
async fn ends(admin: SocketAddr, what: &str) -> Option<u64> {
    let text = text_at(admin, "/metrics").await;
    let name = format!("bearer_proxy_certificate_expiry_timestamp_seconds{{use=\"{what}\"}} ");
    let value: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix(&name))?
        .parse()
        .unwrap();
    Some(value as u64 / (24 * 3600))
}

fn der(pair: &Pair) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_shown_without_a_restart_and_its_end_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let cloud = crate::common::cloud().await;
    let (app, address, admin) = with_tls(folder.path(), &authority, &cloud).await;
    let apps = Arc::new(client_config(
        &authority,
        Some(identity(&authority, "app", false)),
    ));
    let first = asks(address, &apps).await.unwrap();
    let what = format!("listener:{address}");
    assert!(
        ends(admin, &what).await.is_some_and(|day| day > 100_000),
        "rcgen's own is good for long"
    );

    let second = identity_until(&authority, "localhost", (2080, 1, 1));
    assert_ne!(first, der(&second));
    write(folder.path(), "proxy.pem", &second.0);
    app.reload_files();
    // Whether the half was looked at already or not, it is not shown.
    assert_eq!(asks(address, &apps).await.unwrap(), first);
    write(folder.path(), "proxy.key", &second.1);
    eventually("the new one is shown", async || {
        asks(address, &apps).await.unwrap() == der(&second)
    })
    .await;
    assert_eq!(ends(admin, &what).await, Some(40_177));

    // As another program renews: both at once, by new names for old ones.
    let third = identity_until(&authority, "localhost", (2070, 1, 1));
    for (name, text) in [("proxy.key", &third.1), ("proxy.pem", &third.0)] {
        let new = write(folder.path(), &format!("{name}.new"), text);
        std::fs::rename(new, folder.path().join(name)).unwrap();
    }
    eventually("the third one is shown", async || {
        asks(address, &apps).await.unwrap() == der(&third)
    })
    .await;
    app.shut_down().await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_folder_of_certificates_is_noticed_as_kubernetes_makes_them() {
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
        &crate::common::cloud().await,
        &[
            ("listener[0].address", "127.0.0.1:0"),
            ("listener[0].tls.cert_file", cert.to_str().unwrap()),
            ("listener[0].tls.key_file", key.to_str().unwrap()),
        ],
    );
    proxy.ready().await;
    let apps = Arc::new(client_config(&authority, None));
    assert_eq!(asks(proxy.address, &apps).await.unwrap(), der(&pairs[0]));
    symlink("..2", at("..tmp")).unwrap();
    std::fs::rename(at("..tmp"), at("..data")).unwrap();
    let new = der(&pairs[1]);
    eventually("the new one", async || {
        asks(proxy.address, &apps).await.unwrap() == new
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apps_of_a_former_authority_are_out_though_they_were_in_before() {
    let folder = tempfile::tempdir().unwrap();
    let (former, new) = (authority(), authority());
    let cloud = crate::common::cloud().await;
    let (app, address, _) = with_tls(folder.path(), &former, &cloud).await;
    let old_app = Arc::new(client_config(
        &former,
        Some(identity(&former, "app", false)),
    ));
    asks(address, &old_app).await.unwrap();
    write(folder.path(), "ca.pem", &new.pem());
    let new_app = Arc::new(client_config(&former, Some(identity(&new, "app", false))));
    eventually("the new authority counts", async || {
        asks(address, &new_app).await.is_ok()
    })
    .await;
    assert!(asks(address, &old_app).await.is_err());
    app.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_whose_certificate_expires_is_out_though_it_was_in_before() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let (_app, address, _) =
        with_tls(folder.path(), &authority, &crate::common::cloud().await).await;
    let app = Arc::new(client_config(
        &authority,
        Some(identity_for(&authority, "app", Duration::from_secs(5))),
    ));
    asks(address, &app).await.unwrap();
    eventually("it is refused", async || asks(address, &app).await.is_err()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_towards_the_cloud_and_its_issuer_change_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (authority(), authority());
    let (address, _) = cloud(server_config(
        &right,
        identity(&right, "localhost", false),
        true,
    ))
    .await;
    let origin = format!("https://localhost:{}", address.port());
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
async fn first_tokens_without_a_person_follow_new_certificates_too() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (authority(), authority());
    let (address, told) = cloud(server_config(
        &right,
        identity(&right, "localhost", false),
        false,
    ))
    .await;
    let ca = write(folder.path(), "ca.pem", &wrong.pem());
    let origin = format!("https://localhost:{}", address.port());
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
    assert_eq!(told.load(SeqCst), 0);
    write(folder.path(), "ca.pem", &right.pem());
    assert_eq!(
        tokens.request_tokens().await.unwrap().access_token.expose(),
        "token"
    );
}
