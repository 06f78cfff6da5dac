//! First tokens: `login` as a person uses it, and JWTs, against the simulated cloud.
#![cfg(unix)]

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    process::{ChildStdout, Stdio},
};

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config, IssuerResponse},
    config::{self, Loaded, Source},
    token::{FailureClass, jwt_grant::JwtGrant},
};
use http::StatusCode;
use tokio::io::AsyncWriteExt as _;
use url::Url;

use crate::common::{
    LIMIT, eventually, get,
    process::{Program, Running, free_port, listens},
    send, toml,
    upstream::{Upstream, ok},
};

const SECRET: &str = "cl1ent-secret";

async fn cloud(change: impl FnOnce(&mut Config)) -> Cloud {
    let mut config = Config::new("my app", SECRET);
    change(&mut config);
    Cloud::start(config, clock::system()).await.unwrap()
}

/// The program in front of this cloud, without any token.
fn configured(cloud: &str, more: &str) -> Program {
    let client = format!("token.client_id = \"my app\"\ntoken.client_secret = \"{SECRET}\"\n");
    Program::without_token(cloud, &(client + more))
}

/// The same with what a login needs.
fn for_login(cloud: &str, redirect_uri: &str) -> Program {
    let more = format!(
        "token.redirect_uri = \"{redirect_uri}\"\ntoken.state_file = \"state/token.json\"\n"
    );
    configured(cloud, &more)
}

/// `login` while it waits for the browser.
struct Login {
    running: Running,
    stdout: BufReader<ChildStdout>,
    printed: String,
}

impl Login {
    fn start(program: &Program) -> Self {
        let mut command = program.command();
        command.arg("login").stdout(Stdio::piped());
        let mut running = Running(command.stderr(program.new_log()).spawn().unwrap());
        let stdout = BufReader::new(running.0.stdout.take().unwrap());
        Self {
            running,
            stdout,
            printed: String::new(),
        }
    }

    /// The URL that it prints.
    fn url(&mut self) -> Url {
        loop {
            let mut line = String::new();
            let length = self.stdout.read_line(&mut line).unwrap();
            assert_ne!(length, 0, "no URL in:\n{}", self.printed);
            self.printed.push_str(&line);
            if line.starts_with("http") {
                return line.trim().parse().unwrap();
            }
        }
    }

    /// Its exit code and all that it has printed to standard output.
    async fn ended(mut self) -> (i32, String) {
        let code = self.running.ended().await.code().unwrap();
        self.stdout.read_to_string(&mut self.printed).unwrap();
        (code, self.printed)
    }
}

fn address_of(url: &Url) -> SocketAddr {
    url.socket_addrs(|| None).unwrap()[0]
}

fn target(url: &Url) -> &str {
    &url[url::Position::BeforePath..]
}

