//! A table of the shapes that responses have: framing × coding × charset × wrapping × fields ×
//! status. Whatever is odd, a new refresh token is kept, and a usable access token is used.

use std::{
    io::Write as _,
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use http::StatusCode;

use super::{Failure, GrantType, RawResponse, ResponseFields, ResponseParser, TokenResponse};
use crate::base::secret::Secret;

/// Shapes by name, and how each is made.
type Shapes<F> = &'static [(&'static str, F)];
type Frame = fn(u16, &[u8]) -> Vec<u8>;
type Encode = fn(&[u8]) -> Vec<u8>;
type Write = fn(&str) -> Vec<u8>;
type Wrap = fn(&str) -> String;

/// A head and a body on a connection, which then closes.
const FRAMINGS: Shapes<Frame> = &[
    ("length", |status, body| {
        let length = format!("Content-Length: {}\r\n", body.len());
        message(status, &length, body)
    }),
    ("close", |status, body| message(status, "", body)),
    ("too long", |status, body| {
        message(status, "Content-Length: 99999\r\n", body)
    }),
    ("too short", |status, body| {
        message(status, "Content-Length: 3\r\n", body)
    }),
    ("two lengths", |status, body| {
        message(status, "Content-Length: 3\r\nContent-Length: 4\r\n", body)
    }),
    ("chunks", |status, body| {
        message(
            status,
            CHUNKED,
            &[&chunks(body), &b"0\r\n\r\n"[..]].concat(),
        )
    }),
    ("no last chunk", |status, body| {
        message(status, CHUNKED, &chunks(body))
    }),
    ("cut last chunk", |status, body| {
        message(status, CHUNKED, &[&chunks(body), &b"0\r\n"[..]].concat())
    }),
    ("not chunked", |status, body| message(status, CHUNKED, body)),
    ("chunks unannounced", |status, body| {
        message(status, "", &[&chunks(body), &b"0\r\n\r\n"[..]].concat())
    }),
    ("odd fields", |status, body| {
        message(status, "no field\r\nX: \u{1}\r\n\u{7f}: y\r\n", body)
    }),
    ("interim", |status, body| {
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n";
        [&interim[..], &message(status, "", body)].concat()
    }),
    ("line feeds", |status, body| {
        [format!("HTTP/1.0 {status}\n\n").as_bytes(), body].concat()
    }),
];

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

fn message(status: u16, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status} Reason\r\n{fields}\r\n");
    [head.as_bytes(), body].concat()
}

/// Chunks of seven bytes, without the last one.
fn chunks(body: &[u8]) -> Vec<u8> {
    let chunk = |chunk: &[u8]| {
        let size = format!("{:x}\r\n", chunk.len());
        [size.as_bytes(), chunk, b"\r\n"].concat()
    };
    body.chunks(7).flat_map(chunk).collect()
}

const CODINGS: Shapes<Encode> = &[
    ("identity", <[u8]>::to_vec),
    ("gzip", gzip),
    ("cut gzip", |body| {
        let coded = gzip(body);
        coded[..coded.len() - 8].to_vec()
    }),
];

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).expect("written");
    encoder.finish().expect("encoded")
}

const CHARSETS: Shapes<Write> = &[
    ("UTF-8", |text| text.into()),
    ("UTF-8 with BOM", |text| format!("\u{feff}{text}").into()),
    ("UTF-16LE", |text| {
        let units = format!("\u{feff}{text}");
        units.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }),
    ("UTF-16BE", |text| {
        let units = format!("\u{feff}{text}");
        units.encode_utf16().flat_map(u16::to_be_bytes).collect()
    }),
    // A field beside the tokens is of another charset.
    ("GBK", |text| {
        let user = b"\"user\":\"\xc4\xe3\xba\xc3\",";
        match text.split_once('{') {
            Some((before, behind)) if !text.starts_with('"') => {
                [before.as_bytes(), b"{", user, behind.as_bytes()].concat()
            }
            _ => text.into(),
        }
    }),
];

const WRAPPINGS: Shapes<Wrap> = &[
    ("none", str::to_owned),
    ("lines", |object| format!("\r\n\r\n{object}\n")),
    ("warning", |object| {
        format!("<b>Warning</b>: x on line 1<br>\n{object}")
    }),
    ("guard", |object| format!(")]}}',\n{object}")),
    ("function", |object| format!("callback({object});")),
    ("list", |object| format!("[{object}]")),
    ("string", |object| {
        serde_json::Value::from(object).to_string()
    }),
    ("garbage", |object| format!("{object}\0\0<html>{{")),
];

