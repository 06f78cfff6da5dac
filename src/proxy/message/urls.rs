//! Maps absolute URLs in responses to the proxy, so that clients can follow URLs of hosts that only
//! the proxy can reach.

mod cookies;
mod fields;
mod json;
mod own_urls;

use std::cell::Cell;

use http::{header, response};

pub use self::own_urls::OwnUrls;
pub(crate) use self::{
    cookies::CookieMap,
    fields::{FieldMap, PublicUrl},
    json::JsonRewriter,
    own_urls::{Destination, UpstreamOrigin},
};
use crate::{base::host, proxy::message::json_body};

/// An origin whose absolute URLs in responses are mapped to a path of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// `scheme://host[:port]`, in lower case, without the scheme's default port.
    pub from: String,
    /// The path prefix of the route that leads to the origin. It begins with `/` and does not end
    /// with one; `""` is the root.
    pub to: String,
}

/// The origins that are mapped to the proxy.
///
/// An origin that differs from a mapped one by its scheme alone is the same server: it is mapped as
/// well, and reported once.
#[derive(Debug, Default)]
pub struct UrlMap {
    /// The configured origins first.
    mappings: Vec<Mapping>,
    /// The position of a mapping that has to be reported.
    unreported: Cell<Option<usize>>,
}

/// One spelling of an origin.
#[derive(Debug, Clone)]
struct Mapping {
    /// The origin in lower case, with or without the scheme's default port.
    from: String,
    /// The path prefix that replaces it.
    to: String,
    /// The configured origin, if it has the other scheme.
    other_scheme: Option<OtherScheme>,
}

#[derive(Debug, Clone)]
struct OtherScheme {
    configured: String,
    is_reported: Cell<bool>,
}

/// Whether URLs in a response's body are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyRewrite {
    /// No: the body is not JSON, or not complete.
    None,
    /// No: the JSON is compressed.
    Encoded,
    /// Yes.
    Rewritten,
}

