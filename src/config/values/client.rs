//! What tells clients apart, and what they may do.

use http::HeaderName;

use super::{Read, text_like};
use crate::config::{findings::fault, raw::Value};

/// What browsers send by themselves, also on behalf of pages that were loaded from elsewhere: no proof of anything.
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

/// The name of a header that only a program sends that was told to.
pub(in crate::config) fn own_header(value: &Value) -> Read<HeaderName> {
    const EXAMPLE: &str = r#"write a name of your choice, as in "x-bearer-proxy""#;
    let name: HeaderName = text_like(value, EXAMPLE)?.parse().map_err(|_| fault("is not a header's name", EXAMPLE))?;
    let words = name.as_str();
    if SENT_BY_BROWSERS.contains(&words) || words.starts_with("sec-") || words.starts_with("proxy-") {
        return Err(fault("is a header that browsers and libraries send by themselves", EXAMPLE));
    }
    Ok(name)
}
