//! Who calls: clients by name, told apart by what they show.
//!
//! What a connection shows, its address and its certificate, is judged once; what a request shows, with each. Secrets are
//! compared by their digests, in constant time, and all of them: how long it takes tells neither how much of one was right
//! nor whose it is. Those that stand in files follow them.

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

/// One client. Everything that is set must hold for a request to be its; of `header` and `basic`, one is enough.
#[derive(Debug, Clone)]
pub struct Client {
    /// What it is called in the log and in metrics.
    pub name: String,
    /// Its secret, shown by `header`, by `basic`, or by either.
    pub key: Option<Secret>,
    /// The field that carries the key as it is; in `Authorization` it stands behind `Bearer`.
    pub header: Option<HeaderName>,
    /// The user name with which the key is the password of HTTP Basic (RFC 7617).
    pub basic: Option<String>,
    /// A name in its certificate: the common name of the subject, or a DNS name.
    pub tls_subject: Option<String>,
    /// Where it comes from; empty: anywhere.
    pub networks: Vec<IpNet>,
    /// What it may ask for, on every route.
    pub rules: Rules,
    /// How often it may ask.
    pub rate: Option<Rate>,
    /// How many of its requests may be under way at the same time.
    pub concurrency: Option<usize>,
}

impl Client {
    /// Whether it shows its key in a header, and in no other way: browsers send no such thing by themselves, as they do
    /// passwords, certificates, and whatever comes from their address.
    pub fn is_beyond_pages(&self) -> bool {
        self.header.is_some() && self.basic.is_none()
    }

    /// Whether it always shows its key in `Authorization`, by which shared caches know that an answer is one client's: RFC
    /// 9111 §3.5.
    pub fn is_known_to_caches(&self) -> bool {
        self.key.is_some()
            && self
                .header
                .as_ref()
                .is_none_or(|header| *header == header::AUTHORIZATION)
    }
}

/// All clients, ready to be recognised. Without any, everybody may call.
#[derive(Debug)]
pub(crate) struct Clients {
    clients: Vec<Known>,
    keys: Arc<Keys>,
    /// How keys are shown, each way once.
    ways: Vec<Way>,
    challenges: Arc<[HeaderValue]>,
}

#[derive(Debug)]
struct Known {
    client: Client,
    has_key: bool,
    limits: ClientLimits,
}

/// What each client must show, as the files of the keys have it.
pub(crate) type Keys = reload::Reloadable<Vec<Vec<Proof>>>;

/// Why the files of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error(transparent)]
    File(#[from] tls::Error),
    #[error("the key of the client {0:?} cannot be read: {1}")]
    Unreadable(String, io::Error),
    #[error("the key of the client {0:?} cannot be shown: it holds spaces or control characters")]
    Unfit(String),
    #[error("the clients {0:?} and {1:?} have the same key")]
    Twins(String, String),
}

/// A way to show a key.
#[derive(Debug, PartialEq)]
enum Way {
    Basic,
    Bearer,
    Header(HeaderName),
}

/// What must be shown, and in which of the ways.
pub(crate) struct Proof {
    way: usize,
    digest: Zeroizing<[u8; SHA256_OUTPUT_LEN]>,
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof")
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

/// Whom a connection may belong to, as far as it shows.
#[derive(Default)]
pub(crate) struct ConnectionIdentity {
    /// Positions, in order.
    candidates: Vec<usize>,
    /// What was shown last and found good: a connection rarely changes it.
    accepted: RefCell<Option<Accepted>>,
}

impl fmt::Debug for ConnectionIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionIdentity")
            .field("candidates", &self.candidates)
            .finish_non_exhaustive()
    }
}

struct Accepted {
    shown: Zeroizing<Vec<u8>>,
    caller: ClientId,
    /// The keys that it was compared with.
    proofs: Arc<Vec<Vec<Proof>>>,
}

/// Who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientId {
    /// Position among the clients.
    pub(crate) client: usize,
    /// How it showed its key, if it had to.
    way: Option<usize>,
    /// Whether it was by a password, which an app may ask its user for again.
    pub(crate) by_password: bool,
}

