//! Authorization codes: where a person gets one, and how it becomes the first tokens (RFC 6749 §4.1).

use url::Url;

use super::{
    IssuerConfig,
    endpoint::encode_parameters,
    issuer::{Error, TokenEndpoint},
    token_response::{Failure, GrantType, TokenResponse},
};
use crate::base::{clock::SharedClock, secret::Secret};

/// Where codes come from and go to.
#[derive(Debug, Clone)]
pub struct Config {
    /// The authorize interface, for a browser; without a query.
    pub authorize_url: Url,
    /// The token interface, without a query.
    pub token_url: Url,
    /// The redirect URI, character by character as it is registered.
    pub redirect_uri: Option<String>,
}

impl Config {
    /// The address at which a person logs in and agrees. The cloud gives `data` back with the code.
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

/// The token interface: `POST {token_url}?grant_type=authorization_code&code=…`, HTTP Basic.
#[derive(Debug)]
pub struct CodeGrant {
    issuer: TokenEndpoint,
    redirect_uri: Option<String>,
}

impl CodeGrant {
    /// Builds the client; speaks to nobody yet.
    ///
    /// # Errors
    /// When the TLS settings cannot be used.
    pub fn new(config: &Config, issuer: &IssuerConfig, clock: SharedClock) -> Result<Self, Error> {
        let issuer = TokenEndpoint::at(
            &config.token_url,
            GrantType::AuthorizationCode,
            issuer,
            clock,
        )?;
        Ok(Self {
            issuer,
            redirect_uri: config.redirect_uri.clone(),
        })
    }

    /// Spends the code, once: whatever the answer, it is good for nothing afterwards. Ends within the issuer's timeout.
    ///
    /// # Errors
    /// With what follows from the failure, and words for people that contain no secret.
    pub async fn exchange(&self, code: &Secret) -> Result<TokenResponse, Failure> {
        let redirect_uri = self
            .redirect_uri
            .as_deref()
            .map(|uri| ("redirect_uri", uri));
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code.expose()),
        ];
        self.issuer
            .request_tokens(pairs.into_iter().chain(redirect_uri))
            .await
    }

    /// Reads the client's secret and the files of `tls` again.
    pub(super) async fn reload(&mut self) {
        self.issuer.reload_client_secret().await;
        self.issuer.reload_tls().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authorize_url_survives_every_character() {
        let config = Config {
            authorize_url: "https://cloud.example.com/api/authorize.do"
                .parse()
                .expect("a URL"),
            token_url: "https://cloud.example.com/api/token.do"
                .parse()
                .expect("a URL"),
            redirect_uri: Some("http://127.0.0.1:8765/back?a=b&c=d".to_owned()),
        };
        assert_eq!(
            config.authorize_url("my app+1", "s").as_str(),
            "https://cloud.example.com/api/authorize.do?response_type=code&client_id=my%20app%2B1\
             &redirect_uri=http%3A%2F%2F127.0.0.1%3A8765%2Fback%3Fa%3Db%26c%3Dd&data=s"
        );
    }
}
