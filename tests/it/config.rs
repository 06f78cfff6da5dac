//! The configuration: files that load, files that do not and what is said of them, the environment, the shipped file.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bearer_proxy::{
    base::log::Format,
    config::{self, Key, Kind, Loaded, Mistakes, Presence, Source},
    net::tls,
    proxy::{
        AccessLog, Client, Exhausted, ForwardedHeaders, Limits, Listener, RetryJson, Rewrite,
        Route, Rules, policy::rules::Rule,
    },
    token::{BasicEncoding, ParameterLocation, ResponseFields, jwt_grant::User},
    upstream::{Cookies, Host, Http2},
};
use jsonwebtoken::Algorithm;
use proptest::prelude::*;
use tempfile::TempDir;

const INVALID: &str = "tests/config/invalid";
const VALID: &str = "tests/config/valid";

fn load(file: impl Into<PathBuf>, env: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    config::load(Source {
        file: Some(file.into()),
        env: variables(env),
        overrides: Vec::new(),
    })
}

fn load_environment(env: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    config::load(Source {
        file: None,
        env: variables(env),
        overrides: Vec::new(),
    })
}

fn variables(env: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    env.iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn valid(name: &str) -> Loaded {
    load(Path::new(VALID).join(name), &[]).unwrap_or_else(|mistakes| panic!("{name}:\n{mistakes}"))
}

/// Loads a text, and shows mistakes without the folder it was put into.
fn load_text(text: impl AsRef<[u8]>) -> Result<Loaded, String> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    fs::write(&file, text).unwrap();
    load(&file, &[]).map_err(|mistakes| without_folder(&mistakes, folder.path()))
}

fn without_folder(text: &impl ToString, folder: &Path) -> String {
    let folder = folder.join("");
    text.to_string().replace(&*folder.to_string_lossy(), "")
}

fn toml_files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "toml")
    });
    files.sort();
    files
}

fn expected(file: &Path, extension: &str) -> String {
    fs::read_to_string(file.with_extension(extension))
        .unwrap_or_default()
        .replace("\r\n", "\n")
        .trim_end()
        .to_owned()
}

/// Every value that stands for a secret in these files.
const SECRETS: [&str; 6] = [
    "s3cret",
    "r3fresh",
    "4dmin",
    "jwtk3y",
    "file-secret",
    "file-refresh",
];

fn assert_no_secret(output: &str) {
    for secret in SECRETS {
        assert!(!output.contains(secret), "{secret} in:\n{output}");
    }
}

#[test]
fn invalid_files_tell_every_mistake() {
    let files = toml_files(INVALID);
    assert!(files.len() >= 25, "only {} files seen", files.len());
    let mut differences = String::new();
    for file in files {
        let told = match load(&file, &[]) {
            Ok(_) => "no mistake found".to_owned(),
            Err(mistakes) => without_folder(&mistakes, Path::new(INVALID)),
        };
        assert_no_secret(&told);
        if told != expected(&file, "stderr") {
            differences.push_str(&format!("--- {}\n{told}\n", file.display()));
        }
    }
    assert!(differences.is_empty(), "not as expected:\n{differences}");
}

#[test]
fn valid_files_load_and_warn() {
    let files = toml_files(VALID);
    assert!(files.len() >= 4, "only {} files seen", files.len());
    for file in files {
        let loaded =
            load(&file, &[]).unwrap_or_else(|mistakes| panic!("{}:\n{mistakes}", file.display()));
        assert_no_secret(&format!("{loaded:?}"));
        let told: Vec<String> = loaded
            .warnings
            .iter()
            .map(|warning| without_folder(warning, Path::new(VALID)))
            .collect();
        assert_eq!(
            told.join("\n"),
            expected(&file, "warnings"),
            "{}",
            file.display()
        );
    }
}

#[test]
fn defaults_are_those_promised() {
    let Loaded {
        config,
        warnings,
        file,
    } = valid("smallest.toml");
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(
        file.as_deref(),
        Some(&*Path::new(VALID).join("smallest.toml"))
    );
    let seconds = Duration::from_secs;

    let proxy = config.proxy;
    assert_eq!(proxy.listeners.len(), 1);
    assert_eq!(proxy.listeners[0].address.to_string(), "127.0.0.1:8080");
    assert_eq!(proxy.listeners[0].guard, Default::default());
    assert_eq!(
        proxy.workers,
        std::thread::available_parallelism().unwrap().get()
    );
    let limits = Limits {
        connections: 10_000,
        connections_per_address: 1024,
        requests: 4096,
        head_size: 64 << 10,
        uri_length: 8 << 10,
        headers: 100,
        streams: 128,
        resets: 200,
        control_frames: 1000,
    };
    assert_eq!(
        (proxy.limits, proxy.forwarded_headers),
        (limits, ForwardedHeaders::XForwarded)
    );
    assert_eq!(
        (proxy.first_byte_timeout, proxy.head_timeout),
        (seconds(10), seconds(10))
    );
    assert_eq!(
        (proxy.body_idle_timeout, proxy.idle_timeout),
        (seconds(60), seconds(75))
    );
    assert_eq!(proxy.min_body_rate, 240);
    assert_eq!(
        (proxy.drain_delay, proxy.drain_timeout),
        (seconds(0), seconds(30))
    );
    assert_eq!(proxy.access_log, AccessLog::Off);
    assert_eq!(
        (proxy.retry.statuses, proxy.retry.any_method),
        (vec![http::StatusCode::UNAUTHORIZED], false)
    );
    assert_eq!(
        (proxy.retry.body_limit, proxy.retry.total_limit),
        (1 << 20, 64 << 20)
    );
    assert_eq!((proxy.retry.exhausted, proxy.retry.json), (None, None));
    assert!(proxy.routes.is_empty() && proxy.rewrites.is_empty() && config.upstreams.len() == 1);

    let upstream = config.upstreams[0].clone();
    assert_eq!(upstream.endpoints[0].origin, "https://cloud.example.com");
    assert_eq!((upstream.host, upstream.connect_to), (Host::Endpoint, None));
    assert_eq!(
        (upstream.connect_timeout, upstream.response_timeout),
        (seconds(5), seconds(60))
    );
    assert_eq!(
        (upstream.body_idle_timeout, upstream.idle_timeout),
        (seconds(60), seconds(90))
    );
    assert_eq!(
        (upstream.max_connections, upstream.tls),
        (4096, tls::Config::default())
    );
    assert_eq!(
        (
            upstream.name.as_str(),
            upstream.handshake_timeout,
            upstream.http2
        ),
        ("default", seconds(10), Http2::Auto)
    );

    let token = config.token;
    assert_eq!(token.refresh_token.unwrap().expose(), "file-refresh");
    assert_eq!(
        token.state_file,
        Some(Path::new(VALID).join("state/token.json"))
    );
    assert_eq!(
        (token.refresh_margin, token.wait, token.cooldown),
        (None, seconds(10), seconds(10))
    );
    assert_eq!(
        (token.refresh_lifetime, token.grace_retry),
        (seconds(30 * 24 * 3600), true)
    );
    let issuer = token.issuer;
    assert_eq!(
        issuer.refresh_url.as_str(),
        "https://cloud.example.com/api/refreshToken.do"
    );
    assert_eq!(
        (issuer.client_id.as_str(), issuer.client_secret.expose()),
        ("app", "file-secret")
    );
    assert_eq!(
        issuer.client_secret.file(),
        Some(&*Path::new(VALID).join("files/client_secret"))
    );
    assert_eq!(
        (issuer.parameters, issuer.basic_encoding),
        (ParameterLocation::Query, BasicEncoding::Raw)
    );
    assert_eq!(
        (issuer.timeout, issuer.default_expires_in),
        (seconds(10), seconds(300))
    );
    let initial_grant = config.initial_grant;
    assert_eq!(
        initial_grant.code.authorize_url.as_str(),
        "https://cloud.example.com/api/authorize.do"
    );
    assert_eq!(
        initial_grant.code.token_url.as_str(),
        "https://cloud.example.com/api/token.do"
    );
    assert!(initial_grant.code.redirect_uri.is_none() && initial_grant.jwt.is_none());
    assert_eq!(
        (
            issuer.fields.access_token.as_str(),
            issuer.fields.refresh_token.as_str()
        ),
        ("/access_token", "/refresh_token")
    );
    assert_eq!(
        (
            issuer.fields.expires_in.as_str(),
            issuer.fields.refresh_expires_in.as_str()
        ),
        ("/expires_in", "/refresh_expires_in")
    );
    assert_eq!(issuer.fields, ResponseFields::default());

    let admin = config.admin.unwrap();
    assert_eq!(
        (
            admin.listener.address.to_string().as_str(),
            admin.token.is_none()
        ),
        ("127.0.0.1:9180", true)
    );
    assert_eq!(
        (config.log.level.to_string().as_str(), config.log.format),
        ("info", Format::Auto)
    );
}

