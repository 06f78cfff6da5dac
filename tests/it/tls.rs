//! TLS to the cloud, to the issuer, and on listeners: which certificates are accepted. The proxy
//! sends no byte to a peer without an accepted certificate.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::common::{
    self, eventually, get, issuer, post, proxy, send, status,
    tls::{
        Authority, Pair, authority, client_config, cloud, cloud_named, identity, self_signed,
        server_config, with_tls, with_tls_and, write,
    },
    upstream::{Request, Upstream, bytes, response, values},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_sets_the_authority_for_the_cloud_and_its_issuer() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let cloud = cloud_named(&authority, "localhost", false).await;
    let ca = write(folder.path(), "ca.pem", &authority.pem());
    let origin = cloud.origin();
    let proxy = proxy(&origin, &[("upstream.tls.ca_file", ca.to_str().unwrap())]);
    proxy.ready().await;
    for _ in 0..3 {
        let got = proxy.send(post("/", vec![b'x'; 100_000])).await;
        assert_eq!(
            (got.status().as_u16(), &got.body()[..]),
            (200, &b"token"[..])
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_24_a_server_without_a_valid_certificate_gets_no_byte() {
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
            "an authority's own, which has no name",
            "tls.server_name",
        ),
    ] {
        let cloud = cloud(server_config(&trusted, shown, false)).await;
        let origin = cloud.origin();
        let given = [
            ("upstream.tls.ca_file", ca.to_str().unwrap()),
            ("token.issuer", &plain_issuer),
        ];
        let upstream = proxy(&origin, &given);
        upstream.ready().await;
        let got = upstream.get("/").await;
        assert_eq!(got.status(), 502, "{what}");
        assert_eq!(
            got.headers()["proxy-status"],
            format!("bearer-proxy; error=tls_certificate_error; next-hop=\"{origin}\""),
            "{what}"
        );
        let detail = String::from_utf8_lossy(got.body());
        assert!(
            detail.contains(&origin) && detail.contains(says),
            "{what}: {detail}"
        );
        // The same for the issuer: the proxy sends it no secret.
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
        assert!(cloud.is_untouched(), "{what}: a byte was sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_to_verify_and_the_address_to_connect_to_are_independent() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let cloud = cloud_named(&authority, "cloud.example.com", false).await;
    let ca = write(folder.path(), "ca.pem", &authority.pem());
    let (ca, dial, issuer) = (
        ca.to_str().unwrap(),
        cloud.address.to_string(),
        issuer().await,
    );
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
async fn a_client_certificate_is_presented_when_requested() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let cloud = cloud_named(&authority, "localhost", true).await;
    let ca = write(folder.path(), "ca.pem", &authority.pem());
    let (chain, key) = identity(&authority, "client", false);
    let (chain, key) = (
        write(folder.path(), "client.pem", &chain),
        write(folder.path(), "client.key", &key),
    );
    let origin = cloud.origin();
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
async fn a_handshake_that_never_ends_times_out() {
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
    // The other limits are at least five seconds.
    let got = tokio::time::timeout(std::time::Duration::from_secs(4), proxy.get("/"))
        .await
        .unwrap();
    assert_eq!(got.status(), 504);
    silent.abort();
}

/// Sends a request over TLS, with the certificate if there is one, and reads until the connection
/// closes.
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
    let mut got = String::new();
    stream.read_to_string(&mut got).await?;
    Ok(got)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_clients_with_a_certificate_are_served_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let upstream = Upstream::new()
        .on(
            "/cut",
            bytes("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").close(),
        )
        .on("*", |request: &Request| {
            let location = format!("Location: http://{}/x\r\n", request.fields("host")[0]);
            response("200 OK", &location, "ok")
        })
        .issuing()
        .start()
        .await;
    let origin = upstream.origin();
    let proxy = with_tls(folder.path(), &authority, &origin).await;
    let address = proxy.address;
    let own = || Some(identity(&authority, "app", false));
    let request = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:8443\r\nOrigin: https://localhost:8443\r\nConnection: close\r\n\r\n"
        )
    };
    let got = over_tls(address, &authority, own(), &request("/"))
        .await
        .unwrap();
    assert_eq!(status(&got), 200, "{got}");
    assert_eq!(
        values(&got, "location"),
        ["https://localhost:8443/x"],
        "{got}"
    );
    let forwarded = &upstream.requests()[0];
    assert_eq!(forwarded.fields("x-forwarded-proto"), ["https"]);
    assert_eq!(forwarded.fields("origin"), [origin]);
    assert_eq!(forwarded.token(), "token");
    // A page of a listener without TLS has a different origin.
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
        "a truncated response must not look complete: {cut:?}"
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
    let in_clear = proxy.raw(&request("/")).await;
    assert!(!in_clear.contains("HTTP/1.1"), "{in_clear}");
    assert_eq!(proxy.raw("").await, "", "not closed by its deadline");
    let counted = "bearer_proxy_connections_rejected_total{reason=\"tls_handshake\"}";
    proxy.until(counted, 4.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_identified_by_the_names_in_their_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let clients = "[[client]]\nname = \"scanner\"\ntls_subject = \"Scanner.example.com\"\n\
                   [[client]]\nname = \"both\"\ntls_subject = \"both.example.com\"\nkey = \"key\"\nheader = \"x-key\"\n";
    let proxy = with_tls_and(folder.path(), &authority, &common::cloud().await, clients).await;
    for (name, fields, expected) in [
        ("scanner.example.com", "", 200),
        ("other.example.com", "", 403),
        ("other.example.com", "X-Key: key\r\n", 403),
        ("both.example.com", "", 401),
        ("both.example.com", "X-Key: key\r\n", 200),
        // A browser presents certificates automatically: the cross-site protection applies.
        ("scanner.example.com", "Sec-Fetch-Site: cross-site\r\n", 403),
    ] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\r\n");
        let got = over_tls(
            proxy.address,
            &authority,
            Some(identity(&authority, name, false)),
            &request,
        )
        .await
        .unwrap();
        assert!(
            got.starts_with(&format!("HTTP/1.1 {expected} ")),
            "{name} {fields:?}: {got}"
        );
    }
    for client in ["scanner", "both"] {
        let counted =
            format!("bearer_proxy_client_requests_total{{client=\"{client}\",code=\"200\"}}");
        assert_eq!(proxy.metric(&counted).await, 1.0, "{client}");
    }
}

/// A certificate from an unknown authority.
fn unknown_identity() -> Pair {
    identity(&authority(), "app", false)
}
