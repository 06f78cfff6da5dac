//! The guard against requests from foreign web pages (DNS rebinding, CSRF). Pure.
//!
//! Every request that the proxy accepts is sent with the operator's token. A web page can send
//! requests to `localhost`, also through a DNS name of its own that resolves to it. Such requests
//! are recognised by `Host`, `Origin` and `Sec-Fetch-Site`; clients other than browsers send none
//! of the latter two.

mod form;

use std::{cell::RefCell, collections::BTreeSet};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version, header, request::Parts, response,
    uri::Scheme,
};

use crate::{
    base::host,
    net::socket::Address,
    proxy::{error::Error, policy::cors},
};

/// Parsed once: to look a name up as text is to parse it each time.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Exceptions to the guard of a listener; by default there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardConfig {
    /// Further host names that `Host` may carry, in lower case, without a port.
    pub allowed_hosts: BTreeSet<String>,
    /// Further origins of web pages that may send requests, as `Origin` spells them, in lower case.
    pub allowed_origins: BTreeSet<String>,
    /// Whether browsers may follow links of other sites: requests for a document, by GET or HEAD.
    pub allow_navigation: bool,
    /// A header that every request over TCP must carry. It is not forwarded.
    pub required_header: Option<HeaderName>,
    /// Disables the checks of `Host`, `Origin` and `Sec-Fetch-Site`. Safe where every client sends
    /// its key in a header: a web page that does not know a key cannot send an accepted request.
    pub is_off: bool,
}

/// The guard of one listener.
#[derive(Debug)]
pub(crate) struct Guard {
    config: GuardConfig,
    exposure: Exposure,
}

/// From where a listener can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposure {
    /// From this machine, over TCP.
    Loopback,
    /// From other machines as well.
    Network,
    /// Through a Unix domain socket: not by browsers.
    File,
}

/// The exposure of a listener at this address.
pub(crate) fn exposure(address: &Address) -> Exposure {
    match address {
        Address::Unix(_) => Exposure::File,
        address if address.is_local() => Exposure::Loopback,
        Address::Tcp(_) => Exposure::Network,
    }
}

/// The last accepted `Host` of a connection, which rarely changes.
pub(crate) type KnownHost = RefCell<Option<HeaderValue>>;

impl Guard {
    pub(crate) fn new(config: GuardConfig, exposure: Exposure) -> Self {
        Self { config, exposure }
    }

    /// Names of the proxy besides those of this machine, in lower case, without a port.
    pub(crate) fn names(&self) -> &BTreeSet<String> {
        &self.config.allowed_hosts
    }

    /// Rejects requests that a foreign web page may have caused, and requests that cannot be
    /// forwarded unambiguously. `scheme` is that of the URLs which the client uses.
    pub(crate) fn check(
        &self,
        request: &Parts,
        known: &KnownHost,
        scheme: &Scheme,
    ) -> Result<(), Error> {
        form::check_method(&request.method)?;
        self.check_host(request, known)?;
        self.check_site(request, scheme)?;
        form::check_form(request)
    }

