//! Readers for every kind of value. Each says what is wrong and what to write instead, and quotes the user's words
//! only where they could not be a secret.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use http::{HeaderValue, StatusCode, uri::Scheme};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value as Json};
use url::Url;

use super::{
    findings::{Fault, fault},
    raw::{BACKSLASH, Entry, Value},
};
use crate::{net::socket::Address, token::jwt::OWN_CLAIMS, upstream::Endpoint};

type Read<T> = Result<T, Fault>;

/// Text of at least one character, without control characters.
pub(super) fn text(value: &Value) -> Read<&str> {
    match value {
        Value::Text(text) if text.is_empty() => Err(fault("is empty", "write a value, or remove the key")),
        Value::Text(text) if text.contains(char::is_control) => {
            Err(fault("holds a line end, a tab or another control character", "write one line of plain text"))
        }
        Value::Text(text) => Ok(text),
        Value::Integer(_) | Value::Bool(_) => Err(fault(format!("is {}, not text", value.what()), "put it in quotes")),
        Value::List(_) | Value::Table(_) | Value::Other(_) => {
            Err(fault(format!("is {}, not text", value.what()), r#"write one text, as in key = "text""#))
        }
    }
}

/// Text that has a form of its own, of which an example says more than "put it in quotes".
fn text_like<'a>(value: &'a Value, example: &str) -> Read<&'a str> {
    text(value).map_err(|fault| Fault { instead: example.to_owned(), ..fault })
}

/// Text that is still what the shipped file has there.
pub(super) fn is_placeholder(value: &Value) -> bool {
    match value {
        Value::Text(text) => {
            let text = text.trim();
            text.len() > 2 && text.starts_with('<') && text.ends_with('>') || text == "…" || text == "..."
        }
        Value::List(elements) => elements.iter().any(|element| is_placeholder(&element.value)),
        Value::Table(elements) => elements.iter().any(|(_, element)| is_placeholder(&element.value)),
        Value::Integer(_) | Value::Bool(_) | Value::Other(_) => false,
    }
}

/// A path, as it is written.
pub(super) fn path(value: &Value) -> Read<PathBuf> {
    if let Value::Text(text) = value
        && text.contains(char::is_control)
    {
        return Err(fault("holds a control character", BACKSLASH));
    }
    text(value).map(PathBuf::from)
}

pub(super) fn boolean(value: &Value) -> Read<bool> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Text(_) | Value::Integer(_) | Value::List(_) | Value::Table(_) | Value::Other(_) => {
            Err(fault(format!("is {}", value.what()), "write true or false, without quotes"))
        }
    }
}

/// A whole number between the two, both included.
pub(super) fn integer(value: &Value, least: u32, most: u32) -> Read<u32> {
    match value {
        Value::Integer(number) => u32::try_from(*number)
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| fault("is out of range", format!("write a number from {least} to {most}"))),
        Value::Text(_) | Value::Bool(_) | Value::List(_) | Value::Table(_) | Value::Other(_) => {
            Err(fault(format!("is {}", value.what()), format!("write a number from {least} to {most}, without quotes")))
        }
    }
}

