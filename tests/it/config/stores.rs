//! `[token.store]`, and what belongs to it: `token.grace_period` and `token.rotation`.

use std::{fs, path::Path, process::Command, time::Duration};

use bearer_proxy::{
    config::{self, Source},
    net::tls,
    token::fleet::{Config, OnStoreFailure, RedisServer},
};
use tempfile::TempDir;

use super::{SECRETS, VALID, assert_no_secret, load_environment, load_text, valid, variables};

/// 32 bytes.
const KEY: &str = "c3RvcmUta2V5IG9mIDMyIGJ5dGVzLCBubyBtb3JlISE=";

const TOP: &str = "[proxy]\nlisten = ['127.0.0.1:8080']\n[upstream]\nendpoints = \
    ['https://cloud.example.com']\n[token]\nclient_id = 'app'\nclient_secret = 's3cret-words'\n";

/// A file with these lines in `[token]` and these in `[token.store]`.
fn text(token: &str, store: &str) -> String {
    format!("{TOP}{token}\n[token.store]\n{store}\n")
}

/// Lines in `[token]` that cause no warning.
const QUIET: &str = "state_file = 'token.json'";

fn store(lines: &str) -> Config {
    let loaded = load_text(text(QUIET, lines)).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    loaded.config.token.store.expect("a store")
}

/// The warnings of `check`, without file and line.
fn warnings(text: &str) -> Vec<String> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    fs::write(&file, text).unwrap();
    let source = Source {
        file: Some(file),
        env: variables(&[]),
        overrides: Vec::new(),
    };
    let loaded = config::check(source).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let shown = loaded
        .warnings
        .iter()
        .map(|warning| format!("{}: {}", warning.key, warning.reason));
    shown.collect()
}

fn server(host: &str, port: u16, is_tls: bool) -> RedisServer {
    RedisServer {
        host: host.to_owned(),
        port,
        is_tls,
    }
}

#[test]
fn without_a_section_there_is_no_store() {
    let token = valid("smallest.toml").config.token;
    assert!(token.store.is_none() && token.rotates);
    assert_eq!(token.grace_period, Duration::from_secs(5));
}

#[test]
fn a_url_is_enough() {
    let store = store("url = 'redis://localhost'");
    let redis = store.redis;
    assert_eq!(redis.servers, [server("localhost", 6379, false)]);
    assert_eq!(
        (redis.database, redis.user, redis.sentinel),
        (0, None, None)
    );
    assert!(redis.password.is_none() && redis.sentinel_password.is_none() && store.key.is_none());
    assert_eq!(redis.tls, tls::Config::default());
    assert_eq!(
        (store.key_prefix.as_str(), store.on_store_failure),
        ("bearer-proxy", OnStoreFailure::Wait)
    );
}

#[test]
fn every_key_of_a_store_sets_its_value() {
    let token = valid("everything.toml").config.token;
    assert_eq!(token.grace_period, Duration::ZERO, "grace_retry is false");
    assert!(!token.rotates);
    let store = token.store.expect("a store");
    let redis = store.redis;
    let sentinels = [
        server("sentinel1.example.com", 26379, true),
        server("2001:db8::1", 26380, true),
    ];
    assert_eq!(redis.servers, sentinels);
    assert_eq!(
        (redis.database, redis.user.as_deref()),
        (3, Some("replica"))
    );
    assert_eq!(redis.password.unwrap().expose(), "st0re-words");
    assert_eq!(redis.sentinel.as_deref(), Some("main"));
    assert_eq!(redis.sentinel_password.unwrap().expose(), "sent1nel-words");
    let file = |name: &str| Some(Path::new(VALID).join("files").join(name));
    assert_eq!(
        redis.tls,
        tls::Config {
            ca_file: file("client.pem"),
            client_cert_file: file("client.pem"),
            client_key_file: file("client.key"),
            server_name: Some("redis.internal".to_owned()),
            min_version: tls::MinVersion::Tls13,
        }
    );
    assert_eq!(store.key.unwrap().expose(), KEY);
    assert_eq!(
        (store.key_prefix.as_str(), store.on_store_failure),
        ("gateway:1", OnStoreFailure::RefreshAlone)
    );
}

