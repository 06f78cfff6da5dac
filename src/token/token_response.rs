//! The token response of the issuer (RFC 6749 §5): parsing, and classification of failures.
//!
//! The response is untrusted input. Nothing of it is repeated in a message.
//!
//! Odd input never costs the credential: a new refresh token that can be read is kept, whatever else
//! is unusable, because the issuer may have revoked the one that was sent (RFC 6749 §6).

mod coding;
mod framing;
mod json;
#[cfg(test)]
mod shapes;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use zeroize::Zeroizing;

pub(super) use self::json::parse_object;
use self::json::{find_token, has_object, is_page};
use crate::{base::secret::Secret, token::refresh_token::RefreshToken};

/// The longest response body that is read, in bytes.
pub(super) const BODY_LIMIT: usize = 64 * 1024;
/// The longest accepted token, in bytes.
const MAX_TOKEN_LENGTH: usize = 16 * 1024;
/// A longer lifetime is considered a mistake.
const MAX_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Limits of an obeyed `Retry-After`.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A successful token response (RFC 6749 §5.1).
#[derive(Debug, Clone)]
pub struct TokenResponse {
    /// Valid in a header value.
    pub access_token: Secret,
    /// `None`: the refresh token that was sent stays valid.
    pub refresh_token: Option<Secret>,
    /// The access token's lifetime, from when the request was sent.
    pub lifetime: Duration,
    /// The refresh token's lifetime, if the response has a plausible one.
    pub refresh_lifetime: Option<Duration>,
}

/// A response as far as it could be read, not parsed yet.
pub(super) struct RawResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Without its content coding; at most [`BODY_LIMIT`] bytes.
    pub(super) body: Zeroizing<Vec<u8>>,
    /// Why the response is incomplete or too large: the failure of the call, unless the body is
    /// usable all the same.
    pub(super) flaw: Option<Failure>,
}

impl RawResponse {
    /// Decodes and limits the body.
    pub(super) fn new(status: StatusCode, headers: HeaderMap, body: Zeroizing<Vec<u8>>) -> Self {
        let mut body = coding::decode(&headers, body, BODY_LIMIT);
        let flaw = (body.len() > BODY_LIMIT).then(|| {
            Failure::garbled(format!(
                "the issuer's response exceeds {} KiB",
                BODY_LIMIT / 1024
            ))
        });
        body.truncate(BODY_LIMIT);
        Self {
            status,
            headers,
            body,
            flaw,
        }
    }

    /// Reads a response from all the bytes that a connection has received, whatever its framing
    /// says.
    pub(super) fn salvaged(received: &[u8]) -> Self {
        let salvaged = framing::salvage(received);
        let [first, second] = salvaged
            .bodies()
            .map(|body| Self::new(salvaged.status, salvaged.headers.clone(), body));
        if !has_object(&first.body) && has_object(&second.body) {
            second
        } else {
            first
        }
    }

    /// Whether further bytes cannot change what it means, even if more are announced: it contains
    /// a whole object, or is too large.
    pub(super) fn is_whole(&self) -> bool {
        self.flaw.is_some() || !self.status.is_informational() && has_object(&self.body)
    }

    /// Whether it has a meaning if no more follows: a success needs a whole object, the status of
    /// anything else is enough.
    pub(super) fn is_conclusive(&self) -> bool {
        self.is_whole() || !self.status.is_informational() && !self.status.is_success()
    }
}

/// Why a call to the issuer brought no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Decides what the refresher does next.
    pub class: FailureClass,
    /// For logs and status. It contains no part of the response except statuses and registered
    /// OAuth error codes.
    pub detail: String,
    /// The new refresh token of a response that is otherwise unusable. It replaces the one that was
    /// sent.
    pub(super) rotated: Option<RefreshToken>,
}

/// Failures by their consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// `invalid_grant`: the refresh token is never sent again.
    RefreshTokenRefused,
    /// `invalid_client` or `unauthorized_client`: at most one call a minute until an operator
    /// corrects the configuration.
    ClientRefused,
    /// The issuer stated a `Retry-After`.
    Throttled(Duration),
    /// A 2xx that is not a usable token response. The refresh token may have been used.
    Garbled,
    /// The request was sent, and no complete response or only a gateway error arrived. The refresh
    /// token may have been used.
    Ambiguous,
    /// No connection to the issuer.
    Unreachable,
    /// Any other response.
    Failing,
}

