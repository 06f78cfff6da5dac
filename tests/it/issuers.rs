//! An issuer with several servers: which of them gets a call, and what each of them may see.

use std::{io, net::TcpListener, time::Duration};

use bearer_proxy::{
    app::App,
    base::{clock, secret::Secret},
    config::{self, Source},
    token::{
        FailureClass, IssuerConfig, Outcome,
        code_grant::{self, CodeGrant},
        issuer::TokenEndpoint,
    },
};
use tokio::io::AsyncWriteExt as _;

use crate::common::{
    Proxy, black_hole, closed_address, eventually,
    issuer_client::{GRANT, TOKEN, call, config},
    picky, post, proxy, read_head, scripted, send, silent_upstream,
    tls::{authority, cloud_named, identity, server_config, write},
    upstream::{Reply, Request, RunningUpstream, Upstream, bytes, grant, ok, response, silence},
};

fn servers(origins: &[&str]) -> IssuerConfig {
    IssuerConfig {
        origins: origins
            .iter()
            .map(|origin| origin.parse().unwrap())
            .collect(),
        ..config("http://replaced")
    }
}

fn closed() -> String {
    format!("http://{}", closed_address())
}

async fn granting() -> RunningUpstream {
    Upstream::always(ok(GRANT)).start().await
}

/// Calls of this credential that brought no token.
fn failed_calls(proxy: &Proxy) -> u64 {
    let refreshes = proxy.app.credential().snapshot().refreshes;
    let failed = refreshes
        .iter()
        .filter(|(outcome, _)| *outcome != Outcome::Success);
    failed.map(|(_, count)| count).sum()
}

#[tokio::test]
async fn a_server_that_cannot_be_connected_to_is_passed_over_within_the_same_call() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let ca_file = write(folder.path(), "ca.pem", &authority.pem());
    let (_socket, _fillers, black_hole) = black_hole();
    let wrong_name = cloud_named(&authority, "cloud.example.com", false).await;
    let closes = scripted(|_, _| async { Ok(()) }).await;
    let alerts =
        scripted(
            |_, mut stream| async move { stream.write_all(b"\x15\x03\x03\x00\x02\x02\x28").await },
        )
        .await;
    let not_tls = Upstream::always(silence()).start().await;
    for dead in [
        closed(),
        black_hole,
        "http://does-not-exist.invalid".to_owned(),
        wrong_name.origin(),
        format!("https://{}", silent_upstream().await),
        format!("https://{closes}"),
        format!("https://{alerts}"),
        not_tls.origin().replace("http:", "https:"),
    ] {
        let good = granting().await;
        let mut issuer = servers(&[&dead, &good.origin()]);
        issuer.tls.ca_file = Some(ca_file.clone());
        call(&issuer)
            .await
            .unwrap_or_else(|failure| panic!("{dead}: {}", failure.detail));
        assert_eq!(good.count(), 1, "{dead}");
        let host = good.address.to_string();
        assert_eq!(good.requests()[0].fields("host"), [host], "{dead}");
    }
    assert!(wrong_name.is_untouched());
}

#[tokio::test]
async fn each_server_is_verified_by_its_own_name() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let ca_file = write(folder.path(), "ca.pem", &authority.pem());
    let by_address = cloud_named(&authority, "127.0.0.1", false).await;
    let by_name = cloud_named(&authority, "localhost", false).await;
    let by_address = format!("https://{}", by_address.address);
    for (origins, is_good) in [
        ([closed().as_str(), &by_address], true),
        ([closed().as_str(), &by_name.origin()], true),
        (
            [
                &*by_address.replace("127.0.0.1", "localhost"),
                &by_name.origin(),
            ],
            true,
        ),
        (
            [&closed(), &by_address.replace("127.0.0.1", "localhost")],
            false,
        ),
    ] {
        let mut issuer = servers(&origins);
        issuer.tls.ca_file = Some(ca_file.clone());
        assert_eq!(call(&issuer).await.is_ok(), is_good, "{origins:?}");
    }
    let mut issuer = servers(&[&closed(), &by_name.origin()]);
    issuer.tls.ca_file = Some(ca_file);
    issuer.tls.server_name = Some("cloud.example.com".to_owned());
    let failure = call(&issuer).await.expect_err("one name for all servers");
    assert_eq!(failure.class, FailureClass::Unreachable);
}

