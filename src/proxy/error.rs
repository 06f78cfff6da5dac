//! The error responses of this proxy itself, made in one place: problem details (RFC 9457) and
//! `Proxy-Status` (RFC 9209).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{
    base::{labels::labels, retry_after::retry_after},
    net::outbound_proxy::Error as ProxyError,
    proxy::framing::Fault,
    upstream::{self, Failure},
};

/// Why a request gets a response of this proxy instead of one from the upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// `Host` is neither a name of this machine nor an allowed one.
    #[error("the host \"{0}\" is not served here: add it to proxy.allowed_hosts if it should be")]
    ForeignHost(String),
    /// A web page of another origin sends the request.
    #[error(
        "requests from pages of the origin \"{0}\" are not allowed: add it to proxy.allowed_origins to allow them"
    )]
    ForeignOrigin(String),
    /// The browser states that a page of another site sends the request.
    #[error(
        "requests from pages of other sites (Sec-Fetch-Site: {0}) are not allowed: see proxy.allowed_origins"
    )]
    ForeignSite(String),
    /// The browser follows a link of a page of another site.
    #[error(
        "links of pages of other sites (Sec-Fetch-Site: {0}) are not followed: set \
         proxy.allow_navigation = true to allow them"
    )]
    ForeignNavigation(String),
    /// The required header, which no page can send without permission, is missing.
    #[error("the request lacks the header {0} (proxy.required_header)")]
    NoRequiredHeader(HeaderName),
    /// No client matches, but one could with its key.
    #[error("the request carries no valid key of a [[client]]")]
    Unauthenticated(Arc<[HeaderValue]>),
    /// No client can match on this connection.
    #[error("no [[client]] has networks and a tls_subject that match this connection")]
    UnknownClient,
    /// The client exceeds its rate.
    #[error("the client sends more requests than the rate of its [[client]] allows")]
    RateLimited {
        /// When the next request is allowed.
        retry_after: Duration,
    },
    /// The client exceeds its concurrency.
    #[error(
        "as many requests of the client are in flight as the concurrency of its [[client]] allows"
    )]
    ConcurrencyLimited,
    /// Malformed or ambiguous.
    #[error("{0}")]
    BadRequest(&'static str),
    /// `proxy.max_uri_length` is exceeded.
    #[error("the request's target is too long (proxy.max_uri_length)")]
    TargetTooLong,
    /// `proxy.max_head_size` or `proxy.max_headers` is exceeded.
    #[error("the request's head is too large (proxy.max_head_size, proxy.max_headers)")]
    HeadTooLarge,
    /// A version of HTTP that is not supported.
    #[error("only HTTP/1.0, HTTP/1.1 and HTTP/2 are supported")]
    UnsupportedVersion,
    /// The path is one of an issuer's own.
    #[error(
        "the path contains \"{0}\", a path of the token issuer (token.refresh_path and the other \
         paths in [token]): clients must not spend or mint the tokens of this proxy. A file or folder \
         of this name cannot be reached through the proxy"
    )]
    IssuerPath(String),
    /// A rule of the operator denies the path.
    #[error("the path is not allowed: see allow and deny of its [[route]] and [[client]]")]
    PathDenied,
    /// `TRACE` and `CONNECT`.
    #[error("the method is not allowed: it would expose or bypass the credentials of this proxy")]
    MethodNotAllowed,
    /// An `Expect` other than `100-continue`.
    #[error("the expectation cannot be met: only 100-continue is supported")]
    ExpectationFailed,
    /// The request has passed this instance before.
    #[error("the request has passed this proxy before: upstream.endpoints leads back to it")]
    Loop,
    /// There is no valid token, and none came in time.
    #[error("there is no valid token at the moment: {reason}")]
    NoToken {
        /// The stable reason of the credential's state.
        reason: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// `proxy.max_requests` are in flight.
    #[error("too many requests are in flight (proxy.max_requests)")]
    Overloaded,
    /// A bug: a panic, which is logged.
    #[error("internal error of this proxy: see its log")]
    Internal,
    /// The replay was rejected as well, and `retry.exhausted` hides it.
    #[error("the upstream rejected the request although its token is fresh")]
    TokenRejected,
    /// A client that used Basic would relate the upstream's 401 to its own password.
    #[error(
        "the upstream rejected the request with 401 (retry.exhausted = \"relay\" relays its response)"
    )]
    HiddenChallenge,
    /// No connection to the upstream.
    #[error(transparent)]
    Connect(#[from] upstream::Error),
    /// No response in time.
    #[error("{endpoint} did not respond in time (upstream.response_timeout)")]
    ResponseTimeout {
        /// The origin of the endpoint.
        endpoint: String,
    },
    /// The upstream's connection closed before its response came.
    #[error("{endpoint} closed the connection before its response")]
    ConnectionClosed {
        /// The origin of the endpoint.
        endpoint: String,
    },
    /// The response is not valid HTTP, or its head is larger than `upstream.max_head_size`.
    #[error(
        "the response of {endpoint} is not valid HTTP, or its head is larger than \
         upstream.max_head_size"
    )]
    InvalidResponse {
        /// The origin of the endpoint.
        endpoint: String,
    },
    /// The request's body is incomplete or malformed.
    #[error("the request's body is incomplete, or its trailers are malformed")]
    ClientBody,
}

