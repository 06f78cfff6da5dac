//! `[token.store]`: the store that several replicas share.

use super::tls;
use crate::{
    base::host,
    config::{
        findings::{SourcePos, problem},
        keys,
        reader::Reader,
        values::{self, RedisUrl},
    },
    net,
    token::{
        self,
        fleet::{self, OnStoreFailure, RedisConfig, RedisServer},
    },
};

const SECTION: &str = "token.store";
const URL: &str = "token.store.url";
const USER: &str = "token.store.user";
const PASSWORD: &str = "token.store.password";
const KEY: &str = "token.store.key";
const SENTINEL: &str = "token.store.sentinel";
const SENTINEL_PASSWORD: &str = "token.store.sentinel_password";
const TLS: &str = "token.store.tls";
const ON_FAILURE: &str = "token.store.on_store_failure";

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Whether there is such a section, be it with mistakes.
pub(super) fn is_given(r: &Reader) -> bool {
    r.section_exists(SECTION) || keys::below(SECTION).any(|(path, _)| r.is_given(&path))
}

/// `None` if there is no such section, or after a mistake. `rotates`: the issuer replaces the
/// refresh token at a refresh.
pub(super) fn store(r: &mut Reader, rotates: bool) -> Option<fleet::Config> {
    if !is_given(r) {
        return None;
    }
    r.choice("token.store.kind", [("redis", ())]);
    let redis = redis(r);
    let key_prefix = match r.is_given("token.store.key_prefix") {
        true => r.read("token.store.key_prefix", values::key_prefix),
        false => Some("bearer-proxy".to_owned()),
    };
    let key = r.key_lines(KEY);
    if let Some(Err(error)) = key.as_ref().map(fleet::check_key) {
        let hint = "write 32 random bytes in Base64, as `head -c 32 /dev/urandom | base64` prints \
            them; several keys on a line each";
        r.mistake(r.pos_of_secret(KEY), KEY, problem(error.to_string(), hint));
    }
    let on_store_failure = on_store_failure(r, rotates);
    Some(fleet::Config {
        redis: redis?,
        key_prefix: key_prefix?,
        key,
        on_store_failure,
    })
}

fn redis(r: &mut Reader) -> Option<RedisConfig> {
    if !r.is_given(URL) {
        let hint = r#"write the address of the Redis server, as in url = "rediss://redis.example.com:6379""#;
        let variable = format!(
            "set {}=rediss://redis.example.com:6379",
            keys::variable(URL)
        );
        let missing = problem("is missing", hint).or_variable(variable);
        r.missing(r.pos(URL), URL, missing);
    }
    let urls = r.one_or_more(URL, values::redis_url);
    reject_differences(r, &urls);
    let user = user(r, &urls);
    let password = r.secret(PASSWORD);
    if (user.is_some() || r.is_given(USER)) && !r.is_secret_given(PASSWORD) {
        let (key, pos) = if r.is_given(USER) {
            (USER, r.pos(USER))
        } else {
            (URL, r.pos(URL))
        };
        let reason = format!("names a user, and {PASSWORD} is not set");
        let file = format!("{PASSWORD}_file");
        let problem = problem(reason, "write password_file as well")
            .or_variable(format!("set {} as well", keys::variable(&file)));
        r.missing(pos, key, problem);
    }
    let sentinel = r.read(SENTINEL, |value| values::text(value).map(str::to_owned));
    let default_port = if r.is_given(SENTINEL) {
        SENTINEL_PORT
    } else {
        REDIS_PORT
    };
    let servers = servers(&urls, default_port);
    check_sentinels(r, urls.len(), servers.len());
    let sentinel_password = r.secret(SENTINEL_PASSWORD);
    let tls = tls::client(r, TLS);
    warn_of_unused_tls(r, &urls, &tls);
    warn_of_exposure(r, &urls);
    let (first, _) = urls.first()?;
    Some(RedisConfig {
        servers,
        database: first.database,
        user,
        password,
        tls,
        sentinel,
        sentinel_password,
    })
}

/// One connection leads to another: all of them use the same scheme, database and user.
fn reject_differences(r: &mut Reader, urls: &[(RedisUrl, SourcePos)]) {
    let Some(((first, _), others)) = urls.split_first() else {
        return;
    };
    for (url, pos) in others {
        let part = if url.is_tls != first.is_tls {
            "scheme"
        } else if url.database != first.database {
            "database"
        } else if url.user != first.user {
            "user"
        } else {
            continue;
        };
        let reason = format!("has another {part} than the first URL");
        let hint = format!("write the same {part} in all of them");
        r.mistake(pos.clone(), URL, problem(reason, hint));
    }
}

/// The user, who is named in the URL or by a key.
fn user(r: &mut Reader, urls: &[(RedisUrl, SourcePos)]) -> Option<String> {
    let by_key = r.read(USER, |value| values::text(value).map(str::to_owned));
    let in_url = urls.first().and_then(|(url, _)| url.user.clone());
    if in_url.is_some() && r.is_given(USER) {
        let reason = format!("names a user, and so does {URL}");
        r.mistake(r.pos(USER), USER, problem(reason, "keep one of the two"));
    }
    by_key.or(in_url)
}

