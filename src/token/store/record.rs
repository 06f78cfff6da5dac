//! The stored record of a credential: its chain of refresh tokens and its newest access token.

mod format;
mod restamp;
mod spent;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub(in crate::token) use self::format::{Owner, Unreadable};
use self::spent::Spent;
use crate::{
    base::{
        clock::{Clock, Moment},
        secret::Secret,
    },
    token::{cache::Version, refresh_token::RefreshToken},
};

/// Fingerprints of adopted seeds that are kept. An older seed would be taken for a new one, and the
/// issuer would refuse it.
const MAX_ADOPTED: usize = 256;
/// Intents that are kept: beside the chain's own, each is a seed whose outcome is unknown.
const MAX_INTENTS: usize = 16;

/// Everything that must survive a restart.
#[derive(Debug, Clone, Default)]
pub(in crate::token) struct Record {
    /// Identifies the chain; 0 if this program did not write the record.
    pub(in crate::token) epoch: u64,
    pub(in crate::token) generation: u64,
    /// The chain's newest refresh token.
    pub(in crate::token) refresh_token: Option<RefreshToken>,
    /// As the issuer stated it.
    pub(in crate::token) refresh_token_expires_at: Option<SystemTime>,
    /// When the refresh token last changed.
    pub(in crate::token) refresh_token_since: Option<SystemTime>,
    pub(in crate::token) access: Option<AccessToken>,
    /// The refresh token of an operator's file, which this record replaces: a seed, until its outcome
    /// is known.
    pub(in crate::token) seed: Option<RefreshToken>,
    /// At most one for each refresh token whose outcome is unknown: the chain's, and seeds, which
    /// may be configured again.
    pub(in crate::token) intents: Vec<Intent>,
    /// Fingerprints of the seeds that began a chain. Each seed begins at most one.
    adopted: Vec<String>,
    /// The refresh tokens that were replaced.
    spent: Spent,
    /// The issuer refused a refresh token that was sent once more within the grace period.
    pub(in crate::token) is_grace_refused: bool,
}

/// Notes, before a refresh token is sent, that it will be. It remains until the outcome is known:
/// while it exists, the refresh token may have been used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::token) struct Intent {
    /// Of the refresh token.
    #[serde(rename = "spends")]
    fingerprint: String,
    /// When it was first sent, in milliseconds since 1970.
    at_ms: u64,
    boot_id: Option<String>,
    /// The same on that boot's clock.
    at_boot_ms: u64,
    /// How often it was sent.
    pub(in crate::token) attempts: u32,
}

/// What is presented to the issuer for new tokens (an authorization grant, RFC 6749 §1.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::token) enum Grant {
    /// The chain's refresh token.
    Chain(RefreshToken),
    /// A configured refresh token that was never used: it begins a new chain.
    Seed(RefreshToken),
    /// A grant without a refresh token: it begins a new chain.
    Initial,
}

/// An access token, and what is known of its age.
#[derive(Debug, Clone)]
pub(in crate::token) struct AccessToken {
    pub(in crate::token) secret: Secret,
    pub(in crate::token) lifetime: Duration,
    /// When the request for it was sent, by the wall clock.
    pub(in crate::token) requested_at: SystemTime,
    /// The id of the boot in which it was requested, and its expiry on that boot's clock.
    pub(in crate::token) boot: Option<(String, Moment)>,
}

/// When a request to the issuer was sent, on both clocks. Lifetimes count from here: the issuer's
/// count begins later.
#[derive(Debug, Clone, Copy)]
pub(in crate::token) struct RequestTime {
    pub(in crate::token) moment: Moment,
    pub(in crate::token) wall: SystemTime,
}

impl RequestTime {
    pub(in crate::token) fn now(clock: &dyn Clock) -> Self {
        Self {
            moment: clock.now(),
            wall: clock.wall(),
        }
    }
}

impl Record {
    /// Whether this refresh token is part of a chain: the newest one, one that it replaced, or the
    /// seed that began it. Sending it as a new seed could revoke the chain.
    pub(in crate::token) fn knows(&self, token: &RefreshToken) -> bool {
        self.refresh_token.as_ref() == Some(token)
            || self.has_adopted(token.fingerprint())
            || self.spent.contains(token.fingerprint())
    }

    /// Whether the seed with this fingerprint began a chain.
    pub(in crate::token) fn has_adopted(&self, fingerprint: &str) -> bool {
        self.adopted.iter().any(|adopted| adopted == fingerprint)
    }

    /// Whether there is nothing to store.
    pub(in crate::token) fn is_empty(&self) -> bool {
        self.refresh_token.is_none()
            && self.access.is_none()
            && self.seed.is_none()
            && self.intents.is_empty()
            && self.adopted.is_empty()
    }

    pub(in crate::token) fn version(&self) -> Version {
        Version::new(self.epoch, self.generation)
    }

    /// Whether an operator or another program wrote it: its refresh token is treated as a seed.
    pub(in crate::token) fn is_handwritten(&self) -> bool {
        self.epoch == 0
    }

