//! Whatever happens, at the most talkative level: no secret in any output.
#![cfg(unix)]

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use bearer_proxy::config::{self, Source};

use crate::common::{
    eventually, get, post,
    process::{Running, free_address, listens, program},
    read_head, scripted, send,
};

const ACCESS: &str = "4CC3SS~token+of/the=cloud";
const REFRESH: &str = "R3FR3SH token+with/all&sorts=of%characters";
const NEXT: &str = "N3XT token+after/the&first=one";
const CLIENT: &str = "CL13NT secret+with/all&sorts=of%characters";
const JWT_KEY: &str = "JWTK3Y+with/all&sorts=of%characters#and more";
const CODE: &str = "C0DE+that/is&spent=once";
const ADMIN: &str = "4DM1N+token/for&people";
const KEY: &str = "K3Y+of/a&client=that~calls";

/// Everything that must not be found: each secret, in plain and in every coding, and its distinctive parts.
fn forbidden(more: &[String]) -> Vec<String> {
    let pair = format!("demo:{CLIENT}");
    let by_basic = format!("app:{KEY}");
    let secrets = [
        ACCESS, REFRESH, NEXT, CLIENT, JWT_KEY, CODE, ADMIN, KEY, &pair, &by_basic,
    ]
    .map(str::to_owned);
    let mut all = Vec::new();
    for secret in secrets.iter().chain(more) {
        let bytes = secret.as_bytes();
        all.push(secret.clone());
        // Its first letters tell it already.
        all.push(secret[..6].to_owned());
        all.push(secret[secret.len() - 10..].to_owned());
        all.push(
            percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC)
                .to_string(),
        );
        all.push(url::form_urlencoded::byte_serialize(bytes).collect());
        all.push(format!("{secret:?}").trim_matches('"').to_owned());
        // Base64 of text around it shows it shifted in one of three ways: what does not depend on the neighbours counts.
        for shift in 0..3 {
            let shifted = [&b"xx"[..shift], bytes].concat();
            for engine in [STANDARD, URL_SAFE] {
                let encoded = engine.encode(&shifted);
                all.push(encoded[4..encoded.len() - 4].to_owned());
                all.push(encoded[4..20].to_owned());
            }
        }
    }
    // The client's id is no secret.
    all.retain(|text| !"demo:".starts_with(text.as_str()) && text != "demo:C");
    all
}

fn assert_clean(what: &str, text: &str, forbidden: &[String]) {
    for secret in forbidden {
        assert!(
            !text.contains(secret.as_str()),
            "{what}: {secret} was printed:\n{text}"
        );
    }
}

fn json(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// How an issuer behaves, by what it is asked.
type Issuer = fn(head: &str) -> String;

fn grants(head: &str) -> String {
    if head.contains("authorizeByJWT") {
        return format!(
            "HTTP/1.1 302 Found\r\nLocation: /back?code={}\r\nContent-Length: 0\r\n\r\n",
            "C0DE%2Bthat%2Fis%26spent%3Donce"
        );
    }
    let body =
        serde_json::json!({ "access_token": ACCESS, "refresh_token": NEXT, "expires_in": 3600 });
    json("200 OK", &body.to_string())
}

/// Whatever it was sent, and more, in words that programs like to print.
fn quotes(status: &str, error: &str, head: &str) -> String {
    let told = format!("{ACCESS} {REFRESH} {CLIENT} {JWT_KEY} {head}");
    let body = serde_json::json!({ "error": error, "error_description": told, "message": told, "access_token": [ACCESS] });
    let reply = json(status, &body.to_string());
    reply.replacen(
        "\r\n",
        &format!("\r\nX-Debug: {REFRESH}\r\nWWW-Authenticate: Basic realm=\"{REFRESH}\"\r\n"),
        1,
    )
}

/// A cloud whose files are refused, so that every request refreshes, and the JWTs that it was shown.
async fn cloud(issuer: Issuer) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let shown = Arc::new(Mutex::new(Vec::new()));
    let jwts = Arc::clone(&shown);
    let address = scripted(move |_, mut stream| {
        let jwts = Arc::clone(&jwts);
        async move {
            loop {
                let head = read_head(&mut stream).await?;
                if head.is_empty() {
                    return Ok(());
                }
                let target = head.split(' ').nth(1).unwrap_or_default();
                if let Some((_, jwt)) = target.split_once("jwt_token=") {
                    jwts.lock()
                        .unwrap()
                        .push(jwt.split('&').next().unwrap().to_owned());
                }
                let answer = if target.starts_with("/api/") {
                    issuer(&head)
                } else {
                    quotes("401 No", "no", &head)
                };
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await?;
            }
        }
    })
    .await;
    (address, shown)
}

