//! `https` towards the cloud and the issuer: who is trusted, and that nothing is said to anybody else.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering::SeqCst};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::common::{
    eventually, get, issuer, post, proxy, read_head_granting, send, text_at,
    tls::{
        Authority, Pair, authority, client_config, cloud, identity, self_signed, server_config,
        with_tls, with_tls_and, write,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_authority_is_one_key_away_for_the_cloud_and_its_issuer() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let (address, _) = cloud(server_config(
        &authority,
        identity(&authority, "localhost", false),
        false,
    ))
    .await;
    let ca = write(folder.path(), "ca.pem", &authority.pem());
    let origin = format!("https://localhost:{}", address.port());
    let proxy = proxy(&origin, &[("upstream.tls.ca_file", ca.to_str().unwrap())]);
    proxy.ready().await;
    for _ in 0..3 {
        let answer = proxy.send(post("/", vec![b'x'; 100_000])).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.body()[..]),
            (200, &b"1"[..])
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_24_whoever_cannot_prove_the_name_is_told_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (trusted, other) = (authority(), authority());
    let ca = write(folder.path(), "ca.pem", &trusted.pem());
    let plain_issuer = issuer().await;
    for (shown, what, says) in [
        (
            identity(&trusted, "other.example.com", false),
            "a wrong name",
            "tls.server_name",
        ),
        (
            identity(&trusted, "localhost", true),
            "an expired certificate",
            "a new certificate",
        ),
        (
            identity(&other, "localhost", false),
            "an unknown authority",
            "tls.ca_file",
        ),
        (
            self_signed("localhost"),
            "a self-signed certificate",
            "tls.ca_file",
        ),
        (
            (other.pem(), other.key().serialize_pem()),
            "an unknown authority's own",
            "tls.ca_file",
        ),
        (
            (trusted.pem(), trusted.key().serialize_pem()),
            "an authority's own",
            "issue another one",
        ),
    ] {
        let (address, told) = cloud(server_config(&trusted, shown, false)).await;
        let origin = format!("https://localhost:{}", address.port());
        let given = [
            ("upstream.tls.ca_file", ca.to_str().unwrap()),
            ("token.issuer", &plain_issuer),
        ];
        let upstream = proxy(&origin, &given);
        upstream.ready().await;
        let answer = upstream.get("/").await;
        assert_eq!(answer.status(), 502, "{what}");
        assert_eq!(
            answer.headers()["proxy-status"],
            "bearer-proxy; error=tls_certificate_error",
            "{what}"
        );
        let detail = String::from_utf8_lossy(answer.body());
        assert!(
            detail.contains(&origin) && detail.contains(says),
            "{what}: {detail}"
        );
        // The same for the issuer: it gets no secret.
        let issuer = proxy(
            &origin,
            &[
                ("upstream.tls.ca_file", ca.to_str().unwrap()),
                ("token.wait", "10ms"),
            ],
        );
        let mut problem = serde_json::Value::Null;
        eventually("the issuer was tried", async || {
            let status = send(issuer.admin, get("/status")).await.into_body();
            let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
            problem = status["credentials"][0]["problem"].clone();
            problem.is_string()
        })
        .await;
        let problem = problem.as_str().unwrap();
        assert!(
            problem.contains("the issuer") && problem.contains(says),
            "{what}: {problem}"
        );
        assert_eq!(issuer.get("/").await.status(), 503, "{what}");
        assert_eq!(told.load(SeqCst), 0, "{what}: something was said");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_to_verify_and_the_address_to_dial_can_be_set_apart() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let (address, _) = cloud(server_config(
        &authority,
        identity(&authority, "cloud.example.com", false),
        false,
    ))
    .await;
    let ca = write(folder.path(), "ca.pem", &authority.pem());
    let (ca, dial, issuer) = (ca.to_str().unwrap(), address.to_string(), issuer().await);
    let by_address = [
        ("upstream.tls.ca_file", ca),
        ("upstream.connect_to", &dial),
        ("token.issuer", &issuer),
    ];
    let proxy_by_address = proxy("https://cloud.example.com", &by_address);
    proxy_by_address.ready().await;
    assert_eq!(proxy_by_address.get("/").await.status(), 200);
    let by_name = [
        ("upstream.tls.ca_file", ca),
        ("upstream.tls.server_name", "cloud.example.com"),
        ("token.issuer", &issuer),
    ];
    let proxy_by_name = proxy(&format!("https://{dial}"), &by_name);
    proxy_by_name.ready().await;
    assert_eq!(proxy_by_name.get("/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_our_own_is_shown_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let (address, _) = cloud(server_config(
        &authority,
        identity(&authority, "localhost", false),
        true,
    ))
    .await;
    let ca = write(folder.path(), "ca.pem", &authority.pem());
    let (chain, key) = identity(&authority, "client", false);
    let (chain, key) = (
        write(folder.path(), "client.pem", &chain),
        write(folder.path(), "client.key", &key),
    );
    let origin = format!("https://localhost:{}", address.port());
    let given = [
        ("upstream.tls.ca_file", ca.to_str().unwrap()),
        ("upstream.tls.client_cert_file", chain.to_str().unwrap()),
        ("upstream.tls.client_key_file", key.to_str().unwrap()),
    ];
    let with = proxy(&origin, &given);
    with.ready().await;
    assert_eq!(with.get("/").await.status(), 200);
    let issuer = issuer().await;
    let without = proxy(&origin, &[given[0], ("token.issuer", &issuer)]);
    without.ready().await;
    assert_eq!(without.get("/").await.status(), 502);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_never_finishes_the_handshake_is_given_up() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = issuer().await;
    let origin = format!("https://localhost:{}", mute.local_addr().unwrap().port());
    let proxy = proxy(
        &origin,
        &[
            ("token.issuer", &issuer),
            ("upstream.handshake_timeout", "50ms"),
        ],
    );
    proxy.ready().await;
    let silent = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            open.push(mute.accept().await.unwrap());
        }
    });
    // The other limits, of five seconds and more, do not hold here.
    let answer = tokio::time::timeout(std::time::Duration::from_secs(4), proxy.get("/"))
        .await
        .unwrap();
    assert_eq!(answer.status(), 504);
    silent.abort();
}

