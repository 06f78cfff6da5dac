//! The issuer, spoken to over HTTP: one call spends one refresh token.

use std::{error::Error as _, fmt::Write as _, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, Url};
use zeroize::Zeroizing;

use super::{
    BasicEncoding, IssuerConfig, Parameters,
    answer::{Class, Failure, Grant, Reader},
    cache::authorization,
};
use crate::{
    base::{clock::SharedClock, secret::Secret},
    net::tls,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const BODY_LIMIT: usize = 64 * 1024;
/// Everything but the unreserved characters of RFC 3986 §2.3, so that `+`, `%`, `&`, `=` and spaces survive.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A boxed future, so that issuers and stores can be trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who turns a refresh token into an access token.
pub(super) trait Issuer: Send {
    /// Spends the refresh token. Ends within the configured timeout.
    fn refresh<'a>(&'a self, refresh_token: &'a Secret) -> BoxFuture<'a, Result<Grant, Failure>>;

    /// Reads the client's secret again from where it came; true if it is another one now.
    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool>;
}

/// Why no client for the issuer can be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its trust or our certificate.
    #[error("the TLS settings for the issuer: {0}")]
    Tls(#[from] tls::Error),
    /// `server_name` is an address.
    #[error("tls.server_name: {0} is an IP address; write the name in the issuer's certificate, or leave it out")]
    ServerName(IpAddr),
    /// `server_name` is not a name at all.
    #[error("tls.server_name: this is not a host name")]
    NotAName,
    /// The HTTP client.
    #[error("the HTTP client for the issuer cannot be built: {0}")]
    Client(reqwest::Error),
}

/// The issuer behind `POST {refresh_url}`.
#[derive(Debug)]
pub struct HttpIssuer {
    client: Client,
    /// The refresh interface; its host is `tls.server_name` if that is set.
    url: Url,
    /// What to send as `Host` when the URL's is not the issuer's own.
    host: Option<HeaderValue>,
    authorization: HeaderValue,
    client_id: String,
    client_secret: Secret,
    parameters: Parameters,
    basic_encoding: BasicEncoding,
    reader: Reader,
    clock: SharedClock,
}

impl HttpIssuer {
    /// Builds the client; speaks to nobody yet.
    ///
    /// # Errors
    /// When the TLS settings cannot be used.
    pub fn new(config: &IssuerConfig, clock: SharedClock) -> Result<Self, Error> {
        let (client, url, host) = client(config)?;
        Ok(Self {
            client,
            url,
            host,
            authorization: basic(&config.client_id, &config.client_secret, config.basic_encoding),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone(),
            parameters: config.parameters,
            basic_encoding: config.basic_encoding,
            reader: Reader { fields: config.fields.clone(), default_expires_in: config.default_expires_in },
            clock,
        })
    }

    /// Spends the refresh token, once. Ends within the configured timeout.
    ///
    /// # Errors
    /// With what follows from the failure, and words for people that contain no secret.
    pub async fn refresh(&self, refresh_token: &Secret) -> Result<Grant, Failure> {
        let mut response = self.request(refresh_token).send().await.map_err(failure)?;
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = match read_body(&mut response).await {
            Ok(body) => body,
            // Of a refusal the status tells enough.
            Err(_) if !status.is_success() => Zeroizing::default(),
            Err(failure) => return Err(failure),
        };
        self.reader.read(status, &headers, &body, self.clock.wall())
    }

    fn request(&self, refresh_token: &Secret) -> reqwest::RequestBuilder {
        let token = Zeroizing::new(utf8_percent_encode(refresh_token.expose(), RESERVED).to_string());
        let grant = format!("grant_type=refresh_token&refresh_token={}", *token);
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(host) = &self.host {
            headers.insert(header::HOST, host.clone());
        }
        let mut url = self.url.clone();
        match self.parameters {
            Parameters::Query => {
                url.set_query(Some(&grant));
                // Some servers answer 411 to a POST that does not state its empty body.
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
                self.client.post(url).headers(headers)
            }
            Parameters::Form => {
                let form = HeaderValue::from_static("application/x-www-form-urlencoded");
                headers.insert(header::CONTENT_TYPE, form);
                self.client.post(url).headers(headers).body(grant)
            }
        }
    }

    async fn reload_client_secret(&mut self) -> bool {
        let Some(file) = self.client_secret.file().map(ToOwned::to_owned) else { return false };
        // A file that is missing, empty or half-written is as good as an unchanged one: it is read again next time.
        let Ok(Ok(secret)) = tokio::task::spawn_blocking(|| Secret::from_file(file)).await else { return false };
        let changed = secret.expose() != self.client_secret.expose();
        if changed {
            self.authorization = basic(&self.client_id, &secret, self.basic_encoding);
            self.client_secret = secret;
        }
        changed
    }
}

impl Issuer for HttpIssuer {
    fn refresh<'a>(&'a self, refresh_token: &'a Secret) -> BoxFuture<'a, Result<Grant, Failure>> {
        Box::pin(self.refresh(refresh_token))
    }

    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(self.reload_client_secret())
    }
}

