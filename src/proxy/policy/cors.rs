//! CORS (Fetch standard §3.2) for web pages of allowed origins, where the upstream does not
//! implement it itself. Pure.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request, response,
};

use crate::base::list_field;

/// How long a browser may cache a preflight response, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

/// Whether a request is a CORS preflight.
pub(crate) fn is_preflight(request: &request::Parts) -> bool {
    request.method == Method::OPTIONS
        && request
            .headers
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The preflight response, which allows all that is requested: methods and headers of an allowed
/// origin are not restricted.
pub(crate) fn preflight(request: &request::Parts) -> response::Parts {
    let (mut response, ()) = Response::new(()).into_parts();
    response.status = StatusCode::NO_CONTENT;
    for (request_field, response_field) in [
        (
            header::ACCESS_CONTROL_REQUEST_METHOD,
            header::ACCESS_CONTROL_ALLOW_METHODS,
        ),
        (
            header::ACCESS_CONTROL_REQUEST_HEADERS,
            header::ACCESS_CONTROL_ALLOW_HEADERS,
        ),
        (REQUEST_PRIVATE_NETWORK, ALLOW_PRIVATE_NETWORK),
    ] {
        if let Some(requested) = request.headers.get(&request_field) {
            response.headers.insert(response_field, requested.clone());
        }
        response.headers.append(header::VARY, request_field.into());
    }
    response
        .headers
        .insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    response
}

/// Lets a web page of `origin` read a response, unless the upstream has set CORS headers itself.
/// `Vary` is set on all responses: a cache must not use one for a page of another origin.
pub(crate) fn allow_origin(origin: Option<&HeaderValue>, response: &mut HeaderMap) {
    if response.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    if let Some(origin) = origin {
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        response.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
    if !list_field::contains(response, &header::VARY, "origin")
        && !list_field::contains(response, &header::VARY, "*")
    {
        response.append(header::VARY, HeaderValue::from_static("Origin"));
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn preflight_request(method: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_preflight_response_allows_what_is_requested() {
        let method = ("access-control-request-method", "PUT");
        assert!(
            !is_preflight(&preflight_request("GET", &[method]))
                && !is_preflight(&preflight_request("OPTIONS", &[]))
        );
        let request = preflight_request(
            "OPTIONS",
            &[
                method,
                ("access-control-request-headers", "x-api-key, content-type"),
            ],
        );
        assert!(is_preflight(&request));
        let response = preflight(&request);
        assert_eq!(response.status, 204);
        assert_eq!(response.headers["access-control-allow-methods"], "PUT");
        assert_eq!(
            response.headers["access-control-allow-headers"],
            "x-api-key, content-type"
        );
        assert!(!response.headers.contains_key(ALLOW_PRIVATE_NETWORK));
    }

    #[test]
    fn headers_of_the_upstream_are_kept() {
        let origin = HeaderValue::from_static("https://app.example.com");
        let allowed = |origin: Option<&HeaderValue>, fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            allow_origin(origin, &mut headers);
            let vary: Vec<_> = headers
                .get_all("vary")
                .iter()
                .map(|value| value.to_str().unwrap())
                .collect();
            let origin = headers
                .get("access-control-allow-origin")
                .map(|value| value.to_str().unwrap());
            (origin.map(str::to_owned), vary.join(" | "))
        };
        let ours = Some("https://app.example.com".to_owned());
        assert_eq!(
            allowed(Some(&origin), &[]),
            (ours.clone(), "Origin".to_owned())
        );
        assert_eq!(
            allowed(Some(&origin), &[("vary", "Accept")]),
            (ours.clone(), "Accept | Origin".to_owned())
        );
        assert_eq!(
            allowed(Some(&origin), &[("vary", "accept, ORIGIN")]),
            (ours.clone(), "accept, ORIGIN".to_owned())
        );
        assert_eq!(
            allowed(Some(&origin), &[("vary", "*")]),
            (ours, "*".to_owned())
        );
        assert_eq!(allowed(None, &[]), (None, "Origin".to_owned()));
        let theirs = [("access-control-allow-origin", "*")];
        assert_eq!(
            allowed(Some(&origin), &theirs),
            (Some("*".to_owned()), String::new())
        );
    }
}
