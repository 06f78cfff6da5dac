//! The one task that calls the issuer. Single flight by construction: nobody else can.

mod plan;
mod reload;
mod report;

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use self::{
    plan::{Attempt, Source},
    reload::LockState,
};
use super::{
    Config, InitialGrant,
    cache::authorization,
    credential::{Credential, Shared},
    issuer::{self, Issuer, TokenEndpoint},
    schedule,
    state::{Outcome, Problem, Reason, Refresh, State, Status, Telemetry},
    store::{self, AccessToken, FileStore, Grant, Lock, Record, RefreshToken, Store, Writer},
    token_response::{Failure, FailureClass, TokenResponse},
};
use crate::{
    base::{
        backoff::{self, Backoff},
        clock::{Moment, SharedClock},
        secret::Secret,
        watch::FileWatcher,
    },
    net::reload::Reload,
};

/// Calls of a refused client are at least this far apart.
const REFUSED_CLIENT_WAIT: Duration = Duration::from_secs(60);
/// Calls that failed and are repeated at once are at least this far apart.
const LEAST_SPACING: Duration = Duration::from_secs(1);
/// How often a lock is asked for that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(50);

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
    initial_grant: Option<Box<dyn InitialGrant>>,
    store: Option<Arc<dyn Store>>,
    writer: Writer,
    margin: Option<Duration>,
    cooldown: Duration,
    refresh_lifetime: Duration,
    grace_retry: bool,
    /// What is known of the chain; what is stored lags behind while writing fails.
    record: Record,
    /// A configured refresh token that was never tried: it goes first, and the chain goes on if it is refused.
    seed: Option<RefreshToken>,
    /// Where configured refresh tokens come from.
    seed_file: Option<PathBuf>,
    watch: FileWatcher,
    /// The TLS settings of the issuer's client.
    reloadable: Option<Arc<dyn Reload>>,
    /// The newest seed was refused, and the chain goes on.
    seed_refused: bool,
    /// Fingerprints of refresh tokens that the issuer refused, so that none is sent again.
    refused: VecDeque<String>,
    /// Held from the reading of the stored record until the newest one is stored.
    lock: Option<Lock>,
    /// When the cached token is due; the past if there is none.
    refresh_at: Moment,
    /// No call before that, whoever wants it.
    not_before: Moment,
    backoff: Backoff,
    problem: Option<Problem>,
    /// A changed client secret was read after a refusal and waits for its one try.
    has_new_secret: bool,
    /// So that trouble with the stored record, or with its lock, is logged once.
    is_store_alarmed: bool,
    /// The last threshold of the refresh token's age that was warned of.
    warned_days: Option<u64>,
}

impl Refresher {
    /// Reads the state file and builds the issuer's client. Speaks to nobody until [`Refresher::run`].
    ///
    /// # Errors
    /// When the state file or the TLS settings cannot be used. The message says what to do.
    pub fn new(
        config: Config,
        initial_grant: Option<Box<dyn InitialGrant>>,
        clock: SharedClock,
    ) -> Result<(Self, Credential), Error> {
        let issuer = TokenEndpoint::new(&config.issuer, Arc::clone(&clock))?;
        let file = config.state_file.clone().map(FileStore::new);
        let record = file
            .as_ref()
            .map(FileStore::open)
            .transpose()?
            .flatten()
            .unwrap_or_default();
        let store = file.map(|file| Arc::new(file) as Arc<dyn Store>);
        let reloadable = issuer.reloadable();
        let (refresher, credential) = Self::with(
            config,
            clock,
            Box::new(issuer),
            initial_grant,
            store,
            record,
        );
        Ok((
            Self {
                reloadable: Some(reloadable),
                ..refresher
            },
            credential,
        ))
    }

    /// What follows the files of the issuer's `tls`. Whoever takes it reads them again when they change.
    pub fn reloadable(&self) -> Option<Arc<dyn Reload>> {
        self.reloadable.clone()
    }

