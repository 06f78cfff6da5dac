//! The entry point for fuzzing the parser of token responses.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;
use zeroize::Zeroizing;

use super::token_response::{
    Failure, FailureClass, GrantType, RawResponse, ResponseFields, ResponseParser, TokenResponse,
    is_valid_access_token,
};
use crate::base::secret::Secret;

/// A response of the issuer: the first byte selects the status, the first line is `Retry-After`,
/// the rest is the body.
pub fn token_response(data: &[u8]) {
    let Some((&status, rest)) = data.split_first() else {
        return;
    };
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let (line, body) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let status = StatusCode::from_u16(
        [200, 201, 302, 400, 401, 403, 429, 500, 502, 503][usize::from(status) % 10],
    );
    let mut headers = HeaderMap::new();
    headers.extend(
        HeaderValue::from_bytes(line)
            .ok()
            .map(|value| (header::RETRY_AFTER, value)),
    );
    let parser = ResponseParser {
        fields: ResponseFields::default(),
        default_expires_in: Duration::from_secs(300),
        grant_type: GrantType::RefreshToken,
    };
    // All of them are valid statuses.
    let status = status.unwrap_or_default();
    let parse = |response| parser.parse(response, SystemTime::UNIX_EPOCH);
    let body_of = |body: &[u8]| Zeroizing::new(body.to_vec());
    let parsed = parse(RawResponse::new(status, headers, body_of(body)));
    if status.is_success()
        && let Some(new) = readable_refresh_token(body)
    {
        assert_kept(&parsed, &new);
        let cut = body.trim_ascii_end();
        for odd in [
            [b"\xef\xbb\xbf", body].concat(),
            [body, b"\r\n0\r\n<html>"].concat(),
            // Of an object that is cut off, a token that is there once is kept.
            cut[..cut.len() - 1].to_vec(),
        ] {
            let is_unique = memchr::memmem::find_iter(body, b"refresh_token").count() == 1;
            if is_unique || readable_refresh_token(&odd).is_some() {
                assert_kept(
                    &parse(RawResponse::new(status, HeaderMap::new(), odd.into())),
                    &new,
                );
            }
        }
        for framed in framings(status, body) {
            assert_kept(&parse(RawResponse::salvaged(&framed)), &new);
        }
    }
    // Nothing that is received makes the reading of framing, codings and JSON panic.
    let _ = parse(RawResponse::salvaged(rest));
    match parsed {
        Ok(response) => {
            assert!(is_valid_access_token(response.access_token.expose()));
            assert!((1..=365 * 24 * 3600).contains(&response.lifetime.as_secs()));
            assert!(
                response
                    .refresh_token
                    .is_none_or(|token| !token.expose().is_empty())
            );
        }
        Err(failure) => {
            assert!(
                failure
                    .detail
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() || byte == b' '),
                "the detail repeats nothing of the response"
            );
            if let FailureClass::Throttled(wait) = failure.class {
                assert!((1..=300).contains(&wait.as_secs()));
            }
        }
    }
}

/// The body in framings that promise less or more of it.
fn framings(status: StatusCode, body: &[u8]) -> [Vec<u8>; 5] {
    let head = |fields: &str| format!("HTTP/1.1 {}\r\n{fields}\r\n", status.as_u16()).into_bytes();
    let (first, second) = body.split_at(body.len() / 2);
    let chunks = [first, second].map(|half| {
        let size = format!("{:x}\r\n", half.len());
        [size.as_bytes(), half, b"\r\n"].concat()
    });
    [
        [&head(""), body].concat(),
        [&head("Content-Length: 99999\r\n"), body].concat(),
        [&head("Content-Length: 1\r\n"), body].concat(),
        [&head("Transfer-Encoding: chunked\r\n"), &*chunks.concat()].concat(),
        [&head("no field\r\n"), &*chunks.concat(), b"0\r\n\r\n"].concat(),
    ]
}

/// A readable new refresh token is never dropped.
fn assert_kept(parsed: &Result<TokenResponse, Failure>, new: &str) {
    let kept = match parsed {
        Ok(response) => response.refresh_token.as_ref().map(Secret::expose),
        Err(failure) => failure
            .rotated
            .as_ref()
            .map(|token| token.secret().expose()),
    };
    assert_eq!(kept, Some(new), "a readable refresh token is never dropped");
}

/// The new refresh token of a well-formed response that is not a refusal.
fn readable_refresh_token(body: &[u8]) -> Option<String> {
    let json: Value = serde_json::from_slice(body).ok()?;
    let token = json.get("refresh_token")?.as_str()?;
    let is_readable = (1..=16 * 1024).contains(&token.len())
        && !token.contains(char::REPLACEMENT_CHARACTER)
        && json.get("error").is_none();
    is_readable.then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn the_corpus() {
        crate::base::corpus::each("token_response", super::token_response);
    }

    proptest! {
        #[test]
        fn field_a1_no_response_costs_a_readable_refresh_token(
            status in any::<u8>(),
            token in "[ -~]{1,20}",
            fields in prop::collection::vec(("[a-z_]{1,12}", value()), 0..6),
            at in 0..6_usize,
        ) {
            let mut fields: Vec<_> = fields
                .into_iter()
                .map(|(name, value)| format!("\"{name}\":{value}"))
                .collect();
            let token = format!("\"refresh_token\":{}", Value::from(token));
            fields.insert(at.min(fields.len()), token);
            let body = format!("{{{}}}", fields.join(","));
            super::token_response(&[&[status], b"\n", body.as_bytes()].concat());
        }

        #[test]
        fn nothing_that_is_received_makes_it_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            super::token_response(&data);
        }
    }

    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            "[0-9]{1,30}",
            "-?[0-9]{1,3}\\.[0-9]{1,3}",
            Just("null".to_owned()),
            Just("[{}]".to_owned()),
            "[ -~]{0,20}".prop_map(|text| Value::from(text).to_string()),
        ]
    }
}