impl Failure {
    pub(super) fn new(class: FailureClass, detail: impl Into<String>) -> Self {
        Self {
            class,
            detail: detail.into(),
            rotated: None,
        }
    }

    /// The call was given up before a byte of the request was sent.
    pub(super) fn not_sent() -> Self {
        Self::new(
            FailureClass::Unreachable,
            "the request to the issuer was not sent: the call was given up while it connected",
        )
    }

    fn garbled(detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Garbled, detail)
    }
}

/// JSON pointers (RFC 6901) to the fields of a token response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseFields {
    /// Default `/access_token`.
    pub access_token: String,
    /// Default `/refresh_token`.
    pub refresh_token: String,
    /// Default `/expires_in`, seconds.
    pub expires_in: String,
    /// Default `/refresh_expires_in`, seconds.
    pub refresh_expires_in: String,
}

impl Default for ResponseFields {
    fn default() -> Self {
        let field = |name| format!("/{name}");
        Self {
            access_token: field("access_token"),
            refresh_token: field("refresh_token"),
            expires_in: field("expires_in"),
            refresh_expires_in: field("refresh_expires_in"),
        }
    }
}

/// What a request to the issuer presents. It decides what `invalid_grant` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrantType {
    /// RFC 6749 §6.
    RefreshToken,
    /// RFC 6749 §4.1.3.
    AuthorizationCode,
    /// A JWT, exchanged for an authorization code.
    Jwt,
}

impl GrantType {
    /// The consequence of `invalid_grant` (RFC 6749 §5.2), and what to do about it.
    fn invalid_grant(self) -> (FailureClass, &'static str) {
        match self {
            Self::RefreshToken => (
                FailureClass::RefreshTokenRefused,
                "the refresh token is expired, revoked or already used; get a new one",
            ),
            // The next code or JWT may be accepted, so this is not final.
            Self::AuthorizationCode => (
                FailureClass::Failing,
                "the code is expired or already used, or was issued for another redirect_uri; get \
                 a new one",
            ),
            Self::Jwt => (
                FailureClass::Failing,
                "the JWT is not accepted: check the keys in [token.jwt]",
            ),
        }
    }

    /// The configuration key of the endpoint's path.
    fn path_key(self) -> &'static str {
        match self {
            Self::RefreshToken => "token.refresh_path",
            Self::AuthorizationCode => "token.token_path",
            Self::Jwt => "token.jwt_path",
        }
    }
}

/// Parses the responses of one token endpoint.
#[derive(Debug, Clone)]
pub(super) struct ResponseParser {
    pub(super) fields: ResponseFields,
    pub(super) default_expires_in: Duration,
    pub(super) grant_type: GrantType,
}

impl ResponseParser {
    /// Parses a response. A `Retry-After` date is compared with `wall` if the response has no
    /// `Date`.
    pub(super) fn parse(
        &self,
        response: RawResponse,
        wall: SystemTime,
    ) -> Result<TokenResponse, Failure> {
        let parsed = self.parse_body(&response, wall);
        match (response.flaw, parsed) {
            (None, parsed) => parsed,
            // Too large: nothing of it is used but a refresh token.
            (Some(flaw), Ok(tokens)) if flaw.class == FailureClass::Garbled => Err(Failure {
                rotated: tokens.refresh_token.map(RefreshToken::new),
                ..flaw
            }),
            // The final response is not known.
            (Some(flaw), Err(_)) if response.status.is_informational() => Err(flaw),
            (Some(flaw), Err(failure)) if failure.class == FailureClass::Garbled => Err(Failure {
                rotated: failure.rotated,
                ..flaw
            }),
            (Some(_), parsed) => parsed,
        }
    }

    fn parse_body(
        &self,
        response: &RawResponse,
        wall: SystemTime,
    ) -> Result<TokenResponse, Failure> {
        let RawResponse {
            status,
            headers,
            body,
            ..
        } = response;
        // Some issuers refuse with a 200, and some grant with another status.
        let is_granted = status.is_success() || self.grants(body);
        if is_granted && fatal_error(body).is_none() {
            return self.token_response(body);
        }
        let refusal = error_response(self.grant_type, *status, headers, body, wall);
        Err(match self.rotated_beside_access_token(body) {
            // The issuer has refused the token that was sent, and not the one that it sends.
            rotated @ Some(_) if refusal.class == FailureClass::RefreshTokenRefused => Failure {
                rotated,
                ..Failure::garbled("the issuer's response contains new tokens and invalid_grant")
            },
            rotated => Failure { rotated, ..refusal },
        })
    }