impl UrlMap {
    pub(crate) fn new(rewrites: &[Rewrite]) -> Self {
        let mut mappings = Vec::new();
        for Rewrite { from, to } in rewrites {
            for from in spellings(from) {
                mappings.push(Mapping {
                    from,
                    to: to.clone(),
                    other_scheme: None,
                });
            }
        }
        for Rewrite { from, to } in rewrites {
            let other = match from.split_once("://") {
                Some(("http", authority)) => format!("https://{authority}"),
                Some((_, authority)) => format!("http://{authority}"),
                None => continue,
            };
            for spelling in spellings(&other) {
                mappings.push(Mapping {
                    from: spelling,
                    to: to.clone(),
                    other_scheme: Some(OtherScheme {
                        configured: from.clone(),
                        is_reported: Cell::new(false),
                    }),
                });
            }
        }
        Self {
            mappings,
            unreported: Cell::new(None),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// Maps an absolute URL to the proxy. `public_origin` is the proxy's origin as the client sees
    /// it, `scheme://host`, or empty for a URL without an origin.
    ///
    /// `None` if the URL's origin is not mapped.
    pub(crate) fn map(&self, url: &[u8], public_origin: &[u8]) -> Option<Vec<u8>> {
        let mut mappings = self.mappings.iter().enumerate();
        mappings.find_map(|(position, mapping)| {
            let (origin, rest) = url.split_at_checked(mapping.from.len())?;
            let is_origin = origin.eq_ignore_ascii_case(mapping.from.as_bytes())
                && ends_origin(rest.first().copied());
            is_origin.then(|| {
                self.mapped_by(position);
                join(public_origin, &mapping.to, rest)
            })
        })
    }

    /// Notes that a URL was mapped by the mapping at this position.
    fn mapped_by(&self, position: usize) {
        if let Some(other) = &self.mappings[position].other_scheme
            && !other.is_reported.replace(true)
        {
            self.unreported.set(Some(position));
        }
    }

    /// An origin that was found since the last call for the first time and differs from a configured
    /// one by its scheme alone, and the configured one.
    pub(crate) fn take_other_scheme(&self) -> Option<(&str, &str)> {
        let mapping = &self.mappings[self.unreported.take()?];
        let other = mapping.other_scheme.as_ref()?;
        Some((&mapping.from, &other.configured))
    }

    /// The origin that a path of the proxy leads to, and the prefix that leads there: the longest
    /// one, and the first of equal ones.
    fn leads_to(&self, path: &[u8]) -> Option<(&str, &str)> {
        let leading = self
            .mappings
            .iter()
            .filter(|mapping| own_urls::below(path, &mapping.to).is_some());
        leading
            .reduce(|longest, other| {
                if other.to.len() > longest.to.len() {
                    other
                } else {
                    longest
                }
            })
            .map(|mapping| (mapping.from.as_str(), mapping.to.as_str()))
    }

    /// Whether the host of a mapped origin domain-matches (RFC 6265 §5.1.3) a cookie's `Domain`.
    fn matches_domain(&self, domain: &str) -> bool {
        self.mappings.iter().any(|mapping| {
            let host = host::split(authority_of(&mapping.from)).map_or("", |(host, _)| host);
            domain_matches(host, domain)
        })
    }

    /// Decides whether the body of a response is rewritten, and removes fields that would not fit
    /// the rewritten body.
    pub(crate) fn prepare_body(&self, head: &mut response::Parts, is_json: bool) -> BodyRewrite {
        if self.is_empty() || !is_json {
            return BodyRewrite::None;
        }
        if json_body::is_encoded(&head.headers) {
            return BodyRewrite::Encoded;
        }
        for name in [header::ETAG, header::CONTENT_LENGTH, header::ACCEPT_RANGES] {
            head.headers.remove(name);
        }
        for name in ["content-md5", "digest", "content-digest", "repr-digest"] {
            head.headers.remove(name);
        }
        BodyRewrite::Rewritten
    }
}

/// The spellings of an origin: with and without the scheme's default port.
fn spellings(origin: &str) -> impl Iterator<Item = String> {
    let default_port = if origin.starts_with("https://") {
        ":443"
    } else {
        ":80"
    };
    let port = host::split(authority_of(origin)).and_then(|(_, port)| port);
    let other = match origin.strip_suffix(default_port) {
        Some(without) => Some(without.to_owned()),
        None if port.is_none() => Some(format!("{origin}{default_port}")),
        None => None,
    };
    std::iter::once(origin.to_owned()).chain(other)
}

/// The `host[:port]` of an origin.
fn authority_of(origin: &str) -> &str {
    origin
        .split_once("://")
        .map_or("", |(_, authority)| authority)
}

fn join(public_origin: &[u8], to: &str, rest: &[u8]) -> Vec<u8> {
    let root: &[u8] = if public_origin.is_empty() && to.is_empty() && !rest.starts_with(b"/") {
        b"/"
    } else {
        b""
    };
    [public_origin, to.as_bytes(), root, rest].concat()
}

/// Whether an origin in a URL ends before this byte. Before `@` it would be user information,
/// before more letters or digits another host or port.
fn ends_origin(next: Option<u8>) -> bool {
    matches!(next, None | Some(b'/' | b'?' | b'#'))
}

/// Whether a host domain-matches a cookie's `Domain`, RFC 6265 §5.1.3.
fn domain_matches(host: &str, domain: &str) -> bool {
    let domain = domain.trim_start_matches('.');
    let is_subdomain =
        || host.len() > domain.len() && host.as_bytes()[host.len() - domain.len() - 1] == b'.';
    let tail = host
        .len()
        .checked_sub(domain.len())
        .and_then(|at| host.get(at..));
    tail.is_some_and(|tail| tail.eq_ignore_ascii_case(domain))
        && (host.len() == domain.len() || is_subdomain())
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    pub(super) fn url_map() -> UrlMap {
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
    fn urls_are_mapped_if_their_whole_origin_matches() {
        let map = |url: &str, public_origin: &str| {
            let mapped = url_map().map(url.as_bytes(), public_origin.as_bytes());
            mapped.map(|mapped| String::from_utf8(mapped).expect("text"))
        };
        for (url, expected) in [
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
            ("http://document.example.com:8080/a", None),
            ("http://document.example.com.evil.example/a", None),
            ("http://document.example.com@evil.example/a", None),
            ("http://user@document.example.com/a", None),
            ("//document.example.com/a", None),
        ] {
            assert_eq!(
                map(url, "http://localhost:8080").as_deref(),
                expected,
                "{url}"
            );
        }
        assert_eq!(
            map("http://document.example.com/a", "").as_deref(),
            Some("/_document/a")
        );
        assert_eq!(
            map("https://cloud.example.com?x", "").as_deref(),
            Some("/?x")
        );
    }

    #[test]
    fn field_b16_origins_that_differ_by_their_scheme_are_mapped_and_reported_once() {
        let urls = url_map();
        let map = |url: &str| {
            let mapped = urls.map(url.as_bytes(), b"http://localhost");
            mapped.map(|mapped| String::from_utf8(mapped).expect("text"))
        };
        for (url, expected) in [
            (
                "https://document.example.com/a",
                Some("http://localhost/_document/a"),
            ),
            (
                "https://document.example.com:443/a",
                Some("http://localhost/_document/a"),
            ),
            (
                "http://share.example.com:8443/a",
                Some("http://localhost/_share/a"),
            ),
            ("http://cloud.example.com:80", Some("http://localhost")),
            ("https://document.example.com:80/a", None),
            ("http://cloud.example.com:8080/a", None),
            ("http://share.example.com/a", None),
        ] {
            assert_eq!(map(url).as_deref(), expected, "{url}");
        }
        let urls = url_map();
        let map = |url: &str| urls.map(url.as_bytes(), b"").is_some();
        assert!(map("http://document.example.com/a"));
        assert_eq!(urls.take_other_scheme(), None);
        for expected in [
            Some((
                "https://document.example.com",
                "http://document.example.com",
            )),
            None,
        ] {
            assert!(map("https://document.example.com/a"));
            assert_eq!(urls.take_other_scheme(), expected);
        }
        // What is configured comes first.
        let both = ["http://a.example", "https://a.example"];
        let both = both.map(|from| Rewrite {
            from: from.to_owned(),
            to: from
                .replace("://a.example", "")
                .replacen("http", "/http", 1),
        });
        let mapped = UrlMap::new(&both).map(b"https://a.example/x", b"");
        assert_eq!(mapped.as_deref(), Some(&b"/https/x"[..]));
    }

    #[test]
    fn only_complete_json_without_content_coding_is_rewritten() {
        type Case<'a> = (u16, bool, &'a [(&'a str, &'a str)], BodyRewrite);
        let table: &[Case<'_>] = &[
            (200, true, &[], BodyRewrite::Rewritten),
            (404, true, &[], BodyRewrite::Rewritten),
            (
                200,
                true,
                &[("content-encoding", "identity")],
                BodyRewrite::Rewritten,
            ),
            (
                200,
                true,
                &[("content-encoding", "gzip")],
                BodyRewrite::Encoded,
            ),
            (200, false, &[], BodyRewrite::None),
        ];
        for (status, is_json, headers, expected) in table {
            let mut response = Response::builder()
                .status(*status)
                .header("etag", "x")
                .header("content-length", "5");
            for (name, value) in *headers {
                response = response.header(*name, *value);
            }
            let (mut head, ()) = response.body(()).expect("a response").into_parts();
            let rewrite = |urls: &UrlMap, head: &mut _| urls.prepare_body(head, *is_json);
            assert_eq!(rewrite(&url_map(), &mut head), *expected, "{headers:?}");
            let is_described =
                head.headers.contains_key("etag") && head.headers.contains_key("content-length");
            assert_eq!(is_described, *expected != BodyRewrite::Rewritten);
            let none = rewrite(&UrlMap::default(), &mut head);
            assert_eq!(none, BodyRewrite::None);
        }
    }
}