#[test]
fn every_key_arrives_where_it_belongs() {
    let config = valid("everything.toml").config;
    let seconds = Duration::from_secs;
    let file = |name: &str| Some(Path::new(VALID).join("files").join(name));

    let proxy = config.proxy;
    let addresses: Vec<String> = proxy
        .listeners
        .iter()
        .map(|listener| listener.address.to_string())
        .collect();
    assert_eq!(
        addresses,
        [
            "127.0.0.1:8080",
            "[::1]:8080",
            "0.0.0.0:8081",
            "127.0.0.1:8082"
        ]
    );
    let guard = &proxy.listeners[3].guard;
    assert_eq!(
        guard.allowed_hosts.iter().collect::<Vec<_>>(),
        ["[::1]", "files.example.com"]
    );
    assert_eq!(
        guard.allowed_origins.iter().collect::<Vec<_>>(),
        ["https://app.example.com"]
    );
    assert_eq!(
        guard.required_header.as_ref().map(http::HeaderName::as_str),
        Some("x-app")
    );
    let limits = Limits {
        connections: 500,
        connections_per_address: 501,
        requests: 502,
        head_size: 5000,
        uri_length: 503,
        headers: 504,
        streams: 505,
        resets: 506,
        control_frames: 507,
    };
    assert_eq!((proxy.workers, proxy.limits), (3, limits));
    assert_eq!(
        (proxy.forwarded_headers, proxy.access_log),
        (ForwardedHeaders::Forwarded, AccessLog::Sampled)
    );
    assert_eq!(
        (proxy.first_byte_timeout, proxy.head_timeout),
        (seconds(1), seconds(2))
    );
    assert_eq!(
        (proxy.body_idle_timeout, proxy.idle_timeout),
        (seconds(3), seconds(4))
    );
    assert_eq!(proxy.min_body_rate, 508);
    assert_eq!(proxy.tunnel_idle_timeout, seconds(27));
    assert_eq!(
        (proxy.drain_delay, proxy.drain_timeout),
        (seconds(5), seconds(6))
    );
    let statuses: Vec<u16> = proxy
        .retry
        .statuses
        .iter()
        .map(http::StatusCode::as_u16)
        .collect();
    assert_eq!((statuses, proxy.retry.any_method), (vec![401, 403], true));
    assert_eq!(
        (proxy.retry.body_limit, proxy.retry.total_limit),
        (64_000, 1 << 30)
    );
    assert_eq!(proxy.retry.exhausted, Some(Exhausted::BadGateway));
    let values = vec![401.into(), "E1".into()];
    assert_eq!(
        proxy.retry.json,
        Some(RetryJson {
            pointer: "/error/code".to_owned(),
            values
        })
    );
    let route = |host: Option<&str>, prefix: &str, upstream| Route {
        host: host.map(str::to_owned),
        prefix: prefix.to_owned(),
        upstream,
        strip_prefix: false,
        credential: Some(0),
        rules: Rules::default(),
        response_timeout: None,
        body_idle_timeout: None,
    };
    let documents = route(None, "/_document", 1);
    let rules = Rules {
        allow: vec![Rule::new(None, "/public/files")],
        deny: vec![
            Rule::new(Some("DELETE".parse().unwrap()), "/"),
            Rule::new(None, "/public/files/.trash"),
        ],
    };
    let issuer = ["refresh", "authorize", "token", "jwt"];
    assert!(
        proxy.credentials[0].issuer_segments.len() == issuer.len(),
        "{:?}",
        proxy.credentials[0].issuer_segments
    );
    assert_eq!(
        proxy.routes,
        [
            Route {
                strip_prefix: true,
                credential: None,
                ..documents.clone()
            },
            Route {
                response_timeout: Some(seconds(25)),
                body_idle_timeout: Some(seconds(26)),
                ..route(Some("files.example.com"), "", 2)
            },
            Route {
                credential: None,
                rules,
                ..route(Some("files.example.com"), "/public/files", 0)
            },
            Route {
                strip_prefix: true,
                ..route(None, "/_share", 1)
            },
        ]
    );
    let rewrite = |from: &str, to: &str| Rewrite {
        from: from.to_owned(),
        to: to.to_owned(),
    };
    assert_eq!(
        proxy.rewrites,
        [
            rewrite("http://document.example.com", "/_document"),
            rewrite("https://share.example.com:8443", "/_share"),
            rewrite("https://cloud.internal", ""),
        ]
    );

    let upstream = config.upstreams[0].clone();
    let origins: Vec<&str> = upstream
        .endpoints
        .iter()
        .map(|endpoint| endpoint.origin.as_str())
        .collect();
    assert_eq!(
        origins,
        ["https://cloud.example.com", "https://[2001:db8::1]:8443"]
    );
    assert_eq!(
        upstream.host,
        Host::Fixed(http::HeaderValue::from_static("files.example.com"))
    );
    assert_eq!(upstream.connect_to, "192.0.2.10:443".parse().ok());
    assert_eq!(
        (upstream.connect_timeout, upstream.response_timeout),
        (seconds(7), seconds(8))
    );
    assert_eq!(
        (
            upstream.body_idle_timeout,
            upstream.idle_timeout,
            upstream.max_connections
        ),
        (seconds(9), seconds(10), 11)
    );
    let tls = tls::Config {
        ca_file: file("client.pem"),
        client_cert_file: file("client.pem"),
        client_key_file: file("client.key"),
        server_name: Some("cloud.internal".to_owned()),
        min_version: tls::MinVersion::Tls13,
    };
    assert_eq!(upstream.tls, tls);

    assert_eq!(
        (upstream.handshake_timeout, upstream.http2),
        (seconds(21), Http2::Never)
    );
    let named: Vec<_> = config
        .upstreams
        .iter()
        .map(|upstream| upstream.name.as_str())
        .collect();
    assert_eq!(named, ["default", "Doc-1", "files_2"]);
    let documents = &config.upstreams[1];
    assert_eq!(documents.endpoints[0].origin, "http://document.example.com");
    assert_eq!(
        (
            documents.http2,
            documents.connect_timeout,
            documents.max_connections
        ),
        (Http2::Always, seconds(22), 4096)
    );
    assert_eq!(
        config.upstreams[2].tls.server_name.as_deref(),
        Some("files.internal")
    );

    let token = config.token;
    assert_eq!(token.refresh_token.unwrap().expose(), "r3fresh-words");
    assert_eq!(
        (token.refresh_margin, token.wait, token.cooldown),
        (Some(seconds(12)), seconds(13), seconds(16))
    );
    assert_eq!(
        (token.refresh_lifetime, token.grace_retry),
        (seconds(16 * 24 * 3600), false)
    );
    let issuer = token.issuer;
    assert_eq!(
        issuer.refresh_url.as_str(),
        "https://login.example.com:9443/oauth/refresh"
    );
    assert_eq!(
        (issuer.client_id.as_str(), issuer.client_secret.expose()),
        ("app:1", "s3cret-words")
    );
    assert_eq!(
        (issuer.parameters, issuer.basic_encoding),
        (ParameterLocation::Form, BasicEncoding::Form)
    );
    assert_eq!(
        (issuer.timeout, issuer.default_expires_in),
        (seconds(14), seconds(15))
    );
    let fields = issuer.fields;
    assert_eq!(
        [fields.access_token, fields.refresh_token],
        ["/data/at", "/data/rt"]
    );
    assert_eq!(
        [fields.expires_in, fields.refresh_expires_in],
        ["/data/ei", "/data/re"]
    );
    assert_eq!(issuer.tls.server_name.as_deref(), Some("login.internal"));
    assert_eq!(issuer.tls.min_version, tls::MinVersion::Tls13);
    let initial_grant = config.initial_grant;
    assert_eq!(
        initial_grant.code.redirect_uri.as_deref(),
        Some("https://app.example.com/back?a=b")
    );
    assert_eq!(
        initial_grant.code.authorize_url.as_str(),
        "https://login.example.com:9443/oauth/authorize"
    );
    assert_eq!(
        initial_grant.code.token_url.as_str(),
        "https://login.example.com:9443/oauth/token"
    );
    let jwt = initial_grant.jwt.unwrap();
    assert_eq!(jwt.url.as_str(), "https://login.example.com:9443/oauth/jwt");
    assert_eq!(
        (jwt.algorithm, jwt.user),
        (Algorithm::HS512, Some(User::Phone("12345".to_owned())))
    );
    assert_eq!(jwt.key.expose(), "jwtk3y-words");
    assert_eq!(
        (jwt.code_fields, jwt.names.code.as_str()),
        (vec!["/x/code".to_owned()], "c")
    );
    assert_eq!(
        (jwt.names.client_id.as_str(), jwt.names.jwt_token.as_str()),
        ("ci", "jt")
    );
    assert_eq!(
        [jwt.names.email, jwt.names.phone, jwt.names.babel_id],
        ["e", "p", "b"]
    );
    let claims = serde_json::json!({ "scope": ["a", "b"], "level": 3, "inner": { "yes": true } });
    assert_eq!(serde_json::Value::Object(jwt.claims), claims);
    assert_eq!(
        issuer.tls.ca_file, None,
        "an issuer of its own does not inherit the upstream's trust"
    );

    let admin = config.admin.unwrap();
    assert_eq!(
        (
            admin.listener.address.to_string().as_str(),
            admin.token.unwrap().expose()
        ),
        ("0.0.0.0:9180", "4dmin-words")
    );
    assert_eq!(admin.listener.guard, *guard);
    assert_eq!(
        (config.log.level.to_string().as_str(), config.log.format),
        ("debug", Format::Json)
    );
}

