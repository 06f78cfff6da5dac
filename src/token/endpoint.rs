//! An endpoint of the issuer: its path at each of the issuer's servers, and calls that send each
//! request exactly once.

pub(super) mod connect;
mod exchange;
mod recording;
mod servers;

use std::{io, net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use self::servers::Server;
pub(super) use self::servers::Servers;
use super::{
    deadline::CallDeadline,
    token_response::{Failure, FailureClass, RawResponse},
};
use crate::net::tls;

/// Everything but the unreserved characters of RFC 3986 §2.3, so that `+`, `%`, `&`, `=` and spaces
/// in a value survive.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Why the issuer cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A CA file or the client certificate.
    #[error("the TLS settings for the issuer: {0}")]
    Tls(#[from] tls::Error),
    /// `server_name` is an IP address.
    #[error(
        "tls.server_name: {0} is an IP address; write the name in the issuer's certificate, or \
         leave it out"
    )]
    ServerName(IpAddr),
    /// `server_name` is not a host name.
    #[error("tls.server_name: this is not a host name")]
    NotAName,
    /// The issuer's host cannot be in a certificate.
    #[error("token.issuer: \"{0}\" is not a name that a TLS certificate can carry")]
    Host(String),
}

/// One endpoint of the issuer.
#[derive(Debug)]
pub(super) struct IssuerEndpoint {
    servers: Arc<Servers>,
    path: String,
}

/// The parameters of a request, percent-encoded.
pub(super) enum Parameters {
    /// `GET` with a query.
    Get(Zeroizing<String>),
    /// `POST` with a query and without a body.
    Query(Zeroizing<String>),
    /// `POST` with a form; the URL stays as configured.
    Form(Zeroizing<String>),
}

impl IssuerEndpoint {
    /// The endpoint at `path` of each server. Connects to nothing yet.
    pub(super) fn new(servers: Arc<Servers>, path: &str) -> Self {
        Self {
            servers,
            path: path.to_owned(),
        }
    }

    /// Sends the request once, to one server, reads the response until `deadline`, and parses it. A
    /// request of which no byte was sent is [`FailureClass::Unreachable`].
    pub(super) async fn call<T>(
        &self,
        parameters: Parameters,
        authorization: Option<&HeaderValue>,
        deadline: &CallDeadline,
        parse: impl FnOnce(RawResponse) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let connected = deadline.before_request(self.servers.connect()).await;
        let (server, transport) = connected.ok_or_else(Failure::not_sent)??;
        let mut request = self.request(server, parameters, authorization)?;
        if let Some(form) = &server.absolute_form {
            form.apply(&mut request);
        }
        // As late as possible: connecting may have taken long.
        if !deadline.may_send() {
            return Err(Failure::not_sent());
        }
        let response = exchange::exchange(transport, request, deadline).await;
        let response = response.and_then(|response| self.servers.forwarded(server, response));
        self.servers.ended(server, response.and_then(parse))
    }

    fn request(
        &self,
        server: &Server,
        parameters: Parameters,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let (method, target, body) = match parameters {
            Parameters::Get(query) => (Method::GET, self.target(&query), None),
            Parameters::Query(query) => (Method::POST, self.target(&query), None),
            Parameters::Form(form) => (Method::POST, self.path.clone().into(), Some(form)),
        };
        let content = match &body {
            Some(_) => Some((
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            )),
            // Some servers respond 411 to a POST without it.
            None if method == Method::POST => {
                Some((header::CONTENT_LENGTH, HeaderValue::from_static("0")))
            }
            None => None,
        };
        let body = body.map_or_else(Bytes::new, |form| Bytes::from_owner(Text(form)));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_maybe_shared(Bytes::from_owner(Text(target)))
            .map_err(|_| cannot_be_built())?;
        let agent = concat!("bearer-proxy/", env!("CARGO_PKG_VERSION"));
        let fields = [
            (header::HOST, server.authority.clone()),
            (header::ACCEPT, HeaderValue::from_static("application/json")),
            // A compressed response is one more that may be unreadable.
            (
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            ),
            (header::USER_AGENT, HeaderValue::from_static(agent)),
        ];
        let authorization = authorization.map(|value| (header::AUTHORIZATION, value.clone()));
        let fields = fields.into_iter().chain(content).chain(authorization);
        request.headers_mut().extend(fields);
        Ok(request)
    }

    /// The path with this query.
    fn target(&self, query: &str) -> Zeroizing<String> {
        // A string that grows would leave unwiped copies behind.
        let mut target = Zeroizing::new(String::with_capacity(self.path.len() + 1 + query.len()));
        for part in [&self.path, "?", query] {
            target.push_str(part);
        }
        target
    }
}

/// Text that is wiped when the last reference to its bytes is dropped.
struct Text(Zeroizing<String>);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fn cannot_be_built() -> Failure {
    let detail = "the request to the issuer cannot be built: check token.issuer";
    Failure::new(FailureClass::Failing, detail)
}

/// The error, and what to do about it.
fn describe(error: &io::Error) -> String {
    let advice = tls::cause(error).map_or("", tls::server_advice);
    format!("{error}{advice}")
}

/// `name=value&name=value`, the values percent-encoded.
pub(super) fn encode_parameters<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    for (name, value) in pairs {
        let separator = if text.is_empty() { "" } else { "&" };
        let value = Zeroizing::new(utf8_percent_encode(value, RESERVED).to_string());
        // A string that grows would leave unwiped copies behind.
        let mut longer = Zeroizing::new(String::with_capacity(
            text.len() + name.len() + value.len() + 2,
        ));
        for part in [text.as_str(), separator, name, "=", &value] {
            longer.push_str(part);
        }
        text = longer;
    }
    text
}
