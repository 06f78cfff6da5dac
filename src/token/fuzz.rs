//! The entry point for fuzzing the parser of token responses.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;
use zeroize::Zeroizing;

use super::token_response::{
    FailureClass, GrantType, RawResponse, ResponseFields, ResponseParser, is_valid_access_token,
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
    let response = RawResponse::new(status, headers, Zeroizing::new(body.to_vec()));
    let parsed = parser.parse(response, SystemTime::UNIX_EPOCH);
    if status.is_success()
        && let Some(new) = readable_refresh_token(body)
    {
        let kept = match &parsed {
            Ok(response) => response.refresh_token.as_ref().map(Secret::expose),
            Err(failure) => failure
                .rotated
                .as_ref()
                .map(|token| token.secret().expose()),
        };
        assert_eq!(
            kept,
            Some(&*new),
            "a readable refresh token is never dropped"
        );
    }
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
    #[test]
    fn the_corpus() {
        crate::base::corpus::each("token_response", super::token_response);
    }
}
