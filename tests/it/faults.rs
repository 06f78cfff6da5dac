//! Faults of the issuer, numbered as in the list of faults that the project is measured by; over real sockets.

use std::{sync::Arc, time::Duration};

use bearer_proxy::{
    base::clock::{self, Clock as _, Jump, Simulated},
    cloud::Cloud,
    token::{Outcome, Reason, State},
};
use tokio::net::TcpListener;

use crate::common::{
    Client, LIMIT, Proxy, eventually, get, post, proxy, proxy_on, read_head, send, simulated_cloud,
    text_at,
    upstream::{
        Reply, Request, RunningUpstream, Upstream, bytes, grant, oauth_error, response, silence,
    },
};

/// An issuer that replies to its nth call (from 0) as the closure says.
async fn issuer(reply: impl Fn(usize) -> Reply + Send + Sync + 'static) -> RunningUpstream {
    let reply = move |request: &Request| reply(request.number);
    Upstream::always(reply).start().await
}

async fn with_issuer(issuer: &str, more: &[(&str, &str)]) -> Proxy {
    let usual = [
        ("token.issuer", issuer),
        ("token.wait", "1s"),
        ("token.timeout", "1s"),
    ];
    let settings: Vec<_> = usual.into_iter().chain(more.iter().copied()).collect();
    let cloud = Upstream::new().start().await;
    proxy(&cloud.origin(), &settings)
}

fn count(proxy: &Proxy, outcome: Outcome) -> u64 {
    let refreshes = proxy.app.credential().snapshot().refreshes;
    refreshes
        .into_iter()
        .find(|(other, _)| *other == outcome)
        .unwrap()
        .1
}

async fn until(proxy: &Proxy, state: State, reason: Reason) {
    let reached = || {
        let snapshot = proxy.app.credential().snapshot();
        (snapshot.state, snapshot.reason) == (state, reason)
    };
    eventually(&format!("{state:?} {reason:?}"), async || reached()).await;
}

