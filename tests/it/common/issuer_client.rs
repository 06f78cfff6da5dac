//! The issuer client by itself, with secrets whose characters need encoding.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bearer_proxy::{
    base::{clock, secret::Secret},
    net::tls,
    token::{
        BasicEncoding, Failure, IssuerConfig, ParameterLocation, ResponseFields, TokenResponse,
        issuer::TokenEndpoint,
    },
};

use super::LIMIT;

pub const ID: &str = "client id+é";
pub const SECRET: &str = "s3c:ret+%&= ü";
pub const TOKEN: &str = "r3fresh+%&= /?#ü\"<>";
pub const TOKEN_ENCODED: &str = "r3fresh%2B%25%26%3D%20%2F%3F%23%C3%BC%22%3C%3E";

/// A response that grants tokens.
pub const GRANT: &str = r#"{"access_token":"abc","refresh_token":"def","expires_in":3600}"#;

pub fn config(origin: &str) -> IssuerConfig {
    IssuerConfig {
        origins: vec![origin.parse().unwrap()],
        refresh_path: "/api/refreshToken.do".to_owned(),
        client_id: ID.to_owned(),
        client_secret: Secret::new(SECRET),
        parameters: ParameterLocation::Query,
        basic_encoding: BasicEncoding::Raw,
        fields: ResponseFields::default(),
        timeout: Duration::from_secs(10),
        default_expires_in: Duration::from_secs(300),
        tls: tls::Config::default(),
        proxy: None,
    }
}

/// Refreshes once. Neither the result nor the client may print a secret.
pub async fn call(config: &IssuerConfig) -> Result<TokenResponse, Failure> {
    let issuer = TokenEndpoint::new(config, clock::system()).unwrap();
    let token = Secret::new(TOKEN);
    let result = tokio::time::timeout(LIMIT, issuer.refresh(&token))
        .await
        .expect("within its timeout");
    if let Err(failure) = &result {
        assert_no_secret(&format!("{failure:?}"));
    }
    assert_no_secret(&format!("{issuer:?} {result:?}"));
    result
}

pub fn assert_no_secret(text: &str) {
    let basic = STANDARD.encode(format!("{ID}:{SECRET}"));
    let token_base64 = STANDARD.encode(TOKEN);
    for secret in [
        SECRET,
        "s3c%3Aret",
        "s3c:ret",
        TOKEN,
        TOKEN_ENCODED,
        "r3fresh",
        &basic,
        &token_base64,
    ] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}
