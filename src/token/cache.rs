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

/// Doubling does not increase a cooldown beyond this.
const MAX_COOLDOWN: Duration = Duration::from_secs(300);

/// Identifies a token of one credential. Versions only increase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    // In this order: the derived `Ord` compares the epoch first.
    epoch: u64,
    generation: u64,
}

impl Version {
    pub(super) const fn new(epoch: u64, generation: u64) -> Self {
        Self { epoch, generation }
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
/// flag that is seen late costs at most one needless wait, never a second call to the issuer.
#[derive(Debug)]
pub struct Token {
    version: Version,
    authorization: HeaderValue,
    published_at: Moment,
    expires_at: Moment,
    history: RefreshHistory,
    flags: AtomicU8,
}

/// A request with this token got a 2xx or 101.
const PROVEN: u8 = 1;
/// A replay with this token was not an authorization failure.
const REPLAY_ACCEPTED: u8 = 2;
/// A replay with this token was an authorization failure: the refresh did not help.
const REPLAY_REJECTED: u8 = 4;
/// A rejection asked for a newer token.
const REFRESH_REQUESTED: u8 = 8;

/// What a token inherits from its predecessors: why it was fetched, and how long to wait before
/// another rejection causes a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RefreshHistory {
    after_rejection: bool,
    base_cooldown: Duration,
    cooldown: Duration,
    /// Consecutive futile refreshes before this token.
    futile_refreshes: u32,
    /// End of a futile predecessor's cooldown: a scheduled refresh does not end it.
    cooldown_until: Option<Moment>,
}

impl RefreshHistory {
    /// Of a token without predecessors.
    pub(super) const fn first(cooldown: Duration) -> Self {
        Self {
            after_rejection: false,
            base_cooldown: cooldown,
            cooldown,
            futile_refreshes: 0,
            cooldown_until: None,
        }
    }

