//! The cached access token: immutable except for its flags, read without blocking.

use std::{
    fmt,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, header::InvalidHeaderValue};
use zeroize::Zeroizing;

use crate::base::clock::Moment;

/// Identifies a token of one credential. Versions only increase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    // In this order: the derived `Ord` compares the epoch first.
    epoch: u64,
    generation: u64,
    /// Tells tokens apart that this process published under the same numbers: replicas can count two
    /// tokens alike when their store loses writes.
    publication: u64,
}

impl Version {
    pub(super) const fn new(epoch: u64, generation: u64) -> Self {
        Self {
            epoch,
            generation,
            publication: 0,
        }
    }

    /// The version under which a token is published after that of `last`: never a lower one.
    pub(super) fn published_after(self, last: Option<Self>) -> Self {
        match last {
            Some(last) if self <= last => Self {
                publication: last.publication.saturating_add(1),
                ..last
            },
            _ => self,
        }
    }

    /// Identifies the chain: when it began, in milliseconds since 1970, or the epoch of the
    /// previous chain plus one, whichever is greater.
    pub const fn epoch(self) -> u64 {
        self.epoch
    }

    /// Counts the tokens of the credential, across restarts and chains.
    pub const fn generation(self) -> u64 {
        self.generation
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// An access token with its ready-made `Authorization` value.
///
/// Its flags record how the upstream treated requests that carried it. They are relaxed atomics: a
/// flag that is seen late costs at most one needless attempt.
#[derive(Debug)]
pub struct Token {
    version: Version,
    authorization: HeaderValue,
    published_at: Moment,
    expires_at: Moment,
    flags: AtomicU8,
}

/// A request with this token was accepted.
const PROVEN: u8 = 1;
/// A rejection asked for a newer token.
const REFRESH_REQUESTED: u8 = 2;
/// Accepted requests must be compared with those that a fresh token did not help.
const WATCHED: u8 = 4;

impl Token {
    /// `authorization` comes from [`authorization`].
    pub(super) fn new(
        version: Version,
        authorization: HeaderValue,
        published_at: Moment,
        expires_at: Moment,
    ) -> Self {
        Self {
            version,
            authorization,
            published_at,
            expires_at,
            flags: AtomicU8::new(0),
        }
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The value of `Authorization`: `Bearer …`, marked sensitive, wiped when its last clone is
    /// dropped.
    pub fn header(&self) -> &HeaderValue {
        &self.authorization
    }

    /// A deep copy of [`Token::header`], so that threads do not contend for one reference count.
    pub fn header_copy(&self) -> HeaderValue {
        let text = Zeroizing::new(self.authorization.as_bytes().to_vec());
        // The bytes of a valid header value are valid.
        let mut copy = HeaderValue::from_maybe_shared(Bytes::from_owner(text))
            .unwrap_or_else(|_| self.authorization.clone());
        copy.set_sensitive(true);
        copy
    }

    /// When it expires. It must not be sent from then on.
    pub fn expires_at(&self) -> Moment {
        self.expires_at
    }

    /// Whether it has not expired.
    pub fn is_usable(&self, now: Moment) -> bool {
        now < self.expires_at
    }

    /// Whether it has less than a minute left, of a lifetime of more than two minutes.
    pub fn expires_soon(&self, now: Moment) -> bool {
        const MINUTE: Duration = Duration::from_secs(60);
        self.expires_at.saturating_since(now) < MINUTE
            && self.expires_at.saturating_since(self.published_at) > 2 * MINUTE
    }

    /// Whether a request with it was accepted: a *proof*.
    pub(super) fn is_proven(&self) -> bool {
        self.flags() & PROVEN != 0
    }

    /// Whether a proof should be reported ([`Credential::accepted`]). False for nearly every
    /// request, which then writes nothing: the cache line stays shared between cores.
    ///
    /// [`Credential::accepted`]: super::Credential::accepted
    pub fn needs_proof(&self) -> bool {
        self.flags() & (PROVEN | WATCHED) != PROVEN
    }

    pub(super) fn set_proven(&self) {
        self.set(PROVEN);
    }

    /// From now on, every proof is reported.
    pub(super) fn watch(&self) {
        self.set(WATCHED);
    }

    /// Asks for a newer token.
    pub(super) fn request_refresh(&self) {
        self.set(REFRESH_REQUESTED);
    }

    pub(super) fn is_refresh_requested(&self) -> bool {
        self.flags() & REFRESH_REQUESTED != 0
    }

    fn flags(&self) -> u8 {
        self.flags.load(Relaxed)
    }

    fn set(&self, flags: u8) {
        if self.flags() & flags != flags {
            self.flags.fetch_or(flags, Relaxed);
        }
    }
}

/// The value of an `Authorization` field: marked sensitive, wiped when its last clone is dropped.
///
/// # Errors
/// When the credentials contain bytes that a header value must not contain.
pub(super) fn authorization(
    scheme: &str,
    credentials: &str,
) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut text = Zeroizing::new(Vec::with_capacity(scheme.len() + 1 + credentials.len()));
    text.extend_from_slice(scheme.as_bytes());
    text.push(b' ');
    text.extend_from_slice(credentials.as_bytes());
    let mut header = HeaderValue::from_maybe_shared(Bytes::from_owner(text))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    fn token() -> Token {
        let header = authorization("Bearer", "abc").expect("legal");
        Token::new(Version::new(1, 1), header, at(0), at(3600))
    }

    #[test]
    fn versions_order_by_epoch_then_generation() {
        assert!(Version::new(2, 1) > Version::new(1, 9));
        assert!(Version::new(2, 2) > Version::new(2, 1));
        assert_eq!(Version::new(7, 3).to_string(), "7.3");
    }

    #[test]
    fn a_token_is_usable_until_its_expiry() {
        let token = token();
        assert!(token.is_usable(at(3599)));
        assert!(!token.is_usable(at(3600)));
    }

    #[test]
    fn the_header_is_sensitive_and_prints_nothing() {
        let token = token();
        assert_eq!(token.header().as_bytes(), b"Bearer abc");
        assert!(!format!("{token:?}").contains("abc"));
        assert!(authorization("Bearer", "a\r\nX: y").is_err());
    }

    #[test]
    fn a_proof_is_needed_once_unless_proofs_are_watched() {
        let token = token();
        assert!(token.needs_proof() && !token.is_proven());
        token.set_proven();
        token.set_proven();
        assert_eq!(token.flags(), PROVEN);
        assert!(!token.needs_proof());
        token.request_refresh();
        assert!(!token.needs_proof() && token.is_refresh_requested());
        token.watch();
        assert!(token.needs_proof());
    }
}