    /// Rejects requests without `required_header`, which a foreign page cannot set without a CORS
    /// preflight. Over plain HTTP on a name of the local network, browsers do not send
    /// `Sec-Fetch-Site`.
    pub(crate) fn check_required(&self, headers: &HeaderMap) -> Result<(), Error> {
        match &self.config.required_header {
            Some(name) if self.exposure != Exposure::File && !headers.contains_key(name) => {
                Err(Error::NoRequiredHeader(name.clone()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The response to a CORS preflight from an allowed origin. A preflight carries no credentials
    /// and is not forwarded.
    pub(crate) fn preflight(&self, request: &Parts) -> Option<response::Parts> {
        cors::is_preflight(request)
            .then(|| self.allowed_origin(&request.headers))?
            .map(|_| cors::preflight(request))
    }

    /// Lets web pages of allowed origins read a response.
    pub(crate) fn add_cors_headers(&self, request: &HeaderMap, response: &mut HeaderMap) {
        if !self.config.allowed_origins.is_empty() {
            cors::allow_origin(self.allowed_origin(request), response);
        }
    }

    /// The request's `Origin`, if it is an allowed one.
    fn allowed_origin<'a>(&self, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let mut origins = request.get_all(header::ORIGIN).iter();
        let origin = origins.next()?;
        (origins.next().is_none() && self.config.allowed_origins.contains(&lowercase(origin)))
            .then_some(origin)
    }

    /// Checks `Host` alone: for URLs that another site may redirect a browser to.
    pub(crate) fn check_host(&self, request: &Parts, known: &KnownHost) -> Result<(), Error> {
        let Some(host) = host_of(request)? else {
            // HTTP/1.0 requests may come without Host; the target may have an authority.
            return match request.uri.authority().map(http::uri::Authority::as_str) {
                Some(authority) if request.version == Version::HTTP_10 => {
                    self.check_name(authority.as_bytes())
                }
                _ => self.check_without_host(request),
            };
        };
        if known.borrow().as_ref() == Some(host) {
            return Ok(());
        }
        self.check_name(host.as_bytes())?;
        // A copy: a clone would keep the buffer of the whole head alive with the connection.
        *known.borrow_mut() = HeaderValue::from_bytes(host.as_bytes()).ok();
        Ok(())
    }

    fn check_name(&self, host: &[u8]) -> Result<(), Error> {
        let name = host_name(host).ok_or(Error::BadRequest(
            "Host is not a host name or an IP address",
        ))?;
        if self.exposure != Exposure::File && !self.config.is_off && !self.serves(&name) {
            return Err(Error::ForeignHost(name));
        }
        Ok(())
    }

    fn check_without_host(&self, request: &Parts) -> Result<(), Error> {
        let is_from_browser = !self.config.is_off
            && (request.headers.contains_key(header::ORIGIN)
                || request.headers.contains_key(SEC_FETCH_SITE));
        match request.version {
            Version::HTTP_10 if is_from_browser && self.exposure != Exposure::File => {
                Err(Error::ForeignHost(String::new()))
            }
            Version::HTTP_10 => Ok(()),
            _ => Err(Error::BadRequest("the request has no Host")),
        }
    }

    /// Whether a host, in lower case and without a port, is one that this listener serves.
    fn serves(&self, name: &str) -> bool {
        let bare = name.strip_suffix('.').unwrap_or(name);
        let is_named = host::is_localhost(bare) || self.config.allowed_hosts.contains(bare);
        // DNS rebinding needs a name, not an IP address. On a loopback listener, however, a page
        // from any other address is foreign.
        match host::literal(bare) {
            // Some systems connect to themselves by 0.0.0.0, which browsers do not treat as local.
            Some(ip) if ip.is_unspecified() => false,
            Some(ip) => is_named || self.exposure == Exposure::Network || host::is_loopback(ip),
            None => is_named,
        }
    }

    fn check_site(&self, request: &Parts, scheme: &Scheme) -> Result<(), Error> {
        if self.config.is_off {
            return Ok(());
        }
        let headers = &request.headers;
        let mut is_origin_allowed = false;
        for origin in headers.get_all(header::ORIGIN) {
            let lowercase = lowercase(origin);
            let is_own = headers
                .get(header::HOST)
                .is_some_and(|host| self.is_own_origin(&lowercase, host.as_bytes(), scheme));
            if !is_own && !self.config.allowed_origins.contains(&lowercase) {
                return Err(Error::ForeignOrigin(printable(origin)));
            }
            is_origin_allowed = true;
        }
        for site in headers.get_all(SEC_FETCH_SITE) {
            if matches!(site.as_bytes(), b"none" | b"same-origin") || is_origin_allowed {
                continue;
            }
            if !is_navigation(request) {
                return Err(Error::ForeignSite(printable(site)));
            }
            if !self.config.allow_navigation {
                return Err(Error::ForeignNavigation(printable(site)));
            }
        }
        Ok(())
    }

    /// Whether an origin, in lower case, is that of the request's own URL.
    ///
    /// Behind a TLS load balancer that is not trusted to state it, the URLs of browsers are `https`
    /// ones while `own_scheme` is not. This holds for allowed hosts alone: `https://localhost` may
    /// be another server of this machine. If `own_scheme` is `https`, an `http` origin is foreign,
    /// since anyone on the network can forge its pages.
    fn is_own_origin(&self, origin: &str, host: &[u8], own_scheme: &Scheme) -> bool {
        let Some((scheme, authority)) = origin.split_once("://") else {
            return false;
        };
        let authority = authority.as_bytes();
        if scheme == own_scheme.as_str() {
            let default_port: &[u8] = if scheme == "https" { b":443" } else { b":80" };
            let host = host.strip_suffix(default_port).unwrap_or(host);
            return authority.eq_ignore_ascii_case(host);
        }
        let (name, _) = host::split_port(authority);
        let is_named = || {
            let mut names = self.config.allowed_hosts.iter();
            names.any(|allowed| allowed.as_bytes() == name)
        };
        scheme == "https" && host::is_same(authority, host) && is_named()
    }
}

/// The request's `Host`.
///
/// # Errors
/// There are several, or the target has another one.
pub(crate) fn host_of(request: &Parts) -> Result<Option<&HeaderValue>, Error> {
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Error::BadRequest("the request has more than one Host"));
    }
    // RFC 9112 §3.2.2 gives precedence to the authority of an absolute target, some servers to
    // Host. They must name the same server.
    if let (Some(authority), Some(host)) = (request.uri.authority(), host)
        && !is_same(
            request.uri.scheme(),
            authority.as_str().as_bytes(),
            host.as_bytes(),
        )
    {
        return Err(Error::BadRequest(
            "the authority of the request's target differs from Host",
        ));
    }
    Ok(host)
}

/// Whether the authority of a target and `Host` are equal, the default port counting as none (RFC
/// 3986 §6.2.3).
fn is_same(scheme: Option<&Scheme>, authority: &[u8], host: &[u8]) -> bool {
    let default: &[u8] = if scheme == Some(&Scheme::HTTPS) {
        b":443"
    } else {
        b":80"
    };
    let name = |authority: &'_ [u8]| -> usize {
        let port = [default, b":"]
            .into_iter()
            .find(|port| authority.ends_with(port));
        authority.len() - port.map_or(0, <[u8]>::len)
    };
    authority[..name(authority)].eq_ignore_ascii_case(&host[..name(host)])
}

/// Whether a browser requests a document after an action of the user (`Sec-Fetch-User`), to show it
/// in a window of its own: the page that leads there cannot read it. In a frame, that page could
/// still place it under the user's clicks.
fn is_navigation(request: &Parts) -> bool {
    let is = |name: &str, expected: &[u8]| {
        let mut values = request.headers.get_all(name).iter();
        values
            .next()
            .map(|value| value.as_bytes() == expected && values.next().is_none())
    };
    matches!(request.method, Method::GET | Method::HEAD)
        && is("sec-fetch-mode", b"navigate") == Some(true)
        && is("sec-fetch-user", b"?1") == Some(true)
        && is("sec-fetch-dest", b"document") != Some(false)
}

fn lowercase(origin: &HeaderValue) -> String {
    String::from_utf8_lossy(origin.as_bytes()).to_ascii_lowercase()
}

fn printable(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes())
        .chars()
        .filter(|c| !c.is_control())
        .take(100)
        .collect()
}

/// The host in a `Host` field, in lower case and without its port. `None` if it is neither a host
/// name nor an IP address.
pub(crate) fn host_name(host: &[u8]) -> Option<String> {
    let (name, _) = host::parse(std::str::from_utf8(host).ok()?)?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    // The longest name, RFC 1035 §2.3.4: it is logged.
    let is_name = (1..=255).contains(&name.len()) && name.bytes().all(legal);
    let is_literal = name.starts_with('[') && host::literal(name).is_some();
    (is_name || is_literal).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
