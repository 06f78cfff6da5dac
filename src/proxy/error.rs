//! Every answer that is ours, made in one place: RFC 9457 problem details and `Proxy-Status`, RFC 9209.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{base::retry_after::retry_after, proxy::framing::Fault, upstream};

/// Why a request got an answer from us instead of one from the cloud.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// `Host` names neither this machine nor an allowed name.
    #[error("the host \"{0}\" is not served here: add it to proxy.allowed_hosts if it should be")]
    ForeignHost(String),
    /// The page that calls was loaded from elsewhere.
    #[error(
        "pages of the origin \"{0}\" may not call: add it to proxy.allowed_origins if they should"
    )]
    ForeignOrigin(String),
    /// The browser says that the page that calls was loaded from elsewhere.
    #[error(
        "requests from other sites (Sec-Fetch-Site: {0}) may not call: see proxy.allowed_origins"
    )]
    ForeignSite(String),
    /// Without the header that no page can send unasked.
    #[error("requests have to carry the header {0} (proxy.required_header)")]
    NoRequiredHeader(HeaderName),
    /// None of the clients, but a key could show that it is one.
    #[error("the request shows the key of no [[client]]")]
    Unauthenticated(Arc<[HeaderValue]>),
    /// None of the clients, whatever it shows.
    #[error("no [[client]] has networks and a tls_subject that fit this connection")]
    Stranger,
    /// More often than the client may.
    #[error("the client asks more often than the rate of its [[client]] allows")]
    TooOften {
        /// When it may ask again.
        retry_after: Duration,
    },
    /// More at the same time than the client may.
    #[error("as many requests as the concurrency of the [[client]] allows are under way")]
    TooManyAtOnce,
    /// No well-formed request.
    #[error("{0}")]
    BadRequest(&'static str),
    /// The target is longer than any that is served.
    #[error("the request's target is too long (proxy.max_uri_length)")]
    TargetTooLong,
    /// A head of too many bytes or fields.
    #[error("the request's head is too large (proxy.max_head_size, proxy.max_headers)")]
    HeadTooLarge,
    /// Another version of HTTP.
    #[error("HTTP/1.0, HTTP/1.1 and HTTP/2 are spoken here")]
    Version,
    /// The path is one of the issuer's.
    #[error("the path belongs to the issuer: no client may spend or mint the tokens of this proxy")]
    IssuerPath,
    /// A rule of the operator's.
    #[error("the path may not be asked for: see allow and deny of its [[route]] and [[client]]")]
    PathDenied,
    /// `TRACE` and `CONNECT` have no business here.
    #[error("the method is not served: it would expose or bypass the credentials of this proxy")]
    Method,
    /// An `Expect` other than `100-continue`.
    #[error("the expectation cannot be met: only 100-continue is known")]
    Expectation,
    /// The request has been here before.
    #[error("the request has passed this proxy before: upstream.endpoints leads back to it")]
    Loop,
    /// No token, and none came in time.
    #[error("there is no valid token at the moment: {reason}")]
    NoToken {
        /// The stable reason of the credential's state.
        reason: &'static str,
        /// When it may be worth trying again.
        retry_after: Duration,
    },
    /// `proxy.max_requests` are under way.
    #[error("too many requests are under way (proxy.max_requests)")]
    Overloaded,
    /// A fault of ours; the log tells where.
    #[error("this proxy made a mistake; its log tells where")]
    Internal,
    /// A fresh token was refused as well, and `retry.exhausted` says not to show it.
    #[error("the upstream refused the request although its token is fresh")]
    Refused,
    /// A client that showed a password would take the upstream's 401 for a word on that.
    #[error(
        "the upstream refused the request with 401 (retry.exhausted = \"relay\" would show its answer)"
    )]
    Challenge,
    /// No connection to the upstream.
    #[error(transparent)]
    Connect(#[from] upstream::Error),
    /// No answer in time.
    #[error("the upstream did not answer in time (upstream.response_timeout)")]
    ResponseTimeout,
    /// The upstream's connection broke before its answer came.
    #[error("the upstream's connection broke before it answered")]
    BrokenOff,
    /// What came back is not HTTP.
    #[error("the upstream's answer is not valid HTTP")]
    InvalidAnswer,
    /// The client's body broke off or is malformed.
    #[error("the request's body broke off")]
    ClientBody,
}

/// What the machine reads: status, short title, RFC 9209 error type (§2.3), label in metrics.
struct Class {
    status: StatusCode,
    title: &'static str,
    proxy_status: &'static str,
    label: &'static str,
}

