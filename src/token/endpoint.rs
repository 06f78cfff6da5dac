//! An endpoint of the issuer: its URL, and an HTTP client that sends each request exactly once.

use std::{error::Error as _, fmt::Write as _, io, net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder, Url};
use zeroize::Zeroizing;

use super::token_response::{Failure, FailureClass};
use crate::{
    base::{blocking, host},
    net::{reload, tls},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest response body that is read, in bytes.
const BODY_LIMIT: usize = 64 * 1024;
/// Everything but the unreserved characters of RFC 3986 §2.3, so that `+`, `%`, `&`, `=` and spaces
/// in a value survive.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Why no HTTP client for the issuer can be built.
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
    /// The HTTP client.
    #[error("the HTTP client for the issuer cannot be built: {0}")]
    Client(reqwest::Error),
}

/// One endpoint of the issuer.
#[derive(Debug)]
pub(super) struct IssuerEndpoint {
    client: Arc<reload::Reloadable<Client>>,
    /// With `tls.server_name` as its host, if that is set.
    url: Url,
    /// The `Host` field, if the URL's host is not the issuer's.
    host: Option<HeaderValue>,
}

/// A complete response, not parsed yet.
pub(super) struct RawResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl IssuerEndpoint {
    /// Builds the client; connects to nothing yet. `timeout` limits a whole call.
    pub(super) fn new(url: &Url, tls: &tls::Config, timeout: Duration) -> Result<Self, Error> {
        let mut url = url.clone();
        let is_https = url.scheme() == "https";
        let mut host = None;
        let mut resolver = None;
        if let Some(name) = tls.server_name.as_deref().filter(|_| is_https) {
            if let Ok(address) = name.parse() {
                return Err(Error::ServerName(address));
            }
            // reqwest verifies the certificate against the URL's host. So the URL gets
            // `server_name`, and the resolver and the Host field keep the real name.
            let real = host::without_brackets(url.host_str().unwrap_or_default()).to_owned();
            host = HeaderValue::from_str(&url[url::Position::BeforeHost..url::Position::AfterPort])
                .ok();
            url.set_host(Some(name)).map_err(|_| Error::NotAName)?;
            resolver = Some(FixedHost { host: real.into() });
        }
        let tls = is_https.then(|| tls.clone());
        let (files, certificate) = tls
            .as_ref()
            .map(|tls| (tls.files(), tls.client_cert_file.clone()))
            .unzip();
        let files: Vec<_> = files.into_iter().flatten().collect();
        let build = move || build_client(tls.as_ref(), timeout, resolver.clone());
        let client = reload::Reloadable::new(
            "issuer:client".to_owned(),
            files,
            certificate.flatten(),
            build,
        )?;
        Ok(Self {
            client: Arc::new(client),
            url,
            host,
        })
    }

    /// What reloads the client when the files of `tls` change.
    pub(super) fn reloadable(&self) -> Arc<dyn reload::Reload> {
        Arc::clone(&self.client) as Arc<dyn reload::Reload>
    }

    /// Reads the files of `tls` again. If they are unusable, the client stays as it was.
    pub(super) async fn reload(&self) {
        let reloadable = self.reloadable();
        // Errors are reported by the reloader of the refresher's client, which has the same files.
        let _ = blocking::run(move || reloadable.reload()).await;
    }

    /// A `POST`; without a query the URL stays as configured.
    pub(super) fn post(&self, query: Option<&str>) -> RequestBuilder {
        self.request(Method::POST, query)
    }

    /// A `GET`.
    pub(super) fn get(&self, query: &str) -> RequestBuilder {
        self.request(Method::GET, Some(query))
    }

    fn request(&self, method: Method, query: Option<&str>) -> RequestBuilder {
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

/// Without `tls` the client accepts no certificate at all.
fn build_client(
    tls: Option<&tls::Config>,
    timeout: Duration,
    resolver: Option<FixedHost>,
) -> Result<Client, Error> {
    let tls = match tls {
        Some(tls) => tls::client_config(tls, &[b"http/1.1"])?,
        None => tls::client_config_without_roots()?,
    };
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        // A retry here would send a refresh token twice: only the refresher decides that.
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        // On a pooled connection that has died unnoticed, the outcome of a call is unknown.
        .pool_max_idle_per_host(0)
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .timeout(timeout)
        .user_agent(concat!("bearer-proxy/", env!("CARGO_PKG_VERSION")));
    if let Some(resolver) = resolver {
        builder = builder.dns_resolver(resolver);
    }
    builder
        .build()
        .map_err(|error| Error::Client(error.without_url()))
}

/// Sends the request once and reads the response. Ends within the configured timeout.
pub(super) async fn send(request: RequestBuilder) -> Result<RawResponse, Failure> {
    let mut response = request.send().await.map_err(transport_failure)?;
    let status = response.status();
    let headers = std::mem::take(response.headers_mut());
    let body = match read_body(&mut response).await {
        Ok(body) => body,
        // The status of an error response is enough to classify it.
        Err(_) if !status.is_success() => Zeroizing::default(),
        Err(failure) => return Err(failure),
    };
    Ok(RawResponse {
        status,
        headers,
        body,
    })
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

/// Resolves every name to the addresses of one host.
#[derive(Clone)]
struct FixedHost {
    host: Arc<str>,
}

impl reqwest::dns::Resolve for FixedHost {
    fn resolve(&self, _name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let host = Arc::clone(&self.host);
        Box::pin(async move {
            // reqwest replaces port 0 with the URL's.
            let addresses: Vec<_> = tokio::net::lookup_host((&*host, 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// Reads at most [`BODY_LIMIT`] bytes into one allocation, which is wiped on drop.
async fn read_body(response: &mut reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut body = Zeroizing::new(Vec::with_capacity(BODY_LIMIT));
    while let Some(chunk) = response.chunk().await.map_err(transport_failure)? {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Err(Failure::new(
                FailureClass::Garbled,
                format!("the issuer's response exceeds {} KiB", BODY_LIMIT / 1024),
            ));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Classifies a transport error: without a connection, nothing was sent.
fn transport_failure(error: reqwest::Error) -> Failure {
    // The URL contains the refresh token: it is removed before anything is printed.
    let error = error.without_url();
    let (class, mut detail) = if error.is_connect() {
        (
            FailureClass::Unreachable,
            "the issuer cannot be reached".to_owned(),
        )
    } else if error.is_timeout() {
        (
            FailureClass::Ambiguous,
            "the issuer did not respond in time (token.timeout)".to_owned(),
        )
    } else if error.is_builder() {
        (
            FailureClass::Failing,
            "the request to the issuer cannot be built".to_owned(),
        )
    } else {
        (
            FailureClass::Ambiguous,
            "the issuer's response is incomplete or not HTTP".to_owned(),
        )
    };
    if let Some(cause) = root_cause(&error) {
        // Writing to a String cannot fail.
        let _ = write!(detail, ": {cause}");
    }
    Failure::new(class, detail)
}

/// The innermost error: of the operating system, of TLS or of the HTTP parser.
fn root_cause(error: &reqwest::Error) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    // An I/O error does not return the error that it wraps as its source.
    let mut wrapped: &(dyn std::error::Error + 'static) = cause;
    while let Some(inner) = wrapped
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        wrapped = inner;
    }
    let tls_error = wrapped.downcast_ref();
    Some(format!(
        "{cause}{}",
        tls_error.map_or("", tls::server_advice)
    ))
}
