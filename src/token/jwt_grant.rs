//! First tokens without a user: the cloud exchanges a signed JWT for an authorization code, and the
//! code is exchanged for tokens.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use http::{HeaderMap, StatusCode, header};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::{
    code_grant::{self, CodeGrant},
    deadline::CallDeadline,
    endpoint::{IssuerEndpoint, Parameters, Servers, encode_parameters},
    initial_grant::InitialGrant,
    issuer::{IssuerConfig, READ_ON},
    token_response::{
        Failure, FailureClass, GrantType, RawResponse, TokenResponse, error_response, parse_object,
    },
};
use crate::base::{clock::SharedClock, secret::Secret};

/// Lifetime of a JWT: it is sent at once, and clocks differ.
const JWT_LIFETIME: Duration = Duration::from_secs(300);
/// The longest accepted code, in bytes.
const MAX_CODE_LENGTH: usize = 4096;
/// Claims that this module sets, and that cannot be configured.
pub const RESERVED_CLAIMS: [&str; 3] = ["client_id", "iat", "exp"];

/// How to obtain codes without a user.
#[derive(Debug, Clone)]
pub struct Config {
    /// The path of the endpoint that takes JWTs.
    pub path: String,
    /// The JWT key of the developer account: the secret itself for HS…, otherwise a private key in
    /// PEM form.
    pub key: Secret,
    /// The signature algorithm.
    pub algorithm: Algorithm,
    /// The user that the tokens act for; `None`: the enterprise's administrator.
    pub user: Option<User>,
    /// Additional claims.
    pub claims: Map<String, Value>,
    /// Parameter names of this deployment.
    pub names: ParameterNames,
    /// Where the code is in a JSON response: JSON pointers (RFC 6901), tried in this order.
    pub code_fields: Vec<String>,
}

/// Names of URL parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterNames {
    /// The client's id, also the name of its claim.
    pub client_id: String,
    /// The JWT.
    pub jwt_token: String,
    /// A user's email address.
    pub email: String,
    /// A user's telephone number.
    pub phone: String,
    /// A user's id.
    pub babel_id: String,
    /// The code, in the URL that the cloud redirects to.
    pub code: String,
}

/// Identifies a user of the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// By email address.
    Email(String),
    /// By telephone number.
    Phone(String),
    /// By the cloud's id.
    BabelId(String),
}

/// The key does not fit the algorithm. The message contains no part of the key.
#[derive(Debug, thiserror::Error)]
#[error("the key is no private key in PEM form that fits the algorithm")]
pub struct InvalidKey;

/// Whether the key can sign JWTs with this algorithm.
///
/// # Errors
/// When it cannot.
pub fn check_key(algorithm: Algorithm, key: &Secret) -> Result<(), InvalidKey> {
    sign(algorithm, key, &Map::new()).map(drop)
}

/// Obtains tokens for a JWT.
#[derive(Debug)]
pub struct JwtGrant {
    config: Config,
    client_id: String,
    servers: Arc<Servers>,
    endpoint: IssuerEndpoint,
    code_grant: Mutex<CodeGrant>,
    timeout: Duration,
    clock: SharedClock,
}

impl JwtGrant {
    /// Connects to nothing yet.
    pub(super) fn new(
        servers: Arc<Servers>,
        config: Config,
        code: &code_grant::Config,
        issuer: &IssuerConfig,
        clock: SharedClock,
    ) -> Self {
        let code_grant = CodeGrant::at_servers(
            Arc::clone(&servers),
            code,
            issuer,
            SharedClock::clone(&clock),
        );
        Self {
            endpoint: IssuerEndpoint::new(Arc::clone(&servers), &config.path),
            servers,
            client_id: issuer.client_id.clone(),
            code_grant: Mutex::new(code_grant),
            timeout: issuer.timeout,
            config,
            clock,
        }
    }

    /// Requests tokens once. Ends within `READ_ON` timeouts.
    ///
    /// # Errors
    /// A classified failure whose detail contains no secret.
    pub async fn request_tokens(&self) -> Result<TokenResponse, Failure> {
        let limit = self.timeout.saturating_mul(READ_ON);
        self.request_until(&CallDeadline::after(&self.clock, limit))
            .await
    }

