//! The entry point for fuzzing the parser of token responses.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::token_response::{
    FailureClass, GrantType, ResponseFields, ResponseParser, is_valid_access_token,
};

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
    match parser.parse(
        status.unwrap_or_default(),
        &headers,
        body,
        SystemTime::UNIX_EPOCH,
    ) {
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

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus() {
        crate::base::corpus::each("token_response", super::token_response);
    }
}
