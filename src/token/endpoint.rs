//! An endpoint of the issuer: its URL, and calls that send each request exactly once.

mod connect;
mod exchange;
mod recording;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{ClientConfig, pki_types::ServerName};
use url::{Position, Url};
use zeroize::Zeroizing;

use self::connect::{Tls, Transport};
use super::{
    deadline::CallDeadline,
    token_response::{Failure, FailureClass, RawResponse},
};
use crate::{
    base::{blocking, host},
    net::{reload, tls},
};

/// The limit for name resolution, TCP and TLS together. A shorter `token.timeout` replaces it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
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
    url: Url,
    host: String,
    port: u16,
    /// The value of `Host`.
    authority: HeaderValue,
    tls: Option<EndpointTls>,
    connect_timeout: Duration,
}

#[derive(Debug)]
struct EndpointTls {
    config: Arc<reload::Reloadable<Arc<ClientConfig>>>,
    server_name: ServerName<'static>,
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
    /// Connects to nothing yet. `timeout` is `token.timeout`.
    pub(super) fn new(url: &Url, tls: &tls::Config, timeout: Duration) -> Result<Self, Error> {
        let host = host::without_brackets(url.host_str().unwrap_or_default()).to_owned();
        let is_https = url.scheme() == "https";
        let tls = is_https.then(|| EndpointTls::new(tls, &host)).transpose()?;
        // A URL consists of visible ASCII.
        let authority = HeaderValue::from_str(&url[Position::BeforeHost..Position::AfterPort])
            .unwrap_or_else(|_| HeaderValue::from_static(""));
        Ok(Self {
            url: url.clone(),
            host,
            port: url.port_or_known_default().unwrap_or_default(),
            authority,
            tls,
            connect_timeout: CONNECT_TIMEOUT.min(timeout),
        })
    }

    /// What reloads the TLS settings when their files change; `None` without TLS.
    pub(super) fn reloadable(&self) -> Option<Arc<dyn reload::Reload>> {
        let tls = self.tls.as_ref()?;
        Some(Arc::clone(&tls.config) as Arc<dyn reload::Reload>)
    }

    /// Reads the files of `tls` again. If they are unusable, the settings stay as they were.
    pub(super) async fn reload(&self) {
        if let Some(reloadable) = self.reloadable() {
            // Errors are reported by the reloader of the refresher's endpoint, which has the same
            // files.
            let _ = blocking::run(move || reloadable.reload()).await;
        }
    }

    /// Sends the request once and reads the response, until `deadline`. A request of which no byte
    /// was sent is [`FailureClass::Unreachable`].
    pub(super) async fn call(
        &self,
        parameters: Parameters,
        authorization: Option<&HeaderValue>,
        deadline: &CallDeadline,
    ) -> Result<RawResponse, Failure> {
        let request = self.request(parameters, authorization)?;
        let connected = deadline.before_request(self.connect()).await;
        let connected = connected.ok_or_else(Failure::not_sent)?;
        let transport = connected.map_err(|error| unreachable(&error, self.connect_timeout))?;
        exchange::exchange(transport, request, deadline).await
    }

    async fn connect(&self) -> io::Result<Transport> {
        let tls = self.tls.as_ref().map(|tls| Tls {
            config: Arc::clone(&tls.config.load()),
            server_name: tls.server_name.clone(),
        });
        connect::connect(&self.host, self.port, tls, self.connect_timeout).await
    }

    fn request(
        &self,
        parameters: Parameters,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let (method, target, body) = match parameters {
            Parameters::Get(query) => (Method::GET, self.target(&query), None),
            Parameters::Query(query) => (Method::POST, self.target(&query), None),
            Parameters::Form(form) => {
                let target = &self.url[Position::BeforePath..Position::AfterQuery];
                (Method::POST, target.to_owned().into(), Some(form))
            }
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
            (header::HOST, self.authority.clone()),
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
        let path = self.url.path();
        // A string that grows would leave unwiped copies behind.
        let mut target = Zeroizing::new(String::with_capacity(path.len() + 1 + query.len()));
        for part in [path, "?", query] {
            target.push_str(part);
        }
        target
    }
}

impl EndpointTls {
    fn new(config: &tls::Config, host: &str) -> Result<Self, Error> {
        let server_name = match config.server_name.as_deref() {
            Some(name) => match ServerName::try_from(name.to_owned()) {
                Ok(ServerName::IpAddress(address)) => {
                    return Err(Error::ServerName(IpAddr::from(address)));
                }
                Ok(name) => name,
                Err(_) => return Err(Error::NotAName),
            },
            None => {
                ServerName::try_from(host.to_owned()).map_err(|_| Error::Host(host.to_owned()))?
            }
        };
        let (files, certificate) = (config.files(), config.client_cert_file.clone());
        let files: Vec<_> = files.collect();
        let config = config.clone();
        let build = move || tls::client_config(&config, &[b"http/1.1"]).map(Arc::new);
        let config = reload::Reloadable::new::<Error>(
            "issuer:client".to_owned(),
            files,
            certificate,
            move || build().map_err(Error::from),
        )?;
        Ok(Self {
            config: Arc::new(config),
            server_name,
        })
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

/// Nothing was sent, so nothing was used.
fn unreachable(error: &io::Error, limit: Duration) -> Failure {
    let cause = if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() {
        format!("no connection within {limit:?} (check token.issuer and the network)")
    } else {
        describe(error)
    };
    Failure::new(
        FailureClass::Unreachable,
        format!("the issuer cannot be reached: {cause}"),
    )
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
