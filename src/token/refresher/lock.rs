//! Waiting for the moment of the next call and for the store's lock.

use std::{io, sync::Arc};

use super::Refresher;
use crate::{
    base::clock::{Moment, SharedClock},
    token::store::{self, Lock, Store},
};

/// Whether this process holds the lock. Without it, another process may be in the middle of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockState {
    Held,
    NotHeld,
}

impl Refresher {
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

/// Resolves at `due`, as soon as no other process holds the lock. An error means that the store
/// cannot be locked.
pub(super) async fn due_and_locked(
    clock: &SharedClock,
    store: Option<Arc<dyn Store>>,
    due: Option<Moment>,
) -> io::Result<Option<Lock>> {
    sleep_until(clock, due).await;
    match store {
        Some(store) => store::lock(&*store, &**clock).await.map(Some),
        None => Ok(None),
    }
}

/// Pends forever for `None`.
pub(super) async fn sleep_until(clock: &SharedClock, moment: Option<Moment>) {
    match moment {
        Some(moment) => clock.sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
