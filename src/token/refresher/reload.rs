//! What reaches the refresher from outside: the stored record, which other processes write, and the
//! files of secrets.

use std::{
    cmp::Ordering,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use http::HeaderValue;

use super::{Refresher, lock::LockState};
use crate::{
    base::{backoff, clock::Moment, secret::Secret},
    token::{
        cache::{Token, authorization},
        schedule,
        store::Record,
    },
};

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
        if let Some(configured) = configured {
            let used = if self.chain.offer_seed(configured) {
                "the configured one"
            } else {
                "the stored one"
            };
            tracing::info!(credential = self.shared.name, "refresh token: {used}");
        }
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
                self.is_store_problem_logged = false;
                self.merge(stored, lock);
            }
            // The file was removed: the next write creates it again.
            Ok(None) => {}
            Err(error) => {
                if !std::mem::replace(&mut self.is_store_problem_logged, true) {
                    tracing::error!(
                        credential = self.shared.name,
                        %error,
                        "the state file cannot be read: the tokens in memory stay in use"
                    );
                }
            }
        }
    }

    fn merge(&mut self, stored: Record, lock: LockState) {
        if let Some(token) = &stored.refresh_token
            && stored.is_handwritten()
            && self.chain.offer_seed(token.secret().clone())
        {
            self.timing.retry_now();
        }
        let ours = &mut self.chain.record;
        match stored.version().cmp(&ours.version()) {
            Ordering::Greater => self.take_over(stored),
            // A record that is not written yet is newer than the stored one.
            Ordering::Equal if lock == LockState::Held && self.writer.is_idle() => {
                if !ours.has_open_intent() && stored.has_open_intent() {
                    tracing::warn!(
                        credential = self.shared.name,
                        "a process died during a refresh: the refresh token may have been used"
                    );
                }
                self.chain.merge_notes(stored);
            }
            // An older record, from a backup for example: its refresh token was used.
            Ordering::Equal | Ordering::Less => {}
        }
    }

    /// Goes on with the tokens that another process stored.
    fn take_over(&mut self, stored: Record) {
        tracing::info!(
            credential = self.shared.name,
            generation = stored.generation,
            "another process stored newer tokens, which are used from now on"
        );
        self.chain.take_over(stored);
        self.shared.refresh_requested.store(false, Relaxed);
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
        if expiry.is_certain {
            let margin = schedule::margin(lifetime, self.policy.margin, backoff::random());
            let left = expiry.at.saturating_since(now);
            self.timing.refresh_at = now + left.saturating_sub(margin);
        }
        self.publish(header, expiry.at);
    }

    /// Makes the record's access token the cached token.
    pub(super) fn publish(&self, header: HeaderValue, expires_at: Moment) {
        let (version, now) = (self.chain.record.version(), self.shared.clock.now());
        let token = Arc::new(Token::new(version, header, now, expires_at));
        self.shared.token.store(Some(Arc::clone(&token)));
        // After it can be seen: a rejection at the same time marks it, or is noticed here.
        if self.shared.rejections.is_watching() {
            token.watch();
        }
    }
}
