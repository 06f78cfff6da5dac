//! Environment variables.

use std::{ffi::OsString, path::Path};

use bearer_proxy::{
    config::{self, Source},
    upstream::Http2,
};

use super::{ENOUGH, VALID, assert_no_secret, enough_and, load, load_environment, variables};

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
fn variables_that_are_not_read_are_reported() {
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
    let shown: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let listen = "did you mean BEARER_PROXY__PROXY__LISTEN or BEARER_PROXY__ADMIN__LISTEN?";
    assert_eq!(
        shown,
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
