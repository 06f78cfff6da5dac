//! Waiting for the moment of the next call and for the store's lock.

use std::{io, sync::Arc, time::Duration};

use super::Refresher;
use crate::{
    base::clock::{Moment, SharedClock},
    token::{
        fleet::{Fleet, OnStoreFailure},
        state::{Problem, Reason},
        store::{LOCK_POLL, Lock, Store},
    },
};

/// A lock that is held for this much longer than `token.timeout` is not held for a refresh.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often such a lock is tried.
const SLOW_POLL: Duration = Duration::from_secs(1);

/// Whether this process holds the lock. Without it, another process may be in the middle of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockState {
    Held,
    NotHeld,
}

/// How a try to lock the store ended.
pub(super) enum LockTry {
    /// This process holds the lock; there is no store (`None`), or it cannot be locked.
    Over(io::Result<Option<Lock>>),
    /// Another process holds it.
    Busy,
}

/// The wait for a lock that another process holds.
#[derive(Debug, Default)]
pub(super) struct LockWait {
    since: Option<Moment>,
    next_try: Moment,
    /// It lasts longer than a refresh takes.
    overdue: Option<Problem>,
}

impl LockWait {
    pub(super) fn next_try(&self) -> Moment {
        self.next_try
    }

    /// No try before that.
    pub(super) fn put_off(&mut self, next_try: Moment) {
        self.next_try = next_try;
    }

    pub(super) fn overdue(&self) -> Option<&Problem> {
        self.overdue.as_ref()
    }
}

impl Refresher {
    /// Another process holds the lock. One that holds it for longer than a refresh takes is named
    /// once: it may be stopped, or no proxy at all.
    pub(super) async fn wait_for_lock(&mut self) {
        let now = self.shared.clock.now();
        let since = *self.lock_wait.since.get_or_insert(now);
        if self.lock_wait.overdue.is_some() {
            self.lock_wait.next_try = now + SLOW_POLL;
            return;
        }
        self.lock_wait.next_try = now + LOCK_POLL;
        if now.saturating_since(since) <= self.policy.timeout + PATIENCE {
            return;
        }
        let holder = match &self.store {
            Some(store) => store.lock_holder().await,
            None => None,
        };
        let holder = holder.map_or_else(
            || "another process".to_owned(),
            |process| format!("process {process}"),
        );
        let detail = format!(
            "{holder} has held the lock of the state file (token.state_file with .lock) for longer \
             than a refresh takes: continue or end it; until then a refresh waits until shortly \
             before the access token expires"
        );
        // Otherwise the transition to the new reason is logged.
        if self.problem.is_some() {
            tracing::warn!(credential = self.shared.name, "{detail}");
        }
        self.lock_wait.overdue = Some(Problem {
            reason: Reason::LockHeld,
            detail,
        });
    }

    /// Keeps the lock until the newest record is stored.
    pub(super) fn hold(&mut self, lock: io::Result<Option<Lock>>) {
        match lock {
            Ok(Some(lock)) => self.lock = Some(lock),
            // There is no store, or this process holds the lock already.
            Ok(None) => {}
            // Refreshing without the lock is better than having no token.
            Err(error) => {
                if !std::mem::replace(&mut self.is_lock_problem_logged, true) {
                    tracing::warn!(
                        %error,
                        "the state file cannot be locked: another process with the same file \
                         would not be noticed"
                    );
                }
            }
        }
    }
}

/// Waits until `due`, and until this process may call the issuer: as a replica, when the call can be
/// claimed; otherwise, tries to lock the state file.
pub(super) async fn wait_for_turn(
    clock: &SharedClock,
    store: Option<Arc<dyn Store>>,
    fleet: Option<(Arc<Fleet>, OnStoreFailure)>,
    due: Option<Moment>,
) -> LockTry {
    sleep_until(clock, due).await;
    if let Some((fleet, on_failure)) = fleet {
        fleet.set_overdue(true);
        fleet
            .claimable(on_failure == OnStoreFailure::RefreshAlone)
            .await;
    }
    let Some(store) = store else {
        return LockTry::Over(Ok(None));
    };
    match store.try_lock().await {
        Ok(None) => LockTry::Busy,
        locked => LockTry::Over(locked),
    }
}

/// Pends forever for `None`.
pub(super) async fn sleep_until(clock: &SharedClock, moment: Option<Moment>) {
    match moment {
        Some(moment) => clock.sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
