//! The local guard: what may reach the proxy's authority at all. Pure.
//!
//! Whoever can send a request here acts with the operator's token. A web page can send requests to `localhost`, also by
//! way of a DNS name of its own that resolves there. Browsers tell on such a page by `Host`, `Origin` and
//! `Sec-Fetch-Site`; programs send none of the latter two.

use std::{cell::RefCell, collections::BTreeSet};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, request::Parts, response,
    uri::Scheme,
};

use crate::{
    base::host,
    net::socket::Address,
    proxy::{error::Error, policy::cors},
};

/// Exceptions to the guard of a listener; by default there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardConfig {
    /// Further host names that `Host` may carry, in lower case, without a port.
    pub allowed_hosts: BTreeSet<String>,
    /// Further origins of web pages that may send requests, as `Origin` spells them, in lower case.
    pub allowed_origins: BTreeSet<String>,
    /// A header that every request over TCP must carry. It is not forwarded.
    pub required_header: Option<HeaderName>,
    /// Disables the checks of `Host`, `Origin` and `Sec-Fetch-Site`. Safe where every client sends
    /// its key in a header: a web page that does not know a key cannot send an accepted request.
    pub is_off: bool,
}

/// The guard of one listener.
#[derive(Debug)]
pub(crate) struct Guard {
    guard: GuardConfig,
    exposure: Exposure,
    /// As which the listener is reached.
    scheme: Scheme,
}

/// Who can reach a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposure {
    /// This machine, by TCP.
    Loopback,
    /// Other machines as well.
    Network,
    /// Whoever may open the socket's file: no browser.
    File,
}

/// Who can reach a listener at this address.
pub(crate) fn exposure(address: &Address) -> Exposure {
    match address {
        Address::Unix(_) => Exposure::File,
        address if address.is_local() => Exposure::Loopback,
        Address::Tcp(_) => Exposure::Network,
    }
}

/// The last `Host` of a connection that was found good: a connection rarely changes it.
pub(crate) type KnownHost = RefCell<Option<HeaderValue>>;

impl Guard {
    pub(crate) fn new(guard: GuardConfig, exposure: Exposure, scheme: Scheme) -> Self {
        Self {
            guard,
            exposure,
            scheme,
        }
    }

    pub(crate) fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Refuses what a browser was tricked into sending, and what is no request that can be passed on unambiguously.
    pub(crate) fn check(&self, request: &Parts, known: &KnownHost) -> Result<(), Error> {
        check_method(&request.method)?;
        self.check_host(request, known)?;
        self.check_site(&request.headers)?;
        check_form(request)
    }

