//! Maps URLs of the upstream in response fields to the proxy.

use http::{HeaderName, HeaderValue, uri::Scheme};

use super::UrlMap;

/// The URL of the proxy as the client sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublicUrl<'a> {
    /// The scheme of the listener.
    pub(crate) scheme: &'a Scheme,
    /// The request's `Host`.
    pub(crate) host: Option<&'a HeaderValue>,
    /// The path prefix of the route. It begins with `/` and does not end with one; `""` is the
    /// root.
    pub(crate) prefix: &'a str,
}

impl PublicUrl<'_> {
    /// `scheme://host`; empty without a `Host`.
    pub(crate) fn origin(&self) -> Vec<u8> {
        let scheme = self.scheme.as_str().as_bytes();
        self.host
            .map(|host| [scheme, b"://", host.as_bytes()].concat())
            .unwrap_or_default()
    }
}

/// What maps the URLs in the fields of one response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FieldMap<'a> {
    /// The scheme of the endpoint that sent the response.
    pub(crate) scheme: &'a Scheme,
    /// The origins that are mapped.
    pub(crate) origins: &'a UrlMap,
    pub(crate) public_url: PublicUrl<'a>,
}

impl FieldMap<'_> {
    /// The value of a response field in which URLs of the upstream are mapped. `None` if it contains
    /// none.
    pub(crate) fn map_field(&self, name: &HeaderName, value: &HeaderValue) -> Option<HeaderValue> {
        let value = value.as_bytes();
        let mapped = match name.as_str() {
            "location" | "content-location" => self.map(value),
            "refresh" => self.map_refresh(value),
            "link" => self.map_links(value),
            // RFC 2068 §19.6.2.5 has the URL in angle brackets; some servers send it alone.
            "uri" if value.contains(&b'<') => self.map_links(value),
            "uri" => self.map(value),
            _ => None,
        };
        HeaderValue::from_bytes(&mapped?).ok()
    }

    /// Maps a URL reference. A path gets the prefix of the route.
    fn map(&self, url: &[u8]) -> Option<Vec<u8>> {
        let PublicUrl { prefix, .. } = self.public_url;
        if !url.starts_with(b"//") {
            return if url.starts_with(b"/") {
                (!prefix.is_empty()).then(|| [prefix.as_bytes(), url].concat())
            } else {
                self.origins.map(url, &self.public_url.origin())
            };
        }
        // RFC 3986 §4.2: the scheme is that of the response's URL.
        let absolute = [self.scheme.as_str().as_bytes(), b":", url].concat();
        self.origins.map(&absolute, &self.public_url.origin())
    }

    /// Maps the URL of `Refresh`, as browsers read it (HTML standard, "shared declarative refresh
    /// steps"): `5; url=…`, also with a comma, in quotes, or without `url=`.
    fn map_refresh(&self, value: &[u8]) -> Option<Vec<u8>> {
        let is_time = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
        let mut rest = value.trim_ascii_start();
        rest = after_all(rest, is_time).trim_ascii_start();
        if let [b';' | b',', after @ ..] = rest {
            rest = after.trim_ascii_start();
        }
        if let Some((name, after)) = rest.split_at_checked(b"url".len())
            && name.eq_ignore_ascii_case(b"url")
            && let [b'=', after @ ..] = after.trim_ascii_start()
        {
            rest = after.trim_ascii_start();
        }
        let url = match rest {
            [quote @ (b'"' | b'\''), quoted @ ..] => {
                rest = quoted;
                let end = quoted.iter().position(|byte| byte == quote);
                &quoted[..end.unwrap_or(quoted.len())]
            }
            plain => plain.trim_ascii_end(),
        };
        let before = &value[..value.len() - rest.len()];
        let behind = &rest[url.len()..];
        Some([before, &self.map(url)?, behind].concat())
    }

    /// Maps the URLs of `Link` (RFC 8288 §3): those in angle brackets, and those of `anchor`.
    fn map_links(&self, value: &[u8]) -> Option<Vec<u8>> {
        let mut out: Option<Vec<u8>> = None;
        let (mut copied, mut at) = (0, 0);
        while let Some(&byte) = value.get(at) {
            let start = at + 1;
            let length = match byte {
                b'<' => value[start..].iter().position(|byte| *byte == b'>'),
                b'"' => quoted_length(&value[start..]),
                _ => {
                    at = start;
                    continue;
                }
            };
            let end = start + length?;
            at = end + 1;
            let is_url = byte == b'<' || is_anchor(&value[..start - 1]);
            if is_url && let Some(mapped) = self.map(&value[start..end]) {
                let out = out.get_or_insert_with(|| Vec::with_capacity(value.len() + 64));
                out.extend_from_slice(&value[copied..start]);
                out.extend_from_slice(&mapped);
                copied = end;
            }
        }
        out.map(|mut out| {
            out.extend_from_slice(&value[copied..]);
            out
        })
    }
}

fn after_all(value: &[u8], is_skipped: impl Fn(&u8) -> bool) -> &[u8] {
    let start = value.iter().position(|byte| !is_skipped(byte));
    &value[start.unwrap_or(value.len())..]
}

/// The length of a quoted string (RFC 9110 §5.6.4) whose opening quote is read.
fn quoted_length(value: &[u8]) -> Option<usize> {
    let mut is_escaped = false;
    value.iter().position(|byte| {
        let is_end = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_end
    })
}

