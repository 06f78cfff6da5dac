//! Maps the proxy's own URLs in request fields to the upstream, which has another name.
//!
//! A WebDAV server compares the URLs in `If` and `Destination` with its own: it refuses a request
//! that names the proxy there, or ignores the lock.

use std::collections::BTreeSet;

use http::{HeaderName, HeaderValue, Method, Uri, request, uri::Scheme};

use super::UrlMap;
use crate::{base::host, proxy::error::Error};

const DESTINATION: HeaderName = HeaderName::from_static("destination");

/// The proxy's URLs in the requests of one route, and where they lead.
///
/// They are recognised by the request's `Host` or by `names`, without regard to the scheme and the
/// default port: behind a TLS load balancer, the client uses `https` URLs.
#[derive(Debug, Clone, Copy)]
pub struct OwnUrls<'a> {
    /// The request's `Host`.
    pub host: Option<&'a HeaderValue>,
    /// Further names of the proxy, without a port.
    pub names: &'a BTreeSet<String>,
    /// The path prefix that the route removes. It begins with `/`; `""` if it removes none.
    pub prefix: &'a str,
    /// The origins to which paths of the proxy lead.
    pub origins: &'a UrlMap,
}

/// The upstream's own name: the effective origin (RFC 9110 §7.1) of the request that it receives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpstreamOrigin<'a> {
    /// The scheme of the endpoint.
    pub(crate) scheme: &'a Scheme,
    /// The `Host` that is sent. `None` if it is the client's: the upstream then has the name that
    /// the client uses.
    pub(crate) host: Option<&'a HeaderValue>,
}

/// The `Destination` of a WebDAV COPY or MOVE, RFC 4918 §10.3.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The path that the client wrote.
    pub(crate) written: Uri,
    /// The path that is sent.
    pub(crate) sent: Uri,
}

/// Where a URL of the proxy leads.
struct Target<'a> {
    origin: Origin<'a>,
    /// `/` if the prefix was removed and no slash follows it.
    root: &'static [u8],
    /// The path and what follows it.
    rest: &'a [u8],
}

