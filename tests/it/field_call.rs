//! Field reports about the call to the issuer, over real sockets: responses that are late, cut or
//! oddly framed (A1, A11), connections that never stand (A16), issuers that come back (A3), client
//! secrets that change (A14).

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    thread,
    time::Duration,
};

use bearer_proxy::{
    base::secret::Secret,
    token::{FailureClass, IssuerConfig, Outcome, Reason, State, TokenResponse},
};
use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};

use crate::common::{
    black_hole, closed_address, eventually, get,
    issuer_client::{GRANT, TOKEN, call, config},
    post, proxy, send, silent_upstream,
    tls::{authority, identity, server_config, write},
    upstream::{Reply, Request, Upstream, bytes, grant, oauth_error, ok, response, silence},
};

fn assert_granted(tokens: &TokenResponse, what: &str) {
    assert_eq!(tokens.access_token.expose(), "abc", "{what}");
    let refresh_token = tokens.refresh_token.as_ref();
    assert_eq!(refresh_token.map(Secret::expose), Some("def"), "{what}");
    assert_eq!(tokens.lifetime, Duration::from_secs(3600), "{what}");
}

/// Heads and tails that contradict each other, or HTTP, around a whole token response.
fn odd_framings() -> Vec<(&'static str, Vec<u8>)> {
    let message =
        |head: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}").into_bytes();
    let chunk = format!("{:x}\r\n{GRANT}\r\n", GRANT.len());
    let (first, second) = GRANT.split_at(20);
    let chunks = format!(
        "{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n",
        first.len(),
        second.len()
    );
    let many_fields = "X-Field: value\r\n".repeat(2000);
    let length = GRANT.len();
    vec![
        ("no framing", message("", GRANT)),
        (
            "a longer Content-Length",
            message("Content-Length: 10000\r\n", GRANT),
        ),
        (
            "a shorter Content-Length",
            message("Content-Length: 10\r\n", GRANT),
        ),
        (
            "an empty Content-Length",
            message("Content-Length: 0\r\n", GRANT),
        ),
        (
            "two lengths",
            message(
                &format!("Content-Length: {length}\r\nContent-Length: 7\r\n"),
                GRANT,
            ),
        ),
        ("no number", message("Content-Length: many\r\n", GRANT)),
        (
            "no last chunk",
            message("Transfer-Encoding: chunked\r\n", &chunk),
        ),
        (
            "no last chunk of many",
            message("Transfer-Encoding: chunked\r\n", &chunks),
        ),
        (
            "no chunks",
            message("Transfer-Encoding: chunked\r\n", GRANT),
        ),
        (
            "chunks and a length",
            message(
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                &format!("{chunk}0\r\n\r\n"),
            ),
        ),
        (
            "another transfer coding",
            message("Transfer-Encoding: identity\r\n", GRANT),
        ),
        (
            "chunks without their field",
            message("", &format!("{chunks}0\r\n\r\n")),
        ),
        ("many fields", message(&many_fields, GRANT)),
        (
            "no field",
            message("this is no field\r\n: nor this\r\n", GRANT),
        ),
        ("a folded field", message("X-Long: a\r\n b\r\n", GRANT)),
        (
            "a blank before the colon",
            message("X-Field : a\r\n", GRANT),
        ),
        (
            "control characters",
            message("X-Field: \u{1b}[31m\u{1}\r\n", GRANT),
        ),
        (
            "204",
            format!("HTTP/1.1 204 No Content\r\n\r\n{GRANT}").into_bytes(),
        ),
        (
            "500",
            format!("HTTP/1.1 500 Oops\r\n\r\n{GRANT}").into_bytes(),
        ),
        (
            "line feeds",
            format!("HTTP/1.1 200 OK\n\n{GRANT}").into_bytes(),
        ),
        (
            "no reason",
            format!("HTTP/1.1 200\r\n\r\n{GRANT}").into_bytes(),
        ),
        (
            "HTTP/1.0",
            format!("HTTP/1.0 200 OK\r\n\r\n{GRANT}").into_bytes(),
        ),
        (
            "HTTP/2 in text",
            format!("HTTP/2 200\r\n\r\n{GRANT}").into_bytes(),
        ),
        ("no head", GRANT.into()),
        (
            "interim responses",
            format!("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{GRANT}").into_bytes(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a1_a_whole_object_beats_wrong_framing() {
    // The connection ends behind the response, or stays open.
    let cases = odd_framings().into_iter().flat_map(|(what, message)| {
        [bytes(message.clone()).close(), bytes(message).hold()].map(|reply| (what, reply))
    });
    join_all(cases.map(|(what, reply)| async move {
        let issuer = Upstream::always(reply.clone()).start().await;
        let tokens = call(&config(&issuer.origin())).await;
        let tokens = tokens.unwrap_or_else(|failure| panic!("{what}: {failure:?} {reply:?}"));
        assert_granted(&tokens, what);
        assert_eq!(issuer.count(), 1, "{what}");
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a1_over_tls_without_close_notify() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let ca_file = write(folder.path(), "ca.pem", &authority.pem());
    let cases = odd_framings().into_iter().map(|(what, message)| {
        let tls = server_config(&authority, identity(&authority, "localhost", false), false);
        (what, bytes(message).close(), tls)
    });
    join_all(cases.map(|(what, reply, tls)| {
        let ca_file = ca_file.clone();
        async move {
            let issuer = Upstream::always(reply).start_tls(tls).await;
            let mut config = config(&issuer.origin());
            config.tls.ca_file = Some(ca_file);
            let tokens = call(&config).await;
            let tokens = tokens.unwrap_or_else(|failure| panic!("{what}: {failure:?}"));
            assert_granted(&tokens, what);
        }
    }))
    .await;
}

#[tokio::test]
async fn field_a1_a_cut_object_keeps_a_whole_refresh_token_and_nothing_else() {
    for (body, kept) in [
        (r#"{"refresh_token":"def","access_token":"ab"#, Some("def")),
        (
            r#"{"access_token":"abc","refresh_token":"def""#,
            Some("def"),
        ),
        (r#"{"access_token":"abc","refresh_token":"de"#, None),
        (r#"{"access_token":"abc","refr"#, None),
    ] {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
        let issuer = Upstream::always(bytes(format!("{head}{body}")).close())
            .start()
            .await;
        let failure = call(&config(&issuer.origin())).await.expect_err(body);
        assert_eq!(failure.class, FailureClass::Ambiguous, "{body}");
        // What is kept shows in the next call of a refresher.
        let cut = bytes(format!("{head}{body}")).close();
        let issuer = Upstream::always(move |request: &Request| match request.number {
            0 => cut.clone(),
            _ => grant("token", 3600),
        })
        .start()
        .await;
        let cloud = Upstream::new().start().await;
        let proxy = proxy(&cloud.origin(), &[("token.issuer", &issuer.origin())]);
        proxy.ready().await;
        let sent = issuer.requests()[1].refresh_token();
        assert_eq!(sent, kept.unwrap_or("seed"), "{body}");
    }
}

#[tokio::test]
async fn field_a1_the_echo_of_the_token_that_was_sent_replaces_nothing() {
    let echo = serde_json::json!({ "refresh_token": TOKEN }).to_string();
    for (body, is_rotated) in [
        (echo.clone(), false),
        (echo.trim_end_matches('}').to_owned(), false),
        (echo.replace("r3fresh", "another"), true),
    ] {
        let issuer = Upstream::always(ok(body)).start().await;
        let failure = call(&config(&issuer.origin())).await.expect_err("no token");
        assert_eq!(failure.class, FailureClass::Garbled);
        let is_kept = !format!("{failure:?}").contains("rotated: None");
        assert_eq!(is_kept, is_rotated);
    }
}

#[tokio::test]
async fn field_a11_a_response_is_read_as_long_as_the_access_token_lives() {
    // The response to the second call comes when the test has seen that the call is late.
    let (release, released) = watch::channel(false);
    let issuer = Upstream::always(move |request: &Request| {
        let released = released.clone();
        match request.number {
            0 => grant("first", 8),
            _ => grant("second", 3600).after(move || {
                let mut released = released.clone();
                async move {
                    released.wait_for(|released| *released).await.unwrap();
                }
            }),
        }
    })
    .start()
    .await;
    let cloud = Upstream::new().start().await;
    let proxy = proxy(
        &cloud.origin(),
        &[
            ("token.issuer", &issuer.origin()),
            ("token.timeout", "100ms"),
            ("token.grace_retry", "false"),
        ],
    );
    proxy.ready().await;
    let credential = proxy.app.credential();
    eventually("the call is late", async || {
        credential.snapshot().reason == Reason::IssuerUnreachable
    })
    .await;
    eventually("three timeouts are over", async || {
        issuer.requests()[1].arrived.elapsed() > Duration::from_millis(500)
    })
    .await;
    assert_eq!(credential.snapshot().state, State::Stale);
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(issuer.count(), 2, "nothing else was called");
    release.send(true).unwrap();
    eventually("the response is used", async || {
        credential.snapshot().state == State::Fresh
    })
    .await;
    assert_eq!(credential.snapshot().generation, 2);
    assert_eq!(issuer.count(), 2);
}

#[tokio::test]
async fn field_a11_data_that_arrived_during_a_pause_of_the_process_is_read_before_the_deadline() {
    let config = |origin: &str| IssuerConfig {
        timeout: Duration::from_millis(100),
        ..config(origin)
    };
    for parts in [1, 40] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (received, is_received) = oneshot::channel();
        let (paused, is_paused) = mpsc::channel();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            received.send(()).unwrap();
            is_paused.recv().unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", GRANT.len());
            let message = [head.as_bytes(), GRANT.as_bytes()].concat();
            for part in message.chunks(message.len().div_ceil(parts)) {
                stream.write_all(part).unwrap();
            }
        });
        // This runtime has one thread: while it sleeps, timers expire and data arrive.
        let pause = async {
            is_received.await.unwrap();
            paused.send(()).unwrap();
            #[allow(clippy::disallowed_methods, reason = "the pause is what is tested")]
            thread::sleep(Duration::from_millis(800));
        };
        let config = config(&origin);
        let (tokens, ()) = tokio::join!(call(&config), pause);
        assert_granted(&tokens.expect("the response was there"), "paused");
        server.join().unwrap();
    }
}

#[tokio::test]
async fn field_a16_a_connection_that_never_stands_uses_nothing() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let ca_file = write(folder.path(), "ca.pem", &authority.pem());
    let (_socket, _fillers, black_hole) = black_hole();
    let hanging_handshake = format!("https://{}", silent_upstream().await);
    let refused = format!("http://{}", closed_address());
    let unknown = "http://does-not-exist.invalid".to_owned();
    let not_tls = Upstream::always(silence()).start().await.origin();
    let not_tls = not_tls.replace("http:", "https:");
    for origin in [black_hole, hanging_handshake, refused, unknown, not_tls] {
        for timeout in [100, 300] {
            let mut config = config(&origin);
            config.timeout = Duration::from_millis(timeout);
            config.tls.ca_file = Some(ca_file.clone());
            let failure = call(&config).await.expect_err("no connection");
            assert_eq!(
                failure.class,
                FailureClass::Unreachable,
                "{origin}: {}",
                failure.detail
            );
        }
        let cloud = Upstream::new().start().await;
        let proxy = proxy(
            &cloud.origin(),
            &[
                ("token.issuer", &origin),
                ("token.timeout", "100ms"),
                ("token.grace_retry", "false"),
                ("token.tls.ca_file", &ca_file.display().to_string()),
            ],
        );
        let credential = proxy.app.credential();
        eventually("two calls fail", async || {
            let refreshes = credential.snapshot().refreshes;
            let failed =
                |(outcome, count): &(Outcome, u64)| *outcome == Outcome::Transient && *count > 1;
            refreshes.iter().any(failed)
        })
        .await;
        assert_eq!(credential.snapshot().state, State::Starting, "{origin}");
    }
}

#[tokio::test]
async fn field_a16_a_refused_client_certificate_uses_nothing() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), authority());
    let tls = server_config(&authority, identity(&authority, "localhost", false), true);
    let issuer = Upstream::always(ok(GRANT)).start_tls(tls).await;
    let mut config = config(&issuer.origin());
    config.tls.ca_file = Some(write(folder.path(), "ca.pem", &authority.pem()));
    let failure = call(&config).await.expect_err("no certificate");
    assert_eq!(
        failure.class,
        FailureClass::Unreachable,
        "{}",
        failure.detail
    );
    assert_eq!(issuer.count(), 0);
}

#[tokio::test]
async fn field_a3_an_issuer_that_comes_back_is_noticed_within_seconds_or_at_once_on_request() {
    let address = closed_address();
    let cloud = Upstream::new().start().await;
    let proxy = proxy(
        &cloud.origin(),
        &[("token.issuer", &format!("http://{address}"))],
    );
    let credential = proxy.app.credential();
    let failures = || {
        let refreshes = credential.snapshot().refreshes;
        refreshes.iter().map(|(_, count)| count).sum::<u64>()
    };
    eventually("a few calls fail", async || failures() > 3).await;
    for _ in 0..3 {
        let before = failures();
        assert_eq!(
            send(proxy.admin, post("/token/refresh", "")).await.status(),
            202
        );
        eventually("it is called at once", async || failures() > before).await;
    }
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    grant("token", 3600).send(&mut stream).await.unwrap();
    proxy.ready().await;
}

#[tokio::test]
async fn field_a14_a_changed_client_secret_is_tried_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let secret_file = write(folder.path(), "client_secret", "old");
    let issuer = Upstream::always(|request: &Request| {
        match request.fields("authorization")[..] {
            // demo:new
            ["Basic ZGVtbzpuZXc="] => grant("token", 3600),
            _ => oauth_error("invalid_client"),
        }
    })
    .start()
    .await;
    let cloud = Upstream::new().start().await;
    let proxy = proxy(
        &cloud.origin(),
        &[
            ("token.issuer", &issuer.origin()),
            (
                "token.client_secret_file",
                &secret_file.display().to_string(),
            ),
        ],
    );
    let credential = proxy.app.credential();
    let is_dead = async || credential.snapshot().state == State::Dead;
    eventually("the client is refused", is_dead).await;
    // Another wrong one, then one that was refused already.
    for (secret, calls) in [("wrong", 2), ("old", 2), ("wrong", 2)] {
        std::fs::write(&secret_file, secret).unwrap();
        eventually(secret, async || issuer.count() == calls).await;
    }
    std::fs::write(&secret_file, "new").unwrap();
    proxy.ready().await;
    assert_eq!(issuer.count(), 3);
}

/// The response of an issuer that refuses for a while.
fn unavailable(fields: &str) -> Reply {
    response("503 Service Unavailable", fields, "")
}

#[tokio::test]
async fn field_a3_only_the_issuers_own_retry_after_holds_an_operator_back() {
    for (fields, status) in [("", 202), ("Retry-After: 100\r\n", 429)] {
        let issuer = Upstream::always(move |request: &Request| match request.number {
            0..2 if status == 202 => unavailable(fields),
            0 => unavailable(fields),
            _ => grant("token", 3600),
        })
        .start()
        .await;
        let cloud = Upstream::new().start().await;
        let proxy = proxy(&cloud.origin(), &[("token.issuer", &issuer.origin())]);
        let credential = proxy.app.credential();
        let calls = if status == 202 { 2 } else { 1 };
        eventually("it backs off", async || {
            issuer.count() == calls && credential.snapshot().reason != Reason::Refreshing
        })
        .await;
        let refused = send(proxy.admin, post("/token/refresh", "")).await;
        assert_eq!(refused.status(), status);
        if status == 202 {
            proxy.ready().await;
        } else {
            proxy.app.reload_files();
            assert_eq!(send(proxy.admin, get("/readyz")).await.status(), 503);
            assert_eq!(issuer.count(), 1);
        }
    }
}
