//! Which responses are authorization failures, and which requests may be replayed. Pure.

use http::{HeaderMap, Method, StatusCode, header};
use http_auth::parser::ChallengeParser;
use serde_json::Value;

use crate::proxy::message::{json_body, methods};

/// Which responses count as an authorization failure, and which requests are sent again.
#[derive(Debug, Clone)]
pub struct Retry {
    /// The statuses of an authorization failure.
    pub statuses: Vec<StatusCode>,
    /// JSON that reports an authorization failure under another status.
    pub json: Option<RetryJson>,
    /// Replays requests of any method, also after a status other than 401.
    pub any_method: bool,
    /// Bytes of a request's body that are recorded for a replay.
    pub body_limit: usize,
    /// Bytes recorded for all requests together.
    pub total_limit: usize,
    /// The response after a fresh token was rejected as well. `None`: the upstream's response, or
    /// 502 if the client authenticated with a password.
    pub exhausted: Option<Exhausted>,
}

/// Small JSON bodies that report an authorization failure under another status.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryJson {
    /// Location of the error code (JSON pointer, RFC 6901).
    pub pointer: String,
    /// The codes of an authorization failure: numbers or strings. `"401"` and `401` are equal.
    pub values: Vec<Value>,
}

impl RetryJson {
    /// Whether a code means an authorization failure.
    pub(crate) fn contains(&self, code: &Value) -> bool {
        self.values.iter().any(|value| is_equal_code(code, value))
    }
}

/// The response to a client after a fresh token was rejected as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The upstream's response, unchanged.
    Relay,
    /// 502, so that an app does not prompt its user for a password.
    BadGateway,
}

/// What a response says about the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The token was accepted, or the response says nothing about it.
    Relay,
    /// The token was rejected.
    AuthorizationFailure,
}

/// Judges the response to a request with the injected token.
pub(crate) fn judge(status: StatusCode, headers: &HeaderMap, retry: &Retry) -> Verdict {
    if retry.statuses.contains(&status) && !names_scope_alone(headers) {
        Verdict::AuthorizationFailure
    } else {
        Verdict::Relay
    }
}

/// Whether a JSON body reports an authorization failure.
pub(crate) fn reports_failure(json: &[u8], rule: &RetryJson) -> bool {
    json_body::parse(json).is_some_and(|body| {
        let code = body.pointer(&rule.pointer);
        code.is_some_and(|code| rule.contains(code))
    })
}

/// Compares codes. A number equals a string with the same digits: some services use both.
fn is_equal_code(code: &Value, value: &Value) -> bool {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    text(code).is_some_and(|code| text(value) == Some(code))
}

/// Whether a request may be replayed after an authorization failure with this status.
///
/// A 401 states that the request was not applied (RFC 9110 §15.5.2), which allows any method. With
/// another status it may have been applied.
pub(crate) fn may_replay(status: StatusCode, method: &Method, retry: &Retry) -> bool {
    status == StatusCode::UNAUTHORIZED || retry.any_method || methods::is_idempotent(method)
}

