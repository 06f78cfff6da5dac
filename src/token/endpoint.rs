//! The wire to the issuer: one HTTP call, with the care that each of them takes.

use std::{error::Error as _, fmt::Write as _, io, net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder, Url};
use zeroize::Zeroizing;

use super::{
    IssuerConfig,
    token_response::{Failure, FailureClass},
};
use crate::net::{reload, tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const BODY_LIMIT: usize = 64 * 1024;
/// Everything but the unreserved characters of RFC 3986 §2.3, so that `+`, `%`, `&`, `=` and spaces survive.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Why no client for the issuer can be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its trust or our certificate.
    #[error("the TLS settings for the issuer: {0}")]
    Tls(#[from] tls::Error),
    /// `server_name` is an address.
    #[error(
        "tls.server_name: {0} is an IP address; write the name in the issuer's certificate, or leave it out"
    )]
    ServerName(IpAddr),
    /// `server_name` is not a name at all.
    #[error("tls.server_name: this is not a host name")]
    NotAName,
    /// The HTTP client.
    #[error("the HTTP client for the issuer cannot be built: {0}")]
    Client(reqwest::Error),
}

/// One interface of the issuer.
#[derive(Debug)]
pub(super) struct Endpoint {
    client: Arc<reload::Reloadable<Client>>,
    /// Its host is `tls.server_name` if that is set.
    url: Url,
    /// What to send as `Host` when the URL's is not the issuer's own.
    host: Option<HeaderValue>,
}

/// A complete answer, not yet judged.
pub(super) struct EndpointResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Endpoint {
    /// Builds the client; speaks to nobody yet.
    pub(super) fn new(interface: &Url, config: &IssuerConfig) -> Result<Self, Error> {
        let mut url = interface.clone();
        let is_https = url.scheme() == "https";
        let mut host = None;
        let mut alias = None;
        if let Some(name) = config.tls.server_name.as_deref().filter(|_| is_https) {
            if let Ok(address) = name.parse() {
                return Err(Error::ServerName(address));
            }
            // reqwest takes the name to verify from the URL, so the URL gets that name and the resolver the real one.
            let real = url
                .host_str()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned();
            host = HeaderValue::from_str(&url[url::Position::BeforeHost..url::Position::AfterPort])
                .ok();
            url.set_host(Some(name)).map_err(|_| Error::NotAName)?;
            alias = Some(Alias { real: real.into() });
        }
        let tls = is_https.then(|| config.tls.clone());
        let (files, certificate) = tls
            .as_ref()
            .map(|tls| (tls.files(), tls.client_cert_file.clone()))
            .unzip();
        let files: Vec<_> = files.into_iter().flatten().collect();
        let timeout = config.timeout;
        let make = move || client(tls.as_ref(), timeout, alias.clone());
        let client = reload::Reloadable::new(
            "issuer:client".to_owned(),
            files,
            certificate.flatten(),
            make,
        )?;
        Ok(Self {
            client: Arc::new(client),
            url,
            host,
        })
    }

    /// What follows the files of `tls`. Whoever holds it reads them again when they change.
    pub(super) fn reloadable(&self) -> Arc<dyn reload::Reload> {
        Arc::clone(&self.client) as Arc<dyn reload::Reload>
    }

    /// Reads the files of `tls` again. If they cannot be used, the client stays as it was.
    pub(super) async fn reload(&self) {
        let client = self.reloadable();
        // The reloader logs errors: the refresher's client, which it watches, has the same files.
        let _ = tokio::task::spawn_blocking(move || client.reload()).await;
    }

    /// A `POST`; without a query the URL stays as it is.
    pub(super) fn post(&self, query: Option<&str>) -> RequestBuilder {
        self.prepared(Method::POST, query)
    }

    /// A `GET`.
    pub(super) fn get(&self, query: &str) -> RequestBuilder {
        self.prepared(Method::GET, Some(query))
    }

