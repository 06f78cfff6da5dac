//! Values of `[[client]]`: credentials, networks, rates.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use http::{HeaderName, header};
use ipnet::{IpNet, Ipv4Net};

use super::{Read, text, text_with_hint};
use crate::{
    config::{
        findings::{Problem, problem},
        raw::Value,
    },
    proxy::{Rate, TrustedPeer},
};

/// Headers that browsers send by themselves, also for pages of other origins. They prove nothing
/// about the client.
const SENT_BY_BROWSERS: [&str; 28] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "authorization",
    "cache-control",
    "connection",
    "content-language",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "dnt",
    "expect",
    "host",
    "if-modified-since",
    "if-none-match",
    "keep-alive",
    "origin",
    "pragma",
    "range",
    "referer",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
];

/// The name of a header that a client sends only if it is configured to.
pub(in crate::config) fn custom_header(value: &Value) -> Read<HeaderName> {
    const EXAMPLE: &str = r#"write a name of your choice, as in "x-bearer-proxy""#;
    let name: HeaderName = text_with_hint(value, EXAMPLE)?
        .parse()
        .map_err(|_| problem("is not a header name", EXAMPLE))?;
    let words = name.as_str();
    if SENT_BY_BROWSERS.contains(&words) || words.starts_with("sec-") || words.starts_with("proxy-")
    {
        return Err(problem(
            "is a header that browsers and libraries send by themselves",
            EXAMPLE,
        ));
    }
    Ok(name)
}

/// The name of the header with a client's key.
pub(in crate::config) fn key_header(value: &Value) -> Read<HeaderName> {
    match custom_header(value) {
        // With the scheme `Bearer`, which browsers do not send by themselves.
        Err(_) if matches!(value, Value::Text(text) if text.eq_ignore_ascii_case("authorization")) => {
            Ok(header::AUTHORIZATION)
        }
        read => read.map_err(|problem| Problem {
            hint: r#"write a name as in "x-api-key""#.to_owned(),
            ..problem
        }),
    }
}

/// A user name of HTTP Basic (RFC 7617 §2).
pub(in crate::config) fn user_name(value: &Value) -> Read<String> {
    let name = text(value)?;
    if name.contains(':') {
        return Err(problem(
            "contains a colon, which HTTP Basic does not allow",
            "write a name without one",
        ));
    }
    Ok(name.to_owned())
}

/// A network, as `192.0.2.0/24`, or a single address.
pub(in crate::config) fn network(value: &Value) -> Read<IpNet> {
    const EXAMPLE: &str = r#"write a network or an address, as in "192.0.2.0/24""#;
    let text = text_with_hint(value, EXAMPLE)?.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let network: IpNet = text
        .parse()
        .map_err(|_| problem("is neither a network nor an address", EXAMPLE))?;
    if network.trunc() != network {
        return Err(problem(
            "has bits set behind the prefix length",
            format!("write {:?}", network.trunc().to_string()),
        ));
    }
    Ok(canonical(network))
}

/// A peer that is believed who the client is: a network as above, or `unix:` for the peers on Unix
/// sockets, as in nginx.
pub(in crate::config) fn trusted_peer(value: &Value) -> Read<TrustedPeer> {
    match value {
        Value::Text(text) if text.trim() == "unix:" => Ok(TrustedPeer::UnixSockets),
        value => network(value).map(TrustedPeer::Network),
    }
}

/// An IPv4-mapped network counts as the IPv4 network: peers on a dual-stack socket count as their
/// IPv4 addresses too.
fn canonical(network: IpNet) -> IpNet {
    match (
        network.addr().to_canonical(),
        network.prefix_len().checked_sub(96),
    ) {
        (IpAddr::V4(address), Some(length)) if matches!(network, IpNet::V6(_)) => {
            Ipv4Net::new(address, length).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

/// `100/s`, `1000/m`, `5000/h`.
pub(in crate::config) fn rate(value: &Value) -> Read<Rate> {
    const EXAMPLE: &str = r#"write requests and s, m or h, as in "100/s" or "1000/m""#;
    const MOST: u32 = 1_000_000;
    let text = text_with_hint(value, EXAMPLE)?;
    let (requests, unit) = text
        .split_once('/')
        .ok_or_else(|| problem("is not a rate", EXAMPLE))?;
    let seconds = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(problem("is not a rate", EXAMPLE)),
    };
    match requests.trim().parse::<u32>().map(NonZeroU32::new) {
        Ok(None) => Err(problem(
            "allows no request",
            "write at least 1, or remove the client",
        )),
        Ok(Some(requests)) if requests.get() <= MOST => Ok(Rate {
            requests,
            per: Duration::from_secs(seconds),
        }),
        Ok(Some(_)) => Err(problem(
            format!("is more than {MOST}"),
            "remove the key: without it there is no limit",
        )),
        Err(_) => Err(problem("is not a rate", EXAMPLE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::tests::{hint, words};

    #[test]
    fn rates() {
        for (text, requests, seconds) in
            [("100/s", 100, 1), ("1 / m", 1, 60), ("5000/h", 5000, 3600)]
        {
            let expected = Rate {
                requests: NonZeroU32::new(requests).unwrap(),
                per: Duration::from_secs(seconds),
            };
            assert_eq!(rate(&words(text)), Ok(expected), "{text}");
        }
        for text in [
            "",
            "100",
            "100/",
            "/s",
            "0/s",
            "-1/s",
            "1.5/s",
            "100/d",
            "100/s/s",
            "1000001/s",
            "99999999999/s",
        ] {
            assert!(rate(&words(text)).is_err(), "{text}");
        }
        assert!(rate(&Value::Integer(100)).is_err());
    }

    #[test]
    fn networks() {
        for (text, expected) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:192.0.2.7/128", "192.0.2.7/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(
                network(&words(text)).map(|network| network.to_string()),
                Ok(expected.to_owned()),
                "{text}"
            );
        }
        assert_eq!(
            hint(network(&words("192.0.2.7/24"))),
            r#"write "192.0.2.0/24""#
        );
        for text in [
            "",
            "192.0.2.0/33",
            "example.com",
            "192.0.2/24",
            "192.0.2.0/",
        ] {
            assert!(network(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn headers_and_keys() {
        assert_eq!(key_header(&words("X-API-Key")).unwrap(), "x-api-key");
        assert_eq!(
            key_header(&words("Authorization")).unwrap(),
            "authorization"
        );
        for text in [
            "",
            "x api",
            "Cookie",
            "host",
            "Sec-Fetch-Site",
            "proxy-authorization",
            "x:",
        ] {
            assert!(key_header(&words(text)).is_err(), "{text}");
        }
        assert!(custom_header(&words("authorization")).is_err());
        assert!(user_name(&words("a b")).is_ok() && user_name(&words("a:b")).is_err());
    }
}
