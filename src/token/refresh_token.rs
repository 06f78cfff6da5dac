//! A refresh token and its fingerprint.

use std::{fmt, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};

use crate::base::secret::Secret;

/// A refresh token. Clones share its memory; tokens are compared by their fingerprints.
#[derive(Clone)]
pub(super) struct RefreshToken {
    inner: Arc<Inner>,
}

struct Inner {
    secret: Secret,
    fingerprint: String,
}

impl RefreshToken {
    pub(super) fn new(secret: Secret) -> Self {
        let fingerprint = fingerprint(&secret);
        Self {
            inner: Arc::new(Inner {
                secret,
                fingerprint,
            }),
        }
    }

    /// The token itself.
    pub(super) fn secret(&self) -> &Secret {
        &self.inner.secret
    }

    /// SHA-256 in hexadecimal: identifies the token where it must not be stored or kept. Blanks
    /// around the token do not count: a copy in a file may have some.
    pub(super) fn fingerprint(&self) -> &str {
        &self.inner.fingerprint
    }
}

impl PartialEq for RefreshToken {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint() == other.fingerprint()
    }
}

impl Eq for RefreshToken {}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.secret().fmt(f)
    }
}

fn fingerprint(token: &Secret) -> String {
    hex::encode(digest(&SHA256, token.expose().trim().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_sha_256() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for text in ["abc", " abc\r\n\n"] {
            assert_eq!(fingerprint(&Secret::new(text)), abc);
        }
    }

    #[test]
    fn a_refresh_token_prints_neither_itself_nor_its_fingerprint() {
        let token = RefreshToken::new(Secret::new("abc"));
        assert_eq!(format!("{token:?}"), "[secret]");
        assert_eq!(token, RefreshToken::new(Secret::new("abc")));
        assert_ne!(token, RefreshToken::new(Secret::new("abd")));
    }
}
