//! The issuer, spoken to over HTTP: one call spends one refresh token, or one code.

use std::{pin::Pin, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, header};
use url::Url;
use zeroize::Zeroizing;

pub use super::endpoint::Error;
use super::{
    BasicEncoding, IssuerConfig, ParameterLocation,
    cache::authorization,
    endpoint::{self, Endpoint, encode_parameters},
    token_response::{Failure, GrantType, ResponseParser, TokenResponse},
};
use crate::{
    base::{clock::SharedClock, secret::Secret},
    net::reload,
};

/// A boxed future, so that issuers and stores can be trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who turns a refresh token into an access token.
pub(super) trait Issuer: Send {
    /// Spends the refresh token. Ends within the configured timeout.
    fn refresh<'a>(
        &'a self,
        refresh_token: &'a Secret,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>>;

    /// Reads the client's secret again from where it came; true if it is another one now.
    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool>;
}

/// An interface of the issuer that grants tokens: `POST {url}`, HTTP Basic.
#[derive(Debug)]
pub struct TokenEndpoint {
    endpoint: Endpoint,
    authorization: HeaderValue,
    client_id: String,
    client_secret: Secret,
    parameters: ParameterLocation,
    basic_encoding: BasicEncoding,
    reader: ResponseParser,
    clock: SharedClock,
}

impl TokenEndpoint {
    /// Builds the client of the refresh interface; speaks to nobody yet.
    ///
    /// # Errors
    /// When the TLS settings cannot be used.
    pub fn new(config: &IssuerConfig, clock: SharedClock) -> Result<Self, Error> {
        Self::at(&config.refresh_url, GrantType::RefreshToken, config, clock)
    }

    /// Builds the client of an interface of the same issuer.
    pub(super) fn at(
        interface: &Url,
        grant_type: GrantType,
        config: &IssuerConfig,
        clock: SharedClock,
    ) -> Result<Self, Error> {
        Ok(Self {
            endpoint: Endpoint::new(interface, config)?,
            authorization: basic(
                &config.client_id,
                &config.client_secret,
                config.basic_encoding,
            ),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone(),
            parameters: config.parameters,
            basic_encoding: config.basic_encoding,
            reader: ResponseParser {
                fields: config.fields.clone(),
                default_expires_in: config.default_expires_in,
                grant_type,
            },
            clock,
        })
    }

    /// Spends the refresh token, once. Ends within the configured timeout.
    ///
    /// # Errors
    /// With what follows from the failure, and words for people that contain no secret.
    pub async fn refresh(&self, refresh_token: &Secret) -> Result<TokenResponse, Failure> {
        self.request_tokens([
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose()),
        ])
        .await
    }

    /// One call with these parameters, in this order.
    pub(super) async fn request_tokens<'a>(
        &self,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<TokenResponse, Failure> {
        let grant = encode_parameters(pairs);
        let request = match self.parameters {
            // Some servers answer 411 to a POST that does not state its empty body.
            ParameterLocation::Query => self
                .endpoint
                .post(Some(&grant))
                .header(header::CONTENT_LENGTH, "0"),
            ParameterLocation::Form => self
                .endpoint
                .post(None)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(grant.to_string()),
        };
        let request = request.header(header::AUTHORIZATION, self.authorization.clone());
        let answer = endpoint::send(request).await?;
        self.reader.read(
            answer.status,
            &answer.headers,
            &answer.body,
            self.clock.wall(),
        )
    }

    /// What follows the files of the issuer's `tls`.
    pub(super) fn reloadable(&self) -> Arc<dyn reload::Reload> {
        self.endpoint.reloadable()
    }

    /// Reads the files of `tls` again. If they cannot be used, what was in them before stays in use.
    pub(super) async fn reload_tls(&self) {
        self.endpoint.reload().await;
    }

    pub(super) async fn reload_client_secret(&mut self) -> bool {
        let Some(file) = self.client_secret.file().map(ToOwned::to_owned) else {
            return false;
        };
        // A file that is missing, empty or half-written is as good as an unchanged one: it is read again next time.
        let Ok(Ok(secret)) = tokio::task::spawn_blocking(|| Secret::from_file(file)).await else {
            return false;
        };
        let changed = secret.expose() != self.client_secret.expose();
        if changed {
            self.authorization = basic(&self.client_id, &secret, self.basic_encoding);
            self.client_secret = secret;
        }
        changed
    }
}

impl Issuer for TokenEndpoint {
    fn refresh<'a>(
        &'a self,
        refresh_token: &'a Secret,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>> {
        Box::pin(self.refresh(refresh_token))
    }

    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(self.reload_client_secret())
    }
}

/// HTTP Basic, RFC 7617: `Base64(client_id ":" client_secret)`.
fn basic(client_id: &str, client_secret: &Secret, encoding: BasicEncoding) -> HeaderValue {
    let form =
        |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(value: &HeaderValue) -> String {
        let text = value
            .to_str()
            .expect("text")
            .strip_prefix("Basic ")
            .expect("Basic");
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