#[test]
fn values_may_come_from_the_environment_and_from_files() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (password, keys) = (file("password", "from a file\n"), format!("{KEY}\n{KEY}\n"));
    let key = file("key", &keys);
    let env = super::enough_and(&[
        ("BEARER_PROXY__TOKEN__STATE_FILE", "token.json"),
        ("BEARER_PROXY__TOKEN__GRACE_PERIOD", "20s"),
        ("BEARER_PROXY__TOKEN__STORE__USER", "u"),
        (
            "BEARER_PROXY__TOKEN__STORE__URL",
            "redis://10.0.0.1/1, redis://10.0.0.2:1/1",
        ),
    ]);
    let files = [
        (
            "BEARER_PROXY__TOKEN__STORE__PASSWORD_FILE",
            password.as_str(),
        ),
        ("BEARER_PROXY__TOKEN__STORE__KEY_FILE", &key),
    ];
    let env: Vec<(&str, &str)> = env.into_iter().chain(files).collect();
    let token = load_environment(&env).unwrap().config.token;
    assert_eq!(token.grace_period, Duration::from_secs(20));
    let store = token.store.expect("a store");
    let redis = store.redis;
    let servers = [
        server("10.0.0.1", 6379, false),
        server("10.0.0.2", 1, false),
    ];
    assert_eq!(redis.servers, servers);
    assert_eq!((redis.database, redis.user.as_deref()), (1, Some("u")));
    let password = redis.password.unwrap();
    assert_eq!(
        (password.expose(), password.file().is_some()),
        ("from a file", true)
    );
    assert_eq!(store.key.unwrap().expose(), keys.trim_end());
}

#[test]
fn a_server_that_is_listed_twice_counts_once() {
    let redis = store("url = ['redis://A', 'redis://b:1', 'redis://a:6379/0', 'redis://a']").redis;
    assert_eq!(
        redis.servers,
        [server("a", 6379, false), server("b", 1, false)]
    );
    let redis = store("url = ['redis://a', 'redis://b']\nsentinel = 's'").redis;
    assert_eq!(
        redis.servers,
        [server("a", 26379, false), server("b", 26379, false)]
    );
}

