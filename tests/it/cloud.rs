//! Tests of the simulated cloud over real sockets.

use std::{
    future::Future,
    io::{self, Write},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bearer_proxy::{
    base::clock::{Clock, Moment},
    cloud::{Cloud, Config, Event, IssuerResponse, SimulateArgs, simulate},
};
use clap::Parser;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use url::form_urlencoded::byte_serialize;

const LIMIT: Duration = Duration::from_secs(20);

/// Reads the clock of Tokio. The wall clock is constant.
#[derive(Debug)]
struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> Moment {
        Moment::since_boot(self.0.elapsed())
    }
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
    fn sleep_until(&self, deadline: Moment) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep_until(
            self.0 + deadline.elapsed_since_boot(),
        ))
    }
    fn boot_id(&self) -> Option<&str> {
        None
    }
}

fn clock() -> Arc<TestClock> {
    Arc::new(TestClock(Instant::now()))
}

async fn start(config: Config) -> Cloud {
    Cloud::start(config, clock()).await.unwrap()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .next()
    }
}

/// Sends one request to an http URL on a new connection.
async fn send(method: &str, url: &str, headers: &str, body: &[u8]) -> Answer {
    let (authority, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let length = body.len();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    raw(authority, &[head.as_bytes(), body].concat()).await
}

/// Sends these bytes and reads the response until the connection closes.
async fn raw(authority: &str, request: &[u8]) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(authority.parse::<SocketAddr>().unwrap())
            .await
            .unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the response is not an error. The test checks the received bytes.
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    let answer = timeout(LIMIT, exchange)
        .await
        .expect("the cloud responds and closes the connection");
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("the response has a complete head");
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        head,
        body: answer[end + 4..].to_vec(),
    }
}

fn encoded(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect()
}

fn basic(id: &str, secret: &str) -> String {
    format!(
        "Authorization: Basic {}\r\n",
        STANDARD.encode(format!("{id}:{secret}"))
    )
}

async fn refresh(cloud: &Cloud, token: &str) -> Answer {
    let token = encoded(token);
    let url = format!(
        "{}/api/refreshToken.do?grant_type=refresh_token&refresh_token={token}",
        cloud.origin()
    );
    send("POST", &url, &basic("demo", "secret"), b"").await
}

/// Requests a new access token. Returns its `Authorization` line.
async fn bearer(cloud: &Cloud) -> String {
    let tokens = refresh(cloud, cloud.seed()).await.json();
    format!(
        "Authorization: Bearer {}\r\n",
        tokens["access_token"].as_str().unwrap()
    )
}

async fn get(cloud: &Cloud, path: &str, headers: &str) -> Answer {
    send("GET", &format!("{}{path}", cloud.origin()), headers, b"").await
}

fn demo() -> Config {
    Config::new("demo", "secret")
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, wait)
        .await
        .expect("the condition becomes true in time");
}

#[tokio::test]
async fn a_refresh_gives_a_token_that_opens_the_files_and_reuse_revokes_it() {
    let cloud = start(demo()).await;
    let mut events = cloud.events();
    let answer = refresh(&cloud, cloud.seed()).await;
    assert_eq!(
        (answer.status, answer.header("cache-control")),
        (200, Some("no-store"))
    );
    let tokens = answer.json();
    assert_eq!(tokens["expires_in"], 3600);
    assert_eq!(
        events.recv().await,
        Ok(Event::Refreshed {
            serial: 1,
            lifetime: Duration::from_secs(3600)
        })
    );

    let bearer = format!(
        "Authorization: Bearer {}\r\n",
        tokens["access_token"].as_str().unwrap()
    );
    assert_eq!(get(&cloud, "/api/file/list.do", &bearer).await.status, 200);

    let reused = refresh(&cloud, cloud.seed()).await;
    assert_eq!(
        (reused.status, &reused.json()["error"]),
        (400, &"invalid_grant".into())
    );
    assert_eq!(events.recv().await, Ok(Event::FamilyRevoked));
    assert_eq!(
        events.recv().await,
        Ok(Event::RefreshRefused {
            error: "invalid_grant".to_owned()
        })
    );
    let refused = get(&cloud, "/nd/api/file/list.do", &bearer).await;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, Some(r#"Bearer error="invalid_token""#))
    );
    assert_eq!(
        (&refused.json()["success"], &refused.json()["code"]),
        (&false.into(), &401.into())
    );
    assert_eq!(
        events.recv().await,
        Ok(Event::Rejected {
            path: "/nd/api/file/list.do".to_owned()
        })
    );
    assert_eq!(
        (
            cloud.issuer_calls(),
            cloud.issuer_successes(),
            cloud.families_revoked()
        ),
        (2, 1, 1)
    );
    assert_eq!(cloud.file_requests(), 2);
    let last = cloud.received().pop().unwrap();
    assert_eq!(
        (last.status, last.serial, last.authorization_count),
        (401, Some(1), 1)
    );
}