    /// Refuses requests without the header that no page can send unasked: over plain HTTP, browsers tell nothing of a page
    /// that calls a name of the local network.
    pub(crate) fn check_required(&self, headers: &HeaderMap) -> Result<(), Error> {
        match &self.guard.required_header {
            Some(name) if self.exposure != Exposure::File && !headers.contains_key(name) => {
                Err(Error::NoRequiredHeader(name.clone()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The answer to a page of an allowed origin that asks first whether it may call. It can show nothing yet that a
    /// request has to show, and is not for the upstream.
    pub(crate) fn preflight(&self, request: &Parts) -> Option<response::Parts> {
        cors::is_preflight(request)
            .then(|| self.allowed_origin(&request.headers))?
            .map(|_| cors::preflight(request))
    }

    /// Lets pages of allowed origins read an answer.
    pub(crate) fn open_to_origins(&self, request: &HeaderMap, answer: &mut HeaderMap) {
        if !self.guard.allowed_origins.is_empty() {
            cors::open(self.allowed_origin(request), answer);
        }
    }

    /// The origin of a page that may call although it was loaded from elsewhere.
    fn allowed_origin<'a>(&self, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let mut origins = request.get_all(header::ORIGIN).iter();
        let origin = origins.next()?;
        (origins.next().is_none() && self.guard.allowed_origins.contains(&in_lower_case(origin)))
            .then_some(origin)
    }

    /// The name alone: for what a page elsewhere may well send a browser to.
    pub(crate) fn check_host(&self, request: &Parts, known: &KnownHost) -> Result<(), Error> {
        let mut hosts = request.headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(Error::BadRequest("a request has one Host"));
        }
        // A target in absolute form must say the same: RFC 9112 §3.2.2 lets it win, other servers let Host win.
        let authority = request.uri.authority().map(http::uri::Authority::as_str);
        if let (Some(authority), Some(host)) = (authority, host)
            && !authority.as_bytes().eq_ignore_ascii_case(host.as_bytes())
        {
            return Err(Error::BadRequest(
                "the request's target and its Host differ",
            ));
        }
        let Some(host) = host else {
            // HTTP/1.0: an authority in the target, if there is one, still says whom the client means.
            return match authority {
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
        // A copy: a clone would keep the buffer of its whole head for as long as the connection lasts.
        *known.borrow_mut() = HeaderValue::from_bytes(host.as_bytes()).ok();
        Ok(())
    }

    fn check_name(&self, host: &[u8]) -> Result<(), Error> {
        let name = host_name(host).ok_or(Error::BadRequest("Host is not a name or an address"))?;
        if self.exposure != Exposure::File && !self.guard.is_off && !self.serves(&name) {
            return Err(Error::ForeignHost(name));
        }
        Ok(())
    }

    fn check_without_host(&self, request: &Parts) -> Result<(), Error> {
        let from_browser = !self.guard.is_off
            && (request.headers.contains_key(header::ORIGIN)
                || request.headers.contains_key("sec-fetch-site"));
        match request.version {
            Version::HTTP_10 if from_browser && self.exposure != Exposure::File => {
                Err(Error::ForeignHost(String::new()))
            }
            Version::HTTP_10 => Ok(()),
            _ => Err(Error::BadRequest("an HTTP/1.1 request has a Host")),
        }
    }

    /// Whether a name, in lower case and without a port, is one under which we are meant to be called.
    fn serves(&self, name: &str) -> bool {
        let bare = name.strip_suffix('.').unwrap_or(name);
        let is_named = host::is_localhost(bare) || self.guard.allowed_hosts.contains(bare);
        // A literal address cannot be rebound; but a page reached by one is foreign unless the listener is there.
        match host::literal(bare) {
            // Nobody's name: some systems connect to themselves by it, and browsers do not know it for local.
            Some(ip) if ip.is_unspecified() => false,
            Some(ip) => is_named || self.exposure == Exposure::Network || host::is_loopback(ip),
            None => is_named,
        }
    }

    fn check_site(&self, headers: &HeaderMap) -> Result<(), Error> {
        if self.guard.is_off {
            return Ok(());
        }
        let mut origin_allowed = false;
        for origin in headers.get_all(header::ORIGIN) {
            let words = in_lower_case(origin);
            let own = headers
                .get(header::HOST)
                .is_some_and(|host| is_origin_of(&words, &self.scheme, host));
            if !own && !self.guard.allowed_origins.contains(&words) {
                return Err(Error::ForeignOrigin(printable(origin)));
            }
            origin_allowed = true;
        }
        for site in headers.get_all("sec-fetch-site") {
            if !matches!(site.as_bytes(), b"none" | b"same-origin") && !origin_allowed {
                return Err(Error::ForeignSite(printable(site)));
            }
        }
        Ok(())
    }
}

fn in_lower_case(origin: &HeaderValue) -> String {
    String::from_utf8_lossy(origin.as_bytes()).to_ascii_lowercase()
}

fn is_origin_of(origin: &str, scheme: &Scheme, host: &HeaderValue) -> bool {
    let authority = origin
        .strip_prefix(scheme.as_str())
        .and_then(|rest| rest.strip_prefix("://"));
    authority.is_some_and(|rest| rest.as_bytes().eq_ignore_ascii_case(host.as_bytes()))
}

fn printable(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes())
        .chars()
        .filter(|c| !c.is_control())
        .take(100)
        .collect()
}

/// The name in a `Host`, in lower case and without its port; `None` if it is neither a name nor an address.
fn host_name(host: &[u8]) -> Option<String> {
    let (name, _) = host::parse(std::str::from_utf8(host).ok()?)?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    // The longest one that there can be, RFC 1035 §2.3.4: it goes into the log.
    let is_name = (1..=255).contains(&name.len()) && name.bytes().all(legal);
    let is_literal = name.starts_with('[') && host::literal(name).is_some();
    (is_name || is_literal).then(|| name.to_ascii_lowercase())
}

/// What is served to nobody. Before the name is observed_rate at: who takes us for another kind of proxy names somebody else.
fn check_method(method: &Method) -> Result<(), Error> {
    // The last is how HTTP/2 begins: a server that takes it up leaves us behind.
    match *method {
        Method::CONNECT | Method::TRACE => Err(Error::Method),
        _ if method.as_str() == "PRI" => Err(Error::Method),
        _ => Ok(()),
    }
}

/// What is no request that can be passed on as exactly one.
fn check_form(request: &Parts) -> Result<(), Error> {
    if !request
        .method
        .as_str()
        .bytes()
        .all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'))
    {
        return Err(Error::BadRequest(
            "the request's method is not in capital letters",
        ));
    }
    // Its end would be the connection's, and then what follows it is anybody's guess: RFC 1945 §8.3.
    if request.version == Version::HTTP_10
        && matches!(request.method, Method::POST | Method::PUT | Method::PATCH)
        && !request.headers.contains_key(header::CONTENT_LENGTH)
    {
        return Err(Error::BadRequest(
            "an HTTP/1.0 request of this method has a Content-Length",
        ));
    }
    check_target(&request.uri)?;
    // In HTTP/1 it was observed_rate at before. The reader of HTTP/2 takes an empty one for zero, and equal ones for one.
    let mut lengths = request.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some() || length.is_empty())
    {
        return Err(Error::BadRequest("a request has one Content-Length"));
    }
    let mut encodings = request.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next()
        && (encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Error::BadRequest(
            "the only transfer coding served is one \"chunked\"",
        ));
    }
    for expectation in request.headers.get_all(header::EXPECT) {
        if !expectation.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Error::Expectation);
        }
    }
    Ok(())
}

