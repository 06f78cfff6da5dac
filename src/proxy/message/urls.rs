//! Absolute addresses in answers come home: an app that can reach nothing but us must be able to follow them.

mod json;

use http::{HeaderMap, HeaderValue, StatusCode, header, response};

pub(crate) use self::json::Stream;
use crate::base::host;

/// An origin whose absolute URLs in responses are mapped to a path of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// `scheme://host[:port]`, in lower case, without the scheme's default port.
    pub from: String,
    /// The path prefix of the route that leads to the origin. It begins with `/` and does not end
    /// with one; `""` is the root.
    pub to: String,
}

/// What is brought home, and to where.
#[derive(Debug, Default)]
pub(crate) struct UrlMap {
    rules: Vec<Rule>,
}

/// One way to write an origin.
#[derive(Debug, Clone)]
struct Rule {
    /// In lower case, with or without the scheme's default port.
    from: String,
    to: String,
}

/// What becomes of an answer's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// It passes as it is.
    Untouched,
    /// It may hold addresses, but is compressed: it passes as it is, and is counted.
    Encoded,
    /// The addresses in it are brought home.
    Rewritten,
}

impl UrlMap {
    pub(crate) fn new(rewrites: &[Rewrite]) -> Self {
        let mut rules = Vec::new();
        for Rewrite { from, to } in rewrites {
            rules.push(Rule {
                from: from.clone(),
                to: to.clone(),
            });
            let default = if from.starts_with("https://") {
                ":443"
            } else {
                ":80"
            };
            if host::split(authority_of(from)).is_none_or(|(_, port)| port.is_none()) {
                rules.push(Rule {
                    from: format!("{from}{default}"),
                    to: to.clone(),
                });
            }
        }
        Self { rules }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The address as the client can reach it, if it leads to a place that is brought home. `base` is how the client
    /// reaches us: `scheme://host`, or nothing.
    pub(crate) fn home(&self, address: &[u8], base: &[u8]) -> Option<Vec<u8>> {
        self.rules.iter().find_map(|rule| {
            let (origin, rest) = address.split_at_checked(rule.from.len())?;
            let is_it = origin.eq_ignore_ascii_case(rule.from.as_bytes())
                && ends_an_origin(rest.first().copied());
            is_it.then(|| at_home(base, &rule.to, rest))
        })
    }

    /// Whether a cookie's `Domain` names a place that is brought home, or one above it.
    fn covers(&self, domain: &str) -> bool {
        self.rules.iter().any(|rule| {
            let host = host::split(authority_of(&rule.from)).map_or("", |(host, _)| host);
            is_within(host, domain)
        })
    }

    /// What becomes of a body with this head, and the head that goes with it.
    pub(crate) fn treat(&self, head: &mut response::Parts) -> Treatment {
        let is_complete = !matches!(
            head.status,
            StatusCode::PARTIAL_CONTENT | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        if self.is_empty() || !is_complete || !is_json(&head.headers) {
            return Treatment::Untouched;
        }
        if is_coded(&head.headers) {
            return Treatment::Encoded;
        }
        // What described the body of the cloud's does not describe ours.
        for name in [header::ETAG, header::CONTENT_LENGTH, header::ACCEPT_RANGES] {
            head.headers.remove(name);
        }
        for name in ["content-md5", "digest", "content-digest", "repr-digest"] {
            head.headers.remove(name);
        }
        Treatment::Rewritten
    }
}

/// The `host[:port]` of an origin.
fn authority_of(origin: &str) -> &str {
    origin
        .split_once("://")
        .map_or("", |(_, authority)| authority)
}

fn at_home(base: &[u8], to: &str, rest: &[u8]) -> Vec<u8> {
    let root: &[u8] = if base.is_empty() && to.is_empty() && !rest.starts_with(b"/") {
        b"/"
    } else {
        b""
    };
    [base, to.as_bytes(), root, rest].concat()
}

/// What may stand behind an origin in an address: a user name before it, or more digits of its port, make it another one.
fn ends_an_origin(next: Option<u8>) -> bool {
    matches!(next, None | Some(b'/' | b'?' | b'#'))
}

fn is_within(host: &str, domain: &str) -> bool {
    let domain = domain.trim_start_matches('.');
    let above =
        || host.len() > domain.len() && host.as_bytes()[host.len() - domain.len() - 1] == b'.';
    let tail = host
        .len()
        .checked_sub(domain.len())
        .and_then(|at| host.get(at..));
    tail.is_some_and(|tail| tail.eq_ignore_ascii_case(domain))
        && (host.len() == domain.len() || above())
}

/// `application/json`, or another type with that syntax (RFC 6839 §3.1).
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return false;
    };
    let kind = kind
        .as_bytes()
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    let is_suffixed = kind.len() > 5 && kind[kind.len() - 5..].eq_ignore_ascii_case(b"+json");
    kind.eq_ignore_ascii_case(b"application/json") || is_suffixed
}