/// The client, the URL to call, and the `Host` to send if it is not the URL's.
fn client(config: &IssuerConfig) -> Result<(Client, Url, Option<HeaderValue>), Error> {
    let mut url = config.refresh_url.clone();
    let is_https = url.scheme() == "https";
    let tls =
        if is_https { tls::client_config(&config.tls, &[b"http/1.1"])? } else { tls::client_config_without_trust()? };
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
        .connect_timeout(CONNECT_TIMEOUT.min(config.timeout))
        .timeout(config.timeout)
        .user_agent(concat!("bearer-proxy/", env!("CARGO_PKG_VERSION")));
    let mut host = None;
    if let Some(name) = config.tls.server_name.as_deref().filter(|_| is_https) {
        if let Ok(address) = name.parse() {
            return Err(Error::ServerName(address));
        }
        // reqwest takes the name to verify from the URL, so the URL gets that name and the resolver the real one.
        let real = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        host = HeaderValue::from_str(&url[url::Position::BeforeHost..url::Position::AfterPort]).ok();
        url.set_host(Some(name)).map_err(|_| Error::NotAName)?;
        builder = builder.dns_resolver(Alias { real: real.into() });
    }
    Ok((builder.build().map_err(|error| Error::Client(error.without_url()))?, url, host))
}

/// Resolves every name to the addresses of one other name.
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

/// HTTP Basic, RFC 7617: `Base64(client_id ":" client_secret)`.
fn basic(client_id: &str, client_secret: &Secret, encoding: BasicEncoding) -> HeaderValue {
    let form = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(match encoding {
        BasicEncoding::Raw => format!("{client_id}:{}", client_secret.expose()),
        BasicEncoding::Form => {
            let secret = Zeroizing::new(form(client_secret.expose()));
            format!("{}:{}", form(client_id), *secret)
        }
    });
    let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
    authorization("Basic", &encoded).expect("Base64 is legal in a header")
}

/// Reads at most [`BODY_LIMIT`] bytes, into one allocation that is wiped.
async fn read_body(response: &mut reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut body = Zeroizing::new(Vec::with_capacity(BODY_LIMIT));
    while let Some(chunk) = response.chunk().await.map_err(failure)? {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Err(Failure::new(Class::Garbled, format!("the issuer's answer exceeds {} KiB", BODY_LIMIT / 1024)));
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
        (Class::Unreachable, "the issuer cannot be reached".to_owned())
    } else if error.is_timeout() {
        (Class::Ambiguous, "the issuer did not answer in time".to_owned())
    } else if error.is_builder() {
        (Class::Failing, "the request to the issuer cannot be built".to_owned())
    } else {
        (Class::Ambiguous, "the issuer's answer was cut off or is not HTTP".to_owned())
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
    Some(cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(value: &HeaderValue) -> String {
        let text = value.to_str().expect("text").strip_prefix("Basic ").expect("Basic");
        String::from_utf8(STANDARD.decode(text).expect("Base64")).expect("UTF-8")
    }

    #[test]
    fn basic_raw_and_form_encoded() {
        let secret = Secret::new("p+w%&= ü:");
        let raw = basic("id", &secret, BasicEncoding::Raw);
        assert_eq!(decoded(&raw), "id:p+w%&= ü:");
        assert!(raw.is_sensitive());
        let form = basic("i d", &secret, BasicEncoding::Form);
        assert_eq!(decoded(&form), "i+d:p%2Bw%25%26%3D+%C3%BC%3A");
    }
}
