//! Addresses to listen on and to connect to, origins, hosts, and parts of URLs.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
};

use http::{HeaderValue, StatusCode, uri::Scheme};
use url::Url;

use super::{Read, integer, text, text_with_hint};
use crate::{
    base::host,
    config::{findings::problem, raw::Value},
    net::{
        outbound_proxy::{Protocol, ProxyAddress},
        socket::Address,
    },
    proxy::policy::rules::Rule,
    upstream::Endpoint,
};

/// An address to listen on: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080` (IPv4), or `unix:`
/// with a path.
pub(in crate::config) fn address(value: &Value) -> Read<Address> {
    const EXAMPLE: &str = r#"write an IP address and a port, as in "127.0.0.1:8080", or "unix:/run/bearer-proxy.sock""#;
    let text = text_with_hint(value, EXAMPLE)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return match path {
            _ if cfg!(not(unix)) => Err(problem(
                "this system has no Unix sockets",
                r#"write "127.0.0.1:8080""#,
            )),
            "" => Err(problem(
                "has no path",
                r#"write "unix:/run/bearer-proxy.sock""#,
            )),
            path => Ok(Address::Unix(PathBuf::from(path))),
        };
    }
    let address = match host::parse(text) {
        Some(("localhost", Some(port))) => Some((Ipv4Addr::LOCALHOST, port).into()),
        _ => ip_and_port(text),
    };
    address
        .map(Address::Tcp)
        .ok_or_else(|| problem("is not an address to listen on", EXAMPLE))
}

/// An IPv4-mapped address becomes the IPv4 address: an IPv6-only socket cannot be bound to it.
fn ip_and_port(text: &str) -> Option<SocketAddr> {
    let mut address: SocketAddr = text.parse().ok()?;
    address.set_ip(address.ip().to_canonical());
    Some(address)
}

/// An IP address and a port to connect to.
pub(in crate::config) fn socket_address(value: &Value) -> Read<SocketAddr> {
    const INSTEAD: &str = r#"write an IP address and a port, as in "192.0.2.10:443""#;
    ip_and_port(text_with_hint(value, INSTEAD)?)
        .filter(|address| address.port() != 0)
        .ok_or_else(|| problem("is not an IP address with a port", INSTEAD))
}

/// An origin, `https://cloud.example.com` or `http://…`: scheme, host and port only.
pub(in crate::config) fn endpoint(value: &Value) -> Read<Endpoint> {
    const EXAMPLE: &str = r#"write an address like "https://cloud.example.com""#;
    let text = text_with_hint(value, EXAMPLE)?.trim();
    if !text.contains("://") {
        let guess = Url::parse(&format!("https://{text}"))
            .ok()
            .and_then(|url| endpoint_of(&url));
        let hint = guess.map_or_else(
            || EXAMPLE.to_owned(),
            |endpoint| format!("write {:?}", endpoint.origin),
        );
        return Err(problem("has no scheme", hint));
    }
    let url =
        Url::parse(text).map_err(|error| problem(format!("is not a URL: {error}"), EXAMPLE))?;
    let endpoint =
        endpoint_of(&url).ok_or_else(|| problem("is neither https:// nor http://", EXAMPLE))?;
    let surplus = if !url.username().is_empty() || url.password().is_some() {
        "has a user name or a password; credentials belong in [token]"
    } else if url.path() != "/" {
        "has a path"
    } else if url.query().is_some() || url.fragment().is_some() {
        "has a query or a fragment"
    } else if url.port() == Some(0) {
        return Err(problem("has port 0", EXAMPLE));
    } else {
        return Ok(endpoint);
    };
    Err(problem(surplus, format!("write {:?}", endpoint.origin)))
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
        host: host::without_brackets(host).to_owned(),
        port: url.port_or_known_default()?,
        origin: format!("{}://{authority}", url.scheme()),
        authority: HeaderValue::try_from(authority).ok()?,
    })
}

