//! Every answer that is ours, made in one place: RFC 9457 problem details and `Proxy-Status`, RFC 9209.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{
    base::{labels::labels, retry_after::retry_after},
    proxy::framing::Fault,
    upstream,
};

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

labels! {
    /// Values of the label `reason` of `requests_rejected_total`.
    pub enum RejectionReason {
        ForeignHost => "foreign_host",
        ForeignOrigin => "foreign_origin",
        ForeignSite => "foreign_site",
        RequiredHeader => "required_header",
        Unauthenticated => "unauthenticated",
        Stranger => "stranger",
        Rate => "rate",
        Concurrency => "concurrency",
        BadRequest => "bad_request",
        TargetTooLong => "target_too_long",
        HeadTooLarge => "head_too_large",
        Version => "version",
        IssuerPath => "issuer_path",
        PathDenied => "path_denied",
        Method => "method",
        Expectation => "expectation",
        Loop => "loop",
        NoToken => "no_token",
        Overloaded => "overloaded",
        Internal => "internal",
        Refused => "refused",
        ConnectTimeout => "connect_timeout",
        Resolve => "resolve",
        ConnectRefused => "connect_refused",
        Tls => "tls",
        ConnectionsFull => "connections_full",
        ResponseTimeout => "response_timeout",
        BrokenOff => "broken_off",
        InvalidAnswer => "invalid_answer",
        ClientBody => "client_body",
    }
}

labels! {
    /// Values of the label `error` of `upstream_errors_total`.
    pub enum UpstreamFailure {
        ConnectTimeout => "connect_timeout",
        Resolve => "resolve",
        ConnectRefused => "connect_refused",
        Tls => "tls",
        ConnectionsFull => "connections_full",
        ResponseTimeout => "response_timeout",
        BrokenOff => "broken_off",
        InvalidAnswer => "invalid_answer",
        Truncated => "truncated",
    }
}

/// What programs read of an error: the status, a short title, the RFC 9209 error type (§2.3), and
/// the label in metrics and log.
struct Class {
    status: StatusCode,
    title: &'static str,
    proxy_status: &'static str,
    reason: RejectionReason,
}

impl Error {
    pub(crate) fn status(&self) -> StatusCode {
        self.class().status
    }

    pub(crate) fn reason(&self) -> RejectionReason {
        self.class().reason
    }

    /// How this error counts against the endpoint that was asked; `None` where the endpoint is not
    /// at fault: it is the client whose body breaks off.
    pub(crate) fn upstream_failure(&self) -> Option<UpstreamFailure> {
        use UpstreamFailure as Failure;
        Some(match self {
            Self::Connect(upstream::Error::Timeout { .. }) => Failure::ConnectTimeout,
            Self::Connect(upstream::Error::Resolve { .. }) => Failure::Resolve,
            Self::Connect(upstream::Error::Refused { .. }) => Failure::ConnectRefused,
            Self::Connect(upstream::Error::Tls { .. }) => Failure::Tls,
            Self::Connect(upstream::Error::Full { .. } | upstream::Error::NoSocket { .. }) => {
                Failure::ConnectionsFull
            }
            Self::ResponseTimeout => Failure::ResponseTimeout,
            Self::BrokenOff => Failure::BrokenOff,
            Self::InvalidAnswer => Failure::InvalidAnswer,
            Self::ClientBody
            | Self::ForeignHost(_)
            | Self::ForeignOrigin(_)
            | Self::ForeignSite(_)
            | Self::NoRequiredHeader(_)
            | Self::Unauthenticated(_)
            | Self::Stranger
            | Self::TooOften { .. }
            | Self::TooManyAtOnce
            | Self::BadRequest(_)
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::Version
            | Self::IssuerPath
            | Self::PathDenied
            | Self::Method
            | Self::Expectation
            | Self::Loop
            | Self::NoToken { .. }
            | Self::Overloaded
            | Self::Internal
            | Self::Refused
            | Self::Challenge => return None,
        })
    }