/// Enough variables that no file is needed.
const ENOUGH: [(&str, &str); 5] = [
    ("BEARER_PROXY__PROXY__LISTEN", "127.0.0.1:8080, [::1]:8080"),
    (
        "BEARER_PROXY__UPSTREAM__ENDPOINTS",
        "https://cloud.example.com",
    ),
    ("BEARER_PROXY__TOKEN__CLIENT_ID", "app"),
    ("BEARER_PROXY__TOKEN__CLIENT_SECRET", "s3cret-words"),
    ("BEARER_PROXY__TOKEN__REFRESH_TOKEN", "r3fresh-words"),
];

fn enough_and(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    ENOUGH
        .iter()
        .copied()
        .filter(|(name, _)| more.iter().all(|(other, _)| name != other))
        .chain(more.iter().copied())
        .collect()
}

#[test]
fn the_environment_alone_is_enough() {
    let loaded = load_environment(&enough_and(&[
        ("BEARER_PROXY__TOKEN__STATE_FILE", "state/token.json"),
        ("BEARER_PROXY__TOKEN__FIELDS__ACCESS_TOKEN", "/data/at"),
        (
            "BEARER_PROXY__UPSTREAM__TLS__CA_FILE",
            "tests/config/valid/files/client.pem",
        ),
        ("BEARER_PROXY__RETRY__STATUSES", "401,403"),
        ("BEARER_PROXY__RETRY__ANY_METHOD", "true"),
        ("BEARER_PROXY__PROXY__WORKERS", "3"),
        ("BEARER_PROXY__PROXY__ALLOWED_HOSTS", ""),
        ("BEARER_PROXY_PORT", "tcp://10.0.0.1:8080"),
        ("PATH", "/usr/bin"),
    ]))
    .unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = loaded.config;
    assert_eq!(config.proxy.listeners.len(), 2);
    assert_eq!(
        (
            config.proxy.workers,
            config.proxy.retry.statuses.len(),
            config.proxy.retry.any_method
        ),
        (3, 2, true)
    );
    assert_eq!(
        config.token.state_file.as_deref(),
        Some(Path::new("state/token.json")),
        "relative to the current folder"
    );
    assert_eq!(config.token.issuer.fields.access_token, "/data/at");
    assert_eq!(
        config.upstreams[0].tls.ca_file.as_deref(),
        Some(Path::new("tests/config/valid/files/client.pem"))
    );
    assert_eq!(
        config.token.issuer.tls, config.upstreams[0].tls,
        "without an issuer of its own, the upstream's trust holds"
    );
    assert!(config.admin.is_none());
}

