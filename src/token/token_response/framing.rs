//! Reads the bytes of a response whose framing is wrong: no last chunk, another length than
//! `Content-Length` states, fields that are no fields, no head at all. The tokens may be there all
//! the same.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use zeroize::Zeroizing;

/// A response as far as it can be read. The body is what remains, in any case.
pub(super) struct Salvaged<'a> {
    /// 200 if there is no status line.
    pub(super) status: StatusCode,
    /// Those that are fields.
    pub(super) headers: HeaderMap,
    /// Without its head.
    body: &'a [u8],
}

/// Reads the last response in `received`, behind interim ones (1xx).
pub(super) fn salvage(received: &[u8]) -> Salvaged<'_> {
    let mut rest = received.trim_ascii_start();
    while let Some(status) = status_of(rest) {
        let (head, body) = split_head(rest);
        if status.is_informational() && !body.is_empty() {
            rest = body.trim_ascii_start();
            continue;
        }
        return Salvaged {
            status,
            headers: fields_of(head),
            body,
        };
    }
    Salvaged {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: rest,
    }
}

impl Salvaged<'_> {
    /// The readings of the body: without the framing of chunks, which is the same if there is none,
    /// and as it is.
    pub(super) fn bodies(&self) -> [Zeroizing<Vec<u8>>; 2] {
        [without_chunks(self.body), self.body.to_vec()].map(Zeroizing::new)
    }
}

/// The status of a status line: `HTTP/1.1 200 OK`, or anything that resembles it.
fn status_of(head: &[u8]) -> Option<StatusCode> {
    if !head.get(..5)?.eq_ignore_ascii_case(b"HTTP/") {
        return None;
    }
    let line = head.split(|byte| *byte == b'\n').next()?;
    let code = line
        .split(u8::is_ascii_whitespace)
        .skip(1)
        .find(|word| !word.is_empty())?;
    StatusCode::from_bytes(code.get(..3)?).ok()
}

/// Splits behind the first empty line; without one, behind the status line.
fn split_head(message: &[u8]) -> (&[u8], &[u8]) {
    let mut lines_end = None;
    for end in memchr::memchr_iter(b'\n', message) {
        lines_end.get_or_insert(end + 1);
        let next = &message[end + 1..];
        if let Some(body) = next
            .strip_prefix(b"\r\n")
            .or_else(|| next.strip_prefix(b"\n"))
        {
            return (&message[..=end], body);
        }
    }
    message.split_at(lines_end.unwrap_or(message.len()))
}

fn fields_of(head: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let name = HeaderName::from_bytes(line[..colon].trim_ascii());
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value)
            && fields.try_append(name, value).is_err()
        {
            break;
        }
    }
    fields
}

/// The contents of all chunks (RFC 9112 §7.1). What is no chunk ends the body, and is kept.
fn without_chunks(mut body: &[u8]) -> Vec<u8> {
    let mut contents = Vec::with_capacity(body.len());
    while let Some(end) = memchr::memchr(b'\n', body) {
        let Some(size) = chunk_size(&body[..end]) else {
            break;
        };
        body = &body[end + 1..];
        if size == 0 {
            return contents;
        }
        let (chunk, rest) = body.split_at(size.min(body.len()));
        contents.extend_from_slice(chunk);
        body = rest.strip_prefix(b"\r").unwrap_or(rest);
        body = body.strip_prefix(b"\n").unwrap_or(body);
    }
    contents.extend_from_slice(body);
    contents
}

fn chunk_size(line: &[u8]) -> Option<usize> {
    let size = line.split(|byte| *byte == b';').next()?.trim_ascii();
    let size = std::str::from_utf8(size).ok()?;
    usize::from_str_radix(size, 16).ok()
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    const OBJECT: &str = "{\"a\":1}";

    fn read(received: &str) -> (u16, String) {
        let salvaged = salvage(received.as_bytes());
        let [body, _] = salvaged.bodies();
        (
            salvaged.status.as_u16(),
            String::from_utf8(body.to_vec()).expect("text"),
        )
    }

    #[test]
    fn the_body_is_found_behind_any_head() {
        for head in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\n\n",
            "HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno field\r\n: x\r\n\u{1}: y\r\n\r\n",
            "HTTP/1.1  200  OK\r\n\r\n",
            "http/1.1 200 OK\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 200OK\r\n\r\n",
            "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 \
             OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\n",
            "",
        ] {
            assert_eq!(
                read(&format!("{head}{OBJECT}")),
                (200, OBJECT.into()),
                "{head}"
            );
        }
        assert_eq!(read("HTTP/1.1 503 x\r\n\r\n"), (503, String::new()));
        assert_eq!(read("HTTP/1.1 503"), (503, String::new()));
        assert_eq!(read("HTTP/1.1 50"), (200, "HTTP/1.1 50".into()));
        assert_eq!(
            read("HTTP/1.1 100 Continue\r\n\r\n"),
            (100, String::new()),
            "no final response"
        );
    }

    #[test]
    fn chunks_are_joined_and_what_is_no_chunk_is_kept() {
        for (body, contents) in [
            ("7\r\n{\"a\":1}\r\n0\r\n\r\n", OBJECT),
            ("7\r\n{\"a\":1}\r\n0\r\n", OBJECT),
            ("7\r\n{\"a\":1}\r\n", OBJECT),
            ("7\r\n{\"a\":1}", OBJECT),
            ("7\n{\"a\":1}\n0\n\n", OBJECT),
            ("7 ; x=y\r\n{\"a\":1}\r\n0\r\n\r\n", OBJECT),
            ("3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n", OBJECT),
            ("ffffffffffffff\r\n{\"a\":1}", OBJECT),
            ("3\r\n{\"a\r\n\":1}", OBJECT),
            ("{\"a\":1}", OBJECT),
            ("", ""),
        ] {
            let message = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n{body}");
            assert_eq!(read(&message), (200, contents.into()), "{body:?}");
        }
    }

    #[test]
    fn fields_are_bounded() {
        let many = "a:b\n".repeat(60_000);
        let message = format!("HTTP/1.1 200 OK\nRetry-After: 7\n{many}\n{OBJECT}");
        let salvaged = salvage(message.as_bytes());
        assert_eq!(salvaged.headers[header::RETRY_AFTER], "7");
        assert_eq!(salvaged.body, OBJECT.as_bytes());
    }
}