/// Sends requests as long as the token lives. Each must succeed.
async fn serves_until_expiry(proxy: &Proxy) {
    let left = || {
        proxy
            .app
            .credential()
            .snapshot()
            .expires_in
            .unwrap_or_default()
    };
    let mut requests = 0;
    while left() > Duration::from_millis(200) {
        assert_eq!(proxy.get("/").await.status(), 200);
        requests += 1;
    }
    assert!(requests > 10);
    eventually("it expires", async || left().is_zero()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_1_and_2_issuer_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let grant_one = async |listener: &TcpListener, lifetime| {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await.unwrap();
        grant("token", lifetime).send(&mut stream).await.unwrap();
    };
    let proxy = with_issuer(&format!("http://{address}"), &[]).await;
    grant_one(&listener, 3).await;
    proxy.ready().await;
    drop(listener);
    serves_until_expiry(&proxy).await;
    until(&proxy, State::Expired, Reason::IssuerUnreachable).await;
    let refused = proxy.get("/").await;
    assert_eq!(refused.status(), 503);
    let retry_after: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=300).contains(&retry_after));
    let listener = TcpListener::bind(address).await.unwrap();
    grant_one(&listener, 3600).await;
    proxy.ready().await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_3_issuer_hangs() {
    let issuer = issuer(|number| match number {
        0 => grant("token", 4),
        _ => silence(),
    })
    .await;
    let proxy = with_issuer(&issuer.origin(), &[]).await;
    proxy.ready().await;
    serves_until_expiry(&proxy).await;
    eventually("the call is cut", async || {
        count(&proxy, Outcome::Ambiguous) > 0
    })
    .await;
    assert!(issuer.count() > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_4_issuer_throttles_and_fails() {
    let issuer = issuer(|number| match number {
        0 => response("429 Too Many Requests", "Retry-After: 2\r\n", ""),
        1 => response("503 Service Unavailable", "Retry-After: 2\r\n", ""),
        2 => response("500 Internal Server Error", "", ""),
        _ => grant("token", 3600),
    })
    .await;
    let proxy = with_issuer(&issuer.origin(), &[]).await;
    for _ in 0..20 {
        send(proxy.admin, post("/token/refresh", "")).await;
    }
    proxy.ready().await;
    let gaps = issuer.gaps();
    assert_eq!(gaps.len(), 3, "{gaps:?}");
    assert!(
        gaps[..2].iter().all(|gap| *gap >= Duration::from_secs(2))
            && gaps[2] >= Duration::from_secs(1),
        "{gaps:?}"
    );
    assert_eq!(
        (
            count(&proxy, Outcome::Throttled),
            count(&proxy, Outcome::Transient)
        ),
        (2, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_5_and_6_garbage_and_endless_responses() {
    let endless = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n{}",
        "[".repeat(100_000)
    );
    for garbage in [
        response("200 OK", "", "{"),
        response(
            "200 OK",
            "Content-Type: text/html\r\n",
            "<html>please log in</html>",
        ),
        response("200 OK", "", r#"{"expires_in":3600}"#),
        response("200 OK", "", r#"{"access_token":7}"#),
        response("200 OK", "", ""),
        response(
            "200 OK",
            "",
            r#"{"access_token":"abc","expires_in":3600,"token_type":"mac"}"#,
        ),
        bytes(endless),
    ] {
        let bad = garbage.clone().close();
        let issuer = issuer(move |number| match number {
            0 => grant("good", 2),
            _ => bad.clone(),
        })
        .await;
        let proxy = with_issuer(&issuer.origin(), &[]).await;
        proxy.ready().await;
        eventually("it is counted apart", async || {
            count(&proxy, Outcome::Garbled) > 0
        })
        .await;
        let snapshot = proxy.app.credential().snapshot();
        assert_eq!(
            (snapshot.generation, snapshot.reason),
            (1, Reason::IssuerGarbled),
            "{garbage:?}"
        );
        assert!(snapshot.expires_in.is_none() || proxy.get("/").await.status() == 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_7_lifetimes() {
    for lifetime in ["", r#""3600""#, "1.5", "0", "-1", "1e18", "{}"] {
        let field = if lifetime.is_empty() {
            String::new()
        } else {
            format!(r#","expires_in":{lifetime}"#)
        };
        let body = format!(r#"{{"access_token":"abc"{field}}}"#);
        let issuer = issuer(move |_| response("200 OK", "", &body)).await;
        let proxy = with_issuer(&issuer.origin(), &[]).await;
        proxy.ready().await;
        let second = Duration::from_millis(990);
        assert!(
            issuer.gaps().into_iter().all(|gap| gap >= second),
            "{lifetime}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a1_one_odd_response_of_a_rotating_issuer_costs_no_credential() {
    for odd in [
        &br#"{"access_token":"odd","expires_in":0,"refresh_token":"second"}"#[..],
        b"\xef\xbb\xbf{\"access_token\":\"odd\",\"expires_in\":1,\"refresh_token\":\"second\"}",
        b"{\"user\":\"\xc4\xe3\",\"access_token\":\"odd\",\"expires_in\":1,\"refresh_token\":\"second\"}",
        br#"{"access_token":"o d d","expires_in":3600,"refresh_token":"second"}"#,
        br#"{"expires_in":3600,"refresh_token":"second"}"#,
    ] {
        // It forgives nothing: a token that was spent is refused.
        let issuer = Upstream::always(move |request: &Request| {
            let body = match &*request.refresh_token() {
                "seed" => &br#"{"access_token":"1","expires_in":1,"refresh_token":"first"}"#[..],
                "first" => odd,
                "second" => br#"{"access_token":"3","expires_in":3600,"refresh_token":"third"}"#,
                _ => return oauth_error("invalid_grant"),
            };
            response("200 OK", "", body)
        })
        .start()
        .await;
        let proxy = with_issuer(&issuer.origin(), &[]).await;
        eventually("the odd response arrives", async || issuer.count() >= 2).await;
        let credential = proxy.app.credential();
        credential.refresh_now().ok();
        eventually("it goes on with the new refresh token", async || {
            credential.refresh_now().ok();
            issuer.count() >= 3 || credential.snapshot().state == State::Fresh
        })
        .await;
        let sent: Vec<_> = issuer.requests().iter().map(Request::refresh_token).collect();
        assert_eq!(&sent[..2], ["seed", "first"]);
        assert!(sent[2..].iter().all(|token| token == "second"), "{sent:?}");
        assert_ne!(credential.snapshot().state, State::Dead);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a2_a_refusal_in_other_clothes_is_not_repeated() {
    for refusal in [
        response("200 OK", "", r#"{"error":"invalid_grant"}"#),
        response("403 Forbidden", "", r#"{"error":"invalid_grant"}"#),
        response(
            "400 Bad Request",
            "",
            b"\xef\xbb\xbf{\"error\":\"invalid_grant\"}",
        ),
    ] {
        let issuer = issuer(move |_| refusal.clone()).await;
        let proxy = with_issuer(&issuer.origin(), &[]).await;
        until(&proxy, State::Dead, Reason::RefreshTokenRefused).await;
        assert_eq!(issuer.count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_8_invalid_grant() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("refresh_token");
    std::fs::write(&file, "first").unwrap();
    let issuer = Upstream::always(|request: &Request| match &*request.refresh_token() {
        "first" => grant("token", 3),
        "second" => grant("token", 3600),
        _ => oauth_error("invalid_grant"),
    })
    .start()
    .await;
    let path = file.to_str().unwrap();
    let proxy = with_issuer(&issuer.origin(), &[("token.refresh_token_file", path)]).await;
    until(&proxy, State::Dead, Reason::RefreshTokenRefused).await;
    assert_eq!(
        proxy
            .metric(r#"bearer_proxy_token_state{credential="default",state="dead"}"#)
            .await,
        1.0
    );
    let reason =
        r#"bearer_proxy_token_state_reason{credential="default",reason="refresh_token_refused"}"#;
    assert_eq!(proxy.metric(reason).await, 1.0);
    let since = proxy
        .metric(r#"bearer_proxy_token_state_since_timestamp_seconds{credential="default"}"#)
        .await;
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs_f64();
    assert!(
        since <= now && now - since < LIMIT.as_secs_f64(),
        "{since} at {now}"
    );
    let readiness =
        String::from_utf8(send(proxy.admin, get("/readyz")).await.body().to_vec()).unwrap();
    assert!(
        readiness.contains("refresh_token_refused") && readiness.contains("since"),
        "{readiness}"
    );
    assert_eq!(
        send(proxy.admin, get("/readyz")).await.status(),
        200,
        "a valid token still serves"
    );
    serves_until_expiry(&proxy).await;
    assert_eq!(send(proxy.admin, get("/readyz")).await.status(), 503);
    assert_eq!(issuer.count(), 2);
    std::fs::write(&file, "second").unwrap();
    proxy.ready().await;
    assert_eq!(issuer.count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_9_invalid_client() {
    let issuer = issuer(|_| oauth_error("invalid_client")).await;
    let proxy = with_issuer(&issuer.origin(), &[]).await;
    until(&proxy, State::Dead, Reason::ClientRefused).await;
    for _ in 0..10 {
        assert_eq!(
            send(proxy.admin, post("/token/refresh", "")).await.status(),
            429
        );
        assert_eq!(proxy.get("/").await.status(), 503);
    }
    assert_eq!(issuer.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_10_rotated_and_the_response_lost() {
    for is_forgiven in [true, false] {
        let issuer = issuer(move |number| match number {
            0 => grant("token", 2),
            1 => bytes("").close(),
            _ if is_forgiven => grant("newer", 3600),
            _ => oauth_error("invalid_grant"),
        })
        .await;
        let proxy = with_issuer(&issuer.origin(), &[]).await;
        if is_forgiven {
            eventually("the newer token", async || {
                proxy.app.credential().snapshot().generation == 2
            })
            .await;
        } else {
            until(&proxy, State::Dead, Reason::RefreshTokenRefused).await;
        }
        let requests = issuer.requests();
        assert_eq!(requests.len(), 3);
        for request in &requests[1..] {
            assert_eq!(request.refresh_token(), "next");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_12_the_state_file_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state/token.json");
    let issuer = issuer(|_| grant("token", 3600)).await;
    let proxy = with_issuer(
        &issuer.origin(),
        &[
            ("token.state_file", state.to_str().unwrap()),
            ("retry.cooldown", "1s"),
        ],
    )
    .await;
    proxy.ready().await;
    eventually("it is stored", async || state.exists()).await;
    let old = std::fs::read(&state).unwrap();
    // A file in the folder's place stops writing, also for root.
    let (folder, aside) = (state.parent().unwrap(), folder.path().join("aside"));
    std::fs::rename(folder, &aside).unwrap();
    std::fs::write(folder, "").unwrap();
    let generation = || proxy.app.credential().snapshot().generation;
    eventually("a refresh", async || {
        send(proxy.admin, post("/token/refresh", "")).await;
        generation() == 2
    })
    .await;
    assert_eq!(proxy.get("/").await.status(), 200, "served from memory");
    let status = async || text_at(proxy.admin, "/status").await;
    assert!(status().await.contains(r#""persisted": false"#));
    assert_eq!(std::fs::read(aside.join("token.json")).unwrap(), old);
    std::fs::remove_file(folder).unwrap();
    std::fs::rename(&aside, folder).unwrap();
    eventually("it is written", async || {
        status().await.contains(r#""persisted": true"#)
    })
    .await;
    assert_ne!(std::fs::read(&state).unwrap(), old);
}

/// A whole cloud, its issuer included, and its clock.
/// Statuses of all answers of the file interfaces.
fn file_statuses(cloud: &Cloud) -> Vec<u16> {
    cloud
        .received()
        .iter()
        .filter(|request| request.path == "/api/echo.do")
        .map(|request| request.status)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_13_the_calendar_jumps_and_the_machine_sleeps() {
    const TWO_DAYS: Duration = Duration::from_secs(2 * 24 * 3600);
    let clock = Arc::new(Simulated::new());
    let cloud = simulated_cloud(clock.clone()).await;
    let proxy = proxy_on(clock.clone(), cloud.origin(), &[]);
    proxy.ready().await;
    for direction in [Jump::Forwards, Jump::Backwards, Jump::Backwards] {
        clock.jump_wall(direction, TWO_DAYS);
        let before = proxy.app.credential().snapshot();
        assert_eq!(proxy.get("/api/echo.do").await.status(), 200);
        assert_eq!(
            (before.generation, cloud.issuer_calls()),
            (1, 1),
            "a jump is no reason to refresh"
        );
        assert!(
            before.expires_in.unwrap() > Duration::from_secs(3500),
            "{before:?}"
        );
    }
    for slept in 1..=3 {
        clock.suspend(TWO_DAYS);
        let woken = clock.now();
        assert_eq!(
            proxy.get("/api/echo.do").await.status(),
            200,
            "the first request after waking"
        );
        let token = proxy.app.credential().token().clone().unwrap();
        assert!(token.expires_at().saturating_since(woken) > Duration::from_secs(3500));
        assert_eq!(cloud.issuer_calls(), 1 + slept);
    }
    assert_eq!(
        file_statuses(&cloud),
        [200; 6],
        "nobody ever sent an expired token"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_17_a_revoked_token() {
    let cloud = simulated_cloud(clock::system()).await;
    let proxy = proxy(cloud.origin(), &[]);
    proxy.ready().await;
    cloud.revoke_access_tokens();
    assert_eq!(proxy.get("/api/echo.do").await.status(), 200);
    assert_eq!(
        (cloud.issuer_calls(), file_statuses(&cloud)),
        (2, vec![401, 200]),
        "one refresh, one replay"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_19_the_upstream_always_refuses() {
    const COOLDOWN: Duration = Duration::from_millis(500);
    let cloud = simulated_cloud(clock::system()).await;
    cloud.faults().reject_paths = vec!["/api/echo.do".into()];
    let proxy = proxy(cloud.origin(), &[("retry.cooldown", "500ms")]);
    proxy.ready().await;
    let (clock, begin) = (clock::system(), clock::system().now());
    let mut client = Client::connect(proxy.address).await;
    let passed = || clock.now().saturating_since(begin);
    while passed() < 5 * COOLDOWN {
        let answer = client.send(get("/api/echo.do")).await.unwrap();
        assert_eq!(answer.status(), 401);
        let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(body["code"], 401, "the upstream's own answer");
    }
    // The first token, one because it was refused, and then one a cooldown at the most.
    let most = 2 + passed().as_millis() / COOLDOWN.as_millis();
    let calls = u128::from(cloud.issuer_calls());
    assert!((3..=most).contains(&calls), "{calls} calls, at most {most}");
}