enum Origin<'a> {
    /// The upstream that the request is sent to. The value is the origin as written.
    Upstream(&'a [u8]),
    Other(&'a str),
    /// The URL is a path.
    None,
}

impl OwnUrls<'_> {
    /// The value of a request field in which the proxy's URLs are mapped. `None` if it contains
    /// none.
    pub(crate) fn map_field(
        &self,
        name: &HeaderName,
        value: &HeaderValue,
        upstream: UpstreamOrigin<'_>,
    ) -> Option<HeaderValue> {
        let mapped = match name.as_str() {
            "destination" | "origin" | "referer" => self.map(value.as_bytes(), upstream),
            "if" => self.map_if(value.as_bytes(), upstream),
            _ => None,
        };
        HeaderValue::from_bytes(&mapped?).ok()
    }

    /// The `Destination` of a request of a method that [has one](Destination::is_part_of).
    ///
    /// # Errors
    /// When servers could interpret it differently.
    pub(crate) fn destination(&self, head: &request::Parts) -> Result<Option<Destination>, Error> {
        let mut all = head.headers.get_all(DESTINATION).iter();
        let Some(value) = all.next() else {
            return Ok(None);
        };
        let parsed = |url: &[u8]| Uri::try_from(url).ok();
        let is_clear = |url: &Uri| {
            (url.scheme().is_some() || url.authority().is_none()) && !url.path().starts_with("//")
        };
        let written = parsed(value.as_bytes()).filter(is_clear);
        let sent = match self.target(value.as_bytes()) {
            Some(target) => parsed(&target.path()).filter(is_clear),
            None => written.clone(),
        };
        match written.zip(sent) {
            Some((written, sent)) if all.next().is_none() => {
                Ok(Some(Destination { written, sent }))
            }
            _ => Err(Error::BadRequest("Destination is not a single URL or path")),
        }
    }

    fn map(&self, url: &[u8], upstream: UpstreamOrigin<'_>) -> Option<Vec<u8>> {
        let Target { origin, root, rest } = self.target(url)?;
        let mapped = match (origin, upstream.host) {
            (Origin::Upstream(_), Some(host)) => {
                let scheme = upstream.scheme.as_str().as_bytes();
                [scheme, b"://", host.as_bytes(), root, rest].concat()
            }
            (Origin::Upstream(written), None) => [written, root, rest].concat(),
            (Origin::Other(origin), _) => [origin.as_bytes(), root, rest].concat(),
            (Origin::None, _) => [root, rest].concat(),
        };
        Some(mapped)
    }

    /// Maps the resource tags of `If` (RFC 4918 §10.4): URLs in angle brackets outside the lists of
    /// conditions. State tokens, which look the same within a list, stay as the server wrote them.
    fn map_if(&self, value: &[u8], upstream: UpstreamOrigin<'_>) -> Option<Vec<u8>> {
        let mut out: Option<Vec<u8>> = None;
        let (mut copied, mut at, mut is_in_list) = (0, 0, false);
        while let Some(&byte) = value.get(at) {
            // The end of a URL or an entity tag; neither can contain its own delimiter.
            let end = match byte {
                b'<' => Some(b'>'),
                b'"' => Some(b'"'),
                _ => None,
            };
            let Some(end) = end else {
                is_in_list = byte == b'(' || is_in_list && byte != b')';
                at += 1;
                continue;
            };
            let length = value[at + 1..].iter().position(|byte| *byte == end)?;
            let url = at + 1..at + 1 + length;
            at = url.end + 1;
            if byte == b'<'
                && !is_in_list
                && let Some(mapped) = self.map(&value[url.clone()], upstream)
            {
                let out = out.get_or_insert_with(|| Vec::with_capacity(value.len() + 64));
                out.extend_from_slice(&value[copied..url.start]);
                out.extend_from_slice(&mapped);
                copied = url.end;
            }
        }
        out.map(|mut out| {
            out.extend_from_slice(&value[copied..]);
            out
        })
    }

    /// Where a URL leads if it is one of the proxy. A path counts only if a prefix is removed.
    fn target<'a>(&'a self, url: &'a [u8]) -> Option<Target<'a>> {
        if url.starts_with(b"/") && !url.starts_with(b"//") {
            let rest = below(url, self.prefix).filter(|_| !self.prefix.is_empty())?;
            return Some(Target::without_prefix(Origin::None, rest));
        }
        let (origin, authority, rest) = split_origin(url)?;
        if !self.names_proxy(authority) {
            return None;
        }
        let upstream = Origin::Upstream(origin);
        // An origin alone, as in `Origin`.
        if rest.is_empty() {
            return Some(Target::unchanged(upstream, rest));
        }
        let own = below(rest, self.prefix);
        let other = self.origins.leads_to(rest);
        let other = other.filter(|(_, prefix)| own.is_none() || prefix.len() > self.prefix.len());
        let (origin, prefix, rest) = match other {
            Some((other, prefix)) => (Origin::Other(other), prefix, below(rest, prefix)?),
            None => (upstream, self.prefix, own?),
        };
        Some(if prefix.is_empty() {
            Target::unchanged(origin, rest)
        } else {
            Target::without_prefix(origin, rest)
        })
    }

    fn names_proxy(&self, authority: &[u8]) -> bool {
        let Some(host) = self.host.map(HeaderValue::as_bytes) else {
            return false;
        };
        if host::is_same(authority, host) {
            return true;
        }
        let ((name, port), (host, host_port)) =
            (host::split_port(authority), host::split_port(host));
        let is_named = || {
            let mut names = self.names.iter();
            names.any(|own| own.as_bytes().eq_ignore_ascii_case(name))
        };
        // Apps also mix the names of this machine: `localhost`, `127.0.0.1`.
        port == host_port && is_local(name) && is_local(host)
            || (port.is_empty() || port == host_port) && is_named()
    }
}

impl Destination {
    pub(crate) fn is_part_of(method: &Method) -> bool {
        matches!(method.as_str(), "COPY" | "MOVE")
    }
}

impl<'a> Target<'a> {
    fn unchanged(origin: Origin<'a>, rest: &'a [u8]) -> Self {
        Self {
            origin,
            root: b"",
            rest,
        }
    }

    fn without_prefix(origin: Origin<'a>, rest: &'a [u8]) -> Self {
        let root: &[u8] = if rest.starts_with(b"/") { b"" } else { b"/" };
        Self { origin, root, rest }
    }

    fn path(&self) -> Vec<u8> {
        let path = [self.root, self.rest].concat();
        if path.is_empty() { b"/".to_vec() } else { path }
    }
}

fn is_local(host: &[u8]) -> bool {
    std::str::from_utf8(host).is_ok_and(|host| host::is_local(&host.to_ascii_lowercase()))
}