/// A server may be listed several times.
fn servers(urls: &[(RedisUrl, SourcePos)], default_port: u16) -> Vec<RedisServer> {
    let mut servers: Vec<RedisServer> = Vec::new();
    for (url, _) in urls {
        let server = RedisServer {
            host: url.host.clone(),
            port: url.port.unwrap_or(default_port),
            is_tls: url.is_tls,
        };
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

/// Sentinels are there to outlive the failure of one of them.
fn check_sentinels(r: &mut Reader, urls: usize, servers: usize) {
    if !r.is_given(SENTINEL) {
        if r.is_secret_given(SENTINEL_PASSWORD) {
            let reason = format!("has no effect without {SENTINEL}");
            let hint = r#"write the name of the primary that the Sentinels watch, as in sentinel = "mymaster", or remove the key"#;
            let variable = format!(
                "set {} to the name of the primary that the Sentinels watch, or unset this",
                keys::variable(SENTINEL)
            );
            let pos = r.pos_of_secret(SENTINEL_PASSWORD);
            let problem = problem(reason, hint).or_variable(variable);
            r.missing(pos, SENTINEL_PASSWORD, problem);
        }
        return;
    }
    let has_mistakes = urls < r.elements(URL).len();
    if servers != 1 || has_mistakes {
        return;
    }
    let reason = format!(
        "needs the addresses of at least two Sentinels, and {URL} has one: while that is down, no \
         replica finds the primary"
    );
    let hint = r#"write all of them, as in url = ["redis://sentinel1.example.com:26379", "redis://sentinel2.example.com:26379"], or remove sentinel and write the address of the Redis server itself"#;
    let variable = format!(
        "set {} to all of them, separated by commas, or unset this and set it to the address of the \
         Redis server itself",
        keys::variable(URL)
    );
    let problem = problem(reason, hint).or_variable(variable);
    r.missing(r.pos(SENTINEL), SENTINEL, problem);
}

fn warn_of_unused_tls(r: &mut Reader, urls: &[(RedisUrl, SourcePos)], tls: &net::tls::Config) {
    let all_plain = !urls.is_empty() && urls.iter().all(|(url, _)| !url.is_tls);
    if all_plain && *tls != net::tls::Config::default() {
        let problem = problem(
            format!("has no effect: {URL} does not begin with rediss://"),
            "remove it, or use rediss://",
        );
        r.warning(r.pos_of_section(TLS), TLS, problem);
    }
}

/// Warns of what others can read: on the network, and in the store.
fn warn_of_exposure(r: &mut Reader, urls: &[(RedisUrl, SourcePos)]) {
    let is_remote = |url: &RedisUrl| !host::is_local(&url.host);
    if !urls.iter().any(|(url, _)| is_remote(url)) {
        return;
    }
    let is_encrypted = r.is_secret_given(KEY);
    let plain = urls.iter().find(|(url, _)| !url.is_tls && is_remote(url));
    if let Some((_, pos)) = plain {
        let what = match (is_encrypted, r.is_secret_given(PASSWORD)) {
            (false, false) => "the tokens can be read and replaced",
            (false, true) => "the tokens and the store's password can be read",
            (true, false) => "the record can be replaced",
            (true, true) => "the store's password can be read",
        };
        let reason = format!("is plain redis:// to another machine: {what} on the network");
        let hint = "use rediss://, and set token.store.tls if the server's certificate needs it";
        r.warning(pos.clone(), URL, problem(reason, hint));
    }
    if is_encrypted {
        return;
    }
    let reason = "is not set, and the store is on another machine: the tokens can be read in the \
        store, in its dumps and in its backups";
    let hint = "write key_file, with 32 random bytes in Base64 in it, as `head -c 32 /dev/urandom \
        | base64` prints them; the same file for all replicas";
    let variable = format!(
        "set {} to a file with 32 random bytes in Base64, the same for all replicas",
        keys::variable("token.store.key_file")
    );
    let problem = problem(reason, hint).or_variable(variable);
    r.warning(r.pos(KEY), KEY, problem);
}

/// Without the others, a refresh is only safe if it does not use up what they need.
fn on_store_failure(r: &mut Reader, rotates: bool) -> OnStoreFailure {
    let chosen = r.choice(
        ON_FAILURE,
        [
            ("wait", OnStoreFailure::Wait),
            ("refresh_alone", OnStoreFailure::RefreshAlone),
        ],
    );
    if chosen == OnStoreFailure::RefreshAlone && rotates && !r.has_keys("token.jwt") {
        let reason = "is \"refresh_alone\", which sends a refresh token that another replica may \
            have used up";
        let hint = r#"write "wait"; or configure [token.jwt]; or write rotation = "none" in [token] if the issuer never replaces the refresh token"#;
        let variable = format!(
            "set it to wait; or configure [token.jwt]; or set {}=none if the issuer never replaces \
             the refresh token",
            keys::variable("token.rotation")
        );
        let problem = problem(reason, hint).or_variable(variable);
        r.mistake(r.pos(ON_FAILURE), ON_FAILURE, problem);
    }
    chosen
}

/// For `check`: whether replicas could do without a store.
pub(in crate::config) fn inspect(r: &mut Reader, config: &token::Config) {
    if config.store.is_none() {
        return;
    }
    let (reason, hint) = if r.has_keys("token.jwt") {
        (
            "may not be needed: with [token.jwt], each replica can obtain tokens of its own",
            "remove it if the cloud allows several logins of this client at a time; keep it if a \
             new login ends the others",
        )
    } else if !config.rotates {
        (
            "may not be needed: with token.rotation = \"none\", all replicas can use the same \
             refresh token",
            "remove it, unless a refresh ends the access token of the one before",
        )
    } else {
        return;
    };
    let problem = problem(reason, hint).or_variable(hint);
    r.warning(r.pos_of_section(SECTION), SECTION, problem);
}