#[tokio::test]
async fn special_characters_in_secret_and_refresh_token_survive() {
    let strange = "+ % & = ü";
    let config = Config {
        seeds: vec![strange.to_owned()],
        ..Config::new("demo", format!("secret:{strange}"))
    };
    let cloud = start(config).await;
    let basic = basic("demo", &format!("secret:{strange}"));
    let url = format!("{}/api/refreshToken.do", cloud.origin());
    let in_url = format!(
        "{url}?grant_type=refresh_token&refresh_token={}",
        encoded(strange)
    );
    let rotated = send("POST", &in_url, &basic, b"").await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    let form = format!(
        "grant_type=refresh_token&refresh_token={}",
        rotated.json()["refresh_token"].as_str().unwrap()
    );
    let headers = format!("{basic}Content-Type: application/x-www-form-urlencoded\r\n");
    assert_eq!(
        send("POST", &url, &headers, form.as_bytes()).await.status,
        200
    );
}

#[tokio::test]
async fn the_issuer_refuses_in_the_words_of_the_standard() {
    let cloud = start(demo()).await;
    let good = basic("demo", "secret");
    for (headers, query, status, error) in [
        (
            String::new(),
            "grant_type=refresh_token&refresh_token=x",
            401,
            "invalid_client",
        ),
        (
            basic("demo", "wrong"),
            "grant_type=refresh_token&refresh_token=x",
            401,
            "invalid_client",
        ),
        (
            good.clone(),
            "grant_type=refresh_token&refresh_token=x",
            400,
            "invalid_grant",
        ),
        (
            good.clone(),
            "grant_type=password&refresh_token=x",
            400,
            "unsupported_grant_type",
        ),
        (good.clone(), "refresh_token=x", 400, "invalid_request"),
        (
            good.clone(),
            "grant_type=refresh_token",
            400,
            "invalid_request",
        ),
        (
            good.clone(),
            "grant_type=refresh_token&refresh_token=x&refresh_token=x",
            400,
            "invalid_request",
        ),
    ] {
        let url = format!("{}/api/refreshToken.do?{query}", cloud.origin());
        let answer = send("POST", &url, &headers, b"").await;
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (status, &error.into()),
            "{query}"
        );
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
    }
}

