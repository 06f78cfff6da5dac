//! The issuer's token endpoint (RFC 6749 §3.2): one request uses one refresh token or one code.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use http::{HeaderValue, header};
use url::Url;
use zeroize::Zeroizing;

pub use super::endpoint::Error;
use super::{
    cache::authorization,
    endpoint::{self, IssuerEndpoint, encode_parameters},
    token_response::{Failure, GrantType, ResponseFields, ResponseParser, TokenResponse},
};
use crate::{
    base::{clock::SharedClock, secret::Secret},
    net::{reload, tls},
};

/// How to call the issuer: `POST {url}`, client authentication by HTTP Basic, the grant's
/// parameters in the URL or in a form.
#[derive(Debug, Clone)]
pub struct IssuerConfig {
    /// The endpoint that takes refresh tokens: issuer origin and `refresh_path`, without a query.
    pub refresh_url: Url,
    /// The client's id.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: Secret,
    /// Where the grant's parameters go.
    pub parameters: ParameterLocation,
    /// How id and secret are encoded before Base64.
    pub basic_encoding: BasicEncoding,
    /// Where the fields of a token response are.
    pub fields: ResponseFields,
    /// Limit for a whole call.
    pub timeout: Duration,
    /// The lifetime of a token whose response states none.
    pub default_expires_in: Duration,
    /// TLS towards the issuer, if it is `https`.
    pub tls: tls::Config,
}

/// Where the grant's parameters go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterLocation {
    /// In the URL's query, as the cloud documents it.
    Query,
    /// In an `application/x-www-form-urlencoded` body (RFC 6749 §6).
    Form,
}

/// How id and secret are encoded before Base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasicEncoding {
    /// As they are (RFC 7617).
    Raw,
    /// Form-encoded first (RFC 6749 §2.3.1).
    Form,
}

/// Exchanges a refresh token for new tokens. A trait, so that tests can script the issuer.
pub(super) trait Issuer: Send {
    /// Sends the refresh token once. Ends within the configured timeout.
    fn refresh<'a>(
        &'a self,
        refresh_token: &'a Secret,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>>;

    /// Reads the client secret's file again; true if it holds another secret now.
    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool>;
}

/// A token endpoint: `POST {url}`, HTTP Basic.
#[derive(Debug)]
pub struct TokenEndpoint {
    endpoint: IssuerEndpoint,
    authorization: HeaderValue,
    client_id: String,
    client_secret: Secret,
    parameters: ParameterLocation,
    basic_encoding: BasicEncoding,
    parser: ResponseParser,
    clock: SharedClock,
}

impl TokenEndpoint {
    /// The endpoint that takes refresh tokens. Connects to nothing yet.
    ///
    /// # Errors
    /// When the TLS settings are unusable.
    pub fn new(config: &IssuerConfig, clock: SharedClock) -> Result<Self, Error> {
        Self::at(&config.refresh_url, GrantType::RefreshToken, config, clock)
    }

    /// Another endpoint of the same issuer.
    pub(super) fn at(
        url: &Url,
        grant_type: GrantType,
        config: &IssuerConfig,
        clock: SharedClock,
    ) -> Result<Self, Error> {
        Ok(Self {
            endpoint: IssuerEndpoint::new(url, &config.tls, config.timeout)?,
            authorization: basic_authorization(
                &config.client_id,
                &config.client_secret,
                config.basic_encoding,
            ),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone(),
            parameters: config.parameters,
            basic_encoding: config.basic_encoding,
            parser: ResponseParser {
                fields: config.fields.clone(),
                default_expires_in: config.default_expires_in,
                grant_type,
            },
            clock,
        })
    }

    /// Sends the refresh token once (RFC 6749 §6). Ends within the configured timeout.
    ///
    /// # Errors
    /// A classified failure whose detail contains no secret.
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
        let parameters = encode_parameters(pairs);
        let request = match self.parameters {
            // Some servers respond 411 to a POST without Content-Length.
            ParameterLocation::Query => self
                .endpoint
                .post(Some(&parameters))
                .header(header::CONTENT_LENGTH, "0"),
            ParameterLocation::Form => self
                .endpoint
                .post(None)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(parameters.to_string()),
        };
        let request = request.header(header::AUTHORIZATION, self.authorization.clone());
        let response = endpoint::send(request).await?;
        self.parser.parse(
            response.status,
            &response.headers,
            &response.body,
            self.clock.wall(),
        )
    }

    /// What reloads the client when the files of the issuer's `tls` change.
    pub(super) fn reloadable(&self) -> Arc<dyn reload::Reload> {
        self.endpoint.reloadable()
    }

    /// Reads the files of `tls` again. If they are unusable, the previous settings stay.
    pub(super) async fn reload_tls(&self) {
        self.endpoint.reload().await;
    }

    pub(super) async fn reload_client_secret(&mut self) -> bool {
        let Some(file) = self.client_secret.file().map(ToOwned::to_owned) else {
            return false;
        };
        // A file that is missing, empty or half-written counts as unchanged: its next change is
        // read again.
        let Ok(secret) = Secret::load(file).await else {
            return false;
        };
        let changed = secret.expose() != self.client_secret.expose();
        if changed {
            self.authorization = basic_authorization(&self.client_id, &secret, self.basic_encoding);
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

/// HTTP Basic (RFC 7617): `Base64(client_id ":" client_secret)`.
fn basic_authorization(
    client_id: &str,
    client_secret: &Secret,
    encoding: BasicEncoding,
) -> HeaderValue {
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
    // Base64 consists of visible ASCII only.
    authorization("Basic", &encoded).expect("Base64 is valid in a header")
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
        let raw = basic_authorization("id", &secret, BasicEncoding::Raw);
        assert_eq!(decoded(&raw), "id:p+w%&= ü:");
        assert!(raw.is_sensitive());
        let form = basic_authorization("i d", &secret, BasicEncoding::Form);
        assert_eq!(decoded(&form), "i+d:p%2Bw%25%26%3D+%C3%BC%3A");
    }
}
