//! Which path goes where, and the bearer check.

use std::sync::atomic::Ordering::Relaxed;

use http_body_util::BodyExt as _;
use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONNECTION, WWW_AUTHENTICATE},
};

use super::{
    file_api,
    http::{CloudResponse, bearer, failure, set},
    oauth_api,
    state::{Event, Received, State},
};

/// The listener that a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Host {
    Cloud,
    Document,
}

/// Responds to a request, and records both.
pub(super) async fn respond(
    state: &State,
    host: Host,
    request: Request<Incoming>,
) -> CloudResponse {
    let mut received = Received {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        authorization_count: request.headers().get_all(AUTHORIZATION).iter().count(),
        serial: bearer(request.headers()).and_then(|token| {
            let serial = state.issuer.read(|issuer| issuer.serial(token));
            serial.ok().flatten()
        }),
        status: 0,
    };
    let path = received
        .path
        .strip_prefix("/nd")
        .filter(|rest| rest.starts_with('/'))
        .unwrap_or(&received.path);
    let response = match (host, path) {
        (Host::Document, path) => file_api::document(state, path, request).await,
        (Host::Cloud, "/api/authorize.do") => oauth_api::authorize(state, &request),
        (Host::Cloud, "/api/authorizeByJWT.do") => oauth_api::authorize_by_jwt(state, &request),
        (Host::Cloud, path @ ("/api/token.do" | "/api/refreshToken.do")) => {
            oauth_api::token(state, path, request).await
        }
        (Host::Cloud, path) => file_request(state, path, &received, request).await,
    };
    received.status = response.status().as_u16();
    state.record(received);
    response
}

/// The file interfaces, behind the bearer check (RFC 6750).
async fn file_request(
    state: &State,
    path: &str,
    received: &Received,
    mut request: Request<Incoming>,
) -> CloudResponse {
    state.file_requests.fetch_add(1, Relaxed);
    let now = state.clock.now();
    let is_valid = bearer(request.headers())
        .and_then(|token| state.issuer.read(|issuer| issuer.valid(token, now)).ok()?)
        .is_some();
    let (is_rejected, in_body, early, latency) = {
        let mut faults = state.faults.lock();
        let is_rejected = faults.rejects(&received.path, now) || !is_valid;
        (
            is_rejected,
            faults.in_body_failures,
            faults.early_401,
            faults.files_latency,
        )
    };
    let early = early && is_rejected && request.method() == Method::POST;
    if !early && !latency.is_zero() {
        state.clock.sleep_until(now + latency).await;
    }
    if !is_rejected {
        return file_api::cloud(state, path, received.serial, request).await;
    }
    state.send(Event::Rejected {
        path: received.path.clone(),
    });
    if !early {
        drain(request.body_mut()).await;
    }
    let mut response = failure(
        StatusCode::UNAUTHORIZED,
        "the access token is missing, expired or revoked",
    );
    if in_body {
        *response.status_mut() = StatusCode::OK;
    } else {
        set(
            &mut response,
            WWW_AUTHENTICATE,
            r#"Bearer error="invalid_token""#,
        );
    }
    if early {
        set(&mut response, CONNECTION, "close");
    }
    response
}

/// Reads a body to its end. An error ends it as well: the client that would get the response is
/// gone.
async fn drain(body: &mut Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}
