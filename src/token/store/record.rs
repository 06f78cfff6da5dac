//! The record of a credential chain.

mod format;
#[cfg(test)]
mod tests;

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::{
    base::{
        clock::{Clock, Moment},
        secret::Secret,
    },
    token::cache::Version,
};

/// Fingerprints kept. An older configured token would be taken for a new one, and refused by the issuer.
const ADOPTED_LIMIT: usize = 256;
/// Intents kept: each one beyond the chain's own is a configured refresh token whose answer was lost.
const INTENTS_LIMIT: usize = 16;

/// All that must not be lost: the chain of refresh tokens, and the newest access token.
#[derive(Debug, Clone, Default)]
pub(in crate::token) struct Record {
    pub(in crate::token) epoch: u64,
    pub(in crate::token) generation: u64,
    pub(in crate::token) refresh_token: Option<Secret>,
    /// As the issuer told it.
    pub(in crate::token) refresh_token_expires_at: Option<SystemTime>,
    /// When this refresh token came: a different one than before.
    pub(in crate::token) refresh_token_since: Option<SystemTime>,
    pub(in crate::token) access: Option<AccessToken>,
    /// At most one for each refresh token that is still in question: the chain's, and configured ones, which may be
    /// configured again.
    pub(in crate::token) intents: Vec<Intent>,
    /// Fingerprints of the configured refresh tokens that once began a chain; each does so once.
    adopted: Vec<String>,
}

/// A refresh token that was sent to the issuer, or was about to be, and no outcome is known: it may be spent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::token) struct Intent {
    /// The refresh token's fingerprint.
    spends: String,
    /// When it was first sent.
    at_ms: u64,
    boot_id: Option<String>,
    at_boot_ms: u64,
    /// How often it was sent without an outcome.
    pub(in crate::token) attempts: u32,
}

/// A configured refresh token that begins a new chain.
#[derive(Debug, Clone)]
pub(in crate::token) struct RefreshToken {
    pub(in crate::token) token: Secret,
    pub(in crate::token) fingerprint: String,
}

/// What new tokens were had for.
#[derive(Debug)]
pub(in crate::token) enum Grant {
    /// The chain's refresh token.
    Chain,
    /// A configured refresh token: a new chain.
    Seed(RefreshToken),
    /// No refresh token at all: a new chain.
    Initial,
}

/// An access token, and what is known about its age.
#[derive(Debug, Clone)]
pub(in crate::token) struct AccessToken {
    pub(in crate::token) token: Secret,
    pub(in crate::token) lifetime: Duration,
    pub(in crate::token) obtained_at: SystemTime,
    /// The boot's id, and the expiry on that boot's clock.
    pub(in crate::token) boot: Option<(String, Moment)>,
}

impl Record {
    /// Whether this configured refresh token, by its fingerprint, once began a chain.
    pub(in crate::token) fn has_adopted(&self, fingerprint: &str) -> bool {
        self.adopted.iter().any(|adopted| adopted == fingerprint)
    }

    pub(in crate::token) fn version(&self) -> Version {
        Version::new(self.epoch, self.generation)
    }

    /// Whether people or other programs wrote it: as good as a configured refresh token.
    pub(in crate::token) fn is_handwritten(&self) -> bool {
        self.epoch == 0
    }

    /// One refresh further: a new access token, and a new refresh token unless the issuer kept the one that was spent.
    pub(in crate::token) fn advance(
        &mut self,
        rotated: Option<Secret>,
        refresh_lifetime: Option<Duration>,
        access: AccessToken,
        origin: Grant,
    ) {
        if self.is_handwritten()
            && let Some(token) = &self.refresh_token
        {
            self.adopt(fingerprint(token));
        }
        if self.is_handwritten() || !matches!(origin, Grant::Chain) {
            self.epoch = to_millis(access.obtained_at).max(self.epoch.saturating_add(1));
        }
        self.generation = self.generation.saturating_add(1);
        let spent = match origin {
            Grant::Chain => self.refresh_token.clone(),
            Grant::Seed(seed) => {
                self.adopt(seed.fingerprint);
                Some(seed.token)
            }
            Grant::Initial => None,
        };
        let newest = rotated.or_else(|| spent.clone());
        let is_another =
            newest.as_ref().map(Secret::expose) != self.refresh_token.as_ref().map(Secret::expose);
        if is_another {
            self.refresh_token_since = Some(access.obtained_at);
            self.refresh_token_expires_at = None;
        }
        if let Some(lifetime) = refresh_lifetime {
            self.refresh_token_expires_at = Some(access.obtained_at + lifetime);
        }
        let replaced = [self.refresh_token.as_ref(), newest.as_ref(), spent.as_ref()];
        let replaced = replaced.map(|token: Option<&Secret>| token.map(fingerprint));
        self.intents.retain(|intent| {
            !replaced
                .iter()
                .flatten()
                .any(|known| *known == intent.spends)
        });
        self.refresh_token = newest;
        self.access = Some(access);
    }

