//! No output contains a secret in any situation, at the most verbose log level.
#![cfg(unix)]

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};

use crate::common::{
    closed_address, eventually, get, post,
    process::{Program, Running, listens},
    scripted, send, toml,
    upstream::{Reply, Request, RunningUpstream, Upstream, bytes, response},
};

const ACCESS: &str = "4CC3SS~token+of/the=cloud";
const REFRESH: &str = "R3FR3SH token+with/all&sorts=of%characters";
const NEXT: &str = "N3XT token+after/the&first=one";
const CLIENT: &str = "CL13NT secret+with/all&sorts=of%characters";
const JWT_KEY: &str = "JWTK3Y+with/all&sorts=of%characters#and more";
const CODE: &str = "C0DE+that/is&spent=once";
const ADMIN: &str = "4DM1N+token/for&people";
const KEY: &str = "K3Y+of/a&client=that~calls";

/// What must not be printed: each secret in plain text and in every encoding, and its distinctive
/// parts.
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
        // A prefix would be enough to identify it.
        all.push(secret[..6].to_owned());
        all.push(secret[secret.len() - 10..].to_owned());
        all.push(
            percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC)
                .to_string(),
        );
        all.push(url::form_urlencoded::byte_serialize(bytes).collect());
        all.push(format!("{secret:?}").trim_matches('"').to_owned());
        // The Base64 of a text that contains the secret depends on the secret's offset modulo
        // three; the characters at both ends depend on the adjacent bytes.
        for shift in 0..3 {
            let shifted = [&b"xx"[..shift], bytes].concat();
            for engine in [STANDARD, URL_SAFE] {
                let encoded = engine.encode(&shifted);
                all.push(encoded[4..encoded.len() - 4].to_owned());
                all.push(encoded[4..20].to_owned());
            }
        }
    }
    // The client ID is not a secret.
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

/// How an issuer replies.
type Issuer = fn(&Request) -> Reply;

const JSON: &str = "Content-Type: application/json\r\n";

fn grants(request: &Request) -> Reply {
    if request.path().contains("authorizeByJWT") {
        let location = "Location: /back?code=C0DE%2Bthat%2Fis%26spent%3Donce\r\n";
        return response("302 Found", location, "");
    }
    let body =
        serde_json::json!({ "access_token": ACCESS, "refresh_token": NEXT, "expires_in": 3600 });
    response("200 OK", JSON, body.to_string())
}

/// Repeats the received request, and more, in fields that programs often print.
fn quotes(status: &str, error: &str, request: &Request) -> Reply {
    let all = format!("{ACCESS} {REFRESH} {CLIENT} {JWT_KEY} {}", request.head);
    let body = serde_json::json!({ "error": error, "error_description": all, "message": all, "access_token": [ACCESS] });
    let fields =
        format!("{JSON}X-Debug: {REFRESH}\r\nWWW-Authenticate: Basic realm=\"{REFRESH}\"\r\n");
    response(status, &fields, body.to_string())
}

/// A cloud that refuses each request for a file, so that every request causes a refresh.
async fn cloud(issuer: Issuer) -> RunningUpstream {
    Upstream::new()
        .on("/api/*", issuer)
        .on("*", |request: &Request| quotes("401 No", "no", request))
        .start()
        .await
}

