//! The handle to a credential, for the data path and the admin endpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::{
    cache::{Token, Version},
    deadline::while_running,
    fleet::Fleet,
    rejection::Rejections,
    state::{Reason, Snapshot, State, Status, Telemetry},
};
use crate::base::clock::SharedClock;

/// How many requests may wait for a token of one credential. Further ones do not wait.
pub const MAX_WAITERS: usize = 32_768;

/// Limits of the `Retry-After` that clients get.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A credential as its users see it. Cheap to clone, usable from every thread.
#[derive(Debug, Clone)]
pub struct Credential {
    pub(super) shared: Arc<Shared>,
    pub(super) status: watch::Receiver<Status>,
}

/// Why an operator's request for a refresh is not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManualRefreshError {
    /// Within the cooldown after the last refresh, or within the issuer's `Retry-After`.
    TooEarly {
        /// Time until a request is executed.
        retry_after: Duration,
    },
    /// There is no refresh token that can be sent.
    NoCredential,
}

/// What the refresher and the handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) clock: SharedClock,
    /// The cached token. An expired one stays, so that versions can be compared.
    pub(super) token: ArcSwapOption<Token>,
    /// Wakes the refresher, after the token or a flag below has changed.
    pub(super) wake: Notify,
    /// An operator asked for a refresh.
    pub(super) refresh_requested: AtomicBool,
    /// A request needs a token that lives longer than the cached one.
    pub(super) early_refresh: AtomicBool,
    /// The files of secrets or the state file may have changed.
    pub(super) files_changed: AtomicBool,
    /// What rejected requests know of each other.
    pub(super) rejections: Rejections,
    /// The process ends soon.
    pub(super) is_draining: AtomicBool,
    /// An operator asked to go on at once, whatever failed before.
    pub(super) retry_requested: AtomicBool,
    cooldown: Duration,
    pub(super) waiters: AtomicUsize,
    /// The store that replicas share.
    fleet: Option<Arc<Fleet>>,
    telemetry: Mutex<Telemetry>,
}

impl Shared {
    pub(super) fn new(
        name: String,
        clock: SharedClock,
        cooldown: Duration,
        fleet: Option<Arc<Fleet>>,
        telemetry: Telemetry,
    ) -> Self {
        Self {
            name,
            clock,
            token: ArcSwapOption::empty(),
            wake: Notify::new(),
            refresh_requested: AtomicBool::new(false),
            early_refresh: AtomicBool::new(false),
            files_changed: AtomicBool::new(false),
            rejections: Rejections::new(cooldown),
            is_draining: AtomicBool::new(false),
            retry_requested: AtomicBool::new(false),
            cooldown,
            waiters: AtomicUsize::new(0),
            fleet,
            telemetry: Mutex::new(telemetry),
        }
    }

    pub(super) fn telemetry(&self) -> MutexGuard<'_, Telemetry> {
        self.telemetry.lock()
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

    /// The clock whose moments [`Token::is_usable`] takes.
    pub fn clock(&self) -> &SharedClock {
        &self.shared.clock
    }

    /// The cached token, usable or not. Never blocks and never allocates.
    ///
    /// Do not hold the guard across an `.await`.
    pub fn token(&self) -> Guard<Option<Arc<Token>>> {
        self.shared.token.load()
    }

    /// Waits for a usable token above this version (any usable token for `None`). Dropping the
    /// future cancels the wait, never the refresh.
    ///
    /// `None` after `wait`; at once if there will be none until an operator acts, if the issuer takes
    /// longer than `token.timeout` to respond, or if [`MAX_WAITERS`] wait already. Time in which the
    /// machine or the process is stopped does not count.
    pub async fn newer_than(&self, version: Option<Version>, wait: Duration) -> Option<Arc<Token>> {
        let _slot = WaiterSlot::take(&self.shared.waiters)?;
        while_running(wait, self.published_after(version))
            .await
            .flatten()
    }

