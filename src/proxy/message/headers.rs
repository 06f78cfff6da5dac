//! Heads on their way through: what is dropped, what is set, in which order. Pure.

mod dropped;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version, header, request,
    response,
    uri::{Authority, PathAndQuery, Scheme},
};
use percent_encoding::{CONTROLS, utf8_percent_encode};

pub(crate) use self::dropped::clean_trailers;
use self::dropped::{HOP_BY_HOP, Nominated, is_dropped_from_requests};
use crate::{
    base::list_field,
    proxy::{
        error::Error,
        message::{cache_control::CachePolicy, urls::UrlMap},
    },
    upstream::{Endpoint, Host},
};

const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
const DESTINATION: HeaderName = HeaderName::from_static("destination");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The forwarding fields that are added to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedHeaders {
    /// `X-Forwarded-For`, `X-Forwarded-Host`, `X-Forwarded-Proto`.
    XForwarded,
    /// `Forwarded`, RFC 7239.
    Forwarded,
    /// None.
    Off,
}

/// The client as the upstream is told of it, prepared once a connection.
#[derive(Debug)]
pub struct Client {
    address: Option<SocketAddr>,
    /// How it reaches us.
    scheme: Scheme,
    forwarded_for: Option<HeaderValue>,
}

impl Client {
    /// A client at `address` (`None` behind a local socket), which reaches us by `scheme`.
    pub fn new(address: Option<SocketAddr>, scheme: Scheme) -> Self {
        let forwarded_for = address.and_then(|address| {
            HeaderValue::try_from(address.ip().to_canonical().to_string()).ok()
        });
        Self {
            address,
            scheme,
            forwarded_for,
        }
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

/// Where addresses of an upstream's lead when they come home.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Home<'a> {
    pub(crate) client: &'a Client,
    /// The name by which the client reaches us, if it told.
    pub(crate) host: Option<&'a HeaderValue>,
    /// The path below which our upstream is.
    pub(crate) prefix: &'a str,
}

impl Home<'_> {
    /// How the client reaches us, as an address begins: `scheme://host`, or nothing.
    pub(crate) fn base(&self) -> Vec<u8> {
        let scheme = self.client.scheme.as_str().as_bytes();
        self.host
            .map(|host| [scheme, b"://", host.as_bytes()].concat())
            .unwrap_or_default()
    }
}

/// What an outbound head is made with, beside the client's own head.
#[derive(Debug, Clone, Copy)]
pub struct Rewrite<'a> {
    /// Where the request goes.
    pub endpoint: &'a Endpoint,
    /// What goes there as `Host`.
    pub host: &'a Host,
    /// Which forwarding fields are added.
    pub forwarded: ForwardedHeaders,
    /// Whose request it is.
    pub client: &'a Client,
    /// Our mark, by which a request that comes round again is recognised.
    pub mark: &'a HeaderValue,
    /// Fields that are for us alone: what clients show to prove who they are.
    pub stripped: &'a [HeaderName],
    /// The token.
    pub authorization: Option<&'a HeaderValue>,
}

/// The head that goes to the upstream: the client's, with hop-by-hop fields (RFC 9110 §7.6.1) and credentials dropped,
/// `Host`, own origins and forwarding fields set, and the token last, so that nothing a client sends can remove it.
///
/// `Content-Length` stays; the body's framing is otherwise the sender's business.
pub fn outbound(head: &request::Parts, rewrite: &Rewrite<'_>) -> HeaderMap {
    let nominated = Nominated::of(&head.headers);
    let mut out = HeaderMap::with_capacity(head.headers.len() + 8);
    for (name, value) in &head.headers {
        if !is_dropped_from_requests(name, rewrite.stripped) && !nominated.contains(name) {
            out.append(name.clone(), value.clone());
        }
    }
    let client_host = head.headers.get(header::HOST);
    match rewrite.host {
        Host::Endpoint => out.insert(header::HOST, rewrite.endpoint.authority.clone()),
        Host::Fixed(name) => out.insert(header::HOST, name.clone()),
        Host::Client => out.insert(
            header::HOST,
            client_host.unwrap_or(&rewrite.endpoint.authority).clone(),
        ),
    };
    if let Some(client_host) = client_host.filter(|_| *rewrite.host != Host::Client) {
        rewrite_origin(&mut out, client_host, rewrite);
    }
    add_forwarding(&mut out, client_host, rewrite);
    out.append(CDN_LOOP, rewrite.mark.clone());
    if let Some(authorization) = rewrite.authorization {
        out.insert(header::AUTHORIZATION, authorization.clone());
    }
    out
}

