//! Helpers for requests and responses: credentials, parameters, the JSON envelope.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION},
};
use serde_json::{Value, json};

use super::body::ResponseBody;

pub(super) type CloudResponse = Response<ResponseBody>;

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

pub(super) fn json(status: StatusCode, value: &Value) -> CloudResponse {
    let mut response = Response::new(ResponseBody::Whole(value.to_string().into()));
    *response.status_mut() = status;
    set(
        &mut response,
        CONTENT_TYPE,
        "application/json;charset=UTF-8",
    );
    response
}

/// The envelope of a success around these fields.
pub(super) fn success(mut fields: Value) -> CloudResponse {
    if let Some(fields) = fields.as_object_mut() {
        fields.insert("code".to_owned(), 0.into());
        fields.insert("success".to_owned(), true.into());
    }
    json(StatusCode::OK, &fields)
}

/// The envelope of a failure.
pub(super) fn failure(status: StatusCode, message: &str) -> CloudResponse {
    json(
        status,
        &json!({ "code": status.as_u16(), "success": false, "message": message }),
    )
}

pub(super) fn redirect(location: &str) -> CloudResponse {
    let mut response = Response::new(ResponseBody::Whole(Bytes::new()));
    *response.status_mut() = StatusCode::FOUND;
    set(&mut response, LOCATION, location);
    response
}

/// Sets a header; an illegal value is left out.
pub(super) fn set(response: &mut CloudResponse, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