#[tokio::test]
async fn no_second_server_gets_a_request_that_was_written() {
    let reply = |reply: Reply| Upstream::always(reply.close());
    for (first, class) in [
        (reply(bytes("")), FailureClass::Ambiguous),
        (reply(bytes("HTTP/1.1 2")), FailureClass::Ambiguous),
        (reply(bytes("SSH-2.0-x\r\n")), FailureClass::Ambiguous),
        (reply(silence()), FailureClass::Ambiguous),
        (
            reply(response("502 Bad Gateway", "", "")),
            FailureClass::Ambiguous,
        ),
        (reply(response("500 Oops", "", "")), FailureClass::Failing),
        (
            reply(response("404 Not Found", "", "")),
            FailureClass::Failing,
        ),
        (reply(ok("<html>")), FailureClass::Garbled),
    ] {
        let (first, second) = (first.start().await, granting().await);
        let mut issuer = servers(&[&first.origin(), &second.origin()]);
        issuer.timeout = Duration::from_secs(1);
        let failure = call(&issuer).await.expect_err("a failure");
        assert_eq!(failure.class, class, "{}", failure.detail);
        assert!(
            failure.detail.contains(&first.origin()),
            "{}",
            failure.detail
        );
        assert_eq!((first.count(), second.connections()), (1, 0));
    }
}

#[tokio::test]
async fn a_request_that_was_refused_during_its_handshake_goes_to_no_second_server() {
    // With TLS 1.3, the server checks the client's certificate after the request was written.
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let tls = server_config(&authority, identity(&authority, "localhost", false), true);
    let (first, second) = (
        Upstream::always(ok(GRANT)).start_tls(tls).await,
        granting().await,
    );
    let mut issuer = servers(&[&first.origin(), &second.origin()]);
    issuer.tls.ca_file = Some(write(folder.path(), "ca.pem", &authority.pem()));
    let endpoint = TokenEndpoint::new(&issuer, clock::system()).unwrap();
    let token = Secret::new(TOKEN);
    for _ in 0..2 {
        let failure = endpoint.refresh(&token).await.expect_err("no certificate");
        assert_eq!(
            failure.class,
            FailureClass::Unreachable,
            "{}",
            failure.detail
        );
        assert_eq!((first.count(), second.connections()), (0, 0));
    }
    // It is not stuck at the first one: nothing was used.
    endpoint.refresh(&token).await.expect("granted");
    assert_eq!(second.count(), 1);
}

#[tokio::test]
async fn a_failure_at_all_servers_names_each() {
    let (one, two) = (closed(), closed());
    let failure = call(&servers(&[&one, "http://none.invalid", &two]))
        .await
        .expect_err("no server");
    assert_eq!(failure.class, FailureClass::Unreachable);
    for server in [&*one, "http://none.invalid", &two] {
        assert_eq!(
            failure.detail.matches(server).count(),
            1,
            "{}",
            failure.detail
        );
    }
    let failure = call(&servers(&[&one])).await.expect_err("no server");
    assert!(!failure.detail.contains(&one), "{}", failure.detail);
}

