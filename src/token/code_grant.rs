//! The authorization code grant (RFC 6749 §4.1): the URL at which a user logs in, and the exchange
//! of the code for the first tokens.

use std::sync::Arc;

use url::Url;

use super::{
    deadline::CallDeadline,
    endpoint::{IssuerEndpoint, Servers, encode_parameters},
    issuer::{Error, IssuerConfig, TokenEndpoint},
    token_response::{Failure, GrantType, TokenResponse},
};
use crate::base::{clock::SharedClock, secret::Secret};

/// The endpoints of the authorization code grant.
#[derive(Debug, Clone)]
pub struct Config {
    /// The authorization endpoint of the issuer's first server, which a browser opens; without a
    /// query.
    pub authorize_url: Url,
    /// The path of the token endpoint for codes.
    pub token_path: String,
    /// The redirect URI, exactly as it is registered at the cloud.
    pub redirect_uri: Option<String>,
}

impl Config {
    /// The authorization request (RFC 6749 §4.1.1). The cloud returns `data` beside the code, as
    /// the RFC's `state`.
    pub fn authorize_url(&self, client_id: &str, data: &str) -> Url {
        let redirect_uri = self
            .redirect_uri
            .as_deref()
            .map(|uri| ("redirect_uri", uri));
        let pairs = [("response_type", "code"), ("client_id", client_id)];
        let query = encode_parameters(
            pairs
                .into_iter()
                .chain(redirect_uri)
                .chain([("data", data)]),
        );
        let mut url = self.authorize_url.clone();
        url.set_query(Some(&query));
        url
    }
}

/// The token endpoint for codes: `POST {origin}{token_path}?grant_type=authorization_code&code=…`.
#[derive(Debug)]
pub struct CodeGrant {
    endpoint: TokenEndpoint,
    redirect_uri: Option<String>,
}

impl CodeGrant {
    /// Builds the HTTP client. Connects to nothing yet.
    ///
    /// # Errors
    /// When the TLS settings are unusable.
    pub fn new(config: &Config, issuer: &IssuerConfig, clock: SharedClock) -> Result<Self, Error> {
        Ok(Self::at_servers(issuer.servers()?, config, issuer, clock))
    }

    /// The token endpoint for codes at these servers of the issuer.
    pub(super) fn at_servers(
        servers: Arc<Servers>,
        config: &Config,
        issuer: &IssuerConfig,
        clock: SharedClock,
    ) -> Self {
        let endpoint = IssuerEndpoint::new(servers, &config.token_path);
        Self {
            endpoint: TokenEndpoint::at(endpoint, GrantType::AuthorizationCode, issuer, clock),
            redirect_uri: config.redirect_uri.clone(),
        }
    }

    /// Exchanges the code for tokens (RFC 6749 §4.1.3). It is sent once: whatever the response, it
    /// is invalid afterwards. A late response is read, too.
    ///
    /// # Errors
    /// A classified failure whose detail contains no secret.
    pub async fn exchange(&self, code: &Secret) -> Result<TokenResponse, Failure> {
        self.exchange_until(code, &self.endpoint.read_on()).await
    }

    /// Like [`CodeGrant::exchange`], until `deadline`.
    pub(super) async fn exchange_until(
        &self,
        code: &Secret,
        deadline: &CallDeadline,
    ) -> Result<TokenResponse, Failure> {
        let redirect_uri = self
            .redirect_uri
            .as_deref()
            .map(|uri| ("redirect_uri", uri));
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code.expose()),
        ];
        let pairs = pairs.into_iter().chain(redirect_uri);
        self.endpoint.request_tokens(pairs, deadline).await
    }

    /// Reads the client secret again.
    pub(super) async fn reload_client_secret(&mut self) {
        self.endpoint.reload_client_secret().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authorize_url_encodes_every_special_character() {
        let config = Config {
            authorize_url: "https://cloud.example.com/api/authorize.do"
                .parse()
                .expect("a URL"),
            token_path: "/api/token.do".to_owned(),
            redirect_uri: Some("http://127.0.0.1:8765/back?a=b&c=d".to_owned()),
        };
        assert_eq!(
            config.authorize_url("my app+1", "s").as_str(),
            "https://cloud.example.com/api/authorize.do?response_type=code&client_id=my%20app%2B1\
             &redirect_uri=http%3A%2F%2F127.0.0.1%3A8765%2Fback%3Fa%3Db%26c%3Dd&data=s"
        );
    }
}