    async fn request_until(&self, deadline: &CallDeadline) -> Result<TokenResponse, Failure> {
        let jwt = self.jwt().await?;
        let names = &self.config.names;
        let user = self
            .config
            .user
            .as_ref()
            .map(|user| names.user_parameter(user));
        let pairs = [
            ("response_type", "code"),
            (names.client_id.as_str(), self.client_id.as_str()),
            (&names.jwt_token, &jwt),
        ];
        let query = encode_parameters(pairs.into_iter().chain(user));
        self.servers.reload().await;
        let parse = |response: RawResponse| {
            let code = self.config.code(&response, self.clock.wall());
            code.map_err(|failure| match response.flaw {
                Some(flaw) if response.status.is_success() => flaw,
                _ => failure,
            })
        };
        let of_code = deadline.of_harmless_request(self.timeout);
        let code = self
            .endpoint
            .call(Parameters::Get(query), None, &of_code, parse)
            .await?;
        let mut code_grant = self.code_grant.lock().await;
        code_grant.reload_client_secret().await;
        code_grant.exchange_until(&code, deadline).await
    }

    async fn jwt(&self) -> Result<Zeroizing<String>, Failure> {
        let mut claims = self.config.claims.clone();
        let now = self
            .clock
            .wall()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        claims.insert(
            self.config.names.client_id.clone(),
            self.client_id.clone().into(),
        );
        claims.insert("iat".to_owned(), now.as_secs().into());
        claims.insert("exp".to_owned(), (now + JWT_LIFETIME).as_secs().into());
        let key = self.current_key().await;
        sign(self.config.algorithm, &key, &claims).map_err(|error| {
            Failure::new(
                FailureClass::Failing,
                format!("the JWT cannot be signed: {error}: check token.jwt.key"),
            )
        })
    }

    /// The key may have been replaced since the start. A file that cannot be read counts as
    /// unchanged.
    async fn current_key(&self) -> Secret {
        let known = self.config.key.clone();
        match known.file().map(ToOwned::to_owned) {
            Some(file) => Secret::load(file).await.unwrap_or(known),
            None => known,
        }
    }
}

impl InitialGrant for JwtGrant {
    fn request_tokens<'a>(
        &'a self,
        deadline: &'a CallDeadline,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>> {
        Box::pin(self.request_until(deadline))
    }
}

impl ParameterNames {
    fn user_parameter<'a>(&'a self, user: &'a User) -> (&'a str, &'a str) {
        match user {
            User::Email(email) => (&self.email, email),
            User::Phone(phone) => (&self.phone, phone),
            User::BabelId(id) => (&self.babel_id, id),
        }
    }
}

fn sign(
    algorithm: Algorithm,
    key: &Secret,
    claims: &Map<String, Value>,
) -> Result<Zeroizing<String>, InvalidKey> {
    let bytes = key.expose().as_bytes();
    let key = match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            Ok(EncodingKey::from_secret(bytes))
        }
        Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(bytes),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(bytes),
        _ => EncodingKey::from_rsa_pem(bytes),
    };
    // The library's error messages may quote the key.
    let jwt = jsonwebtoken::encode(
        &Header::new(algorithm),
        claims,
        &key.map_err(|_| InvalidKey)?,
    );
    jwt.map(Zeroizing::new).map_err(|_| InvalidKey)
}

impl Config {
    /// The code of a response, which has one of two forms: a redirect whose target carries the
    /// code, or JSON.
    fn code(&self, response: &RawResponse, wall: SystemTime) -> Result<Secret, Failure> {
        let code = match response.status {
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => self.code_in_location(&response.headers)?,
            status if status.is_success() => self.code_in_json(&response.body)?,
            status => {
                return Err(error_response(
                    GrantType::Jwt,
                    status,
                    &response.headers,
                    &response.body,
                    wall,
                ));
            }
        };
        if code.expose().len() > MAX_CODE_LENGTH {
            return Err(Failure::new(
                FailureClass::Failing,
                "the code in the cloud's response to the JWT is too long",
            ));
        }
        Ok(code)
    }