/// Sends a request over TLS, with a certificate if there is one, and reads to the end of the connection.
async fn over_tls(
    address: SocketAddr,
    authority: &Authority,
    own: Option<Pair>,
    request: &str,
) -> std::io::Result<String> {
    let config = client_config(authority, own);
    let stream = tokio::net::TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector
        .connect("localhost".try_into().unwrap(), stream)
        .await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apps_with_a_certificate_are_served_over_tls_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let origin = crate::common::scripted(|_, mut stream| async move {
        loop {
            let head = read_head_granting(&mut stream).await?;
            let answer = match head.split(' ').nth(1) {
                None => return Ok(()),
                // It breaks off.
                Some("/cut") => {
                    return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await;
                }
                Some(_) => {
                    let own = head.lines().find_map(|line| line.strip_prefix("Host: ").or(line.strip_prefix("host: ")));
                    let location = format!("http://{}/x", own.unwrap());
                    let seen = head.to_ascii_lowercase();
                    format!("HTTP/1.1 200 OK\r\nLocation: {location}\r\nContent-Length: {}\r\n\r\n{seen}", seen.len())
                }
            };
            stream.write_all(answer.as_bytes()).await?;
        }
    })
    .await;
    let (_app, address, admin) =
        with_tls(folder.path(), &authority, &format!("http://{origin}")).await;
    let own = || Some(identity(&authority, "app", false));
    let request = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:8443\r\nOrigin: https://localhost:8443\r\nConnection: close\r\n\r\n"
        )
    };
    let answer = over_tls(address, &authority, own(), &request("/"))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("\r\nlocation: https://localhost:8443/x\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\r\nx-forwarded-proto: https\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains(&format!("\r\norigin: http://{origin}\r\n")),
        "{answer}"
    );
    assert!(
        answer.contains("\r\nauthorization: bearer token\r\n"),
        "{answer}"
    );
    // The page of a listener in clear is another site.
    let foreign = over_tls(
        address,
        &authority,
        own(),
        &request("/").replace("https://", "http://"),
    )
    .await
    .unwrap();
    assert!(foreign.starts_with("HTTP/1.1 403"), "{foreign}");
    let cut = over_tls(address, &authority, own(), &request("/cut")).await;
    assert!(
        cut.is_err(),
        "a cut answer must not end like a whole one: {cut:?}"
    );

    assert!(
        over_tls(address, &authority, None, &request("/"))
            .await
            .is_err()
    );
    let stranger = unknown_identity();
    assert!(
        over_tls(address, &authority, Some(stranger), &request("/"))
            .await
            .is_err()
    );
    let in_clear = crate::common::raw(address, request("/").as_bytes(), crate::common::LIMIT).await;
    assert!(!in_clear.contains("HTTP/1.1"), "{in_clear}");
    let silent = crate::common::raw(address, b"", crate::common::LIMIT).await;
    assert_eq!(silent, "", "closed by its deadline");
    let counted = "bearer_proxy_connections_rejected_total{reason=\"tls_handshake\"} 4";
    eventually("each is counted", async || {
        text_at(admin, "/metrics").await.contains(counted)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_known_by_the_names_in_their_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let origin = crate::common::scripted(|_, mut stream| async move {
        while !read_head_granting(&mut stream).await?.is_empty() {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await?;
        }
        Ok(())
    })
    .await;
    let clients = "[[client]]\nname = \"scanner\"\ntls_subject = \"Scanner.example.com\"\n\
                   [[client]]\nname = \"both\"\ntls_subject = \"both.example.com\"\nkey = \"key\"\nheader = \"x-key\"\n";
    let (_app, address, admin) = with_tls_and(
        folder.path(),
        &authority,
        &format!("http://{origin}"),
        clients,
    )
    .await;
    for (name, fields, expected) in [
        ("scanner.example.com", "", 200),
        ("other.example.com", "", 403),
        ("other.example.com", "X-Key: key\r\n", 403),
        ("both.example.com", "", 401),
        ("both.example.com", "X-Key: key\r\n", 200),
        // Certificates are what browsers show by themselves: the guard stays.
        ("scanner.example.com", "Sec-Fetch-Site: cross-site\r\n", 403),
    ] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\r\n");
        let answer = over_tls(
            address,
            &authority,
            Some(identity(&authority, name, false)),
            &request,
        )
        .await
        .unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected} ")),
            "{name} {fields:?}: {answer}"
        );
    }
    let metrics = text_at(admin, "/metrics").await;
    assert!(
        metrics.contains("bearer_proxy_client_requests_total{client=\"scanner\",code=\"200\"} 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("bearer_proxy_client_requests_total{client=\"both\",code=\"200\"} 1"),
        "{metrics}"
    );
}

/// What somebody shows whom our authority does not know.
fn unknown_identity() -> Pair {
    identity(&authority(), "app", false)
}