/// `"90s"`, `"1h 30m"`: up to a year.
pub(super) fn duration(value: &Value) -> Read<Duration> {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    const EXAMPLE: &str = r#"write a number and a unit (ms, s, m, h, d), as in "90s""#;
    if let Some(number) = value.bare_number() {
        return Err(fault("has no unit", format!(r#"write "{number}s" for seconds"#)));
    }
    let text = text_like(value, EXAMPLE)?;
    // The parser's sum of parts can overflow, which takes more characters than a duration of sense has.
    let parsed = if text.len() <= 24 { humantime::parse_duration(text.trim()).ok() } else { None };
    match parsed {
        None => Err(fault("is not a duration", EXAMPLE)),
        Some(duration) if duration > YEAR => Err(fault("is longer than a year", EXAMPLE)),
        Some(duration) => Ok(duration),
    }
}

/// A duration above zero.
pub(super) fn positive_duration(value: &Value) -> Read<Duration> {
    match duration(value)? {
        Duration::ZERO => Err(fault("must be longer than nothing", r#"write for example "10s""#)),
        duration => Ok(duration),
    }
}

/// `"64MiB"`, `"1MB"`, `"500B"`, in bytes.
pub(super) fn size(value: &Value) -> Read<usize> {
    const EXAMPLE: &str = r#"write a whole number and a unit (B, KB, KiB, MB, MiB, GB, GiB), as in "64MiB""#;
    const UNITS: [(&str, usize); 7] = [
        ("b", 1),
        ("kb", 1000),
        ("kib", 1 << 10),
        ("mb", 1_000_000),
        ("mib", 1 << 20),
        ("gb", 1_000_000_000),
        ("gib", 1 << 30),
    ];
    if let Some(number) = value.bare_number() {
        return Err(fault("has no unit", format!(r#"write "{number}B" for bytes, or for example "1MiB""#)));
    }
    let text = text_like(value, EXAMPLE)?.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let bytes = number.parse::<usize>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes.ok_or_else(|| fault("is not a size", EXAMPLE))
}

/// One of several words, and what each means.
pub(super) fn choice<T: Copy>(value: &Value, choices: &[(&str, T)]) -> Read<T> {
    let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
    let instead = format!("write {}", words.join(" or "));
    let given = text_like(value, &instead)?;
    choices
        .iter()
        .find(|(word, _)| *word == given)
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| fault("is none of the words known here", &instead))
}

/// Where to listen: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080` (IPv4), or `unix:` and a path.
pub(super) fn address(value: &Value) -> Read<Address> {
    const EXAMPLE: &str = r#"write an IP address and a port, as in "127.0.0.1:8080", or "unix:/run/bearer-proxy.sock""#;
    let text = text_like(value, EXAMPLE)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return match path {
            _ if cfg!(not(unix)) => Err(fault("this system has no local sockets", r#"write "127.0.0.1:8080""#)),
            "" => Err(fault("names no path", r#"write "unix:/run/bearer-proxy.sock""#)),
            path => Ok(Address::Unix(PathBuf::from(path))),
        };
    }
    let localhost = text
        .strip_prefix("localhost:")
        .and_then(|port| port.parse().ok())
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let address = text.parse().ok().or(localhost);
    address.map(Address::Tcp).ok_or_else(|| fault("is not an address to listen on", EXAMPLE))
}

/// An IP address and a port to dial.
pub(super) fn socket_address(value: &Value) -> Read<SocketAddr> {
    const INSTEAD: &str = r#"write an IP address and a port, as in "192.0.2.10:443""#;
    match text_like(value, INSTEAD)?.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) | Err(_) => Err(fault("is not an IP address with a port", INSTEAD)),
    }
}

/// `https://cloud.example.com` or `http://…`: scheme, host, port, and nothing else.
pub(super) fn endpoint(value: &Value) -> Read<Endpoint> {
    const EXAMPLE: &str = r#"write an address like "https://cloud.example.com""#;
    let text = text_like(value, EXAMPLE)?.trim();
    if !text.contains("://") {
        let guess = Url::parse(&format!("https://{text}")).ok().and_then(|url| endpoint_of(&url));
        let instead = guess.map_or_else(|| EXAMPLE.to_owned(), |endpoint| format!("write {:?}", endpoint.origin));
        return Err(fault("has no scheme", instead));
    }
    let url = Url::parse(text).map_err(|error| fault(format!("is not a URL: {error}"), EXAMPLE))?;
    let endpoint = endpoint_of(&url).ok_or_else(|| fault("is neither https:// nor http://", EXAMPLE))?;
    let surplus = if !url.username().is_empty() || url.password().is_some() {
        "has a user name or a password; credentials belong in [token]"
    } else if url.path() != "/" {
        "has a path"
    } else if url.query().is_some() || url.fragment().is_some() {
        "has a query or a fragment"
    } else if url.port() == Some(0) {
        return Err(fault("has port 0", EXAMPLE));
    } else {
        return Ok(endpoint);
    };
    Err(fault(surplus, format!("write {:?}", endpoint.origin)))
}

fn endpoint_of(url: &Url) -> Option<Endpoint> {
    let scheme = match url.scheme() {
        "https" => Scheme::HTTPS,
        "http" => Scheme::HTTP,
        _ => return None,
    };
    let host = url.host_str()?;
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    Some(Endpoint {
        scheme,
        host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: url.port_or_known_default()?,
        origin: format!("{}://{authority}", url.scheme()),
        authority: HeaderValue::try_from(authority).ok()?,
    })
}

/// Whether traffic to this host stays on this machine.
pub(super) fn is_local(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// What `Origin` may carry: `https://app.example.com`, in lower case.
pub(super) fn web_origin(value: &Value) -> Read<String> {
    const EXAMPLE: &str = r#"write an origin like "https://app.example.com""#;
    let given = text(value)?;
    match given.split_once("://") {
        Some(("http" | "https", _)) => endpoint(value).map(|endpoint| endpoint.origin),
        // Apps built from web pages have schemes of their own.
        Some((scheme, rest))
            if !scheme.is_empty()
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && !rest.is_empty()
                && rest.chars().all(|c| c.is_ascii_graphic() && !"/?#@\\".contains(c)) =>
        {
            Ok(given.to_ascii_lowercase())
        }
        Some(_) | None => Err(fault("is not an origin", EXAMPLE)),
    }
}

/// A name that `Host` may carry, in lower case and without a port; IPv6 addresses in brackets, as `Host` has them.
pub(super) fn host_name(value: &Value) -> Read<String> {
    const EXAMPLE: &str = r#"write a name like "files.example.com""#;
    let text = text(value)?;
    match parse_authority(text) {
        Some((host, None)) => Ok(host),
        Some((host, Some(_))) => Err(fault("has a port; every port of a name is meant", format!("write {host:?}"))),
        None => Err(fault("is not a host name", EXAMPLE)),
    }
}

/// What `Host` carries: a name, and a port if it is not the usual one.
pub(super) fn host_header(value: &Value) -> Read<HeaderValue> {
    let host = parse_authority(text(value)?).and_then(|(host, port)| {
        HeaderValue::try_from(port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))).ok()
    });
    host.ok_or_else(|| fault("is no host name", r#"write "endpoint", "client", or a name like "files.example.com""#))
}

fn parse_authority(text: &str) -> Option<(String, Option<u16>)> {
    if let Ok(IpAddr::V6(address)) = text.parse() {
        return Some((format!("[{address}]"), None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        Some(_) | None => (text, None),
    };
    let host = match url::Host::parse(host).ok()? {
        url::Host::Domain(name) if name.contains('*') => return None,
        host => host.to_string(),
    };
    Some((host, port))
}

/// The path of one of the issuer's interfaces.
pub(super) fn url_path(value: &Value) -> Read<String> {
    let text = text(value)?;
    if text.starts_with('/') && text.chars().all(|c| c.is_ascii_graphic() && !"?#\\".contains(c)) {
        Ok(text.to_owned())
    } else {
        Err(fault("is not a path", r#"write a path without a query, as in "/api/refreshToken.do""#))
    }
}

/// Where the cloud sends a browser back to: an absolute URL, kept character by character, as the cloud compares it so.
pub(super) fn redirect_uri(value: &Value) -> Read<String> {
    const EXAMPLE: &str = r#"write it exactly as it is registered, as in "http://127.0.0.1:8765/callback""#;
    let text = text_like(value, EXAMPLE)?;
    let url = Url::parse(text).map_err(|error| fault(format!("is not a URL: {error}"), EXAMPLE))?;
    // RFC 6749 §3.1.2.
    if url.fragment().is_some() {
        return Err(fault("has a fragment", EXAMPLE));
    }
    if url.port() == Some(0) {
        return Err(fault("has port 0", EXAMPLE));
    }
    Ok(text.to_owned())
}

/// How JWTs are signed, RFC 7518 §3.1.
pub(super) fn algorithm(value: &Value) -> Read<Algorithm> {
    const KNOWN: [&str; 12] =
        ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];
    let instead = format!("write one of {}", KNOWN.join(", "));
    let text = text_like(value, &instead)?;
    text.parse().map_err(|_| fault("is none of the algorithms known here", instead))
}

/// A key: one line, or several as PEM has them.
pub(super) fn key_material(value: &Value) -> Read<&str> {
    match value {
        Value::Text(key) if is_pem(key) => Ok(key),
        _ => text(value),
    }
}

/// Whether this has the lines of a PEM text, RFC 7468, and no other control characters than their ends.
pub(super) fn is_pem(key: &str) -> bool {
    key.trim_start().starts_with("-----BEGIN ") && !key.contains(|c: char| c.is_control() && !matches!(c, '\r' | '\n'))
}

/// Further claims of a JWT.
pub(super) fn claims(value: &Value) -> Read<Map<String, Json>> {
    const INSTEAD: &str = r#"write a table, as in { scope = "files" }"#;
    let Value::Table(elements) = value else {
        return Err(fault(format!("is {}, not a table", value.what()), INSTEAD));
    };
    for (name, _) in elements {
        if let Some(own) = OWN_CLAIMS.iter().find(|own| *own == name) {
            return Err(fault(format!("sets {own}, which the proxy sets by itself"), "remove it"));
        }
    }
    match json(value) {
        Ok(Json::Object(claims)) => Ok(claims),
        Ok(_) => Err(fault("is not a table", INSTEAD)),
        Err(what) => {
            Err(fault(format!("holds {what}"), "write texts, whole numbers, true, false, lists and tables of them"))
        }
    }
}

fn json(value: &Value) -> Result<Json, &'static str> {
    Ok(match value {
        Value::Text(text) => Json::String(text.to_string()),
        Value::Integer(number) => (*number).into(),
        Value::Bool(value) => (*value).into(),
        Value::List(elements) => {
            Json::Array(elements.iter().map(|element| json(&element.value)).collect::<Result<_, _>>()?)
        }
        Value::Table(elements) => {
            let member = |(name, element): &(String, Entry)| json(&element.value).map(|value| (name.clone(), value));
            Json::Object(elements.iter().map(member).collect::<Result<_, _>>()?)
        }
        Value::Other(what) => return Err(*what),
    })
}

/// A JSON pointer, RFC 6901, to something within a document.
pub(super) fn json_pointer(value: &Value) -> Read<String> {
    let text = text(value)?;
    let escapes_hold = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    match text.strip_prefix('/') {
        Some(_) if escapes_hold => Ok(text.to_owned()),
        Some(_) => Err(fault("has a lone ~", "write ~0 for ~ and ~1 for / within a name")),
        None => {
            Err(fault("is not a JSON pointer", r#"begin it with /, as in "/access_token" or "/data/access_token""#))
        }
    }
}

/// The name of a URL parameter.
pub(super) fn parameter_name(value: &Value) -> Read<String> {
    match text(value)? {
        name if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(name.to_owned()),
        _ => Err(fault("is not a name", "write the name of a parameter as the cloud expects it, without spaces")),
    }
}

/// A status that may mean "this token is not good".
pub(super) fn error_status(value: &Value) -> Read<StatusCode> {
    let status = integer(value, 400, 599)?;
    u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| fault("is no status", "write for example 401"))
}

/// The name that a TLS certificate must carry.
pub(super) fn server_name(value: &Value) -> Read<String> {
    let text = text(value)?;
    match rustls::pki_types::ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => {
            Err(fault("is not a server name", r#"write a name without scheme and port, as in "cloud.example.com""#))
        }
    }
}

impl Value {
    fn what(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(what) => what,
        }
    }

    /// A number without a unit, quoted or not.
    fn bare_number(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => u64::try_from(*number).ok(),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Bool(_) | Self::List(_) | Self::Table(_) | Self::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Value {
        Value::Text(text.to_owned().into())
    }

    fn instead<T>(read: Read<T>) -> String {
        read.err().map(|fault| fault.instead).unwrap_or_default()
    }

    #[test]
    fn durations() {
        for (text, expected) in
            [("90s", 90_000), ("1h 30m", 5_400_000), ("500ms", 500), ("1.5s", 1500), (" 2m ", 120_000), ("0s", 0)]
        {
            assert_eq!(duration(&words(text)), Ok(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "s", "-1s", "1 fortnight", "2y", "18446744073709551615s 1000ms", "1e3s", "\u{661}s"] {
            assert!(duration(&words(text)).is_err(), "{text}");
        }
        assert_eq!(instead(duration(&Value::Integer(90))), r#"write "90s" for seconds"#);
        assert_eq!(instead(duration(&words("90"))), r#"write "90s" for seconds"#);
        assert!(positive_duration(&words("0s")).is_err());
        assert_eq!(positive_duration(&words("1ms")), Ok(Duration::from_millis(1)));
    }

    #[test]
    fn sizes() {
        for (text, expected) in
            [("1MiB", 1 << 20), ("64 MiB", 64 << 20), ("1MB", 1_000_000), ("2KB", 2000), ("1GiB", 1 << 30), ("0B", 0)]
        {
            assert_eq!(size(&words(text)), Ok(expected), "{text}");
        }
        for text in ["", "MiB", "1M", "1.5MiB", "-1B", "99999999999999999999B", "18446744073709551615GiB"] {
            assert!(size(&words(text)).is_err(), "{text}");
        }
        assert_eq!(instead(size(&Value::Integer(4096))), r#"write "4096B" for bytes, or for example "1MiB""#);
    }

    #[test]
    fn integers_and_booleans() {
        assert_eq!(integer(&Value::Integer(1), 1, 3), Ok(1));
        assert_eq!(integer(&Value::Integer(3), 1, 3), Ok(3));
        for number in [0, 4, -1, i64::MAX, i64::MIN] {
            assert_eq!(instead(integer(&Value::Integer(number), 1, 3)), "write a number from 1 to 3", "{number}");
        }
        assert!(integer(&words("2"), 1, 3).is_err());
        assert_eq!(boolean(&Value::Bool(true)), Ok(true));
        assert_eq!(instead(boolean(&words("yes"))), "write true or false, without quotes");
    }

    #[test]
    fn addresses_to_listen_on() {
        for (text, expected) in
            [("127.0.0.1:8080", "127.0.0.1:8080"), ("[::1]:0", "[::1]:0"), ("localhost:8080", "127.0.0.1:8080")]
        {
            assert_eq!(address(&words(text)).map(|address| address.to_string()), Ok(expected.to_owned()), "{text}");
        }
        for text in ["8080", ":8080", "*:8080", "example.com:80", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:80"]
        {
            assert!(address(&words(text)).is_err(), "{text}");
        }
        assert_eq!(address(&words("unix:/run/x.sock")).is_ok(), cfg!(unix));
        assert!(address(&words("unix:")).is_err());
    }

    #[test]
    fn endpoints() {
        let read = |text: &str| endpoint(&words(text));
        let cloud = read("https://Cloud.Example.com/").unwrap();
        assert_eq!((cloud.host.as_str(), cloud.port), ("cloud.example.com", 443));
        assert_eq!(
            (cloud.authority.to_str().unwrap(), cloud.origin.as_str()),
            ("cloud.example.com", "https://cloud.example.com")
        );
        let local = read("http://[::1]:8000").unwrap();
        assert_eq!((local.host.as_str(), local.port, local.origin.as_str()), ("::1", 8000, "http://[::1]:8000"));
        assert_eq!(read("https://cloud.example.com:443").unwrap().authority, "cloud.example.com");
        for (text, expected) in [
            ("https://cloud.example.com/api", r#"write "https://cloud.example.com""#),
            ("https://cloud.example.com?x=1", r#"write "https://cloud.example.com""#),
            ("https://cloud.example.com/#x", r#"write "https://cloud.example.com""#),
            ("https://me:pw@cloud.example.com", r#"write "https://cloud.example.com""#),
            ("cloud.example.com", r#"write "https://cloud.example.com""#),
            ("cloud.example.com:8443", r#"write "https://cloud.example.com:8443""#),
            ("ftp://cloud.example.com", r#"write an address like "https://cloud.example.com""#),
            ("https://", r#"write an address like "https://cloud.example.com""#),
            ("https://cloud.example.com:0", r#"write an address like "https://cloud.example.com""#),
            ("https://cloud.example.com:99999", r#"write an address like "https://cloud.example.com""#),
        ] {
            assert_eq!(instead(read(text)), expected, "{text}");
        }
    }

    #[test]
    fn hosts_and_origins() {
        assert_eq!(host_name(&words("Files.Example.COM")), Ok("files.example.com".to_owned()));
        assert_eq!(host_name(&words("::1")), Ok("[::1]".to_owned()));
        assert_eq!(host_name(&words("[::1]")), Ok("[::1]".to_owned()));
        assert_eq!(instead(host_name(&words("files.example.com:80"))), r#"write "files.example.com""#);
        for text in ["*.example.com", "http://example.com", "a b", "a/b", ""] {
            assert!(host_name(&words(text)).is_err(), "{text}");
        }
        assert_eq!(
            host_header(&words("files.example.com:8443")),
            Ok(HeaderValue::from_static("files.example.com:8443"))
        );
        assert_eq!(web_origin(&words("https://App.example.com:443")), Ok("https://app.example.com".to_owned()));
        assert_eq!(web_origin(&words("app://Local")), Ok("app://local".to_owned()));
        for text in ["null", "app://", "app://x/y", "https://app.example.com/x", "://x"] {
            assert!(web_origin(&words(text)).is_err(), "{text}");
        }
        assert!(is_local("localhost") && is_local("127.9.9.9") && is_local("::1") && is_local("::ffff:127.0.0.1"));
        assert!(!is_local("cloud.example.com") && !is_local("10.0.0.1"));
    }

    #[test]
    fn pointers_paths_and_statuses() {
        assert!(json_pointer(&words("/data/access_token")).is_ok());
        assert!(json_pointer(&words("/a~1b~0")).is_ok());
        assert!(json_pointer(&words("access_token")).is_err());
        assert!(json_pointer(&words("/a~2")).is_err());
        assert!(url_path(&words("/api/refreshToken.do")).is_ok());
        for text in ["api", "/a?b", "/a#b", "/a b", "/ä"] {
            assert!(url_path(&words(text)).is_err(), "{text}");
        }
        assert_eq!(error_status(&Value::Integer(401)), Ok(StatusCode::UNAUTHORIZED));
        assert!(error_status(&Value::Integer(200)).is_err());
        assert!(server_name(&words("cloud.example.com")).is_ok());
        assert!(server_name(&words("https://cloud.example.com")).is_err());
    }

    #[test]
    fn placeholders() {
        for text in ["<client id>", " <x> ", "…", "..."] {
            assert!(is_placeholder(&words(text)), "{text}");
        }
        for text in ["<>", "a<b>", "", "client id", "<x"] {
            assert!(!is_placeholder(&words(text)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in ".{0,40}", scheme in "(https?://|unix:|localhost:|[0-9]{1,20}[a-zA-Z ]{0,3}){0,3}") {
            let value = words(&format!("{scheme}{text}"));
            let _ = (duration(&value), size(&value), address(&value), socket_address(&value), endpoint(&value));
            let _ = (web_origin(&value), host_name(&value), host_header(&value), url_path(&value));
            let _ = (json_pointer(&value), server_name(&value), path(&value), integer(&value, 0, 9));
        }
    }
}