#[test]
fn the_upstreams_trust_is_not_lent_to_another_issuer() {
    let config = load_environment(&enough_and(&[
        ("BEARER_PROXY__UPSTREAM__TLS__SERVER_NAME", "cloud.internal"),
        ("BEARER_PROXY__TOKEN__ISSUER", "https://login.example.com"),
    ]))
    .unwrap()
    .config;
    assert_eq!(
        config.upstreams[0].tls.server_name.as_deref(),
        Some("cloud.internal")
    );
    assert_eq!(config.token.issuer.tls, tls::Config::default());
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    let mistakes = load_environment(&enough_and(&[
        ("BEARER_PROXY__PROXY__LISTEN", "127.0.0.1:8080,0.0.0.0:8081"),
        ("BEARER_PROXY__TOKEN__CLIENT_SECRETT", "s3cret-words"),
        ("BEARER_PROXY__LISTEN", "s3cret-words"),
        ("BEARER_PROXY__XYZZY__PLUGH", "s3cret-words"),
        ("BEARER_PROXY__UPSTREAM__CONNECT_TIMEOUT", "5"),
        ("BEARER_PROXY__RETRY__STATUSES", "401,forbidden"),
        ("BEARER_PROXY__RETRY__ANY_METHOD", "yes"),
        ("BEARER_PROXY__TOKEN__CLIENT_ID", ""),
        ("BEARER_PROXY__TOKEN__REFRESH_TOKEN_FILE", "no-such-file"),
        ("BEARER_PROXY__UPSTREAM__ENDPOINTS", ","),
    ]))
    .unwrap_err();
    assert_no_secret(&mistakes.to_string());
    let expected = r#"
environment: BEARER_PROXY__LISTEN: no key has this name (did you mean BEARER_PROXY__PROXY__LISTEN or BEARER_PROXY__ADMIN__LISTEN?)
environment: BEARER_PROXY__PROXY__LISTEN: proxy.listen: 0.0.0.0:8081 can be reached from other machines, and requests there use the proxy's token without authentication (listen on 127.0.0.1, or set BEARER_PROXY__PROXY__ALLOW_UNAUTHENTICATED=true if the network admits only the right clients)
environment: BEARER_PROXY__RETRY__ANY_METHOD: retry.any_method: is text (write true or false)
environment: BEARER_PROXY__RETRY__STATUSES: retry.statuses: is text (write a number from 400 to 599)
environment: BEARER_PROXY__TOKEN__CLIENT_ID: token.client_id: is empty (give it a value, or unset it)
environment: BEARER_PROXY__TOKEN__CLIENT_SECRETT: no key has this name (did you mean BEARER_PROXY__TOKEN__CLIENT_SECRET?)
environment: BEARER_PROXY__TOKEN__REFRESH_TOKEN_FILE: token.refresh_token_file: token.refresh_token and token.refresh_token_file are both set (keep one of the two)
environment: BEARER_PROXY__UPSTREAM__CONNECT_TIMEOUT: upstream.connect_timeout: has no unit (write 5s for seconds)
environment: BEARER_PROXY__UPSTREAM__ENDPOINTS: upstream.endpoints: is empty (set BEARER_PROXY__UPSTREAM__ENDPOINTS=<https://your-cloud>)
environment: BEARER_PROXY__XYZZY__PLUGH: no key has this name (a variable is BEARER_PROXY__SECTION__KEY, as in BEARER_PROXY__PROXY__LISTEN)
"#;
    assert_eq!(mistakes.to_string(), expected.trim());

    let mistakes = load_environment(&[("BEARER_PROXY__TOKEN__CLIENT_ID", "app")])
        .unwrap_err()
        .to_string();
    let expected = "
environment: BEARER_PROXY__PROXY__LISTEN: proxy.listen: is missing (set BEARER_PROXY__PROXY__LISTEN=127.0.0.1:8080)
environment: BEARER_PROXY__TOKEN__CLIENT_SECRET: token.client_secret: is missing (set BEARER_PROXY__TOKEN__CLIENT_SECRET=<client secret>, or BEARER_PROXY__TOKEN__CLIENT_SECRET_FILE to a file with the value)
environment: BEARER_PROXY__TOKEN__REFRESH_TOKEN: token.refresh_token: is missing (set BEARER_PROXY__TOKEN__REDIRECT_URI and BEARER_PROXY__TOKEN__STATE_FILE and run `bearer-proxy login`, or set this to the first refresh token)
environment: BEARER_PROXY__UPSTREAM__ENDPOINTS: upstream.endpoints: is missing (set BEARER_PROXY__UPSTREAM__ENDPOINTS=<https://your-cloud>)
";
    assert_eq!(mistakes, expected.trim());
}

#[test]
fn variables_that_are_not_read_are_told() {
    let mistakes = load_environment(&enough_and(&[
        ("BEARER_PROXY_TOKEN_CLIENT_SECRET", "s3cret-words"),
        ("BEARER_PROXY_UPSTREAM__TLS_CA_FILE", "ca.pem"),
        ("Bearer_Proxy__Log__Level", "debug"),
        ("BEARER_PROXY__ROUTE__PREFIX", "/x"),
        ("BEARER_PROXY__LISTENER__0__ADDRESS", "127.0.0.1:1"),
        ("BEARER_PROXY__UPSTREAMS__DEFAULT__HOST", "client"),
        ("BEARER_PROXY__UPSTREAMS__A.B__HOST", "client"),
    ]))
    .unwrap_err();
    assert_no_secret(&mistakes.to_string());
    let not_read = "is not read: a variable that sets a key has two underscores between its parts";
    let several = "belongs to an array of tables, whose keys variables cannot set";
    let expected = format!(
        "
environment: BEARER_PROXY_TOKEN_CLIENT_SECRET: {not_read} (did you mean BEARER_PROXY__TOKEN__CLIENT_SECRET?)
environment: BEARER_PROXY_UPSTREAM__TLS_CA_FILE: {not_read} (did you mean BEARER_PROXY__UPSTREAM__TLS__CA_FILE?)
environment: BEARER_PROXY__LISTENER__0__ADDRESS: {several} (write [[listener]] in the configuration file)
environment: BEARER_PROXY__ROUTE__PREFIX: {several} (write [[route]] in the configuration file)
environment: BEARER_PROXY__UPSTREAMS__A.B__HOST: no key has this name (did you mean BEARER_PROXY__UPSTREAM__HOST?)
environment: BEARER_PROXY__UPSTREAMS__DEFAULT__HOST: no key has this name (did you mean BEARER_PROXY__UPSTREAM__HOST?)
environment: Bearer_Proxy__Log__Level: {not_read} (did you mean BEARER_PROXY__LOG__LEVEL?)
"
    );
    assert_eq!(mistakes.to_string(), expected.trim());

    // Other programs may have such variables.
    let env = enough_and(&[
        ("BEARER_PROXY__TOKEN__STATE_FILE", "token.json"),
        ("BEARER_PROXY_LISTEN", "127.0.0.1:1"),
        ("BEARER_PROXY_CONFIG", "proxy.toml"),
        ("BEARER_PROXY_SERVICE_HOST", "10.0.0.1"),
        ("BEARER_PROXY_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
    ]);
    let warnings = load_environment(&env).unwrap().warnings;
    let told: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let listen = "did you mean BEARER_PROXY__PROXY__LISTEN or BEARER_PROXY__ADMIN__LISTEN?";
    assert_eq!(
        told,
        [format!(
            "environment: BEARER_PROXY_LISTEN: {not_read} ({listen})"
        )]
    );

    let alone = load_environment(&[("BEARER_PROXY_PROXY_LISTEN", "127.0.0.1:1")])
        .unwrap_err()
        .to_string();
    assert!(
        alone.contains("no configuration") && alone.contains("BEARER_PROXY__PROXY__LISTEN?"),
        "{alone}"
    );
}

#[test]
fn variables_set_keys_of_named_upstreams() {
    let file = Path::new(VALID).join("everything.toml");
    let upstreams = |env: &[(&str, &str)]| load(&file, env).unwrap().config.upstreams;
    let changed = upstreams(&[
        (
            "BEARER_PROXY__UPSTREAMS__DOC_1__ENDPOINTS",
            "http://10.0.0.1:81,http://10.0.0.2:81",
        ),
        (
            "BEARER_PROXY__UPSTREAMS__FILES_2__TLS__SERVER_NAME",
            "other.internal",
        ),
        (
            "BEARER_PROXY__UPSTREAMS__NEW__ENDPOINTS",
            "https://new.example.com",
        ),
    ]);
    let names: Vec<&str> = changed
        .iter()
        .map(|upstream| upstream.name.as_str())
        .collect();
    assert_eq!(names, ["default", "Doc-1", "files_2", "new"]);
    assert_eq!(changed[1].endpoints.len(), 2);
    assert_eq!(
        (changed[1].http2, changed[2].tls.server_name.as_deref()),
        (Http2::Always, Some("other.internal"))
    );
    let warnings = load_environment(&enough_and(&[
        ("BEARER_PROXY__TOKEN__STATE_FILE", "token.json"),
        (
            "BEARER_PROXY__UPSTREAMS__NEW__ENDPOINTS",
            "https://new.example.com",
        ),
    ]))
    .unwrap()
    .warnings;
    assert_eq!(warnings.len(), 1);
    assert_eq!(
        (warnings[0].key.as_str(), warnings[0].reason.as_str()),
        ("upstreams.new", "is used by no route")
    );
}

#[test]
fn the_environment_wins_over_the_file_and_the_command_line_over_both() {
    let file = Path::new(VALID).join("smallest.toml");
    let config = load(
        &file,
        &[
            ("BEARER_PROXY__PROXY__LISTEN", "127.0.0.1:1"),
            // The file names files for both secrets.
            ("BEARER_PROXY__TOKEN__CLIENT_SECRET", "s3cret-words"),
            (
                "BEARER_PROXY__TOKEN__REFRESH_TOKEN_FILE",
                "tests/config/valid/files/client_secret",
            ),
        ],
    )
    .unwrap()
    .config;
    assert_eq!(config.proxy.listeners[0].address.to_string(), "127.0.0.1:1");
    assert_eq!(config.token.issuer.client_secret.expose(), "s3cret-words");
    assert_eq!(config.token.issuer.client_secret.file(), None);
    assert_eq!(config.token.refresh_token.unwrap().expose(), "file-secret");

    let mut source = Source {
        file: Some(file),
        env: variables(&[("BEARER_PROXY__PROXY__LISTEN", "127.0.0.1:1")]),
        overrides: vec![("proxy.listen".to_owned(), "127.0.0.1:2".to_owned())],
    };
    let config = config::load(source.clone()).unwrap().config;
    assert_eq!(config.proxy.listeners[0].address.to_string(), "127.0.0.1:2");
    source
        .overrides
        .push(("log.level".to_owned(), "loud".to_owned()));
    source
        .overrides
        .push(("log.lvl".to_owned(), "info".to_owned()));
    assert_eq!(
        config::load(source).unwrap_err().to_string(),
        "command line: log.level: is not one of the allowed values \
         (write \"trace\" or \"debug\" or \"info\" or \"warn\" or \"error\" or \"off\")\n\
         command line: log.lvl: unknown key (see --help)"
    );
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_a_mistake() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut env = variables(&ENOUGH);
    env.push((
        "BEARER_PROXY__LOG__LEVEL".into(),
        OsString::from_vec(vec![0xff]),
    ));
    env.push((
        OsString::from_vec(b"BEARER_PROXY__\xff".to_vec()),
        "x".into(),
    ));
    let mistakes = config::load(Source {
        file: None,
        env,
        overrides: Vec::new(),
    })
    .unwrap_err();
    assert_eq!(
        mistakes.to_string(),
        "environment: BEARER_PROXY__LOG__LEVEL: log.level: is not UTF-8 text (set it to text)"
    );
}

/// A key that stood in the table and was never read would take any value.
#[test]
fn every_key_of_the_table_is_read() {
    const WRONG: &str = "\u{7}";
    for key in config::keys() {
        let variable = key.variable();
        if key.is_in_array() {
            let (list, rest) = key.path.split_once('.').unwrap();
            let overrides = vec![(format!("{list}[0].{rest}"), WRONG.to_owned())];
            let source = Source {
                file: None,
                env: variables(&ENOUGH),
                overrides,
            };
            let mistakes = config::load(source).unwrap_err().to_string();
            assert!(
                mistakes.contains(&format!("command line: {}: ", key.path)),
                "{}: {mistakes}",
                key.path
            );
            continue;
        }
        let mut given = vec![(variable.clone(), key.path.to_owned())];
        if let Some(rest) = key.path.strip_prefix("upstream.") {
            let named = variable.replace("__UPSTREAM__", "__UPSTREAMS__DOCS__");
            given.push((named, format!("upstreams.docs.{rest}")));
        }
        for (variable, path) in given {
            let env: Vec<_> = ENOUGH
                .iter()
                .copied()
                .filter(|(name, _)| *name != variable)
                .chain([(&*variable, WRONG)])
                .collect();
            let mistakes = load_environment(&env).unwrap_err().to_string();
            assert!(
                mistakes.contains(&format!("environment: {variable}: {path}: ")),
                "{path}: {mistakes}"
            );
            // Whoever sets variables is not helped by the file's signs. A table is written as in the file.
            let is_for_files =
                |line: &&str| line.contains('"') || line.contains(" = ") || line.contains("[");
            let wrong = mistakes
                .lines()
                .filter(|_| key.kind != Kind::Table)
                .find(is_for_files);
            assert_eq!(wrong, None, "{path}");
        }
    }
}

#[test]
fn byte_order_mark_and_windows_line_ends() {
    let folder = TempDir::new().unwrap();
    let text = fs::read_to_string(Path::new(INVALID).join("all_at_once.toml"))
        .unwrap()
        .replace('\n', "\r\n");
    fs::write(
        folder.path().join("all_at_once.toml"),
        format!("\u{feff}{text}"),
    )
    .unwrap();
    let mistakes = load(folder.path().join("all_at_once.toml"), &[]).unwrap_err();
    let expected = expected(&Path::new(INVALID).join("all_at_once.toml"), "stderr");
    assert_eq!(without_folder(&mistakes, folder.path()), expected);

    let mistakes = load_text("\u{feff}proxi = 1").unwrap_err();
    assert!(
        mistakes.starts_with("proxy.toml:1:1: proxi: unknown key (did you mean [proxy]?)"),
        "{mistakes}"
    );
}

#[test]
fn columns_count_characters() {
    let mistakes = load_text("[log]\nlevel = \"ä\" \n format = 'ö'; x").unwrap_err();
    assert!(
        mistakes.contains("proxy.toml:3:14: this is not TOML"),
        "{mistakes}"
    );
}

#[test]
fn files_that_cannot_be_read_are_one_line() {
    let missing = load("no/such/proxy.toml", &[]).unwrap_err().to_string();
    assert_eq!(
        missing,
        "no/such/proxy.toml: cannot be read: No such file or directory (os error 2) \
         (check the path, or create a file with `bearer-proxy init`)"
    );
    assert_eq!(load(VALID, &[]).unwrap_err().iter().count(), 1);
    assert_eq!(
        load_text(b"[proxy]\n\xff\xfe").unwrap_err(),
        "proxy.toml: is not UTF-8 text, line 2 (save it as UTF-8 in the editor)"
    );
    let huge = load_text("#".repeat(2 << 20)).unwrap_err();
    assert_eq!(
        huge,
        "proxy.toml: is larger than 1 MiB (name a configuration file)"
    );
}

#[test]
fn nothing_at_all_points_to_init() {
    let mistakes = load_environment(&[("PATH", "/usr/bin")])
        .unwrap_err()
        .to_string();
    assert!(
        mistakes.starts_with("no configuration: this folder has no proxy.toml"),
        "{mistakes}"
    );
    assert!(mistakes.contains("bearer-proxy init"), "{mistakes}");
    assert_eq!(mistakes.lines().count(), 1);
}

#[test]
fn the_file_is_located_by_flag_then_variable_then_name() {
    let folder = TempDir::new().unwrap();
    let locate = |flag: Option<&str>, variable: Option<&str>| {
        config::locate(
            flag.map(PathBuf::from),
            variable.map(OsString::from),
            folder.path(),
        )
    };
    assert_eq!(locate(None, None), None);
    assert_eq!(locate(None, Some("")), None);
    fs::write(folder.path().join("proxy.toml"), "").unwrap();
    assert_eq!(locate(None, None), Some(folder.path().join("proxy.toml")));
    assert_eq!(locate(None, Some("b.toml")), Some("b.toml".into()));
    assert_eq!(
        locate(Some("a.toml"), Some("b.toml")),
        Some("a.toml".into())
    );
}

#[test]
fn a_state_file_stands_in_for_the_first_refresh_token() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    let text = fs::read_to_string(Path::new(INVALID).join("no_state_yet.toml")).unwrap();
    fs::write(&file, text).unwrap();
    assert!(load(&file, &[]).is_err());
    assert!(
        !folder.path().join("no").exists(),
        "reading a configuration creates nothing"
    );
    fs::create_dir_all(folder.path().join("no/such")).unwrap();
    fs::write(folder.path().join("no/such/state.json"), "{}").unwrap();
    let loaded = load(&file, &[]).unwrap();
    assert!(loaded.config.token.refresh_token.is_none() && loaded.warnings.is_empty());
}

#[test]
fn a_state_file_needs_a_folder_that_can_be_written_to() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    let locked = folder.path().join("locked");
    let starter =
        config::starter(Some("https://cloud.example.com"), Some("app")).replace(['<', '>'], "");
    fs::write(
        &file,
        starter.replace("state/token.json", "locked/state/token.json"),
    )
    .unwrap();
    fs::create_dir(&locked).unwrap();
    assert!(load(&file, &[]).is_ok());
    let writable = fs::metadata(&locked).unwrap().permissions();
    let mut read_only = writable.clone();
    read_only.set_readonly(true);
    fs::set_permissions(&locked, read_only).unwrap();
    let mistakes = load(&file, &[]).unwrap_err().to_string();
    fs::set_permissions(&locked, writable).unwrap();
    assert!(
        mistakes.contains("token.state_file: the folder ")
            && mistakes.contains("locked is read-only"),
        "{mistakes}"
    );
}

#[cfg(unix)]
#[test]
fn relative_local_sockets_start_at_the_files_folder() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    let starter =
        config::starter(Some("https://cloud.example.com"), Some("app")).replace(['<', '>'], "");
    let text = starter
        .replace("127.0.0.1:8080", "unix:run/data.sock")
        .replace("127.0.0.1:9180", "unix:admin.sock");
    fs::write(&file, text).unwrap();
    let config = load(&file, &[]).unwrap().config;
    let expected = |path: &str| bearer_proxy::net::socket::Address::Unix(folder.path().join(path));
    assert_eq!(config.proxy.listeners[0].address, expected("run/data.sock"));
    assert_eq!(
        config.admin.unwrap().listener.address,
        expected("admin.sock")
    );
}