fn check_target(target: &Uri) -> Result<(), Error> {
    match target.scheme_str() {
        None | Some("http" | "https") => {}
        Some(_) => {
            return Err(Error::BadRequest(
                "the request's target is not an http address",
            ));
        }
    }
    if target
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err(Error::BadRequest(
            "the request's target carries a user name",
        ));
    }
    match target.path_and_query().map(http::uri::PathAndQuery::as_str) {
        Some(path) if path.starts_with('/') => Ok(()),
        _ => Err(Error::BadRequest("the request's target is not a path")),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn verdict(gate: &Guard, version: Version, target: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        gate.check(&parts, &KnownHost::default())
            .map_or_else(|error| error.status().as_u16(), |()| 200)
    }

    fn gate(exposure: Exposure) -> Guard {
        let guard = GuardConfig {
            allowed_hosts: ["files.example.com".to_owned()].into(),
            allowed_origins: ["https://app.example.com".to_owned()].into(),
            ..GuardConfig::default()
        };
        Guard::new(guard, exposure, Scheme::HTTP)
    }

    #[test]
    fn who_can_reach_an_address() {
        for (address, expected) in [
            ("127.0.0.2:80", Exposure::Loopback),
            ("[::1]:80", Exposure::Loopback),
            ("[::ffff:127.0.0.1]:80", Exposure::Loopback),
            ("0.0.0.0:80", Exposure::Network),
            ("[::]:80", Exposure::Network),
            ("192.0.2.1:80", Exposure::Network),
        ] {
            assert_eq!(
                exposure(&Address::Tcp(address.parse().unwrap())),
                expected,
                "{address}"
            );
        }
        assert_eq!(exposure(&Address::Unix("socket".into())), Exposure::File);
    }

    #[test]
    fn hosts() {
        let table = [
            // host, on loopback, on the network, on a local socket
            ("localhost", 200, 200, 200),
            ("LOCALHOST:8080", 200, 200, 200),
            ("localhost.", 200, 200, 200),
            ("app.localhost:1", 200, 200, 200),
            ("127.0.0.1:8080", 200, 200, 200),
            ("127.9.9.9", 200, 200, 200),
            ("[::1]:8080", 200, 200, 200),
            ("[::1]", 200, 200, 200),
            ("files.example.com", 200, 200, 200),
            ("Files.Example.Com:80", 200, 200, 200),
            ("192.168.1.5:8080", 421, 200, 200),
            ("[2001:db8::1]", 421, 200, 200),
            ("0.0.0.0:8080", 421, 421, 200),
            ("[::]", 421, 421, 200),
            ("[::ffff:0.0.0.0]", 421, 421, 200),
            ("evil.example", 421, 421, 200),
            ("notlocalhost", 421, 421, 200),
            ("localhost.evil.example", 421, 421, 200),
            ("2130706433", 421, 421, 200),
            ("127.1", 421, 421, 200),
            ("0x7f.1", 421, 421, 200),
            ("", 400, 400, 400),
            (&"a".repeat(256), 400, 400, 400),
            ("a/b@c", 400, 400, 400),
            ("localhost:80a", 400, 400, 400),
            ("localhost:99999", 400, 400, 400),
            ("[::1", 400, 400, 400),
            ("[::1]x", 400, 400, 400),
            ("localhost, evil.example", 400, 400, 400),
        ];
        for (host, loopback, network, file) in table {
            let seen = [Exposure::Loopback, Exposure::Network, Exposure::File]
                .map(|exposure| verdict(&gate(exposure), Version::HTTP_11, "/", &[("host", host)]));
            assert_eq!(seen, [loopback, network, file], "{host}");
        }
    }

    #[test]
    fn several_hosts_no_host_and_hosts_that_differ() {
        let gate = gate(Exposure::Loopback);
        let host = ("host", "localhost");
        assert_eq!(verdict(&gate, Version::HTTP_11, "/", &[host, host]), 400);
        assert_eq!(verdict(&gate, Version::HTTP_11, "/", &[]), 400);
        assert_eq!(verdict(&gate, Version::HTTP_10, "/", &[]), 200);
        assert_eq!(
            verdict(
                &gate,
                Version::HTTP_10,
                "/",
                &[("origin", "http://localhost")]
            ),
            421
        );
        assert_eq!(
            verdict(&gate, Version::HTTP_10, "/", &[("sec-fetch-site", "none")]),
            421
        );
        assert_eq!(
            verdict(&gate, Version::HTTP_10, "http://evil.example/", &[]),
            421
        );
        assert_eq!(
            verdict(&gate, Version::HTTP_10, "http://localhost/", &[]),
            200
        );
        assert_eq!(
            verdict(&gate, Version::HTTP_11, "http://localhost/x", &[host]),
            200
        );
        assert_eq!(
            verdict(&gate, Version::HTTP_11, "http://evil.example/x", &[host]),
            400
        );
        assert_eq!(
            verdict(
                &gate,
                Version::HTTP_11,
                "http://u@localhost/",
                &[("host", "u@localhost")]
            ),
            400
        );
        assert_eq!(
            verdict(&gate, Version::HTTP_11, "ftp://localhost/", &[host]),
            400
        );
    }

    #[test]
    fn origins_and_sites() {
        let table: &[(&[(&str, &str)], u16)] = &[
            (&[("origin", "http://localhost:8080")], 200),
            (&[("origin", "http://LOCALHOST:8080")], 200),
            (&[("origin", "http://localhost:3000")], 403),
            (&[("origin", "https://localhost:8080")], 403),
            (&[("origin", "null")], 403),
            (&[("origin", "https://app.example.com")], 200),
            (&[("origin", "https://evil.example")], 403),
            (
                &[
                    ("origin", "http://localhost:8080"),
                    ("origin", "https://evil.example"),
                ],
                403,
            ),
            (&[("sec-fetch-site", "none")], 200),
            (&[("sec-fetch-site", "same-origin")], 200),
            (&[("sec-fetch-site", "same-site")], 403),
            (&[("sec-fetch-site", "cross-site")], 403),
            (&[("sec-fetch-site", "")], 403),
            (
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("origin", "https://app.example.com"),
                ],
                200,
            ),
        ];
        for (headers, status) in table {
            for exposure in [Exposure::Loopback, Exposure::File] {
                let mut all = vec![("host", "localhost:8080")];
                all.extend_from_slice(headers);
                assert_eq!(
                    verdict(&gate(exposure), Version::HTTP_11, "/", &all),
                    *status,
                    "{headers:?} {exposure:?}"
                );
            }
        }
    }

    #[test]
    fn a_guard_that_is_off_still_wants_one_well_formed_request() {
        let off = Guard::new(
            GuardConfig {
                is_off: true,
                ..GuardConfig::default()
            },
            Exposure::Loopback,
            Scheme::HTTP,
        );
        let foreign = [
            ("host", "any.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
        ];
        assert_eq!(verdict(&off, Version::HTTP_11, "/", &foreign), 200);
        assert_eq!(verdict(&off, Version::HTTP_10, "/", &foreign[1..]), 200);
        assert_eq!(verdict(&off, Version::HTTP_11, "/", &foreign[1..]), 400);
        assert_eq!(
            verdict(&off, Version::HTTP_11, "/", &[("host", "a/b")]),
            400
        );
    }

    #[test]
    fn a_host_once_found_good_does_not_vouch_for_another() {
        let gate = gate(Exposure::Loopback);
        let known = KnownHost::default();
        let check = |host: &str| {
            let (parts, ()) = Request::get("/")
                .header("host", host)
                .body(())
                .unwrap()
                .into_parts();
            gate.check(&parts, &known).is_ok()
        };
        assert!(check("localhost"));
        assert!(!check("evil.example"));
        assert!(check("localhost"));
    }

    #[test]
    fn forms() {
        let gate = gate(Exposure::Loopback);
        let form = |method: &str, target: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder()
                .method(method)
                .uri(target)
                .header("host", "localhost");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            gate.check(&parts, &KnownHost::default())
                .map_or_else(|error| error.status().as_u16(), |()| 200)
        };
        assert_eq!(form("TRACE", "/", &[]), 405);
        assert_eq!(form("CONNECT", "evil.example:443", &[]), 405);
        assert_eq!(form("CONNECT", "/", &[]), 405);
        assert_eq!(form("get", "/", &[]), 400);
        assert_eq!(form("G3T", "/", &[]), 400);
        assert_eq!(form("VERSION-CONTROL", "/", &[]), 200);
        assert_eq!(form("PRI", "/", &[]), 405);
        assert_eq!(form("OPTIONS", "*", &[]), 400);
        assert_eq!(form("GET", "*", &[]), 400);
        assert_eq!(form("POST", "/", &[("transfer-encoding", "chunked")]), 200);
        assert_eq!(
            form("POST", "/", &[("transfer-encoding", "gzip, chunked")]),
            400
        );
        assert_eq!(
            form(
                "POST",
                "/",
                &[
                    ("transfer-encoding", "chunked"),
                    ("transfer-encoding", "chunked")
                ]
            ),
            400
        );
        assert_eq!(form("POST", "/", &[("content-length", "5")]), 200);
        assert_eq!(form("POST", "/", &[("content-length", "")]), 400);
        assert_eq!(
            form(
                "POST",
                "/",
                &[("content-length", "5"), ("content-length", "5")]
            ),
            400
        );
        assert_eq!(form("POST", "/", &[("expect", "100-Continue")]), 200);
        assert_eq!(form("POST", "/", &[("expect", "foo")]), 417);
    }
}
