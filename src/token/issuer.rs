//! The issuer's token endpoint (RFC 6749 §3.2): one request uses one refresh token or one code.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use http::HeaderValue;
use url::Url;
use zeroize::Zeroizing;

pub use super::endpoint::Error;
use super::{
    cache::authorization,
    deadline::CallDeadline,
    endpoint::{IssuerEndpoint, Parameters, Servers, encode_parameters},
    token_response::{Failure, GrantType, ResponseFields, ResponseParser, TokenResponse},
};
use crate::{
    base::{clock::SharedClock, secret::Secret},
    net::{outbound_proxy::OutboundProxy, tls},
};

/// How to call the issuer: `POST {origin}{path}`, client authentication by HTTP Basic, the grant's
/// parameters in the URL or in a form.
#[derive(Debug, Clone)]
pub struct IssuerConfig {
    /// The issuer's servers, at least one: their origins. A call begins with the one that the last
    /// call reached, at first with the first.
    pub origins: Vec<Url>,
    /// The path of the endpoint that takes refresh tokens.
    pub refresh_path: String,
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
    /// How long a call may take before it counts as failed. A response that comes later is read
    /// all the same, see `READ_ON`.
    pub timeout: Duration,
    /// The lifetime of a token whose response states none.
    pub default_expires_in: Duration,
    /// TLS towards the issuer, if it is `https`.
    pub tls: tls::Config,
    /// The proxy that connections to the issuer pass. It resolves the issuer's host.
    pub proxy: Option<Arc<OutboundProxy>>,
}

impl IssuerConfig {
    /// The issuer's servers, for all its endpoints. Connects to nothing yet.
    pub(super) fn servers(&self) -> Result<Arc<Servers>, Error> {
        Servers::new(&self.origins, &self.tls, self.proxy.as_ref(), self.timeout)
    }
}

/// For how many timeouts at least a response is awaited: the alternative is to present again what
/// can be used once.
pub(super) const READ_ON: u32 = 3;

/// Client secrets that are remembered because the issuer refused them.
const MAX_REFUSED_SECRETS: usize = 16;
/// The bytes of a fingerprint that replicas share: enough to tell secrets apart, too few to guess one.
const FINGERPRINT_SHARED: usize = 3;
/// SHA-256 of a secret.
type Fingerprint = [u8; digest::SHA256_OUTPUT_LEN];

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
    /// Sends the refresh token once. Ends at the deadline.
    fn refresh<'a>(
        &'a self,
        refresh_token: &'a Secret,
        deadline: &'a CallDeadline,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>>;

    /// Reads the client secret's file again; true if it holds another secret now, which the issuer
    /// has not refused before.
    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool>;

    /// Notes that the issuer refused the client with the current secret.
    fn client_refused(&mut self);

    /// Identifies the client's secret among replicas.
    fn client_fingerprint(&self) -> String;
}

/// A token endpoint: `POST {origin}{path}`, HTTP Basic.
#[derive(Debug)]
pub struct TokenEndpoint {
    endpoint: IssuerEndpoint,
    authorization: HeaderValue,
    client_id: String,
    client_secret: Secret,
    /// The newest first.
    refused_secrets: VecDeque<Fingerprint>,
    parameters: ParameterLocation,
    basic_encoding: BasicEncoding,
    parser: ResponseParser,
    timeout: Duration,
    clock: SharedClock,
}

impl TokenEndpoint {
    /// The endpoint that takes refresh tokens. Connects to nothing yet.
    ///
    /// # Errors
    /// When the TLS settings are unusable.
    pub fn new(config: &IssuerConfig, clock: SharedClock) -> Result<Self, Error> {
        Ok(Self::at_servers(config.servers()?, config, clock))
    }

    /// The endpoint that takes refresh tokens, at these servers of the issuer.
    pub(super) fn at_servers(
        servers: Arc<Servers>,
        config: &IssuerConfig,
        clock: SharedClock,
    ) -> Self {
        let endpoint = IssuerEndpoint::new(servers, &config.refresh_path);
        Self::at(endpoint, GrantType::RefreshToken, config, clock)
    }

    /// Another endpoint of the same issuer.
    pub(super) fn at(
        endpoint: IssuerEndpoint,
        grant_type: GrantType,
        config: &IssuerConfig,
        clock: SharedClock,
    ) -> Self {
        Self {
            endpoint,
            authorization: basic_authorization(
                &config.client_id,
                &config.client_secret,
                config.basic_encoding,
            ),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone(),
            refused_secrets: VecDeque::new(),
            parameters: config.parameters,
            basic_encoding: config.basic_encoding,
            parser: ResponseParser {
                fields: config.fields.clone(),
                default_expires_in: config.default_expires_in,
                grant_type,
            },
            timeout: config.timeout,
            clock,
        }
    }