    /// Of the token that replaces `token`.
    pub(super) fn after(token: &Token, base_cooldown: Duration) -> Self {
        let futile_refreshes = match token.flags() {
            flags if flags & REPLAY_ACCEPTED != 0 => 0,
            flags if flags & REPLAY_REJECTED != 0 => {
                token.history.futile_refreshes.saturating_add(1)
            }
            _ => token.history.futile_refreshes,
        };
        let doubled = base_cooldown
            .saturating_mul(2_u32.saturating_pow(futile_refreshes))
            .min(MAX_COOLDOWN);
        Self {
            after_rejection: token.is_refresh_requested(),
            base_cooldown,
            cooldown: doubled.max(base_cooldown),
            futile_refreshes,
            cooldown_until: token.futile_until(),
        }
    }
}

impl Token {
    /// `authorization` comes from [`authorization`].
    pub(super) fn new(
        version: Version,
        authorization: HeaderValue,
        published_at: Moment,
        expires_at: Moment,
        history: RefreshHistory,
    ) -> Self {
        Self {
            version,
            authorization,
            published_at,
            expires_at,
            history,
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

    /// Records a proof: a 2xx or 101 for a request with this token.
    pub fn accepted(&self) {
        self.set(PROVEN);
    }

    /// Records that a replay with this token was not an authorization failure: the refresh that
    /// brought the token helped.
    pub fn replay_accepted(&self) {
        self.set(PROVEN | REPLAY_ACCEPTED);
    }

    /// Records that a replay with this token was an authorization failure too: refreshing because
    /// of such requests is futile.
    pub fn replay_rejected(&self) {
        self.set(REPLAY_REJECTED);
    }

    /// Whether a rejection of this token justifies a refresh now. A *futile* token (a replay with
    /// it was rejected) and an *unproven* one (requested because of a rejection, no proof yet) must
    /// be as old as their cooldown.
    pub(super) fn is_worth_refreshing(&self, now: Moment) -> bool {
        let unproven = self.history.after_rejection && self.flags() & PROVEN == 0;
        let unproven_until = unproven.then(|| self.published_at + self.cooldown());
        unproven_until
            .max(self.futile_until())
            .is_none_or(|until| now >= until)
    }

    /// Asks for a newer token; true for the first caller.
    pub(super) fn request_refresh(&self) -> bool {
        !self.is_refresh_requested()
            && self.flags.fetch_or(REFRESH_REQUESTED, Relaxed) & REFRESH_REQUESTED == 0
    }

    pub(super) fn is_refresh_requested(&self) -> bool {
        self.flags() & REFRESH_REQUESTED != 0
    }

    fn futile_until(&self) -> Option<Moment> {
        let flags = self.flags();
        if flags & REPLAY_REJECTED != 0 {
            Some(self.published_at + self.cooldown())
        } else if flags & REPLAY_ACCEPTED != 0 {
            None
        } else {
            self.history.cooldown_until
        }
    }

    /// An accepted replay undoes all doubling.
    fn cooldown(&self) -> Duration {
        if self.flags() & REPLAY_ACCEPTED != 0 {
            self.history.base_cooldown
        } else {
            self.history.cooldown
        }
    }

    fn flags(&self) -> u8 {
        self.flags.load(Relaxed)
    }

    /// Called for every response: it writes only if that changes something, so that the cache line
    /// stays shared between cores.
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

    const COOLDOWN: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    fn token(published_at: Moment, history: RefreshHistory) -> Token {
        let expires_at = published_at + Duration::from_secs(3600);
        let header = authorization("Bearer", "abc").expect("legal");
        Token::new(
            Version::new(1, 1),
            header,
            published_at,
            expires_at,
            history,
        )
    }

    /// The token published at `published_at` because `token` was rejected.
    fn refreshed(token: &Token, published_at: Moment) -> Token {
        token.request_refresh();
        scheduled(token, published_at)
    }

    fn scheduled(previous: &Token, published_at: Moment) -> Token {
        token(published_at, RefreshHistory::after(previous, COOLDOWN))
    }

    #[test]
    fn versions_order_by_epoch_then_generation() {
        assert!(Version::new(2, 1) > Version::new(1, 9));
        assert!(Version::new(2, 2) > Version::new(2, 1));
        assert_eq!(Version::new(7, 3).to_string(), "7.3");
    }

    #[test]
    fn a_token_is_usable_until_its_expiry() {
        let token = token(at(0), RefreshHistory::first(COOLDOWN));
        assert!(token.is_usable(at(3599)));
        assert!(!token.is_usable(at(3600)));
    }

    #[test]
    fn the_header_is_sensitive_and_prints_nothing() {
        let token = token(at(0), RefreshHistory::first(COOLDOWN));
        assert_eq!(token.header().as_bytes(), b"Bearer abc");
        assert!(!format!("{token:?}").contains("abc"));
        assert!(authorization("Bearer", "a\r\nX: y").is_err());
    }

    #[test]
    fn only_the_first_request_for_a_refresh_returns_true() {
        let token = token(at(0), RefreshHistory::first(COOLDOWN));
        assert!(token.request_refresh());
        assert!(!token.request_refresh());
    }

    #[test]
    fn a_scheduled_token_is_refreshed_at_once() {
        let first = token(at(0), RefreshHistory::first(COOLDOWN));
        assert!(first.is_worth_refreshing(at(0)));
        assert!(scheduled(&first, at(100)).is_worth_refreshing(at(100)));
    }

    #[test]
    fn an_unproven_token_waits_for_its_cooldown_or_a_success() {
        let unproven = refreshed(&token(at(0), RefreshHistory::first(COOLDOWN)), at(100));
        assert!(!unproven.is_worth_refreshing(at(109)));
        assert!(unproven.is_worth_refreshing(at(110)));
        unproven.accepted();
        assert!(unproven.is_worth_refreshing(at(100)));
    }

    #[test]
    fn a_futile_token_waits_even_when_other_requests_succeed() {
        let futile = refreshed(&token(at(0), RefreshHistory::first(COOLDOWN)), at(100));
        futile.replay_rejected();
        futile.accepted();
        assert!(!futile.is_worth_refreshing(at(109)));
        assert!(futile.is_worth_refreshing(at(110)));
    }

    #[test]
    fn futile_refreshes_double_the_cooldown_to_five_minutes_and_an_accepted_replay_resets_it() {
        let mut now = at(0);
        let mut last = token(now, RefreshHistory::first(COOLDOWN));
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            let next = refreshed(&last, now);
            next.replay_rejected();
            let cooldown = Duration::from_secs(seconds);
            assert!(
                !next.is_worth_refreshing(now + (cooldown - Duration::from_millis(1))),
                "{seconds}"
            );
            now = now + cooldown;
            assert!(next.is_worth_refreshing(now), "{seconds}");
            last = next;
        }
        let helped = refreshed(&last, now);
        helped.replay_accepted();
        assert!(helped.is_worth_refreshing(now), "proven, and not futile");
        let next = refreshed(&helped, now);
        next.replay_rejected();
        assert!(!next.is_worth_refreshing(now + Duration::from_secs(9)));
        assert!(next.is_worth_refreshing(now + COOLDOWN));
    }

    #[test]
    fn a_scheduled_refresh_neither_ends_nor_extends_a_cooldown() {
        let futile = refreshed(&token(at(0), RefreshHistory::first(COOLDOWN)), at(100));
        futile.replay_rejected();
        let next = scheduled(&futile, at(105));
        next.accepted();
        assert!(!next.is_worth_refreshing(at(109)));
        assert!(next.is_worth_refreshing(at(110)));
        let helped = scheduled(&futile, at(105));
        helped.replay_accepted();
        assert!(helped.is_worth_refreshing(at(106)));
    }

    #[test]
    fn a_configured_cooldown_beyond_five_minutes_is_kept() {
        let long = Duration::from_secs(600);
        let first = token(at(0), RefreshHistory::first(long));
        first.replay_rejected();
        assert_eq!(RefreshHistory::after(&first, long).cooldown, long);
    }

    #[test]
    fn setting_a_flag_twice_changes_nothing() {
        let token = token(at(0), RefreshHistory::first(COOLDOWN));
        token.accepted();
        token.accepted();
        assert_eq!(token.flags(), PROVEN);
    }
}
