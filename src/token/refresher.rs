//! The one task that calls the issuer. Single flight by construction: nobody else can.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::{
    Config,
    answer::{Class, Failure, Grant},
    cache::{Lineage, Token, authorization},
    credential::{Credential, Shared},
    issuer::{self, HttpIssuer, Issuer},
    schedule,
    state::{Ledger, Outcome, Problem, Reason, Refresh, State, Status},
    store::{self, Access, FileStore, Record, Store, Writer, fingerprint},
};
use crate::base::{
    backoff::{self, Backoff},
    clock::{Moment, SharedClock},
    secret::Secret,
};

/// Calls of a refused client are at least this far apart.
const REFUSED_CLIENT_WAIT: Duration = Duration::from_secs(60);

/// Why a credential cannot be kept fresh at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its state file.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Its issuer.
    #[error(transparent)]
    Issuer(#[from] issuer::Error),
}

/// Keeps one credential fresh.
pub struct Refresher {
    shared: Arc<Shared>,
    status: watch::Sender<Status>,
    issuer: Box<dyn Issuer>,
    writer: Writer,
    margin: Option<Duration>,
    cooldown: Duration,
    /// What is known of the chain; what is stored lags behind while writing fails.
    record: Record,
    /// The fingerprint of a configured refresh token that begins a new chain, until its first success.
    seed: Option<String>,
    /// When the cached token is due; the past if there is none.
    refresh_at: Moment,
    /// No call before that, whoever wants it.
    not_before: Moment,
    backoff: Backoff,
    problem: Option<Problem>,
    /// A changed client secret was read after a refusal and waits for its one try.
    has_new_secret: bool,
}

impl Refresher {
    /// Reads the state file and builds the issuer's client. Speaks to nobody until [`Refresher::run`].
    ///
    /// # Errors
    /// When the state file or the TLS settings cannot be used. The message says what to do.
    pub fn new(config: Config, clock: SharedClock) -> Result<(Self, Credential), Error> {
        let issuer = HttpIssuer::new(&config.issuer, Arc::clone(&clock))?;
        let file = config.state_file.clone().map(FileStore::new);
        let record = file.as_ref().map(FileStore::load).transpose()?.flatten().unwrap_or_default();
        let store = file.map(|file| Box::new(file) as Box<dyn Store>);
        Ok(Self::with(config, clock, Box::new(issuer), store, record))
    }

