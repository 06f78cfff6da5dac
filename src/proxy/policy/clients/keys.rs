//! The keys of clients: how requests carry them, their digests, and their reload from files.

use std::{fmt, io};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use zeroize::Zeroizing;

use super::Client;
use crate::net::{reload, tls};

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
pub(super) enum AuthScheme {
    Basic,
    Bearer,
    Header(HeaderName),
}

/// The digest of the credentials that a client sends with one scheme.
pub(crate) struct KeyDigest {
    /// Position in the list of schemes.
    pub(super) scheme: usize,
    pub(super) digest: Zeroizing<[u8; SHA256_OUTPUT_LEN]>,
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyDigest")
            .field("scheme", &self.scheme)
            .finish_non_exhaustive()
    }
}

/// Reads the key files and returns the digests of each client.
pub(super) fn load_digests(clients: &[Client]) -> Result<Vec<Vec<KeyDigest>>, KeyError> {
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
pub(super) fn digests_of(client: &Client, schemes: &mut Vec<AuthScheme>) -> Vec<KeyDigest> {
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
    pub(super) fn credentials<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
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
    pub(super) fn challenge(&self) -> Option<HeaderValue> {
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
