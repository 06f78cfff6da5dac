//! What the issuer answered, judged. The answer is hostile input: nothing here trusts it, and nothing here repeats it.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use super::ResponseFields;
use crate::base::secret::Secret;

/// The largest token that is accepted, in bytes.
const TOKEN_LIMIT: usize = 16 * 1024;
/// Longer lifetimes are taken for a mistake.
const LONGEST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The longest `Retry-After` that is obeyed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
const SHORTEST_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a successful refresh brought.
#[derive(Debug, Clone)]
pub struct TokenResponse {
    /// Legal as a header value.
    pub access_token: Secret,
    /// `None`: the one that was spent stays good.
    pub refresh_token: Option<Secret>,
    /// The access token's, from when the request was sent.
    pub lifetime: Duration,
    /// The refresh token's, if the issuer told a sane one.
    pub refresh_lifetime: Option<Duration>,
}

/// Why a refresh brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What follows from it.
    pub class: FailureClass,
    /// For people; made of our own words only.
    pub detail: String,
}

/// Failures, by what follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// `invalid_grant`: no further call until a person acts.
    RefreshTokenRefused,
    /// `invalid_client` or `unauthorized_client`: hardly any further call until a person acts.
    ClientRefused,
    /// The issuer names the wait.
    Throttled(Duration),
    /// A 2xx without a usable grant. The refresh token may have been spent.
    Garbled,
    /// The request went out and no answer came, or a gateway gave up. The refresh token may have been spent.
    Ambiguous,
    /// The issuer was not reached.
    Unreachable,
    /// Any other answer.
    Failing,
}

impl Failure {
    pub(super) fn new(class: FailureClass, detail: impl Into<String>) -> Self {
        Self {
            class,
            detail: detail.into(),
        }
    }

    /// The wait that the issuer asked for.
    pub(super) fn retry_after(&self) -> Duration {
        match self.class {
            FailureClass::Throttled(wait) => wait,
            _ => Duration::ZERO,
        }
    }

    fn garbled(detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Garbled, detail)
    }
}

/// What a call presents to the issuer. It decides what a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrantType {
    RefreshToken,
    /// An authorization code.
    AuthorizationCode,
    /// A JWT, to get a code for it.
    Jwt,
}

impl GrantType {
    /// `invalid_grant`, RFC 6749 §5.2.
    fn invalid(self) -> (FailureClass, &'static str) {
        match self {
            Self::RefreshToken => (
                FailureClass::RefreshTokenRefused,
                "the refresh token is expired, revoked or spent; get a new one",
            ),
            // Another code may be good: this is no reason to give up for ever.
            Self::AuthorizationCode => (
                FailureClass::Failing,
                "the code is expired or spent, or was asked for with another redirect_uri; get a new one",
            ),
            Self::Jwt => (
                FailureClass::Failing,
                "the JWT is not accepted: check the keys in [token.jwt]",
            ),
        }
    }

    /// The key that names the interface.
    fn path_key(self) -> &'static str {
        match self {
            Self::RefreshToken => "token.refresh_path",
            Self::AuthorizationCode => "token.token_path",
            Self::Jwt => "token.jwt_path",
        }
    }
}

/// How answers are read.
#[derive(Debug, Clone)]
pub(super) struct ResponseParser {
    pub(super) fields: ResponseFields,
    pub(super) default_expires_in: Duration,
    pub(super) grant_type: GrantType,
}

impl ResponseParser {
    /// Judges a complete answer. `wall` is for a `Retry-After` date when the answer has no `Date` to compare it with.
    pub(super) fn read(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        wall: SystemTime,
    ) -> Result<TokenResponse, Failure> {
        if status.is_success() {
            self.grant(body)
        } else {
            Err(refusal(self.grant_type, status, headers, body, wall))
        }
    }

    fn grant(&self, body: &[u8]) -> Result<TokenResponse, Failure> {
        let mut answer: Value = serde_json::from_slice(body).map_err(|_| {
            Failure::garbled(format!(
                "the issuer's answer is not JSON ({} bytes)",
                body.len()
            ))
        })?;
        let pointers = &self.fields;
        check_token_type(&answer, &pointers.access_token)?;
        let lifetime = match present(&answer, &pointers.expires_in) {
            None => self.default_expires_in,
            Some(value) => lifetime_of(value).ok_or_else(|| {
                Failure::garbled(format!("no usable lifetime at {}", pointers.expires_in))
            })?,
        };
        let refresh_lifetime = present(&answer, &pointers.refresh_expires_in).and_then(lifetime_of);
        // Taken out rather than copied, so that no copy stays behind unwiped.
        let access_token = take_token(&mut answer, &pointers.access_token)?.ok_or_else(|| {
            Failure::garbled(format!("no access token at {}", pointers.access_token))
        })?;
        if !is_valid_access_token(access_token.expose()) {
            return Err(Failure::garbled(
                "the access token has characters that no header may carry",
            ));
        }
        let refresh_token = take_token(&mut answer, &pointers.refresh_token)?;
        Ok(TokenResponse {
            access_token,
            refresh_token,
            lifetime,
            refresh_lifetime,
        })
    }
}

