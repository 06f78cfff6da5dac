//! The form of a request: rejects what an upstream could interpret differently.

use http::{Method, Uri, Version, header, request::Parts};

use crate::{base::list_field, proxy::error::Error};

/// Rejects methods that are never served. This comes before the check of `Host`: a client that
/// expects a forward proxy sends another host, and should get 405.
pub(super) fn check_method(method: &Method) -> Result<(), Error> {
    // PRI begins HTTP/2: an upstream that accepts it would no longer speak HTTP/1.1.
    match *method {
        Method::CONNECT | Method::TRACE => Err(Error::MethodNotAllowed),
        _ if method.as_str() == "PRI" => Err(Error::MethodNotAllowed),
        _ => Ok(()),
    }
}

/// Rejects requests that an upstream could read as more than one.
pub(super) fn check_form(request: &Parts) -> Result<(), Error> {
    if !request
        .method
        .as_str()
        .bytes()
        .all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'))
    {
        return Err(Error::BadRequest(
            "the request's method contains characters other than capital letters",
        ));
    }
    check_target(&request.uri)?;
    // The scanner of HTTP/1 has checked the framing. HTTP/2 has no `Transfer-Encoding`, but its
    // parser accepts an empty length, and equal ones.
    if request.version == Version::HTTP_2 {
        let mut lengths = request.headers.get_all(header::CONTENT_LENGTH).iter();
        if let Some(length) = lengths.next()
            && (lengths.next().is_some() || length.is_empty())
        {
            return Err(Error::BadRequest("Content-Length is empty or repeated"));
        }
    }
    let mut expectations = request.headers.get_all(header::EXPECT).iter();
    if expectations.next().is_some() {
        let is_known = |element: &[u8]| element.eq_ignore_ascii_case(b"100-continue");
        if expectations.next().is_some()
            || !list_field::elements(&request.headers, &header::EXPECT).all(is_known)
        {
            return Err(Error::ExpectationFailed);
        }
    }
    Ok(())
}

fn check_target(target: &Uri) -> Result<(), Error> {
    match target.scheme_str() {
        None | Some("http" | "https") => {}
        Some(_) => {
            return Err(Error::BadRequest(
                "the request's target is not an http or https URL",
            ));
        }
    }
    if target
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err(Error::BadRequest(
            "the request's target contains user information",
        ));
    }
    match target.path_and_query().map(http::uri::PathAndQuery::as_str) {
        Some(path) if path.starts_with('/') => Ok(()),
        _ => Err(Error::BadRequest("the request's target has no path")),
    }
}
