//! The one task that calls the issuer. No other code does, so calls never run in parallel.
//!
//! Where the issuer rotates refresh tokens, each of them works once. A process that loses the
//! replacement, or sends the old token again, loses the credential until an operator logs in. So
//! each refresh takes these steps, in this order:
//!
//! 1. **Lock** the state file, so that other processes wait.
//! 2. **Re-read** the stored record: another process may have refreshed already.
//! 3. Store the **intent**: the fingerprint of the refresh token that is about to be sent. After a
//!    crash it shows that the token may have been used.
//! 4. **Call** the issuer, once.
//! 5. **Save** the new tokens durably.
//! 6. **Publish** the access token to the data path.
//!
//! What to call with, and when, is decided by [`plan`]; this file executes the plan.

mod chain;
mod fleet;
mod lock;
mod plan;
mod reload;
mod report;
mod situation;
mod stored;

use std::{
    io,
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    chain::{Attempt, Chain},
    fleet::Followed,
    lock::{LockState, LockTry, LockWait, sleep_until, wait_for_turn},
    plan::{Plan, Retry},
    stored::StoredRecord,
};
use super::{
    cache::authorization,
    config::{Config, InitialGrantConfig},
    credential::{Credential, Shared},
    deadline::CallDeadline,
    fleet as shared_store,
    fleet::{Fleet, OnStoreFailure},
    initial_grant::InitialGrant,
    issuer::{self, Issuer, TokenEndpoint},
    schedule,
    state::{Problem, Reason, State, Status, Telemetry},
    store::{self, AccessToken, FileStore, Grant, Lock, Record, RequestTime, Store, Writer},
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

/// Why a refresher cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state file is unusable.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The issuer's client cannot be built.
    #[error(transparent)]
    Issuer(#[from] issuer::Error),
    /// The shared store's settings are unusable.
    #[error(transparent)]
    Fleet(#[from] shared_store::Error),
}

/// Keeps the access token of one credential fresh.
pub struct Refresher {
    shared: Arc<Shared>,
    status: watch::Sender<Status>,
    issuer: Box<dyn Issuer>,
    initial_grant: Option<Box<dyn InitialGrant>>,
    store: Option<Arc<dyn Store>>,
    writer: Writer,
    /// Held from reading the stored record until the newest one is stored.
    lock: Option<Lock>,
    lock_wait: LockWait,
    policy: Policy,
    chain: Chain,
    timing: Timing,
    problem: Option<Problem>,
    /// The client secret has changed, and no call with the new one has succeeded or was refused.
    has_new_secret: bool,
    /// The file of the configured refresh token.
    seed_file: Option<PathBuf>,
    file_watcher: FileWatcher,
    reloadables: Vec<Arc<dyn Reload>>,
    stored: StoredRecord,
    /// The other replicas, if the record is shared with some.
    fleet: Option<Arc<Fleet>>,
    followed: Followed,
    /// Why the shared store cannot be used.
    store_problem: Option<Problem>,
    /// That the store cannot be locked is logged once.
    is_lock_problem_logged: bool,
    /// The last remaining lifetime of the refresh token that was warned of, in days.
    warned_days: Option<u64>,
}

/// What the configuration decides.
struct Policy {
    /// `token.timeout`.
    timeout: Duration,
    margin: Option<Duration>,
    cooldown: Duration,
    refresh_lifetime: Duration,
    grace_retry: bool,
    grace_period: Duration,
    /// Whether the issuer replaces the refresh token.
    rotates: bool,
    on_store_failure: OnStoreFailure,
}

/// When calls are due.
struct Timing {
    /// The scheduled refresh of the cached token; in the past if there is none.
    refresh_at: Moment,
    /// No call before that, unless an operator asks for it.
    backoff_until: Moment,
    /// No call before that, whatever asks for it: the issuer's `Retry-After`.
    throttled_until: Moment,
    backoff: Backoff,
}

impl Timing {
    /// Something has changed that the last failure may have been due to.
    fn retry_now(&mut self) {
        self.backoff_until = Moment::default();
        self.backoff.reset();
    }
}

impl Refresher {
    /// Reads the state file and builds the issuer's client. Connects to nothing before
    /// [`Refresher::run`].
    ///
    /// # Errors
    /// When the state file or the TLS settings are unusable. The message says what to do.
    pub fn new(
        config: Config,
        initial_grant: Option<&InitialGrantConfig>,
        clock: SharedClock,
    ) -> Result<(Self, Credential), Error> {
        let servers = config.issuer.servers()?;
        let mut reloadables: Vec<_> = servers.reloadable().into_iter().collect();
        let opened = shared_store::configured(&config, initial_grant, &clock)?;
        let opened = opened.zip(config.store.as_ref());
        let fleet = opened.map(|((fleet, reloadable), store)| {
            reloadables.extend(reloadable);
            (fleet, store.on_store_failure)
        });
        let initial_grant = initial_grant
            .and_then(|grant| grant.at_servers(&servers, &config.issuer, Arc::clone(&clock)))
            .map(|grant| Box::new(grant) as Box<dyn InitialGrant>);
        let issuer = TokenEndpoint::at_servers(servers, &config.issuer, Arc::clone(&clock));
        let file = config.state_file.clone();
        let file = file.map(|path| FileStore::new(path, &config));
        let opened = file.as_ref().map(FileStore::open).transpose()?;
        let (record, lock_problem) =
            opened.map_or((None, None), |opened| (opened.record, opened.lock_problem));
        let store = file.map(|file| Arc::new(file) as Arc<dyn Store>);
        let (mut refresher, credential) = Self::with(
            config,
            clock,
            Box::new(issuer),
            initial_grant,
            Storage { store, fleet },
            record.unwrap_or_default(),
        );
        if let Some(error) = lock_problem
            && refresher.fleet.is_none()
        {
            refresher.hold(Err(error));
        }
        refresher.reloadables = reloadables;
        Ok((refresher, credential))
    }

    /// What reloads the TLS settings towards the issuer and the shared store when their files change.
    pub fn reloadables(&self) -> &[Arc<dyn Reload>] {
        &self.reloadables
    }

    fn with(
        config: Config,
        clock: SharedClock,
        issuer: Box<dyn Issuer>,
        initial_grant: Option<Box<dyn InitialGrant>>,
        storage: Storage,
        record: Record,
    ) -> (Self, Credential) {
        let Storage { store, fleet } = storage;
        let on_store_failure = fleet
            .as_ref()
            .map_or(OnStoreFailure::Wait, |(_, on_failure)| *on_failure);
        let fleet = fleet.map(|(fleet, _)| fleet);
        let writer = Writer::new(store.clone(), Arc::clone(&clock));
        // A replica's own file is a copy: neither read again nor locked.
        let store = store.filter(|_| fleet.is_none());
        let file_watcher = FileWatcher::new(config.files(), Arc::clone(&clock));
        let telemetry = Telemetry::new(writer.persistence());
        let shared = Arc::new(Shared::new(
            config.name,
            clock,
            config.cooldown,
            fleet.clone(),
            telemetry,
        ));
        let (status, subscriber) = watch::channel(Status {
            state: State::Starting,
            reason: Reason::Refreshing,
            since: shared.clock.wall(),
            version: None,
            is_overdue: false,
        });
        let seed_file = config.refresh_token.as_ref().and_then(Secret::file);
        let mut refresher = Self {
            shared: Arc::clone(&shared),
            status,
            issuer,
            initial_grant,
            store,
            writer,
            lock: None,
            lock_wait: LockWait::default(),
            policy: Policy {
                timeout: config.issuer.timeout,
                margin: config.refresh_margin,
                cooldown: config.cooldown,
                refresh_lifetime: config.refresh_lifetime,
                grace_retry: config.grace_retry,
                grace_period: config.grace_period,
                rotates: config.rotates,
                on_store_failure,
            },
            chain: Chain::new(record),
            timing: Timing {
                refresh_at: Moment::default(),
                backoff_until: Moment::default(),
                throttled_until: Moment::default(),
                backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(300)),
            },
            problem: None,
            has_new_secret: false,
            seed_file: seed_file.map(ToOwned::to_owned),
            file_watcher,
            reloadables: Vec::new(),
            stored: StoredRecord::default(),
            fleet,
            followed: Followed::default(),
            store_problem: None,
            is_lock_problem_logged: false,
            warned_days: None,
        };
        refresher.restore(config.refresh_token);
        refresher.report();
        (refresher, Credential::new(shared, subscriber))
    }

    /// Refreshes until `stop` is cancelled. After that no call begins; one in progress runs to its
    /// end, or to `token.timeout`, and its result is stored, before this returns. Dropping the future earlier may lose a
    /// rotated refresh token.
    pub async fn run(self, stop: CancellationToken) {
        let Some(fleet) = self.fleet.clone() else {
            return self.run_until(stop).await;
        };
        tokio::select! {
            () = self.run_until(stop) => {}
            () = fleet.run() => {}
        }
    }

    async fn run_until(mut self, stop: CancellationToken) {
        let mut changes = self.fleet.as_ref().map(|fleet| fleet.subscribe());
        loop {
            if self.writer.is_idle() {
                self.lock = None;
            }
            if self.shared.files_changed.swap(false, Relaxed) {
                self.reload_files().await;
            }
            if self.shared.retry_requested.swap(false, Relaxed) {
                self.timing.retry_now();
            }
            let shared = Arc::clone(&self.shared);
            let due = match self.stored.has_to_be_written() {
                true => Some(Moment::default()),
                false => self.plan().due(),
            };
            if due.is_none_or(|due| due > shared.clock.now()) {
                self.lock_wait = LockWait::default();
            }
            let due = due.map(|due| self.put_off_while_draining(due));
            self.mark_overdue(due);
            self.report();
            // While the newest tokens are not stored, this process still holds the lock.
            let to_lock = self.store.clone().filter(|_| self.lock.is_none());
            let due = due.map(|due| due.max(self.lock_wait.next_try()));
            let fleet = self.fleet.clone();
            let fleet = fleet.map(|fleet| (fleet, self.on_store_failure()));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // A call is never cancelled: only the wait for it is.
                tried = wait_for_turn(&shared.clock, to_lock, fleet, due) => match tried {
                    LockTry::Over(lock) => {
                        self.lock_wait = LockWait::default();
                        self.refresh(lock, &stop).await;
                    }
                    LockTry::Busy => self.wait_for_lock().await,
                },
                // The last chance, although another process holds the lock.
                () = sleep_until(&shared.clock, self.due_without_lock()) => {
                    self.refresh(Ok(None), &stop).await;
                }
                // To report the expiry, and to plan again.
                () = sleep_until(&shared.clock, self.expiry()) => {}
                () = shared.wake.notified() => {}
                () = self.file_watcher.changed() => shared.files_changed.store(true, Relaxed),
                () = self.writer.progress() => {}
                () = changed(changes.as_mut()) => self.follow_fleet(),
            }
        }
        self.check_stored().await;
        if let Some(fleet) = &self.fleet
            && !fleet.drain().await
        {
            tracing::error!(
                "the newest tokens could not be stored in the shared store: if no other replica has \
                 newer ones, this replica's state file (token.state_file) brings them back"
            );
        }
        self.writer.finish().await;
        self.report();
    }

    /// One refresh; no call if another process has refreshed already.
    async fn refresh(&mut self, lock: io::Result<Option<Lock>>, stop: &CancellationToken) {
        self.hold(lock);
        if self.is_client_refused() {
            self.has_new_secret = self.issuer.reload_client_secret().await;
        }
        let mut is_alone = false;
        if let Some(fleet) = self.fleet.clone() {
            if fleet.look().await.is_err() {
                is_alone = fleet.is_unreachable()
                    && self.on_store_failure() == OnStoreFailure::RefreshAlone;
                if !is_alone {
                    return;
                }
            }
            self.follow_fleet();
            let now = self.shared.clock.now();
            if self.put_off_while_draining(now) > now {
                return;
            }
        }
        self.reload_record(LockState::Held).await;
        self.restore_stored().await;
        self.assess();
        let Plan::Call { mut grant, due } = self.plan() else {
            return;
        };
        if self.shared.clock.now() < due {
            return;
        }
        if is_alone && self.policy.rotates {
            // Another replica may have sent the refresh token.
            grant = Grant::Initial;
        }
        let mut attempt = self
            .chain
            .begin(grant, self.policy.grace_period, &*self.shared.clock);
        // Durable before the call: after a crash it must not look as if nothing had been sent.
        if is_alone {
            tracing::warn!(
                credential = self.shared.name,
                "the shared store cannot be reached: this replica refreshes without the others \
                 (token.store.on_store_failure)"
            );
        } else if let Some(fleet) = self.fleet.clone() {
            if !self.claim(&fleet, &mut attempt).await {
                return;
            }
        } else if attempt.grant.refresh_token().is_some() {
            self.writer.save(self.chain.record.clone()).await;
        }
        let sent_at = RequestTime::now(&*self.shared.clock);
        if stop.is_cancelled() {
            return self
                .failed(Failure::not_sent(), attempt, sent_at.moment)
                .await;
        }
        self.announce_call(sent_at.moment);
        let is_requested = self.shared.refresh_requested.swap(false, Relaxed);
        let Some(result) = self.call(&attempt, sent_at.moment, stop).await else {
            return;
        };
        self.shared.early_refresh.store(false, Relaxed);
        self.count_call(sent_at, &result);
        match result {
            Ok(response) => {
                self.shared.refresh_requested.store(false, Relaxed);
                self.succeeded(response, attempt, sent_at).await;
            }
            Err(failure) => {
                self.allow_manual_refresh(failure.class, is_requested, sent_at.moment);
                self.failed(failure, attempt, sent_at.moment).await;
            }
        }
    }

    /// Presents the grant to the issuer. `None` if there is no way to.
    async fn call(
        // Exclusive, because a shared reference is not `Send`.
        &mut self,
        attempt: &Attempt,
        sent_at: Moment,
        stop: &CancellationToken,
    ) -> Option<Result<TokenResponse, Failure>> {
        let grant = &attempt.grant;
        let fence = attempt.claimed.as_ref();
        let fence = fence.map(|claimed| claimed.fence.clone());
        let clock = &self.shared.clock;
        let overdue_at = sent_at + self.policy.timeout;
        let give_up = stop.child_token();
        let deadline = CallDeadline::new(
            SharedClock::clone(clock),
            plan::give_up_at(sent_at, self.policy.timeout, self.expiry()),
            give_up.clone(),
            overdue_at,
        )
        .behind(fence);
        let call = match (grant.refresh_token(), &self.initial_grant) {
            (Some(token), _) => self.issuer.refresh(token.secret(), &deadline),
            (None, Some(initial_grant)) => initial_grant.request_tokens(&deadline),
            (None, None) => return None,
        };
        let mut call = pin!(call);
        tokio::select! {
            biased;
            result = &mut call => return Some(result),
            () = clock.sleep_until(overdue_at) => {}
        }
        self.report_overdue_call();
        loop {
            tokio::select! {
                biased;
                result = &mut call => return Some(result),
                () = self.shared.wake.notified() => {
                    // An operator takes the risk of another call.
                    if self.shared.refresh_requested.load(Relaxed) {
                        give_up.cancel();
                    }
                }
            }
        }
    }

    /// Saves the new tokens, then publishes the access token.
    async fn succeeded(
        &mut self,
        response: TokenResponse,
        mut attempt: Attempt,
        sent_at: RequestTime,
    ) {
        let Ok(header) = authorization("Bearer", response.access_token.expose()) else {
            let detail = "the access token contains characters that are not allowed in a header";
            let failure = Failure::new(FailureClass::Garbled, detail);
            return self.failed(failure, attempt, sent_at.moment).await;
        };
        self.log_new_chain(&attempt.grant);
        self.notice_rotation(response.refresh_token.as_ref(), &attempt);
        let lifetime = response.lifetime;
        let access = AccessToken::new(
            response.access_token,
            lifetime,
            sent_at,
            &*self.shared.clock,
        );
        self.count_from_claim(&attempt);
        self.chain.advance(
            response.refresh_token,
            response.refresh_lifetime,
            access,
            &attempt.grant,
        );
        self.chain
            .record
            .expire_spent(self.policy.refresh_lifetime, sent_at.wall);
        // Durable before its first use: a crash must not bring back the used refresh token.
        self.store_result(&mut attempt).await;
        self.publish(header, sent_at.moment + lifetime);
        let margin = schedule::margin(lifetime, self.policy.margin, backoff::random());
        self.timing.refresh_at = schedule::refresh_at(sent_at.moment, lifetime, margin);
        self.clear_failures();
        tracing::debug!(
            credential = self.shared.name,
            generation = self.chain.record.generation,
            ?lifetime,
            "token refreshed"
        );
    }

    /// Closes the intent if the outcome is known, and schedules the next call.
    async fn failed(&mut self, mut failure: Failure, mut attempt: Attempt, sent_at: Moment) {
        tracing::debug!(
            credential = self.shared.name,
            detail = failure.detail,
            "refresh failed"
        );
        let rotated = failure.rotated.take();
        let is_rotated = rotated.is_some();
        let is_changed = match rotated {
            Some(token) => {
                let since = self.shared.clock.wall();
                self.count_from_claim(&attempt);
                self.chain.rotate(token, since, &attempt.grant);
                true
            }
            None => self.chain.close_intent(failure.class, &attempt),
        };
        if is_rotated {
            self.store_result(&mut attempt).await;
        } else if is_changed && self.fleet.is_none() {
            self.writer.save(self.chain.record.clone()).await;
        }
        let class = failure.class;
        self.schedule_retry(failure, &attempt, sent_at, is_rotated)
            .await;
        if !is_rotated {
            self.store_failure(class, &mut attempt).await;
        }
    }

    /// Schedules the call after a failed one.
    async fn schedule_retry(
        &mut self,
        failure: Failure,
        attempt: &Attempt,
        sent_at: Moment,
        is_rotated: bool,
    ) {
        let now = self.shared.clock.now();
        // The cached token is due until a call succeeds. A failed seed says nothing about it.
        if !attempt.grant.is_seed() {
            self.timing.refresh_at = Moment::default();
        }
        if failure.class == FailureClass::RefreshTokenRefused && self.has_alternative(attempt).await
        {
            self.timing.backoff_until = now;
            return;
        }
        if let FailureClass::Throttled(wait) = failure.class {
            self.timing.throttled_until = now + wait;
        }
        if failure.class == FailureClass::ClientRefused {
            self.issuer.client_refused();
        }
        let retry = match is_rotated {
            // The next call presents another refresh token; its response may be as odd.
            true => Retry::WithBackoff,
            false => self.failed_call(&failure, attempt, sent_at, now).retry(),
        };
        self.timing.backoff_until = match retry {
            Retry::At(moment) => moment,
            Retry::WithNewSecretOrAt(moment) => {
                let was_tried = std::mem::take(&mut self.has_new_secret);
                self.has_new_secret = !was_tried && self.issuer.reload_client_secret().await;
                if self.has_new_secret {
                    // One call with the new secret, before the credential becomes `dead`.
                    self.timing.backoff_until = now;
                    return;
                }
                moment
            }
            Retry::WithBackoff => {
                let left = self
                    .expiry()
                    .map_or(Duration::ZERO, |expiry| expiry.saturating_since(now));
                now + schedule::wait_after_failure(&mut self.timing.backoff, left, failure.class)
            }
        };
        // A refused client stays the problem, whatever fails in between.
        if !self.is_client_refused() || failure.class == FailureClass::RefreshTokenRefused {
            self.problem = Some(failure.into());
        }
        self.assess();
    }

    /// Notes that the issuer refused the refresh token for good. True if another grant can be
    /// presented at once.
    async fn has_alternative(&mut self, attempt: &Attempt) -> bool {
        let Some(token) = attempt.grant.refresh_token() else {
            return false;
        };
        self.chain.refuse(token);
        match self.plan().grant() {
            Some(Grant::Chain(_)) if attempt.grant.is_seed() => {
                tracing::error!(
                    credential = self.shared.name,
                    "the issuer refused the newly configured refresh token: the stored one stays \
                     in use, and the new one is not tried again"
                );
                let seed = self.chain.discard_seed();
                self.store_adopted(seed).await;
                true
            }
            Some(Grant::Initial) => {
                tracing::warn!(
                    credential = self.shared.name,
                    "the issuer refused the refresh token: new tokens are requested with \
                     [token.jwt]"
                );
                true
            }
            Some(Grant::Chain(_) | Grant::Seed(_)) => true,
            None => self.try_spare(),
        }
    }

    fn clear_failures(&mut self) {
        self.timing.backoff.reset();
        self.problem = None;
        self.has_new_secret = false;
    }
}

/// Where the record is kept.
struct Storage {
    /// The state file.
    store: Option<Arc<dyn Store>>,
    /// The shared store. The state file then is this replica's own copy.
    fleet: Option<(Arc<Fleet>, OnStoreFailure)>,
}

/// Pends for `None`.
async fn changed(changes: Option<&mut watch::Receiver<u64>>) {
    if let Some(changes) = changes
        && changes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests;