labels! {
    /// Values of the label `reason` of `requests_rejected_total`.
    pub enum RejectionReason {
        ForeignHost => "foreign_host",
        ForeignOrigin => "foreign_origin",
        ForeignSite => "foreign_site",
        ForeignNavigation => "foreign_navigation",
        RequiredHeader => "required_header",
        Unauthenticated => "unauthenticated",
        UnknownClient => "stranger",
        RateLimited => "rate",
        ConcurrencyLimited => "concurrency",
        BadRequest => "bad_request",
        TargetTooLong => "target_too_long",
        HeadTooLarge => "head_too_large",
        UnsupportedVersion => "version",
        IssuerPath => "issuer_path",
        PathDenied => "path_denied",
        MethodNotAllowed => "method",
        ExpectationFailed => "expectation",
        Loop => "loop",
        NoToken => "no_token",
        Overloaded => "overloaded",
        Internal => "internal",
        TokenRejected => "refused",
        ConnectTimeout => "connect_timeout",
        Resolve => "resolve",
        ConnectRefused => "connect_refused",
        Tls => "tls",
        ProxyTimeout => "proxy_timeout",
        ProxyUnreachable => "proxy_unreachable",
        ProxyRefused => "proxy_refused",
        ConnectionsFull => "connections_full",
        ResponseTimeout => "response_timeout",
        ConnectionClosed => "broken_off",
        InvalidResponse => "invalid_answer",
        ClientBody => "client_body",
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
    pub(crate) fn upstream_failure(&self) -> Option<Failure> {
        Some(match self {
            Self::Connect(error) => error.failure(),
            Self::ResponseTimeout { .. } => Failure::ResponseTimeout,
            Self::ConnectionClosed { .. } => Failure::ConnectionClosed,
            Self::InvalidResponse { .. } => Failure::InvalidResponse,
            Self::ClientBody
            | Self::ForeignHost(_)
            | Self::ForeignOrigin(_)
            | Self::ForeignSite(_)
            | Self::ForeignNavigation(_)
            | Self::NoRequiredHeader(_)
            | Self::Unauthenticated(_)
            | Self::UnknownClient
            | Self::RateLimited { .. }
            | Self::ConcurrencyLimited
            | Self::BadRequest(_)
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::UnsupportedVersion
            | Self::IssuerPath(_)
            | Self::PathDenied
            | Self::MethodNotAllowed
            | Self::ExpectationFailed
            | Self::Loop
            | Self::NoToken { .. }
            | Self::Overloaded
            | Self::Internal
            | Self::TokenRejected
            | Self::HiddenChallenge => return None,
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
            Self::ForeignNavigation(_) => class(
                StatusCode::FORBIDDEN,
                "Link of another site",
                DENIED,
                Reason::ForeignNavigation,
            ),
            Self::NoRequiredHeader(_) => class(
                StatusCode::FORBIDDEN,
                "Required header missing",
                DENIED,
                Reason::RequiredHeader,
            ),
            Self::Unauthenticated(_) => class(
                StatusCode::UNAUTHORIZED,
                "Client unknown",
                DENIED,
                Reason::Unauthenticated,
            ),
            Self::UnknownClient => class(
                StatusCode::FORBIDDEN,
                "Client unknown",
                DENIED,
                Reason::UnknownClient,
            ),
            Self::RateLimited { .. } => class(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests",
                DENIED,
                Reason::RateLimited,
            ),
            Self::ConcurrencyLimited => class(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests at once",
                DENIED,
                Reason::ConcurrencyLimited,
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
            Self::UnsupportedVersion => class(
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                "Version not supported",
                "http_request_error",
                Reason::UnsupportedVersion,
            ),
            Self::IssuerPath(_) => class(
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
            Self::MethodNotAllowed => class(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not allowed",
                DENIED,
                Reason::MethodNotAllowed,
            ),
            Self::ExpectationFailed => class(
                StatusCode::EXPECTATION_FAILED,
                "Expectation failed",
                "http_request_error",
                Reason::ExpectationFailed,
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
                "Too many requests in flight",
                "destination_unavailable",
                Reason::Overloaded,
            ),
            Self::Internal => class(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal error",
                "proxy_internal_error",
                Reason::Internal,
            ),
            Self::TokenRejected | Self::HiddenChallenge => class(
                StatusCode::BAD_GATEWAY,
                "Rejected by the upstream",
                "http_protocol_error",
                Reason::TokenRejected,
            ),
            Self::Connect(upstream::Error::Timeout { .. }) => class(
                StatusCode::GATEWAY_TIMEOUT,
                "Upstream unreachable",
                "connection_timeout",
                Reason::ConnectTimeout,
            ),
            Self::Connect(upstream::Error::Resolve { .. }) => class(
                StatusCode::BAD_GATEWAY,
                "Upstream name not resolved",
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
            Self::Connect(upstream::Error::Proxy { source, .. }) => match source {
                ProxyError::Timeout { .. } => class(
                    StatusCode::GATEWAY_TIMEOUT,
                    "Outbound proxy too slow",
                    "connection_timeout",
                    Reason::ProxyTimeout,
                ),
                ProxyError::Unreachable { .. } => class(
                    StatusCode::BAD_GATEWAY,
                    "Outbound proxy unreachable",
                    "connection_refused",
                    Reason::ProxyUnreachable,
                ),
                ProxyError::Refused { refusal, .. } => class(
                    StatusCode::BAD_GATEWAY,
                    "Refused by the outbound proxy",
                    if refusal.is_authentication() {
                        "proxy_configuration_error"
                    } else {
                        "destination_unavailable"
                    },
                    Reason::ProxyRefused,
                ),
            },
            Self::Connect(upstream::Error::Full { .. } | upstream::Error::NoSocket { .. }) => {
                let kind = "connection_limit_reached";
                class(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "Too many connections",
                    kind,
                    Reason::ConnectionsFull,
                )
            }
            Self::ResponseTimeout { .. } => class(
                StatusCode::GATEWAY_TIMEOUT,
                "Upstream too slow",
                "http_response_timeout",
                Reason::ResponseTimeout,
            ),
            Self::ConnectionClosed { .. } => class(
                StatusCode::BAD_GATEWAY,
                "Upstream closed the connection",
                "connection_terminated",
                Reason::ConnectionClosed,
            ),
            Self::InvalidResponse { .. } => class(
                StatusCode::BAD_GATEWAY,
                "Invalid upstream response",
                "http_protocol_error",
                Reason::InvalidResponse,
            ),
            Self::ClientBody => class(
                StatusCode::BAD_REQUEST,
                "Incomplete request body",
                "http_request_error",
                Reason::ClientBody,
            ),
        }
    }

    /// The server that is at fault (RFC 9209 §2.1.2), as configured: an endpoint, or the outbound
    /// proxy before it.
    fn next_hop(&self) -> Option<&str> {
        match self {
            Self::Connect(error) => error.next_hop(),
            Self::ResponseTimeout { endpoint }
            | Self::ConnectionClosed { endpoint }
            | Self::InvalidResponse { endpoint } => Some(endpoint),
            _ => None,
        }
    }

    /// The response. It contains no secret: none of the errors above holds one.
    pub(crate) fn to_response(&self) -> Response<Bytes> {
        let Class {
            status,
            title,
            proxy_status,
            ..
        } = self.class();
        let (media_type, body) = match self {
            // Browsers show it to people.
            Self::ForeignNavigation(_) => (
                "text/html; charset=utf-8",
                Bytes::from_static(include_bytes!("error/navigation.html")),
            ),
            _ => {
                let problem = serde_json::json!({ "title": title, "status": status.as_u16(), "detail": self.to_string() });
                ("application/problem+json", problem.to_string().into())
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let next_hop = self.next_hop().map_or_else(String::new, |next_hop| {
            format!("; next-hop={}", structured_string(next_hop))
        });
        let proxy_status = format!("bearer-proxy; error={proxy_status}{next_hop}");
        if let Ok(value) = HeaderValue::try_from(proxy_status) {
            headers.insert("proxy-status", value);
        }
        match self {
            Self::NoToken {
                retry_after: wait, ..
            }
            | Self::RateLimited { retry_after: wait } => {
                headers.insert(header::RETRY_AFTER, retry_after(*wait));
            }
            Self::ForeignNavigation(_) => {
                let policy = HeaderValue::from_static(
                    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
                );
                headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            }
            Self::Unauthenticated(challenges) => {
                for challenge in challenges.iter() {
                    headers.append(header::WWW_AUTHENTICATE, challenge.clone());
                }
            }
            Self::ConcurrencyLimited
            | Self::Overloaded
            | Self::Connect(upstream::Error::Full { .. } | upstream::Error::NoSocket { .. }) => {
                headers.insert(header::RETRY_AFTER, retry_after(Duration::from_secs(1)));
            }
            Self::MethodNotAllowed => {
                let methods =
                    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
                headers.insert(header::ALLOW, methods);
            }
            _ => {}
        }
        // What follows a malformed request on its connection may not be a request.
        if matches!(
            self,
            Self::BadRequest(_)
                | Self::TargetTooLong
                | Self::HeadTooLarge
                | Self::UnsupportedVersion
        ) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A string of structured fields (RFC 8941 §3.3.3), which has visible ASCII characters and spaces
/// only.
fn structured_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    quoted
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(why) => Self::BadRequest(why),
            Fault::TargetTooLong => Self::TargetTooLong,
            Fault::HeadTooLarge => Self::HeadTooLarge,
            Fault::Version => Self::UnsupportedVersion,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::outbound_proxy::Refusal;

    #[test]
    fn an_error_response_has_a_status_a_problem_document_and_a_proxy_status() {
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
        let proxy = || Arc::from("http://proxy.example.com:3128 (upstream.proxy)");
        vec![
            Error::ForeignHost(String::new()),
            Error::ForeignOrigin(String::new()),
            Error::ForeignSite(String::new()),
            Error::ForeignNavigation(String::new()),
            Error::NoRequiredHeader(HeaderName::from_static("x-required")),
            Error::Unauthenticated(Arc::new([])),
            Error::UnknownClient,
            Error::RateLimited {
                retry_after: Duration::ZERO,
            },
            Error::ConcurrencyLimited,
            Error::BadRequest("malformed"),
            Error::TargetTooLong,
            Error::HeadTooLarge,
            Error::UnsupportedVersion,
            Error::IssuerPath(String::new()),
            Error::PathDenied,
            Error::MethodNotAllowed,
            Error::ExpectationFailed,
            Error::Loop,
            Error::NoToken {
                reason: "refreshing",
                retry_after: Duration::ZERO,
            },
            Error::Overloaded,
            Error::Internal,
            Error::TokenRejected,
            Error::HiddenChallenge,
            Error::Connect(upstream::Error::Timeout {
                endpoint: endpoint(),
                limit: Duration::ZERO,
            }),
            Error::Connect(upstream::Error::Resolve {
                endpoint: endpoint(),
                detail: "no such name".into(),
            }),
            Error::Connect(upstream::Error::Refused {
                endpoint: endpoint(),
                source: source(),
            }),
            Error::Connect(upstream::Error::Tls {
                endpoint: endpoint(),
                source: source(),
            }),
            Error::Connect(upstream::Error::Proxy {
                endpoint: endpoint(),
                source: ProxyError::Timeout {
                    proxy: proxy(),
                    what: "accepts no connection",
                    limit: Duration::ZERO,
                },
            }),
            Error::Connect(upstream::Error::Proxy {
                endpoint: endpoint(),
                source: ProxyError::Unreachable {
                    proxy: proxy(),
                    source: source(),
                },
            }),
            Error::Connect(upstream::Error::Proxy {
                endpoint: endpoint(),
                source: ProxyError::Refused {
                    proxy: proxy(),
                    refusal: Refusal::NoCredentials,
                },
            }),
            Error::Connect(upstream::Error::Full {
                endpoint: endpoint(),
            }),
            Error::ResponseTimeout {
                endpoint: endpoint(),
            },
            Error::ConnectionClosed {
                endpoint: endpoint(),
            },
            Error::InvalidResponse {
                endpoint: endpoint(),
            },
            Error::ClientBody,
        ]
    }

    #[test]
    fn the_next_hop_is_the_server_that_is_at_fault() {
        let named = each().into_iter().filter_map(|error| {
            let response = error.to_response();
            let proxy_status = response.headers()["proxy-status"].to_str().unwrap();
            let (_, next_hop) = proxy_status.split_once("; next-hop=")?;
            Some((error.reason(), next_hop.to_owned()))
        });
        let (endpoint, proxy) = ("https://cloud.example.com", "http://proxy.example.com:3128");
        use RejectionReason as Reason;
        let expected = [
            (Reason::ConnectTimeout, endpoint),
            (Reason::Resolve, endpoint),
            (Reason::ConnectRefused, endpoint),
            (Reason::Tls, endpoint),
            (Reason::ProxyTimeout, proxy),
            (Reason::ProxyUnreachable, proxy),
            (Reason::ProxyRefused, proxy),
            (Reason::ResponseTimeout, endpoint),
            (Reason::ConnectionClosed, endpoint),
            (Reason::InvalidResponse, endpoint),
        ];
        let expected = expected.map(|(reason, next_hop)| (reason, format!("\"{next_hop}\"")));
        assert_eq!(named.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_string_of_structured_fields_is_quoted() {
        for (text, quoted) in [
            ("https://cloud.example.com", "\"https://cloud.example.com\""),
            ("http://[::1]:80", "\"http://[::1]:80\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("", "\"\""),
            ("a\r\nb\u{e9}\u{7f} ~", "\"a??b?? ~\""),
        ] {
            assert_eq!(structured_string(text), quoted);
        }
    }

    #[test]
    fn each_error_has_its_reason_and_counts_against_an_endpoint_only_if_that_is_at_fault() {
        let mut reasons: Vec<_> = each().iter().map(Error::reason).collect();
        reasons.dedup();
        assert_eq!(reasons, RejectionReason::ALL);
        let failures: Vec<_> = each().iter().filter_map(Error::upstream_failure).collect();
        // A response that is truncated is no error of a request: it has been answered.
        let all = Failure::ALL.into_iter();
        let expected: Vec<_> = all
            .filter(|failure| *failure != Failure::Truncated)
            .collect();
        assert_eq!(failures, expected);
        for error in each() {
            let counted = error.upstream_failure().map(Failure::label);
            assert!(
                counted.is_none_or(|label| label == error.reason().label()),
                "{error:?}"
            );
            assert_eq!(error.to_response().status(), error.status(), "{error:?}");
        }
    }
}
