//! Keys: their defaults, and where their values arrive.

use std::{fs, path::Path, sync::Arc, time::Duration};

use bearer_proxy::{
    base::log::Format,
    config::{self, Kind, Loaded, Source},
    net::{
        outbound_proxy::{OutboundProxy, Protocol, ProxyAddress},
        tls,
    },
    proxy::{
        AccessLog, Client, Exhausted, ForwardedHeaders, Limits, Listener, RetryJson, Rewrite,
        Route, Rules, policy::rules::Rule,
    },
    token::{BasicEncoding, IssuerConfig, ParameterLocation, ResponseFields, jwt_grant::User},
    upstream::{Affinity, Cookies, HealthCheck, Host, Http2},
};
use jsonwebtoken::Algorithm;
use tempfile::TempDir;
use url::Url;

use super::{ENOUGH, VALID, enough_and, load, load_environment, load_text, valid, variables};

/// The origins of the issuer's servers.
fn servers(issuer: &IssuerConfig) -> Vec<&str> {
    issuer.origins.iter().map(Url::as_str).collect()
}

#[test]
fn defaults_are_as_documented() {
    let Loaded {
        config,
        warnings,
        file,
        exposed_files: _,
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
    assert!(!proxy.listeners[0].proxy_protocol);
    assert_eq!(proxy.trusted_networks, Default::default());
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
        (
            upstream.max_connections,
            upstream.max_head_size,
            upstream.tls
        ),
        (4096, 64 << 10, tls::Config::default())
    );
    assert_eq!(
        (
            upstream.name.as_str(),
            upstream.handshake_timeout,
            upstream.http2
        ),
        ("default", seconds(10), Http2::Auto)
    );
    assert_eq!(
        (upstream.weights, upstream.affinity, upstream.dns_refresh),
        (vec![1], Affinity::None, seconds(10))
    );
    assert_eq!(
        (
            upstream.max_requests,
            upstream.queue,
            upstream.queue_timeout
        ),
        (1_000_000, 100, seconds(1))
    );
    let retried: Vec<_> = upstream
        .retry_statuses
        .iter()
        .map(http::StatusCode::as_u16)
        .collect();
    assert_eq!(
        (retried, upstream.slow_start, upstream.health),
        (vec![502, 503, 504], seconds(10), None)
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
    assert!(token.checks_state_file_permissions && token.rotates && token.store.is_none());
    assert_eq!(token.grace_period, seconds(5));
    let issuer = token.issuer;
    assert_eq!(servers(&issuer), ["https://cloud.example.com/"]);
    assert_eq!(issuer.refresh_path, "/api/refreshToken.do");
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
    assert_eq!(initial_grant.code.token_path, "/api/token.do");
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
fn every_key_sets_its_value() {
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
    assert!(
        proxy
            .listeners
            .iter()
            .all(|listener| listener.proxy_protocol)
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
    assert!(guard.allow_navigation);
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
    for (peer, is_trusted) in [
        ("192.0.2.255", true),
        ("198.51.100.7", true),
        ("198.51.100.8", false),
        ("2001:db8::1", true),
    ] {
        let peer = Some(peer.parse().unwrap());
        assert_eq!(proxy.trusted_networks.contains(peer), is_trusted);
    }
    assert!(proxy.trusted_networks.contains(None));
    assert_eq!(
        (proxy.first_byte_timeout, proxy.head_timeout),
        (seconds(1), seconds(2))
    );
    assert_eq!(
        (proxy.body_idle_timeout, proxy.idle_timeout),
        (seconds(3), seconds(4))
    );
    assert_eq!(proxy.min_body_rate, 508);
    assert_eq!(proxy.half_closed_timeout, seconds(28));
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
        proxy.credentials[0].issuer_paths.len() == issuer.len(),
        "{:?}",
        proxy.credentials[0].issuer_paths
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
            upstream.max_connections,
            upstream.max_head_size
        ),
        (seconds(9), seconds(10), 11, 12 << 10)
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
    assert_eq!(
        (upstream.weights, upstream.affinity, upstream.dns_refresh),
        (vec![3, 1000], Affinity::Client, seconds(29))
    );
    assert_eq!(
        (
            upstream.max_requests,
            upstream.queue,
            upstream.queue_timeout
        ),
        (30, 0, seconds(31))
    );
    let retried: Vec<_> = upstream
        .retry_statuses
        .iter()
        .map(http::StatusCode::as_u16)
        .collect();
    assert_eq!(
        (retried, upstream.slow_start),
        (vec![500, 504], Duration::ZERO)
    );
    let health = HealthCheck {
        path: "/healthz".parse().unwrap(),
        interval: seconds(32),
        timeout: seconds(33),
        fall: 34,
        rise: 35,
        expect: vec![401..=401, 200..=299],
    };
    let expects =
        |health: &HealthCheck, status| health.expects(http::StatusCode::from_u16(status).unwrap());
    let expected = [200, 299, 401].map(|status| expects(&health, status));
    let unexpected = [199, 300, 400, 403, 503].map(|status| expects(&health, status));
    assert_eq!((expected, unexpected), ([true; 3], [false; 5]));
    assert_eq!(upstream.health, Some(health));
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
    assert!(documents.retry_statuses.is_empty());
    let health = documents.health.clone().unwrap();
    assert_eq!(
        (
            health.path.as_str(),
            health.interval,
            health.timeout,
            health.fall,
            health.rise
        ),
        ("/", seconds(5), seconds(2), 3, 2)
    );
    assert!(expects(&health, 499) && !expects(&health, 500));
    assert_eq!(
        config.upstreams[2].tls.server_name.as_deref(),
        Some("files.internal")
    );
    let address = |proxy: &Option<Arc<OutboundProxy>>| proxy.as_ref().unwrap().address().clone();
    let expected = ProxyAddress {
        protocol: Protocol::Socks5,
        host: "2001:db8::2".to_owned(),
        port: 1080,
    };
    assert_eq!(address(&config.upstreams[2].proxy), expected);
    assert!(upstream.proxy.is_none());

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
    assert!(!token.checks_state_file_permissions);
    let issuer = token.issuer;
    let expected = [
        "https://login.example.com:9443/",
        "https://login2.example.com:9443/",
    ];
    assert_eq!(servers(&issuer), expected);
    assert_eq!(issuer.refresh_path, "/oauth/refresh");
    let expected = ProxyAddress {
        protocol: Protocol::Http,
        host: "proxy.example.com".to_owned(),
        port: 80,
    };
    assert_eq!(address(&issuer.proxy), expected);
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
    assert_eq!(initial_grant.code.token_path, "/oauth/token");
    let jwt = initial_grant.jwt.unwrap();
    assert_eq!(jwt.path, "/oauth/jwt");
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

/// A key that is in the table and never read would accept any value.
#[test]
fn every_key_in_the_table_is_read() {
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
            // Lists have no brackets in a variable. A table is written as in the file.
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
fn the_upstreams_tls_does_not_apply_to_another_issuer() {
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
fn the_issuer_is_one_server_or_several_and_by_default_every_endpoint() {
    const ISSUER: &str = "BEARER_PROXY__TOKEN__ISSUER";
    const ENDPOINTS: &str = "BEARER_PROXY__UPSTREAM__ENDPOINTS";
    let (one, two) = ("https://a.example.com/", "http://127.0.0.2:81/");
    let both = "https://a.example.com, http://127.0.0.2:81,https://A.example.com:443";
    for (given, expected) in [
        (&[(ENDPOINTS, "https://a.example.com")][..], &[one][..]),
        (&[(ENDPOINTS, both)], &[one, two]),
        (
            &[(ENDPOINTS, both), (ISSUER, "http://127.0.0.2:81")],
            &[two],
        ),
        (&[(ISSUER, both)], &[one, two]),
    ] {
        let config = load_environment(&enough_and(given)).unwrap().config;
        assert_eq!(servers(&config.token.issuer), expected, "{given:?}");
        let authorize = config.initial_grant.code.authorize_url;
        assert_eq!(
            authorize.as_str(),
            format!("{}api/authorize.do", expected[0])
        );
    }
    let plain = enough_and(&[(ISSUER, "https://a, http://b.example.com, http://localhost")]);
    let warnings = load_environment(&plain).unwrap().warnings;
    let plain = warnings
        .iter()
        .filter(|warning| warning.to_string().contains("is plain http"));
    assert_eq!(plain.count(), 1, "{warnings:?}");
    for (given, problem) in [
        ("\"https://a/\"", None),
        ("[\"https://a\"]", None),
        ("[]", Some("token.issuer: is empty (write at least one)")),
        ("5", Some("token.issuer: is a number")),
        ("[\"https://a\", 5]", Some("token.issuer: is a number")),
        ("\"https://a,https://b\"", Some("token.issuer: has a path")),
        (
            "[\"https://a\", \"b.example.com\"]",
            Some("(write \"https://b.example.com\")"),
        ),
        (
            "[\"https://a\", \"https://b/x\"]",
            Some("has a path (write \"https://b\")"),
        ),
        ("\"<issuer>\"", Some("token.issuer: ")),
    ] {
        let text = format!(
            "proxy.listen = [\"127.0.0.1:8080\"]\nupstream.endpoints = [\"https://cloud\"]\n\
             [token]\nclient_id = \"a\"\nclient_secret = \"b\"\nrefresh_token = \"c\"\n\
             issuer = {given}"
        );
        let mistakes = load_text(text).err();
        match problem {
            None => assert_eq!(mistakes, None, "{given}"),
            Some(problem) => {
                let mistakes = mistakes.unwrap_or_default();
                assert!(mistakes.contains(problem), "{given}: {mistakes}");
                assert_eq!(mistakes.lines().count(), 1, "{mistakes}");
            }
        }
    }
}

#[test]
fn a_wait_shorter_than_the_cooldown_is_warned_of() {
    const WAIT: &str = "BEARER_PROXY__TOKEN__WAIT";
    const COOLDOWN: &str = "BEARER_PROXY__RETRY__COOLDOWN";
    for (given, hint) in [
        (&[][..], None),
        (
            &[(WAIT, "9s")],
            Some("BEARER_PROXY__TOKEN__WAIT=10s or longer"),
        ),
        (
            &[(WAIT, "0s")],
            Some("BEARER_PROXY__TOKEN__WAIT=10s or longer"),
        ),
        (
            &[(COOLDOWN, "1m 30s")],
            Some("BEARER_PROXY__TOKEN__WAIT=1m 30s or longer"),
        ),
        (&[(WAIT, "1s"), (COOLDOWN, "1s")], None),
        (&[(WAIT, "2s"), (COOLDOWN, "1s")], None),
    ] {
        let warnings = load_environment(&enough_and(given)).unwrap().warnings;
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        let mut about_wait = warnings
            .iter()
            .filter(|warning| warning.contains("token.wait: "));
        let found = about_wait.next();
        assert_eq!(found.is_some(), hint.is_some(), "{given:?}: {warnings:?}");
        if let Some((found, hint)) = found.zip(hint) {
            assert!(found.contains(hint), "{found}");
        }
    }
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
fn a_listener_has_the_proxy_protocol_if_it_says_so() {
    let proxy = valid("load_balancers.toml").config.proxy;
    let has_header = proxy.listeners.iter().map(|one| one.proxy_protocol);
    assert_eq!(has_header.collect::<Vec<_>>(), [true, true, false]);
    let proxy = valid("proxy_protocol.toml").config.proxy;
    let has_header = proxy.listeners.iter().map(|one| one.proxy_protocol);
    assert_eq!(has_header.collect::<Vec<_>>(), [true, false]);
}

#[test]
fn clients_are_read_as_written() {
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
    // Browsers present one of these credentials by themselves, so the guard applies.
    assert!(
        config
            .proxy
            .listeners
            .iter()
            .all(|listener| !listener.guard.is_off)
    );
    // Clients do not share a session unless the operator says so.
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
    // Browsers send a known password by themselves, even if other credentials suffice.
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
fn first_tokens_may_come_from_a_login_or_a_jwt() {
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
    assert_eq!(jwt.path, "/api/authorizeByJWT.do");
}

#[test]
fn the_issuer_has_the_outbound_proxy_of_the_upstream_that_it_is() {
    let proxy = (
        "BEARER_PROXY__UPSTREAM__PROXY",
        "http://proxy.example.com:3128",
    );
    let of_issuer = |more: &[(&'static str, &'static str)]| {
        let env = enough_and(&[&[proxy], more].concat());
        let config = load_environment(&env).unwrap().config;
        let count = config.outbound_proxies().len();
        let proxy = config.token.issuer.proxy;
        (proxy.map(|proxy| proxy.address().to_string()), count)
    };
    assert_eq!(
        of_issuer(&[]),
        (Some("http://proxy.example.com:3128".to_owned()), 1)
    );
    let issuer = ("BEARER_PROXY__TOKEN__ISSUER", "https://login.example.com");
    assert_eq!(of_issuer(&[issuer]), (None, 1));
    let own = ("BEARER_PROXY__TOKEN__PROXY", "socks5h://192.0.2.1:1080");
    let expected = (Some("socks5://192.0.2.1:1080".to_owned()), 2);
    assert_eq!(of_issuer(&[issuer, own]), expected);
    assert_eq!(of_issuer(&[own]), expected);
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