/// Fields beside the refresh token `new`, and the lifetime of the access token `a`; 0 if it is
/// unusable.
const FIELDS: &[(&str, u64)] = &[
    (r#""access_token":"a","expires_in":3600"#, 3600),
    (
        r#""expires_in":"60","token_type":"bearer","access_token":"a""#,
        60,
    ),
    (r#""access_token":"a","expires_in":59.9"#, 59),
    (r#""access_token":"a""#, 300),
    (r#""access_token":"a","expires_in":0"#, 300),
    (r#""access_token":"a","expires_in":-1"#, 300),
    (r#""access_token":"a","expires_in":1e400"#, 300),
    (
        r#""access_token":"a","expires_in":99999999999999999999999"#,
        300,
    ),
    (r#""access_token":"a","expires_in":NaN"#, 300),
    (r#""access_token":"a","expires_in":null"#, 300),
    (r#""access_token":"a","expires_in":"never""#, 300),
    (r#""access_token":"a","expires_in":{"seconds":60}"#, 300),
    (
        r#""access_token":"a","refresh_expires_in":"x","scope":["s"]"#,
        300,
    ),
    (r#""access_token":"a","user":"\ud83d""#, 300),
    ("\"access_token\":\"a\",\"user\":\"a\nb\tc\"", 300),
    (r#""access_token":"a","error":null"#, 300),
    (r#""access_token":"a b""#, 0),
    (r#""access_token":"a\n""#, 0),
    (r#""access_token":"ä""#, 0),
    (r#""access_token":7"#, 0),
    (r#""access_token":["a"]"#, 0),
    (r#""access_token":null"#, 0),
    (r#""access_token":"""#, 0),
    (r#""expires_in":3600"#, 0),
    (r#""access_token":"a","token_type":"DPoP""#, 0),
    (r#""access_token":"a","token_type":5"#, 0),
];

fn parse(received: &[u8]) -> Result<TokenResponse, Failure> {
    let parser = ResponseParser {
        fields: ResponseFields::default(),
        default_expires_in: Duration::from_secs(300),
        grant_type: GrantType::RefreshToken,
    };
    parser.parse(RawResponse::salvaged(received), SystemTime::UNIX_EPOCH)
}

fn check(what: &str, received: &[u8], lifetime: u64) {
    let (kept, seconds) = match parse(received) {
        Ok(tokens) => {
            assert_eq!(tokens.access_token.expose(), "a", "{what}");
            (tokens.refresh_token, tokens.lifetime.as_secs())
        }
        Err(failure) => {
            let kept = failure.rotated.map(|token| token.secret().clone());
            (kept, 0)
        }
    };
    assert_eq!(kept.as_ref().map(Secret::expose), Some("new"), "{what}");
    assert_eq!(seconds, lifetime, "{what}");
}

#[test]
fn field_a1_every_shape_keeps_the_refresh_token_and_uses_a_usable_access_token() {
    for (framing, frame) in FRAMINGS {
        for (coding, encode) in CODINGS {
            for (charset, bytes) in CHARSETS {
                for (wrapping, wrap) in WRAPPINGS {
                    for (fields, lifetime) in FIELDS {
                        let object = format!(r#"{{{fields},"refresh_token":"new"}}"#);
                        let received = frame(200, &encode(&bytes(&wrap(&object))));
                        let what = format!("{framing} {coding} {charset} {wrapping} {fields}");
                        check(&what, &received, *lifetime);
                    }
                }
            }
        }
    }
}

#[test]
fn field_a1_both_tokens_count_under_any_status() {
    for status in [
        200, 201, 202, 203, 206, 226, 299, 302, 400, 401, 403, 404, 429, 500, 502, 503,
    ] {
        let status = StatusCode::from_u16(status).expect("a status");
        for (framing, frame) in FRAMINGS {
            let object = r#"{"access_token":"a","refresh_token":"new","expires_in":60}"#;
            let received = frame(status.as_u16(), object.as_bytes());
            check(&format!("{status} {framing}"), &received, 60);
            // A refresh token alone may be the echo of a request.
            let echo = r#"{"refresh_token":"new"}"#;
            let failure = parse(&frame(status.as_u16(), echo.as_bytes())).expect_err("no token");
            assert_eq!(failure.rotated.is_some(), status.is_success(), "{status}");
        }
    }
}

#[test]
fn field_a1_no_cut_makes_another_token() {
    let object = r#"{"access_token":"a","refresh_token":"new","expires_in":3600}"#;
    for (framing, frame) in FRAMINGS {
        let whole = frame(200, object.as_bytes());
        for length in 0..whole.len() {
            let (kept, access) = match parse(&whole[..length]) {
                Ok(tokens) => (tokens.refresh_token, Some(tokens.access_token)),
                Err(failure) => (failure.rotated.map(|token| token.secret().clone()), None),
            };
            let what = format!("{framing} {length}");
            assert!(kept.is_none_or(|token| token.expose() == "new"), "{what}");
            assert!(access.is_none_or(|token| token.expose() == "a"), "{what}");
        }
    }
}
