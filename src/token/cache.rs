//! The cached token: immutable but for its marks, read by everybody without blocking.

use std::{
    fmt,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, header::InvalidHeaderValue};
use zeroize::Zeroizing;

use crate::base::clock::Moment;

/// No cooldown grows beyond this by doubling.
const LONGEST_COOLDOWN: Duration = Duration::from_secs(300);

/// Which token this is: versions of one credential only grow.
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

    /// When the credential chain began, in milliseconds since 1970, or one more than the chain before it.
    pub const fn epoch(self) -> u64 {
        self.epoch
    }

    /// Counts the tokens. Goes on over restarts and credential chains.
    pub const fn generation(self) -> u64 {
        self.generation
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// An access token, ready to be sent.
///
/// Its marks say what became of requests under it. They are relaxed atomics: a mark that is seen a moment late costs at
/// most one needless wait, never a second issuer call.
#[derive(Debug)]
pub struct Token {
    version: Version,
    header: HeaderValue,
    published_at: Moment,
    expires_at: Moment,
    history: RefreshHistory,
    marks: AtomicU8,
}

/// A 2xx came back under this token.
const PROVEN: u8 = 1;
/// A replay under it was not an authorization failure.
const REPLAY_ACCEPTED: u8 = 2;
/// A replay under it was an authorization failure: refreshing did not help.
const REPLAY_REJECTED: u8 = 4;
/// Somebody was promised a newer one.
const REFRESH_REQUESTED: u8 = 8;

/// What a token inherits from those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RefreshHistory {
    after_rejection: bool,
    base_cooldown: Duration,
    cooldown: Duration,
    /// Futile refreshes in a row before this token.
    futile: u32,
    /// A futile predecessor's cooldown, still running: a scheduled refresh in between does not end it.
    cooldown_until: Option<Moment>,
}

impl RefreshHistory {
    /// Of a token without predecessors.
    pub(super) const fn first(cooldown: Duration) -> Self {
        Self {
            after_rejection: false,
            base_cooldown: cooldown,
            cooldown,
            futile: 0,
            cooldown_until: None,
        }
    }

    /// Of the token that replaces `token`.
    pub(super) fn after(token: &Token, base_cooldown: Duration) -> Self {
        let futile = match token.marks() {
            marks if marks & REPLAY_ACCEPTED != 0 => 0,
            marks if marks & REPLAY_REJECTED != 0 => token.history.futile.saturating_add(1),
            _ => token.history.futile,
        };
        let doubled = base_cooldown
            .saturating_mul(2_u32.saturating_pow(futile))
            .min(LONGEST_COOLDOWN);
        Self {
            after_rejection: token.is_refresh_requested(),
            base_cooldown,
            cooldown: doubled.max(base_cooldown),
            futile,
            cooldown_until: token.futile_until(),
        }
    }
}

impl Token {
    /// The header is made by [`authorization`].
    pub(super) fn new(
        version: Version,
        header: HeaderValue,
        published_at: Moment,
        expires_at: Moment,
        history: RefreshHistory,
    ) -> Self {
        Self {
            version,
            header,
            published_at,
            expires_at,
            history,
            marks: AtomicU8::new(0),
        }
    }

    /// Which one this is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// `Bearer …`, marked sensitive, wiped when its last clone is dropped.
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// The same in memory of its own, for a thread that wants to share no reference count with others.
    pub fn header_copy(&self) -> HeaderValue {
        let text = Zeroizing::new(self.header.as_bytes().to_vec());
        // The bytes of a legal value are legal.
        let mut copy = HeaderValue::from_maybe_shared(Bytes::from_owner(text))
            .unwrap_or_else(|_| self.header.clone());
        copy.set_sensitive(true);
        copy
    }

    /// From then on it must not be sent.
    pub fn expires_at(&self) -> Moment {
        self.expires_at
    }

    /// Whether it may be sent now.
    pub fn usable(&self, now: Moment) -> bool {
        now < self.expires_at
    }

    /// Whether it was made for longer and has less than a minute left.
    pub fn expires_soon(&self, now: Moment) -> bool {
        const MINUTE: Duration = Duration::from_secs(60);
        self.expires_at.saturating_since(now) < MINUTE
            && self.expires_at.saturating_since(self.published_at) > 2 * MINUTE
    }

    /// A 2xx came back under it.
    pub fn accepted(&self) {
        self.mark(PROVEN);
    }

    /// A replay under it was not an authorization failure: the refresh that minted it helped.
    pub fn replay_accepted(&self) {
        self.mark(PROVEN | REPLAY_ACCEPTED);
    }

    /// A replay under it was an authorization failure too: refreshing because of such requests is futile.
    pub fn replay_rejected(&self) {
        self.mark(REPLAY_REJECTED);
    }

    /// Whether refreshing it because of a rejection is worth a call now. A *futile* token, or one that is *unproven*
    /// (minted because of a rejection, and no 2xx yet), must be a cooldown old.
    pub(super) fn is_worth_refreshing(&self, now: Moment) -> bool {
        let unproven = self.history.after_rejection && self.marks() & PROVEN == 0;
        let unproven_until = unproven.then(|| self.published_at + self.cooldown());
        unproven_until
            .max(self.futile_until())
            .is_none_or(|until| now >= until)
    }

    /// Notes that a newer token is wanted; true for the first to ask.
    pub(super) fn request_refresh(&self) -> bool {
        !self.is_refresh_requested()
            && self.marks.fetch_or(REFRESH_REQUESTED, Relaxed) & REFRESH_REQUESTED == 0
    }

    pub(super) fn is_refresh_requested(&self) -> bool {
        self.marks() & REFRESH_REQUESTED != 0
    }

    fn futile_until(&self) -> Option<Moment> {
        let marks = self.marks();
        if marks & REPLAY_REJECTED != 0 {
            Some(self.published_at + self.cooldown())
        } else if marks & REPLAY_ACCEPTED != 0 {
            None
        } else {
            self.history.cooldown_until
        }
    }

    /// An accepted replay undoes all doubling.
    fn cooldown(&self) -> Duration {
        if self.marks() & REPLAY_ACCEPTED != 0 {
            self.history.base_cooldown
        } else {
            self.history.cooldown
        }
    }

    fn marks(&self) -> u8 {
        self.marks.load(Relaxed)
    }

    /// Called for every answer: a store only when it changes something, so that the cache line stays shared.
    fn mark(&self, marks: u8) {
        if self.marks() & marks != marks {
            self.marks.fetch_or(marks, Relaxed);
        }
    }
}

/// The value of an `Authorization` field: marked sensitive, and wiped when its last clone is dropped.
///
/// # Errors
/// When the credentials cannot stand in a header.
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

    /// The token minted at `published_at` because somebody wanted to replace `token`.
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
        assert!(token.usable(at(3599)));
        assert!(!token.usable(at(3600)));
    }

    #[test]
    fn the_header_is_sensitive_and_prints_nothing() {
        let token = token(at(0), RefreshHistory::first(COOLDOWN));
        assert_eq!(token.header().as_bytes(), b"Bearer abc");
        assert!(!format!("{token:?}").contains("abc"));
        assert!(authorization("Bearer", "a\r\nX: y").is_err());
    }

    #[test]
    fn only_the_first_to_want_a_refresh_is_told_so() {
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
    fn marking_twice_is_marking_once() {
        let token = token(at(0), RefreshHistory::first(COOLDOWN));
        token.accepted();
        token.accepted();
        assert_eq!(token.marks(), PROVEN);
    }
}