/// Whether the quoted string that follows is the value of the parameter `anchor`.
fn is_anchor(before: &[u8]) -> bool {
    let name = before.trim_ascii_end().strip_suffix(b"=");
    let name = name.map(<[u8]>::trim_ascii_end);
    let name = name.and_then(|name| name.rsplit(|byte| !byte.is_ascii_alphanumeric()).next());
    name.is_some_and(|name| name.eq_ignore_ascii_case(b"anchor"))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::url_map, *};

    fn mapped(prefix: &str, name: &str, value: &str) -> String {
        let host = HeaderValue::from_static("localhost:8080");
        let map = FieldMap {
            scheme: &Scheme::HTTPS,
            origins: &url_map(),
            public_url: PublicUrl {
                scheme: &Scheme::HTTP,
                host: Some(&host),
                prefix,
            },
        };
        let value = HeaderValue::from_str(value).unwrap();
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        let mapped = map.map_field(&name, &value).unwrap_or(value);
        mapped.to_str().unwrap().to_owned()
    }

    const CLOUD: &str = "https://cloud.example.com/x";
    const OURS: &str = "http://localhost:8080/x";

    #[test]
    fn references_are_mapped() {
        for name in ["location", "content-location", "uri"] {
            for (url, expected) in [
                (
                    "https://cloud.example.com/a?b#c",
                    "http://localhost:8080/a?b#c",
                ),
                ("https://CLOUD.example.com:443/a", "http://localhost:8080/a"),
                ("https://cloud.example.com", "http://localhost:8080"),
                ("https://cloud.example.com?q", "http://localhost:8080?q"),
                ("HTTPS://cloud.example.com/a b", "http://localhost:8080/a b"),
                ("//cloud.example.com/a", "http://localhost:8080/a"),
                (
                    "http://document.example.com/a",
                    "http://localhost:8080/_document/a",
                ),
                ("//other.example.com/a", "//other.example.com/a"),
                (
                    "https://cloud.example.com:8443/a",
                    "https://cloud.example.com:8443/a",
                ),
                (
                    "https://cloud.example.com@evil.example/",
                    "https://cloud.example.com@evil.example/",
                ),
                ("https://other.example.com/a", "https://other.example.com/a"),
                ("/path", "/path"),
                ("../relative", "../relative"),
                ("", ""),
            ] {
                assert_eq!(mapped("", name, url), expected, "{name}");
            }
            assert_eq!(mapped("/_document", name, "/a"), "/_document/a");
            assert_eq!(mapped("/_document", name, "a"), "a");
        }
        assert_eq!(mapped("", "x-location", CLOUD), CLOUD);
    }

    #[test]
    fn field_b8_refresh_is_mapped() {
        for (before, behind) in [
            ("5; url=", ""),
            ("5;URL=", ""),
            ("0 ; Url = ", ""),
            ("0.5,url=", ""),
            ("5; url=\"", "\""),
            ("5; url='", "' x"),
            ("5; url='", ""),
            ("5; ", ""),
            ("5 ", ""),
            ("", ""),
        ] {
            let refresh = |url: &str| format!("{before}{url}{behind}");
            assert_eq!(mapped("", "refresh", &refresh(CLOUD)), refresh(OURS));
            let other = refresh("https://other.example/x");
            assert_eq!(mapped("", "refresh", &other), other);
            let path = mapped("/_document", "refresh", &refresh("/x"));
            assert_eq!(path, refresh("/_document/x"));
        }
        for value in ["5", "5;", "5; url=", "5; url", "url", "", ";", "x; url=/a"] {
            assert_eq!(mapped("", "refresh", value), value);
        }
    }

    #[test]
    fn field_b8_links_are_mapped() {
        for (value, expected) in [
            (
                "<https://cloud.example.com/x>; rel=next, </y>; rel=\"a, <https://cloud.example.com/z>\"",
                "<http://localhost:8080/x>; rel=next, </y>; rel=\"a, <https://cloud.example.com/z>\"",
            ),
            (
                "<https://other.example/x>; anchor=\"https://cloud.example.com/x\"; title=\"https://cloud.example.com/x\"",
                "<https://other.example/x>; anchor=\"http://localhost:8080/x\"; title=\"https://cloud.example.com/x\"",
            ),
            (
                "<x>; title=\"\\\"<\"; Anchor = \"//cloud.example.com\",<https://cloud.example.com>",
                "<x>; title=\"\\\"<\"; Anchor = \"http://localhost:8080\",<http://localhost:8080>",
            ),
            (
                "<https://cloud.example.com/x",
                "<https://cloud.example.com/x",
            ),
            (
                "\"<https://cloud.example.com/x>",
                "\"<https://cloud.example.com/x>",
            ),
            ("", ""),
        ] {
            assert_eq!(mapped("", "link", value), expected);
        }
        let links = mapped("/_document", "link", "</x>; rel=next, <y>, <?z>");
        assert_eq!(links, "</_document/x>; rel=next, <y>, <?z>");
        let uri = mapped("", "uri", "<https://cloud.example.com/x>; vary=language");
        assert_eq!(uri, "<http://localhost:8080/x>; vary=language");
    }
}