/// Whether a token can stand in an `Authorization` field: visible ASCII only, not empty, not absurdly long.
pub(super) fn is_valid_access_token(token: &str) -> bool {
    !token.is_empty()
        && token.len() <= TOKEN_LIMIT
        && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The value at a JSON pointer; `null` counts as missing.
fn present<'a>(answer: &'a Value, pointer: &str) -> Option<&'a Value> {
    answer.pointer(pointer).filter(|value| !value.is_null())
}

/// `token_type` stands beside the access token and, if it is there, is `Bearer` (RFC 6749 §7.1: in any case).
fn check_token_type(answer: &Value, access_token: &str) -> Result<(), Failure> {
    let parent = access_token
        .rsplit_once('/')
        .map_or("", |(parent, _)| parent);
    match present(answer, &format!("{parent}/token_type")) {
        None => Ok(()),
        Some(Value::String(kind)) if kind.eq_ignore_ascii_case("bearer") => Ok(()),
        Some(_) => Err(Failure::garbled("the token is not of the type Bearer")),
    }
}

/// A token; `None` when it is missing, `null` or empty.
fn take_token(answer: &mut Value, pointer: &str) -> Result<Option<Secret>, Failure> {
    match answer.pointer_mut(pointer).map(Value::take) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) if token.is_empty() => Ok(None),
        Some(Value::String(token)) if token.len() <= TOKEN_LIMIT => Ok(Some(Secret::new(token))),
        Some(Value::String(_)) => Err(Failure::garbled(format!(
            "the token at {pointer} is too long"
        ))),
        Some(_) => Err(Failure::garbled(format!(
            "what is at {pointer} is not a text"
        ))),
    }
}

/// A number of seconds or its text; a fraction is dropped. `None` unless it lies between a second and a year.
fn lifetime_of(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse::<f64>().ok()?,
        _ => return None,
    };
    // Also false for NaN.
    (1.0..=LONGEST_LIFETIME.as_secs_f64())
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds.floor()))
}

/// What follows from an answer that is neither a success nor, where one is expected, a redirect.
pub(super) fn refusal(
    grant_type: GrantType,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    wall: SystemTime,
) -> Failure {
    let answered = format!("the issuer answered {}", status.as_u16());
    match status {
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED => match oauth_error(body) {
            // RFC 6749 §5.2.
            Some("invalid_grant") => {
                let (class, words) = grant_type.invalid();
                Failure::new(class, format!("{answered} invalid_grant: {words}"))
            }
            Some(error @ ("invalid_client" | "unauthorized_client")) => Failure::new(
                FailureClass::ClientRefused,
                format!("{answered} {error}: check token.client_id and token.client_secret"),
            ),
            Some(error) => Failure::new(FailureClass::Failing, format!("{answered} {error}")),
            None => Failure::new(FailureClass::Failing, answered),
        },
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            match retry_after(headers, wall) {
                Some(wait) => Failure::new(
                    FailureClass::Throttled(wait),
                    format!("{answered}, come back in {} s", wait.as_secs()),
                ),
                None => Failure::new(FailureClass::Failing, answered),
            }
        }
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            Failure::new(FailureClass::Ambiguous, answered)
        }
        status if status.is_redirection() => Failure::new(
            FailureClass::Failing,
            format!(
                "{answered}, a redirect; credentials never follow one: check token.issuer and {}",
                grant_type.path_key()
            ),
        ),
        _ => Failure::new(FailureClass::Failing, answered),
    }
}

/// The `error` of RFC 6749 §5.2, if it is one of those that the RFC names: an unknown text is not repeated.
fn oauth_error(body: &[u8]) -> Option<&'static str> {
    const KNOWN: [&str; 6] = [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    ];
    let answer: Value = serde_json::from_slice(body).ok()?;
    let error = answer.get("error")?.as_str()?;
    KNOWN.into_iter().find(|known| *known == error)
}