    /// Whether both tokens are there.
    fn grants(&self, body: &[u8]) -> bool {
        let fields = &self.fields;
        parse_object(body).is_some_and(|mut json| {
            take_access_token(&mut json, &fields.access_token).is_ok()
                && take_refresh_token(&mut json, &fields.refresh_token)
                    .is_ok_and(|token| token.is_some())
        })
    }

    fn token_response(&self, body: &[u8]) -> Result<TokenResponse, Failure> {
        let garbled = || {
            Failure::garbled(format!(
                "the issuer's response is not a JSON object ({} bytes)",
                body.len()
            ))
        };
        let Some(json) = parse_object(body) else {
            let token = find_token(body, &self.fields.refresh_token).filter(|_| !is_page(body));
            return Err(Failure {
                rotated: token.map(|token| RefreshToken::new(Secret::new(token.as_str()))),
                ..garbled()
            });
        };
        // Without an access token, it may be the echo of a request, or a text of a page.
        let is_rotated = has_access_token(&json, &self.fields)
            || non_null(&json, "/error").is_none() && !is_page(body);
        self.token_object(json).map_err(|failure| Failure {
            rotated: failure.rotated.filter(|_| is_rotated),
            ..failure
        })
    }

    /// The refresh token of a response that is no grant. Alone it may be the echo of a request.
    fn rotated_beside_access_token(&self, body: &[u8]) -> Option<RefreshToken> {
        let mut json = parse_object(body).filter(|json| has_access_token(json, &self.fields))?;
        let token = take_refresh_token(&mut json, &self.fields.refresh_token);
        token.ok().flatten().map(RefreshToken::new)
    }

    fn token_object(&self, mut json: Value) -> Result<TokenResponse, Failure> {
        let pointers = &self.fields;
        let lifetime = non_null(&json, &pointers.expires_in)
            .and_then(parse_lifetime)
            .unwrap_or(self.default_expires_in);
        let refresh_lifetime =
            non_null(&json, &pointers.refresh_expires_in).and_then(parse_lifetime);
        // Tokens are taken out, not copied: a copy would stay in memory unwiped.
        let refresh_token = take_refresh_token(&mut json, &pointers.refresh_token)?;
        match take_access_token(&mut json, &pointers.access_token) {
            Ok(access_token) => Ok(TokenResponse {
                access_token,
                refresh_token,
                lifetime,
                refresh_lifetime,
            }),
            Err(failure) => Err(Failure {
                rotated: refresh_token.map(RefreshToken::new),
                ..failure
            }),
        }
    }
}

/// Whether there is an access token, usable or not.
fn has_access_token(json: &Value, fields: &ResponseFields) -> bool {
    matches!(json.pointer(&fields.access_token), Some(Value::String(token)) if !token.is_empty())
}

/// An access token that can be sent, of type `Bearer`.
fn take_access_token(json: &mut Value, pointer: &str) -> Result<Secret, Failure> {
    check_token_type(json, pointer)?;
    let access_token = take_token(json, pointer)?.ok_or_else(|| {
        Failure::garbled(format!(
            "the issuer's response has no access token at {pointer} (token.fields.access_token)"
        ))
    })?;
    if !is_valid_access_token(access_token.expose()) {
        return Err(Failure::garbled(
            "the access token contains characters that are not allowed in a header",
        ));
    }
    Ok(access_token)
}

/// Whether a token is valid in an `Authorization` field: visible ASCII only, not empty, not longer
/// than [`MAX_TOKEN_LENGTH`].
pub(super) fn is_valid_access_token(token: &str) -> bool {
    !token.is_empty()
        && token.len() <= MAX_TOKEN_LENGTH
        && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The value at a JSON pointer; `null` counts as missing.
fn non_null<'a>(json: &'a Value, pointer: &str) -> Option<&'a Value> {
    json.pointer(pointer).filter(|value| !value.is_null())
}

/// `token_type` is a sibling of the access token. If present it must be `Bearer` (RFC 6749 §7.1;
/// case-insensitive).
fn check_token_type(json: &Value, access_token: &str) -> Result<(), Failure> {
    let parent = access_token
        .rsplit_once('/')
        .map_or("", |(parent, _)| parent);
    match non_null(json, &format!("{parent}/token_type")) {
        None => Ok(()),
        Some(Value::String(kind)) if kind.eq_ignore_ascii_case("bearer") => Ok(()),
        Some(_) => Err(Failure::garbled("the issuer's token_type is not Bearer")),
    }
}