/// Writes what HTTP/2 says in its own ways as HTTP/1.1 says it: `:authority` is `Host` (RFC 9113 §8.3.1), and the crumbs of
/// a cookie are one again (§8.2.3).
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

/// Where WebDAV is to copy or move something, RFC 4918 §10.3.
///
/// # Errors
/// When servers could disagree on where that is.
pub(crate) fn destination(head: &request::Parts) -> Result<Option<Uri>, Error> {
    if !matches!(head.method.as_str(), "COPY" | "MOVE") {
        return Ok(None);
    }
    let mut all = head.headers.get_all(DESTINATION).iter();
    let Some(destination) = all.next() else {
        return Ok(None);
    };
    let address = Uri::try_from(destination.as_bytes()).ok();
    let is_clear = |address: &Uri| {
        (address.scheme().is_some() || address.authority().is_none())
            && !address.path().starts_with("//")
    };
    match address.filter(|address| all.next().is_none() && is_clear(address)) {
        Some(address) => Ok(Some(address)),
        None => Err(Error::BadRequest("Destination is not one address")),
    }
}

/// Percent-encodes what old clients write into a target as it is: UTF-8 beyond ASCII, which RFC 3986 §2.1 does not allow.
/// What is judged from here on is what is sent.
pub(crate) fn encode_target(head: &mut request::Parts) {
    let Some(target) = head
        .uri
        .path_and_query()
        .filter(|target| !target.as_str().is_ascii())
    else {
        return;
    };
    let encoded = utf8_percent_encode(target.as_str(), CONTROLS).to_string();
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    // Cannot fail: only triplets were added, and the limit for targets leaves room for them.
    parts.path_and_query = PathAndQuery::try_from(encoded).ok();
    head.uri = Uri::from_parts(parts).unwrap_or_default();
}

/// Writes a request of HTTP/1.1 as HTTP/2 says it, the other way round.
pub(crate) fn for_http2<B>(request: &mut Request<B>, scheme: &Scheme) {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(header::HOST);
    request.headers_mut().remove(header::CONNECTION);
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    let mut target = std::mem::take(request.uri_mut()).into_parts();
    target.scheme = Some(scheme.clone());
    target.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    // Fails only without a path or an authority: neither is missing.
    *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
}

/// Writes a length without the zeros that old programs fill it up with: to some servers it would be octal.
pub(crate) fn plain_length(headers: &mut HeaderMap) {
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

/// Whether a client can take trailers, RFC 9110 §10.1.4.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    list_field::contains(headers, &header::TE, "trailers")
}

/// Whether a request has passed this instance before. `CDN-Loop` (RFC 8586) rather than `Via`, since some servers stop
/// compressing when they see the latter.
pub(crate) fn has_loop_id(headers: &HeaderMap, mark: &HeaderValue) -> bool {
    list_field::elements(headers, &CDN_LOOP).any(|id| id == mark.as_bytes())
}

/// Whether an upstream's answer means the same to everybody: one length, or chunks and nothing else (RFC 9112 §6.3), and
/// no switch of protocols that nobody asked for.
pub(crate) fn is_unambiguous(head: &response::Parts, is_upgrade_wished: bool) -> bool {
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    let (length, coding) = (lengths.next(), codings.next());
    // HTTP/2 lets an empty one through.
    let is_number = |length: &HeaderValue| {
        !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit)
    };
    (head.status != StatusCode::SWITCHING_PROTOCOLS || is_upgrade_wished)
        && lengths.next().is_none()
        && codings.next().is_none()
        && length.is_none_or(is_number)
        && coding.is_none_or(|coding| {
            coding.as_bytes().eq_ignore_ascii_case(b"chunked") && length.is_none()
        })
}

/// Whether an upstream takes whoever comes by this connection for the same person from now on: NTLM and Negotiate
/// (RFC 4559) vouch for connections, not for requests.
pub(crate) fn authenticates_connection(headers: &HeaderMap) -> bool {
    list_field::elements(headers, &header::WWW_AUTHENTICATE).any(|challenge| {
        let scheme = challenge
            .split(|byte| *byte == b' ')
            .next()
            .unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
    })
}

/// The upstream's head as the client gets it: hop-by-hop fields dropped, an address of the upstream's turned into ours,
/// and, if the request carried our token, kept out of shared caches as `privacy` says.
pub(crate) fn inbound(
    head: &mut response::Parts,
    endpoint: &Endpoint,
    origins: &UrlMap,
    home: &Home<'_>,
    privacy: Option<CachePolicy>,
) {
    let headers = &mut head.headers;
    let nominated = Nominated::of(headers);
    for name in nominated.names {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let address = headers.get(&name);
        let address = address
            .and_then(|address| mapped_location(address.as_bytes(), endpoint, origins, home));
        if let Some(address) = address.and_then(|address| HeaderValue::from_bytes(&address).ok()) {
            headers.insert(name, address);
        }
    }
    if let Some(privacy) = privacy {
        privacy.impose(headers);
    }
}