    fn class(&self) -> Class {
        let class = |status, title, proxy_status, reason| Class {
            status,
            title,
            proxy_status,
            reason,
        };
        const DENIED: &str = "http_request_denied";
        use RejectionReason as Reason;
        match self {
            Self::ForeignHost(_) => class(
                StatusCode::MISDIRECTED_REQUEST,
                "Host not served",
                DENIED,
                Reason::ForeignHost,
            ),
            Self::ForeignOrigin(_) => class(
                StatusCode::FORBIDDEN,
                "Origin not allowed",
                DENIED,
                Reason::ForeignOrigin,
            ),
            Self::ForeignSite(_) => class(
                StatusCode::FORBIDDEN,
                "Other site not allowed",
                DENIED,
                Reason::ForeignSite,
            ),
            Self::NoRequiredHeader(_) => class(
                StatusCode::FORBIDDEN,
                "Required header missing",
                DENIED,
                Reason::RequiredHeader,
            ),
            Self::Unauthenticated(_) => class(
                StatusCode::UNAUTHORIZED,
                "Client not known",
                DENIED,
                Reason::Unauthenticated,
            ),
            Self::Stranger => class(
                StatusCode::FORBIDDEN,
                "Client not known",
                DENIED,
                Reason::Stranger,
            ),
            Self::TooOften { .. } => class(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests",
                DENIED,
                Reason::Rate,
            ),
            Self::TooManyAtOnce => class(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests at once",
                DENIED,
                Reason::Concurrency,
            ),
            Self::BadRequest(_) => class(
                StatusCode::BAD_REQUEST,
                "Malformed request",
                "http_request_error",
                Reason::BadRequest,
            ),
            Self::TargetTooLong => class(
                StatusCode::URI_TOO_LONG,
                "Target too long",
                "http_request_error",
                Reason::TargetTooLong,
            ),
            Self::HeadTooLarge => {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                class(
                    status,
                    "Head too large",
                    "http_request_error",
                    Reason::HeadTooLarge,
                )
            }
            Self::Version => class(
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                "Version not served",
                "http_request_error",
                Reason::Version,
            ),
            Self::IssuerPath => class(
                StatusCode::FORBIDDEN,
                "Path of the issuer",
                DENIED,
                Reason::IssuerPath,
            ),
            Self::PathDenied => class(
                StatusCode::FORBIDDEN,
                "Path not allowed",
                DENIED,
                Reason::PathDenied,
            ),
            Self::Method => class(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not served",
                DENIED,
                Reason::Method,
            ),
            Self::Expectation => class(
                StatusCode::EXPECTATION_FAILED,
                "Expectation failed",
                "http_request_error",
                Reason::Expectation,
            ),
            Self::Loop => class(
                StatusCode::LOOP_DETECTED,
                "Loop detected",
                "proxy_loop_detected",
                Reason::Loop,
            ),
            Self::NoToken { .. } => class(
                StatusCode::SERVICE_UNAVAILABLE,
                "No valid token",
                "destination_unavailable",
                Reason::NoToken,
            ),
            Self::Overloaded => class(
                StatusCode::SERVICE_UNAVAILABLE,
                "Too many requests under way",
                "destination_unavailable",
                Reason::Overloaded,
            ),
            Self::Internal => class(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal error",
                "proxy_internal_error",
                Reason::Internal,
            ),
            Self::Refused | Self::Challenge => class(
                StatusCode::BAD_GATEWAY,
                "Refused upstream",
                "http_protocol_error",
                Reason::Refused,
            ),
            Self::Connect(upstream::Error::Timeout { .. }) => class(
                StatusCode::GATEWAY_TIMEOUT,
                "Upstream unreachable",
                "connection_timeout",
                Reason::ConnectTimeout,
            ),
            Self::Connect(upstream::Error::Resolve { .. }) => class(
                StatusCode::BAD_GATEWAY,
                "Upstream name unknown",
                "dns_error",
                Reason::Resolve,
            ),
            Self::Connect(upstream::Error::Refused { .. }) => class(
                StatusCode::BAD_GATEWAY,
                "Upstream unreachable",
                "connection_refused",
                Reason::ConnectRefused,
            ),
            Self::Connect(error @ upstream::Error::Tls { .. }) => {
                let kind = if error.is_certificate() {
                    "tls_certificate_error"
                } else {
                    "tls_protocol_error"
                };
                class(
                    StatusCode::BAD_GATEWAY,
                    "Upstream not trusted",
                    kind,
                    Reason::Tls,
                )
            }
            Self::Connect(upstream::Error::Full { .. } | upstream::Error::NoSocket { .. }) => {
                let kind = "connection_limit_reached";
                class(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "Too many connections",
                    kind,
                    Reason::ConnectionsFull,
                )
            }
            Self::ResponseTimeout => class(
                StatusCode::GATEWAY_TIMEOUT,
                "Upstream too slow",
                "http_response_timeout",
                Reason::ResponseTimeout,
            ),
            Self::BrokenOff => class(
                StatusCode::BAD_GATEWAY,
                "Upstream broke off",
                "connection_terminated",
                Reason::BrokenOff,
            ),
            Self::InvalidAnswer => class(
                StatusCode::BAD_GATEWAY,
                "Upstream answer invalid",
                "http_protocol_error",
                Reason::InvalidAnswer,
            ),
            Self::ClientBody => class(
                StatusCode::BAD_REQUEST,
                "Request body broke off",
                "http_request_error",
                Reason::ClientBody,
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

    /// One error of each kind, in the order of [`RejectionReason`]; both kinds that say `refused`.
    fn each() -> Vec<Error> {
        let endpoint = || "https://cloud.example.com".to_owned();
        let source = || std::io::Error::other("broken");
        vec![
            Error::ForeignHost(String::new()),
            Error::ForeignOrigin(String::new()),
            Error::ForeignSite(String::new()),
            Error::NoRequiredHeader(HeaderName::from_static("x-required")),
            Error::Unauthenticated(Arc::new([])),
            Error::Stranger,
            Error::TooOften {
                retry_after: Duration::ZERO,
            },
            Error::TooManyAtOnce,
            Error::BadRequest("malformed"),
            Error::TargetTooLong,
            Error::HeadTooLarge,
            Error::Version,
            Error::IssuerPath,
            Error::PathDenied,
            Error::Method,
            Error::Expectation,
            Error::Loop,
            Error::NoToken {
                reason: "refreshing",
                retry_after: Duration::ZERO,
            },
            Error::Overloaded,
            Error::Internal,
            Error::Refused,
            Error::Challenge,
            Error::Connect(upstream::Error::Timeout {
                endpoint: endpoint(),
                limit: Duration::ZERO,
            }),
            Error::Connect(upstream::Error::Resolve {
                endpoint: endpoint(),
                source: source(),
            }),
            Error::Connect(upstream::Error::Refused {
                endpoint: endpoint(),
                source: source(),
            }),
            Error::Connect(upstream::Error::Tls {
                endpoint: endpoint(),
                source: source(),
            }),
            Error::Connect(upstream::Error::Full {
                endpoint: endpoint(),
                limit: 0,
            }),
            Error::ResponseTimeout,
            Error::BrokenOff,
            Error::InvalidAnswer,
            Error::ClientBody,
        ]
    }

    #[test]
    fn each_error_has_its_reason_and_counts_against_an_endpoint_only_if_that_is_at_fault() {
        let mut reasons: Vec<_> = each().iter().map(Error::reason).collect();
        reasons.dedup();
        assert_eq!(reasons, RejectionReason::ALL);
        let failures: Vec<_> = each().iter().filter_map(Error::upstream_failure).collect();
        // A response that is truncated is no error of a request: it has been answered.
        let all = UpstreamFailure::ALL.into_iter();
        let expected: Vec<_> = all
            .filter(|failure| *failure != UpstreamFailure::Truncated)
            .collect();
        assert_eq!(failures, expected);
        for error in each() {
            let counted = error.upstream_failure().map(UpstreamFailure::label);
            assert!(
                counted.is_none_or(|label| label == error.reason().label()),
                "{error:?}"
            );
            assert_eq!(error.to_response().status(), error.status(), "{error:?}");
        }
    }
}
