//! The handle to a credential that the data path, the admin endpoint and the log hold.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Guard};
use tokio::sync::{Notify, watch};

use super::{
    cache::{Token, Version},
    state::{Reason, Snapshot, State, Status, Telemetry},
};
use crate::base::clock::SharedClock;

/// How many requests may wait for a token of one credential; more get none.
pub const MAX_WAITERS: usize = 32_768;

const SHORTEST_RETRY_AFTER: Duration = Duration::from_secs(1);
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A credential, as those see it who use its token. Cheap to clone, and usable from every thread.
#[derive(Debug, Clone)]
pub struct Credential {
    shared: Arc<Shared>,
    status: watch::Receiver<Status>,
}

/// What to do about an answer that rejected a token.
#[derive(Debug)]
pub enum Rejection {
    /// A newer token is there already: replay with it.
    Newer(Arc<Token>),
    /// A newer token is being fetched: wait for it ([`Credential::newer_than`]).
    Refreshing,
    /// A newer token would most likely not help: relay the answer.
    Futile,
}

/// Why a person's wish for a refresh is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManualRefreshError {
    /// Too early: after the last refresh, within a backoff, or within a wait that the issuer asked for.
    TooEarly {
        /// Time until the wish would be granted.
        retry_after: Duration,
    },
    /// There is no refresh token that could be spent.
    NoCredential,
}

/// What the refresher and its credential's handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) clock: SharedClock,
    /// Expired tokens stay, so that versions can be compared.
    pub(super) token: ArcSwapOption<Token>,
    /// Wakes the refresher: the token is rejected, or a person asks.
    pub(super) wake: Notify,
    /// A person asks for a refresh.
    pub(super) requested: AtomicBool,
    /// Somebody says that secrets or the state file have changed.
    pub(super) changed: AtomicBool,
    cooldown: Duration,
    waiters: AtomicUsize,
    telemetry: Mutex<Telemetry>,
}

impl Shared {
    pub(super) fn new(
        name: String,
        clock: SharedClock,
        cooldown: Duration,
        telemetry: Telemetry,
    ) -> Self {
        Self {
            name,
            clock,
            token: ArcSwapOption::empty(),
            wake: Notify::new(),
            requested: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            cooldown,
            waiters: AtomicUsize::new(0),
            telemetry: Mutex::new(telemetry),
        }
    }

