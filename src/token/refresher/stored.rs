//! What is known of the stored record: whether it is as new as the one in memory, and whether
//! another process may have used the refresh tokens.

use std::time::SystemTime;

use crate::token::{
    state::{Persistence, Problem, Reason},
    store,
};

#[derive(Debug, Default)]
pub(super) struct StoredRecord {
    /// Since when it is missing, or older than the one in memory.
    lost_since: Option<SystemTime>,
    /// It exists and cannot be read, so it may be newer than the one in memory.
    unreadable: Option<(SystemTime, Problem)>,
    /// A loss is logged once, until the record is found intact.
    is_loss_logged: bool,
}

impl StoredRecord {
    /// It is as new as the one in memory.
    pub(super) fn found_current(&mut self) {
        *self = Self::default();
    }

    /// It is missing, or older than the one in memory: it has to be written again.
    pub(super) fn found_lost(&mut self, now: SystemTime) {
        self.unreadable = None;
        self.lost_since.get_or_insert(now);
        if !std::mem::replace(&mut self.is_loss_logged, true) {
            tracing::warn!(
                "the state file was removed, or replaced by an older one, while the proxy runs: it \
                 is written again with the current tokens"
            );
        }
    }

    /// It exists, and it cannot be read.
    pub(super) fn found_unreadable(&mut self, error: &store::Error, now: SystemTime) {
        self.lost_since = None;
        if self.unreadable.is_none() {
            tracing::error!(
                %error,
                "the state file cannot be read, and another process may have stored newer tokens: \
                 the access token stays in use, and a refresh waits until shortly before its expiry"
            );
        }
        let problem = Problem {
            reason: Reason::StoreUnreadable,
            detail: error.to_string(),
        };
        self.unreadable = Some((now, problem));
    }

    /// The record in memory was handed to the writer.
    pub(super) fn passed_to_writer(&mut self) {
        self.lost_since = None;
    }

    pub(super) fn has_to_be_written(&self) -> bool {
        self.lost_since.is_some()
    }

    /// Whether another process may have used the refresh tokens in memory.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.unreadable.is_some()
    }

    pub(super) fn problem(&self) -> Option<&Problem> {
        self.unreadable.as_ref().map(|(_, problem)| problem)
    }

    /// Whether the newest tokens would survive a restart, if the writer has nothing to write.
    pub(super) fn persistence(&self, written: Persistence) -> Persistence {
        let unreadable_since = self.unreadable.as_ref().map(|(since, _)| *since);
        match (written, self.lost_since.or(unreadable_since)) {
            (Persistence::Stored, Some(since)) => Persistence::Failing { since },
            (written, _) => written,
        }
    }
}