    fn with(
        config: Config,
        clock: SharedClock,
        issuer: Box<dyn Issuer>,
        store: Option<Box<dyn Store>>,
        record: Record,
    ) -> (Self, Credential) {
        let writer = Writer::new(store, Arc::clone(&clock));
        let shared = Shared::new(config.name, clock, config.cooldown, Ledger::new(writer.persistence()));
        let status =
            Status { state: State::Starting, reason: Reason::Refreshing, since: shared.clock.wall(), version: None };
        let (status, watched) = watch::channel(status);
        let shared = Arc::new(shared);
        let mut refresher = Self {
            shared: Arc::clone(&shared),
            status,
            issuer,
            writer,
            margin: config.refresh_margin,
            cooldown: config.cooldown,
            record,
            seed: None,
            refresh_at: Moment::default(),
            not_before: Moment::default(),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(300)),
            problem: None,
            has_new_secret: false,
        };
        refresher.restore();
        refresher.plant(config.refresh_token);
        refresher.report();
        (refresher, Credential::new(shared, watched))
    }

    /// Refreshes until `shutdown`. After that no call begins; one that was sent runs to its end, and its result is
    /// stored, before this returns. Do not drop the future earlier: a rotated refresh token may be lost with it.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            self.report();
            let shared = Arc::clone(&self.shared);
            let due = self.due();
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                () = sleep_until(&shared.clock, due) => self.refresh().await,
                // To report the expiry, or to look at what is due again.
                () = sleep_until(&shared.clock, self.expiry()) => {}
                () = shared.wake.notified() => {}
                () = self.writer.progress() => {}
            }
        }
        self.writer.finish().await;
        self.report();
    }

    /// Brings back the stored access token, if it is still good.
    fn restore(&mut self) {
        let Some(access) = &self.record.access else { return };
        let now = self.shared.clock.now();
        let expiry = access.expiry(&*self.shared.clock);
        let lineage = Lineage::first(schedule::cooldown(self.cooldown, access.lifetime));
        let Ok(header) = authorization("Bearer", access.token.expose()) else { return };
        let token = Token::new(self.record.version(), header, now, expiry.at, lineage);
        if !token.usable(now) {
            return;
        }
        if expiry.is_certain {
            let margin = schedule::margin(access.lifetime, self.margin, backoff::random());
            let left = expiry.at.saturating_since(now);
            self.refresh_at = now + left.saturating_sub(margin);
        }
        self.shared.token.store(Some(Arc::new(token)));
    }

    /// A configured refresh token that began no chain yet takes the place of the stored one, at once. Any other is
    /// older than what is stored.
    fn plant(&mut self, configured: Option<Secret>) {
        if let Some(configured) = configured {
            let fingerprint = fingerprint(&configured);
            if !self.record.has_adopted(&fingerprint) {
                self.record.refresh_token = Some(configured);
                self.record.refresh_token_expires_at = None;
                self.seed = Some(fingerprint);
                self.refresh_at = Moment::default();
            }
        }
        if self.record.refresh_token.is_none() {
            let detail = "there is no refresh token: set token.refresh_token_file, or log in".to_owned();
            self.problem = Some(Problem { reason: Reason::NoCredential, detail });
        }
    }

    /// When to call next; `None`: only a person can help.
    fn due(&self) -> Option<Moment> {
        let reason = self.problem.as_ref().map(|problem| problem.reason);
        if matches!(reason, Some(Reason::NoCredential | Reason::RefreshTokenRefused)) {
            return None;
        }
        let is_wanted = self.shared.requested.load(Relaxed)
            || self.shared.token.load().as_ref().is_some_and(|token| token.is_refresh_wanted());
        // A wish brings the schedule forward, never the end of a backoff.
        let wanted_at = if is_wanted { Moment::default() } else { self.refresh_at };
        Some(wanted_at.max(self.not_before))
    }

    /// When the cached token expires, unless it has.
    fn expiry(&self) -> Option<Moment> {
        let now = self.shared.clock.now();
        self.shared.token.load().as_ref().filter(|token| token.usable(now)).map(|token| token.expires_at())
    }

    /// One call and what follows from it.
    async fn refresh(&mut self) {
        if self.is_client_refused() {
            self.has_new_secret |= self.issuer.reload_client_secret().await;
        }
        let Some(refresh_token) = self.record.refresh_token.clone() else { return };
        // The lifetime counts from before the request: the issuer's clock started somewhere after it.
        let sent_at = self.shared.clock.now();
        let sent_at_wall = self.shared.clock.wall();
        {
            let mut ledger = self.shared.ledger();
            ledger.next_attempt = Some(sent_at);
            ledger.next_request = sent_at + self.cooldown;
        }
        let result = self.issuer.refresh(&refresh_token).await;
        self.shared.requested.store(false, Relaxed);
        let outcome = result.as_ref().map_or_else(|failure| failure.class.into(), |_| Outcome::Success);
        let duration = self.shared.clock.now().saturating_since(sent_at);
        self.shared.ledger().record(Refresh { at: sent_at_wall, outcome, duration });
        match result {
            Ok(grant) => self.succeeded(grant, sent_at, sent_at_wall).await,
            Err(failure) => self.failed(failure, sent_at).await,
        }
    }

    /// Stores the new tokens, then publishes them.
    async fn succeeded(&mut self, grant: Grant, sent_at: Moment, sent_at_wall: SystemTime) {
        let lifetime = grant.lifetime;
        let Ok(header) = authorization("Bearer", grant.access_token.expose()) else {
            let failure = Failure::new(Class::Garbled, "the access token cannot stand in a header");
            return self.failed(failure, sent_at).await;
        };
        let access = Access {
            token: grant.access_token,
            lifetime,
            obtained_at: sent_at_wall,
            boot: self.shared.clock.boot_id().map(|id| (id.to_owned(), sent_at + lifetime)),
        };
        self.record.advance(grant.refresh_token, grant.refresh_lifetime, access, self.seed.take());
        // Durable before its first use: a crash right after must not bring back the spent refresh token.
        self.writer.save(self.record.clone()).await;

        let cooldown = schedule::cooldown(self.cooldown, lifetime);
        let lineage = match self.shared.token.load().as_ref() {
            Some(replaced) => Lineage::after(replaced, cooldown),
            None => Lineage::first(cooldown),
        };
        let minted_at = self.shared.clock.now();
        let token = Token::new(self.record.version(), header, minted_at, sent_at + lifetime, lineage);
        self.shared.token.store(Some(Arc::new(token)));
        let margin = schedule::margin(lifetime, self.margin, backoff::random());
        self.refresh_at = schedule::refresh_at(sent_at, lifetime, margin);
        self.backoff.reset();
        self.problem = None;
        self.has_new_secret = false;
        tracing::debug!(
            credential = self.shared.name,
            generation = self.record.generation,
            ?lifetime,
            "token refreshed"
        );
    }

    async fn failed(&mut self, failure: Failure, sent_at: Moment) {
        tracing::debug!(credential = self.shared.name, detail = failure.detail, "refresh failed");
        let now = self.shared.clock.now();
        // Whatever follows, the token is due until a call succeeds.
        self.refresh_at = Moment::default();
        self.not_before = match failure.class {
            // `due` plans no further call.
            Class::RefreshTokenRefused => now,
            // Other troubles in between do not make a refused client a better one.
            _ if self.is_client_refused() => (sent_at + REFUSED_CLIENT_WAIT).max(now + failure.retry_after()),
            Class::ClientRefused => {
                let was_tried = std::mem::take(&mut self.has_new_secret);
                self.has_new_secret = !was_tried && self.issuer.reload_client_secret().await;
                if self.has_new_secret {
                    // One try with the new secret, before anybody is told that the client is refused.
                    self.not_before = now;
                    return;
                }
                sent_at + REFUSED_CLIENT_WAIT
            }
            Class::Throttled(wait) => now + wait,
            Class::Garbled | Class::Ambiguous | Class::Unreachable | Class::Failing => {
                let left = self.expiry().map_or(Duration::ZERO, |expiry| expiry.saturating_since(now));
                now + schedule::wait_after_failure(&mut self.backoff, left)
            }
        };
        if !self.is_client_refused() || failure.class == Class::RefreshTokenRefused {
            self.problem = Some(failure.into());
        }
    }

    fn is_client_refused(&self) -> bool {
        self.problem.as_ref().is_some_and(|problem| problem.reason == Reason::ClientRefused)
    }

    /// Tells everybody what has changed; one log line a transition.
    fn report(&self) {
        let reason = match &self.problem {
            Some(problem) => problem.reason,
            None if self.expiry().is_none() => Reason::Refreshing,
            None => Reason::Ok,
        };
        let token = self.shared.token.load();
        let state = reason.state(self.expiry().is_some(), token.is_some());
        {
            let mut ledger = self.shared.ledger();
            ledger.problem = self.problem.as_ref().map(|problem| problem.detail.clone());
            ledger.refresh_token_expires_at = self.record.refresh_token_expires_at;
            ledger.persistence = self.writer.persistence();
            ledger.next_attempt = self.due();
            ledger.next_request = ledger.next_request.max(self.not_before);
        }
        let version = token.as_ref().map(|token| token.version());
        let old = *self.status.borrow();
        let since = if state == old.state { old.since } else { self.shared.clock.wall() };
        let new = Status { state, reason, since, version };
        if new != old {
            self.status.send_replace(new);
        }
        if (new.state, new.reason) != (old.state, old.reason) {
            self.log(old.state, new);
        }
    }

    fn log(&self, from: State, to: Status) {
        let (credential, from, state, reason) =
            (&self.shared.name, from.as_str(), to.state.as_str(), to.reason.as_str());
        let detail = self.problem.as_ref().map_or("", |problem| &problem.detail);
        match to.state {
            State::Starting if to.reason == Reason::Refreshing => {
                tracing::info!(credential, from, state, reason, "token state");
            }
            State::Fresh => tracing::info!(credential, from, state, reason, "token state"),
            State::Starting | State::Stale | State::Expired => {
                tracing::warn!(credential, from, state, reason, detail, "token state");
            }
            State::Dead => tracing::error!(credential, from, state, reason, detail, "token state"),
        }
    }
}

/// Never resolves for `None`.
async fn sleep_until(clock: &SharedClock, moment: Option<Moment>) {
    match moment {
        Some(moment) => clock.sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