    fn prepared(&self, method: Method, query: Option<&str>) -> RequestBuilder {
        let mut url = self.url.clone();
        if query.is_some() {
            url.set_query(query);
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(host) = &self.host {
            headers.insert(header::HOST, host.clone());
        }
        self.client.load().request(method, url).headers(headers)
    }
}

/// A client that speaks TLS as these files say; without them, one that trusts nobody.
fn client(
    tls: Option<&tls::Config>,
    timeout: Duration,
    alias: Option<Alias>,
) -> Result<Client, Error> {
    let tls = match tls {
        Some(tls) => tls::client_config(tls, &[b"http/1.1"])?,
        None => tls::client_config_without_roots()?,
    };
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        // A second try would spend the refresh token a second time: trying again is the refresher's decision.
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        // A pooled connection that died unnoticed would make a call's outcome unknown.
        .pool_max_idle_per_host(0)
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .timeout(timeout)
        .user_agent(concat!("bearer-proxy/", env!("CARGO_PKG_VERSION")));
    if let Some(alias) = alias {
        builder = builder.dns_resolver(alias);
    }
    builder
        .build()
        .map_err(|error| Error::Client(error.without_url()))
}

/// Sends it once and reads the answer. Ends within the configured timeout.
pub(super) async fn send(request: RequestBuilder) -> Result<EndpointResponse, Failure> {
    let mut response = request.send().await.map_err(failure)?;
    let status = response.status();
    let headers = std::mem::take(response.headers_mut());
    let body = match read_body(&mut response).await {
        Ok(body) => body,
        // Of a refusal the status tells enough.
        Err(_) if !status.is_success() => Zeroizing::default(),
        Err(failure) => return Err(failure),
    };
    Ok(EndpointResponse {
        status,
        headers,
        body,
    })
}

/// `name=value&name=value`, percent-encoded.
pub(super) fn encode_parameters<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    for (name, value) in pairs {
        let separator = if text.is_empty() { "" } else { "&" };
        let value = Zeroizing::new(utf8_percent_encode(value, RESERVED).to_string());
        // A string that grows leaves unwiped copies behind.
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

/// Resolves every name to the addresses of one other name.
#[derive(Clone)]
struct Alias {
    real: Arc<str>,
}

impl reqwest::dns::Resolve for Alias {
    fn resolve(&self, _name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let real = Arc::clone(&self.real);
        Box::pin(async move {
            // Port 0 stands for the URL's.
            let addresses: Vec<_> = tokio::net::lookup_host((&*real, 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// Reads at most [`BODY_LIMIT`] bytes, into one allocation that is wiped.
async fn read_body(response: &mut reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut body = Zeroizing::new(Vec::with_capacity(BODY_LIMIT));
    while let Some(chunk) = response.chunk().await.map_err(failure)? {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Err(Failure::new(
                FailureClass::Garbled,
                format!("the issuer's answer exceeds {} KiB", BODY_LIMIT / 1024),
            ));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What a failed call means: before the connection stands, nothing was spent.
fn failure(error: reqwest::Error) -> Failure {
    // The URL holds the refresh token: it goes before anything is printed.
    let error = error.without_url();
    let (class, mut detail) = if error.is_connect() {
        (
            FailureClass::Unreachable,
            "the issuer cannot be reached".to_owned(),
        )
    } else if error.is_timeout() {
        (
            FailureClass::Ambiguous,
            "the issuer did not answer in time".to_owned(),
        )
    } else if error.is_builder() {
        (
            FailureClass::Failing,
            "the request to the issuer cannot be built".to_owned(),
        )
    } else {
        (
            FailureClass::Ambiguous,
            "the issuer's answer was cut off or is not HTTP".to_owned(),
        )
    };
    if let Some(cause) = root_cause(&error) {
        // Writing to a String cannot fail.
        let _ = write!(detail, ": {cause}");
    }
    Failure::new(class, detail)
}

/// The innermost error: what the system, TLS or the HTTP parser said.
fn root_cause(error: &reqwest::Error) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    // What an I/O error was made of is no source of it, be it another one.
    let mut wrapped: &(dyn std::error::Error + 'static) = cause;
    while let Some(inner) = wrapped
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        wrapped = inner;
    }
    let said_by_tls = wrapped.downcast_ref();
    Some(format!(
        "{cause}{}",
        said_by_tls.map_or("", tls::server_advice)
    ))
}