#[test]
fn each_mistake_says_what_to_write() {
    let short = "key = 'c2VjcmV0LXdvcmRz'";
    for (token, lines, mistake) in [
        (
            "",
            "",
            "token.store.url: is missing (write the address of the Redis server, as in url = ",
        ),
        ("", "kind = 'redis'", "token.store.url: is missing ("),
        (
            "",
            "tls.ca_file = 'no'\nurl = 'redis://a'",
            "token.store.tls.ca_file: cannot read ",
        ),
        (
            "",
            "kind = 'etcd'\nurl = 'redis://a'",
            "token.store.kind: is not one of the allowed values (write \"redis\")",
        ),
        (
            "",
            "url = []",
            "token.store.url: is empty (write at least one)",
        ),
        (
            "",
            "url = 6379",
            "token.store.url: is a number, not text (write a URL like \"rediss://",
        ),
        (
            "",
            "url = 'redis://:st0re-words@a'",
            "token.store.url: has a password (write it to a file, name that in password_file",
        ),
        (
            "",
            "url = ['redis://a', 'rediss://u:st0re-words@b']",
            "token.store.url: has a password (",
        ),
        (
            "",
            "url = 'http://a'",
            "token.store.url: is neither redis:// nor rediss:// (",
        ),
        (
            "",
            "url = ['redis://a', 'rediss://a']",
            "token.store.url: has another scheme than the first URL (write the same scheme in all of them)",
        ),
        (
            "",
            "url = ['redis://a/1', 'redis://b']",
            "token.store.url: has another database than",
        ),
        (
            "",
            "password = 'p'\nurl = ['redis://u@a', 'redis://b']",
            "token.store.url: has another user than",
        ),
        (
            "",
            "url = 'redis://a'\nsentinel = 'main'",
            "token.store.sentinel: needs the addresses of at least two Sentinels, and token.store.url has one: while that is down, no replica finds the primary (write all of them, as in url = [",
        ),
        (
            "",
            "url = ['redis://a', 'redis://A:26379']\nsentinel = 'main'",
            "token.store.sentinel: needs the addresses of at least two",
        ),
        (
            "",
            "url = ['redis://a', 'redis://:st0re-words@b']\nsentinel = 'main'",
            "token.store.url: has a password (",
        ),
        (
            "",
            "url = 'redis://a'\nsentinel_password = 'sent1nel-words'",
            "token.store.sentinel_password: has no effect without token.store.sentinel (write the name of the primary",
        ),
        (
            "",
            "url = 'redis://u@a'",
            "token.store.url: names a user, and token.store.password is not set (write password_file as well)",
        ),
        (
            "",
            "url = 'redis://a'\nuser = 'u'",
            "token.store.user: names a user, and token.store.password is not set (",
        ),
        (
            "",
            "url = 'redis://u@a'\nuser = 'u'\npassword = 'p'",
            "token.store.user: names a user, and so does token.store.url (keep one of the two)",
        ),
        (
            "",
            "url = 'redis://a'\npassword = 'p'\npassword_file = 'p'",
            "token.store.password_file: token.store.password and token.store.password_file are both set (",
        ),
        (
            "",
            "url = 'redis://a'\npassword_file = 'no'",
            "token.store.password_file: names a file that cannot be read: ",
        ),
        (
            "",
            "url = 'redis://a'\nkey_prefix = 'a*'",
            "token.store.key_prefix: is not a prefix for keys (write up to 200 letters",
        ),
        (
            "",
            &format!("url = 'redis://a'\n{short}"),
            "token.store.key: has 12 bytes in line 1, not 32 (write 32 random bytes in Base64, as `head",
        ),
        (
            "",
            &format!("url = 'redis://a'\nkey = '''\n{KEY}\ns3cret words'''"),
            "token.store.key: is not Base64 in line 2 (",
        ),
        (
            "",
            "url = 'redis://a'\nkey_file = 'no'",
            "token.store.key_file: names a file that cannot be read: ",
        ),
        (
            "",
            "url = 'redis://a'\non_store_failure = 'ignore'",
            "token.store.on_store_failure: is not one of the allowed values (write \"wait\" or \"refresh_alone\")",
        ),
        (
            "",
            "url = 'redis://a'\non_store_failure = 'refresh_alone'",
            "token.store.on_store_failure: is \"refresh_alone\", which sends a refresh token that another replica may have used up (write \"wait\"; or configure [token.jwt]; or write rotation = \"none\"",
        ),
        (
            "rotation = 'rotate'",
            "url = 'redis://a'\non_store_failure = 'refresh_alone'",
            "token.store.on_store_failure: is",
        ),
        (
            "rotation = 'never'",
            "url = 'redis://a'",
            "token.rotation: is not one of the allowed values (write \"rotate\" or \"none\")",
        ),
        (
            "grace_period = '61s'",
            "url = 'redis://a'",
            "token.grace_period: is longer than a minute, and issuers accept a repeated refresh token for seconds (write how long the issuer accepts it once more, as in \"5s\"",
        ),
        (
            "grace_retry = false\ngrace_period = '2m'",
            "url = 'redis://a'",
            "token.grace_period: is longer than a minute",
        ),
        (
            "grace_period = 5",
            "url = 'redis://a'",
            "token.grace_period: has no unit (write \"5s\" for seconds)",
        ),
        (
            "",
            "url = 'redis://a'\nlease = '4s'",
            "token.store.lease: unknown key (",
        ),
    ] {
        let mistakes = load_text(text(&format!("{QUIET}\n{token}"), lines)).unwrap_err();
        assert!(mistakes.contains(mistake), "{token} {lines}: {mistakes}");
        assert_eq!(mistakes.lines().count(), 1, "{lines}: {mistakes}");
        assert_no_secret(&mistakes);
    }
    let value = format!("{TOP}{QUIET}\nstore = 'redis://:st0re-words@a'\n");
    let mistakes = load_text(value).unwrap_err();
    assert!(
        mistakes.contains("token.store: is a section, not a value"),
        "{mistakes}"
    );
    assert_no_secret(&mistakes);
}

