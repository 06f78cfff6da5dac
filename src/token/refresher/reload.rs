//! Where a chain of tokens comes from: the stored record, another process, a configured refresh token.

use std::{
    cmp::Ordering,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::HeaderValue;

use super::Refresher;
use crate::{
    base::{backoff, clock::Moment, secret::Secret},
    token::{
        cache::{RefreshHistory, Token, authorization},
        schedule,
        store::{Record, RefreshToken, fingerprint},
    },
};

/// Whether it is our turn: without the lock, another process may be in the middle of its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockState {
    Held,
    NotHeld,
}

impl Refresher {
    /// The start: the stored access token serves if it is still good, and a new configured refresh token is tried.
    pub(super) fn restore(&mut self, configured: Option<Secret>) {
        self.install();
        // Whether those are of a process that died, or of one that is just at it, shows with the lock.
        if self.record.has_open_intent() {
            self.refresh_at = Moment::default();
        }
        self.record.intents.clear();
        if let Some(configured) = configured {
            let is_new = self.offer_seed(configured);
            let name = if is_new {
                "the configured one"
            } else {
                "the stored one"
            };
            tracing::info!(credential = self.shared.name, "refresh token: {name}");
        }
        self.assess();
    }

    /// Files may have changed. One that is empty or half-written is ignored: its next change comes.
    pub(super) async fn reload(&mut self) {
        self.issuer.reload_client_secret().await;
        if let Some(file) = self.seed_file.clone()
            && let Ok(Ok(configured)) =
                tokio::task::spawn_blocking(|| Secret::from_file(file)).await
            && self.offer_seed(configured)
        {
            tracing::info!(
                credential = self.shared.name,
                "a new refresh token is configured: it is tried"
            );
        }
        self.reload_record(LockState::NotHeld).await;
        self.assess();
    }

    /// A configured refresh token that began no chain yet, and was not refused, is tried at once; true for such a one.
    /// Any other is older than what is stored.
    pub(super) fn offer_seed(&mut self, configured: Secret) -> bool {
        let seed = RefreshToken {
            fingerprint: fingerprint(&configured),
            token: configured,
        };
        let is_same = |other: &Secret| other.expose() == seed.token.expose();
        let is_known = self.record.has_adopted(&seed.fingerprint)
            || self.refused.contains(&seed.fingerprint)
            || self.record.refresh_token.as_ref().is_some_and(is_same)
            || self.seed.as_ref().is_some_and(|seed| is_same(&seed.token));
        if !is_known {
            self.seed = Some(seed);
            self.seed_refused = false;
        }
        !is_known
    }

    /// Another process may have refreshed, or be dead in the middle of it.
    pub(super) async fn reload_record(&mut self, ours: LockState) {
        let Some(store) = &self.store else { return };
        match store.load().await {
            Ok(Some(stored)) => {
                self.is_store_alarmed = false;
                self.compare(stored, ours);
            }
            // Somebody removed it: the next write brings it back.
            Ok(None) => {}
            Err(error) => {
                if !std::mem::replace(&mut self.is_store_alarmed, true) {
                    tracing::error!(credential = self.shared.name, %error, "going on with what is in memory");
                }
            }
        }
    }

    fn compare(&mut self, stored: Record, ours: LockState) {
        if let Some(token) = stored
            .refresh_token
            .clone()
            .filter(|_| stored.is_handwritten())
        {
            self.offer_seed(token);
        }
        match stored.version().cmp(&self.record.version()) {
            Ordering::Greater => self.take_over(stored),
            // What is not written yet is newer than what is read.
            Ordering::Equal if ours == LockState::Held && self.writer.is_idle() => {
                if !self.record.has_open_intent() && stored.has_open_intent() {
                    let credential = &self.shared.name;
                    tracing::warn!(
                        credential,
                        "a process died in the middle of a refresh: the refresh token may be spent"
                    );
                }
                self.record.merge_notes(stored);
            }
            // A backup, say: its refresh token is spent.
            Ordering::Equal | Ordering::Less => {}
        }
    }

    /// Goes on with what another process stored.
    fn take_over(&mut self, stored: Record) {
        tracing::info!(
            credential = self.shared.name,
            generation = stored.generation,
            "another process stored newer tokens: going on with them"
        );
        self.record = stored;
        self.seed
            .take_if(|seed| self.record.has_adopted(&seed.fingerprint));
        self.shared.requested.store(false, Relaxed);
        self.refresh_at = Moment::default();
        self.clear_failures();
        self.install();
        self.assess();
    }

    /// Publishes the record's access token, if it is still good, and plans its refresh.
    fn install(&mut self) {
        let Some(access) = &self.record.access else {
            return;
        };
        let now = self.shared.clock.now();
        let (expiry, lifetime) = (access.expiry(&*self.shared.clock), access.lifetime);
        let Ok(header) = authorization("Bearer", access.token.expose()) else {
            return;
        };
        if expiry.at <= now {
            return;
        }
        if expiry.is_certain {
            let margin = schedule::margin(lifetime, self.margin, backoff::random());
            let left = expiry.at.saturating_since(now);
            self.refresh_at = now + left.saturating_sub(margin);
        }
        self.publish(header, expiry.at, lifetime);
    }

    pub(super) fn publish(&self, header: HeaderValue, expires_at: Moment, lifetime: Duration) {
        let cooldown = schedule::cooldown(self.cooldown, lifetime);
        let history = match self.shared.token.load().as_ref() {
            Some(replaced) => RefreshHistory::after(replaced, cooldown),
            None => RefreshHistory::first(cooldown),
        };
        let published_at = self.shared.clock.now();
        let token = Token::new(
            self.record.version(),
            header,
            published_at,
            expires_at,
            history,
        );
        self.shared.token.store(Some(Arc::new(token)));
    }
}
