//! The interfaces of the issuer: RFC 6749 with the private cloud's paths and parameters.

use std::{future, io, sync::atomic::Ordering::Relaxed};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde_json::{Value, json};
use url::Url;

use super::{
    body::ResponseBody,
    faults::IssuerResponse,
    http::{self, CloudResponse, Parameters, failure, redirect, set, success},
    state::{Event, State},
    tokens::{Grant, GrantError, Issuer},
};

/// Bytes that a token interface reads of a form.
const FORM_LIMIT: usize = 64 * 1024;

/// `authorize.do`: the user is always logged in and always consents.
pub(super) fn authorize<T>(state: &State, request: &Request<T>) -> CloudResponse {
    let parameters = Parameters::of(request);
    if let Err(response) = check_client(state, request, &parameters) {
        return response;
    }
    let Some(redirect_uri) = parameters.first("redirect_uri") else {
        return failure(StatusCode::BAD_REQUEST, "redirect_uri is missing");
    };
    if state
        .config
        .redirect_uri
        .as_deref()
        .is_some_and(|registered| registered != redirect_uri)
    {
        return failure(
            StatusCode::BAD_REQUEST,
            "redirect_uri is not the registered one",
        );
    }
    send_code(state, redirect_uri, parameters.first("data"))
}

/// `authorizeByJWT.do`: a code without a browser. The signature of the JWT is not checked.
pub(super) fn authorize_by_jwt<T>(state: &State, request: &Request<T>) -> CloudResponse {
    let parameters = Parameters::of(request);
    if let Err(response) = check_client(state, request, &parameters) {
        return response;
    }
    let named = parameters.first("jwt_token").and_then(client_of_jwt);
    if named.as_deref() != Some(state.config.client_id.as_str()) {
        return failure(
            StatusCode::UNAUTHORIZED,
            "jwt_token is not a JWT that names this client_id",
        );
    }
    if state.config.jwt_redirects {
        let registered = state.config.redirect_uri.as_deref();
        let Some(redirect_uri) = registered.or_else(|| parameters.first("redirect_uri")) else {
            return failure(
                StatusCode::BAD_REQUEST,
                "redirect_uri is missing, and none is registered",
            );
        };
        return send_code(state, redirect_uri, parameters.first("data"));
    }
    match new_code(state, None) {
        Ok(code) => success(json!({ "data": { "code": code } })),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// `token.do` and `refreshToken.do`.
pub(super) async fn token(state: &State, path: &str, request: Request<Incoming>) -> CloudResponse {
    state.issuer_calls.fetch_add(1, Relaxed);
    let (latency, scripted) = {
        let mut faults = state.faults.lock();
        (faults.issuer_latency, faults.issuer_script.pop_front())
    };
    if !latency.is_zero() {
        state.clock.sleep_until(state.clock.now() + latency).await;
    }
    if let Some(scripted) = scripted {
        state.send(Event::RefreshRefused {
            error: name_of(&scripted),
        });
        return play(scripted).await;
    }
    match grant(state, path, request).await {
        Ok(grant) => {
            state.issuer_successes.fetch_add(1, Relaxed);
            state.send(Event::Refreshed {
                serial: grant.serial,
                lifetime: grant.lifetime,
            });
            tokens(&grant)
        }
        Err(error) => {
            state.send(Event::RefreshRefused {
                error: error.code().to_owned(),
            });
            error.response()
        }
    }
}

/// An error of RFC 6749 §5.2.
enum OAuthError {
    InvalidRequest(&'static str),
    InvalidClient,
    InvalidGrant,
    UnsupportedGrantType,
    ServerError,
}

impl From<io::Error> for OAuthError {
    fn from(_: io::Error) -> Self {
        Self::ServerError
    }
}

impl OAuthError {
    fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::ServerError => "server_error",
        }
    }

    fn response(&self) -> CloudResponse {
        let (status, description) = match self {
            Self::InvalidRequest(description) => (StatusCode::BAD_REQUEST, *description),
            Self::InvalidClient => (
                StatusCode::UNAUTHORIZED,
                "the client id or secret is wrong or missing",
            ),
            Self::InvalidGrant => (
                StatusCode::BAD_REQUEST,
                "the code or refresh token is unknown, expired or spent",
            ),
            Self::UnsupportedGrantType => (
                StatusCode::BAD_REQUEST,
                "this interface does not support that grant_type",
            ),
            Self::ServerError => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "there are no random bytes, or the state file cannot be used",
            ),
        };
        let mut response = http::json(
            status,
            &json!({ "error": self.code(), "error_description": description }),
        );
        set(&mut response, CACHE_CONTROL, "no-store");
        if let Self::InvalidClient = self {
            set(
                &mut response,
                WWW_AUTHENTICATE,
                r#"Basic realm="cloud", charset="UTF-8""#,
            );
        }
        response
    }
}