    fn with(
        config: Config,
        clock: SharedClock,
        issuer: Box<dyn Issuer>,
        initial_grant: Option<Box<dyn InitialGrant>>,
        store: Option<Arc<dyn Store>>,
        record: Record,
    ) -> (Self, Credential) {
        let writer = Writer::new(store.clone(), Arc::clone(&clock));
        let watch = FileWatcher::new(config.files(), Arc::clone(&clock));
        let shared = Shared::new(
            config.name,
            clock,
            config.cooldown,
            Telemetry::new(writer.persistence()),
        );
        let status = Status {
            state: State::Starting,
            reason: Reason::Refreshing,
            since: shared.clock.wall(),
            version: None,
        };
        let (status, watched) = watch::channel(status);
        let shared = Arc::new(shared);
        let mut refresher = Self {
            shared: Arc::clone(&shared),
            status,
            issuer,
            initial_grant,
            store,
            writer,
            margin: config.refresh_margin,
            cooldown: config.cooldown,
            refresh_lifetime: config.refresh_lifetime,
            grace_retry: config.grace_retry,
            record,
            seed: None,
            seed_file: config
                .refresh_token
                .as_ref()
                .and_then(Secret::file)
                .map(ToOwned::to_owned),
            watch,
            reloadable: None,
            seed_refused: false,
            refused: VecDeque::new(),
            lock: None,
            refresh_at: Moment::default(),
            not_before: Moment::default(),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(300)),
            problem: None,
            has_new_secret: false,
            is_store_alarmed: false,
            warned_days: None,
        };
        refresher.restore(config.refresh_token);
        refresher.report();
        (refresher, Credential::new(shared, watched))
    }

    /// Refreshes until `shutdown`. After that no call begins; one that was sent runs to its end, and its result is
    /// stored, before this returns. Do not drop the future earlier: a rotated refresh token may be lost with it.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            if self.writer.is_idle() {
                self.lock = None;
            }
            if self.shared.changed.swap(false, Relaxed) {
                self.reload().await;
            }
            self.report();
            let shared = Arc::clone(&self.shared);
            // While the newest tokens are not stored, the lock is still ours.
            let store = if self.lock.is_none() {
                self.store.clone()
            } else {
                None
            };
            let due = self.due();
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                lock = acquire(&shared.clock, store, due) => self.refresh(lock).await,
                // To report the expiry, or to look at what is due again.
                () = sleep_until(&shared.clock, self.expiry()) => {}
                () = shared.wake.notified() => {}
                () = self.watch.changed() => shared.changed.store(true, Relaxed),
                () = self.writer.progress() => {}
            }
        }
        self.writer.finish().await;
        self.report();
    }

    /// One call and what follows from it, or none, if another process has made it.
    async fn refresh(&mut self, lock: io::Result<Option<Lock>>) {
        self.take_lock(lock);
        if self.is_client_refused() {
            self.has_new_secret |= self.issuer.reload_client_secret().await;
        }
        self.reload_record(LockState::Held).await;
        self.assess();
        if self.due().is_none_or(|due| self.shared.clock.now() < due) {
            return;
        }
        let Some(attempt) = self.attempt() else {
            return;
        };
        // Durable before the call: a crash in the middle must not look as if nothing had been sent.
        if let Some(spent) = &attempt.spends {
            self.record
                .open_intent(&spent.fingerprint, &*self.shared.clock);
            self.writer.save(self.record.clone()).await;
        }
        // The lifetime counts from before the request: the issuer's clock started somewhere after it.
        let sent_at = self.shared.clock.now();
        let sent_at_wall = self.shared.clock.wall();
        {
            let mut telemetry = self.shared.telemetry();
            telemetry.next_attempt = Some(sent_at);
            telemetry.next_request = sent_at + self.cooldown;
        }
        let result = match (&attempt.spends, &self.initial_grant) {
            (Some(spent), _) => self.issuer.refresh(&spent.token).await,
            (None, Some(initial_grant)) => initial_grant.request_tokens().await,
            (None, None) => return,
        };
        self.shared.requested.store(false, Relaxed);
        let outcome = result
            .as_ref()
            .map_or_else(|failure| failure.class.into(), |_| Outcome::Success);
        let duration = self.shared.clock.now().saturating_since(sent_at);
        self.shared.telemetry().record(Refresh {
            at: sent_at_wall,
            outcome,
            duration,
        });
        match result {
            Ok(grant) => self.succeeded(grant, attempt, sent_at, sent_at_wall).await,
            Err(failure) => self.failed(failure, attempt, sent_at).await,
        }
    }

    /// Stores the new tokens, then publishes them.
    async fn succeeded(
        &mut self,
        grant: TokenResponse,
        attempt: Attempt,
        sent_at: Moment,
        sent_at_wall: SystemTime,
    ) {
        let lifetime = grant.lifetime;
        let Ok(header) = authorization("Bearer", grant.access_token.expose()) else {
            let failure = Failure::new(
                FailureClass::Garbled,
                "the access token cannot stand in a header",
            );
            return self.failed(failure, attempt, sent_at).await;
        };
        let access = AccessToken {
            token: grant.access_token,
            lifetime,
            obtained_at: sent_at_wall,
            boot: self
                .shared
                .clock
                .boot_id()
                .map(|id| (id.to_owned(), sent_at + lifetime)),
        };
        let origin = match attempt.spends {
            Some(seed) if attempt.is_seed => Grant::Seed(seed),
            Some(_) => Grant::Chain,
            None => Grant::Initial,
        };
        if let Some(from) = origin.begins_with() {
            tracing::info!(
                credential = self.shared.name,
                from,
                "a new chain of tokens begins"
            );
            self.seed = None;
            self.seed_refused = false;
        }
        self.record
            .advance(grant.refresh_token, grant.refresh_lifetime, access, origin);
        // Durable before its first use: a crash right after must not bring back the spent refresh token.
        self.writer.save(self.record.clone()).await;
        self.publish(header, sent_at + lifetime, lifetime);
        let margin = schedule::margin(lifetime, self.margin, backoff::random());
        self.refresh_at = schedule::refresh_at(sent_at, lifetime, margin);
        self.clear_failures();
        tracing::debug!(
            credential = self.shared.name,
            generation = self.record.generation,
            ?lifetime,
            "token refreshed"
        );
    }

    fn clear_failures(&mut self) {
        self.backoff.reset();
        self.problem = None;
        self.has_new_secret = false;
    }

    async fn failed(&mut self, failure: Failure, attempt: Attempt, sent_at: Moment) {
        tracing::debug!(
            credential = self.shared.name,
            detail = failure.detail,
            "refresh failed"
        );
        self.close_intent(&failure, &attempt).await;
        let now = self.shared.clock.now();
        // Whatever follows, the token is due until a call succeeds.
        if !attempt.is_seed {
            self.refresh_at = Moment::default();
        }
        if failure.class == FailureClass::RefreshTokenRefused && self.refused(&attempt).await {
            self.not_before = now;
            return;
        }
        self.not_before = match failure.class {
            // Whoever issues first tokens may think better of it. Otherwise `due` plans no further call.
            FailureClass::RefreshTokenRefused => sent_at + REFUSED_CLIENT_WAIT,
            // Other troubles in between do not make a refused client a better one.
            _ if self.is_client_refused() => {
                (sent_at + REFUSED_CLIENT_WAIT).max(now + failure.retry_after())
            }
            FailureClass::ClientRefused => {
                let was_tried = std::mem::take(&mut self.has_new_secret);
                self.has_new_secret = !was_tried && self.issuer.reload_client_secret().await;
                if self.has_new_secret {
                    // One try with the new secret, before anybody is told that the client is refused.
                    self.not_before = now;
                    return;
                }
                sent_at + REFUSED_CLIENT_WAIT
            }
            FailureClass::Throttled(wait) => now + wait,
            FailureClass::Garbled | FailureClass::Ambiguous
                if self.is_worth_repeating(&attempt) =>
            {
                (sent_at + LEAST_SPACING).max(now)
            }
            FailureClass::Garbled
            | FailureClass::Ambiguous
            | FailureClass::Unreachable
            | FailureClass::Failing => {
                let left = self
                    .expiry()
                    .map_or(Duration::ZERO, |expiry| expiry.saturating_since(now));
                now + schedule::wait_after_failure(&mut self.backoff, left)
            }
        };
        if !self.is_client_refused() || failure.class == FailureClass::RefreshTokenRefused {
            self.problem = Some(failure.into());
        }
        self.assess();
    }

    /// The intent stays open exactly as long as nobody knows whether the refresh token was spent.
    async fn close_intent(&mut self, failure: &Failure, attempt: &Attempt) {
        let Some(spent) = &attempt.spends else { return };
        match failure.class {
            FailureClass::Ambiguous | FailureClass::Garbled => return,
            FailureClass::RefreshTokenRefused => {
                self.record.intents.clone_from(&attempt.intents_before);
                self.record.close_intent_of(&spent.fingerprint);
            }
            // This attempt spent nothing; an earlier one may have.
            FailureClass::ClientRefused
            | FailureClass::Throttled(_)
            | FailureClass::Unreachable
            | FailureClass::Failing => {
                self.record.intents.clone_from(&attempt.intents_before);
            }
        }
        self.writer.save(self.record.clone()).await;
    }

    /// A refresh token is refused for good; true if there is another way to go on.
    async fn refused(&mut self, attempt: &Attempt) -> bool {
        let Some(spent) = &attempt.spends else {
            return false;
        };
        // Bounded: each of these took a person, or a new chain.
        self.refused.truncate(15);
        self.refused.push_front(spent.fingerprint.clone());
        let source = self.source();
        if attempt.is_seed && matches!(source, Some(Source::Chain(_))) {
            tracing::error!(
                credential = self.shared.name,
                "the issuer refused the newly configured refresh token: the stored one stays in use, and the new one \
                 is not tried again"
            );
            self.seed = None;
            self.seed_refused = true;
            self.record.adopt(spent.fingerprint.clone());
            self.writer.save(self.record.clone()).await;
            return true;
        }
        if matches!(source, Some(Source::InitialGrant)) {
            tracing::warn!(
                credential = self.shared.name,
                "the issuer refused the refresh token: first tokens are fetched"
            );
            return true;
        }
        source.is_some()
    }

    fn take_lock(&mut self, lock: io::Result<Option<Lock>>) {
        match lock {
            Ok(Some(lock)) => self.lock = Some(lock),
            // There is no store, or the lock is ours already.
            Ok(None) => {}
            // Better alone than without a token.
            Err(error) => {
                if !std::mem::replace(&mut self.is_store_alarmed, true) {
                    tracing::warn!(
                        %error,
                        "the state file cannot be locked: another process with the same file would not be noticed"
                    );
                }
            }
        }
    }

    /// When the cached token expires, unless it has.
    fn expiry(&self) -> Option<Moment> {
        let now = self.shared.clock.now();
        self.shared
            .token
            .load()
            .as_ref()
            .filter(|token| token.usable(now))
            .map(|token| token.expires_at())
    }

    fn is_client_refused(&self) -> bool {
        self.problem
            .as_ref()
            .is_some_and(|problem| problem.reason == Reason::ClientRefused)
    }
}

/// At that moment, and when no other process is at work; an error means that locking does not work.
async fn acquire(
    clock: &SharedClock,
    store: Option<Arc<dyn Store>>,
    due: Option<Moment>,
) -> io::Result<Option<Lock>> {
    sleep_until(clock, due).await;
    let Some(store) = store else { return Ok(None) };
    loop {
        if let Some(lock) = store.try_lock().await? {
            return Ok(Some(lock));
        }
        clock.sleep_until(clock.now() + LOCK_POLL).await;
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
