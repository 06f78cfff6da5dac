//! Requests to an `http` endpoint through an HTTP proxy.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, Request, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{Error, OutboundProxy, Protocol, tunnel};

/// Squid's reason of a response that it has made itself: `ERR_DNS_FAIL 0`.
const SQUID_ERROR: HeaderName = HeaderName::from_static("x-squid-error");

/// Errors of Squid before it has forwarded anything of the request.
const NOT_FORWARDED: [&str; 5] = [
    "ERR_ACCESS_DENIED",
    "ERR_CACHE_ACCESS_DENIED",
    "ERR_CANNOT_FORWARD",
    "ERR_CONNECT_FAIL",
    "ERR_DNS_FAIL",
];

/// How requests to an `http` endpoint are sent to an HTTP proxy (RFC 9112 §3.2.2): the target names
/// the endpoint, and the proxy gets its credentials with each request.
#[derive(Debug, Clone)]
pub struct AbsoluteForm {
    proxy: Arc<OutboundProxy>,
    authority: Authority,
}

impl AbsoluteForm {
    /// The form of requests to the endpoint with this scheme and authority; `None` if they go
    /// through a tunnel.
    pub fn new(proxy: &Arc<OutboundProxy>, scheme: &str, authority: &[u8]) -> Option<Self> {
        if proxy.address.protocol != Protocol::Http || scheme != "http" {
            return None;
        }
        Some(Self {
            proxy: Arc::clone(proxy),
            authority: Authority::try_from(authority).ok()?,
        })
    }

    /// Makes the target absolute, and adds the credentials for the proxy. A target of `*` becomes
    /// `/`, which servers treat alike: the absolute form of `*` is a URI without a path, and
    /// [`Uri`] has none.
    pub fn apply<B>(&self, request: &mut Request<B>) {
        let mut target = request.uri().clone().into_parts();
        target.scheme = Some(Scheme::HTTP);
        target.authority = Some(self.authority.clone());
        if target
            .path_and_query
            .as_ref()
            .is_none_or(|path| path == "*")
        {
            target.path_and_query = Some(PathAndQuery::from_static("/"));
        }
        // Only a missing part could be an error.
        if let Ok(target) = Uri::from_parts(target) {
            *request.uri_mut() = target;
        }
        if let Some(credentials) = &self.proxy.credentials {
            let basic = credentials.load().basic.clone();
            request
                .headers_mut()
                .insert(header::PROXY_AUTHORIZATION, basic);
        }
    }

    /// The error of a response that the proxy has made without forwarding the request; `None` for
    /// others. Without `X-Squid-Error`, errors of the proxy other than 407 count as those
    /// of the endpoint.
    pub fn refusal(&self, status: StatusCode, headers: &HeaderMap) -> Option<Error> {
        let is_refused = status == StatusCode::PROXY_AUTHENTICATION_REQUIRED
            || headers.get(SQUID_ERROR).is_some_and(|error| {
                let name = error.as_bytes().split(|byte| *byte == b' ').next();
                NOT_FORWARDED.iter().any(|not| name == Some(not.as_bytes()))
            });
        is_refused.then(|| {
            let has_credentials = self.proxy.credentials.is_some();
            let refusal = tunnel::refusal(status, self.authority.to_string(), has_credentials);
            self.proxy.refused(refusal)
        })
    }
}