/// The URL of an outbound proxy: `http://` or `socks5://`, host and port. Messages do not quote it:
/// it may contain a password.
pub(in crate::config) fn outbound_proxy(value: &Value) -> Read<ProxyAddress> {
    const EXAMPLE: &str = r#"write the scheme, host and port of the proxy, as in "http://proxy.example.com:3128" or "socks5://proxy.example.com:1080""#;
    let wrong = |reason: &str| Err(problem(reason, EXAMPLE));
    let text = text_with_hint(value, EXAMPLE)?.trim();
    let Some((scheme, rest)) = text.split_once("://") else {
        return wrong("has no scheme");
    };
    let protocol = match scheme.to_ascii_lowercase().as_str() {
        "http" => Protocol::Http,
        // The h states that the proxy resolves names. It always does here.
        "socks5" | "socks5h" => Protocol::Socks5,
        "https" => return wrong("is https://: TLS to the proxy itself is not supported"),
        _ => return wrong("is neither http:// nor socks5://"),
    };
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // Also behind a slash, which a password may contain.
    if rest.contains('@') {
        return Err(problem(
            "has a user name or a password",
            "write them as proxy_user and proxy_password_file, and the URL without them",
        ));
    }
    if !matches!(path, "" | "/") {
        return wrong("has a path or a query");
    }
    match parse_authority(authority) {
        Some((host, Some(port @ 1..))) => Ok(ProxyAddress {
            protocol,
            host: host::without_brackets(&host).to_owned(),
            port,
        }),
        Some((_, Some(0))) => wrong("has port 0"),
        Some((_, None)) => wrong("has no port"),
        None if authority.ends_with(':') => wrong("has no port"),
        None => wrong("has no valid host and port"),
    }
}

/// An origin as in the `Origin` header, `https://app.example.com`, in lower case.
pub(in crate::config) fn web_origin(value: &Value) -> Read<String> {
    const EXAMPLE: &str = r#"write an origin like "https://app.example.com""#;
    let given = text(value)?;
    match given.split_once("://") {
        Some(("http" | "https", _)) => endpoint(value).map(|endpoint| endpoint.origin),
        // Apps that are built from web pages use schemes of their own.
        Some((scheme, rest))
            if !scheme.is_empty()
                && scheme
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && !rest.is_empty()
                && rest
                    .chars()
                    .all(|c| c.is_ascii_graphic() && !"/?#@\\".contains(c)) =>
        {
            Ok(given.to_ascii_lowercase())
        }
        Some(_) | None => Err(problem("is not an origin", EXAMPLE)),
    }
}

/// A host as in the `Host` header, in lower case and without a port; IPv6 addresses in brackets.
pub(in crate::config) fn host_name(value: &Value) -> Read<String> {
    const EXAMPLE: &str = r#"write a name like "files.example.com""#;
    let text = text(value)?;
    match parse_authority(text) {
        Some((host, None)) => Ok(host),
        Some((host, Some(_))) => Err(problem(
            "has a port; the name applies to all ports",
            format!("write {host:?}"),
        )),
        None => Err(problem("is not a host name", EXAMPLE)),
    }
}

/// A name under which the proxy is reached.
pub(in crate::config) fn served_host(value: &Value) -> Read<String> {
    match host_name(value)?.as_str() {
        "0.0.0.0" | "[::]" => Err(problem(
            "is the unspecified address",
            "write the address or the name that apps use",
        )),
        name => Ok(name.to_owned()),
    }
}

/// A `Host` header: a name, and a port unless it is the default one.
pub(in crate::config) fn host_header(value: &Value) -> Read<HeaderValue> {
    let host = parse_authority(text(value)?).and_then(|(host, port)| {
        HeaderValue::try_from(port.map_or_else(|| host.clone(), |port| format!("{host}:{port}")))
            .ok()
    });
    host.ok_or_else(|| {
        problem(
            "is not a host name",
            r#"write "endpoint", "client", or a name like "files.example.com""#,
        )
    })
}

pub(super) fn parse_authority(text: &str) -> Option<(String, Option<u16>)> {
    if let Ok(IpAddr::V6(address)) = text.parse() {
        return Some((format!("[{address}]"), None));
    }
    let (host, port) = host::parse(text).filter(|_| !text.ends_with(':'))?;
    let host = match url::Host::parse(host).ok()? {
        url::Host::Domain(name) if name.contains('*') => return None,
        host => host.to_string(),
    };
    Some((host, port))
}

