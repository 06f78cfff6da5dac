//! Values of `[token.store]`: URLs, the prefix of the key, encryption keys.

use std::time::Duration;

use super::{Read, duration, text, text_with_hint, web::parse_authority};
use crate::{
    base::host,
    config::{findings::problem, raw::Value},
};

/// The URL of a Redis or Valkey server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct RedisUrl {
    pub(in crate::config) is_tls: bool,
    pub(in crate::config) host: String,
    pub(in crate::config) port: Option<u16>,
    pub(in crate::config) database: u32,
    pub(in crate::config) user: Option<String>,
}

/// `redis://` or `rediss://`, an optional user name, a host, an optional port and an optional number
/// of a database. Messages do not quote it: it may contain a password.
pub(in crate::config) fn redis_url(value: &Value) -> Read<RedisUrl> {
    const EXAMPLE: &str = r#"write a URL like "rediss://redis.example.com:6379""#;
    let wrong = |reason: &str| Err(problem(reason, EXAMPLE));
    let text = text_with_hint(value, EXAMPLE)?.trim();
    let Some((scheme, rest)) = text.split_once("://") else {
        return wrong("has no scheme");
    };
    let is_tls = match scheme.to_ascii_lowercase().as_str() {
        "redis" => false,
        "rediss" => true,
        _ => return wrong("is neither redis:// nor rediss://"),
    };
    // The last one: a password may contain others.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(user_of_url(user)?), rest),
        None => (None, rest),
    };
    let (authority, database) = match rest.find(['/', '?', '#', '\\']) {
        Some(end) => (&rest[..end], database(&rest[end..])?),
        None => (rest, 0),
    };
    match parse_authority(authority) {
        Some((_, Some(0))) => wrong("has port 0"),
        Some((host, port)) => Ok(RedisUrl {
            is_tls,
            host: host::without_brackets(&host).to_owned(),
            port,
            database,
            user,
        }),
        None => wrong("has no valid host and port"),
    }
}

/// What precedes the host, percent-encoded (RFC 3986 §3.2.1). Only a name without delimiters is
/// accepted: anything else may be a password.
fn user_of_url(given: &str) -> Read<String> {
    let decoded = percent_encoding::percent_decode_str(given).decode_utf8();
    match decoded {
        Ok(user) if user.is_empty() => Err(problem(
            "has an empty user name",
            "remove the @, or write the user name in the key user",
        )),
        Ok(user)
            if !user.contains(|c: char| {
                c.is_control() || c.is_whitespace() || ":/?#\\@".contains(c)
            }) =>
        {
            Ok(user.into_owned())
        }
        _ => Err(problem(
            "has a password",
            "write it to a file, name that in password_file, and write the URL without it",
        )),
    }
}

/// The path of a URL: a slash, and the number of a database.
fn database(path: &str) -> Read<u32> {
    /// Redis counts databases by a signed integer of 32 bits.
    const LAST: u32 = i32::MAX.unsigned_abs();
    const INSTEAD: &str =
        r#"write the number of the database or nothing, as in "rediss://redis.example.com:6379/0""#;
    match path.strip_prefix('/') {
        Some("") => Ok(0),
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits
            .parse()
            .ok()
            .filter(|number| *number <= LAST)
            .ok_or_else(|| problem("has a database number that is too large", INSTEAD)),
        _ => Err(problem(
            "has a path, a query or a fragment that is not the number of a database",
            INSTEAD,
        )),
    }
}

/// The first part of a key's name. It has none of the characters that are special in the patterns of
/// Redis ACLs.
pub(in crate::config) fn key_prefix(value: &Value) -> Read<String> {
    const INSTEAD: &str =
        r#"write up to 200 letters, digits and the characters - _ . : / as in "bearer-proxy""#;
    let prefix = text_with_hint(value, INSTEAD)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    if prefix.len() <= 200 && prefix.bytes().all(is_plain) {
        Ok(prefix.to_owned())
    } else {
        Err(problem("is not a prefix for keys", INSTEAD))
    }
}

/// Encryption keys, one a line.
pub(in crate::config) fn keys_in_lines(value: &Value) -> Read<&str> {
    match value {
        Value::Text(keys) if !keys.is_empty() && is_in_lines(keys) => Ok(keys),
        _ => text(value),
    }
}

/// Whether the text has no control characters other than line ends.
pub(in crate::config) fn is_in_lines(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() && !matches!(c, '\r' | '\n'))
}