/// A refresh token; `None` if there is none, in whatever way that is written. A number is a token.
fn take_refresh_token(json: &mut Value, pointer: &str) -> Result<Option<Secret>, Failure> {
    match json.pointer(pointer) {
        Some(Value::Bool(false)) => Ok(None),
        Some(Value::Array(values)) if values.is_empty() => Ok(None),
        Some(Value::Object(values)) if values.is_empty() => Ok(None),
        // A float has lost digits.
        Some(Value::Number(number)) if !number.is_f64() => {
            Ok(Some(Secret::new(number.to_string())))
        }
        _ => take_token(json, pointer),
    }
}

/// A token; `None` if it is missing, `null` or empty.
fn take_token(json: &mut Value, pointer: &str) -> Result<Option<Secret>, Failure> {
    match json.pointer_mut(pointer).map(Value::take) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) if token.is_empty() => Ok(None),
        Some(Value::String(token)) if token.contains(char::REPLACEMENT_CHARACTER) => Err(
            Failure::garbled(format!("the token at {pointer} is not valid UTF-8")),
        ),
        Some(Value::String(token)) if token.len() <= MAX_TOKEN_LENGTH => {
            Ok(Some(Secret::new(token)))
        }
        Some(Value::String(_)) => Err(Failure::garbled(format!(
            "the token at {pointer} is longer than {} KiB",
            MAX_TOKEN_LENGTH / 1024
        ))),
        Some(_) => Err(Failure::garbled(format!(
            "the value at {pointer} is not a string"
        ))),
    }
}

/// Seconds, as a number or as text; a fraction is dropped. `None` unless it is between a second and
/// [`MAX_LIFETIME`].
fn parse_lifetime(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse::<f64>().ok()?,
        _ => return None,
    };
    // Also false for NaN.
    (1.0..=MAX_LIFETIME.as_secs_f64())
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds.floor()))
}

/// Classifies a response that is neither a success nor, where one is expected, a redirect.
pub(super) fn error_response(
    grant_type: GrantType,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    wall: SystemTime,
) -> Failure {
    let responded = format!("the issuer responded {}", status.as_u16());
    match fatal_error(body) {
        Some("invalid_grant") => {
            let (class, advice) = grant_type.invalid_grant();
            return Failure::new(class, format!("{responded} invalid_grant: {advice}"));
        }
        Some(error) => {
            return Failure::new(
                FailureClass::ClientRefused,
                format!("{responded} {error}: check token.client_id and token.client_secret"),
            );
        }
        None => {}
    }
    match status {
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED => match oauth_error(body) {
            Some(error) => Failure::new(FailureClass::Failing, format!("{responded} {error}")),
            None => Failure::new(FailureClass::Failing, responded),
        },
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            match retry_after(headers, wall) {
                Some(wait) => Failure::new(
                    FailureClass::Throttled(wait),
                    format!("{responded} (Retry-After: {} s)", wait.as_secs()),
                ),
                None => Failure::new(FailureClass::Failing, responded),
            }
        }
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            Failure::new(FailureClass::Ambiguous, responded)
        }
        status if status.is_redirection() => Failure::new(
            FailureClass::Failing,
            format!(
                "{responded}, a redirect, which is not followed with credentials: check \
                 token.issuer and {}",
                grant_type.path_key()
            ),
        ),
        _ => Failure::new(FailureClass::Failing, responded),
    }
}

/// An error that refuses the grant or the client, whatever the status: some issuers send it with
/// 200, 403 or 500.
fn fatal_error(body: &[u8]) -> Option<&'static str> {
    oauth_error(body).filter(|error| {
        matches!(
            *error,
            "invalid_grant" | "invalid_client" | "unauthorized_client"
        )
    })
}