const SHIPPED: &str = "proxy.toml";

/// `# key = value`, the marks removed; other comments stay. Of sections that are comments themselves, either all or
/// nothing.
fn uncommented(
    text: &str,
    wanted: impl Fn(&str) -> bool,
    wanted_section: impl Fn(&str) -> bool,
) -> String {
    let (mut section, mut all) = (String::new(), None);
    let lines = text.lines().map(|line| {
        let inner = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = inner
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name.trim_matches(['[', ']']).to_owned();
            all = (inner != line).then(|| wanted_section(&section));
            return format!("{}\n", if all == Some(true) { inner } else { line });
        }
        let is_assignment = inner.split_once(" = ").is_some_and(|(key, _)| {
            key.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.')
                && all.unwrap_or_else(|| wanted(&format!("{section}.{key}")))
        });
        format!("{}\n", if is_assignment { inner } else { line })
    });
    lines.collect()
}

fn flatten(prefix: &str, table: &toml::Table, into: &mut BTreeMap<String, toml::Value>) {
    for (name, value) in table {
        let path = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            // Some keys take a table.
            toml::Value::Table(inner) if !config::keys().iter().any(|key| key.path == path) => {
                flatten(&path, inner, into);
            }
            toml::Value::Array(elements) if elements.iter().any(toml::Value::is_table) => {
                assert_eq!(elements.len(), 1, "{path}");
                flatten(&path, elements[0].as_table().unwrap(), into);
            }
            value => assert!(into.insert(path, value.clone()).is_none()),
        }
    }
}