    fn code_in_location(&self, headers: &HeaderMap) -> Result<Secret, Failure> {
        let target = headers
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok());
        // The query of a relative target does not depend on its base.
        let base = Url::parse("relative:/").ok();
        let target = base
            .zip(target)
            .and_then(|(base, target)| base.join(target).ok());
        let is_code = |(name, value): &(Cow<'_, str>, Cow<'_, str>)| {
            *name == self.names.code && !value.is_empty()
        };
        let mut codes = target.iter().flat_map(Url::query_pairs).filter(is_code);
        match (codes.next(), codes.next()) {
            (Some((_, code)), None) => Ok(Secret::new(code)),
            (None, _) | (_, Some(_)) => Err(Failure::new(
                FailureClass::Failing,
                "the cloud responded to the JWT with a redirect that carries no code: check that \
                 the cloud has this interface enabled, and the keys in [token.jwt]",
            )),
        }
    }

    fn code_in_json(&self, body: &[u8]) -> Result<Secret, Failure> {
        let failing = |detail: String| Err(Failure::new(FailureClass::Failing, detail));
        let Some(mut json) = parse_object(body) else {
            return failing("the cloud's response to the JWT is not a JSON object".to_owned());
        };
        if json.get("success") == Some(&Value::Bool(false)) {
            // The envelope's message could quote a secret; a number cannot be one.
            let number = json.get("code").and_then(Value::as_i64);
            let number = number
                .map(|number| format!(" (code {number})"))
                .unwrap_or_default();
            return failing(format!(
                "the cloud refused the JWT{number}: check the keys in [token.jwt]"
            ));
        }
        for pointer in &self.code_fields {
            if let Some(Value::String(code)) = json.pointer_mut(pointer).map(Value::take)
                && !code.is_empty()
                && !is_status_code(&code)
            {
                return Ok(Secret::new(code));
            }
        }
        let places = self.code_fields.join(", ");
        failing(format!(
            "the cloud's response to the JWT has no code at {places} (token.fields.code)"
        ))
    }
}