#[tokio::test]
async fn a_code_by_browser_or_jwt_becomes_tokens_once() {
    let cloud = start(Config {
        redirect_uri: Some("http://127.0.0.1/back?x=1".to_owned()),
        ..demo()
    })
    .await;
    let back = encoded("http://127.0.0.1/back?x=1");
    let path = "/api/authorize.do?response_type=code&client_id=demo&data=a%26b&redirect_uri=";
    assert_eq!(
        get(&cloud, &format!("{path}http://evil/"), "").await.status,
        400
    );
    let answer = get(&cloud, &format!("{path}{back}"), "").await;
    let location = url::Url::parse(answer.header("location").unwrap()).unwrap();
    let pairs: Vec<_> = location.query_pairs().into_owned().collect();
    assert_eq!(
        (answer.status, pairs[0].1.as_str(), pairs[2].1.as_str()),
        (302, "1", "a&b")
    );
    let url = format!(
        "{}/api/token.do?grant_type=authorization_code&code=",
        cloud.origin()
    );
    let exchange = format!("{url}{}&redirect_uri={back}", pairs[1].1);
    assert_eq!(
        send("POST", &exchange, &basic("demo", "secret"), b"")
            .await
            .status,
        200
    );
    assert_eq!(
        send("POST", &exchange, &basic("demo", "secret"), b"")
            .await
            .status,
        400
    );

    let jwt = |claims: &str| format!("e30.{}.unsigned", URL_SAFE_NO_PAD.encode(claims));
    let path = "/api/authorizeByJWT.do?response_type=code&client_id=demo&jwt_token=";
    for bad in [
        jwt(r#"{"client_id":"other"}"#),
        jwt("{}"),
        "..".to_owned(),
        "x".to_owned(),
        String::new(),
    ] {
        assert_eq!(
            get(&cloud, &format!("{path}{bad}"), "").await.status,
            401,
            "{bad}"
        );
    }
    let answer = get(
        &cloud,
        &format!("{path}{}", jwt(r#"{"client_id":"demo"}"#)),
        "",
    )
    .await
    .json();
    let exchange = format!("{url}{}", answer["data"]["code"].as_str().unwrap());
    assert_eq!(
        send("POST", &exchange, &basic("demo", "secret"), b"")
            .await
            .status,
        200
    );
}

async fn files_roundtrip(config: Config) {
    let cloud = start(config).await;
    let bearer = bearer(&cloud).await;
    let content: Vec<u8> = (0..300_000_u32).map(|at| (at * 7 % 256) as u8).collect();
    let name = "Übersicht + 50 %.bin";
    let path = format!(
        "/api/file/preUploadFile.do?parent_id=0&name={}",
        encoded(name)
    );
    let announced = get(&cloud, &path, &bearer).await.json();
    let url = announced["url"].as_str().unwrap();
    assert!(url.starts_with(cloud.document_origin()) && cloud.document_origin() != cloud.origin());
    assert_eq!(
        send("POST", &format!("{url}?upload_token=wrong"), "", b"x")
            .await
            .status,
        403
    );
    let url = format!(
        "{url}?upload_token={}",
        announced["upload_token"].as_str().unwrap()
    );
    let stored = send("POST", &url, "", &content).await;
    assert_eq!(
        (stored.status, &stored.json()["size"]),
        (200, &300_000.into()),
        "{stored:?}"
    );
    assert_eq!(
        send("POST", &url, "", b"again").await.status,
        403,
        "an upload URL accepts one upload"
    );

    let listed = get(&cloud, "/api/file/list.do", &bearer).await.json();
    assert_eq!(listed["files"].as_array().unwrap().len(), 1);
    assert_eq!(listed["files"][0]["name"], name);
    let id = listed["files"][0]["file_id"].as_str().unwrap();
    let info = get(&cloud, &format!("/api/file/info.do?file_id={id}"), &bearer)
        .await
        .json();
    assert_eq!(
        (&info["size"], &info["success"]),
        (&300_000.into(), &true.into())
    );

    let download = get(
        &cloud,
        &format!("/api/file/download.do?file_id={id}"),
        &bearer,
    )
    .await
    .json();
    let url = download["url"].as_str().unwrap();
    let whole = send("GET", url, "", b"").await;
    assert!(
        whole.status == 200 && whole.body == content,
        "{}",
        whole.head
    );
    let part = send("GET", url, "Range: bytes=100000-199999\r\n", b"").await;
    assert_eq!(
        (part.status, part.header("content-range")),
        (206, Some("bytes 100000-199999/300000"))
    );
    assert!(part.body == content[100_000..200_000]);
    let outside = send("GET", url, "Range: bytes=300000-\r\n", b"").await;
    assert_eq!(
        (outside.status, outside.header("content-range")),
        (416, Some("bytes */300000"))
    );

    let delete = format!("{}/api/file/delete.do?file_id={id}", cloud.origin());
    assert_eq!(send("POST", &delete, &bearer, b"").await.status, 200);
    assert_eq!(send("POST", &delete, &bearer, b"").await.status, 404);
    assert_eq!(send("GET", url, "", b"").await.status, 404);
}

#[tokio::test]
async fn files_in_memory_go_up_and_come_down_in_two_steps() {
    files_roundtrip(demo()).await;
}

#[tokio::test]
async fn files_in_a_folder_go_up_and_come_down_in_two_steps() {
    let folder = tempfile::tempdir().unwrap();
    files_roundtrip(Config {
        folder: Some(folder.path().join("files")),
        ..demo()
    })
    .await;
    let left: Vec<_> = std::fs::read_dir(folder.path().join("files"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = start(Config {
        folder: Some(folder.path().to_owned()),
        ..demo()
    })
    .await;
    let bearer = bearer(&cloud).await;
    let announced = get(&cloud, "/api/file/preUploadFile.do?name=a", &bearer)
        .await
        .json();
    let [url, token] = ["url", "upload_token"].map(|key| announced[key].as_str().unwrap());
    let (authority, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let head = format!(
        "POST /{path}?upload_token={token} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"
    );
    let mut stream = TcpStream::connect(authority).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let entries = || std::fs::read_dir(folder.path()).unwrap().count();
    until(|| entries() == 1).await;
    let listed = get(&cloud, "/api/file/list.do", &bearer).await.json();
    assert_eq!(
        listed["files"],
        serde_json::json!([]),
        "the list contains no incomplete file"
    );
    drop(stream);
    until(|| entries() == 0).await;
}

#[tokio::test]
async fn nothing_outside_the_folder_can_be_reached() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "secret").unwrap();
    let cloud = start(Config {
        folder: Some(folder.path().join("files")),
        ..demo()
    })
    .await;
    let bearer = bearer(&cloud).await;
    #[cfg(unix)]
    std::os::unix::fs::symlink(
        folder.path().join("secret"),
        folder.path().join("files/link"),
    )
    .unwrap();
    let absolute = folder.path().join("secret").display().to_string();
    for name in [
        "../secret",
        "..",
        "/etc/passwd",
        "files/../../secret",
        "..\\secret",
        "a\0b",
        "link",
        &absolute,
    ] {
        for id in [encoded(name), URL_SAFE_NO_PAD.encode(name)] {
            for interface in ["info", "download", "delete"] {
                let answer = get(
                    &cloud,
                    &format!("/api/file/{interface}.do?file_id={id}"),
                    &bearer,
                )
                .await;
                assert_eq!(answer.status, 404, "{interface} {name:?}");
            }
        }
        if name != "link" {
            let path = format!("/api/file/preUploadFile.do?name={}", encoded(name));
            assert_eq!(get(&cloud, &path, &bearer).await.status, 400, "{name:?}");
        }
    }
    let above = format!(
        "{}/api/file/../../secret/downloadFile.do",
        cloud.document_origin()
    );
    assert!(send("GET", &above, "", b"").await.status >= 400);
    assert_eq!(
        std::fs::read_to_string(folder.path().join("secret")).unwrap(),
        "secret"
    );
}

#[tokio::test]
async fn memory_has_a_limit() {
    let cloud = start(Config {
        memory_limit: 1000,
        ..demo()
    })
    .await;
    let bearer = bearer(&cloud).await;
    for (name, size, status) in [
        ("a", 1001, 413),
        ("a", 600, 200),
        ("b", 600, 413),
        ("a", 1000, 200),
    ] {
        let announced = get(
            &cloud,
            &format!("/api/file/preUploadFile.do?name={name}"),
            &bearer,
        )
        .await
        .json();
        let [url, token] =
            ["url", "upload_token"].map(|key| announced[key].as_str().unwrap().to_owned());
        let answer = send(
            "POST",
            &format!("{url}?upload_token={token}"),
            "",
            &vec![0; size],
        )
        .await;
        assert_eq!(answer.status, status, "{name} {size}");
    }
}

#[tokio::test]
async fn echo_and_bytes_show_what_arrived_and_no_token() {
    let cloud = start(demo()).await;
    let bearer = bearer(&cloud).await;
    let headers = format!("{bearer}X-Twice: 1\r\nX-Twice: 2\r\n");
    let answer = send(
        "PUT",
        &format!("{}/nd/api/echo.do?a=%20b", cloud.origin()),
        &headers,
        b"abc",
    )
    .await;
    let echo = answer.json();
    assert_eq!(
        (&echo["method"], &echo["path"], &echo["query"]),
        (&"PUT".into(), &"/nd/api/echo.do".into(), &"a=%20b".into())
    );
    assert_eq!(echo["headers"]["x-twice"], serde_json::json!(["1", "2"]));
    assert_eq!(
        echo["headers"]["authorization"],
        serde_json::json!(["token #1"])
    );
    assert_eq!(
        (&echo["authorization_count"], &echo["body_length"]),
        (&1.into(), &3.into())
    );
    assert_eq!(
        echo["body_sha256"],
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert!(
        !String::from_utf8_lossy(&answer.body).contains(bearer.trim().rsplit(' ').next().unwrap())
    );

    let bytes = get(&cloud, "/api/bytes.do?size=100000", &bearer).await;
    assert!(
        bytes
            .body
            .iter()
            .enumerate()
            .all(|(at, byte)| usize::from(*byte) == at % 251),
        "{}",
        bytes.head
    );
    assert_eq!(
        (bytes.body.len(), bytes.header("content-length")),
        (100_000, Some("100000"))
    );
    assert_eq!(
        get(&cloud, "/api/bytes.do?size=-1", &bearer).await.status,
        400
    );
    let twice = format!("{bearer}{bearer}");
    assert_eq!(
        get(&cloud, "/api/echo.do", &twice).await.status,
        401,
        "the cloud refuses a request with two tokens"
    );
    assert_eq!(cloud.received().pop().unwrap().authorization_count, 2);
}

#[tokio::test]
async fn scripted_answers_of_the_issuer_cost_nobody_a_token() {
    let cloud = start(demo()).await;
    let raw_answer = IssuerResponse::Raw {
        status: 200,
        headers: vec![("X-Odd".into(), "ü".into())],
        body: b"<html>".into(),
    };
    cloud
        .faults()
        .script(&IssuerResponse::Status(503, Some(7)), 1);
    cloud.faults().script(&raw_answer, 1);
    cloud.faults().script(&IssuerResponse::Hang, 1);
    cloud.faults().script(&IssuerResponse::Endless, 1);
    let answer = refresh(&cloud, cloud.seed()).await;
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (503, Some("7"))
    );
    let answer = refresh(&cloud, cloud.seed()).await;
    assert_eq!(
        (answer.body.as_slice(), answer.header("x-odd")),
        (&b"<html>"[..], Some("ü"))
    );
    let mut events = cloud.events();
    let hanging = refresh(&cloud, cloud.seed());
    tokio::pin!(hanging);
    tokio::select! {
        answer = &mut hanging => panic!("{answer:?}"),
        event = events.recv() => assert_eq!(event, Ok(Event::RefreshRefused { error: "no response".to_owned() })),
    }
    assert!(
        timeout(Duration::from_millis(50), hanging).await.is_err(),
        "the issuer sends no response"
    );
    let mut stream = TcpStream::connect(cloud.origin().trim_start_matches("http://"))
        .await
        .unwrap();
    stream
        .write_all(b"POST /api/refreshToken.do HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut endless = vec![0; 1 << 20];
    timeout(LIMIT, stream.read_exact(&mut endless))
        .await
        .expect("the endless response contains at least 1 MiB")
        .unwrap();
    assert_eq!(refresh(&cloud, cloud.seed()).await.status, 200);
    assert_eq!((cloud.issuer_calls(), cloud.issuer_successes()), (5, 1));
}

#[tokio::test]
async fn file_faults_reject_good_tokens() {
    let cloud = start(demo()).await;
    let bearer = bearer(&cloud).await;
    cloud.faults().reject_next = 2;
    for status in [401, 401, 200] {
        assert_eq!(get(&cloud, "/api/echo.do", &bearer).await.status, status);
    }
    cloud.faults().reject_paths.push("/api/file/".to_owned());
    assert_eq!(get(&cloud, "/api/file/list.do", &bearer).await.status, 401);
    assert_eq!(get(&cloud, "/api/echo.do", &bearer).await.status, 200);
    cloud.faults().in_body_failures = true;
    let answer = get(&cloud, "/api/file/list.do", &bearer).await;
    assert_eq!((answer.status, &answer.json()["code"]), (200, &401.into()));
    cloud.faults().clear();
    cloud.faults().reject_until = Some(Moment::since_boot(Duration::MAX));
    assert_eq!(get(&cloud, "/api/echo.do", &bearer).await.status, 401);
    cloud.faults().reject_until = Some(Moment::default());
    assert_eq!(get(&cloud, "/api/echo.do", &bearer).await.status, 200);
    cloud.revoke_access_tokens();
    assert_eq!(get(&cloud, "/api/echo.do", &bearer).await.status, 401);
    assert_eq!(cloud.families_revoked(), 0);
    cloud.revoke_families();
    assert_eq!(cloud.families_revoked(), 1);
}

#[tokio::test]
async fn latencies_are_waited_for() {
    let cloud = start(demo()).await;
    let latency = Duration::from_millis(30);
    cloud.faults().issuer_latency = latency;
    let before = Instant::now();
    let bearer = bearer(&cloud).await;
    assert!(
        before.elapsed() >= latency,
        "issuer: {:?}",
        before.elapsed()
    );
    cloud.faults().files_latency = latency;
    let before = Instant::now();
    assert_eq!(get(&cloud, "/api/echo.do", &bearer).await.status, 200);
    assert!(before.elapsed() >= latency, "files: {:?}", before.elapsed());
}

#[tokio::test]
async fn a_jwt_is_answered_by_redirect_if_so_configured() {
    let cloud = start(Config {
        jwt_redirects: true,
        ..demo()
    })
    .await;
    let jwt = format!(
        "e30.{}.unsigned",
        URL_SAFE_NO_PAD.encode(r#"{"client_id":"demo"}"#)
    );
    let path = format!("/api/authorizeByJWT.do?response_type=code&client_id=demo&jwt_token={jwt}");
    assert_eq!(
        get(&cloud, &path, "").await.status,
        400,
        "the request has no redirect URI"
    );
    let answer = get(
        &cloud,
        &format!("{path}&redirect_uri=http://127.0.0.1/"),
        "",
    )
    .await;
    assert!(
        answer.status == 302
            && answer
                .header("location")
                .unwrap()
                .starts_with("http://127.0.0.1/?code=")
    );
}

#[tokio::test]
async fn an_early_401_does_not_wait_for_the_body() {
    let cloud = start(demo()).await;
    cloud.faults().early_401 = true;
    let authority = cloud.origin().trim_start_matches("http://");
    let head = b"POST /api/echo.do HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n";
    let answer = raw(authority, head).await;
    assert_eq!(
        (answer.status, answer.header("connection")),
        (401, Some("close"))
    );
}

#[tokio::test]
async fn shutting_down_closes_listeners_and_connections() {
    let cloud = start(demo()).await;
    let mut stream = TcpStream::connect(cloud.origin().trim_start_matches("http://"))
        .await
        .unwrap();
    stream
        .write_all(b"GET /api/echo.do HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    stream.read_u8().await.unwrap();
    cloud.shut_down().await;
    let rest = timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
    assert!(rest.is_ok(), "the open connection closes");
    for origin in [cloud.origin(), cloud.document_origin()] {
        assert!(
            TcpStream::connect(origin.trim_start_matches("http://"))
                .await
                .is_err()
        );
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: SimulateArgs,
}

fn arguments(line: &str) -> SimulateArgs {
    Cli::parse_from(std::iter::once("x").chain(line.split(' '))).args
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn simulate_tells_what_is_where_and_what_happens_until_it_is_stopped() {
    let screen = Screen::default();
    let stop = async {
        until(|| screen.text().contains("hello.txt")).await;
        let text = screen.text();
        let url = text
            .split('"')
            .find(|word| word.contains("/api/refreshToken.do?"))
            .expect("the output contains a refresh URL");
        assert_eq!(
            send("POST", url, &basic("demo", "secret"), b"")
                .await
                .status,
            500
        );
        assert_eq!(
            send("POST", url, &basic("demo", "secret"), b"")
                .await
                .json()["expires_in"],
            10
        );
        until(|| screen.text().contains("issued token #1, valid for 10s")).await;
    };
    let flags =
        "--listen 127.0.0.1:0 --document-listen 127.0.0.1:0 --token-lifetime 10s --issuer-errors 1";
    simulate(arguments(flags), clock(), stop, &mut screen.clone())
        .await
        .unwrap();
    let text = screen.text();
    assert!(text.contains("refused a refresh: HTTP 500"), "{text}");
    assert!(
        !text.contains('\''),
        "PowerShell and cmd interpret single quotes differently: {text}"
    );
}

#[tokio::test]
async fn simulate_stays_on_this_machine_unless_told_otherwise() {
    let flags = "--listen 0.0.0.0:0 --document-listen 127.0.0.1:0";
    let error = simulate(arguments(flags), clock(), async {}, &mut Vec::new())
        .await
        .unwrap_err();
    assert!(error.contains("--allow-remote"), "{error}");
    let flags = format!("{flags} --allow-remote");
    assert_eq!(
        simulate(arguments(&flags), clock(), async {}, &mut Vec::new()).await,
        Ok(())
    );
}

#[tokio::test]
async fn nodes_with_one_state_file_are_one_cloud() {
    let folder = tempfile::tempdir().unwrap();
    let node = async || {
        start(Config {
            state_file: Some(folder.path().join("state.json")),
            seeds: vec!["seed".to_owned()],
            ..Config::new("demo", "secret")
        })
        .await
    };
    let accepts = async |cloud: &Cloud, token: &str| {
        let authorization = format!("Authorization: Bearer {token}\r\n");
        get(cloud, "/api/echo.do", &authorization).await.status == 200
    };
    let (first, second) = (node().await, node().await);
    let granted = refresh(&first, "seed").await.json();
    let token = |name: &str, granted: &Value| granted[name].as_str().unwrap().to_owned();
    let access = token("access_token", &granted);
    assert!(accepts(&second, &access).await, "{granted}");
    let next = refresh(&second, &token("refresh_token", &granted))
        .await
        .json();
    let third = node().await;
    assert!(
        accepts(&third, &token("access_token", &next)).await,
        "a restart loses no token"
    );
    // Used up at another node: the whole family is revoked, at every node.
    assert_eq!(refresh(&third, "seed").await.status, 400);
    for cloud in [&first, &second, &third] {
        assert!(!accepts(cloud, &access).await);
    }
    std::fs::write(folder.path().join("state.json"), "{").unwrap();
    assert_eq!(refresh(&first, "seed").await.status, 500);
    assert!(!accepts(&first, &access).await);
    let broken = Config {
        state_file: Some(folder.path().join("state.json")),
        ..Config::new("demo", "secret")
    };
    assert!(Cloud::start(broken, clock()).await.is_err());
}
