//! Header fields of forwarded requests and responses: what is dropped, what is set, in which order.
//! Pure.

mod dropped;
#[cfg(test)]
mod tests;

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version, header, request,
    response,
    uri::{Authority, InvalidUriParts, PathAndQuery, Scheme},
};
use percent_encoding::{CONTROLS, utf8_percent_encode};

pub(crate) use self::dropped::clean_trailers;
use self::dropped::{ConnectionOptions, is_dropped_from_requests, is_hop_by_hop};
use crate::{
    base::{header_map, list_field},
    proxy::{
        framing::Fault,
        message::{
            cache_control::CachePolicy,
            forwarded::{self, ClientConnection, ForwardedHeaders},
            urls::{FieldMap, OwnUrls, UpstreamOrigin},
        },
    },
    upstream::{Endpoint, Host},
};

const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
/// What the head of a request to the upstream depends on, beside the client's head.
#[derive(Debug, Clone, Copy)]
pub struct Outbound<'a> {
    /// The endpoint that the request is sent to.
    pub endpoint: &'a Endpoint,
    /// The `Host` to send.
    pub host: &'a Host,
    /// The forwarding fields to add.
    pub forwarded: ForwardedHeaders,
    /// The proxy's URLs in the request.
    pub own_urls: OwnUrls<'a>,
    /// The client's connection.
    pub client: &'a ClientConnection,
    /// This instance in `CDN-Loop`, which detects a forwarding loop.
    pub loop_id: &'a HeaderValue,
    /// Fields that authenticate clients to the proxy, which are not forwarded.
    pub stripped: &'a [HeaderName],
    /// The `Authorization` to inject.
    pub authorization: Option<&'a HeaderValue>,
}

/// The fields of a request to the upstream: the client's fields without hop-by-hop fields (RFC 9110
/// §7.6.1) and credentials; URLs of the proxy are mapped to the upstream; `Host` and forwarding
/// fields are set; the token is set last, so that no field of the client can remove it.
///
/// `Content-Length` is kept; otherwise hyper sets the framing of the body.
pub fn outbound(head: &request::Parts, outbound: &Outbound<'_>) -> HeaderMap {
    let options = ConnectionOptions::of(&head.headers);
    let client_host = outbound.own_urls.host;
    let host = match outbound.host {
        Host::Endpoint => &outbound.endpoint.authority,
        Host::Fixed(name) => name,
        Host::Client => client_host.unwrap_or(&outbound.endpoint.authority),
    };
    let upstream = UpstreamOrigin {
        scheme: &outbound.endpoint.scheme,
        host: (*outbound.host != Host::Client).then_some(host),
    };
    let mut out = HeaderMap::with_capacity(head.headers.len() + 8);
    for (name, value) in &head.headers {
        if !is_dropped_from_requests(name, outbound.stripped) && !options.contains(name) {
            let mapped = outbound.own_urls.map_field(name, value, upstream);
            out.append(name.clone(), mapped.unwrap_or_else(|| value.clone()));
        }
    }
    out.insert(header::HOST, host.clone());
    forwarded::write(&mut out, outbound.client, client_host, outbound.forwarded);
    out.append(CDN_LOOP, outbound.loop_id.clone());
    if let Some(authorization) = outbound.authorization {
        out.insert(header::AUTHORIZATION, authorization.clone());
    }
    out
}

/// Converts the head of an HTTP/2 request to HTTP/1.1: `:authority` becomes `Host` (RFC 9113
/// §8.3.1), and the parts of a split `Cookie` are joined (§8.2.3).
pub(crate) fn from_http2(head: &mut request::Parts) {
    if let Some(authority) = head.uri.authority()
        && !head.headers.contains_key(header::HOST)
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(header::HOST, host);
    }
    let crumbs: Vec<&[u8]> = head
        .headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if crumbs.len() > 1
        && let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        head.headers.insert(header::COOKIE, cookie);
    }
}

/// Percent-encodes UTF-8 outside ASCII in the target, which RFC 3986 §2.1 requires and old clients
/// omit. Done before the rules are checked, so that they see the target that is sent.
///
/// # Errors
/// The target is too long for [`Uri`] when it is encoded. It stays as it is, and must not be sent.
pub(crate) fn encode_target(head: &mut request::Parts) -> Result<(), Fault> {
    let Some(target) = head
        .uri
        .path_and_query()
        .filter(|target| !target.as_str().is_ascii())
    else {
        return Ok(());
    };
    let encoded = utf8_percent_encode(target.as_str(), CONTROLS).to_string();
    let mut parts = head.uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(encoded).map_err(|_| Fault::TargetTooLong)?);
    head.uri = Uri::from_parts(parts).map_err(|_| Fault::TargetTooLong)?;
    Ok(())
}

