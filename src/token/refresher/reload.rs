//! What reaches the refresher from outside: the stored record, which other processes write, and the
//! files of secrets.

use std::{
    cmp::Ordering,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::HeaderValue;

use super::{Refresher, lock::LockState};
use crate::{
    base::{backoff, clock::Moment, secret::Secret},
    token::{
        cache::{Token, authorization},
        schedule,
        store::{self, Record},
    },
};

/// How long the end waits for a lost record's lock.
const FINAL_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

impl Refresher {
    /// At the start: publishes the stored access token if it is still valid, and considers the
    /// configured refresh token.
    pub(super) fn restore(&mut self, configured: Option<Secret>) {
        self.publish_stored();
        if self.chain.record.has_open_intent() {
            self.timing.refresh_at = Moment::default();
        }
        // Stored intents count only once the lock is held: until then, the process that opened them
        // may still be in its call.
        self.chain.record.intents.clear();
        self.take_handwritten_as_seed();
        if let Some(configured) = configured {
            let used = if self.chain.offer_seed(configured) {
                "the configured one"
            } else {
                "the stored one"
            };
            tracing::info!(credential = self.shared.name, "refresh token: {used}");
        }
        self.chain.take_up_kept_seed();
        self.assess();
    }

    /// Reads all files again. An empty or half-written file is ignored: its next change is read.
    ///
    /// A new secret ends a backoff. A change of the state file alone does not: this process changes
    /// it with each call.
    pub(super) async fn reload_files(&mut self) {
        if self.issuer.reload_client_secret().await {
            self.has_new_secret = true;
            self.timing.retry_now();
            self.shared.telemetry().manual_refresh_at = self.timing.throttled_until;
        }
        if let Some(file) = self.seed_file.clone()
            && let Ok(configured) = Secret::load(file).await
            && configured.is_one_line()
            && self.chain.offer_seed(configured)
        {
            self.timing.retry_now();
            tracing::info!(
                credential = self.shared.name,
                "a new refresh token is configured and is tried now"
            );
        }
        self.reload_record(LockState::NotHeld).await;
        self.assess();
    }

    /// Reads the stored record again: another process may have refreshed, or died during a call.
    pub(super) async fn reload_record(&mut self, lock: LockState) {
        let Some(store) = &self.store else { return };
        match store.load().await {
            Ok(Some(stored)) => {
                let has_new_seed = self.merge(stored, lock);
                if has_new_seed && !self.writer.is_idle() {
                    // What is about to be written does not contain the operator's refresh token.
                    self.writer.save(self.chain.record.clone()).await;
                }
            }
            // The writer is about to store a newer record, or has no record to store yet.
            Ok(None) if !self.writer.is_idle() || self.chain.record.is_empty() => {
                self.stored.found_current();
            }
            Ok(None) => self.stored.found_lost(self.shared.clock.wall()),
            Err(error) => self
                .stored
                .found_unreadable(&error, self.shared.clock.wall()),
        }
    }

    /// True if an operator wrote the record, with a refresh token that is new.
    fn merge(&mut self, stored: Record, lock: LockState) -> bool {
        // An operator's file is kept until a call with its refresh token begins.
        let handwritten = stored
            .is_handwritten()
            .then(|| stored.refresh_token.clone());
        let handwritten = handwritten.flatten();
        let has_new_seed = handwritten
            .as_ref()
            .is_some_and(|token| self.chain.offer_handwritten(token));
        if has_new_seed {
            self.timing.retry_now();
        }
        let is_seed = handwritten.is_some() && self.chain.seed == handwritten;
        let ours = &mut self.chain.record;
        match stored.version().cmp(&ours.version()) {
            Ordering::Greater => {
                self.stored.found_current();
                self.take_over(stored);
            }
            // A record that is not written yet is newer than the stored one.
            _ if !self.writer.is_idle() => self.stored.found_current(),
            Ordering::Equal => {
                self.stored.found_current();
                if lock == LockState::Held {
                    if !ours.has_open_intent() && stored.has_open_intent() {
                        tracing::warn!(
                            credential = self.shared.name,
                            "a process died during a refresh: the refresh token may have been used"
                        );
                    }
                    self.chain.merge_notes(stored);
                }
            }
            Ordering::Less if is_seed => self.stored.found_current(),
            // From a backup for example: its refresh token was used.
            Ordering::Less => self.stored.found_lost(self.shared.clock.wall()),
        }
        has_new_seed
    }

    /// Under the lock: writes the record in memory if the stored one was lost.
    pub(super) async fn restore_stored(&mut self) {
        if self.stored.has_to_be_written() {
            self.writer.save(self.chain.record.clone()).await;
            self.stored.passed_to_writer();
        }
    }

    /// At the end: a restart must find the newest tokens.
    pub(super) async fn check_stored(&mut self) {
        let Some(store) = self.store.clone() else {
            return;
        };
        let check = async {
            self.reload_record(LockState::NotHeld).await;
            if !self.stored.has_to_be_written() {
                return;
            }
            if self.lock.is_none() {
                // An error: it cannot be locked at all, and is written without.
                self.lock = store::lock(&*store, &*self.shared.clock).await.ok();
            }
            self.reload_record(LockState::Held).await;
        };
        let checked = tokio::time::timeout(FINAL_CHECK_TIMEOUT, check).await;
        if checked.is_ok() {
            self.restore_stored().await;
        } else if self.stored.has_to_be_written() {
            // The holder of the lock may be about to store, or has just stored, newer tokens.
            tracing::warn!(
                credential = self.shared.name,
                "another process holds the lock of the state file (token.state_file with .lock), \
                 so the lost state file is not written again by this one: if a restart finds no \
                 valid refresh token, get a new one"
            );
        }
    }

    /// Goes on with the tokens that another process stored.
    pub(super) fn take_over(&mut self, stored: Record) {
        tracing::info!(
            credential = self.shared.name,
            generation = stored.generation,
            "another process stored newer tokens, which are used from now on"
        );
        self.chain.take_over(stored);
        self.writer.supersede(&self.chain.record);
        self.shared.refresh_requested.store(false, Relaxed);
        self.shared.early_refresh.store(false, Relaxed);
        self.timing.refresh_at = Moment::default();
        self.clear_failures();
        self.publish_stored();
        self.assess();
    }

    /// Publishes the record's access token, if it is still valid, and schedules its refresh.
    fn publish_stored(&mut self) {
        let Some(access) = &self.chain.record.access else {
            return;
        };
        let now = self.shared.clock.now();
        let (expiry, lifetime) = (access.expiry(&*self.shared.clock), access.lifetime);
        let Ok(header) = authorization("Bearer", access.secret.expose()) else {
            return;
        };
        if expiry.at <= now {
            return;
        }
        let is_cached = self
            .shared
            .token
            .load()
            .as_ref()
            .is_some_and(|token| *token.header() == header && token.expires_at() == expiry.at);
        if expiry.is_certain {
            let margin = schedule::margin(lifetime, self.policy.margin, backoff::random());
            let left = expiry.at.saturating_since(now);
            self.timing.refresh_at = now + left.saturating_sub(margin);
        }
        // The same token under a newer version would look like a replacement of a rejected one.
        if !is_cached {
            self.publish(header, expiry.at);
        }
    }

    /// Makes the record's access token the cached token.
    pub(super) fn publish(&self, header: HeaderValue, expires_at: Moment) {
        let now = self.shared.clock.now();
        let last = self
            .shared
            .token
            .load()
            .as_ref()
            .map(|token| token.version());
        let version = self.chain.record.version().published_after(last);
        let token = Arc::new(Token::new(version, header, now, expires_at));
        self.shared.token.store(Some(Arc::clone(&token)));
        // After it can be seen: a rejection at the same time marks it, or is noticed here.
        if self.shared.rejections.is_watching() {
            token.watch();
        }
    }
}
