//! Client authentication: which `[[client]]` a request belongs to.
//!
//! Address and certificate are checked once per connection, keys with every request. Keys are
//! compared by SHA-256 digest, in constant time, and always with all clients, so that the response
//! time reveals neither a prefix of a key nor the client that it belongs to. Keys in files are
//! reloaded when the files change.

mod limits;

use std::{cell::RefCell, fmt, io, net::IpAddr, path::PathBuf, sync::Arc};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, SHA256_OUTPUT_LEN, digest},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;
use zeroize::Zeroizing;

use self::limits::ClientLimits;
pub(crate) use self::limits::Permit;
pub use self::limits::Rate;
use crate::{
    base::{clock::SharedClock, secret::Secret},
    net::{certificate::CertificateNames, reload, tls},
    proxy::{error::Error, policy::rules::Rules},
};

/// One `[[client]]`. A request must meet all conditions that are set; of `header` and `basic`, one
/// is enough.
#[derive(Debug, Clone)]
pub struct Client {
    /// The name in logs and metrics.
    pub name: String,
    /// The secret, sent in `header` or as the password of `basic`.
    pub key: Option<Secret>,
    /// The header that carries the key: the plain key, or `Bearer <key>` in `Authorization`.
    pub header: Option<HeaderName>,
    /// The user name of HTTP Basic authentication (RFC 7617).
    pub basic: Option<String>,
    /// A name in the client's certificate: the common name of the subject, or a DNS name.
    pub tls_subject: Option<String>,
    /// The networks that the client connects from; empty: any.
    pub networks: Vec<IpNet>,
    /// Allowed and denied paths, on every route.
    pub rules: Rules,
    /// The rate limit.
    pub rate: Option<Rate>,
    /// The most requests in flight.
    pub concurrency: Option<usize>,
}

impl Client {
    /// Whether a header is the only way to authenticate. Browsers do not add such a header to the
    /// requests of a foreign page, as they do with passwords and certificates.
    pub fn is_csrf_safe(&self) -> bool {
        self.header.is_some() && self.basic.is_none()
    }

    /// Whether the client always sends its key in `Authorization`, which keeps responses out of
    /// shared caches (RFC 9111 §3.5).
    pub fn uses_authorization_header(&self) -> bool {
        self.key.is_some()
            && self
                .header
                .as_ref()
                .is_none_or(|header| *header == header::AUTHORIZATION)
    }

    /// Whether both clients have a key, and it is the same.
    pub fn has_key_of(&self, other: &Self) -> bool {
        self.key
            .as_ref()
            .zip(other.key.as_ref())
            .is_some_and(|(own, other)| own.expose() == other.expose())
    }
}

/// All clients. If there are none, requests need no authentication.
#[derive(Debug)]
pub(crate) struct Clients {
    clients: Vec<ClientEntry>,
    keys: Arc<Keys>,
    /// The schemes in use, without duplicates.
    schemes: Vec<AuthScheme>,
    challenges: Arc<[HeaderValue]>,
}

#[derive(Debug)]
struct ClientEntry {
    /// Without the key, which is among `keys`.
    client: Client,
    has_key: bool,
    limits: ClientLimits,
}

/// The digests of each client's credentials, reloaded when a key file changes.
pub(crate) type Keys = reload::Reloadable<Vec<Vec<KeyDigest>>>;

/// Why keys cannot be loaded from their files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error(transparent)]
    File(#[from] tls::Error),
    #[error("the key of the client {0:?} cannot be read: {1}")]
    Unreadable(String, io::Error),
    #[error("the key of the client {0:?} cannot be sent: it contains spaces or control characters")]
    Invalid(String),
    #[error("the clients {0:?} and {1:?} have the same key")]
    Duplicate(String, String),
}

/// How a request carries a key.
#[derive(Debug, PartialEq)]
enum AuthScheme {
    Basic,
    Bearer,
    Header(HeaderName),
}

/// The digest of the credentials that a client sends with one scheme.
pub(crate) struct KeyDigest {
    /// Position in [`Clients::schemes`].
    scheme: usize,
    digest: Zeroizing<[u8; SHA256_OUTPUT_LEN]>,
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyDigest")
            .field("scheme", &self.scheme)
            .finish_non_exhaustive()
    }
}

/// The clients that a connection may belong to, by its address and certificate.
#[derive(Default)]
pub(crate) struct ConnectionIdentity {
    /// Positions in [`Clients::clients`], ascending.
    candidates: Vec<usize>,
    /// The last accepted credentials, which rarely change on a connection.
    cached: RefCell<Option<CachedAuth>>,
}

impl fmt::Debug for ConnectionIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionIdentity")
            .field("candidates", &self.candidates)
            .finish_non_exhaustive()
    }
}

struct CachedAuth {
    credentials: Zeroizing<Vec<u8>>,
    client_id: ClientId,
    /// The digests that they were compared with: a reload invalidates the entry.
    digests: Arc<Vec<Vec<KeyDigest>>>,
}