/// The `error` of RFC 6749 §5.2, if it is one that the RFC defines: unknown text is not repeated.
fn oauth_error(body: &[u8]) -> Option<&'static str> {
    const KNOWN: [&str; 6] = [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    ];
    let json = parse_object(body)?;
    let error = json.get("error")?.as_str()?;
    KNOWN.into_iter().find(|known| *known == error)
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds, or a date. The date is compared with the response's
/// own `Date`, if it has one, so that our wall clock does not matter.
fn retry_after(headers: &HeaderMap, wall: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        let date = |text: &str| httpdate::parse_http_date(text).ok();
        let now = headers
            .get(header::DATE)
            .and_then(|value| value.to_str().ok())
            .and_then(date)
            .unwrap_or(wall);
        date(text)?.duration_since(now).unwrap_or_default()
    };
    Some(wait.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn parser() -> ResponseParser {
        ResponseParser {
            fields: ResponseFields::default(),
            default_expires_in: Duration::from_secs(300),
            grant_type: GrantType::RefreshToken,
        }
    }

    fn success(body: &Value) -> Result<TokenResponse, Failure> {
        respond(200, &HeaderMap::new(), body.to_string().as_bytes())
    }

    fn respond(status: u16, headers: &HeaderMap, body: &[u8]) -> Result<TokenResponse, Failure> {
        let status = StatusCode::from_u16(status).expect("a status");
        let body = Zeroizing::new(body.to_vec());
        let response = RawResponse::new(status, headers.clone(), body);
        parser().parse(response, SystemTime::UNIX_EPOCH)
    }

    fn class(status: u16, body: &str) -> FailureClass {
        respond(status, &HeaderMap::new(), body.as_bytes())
            .expect_err("refused")
            .class
    }

    #[test]
    fn lifetimes() {
        let lifetime = |value: Value| {
            success(&json!({"access_token": "a", "expires_in": value})).map(|g| g.lifetime)
        };
        let seconds = |n| Ok(Duration::from_secs(n));
        assert_eq!(lifetime(json!(3600)), seconds(3600));
        assert_eq!(lifetime(json!("3600")), seconds(3600));
        assert_eq!(lifetime(json!(1.5)), seconds(1));
        assert_eq!(lifetime(json!("1.5")), seconds(1));
        assert_eq!(lifetime(json!(31_536_000)), seconds(31_536_000));
        assert_eq!(lifetime(Value::Null), seconds(300));
        assert_eq!(
            success(&json!({"access_token": "a"}))
                .expect("a token response")
                .lifetime,
            Duration::from_secs(300)
        );
        for bad in [
            json!(0),
            json!(-1),
            json!(0.5),
            json!(1e18),
            json!(31_536_001),
            json!("soon"),
            json!("NaN"),
            json!("inf"),
            json!(""),
            json!(true),
            json!([3600]),
        ] {
            assert_eq!(lifetime(bad.clone()), seconds(300), "{bad}");
        }
    }

    #[test]
    fn field_a1_a_new_refresh_token_that_can_be_read_is_never_dropped() {
        // The rest of a response, and whether its access token is usable.
        for (rest, is_usable) in [
            (&br#""access_token":"a","expires_in":0"#[..], true),
            (br#""access_token":"a","expires_in":"soon""#, true),
            (br#""access_token":"a","expires_in":{}"#, true),
            (b"\"access_token\":\"a\",\"user\":\"\xc4\xe3\"", true),
            (br#""access_token":"a b""#, false),
            (br#""access_token":"a\r\nX: y""#, false),
            (br#""access_token":7"#, false),
            (br#""access_token":null"#, false),
            (br#""expires_in":3600"#, false),
            (br#""access_token":"a","token_type":"mac""#, false),
            (b"\"access_token\":\"\xc4\xe3\"", false),
        ] {
            for (before, after) in [
                (&b""[..], &b""[..]),
                (b"\xef\xbb\xbf", b""),
                (b" \r\n", b"\r\n0\r\n<html>"),
            ] {
                let body = [before, br#"{"refresh_token":"new","#, rest, b"}", after].concat();
                let text = String::from_utf8_lossy(&body);
                match respond(200, &HeaderMap::new(), &body) {
                    Ok(response) => {
                        assert!(is_usable, "{text}");
                        assert_eq!(response.access_token.expose(), "a", "{text}");
                        let kept = response.refresh_token.expect("kept");
                        assert_eq!(kept.expose(), "new", "{text}");
                    }
                    Err(failure) => {
                        assert!(!is_usable, "{text}: {failure:?}");
                        assert_eq!(failure.class, FailureClass::Garbled, "{text}");
                        let kept = failure.rotated.expect("kept");
                        assert_eq!(kept.secret().expose(), "new", "{text}");
                    }
                }
            }
        }
        // One that cannot be read is not replaced by another text.
        let body = b"{\"access_token\":\"a\",\"refresh_token\":\"\xc4\xe3\"}";
        let failure = respond(200, &HeaderMap::new(), body).expect_err("unreadable");
        assert_eq!(
            (failure.class, failure.rotated),
            (FailureClass::Garbled, None)
        );
    }

    /// The body, and the refresh token that replaces the one that was sent.
    fn assert_rotated(status: u16, body: &str, class: FailureClass, rotated: Option<&str>) {
        let failure = respond(status, &HeaderMap::new(), body.as_bytes()).expect_err("a failure");
        assert_eq!(failure.class, class, "{status} {body}");
        let kept = failure
            .rotated
            .as_ref()
            .map(|token| token.secret().expose());
        assert_eq!(kept, rotated, "{status} {body}");
    }

    #[test]
    fn field_a1_a_page_that_is_no_token_response_replaces_no_refresh_token() {
        for body in [
            r#"{"status":"error","request":{"refresh_token":"***"}}"#,
            r#"{"status":"error","request":{"refresh_token":"***"}"#,
            r#"{"request":{"refresh_token":"***"},"status":NaN}"#,
            r#"{"fields":[{"refresh_token":"***"}]}"#,
            r#"{"error":"server_error","refresh_token":"***"}"#,
            r#"{"error":{"code":5},"refresh_token":"***"}"#,
            r#"["refresh_token","***"]"#,
            r#"<!DOCTYPE html><script>var texts={"refresh_token":"Refresh"}</script>"#,
            r#"<html><style>p{margin:0}</style><script>x={"refresh_token":"Refresh"}</script>"#,
            r#"<html><script>var texts={"refresh_token":"Refresh","sign_in":"#,
            r#"<div data-texts='{"refresh_token":"Refresh"}'></div>"#,
            r#"<p>"refresh_token":"Refresh"</p>"#,
        ] {
            assert_rotated(200, body, FailureClass::Garbled, None);
        }
        // Cut off, at the top level.
        for body in [
            r#"{"access_token":"a","refresh_token":"new","expi"#,
            r#"{"refresh_token":"new","request":{"refresh_token":"old"}"#,
        ] {
            assert_rotated(200, body, FailureClass::Garbled, Some("new"));
        }
    }

    #[test]
    fn field_a1_both_tokens_in_a_refusal_are_a_rotation() {
        use FailureClass::{Ambiguous, ClientRefused, Failing, Garbled, RefreshTokenRefused};
        for (status, rest, class) in [
            (
                200,
                r#""access_token":"a","error":"invalid_client""#,
                ClientRefused,
            ),
            (
                401,
                r#""access_token":"a","error":"invalid_client""#,
                ClientRefused,
            ),
            (
                200,
                r#""access_token":"a","error":"invalid_grant""#,
                Garbled,
            ),
            (
                400,
                r#""access_token":"a b","error":"invalid_grant""#,
                Garbled,
            ),
            (400, r#""access_token":"a b""#, Failing),
            (403, r#""access_token":"a","token_type":"mac""#, Failing),
            (500, r#""access_token":"a\n""#, Failing),
            (502, r#""access_token":"a","token_type":"mac""#, Ambiguous),
            (
                200,
                r#""access_token":"a b","error":"server_error""#,
                Garbled,
            ),
        ] {
            let body = format!(r#"{{"refresh_token":"new",{rest}}}"#);
            assert_rotated(status, &body, class, Some("new"));
        }
        for (status, rest, class) in [
            (400, r#""error":"invalid_grant""#, RefreshTokenRefused),
            (
                400,
                r#""access_token":"","error":"invalid_client""#,
                ClientRefused,
            ),
            (500, r#""access_token":null"#, Failing),
            (500, r#""error":"server_error""#, Failing),
        ] {
            let body = format!(r#"{{"refresh_token":"echo",{rest}}}"#);
            assert_rotated(status, &body, class, None);
        }
    }

    #[test]
    fn field_a11_an_interim_response_does_not_show_that_the_token_is_unused() {
        for received in [
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 102 Processing\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nLink: x",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2",
            "HTTP/1.1 100",
            "HTTP/1.1 10",
        ] {
            for detail in ["cut", "late"] {
                let flaw = Failure::new(FailureClass::Ambiguous, detail);
                let response = RawResponse {
                    flaw: Some(flaw.clone()),
                    ..RawResponse::salvaged(received.as_bytes())
                };
                let parsed = parser().parse(response, SystemTime::UNIX_EPOCH);
                assert_eq!(parsed.expect_err("no response"), flaw, "{received:?}");
            }
        }
    }

    #[test]
    fn field_a2_a_refusal_counts_under_any_status() {
        for status in [200, 201, 400, 401, 403, 404, 429, 500, 503] {
            for (body, expected) in [
                (
                    &br#"{"error":"invalid_grant"}"#[..],
                    FailureClass::RefreshTokenRefused,
                ),
                (
                    b"\xef\xbb\xbf{\"error\":\"invalid_grant\"}",
                    FailureClass::RefreshTokenRefused,
                ),
                (
                    b"{\"error_description\":\"\xc4\xe3\",\"error\":\"invalid_grant\"}",
                    FailureClass::RefreshTokenRefused,
                ),
                (
                    br#"{"error":"invalid_client"}"#,
                    FailureClass::ClientRefused,
                ),
                (
                    br#"{"error":"unauthorized_client"}"#,
                    FailureClass::ClientRefused,
                ),
            ] {
                let failure = respond(status, &HeaderMap::new(), body).expect_err("refused");
                assert_eq!(failure.class, expected, "{status} {body:?}");
            }
        }
    }

    #[test]
    fn an_absurd_refresh_lifetime_is_ignored() {
        let body = |n: Value| json!({"access_token": "a", "refresh_expires_in": n});
        let lifetime = |n| {
            success(&body(n))
                .expect("a token response")
                .refresh_lifetime
        };
        assert_eq!(
            lifetime(json!(2_592_000)),
            Some(Duration::from_secs(2_592_000))
        );
        assert_eq!(lifetime(json!(-1)), None);
    }

    #[test]
    fn access_tokens_must_be_legal_header_values() {
        let longest = "x".repeat(MAX_TOKEN_LENGTH);
        for good in ["a", "eyJ.a-b_c~+/==", &longest] {
            assert_eq!(
                success(&json!({"access_token": good}))
                    .expect("a token response")
                    .access_token
                    .expose(),
                good
            );
        }
        let too_long = "x".repeat(MAX_TOKEN_LENGTH + 1);
        for bad in [
            "",
            "a\r\nX: y",
            "a\n",
            "a\0",
            "a b",
            "a\tb",
            "ä",
            "a\u{7f}",
            &too_long,
        ] {
            let failure = success(&json!({"access_token": bad})).expect_err("rejected");
            assert_eq!(failure.class, FailureClass::Garbled, "{bad:?}");
        }
        for bad in [json!(null), json!(1), json!({}), json!(["a"])] {
            assert_eq!(
                success(&json!({"access_token": bad}))
                    .expect_err("rejected")
                    .class,
                FailureClass::Garbled
            );
        }
    }

    #[test]
    fn a_missing_refresh_token_keeps_the_old_one_and_a_strange_one_is_rejected() {
        for none in [
            json!({}),
            json!({"refresh_token": null}),
            json!({"refresh_token": ""}),
            json!({"refresh_token": false}),
            json!({"refresh_token": []}),
            json!({"refresh_token": {}}),
        ] {
            let mut body = none;
            body["access_token"] = json!("a");
            assert!(
                success(&body)
                    .expect("a token response")
                    .refresh_token
                    .is_none()
            );
        }
        let rotated = success(&json!({"access_token": "a", "refresh_token": "ü+%&="}))
            .expect("a token response");
        assert_eq!(rotated.refresh_token.expect("rotated").expose(), "ü+%&=");
        let number = success(&json!({"access_token": "a", "refresh_token": 7}));
        let number = number.expect("a token response").refresh_token;
        assert_eq!(number.expect("rotated").expose(), "7");
        for strange in [json!(true), json!(0.5), json!(["r"]), json!({"r": 1})] {
            let failure = success(&json!({"access_token": "a", "refresh_token": strange}));
            assert_eq!(failure.expect_err("rejected").class, FailureClass::Garbled);
        }
    }

    #[test]
    fn only_bearer_tokens() {
        let with = |kind: Value| success(&json!({"access_token": "a", "token_type": kind}));
        for good in [
            json!("Bearer"),
            json!("bearer"),
            json!("BEARER"),
            json!(null),
        ] {
            assert!(with(good).is_ok());
        }
        for bad in [json!("mac"), json!("DPoP"), json!(1), json!("")] {
            assert_eq!(
                with(bad).expect_err("rejected").class,
                FailureClass::Garbled
            );
        }
    }

    #[test]
    fn fields_are_found_at_their_pointers_and_nowhere_else() {
        let fields = ResponseFields {
            access_token: "/data/token".into(),
            refresh_token: "/data/next".into(),
            expires_in: "/data/ttl".into(),
            refresh_expires_in: "/data/next_ttl".into(),
        };
        let parser = ResponseParser { fields, ..parser() };
        let read = |body: Value| {
            let body = Zeroizing::new(body.to_string().into_bytes());
            let response = RawResponse::new(StatusCode::OK, HeaderMap::new(), body);
            parser.parse(response, SystemTime::UNIX_EPOCH)
        };
        let response = read(json!({"code": 0, "data": {"token": "a", "next": "r", "ttl": 60}}))
            .expect("a token response");
        assert_eq!(response.lifetime, Duration::from_secs(60));
        assert_eq!(response.refresh_token.expect("rotated").expose(), "r");
        assert!(read(json!({"access_token": "a"})).is_err());
        assert!(read(json!({"data": {"token": "a", "token_type": "mac"}})).is_err());
    }

    #[test]
    fn garbage_is_garbled() {
        for garbage in [
            "",
            "null",
            "[]",
            "\"x\"",
            "<html>",
            "{\"access_token\":",
            "{}",
            &"[".repeat(10_000),
        ] {
            assert_eq!(class(200, garbage), FailureClass::Garbled, "{garbage}");
        }
    }

    #[test]
    fn errors_that_refuse_nothing_for_good_are_failures_of_their_status() {
        for status in [400, 401] {
            assert_eq!(
                class(status, r#"{"error":"invalid_request"}"#),
                FailureClass::Failing
            );
            assert_eq!(class(status, "<html>denied</html>"), FailureClass::Failing);
            assert_eq!(
                class(status, r#"{"error":{"invalid_grant":1}}"#),
                FailureClass::Failing
            );
            assert_eq!(class(status, r#"["invalid_grant"]"#), FailureClass::Failing);
        }
        for status in [302, 403, 404, 418, 429, 500, 503] {
            for body in ["", "invalid_grant", r#"{"error":"server_error"}"#] {
                assert_eq!(class(status, body), FailureClass::Failing, "{status}");
            }
        }
        assert_eq!(class(502, ""), FailureClass::Ambiguous);
        assert_eq!(class(504, ""), FailureClass::Ambiguous);
    }

    #[test]
    fn nothing_of_the_response_is_repeated() {
        let body = r#"{"error":"s3cret","error_description":"s3cret"}"#;
        for status in [200, 302, 400, 401, 500] {
            let failure = respond(status, &HeaderMap::new(), body.as_bytes()).expect_err("refused");
            assert!(!failure.detail.contains("s3cret"), "{}", failure.detail);
        }
    }

    #[test]
    fn retry_after_in_seconds_and_as_a_date() {
        let wait = |status: u16, fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, HeaderValue::from_str(value).expect("a value"));
            }
            match respond(status, &headers, b"").expect_err("refused").class {
                FailureClass::Throttled(wait) => Some(wait.as_secs()),
                class => {
                    assert_eq!(class, FailureClass::Failing);
                    None
                }
            }
        };
        for status in [429, 503] {
            assert_eq!(wait(status, &[("retry-after", "17")]), Some(17));
            assert_eq!(wait(status, &[("retry-after", "0")]), Some(1));
            assert_eq!(wait(status, &[("retry-after", "86400")]), Some(300));
            assert_eq!(
                wait(status, &[("retry-after", "99999999999999999999999")]),
                Some(300)
            );
            assert_eq!(wait(status, &[("retry-after", "-5")]), None);
            assert_eq!(wait(status, &[("retry-after", "later")]), None);
            assert_eq!(wait(status, &[]), None);
            // The wall clock of these tests stands at 1970.
            assert_eq!(
                wait(status, &[("retry-after", "Thu, 01 Jan 1970 00:01:30 GMT")]),
                Some(90)
            );
            let date = ("date", "Mon, 23 Nov 2026 10:00:00 GMT");
            assert_eq!(
                wait(
                    status,
                    &[date, ("retry-after", "Mon, 23 Nov 2026 10:00:42 GMT")]
                ),
                Some(42)
            );
            assert_eq!(
                wait(
                    status,
                    &[date, ("retry-after", "Mon, 23 Nov 2026 09:00:00 GMT")]
                ),
                Some(1)
            );
        }
        assert_eq!(wait(500, &[("retry-after", "17")]), None);
    }
}