    /// Takes in a token response: a new access token, and a new refresh token unless the issuer
    /// kept the one that was sent.
    pub(in crate::token) fn advance(
        &mut self,
        rotated: Option<Secret>,
        refresh_lifetime: Option<Duration>,
        access: AccessToken,
        grant: &Grant,
    ) {
        let newest = rotated
            .map(RefreshToken::new)
            .or_else(|| grant.refresh_token().cloned());
        self.replace_refresh_token(newest, access.requested_at, grant);
        if let Some(lifetime) = refresh_lifetime {
            self.refresh_token_expires_at = Some(access.requested_at + lifetime);
        }
        self.access = Some(access);
    }

    /// Takes in a new refresh token without an access token: the one that was sent is used up.
    pub(in crate::token) fn rotate(
        &mut self,
        token: RefreshToken,
        since: SystemTime,
        grant: &Grant,
    ) {
        self.replace_refresh_token(Some(token), since, grant);
    }

    /// The outcome of `grant` is known: `newest` continues the chain, or begins a new one.
    fn replace_refresh_token(
        &mut self,
        newest: Option<RefreshToken>,
        since: SystemTime,
        grant: &Grant,
    ) {
        if self.is_handwritten()
            && let Some(token) = self.refresh_token.clone()
        {
            self.adopt(&token);
        }
        if self.is_handwritten() || grant.begins_chain() {
            self.epoch = to_millis(since).max(self.epoch.saturating_add(1));
        }
        if let Grant::Seed(seed) = grant {
            self.adopt(seed);
        }
        if grant.begins_chain() {
            self.seed = None;
        }
        // Also without an access token: other processes must see that the record is newer.
        self.generation = self.generation.saturating_add(1);
        let replaced = [self.refresh_token.clone(), grant.refresh_token().cloned()];
        if newest != self.refresh_token {
            self.refresh_token_since = Some(since);
            self.refresh_token_expires_at = None;
        }
        self.refresh_token = newest;
        for token in replaced.iter().flatten() {
            self.close_intent(token);
            if self.refresh_token.as_ref() != Some(token) {
                self.spent.insert(token.fingerprint(), since);
            }
        }
        if let Some(token) = self.refresh_token.clone() {
            self.close_intent(&token);
        }
    }

    /// Forgets refresh tokens that were replaced longer than `lifetime` ago.
    pub(in crate::token) fn expire_spent(&mut self, lifetime: Duration, now: SystemTime) {
        self.spent.expire(lifetime, now);
    }

    /// When the refresh token expires: as the issuer stated it, or `lifetime` after it last
    /// changed.
    pub(in crate::token) fn refresh_token_expiry(&self, lifetime: Duration) -> Option<SystemTime> {
        self.refresh_token_expires_at
            .or_else(|| self.refresh_token_since?.checked_add(lifetime))
    }

    /// The open intent of the refresh token with this fingerprint.
    pub(in crate::token) fn intent(&self, fingerprint: &str) -> Option<&Intent> {
        self.intents
            .iter()
            .find(|intent| intent.fingerprint == fingerprint)
    }

    /// Whether the chain's own refresh token has an open intent.
    pub(in crate::token) fn has_open_intent(&self) -> bool {
        self.refresh_token
            .as_ref()
            .is_some_and(|token| self.intent(token.fingerprint()).is_some())
    }

    /// Notes that this refresh token is about to be sent.
    pub(in crate::token) fn open_intent(&mut self, token: &RefreshToken, clock: &dyn Clock) {
        self.open(Intent {
            fingerprint: token.fingerprint().to_owned(),
            at_ms: to_millis(clock.wall()),
            boot_id: clock.boot_id().map(str::to_owned),
            at_boot_ms: millis(clock.now().elapsed_since_boot()),
            attempts: 1,
        });
    }

    /// Like [`Record::open_intent`], for a record in the time of a store.
    pub(in crate::token) fn open_intent_at(&mut self, fingerprint: &str, at: SystemTime) {
        self.open(Intent {
            fingerprint: fingerprint.to_owned(),
            at_ms: to_millis(at),
            boot_id: None,
            at_boot_ms: 0,
            attempts: 1,
        });
    }

    /// The age of an intent is that of the first attempt.
    fn open(&mut self, intent: Intent) {
        let is_same = |open: &&mut Intent| open.fingerprint == intent.fingerprint;
        match self.intents.iter_mut().find(is_same) {
            Some(open) => open.attempts = open.attempts.saturating_add(1),
            None => self.add_intent(intent),
        }
    }

    /// The refresh token was not sent after all.
    pub(in crate::token) fn undo_intent(&mut self, fingerprint: &str) {
        self.intents.retain_mut(|intent| {
            if intent.fingerprint == fingerprint {
                intent.attempts = intent.attempts.saturating_sub(1);
            }
            intent.attempts > 0
        });
    }

    /// Adds what another record of the same credential knows of earlier chains.
    pub(in crate::token) fn merge_history(&mut self, other: &Self) {
        for fingerprint in &other.adopted {
            if !self.has_adopted(fingerprint) {
                self.add_adopted(fingerprint.clone());
            }
        }
        self.spent.merge(&other.spent);
        self.is_grace_refused |= other.is_grace_refused;
    }

