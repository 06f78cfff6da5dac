//! Replicas with a real Redis server: what status, metrics and readiness show of it.
#![cfg(target_os = "linux")]

use std::net::SocketAddr;

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config},
};
use serde_json::Value;
use url::Url;

use crate::common::{
    eventually, get,
    process::{Program, Running, free_address, listens, start_installed},
    send, text_at,
};

/// A Redis server without persistence.
struct Redis {
    address: SocketAddr,
    _folder: tempfile::TempDir,
    running: Option<Running>,
}

impl Redis {
    async fn start() -> Self {
        let mut redis = Self {
            address: free_address(),
            _folder: tempfile::tempdir().unwrap(),
            running: None,
        };
        redis.restart().await;
        redis
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    fn stop(&mut self) {
        self.running = None;
    }

    async fn restart(&mut self) {
        self.stop();
        let (port, folder) = (self.address.port().to_string(), self._folder.path());
        let folder = folder.display().to_string();
        let arguments = ["--port", &port, "--dir", &folder, "--save", ""];
        self.running = Some(start_installed("redis-server", &arguments));
        listens(self.address).await;
    }
}

/// A replica with the tokens of this store, in front of this cloud.
fn replica(cloud: &Cloud, redis: &Redis, more: &str) -> Program {
    let url = redis.url();
    let store = format!("token.store = {{ kind = \"redis\", url = \"{url}\" }}\n{more}");
    Program::new(cloud.origin(), &store)
}

async fn strict_cloud() -> Cloud {
    let config = Config {
        seeds: vec!["seed".into()],
        ..Config::new("demo", "secret")
    };
    Cloud::start(config, clock::system()).await.unwrap()
}

async fn store(program: &Program) -> Value {
    program.credential().await["store"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_shown_while_it_is_up_and_while_it_is_down() {
    let cloud = strict_cloud().await;
    let mut redis = Redis::start().await;
    let program = replica(&cloud, &redis, "");
    let running = program.start_ready().await;
    eventually("it has settled", async || {
        store(&program).await["settled"] == true
    })
    .await;
    let seen = store(&program).await;
    let shown = |name: &str| seen[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(shown("kind"), "redis");
    assert_eq!(shown("server"), redis.url());
    assert_eq!(shown("role"), "primary");
    assert_eq!(shown("persistence"), "none");
    assert!(
        shown("version").starts_with("Redis ") || shown("version").starts_with("Valkey "),
        "{seen}"
    );
    assert!(
        shown("replica").ends_with(&format!(":{}", running.0.id())),
        "{seen}"
    );
    assert_eq!(seen["up"], true);
    assert_eq!(seen["findings"].as_array().unwrap().len(), 1, "{seen}");
    assert!(seen["serial"].as_u64().unwrap() > 0);
    assert_eq!(seen["claim"], Value::Null);
    let (code, text, _) = program.run(&["status"]);
    assert_eq!(code, 0);
    let line = format!("store redis: {}, up since ", redis.url());
    assert!(
        text.contains(&line) && text.contains(", settled\n"),
        "{text}"
    );
    let page = text_at(program.admin, "/").await;
    assert!(page.contains("is <strong>up</strong>"), "{page}");
    for (name, value) in [
        ("token_store_up", 1.0),
        ("token_claims_total{outcome=\"claimed\"}", 1.0),
        ("token_settling", 0.0),
        ("token_store_restores_total{reason=\"empty\"}", 0.0),
    ] {
        let name = format!("bearer_proxy_{name}");
        assert_eq!(program.metric(&name).await, value, "{name}");
    }

    redis.stop();
    eventually("the store is reported", async || {
        program.credential().await["reason"] == "store_unreachable"
    })
    .await;
    let ready = text_at(program.admin, "/readyz").await;
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(ready["ready"], true, "the token is valid");
    assert_eq!(ready["reason"], "store_unreachable");
    let seen = store(&program).await;
    assert_eq!((&seen["up"], &seen["since"]), (&false.into(), &Value::Null));
    assert!(seen["problem"].is_string(), "{seen}");
    assert_eq!(program.metric("bearer_proxy_token_store_up").await, 0.0);
    let errors = "bearer_proxy_token_store_errors_total{error=\"store_unreachable\"}";
    assert!(program.metric(errors).await > 0.0);
    let (code, text, _) = program.run(&["status"]);
    assert_eq!(code, 0);
    assert!(text.contains(", DOWN"), "{text}");

    redis.restart().await;
    let restores = "bearer_proxy_token_store_restores_total{reason=\"empty\"}";
    eventually("the record is written back", async || {
        program.metric(restores).await == 1.0
    })
    .await;
    eventually("the store is up", async || {
        program.credential().await["reason"] == "ok"
    })
    .await;
    assert_eq!(program.metric("bearer_proxy_token_store_up").await, 1.0);
}

/// Runs both steps of a login whose code a person passes on.
async fn log_in(program: &Program) -> (i32, String, String) {
    let (_, out, error) = program.run(&["login"]);
    let url = out.lines().find(|line| line.starts_with("http"));
    let url: Url = url.unwrap_or_else(|| panic!("{error}")).parse().unwrap();
    let address = url.socket_addrs(|| None).unwrap()[0];
    let response = send(address, get(&url[url::Position::BeforePath..])).await;
    let callback = response.headers()["location"].to_str().unwrap();
    program.run(&["login", "--code", callback])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_revives_dead_replicas_and_needs_the_store() {
    const LOGIN: &str = "token.redirect_uri = \"https://app.example.com/back\"\n";
    let config = Config {
        seeds: vec!["seed".into()],
        redirect_uri: Some("https://app.example.com/back".into()),
        ..Config::new("demo", "secret")
    };
    let cloud = Cloud::start(config, clock::system()).await.unwrap();
    let mut redis = Redis::start().await;
    let with_copy = format!("{LOGIN}token.state_file = \"state/token.json\"\n");
    let replicas = [
        replica(&cloud, &redis, LOGIN),
        replica(&cloud, &redis, &with_copy),
    ];
    // Neither has a refresh token that the cloud accepts.
    for program in &replicas {
        let text = program.read("proxy.toml").replace("\"seed\"", "\"wrong\"");
        program.write("proxy.toml", text);
    }
    let _running: Vec<_> = replicas.iter().map(Program::start).collect();
    for program in &replicas {
        listens(program.admin).await;
        eventually("it is dead", async || {
            program.credential().await["state"] == "dead"
        })
        .await;
    }
    let (code, out, error) = log_in(&replicas[1]).await;
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("in the shared store and in ./state/"), "{out}");
    for program in &replicas {
        eventually("it has the new token", async || {
            program.credential().await["state"] == "fresh"
        })
        .await;
        assert_eq!(program.get("/api/file/list.do").await, 200);
    }
    let copy: Value = serde_json::from_str(&replicas[1].read("state/token.json")).unwrap();
    let token = copy["refresh_token"].as_str().unwrap();
    assert!(!(out + &error).contains(token));
    // Without a state file, and over a valid chain.
    let before = replicas[1].generation().await;
    let (code, out, error) = log_in(&replicas[0]).await;
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("in the shared store:"), "{out}");
    eventually("the other replica has the new token", async || {
        replicas[1].generation().await > before
    })
    .await;
    assert_eq!(replicas[1].get("/api/file/list.do").await, 200);
    assert_eq!(cloud.families_revoked(), 0);

    redis.stop();
    let calls = cloud.issuer_calls();
    let (code, _, error) = replicas[0].run(&["login", "--code", "c0de"]);
    assert_eq!(code, 1);
    assert!(error.contains("the shared token store: "), "{error}");
    assert_eq!(cloud.issuer_calls(), calls, "the code was not used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_refuses_what_run_refuses_and_needs_no_store() {
    let program = Program::new("http://127.0.0.1:1", "");
    program.write("short", "AAAA\n");
    program.write("empty", "");
    let store = |more: &str| {
        let store = "kind = \"redis\", url = \"rediss://127.0.0.1:1\"";
        format!("token.store = {{ {store}{more} }}\n")
    };
    for (more, key) in [
        (", key_file = \"short\"", "token.store.key"),
        (", key_file = \"missing\"", "token.store.key"),
        (", tls.ca_file = \"empty\"", "token.store.tls.ca_file"),
        (
            ", tls.client_cert_file = \"empty\"",
            "token.store.tls.client",
        ),
    ] {
        program.configure("http://127.0.0.1:1", &store(more));
        for command in ["check", "run"] {
            let (code, _, error) = program.run(&[command]);
            assert!(
                code == 78 && error.contains(key),
                "{command}{more}: {error}"
            );
        }
    }
    program.configure("http://127.0.0.1:1", &store(""));
    let (code, _, error) = program.run(&["check"]);
    assert_eq!(code, 0, "{error}");
}