    /// When the refresh token expires: as the issuer told it, or `lifetime` after it came.
    pub(in crate::token) fn refresh_token_expiry(&self, lifetime: Duration) -> Option<SystemTime> {
        self.refresh_token_expires_at
            .or_else(|| self.refresh_token_since?.checked_add(lifetime))
    }

    /// The refresh token of that fingerprint, if it was sent and no outcome is known.
    pub(in crate::token) fn intent(&self, fingerprint: &str) -> Option<&Intent> {
        self.intents
            .iter()
            .find(|intent| intent.spends == fingerprint)
    }

    /// Whether the chain's own refresh token may be spent.
    pub(in crate::token) fn has_open_intent(&self) -> bool {
        self.chain_fingerprint()
            .is_some_and(|chain| self.intent(&chain).is_some())
    }

    fn chain_fingerprint(&self) -> Option<String> {
        self.refresh_token.as_ref().map(fingerprint)
    }

    /// The refresh token of that fingerprint is about to be sent.
    pub(in crate::token) fn open_intent(&mut self, fingerprint: &str, clock: &dyn Clock) {
        if let Some(intent) = self
            .intents
            .iter_mut()
            .find(|intent| intent.spends == fingerprint)
        {
            intent.attempts = intent.attempts.saturating_add(1);
            return;
        }
        if self.intents.len() >= INTENTS_LIMIT {
            let chain = self.chain_fingerprint();
            let oldest = self
                .intents
                .iter()
                .position(|intent| Some(&intent.spends) != chain.as_ref());
            self.intents.remove(oldest.unwrap_or_default());
        }
        self.intents.push(Intent {
            spends: fingerprint.to_owned(),
            at_ms: to_millis(clock.wall()),
            boot_id: clock.boot_id().map(str::to_owned),
            at_boot_ms: millis(clock.now().elapsed_since_boot()),
            attempts: 1,
        });
    }

    /// The outcome is known.
    pub(in crate::token) fn close_intent_of(&mut self, fingerprint: &str) {
        self.intents.retain(|intent| intent.spends != fingerprint);
    }

    /// What another process noted about the same chain.
    pub(in crate::token) fn merge_notes(&mut self, stored: Self) {
        self.intents = stored.intents;
        self.adopted = stored.adopted;
    }

    /// From now on this configured refresh token is never tried again.
    pub(in crate::token) fn adopt(&mut self, fingerprint: String) {
        self.adopted.push(fingerprint);
        self.adopted
            .drain(..self.adopted.len().saturating_sub(ADOPTED_LIMIT));
    }
}

/// When a stored access token expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) struct Expiry {
    pub(in crate::token) at: Moment,
    /// Whether that is more than an upper limit.
    pub(in crate::token) is_certain: bool,
}

impl AccessToken {
    /// The expiry on this boot's clock.
    pub(in crate::token) fn expiry(&self, clock: &dyn Clock) -> Expiry {
        let now = clock.now();
        if let (Some((boot, at)), Some(this_boot)) = (&self.boot, clock.boot_id())
            && boot == this_boot
            // A token from the future was stored on another clock: in another time namespace, say.
            && at.saturating_since(now) <= self.lifetime
        {
            return Expiry {
                at: *at,
                is_certain: true,
            };
        }
        // After another boot there is only the calendar. One that went back leaves the age unknown, but no token lives
        // longer than its lifetime.
        match clock.wall().duration_since(self.obtained_at) {
            Ok(age) => Expiry {
                at: now + self.lifetime.saturating_sub(age),
                is_certain: true,
            },
            Err(_) => Expiry {
                at: now + self.lifetime,
                is_certain: false,
            },
        }
    }
}

impl Grant {
    /// What a new chain begins with, for people.
    pub(in crate::token) fn begins_with(&self) -> Option<&'static str> {
        match self {
            Self::Chain => None,
            Self::Seed(_) => Some("the configured refresh token"),
            Self::Initial => Some("first tokens"),
        }
    }
}

impl Intent {
    /// Time since the refresh token was first sent; `None` if the calendar went back.
    pub(in crate::token) fn age(&self, clock: &dyn Clock) -> Option<Duration> {
        if self.boot_id.is_some() && self.boot_id.as_deref() == clock.boot_id() {
            let sent = Moment::since_boot(Duration::from_millis(self.at_boot_ms));
            return (sent <= clock.now()).then(|| clock.now().saturating_since(sent));
        }
        clock.wall().duration_since(from_millis(self.at_ms)?).ok()
    }
}

/// SHA-256 in hexadecimal: tells refresh tokens apart without keeping them.
pub(in crate::token) fn fingerprint(token: &Secret) -> String {
    digest(&SHA256, token.expose().as_bytes())
        .as_ref()
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn to_millis(time: SystemTime) -> u64 {
    millis(
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

fn from_millis(millis: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}