/// A page that was loaded from us calls us its origin, and who moves a file names a place that is here; to the upstream, that
/// is the upstream's own.
fn rewrite_origin(out: &mut HeaderMap, client_host: &HeaderValue, rewrite: &Rewrite<'_>) {
    let Rewrite {
        endpoint, client, ..
    } = rewrite;
    for name in [header::ORIGIN, header::REFERER, DESTINATION] {
        let Some(value) = out.get(&name) else {
            continue;
        };
        let Some(rest) = after_origin(value.as_bytes(), &client.scheme, client_host.as_bytes())
        else {
            continue;
        };
        let at_home = [endpoint.origin.as_bytes(), rest].concat();
        if let Ok(value) = HeaderValue::from_bytes(&at_home) {
            out.insert(name, value);
        }
    }
}

/// What follows `scheme://<host>` in an address of that origin.
fn after_origin<'a>(address: &'a [u8], scheme: &Scheme, host: &[u8]) -> Option<&'a [u8]> {
    let rest = address
        .strip_prefix(scheme.as_str().as_bytes())?
        .strip_prefix(b"://")?;
    let (origin, rest) = rest.split_at_checked(host.len())?;
    (origin.eq_ignore_ascii_case(host) && matches!(rest.first(), None | Some(b'/' | b'?' | b'#')))
        .then_some(rest)
}

fn add_forwarding(out: &mut HeaderMap, client_host: Option<&HeaderValue>, rewrite: &Rewrite<'_>) {
    match rewrite.forwarded {
        ForwardedHeaders::Off => {}
        ForwardedHeaders::XForwarded => {
            if let Some(address) = &rewrite.client.forwarded_for {
                let chain = match out.get(X_FORWARDED_FOR) {
                    None => Some(address.clone()),
                    Some(_) => joined(out, &X_FORWARDED_FOR, address.as_bytes()),
                };
                out.insert(X_FORWARDED_FOR, chain.unwrap_or_else(|| address.clone()));
            }
            // What a client claims about these two is not taken over: only we know where it reached us.
            match client_host {
                Some(host) => out.insert(X_FORWARDED_HOST, host.clone()),
                None => out.remove(X_FORWARDED_HOST),
            };
            let proto = if rewrite.client.scheme == Scheme::HTTPS {
                "https"
            } else {
                "http"
            };
            out.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
        }
        ForwardedHeaders::Forwarded => {
            let node = match rewrite
                .client
                .address
                .map(|address| address.ip().to_canonical())
            {
                Some(std::net::IpAddr::V4(ip)) => format!("for={ip}"),
                Some(std::net::IpAddr::V6(ip)) => format!("for=\"[{ip}]\""),
                None => "for=unknown".to_owned(),
            };
            let host = client_host.and_then(|host| host.to_str().ok());
            let host = host
                .map(|host| format!(";host=\"{host}\""))
                .unwrap_or_default();
            let element = format!("{node}{host};proto={}", rewrite.client.scheme);
            if let Some(chain) = joined(out, &header::FORWARDED, element.as_bytes()) {
                out.insert(header::FORWARDED, chain);
            }
        }
    }
}

/// All values of a list field and one more, as one value.
fn joined(headers: &HeaderMap, name: &HeaderName, last: &[u8]) -> Option<HeaderValue> {
    let mut values: Vec<&[u8]> = headers
        .get_all(name)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    values.push(last);
    HeaderValue::from_bytes(&values.join(&b", "[..])).ok()
}

/// A `Location` as the client can reach it.
fn mapped_location(
    location: &[u8],
    endpoint: &Endpoint,
    origins: &UrlMap,
    home: &Home<'_>,
) -> Option<Vec<u8>> {
    let is_network_path = location.starts_with(b"//");
    if location.starts_with(b"/") && !is_network_path {
        return (!home.prefix.is_empty()).then(|| [home.prefix.as_bytes(), location].concat());
    }
    // RFC 3986 §4.2: of the scheme by which the answer came.
    let scheme = if is_network_path {
        endpoint.scheme.as_str()
    } else {
        ""
    };
    let colon = if is_network_path { ":" } else { "" };
    origins.home(
        &[scheme.as_bytes(), colon.as_bytes(), location].concat(),
        &home.base(),
    )
}