/// Splits an http URL into its origin, the authority in it without user information, and the rest.
/// The scheme may be missing (RFC 3986 §4.2).
fn split_origin(url: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let is_end = |byte: &u8| matches!(byte, b'/' | b'?' | b'#');
    let after_scheme = |scheme: &[u8]| {
        let (written, rest) = url.split_at_checked(scheme.len())?;
        written.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let behind = [b"http://".as_slice(), b"https://", b"//"]
        .into_iter()
        .find_map(after_scheme)?;
    let length = behind.iter().position(is_end).unwrap_or(behind.len());
    let (authority, rest) = behind.split_at(length);
    let host = authority.rsplit(|byte| *byte == b'@').next();
    let origin = &url[..url.len() - rest.len()];
    host.map(|host| (origin, host, rest))
}

/// The rest of a path at or below `prefix`, at a segment boundary.
pub(super) fn below<'a>(path: &'a [u8], prefix: &str) -> Option<&'a [u8]> {
    path.strip_prefix(prefix.as_bytes())
        .filter(|rest| prefix.is_empty() || matches!(rest.first(), None | Some(b'/' | b'?' | b'#')))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::{super::Rewrite, *};

    fn origins() -> UrlMap {
        let lead = |from: &str, to: &str| Rewrite {
            from: from.to_owned(),
            to: to.to_owned(),
        };
        UrlMap::new(&[
            lead("http://document.example.com:8080", "/_document"),
            lead("https://cloud.example.com", ""),
        ])
    }

    /// The value of a field as it is sent, on the route with this prefix.
    fn sent(prefix: &str, host: &str, name: &str, value: &str) -> String {
        let (host, value) = (HeaderValue::from_str(host), HeaderValue::from_str(value));
        let (host, value) = (host.unwrap(), value.unwrap());
        let own = OwnUrls {
            host: Some(&host),
            names: &["files.example.com".to_owned()].into(),
            prefix,
            origins: &origins(),
        };
        let authority = match prefix {
            "" => HeaderValue::from_static("cloud.example.com"),
            _ => HeaderValue::from_static("document.example.com:8080"),
        };
        let upstream = UpstreamOrigin {
            scheme: &Scheme::HTTPS,
            host: Some(&authority),
        };
        let mapped = own.map_field(
            &HeaderName::from_bytes(name.as_bytes()).unwrap(),
            &value,
            upstream,
        );
        mapped.unwrap_or(value).to_str().unwrap().to_owned()
    }

    #[test]
    fn field_b5_urls_of_the_proxy_are_recognised_by_its_names() {
        let own = "https://cloud.example.com/f";
        for (host, url, expected) in [
            ("localhost:8080", "http://localhost:8080/f", own),
            ("localhost:8080", "HTTP://LocalHost:8080/f", own),
            ("localhost:8080", "https://localhost:8080/f", own),
            ("localhost:8080", "//localhost:8080/f", own),
            ("localhost:8080", "http://user:pw@localhost:8080/f", own),
            ("localhost", "https://localhost/f", own),
            ("localhost", "https://localhost:443/f", own),
            ("localhost:80", "http://localhost/f", own),
            ("localhost", "http://localhost:80/f", own),
            ("[::1]:8080", "http://[::1]:8080/f", own),
            ("[::1]", "https://[::1]:443/f", own),
            (
                "localhost:8080",
                "http://localhost:8080/f?q#x",
                "https://cloud.example.com/f?q#x",
            ),
            (
                "localhost:8080",
                "http://localhost:8080",
                "https://cloud.example.com",
            ),
            // Other names of this machine.
            ("localhost:8080", "http://127.0.0.1:8080/f", own),
            ("127.0.0.1:8080", "http://LOCALHOST:8080/f", own),
            ("[::1]:8080", "http://localhost:8080/f", own),
            // A load balancer that replaces `Host`.
            ("10.0.0.1:8080", "https://Files.Example.com/f", own),
            ("10.0.0.1:8080", "http://files.example.com:8080/f", own),
        ] {
            assert_eq!(sent("", host, "destination", url), expected, "{host} {url}");
        }
        for url in [
            "http://localhost/f",
            "http://127.0.0.1:8081/f",
            "http://192.0.2.1:8080/f",
            "http://localhost:80800/f",
            "http://localhost:8080.evil.example/f",
            "http://localhost:8080@evil.example/f",
            "http://files.example.com:81/f",
            "http://evil.example/http://localhost:8080/f",
            "ftp://localhost:8080/f",
            "localhost:8080/f",
            "/f",
            "Rome, in words",
            "http://",
            "http:",
            "",
        ] {
            assert_eq!(sent("", "localhost:8080", "destination", url), url);
        }
    }

    #[test]
    fn field_b5_paths_lead_where_their_route_leads() {
        let (cloud, document) = (
            "https://cloud.example.com",
            "https://document.example.com:8080",
        );
        for (prefix, url, expected) in [
            ("", "http://localhost/f", format!("{cloud}/f")),
            (
                "",
                "http://localhost/_document/f",
                "http://document.example.com:8080/f".into(),
            ),
            (
                "",
                "http://localhost/_documents",
                format!("{cloud}/_documents"),
            ),
            ("", "/_document/f", "/_document/f".into()),
            (
                "/_document",
                "http://localhost/_document/f",
                format!("{document}/f"),
            ),
            (
                "/_document",
                "http://localhost/_document?q",
                format!("{document}/?q"),
            ),
            (
                "/_document",
                "http://localhost/_document",
                format!("{document}/"),
            ),
            ("/_document", "/_document/f", "/f".into()),
            ("/_document", "/_document", "/".into()),
            ("/_document", "/f", "/f".into()),
            ("/_document", "http://localhost/f", format!("{cloud}/f")),
            ("/_document", "http://localhost", document.into()),
        ] {
            assert_eq!(
                sent(prefix, "localhost", "referer", url),
                expected,
                "{prefix} {url}"
            );
        }
    }

    #[test]
    fn field_b5_tagged_lists_of_if_are_mapped_and_state_tokens_are_not() {
        for (value, expected) in [
            (
                "<http://localhost/f> (<opaquelocktoken:1>)",
                "<https://cloud.example.com/f> (<opaquelocktoken:1>)",
            ),
            (
                "<http://localhost/a> (<urn:1> [W/\"e)<\"]) (Not <DAV:no-lock>) <https://localhost/b>([\"x\"])",
                "<https://cloud.example.com/a> (<urn:1> [W/\"e)<\"]) (Not <DAV:no-lock>) <https://cloud.example.com/b>([\"x\"])",
            ),
            ("(<http://localhost/lock/1>)", "(<http://localhost/lock/1>)"),
            (
                "(<urn:1>) (<http://localhost/lock>)",
                "(<urn:1>) (<http://localhost/lock>)",
            ),
            (
                "<http://other.example/f> (<urn:1>)",
                "<http://other.example/f> (<urn:1>)",
            ),
            ("</f> (<urn:1>)", "</f> (<urn:1>)"),
            ("<http://localhost/f", "<http://localhost/f"),
            ("\"http://localhost/f", "\"http://localhost/f"),
            ("> <http://localhost/f>", "> <https://cloud.example.com/f>"),
            ("", ""),
        ] {
            assert_eq!(sent("", "localhost", "if", value), expected);
        }
        let tagged = "</_document/f> (<urn:1>) <http://localhost/_document/g> (<urn:2>)";
        let expected = "</f> (<urn:1>) <https://document.example.com:8080/g> (<urn:2>)";
        assert_eq!(sent("/_document", "localhost", "if", tagged), expected);
    }

    #[test]
    fn other_fields_are_sent_unchanged() {
        for name in ["x-url", "if-match", "host", "cookie"] {
            let url = "http://localhost/f";
            assert_eq!(sent("", "localhost", name, url), url);
        }
    }

    #[test]
    fn an_upstream_with_the_clients_host_has_the_origin_that_the_client_writes() {
        let host = HeaderValue::from_static("localhost");
        let own = OwnUrls {
            host: Some(&host),
            names: &BTreeSet::new(),
            prefix: "/dav",
            origins: &UrlMap::default(),
        };
        let upstream = UpstreamOrigin {
            scheme: &Scheme::HTTPS,
            host: None,
        };
        let mapped = own.map(b"http://localhost/dav/f", upstream);
        assert_eq!(mapped.as_deref(), Some(&b"http://localhost/f"[..]));
    }

    #[test]
    fn field_b5_the_destination_is_checked_as_it_is_sent() {
        let destination = |prefix: &str, values: &[&str]| {
            let mut request = Request::builder().method("MOVE").uri("/dav/a");
            for value in values {
                request = request.header(DESTINATION, *value);
            }
            let (head, ()) = request.body(()).unwrap().into_parts();
            let own = OwnUrls {
                host: Some(&HeaderValue::from_static("localhost:8080")),
                names: &BTreeSet::new(),
                prefix,
                origins: &UrlMap::default(),
            };
            let found = own.destination(&head).ok()?;
            found.map(|found| {
                (
                    found.written.path().to_owned(),
                    found.sent.path().to_owned(),
                )
            })
        };
        let both = |written: &str, sent: &str| Some((written.to_owned(), sent.to_owned()));
        for (prefix, value, expected) in [
            ("", "http://localhost:8080/dav/b", both("/dav/b", "/dav/b")),
            (
                "/dav",
                "https://localhost:8080/dav/b?q",
                both("/dav/b", "/b"),
            ),
            ("/dav", "/dav/b", both("/dav/b", "/b")),
            ("/dav", "http://localhost:8080/dav", both("/dav", "/")),
            // Another server's path is sent as it is written.
            (
                "/dav",
                "http://other.example/dav/b",
                both("/dav/b", "/dav/b"),
            ),
            ("/dav", "http://localhost:8080/dav//evil/b", None),
            ("", "//localhost:8080/b", None),
            ("", "b", None),
        ] {
            assert_eq!(destination(prefix, &[value]), expected, "{prefix} {value}");
        }
        assert_eq!(destination("", &["/b", "/c"]), None);
        assert_eq!(destination("", &[]), None);
    }
}
