//! One request, one answer: which interface it is for, whose token it carries, and what answers look like.

use std::sync::atomic::Ordering::Relaxed;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE},
};
use serde_json::{Value, json};

use super::{Event, Host, Received, State, body::AnswerBody, file_api, lock, oauth_api};

pub(super) type Answer = Response<AnswerBody>;

/// Answers a request and remembers it.
pub(super) async fn answer(state: &State, host: Host, request: Request<Incoming>) -> Answer {
    let mut received = Received {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        authorization_count: request.headers().get_all(AUTHORIZATION).iter().count(),
        serial: bearer(request.headers()).and_then(|token| lock(&state.issuer).serial(token)),
        status: 0,
    };
    let path = received
        .path
        .strip_prefix("/nd")
        .filter(|rest| rest.starts_with('/'))
        .unwrap_or(&received.path);
    let answer = match (host, path) {
        (Host::Document, path) => file_api::document(state, path, request).await,
        (Host::Cloud, "/api/authorize.do") => oauth_api::authorize(state, &request),
        (Host::Cloud, "/api/authorizeByJWT.do") => oauth_api::authorize_by_jwt(state, &request),
        (Host::Cloud, path @ ("/api/token.do" | "/api/refreshToken.do")) => {
            oauth_api::token(state, path, request).await
        }
        (Host::Cloud, path) => guarded(state, path, &received, request).await,
    };
    received.status = answer.status().as_u16();
    state.remember(received);
    answer
}

/// The file interfaces, behind the bearer check (RFC 6750).
async fn guarded(
    state: &State,
    path: &str,
    received: &Received,
    mut request: Request<Incoming>,
) -> Answer {
    state.file_requests.fetch_add(1, Relaxed);
    let now = state.clock.now();
    let valid = bearer(request.headers())
        .and_then(|token| lock(&state.issuer).valid(token, now))
        .is_some();
    let (rejected, in_body, early, latency) = {
        let mut faults = lock(&state.faults);
        let rejected = faults.rejects(&received.path, now) || !valid;
        (
            rejected,
            faults.in_body_failures,
            faults.early_401,
            faults.files_latency,
        )
    };
    let early = early && rejected && request.method() == Method::POST;
    if !early && !latency.is_zero() {
        state.clock.sleep_until(now + latency).await;
    }
    if !rejected {
        return file_api::cloud(state, path, received.serial, request).await;
    }
    state.send(Event::Rejected {
        path: received.path.clone(),
    });
    if !early {
        drain(request.body_mut()).await;
    }
    let mut answer = failure(
        StatusCode::UNAUTHORIZED,
        "the access token is missing, expired or revoked",
    );
    if in_body {
        *answer.status_mut() = StatusCode::OK;
    } else {
        set(
            &mut answer,
            WWW_AUTHENTICATE,
            r#"Bearer error="invalid_token""#,
        );
    }
    if early {
        set(&mut answer, CONNECTION, "close");
    }
    answer
}

/// Reads a body to its end. One that breaks off is as good as ended: the answer finds nobody.
async fn drain(body: &mut Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

/// The bearer token, if there is exactly one `Authorization` line (RFC 6750 §2).
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    credentials(headers, "bearer")
}

/// The id and secret of HTTP Basic (RFC 7617), as they are, without form decoding.
pub(super) fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let pair = STANDARD.decode(credentials(headers, "basic")?).ok()?;
    let (id, secret) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}

fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let (found, rest) = line.to_str().ok()?.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

/// Decoded parameters of a query or form, in order.
#[derive(Default)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let mut parameters = Self::default();
        parameters.add(request.uri().query().unwrap_or_default().as_bytes());
        parameters
    }

    pub(super) fn add(&mut self, form: &[u8]) {
        self.0
            .extend(url::form_urlencoded::parse(form).into_owned());
    }

    /// The first one of this name; an empty one counts as missing (RFC 6749 §3.2).
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub(super) fn repeats(&self, name: &str) -> bool {
        self.0.iter().filter(|(found, _)| found == name).count() > 1
    }
}

pub(super) fn json(status: StatusCode, value: &Value) -> Answer {
    let mut answer = Response::new(AnswerBody::Whole(value.to_string().into()));
    *answer.status_mut() = status;
    set(&mut answer, CONTENT_TYPE, "application/json;charset=UTF-8");
    answer
}

/// The envelope of a success around these fields.
pub(super) fn success(mut fields: Value) -> Answer {
    if let Some(fields) = fields.as_object_mut() {
        fields.insert("code".to_owned(), 0.into());
        fields.insert("success".to_owned(), true.into());
    }
    json(StatusCode::OK, &fields)
}

/// The envelope of a failure.
pub(super) fn failure(status: StatusCode, message: &str) -> Answer {
    json(
        status,
        &json!({ "code": status.as_u16(), "success": false, "message": message }),
    )
}

pub(super) fn redirect(location: &str) -> Answer {
    let mut answer = Response::new(AnswerBody::Whole(Bytes::new()));
    *answer.status_mut() = StatusCode::FOUND;
    set(&mut answer, hyper::header::LOCATION, location);
    answer
}

/// Sets a header; a value that cannot stand in one is left out.
pub(super) fn set(answer: &mut Answer, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}