#[test]
fn the_shipped_file_documents_every_key_and_no_other() {
    let text = fs::read_to_string(SHIPPED).unwrap();
    let table: toml::Table = uncommented(&text, |_| true, |_| true).parse().unwrap();
    let mut documented = BTreeMap::new();
    flatten("", &table, &mut documented);
    // A named upstream is an example of its own.
    let mut named = Vec::new();
    documented.retain(|path, _| match path.strip_prefix("upstreams.documents.") {
        Some(rest) => {
            named.push(format!("upstream.{rest}"));
            false
        }
        None => true,
    });
    assert!(
        !named.is_empty() && named.iter().all(|path| documented.contains_key(path)),
        "{named:?}"
    );
    let in_code: BTreeMap<String, toml::Value> = config::keys()
        .iter()
        .map(|key| {
            let table: toml::Table = format!("value = {}", key.shown()).parse().unwrap();
            (key.path.to_owned(), table["value"].clone())
        })
        .collect();
    assert_eq!(documented.len(), 127, "keys seen");
    assert_eq!(documented, in_code);

    // What is said to be a default is commented out, and a comment line precedes every group of keys.
    let active: toml::Table = text.parse().unwrap();
    let mut given = BTreeMap::new();
    flatten("", &active, &mut given);
    for key in config::keys() {
        match key.presence {
            Presence::Default(_) => {
                assert!(!given.contains_key(key.path), "{} is the default", key.path);
            }
            Presence::Required { .. } if key.is_in_array() => {
                assert!(
                    !given.contains_key(key.path),
                    "{} is in a section that nobody needs",
                    key.path
                );
            }
            Presence::Required { .. } => {
                assert!(given.contains_key(key.path), "{} is required", key.path);
            }
            Presence::Optional(_) => {}
        }
    }
}

#[test]
fn the_shipped_files_sections_in_comments_work() {
    let shipped = fs::read_to_string(SHIPPED).unwrap();
    let filled = shipped
        .replace("<https://your-cloud>", "https://cloud.example.com")
        .replace(['<', '>'], "");
    let load = |text: String| load_text(text).unwrap_or_else(|mistakes| panic!("{mistakes}"));

    // Of the two ways to give a client's key, one can stand; and certificates are for listeners with TLS.
    let alternatives = |text: String| {
        text.replace("\nkey_file = \"/run/secrets/backup_key", "\n# ")
            .replace("\ntls_subject", "\n# ")
    };
    let config = load(alternatives(uncommented(
        &filled,
        |_| false,
        |section| section != "listener",
    )))
    .config;
    let [client] = &config.proxy.clients[..] else {
        panic!("{:?}", config.proxy.clients)
    };
    assert_eq!(
        (
            client.name.as_str(),
            client.networks.len(),
            client.concurrency
        ),
        ("backup", 1, Some(10))
    );
    assert_eq!(config.upstreams[1].name, "documents");
    assert_eq!(
        config.upstreams[1].endpoints[0].origin,
        "http://document.example.com"
    );
    let rewrite = Rewrite {
        from: "http://document.example.com".to_owned(),
        to: "/_document".to_owned(),
    };
    assert_eq!(config.proxy.rewrites, [rewrite]);
    let [route] = &config.proxy.routes[..] else {
        panic!("{:?}", config.proxy.routes)
    };
    assert_eq!(
        (
            route.prefix.as_str(),
            route.upstream,
            route.strip_prefix,
            route.credential.is_some()
        ),
        ("/_document", 1, true, false)
    );

    let folder = TempDir::new().unwrap();
    add_certificates(folder.path());
    let text = uncommented(&filled, |_| false, |section| section == "listener")
        .replace("\nlisten = [", "\n# listen = [");
    fs::write(folder.path().join("proxy.toml"), text).unwrap();
    let loaded = self::load(folder.path().join("proxy.toml"), &[])
        .unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let listener = &loaded.config.proxy.listeners[0];
    assert_eq!(listener.address.to_string(), "0.0.0.0:8443");
    assert_eq!(
        listener.tls.as_ref().unwrap().cert_file,
        folder.path().join("certificates/proxy.pem")
    );
}