/// How long an issuer accepts a refresh token once more after its first use.
pub(in crate::config) fn grace_period(value: &Value) -> Read<Duration> {
    const MOST: Duration = Duration::from_secs(60);
    match duration(value)? {
        period if period > MOST => Err(problem(
            "is longer than a minute, and issuers accept a repeated refresh token for seconds",
            r#"write how long the issuer accepts it once more, as in "5s", or "0s" if it never does"#,
        )),
        period => Ok(period),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::values::tests::{hint, words};

    #[test]
    fn urls_of_redis() {
        let url = |is_tls, host: &str, port, database, user: Option<&str>| RedisUrl {
            is_tls,
            host: host.to_owned(),
            port,
            database,
            user: user.map(str::to_owned),
        };
        for (given, expected) in [
            ("redis://localhost", url(false, "localhost", None, 0, None)),
            (
                " REDISS://Redis.Example.com:1/ ",
                url(true, "redis.example.com", Some(1), 0, None),
            ),
            (
                "redis://[2001:db8::1]:7000/15",
                url(false, "2001:db8::1", Some(7000), 15, None),
            ),
            ("redis://[::1]", url(false, "::1", None, 0, None)),
            (
                "redis://10.0.0.1/2147483647",
                url(false, "10.0.0.1", None, 2_147_483_647, None),
            ),
            (
                "rediss://proxy@a:65535/3",
                url(true, "a", Some(65535), 3, Some("proxy")),
            ),
            (
                "redis://pr%C3%BCfer@a",
                url(false, "a", None, 0, Some("prüfer")),
            ),
        ] {
            assert_eq!(redis_url(&words(given)), Ok(expected), "{given}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_quoted() {
        const MARK: &str = "zqMARKzq";
        for given in [
            "redis://:zqMARKzq@a",
            "redis://user:zqMARKzq@a:6379/0",
            "redis://user:@a",
            "redis://user:zq/MARK@zqMARKzq@a",
            "redis://user:zq?#MARK@a",
            "redis://user/zqMARKzq@a",
            "redis://user%3AzqMARKzq@a",
            "rediss://user\\zqMARKzq@a",
            "redis://zqMARKzq%FF@a",
            "redis://a/0?user=b&password=zqMARKzq@",
        ] {
            let problem = redis_url(&words(given)).unwrap_err();
            assert_eq!(problem.reason, "has a password", "{given}");
            assert!(problem.hint.contains("password_file"), "{given}");
        }
        for given in [
            "zqMARKzq",
            "zqMARKzq@a:6379",
            "zqMARKzq://a",
            "redis://a/0?password=zqMARKzq",
            "redis://a/zqMARKzq",
            "redis://a#zqMARKzq",
            "redis://a:zqMARKzq",
            "redis://@zqMARKzq",
            "redis://zqMARKzq:6379:1",
        ] {
            let problem = redis_url(&words(given)).unwrap_err();
            let shown = format!("{} {}", problem.reason, problem.hint);
            assert!(!shown.contains(MARK), "{given}: {shown}");
        }
    }

    #[test]
    fn what_is_no_url_of_redis() {
        for (given, reason) in [
            ("localhost:6379", "has no scheme"),
            (
                "unix:///run/redis.sock",
                "is neither redis:// nor rediss://",
            ),
            ("http://a", "is neither"),
            ("redis://", "has no valid host"),
            ("redis:///0", "has no valid host"),
            ("redis://:6379", "has no valid host"),
            ("redis://a:", "has no valid host"),
            ("redis://a:65536", "has no valid host"),
            ("redis://a b", "has no valid host"),
            ("redis://*.example.com", "has no valid host"),
            ("redis://[::1", "has no valid host"),
            ("redis://a:0", "has port 0"),
            ("redis://a,redis://b", "has a path"),
            ("redis://a/-1", "has a path"),
            ("redis://a/+1", "has a path"),
            ("redis://a/1/", "has a path"),
            ("redis://a//1", "has a path"),
            ("redis://a/0x1", "has a path"),
            ("redis://a\\1", "has a path"),
            (
                "redis://a/2147483648",
                "has a database number that is too large",
            ),
            ("redis://a/99999999999999999999", "has a database number"),
            ("redis://@a", "has an empty user name"),
        ] {
            let found = redis_url(&words(given)).map_err(|problem| problem.reason);
            assert!(
                found.as_ref().is_err_and(|found| found.starts_with(reason)),
                "{given}: {found:?}"
            );
        }
        assert!(redis_url(&Value::Integer(6379)).is_err());
    }

    #[test]
    fn prefixes_of_keys() {
        for prefix in ["bearer-proxy", "a:b/c_d.E", &"x".repeat(200)] {
            assert!(key_prefix(&words(prefix)).is_ok(), "{prefix}");
        }
        for prefix in [
            "",
            "a*",
            "a b",
            "ä",
            "a?",
            "[a]",
            "a\\b",
            "{a}",
            "a\n",
            &"x".repeat(201),
        ] {
            assert!(key_prefix(&words(prefix)).is_err(), "{prefix}");
        }
    }

    #[test]
    fn keys_have_lines_and_nothing_else() {
        for keys in ["a", "a\nb", "a\r\nb\r\n", "\n"] {
            assert!(keys_in_lines(&words(keys)).is_ok(), "{keys:?}");
        }
        for keys in ["", "a\tb", "a\0", "\u{7}"] {
            assert!(keys_in_lines(&words(keys)).is_err(), "{keys:?}");
        }
        assert!(keys_in_lines(&Value::Bool(true)).is_err());
    }

    #[test]
    fn grace_periods() {
        for (given, millis) in [("0s", 0), ("1500ms", 1500), ("5s", 5000), ("1m", 60_000)] {
            let expected = Ok(Duration::from_millis(millis));
            assert_eq!(grace_period(&words(given)), expected, "{given}");
        }
        for given in ["1m 1ms", "5m", "1d", "-1s", "5"] {
            assert!(grace_period(&words(given)).is_err(), "{given}");
        }
        assert!(hint(grace_period(&words("5m"))).contains("\"0s\""));
    }

    proptest! {
        #[test]
        fn no_url_makes_it_panic_or_is_quoted(
            before in r#"(rediss?://)?[a-z:@/?#%\\\[\]0-9 ]{0,12}"#,
            after in r#"[a-z:@/?#%\\\[\]0-9 ]{0,12}"#,
        ) {
            const MARK: &str = "zqmarkzq";
            let value = words(&format!("{before}{MARK}{after}"));
            if let Err(problem) = redis_url(&value) {
                let shown = format!("{} {}", problem.reason, problem.hint);
                prop_assert!(!shown.contains(MARK), "{}", shown);
            }
        }
    }
}
