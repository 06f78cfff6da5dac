//! Which response bodies are JSON. Pure.
//!
//! Some servers send JSON as HTML or plain text, or without a type, some with a byte order mark or
//! in another charset. Such a body is recognised by its first byte if it is small.

use http::{HeaderMap, StatusCode, header, response};
use serde_json::Value;

/// The largest body without a JSON media type that is recognised as JSON, in bytes.
pub(crate) const SMALL: u64 = 64 * 1024;

/// Whether a body is JSON, as far as the head shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// It has a media type of JSON.
    Json,
    /// It is small, and its media type is one that is also used for JSON: [`begins_json`] decides.
    Uncertain,
    /// It is not JSON.
    Other,
}

/// The format of a response's body.
pub(crate) fn format(head: &response::Parts) -> Format {
    let is_empty = matches!(
        head.status,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    let kind = head.headers.get(header::CONTENT_TYPE);
    let kind = kind.map_or(&b""[..], |kind| kind.as_bytes());
    let kind = kind.split(|byte| *byte == b';').next();
    match kind.unwrap_or_default().trim_ascii() {
        _ if is_empty => Format::Other,
        kind if is_json(kind) => Format::Json,
        kind if may_be_json(kind) && is_small(head) => Format::Uncertain,
        _ => Format::Other,
    }
}

/// `application/json`, `text/json`, and types with the suffix `+json` (RFC 6839 §3.1).
fn is_json(kind: &[u8]) -> bool {
    let suffix = kind.len().checked_sub(b"+json".len());
    kind.eq_ignore_ascii_case(b"application/json")
        || kind.eq_ignore_ascii_case(b"text/json")
        || suffix.is_some_and(|at| at > 0 && kind[at..].eq_ignore_ascii_case(b"+json"))
}

fn may_be_json(kind: &[u8]) -> bool {
    kind.is_empty()
        || kind.eq_ignore_ascii_case(b"text/html")
        || kind.eq_ignore_ascii_case(b"text/plain")
}

/// Whether a body is small, as far as is known, and complete. It is not if it is to be saved as a
/// file, whose content is not for the app.
fn is_small(head: &response::Parts) -> bool {
    let headers = &head.headers;
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let is_file = headers
        .get(header::CONTENT_DISPOSITION)
        .is_some_and(|value| {
            let kind = value.as_bytes().split(|byte| *byte == b';').next();
            kind.is_some_and(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"attachment"))
        });
    head.status != StatusCode::PARTIAL_CONTENT
        && !is_encoded(headers)
        && !is_file
        && length.is_none_or(|length| length <= SMALL)
}

/// Whether a body has a content coding, RFC 9110 §8.4.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether a body that begins with `data` is a JSON object or array. `None` if its first character
/// is not in `data`: blanks and a byte order mark do not count.
pub(crate) fn begins_json(data: &[u8]) -> Option<bool> {
    let is_skipped = |byte: &&u8| byte.is_ascii_whitespace() || b"\xEF\xBB\xBF".contains(byte);
    let first = data.iter().find(|byte| !is_skipped(byte))?;
    Some(matches!(first, b'{' | b'['))
}

/// Parses the first JSON value in a body. A byte order mark, invalid UTF-8 in strings, and what
/// follows the value do no harm.
pub(crate) fn parse(body: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches(|c: char| c == '\u{FEFF}' || c.is_ascii_whitespace());
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    values.next()?.ok()
}

#[cfg(test)]
mod tests {
    use http::Response;
    use serde_json::json;

    use super::*;

    fn format_of(status: u16, fields: &[(&str, &str)]) -> Format {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        format(&response.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn field_b3_the_format_of_a_body() {
        for (kind, expected) in [
            ("application/json", Format::Json),
            ("Application/Problem+JSON; charset=utf-8", Format::Json),
            ("text/json", Format::Json),
            ("TEXT/JSON;charset=gbk", Format::Json),
            ("text/html", Format::Uncertain),
            ("text/html; charset=ISO-8859-1", Format::Uncertain),
            (" Text/Plain ;charset=utf-8", Format::Uncertain),
            ("", Format::Uncertain),
            ("+json", Format::Other),
            ("application/jsonl", Format::Other),
            ("application/octet-stream", Format::Other),
            ("text/css", Format::Other),
            ("text/event-stream", Format::Other),
        ] {
            assert_eq!(
                format_of(200, &[("content-type", kind)]),
                expected,
                "{kind}"
            );
        }
        let text = ("content-type", "text/plain");
        for (status, fields, expected) in [
            (200, &[][..], Format::Uncertain),
            (404, &[text], Format::Uncertain),
            (200, &[text, ("content-length", "65536")], Format::Uncertain),
            (200, &[text, ("content-length", "65537")], Format::Other),
            (200, &[text, ("content-encoding", "gzip")], Format::Other),
            (
                200,
                &[text, ("content-encoding", "identity")],
                Format::Uncertain,
            ),
            (
                200,
                &[text, ("content-disposition", "attachment; filename=a")],
                Format::Other,
            ),
            (
                200,
                &[text, ("content-disposition", "inline")],
                Format::Uncertain,
            ),
            (206, &[text], Format::Other),
            (204, &[], Format::Other),
            (304, &[], Format::Other),
            (304, &[("content-type", "application/json")], Format::Other),
        ] {
            assert_eq!(format_of(status, fields), expected, "{status} {fields:?}");
        }
    }

    #[test]
    fn field_b3_the_first_character_decides() {
        for (data, expected) in [
            (&b"{}"[..], Some(true)),
            (b" \r\n\t[1]", Some(true)),
            (b"\xEF\xBB\xBF{", Some(true)),
            (b"\n\xEF\xBB\xBF\n{", Some(true)),
            (b"<html>{", Some(false)),
            (b"\"text\"", Some(false)),
            (b"401", Some(false)),
            (b"\xFE\xFF\0{", Some(false)),
            (b"\xEF\xBB", None),
            (b"  ", None),
            (b"", None),
        ] {
            assert_eq!(begins_json(data), expected, "{}", data.escape_ascii());
        }
    }

    #[test]
    fn field_b3_odd_json_is_parsed() {
        let code = json!({ "code": 401 });
        for (body, expected) in [
            (&br#"{"code":401}"#[..], Some(code.clone())),
            (b"\xEF\xBB\xBF\r\n{\"code\":401}\r\n", Some(code.clone())),
            (b"{\"code\":401}\0\0", Some(code.clone())),
            (b"{\"code\":401}{\"code\":200}", Some(code)),
            (
                b"{\"m\":\"\xC4\xE3\"}",
                Some(json!({ "m": "\u{FFFD}\u{FFFD}" })),
            ),
            (b"{\"code\":401", None),
            (b"<html>", None),
            (b"", None),
        ] {
            assert_eq!(parse(body), expected, "{}", body.escape_ascii());
        }
    }
}