/// The files that examples of TLS name.
fn add_certificates(folder: &Path) {
    let folder = folder.join("certificates");
    fs::create_dir(&folder).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    for (name, text) in [
        ("proxy.pem", certificate.pem()),
        ("proxy.key", key.serialize_pem()),
        ("apps.pem", certificate.pem()),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn the_documents_examples_load() {
    let documents = ["README.md", "docs/configuration.md", "docs/operations.md"]
        .map(|document| fs::read_to_string(document).unwrap())
        .concat();
    let examples: Vec<&str> = documents
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .collect();
    let [smallest, clients, routes, listener] = examples[..] else {
        panic!("{} examples seen", examples.len())
    };
    let folder = TempDir::new().unwrap();
    add_certificates(folder.path());
    fs::create_dir(folder.path().join("secrets")).unwrap();
    fs::write(folder.path().join("secrets/client_secret"), "file-secret").unwrap();
    let file = folder.path().join("proxy.toml");
    let load = |text: String| {
        fs::write(&file, text).unwrap();
        load(&file, &[])
            .unwrap_or_else(|mistakes| panic!("{mistakes}"))
            .config
    };
    fs::write(folder.path().join("secrets/backup_key"), "file-key").unwrap();
    assert_eq!(
        load(format!("{smallest}{clients}")).proxy.clients[0]
            .key
            .as_ref()
            .unwrap()
            .expose(),
        "file-key"
    );
    let with_routes = load(format!("{smallest}{routes}"));
    assert_eq!(
        (
            with_routes.proxy.routes.len(),
            with_routes.proxy.rewrites.len()
        ),
        (1, 1)
    );
    let with_tls = load(format!(
        "{}{listener}",
        smallest.replace("listen = [", "# listen = [")
    ));
    assert!(with_tls.proxy.listeners[0].tls.is_some());
}

#[test]
fn a_listener_has_its_own_exceptions_or_those_of_all() {
    let proxy = valid("listeners.toml").config.proxy;
    let [plain, certified, second, open] = &proxy.listeners[..] else {
        panic!("{:?}", proxy.listeners)
    };
    let hosts = |listener: &Listener| {
        listener
            .guard
            .allowed_hosts
            .iter()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(
        [hosts(plain), hosts(second)],
        [["files.example.com"], ["files.example.com"]]
    );
    assert_eq!(
        (hosts(certified).len(), hosts(open)),
        (0, vec!["proxy.example.com".to_owned()])
    );
    assert_eq!(
        open.guard.allowed_origins.iter().collect::<Vec<_>>(),
        ["https://app.example.com"]
    );
    let file = |name: &str| Path::new(VALID).join("files").join(name);
    let server = |client_ca_file, min_version| {
        let (cert_file, key_file) = (file("server.pem"), file("server.key"));
        Some(tls::ServerConfig {
            cert_file,
            key_file,
            client_ca_file,
            min_version,
        })
    };
    assert_eq!((&plain.tls, &second.tls), (&None, &None));
    assert_eq!(
        certified.tls,
        server(Some(file("server.pem")), tls::MinVersion::Tls12)
    );
    assert_eq!(open.tls, server(None, tls::MinVersion::Tls13));
}

#[test]
fn clients_arrive_as_they_are_written() {
    let config = valid("clients.toml").config;
    let [backup, reports, scanner] = &config.proxy.clients[..] else {
        panic!("{:?}", config.proxy.clients)
    };
    let key = |client: &Client| client.key.as_ref().map(|key| key.expose().to_owned());
    assert_eq!(
        (backup.name.as_str(), key(backup).as_deref()),
        ("backup", Some("s3cret-key"))
    );
    assert_eq!(
        (backup.header.as_ref().unwrap(), backup.basic.as_deref()),
        (&"x-backup-key".parse().unwrap(), Some("backup"))
    );
    assert_eq!(
        backup
            .networks
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["192.0.2.0/24", "2001:db8::1/128"]
    );
    let rules = Rules {
        allow: vec![Rule::new(None, "/api/file")],
        deny: vec![Rule::new(Some(http::Method::DELETE), "/")],
    };
    assert_eq!(backup.rules, rules);
    assert_eq!(
        backup.rate.map(|rate| (rate.requests.get(), rate.per)),
        Some((1000, Duration::from_secs(60)))
    );
    assert_eq!(backup.concurrency, Some(4));
    assert_eq!(
        (key(reports).as_deref(), reports.rate),
        (Some("file-secret"), None)
    );
    assert_eq!(
        (scanner.tls_subject.as_deref(), key(scanner)),
        (Some("scanner.example.com"), None)
    );
    // What browsers show by themselves is among it, so the guard stays.
    assert!(
        config
            .proxy
            .listeners
            .iter()
            .all(|listener| !listener.guard.is_off)
    );
    // Where there are clients, they do not share a session, unless the operator says so.
    assert_eq!(
        [config.upstreams[0].cookies, config.upstreams[1].cookies],
        [Cookies::Drop, Cookies::Pass]
    );
    assert_eq!(
        valid("smallest.toml").config.upstreams[0].cookies,
        Cookies::Pass
    );

    let text = fs::read_to_string(Path::new(VALID).join("smallest.toml")).unwrap();
    let text = text.replace("127.0.0.1:8080", "0.0.0.0:8080").replace(
        "files/",
        &format!("{}/files/", std::path::absolute(VALID).unwrap().display()),
    );
    let keys_alone = load_text(format!(
        "{text}\n[[client]]\nname = 'a'\nkey = 's3cret-of-a-that-is-long'\nheader = 'x-key'\n"
    ))
    .unwrap();
    assert!(
        keys_alone.config.proxy.listeners[0].guard.is_off && keys_alone.warnings.is_empty(),
        "{:?}",
        keys_alone.warnings
    );
    assert!(
        keys_alone
            .config
            .admin
            .is_none_or(|admin| !admin.listener.guard.is_off)
    );
    // A password is what browsers send by themselves once they know it, whatever else would do.
    let key = "\n[[client]]\nname = 'a'\nkey = 's3cret-of-a-that-is-long'\nheader = 'x-key'\n";
    let password = load_text(format!("{text}{key}basic = 'a'\n")).unwrap();
    assert!(!password.config.proxy.listeners[0].guard.is_off);
    let open = text.replace("[proxy]", "[proxy]\nallow_unauthenticated = true");
    assert!(
        !load_text(open).unwrap().config.proxy.listeners[0]
            .guard
            .is_off
    );
}

#[test]
fn the_shipped_file_waits_to_be_filled_in_and_for_nothing_else() {
    let mistakes = load(SHIPPED, &[]).unwrap_err();
    let keys: Vec<&str> = mistakes
        .iter()
        .map(|mistake| mistake.key.as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "upstream.endpoints",
            "token.client_id",
            "token.client_secret",
            "token.redirect_uri"
        ]
    );
    for line in mistakes.to_string().lines() {
        assert!(
            line.starts_with("proxy.toml:") && line.contains(": not filled in yet ("),
            "{line}"
        );
    }
}

#[test]
fn documented_defaults_change_nothing() {
    let shipped = fs::read_to_string(SHIPPED).unwrap();
    let filled = shipped
        .replace("<https://your-cloud>", "https://cloud.example.com")
        .replace(['<', '>'], "");
    let folder = TempDir::new().unwrap();
    let debug = |text: String| {
        fs::write(folder.path().join("proxy.toml"), text).unwrap();
        format!(
            "{:?}",
            load(folder.path().join("proxy.toml"), &[]).unwrap().config
        )
    };
    let is_default = |path: &str| {
        config::keys()
            .iter()
            .any(|key| key.path == path && matches!(key.presence, Presence::Default(_)))
    };
    assert_eq!(
        debug(filled.clone()),
        debug(uncommented(&filled, is_default, |_| false))
    );
}

#[test]
fn the_starter_waits_to_be_filled_in_and_for_nothing_else() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    fs::write(&file, config::starter(None, None)).unwrap();
    let mistakes = load(&file, &[]).unwrap_err();
    let keys: Vec<&str> = mistakes
        .iter()
        .map(|mistake| mistake.key.as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "upstream.endpoints",
            "token.client_id",
            "token.client_secret",
            "token.redirect_uri"
        ]
    );

    let starter = config::starter(Some("https://cloud.example.com"), Some("app"));
    fs::write(&file, starter.replace(['<', '>'], "")).unwrap();
    let warnings = load(&file, &[]).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].hint.contains("bearer-proxy login"),
        "{warnings:?}"
    );
}