impl Clients {
    /// # Errors
    /// When the file of a key no longer is what it was when it was checked.
    pub(crate) fn new(clients: &[Client], clock: &SharedClock) -> Result<Self, KeyError> {
        let mut ways = Vec::new();
        let known = clients.iter().map(|client| Known {
            has_key: client.key.is_some(),
            limits: ClientLimits::new(client.rate, client.concurrency, clock),
            // What proves it is among the keys.
            client: Client {
                key: None,
                ..client.clone()
            },
        });
        let known = known.collect();
        for client in clients {
            proofs(client, &mut ways);
        }
        let challenges = ways.iter().filter_map(Way::challenge).collect();
        let files: Vec<_> = clients
            .iter()
            .filter_map(|client| client.key.as_ref()?.file())
            .map(PathBuf::from)
            .collect();
        let given = clients.to_vec();
        let keys = Keys::new("clients".to_owned(), files, None, move || {
            read_again(&given)
        })?;
        Ok(Self {
            clients: known,
            keys: Arc::new(keys),
            ways,
            challenges,
        })
    }

    /// What follows the files of keys.
    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    pub(crate) fn name(&self, caller: ClientId) -> &str {
        &self.clients[caller.client].client.name
    }

    pub(crate) fn rules(&self, caller: ClientId) -> &Rules {
        &self.clients[caller.client].client.rules
    }

    /// Whether certificates of clients tell anything.
    pub(crate) fn wants_names(&self) -> bool {
        self.clients
            .iter()
            .any(|known| known.client.tls_subject.is_some())
    }

    /// A connection from this address (none: a local socket) that showed a certificate with these names.
    pub(crate) fn identity(
        &self,
        address: Option<IpAddr>,
        names: &CertificateNames,
    ) -> ConnectionIdentity {
        let address = address.map(|address| address.to_canonical());
        let may_be = |known: &Known| {
            let Client {
                networks,
                tls_subject,
                ..
            } = &known.client;
            let is_from_there = || {
                address.is_some_and(|address| {
                    networks.iter().any(|network| network.contains(&address))
                })
            };
            (networks.is_empty() || is_from_there())
                && tls_subject
                    .as_ref()
                    .is_none_or(|subject| names.contains(subject))
        };
        let candidates = (0..)
            .zip(&self.clients)
            .filter(|(_, known)| may_be(known))
            .map(|(at, _)| at);
        ConnectionIdentity {
            candidates: candidates.collect(),
            accepted: RefCell::default(),
        }
    }

    /// Whose request this is: the first client's of which everything holds.
    ///
    /// # Errors
    /// Nobody's. Whether a key could help is told, not which one.
    pub(crate) fn recognise(
        &self,
        identity: &ConnectionIdentity,
        headers: &HeaderMap,
    ) -> Result<ClientId, Error> {
        if let Some(Accepted {
            shown,
            caller,
            proofs,
        }) = &*identity.accepted.borrow()
            && self.keys.is_current(proofs)
            && let Some(again) = caller.way.and_then(|way| self.ways[way].shown(headers))
            && verify_slices_are_equal(again, shown).is_ok()
        {
            return Ok(*caller);
        }
        let has_key = |client: &&usize| self.clients[**client].has_key;
        let unproven = identity.candidates.iter().find(|client| !has_key(client));
        let mut found = unproven.map(|client| ClientId {
            client: *client,
            way: None,
            by_password: false,
        });
        let proofs = self.keys.load();
        for (way, spoken) in self.ways.iter().enumerate() {
            let Some(shown) = spoken.shown(headers) else {
                continue;
            };
            let shown_digest = digest(&SHA256, shown);
            for &client in &identity.candidates {
                for proof in proofs[client].iter().filter(|proof| proof.way == way) {
                    let is_same =
                        verify_slices_are_equal(shown_digest.as_ref(), &*proof.digest).is_ok();
                    if is_same && found.is_none_or(|found| client < found.client) {
                        found = Some(ClientId {
                            client,
                            way: Some(way),
                            by_password: *spoken == Way::Basic,
                        });
                    }
                }
            }
        }
        match found {
            Some(caller) => {
                self.remember(identity, caller, headers, proofs);
                Ok(caller)
            }
            None if identity.candidates.iter().any(|client| has_key(&client)) => {
                Err(Error::Unauthenticated(Arc::clone(&self.challenges)))
            }
            None => Err(Error::Stranger),
        }
    }