fn configured(issuer: &str, cloud: &str, jwt: bool) -> Program {
    let first = if jwt {
        format!("token.jwt.key = '{JWT_KEY}'")
    } else {
        format!("token.refresh_token = '{REFRESH}'")
    };
    let more = format!(
        "token.issuer = \"{issuer}\"\ntoken.client_secret = '{CLIENT}'\n{first}\ntoken.state_file = \"token.json\"\n\
         token.wait = \"100ms\"\ntoken.timeout = \"2s\"\nretry.cooldown = \"10ms\"\nadmin.token = '{ADMIN}'\n\
         log.level = \"trace\"\nlog.access = \"all\"\n\
         [[client]]\nname = \"backup\"\nkey = '{KEY}'\nheader = \"x-key\"\nbasic = \"app\"\n"
    );
    Program::without_token(cloud, &more)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_21_no_secret_is_printed_whatever_the_issuer_does() {
    let issuers: [(&str, Issuer); 6] = [
        ("grants", grants),
        ("refuses the token", |request| {
            quotes("400 No", "invalid_grant", request)
        }),
        ("refuses the client", |request| {
            quotes("401 No", "invalid_client", request)
        }),
        ("fails", |request| quotes("500 Oops", "oops", request)),
        ("is garbled", |request| quotes("200 OK", "none", request)),
        ("does not use HTTP", |request| {
            bytes(format!("{REFRESH} {}", request.head)).close()
        }),
    ];
    for (what, issuer) in issuers {
        for jwt in [false, true] {
            let cloud = cloud(issuer).await;
            let text = everything_printed(&cloud.origin(), &cloud, jwt).await;
            let requests = cloud.requests();
            let shown: Vec<_> = requests
                .iter()
                .filter_map(|request| request.parameter("jwt_token"))
                .collect();
            assert_eq!(shown.is_empty(), !jwt, "{what}");
            let signatures: Vec<_> = shown
                .iter()
                .map(|jwt| jwt.rsplit('.').next().unwrap().to_owned())
                .collect();
            assert_clean(what, &text, &forbidden(&signatures));
            assert!(
                text.contains("refresh failed") || what == "grants",
                "{what}: no call was made: {text}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_21_no_secret_is_printed_when_the_issuer_cannot_be_reached() {
    let cloud = cloud(grants).await;
    let closing = scripted(|_, _| async { Ok(()) }).await;
    for issuer in [
        format!("http://{}", closed_address()),
        format!("http://{closing}"),
        // This server does not use TLS.
        format!("https://{}", cloud.address),
        "http://no-such-name.invalid".to_owned(),
    ] {
        for jwt in [false, true] {
            let text = everything_printed(&issuer, &cloud, jwt).await;
            assert_clean(&issuer, &text, &forbidden(&[]));
            assert!(
                text.contains("refresh failed"),
                "{issuer}: no call was made: {text}"
            );
        }
    }
}

/// The log, responses, status, metrics and page of one run of the program.
async fn everything_printed(issuer: &str, cloud: &RunningUpstream, jwt: bool) -> String {
    let program = configured(issuer, &cloud.origin(), jwt);
    let log = program.new_log();
    let stdout = log.try_clone().unwrap();
    let mut running = Running(
        program
            .command()
            .stderr(log)
            .stdout(stdout)
            .spawn()
            .unwrap(),
    );
    listens(program.admin).await;
    let text = || program.log();
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
        let (head, body) = send(program.address, request).await.into_parts();
        // The cloud's own responses may contain secrets; those of the proxy must not.
        if head.headers.contains_key("proxy-status") {
            all.extend_from_slice(format!("{head:?}").as_bytes());
            all.extend_from_slice(&body);
        }
    }
    for path in ["/status", "/metrics", "/", "/readyz", "/healthz"] {
        let (head, body) = send(program.admin, get(path)).await.into_parts();
        all.extend_from_slice(format!("{head:?}").as_bytes());
        all.extend_from_slice(&body);
    }
    let status = program.command().arg("status").output().unwrap();
    let check = program.command().arg("check").output().unwrap();
    for output in [status, check] {
        all.extend_from_slice(&output.stdout);
        all.extend_from_slice(&output.stderr);
    }
    running.terminate().await;
    let log = text();
    assert!(
        log.contains("/x") && !log.contains("QU3RYSECRET"),
        "the access log is on, without queries: {log}"
    );
    log + &String::from_utf8_lossy(&all)
}

/// A panic prints the values of the code that panics.
#[test]
fn bad_input_21_no_secret_is_printed_by_a_panic() {
    for jwt in [false, true] {
        let program = configured("http://127.0.0.1:1", "http://127.0.0.1:1", jwt);
        let config = toml::load(&program.path("proxy.toml")).config;
        let print = std::panic::AssertUnwindSafe(|| panic!("{config:#?} {config:?}"));
        let panic = std::panic::catch_unwind(print).expect_err("it panics");
        let words = panic.downcast_ref::<String>().expect("words");
        assert!(
            words.contains("demo"),
            "the panic contains the configuration"
        );
        assert_clean("a panic", words, &forbidden(&[]));
    }
}