#[test]
fn first_tokens_may_come_later_by_login_or_by_themselves_by_jwt() {
    let without = |more: &[(&'static str, &'static str)]| {
        let env: Vec<_> = ENOUGH
            .iter()
            .copied()
            .filter(|(name, _)| !name.ends_with("REFRESH_TOKEN"))
            .collect();
        load_environment(
            &env.into_iter()
                .chain(more.iter().copied())
                .collect::<Vec<_>>(),
        )
    };
    let redirect_uri = (
        "BEARER_PROXY__TOKEN__REDIRECT_URI",
        "http://127.0.0.1:8765/callback",
    );
    let state_file = ("BEARER_PROXY__TOKEN__STATE_FILE", "state/token.json");
    let missing = without(&[]).unwrap_err().to_string();
    assert!(
        missing.contains("token.refresh_token: is missing")
            && missing.contains("bearer-proxy login"),
        "{missing}"
    );
    assert!(
        without(&[redirect_uri]).is_err(),
        "a login has nowhere to put the tokens"
    );
    assert!(without(&[state_file]).is_err());
    let loaded = without(&[redirect_uri, state_file]).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    assert!(
        loaded.warnings[0]
            .to_string()
            .contains("run `bearer-proxy login`"),
        "{:?}",
        loaded.warnings
    );
    assert_eq!(
        loaded.config.initial_grant.code.redirect_uri.as_deref(),
        Some(redirect_uri.1)
    );
    assert!(loaded.config.initial_grant.jwt.is_none());

    let key = ("BEARER_PROXY__TOKEN__JWT__KEY", "jwtk3y");
    let claims = (
        "BEARER_PROXY__TOKEN__JWT__CLAIMS",
        r#"{ scope = "files", level = 3 }"#,
    );
    let loaded = without(&[key, claims]).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let jwt = loaded.config.initial_grant.jwt.unwrap();
    assert_eq!(
        (jwt.algorithm, jwt.user, jwt.key.expose()),
        (Algorithm::HS256, None, "jwtk3y")
    );
    assert_eq!(
        serde_json::Value::Object(jwt.claims),
        serde_json::json!({ "scope": "files", "level": 3 })
    );
    assert_eq!(
        jwt.url.as_str(),
        "https://cloud.example.com/api/authorizeByJWT.do"
    );
}

#[test]
fn a_private_key_in_pem_form_has_lines() {
    let folder = TempDir::new().unwrap();
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    fs::write(folder.path().join("key.pem"), &pem).unwrap();
    let load = |lines: &str| {
        let file = folder.path().join("proxy.toml");
        let text = fs::read_to_string(Path::new(VALID).join("everything.toml")).unwrap();
        let (before, jwt) = text.split_once("[token.jwt]").unwrap();
        let rest = &jwt[jwt.find("\n[").unwrap()..];
        let before = before.replace(
            "files/",
            &format!("{}/files/", std::path::absolute(VALID).unwrap().display()),
        );
        fs::write(&file, format!("{before}[token.jwt]\n{lines}\n{rest}")).unwrap();
        load(&file, &[]).map_err(|mistakes| mistakes.to_string())
    };
    let of_file = load("key_file = 'key.pem'\nalgorithm = 'ES256'").unwrap();
    assert_eq!(
        of_file.config.initial_grant.jwt.unwrap().key.expose(),
        pem.trim_end()
    );
    let in_words = load(&format!("key = \"\"\"\n{pem}\"\"\"\nalgorithm = 'ES256'")).unwrap();
    assert_eq!(in_words.config.initial_grant.jwt.unwrap().key.expose(), pem);
    for lines in [
        "key_file = 'key.pem'\nalgorithm = 'RS256'",
        "key_file = 'key.pem'\nalgorithm = 'ES384'",
    ] {
        let mistakes = load(lines).unwrap_err();
        assert!(
            mistakes.contains("is not a private key in PEM for"),
            "{mistakes}"
        );
        assert!(!mistakes.contains("BEGIN"), "{mistakes}");
    }
}

/// What no other text here contains, so that finding it means that a value was printed.
const MARK: &str = "zqMARKzq";

fn every_secret_key() -> Vec<&'static Key> {
    config::keys()
        .iter()
        .filter(|key| key.kind == Kind::Secret)
        .collect()
}

#[test]
fn a_secret_of_the_wrong_type_or_under_a_wrong_name_is_not_shown() {
    for key in every_secret_key() {
        let name = key.name();
        let section = if key.is_in_array() {
            format!("[{}]", key.section())
        } else {
            key.section().to_owned()
        };
        for line in [
            format!("{name} = ['{MARK}']"),
            format!("{name} = {{ value = '{MARK}' }}"),
            format!("{name} = {MARK}"),
            format!("{name} = \"{MARK}"),
            format!("{name} = \"{MARK}\\n\""),
            format!("{name} = \"{MARK}\\q\""),
            format!("{name} '{MARK}'"),
            format!("{name}: '{MARK}'"),
            format!("{name}t = '{MARK}'"),
            format!("{name}_file = '{MARK}'"),
            format!("{name} = '{MARK}'\n{name} = '{MARK}'"),
            format!("{name} = '{MARK}'\n{name}_file = '{MARK}'"),
            format!("{name} = '''{MARK}\n{MARK}'''"),
        ] {
            let mistakes = load_text(format!("[{section}]\n{line}\n")).unwrap_err();
            assert!(!mistakes.contains(MARK), "{line}\n{mistakes}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = load_text(bytes);
    }

    #[test]
    fn no_toml_makes_it_panic_or_lose_a_line(
        lines in prop::collection::vec(
            r#"(\[{0,2}(proxy|upstream|upstreams|upstreams\.a|route|rewrite|listener|client|token|retry|log)(\.tls|\.json)?\]{0,2})|((listen|endpoints|client_id|tls|tls\.ca_file|level|prefix|from|to|address|route|x) = (\[?"[^"\n]{0,12}"?\]?|[0-9]{1,20}|true|\{\}|\{ ca_file = 1 \}))|\PC{0,20}"#,
            0..12,
        ),
    ) {
        // Without client_id or with a wrong one, and so on: something is always missing.
        let mistakes = load_text(lines.join("\n")).unwrap_err();
        for line in mistakes.lines() {
            prop_assert!(line.starts_with("proxy.toml:") && line.ends_with(')'), "{}", line);
        }
    }

    /// A good file, damaged in one place: the secrets in it stay unseen.
    #[test]
    fn no_damage_brings_a_secret_out(at in 0_usize..1000, length in 0_usize..30, put in "[\"'=\\[\\]{}#\\n\\\\.,a ]{0,3}") {
        let mut text: Vec<char> = format!(
            "[proxy]\nlisten = [\"127.0.0.1:8080\"]\n[upstream]\nendpoints = [\"https://cloud.example.com\"]\n[token]\n\
             client_id = \"app\"\nclient_secret = \"{MARK}\"\nrefresh_token = '{MARK}'\n[admin]\ntoken = \"{MARK}\"\n"
        ).chars().collect();
        let start = at.min(text.len());
        let end = (start + length).min(text.len());
        text.splice(start..end, put.chars());
        match load_text(text.into_iter().collect::<String>()) {
            Ok(loaded) => {
                let debug = format!("{loaded:?}");
                prop_assert!(!debug.contains(MARK), "{}", debug);
            }
            Err(mistakes) => prop_assert!(!mistakes.contains(MARK), "{}", mistakes),
        }
    }
}