/// Labels of `requests_rejected_total`, in the order of [`Error::index`].
pub(crate) const LABELS: [&str; 30] = [
    "foreign_host",
    "foreign_origin",
    "foreign_site",
    "required_header",
    "unauthenticated",
    "stranger",
    "rate",
    "concurrency",
    "bad_request",
    "target_too_long",
    "head_too_large",
    "version",
    "issuer_path",
    "path_denied",
    "method",
    "expectation",
    "loop",
    "no_token",
    "overloaded",
    "internal",
    "refused",
    "connect_timeout",
    "resolve",
    "connect_refused",
    "tls",
    "connections_full",
    "response_timeout",
    "broken_off",
    "invalid_answer",
    "client_body",
];

impl Error {
    /// Position of this error's label among [`LABELS`].
    pub(crate) fn index(&self) -> usize {
        let label = self.class().label;
        LABELS.iter().position(|known| *known == label).unwrap_or(0)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.class().status
    }

    pub(crate) fn label(&self) -> &'static str {
        self.class().label
    }

    fn class(&self) -> Class {
        let class = |status, title, proxy_status, label| Class {
            status,
            title,
            proxy_status,
            label,
        };
        const DENIED: &str = "http_request_denied";
        match self {
            Self::ForeignHost(_) => class(
                StatusCode::MISDIRECTED_REQUEST,
                "Host not served",
                DENIED,
                "foreign_host",
            ),
            Self::ForeignOrigin(_) => class(
                StatusCode::FORBIDDEN,
                "Origin not allowed",
                DENIED,
                "foreign_origin",
            ),
            Self::ForeignSite(_) => class(
                StatusCode::FORBIDDEN,
                "Other site not allowed",
                DENIED,
                "foreign_site",
            ),
            Self::NoRequiredHeader(_) => class(
                StatusCode::FORBIDDEN,
                "Required header missing",
                DENIED,
                "required_header",
            ),
            Self::Unauthenticated(_) => class(
                StatusCode::UNAUTHORIZED,
                "Client not known",
                DENIED,
                "unauthenticated",
            ),
            Self::Stranger => class(
                StatusCode::FORBIDDEN,
                "Client not known",
                DENIED,
                "stranger",
            ),
            Self::TooOften { .. } => class(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests",
                DENIED,
                "rate",
            ),
            Self::TooManyAtOnce => class(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests at once",
                DENIED,
                "concurrency",
            ),
            Self::BadRequest(_) => class(
                StatusCode::BAD_REQUEST,
                "Malformed request",
                "http_request_error",
                "bad_request",
            ),
            Self::TargetTooLong => class(
                StatusCode::URI_TOO_LONG,
                "Target too long",
                "http_request_error",
                "target_too_long",
            ),
            Self::HeadTooLarge => {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                class(
                    status,
                    "Head too large",
                    "http_request_error",
                    "head_too_large",
                )
            }
            Self::Version => class(
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                "Version not served",
                "http_request_error",
                "version",
            ),
            Self::IssuerPath => class(
                StatusCode::FORBIDDEN,
                "Path of the issuer",
                DENIED,
                "issuer_path",
            ),
            Self::PathDenied => class(
                StatusCode::FORBIDDEN,
                "Path not allowed",
                DENIED,
                "path_denied",
            ),
            Self::Method => class(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not served",
                DENIED,
                "method",
            ),
            Self::Expectation => class(
                StatusCode::EXPECTATION_FAILED,
                "Expectation failed",
                "http_request_error",
                "expectation",
            ),
            Self::Loop => class(
                StatusCode::LOOP_DETECTED,
                "Loop detected",
                "proxy_loop_detected",
                "loop",
            ),
            Self::NoToken { .. } => class(
                StatusCode::SERVICE_UNAVAILABLE,
                "No valid token",
                "destination_unavailable",
                "no_token",
            ),
            Self::Overloaded => class(
                StatusCode::SERVICE_UNAVAILABLE,
                "Too many requests under way",
                "destination_unavailable",
                "overloaded",
            ),
            Self::Internal => class(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal error",
                "proxy_internal_error",
                "internal",
            ),
            Self::Refused | Self::Challenge => class(
                StatusCode::BAD_GATEWAY,
                "Refused upstream",
                "http_protocol_error",
                "refused",
            ),
            Self::Connect(upstream::Error::Timeout { .. }) => class(
                StatusCode::GATEWAY_TIMEOUT,
                "Upstream unreachable",
                "connection_timeout",
                "connect_timeout",
            ),
            Self::Connect(upstream::Error::Resolve { .. }) => class(
                StatusCode::BAD_GATEWAY,
                "Upstream name unknown",
                "dns_error",
                "resolve",
            ),
            Self::Connect(upstream::Error::Refused { .. }) => class(
                StatusCode::BAD_GATEWAY,
                "Upstream unreachable",
                "connection_refused",
                "connect_refused",
            ),
            Self::Connect(error @ upstream::Error::Tls { .. }) => {
                let kind = if error.is_certificate() {
                    "tls_certificate_error"
                } else {
                    "tls_protocol_error"
                };
                class(StatusCode::BAD_GATEWAY, "Upstream not trusted", kind, "tls")
            }
            Self::Connect(upstream::Error::Full { .. } | upstream::Error::NoSocket { .. }) => {
                let kind = "connection_limit_reached";
                class(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "Too many connections",
                    kind,
                    "connections_full",
                )
            }
            Self::ResponseTimeout => class(
                StatusCode::GATEWAY_TIMEOUT,
                "Upstream too slow",
                "http_response_timeout",
                "response_timeout",
            ),
            Self::BrokenOff => class(
                StatusCode::BAD_GATEWAY,
                "Upstream broke off",
                "connection_terminated",
                "broken_off",
            ),
            Self::InvalidAnswer => class(
                StatusCode::BAD_GATEWAY,
                "Upstream answer invalid",
                "http_protocol_error",
                "invalid_answer",
            ),
            Self::ClientBody => class(
                StatusCode::BAD_REQUEST,
                "Request body broke off",
                "http_request_error",
                "client_body",
            ),
        }
    }

    /// The answer. Its words carry no secret: none of the errors above holds one.
    pub(crate) fn to_response(&self) -> Response<Bytes> {
        let Class {
            status,
            title,
            proxy_status,
            ..
        } = self.class();
        let problem = serde_json::json!({ "title": title, "status": status.as_u16(), "detail": self.to_string() });
        let mut response = Response::new(Bytes::from(problem.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(value) = HeaderValue::try_from(format!("bearer-proxy; error={proxy_status}")) {
            headers.insert("proxy-status", value);
        }
        match self {
            Self::NoToken {
                retry_after: wait, ..
            }
            | Self::TooOften { retry_after: wait } => {
                headers.insert(header::RETRY_AFTER, retry_after(*wait));
            }
            Self::Unauthenticated(challenges) => {
                for challenge in challenges.iter() {
                    headers.append(header::WWW_AUTHENTICATE, challenge.clone());
                }
            }
            Self::TooManyAtOnce
            | Self::Overloaded
            | Self::Connect(upstream::Error::Full { .. } | upstream::Error::NoSocket { .. }) => {
                headers.insert(header::RETRY_AFTER, retry_after(Duration::from_secs(1)));
            }
            Self::Method => {
                let methods =
                    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
                headers.insert(header::ALLOW, methods);
            }
            _ => {}
        }
        // What follows a malformed request on its connection cannot be trusted to be a request.
        if matches!(
            self,
            Self::BadRequest(_) | Self::TargetTooLong | Self::HeadTooLarge | Self::Version
        ) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(why) => Self::BadRequest(why),
            Fault::TargetTooLong => Self::TargetTooLong,
            Fault::HeadTooLarge => Self::HeadTooLarge,
            Fault::Version => Self::Version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_ours_says_what_happened_in_three_ways() {
        let error = Error::NoToken {
            reason: "issuer_unreachable",
            retry_after: Duration::from_millis(400),
        };
        let response = error.to_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(
            response.headers()["proxy-status"],
            "bearer-proxy; error=destination_unavailable"
        );
        let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(problem["status"], 503);
        assert!(
            problem["detail"]
                .as_str()
                .unwrap()
                .contains("issuer_unreachable")
        );
    }

    #[test]
    fn every_label_is_known_and_distinct() {
        let labels: std::collections::BTreeSet<_> = LABELS.into_iter().collect();
        assert_eq!(labels.len(), LABELS.len());
        for error in [
            Error::ForeignHost(String::new()),
            Error::ClientBody,
            Error::Loop,
            Error::ResponseTimeout,
        ] {
            assert_eq!(LABELS[error.index()], error.label());
        }
    }
}
