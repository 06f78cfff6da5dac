//! What lets pages of allowed origins call and read: the Fetch standard's CORS protocol, as far as the upstream does not
//! speak it itself. Pure.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request, response,
};

use crate::base::list_field;

/// How long a browser may remember that a page may call, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

const PRIVATE_NETWORK_WISH: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Whether a browser asks on behalf of a page, before the page's own request.
pub(crate) fn is_preflight(request: &request::Parts) -> bool {
    request.method == Method::OPTIONS
        && request
            .headers
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer that lets a page do what its browser asks for: an origin that may call at all may call in any way.
pub(crate) fn preflight(request: &request::Parts) -> response::Parts {
    let (mut answer, ()) = Response::new(()).into_parts();
    answer.status = StatusCode::NO_CONTENT;
    for (wish, grant) in [
        (
            header::ACCESS_CONTROL_REQUEST_METHOD,
            header::ACCESS_CONTROL_ALLOW_METHODS,
        ),
        (
            header::ACCESS_CONTROL_REQUEST_HEADERS,
            header::ACCESS_CONTROL_ALLOW_HEADERS,
        ),
        (PRIVATE_NETWORK_WISH, PRIVATE_NETWORK),
    ] {
        if let Some(wished) = request.headers.get(&wish) {
            answer.headers.insert(grant, wished.clone());
        }
        answer.headers.append(header::VARY, wish.into());
    }
    answer
        .headers
        .insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    answer
}

/// Lets a page of `origin` read an answer, unless the upstream has its own say on that. Answers to others are marked as
/// well: a browser must not show a page what it keeps for another one.
pub(crate) fn open(origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
    if answer.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    if let Some(origin) = origin {
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        answer.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
    if !list_field::contains(answer, &header::VARY, "origin")
        && !list_field::contains(answer, &header::VARY, "*")
    {
        answer.append(header::VARY, HeaderValue::from_static("Origin"));
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asked(method: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_preflight_grants_what_it_asks_for() {
        let method = ("access-control-request-method", "PUT");
        assert!(!is_preflight(&asked("GET", &[method])) && !is_preflight(&asked("OPTIONS", &[])));
        let asked = asked(
            "OPTIONS",
            &[
                method,
                ("access-control-request-headers", "x-api-key, content-type"),
            ],
        );
        assert!(is_preflight(&asked));
        let answer = preflight(&asked);
        assert_eq!(answer.status, 204);
        assert_eq!(answer.headers["access-control-allow-methods"], "PUT");
        assert_eq!(
            answer.headers["access-control-allow-headers"],
            "x-api-key, content-type"
        );
        assert!(!answer.headers.contains_key(PRIVATE_NETWORK));
    }

    #[test]
    fn the_upstreams_own_say_wins() {
        let origin = HeaderValue::from_static("https://app.example.com");
        let opened = |origin: Option<&HeaderValue>, fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            open(origin, &mut headers);
            let vary: Vec<_> = headers
                .get_all("vary")
                .iter()
                .map(|value| value.to_str().unwrap())
                .collect();
            let allowed = headers
                .get("access-control-allow-origin")
                .map(|value| value.to_str().unwrap());
            (allowed.map(str::to_owned), vary.join(" | "))
        };
        let ours = Some("https://app.example.com".to_owned());
        assert_eq!(
            opened(Some(&origin), &[]),
            (ours.clone(), "Origin".to_owned())
        );
        assert_eq!(
            opened(Some(&origin), &[("vary", "Accept")]),
            (ours.clone(), "Accept | Origin".to_owned())
        );
        assert_eq!(
            opened(Some(&origin), &[("vary", "accept, ORIGIN")]),
            (ours.clone(), "accept, ORIGIN".to_owned())
        );
        assert_eq!(
            opened(Some(&origin), &[("vary", "*")]),
            (ours, "*".to_owned())
        );
        assert_eq!(opened(None, &[]), (None, "Origin".to_owned()));
        let theirs = [("access-control-allow-origin", "*")];
        assert_eq!(
            opened(Some(&origin), &theirs),
            (Some("*".to_owned()), String::new())
        );
    }
}