/// An authenticated client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientId {
    /// Position in the configuration.
    pub(crate) client: usize,
    /// Position in [`Clients::schemes`], if the client has a key.
    scheme: Option<usize>,
    /// Whether by HTTP Basic: an app may prompt its user for the password again.
    pub(crate) by_password: bool,
}

impl Clients {
    /// # Errors
    /// When a key file changed since the configuration was checked, and is no longer valid.
    pub(crate) fn new(clients: &[Client], clock: &SharedClock) -> Result<Self, KeyError> {
        let entries = clients.iter().map(|client| ClientEntry {
            has_key: client.key.is_some(),
            limits: ClientLimits::new(client.rate, client.concurrency, clock),
            client: Client {
                key: None,
                ..client.clone()
            },
        });
        let entries = entries.collect();
        let mut schemes = Vec::new();
        for client in clients {
            digests_of(client, &mut schemes);
        }
        let challenges = schemes.iter().filter_map(AuthScheme::challenge).collect();
        let files: Vec<_> = clients
            .iter()
            .filter_map(|client| client.key.as_ref()?.file())
            .map(PathBuf::from)
            .collect();
        let configured = clients.to_vec();
        let keys = Keys::new("clients".to_owned(), files, None, move || {
            load_digests(&configured)
        })?;
        Ok(Self {
            clients: entries,
            keys: Arc::new(keys),
            schemes,
            challenges,
        })
    }

    /// The reload of the key files.
    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    pub(crate) fn name(&self, client_id: ClientId) -> &str {
        &self.clients[client_id.client].client.name
    }

    pub(crate) fn rules(&self, client_id: ClientId) -> &Rules {
        &self.clients[client_id.client].client.rules
    }

    /// Whether a client is authenticated by its certificate.
    pub(crate) fn uses_certificates(&self) -> bool {
        self.clients
            .iter()
            .any(|entry| entry.client.tls_subject.is_some())
    }

    /// The identity of a connection. `address` is `None` for a Unix domain socket; `names` are
    /// those of the verified client certificate.
    pub(crate) fn identity(
        &self,
        address: Option<IpAddr>,
        names: &CertificateNames,
    ) -> ConnectionIdentity {
        let address = address.map(|address| address.to_canonical());
        let is_candidate = |entry: &ClientEntry| {
            let Client {
                networks,
                tls_subject,
                ..
            } = &entry.client;
            let is_in_networks = || {
                address.is_some_and(|address| {
                    networks.iter().any(|network| network.contains(&address))
                })
            };
            (networks.is_empty() || is_in_networks())
                && tls_subject
                    .as_ref()
                    .is_none_or(|subject| names.contains(subject))
        };
        let candidates = (0..)
            .zip(&self.clients)
            .filter(|(_, entry)| is_candidate(entry))
            .map(|(index, _)| index);
        ConnectionIdentity {
            candidates: candidates.collect(),
            cached: RefCell::default(),
        }
    }

    /// The first client in the configuration whose conditions a request meets.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] if a key is missing or wrong, [`Error::UnknownClient`] if no key would
    /// be accepted on this connection.
    pub(crate) fn authenticate(
        &self,
        identity: &ConnectionIdentity,
        headers: &HeaderMap,
    ) -> Result<ClientId, Error> {
        if let Some(CachedAuth {
            credentials,
            client_id,
            digests,
        }) = &*identity.cached.borrow()
            && self.keys.is_current(digests)
            && let Some(current) = self.credentials(*client_id, headers)
            && verify_slices_are_equal(current, credentials).is_ok()
        {
            return Ok(*client_id);
        }
        let has_key = |client: &&usize| self.clients[**client].has_key;
        let keyless = identity.candidates.iter().find(|client| !has_key(client));
        let mut found = keyless.map(|client| ClientId {
            client: *client,
            scheme: None,
            by_password: false,
        });
        let digests = self.keys.load();
        for (index, scheme) in self.schemes.iter().enumerate() {
            let Some(credentials) = scheme.credentials(headers) else {
                continue;
            };
            let received = digest(&SHA256, credentials);
            for &client in &identity.candidates {
                for key in digests[client].iter().filter(|key| key.scheme == index) {
                    let is_equal = verify_slices_are_equal(received.as_ref(), &*key.digest).is_ok();
                    if is_equal && found.is_none_or(|found| client < found.client) {
                        found = Some(ClientId {
                            client,
                            scheme: Some(index),
                            by_password: *scheme == AuthScheme::Basic,
                        });
                    }
                }
            }
        }
        match found {
            Some(client_id) => {
                self.cache(identity, client_id, headers, digests);
                Ok(client_id)
            }
            None if identity.candidates.iter().any(|client| has_key(&client)) => {
                Err(Error::Unauthenticated(Arc::clone(&self.challenges)))
            }
            None => Err(Error::UnknownClient),
        }
    }

