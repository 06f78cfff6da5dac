//! Encryption of the record at rest, with AES-256-GCM.
//!
//! A sealed record is [`MAGIC`], the nonce, the ciphertext and the tag. The name of the key in the
//! store is authenticated with it (additional data, RFC 5116 §2.1): a record that is copied to
//! another key does not open. A record that does not begin with the first bytes of [`MAGIC`] is
//! plain: it was written before encryption was turned on. The next write seals it.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    error::Unspecified,
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

use crate::base::secret::Secret;

/// A plain record is JSON, which begins with a brace.
const MAGIC: &[u8] = b"sealed-1:";
/// What the formats of all versions begin with.
const ANY_VERSION: &[u8] = b"sealed-";
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// A record is tried with each key.
const MAX_KEYS: usize = 16;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Seals and opens records.
#[derive(Debug)]
pub(in crate::token) struct Seal {
    /// The first seals, all open. Without any, records are stored as they are.
    keys: Vec<RandomizedNonceKey>,
    source: Option<Secret>,
}

/// Why keys cannot be used. No text contains any part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is no line, or no line with text.
    #[error("contains no key")]
    Empty,
    /// A line is not Base64.
    #[error("is not Base64 in line {0}")]
    NotBase64(usize),
    /// A line is a key of another length.
    #[error("has {bytes} bytes in line {line}, not 32")]
    Length {
        /// The line, from 1.
        line: usize,
        /// The length of the decoded key.
        bytes: usize,
    },
    /// There are more keys than a rotation needs.
    #[error("has more than 16 keys")]
    TooMany,
}

/// Why a record cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
    #[error(
        "the record is encrypted, and token.store.key_file is not set: set it to the file with the \
         key that the other replicas use"
    )]
    NoKey,
    #[error(
        "no key of token.store.key_file opens the record: add the key that it was encrypted with, \
         on a line of its own"
    )]
    WrongKey,
    #[error(
        "the record is encrypted in a format that this version of the program does not know: run \
         the version of the replica that wrote it"
    )]
    UnknownFormat,
}

/// Checks the lines of `token.store.key`.
///
/// # Errors
/// Which line is no key, and why.
pub fn check_key(key: &Secret) -> Result<(), KeyError> {
    parse(key).map(drop)
}

impl Seal {
    /// With the keys in the lines of `key`. Without keys, records are stored as they are.
    ///
    /// # Errors
    /// Which line is no key, and why.
    pub(in crate::token) fn new(key: Option<&Secret>) -> Result<Self, KeyError> {
        Ok(Self {
            keys: key.map(parse).transpose()?.unwrap_or_default(),
            source: key.cloned(),
        })
    }

    /// The same with the present keys of the file, for when [`Seal::open`] failed: the key may have
    /// been replaced. `None` if the file cannot be read, or has a line that is no key. Reads the
    /// file.
    pub(super) fn read_again(&self) -> Option<Self> {
        let key = self.source.as_ref()?.read_again().ok()?;
        Self::new(Some(&key)).ok()
    }

    /// What is to be stored under `key_name`.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(super) fn seal(
        &self,
        plain: &[u8],
        key_name: &str,
    ) -> Result<Zeroizing<Vec<u8>>, Unspecified> {
        let Some(key) = self.keys.first() else {
            return Ok(Zeroizing::new(plain.to_vec()));
        };
        let start = MAGIC.len() + NONCE_LEN;
        // It does not grow: growth would leave a copy of the plain text behind.
        let mut sealed = Zeroizing::new(Vec::with_capacity(start + plain.len() + TAG_LEN));
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&[0; NONCE_LEN]);
        sealed.extend_from_slice(plain);
        let (head, text) = sealed.split_at_mut(start);
        let (nonce, tag) = key.seal_in_place_separate_tag(Aad::from(key_name), text)?;
        head[MAGIC.len()..].copy_from_slice(nonce.as_ref());
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// The plain record that was stored under `key_name`.
    ///
    /// # Errors
    /// When the record is sealed, and no key opens it.
    pub(super) fn open(
        &self,
        stored: &[u8],
        key_name: &str,
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let Some(sealed) = stored.strip_prefix(MAGIC) else {
            return match stored.starts_with(ANY_VERSION) {
                true => Err(OpenError::UnknownFormat),
                false => Ok(Zeroizing::new(stored.to_vec())),
            };
        };
        if self.keys.is_empty() {
            return Err(OpenError::NoKey);
        }
        let (nonce, text) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(OpenError::WrongKey)?;
        for key in &self.keys {
            // A failed attempt leaves no usable text behind.
            let mut text = Zeroizing::new(text.to_vec());
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let plain = key.open_in_place(nonce, Aad::from(key_name), &mut text);
            if let Ok(length) = plain.map(|plain| plain.len()) {
                text.truncate(length);
                return Ok(text);
            }
        }
        Err(OpenError::WrongKey)
    }
}

fn parse(key: &Secret) -> Result<Vec<RandomizedNonceKey>, KeyError> {
    let mut keys = Vec::new();
    for (index, text) in key.expose().lines().enumerate() {
        let (line, text) = (index + 1, text.trim());
        if text.is_empty() {
            continue;
        }
        if keys.len() == MAX_KEYS {
            return Err(KeyError::TooMany);
        }
        let decoded = BASE64.decode(text).map(Zeroizing::new);
        let bytes = decoded.map_err(|_| KeyError::NotBase64(line))?;
        let wrong_length = KeyError::Length {
            line,
            bytes: bytes.len(),
        };
        if bytes.len() != KEY_LEN {
            return Err(wrong_length);
        }
        keys.push(RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| wrong_length)?);
    }
    if keys.is_empty() {
        return Err(KeyError::Empty);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests;