#[test]
fn in_variables_the_advice_has_no_syntax_of_the_file() {
    const STORE: &str = "BEARER_PROXY__TOKEN__STORE__";
    let url = format!("{STORE}URL");
    for (name, value, advice) in [
        (
            "SENTINEL",
            "main",
            "set BEARER_PROXY__TOKEN__STORE__URL to all of them, separated by commas",
        ),
        (
            "ON_STORE_FAILURE",
            "refresh_alone",
            "set BEARER_PROXY__TOKEN__ROTATION=none",
        ),
        (
            "SENTINEL_PASSWORD",
            "sent1nel-words",
            "set BEARER_PROXY__TOKEN__STORE__SENTINEL to",
        ),
        (
            "USER",
            "u",
            "set BEARER_PROXY__TOKEN__STORE__PASSWORD_FILE as well",
        ),
    ] {
        let name = format!("{STORE}{name}");
        let given = [(url.as_str(), "redis://a"), (name.as_str(), value)];
        let env: Vec<_> = super::ENOUGH.iter().copied().chain(given).collect();
        let mistakes = load_environment(&env).unwrap_err().to_string();
        assert!(mistakes.contains(advice), "{mistakes}");
        let advice = mistakes.rsplit_once(" (").unwrap().1;
        assert!(
            !advice.contains('"') && !advice.contains(" = "),
            "{mistakes}"
        );
        assert_no_secret(&mistakes);
    }
    let missing = load_environment(&super::enough_and(&[(
        "BEARER_PROXY__TOKEN__STORE__TLS__SERVER_NAME",
        "redis.internal",
    )]));
    let missing = missing.unwrap_err().to_string();
    let advice = "token.store.url: is missing (set BEARER_PROXY__TOKEN__STORE__URL=rediss://";
    assert!(missing.contains(advice), "{missing}");
}