/// The configuration, and the lines that first tokens need.
fn configure(
    folder: &Path,
    issuer: &str,
    cloud: SocketAddr,
    jwt: bool,
) -> (SocketAddr, SocketAddr) {
    let (address, admin) = (free_address(), free_address());
    let first = if jwt {
        format!("jwt.key = '{JWT_KEY}'")
    } else {
        format!("refresh_token = '{REFRESH}'")
    };
    let text = format!(
        "[proxy]\nlisten = [\"{address}\"]\n[upstream]\nendpoints = [\"http://{cloud}\"]\n\
         [token]\nissuer = \"{issuer}\"\nclient_id = \"demo\"\nclient_secret = '{CLIENT}'\n{first}\n\
         state_file = \"token.json\"\nwait = \"100ms\"\ntimeout = \"2s\"\n[retry]\ncooldown = \"10ms\"\n\
         [admin]\nlisten = \"{admin}\"\ntoken = '{ADMIN}'\n\
         [[client]]\nname = \"backup\"\nkey = '{KEY}'\nheader = \"x-key\"\nbasic = \"app\"\n[log]\nlevel = \"trace\"\naccess = \"all\"\n"
    );
    fs::write(folder.join("proxy.toml"), text).unwrap();
    (address, admin)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_21_no_secret_is_printed_whatever_the_issuer_does() {
    let issuers: [(&str, Issuer); 6] = [
        ("grants", grants),
        ("refuses the token", |head| {
            quotes("400 No", "invalid_grant", head)
        }),
        ("refuses the client", |head| {
            quotes("401 No", "invalid_client", head)
        }),
        ("fails", |head| quotes("500 Oops", "oops", head)),
        ("is garbled", |head| quotes("200 OK", "none", head)),
        ("is no HTTP", |head| format!("{REFRESH} {head}")),
    ];
    for (what, issuer) in issuers {
        for jwt in [false, true] {
            let (cloud, shown) = cloud(issuer).await;
            let text = everything_said(&format!("http://{cloud}"), cloud, jwt).await;
            let shown = shown.lock().unwrap().clone();
            assert_eq!(shown.is_empty(), !jwt, "{what}");
            let signatures: Vec<_> = shown
                .iter()
                .map(|jwt| jwt.rsplit('.').next().unwrap().to_owned())
                .collect();
            assert_clean(what, &text, &forbidden(&signatures));
            assert!(
                text.contains("refresh failed") || what == "grants",
                "{what}: nothing was tried: {text}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_21_no_secret_is_printed_when_the_issuer_cannot_be_reached() {
    let (cloud, _) = cloud(grants).await;
    let closing = scripted(|_, stream| async move {
        drop(stream);
        Ok(())
    })
    .await;
    let nobody = free_address();
    for issuer in [
        format!("http://{nobody}"),
        format!("http://{closing}"),
        // No TLS is spoken there.
        format!("https://{cloud}"),
        "http://no-such-name.invalid".to_owned(),
    ] {
        for jwt in [false, true] {
            let text = everything_said(&issuer, cloud, jwt).await;
            assert_clean(&issuer, &text, &forbidden(&[]));
            assert!(
                text.contains("refresh failed"),
                "{issuer}: nothing was tried: {text}"
            );
        }
    }
}

/// Log, answers, status, metrics and the page of one life of the program.
async fn everything_said(issuer: &str, cloud: SocketAddr, jwt: bool) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (address, admin) = configure(folder.path(), issuer, cloud, jwt);
    let log = folder.path().join("log");
    let stderr = fs::File::create(&log).unwrap();
    let stdout = stderr.try_clone().unwrap();
    let mut running = Running(
        program(folder.path())
            .stderr(stderr)
            .stdout(stdout)
            .spawn()
            .unwrap(),
    );
    listens(admin).await;
    let text = || fs::read_to_string(&log).unwrap();
    eventually("a call has ended", async || {
        text().contains("refresh failed") || text().contains("token refreshed")
    })
    .await;
    let mut all = Vec::new();
    let query = format!("/?upload_token={}", "QU3RYSECRET");
    let by_basic = format!("Basic {}", STANDARD.encode(format!("app:{KEY}")));
    let almost = format!("{KEY}?");
    for (request, name, key) in [
        (get(&query), "x-key", KEY),
        (get("/x"), "authorization", &by_basic),
        (post("/y", "body"), "x-key", KEY),
        (get("/z"), "x-key", &almost),
        (get("/z"), "authorization", KEY),
    ] {
        let mut request = request;
        request.headers_mut().insert(name, key.parse().unwrap());
        let (head, body) = send(address, request).await.into_parts();
        // The cloud's own refusals quote what they like; what is said about them is ours.
        if head.headers.contains_key("proxy-status") {
            all.extend_from_slice(format!("{head:?}").as_bytes());
            all.extend_from_slice(&body);
        }
    }
    for path in ["/status", "/metrics", "/", "/readyz", "/healthz"] {
        let (head, body) = send(admin, get(path)).await.into_parts();
        all.extend_from_slice(format!("{head:?}").as_bytes());
        all.extend_from_slice(&body);
    }
    let status = program(folder.path()).arg("status").output().unwrap();
    let check = program(folder.path()).arg("check").output().unwrap();
    for output in [status, check] {
        all.extend_from_slice(&output.stdout);
        all.extend_from_slice(&output.stderr);
    }
    running.signal(rustix::process::Signal::TERM);
    running.ended().await;
    let log = text();
    assert!(
        log.contains("/x") && !log.contains("QU3RYSECRET"),
        "the access log is on, without queries: {log}"
    );
    log + &String::from_utf8_lossy(&all)
}

/// A panic prints what the code that panics holds.
#[test]
fn bad_input_21_no_secret_is_printed_by_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    for jwt in [false, true] {
        configure(folder.path(), "http://127.0.0.1:1", free_address(), jwt);
        let source = Source {
            file: Some(folder.path().join("proxy.toml")),
            env: Vec::new(),
            overrides: Vec::new(),
        };
        let config = config::load(source)
            .unwrap_or_else(|mistakes| panic!("{mistakes}"))
            .config;
        let panic =
            std::panic::catch_unwind(|| panic!("{config:#?} {config:?}")).expect_err("it panics");
        let words = panic.downcast_ref::<String>().expect("words");
        assert!(words.contains("demo"), "the configuration is in it");
        assert_clean("a panic", words, &forbidden(&[]));
    }
}
