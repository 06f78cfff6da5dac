//! Routes a request to the admin endpoint and authenticates it.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, header, request::Parts, uri::Scheme};
use http_body_util::Full;

use super::{
    Sources, Token, health, metrics, page,
    response::{json, method_not_allowed, text},
    status,
};
use crate::{
    base::retry_after::retry_after,
    net::http_server::HttpResponse,
    proxy::policy::guard::{Exposure, Guard, KnownHost},
    token::ManualRefreshError,
};

#[derive(Debug)]
pub(super) struct Handler {
    pub(super) guard: Guard,
    pub(super) exposure: Exposure,
    pub(super) token: Option<Arc<Token>>,
    pub(super) sources: Sources,
}

impl Handler {
    pub(super) fn respond(&self, request: &Parts) -> HttpResponse {
        if let Err(error) = self
            .guard
            .check(request, &KnownHost::default(), &Scheme::HTTP)
        {
            return error.to_response().map(Full::new);
        }
        let is_public = matches!(request.uri.path(), "/healthz" | "/readyz" | "/metrics");
        if !is_public && let Some(rejection) = self.check_token(request) {
            return rejection;
        }
        let is_read = matches!(request.method, Method::GET | Method::HEAD);
        let draining = self.sources.draining.is_cancelled();
        match request.uri.path() {
            "/token/refresh" if request.method == Method::POST => self.refresh(),
            "/token/refresh" => method_not_allowed("POST"),
            "/healthz" | "/readyz" | "/metrics" | "/status" | "/" if !is_read => {
                method_not_allowed("GET, HEAD")
            }
            "/healthz" => text(StatusCode::OK, "alive\n"),
            "/readyz" => health::readiness(&self.sources.credential.snapshot(), draining),
            "/metrics" => metrics::render(&self.sources, draining),
            "/status" => json(StatusCode::OK, &status::status(&self.sources, draining)),
            "/" => page::page(&status::status(&self.sources, draining)),
            _ => text(
                StatusCode::NOT_FOUND,
                "not found: there are /healthz, /readyz, /metrics, /status and /token/refresh \
                 (POST)\n",
            ),
        }
    }

    /// Checks the admin token (`Authorization: Bearer`, RFC 6750 §2.1), which is required beyond
    /// loopback, and on loopback if one is configured. Returns the response to a request without
    /// it.
    fn check_token(&self, request: &Parts) -> Option<HttpResponse> {
        let Some(token) = &self.token else {
            return match self.exposure {
                Exposure::Network => Some(text(
                    StatusCode::FORBIDDEN,
                    "a token is required beyond loopback: set admin.token\n",
                )),
                Exposure::Loopback | Exposure::File => None,
            };
        };
        let credentials = request.headers.get(header::AUTHORIZATION);
        let presented = credentials.and_then(|value| bearer_token(value.as_bytes()));
        let expected = token.load();
        let expected = expected.expose().as_bytes();
        // In constant time: the response time must not reveal a prefix of the token.
        let is_valid = presented.is_some_and(|presented| {
            aws_lc_rs::constant_time::verify_slices_are_equal(presented, expected).is_ok()
        });
        if is_valid {
            return None;
        }
        let mut response = text(
            StatusCode::UNAUTHORIZED,
            "the token in admin.token is required, as `Authorization: Bearer TOKEN`\n",
        );
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        Some(response)
    }

    fn refresh(&self) -> HttpResponse {
        match self.sources.credential.refresh_now() {
            Ok(()) => text(StatusCode::ACCEPTED, "refreshing\n"),
            Err(ManualRefreshError::TooEarly { retry_after: wait }) => {
                let mut response = text(
                    StatusCode::TOO_MANY_REQUESTS,
                    "it is too early for another refresh\n",
                );
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, retry_after(wait));
                response
            }
            Err(ManualRefreshError::NoCredential) => text(
                StatusCode::CONFLICT,
                "there is no refresh token that the issuer accepts: configure a new one (files are \
                 read again now)\n",
            ),
        }
    }
}

/// The token of a `Bearer` credential. The scheme is compared ignoring case (RFC 9110 §11.1).
fn bearer_token(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = credentials.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}