    fn remember(
        &self,
        identity: &ConnectionIdentity,
        caller: ClientId,
        headers: &HeaderMap,
        proofs: Arc<Vec<Vec<Proof>>>,
    ) {
        let shown = caller.way.and_then(|way| self.ways[way].shown(headers));
        let accepted = shown.map(|shown| Accepted {
            shown: Zeroizing::new(shown.to_vec()),
            caller,
            proofs,
        });
        *identity.accepted.borrow_mut() = accepted;
    }

    /// Lets one more request of a client's pass, if it is within its limits.
    ///
    /// # Errors
    /// When it is not, and when it may be.
    pub(crate) fn admit(self: &Arc<Self>, caller: ClientId) -> Result<Option<Permit>, Error> {
        ClientLimits::admit(self, caller.client)
    }
}

/// What each client must show, with the keys as they are in their files now.
fn read_again(clients: &[Client]) -> Result<Vec<Vec<Proof>>, KeyError> {
    let now: Vec<Client> = clients
        .iter()
        .map(with_key_of_now)
        .collect::<Result<_, _>>()?;
    for (index, client) in now.iter().enumerate() {
        let has_same = |other: &&Client| {
            other
                .key
                .as_ref()
                .zip(client.key.as_ref())
                .is_some_and(|(other, own)| other.expose() == own.expose())
        };
        if let Some(twin) = now[..index].iter().find(has_same) {
            return Err(KeyError::Twins(twin.name.clone(), client.name.clone()));
        }
    }
    let mut ways = Vec::new();
    Ok(now.iter().map(|client| proofs(client, &mut ways)).collect())
}

fn with_key_of_now(client: &Client) -> Result<Client, KeyError> {
    let Some(key) = &client.key else {
        return Ok(client.clone());
    };
    let key = key
        .read_again()
        .map_err(|source| KeyError::Unreadable(client.name.clone(), source))?;
    let is_fit = if client.header.is_some() {
        key.fits_header()
    } else {
        key.is_one_line()
    };
    if !is_fit {
        return Err(KeyError::Unfit(client.name.clone()));
    }
    Ok(Client {
        key: Some(key),
        ..client.clone()
    })
}

/// What a client may show, each by its digest. The ways depend on how clients are configured, not on their keys.
fn proofs(client: &Client, ways: &mut Vec<Way>) -> Vec<Proof> {
    let Some(key) = &client.key else {
        return Vec::new();
    };
    let mut proofs = Vec::new();
    let mut add = |way: Way, shown: &[u8]| {
        let known = ways.iter().position(|known| *known == way);
        let way = known.unwrap_or_else(|| {
            ways.push(way);
            ways.len() - 1
        });
        let mut bytes = Zeroizing::new([0; SHA256_OUTPUT_LEN]);
        bytes.copy_from_slice(digest(&SHA256, shown).as_ref());
        proofs.push(Proof { way, digest: bytes });
    };
    if let Some(user) = &client.basic {
        let pair = Zeroizing::new(format!("{user}:{}", key.expose()));
        add(
            Way::Basic,
            Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes())).as_bytes(),
        );
    }
    match &client.header {
        Some(name) if *name == header::AUTHORIZATION => add(Way::Bearer, key.expose().as_bytes()),
        Some(name) => add(Way::Header(name.clone()), key.expose().as_bytes()),
        None => {}
    }
    proofs
}

impl Way {
    /// What a request shows in this way; nothing if it is not clear what.
    fn shown<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
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
        let (given, shown) = value.split_at_checked(scheme.len())?;
        let is_separate = scheme.is_empty() || shown.starts_with(b" ");
        (given.eq_ignore_ascii_case(scheme) && is_separate).then(|| shown.trim_ascii())
    }

    /// How a client that shows nothing is asked. Where a field of its own carries the key, no scheme is registered.
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