    /// Of more than [`MAX_INTENTS`], the oldest of a seed is dropped.
    fn add_intent(&mut self, intent: Intent) {
        if self.intents.len() >= MAX_INTENTS {
            let chain = self.refresh_token.as_ref().map(RefreshToken::fingerprint);
            let oldest = self
                .intents
                .iter()
                .position(|intent| Some(intent.fingerprint.as_str()) != chain);
            self.intents.remove(oldest.unwrap_or_default());
        }
        self.intents.push(intent);
    }

    /// The outcome for this refresh token is known.
    pub(in crate::token) fn close_intent(&mut self, token: &RefreshToken) {
        self.intents
            .retain(|intent| intent.fingerprint != token.fingerprint());
    }

    /// Adds what another process noted about the same chain. Nothing is forgotten: the stored
    /// record may be a backup, and a token that may have been used stays in doubt until it is
    /// replaced.
    pub(in crate::token) fn merge_notes(&mut self, stored: Self) {
        self.merge_history(&stored);
        for theirs in stored.intents {
            let is_same = |ours: &&mut Intent| ours.fingerprint == theirs.fingerprint;
            match self.intents.iter_mut().find(is_same) {
                Some(ours) => {
                    let attempts = ours.attempts.max(theirs.attempts);
                    if theirs.at_ms < ours.at_ms {
                        *ours = theirs;
                    }
                    ours.attempts = attempts;
                }
                None => self.add_intent(theirs),
            }
        }
        self.keep_seed(stored.seed);
    }

    /// Keeps the seed of another record of the same file, unless this one has a seed itself.
    pub(in crate::token) fn keep_seed(&mut self, seed: Option<RefreshToken>) {
        self.seed = self.seed.take().or(seed);
    }

    /// Notes that this refresh token must not begin a chain.
    pub(in crate::token) fn spend(&mut self, fingerprint: &str, at: SystemTime) {
        self.spent.insert(fingerprint, at);
    }

    /// Notes that this seed began a chain, or never will: it is not tried again.
    pub(in crate::token) fn adopt(&mut self, seed: &RefreshToken) {
        self.add_adopted(seed.fingerprint().to_owned());
    }

    fn add_adopted(&mut self, fingerprint: String) {
        self.adopted.push(fingerprint);
        self.adopted
            .drain(..self.adopted.len().saturating_sub(MAX_ADOPTED));
    }
}

/// When a stored access token expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) struct Expiry {
    pub(in crate::token) at: Moment,
    /// False if `at` is only an upper limit.
    pub(in crate::token) is_certain: bool,
}

impl AccessToken {
    pub(in crate::token) fn new(
        secret: Secret,
        lifetime: Duration,
        requested_at: RequestTime,
        clock: &dyn Clock,
    ) -> Self {
        let expires_at = requested_at.moment + lifetime;
        Self {
            secret,
            lifetime,
            requested_at: requested_at.wall,
            boot: clock.boot_id().map(|id| (id.to_owned(), expires_at)),
        }
    }

    /// The expiry on this boot's clock.
    pub(in crate::token) fn expiry(&self, clock: &dyn Clock) -> Expiry {
        let now = clock.now();
        if let (Some((boot, at)), Some(this_boot)) = (&self.boot, clock.boot_id())
            && boot == this_boot
            // An expiry beyond the lifetime was stored by another clock: in another time
            // namespace, for example.
            && at.saturating_since(now) <= self.lifetime
        {
            return Expiry {
                at: *at,
                is_certain: true,
            };
        }
        // After a reboot only the wall clock is left. If it went back, the age is unknown; but a
        // token lives no longer than its lifetime.
        match clock.wall().duration_since(self.requested_at) {
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
    /// The refresh token that it sends, if any.
    pub(in crate::token) fn refresh_token(&self) -> Option<&RefreshToken> {
        match self {
            Self::Chain(token) | Self::Seed(token) => Some(token),
            Self::Initial => None,
        }
    }

    pub(in crate::token) fn is_seed(&self) -> bool {
        matches!(self, Self::Seed(_))
    }

    /// Whether a success begins a new chain.
    pub(in crate::token) fn begins_chain(&self) -> bool {
        !matches!(self, Self::Chain(_))
    }
}

impl Intent {
    /// Whether it is of the refresh token with this fingerprint.
    pub(in crate::token) fn is_of(&self, fingerprint: &str) -> bool {
        self.fingerprint == fingerprint
    }

    /// Time since the refresh token was first sent; `None` if the wall clock went back.
    pub(in crate::token) fn age(&self, clock: &dyn Clock) -> Option<Duration> {
        if self.boot_id.is_some() && self.boot_id.as_deref() == clock.boot_id() {
            let sent = Moment::since_boot(Duration::from_millis(self.at_boot_ms));
            return (sent <= clock.now()).then(|| clock.now().saturating_since(sent));
        }
        clock.wall().duration_since(from_millis(self.at_ms)?).ok()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970, as a record holds times.
pub(in crate::token) fn to_millis(time: SystemTime) -> u64 {
    millis(
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

/// `None` beyond the calendar.
pub(in crate::token) fn from_millis(millis: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}