    async fn published_after(&self, version: Option<Version>) -> Option<Arc<Token>> {
        let mut status = self.status.clone();
        loop {
            // The status is marked as seen before the cache is read: a token that is published in
            // between makes `changed` return at once.
            let is_in_vain = {
                let status = status.borrow_and_update();
                status.needs_operator() || status.is_overdue
            };
            if let Some(token) = self.usable_above(version) {
                return Some(token);
            }
            // `changed` fails after the refresher has ended.
            if is_in_vain || status.changed().await.is_err() {
                return None;
            }
        }
    }

    fn usable_above(&self, version: Option<Version>) -> Option<Arc<Token>> {
        let now = self.shared.clock.now();
        let token = self.shared.token.load();
        token
            .as_ref()
            .filter(|token| token.is_usable(now) && Some(token.version()) > version)
            .cloned()
    }

    /// `Retry-After` for a 503 without a token: 1 s to 5 min, not rounded yet.
    pub fn retry_after(&self) -> Duration {
        let next = self.shared.telemetry().next_attempt;
        let wait = next.map_or(MAX_RETRY_AFTER, |next| {
            next.saturating_since(self.shared.clock.now())
        });
        wait.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER)
    }

    /// An operator's request: has the files of secrets and the state file read again, and ends a
    /// backoff. New contents revive a dead credential.
    pub fn reload(&self) {
        self.shared.retry_requested.store(true, Relaxed);
        self.reread_files();
    }

    /// The process ends soon: a replica leaves the next refresh to the others, as long as its token is
    /// valid.
    pub fn drain(&self) {
        self.shared.is_draining.store(true, Relaxed);
        self.shared.wake.notify_one();
    }

    pub(super) fn reread_files(&self) {
        self.shared.files_changed.store(true, Relaxed);
        self.shared.wake.notify_one();
    }

    /// Asks for a token that lives longer than the cached one. Like a rejection, it neither shortens
    /// a backoff nor risks to send a refresh token that may have been used; and there is a cooldown
    /// between calls.
    pub fn refresh_early(&self) {
        let now = self.shared.clock.now();
        if self.shared.telemetry().manual_refresh_at <= now
            && !self.shared.early_refresh.swap(true, Relaxed)
        {
            self.shared.wake.notify_one();
        }
    }

    /// An operator's request for a refresh, which no backoff delays. Files are read again in any case.
    ///
    /// # Errors
    /// When it is too early, or when there is nothing to refresh with.
    pub fn refresh_now(&self) -> Result<(), ManualRefreshError> {
        self.reread_files();
        let reason = self.status.borrow().reason;
        if matches!(
            reason,
            Reason::RefreshTokenRefused | Reason::NoCredential | Reason::OutcomeUnknown
        ) {
            return Err(ManualRefreshError::NoCredential);
        }
        let now = self.shared.clock.now();
        let mut telemetry = self.shared.telemetry();
        let retry_after = telemetry.manual_refresh_at.saturating_since(now);
        if !retry_after.is_zero() {
            return Err(ManualRefreshError::TooEarly { retry_after });
        }
        telemetry.manual_refresh_at = now + self.shared.cooldown;
        drop(telemetry);
        self.shared.refresh_requested.store(true, Relaxed);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// The credential at this moment, for status, readiness and metrics.
    pub fn snapshot(&self) -> Snapshot {
        let now = self.shared.clock.now();
        let wall = self.shared.clock.wall();
        let status = *self.status.borrow();
        let token = self.shared.token.load_full();
        let expires_in = token
            .as_ref()
            .filter(|token| token.is_usable(now))
            .map(|token| token.expires_at().saturating_since(now));
        let store = self.shared.fleet.as_ref().map(|fleet| fleet.snapshot());
        let telemetry = self.shared.telemetry();
        Snapshot {
            name: self.shared.name.clone(),
            // During a call the refresher does not notice the expiry.
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
            store,
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

/// One of [`MAX_WAITERS`] slots, released on drop.
pub(super) struct WaiterSlot<'a>(&'a AtomicUsize);

impl<'a> WaiterSlot<'a> {
    pub(super) fn take(waiters: &'a AtomicUsize) -> Option<Self> {
        let slot = Self(waiters);
        // Above the limit the slot is dropped here, which undoes the count.
        (waiters.fetch_add(1, Relaxed) < MAX_WAITERS).then_some(slot)
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
    fn waiter_slots_are_bounded_and_released() {
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
