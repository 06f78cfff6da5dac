//! Which fields go no further than here.

use http::{HeaderMap, HeaderName, header};

use super::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use crate::base::list_field;

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

pub(super) const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    PROXY_CONNECTION,
    KEEP_ALIVE,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

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

/// Drops from trailers what would mean something else behind a body than before it, or is for one hop only, RFC 9110 §6.5.1,
/// and what is for us alone. Some servers put trailers among the fields of the head.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap, stripped: &[HeaderName]) {
    let is_dropped = |name: &&HeaderName| {
        is_dropped_from_requests(name, stripped) || NEVER_IN_TRAILERS.contains(name)
    };
    let dropped: Vec<HeaderName> = trailers.keys().filter(is_dropped).cloned().collect();
    for name in dropped {
        trailers.remove(name);
    }
}

/// Servers that hand fields to programs (CGI, WSGI) write every `-` as `_`, and then cannot tell the two apart.
pub(super) fn is_dropped_from_requests(name: &HeaderName, stripped: &[HeaderName]) -> bool {
    let name = name.as_str();
    let is_withheld = |name: &str| stripped.iter().any(|stripped| stripped == name);
    is_dropped(name)
        || is_withheld(name)
        || name.contains('_') && {
            let name = name.replace('_', "-");
            is_dropped(&name)
                || is_withheld(&name)
                || name == "content-length"
                || says_who_calls(&name)
        }
}

/// What only we know: where and by which way a client reached us.
fn says_who_calls(name: &str) -> bool {
    matches!(
        name,
        "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto"
    )
}

/// Compared as text: the compiler turns this into a switch on the length, cheaper than a row of comparisons of names.
fn is_dropped(name: &str) -> bool {
    matches!(
        name,
        "connection" | "proxy-connection" | "keep-alive" | "te" | "transfer-encoding" | "upgrade" | "http2-settings"
            // Some servers act on these instead of on the path and the method that were judged.
            | "x-original-url" | "x-rewrite-url" | "x-http-method-override" | "x-http-method" | "x-method-override"
            | "authorization" | "proxy-authorization" | "proxy-authenticate" | "host"
            // The body is sent at once: whoever waits for a 100 waits for ours.
            | "expect"
    )
}

/// The fields that `Connection` lines declare to be for the next hop only.
pub(super) struct Nominated {
    pub(super) names: Vec<HeaderName>,
}

impl Nominated {
    /// Reads every `Connection` line, not only the first.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut names = Vec::new();
        for name in list_field::elements(headers, &header::CONNECTION) {
            // The two usual words are options, not fields: no need to look for them.
            if name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"close") {
                continue;
            }
            // Nominating the body's framing or our own fields would not make them hop-by-hop.
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