/// `Retry-After`, RFC 9110 §10.2.3: seconds, or a date, which is compared with the answer's own `Date` if it has one,
/// so that our calendar does not matter.
fn retry_after(headers: &HeaderMap, wall: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse()
            .map_or(LONGEST_RETRY_AFTER, Duration::from_secs)
    } else {
        let date = |text: &str| httpdate::parse_http_date(text).ok();
        let now = headers
            .get(header::DATE)
            .and_then(|value| value.to_str().ok())
            .and_then(date)
            .unwrap_or(wall);
        date(text)?.duration_since(now).unwrap_or_default()
    };
    Some(wait.clamp(SHORTEST_RETRY_AFTER, LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn reader() -> ResponseParser {
        ResponseParser {
            fields: ResponseFields::default(),
            default_expires_in: Duration::from_secs(300),
            grant_type: GrantType::RefreshToken,
        }
    }

    fn grant(body: &Value) -> Result<TokenResponse, Failure> {
        read(200, &HeaderMap::new(), body.to_string().as_bytes())
    }

    fn read(status: u16, headers: &HeaderMap, body: &[u8]) -> Result<TokenResponse, Failure> {
        let status = StatusCode::from_u16(status).expect("a status");
        reader().read(status, headers, body, SystemTime::UNIX_EPOCH)
    }

    fn class(status: u16, body: &str) -> FailureClass {
        read(status, &HeaderMap::new(), body.as_bytes())
            .expect_err("refused")
            .class
    }

    #[test]
    fn lifetimes() {
        let lifetime = |value: Value| {
            grant(&json!({"access_token": "a", "expires_in": value})).map(|g| g.lifetime)
        };
        let seconds = |n| Ok(Duration::from_secs(n));
        assert_eq!(lifetime(json!(3600)), seconds(3600));
        assert_eq!(lifetime(json!("3600")), seconds(3600));
        assert_eq!(lifetime(json!(1.5)), seconds(1));
        assert_eq!(lifetime(json!("1.5")), seconds(1));
        assert_eq!(lifetime(json!(31_536_000)), seconds(31_536_000));
        assert_eq!(lifetime(Value::Null), seconds(300));
        assert_eq!(
            grant(&json!({"access_token": "a"}))
                .expect("granted")
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
            assert_eq!(
                lifetime(bad.clone()).expect_err("rejected").class,
                FailureClass::Garbled,
                "{bad}"
            );
        }
    }

    #[test]
    fn an_absurd_refresh_lifetime_is_ignored() {
        let body = |n: Value| json!({"access_token": "a", "refresh_expires_in": n});
        let lifetime = |n| grant(&body(n)).expect("granted").refresh_lifetime;
        assert_eq!(
            lifetime(json!(2_592_000)),
            Some(Duration::from_secs(2_592_000))
        );
        assert_eq!(lifetime(json!(-1)), None);
    }

    #[test]
    fn access_tokens_must_be_legal_header_values() {
        let longest = "x".repeat(TOKEN_LIMIT);
        for good in ["a", "eyJ.a-b_c~+/==", &longest] {
            assert_eq!(
                grant(&json!({"access_token": good}))
                    .expect("granted")
                    .access_token
                    .expose(),
                good
            );
        }
        let too_long = "x".repeat(TOKEN_LIMIT + 1);
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
            let failure = grant(&json!({"access_token": bad})).expect_err("rejected");
            assert_eq!(failure.class, FailureClass::Garbled, "{bad:?}");
        }
        for bad in [json!(null), json!(1), json!({}), json!(["a"])] {
            assert_eq!(
                grant(&json!({"access_token": bad}))
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
        ] {
            let mut body = none;
            body["access_token"] = json!("a");
            assert!(grant(&body).expect("granted").refresh_token.is_none());
        }
        let rotated =
            grant(&json!({"access_token": "a", "refresh_token": "ü+%&="})).expect("granted");
        assert_eq!(rotated.refresh_token.expect("rotated").expose(), "ü+%&=");
        let strange = grant(&json!({"access_token": "a", "refresh_token": 7}));
        assert_eq!(strange.expect_err("rejected").class, FailureClass::Garbled);
    }

    #[test]
    fn only_bearer_tokens() {
        let with = |kind: Value| grant(&json!({"access_token": "a", "token_type": kind}));
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
        let reader = ResponseParser { fields, ..reader() };
        let read = |body: Value| {
            reader.read(
                StatusCode::OK,
                &HeaderMap::new(),
                body.to_string().as_bytes(),
                SystemTime::UNIX_EPOCH,
            )
        };
        let granted = read(json!({"code": 0, "data": {"token": "a", "next": "r", "ttl": 60}}))
            .expect("granted");
        assert_eq!(granted.lifetime, Duration::from_secs(60));
        assert_eq!(granted.refresh_token.expect("rotated").expose(), "r");
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
    fn oauth_errors_count_as_such_with_400_and_401_alone() {
        for status in [400, 401] {
            assert_eq!(
                class(status, r#"{"error":"invalid_grant"}"#),
                FailureClass::RefreshTokenRefused
            );
            assert_eq!(
                class(status, r#"{"error":"invalid_client"}"#),
                FailureClass::ClientRefused
            );
            assert_eq!(
                class(status, r#"{"error":"unauthorized_client"}"#),
                FailureClass::ClientRefused
            );
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
            assert_eq!(
                class(status, r#"{"error":"invalid_grant"}"#),
                FailureClass::Failing,
                "{status}"
            );
        }
        assert_eq!(class(502, ""), FailureClass::Ambiguous);
        assert_eq!(class(504, ""), FailureClass::Ambiguous);
    }

    #[test]
    fn what_the_issuer_says_is_not_repeated() {
        let body = r#"{"error":"s3cret","error_description":"s3cret"}"#;
        for status in [200, 302, 400, 401, 500] {
            let failure = read(status, &HeaderMap::new(), body.as_bytes()).expect_err("refused");
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
            match read(status, &headers, b"").expect_err("refused").class {
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
            // The fallback calendar of these tests stands at 1970.
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
