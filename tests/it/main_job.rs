//! End-to-end tests over real sockets: the proxy in front of the simulated cloud.

use std::{sync::Arc, time::Duration};

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config, IssuerResponse},
};
use tokio::task::JoinSet;

use crate::common::{Client, LIMIT, Proxy, eventually, get, post, proxy, raw, send};

async fn cloud(config: Config) -> Cloud {
    Cloud::start(config, clock::system()).await.unwrap()
}

fn hour_long() -> Config {
    Config {
        seeds: vec!["seed".into()],
        ..Config::new("demo", "secret")
    }
}

/// The refresh margin is half of this lifetime, so the proxy refreshes the token every second.
fn two_seconds() -> Config {
    Config {
        token_lifetime: Duration::from_secs(2),
        ..hour_long()
    }
}

async fn in_front_of(cloud: &Cloud, more: &[(&str, &str)]) -> Proxy {
    let proxy = proxy(cloud.origin(), more);
    proxy.ready().await;
    proxy
}

async fn ask_for_a_refresh(proxy: &Proxy) {
    eventually("the admin endpoint accepts a refresh request", async || {
        send(proxy.admin, post("/token/refresh", "")).await.status() == 202
    })
    .await;
}

fn json(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_carries_one_token_whatever_the_client_sends() {
    let cloud = cloud(hour_long()).await;
    let proxy = in_front_of(&cloud, &[]).await;
    for fields in [
        "",
        "Authorization: Bearer theirs\r\n",
        "Authorization: Basic dTpw\r\nAuthorization: Bearer second\r\n",
        "Connection: Authorization\r\nAuthorization: x\r\n",
        "Proxy-Authorization: Basic dTpw\r\n",
    ] {
        let request = format!(
            "GET /api/echo.do HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n"
        );
        let answer = raw(proxy.address, request.as_bytes(), LIMIT).await;
        let echo = json(answer.split_once("\r\n\r\n").unwrap().1.as_bytes());
        assert_eq!(echo["authorization_count"], 1, "{fields}: {answer}");
        assert_eq!(
            echo["headers"]["authorization"][0], "token #1",
            "{fields}: {answer}"
        );
    }
    assert!(
        cloud
            .received()
            .iter()
            .all(|request| request.authorization_count == 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_refreshed_ahead_of_expiry_and_no_request_notices() {
    let cloud = cloud(two_seconds()).await;
    let proxy = in_front_of(&cloud, &[]).await;
    let mut client = Client::connect(proxy.address).await;
    while cloud.issuer_successes() < 4 {
        assert_eq!(
            client.send(get("/api/echo.do")).await.unwrap().status(),
            200
        );
    }
    assert!(
        cloud.received().iter().all(|request| request.status == 200),
        "the cloud refused a request"
    );
    assert_eq!(cloud.families_revoked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refreshing_goes_on_without_traffic() {
    let cloud = cloud(two_seconds()).await;
    let _proxy = in_front_of(&cloud, &[]).await;
    eventually("the proxy refreshes the token three times", async || {
        cloud.issuer_successes() >= 3
    })
    .await;
    assert_eq!(cloud.file_requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_costs_one_verification_one_refresh_and_one_replay() {
    let cloud = cloud(hour_long()).await;
    let proxy = in_front_of(&cloud, &[]).await;
    assert_eq!(proxy.get("/api/echo.do").await.status(), 200);
    cloud.revoke_access_tokens();
    let answer = proxy.send(post("/api/echo.do", "the body")).await;
    assert_eq!(answer.status(), 200);
    let echo = json(answer.body());
    assert_eq!(
        (&echo["body_length"], &echo["headers"]["authorization"][0]),
        (&8.into(), &"token #2".into())
    );
    assert_eq!(cloud.issuer_calls(), 2);
    let statuses: Vec<_> = cloud
        .received()
        .iter()
        .filter(|r| r.path == "/api/echo.do")
        .map(|r| r.status)
        .collect();
    // The token was accepted before: it is tried once more, over another connection.
    assert_eq!(statuses, [200, 401, 401, 200]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_refused_at_once_cost_one_refresh() {
    let cloud = Arc::new(cloud(hour_long()).await);
    let proxy = in_front_of(&cloud, &[]).await;
    // All connections are open before the cloud revokes the token.
    let mut clients = Vec::new();
    for _ in 0..1000 {
        clients.push(Client::connect(proxy.address).await);
    }
    cloud.revoke_access_tokens();
    let mut requests = JoinSet::new();
    for mut client in clients {
        requests.spawn(async move {
            client
                .send(get("/api/echo.do"))
                .await
                .unwrap()
                .status()
                .as_u16()
        });
    }
    let statuses = tokio::time::timeout(LIMIT, requests.join_all())
        .await
        .unwrap();
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        1000
    );
    assert_eq!(cloud.issuer_calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_always_refuses_is_passed_on_and_refreshes_stay_within_the_cooldown() {
    let cloud = cloud(hour_long()).await;
    cloud.faults().reject_paths = vec!["/".into()];
    let proxy = in_front_of(&cloud, &[]).await;
    for _ in 0..300 {
        let answer = proxy.get("/api/echo.do").await;
        assert_eq!(answer.status(), 401);
        assert_eq!(json(answer.body())["code"], 401);
    }
    // The proxy requests the first token, and one more after the cloud refuses the first.
    assert_eq!(cloud.issuer_calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_path_that_always_refuses_does_not_disturb_the_others() {
    let cloud = cloud(hour_long()).await;
    cloud.faults().reject_paths = vec!["/api/bytes.do".into()];
    let proxy = in_front_of(&cloud, &[]).await;
    for _ in 0..200 {
        assert_eq!(proxy.get("/api/bytes.do?size=1").await.status(), 401);
        assert_eq!(proxy.get("/api/echo.do").await.status(), 200);
    }
    assert_eq!(cloud.issuer_calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_cooldown_a_refusal_leads_to_a_refresh_again() {
    let cloud = cloud(hour_long()).await;
    cloud.faults().reject_paths = vec!["/".into()];
    let proxy = in_front_of(&cloud, &[("retry.cooldown", "200ms")]).await;
    eventually("the proxy calls the issuer a third time", async || {
        assert_eq!(proxy.get("/api/echo.do").await.status(), 401);
        cloud.issuer_calls() >= 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_issuer_is_down_the_valid_token_serves_and_then_there_is_an_honest_503() {
    let config = Config {
        token_lifetime: Duration::from_secs(3),
        ..hour_long()
    };
    let cloud = cloud(config).await;
    let proxy = in_front_of(&cloud, &[("token.wait", "100ms")]).await;
    cloud
        .faults()
        .script(&IssuerResponse::Status(500, None), 1_000_000);
    eventually("the issuer refuses a refresh", async || {
        cloud.issuer_calls() >= 2
    })
    .await;
    let (mut served, mut is_late) = (0, false);
    loop {
        let answer = proxy.get("/api/echo.do").await;
        if answer.status() == 200 {
            served += 1;
            continue;
        }
        // The token may expire while one request is under way.
        if answer.status() == 401 && !std::mem::replace(&mut is_late, true) {
            continue;
        }
        // The cloud receives no expired token. The proxy itself sends the error response.
        assert_eq!(answer.status(), 503);
        assert!(
            answer.headers()["retry-after"]
                .to_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                >= 1
        );
        break;
    }
    assert!(served > 10, "{served} requests succeeded");
    let received = cloud.received();
    let rejected = received
        .iter()
        .filter(|r| r.path == "/api/echo.do" && r.status != 200);
    // That request and its second opinion.
    assert!(rejected.count() <= if is_late { 2 } else { 0 });
    let readiness = send(proxy.admin, get("/readyz")).await;
    assert_eq!(
        (
            readiness.status().as_u16(),
            &json(readiness.body())["state"]
        ),
        (503, &"expired".into())
    );
    // The proxy recovers without a restart.
    cloud.faults().clear();
    proxy.ready().await;
    assert_eq!(proxy.get("/api/echo.do").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_first_token_it_listens_and_says_when_to_come_back() {
    let cloud = cloud(hour_long()).await;
    cloud
        .faults()
        .script(&IssuerResponse::Status(503, Some(2)), 1);
    let proxy = proxy(cloud.origin(), &[("token.wait", "50ms")]);
    let answer = proxy.get("/api/echo.do").await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let seconds: u64 = answer.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=2).contains(&seconds), "{seconds}");
    assert_eq!(
        cloud.file_requests(),
        0,
        "the proxy sent a request without a token"
    );
    proxy.ready().await;
    assert_eq!(proxy.get("/api/echo.do").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_the_first_token() {
    let cloud = cloud(hour_long()).await;
    cloud.faults().issuer_latency = Duration::from_millis(300);
    let proxy = proxy(cloud.origin(), &[]);
    assert_eq!(proxy.get("/api/echo.do").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_issuer_sends_never_replaces_a_good_token() {
    let body = |body: &str| IssuerResponse::Raw {
        status: 200,
        headers: vec![],
        body: body.as_bytes().to_vec(),
    };
    for bad in [
        body(""),
        body("<html>sorry</html>"),
        body("{}"),
        body(r#"{"access_token":"a\r\nb","expires_in":3600}"#),
        body(r#"{"access_token":"a b","expires_in":3600}"#),
        body(r#"{"access_token":"ok","token_type":"mac","expires_in":3600}"#),
        IssuerResponse::Endless,
    ] {
        let cloud = cloud(hour_long()).await;
        let proxy = in_front_of(
            &cloud,
            &[("token.timeout", "2s"), ("retry.cooldown", "10ms")],
        )
        .await;
        cloud.faults().script(&bad, 1_000_000);
        ask_for_a_refresh(&proxy).await;
        eventually("the proxy receives the invalid response", async || {
            let status = json(send(proxy.admin, get("/status")).await.body());
            status["credentials"][0]["last_refreshes"]
                .as_array()
                .unwrap()
                .len()
                >= 2
        })
        .await;
        let answer = proxy.get("/api/echo.do").await;
        assert_eq!(answer.status(), 200, "{bad:?}");
        assert_eq!(
            json(answer.body())["headers"]["authorization"][0],
            "token #1",
            "{bad:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_refresh_token_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("token.json");
    let state = state.to_str().unwrap();
    let cloud = cloud(two_seconds()).await;
    let first = in_front_of(&cloud, &[("token.state_file", state)]).await;
    eventually("the proxy rotates the refresh token", async || {
        cloud.issuer_successes() >= 2
    })
    .await;
    first.app.shut_down().await;
    let second = in_front_of(&cloud, &[("token.state_file", state)]).await;
    assert_eq!(second.get("/api/echo.do").await.status(), 200);
    let before = cloud.issuer_successes();
    eventually(
        "the proxy continues to rotate the refresh token",
        async || cloud.issuer_successes() > before,
    )
    .await;
    assert_eq!(
        cloud.families_revoked(),
        0,
        "the proxy used a refresh token twice"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_in_mid_refresh_loses_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("token.json");
    let state = state.to_str().unwrap();
    let cloud = cloud(two_seconds()).await;
    let first = in_front_of(&cloud, &[("token.state_file", state)]).await;
    cloud.faults().issuer_latency = Duration::from_millis(500);
    let calls = cloud.issuer_calls();
    eventually("a slow refresh is in progress", async || {
        cloud.issuer_calls() > calls
    })
    .await;
    first.app.shut_down().await;
    let second = in_front_of(&cloud, &[("token.state_file", state)]).await;
    let before = cloud.issuer_successes();
    eventually(
        "the proxy continues to rotate the refresh token",
        async || cloud.issuer_successes() > before,
    )
    .await;
    assert_eq!(
        (
            cloud.families_revoked(),
            second.get("/api/echo.do").await.status().as_u16()
        ),
        (0, 200)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_up_and_down_whole() {
    let cloud = cloud(hour_long()).await;
    let proxy = in_front_of(&cloud, &[]).await;
    let answer = proxy.get("/api/bytes.do?size=5000000").await;
    assert_eq!(answer.status(), 200);
    let expected: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    assert!(
        answer.body() == &expected,
        "the response has {} bytes",
        answer.body().len()
    );
    let answer = proxy.send(post("/api/echo.do", expected.clone())).await;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &expected);
    let hex: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(json(answer.body())["body_sha256"], hex);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_with_special_characters_survive() {
    let secret = "p+%&=ü :/?#";
    let seed = "r+%&=ü /?#";
    let config = Config {
        seeds: vec![seed.into()],
        ..Config::new("id+%&=ü", secret)
    };
    let cloud = cloud(config).await;
    let given = [
        ("token.client_id", "id+%&=ü"),
        ("token.client_secret", secret),
        ("token.refresh_token", seed),
    ];
    let proxy = in_front_of(&cloud, &given).await;
    assert_eq!(proxy.get("/api/echo.do").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_may_refresh_once_a_cooldown() {
    let cloud = cloud(hour_long()).await;
    let proxy = in_front_of(&cloud, &[("retry.cooldown", "2s")]).await;
    assert_eq!(
        send(proxy.admin, post("/token/refresh", "")).await.status(),
        429,
        "the cooldown of the first refresh is not over"
    );
    ask_for_a_refresh(&proxy).await;
    eventually("the proxy refreshes the token", async || {
        cloud.issuer_successes() == 2
    })
    .await;
    let refused = send(proxy.admin, post("/token/refresh", "")).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(send(proxy.admin, get("/token/refresh")).await.status(), 405);
}