/// Converts an HTTP/1.1 request to HTTP/2, the reverse of [`from_http2`].
///
/// # Errors
/// `Host` is no authority, or the target has no path: HTTP/2 cannot express the request.
pub(crate) fn for_http2<B>(
    request: &mut Request<B>,
    scheme: &Scheme,
) -> Result<(), InvalidUriParts> {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(header::HOST);
    request.headers_mut().remove(header::CONNECTION);
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    let mut target = std::mem::take(request.uri_mut()).into_parts();
    target.scheme = Some(scheme.clone());
    target.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    *request.uri_mut() = Uri::from_parts(target)?;
    Ok(())
}

/// Removes leading zeros from `Content-Length`: some servers would parse the number as octal.
pub(crate) fn normalize_content_length(headers: &mut HeaderMap) {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else {
        return;
    };
    if let [b'0', rest @ ..] = length.as_bytes()
        && !rest.is_empty()
    {
        let zeros = rest
            .iter()
            .take_while(|digit| **digit == b'0')
            .count()
            .min(rest.len() - 1);
        if let Ok(plain) = HeaderValue::from_bytes(&rest[zeros..]) {
            headers.insert(header::CONTENT_LENGTH, plain);
        }
    }
}

/// Whether a client waits for a 100 response before it sends its body, RFC 9110 §10.1.1.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    list_field::contains(headers, &header::EXPECT, "100-continue")
}

/// Whether a client accepts trailers, RFC 9110 §10.1.4.
pub(crate) fn accepts_trailers(headers: &HeaderMap) -> bool {
    list_field::contains(headers, &header::TE, "trailers")
}

/// Whether this instance has forwarded the request before. It uses `CDN-Loop` (RFC 8586) instead of
/// `Via`, because some servers disable compression when they see the latter.
pub(crate) fn has_loop_id(headers: &HeaderMap, loop_id: &HeaderValue) -> bool {
    list_field::elements(headers, &CDN_LOOP).any(|id| id == loop_id.as_bytes())
}

/// Whether a response has one interpretation: a single `Content-Length` or chunked coding (RFC 9112
/// §6.3), and no 101 without a request for an upgrade. Equal lengths become a single one.
pub(crate) fn is_unambiguous(head: &mut response::Parts, is_upgrade_requested: bool) -> bool {
    // The HTTP/2 parser accepts an empty value.
    let is_number = |length: &HeaderValue| {
        !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit)
    };
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let has_length = match (lengths.next(), lengths.next()) {
        (None, _) => false,
        (Some(length), None) if is_number(length) => true,
        (Some(length), None) if !length.as_bytes().contains(&b',') => return false,
        (Some(_), _) => {
            let Some(length) = common_length(&head.headers).filter(is_number) else {
                return false;
            };
            head.headers.insert(header::CONTENT_LENGTH, length);
            true
        }
    };
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    (head.status != StatusCode::SWITCHING_PROTOCOLS || is_upgrade_requested)
        && codings.next().is_none()
        && coding
            .is_none_or(|coding| !has_length && coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// The length that all `Content-Length` fields state, as several fields or as a list (RFC 9110
/// §8.6). `None` if they differ.
fn common_length(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lengths = headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii);
    let length = lengths.next()?;
    lengths
        .all(|other| other == length)
        .then(|| HeaderValue::from_bytes(length).ok())?
}

/// Whether the upstream authenticates the connection instead of the request, as NTLM and Negotiate
/// (RFC 4559) do. Such a connection must not be pooled.
pub(crate) fn authenticates_connection(headers: &HeaderMap) -> bool {
    list_field::elements(headers, &header::WWW_AUTHENTICATE).any(|challenge| {
        let scheme = challenge
            .split(|byte| *byte == b' ')
            .next()
            .unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
    })
}

/// Converts the head of a response for the client: drops hop-by-hop fields, maps URLs of the
/// upstream to the proxy, and, if the request carried the injected token, applies `cache_policy`.
pub(crate) fn inbound(
    head: &mut response::Parts,
    urls: FieldMap<'_>,
    cache_policy: Option<CachePolicy>,
) {
    let headers = &mut head.headers;
    let options = ConnectionOptions::of(headers);
    for name in options.names {
        headers.remove(name);
    }
    header_map::remove_where(headers, is_hop_by_hop);
    for (name, value) in headers.iter_mut() {
        if let Some(mapped) = urls.map_field(name, value) {
            *value = mapped;
        }
    }
    if let Some(cache_policy) = cache_policy {
        cache_policy.apply(headers);
    }
}