    fn cache(
        &self,
        identity: &ConnectionIdentity,
        client_id: ClientId,
        headers: &HeaderMap,
        digests: Arc<Vec<Vec<KeyDigest>>>,
    ) {
        let credentials = self.credentials(client_id, headers);
        let cached = credentials.map(|credentials| CachedAuth {
            credentials: Zeroizing::new(credentials.to_vec()),
            client_id,
            digests,
        });
        *identity.cached.borrow_mut() = cached;
    }

    /// The credentials of a request in the scheme of a client.
    fn credentials<'a>(&self, client_id: ClientId, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        self.schemes[client_id.scheme?].credentials(headers)
    }

    /// Admits one more request of a client within its limits. The permit counts the request as in
    /// flight.
    ///
    /// # Errors
    /// [`Error::ConcurrencyLimited`] or [`Error::RateLimited`].
    pub(crate) fn admit(self: &Arc<Self>, client_id: ClientId) -> Result<Option<Permit>, Error> {
        ClientLimits::admit(self, client_id.client)
    }
}

/// Reads the key files and returns the digests of each client.
fn load_digests(clients: &[Client]) -> Result<Vec<Vec<KeyDigest>>, KeyError> {
    let clients: Vec<Client> = clients
        .iter()
        .map(with_current_key)
        .collect::<Result<_, _>>()?;
    for (index, client) in clients.iter().enumerate() {
        let earlier = &clients[..index];
        if let Some(other) = earlier.iter().find(|other| client.has_key_of(other)) {
            return Err(KeyError::Duplicate(other.name.clone(), client.name.clone()));
        }
    }
    let mut schemes = Vec::new();
    Ok(clients
        .iter()
        .map(|client| digests_of(client, &mut schemes))
        .collect())
}

fn with_current_key(client: &Client) -> Result<Client, KeyError> {
    let Some(key) = &client.key else {
        return Ok(client.clone());
    };
    let key = key
        .read_again()
        .map_err(|source| KeyError::Unreadable(client.name.clone(), source))?;
    let is_valid = if client.header.is_some() {
        key.fits_header()
    } else {
        key.is_one_line()
    };
    if !is_valid {
        return Err(KeyError::Invalid(client.name.clone()));
    }
    Ok(Client {
        key: Some(key),
        ..client.clone()
    })
}

/// The digests of the credentials of a client. Adds its schemes to `schemes`; their order depends
/// on the configuration alone, not on keys.
fn digests_of(client: &Client, schemes: &mut Vec<AuthScheme>) -> Vec<KeyDigest> {
    let Some(key) = &client.key else {
        return Vec::new();
    };
    let mut digests = Vec::new();
    let mut add = |scheme: AuthScheme, credentials: &[u8]| {
        let position = schemes.iter().position(|known| *known == scheme);
        let scheme = position.unwrap_or_else(|| {
            schemes.push(scheme);
            schemes.len() - 1
        });
        let mut bytes = Zeroizing::new([0; SHA256_OUTPUT_LEN]);
        bytes.copy_from_slice(digest(&SHA256, credentials).as_ref());
        digests.push(KeyDigest {
            scheme,
            digest: bytes,
        });
    };
    if let Some(user) = &client.basic {
        let pair = Zeroizing::new(format!("{user}:{}", key.expose()));
        add(
            AuthScheme::Basic,
            Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes())).as_bytes(),
        );
    }
    match &client.header {
        Some(name) if *name == header::AUTHORIZATION => {
            add(AuthScheme::Bearer, key.expose().as_bytes());
        }
        Some(name) => add(AuthScheme::Header(name.clone()), key.expose().as_bytes()),
        None => {}
    }
    digests
}

impl AuthScheme {
    /// The credentials that a request carries in this scheme. `None` if the field is missing or
    /// repeated.
    fn credentials<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let (name, scheme) = match self {
            Self::Basic => (&header::AUTHORIZATION, &b"basic"[..]),
            Self::Bearer => (&header::AUTHORIZATION, &b"bearer"[..]),
            Self::Header(name) => (name, &b""[..]),
        };
        let mut values = headers.get_all(name).iter();
        let value = values
            .next()
            .filter(|_| values.next().is_none())?
            .as_bytes();
        let (received, credentials) = value.split_at_checked(scheme.len())?;
        let is_separate = scheme.is_empty() || credentials.starts_with(b" ");
        (received.eq_ignore_ascii_case(scheme) && is_separate).then(|| credentials.trim_ascii())
    }

    /// The challenge for `WWW-Authenticate` (RFC 9110 §11.6.1). No scheme is registered for a key
    /// in a header of its own.
    fn challenge(&self) -> Option<HeaderValue> {
        match self {
            Self::Basic => Some(HeaderValue::from_static(
                r#"Basic realm="bearer-proxy", charset="UTF-8""#,
            )),
            Self::Bearer => Some(HeaderValue::from_static(r#"Bearer realm="bearer-proxy""#)),
            Self::Header(name) => {
                HeaderValue::try_from(format!(r#"ApiKey realm="bearer-proxy", header="{name}""#))
                    .ok()
            }
        }
    }
}

#[cfg(test)]
mod tests;
