//! The issuer client: the exact requests that it sends, and what it accepts of a hostile response.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bearer_proxy::{
    base::{clock, secret::Secret},
    token::{
        BasicEncoding, Config, FailureClass, IssuerConfig, ParameterLocation, Persistence,
        Refresher, State,
    },
};
use tokio::{io::AsyncWriteExt as _, sync::oneshot};
use tokio_util::sync::CancellationToken;

use crate::common::{
    LIMIT, closed_address,
    issuer_client::{GRANT, ID, SECRET, TOKEN, TOKEN_ENCODED, call, config},
    read_head, scripted, silent_upstream,
    tls::{authority, cloud_named, write},
    upstream::{Reply, Request, RunningUpstream, Upstream, bytes, ok, response},
};

/// An issuer that gives each connection the next of these replies, then closes it.
async fn issuer(replies: Vec<Reply>) -> RunningUpstream {
    let reply = move |request: &Request| replies[request.number].clone().close();
    Upstream::always(reply).start().await
}

/// How one response is classified.
async fn class_of(reply: Reply) -> FailureClass {
    let issuer = issuer(vec![reply]).await;
    let class = call(&config(&issuer.origin()))
        .await
        .expect_err("refused")
        .class;
    assert_eq!(issuer.count(), 1);
    class
}

/// The client's ID and secret, as `Authorization` has them.
fn basic(request: &Request) -> String {
    let value = request.fields("authorization");
    let [value] = value[..] else {
        panic!("{value:?}")
    };
    let basic = value.strip_prefix("Basic ").expect("Basic");
    String::from_utf8(STANDARD.decode(basic).unwrap()).unwrap()
}

#[tokio::test]
async fn the_request_is_what_the_cloud_documents() {
    let issuer = issuer(vec![ok(GRANT)]).await;
    let grant = call(&config(&issuer.origin())).await.expect("granted");
    assert_eq!(grant.access_token.expose(), "abc");
    assert_eq!(grant.refresh_token.expect("rotated").expose(), "def");
    assert_eq!(grant.lifetime, Duration::from_secs(3600));

    let request = &issuer.requests()[0];
    let target =
        format!("/api/refreshToken.do?grant_type=refresh_token&refresh_token={TOKEN_ENCODED}");
    assert_eq!((request.method(), request.target()), ("POST", &*target));
    assert_eq!(request.body, b"");
    let agent = concat!("bearer-proxy/", env!("CARGO_PKG_VERSION"));
    for (name, value) in [
        ("host", &*issuer.address.to_string()),
        ("content-length", "0"),
        ("accept", "application/json"),
        ("accept-encoding", "identity"),
        ("user-agent", agent),
    ] {
        assert_eq!(request.fields(name), [value], "{name}");
    }
    assert_eq!(basic(request), format!("{ID}:{SECRET}"));
    // The request line, six fields and the empty line.
    assert_eq!(request.head.lines().count(), 8, "{}", request.head);
    assert_eq!(request.refresh_token(), TOKEN);
}

#[tokio::test]
async fn parameters_in_a_form_and_a_form_encoded_client() {
    let issuer = issuer(vec![ok(GRANT)]).await;
    let form = IssuerConfig {
        parameters: ParameterLocation::Form,
        basic_encoding: BasicEncoding::Form,
        ..config(&issuer.origin())
    };
    call(&form).await.expect("granted");
    let request = &issuer.requests()[0];
    assert_eq!(
        (request.method(), request.target()),
        ("POST", "/api/refreshToken.do")
    );
    assert_eq!(
        request.fields("content-type"),
        ["application/x-www-form-urlencoded"]
    );
    assert_eq!(
        String::from_utf8_lossy(&request.body),
        format!("grant_type=refresh_token&refresh_token={TOKEN_ENCODED}")
    );
    assert_eq!(
        basic(request),
        "client+id%2B%C3%A9:s3c%3Aret%2B%25%26%3D+%C3%BC"
    );
}

#[tokio::test]
async fn bad_input_15_redirects_of_the_issuer_are_never_followed() {
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("set");
    let location = elsewhere.local_addr().expect("an address");
    for code in [
        "301 Moved Permanently",
        "302 Found",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let redirect = response(code, &format!("Location: http://{location}/\r\n"), "");
        assert_eq!(class_of(redirect).await, FailureClass::Failing);
        // The call has ended, and with it every connection that it would have made.
        assert_eq!(
            elsewhere.accept().expect_err("it connected").kind(),
            io::ErrorKind::WouldBlock
        );
    }
}