    /// Sends the refresh token once (RFC 6749 §6). Ends within `READ_ON` timeouts.
    ///
    /// # Errors
    /// A classified failure whose detail contains no secret.
    pub async fn refresh(&self, refresh_token: &Secret) -> Result<TokenResponse, Failure> {
        self.refresh_until(refresh_token, &self.read_on()).await
    }

    async fn refresh_until(
        &self,
        refresh_token: &Secret,
        deadline: &CallDeadline,
    ) -> Result<TokenResponse, Failure> {
        let pairs = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose()),
        ];
        let result = self.request_tokens(pairs, deadline).await;
        result.map_err(|failure| Failure {
            // The echo of the token that was sent replaces nothing.
            rotated: failure
                .rotated
                .filter(|token| token.secret().expose() != refresh_token.expose()),
            ..failure
        })
    }

    /// One call with these parameters, in this order.
    pub(super) async fn request_tokens<'a>(
        &self,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
        deadline: &CallDeadline,
    ) -> Result<TokenResponse, Failure> {
        let parameters = encode_parameters(pairs);
        let parameters = match self.parameters {
            ParameterLocation::Query => Parameters::Query(parameters),
            ParameterLocation::Form => Parameters::Form(parameters),
        };
        let parse = |response| self.parser.parse(response, self.clock.wall());
        self.endpoint
            .call(parameters, Some(&self.authorization), deadline, parse)
            .await
    }

    /// The deadline of a call that presents what can be used once.
    pub(super) fn read_on(&self) -> CallDeadline {
        CallDeadline::after(&self.clock, self.timeout.saturating_mul(READ_ON))
    }

    /// Like [`Issuer::reload_client_secret`].
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
            && !self
                .refused_secrets
                .contains(&fingerprint(&self.client_secret))
    }
}

impl Issuer for TokenEndpoint {
    fn refresh<'a>(
        &'a self,
        refresh_token: &'a Secret,
        deadline: &'a CallDeadline,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>> {
        Box::pin(self.refresh_until(refresh_token, deadline))
    }

    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(self.reload_client_secret())
    }

    fn client_refused(&mut self) {
        let refused = fingerprint(&self.client_secret);
        if !self.refused_secrets.contains(&refused) {
            self.refused_secrets.truncate(MAX_REFUSED_SECRETS - 1);
            self.refused_secrets.push_front(refused);
        }
    }

    fn client_fingerprint(&self) -> String {
        client_fingerprint(&self.client_secret)
    }
}

/// What replicas share of a client secret, to tell it from another one.
pub(super) fn client_fingerprint(secret: &Secret) -> String {
    STANDARD.encode(&fingerprint(secret)[..FINGERPRINT_SHARED])
}

fn fingerprint(secret: &Secret) -> Fingerprint {
    let digest = digest::digest(&digest::SHA256, secret.expose().as_bytes());
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(digest.as_ref());
    fingerprint
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
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::{
        base::clock,
        token::{FailureClass, fleet, testing},
    };

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

    /// The claim to the call was lost while the connection was made.
    #[tokio::test]
    async fn nothing_is_written_behind_a_closed_fence() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("bound");
        let address = listener.local_addr().expect("an address");
        let mut config = testing::config(None).issuer;
        config.origins = vec![format!("http://{address}").parse().expect("a URL")];
        let endpoint = TokenEndpoint::new(&config, clock::system()).expect("built");
        let fence = fleet::testing::closed_fence(clock::system());
        let deadline = CallDeadline::after(&clock::system(), Duration::from_secs(5));
        let deadline = deadline.behind(Some(fence));
        let token = Secret::new("refresh");
        let (result, received) = tokio::join!(endpoint.refresh_until(&token, &deadline), async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut received = Vec::new();
            let _ = stream.read_to_end(&mut received).await;
            received
        });
        let failure = result.expect_err("not sent");
        assert_eq!(failure.class, FailureClass::Unreachable);
        assert_eq!(received, b"");
    }

    #[tokio::test]
    async fn field_a14_a_secret_that_was_refused_is_not_new() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        std::fs::write(&file, "0").expect("written");
        let mut config = testing::config(None).issuer;
        config.client_secret = Secret::from_file(file.clone()).expect("readable");
        let mut endpoint = TokenEndpoint::new(&config, clock::system()).expect("built");
        for (contents, is_new) in [
            ("0", false),
            ("1", true),
            ("1", false),
            ("0", false),
            ("", false),
            ("2", true),
            ("1", false),
        ] {
            // Each secret is refused.
            endpoint.client_refused();
            std::fs::write(&file, contents).expect("written");
            assert_eq!(endpoint.reload_client_secret().await, is_new, "{contents}");
        }
        for n in 10..100 {
            std::fs::write(&file, n.to_string()).expect("written");
            assert!(endpoint.reload_client_secret().await);
            endpoint.client_refused();
        }
        assert_eq!(endpoint.refused_secrets.len(), MAX_REFUSED_SECRETS);
    }
}