#[tokio::test]
async fn a_call_begins_where_the_last_one_went() {
    let (first, second) = (closed_address(), granting().await);
    let issuer = servers(&[&format!("http://{first}"), &second.origin()]);
    let endpoint = TokenEndpoint::new(&issuer, clock::system()).unwrap();
    let token = Secret::new(TOKEN);
    endpoint.refresh(&token).await.expect("granted");
    let listener = TcpListener::bind(first).unwrap();
    listener.set_nonblocking(true).unwrap();
    for count in 2..4 {
        endpoint.refresh(&token).await.expect("granted");
        assert_eq!(second.count(), count);
    }
    let untouched = listener.accept().expect_err("no connection").kind();
    assert_eq!(untouched, io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_server_that_fails_twice_in_a_row_is_left() {
    let failing = Upstream::always(response("500 Oops", "", ""));
    let (failing, good) = (failing.start().await, granting().await);
    let issuer = servers(&[&failing.origin(), &good.origin()]);
    let endpoint = TokenEndpoint::new(&issuer, clock::system()).unwrap();
    let token = Secret::new(TOKEN);
    for _ in 0..2 {
        endpoint.refresh(&token).await.expect_err("it fails");
    }
    assert_eq!((failing.count(), good.count()), (2, 0));
    for _ in 0..3 {
        endpoint.refresh(&token).await.expect("granted");
    }
    assert_eq!((failing.count(), good.count()), (2, 3));
}

#[tokio::test]
async fn by_default_every_endpoint_is_an_issuer() {
    let (_socket, _fillers, black_hole) = black_hole();
    for dead in [closed(), black_hole] {
        let cloud = Upstream::new().issuing().start().await;
        let endpoints = format!("{dead},{}", cloud.origin());
        let proxy = proxy(&endpoints, &[]);
        proxy.ready().await;
        assert_eq!(failed_calls(&proxy), 0, "{dead}");
    }
}

#[tokio::test]
async fn a_credential_outlives_each_of_its_issuers_servers() {
    // Each of them is up for one refresh only.
    let addresses = [closed_address(), closed_address(), closed_address()];
    let origins = addresses.map(|address| format!("http://{address}"));
    let cloud = Upstream::new().start().await;
    let more = [
        ("token.issuer", &*origins.join(",")),
        ("retry.cooldown", "1ms"),
    ];
    let proxy = proxy(&cloud.origin(), &more);
    for (generation, index) in [2, 0, 1, 1, 2].into_iter().enumerate() {
        let listener = tokio::net::TcpListener::bind(addresses[index])
            .await
            .unwrap();
        if generation > 0 {
            eventually("a refresh begins", async || {
                send(proxy.admin, post("/token/refresh", "")).await.status() == 202
            })
            .await;
        }
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(listener);
        read_head(&mut stream).await.unwrap();
        grant("token", 3600).send(&mut stream).await.unwrap();
        eventually("the token is used", async || {
            let expected = u64::try_from(generation).unwrap() + 1;
            proxy.app.credential().snapshot().generation == expected
        })
        .await;
    }
}

#[tokio::test]
async fn the_code_of_a_login_is_exchanged_at_a_server_that_can_be_reached() {
    let issuer = servers(&[&closed(), &picky().await]);
    let config = code_grant::Config {
        authorize_url: "http://unused".parse().unwrap(),
        token_path: "/api/token.do".to_owned(),
        redirect_uri: None,
    };
    let grant = CodeGrant::new(&config, &issuer, clock::system()).unwrap();
    let tokens = grant.exchange(&Secret::new("c0de")).await.expect("granted");
    assert_eq!(tokens.access_token.expose(), "token");
}

#[tokio::test]
async fn silent_servers_are_tried_beside_each_other() {
    let (_socket, _fillers, black_hole) = black_hole();
    let good = granting().await;
    let dead = black_hole.as_str();
    let mut issuer = servers(&[dead, dead, dead, dead, &good.origin()]);
    // One after the other, they would take eight seconds of the call's six.
    issuer.timeout = Duration::from_secs(2);
    call(&issuer).await.expect("granted");
}

#[tokio::test]
async fn all_calls_of_a_credential_go_where_the_last_one_went() {
    let first = closed_address();
    let second = Upstream::new()
        .on("/api/authorizeByJWT.do", ok(r#"{"code":"c0de"}"#))
        .on("*", grant("token", 3600))
        .start()
        .await;
    let issuer = format!("http://{first},{}", second.origin());
    let overrides = [
        ("proxy.listen", "127.0.0.1:0"),
        ("admin.listen", "127.0.0.1:0"),
        ("upstream.endpoints", "http://127.0.0.1:1"),
        ("token.issuer", &issuer),
        ("token.client_id", "id"),
        ("token.client_secret", "secret"),
        ("token.jwt.key", "key"),
        ("retry.cooldown", "1ms"),
    ];
    let overrides = overrides.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let source = Source {
        file: None,
        env: Vec::new(),
        overrides: overrides.into(),
    };
    let config = config::load(source).unwrap().config;
    let proxy = Proxy::of(App::start(config, clock::system()).unwrap());
    proxy.ready().await;
    let listener = TcpListener::bind(first).unwrap();
    listener.set_nonblocking(true).unwrap();
    eventually("a refresh", async || {
        send(proxy.admin, post("/token/refresh", "")).await;
        second.count() > 2
    })
    .await;
    let requests = second.requests();
    let paths: Vec<_> = requests.iter().map(Request::path).collect();
    let expected = [
        "/api/authorizeByJWT.do",
        "/api/token.do",
        "/api/refreshToken.do",
    ];
    assert_eq!(paths[..3], expected);
    let untouched = listener.accept().expect_err("no connection").kind();
    assert_eq!(untouched, io::ErrorKind::WouldBlock);
}