async fn grant(state: &State, path: &str, request: Request<Incoming>) -> Result<Grant, OAuthError> {
    if request.method() != Method::POST {
        return Err(OAuthError::InvalidRequest("only POST is allowed here"));
    }
    let (id, secret) = http::basic(request.headers()).ok_or(OAuthError::InvalidClient)?;
    if id != state.config.client_id || secret != state.config.client_secret {
        return Err(OAuthError::InvalidClient);
    }
    let parameters = read_parameters(request).await?;
    let required = |name: &str, missing| {
        if parameters.repeats(name) {
            return Err(OAuthError::InvalidRequest("a parameter is repeated"));
        }
        parameters
            .first(name)
            .ok_or(OAuthError::InvalidRequest(missing))
    };
    let grant_type = required("grant_type", "grant_type is missing")?;
    let now = state.clock.now();
    let granted = match (path, grant_type) {
        ("/api/token.do", "authorization_code") => {
            let code = required("code", "code is missing")?;
            let redirect_uri = parameters.first("redirect_uri");
            let exchange = |issuer: &mut Issuer| issuer.exchange(code, redirect_uri, now);
            state.issuer.change(exchange)
        }
        ("/api/refreshToken.do", "refresh_token") => {
            let token = required("refresh_token", "refresh_token is missing")?;
            state.issuer.change(|issuer| issuer.refresh(token, now))
        }
        _ => return Err(OAuthError::UnsupportedGrantType),
    };
    granted?.map_err(|error| match error {
        GrantError::Invalid => OAuthError::InvalidGrant,
        GrantError::Reused => {
            state.family_revoked();
            OAuthError::InvalidGrant
        }
        GrantError::NoRandomness => OAuthError::ServerError,
    })
}

async fn read_parameters(request: Request<Incoming>) -> Result<Parameters, OAuthError> {
    let mut parameters = Parameters::of(&request);
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let form = content_type
        .to_ascii_lowercase()
        .starts_with("application/x-www-form-urlencoded");
    let body = Limited::new(request.into_body(), FORM_LIMIT)
        .collect()
        .await;
    let body =
        body.map_err(|_| OAuthError::InvalidRequest("the body is incomplete or too long"))?;
    if form {
        parameters.add(&body.to_bytes());
    }
    Ok(parameters)
}

fn tokens(grant: &Grant) -> CloudResponse {
    let Grant {
        access_token,
        refresh_token,
        lifetime,
        ..
    } = grant;
    let fields = json!({ "access_token": access_token, "refresh_token": refresh_token, "expires_in": lifetime.as_secs() });
    let mut response = http::json(StatusCode::OK, &fields);
    set(&mut response, CACHE_CONTROL, "no-store");
    response
}

#[expect(
    clippy::result_large_err,
    reason = "the error is the response, built at most once a request"
)]
fn check_client<T>(
    state: &State,
    request: &Request<T>,
    parameters: &Parameters,
) -> Result<(), CloudResponse> {
    if request.method() != Method::GET {
        return Err(failure(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is allowed here",
        ));
    }
    if parameters.first("response_type") != Some("code") {
        return Err(failure(
            StatusCode::BAD_REQUEST,
            "response_type must be code",
        ));
    }
    if parameters.first("client_id") != Some(&state.config.client_id) {
        return Err(failure(StatusCode::BAD_REQUEST, "client_id is unknown"));
    }
    Ok(())
}

fn new_code(state: &State, redirect_uri: Option<String>) -> io::Result<String> {
    let now = state.clock.now();
    state
        .issuer
        .change(|issuer| issuer.code(redirect_uri, now))?
}

fn send_code(state: &State, redirect_uri: &str, data: Option<&str>) -> CloudResponse {
    let Some(mut location) = Url::parse(redirect_uri)
        .ok()
        .filter(|uri| matches!(uri.scheme(), "http" | "https"))
    else {
        return failure(
            StatusCode::BAD_REQUEST,
            "redirect_uri is not an absolute http or https URL",
        );
    };
    let code = match new_code(state, Some(redirect_uri.to_owned())) {
        Ok(code) => code,
        Err(error) => return failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    };
    location.query_pairs_mut().append_pair("code", &code);
    if let Some(data) = data {
        location.query_pairs_mut().append_pair("data", data);
    }
    redirect(location.as_str())
}

fn client_of_jwt(jwt: &str) -> Option<String> {
    let mut parts = jwt.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let payload: Value = serde_json::from_slice(&payload).ok()?;
    payload.get("client_id")?.as_str().map(str::to_owned)
}

fn name_of(scripted: &IssuerResponse) -> String {
    match scripted {
        IssuerResponse::Status(status, _) | IssuerResponse::Raw { status, .. } => {
            format!("HTTP {status}")
        }
        IssuerResponse::Hang => "no response".to_owned(),
        IssuerResponse::Endless => "an endless response".to_owned(),
    }
}

async fn play(scripted: IssuerResponse) -> CloudResponse {
    let status = |status| StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match scripted {
        IssuerResponse::Status(code, retry_after) => {
            let mut response =
                http::json(status(code), &json!({ "error": "temporarily_unavailable" }));
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(RETRY_AFTER, seconds.into());
            }
            response
        }
        IssuerResponse::Hang => future::pending().await,
        IssuerResponse::Raw {
            status: code,
            headers,
            body,
        } => {
            let mut response = Response::new(ResponseBody::Whole(body.into()));
            *response.status_mut() = status(code);
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) = (
                    name.parse::<HeaderName>(),
                    HeaderValue::from_bytes(value.as_bytes()),
                ) {
                    response.headers_mut().append(name, value);
                }
            }
            response
        }
        IssuerResponse::Endless => {
            let mut response = Response::new(ResponseBody::Endless(
                r#"{"access_token":"a","expires_in":3600,"#,
            ));
            set(&mut response, CONTENT_TYPE, "application/json");
            response
        }
    }
}