/// Some clouds send a status as text: `"0"`, `"200"`. No authorization code is that short.
fn is_status_code(code: &str) -> bool {
    code.len() <= 5 && code.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn respond(status: u16, location: Option<&str>, body: &str) -> Result<String, Failure> {
        let mut headers = HeaderMap::new();
        if let Some(location) = location {
            headers.insert(header::LOCATION, location.parse().expect("a value"));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        let body = Zeroizing::new(body.as_bytes().to_vec());
        let response = RawResponse::new(status, headers, body);
        config()
            .code(&response, SystemTime::UNIX_EPOCH)
            .map(|code| code.expose().to_owned())
    }

    fn config() -> Config {
        let name = str::to_owned;
        Config {
            path: name("/api/authorizeByJWT.do"),
            key: Secret::new("key"),
            algorithm: Algorithm::HS256,
            user: None,
            claims: Map::new(),
            names: ParameterNames {
                client_id: name("client_id"),
                jwt_token: name("jwt_token"),
                email: name("email"),
                phone: name("phone"),
                babel_id: name("babelId"),
                code: name("code"),
            },
            code_fields: ["/data/code", "/result/code", "/code"].map(name).to_vec(),
        }
    }

    #[test]
    fn parameter_names_and_code_fields_are_configurable() {
        let response = |location: &str, body: &[u8]| RawResponse {
            status: if location.is_empty() {
                StatusCode::OK
            } else {
                StatusCode::FOUND
            },
            headers: HeaderMap::from_iter([(header::LOCATION, location.parse().expect("a value"))]),
            body: Zeroizing::new(body.to_vec()),
            flaw: None,
        };
        let mut config = config();
        config.names.code = "ticket".to_owned();
        config.code_fields = vec!["/payload/ticket".to_owned()];
        let code = |response| {
            config
                .code(&response, SystemTime::UNIX_EPOCH)
                .map(|code| code.expose().to_owned())
        };
        assert_eq!(
            code(response("/back?code=no&ticket=abc", b"")).as_deref(),
            Ok("abc")
        );
        assert_eq!(
            code(response("", br#"{"code":"no","payload":{"ticket":"abc"}}"#)).as_deref(),
            Ok("abc")
        );
        let failure = code(response("", br#"{"code":"no"}"#)).expect_err("no code");
        assert!(
            failure
                .detail
                .contains("/payload/ticket (token.fields.code)"),
            "{}",
            failure.detail
        );
    }

    #[test]
    fn codes_in_both_forms_of_response() {
        for (location, code) in [
            ("https://app.example.com/back?code=abc", "abc"),
            (
                "https://app.example.com/back?data=x&code=a%2Bb%20c",
                "a+b c",
            ),
            ("/back?code=abc#code=def", "abc"),
            ("app:/back?code=abc", "abc"),
        ] {
            assert_eq!(
                respond(302, Some(location), "").as_deref(),
                Ok(code),
                "{location}"
            );
        }
        for (body, code) in [
            (r#"{"code":"abc"}"#, "abc"),
            (r#"{"code":"abc","success":true}"#, "abc"),
            (r#"{"code":0,"success":true,"data":{"code":"abc"}}"#, "abc"),
            (r#"{"code":"0","data":{"code":"abc"}}"#, "abc"),
            (r#"{"code":"ok","result":{"code":"abc"}}"#, "abc"),
        ] {
            assert_eq!(respond(200, None, body).as_deref(), Ok(code), "{body}");
        }
    }

    #[test]
    fn other_values_are_not_mistaken_for_a_code() {
        for location in [
            None,
            Some("https://app/"),
            Some("https://app/?code="),
            Some("https://app/?code=a&code=b"),
        ] {
            assert_eq!(
                respond(302, location, "").expect_err("no code").class,
                FailureClass::Failing,
                "{location:?}"
            );
        }
        for body in [
            r#"{"code":0,"success":true}"#,
            r#"{"code":"0","success":true}"#,
            r#"{"code":"200","data":{"code":0}}"#,
            r#"{"code":"s3cret","success":false}"#,
            r#"{"code":null}"#,
            r#"{"data":"code"}"#,
            r#"{"data":{"code":""}}"#,
            "[]",
            "s3cret",
            "",
            &"[".repeat(10_000),
        ] {
            let failure = respond(200, None, body).expect_err("no code");
            assert_eq!(failure.class, FailureClass::Failing, "{body}");
            assert!(!failure.detail.contains("s3cret"), "{}", failure.detail);
        }
        let refused = respond(200, None, r#"{"code":1001,"success":false}"#).expect_err("refused");
        assert!(refused.detail.contains("code 1001"), "{}", refused.detail);
        let endless = format!(r#"{{"code":"{}"}}"#, "x".repeat(MAX_CODE_LENGTH + 1));
        assert!(respond(200, None, &endless).is_err());
    }

    #[test]
    fn error_responses_are_classified_and_only_the_clients_are_final() {
        let class = |status, body| respond(status, None, body).expect_err("refused").class;
        assert_eq!(
            class(401, r#"{"error":"invalid_client"}"#),
            FailureClass::ClientRefused
        );
        assert_eq!(
            class(400, r#"{"error":"invalid_grant"}"#),
            FailureClass::Failing
        );
        assert_eq!(class(401, ""), FailureClass::Failing);
        assert_eq!(class(404, ""), FailureClass::Failing);
        assert_eq!(class(504, ""), FailureClass::Ambiguous);
    }

    /// The paths that a cloud receives. It responds to the first `responses` requests with a code;
    /// after the others it cancels `stop` and stays silent.
    async fn stopped_after(responses: usize) -> (Result<TokenResponse, Failure>, Vec<String>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let clock = crate::base::clock::system();
        let (stop, an_hour) = (CancellationToken::new(), Duration::from_secs(3600));
        let now = clock.now();
        // The first request is given up at once, the exchange of a code as a refresh.
        let at_stop = if responses == 0 { now + an_hour } else { now };
        let deadline = CallDeadline::new(clock.clone(), now + an_hour, stop.clone(), at_stop);
        let received = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let log = Arc::clone(&received);
        let cloud = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut head = [0; 4096];
                let n = stream.read(&mut head).await.expect("a request");
                let head = String::from_utf8_lossy(&head[..n]);
                let path = head.split([' ', '?']).nth(1).map(str::to_owned);
                log.lock().extend(path);
                if open.len() < responses {
                    let response =
                        b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"code\":\"c0d\"}";
                    stream.write_all(response).await.expect("written");
                } else {
                    stop.cancel();
                }
                open.push(stream);
            }
        });
        let mut issuer = crate::token::testing::config(None).issuer;
        issuer.origins = vec![format!("http://{address}").parse().expect("a URL")];
        issuer.timeout = an_hour;
        let code = code_grant::Config {
            authorize_url: issuer.origins[0].clone(),
            token_path: "/api/token.do".to_owned(),
            redirect_uri: None,
        };
        let servers = issuer.servers().expect("built");
        let grant = JwtGrant::new(servers, config(), &code, &issuer, clock);
        let call = InitialGrant::request_tokens(&grant, &deadline);
        let result = tokio::time::timeout(Duration::from_secs(30), call).await;
        cloud.abort();
        let received = std::mem::take(&mut *received.lock());
        (result.expect("it ends with the process"), received)
    }

    #[tokio::test]
    async fn a_process_that_ends_does_not_wait_for_the_timeouts_of_the_grant() {
        const PATHS: [&str; 2] = ["/api/authorizeByJWT.do", "/api/token.do"];
        for responses in [0, 1] {
            let (result, received) = stopped_after(responses).await;
            let class = result.expect_err("no tokens").class;
            assert_eq!(class, FailureClass::Ambiguous, "{responses}");
            assert_eq!(received, PATHS[..=responses]);
        }
    }

    fn pem(algorithm: &'static rcgen::SignatureAlgorithm) -> Secret {
        Secret::new(
            rcgen::KeyPair::generate_for(algorithm)
                .expect("a key")
                .serialize_pem(),
        )
    }

    #[test]
    fn jwts_follow_rfc_7519() {
        let claims = Map::from_iter([("client_id".to_owned(), "app".into())]);
        let jwt = sign(Algorithm::HS256, &Secret::new("key"), &claims).expect("signed");
        let parts: Vec<_> = jwt.split('.').collect();
        let payload = |part: &str| URL_SAFE_NO_PAD.decode(part).expect("base64");
        assert_eq!(payload(parts[0]), br#"{"typ":"JWT","alg":"HS256"}"#);
        assert_eq!(payload(parts[1]), br#"{"client_id":"app"}"#);
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"key");
        let signed = format!("{}.{}", parts[0], parts[1]);
        aws_lc_rs::hmac::verify(&key, signed.as_bytes(), &payload(parts[2]))
            .expect("the right signature");
    }

    #[test]
    fn keys_must_fit_their_algorithm() {
        let (p256, p384, ed) = (
            pem(&rcgen::PKCS_ECDSA_P256_SHA256),
            pem(&rcgen::PKCS_ECDSA_P384_SHA384),
            pem(&rcgen::PKCS_ED25519),
        );
        let words = Secret::new("s3cret words");
        for (algorithm, key, fits) in [
            (Algorithm::HS512, &words, true),
            (Algorithm::ES256, &p256, true),
            (Algorithm::ES384, &p384, true),
            (Algorithm::EdDSA, &ed, true),
            (Algorithm::ES256, &words, false),
            (Algorithm::ES256, &p384, false),
            (Algorithm::RS256, &words, false),
            (Algorithm::RS256, &p256, false),
        ] {
            assert_eq!(check_key(algorithm, key).is_ok(), fits, "{algorithm:?}");
        }
    }
}