/// The path of an interface of the issuer.
pub(in crate::config) fn url_path(value: &Value) -> Read<String> {
    let text = text(value)?;
    if text.starts_with('/')
        && text
            .chars()
            .all(|c| c.is_ascii_graphic() && !"?#\\".contains(c))
    {
        Ok(text.to_owned())
    } else {
        Err(problem(
            "is not a path",
            r#"write a path without a query, as in "/api/refreshToken.do""#,
        ))
    }
}

/// A rule: a path, with or without a method before it.
pub(in crate::config) fn path_rule(value: &Value) -> Read<Rule> {
    const EXAMPLES: &str =
        r#"write a path, as in "/api", or a method and a path, as in "DELETE /api""#;
    let text = text(value)?;
    let (method, path) = match text.split_once(' ') {
        Some((method, path)) => (Some(method), path),
        None => (None, text),
    };
    let is_path = path.starts_with('/')
        && path
            .chars()
            .all(|c| !c.is_whitespace() && !"?#%;\\".contains(c));
    let method = method.map(|method| {
        method
            .parse()
            .ok()
            .filter(|_| method.bytes().all(|b| b.is_ascii_uppercase()))
    });
    match method {
        _ if path.contains('*') => Err(problem(
            "has a wildcard, and a rule has none: it would match this very character alone",
            format!(
                "a rule covers its path and everything below it: write \"{}\"",
                without_wildcard(path)
            ),
        )),
        _ if !is_path => Err(problem(
            "is not a path, or has a query or percent-encoding",
            EXAMPLES,
        )),
        Some(None) => Err(problem(
            "has a method that is not in capital letters",
            EXAMPLES,
        )),
        Some(Some(method)) => Ok(Rule::new(Some(method), path)),
        None => Ok(Rule::new(None, path)),
    }
}

/// The part of a path before the segment that has a wildcard.
fn without_wildcard(path: &str) -> &str {
    let before = path.split('*').next().unwrap_or_default();
    match before.rfind('/') {
        Some(0) | None => "/",
        Some(slash) => &path[..slash],
    }
}

/// The path prefix of a route, without a slash at its end; `""` matches every path.
pub(in crate::config) fn prefix(value: &Value) -> Read<String> {
    const EXAMPLE: &str = r#"write a path like "/_document""#;
    let text = text_with_hint(value, EXAMPLE)?;
    if text.contains('*') {
        return Err(problem(
            "has a wildcard, and a prefix has none",
            format!(
                "a route takes its prefix and everything below it: write \"{}\"",
                without_wildcard(text)
            ),
        ));
    }
    let path = text.strip_suffix('/').unwrap_or(text);
    let reason = if !text.starts_with('/') {
        "does not begin with a slash"
    } else if path.contains(['?', '#']) {
        "has a query or a fragment"
    } else if path.contains('%') {
        // A request may encode the same path differently, and would not match.
        "has a percent sign: percent-encoding is not supported here"
    } else if !path
        .chars()
        .all(|c| c.is_ascii_graphic() && !"\\\"<>^`{|}".contains(c))
    {
        "has a character that is not allowed in a path"
    } else if path
        .split('/')
        .skip(1)
        .any(|segment| matches!(segment, "" | "." | ".."))
    {
        "has an empty or a dot segment"
    } else {
        return Ok(path.to_owned());
    };
    Err(problem(reason, EXAMPLE))
}

/// A redirect URI: an absolute URL, kept unchanged, since the cloud compares it as text.
pub(in crate::config) fn redirect_uri(value: &Value) -> Read<String> {
    const EXAMPLE: &str =
        r#"write it exactly as it is registered, as in "http://127.0.0.1:8765/callback""#;
    let text = text_with_hint(value, EXAMPLE)?;
    let url =
        Url::parse(text).map_err(|error| problem(format!("is not a URL: {error}"), EXAMPLE))?;
    // RFC 6749 §3.1.2.
    if url.fragment().is_some() {
        return Err(problem("has a fragment", EXAMPLE));
    }
    if url.port() == Some(0) {
        return Err(problem("has port 0", EXAMPLE));
    }
    Ok(text.to_owned())
}

