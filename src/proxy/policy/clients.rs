//! Client authentication: which `[[client]]` a request belongs to.
//!
//! Address and certificate are checked once per connection, keys with every request. Keys are
//! compared by SHA-256 digest, in constant time, and always with all clients, so that the response
//! time reveals neither a prefix of a key nor the client that it belongs to. Keys in files are
//! reloaded when the files change.

mod keys;
mod limits;

use std::{cell::RefCell, fmt, net::IpAddr, path::PathBuf, sync::Arc};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;
use zeroize::Zeroizing;

pub use self::limits::Rate;
use self::{
    keys::{AuthScheme, KeyDigest, digests_of, load_digests},
    limits::ClientLimits,
};
pub(crate) use self::{
    keys::{KeyError, Keys},
    limits::Permit,
};
use crate::{
    base::{clock::SharedClock, secret::Secret},
    net::certificate::CertificateNames,
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

#[cfg(test)]
mod tests;