pub(crate) fn is_coded(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Takes the `Domain` off cookies that were meant for the upstream's host, or for one that is brought home: the client
/// knows us by another name, and would drop them.
pub(crate) fn map_cookies(headers: &mut HeaderMap, upstream_host: &str, rewrites: &UrlMap) {
    let is_foreign =
        |cookie: &HeaderValue| without_domain(cookie, upstream_host, rewrites).is_some();
    if !headers.get_all(header::SET_COOKIE).iter().any(is_foreign) {
        return;
    }
    let cookies: Vec<_> = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .map(|cookie| {
            without_domain(cookie, upstream_host, rewrites).unwrap_or_else(|| cookie.clone())
        })
        .collect();
    headers.remove(header::SET_COOKIE);
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie);
    }
}

fn without_domain(
    cookie: &HeaderValue,
    upstream_host: &str,
    rewrites: &UrlMap,
) -> Option<HeaderValue> {
    let is_domain = |part: &&[u8]| {
        let mut words = part.splitn(2, |byte| *byte == b'=');
        let is_domain = words
            .next()
            .is_some_and(|name| name.trim_ascii().eq_ignore_ascii_case(b"domain"));
        let domain = words
            .next()
            .and_then(|domain| std::str::from_utf8(domain.trim_ascii()).ok());
        is_domain
            && domain
                .is_some_and(|domain| is_within(upstream_host, domain) || rewrites.covers(domain))
    };
    let parts: Vec<&[u8]> = cookie.as_bytes().split(|byte| *byte == b';').collect();
    let (first, attributes) = parts.split_first()?;
    let kept: Vec<&[u8]> = attributes
        .iter()
        .copied()
        .filter(|part| !is_domain(part))
        .collect();
    if kept.len() == attributes.len() {
        return None;
    }
    let parts: Vec<&[u8]> = std::iter::once(*first).chain(kept).collect();
    HeaderValue::from_bytes(&parts.join(&b';')).ok()
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    pub(super) fn rewrites() -> UrlMap {
        UrlMap::new(&[
            Rewrite {
                from: "http://document.example.com".into(),
                to: "/_document".into(),
            },
            Rewrite {
                from: "https://share.example.com:8443".into(),
                to: "/_share".into(),
            },
            Rewrite {
                from: "https://cloud.example.com".into(),
                to: String::new(),
            },
        ])
    }

    #[test]
    fn addresses_come_home_at_the_boundary_of_their_origin() {
        let home = |address: &str, base: &str| {
            let home = rewrites().home(address.as_bytes(), base.as_bytes());
            home.map(|home| String::from_utf8(home).expect("text"))
        };
        for (address, expected) in [
            (
                "http://document.example.com/a?b#c",
                Some("http://localhost:8080/_document/a?b#c"),
            ),
            (
                "HTTP://Document.Example.com:80/a",
                Some("http://localhost:8080/_document/a"),
            ),
            (
                "http://document.example.com",
                Some("http://localhost:8080/_document"),
            ),
            (
                "http://document.example.com?x",
                Some("http://localhost:8080/_document?x"),
            ),
            (
                "https://share.example.com:8443/s",
                Some("http://localhost:8080/_share/s"),
            ),
            (
                "https://cloud.example.com:443/x",
                Some("http://localhost:8080/x"),
            ),
            ("https://share.example.com/s", None),
            ("https://document.example.com/a", None),
            ("http://document.example.com:8080/a", None),
            ("http://document.example.com.evil.example/a", None),
            ("http://document.example.com@evil.example/a", None),
            ("http://user@document.example.com/a", None),
            ("//document.example.com/a", None),
        ] {
            assert_eq!(
                home(address, "http://localhost:8080").as_deref(),
                expected,
                "{address}"
            );
        }
        assert_eq!(
            home("http://document.example.com/a", "").as_deref(),
            Some("/_document/a")
        );
        assert_eq!(
            home("https://cloud.example.com?x", "").as_deref(),
            Some("/?x")
        );
    }

    #[test]
    fn cookies_lose_a_domain_that_the_client_does_not_know_us_by() {
        for (cookie, expected) in [
            ("a=b; Domain=cloud.example.com; Path=/", "a=b; Path=/"),
            ("a=b;domain=.example.com;Secure", "a=b;Secure"),
            ("a=b; DOMAIN=document.example.com", "a=b"),
            (
                "a=b; Domain=other.example.org",
                "a=b; Domain=other.example.org",
            ),
            ("a=b; Domain=ud.example.com", "a=b; Domain=ud.example.com"),
            (
                "domain=cloud.example.com; Path=/",
                "domain=cloud.example.com; Path=/",
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(header::SET_COOKIE, HeaderValue::from_static("first=1"));
            headers.append(header::SET_COOKIE, cookie.parse().expect("a value"));
            map_cookies(&mut headers, "cloud.example.com", &rewrites());
            let all: Vec<_> = headers.get_all(header::SET_COOKIE).iter().collect();
            assert_eq!(all, ["first=1", expected]);
        }
    }

    #[test]
    fn only_whole_uncoded_json_is_rewritten() {
        type Case<'a> = (u16, &'a [(&'a str, &'a str)], Treatment);
        let table: &[Case<'_>] = &[
            (
                200,
                &[("content-type", "application/json")],
                Treatment::Rewritten,
            ),
            (
                404,
                &[("content-type", "Application/Problem+JSON; charset=utf-8")],
                Treatment::Rewritten,
            ),
            (
                200,
                &[
                    ("content-type", "application/json"),
                    ("content-encoding", "identity"),
                ],
                Treatment::Rewritten,
            ),
            (
                200,
                &[
                    ("content-type", "application/json"),
                    ("content-encoding", "gzip"),
                ],
                Treatment::Encoded,
            ),
            (
                206,
                &[("content-type", "application/json")],
                Treatment::Untouched,
            ),
            (
                200,
                &[("content-type", "application/jsonl")],
                Treatment::Untouched,
            ),
            (200, &[("content-type", "text/html")], Treatment::Untouched),
            (200, &[], Treatment::Untouched),
        ];
        for (status, headers, expected) in table {
            let mut response = Response::builder()
                .status(*status)
                .header("etag", "x")
                .header("content-length", "5");
            for (name, value) in *headers {
                response = response.header(*name, *value);
            }
            let (mut head, ()) = response.body(()).expect("a response").into_parts();
            assert_eq!(rewrites().treat(&mut head), *expected, "{headers:?}");
            let is_described =
                head.headers.contains_key("etag") && head.headers.contains_key("content-length");
            assert_eq!(is_described, *expected != Treatment::Rewritten);
            assert_eq!(UrlMap::default().treat(&mut head), Treatment::Untouched);
        }
    }
}