/// What a browser does with the authorize address, up to the callback.
async fn callback_of(url: &Url) -> Url {
    let response = send(address_of(url), get(target(url))).await;
    assert_eq!(response.status(), StatusCode::FOUND, "{response:?}");
    response.headers()["location"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap()
}

fn parameter(url: &Url, name: &str) -> String {
    url.query_pairs()
        .find(|(key, _)| key == name)
        .unwrap()
        .1
        .into_owned()
}

fn state(program: &Program) -> serde_json::Value {
    serde_json::from_str(&program.read("state/token.json")).unwrap()
}

fn assert_no_secret(words: &str, program: &Program) {
    let state = state(program);
    for secret in [
        SECRET,
        state["access_token"].as_str().unwrap(),
        state["refresh_token"].as_str().unwrap(),
    ] {
        assert!(!words.contains(secret), "{secret} was printed:\n{words}");
    }
}

/// Starts the proxy and sends a request that needs a token.
async fn serves(program: &Program) {
    let _running = program.start();
    listens(program.address).await;
    assert_eq!(program.get("/api/file/list.do").await, 200);
}

/// A proxy that is stopped in the middle of a refresh, for example.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a17_a_login_says_that_it_waits_for_the_lock() {
    let redirect_uri = format!("http://127.0.0.1:{}/callback", free_port());
    let cloud = cloud(|config| config.redirect_uri = Some(redirect_uri.clone())).await;
    let program = for_login(cloud.origin(), &redirect_uri);
    fs::create_dir(program.path("state")).unwrap();
    let lock = fs::File::create(program.path("state/token.json.lock")).unwrap();
    lock.lock().unwrap();
    let mut login = Login::start(&program);
    let callback = callback_of(&login.url()).await;
    send(address_of(&callback), get(target(&callback))).await;
    eventually("it says what it waits for", async || {
        program.log().contains("token.json.lock")
    })
    .await;
    drop(lock);
    let (code, words) = login.ended().await;
    assert_eq!(code, 0, "{}", program.log());
    assert!(words.contains("Stored the first tokens"), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_in_a_browser_stores_tokens_with_which_the_proxy_serves() {
    for host in ["127.0.0.1", "localhost"] {
        let redirect_uri = format!("http://{host}:{}/callback", free_port());
        let cloud = cloud(|config| config.redirect_uri = Some(redirect_uri.clone())).await;
        let program = for_login(cloud.origin(), &redirect_uri);
        let mut login = Login::start(&program);
        let url = login.url();
        assert_eq!(parameter(&url, "redirect_uri"), redirect_uri);
        assert!(parameter(&url, "data").len() >= 32);

        let callback = callback_of(&url).await;
        let response = send(address_of(&callback), get(target(&callback))).await;
        assert_eq!(response.status(), 200);
        assert!(String::from_utf8_lossy(response.body()).contains("The cloud has agreed"));
        let (code, words) = login.ended().await;
        assert_eq!(code, 0, "{}", program.log());
        assert!(
            words.contains("Stored the first tokens in") && words.contains("valid for 59m"),
            "{words}"
        );
        assert_no_secret(&(words + &program.log()), &program);

        let mode = |name| {
            fs::metadata(program.path(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(
            [
                mode("state"),
                mode("state/token.json"),
                mode("state/token.json.lock")
            ],
            [0o700, 0o600, 0o600]
        );
        serves(&program).await;
        assert_eq!(
            cloud.issuer_calls(),
            1,
            "the stored access token is used, not refreshed"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_belong_to_the_login_is_refused_and_does_not_end_it() {
    let redirect_uri = format!("http://127.0.0.1:{}/callback", free_port());
    let cloud = cloud(|_| {}).await;
    let program = for_login(cloud.origin(), &redirect_uri);
    let mut login = Login::start(&program);
    let url = login.url();
    let callback = callback_of(&url).await;
    let (address, code, data) = (
        address_of(&callback),
        parameter(&callback, "code"),
        parameter(&callback, "data"),
    );
    for (path, status) in [
        ("/".to_owned(), 404),
        ("/favicon.ico".to_owned(), 404),
        (format!("/callback/?code={code}&data={data}"), 404),
        (format!("/callback?code={code}&data=wrong"), 400),
        (format!("/callback?code={code}"), 400),
        ("/callback?error=access_denied".to_owned(), 400),
        (format!("/callback?data={data}"), 400),
    ] {
        assert_eq!(
            send(address, get(&path)).await.status().as_u16(),
            status,
            "{path}"
        );
    }
    let mut foreign = get(target(&callback));
    foreign
        .headers_mut()
        .insert("host", "evil.example.com".parse().unwrap());
    assert_eq!(send(address, foreign).await.status(), 421);
    let mut post = get(target(&callback));
    *post.method_mut() = http::Method::POST;
    assert_eq!(send(address, post).await.status(), 405);
    for garbage in [
        &b"\0\xff\r\n\r\n"[..],
        b"GET /callback?code=%ff%&data=%zz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET",
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
    }
    assert_eq!(cloud.issuer_calls(), 0, "no code was spent");
    // A browser says that it comes from the cloud's page, which is right here.
    let mut real = get(target(&callback));
    real.headers_mut()
        .insert("sec-fetch-site", "cross-site".parse().unwrap());
    assert_eq!(send(address, real).await.status(), 200);
    assert_eq!(login.ended().await.0, 0);
    assert!(program.log().contains("does not belong to this login"));
    assert_eq!(cloud.issuer_successes(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_by_the_cloud_is_told() {
    let redirect_uri = format!("http://127.0.0.1:{}/callback", free_port());
    let program = for_login("http://127.0.0.1:1", &redirect_uri);
    let mut login = Login::start(&program);
    let url = login.url();
    let uri: Url = redirect_uri.parse().unwrap();
    let refused = format!(
        "/callback?error=access_denied&error_description=not+you%1b&data={}",
        parameter(&url, "data")
    );
    assert_eq!(send(address_of(&uri), get(&refused)).await.status(), 200);
    assert_eq!(login.ended().await.0, 1);
    assert_eq!(
        program.log(),
        "the cloud refused the login: access_denied (not you)\n"
    );
    assert!(!program.path("state/token.json").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_carried_by_hand_is_spent_once() {
    let redirect_uri = "https://app.example.com/back?a=b";
    let cloud = cloud(|config| config.redirect_uri = Some(redirect_uri.to_owned())).await;
    let program = for_login(cloud.origin(), redirect_uri);

    let (status, out, error) = program.run(&["login"]);
    assert_eq!((status, error.as_str()), (1, ""));
    assert!(out.contains("bearer-proxy login --code CODE"), "{out}");
    let url: Url = out
        .lines()
        .find(|line| line.starts_with("http"))
        .unwrap()
        .parse()
        .unwrap();
    let code = parameter(&callback_of(&url).await, "code");

    let (status, out, error) = program.run(&["login", "--code", &code]);
    assert_eq!(status, 0, "{error}");
    assert_no_secret(&(out + &error), &program);
    let first = state(&program);
    serves(&program).await;

    let calls = cloud.issuer_calls();
    let (status, out, error) = program.run(&["login", "--code", &code]);
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(
        error.contains("the code is expired or already used") && error.lines().count() == 1,
        "{error}"
    );
    assert!(!error.contains(&code), "{error}");
    assert_eq!(
        (cloud.issuer_calls(), &state(&program)),
        (calls + 1, &first),
        "nothing was tried again or stored"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a10_the_whole_address_and_an_encoded_code_are_accepted() {
    let redirect_uri = "https://app.example.com/back?a=b";
    let cloud = cloud(|config| config.redirect_uri = Some(redirect_uri.to_owned())).await;
    let program = for_login(cloud.origin(), redirect_uri);
    let started = || {
        let (_, out, _) = program.run(&["login"]);
        let url = out.lines().find(|line| line.starts_with("http"));
        url.unwrap().parse::<Url>().unwrap()
    };
    for is_whole in [true, false] {
        let address = callback_of(&started()).await;
        let text = if is_whole {
            address.to_string()
        } else {
            let code = parameter(&address, "code").into_bytes();
            code.iter().map(|byte| format!("%{byte:02X}")).collect()
        };
        let (status, out, error) = program.run(&["login", "--code", &text]);
        assert_eq!(status, 0, "{error}");
        assert_no_secret(&(out + &error), &program);
        let pending = program.path("state/token.json.login");
        assert!(!pending.exists(), "the login is completed");
    }
    // The address of another login: its code is not sent.
    let _ = started();
    let calls = cloud.issuer_calls();
    let (status, out, error) = program.run(&[
        "login",
        "--code",
        "https://app.example.com/back?a=b&code=c0de&data=another",
    ]);
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(
        error.contains("`data` differs") && !error.contains("c0de"),
        "{error}"
    );
    assert_eq!(cloud.issuer_calls(), calls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a1_a_login_keeps_the_refresh_token_of_an_odd_response() {
    let cloud = cloud(|_| {}).await;
    let program = for_login(cloud.origin(), "https://app.example.com/back");
    let odd = r#"{"access_token":"a b","refresh_token":"precious"}"#;
    let response = IssuerResponse::Raw {
        status: 200,
        headers: Vec::new(),
        body: odd.into(),
    };
    cloud.faults().script(&response, 1);
    let (status, out, error) = program.run(&["login", "--code", "c0de"]);
    assert_eq!((status, error.as_str()), (0, ""), "{out}");
    assert!(
        out.contains("Stored the refresh token") && !out.contains("precious"),
        "{out}"
    );
    assert_eq!(state(&program)["refresh_token"], "precious");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_is_never_sent_again_whatever_the_answer() {
    let cloud = cloud(|_| {}).await;
    let program = for_login(cloud.origin(), "https://app.example.com/back");
    let raw = |body: &str| IssuerResponse::Raw {
        status: 200,
        headers: Vec::new(),
        body: body.to_owned().into(),
    };
    let responses = [
        (IssuerResponse::Status(503, Some(1)), "503"),
        (IssuerResponse::Status(504, None), "504"),
        (raw("s3cret"), "not a JSON object"),
        (
            raw(r#"{"access_token":"s3cret"}"#),
            "no refresh token at /refresh_token",
        ),
    ];
    for (number, (response, says)) in (1..).zip(responses) {
        cloud.faults().script(&response, 1);
        // Like other texts in base64url, a code may begin with a hyphen.
        let (status, _, error) = program.run(&["login", "--code", "-c0de"]);
        assert_eq!(status, 1, "{error}");
        assert!(
            error.contains(says) && !error.contains("s3cret") && !error.contains("c0de"),
            "{error}"
        );
        assert_eq!(cloud.issuer_calls(), number);
    }
    assert!(!program.path("state/token.json").exists());
    let program = for_login("http://127.0.0.1:1", "https://app.example.com/back");
    let (status, _, error) = program.run(&["login", "--code", "c0de"]);
    assert!(
        status == 1 && error.contains("cannot be reached") && !error.contains("c0de"),
        "{error}"
    );
}

#[test]
fn what_a_login_needs_is_told_before_anything_happens() {
    let program = configured("http://127.0.0.1:1", "token.refresh_token = \"r\"\n");
    let (status, out, error) = program.run(&["login", "--code", "c0de"]);
    assert_eq!((status, out.as_str()), (78, ""));
    assert_eq!(error.lines().count(), 2, "{error}");
    assert!(
        error.contains("proxy.toml: token.redirect_uri: is missing")
            && error.contains("token.state_file"),
        "{error}"
    );

    let port = free_port();
    let redirect_uri = format!("http://127.0.0.1:{port}/callback");
    let program = for_login("http://127.0.0.1:1", &redirect_uri);
    let occupant = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (status, _, error) = program.run(&["login"]);
    assert!(
        status == 1 && error.contains("another program listens there already"),
        "{error}"
    );
    drop(occupant);

    fs::create_dir_all(program.path("state")).unwrap();
    program.write("state/token.json", "garbage");
    let (status, out, error) = program.run(&["login"]);
    assert_eq!(
        (status, out.as_str()),
        (1, ""),
        "nobody is asked to log in in vain"
    );
    assert!(error.contains("token.json"), "{error}");
}

const JWT_KEY: &str = "jwt-s3cret-key";

fn with_jwt(cloud: &str, more: &[(&str, &str)]) -> Loaded {
    let overrides = [
        ("proxy.listen", "127.0.0.1:0"),
        ("upstream.endpoints", cloud),
        ("token.client_id", "my app"),
        ("token.client_secret", SECRET),
        ("token.jwt.key", JWT_KEY),
    ];
    let overrides = overrides
        .iter()
        .chain(more)
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let source = Source {
        file: None,
        env: Vec::<(OsString, OsString)>::new(),
        overrides,
    };
    config::load(source).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn jwt_tokens(loaded: Loaded) -> JwtGrant {
    let config = loaded.config;
    config
        .initial_grant
        .build(&config.token.issuer, clock::system())
        .unwrap()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_brings_first_tokens_in_both_shapes_of_answer() {
    for redirects in [false, true] {
        let redirect_uri = "https://app.example.com/back";
        let cloud = cloud(|config| {
            config.jwt_redirects = redirects;
            config.redirect_uri = Some(redirect_uri.to_owned());
        })
        .await;
        let tokens = jwt_tokens(with_jwt(
            cloud.origin(),
            &[("token.redirect_uri", redirect_uri)],
        ));
        // A code is good for once: each time another one is asked for.
        for number in 1..=2 {
            let grant = tokens.request_tokens().await.unwrap();
            assert!(grant.refresh_token.is_some());
            assert_eq!(cloud.issuer_successes(), number);
        }
        assert!(!format!("{tokens:?}").contains(JWT_KEY));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_request_names_its_user_and_is_signed() {
    let issuer = Upstream::new()
        .on("/api/authorizeByJWT.do", ok(r#"{"code":"c0de"}"#))
        .on("*", ok(r#"{"access_token":"a"}"#))
        .start()
        .await;
    let more = [
        ("token.jwt.babel_id", "a&b"),
        ("token.jwt.claims", "{ n = 1 }"),
        ("token.jwt.algorithm", "HS384"),
    ];
    let tokens = jwt_tokens(with_jwt(&issuer.origin(), &more));
    tokens.request_tokens().await.unwrap();
    let [first, second] = &issuer.requests()[..] else {
        panic!("not two requests")
    };
    assert!(
        first.fields("authorization").is_empty(),
        "the client's secret is not for this interface: {first:?}"
    );
    let url = Url::parse("http://issuer").unwrap();
    let url = url.join(first.target()).unwrap();
    assert_eq!(url.path(), "/api/authorizeByJWT.do");
    let names: Vec<_> = url
        .query_pairs()
        .map(|(name, _)| name.into_owned())
        .collect();
    assert_eq!(
        names,
        ["response_type", "client_id", "jwt_token", "babelId"]
    );
    assert_eq!(
        [parameter(&url, "client_id"), parameter(&url, "babelId")],
        ["my app", "a&b"]
    );
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS384);
    rules.set_required_spec_claims(&["exp"]);
    let key = jsonwebtoken::DecodingKey::from_secret(JWT_KEY.as_bytes());
    let jwt = jsonwebtoken::decode::<serde_json::Value>(parameter(&url, "jwt_token"), &key, &rules)
        .unwrap();
    assert_eq!(
        (&jwt.claims["client_id"], &jwt.claims["n"]),
        (&"my app".into(), &1.into())
    );
    assert_eq!(
        jwt.claims["exp"].as_u64().unwrap() - jwt.claims["iat"].as_u64().unwrap(),
        300
    );
    let exchange = "/api/token.do?grant_type=authorization_code&code=c0de";
    assert_eq!((second.method(), second.target()), ("POST", exchange));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_that_brings_nothing_says_why_without_secrets() {
    let cloud = cloud(|_| {}).await;
    let wrong_client = jwt_tokens(with_jwt(cloud.origin(), &[("token.client_id", "other")]));
    let nobody = jwt_tokens(with_jwt("http://127.0.0.1:1", &[]));
    for (tokens, class, says) in [
        (
            wrong_client,
            FailureClass::Failing,
            "the issuer responded 400",
        ),
        (nobody, FailureClass::Unreachable, "cannot be reached"),
    ] {
        let failure = tokio::time::timeout(LIMIT, tokens.request_tokens())
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(failure.class, class);
        assert!(failure.detail.contains(says), "{}", failure.detail);
        assert!(
            !failure.detail.contains("eyJ") && !failure.detail.contains("jwt_token"),
            "{}",
            failure.detail
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_keys_and_secrets_are_used_at_once() {
    let cloud = cloud(|_| {}).await;
    let more = "token.client_id = \"my app\"\ntoken.client_secret_file = \"secret\"\ntoken.jwt.key_file = \"key\"\n";
    let program = Program::without_token(cloud.origin(), more);
    program.write("key", "old");
    program.write("secret", "wrong");
    let tokens = jwt_tokens(toml::load(&program.path("proxy.toml")));
    assert_eq!(
        tokens.request_tokens().await.unwrap_err().class,
        FailureClass::ClientRefused
    );
    program.write("secret", SECRET);
    fs::remove_file(program.path("key")).unwrap();
    tokens
        .request_tokens()
        .await
        .expect("with the new secret, and with the key that was known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_with_a_jwt_key_needs_no_other_token() {
    let cloud = cloud(|_| {}).await;
    let program = configured(cloud.origin(), &format!("token.jwt.key = \"{JWT_KEY}\"\n"));
    serves(&program).await;
    assert_eq!(cloud.issuer_calls(), 1);
}

/// The sentence that `login` ends with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_proxy_picks_a_login_up_by_itself() {
    let cloud = cloud(|_| {}).await;
    let redirect_uri = "https://app.example.com/callback";
    let program = for_login(cloud.origin(), redirect_uri);
    let mut running = program.start();
    listens(program.address).await;
    assert_eq!(program.get("/api/echo.do").await, 503);
    let authorize = format!(
        "{}/api/authorize.do?response_type=code&client_id=my%20app&redirect_uri={redirect_uri}&data=x",
        cloud.origin()
    );
    let code = parameter(&callback_of(&authorize.parse().unwrap()).await, "code");
    let (status, _, error) = program.run(&["login", "--code", &code]);
    assert_eq!(status, 0, "{error}");
    eventually("it serves", async || {
        program.get("/api/echo.do").await == 200
    })
    .await;
    assert!(running.0.try_wait().unwrap().is_none(), "it was restarted");
}