    pub(super) fn telemetry(&self) -> MutexGuard<'_, Telemetry> {
        // The books are still the best there is after a panic.
        self.telemetry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Credential {
    pub(super) fn new(shared: Arc<Shared>, status: watch::Receiver<Status>) -> Self {
        Self { shared, status }
    }

    /// The name in metrics and status.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The clock that [`Token::usable`] wants to be asked with.
    pub fn clock(&self) -> &SharedClock {
        &self.shared.clock
    }

    /// The cached token, usable or not. Never blocks, never allocates.
    ///
    /// Do not hold the guard across an `.await`.
    pub fn token(&self) -> Guard<Option<Arc<Token>>> {
        self.shared.token.load()
    }

    /// A request under this version was not authorized. Takes no lock.
    pub fn rejected(&self, version: Version) -> Rejection {
        let now = self.shared.clock.now();
        match self.shared.token.load().as_ref() {
            Some(token) if token.version() > version && token.usable(now) => {
                Rejection::Newer(Arc::clone(token))
            }
            Some(token) if token.version() == version && token.usable(now) => {
                if !token.is_worth_refreshing(now) {
                    return Rejection::Futile;
                }
                if token.request_refresh() {
                    self.shared.wake.notify_one();
                }
                Rejection::Refreshing
            }
            // Expired, hence being refreshed anyway.
            _ => Rejection::Refreshing,
        }
    }

    /// Waits for a usable token above that version (any, for `None`). Dropping the future ends the waiting and nothing
    /// else.
    ///
    /// `None` after `wait`, or at once when none will come without a person, or when too many wait already. Waits on
    /// the runtime's time: a request that is suspended with the machine need not know it.
    pub async fn newer_than(&self, version: Option<Version>, wait: Duration) -> Option<Arc<Token>> {
        let _place = WaiterSlot::take(&self.shared.waiters)?;
        tokio::time::timeout(wait, self.published_after(version))
            .await
            .ok()
            .flatten()
    }

    async fn published_after(&self, version: Option<Version>) -> Option<Arc<Token>> {
        let mut status = self.status.clone();
        loop {
            // Marks the status as seen before the cache is read: a token that is published in between wakes us again.
            let needs_operator = status.borrow_and_update().needs_operator();
            if let Some(token) = self.usable_above(version) {
                return Some(token);
            }
            // An error means that the refresher has ended.
            if needs_operator || status.changed().await.is_err() {
                return None;
            }
        }
    }

    fn usable_above(&self, version: Option<Version>) -> Option<Arc<Token>> {
        let now = self.shared.clock.now();
        let token = self.shared.token.load();
        token
            .as_ref()
            .filter(|token| token.usable(now) && Some(token.version()) > version)
            .cloned()
    }

    /// For a 503 without a token: when a new attempt may be worth it, 1 s to 5 min, in whole seconds.
    pub fn retry_after(&self) -> Duration {
        let next = self.shared.telemetry().next_attempt;
        let wait = next.map_or(LONGEST_RETRY_AFTER, |next| {
            next.saturating_since(self.shared.clock.now())
        });
        wait.clamp(SHORTEST_RETRY_AFTER, LONGEST_RETRY_AFTER)
    }

    /// The secrets' files and the state file are read again. What is new in them revives a dead credential.
    pub fn reload(&self) {
        self.shared.changed.store(true, Relaxed);
        self.shared.wake.notify_one();
    }

    /// A person asks for a refresh now. Files are read again in any case.
    ///
    /// # Errors
    /// When it is too early for one, or when there is nothing to refresh with.
    pub fn refresh_now(&self) -> Result<(), ManualRefreshError> {
        self.reload();
        let reason = self.status.borrow().reason;
        if matches!(
            reason,
            Reason::RefreshTokenRefused | Reason::NoCredential | Reason::OutcomeUnknown
        ) {
            return Err(ManualRefreshError::NoCredential);
        }
        let now = self.shared.clock.now();
        let mut telemetry = self.shared.telemetry();
        let retry_after = telemetry.next_request.saturating_since(now);
        if !retry_after.is_zero() {
            return Err(ManualRefreshError::TooEarly { retry_after });
        }
        telemetry.next_request = now + self.shared.cooldown;
        drop(telemetry);
        self.shared.requested.store(true, Relaxed);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Everything that may be told, now.
    pub fn snapshot(&self) -> Snapshot {
        let now = self.shared.clock.now();
        let wall = self.shared.clock.wall();
        let status = *self.status.borrow();
        let token = self.shared.token.load_full();
        let expires_in = token
            .as_ref()
            .filter(|token| token.usable(now))
            .map(|token| token.expires_at().saturating_since(now));
        let telemetry = self.shared.telemetry();
        Snapshot {
            name: self.shared.name.clone(),
            // The refresher may be in the middle of a call and not have noticed the expiry.
            state: if expires_in.is_none() && matches!(status.state, State::Fresh | State::Stale) {
                State::Expired
            } else {
                status.state
            },
            reason: if expires_in.is_none() && status.reason == Reason::Ok {
                Reason::Refreshing
            } else {
                status.reason
            },
            since: status.since,
            problem: telemetry.problem.clone(),
            generation: token.map_or(0, |token| token.version().generation()),
            expires_in,
            expires_at: expires_in.map(|left| wall + left),
            refresh_token_expires_at: telemetry.refresh_token_expires_at,
            seed_refused: telemetry.seed_refused,
            last_refreshes: telemetry.last_refreshes(),
            persistence: telemetry.persistence,
            next_attempt_in: telemetry
                .next_attempt
                .map(|next| next.saturating_since(now)),
            refreshes: telemetry.refreshes(),
            refresh_durations: telemetry.durations(),
        }
    }

    /// Changes of state, reason and version.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

/// A place among the waiters, given back on drop.
struct WaiterSlot<'a>(&'a AtomicUsize);

impl<'a> WaiterSlot<'a> {
    fn take(waiters: &'a AtomicUsize) -> Option<Self> {
        let place = Self(waiters);
        // Above the limit the place is given back at once, by the drop.
        (waiters.fetch_add(1, Relaxed) < MAX_WAITERS).then_some(place)
    }
}

impl Drop for WaiterSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let waiters = AtomicUsize::new(MAX_WAITERS - 1);
        let last = WaiterSlot::take(&waiters).expect("one is left");
        assert!(WaiterSlot::take(&waiters).is_none());
        assert!(WaiterSlot::take(&waiters).is_none());
        drop(last);
        assert_eq!(waiters.load(Relaxed), MAX_WAITERS - 1);
    }

    #[test]
    fn handles_cross_threads() {
        fn is_shared<T: Send + Sync + Clone + 'static>() {}
        is_shared::<Credential>();
    }
}
