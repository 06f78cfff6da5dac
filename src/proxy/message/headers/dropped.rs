//! The fields that are not forwarded.

use http::{HeaderMap, HeaderName, header};

use crate::{
    base::{header_map, list_field},
    proxy::message::forwarded::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO},
};

const NEVER_IN_TRAILERS: [HeaderName; 9] = [
    header::CONTENT_LENGTH,
    header::TRAILER,
    header::COOKIE,
    header::SET_COOKIE,
    header::CACHE_CONTROL,
    header::FORWARDED,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PROTO,
];

/// Drops trailers that must not be merged into the head (RFC 9110 §6.5.1), hop-by-hop fields, and
/// `stripped` fields. Some servers merge all trailers.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap, stripped: &[HeaderName]) {
    header_map::remove_where(trailers, |name| {
        is_dropped_from_requests(name, stripped) || NEVER_IN_TRAILERS.contains(name)
    });
}

/// Whether a field of a response concerns one connection alone, RFC 9110 §7.6.1.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "proxy-connection" | "keep-alive" | "te" | "transfer-encoding" | "upgrade"
    )
}

/// Whether a field is dropped from a request, under its name or with `_` for `-`: CGI and WSGI
/// servers map both characters to `_`.
pub(super) fn is_dropped_from_requests(name: &HeaderName, stripped: &[HeaderName]) -> bool {
    let name = name.as_str();
    let is_stripped = |name: &str| stripped.iter().any(|stripped| stripped == name);
    is_dropped(name)
        || is_stripped(name)
        || name.contains('_') && {
            let name = name.replace('_', "-");
            is_dropped(&name)
                || is_stripped(&name)
                || name == "content-length"
                || is_forwarding_field(&name)
        }
}

/// The forwarding fields that only the proxy may set.
fn is_forwarding_field(name: &str) -> bool {
    matches!(
        name,
        "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto"
    )
}

/// Compares text: the compiler switches on the length, which is cheaper than to compare each
/// `HeaderName`.
fn is_dropped(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "proxy-connection"
            | "keep-alive"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            // Some servers use these instead of the path and method that the rules have checked.
            | "x-original-url"
            | "x-rewrite-url"
            | "x-http-method-override"
            | "x-http-method"
            | "x-method-override"
            | "authorization"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "host"
            // The proxy handles 100-continue itself, on both sides.
            | "expect"
    )
}

/// The connection options (RFC 9110 §7.6.1): names of fields that are hop-by-hop.
pub(super) struct ConnectionOptions {
    pub(super) names: Vec<HeaderName>,
}

impl ConnectionOptions {
    /// Reads all `Connection` fields.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut names = Vec::new();
        for name in list_field::elements(headers, &header::CONNECTION) {
            // The two common options do not name fields.
            if name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"close") {
                continue;
            }
            // Content-Length is never hop-by-hop: without it the body would be framed wrongly.
            names.extend(
                HeaderName::from_bytes(name)
                    .ok()
                    .filter(|name| *name != header::CONTENT_LENGTH),
            );
        }
        Self { names }
    }

    pub(super) fn contains(&self, name: &HeaderName) -> bool {
        !self.names.is_empty() && self.names.contains(name)
    }
}