/// A status that can mean that the token was rejected.
pub(in crate::config) fn error_status(value: &Value) -> Read<StatusCode> {
    let status = integer(value, 400, 599)?;
    u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| problem("is not a status", "write for example 401"))
}

/// A status of the class 5xx.
pub(in crate::config) fn server_error_status(value: &Value) -> Read<StatusCode> {
    integer(value, 500, 599).and_then(|_| error_status(value))
}

/// Statuses of responses: a number, or a class such as `"2xx"`.
pub(in crate::config) fn statuses(value: &Value) -> Read<RangeInclusive<u16>> {
    const HINT: &str = r#"write a status from 200 to 599, or a class such as "2xx""#;
    let range = match value {
        Value::Integer(number) => u16::try_from(*number)
            .ok()
            .filter(|status| (200..=599).contains(status))
            .map(|status| status..=status),
        Value::Text(text) => match text.as_bytes() {
            [class @ b'2'..=b'5', b'x' | b'X', b'x' | b'X'] => {
                let first = u16::from(class - b'0') * 100;
                Some(first..=first + 99)
            }
            _ => None,
        },
        Value::Bool(_) | Value::List(_) | Value::Table(_) | Value::Other(_) => None,
    };
    range.ok_or_else(|| {
        problem("is neither a status nor a class of statuses", HINT)
            .or_variable("write a status from 200 to 599, or a class such as 2xx")
    })
}

