//! Maps the attributes of `Set-Cookie` (RFC 6265 §4.1.2), so that clients send the cookies of the
//! upstream to the proxy.

use http::{HeaderMap, HeaderValue, header};

use super::{UrlMap, domain_matches};

/// What maps the cookies of one response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CookieMap<'a> {
    /// The host of the endpoint that sent the response.
    pub(crate) upstream_host: &'a str,
    /// The origins of `[[rewrite]]`.
    pub(crate) urls: &'a UrlMap,
    /// The path prefix of the route. It begins with `/` and does not end with one; `""` is the
    /// root.
    pub(crate) prefix: &'a str,
    /// Whether the client's connection is encrypted.
    pub(crate) is_secure: bool,
}

/// What becomes of an attribute.
enum Attribute {
    Kept,
    Removed,
    /// The path gets the prefix, at this offset in the attribute, and without its own last slash if
    /// it is the root.
    Path {
        at: usize,
        is_root: bool,
    },
}

impl CookieMap<'_> {
    /// Maps all cookies of a response.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        // `entry` makes room for another field.
        if headers.contains_key(header::SET_COOKIE)
            && let header::Entry::Occupied(mut cookies) = headers.entry(header::SET_COOKIE)
        {
            for cookie in cookies.iter_mut() {
                if let Some(mapped) = self.map(cookie.as_bytes()) {
                    *cookie = mapped;
                }
            }
        }
    }

    /// The cookie as the client gets it; `None` if nothing changes.
    fn map(&self, cookie: &[u8]) -> Option<HeaderValue> {
        let mut parts = cookie.split(|byte| *byte == b';');
        let pair = parts.next()?;
        if parts
            .clone()
            .all(|part| matches!(self.attribute(part), Attribute::Kept))
        {
            return None;
        }
        let mut out = pair.to_vec();
        for part in parts {
            match self.attribute(part) {
                Attribute::Removed => {}
                Attribute::Kept => {
                    out.push(b';');
                    out.extend_from_slice(part);
                }
                Attribute::Path { at, is_root } => {
                    out.push(b';');
                    out.extend_from_slice(&part[..at]);
                    out.extend_from_slice(self.prefix.as_bytes());
                    out.extend_from_slice(&part[at + usize::from(is_root)..]);
                }
            }
        }
        HeaderValue::from_bytes(&out).ok()
    }

    fn attribute(&self, part: &[u8]) -> Attribute {
        let equals = part.iter().position(|byte| *byte == b'=');
        let name = part[..equals.unwrap_or(part.len())].trim_ascii();
        let value = equals.map_or(&b""[..], |at| part[at + 1..].trim_ascii());
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        let is_removed = if is("domain") {
            // The client knows the proxy by another name, and would reject the cookie.
            std::str::from_utf8(value).is_ok_and(|domain| {
                domain_matches(self.upstream_host, domain) || self.urls.matches_domain(domain)
            })
        } else if self.is_secure {
            false
        } else {
            // Over plain HTTP, clients do not return a cookie with `Secure`, and reject one that has
            // the others without it.
            is("secure")
                || is("partitioned")
                || is("samesite") && value.eq_ignore_ascii_case(b"none")
        };
        if is_removed {
            return Attribute::Removed;
        }
        if !is("path") || self.prefix.is_empty() {
            return Attribute::Kept;
        }
        // Another value is no path, RFC 6265 §5.2.4: the client uses that of the request, which has
        // the prefix.
        let unquoted = value.strip_prefix(b"\"").unwrap_or(value);
        if !unquoted.starts_with(b"/") {
            return Attribute::Kept;
        }
        Attribute::Path {
            at: part.trim_ascii_end().len() - unquoted.len(),
            is_root: matches!(unquoted, b"/" | b"/\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::url_map, *};

    fn mapped(prefix: &str, is_secure: bool, cookie: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.append(header::SET_COOKIE, HeaderValue::from_static("first=1"));
        headers.append(header::SET_COOKIE, cookie.parse().unwrap());
        let map = CookieMap {
            upstream_host: "cloud.example.com",
            urls: &url_map(),
            prefix,
            is_secure,
        };
        map.apply(&mut headers);
        let all: Vec<_> = headers.get_all(header::SET_COOKIE).iter().collect();
        assert_eq!((all.len(), all[0].as_bytes()), (2, &b"first=1"[..]));
        all[1].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_domain_of_mapped_hosts_is_removed() {
        for (cookie, expected) in [
            ("a=b; Domain=cloud.example.com; Path=/", "a=b; Path=/"),
            ("a=b;domain=.example.com;HttpOnly", "a=b;HttpOnly"),
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
            ("", ""),
        ] {
            assert_eq!(mapped("", false, cookie), expected);
        }
    }

    #[test]
    fn field_b9_cookies_over_plain_http_are_not_secure() {
        for (cookie, expected) in [
            ("a=b; Secure; HttpOnly", "a=b; HttpOnly"),
            ("a=b;SECURE", "a=b"),
            ("a=b; secure=true; Path=/", "a=b; Path=/"),
            ("a=b; SameSite=None; Secure; Path=/", "a=b; Path=/"),
            (
                "a=b; Path=/; Secure; samesite = NONE ;Partitioned",
                "a=b; Path=/",
            ),
            ("a=b; Secure; SameSite=Lax", "a=b; SameSite=Lax"),
            ("a=b; SameSite=Strict", "a=b; SameSite=Strict"),
            ("secure=1; Path=/", "secure=1; Path=/"),
            ("a=Secure", "a=Secure"),
            ("a=b; x=Secure; Secured", "a=b; x=Secure; Secured"),
        ] {
            assert_eq!(mapped("", false, cookie), expected);
            assert_eq!(mapped("", true, cookie), cookie);
        }
    }

    #[test]
    fn field_b9_paths_below_a_stripped_prefix_have_the_prefix() {
        for (cookie, expected) in [
            ("a=b; Path=/api", "a=b; Path=/_document/api"),
            (
                "a=b; Path=/api/; HttpOnly",
                "a=b; Path=/_document/api/; HttpOnly",
            ),
            ("a=b; Path=/", "a=b; Path=/_document"),
            (
                "a=b;PATH = /api ;Max-Age=1",
                "a=b;PATH = /_document/api ;Max-Age=1",
            ),
            (
                "a=b; Path=\"/api\"; Version=1",
                "a=b; Path=\"/_document/api\"; Version=1",
            ),
            ("a=b; Path=\"/\"", "a=b; Path=\"/_document\""),
            ("a=b; Path=", "a=b; Path="),
            ("a=b; Path", "a=b; Path"),
            ("a=b; Path=api", "a=b; Path=api"),
            ("path=/x", "path=/x"),
            (
                "a=b; Path=/a; Path=/b",
                "a=b; Path=/_document/a; Path=/_document/b",
            ),
            (
                "a=b; Secure; Path=/x; Domain=.example.com",
                "a=b; Path=/_document/x",
            ),
        ] {
            assert_eq!(mapped("/_document", false, cookie), expected);
        }
        assert_eq!(mapped("", false, "a=b; Path=/api"), "a=b; Path=/api");
    }
}
