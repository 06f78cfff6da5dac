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

/// The format of a response's body. A part of a body has none.
pub(crate) fn format(head: &response::Parts) -> Format {
    let length = head.headers.get(header::CONTENT_LENGTH);
    match head.status {
        StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED => {
            Format::Other
        }
        _ => format_with(
            &head.headers,
            length.and_then(|length| number(length.as_bytes())),
        ),
    }
}

/// The format of the body of which a 206 response contains a part.
pub(crate) fn format_of_whole(head: &response::Parts) -> Format {
    let range = head.headers.get(header::CONTENT_RANGE);
    let complete = range.and_then(|range| range.as_bytes().rsplit(|byte| *byte == b'/').next());
    format_with(&head.headers, complete.and_then(number))
}

fn format_with(headers: &HeaderMap, length: Option<u64>) -> Format {
    let kind = headers.get(header::CONTENT_TYPE);
    match format_of_type(kind.map_or(&b""[..], |kind| kind.as_bytes())) {
        // What is to be saved as a file is not for the app.
        Format::Uncertain
            if is_encoded(headers)
                || is_attachment(headers)
                || length.is_some_and(|length| length > SMALL) =>
        {
            Format::Other
        }
        format => format,
    }
}

/// JSON has the types `application/json` and `text/json`, and types with the suffix `+json` (RFC
/// 6839 §3.1).
fn format_of_type(content_type: &[u8]) -> Format {
    let kind = essence(content_type);
    let is = |other: &[u8]| kind.eq_ignore_ascii_case(other);
    let suffix = kind.len().checked_sub(b"+json".len());
    let has_suffix = suffix.is_some_and(|at| at > 0 && kind[at..].eq_ignore_ascii_case(b"+json"));
    if is(b"application/json") || is(b"text/json") || has_suffix {
        Format::Json
    } else if kind.is_empty() || is(b"text/html") || is(b"text/plain") {
        Format::Uncertain
    } else {
        Format::Other
    }
}

/// A value without its parameters.
fn essence(value: &[u8]) -> &[u8] {
    let first = value.split(|byte| *byte == b';').next();
    first.unwrap_or_default().trim_ascii()
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn is_attachment(headers: &HeaderMap) -> bool {
    let disposition = headers.get(header::CONTENT_DISPOSITION);
    disposition.is_some_and(|value| essence(value.as_bytes()).eq_ignore_ascii_case(b"attachment"))
}

/// Whether a body has several parts of another, RFC 9110 §14.6.
pub(crate) fn is_multipart(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| essence(kind.as_bytes()).eq_ignore_ascii_case(b"multipart/byteranges"))
}

/// Whether the first part of a multipart body, which begins with `data`, has a JSON media type.
/// `None` if the fields of that part are not complete.
pub(crate) fn is_first_part_json(data: &[u8]) -> Option<bool> {
    /// The most bytes of the fields of a part.
    const LIMIT: usize = 8 * 1024;
    let data = data.trim_ascii_start();
    let Some(length) = data.windows(4).position(|end| end == b"\r\n\r\n") else {
        return (data.len() > LIMIT).then_some(false);
    };
    let kind = data[..length]
        .split(|byte| *byte == b'\n')
        .find_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = (&line[..colon], &line[colon + 1..]);
            name.eq_ignore_ascii_case(b"content-type").then_some(value)
        });
    Some(kind.is_some_and(|kind| format_of_type(kind) == Format::Json))
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
            (206, &[("content-type", "text/json")], Format::Other),
            (204, &[], Format::Other),
            (304, &[], Format::Other),
            (304, &[("content-type", "application/json")], Format::Other),
        ] {
            assert_eq!(format_of(status, fields), expected, "{status} {fields:?}");
        }
    }

    #[test]
    fn field_b7_the_format_of_the_whole_body() {
        for (kind, range, expected) in [
            ("application/json", "bytes 0-1/1000000", Format::Json),
            ("text/plain", "bytes 0-1/65536", Format::Uncertain),
            ("text/plain", "bytes 0-1/65537", Format::Other),
            ("text/plain", "bytes 0-1/*", Format::Uncertain),
            ("text/plain", "", Format::Uncertain),
            ("application/zip", "bytes 0-1/9", Format::Other),
        ] {
            let response = Response::builder().status(206).header("content-type", kind);
            let response = response
                .header("content-range", range)
                .header("content-length", "2");
            let (head, ()) = response.body(()).unwrap().into_parts();
            assert_eq!(format_of_whole(&head), expected, "{kind} {range}");
        }
    }

    #[test]
    fn field_b7_the_type_of_the_first_part() {
        for (data, expected) in [
            (
                "\r\n--b\r\nContent-Type: application/json\r\nContent-Range: bytes 0-1/9\r\n\r\n{",
                Some(true),
            ),
            (
                "--b\r\ncontent-range: bytes 0-1/9\r\nCONTENT-TYPE:text/json;x\r\n\r\n",
                Some(true),
            ),
            ("--b\r\nContent-Type: application/zip\r\n\r\n", Some(false)),
            ("--b\r\nContent-Type: text/plain\r\n\r\n{", Some(false)),
            ("--b\r\nContent-Range: bytes 0-1/9\r\n\r\n", Some(false)),
            ("--b\r\nContent-Type: application/json\r\n", None),
            ("", None),
        ] {
            assert_eq!(is_first_part_json(data.as_bytes()), expected, "{data}");
        }
        assert_eq!(is_first_part_json(&vec![b'x'; 10_000]), Some(false));
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