#[tokio::test]
async fn an_endless_body_is_cut() {
    for (head, class) in [
        ("200 OK", FailureClass::Garbled),
        ("500 Internal Server Error", FailureClass::Failing),
    ] {
        let (closed, sent) = oneshot::channel();
        let closed = Arc::new(Mutex::new(Some(closed)));
        let issuer = scripted(move |_, mut stream| {
            let closed = Arc::clone(&closed);
            async move {
                read_head(&mut stream).await?;
                let head = format!("HTTP/1.1 {head}\r\nTransfer-Encoding: chunked\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
                let mut sent = 0_usize;
                while stream.write_all(chunk.as_bytes()).await.is_ok() {
                    sent += 0x1000;
                }
                let closed = closed.lock().unwrap().take();
                closed.expect("one call").send(sent).unwrap();
                Ok(())
            }
        })
        .await;
        let failure = call(&config(&format!("http://{issuer}"))).await;
        assert_eq!(failure.expect_err("refused").class, class);
        let sent = tokio::time::timeout(LIMIT, sent)
            .await
            .expect("it closes the connection")
            .unwrap();
        assert!(sent < 64 << 20, "{sent} bytes were read");
    }
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_is_read() {
    for (size, is_read) in [(64 * 1024, true), (64 * 1024 + 1, false)] {
        let body = format!("{GRANT}{}", " ".repeat(size - GRANT.len()));
        let issuer = issuer(vec![ok(body)]).await;
        let result = call(&config(&issuer.origin())).await;
        assert_eq!(result.is_ok(), is_read, "{size}");
    }
}

#[tokio::test]
async fn bad_input_13_and_14_invalid_responses_never_become_tokens() {
    for garbage in [
        ok(""),
        ok("<html>login</html>"),
        ok("{}"),
        ok(r#"{"access_token":"a\r\nX-Evil: 1","expires_in":3600}"#),
        ok(r#"{"access_token":"a\u0000","expires_in":3600}"#),
        ok(r#"{"access_token":"a\nb","expires_in":3600}"#),
        ok(r#"{"access_token":"a b","expires_in":3600}"#),
        ok(r#"{"access_token":" a","expires_in":3600}"#),
        ok(r#"{"access_token":"\u00e4","expires_in":3600}"#),
        ok(r#"{"access_token":"","expires_in":3600}"#),
        ok(format!(
            r#"{{"access_token":"{}","expires_in":3600}}"#,
            "a".repeat(100_000)
        )),
        ok(r#"{"access_token":"a","token_type":"Bearerx"}"#),
        ok(r#"{"access_token":"a","token_type":"DPoP"}"#),
        ok(r#"{"access_token":"a","token_type":"mac"}"#),
        bytes("HTTP/1.1 204 No Content\r\n\r\n"),
    ] {
        assert_eq!(
            class_of(garbage.clone()).await,
            FailureClass::Garbled,
            "{garbage:?}"
        );
    }
    for broken in [
        "",
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"access",
        "HTTP/1.1 2",
    ] {
        let class = class_of(bytes(broken)).await;
        assert_eq!(class, FailureClass::Ambiguous, "{broken}");
    }
}

#[tokio::test]
async fn refusals_are_classified() {
    let echo =
        format!(r#"{{"error":"invalid_grant","error_description":"{SECRET} {TOKEN_ENCODED}"}}"#);
    assert_eq!(
        class_of(response("400 Bad Request", "", &echo)).await,
        FailureClass::RefreshTokenRefused
    );
    let refused = response("401 Unauthorized", "", r#"{"error":"invalid_client"}"#);
    assert_eq!(class_of(refused).await, FailureClass::ClientRefused);
    assert_eq!(
        class_of(response("403 Forbidden", "", "blocked by the firewall")).await,
        FailureClass::Failing
    );
    assert_eq!(
        class_of(response("502 Bad Gateway", "", "")).await,
        FailureClass::Ambiguous
    );
    let throttled = response("429 Too Many Requests", "Retry-After: 7\r\n", "");
    assert_eq!(
        class_of(throttled).await,
        FailureClass::Throttled(Duration::from_secs(7))
    );
}

#[tokio::test]
async fn a_call_to_a_silent_issuer_ends_at_the_timeout() {
    let silent = silent_upstream().await;
    let issuer = IssuerConfig {
        timeout: Duration::from_millis(300),
        ..config(&format!("http://{silent}"))
    };
    let failure = call(&issuer).await.expect_err("no response");
    assert_eq!(failure.class, FailureClass::Ambiguous);
    assert!(failure.detail.contains("in time"), "{}", failure.detail);
}

#[tokio::test]
async fn a_refused_connection_is_classified_as_unreachable() {
    let failure = call(&config(&format!("http://{}", closed_address())))
        .await
        .expect_err("refused");
    assert_eq!(failure.class, FailureClass::Unreachable);
    assert!(failure.detail.contains("refused"), "{}", failure.detail);
}

#[tokio::test]
async fn a_private_authority_is_accepted_by_ca_file() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let cloud = cloud_named(&authority, "localhost", false).await;
    let mut issuer = config(&cloud.origin());
    issuer.tls.ca_file = Some(write(folder.path(), "ca.pem", &authority.pem()));
    call(&issuer).await.expect("granted");
    let host = format!("localhost:{}", cloud.address.port());
    assert_eq!(cloud.requests()[0].fields("host"), [host]);
}

#[tokio::test]
async fn server_name_changes_the_verified_name_and_not_the_host() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let cloud = cloud_named(&authority, "cloud.example.com", false).await;
    let address = cloud.address.to_string();
    let mut issuer = config(&format!("https://{address}"));
    issuer.tls.ca_file = Some(write(folder.path(), "ca.pem", &authority.pem()));
    issuer.tls.server_name = Some("cloud.example.com".to_owned());
    call(&issuer).await.expect("granted");
    assert_eq!(cloud.requests()[0].fields("host"), [address]);
}

#[tokio::test]
async fn a_server_without_a_valid_certificate_gets_no_byte() {
    let (right, other) = (authority(), authority());
    let wrong_name = cloud_named(&right, "cloud.example.com", false).await;
    let unknown_authority = cloud_named(&other, "localhost", false).await;
    let folder = tempfile::tempdir().unwrap();
    for cloud in [wrong_name, unknown_authority] {
        let mut issuer = config(&cloud.origin());
        issuer.tls.ca_file = Some(write(folder.path(), "ca.pem", &right.pem()));
        let failure = call(&issuer).await.expect_err("no valid certificate");
        assert_eq!(failure.class, FailureClass::Unreachable);
        assert!(failure.detail.contains("cert"), "{}", failure.detail);
        assert!(cloud.is_untouched());
    }
}

fn credential_config(issuer: IssuerConfig, folder: &Path) -> Config {
    Config {
        name: "default".to_owned(),
        issuer,
        refresh_token: Some(Secret::new(TOKEN)),
        store: None,
        state_file: Some(folder.join("state/token.json")),
        refresh_margin: None,
        refresh_lifetime: Duration::from_secs(30 * 24 * 3600),
        grace_retry: true,
        grace_period: Duration::from_secs(5),
        rotates: true,
        checks_state_file_permissions: true,
        wait: Duration::from_secs(10),
        cooldown: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn a_refresher_uses_a_replaced_client_secret_and_stores_its_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret_file = folder.path().join("client_secret");
    std::fs::write(&secret_file, "old\n").expect("written");
    let refused = response("401 Unauthorized", "", r#"{"error":"invalid_client"}"#);
    let server = issuer(vec![refused, ok(GRANT)]).await;
    let client_secret = Secret::from_file(secret_file.clone()).expect("readable");
    let issuer = IssuerConfig {
        client_secret,
        ..config(&server.origin())
    };
    // The secret is replaced after it was read.
    std::fs::write(&secret_file, "new\n").expect("written");

    let (refresher, credential) = Refresher::new(
        credential_config(issuer.clone(), folder.path()),
        None,
        clock::system(),
    )
    .expect("built");
    let stop = CancellationToken::new();
    let running = tokio::spawn(refresher.run(stop.clone()));
    let token = credential.newer_than(None, LIMIT).await.expect("a token");
    assert_eq!(token.header().as_bytes(), b"Bearer abc");
    assert_eq!(credential.snapshot().persistence, Persistence::Stored);
    stop.cancel();
    running.await.expect("no panic");

    for (request, secret) in server.requests().iter().zip(["old", "new"]) {
        assert_eq!(basic(request), format!("{ID}:{secret}"));
    }
    assert_eq!(server.count(), 2);
    // The next process finds the tokens and does not call the issuer.
    let (_refresher, credential) = Refresher::new(
        credential_config(issuer, folder.path()),
        None,
        clock::system(),
    )
    .expect("built");
    assert_eq!(credential.snapshot().state, State::Fresh);
    assert_eq!(
        credential.token().as_ref().expect("stored").version(),
        token.version()
    );
}

#[tokio::test]
async fn a_bad_state_file_stops_the_start_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = credential_config(config("http://127.0.0.1:1/"), folder.path());
    let file = config.state_file.clone().expect("there");
    std::fs::create_dir(file.parent().expect("a folder")).expect("created");
    std::fs::write(&file, "{").expect("written");
    #[cfg(unix)]
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("changed");
    let error = Refresher::new(config, None, clock::system())
        .err()
        .expect("refused")
        .to_string();
    assert!(
        error.contains(&file.display().to_string()) && error.contains("move it away"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&file).expect("there"), "{");
}