#[test]
fn what_is_right_and_risky_is_warned_of() {
    let key = format!("key = '{KEY}'");
    let password = "password = 'p'";
    let plain = "token.store.url: is plain redis:// to another machine: ";
    let no_key = "token.store.key: is not set, and the store is on another machine: ";
    for (token, lines, expected) in [
        (QUIET, &["url = 'redis://localhost'"][..], &[][..]),
        (QUIET, &["url = 'redis://127.0.0.9'", password], &[]),
        (QUIET, &["url = 'redis://[::1]'"], &[]),
        (QUIET, &["url = 'rediss://redis.example.com'", &key], &[]),
        (QUIET, &["url = 'rediss://redis.example.com'"], &[no_key]),
        (
            QUIET,
            &["url = 'redis://10.0.0.1'"],
            &[
                &format!("{plain}the tokens can be read and replaced on the network"),
                no_key,
            ],
        ),
        (
            QUIET,
            &["url = 'redis://10.0.0.1'", password],
            &[
                &format!("{plain}the tokens and the store's password can be read on"),
                no_key,
            ],
        ),
        (
            QUIET,
            &["url = 'redis://10.0.0.1'", &key],
            &[&format!("{plain}the record can be replaced on the network")],
        ),
        (
            QUIET,
            &["url = 'redis://10.0.0.1'", &key, password],
            &[&format!(
                "{plain}the store's password can be read on the network"
            )],
        ),
        (
            QUIET,
            &[
                "url = ['redis://localhost', 'redis://10.0.0.1', 'redis://10.0.0.2']",
                &key,
            ],
            &[plain],
        ),
        (
            QUIET,
            &["url = 'redis://localhost'", "tls.server_name = 'a'"],
            &["token.store.tls: has no effect: token.store.url does not begin with rediss://"],
        ),
        (
            "",
            &["url = 'redis://localhost'"],
            &[
                "token.state_file: is not set: a replica that starts while the store is down has no token",
            ],
        ),
        (
            "refresh_token = 'r3fresh-words'",
            &["url = 'redis://localhost'"],
            &["token.state_file: is not set: a replica that starts while"],
        ),
        (
            "state_file = 'token.json'\ngrace_period = '3999ms'",
            &["url = 'redis://localhost'"],
            &["token.grace_period: is 3s 999ms, shorter than a takeover, which takes 3 to 4 s: "],
        ),
        (
            "state_file = 'token.json'\ngrace_period = '4s'",
            &["url = 'redis://localhost'"],
            &[],
        ),
        (
            "state_file = 'token.json'\ngrace_period = '0s'",
            &["url = 'redis://localhost'"],
            &["token.grace_period: is 0s, shorter than a takeover"],
        ),
        (
            "state_file = 'token.json'\ngrace_retry = false",
            &["url = 'redis://localhost'"],
            &[],
        ),
        (
            "state_file = 'token.json'\njwt.key = 'jwtk3y'",
            &[
                "url = 'redis://localhost'",
                "on_store_failure = 'refresh_alone'",
            ],
            &["token.store: may not be needed: with [token.jwt], each replica can obtain tokens"],
        ),
        (
            "state_file = 'token.json'\nrotation = 'none'",
            &[
                "url = 'redis://localhost'",
                "on_store_failure = 'refresh_alone'",
            ],
            &["token.store: may not be needed: with token.rotation = \"none\", all replicas"],
        ),
        (
            "refresh_token_file = 'no-such-file'\nstate_file = 'token.json'",
            &["url = 'redis://localhost'"],
            &["token.refresh_token_file: names a file that does not exist; the stored tokens are"],
        ),
    ] {
        let found = warnings(&text(token, &lines.join("\n")));
        let is_expected = found.len() == expected.len()
            && expected
                .iter()
                .all(|expected| found.iter().any(|found| found.starts_with(expected)));
        assert!(is_expected, "{token} {lines:?}: {found:?}");
        assert_no_secret(&found.concat());
    }
    // Without a store, neither is worth a word.
    let alone = format!("{TOP}refresh_token = 'r3fresh-words'\ngrace_period = '1s'\n{QUIET}\n");
    assert_eq!(warnings(&alone), [""; 0]);
}

#[test]
fn check_exits_with_78_and_shows_no_secret() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proxy.toml");
    let run = |text: String| {
        fs::write(&file, text).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_bearer-proxy"));
        check.arg("check").arg("--config").arg(&file);
        let output = check.env_clear().output().unwrap();
        let shown = [output.stdout, output.stderr].concat();
        let shown = String::from_utf8(shown).unwrap();
        assert_no_secret(&shown);
        (output.status.code(), shown)
    };
    let with_password = "url = 'redis://:st0re-words@localhost'";
    let (code, shown) = run(text(QUIET, with_password));
    assert!(
        code == Some(78) && shown.contains("password_file"),
        "{shown}"
    );
    let (code, shown) = run(text(QUIET, "url = 'redis://redis.example.com'"));
    assert!(code == Some(0) && shown.contains("warning: "), "{shown}");
    let (code, shown) = run(text(
        QUIET,
        &format!("url = 'redis://localhost'\nkey = '{KEY}'"),
    ));
    assert!(
        code == Some(0) && !shown.contains("warning: token"),
        "{shown}"
    );
    assert!(!shown.contains(KEY) && SECRETS.iter().any(|secret| KEY.contains(secret)));
}