/// Whether the Bearer challenges name the error `insufficient_scope` and no other (RFC 6750 §3.1):
/// a newer token has the same scope. Any other error may concern the token, whatever its name:
/// servers also use `invalid_request`, `unauthorized`, `token_expired` and more.
fn names_scope_alone(headers: &HeaderMap) -> bool {
    let mut names_scope = false;
    for value in headers.get_all(header::WWW_AUTHENTICATE) {
        let Ok(value) = value.to_str() else { continue };
        for challenge in ChallengeParser::new(value).map_while(Result::ok) {
            if !challenge.scheme.eq_ignore_ascii_case("Bearer") {
                continue;
            }
            for (name, error) in &challenge.params {
                if name.eq_ignore_ascii_case("error") {
                    if !error
                        .to_unescaped()
                        .trim()
                        .eq_ignore_ascii_case("insufficient_scope")
                    {
                        return false;
                    }
                    names_scope = true;
                }
            }
        }
    }
    names_scope
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry() -> Retry {
        Retry {
            statuses: vec![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN],
            json: None,
            any_method: false,
            body_limit: 0,
            total_limit: 0,
            exhausted: None,
        }
    }

    #[test]
    fn challenges() {
        use Verdict::{AuthorizationFailure, Relay};
        let table: &[(u16, &[&str], Verdict)] = &[
            (401, &[], AuthorizationFailure),
            (403, &[], AuthorizationFailure),
            (200, &[], Relay),
            (404, &["Bearer error=\"invalid_token\""], Relay),
            (401, &["Bearer"], AuthorizationFailure),
            (
                401,
                &["Bearer realm=\"x\", error=\"invalid_token\""],
                AuthorizationFailure,
            ),
            (401, &["bearer ERROR=invalid_token"], AuthorizationFailure),
            (
                401,
                &["Bearer error=\"insufficient_scope\", scope=\"files\""],
                Relay,
            ),
            (
                401,
                &["Basic realm=\"error=insufficient_scope\""],
                AuthorizationFailure,
            ),
            (
                401,
                &["Basic realm=\"a\", Bearer error=\"insufficient_scope\""],
                Relay,
            ),
            (
                401,
                &[
                    "Bearer error=\"insufficient_scope\"",
                    "Bearer error=\"invalid_token\"",
                ],
                AuthorizationFailure,
            ),
            (401, &["\"garbage"], AuthorizationFailure),
        ];
        for (status, challenges, expected) in table {
            let mut headers = HeaderMap::new();
            for challenge in *challenges {
                headers.append(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
            }
            let status = StatusCode::from_u16(*status).unwrap();
            assert_eq!(
                judge(status, &headers, &retry()),
                *expected,
                "{status} {challenges:?}"
            );
        }
    }

    #[test]
    fn field_b2_only_insufficient_scope_says_that_a_newer_token_does_not_help() {
        use Verdict::{AuthorizationFailure, Relay};
        let errors = [
            "token_expired",
            "expired_token",
            "unauthorized",
            "invalid_request",
            "access_denied",
            "invalid_client",
            "insufficient_scopes",
            "",
        ];
        for status in [401, 403] {
            let status = StatusCode::from_u16(status).unwrap();
            let verdict = |challenges: &[String]| {
                let mut headers = HeaderMap::new();
                for challenge in challenges {
                    headers.append(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
                }
                judge(status, &headers, &retry())
            };
            let scope = "Bearer realm=x, error=\"insufficient_scope\", scope=\"files\"".to_owned();
            for error in errors {
                for challenge in [
                    format!("Bearer error=\"{error}\""),
                    format!("Bearer realm=\"a, b\", error_description=\"\", error=\"{error}\""),
                    format!("BEARER Error=\"{error}\""),
                    format!("Basic realm=\"x\", Bearer error=\"{error}\""),
                ] {
                    let with_scope = [challenge.clone(), scope.clone()];
                    for challenges in [&with_scope[..1], &with_scope] {
                        assert_eq!(verdict(challenges), AuthorizationFailure, "{challenges:?}");
                    }
                }
            }
            for scope in [
                scope,
                "Bearer error=insufficient_scope".to_owned(),
                "bearer ERROR=\"Insufficient_Scope\"".to_owned(),
                "Basic realm=\"x\", Bearer error=\"insufficient_scope\"".to_owned(),
            ] {
                assert_eq!(verdict(std::slice::from_ref(&scope)), Relay, "{scope}");
            }
        }
    }

    #[test]
    fn failures_in_json() {
        let rule = RetryJson {
            pointer: "/error/code".to_owned(),
            values: vec![401.into(), "expired".into()],
        };
        for (json, expected) in [
            (r#"{"error":{"code":401}}"#, true),
            (r#"{"error":{"code":"401"}}"#, true),
            (r#"{"error":{"code":"expired"}}"#, true),
            (r#"{"error":{"code":4010}}"#, false),
            (r#"{"error":{"code":401.5}}"#, false),
            (r#"{"error":{"code":null}}"#, false),
            (r#"{"code":401}"#, false),
            (r#"{"error":{"code":401}"#, false),
            ("", false),
        ] {
            assert_eq!(reports_failure(json.as_bytes(), &rule), expected, "{json}");
        }
    }

    #[test]
    fn a_401_allows_any_method_and_other_statuses_idempotent_ones() {
        let forbidden = StatusCode::FORBIDDEN;
        assert!(may_replay(
            StatusCode::UNAUTHORIZED,
            &Method::POST,
            &retry()
        ));
        assert!(!may_replay(forbidden, &Method::POST, &retry()));
        assert!(may_replay(forbidden, &Method::PUT, &retry()));
        assert!(may_replay(
            forbidden,
            &Method::POST,
            &Retry {
                any_method: true,
                ..retry()
            }
        ));
    }
}