/// The name that a TLS certificate must be valid for.
pub(in crate::config) fn server_name(value: &Value) -> Read<String> {
    let text = text(value)?;
    match rustls::pki_types::ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(problem(
            "is not a server name",
            r#"write a name without scheme and port, as in "cloud.example.com""#,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::tests::{hint, words};

    #[test]
    fn addresses_to_listen_on() {
        for (text, expected) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]:0", "[::1]:0"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("localhost:8080", "127.0.0.1:8080"),
        ] {
            assert_eq!(
                address(&words(text)).map(|address| address.to_string()),
                Ok(expected.to_owned()),
                "{text}"
            );
        }
        for text in [
            "8080",
            ":8080",
            "*:8080",
            "example.com:80",
            "127.0.0.1",
            "127.0.0.1:99999",
            "http://127.0.0.1:80",
        ] {
            assert!(address(&words(text)).is_err(), "{text}");
        }
        assert_eq!(address(&words("unix:/run/x.sock")).is_ok(), cfg!(unix));
        assert!(address(&words("unix:")).is_err());
    }

    #[test]
    fn endpoints() {
        let read = |text: &str| endpoint(&words(text));
        let cloud = read("https://Cloud.Example.com/").unwrap();
        assert_eq!(
            (cloud.host.as_str(), cloud.port),
            ("cloud.example.com", 443)
        );
        assert_eq!(
            (cloud.authority.to_str().unwrap(), cloud.origin.as_str()),
            ("cloud.example.com", "https://cloud.example.com")
        );
        let local = read("http://[::1]:8000").unwrap();
        assert_eq!(
            (local.host.as_str(), local.port, local.origin.as_str()),
            ("::1", 8000, "http://[::1]:8000")
        );
        assert_eq!(
            read("https://cloud.example.com:443").unwrap().authority,
            "cloud.example.com"
        );
    }

    #[test]
    fn invalid_endpoints_get_a_suggestion() {
        for (text, expected) in [
            (
                "https://cloud.example.com/api",
                r#"write "https://cloud.example.com""#,
            ),
            (
                "https://cloud.example.com?x=1",
                r#"write "https://cloud.example.com""#,
            ),
            (
                "https://cloud.example.com/#x",
                r#"write "https://cloud.example.com""#,
            ),
            (
                "https://me:pw@cloud.example.com",
                r#"write "https://cloud.example.com""#,
            ),
            ("cloud.example.com", r#"write "https://cloud.example.com""#),
            (
                "cloud.example.com:8443",
                r#"write "https://cloud.example.com:8443""#,
            ),
            (
                "ftp://cloud.example.com",
                r#"write an address like "https://cloud.example.com""#,
            ),
            (
                "https://",
                r#"write an address like "https://cloud.example.com""#,
            ),
            (
                "https://cloud.example.com:0",
                r#"write an address like "https://cloud.example.com""#,
            ),
            (
                "https://cloud.example.com:99999",
                r#"write an address like "https://cloud.example.com""#,
            ),
        ] {
            assert_eq!(hint(endpoint(&words(text))), expected, "{text}");
        }
    }

    #[test]
    fn hosts_and_origins() {
        assert_eq!(
            host_name(&words("Files.Example.COM")),
            Ok("files.example.com".to_owned())
        );
        assert_eq!(host_name(&words("::1")), Ok("[::1]".to_owned()));
        assert_eq!(host_name(&words("[::1]")), Ok("[::1]".to_owned()));
        assert_eq!(
            hint(host_name(&words("files.example.com:80"))),
            r#"write "files.example.com""#
        );
        assert!(served_host(&words("192.0.2.1")).is_ok());
        assert!(served_host(&words("0.0.0.0")).is_err() && served_host(&words("::")).is_err());
        for text in [
            "*.example.com",
            "http://example.com",
            "a b",
            "a/b",
            "",
            "a:",
        ] {
            assert!(host_name(&words(text)).is_err(), "{text}");
        }
        assert_eq!(
            host_header(&words("files.example.com:8443")),
            Ok(HeaderValue::from_static("files.example.com:8443"))
        );
        assert_eq!(
            web_origin(&words("https://App.example.com:443")),
            Ok("https://app.example.com".to_owned())
        );
        assert_eq!(
            web_origin(&words("app://Local")),
            Ok("app://local".to_owned())
        );
        for text in [
            "null",
            "app://",
            "app://x/y",
            "https://app.example.com/x",
            "://x",
        ] {
            assert!(web_origin(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_and_statuses() {
        assert!(url_path(&words("/api/refreshToken.do")).is_ok());
        for text in ["api", "/a?b", "/a#b", "/a b", "/ä"] {
            assert!(url_path(&words(text)).is_err(), "{text}");
        }
        assert_eq!(
            error_status(&Value::Integer(401)),
            Ok(StatusCode::UNAUTHORIZED)
        );
        assert!(error_status(&Value::Integer(200)).is_err());
        assert_eq!(
            server_error_status(&Value::Integer(503)),
            Ok(StatusCode::SERVICE_UNAVAILABLE)
        );
        for number in [0, 401, 499, 600, -503] {
            assert_eq!(
                hint(server_error_status(&Value::Integer(number))),
                "write a number from 500 to 599",
                "{number}"
            );
        }
        assert_eq!(statuses(&Value::Integer(204)), Ok(204..=204));
        assert_eq!(statuses(&words("2xx")), Ok(200..=299));
        assert_eq!(statuses(&words("5XX")), Ok(500..=599));
        for text in [
            "1xx", "6xx", "xxx", "2x", "2xxx", "200", "", "200-299", "２xx",
        ] {
            assert!(statuses(&words(text)).is_err(), "{text}");
        }
        for number in [0, 99, 199, 600, 65_736, -200, i64::MIN] {
            assert!(statuses(&Value::Integer(number)).is_err(), "{number}");
        }
        assert!(server_name(&words("cloud.example.com")).is_ok());
        assert!(server_name(&words("https://cloud.example.com")).is_err());
    }

    #[test]
    fn prefixes() {
        for (text, expected) in [
            ("/_document", "/_document"),
            ("/a/b.c/", "/a/b.c"),
            ("/", ""),
        ] {
            assert_eq!(prefix(&words(text)), Ok(expected.to_owned()), "{text}");
        }
        for text in [
            "", "a", "a/b", "//", "/a//b", "/a?b", "/a#b", "/a/../b", "/./a", "/..", "/a%2fb",
            "/a b", "/ä", "/a\\b",
        ] {
            assert!(prefix(&words(text)).is_err(), "{text}");
        }
    }
}
