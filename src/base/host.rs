//! Parses `host[:port]`, and tells which hosts are this machine.

use std::net::IpAddr;

/// Splits `host[:port]` (RFC 3986 §3.2.2 and §3.2.3) at the port's colon. An IPv6 address keeps its
/// brackets; neither part is checked further.
///
/// `None` if a bracket is not closed, or followed by anything but a colon.
pub fn split(authority: &str) -> Option<(&str, Option<&str>)> {
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(end);
    match rest.strip_prefix(':') {
        None if !rest.is_empty() => None,
        port => Some((host, port)),
    }
}

/// Parses `host[:port]`. An empty port counts as none (RFC 3986 §3.2.3).
///
/// `None` if [`split`] finds no host, or the port is not a number up to 65535.
pub fn parse(authority: &str) -> Option<(&str, Option<u16>)> {
    match split(authority)? {
        (host, None | Some("")) => Some((host, None)),
        // The parser of numbers also takes a sign.
        (host, Some(port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((host, Some(port.parse().ok()?)))
        }
        _ => None,
    }
}

/// Splits an authority into its host and its port, without a check of either. The port is empty if
/// there is none, or if it is the default of http or https.
pub fn split_port(authority: &[u8]) -> (&[u8], &[u8]) {
    let digits = authority
        .iter()
        .rev()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    match authority.split_at(authority.len() - digits) {
        ([host @ .., b':'], b"" | b"80" | b"443") => (host, b""),
        ([host @ .., b':'], port) => (host, port),
        _ => (authority, b""),
    }
}

/// Whether two authorities are equal, in any letter case. The default ports of http and https count
/// as none, whatever the scheme is.
pub fn is_same(a: &[u8], b: &[u8]) -> bool {
    let ((host, port), (other_host, other_port)) = (split_port(a), split_port(b));
    host.eq_ignore_ascii_case(other_host) && port == other_port
}

/// The address that a host is, if it is no name: IPv4, or IPv6 with or without brackets. An
/// IPv4-mapped one counts as the IPv4 address.
pub fn literal(host: &str) -> Option<IpAddr> {
    let address = match host.strip_prefix('[') {
        Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?),
        None => host.parse().ok()?,
    };
    Some(address.to_canonical())
}

/// A host as resolvers and sockets need it: an IPv6 address without brackets.
pub fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

/// Whether an address is a loopback one. `::ffff:127.0.0.1` is, as the IPv4 address that it stands
/// for.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Whether a name, in lower case, always resolves to loopback (RFC 6761 §6.3).
pub fn is_localhost(name: &str) -> bool {
    name.strip_suffix("localhost")
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether traffic to a host, in lower case and without a port, stays on this machine.
pub fn is_local(host: &str) -> bool {
    is_localhost(host) || literal(host).is_some_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        for (authority, expected) in [
            ("a.example", Some(("a.example", None))),
            ("a.example:80", Some(("a.example", Some(80)))),
            ("a.example:", Some(("a.example", None))),
            ("[::1]", Some(("[::1]", None))),
            ("[::1]:65535", Some(("[::1]", Some(65535)))),
            ("[::1]:", Some(("[::1]", None))),
            (":80", Some(("", Some(80)))),
            ("", Some(("", None))),
            ("[::1", None),
            ("[::1]80", None),
            ("::1", None),
            ("a:80:90", None),
            ("a:65536", None),
            ("a:+80", None),
            ("a:8o", None),
        ] {
            assert_eq!(parse(authority), expected, "{authority:?}");
        }
        assert_eq!(split("a.example:http"), Some(("a.example", Some("http"))));
    }

    #[test]
    fn authorities_are_equal_without_a_default_port() {
        for (a, b, expected) in [
            ("a.example", "A.Example", true),
            ("a.example:80", "a.example", true),
            ("a.example:443", "a.example:80", true),
            ("a.example:", "a.example", true),
            ("a.example:8080", "a.example:8080", true),
            ("a.example:8080", "a.example", false),
            ("a.example:8080", "a.example:8081", false),
            ("a.example", "b.example", false),
            ("[::1]:80", "[::1]", true),
            ("[::1]", "[::1]:8080", false),
            ("a80", "a", false),
            ("", "", true),
        ] {
            let is_same = is_same(a.as_bytes(), b.as_bytes());
            assert_eq!(is_same, expected, "{a} {b}");
        }
    }

    #[test]
    fn addresses_and_names_of_this_machine() {
        for host in [
            "localhost",
            "app.localhost",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "notlocalhost",
            "localhost.example",
            "10.0.0.1",
            "0.0.0.0",
            "::",
            "::127.0.0.1",
            "[::ffff:10.0.0.1]",
            "[127.0.0.1]",
            "127.1",
        ] {
            assert!(!is_local(host), "{host}");
        }
        assert_eq!(
            literal("[::ffff:192.0.2.1]"),
            Some(IpAddr::from([192, 0, 2, 1]))
        );
        assert_eq!(literal("[192.0.2.1]"), None);
        assert_eq!(
            [without_brackets("[::1]"), without_brackets("a.example")],
            ["::1", "a.example"]
        );
        // As a socket address has it, which was not parsed here.
        let mapped: IpAddr = "::ffff:127.9.9.9".parse().unwrap();
        assert!(mapped.is_ipv6() && is_loopback(mapped));
    }
}
