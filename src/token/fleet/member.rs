//! This replica as a member of the fleet: it reads the shared record, renews the claim of a call, and
//! stores what the issuer said, until the store has confirmed it. All of that is one future, which
//! runs beside the refresher's own work.

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use zeroize::Zeroizing;

use super::{
    change::{CallResult, Change, Effect, Held, NewClaim, Note},
    claim::ClaimId,
    fence::Fence,
    register::{Reading, Register, RegisterError, Replaced, Revision, Value},
    seal::Seal,
    shared::Shared,
    snapshot::{
        ClaimOutcome, ClaimSnapshot, Counters, FleetSnapshot, RestoreReason, StoreError, counts,
    },
    store_time::StoreTime,
    watch::{Finding, Seen, Watch},
};
use crate::{
    base::{
        blocking,
        clock::{Moment, SharedClock},
    },
    token::{
        cache::Version,
        state::{Problem, Reason},
        store::{Grant, Owner, Record, Unreadable},
    },
};

/// The time between two readings at rest.
const REST: Duration = Duration::from_secs(1);
/// The same while a call is due or under way.
const ALERT: Duration = Duration::from_millis(250);
/// The time between two renewals of a claim.
const BEAT: Duration = Duration::from_millis(500);
/// How long a call's result is awaited in the store before the token is used.
const SAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long shutdown waits for what is not stored yet.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a login tries to store its tokens.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two attempts of a login.
const LOGIN_PAUSE: Duration = Duration::from_millis(200);
/// Replicas that write at the same time move the register. One of them succeeds each time.
const MAX_TRIES: usize = 64;
/// A store that does not respond for this long is reported.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who shares the record.
#[derive(Debug, Clone)]
pub(in crate::token) struct Identity {
    /// The client and the issuer that the record belongs to.
    pub(in crate::token) owner: Owner,
    /// The replica's name, for operators.
    pub(in crate::token) replica: String,
    /// The name of the record in the store.
    pub(in crate::token) key: String,
}

/// This replica's connection with the others.
pub(in crate::token) struct Fleet {
    register: Box<dyn Register>,
    seal: Mutex<Arc<Seal>>,
    identity: Identity,
    /// A random number of this process.
    process: u64,
    clock: SharedClock,
    /// One operation of the register at a time.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Something is to be written, or to be read sooner.
    woken: Notify,
    is_overdue: AtomicBool,
    changes: watch::Sender<u64>,
}

struct State {
    watch: Watch,
    current: Option<Seen>,
    pending: VecDeque<Pending>,
    /// Changes that were ever pending, counted.
    changes: u64,
    /// The claims of this process, counted.
    claims: u64,
    /// The claim that is being renewed.
    active: Option<Active>,
    /// The store went on without a result of ours.
    is_superseded: bool,
    failure: Option<Failing>,
    counters: Counters,
}

struct Active {
    held: Held,
    fence: Fence,
    next_beat: Moment,
}

struct Failing {
    error: RegisterError,
    since: Moment,
}

struct Pending {
    number: u64,
    change: Change,
    /// Renewed until the change is stored.
    claimed: Option<Claimed>,
    stored: Option<oneshot::Sender<()>>,
}

/// A confirmed claim. It is renewed until the outcome of its call is stored.
pub(in crate::token) struct Claimed {
    id: ClaimId,
    /// The generation of the tokens that the call brings.
    pub(in crate::token) generation: u64,
    /// For the connection to the issuer.
    pub(in crate::token) fence: Fence,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Fleet").field(&self.identity).finish()
    }
}

impl std::fmt::Debug for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Claimed").field(&self.id).finish()
    }
}

/// The call that is claimed.
#[derive(Debug, Clone)]
pub(in crate::token) struct ForCall {
    pub(in crate::token) grant: Grant,
    /// The version of the record that the plan was made for.
    pub(in crate::token) version: Version,
    /// The end of the grace period, if the refresh token was sent before.
    pub(in crate::token) until: Option<Moment>,
    /// The time between two refreshes that rejections cause, if this is one.
    pub(in crate::token) cooldown: Option<Duration>,
}

/// How a call ended.
#[derive(Debug)]
pub(in crate::token) enum CallOutcome {
    /// The request was not written.
    NotSent,
    Result(Box<CallResult>),
    Note(Note),
}

/// The shared record at one moment, in this machine's time.
pub(in crate::token) struct View {
    pub(in crate::token) revision: Revision,
    pub(in crate::token) shared: Arc<Shared>,
    pub(in crate::token) time: StoreTime,
    /// The fingerprint of the refresh token that another replica is sending.
    pub(in crate::token) being_spent: Option<String>,
}

impl Fleet {
    pub(in crate::token) fn new(
        register: Box<dyn Register>,
        seal: Seal,
        identity: Identity,
        clock: SharedClock,
    ) -> Arc<Self> {
        let process = random();
        Arc::new(Self {
            register,
            seal: Mutex::new(Arc::new(seal)),
            identity,
            process,
            clock,
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::new(State {
                watch: Watch::new(process),
                current: None,
                pending: VecDeque::new(),
                changes: 0,
                claims: 0,
                active: None,
                is_superseded: false,
                failure: None,
                counters: Counters::default(),
            }),
            woken: Notify::new(),
            is_overdue: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        })
    }

    /// Reads, renews and writes, for ever. Dropped, it leaves a claim to be orphaned.
    pub(in crate::token) async fn run(&self) {
        loop {
            let woken = self.woken.notified();
            self.step().await;
            let next = self.next_step();
            tokio::select! {
                () = woken => {}
                () = self.clock.sleep_until(next) => {}
            }
        }
    }

    fn next_step(&self) -> Moment {
        let now = self.clock.now();
        let state = self.state.lock();
        let has_claim = state
            .current
            .as_ref()
            .and_then(Seen::shared)
            .is_some_and(|shared| shared.claim.is_some());
        // A reading also connects anew.
        let is_alert = has_claim
            || !state.pending.is_empty()
            || state.failure.is_some()
            || self.is_overdue.load(Relaxed);
        let next = now + if is_alert { ALERT } else { REST };
        match &state.active {
            Some(active) => next.min(active.next_beat).max(now),
            None => next,
        }
    }

    /// One renewal, write or reading, and what follows from it.
    async fn step(&self) {
        self.beat().await;
        let pending = self
            .state
            .lock()
            .pending
            .front()
            .map(|pending| (pending.number, pending.change.clone()));
        match &pending {
            Some((number, change)) if self.apply(change).await.is_ok() => self.confirm(*number),
            Some(_) => {}
            None => {
                // A failure is kept as the problem of the store.
                let _ = self.look().await;
            }
        }
        let stray = self.stray_claim();
        if let Some(id) = stray {
            // A claim that was given up as unconfirmed was carried out after all.
            let _ = self.apply(&Change::Withdraw(id)).await;
        }
    }

    /// Renews the claim, if that is due.
    async fn beat(&self) {
        let now = self.clock.now();
        let (held, fence) = {
            let mut state = self.state.lock();
            let Some(active) = state
                .active
                .as_mut()
                .filter(|active| active.next_beat <= now)
            else {
                return;
            };
            active.next_beat = now + BEAT;
            (active.held.clone(), active.fence.clone())
        };
        match self.apply(&Change::Beat(held)).await {
            Ok(true) => fence.confirm(now),
            Ok(false) => fence.lose(),
            Err(_) => {}
        }
    }

    fn confirm(&self, number: u64) {
        let mut state = self.state.lock();
        let Some(pending) = state
            .pending
            .pop_front_if(|pending| pending.number == number)
        else {
            return;
        };
        if let (Change::Result(result), Some(shared)) = (
            &pending.change,
            state.current.as_ref().and_then(Seen::shared),
        ) && shared.record.refresh_token != result.record.refresh_token
        {
            state.is_superseded = true;
        }
        if let Some(claimed) = pending.claimed {
            state
                .active
                .take_if(|active| active.held.claim.id == claimed.id);
        }
        if let Some(stored) = pending.stored {
            let _ = stored.send(());
        }
        drop(state);
        self.notify();
    }

    /// A claim of this process that it does not know of.
    fn stray_claim(&self) -> Option<ClaimId> {
        let state = self.state.lock();
        let claim = state.current.as_ref()?.shared()?.claim.as_ref()?;
        let is_active = state
            .active
            .as_ref()
            .is_some_and(|active| active.held.claim.id == claim.id);
        (claim.id.owner == self.process && !is_active).then_some(claim.id)
    }

    fn notify(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Resolves when something has changed since the last call with this receiver.
    pub(in crate::token) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Reads the record, and writes it back if the store has lost it.
    pub(in crate::token) async fn look(&self) -> Result<(), RegisterError> {
        let _turn = self.turn.lock().await;
        self.read().await.map(|_| ())
    }

    /// Reads until what is read is whole.
    async fn read(&self) -> Result<Seen, RegisterError> {
        for _ in 0..MAX_TRIES {
            let (seen, finding) = self.read_once().await?;
            if finding == Finding::Intact {
                return Ok(seen);
            }
            let Some(lost) = self.lost() else {
                return Ok(seen);
            };
            let change = Change::Restore(lost);
            if let Written::Yes = self.write(&change, &seen).await? {
                self.restored(&seen);
            }
        }
        Err(busy())
    }

    /// The record that the store has lost; `None` if it is not to be brought back.
    fn lost(&self) -> Option<Arc<Shared>> {
        let mut state = self.state.lock();
        let newest = state.watch.newest().cloned()?;
        let token = newest.record.refresh_token.as_ref();
        // A claim may be of a call under way, even if nothing else is worth it.
        if newest.claim.is_none() && token.is_some_and(|token| newest.is_refused(token)) {
            state.watch.forget();
            return None;
        }
        Some(newest)
    }

    fn restored(&self, seen: &Seen) {
        let reason = match &seen.stored {
            None => RestoreReason::Empty,
            Some(_) => RestoreReason::Behind,
        };
        self.state.lock().counters.restores[reason] += 1;
        tracing::warn!(
            reason = reason.label(),
            "the shared token store had lost writes: the newest tokens were written back"
        );
    }

    async fn read_once(&self) -> Result<(Seen, Finding), RegisterError> {
        let asked = self.clock.now();
        let reading = self.register.read().await;
        let answered = self.clock.now();
        let seen = match reading {
            Ok(reading) => self.decode(reading, asked, answered).await,
            Err(error) => Err(error),
        };
        let mut state = self.state.lock();
        match seen {
            Ok(seen) => {
                let before = (
                    state.settled_and_free(),
                    // An empty store, too, is news when it is read first: a replica offers its copy.
                    state.current.is_some(),
                    state.revision(),
                    state.failure.is_some(),
                );
                if state
                    .failure
                    .take()
                    .is_some_and(|failing| answered.saturating_since(failing.since) >= PATIENCE)
                {
                    tracing::info!("the shared token store can be used again");
                }
                let finding = state.watch.observe(&seen, asked);
                if finding == Finding::Intact {
                    state.current = Some(seen.clone());
                }
                let after = (
                    state.settled_and_free(),
                    state.current.is_some(),
                    state.revision(),
                    false,
                );
                drop(state);
                if before != after {
                    self.notify();
                }
                Ok((seen, finding))
            }
            Err(error) => {
                self.failed(&mut state, &error, answered);
                drop(state);
                self.notify();
                Err(error)
            }
        }
    }

    fn failed(&self, state: &mut State, error: &RegisterError, now: Moment) {
        state.counters.errors[StoreError::from(error)] += 1;
        match &mut state.failure {
            Some(failing) => failing.error = error.clone(),
            None => {
                state.failure = Some(Failing {
                    error: error.clone(),
                    since: now,
                });
            }
        }
    }

    async fn decode(
        &self,
        reading: Reading,
        asked: Moment,
        answered: Moment,
    ) -> Result<Seen, RegisterError> {
        let stored = match reading.value {
            None => None,
            Some(value) => {
                let plain = self.open(&value.bytes).await?;
                let shared = Shared::from_bytes(&plain, &self.identity.owner);
                let shared = shared.map_err(|unreadable| {
                    let (Unreadable::Garbled(problem) | Unreadable::Foreign(problem)) = unreadable;
                    self.garbled(&problem)
                })?;
                Some((value.revision, Arc::new(shared)))
            }
        };
        Ok(Seen {
            stored,
            time: StoreTime {
                asked,
                answered,
                time: reading.time,
            },
            connection: reading.connection,
        })
    }

    /// Decrypts. The keys are read again if they do not fit: their file may have been replaced.
    async fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RegisterError> {
        let seal = Arc::clone(&self.seal.lock());
        let key = &self.identity.key;
        match seal.open(sealed, key) {
            Ok(plain) => Ok(plain),
            Err(error) => {
                let reread = blocking::run(move || seal.read_again()).await;
                let Some(seal) = reread.ok().flatten() else {
                    return Err(self.garbled(&error));
                };
                let plain = seal
                    .open(sealed, key)
                    .map_err(|error| self.garbled(&error))?;
                *self.seal.lock() = Arc::new(seal);
                Ok(plain)
            }
        }
    }

    fn garbled(&self, problem: &dyn std::fmt::Display) -> RegisterError {
        RegisterError::Garbled(format!(
            "the record {:?} of the shared store: {problem}; it is left as it is: correct the \
             configuration, set token.store.key_prefix to another prefix, or delete the key and log \
             in again",
            self.identity.key
        ))
    }

    /// Applies a change to what is stored, until it is stored, was stored before, or is excluded.
    /// True if it is not excluded.
    async fn apply(&self, change: &Change) -> Result<bool, RegisterError> {
        let _turn = self.turn.lock().await;
        for _ in 0..MAX_TRIES {
            let seen = self.read().await?;
            match self.write(change, &seen).await? {
                Written::Yes => return Ok(true),
                Written::Excluded => return Ok(false),
                Written::Moved => {}
            }
        }
        Err(busy())
    }

    /// Applies a change to what was just read.
    async fn write(&self, change: &Change, seen: &Seen) -> Result<Written, RegisterError> {
        let mut next = match change.apply(seen.shared().map(|shared| &**shared), random()) {
            Effect::Nothing => return Ok(Written::Yes),
            Effect::Excluded => return Ok(Written::Excluded),
            Effect::Replace(next) => next,
        };
        let stored = seen.shared().map_or(0, |shared| shared.serial);
        next.serial = next.serial.max(stored).saturating_add(1);
        let plain = next
            .to_bytes(&self.identity.owner)
            .map_err(|error| self.garbled(&error))?;
        let bytes = self
            .seal
            .lock()
            .seal(&plain, &self.identity.key)
            .map_err(|error| self.garbled(&error))?;
        let revision = Revision(random());
        let replaced = self
            .register
            .replace(seen.revision(), Value { revision, bytes })
            .await;
        let now = self.clock.now();
        let mut state = self.state.lock();
        match replaced {
            Ok(Replaced::Moved) => Ok(Written::Moved),
            Ok(Replaced::Done) => {
                let shared = Arc::from(next);
                state.watch.wrote(&shared);
                state.current = Some(Seen {
                    stored: Some((revision, shared)),
                    ..seen.clone()
                });
                drop(state);
                self.notify();
                Ok(Written::Yes)
            }
            Err(error) => {
                self.failed(&mut state, &error, now);
                Err(error)
            }
        }
    }

    /// A call is due: the store is read more often.
    pub(in crate::token) fn set_overdue(&self, is_overdue: bool) {
        if self.is_overdue.swap(is_overdue, Relaxed) != is_overdue && is_overdue {
            self.woken.notify_one();
        }
    }

    /// Resolves when a call may be claimed; if `may_go_alone`, also when the store has not responded
    /// for a while.
    pub(in crate::token) async fn claimable(&self, may_go_alone: bool) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if self.state.lock().settled_and_free() || may_go_alone && self.is_unreachable() {
                return;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Whether the store has not responded for a while.
    pub(in crate::token) fn is_unreachable(&self) -> bool {
        self.problem()
            .is_some_and(|problem| problem.reason == Reason::StoreUnreachable)
    }

    /// Claims a call. `None` if it must not be made now.
    pub(in crate::token) async fn claim(&self, call: ForCall) -> Option<Claimed> {
        let _turn = self.turn.lock().await;
        let seen = self.read().await.ok()?;
        let sent_at = self.clock.now();
        let (id, orphan) = {
            let mut state = self.state.lock();
            if !state.settled_and_free() {
                return None;
            }
            state.claims += 1;
            let id = ClaimId {
                owner: self.process,
                number: state.claims,
            };
            (id, state.watch.orphan())
        };
        let at = seen.time.at_least(sent_at);
        let version = call.version;
        let budget = call.cooldown.map(|cooldown| {
            let whole_at = seen
                .shared()
                .and_then(|shared| shared.limits.budget_whole_at());
            let whole_at = whole_at.map_or(at, |whole_at| whole_at.max(at));
            whole_at.checked_add(cooldown).unwrap_or(whole_at)
        });
        let change = Change::Claim(NewClaim {
            id,
            name: self.identity.replica.clone(),
            grant: call.grant,
            version: call.version,
            orphan,
            at,
            budget_whole_at: budget,
        });
        let written = self.write(&change, &seen).await;
        let mut state = self.state.lock();
        match written {
            Ok(Written::Yes) => {}
            Ok(Written::Excluded | Written::Moved) => {
                state.counters.claims[ClaimOutcome::Refused] += 1;
                return None;
            }
            Err(_) => {
                // The store may carry it out later.
                state.counters.claims[ClaimOutcome::Unconfirmed] += 1;
                drop(state);
                self.push(Change::Withdraw(id), None, None);
                return None;
            }
        }
        let claim = state
            .current
            .as_ref()
            .and_then(Seen::shared)
            .and_then(|shared| shared.claim.clone())?;
        let generation = claim.generation;
        state.counters.claims[ClaimOutcome::Claimed] += 1;
        state.counters.claims[ClaimOutcome::Orphaned] += u64::from(orphan.is_some());
        let fence = Fence::new(SharedClock::clone(&self.clock), sent_at, call.until);
        state.active = Some(Active {
            held: Held { claim, version, at },
            fence: fence.clone(),
            next_beat: sent_at + BEAT,
        });
        drop(state);
        self.woken.notify_one();
        Some(Claimed {
            id,
            generation,
            fence,
        })
    }

    /// Offers this replica's own copy to a store that has lost it.
    pub(in crate::token) fn offer(&self, record: CallResult) {
        self.push(Change::Result(Box::new(record)), None, None);
    }

    fn push(&self, change: Change, claimed: Option<Claimed>, stored: Option<oneshot::Sender<()>>) {
        let mut state = self.state.lock();
        state.changes += 1;
        let number = state.changes;
        state.pending.push_back(Pending {
            number,
            change,
            claimed,
            stored,
        });
        drop(state);
        self.woken.notify_one();
    }

    /// Stores the outcome of a call. Returns when it is stored, or after a second: then the store is
    /// tried on in the background.
    pub(in crate::token) async fn finish(&self, claimed: Option<Claimed>, outcome: CallOutcome) {
        let (sender, stored) = oneshot::channel();
        let claim = claimed.as_ref().map(|claimed| claimed.id);
        let change = match (outcome, claim) {
            (CallOutcome::NotSent, Some(id)) => {
                self.state.lock().counters.claims[ClaimOutcome::Withdrawn] += 1;
                Change::Withdraw(id)
            }
            (CallOutcome::NotSent, None) => return,
            (CallOutcome::Result(result), claim) => {
                Change::Result(Box::new(CallResult { claim, ..*result }))
            }
            (CallOutcome::Note(note), claim) => Change::Note(Note { claim, ..note }),
        };
        self.push(change, claimed, Some(sender));
        let deadline = self.clock.now() + SAVE_TIMEOUT;
        tokio::select! {
            _ = stored => {}
            () = self.clock.sleep_until(deadline) => {}
        }
    }

    /// Stores the tokens of a login: `begin` makes a record with a new chain of the stored one, both in
    /// this machine's time. `client` is the fingerprint of the client secret that the issuer accepted.
    /// Tries it for a few seconds, and needs no [`Fleet::run`].
    ///
    /// # Errors
    /// When the store has not confirmed it.
    pub(in crate::token) async fn store_login(
        &self,
        client: &str,
        mut begin: impl FnMut(Option<Record>) -> Record,
    ) -> Result<(), RegisterError> {
        let deadline = self.clock.now() + LOGIN_TIMEOUT;
        let mut is_unconfirmed = false;
        loop {
            match self.try_login(client, &mut begin, is_unconfirmed).await {
                Ok(true) => return Ok(()),
                Err(error) if self.clock.now() >= deadline => return Err(error),
                Err(RegisterError::Unreachable(_)) => is_unconfirmed = true,
                Err(error) => return Err(error),
                Ok(false) if self.clock.now() >= deadline => return Err(busy()),
                Ok(false) => {}
            }
            let next = self.clock.now() + LOGIN_PAUSE;
            self.clock.sleep_until(next).await;
        }
    }

    /// False if another write came between.
    async fn try_login(
        &self,
        client: &str,
        begin: &mut impl FnMut(Option<Record>) -> Record,
        is_unconfirmed: bool,
    ) -> Result<bool, RegisterError> {
        let _turn = self.turn.lock().await;
        let seen = self.read().await?;
        let now = self.clock.now();
        let stored = seen.shared().map(|shared| {
            let time = seen.time.at_most(now);
            let mut record = shared.record.in_local_time(&*self.clock, time);
            // A call that is under way brings the generation that it has announced.
            record.generation = record.generation.max(shared.announced);
            record
        });
        let before = stored
            .as_ref()
            .map_or_else(Version::default, Record::version);
        let stored_token = seen
            .shared()
            .and_then(|shared| shared.record.refresh_token.clone());
        let record = begin(stored);
        if is_unconfirmed && stored_token == record.refresh_token {
            return Ok(true);
        }
        let change = Change::Result(Box::new(CallResult {
            claim: None,
            record: record.in_store_time(&*self.clock, seen.time.at_least(now)),
            grant: Grant::Initial,
            before,
            client: Some(client.to_owned()),
        }));
        Ok(matches!(self.write(&change, &seen).await?, Written::Yes))
    }

    /// Shutdown: waits until [`Fleet::run`] has stored everything. False if something is lost.
    pub(in crate::token) async fn drain(&self) -> bool {
        let mut changes = self.changes.subscribe();
        let stored = async { while !self.is_idle() && changes.changed().await.is_ok() {} };
        let deadline = self.clock.now() + SHUTDOWN_TIMEOUT;
        tokio::select! {
            () = stored => {}
            () = self.clock.sleep_until(deadline) => {}
        }
        self.is_idle()
    }

    /// Whether everything is stored.
    pub(in crate::token) fn is_idle(&self) -> bool {
        self.state.lock().pending.is_empty()
    }

    /// Whether the store went on without a result of this replica, since the last call.
    pub(in crate::token) fn take_superseded(&self) -> bool {
        std::mem::take(&mut self.state.lock().is_superseded)
    }

    /// The shared record as it was read last; `None` if the store is empty or was not read yet.
    pub(in crate::token) fn view(&self) -> Option<View> {
        let state = self.state.lock();
        let current = state.current.as_ref()?;
        let (revision, shared) = current.stored.as_ref()?;
        let claim = shared.claim.as_ref();
        let live = claim.filter(|claim| state.watch.live_claim() == Some(claim.id));
        Some(View {
            being_spent: live.and_then(|claim| claim.spends.clone()),
            revision: *revision,
            shared: Arc::clone(shared),
            time: current.time,
        })
    }

    /// The store's time as it was read last.
    pub(in crate::token) fn store_time(&self) -> Option<StoreTime> {
        self.state.lock().current.as_ref().map(|seen| seen.time)
    }

    /// Whether the store was read.
    pub(in crate::token) fn was_read(&self) -> bool {
        self.state.lock().current.is_some()
    }

    /// For status and metrics. Waits for nothing.
    pub(in crate::token) fn snapshot(&self) -> FleetSnapshot {
        let server = self.register.info();
        let state = self.state.lock();
        let shared = state.current.as_ref().and_then(Seen::shared);
        let is_up = state.current.is_some() && state.failure.is_none();
        let orphan = state.watch.orphan().map(|pulse| pulse.id);
        let claim = shared.and_then(|shared| shared.claim.as_ref());
        FleetSnapshot {
            replica: self.identity.replica.clone(),
            is_up,
            problem: state
                .failure
                .as_ref()
                .map(|failing| failing.error.to_string()),
            server,
            serial: shared.map(|shared| shared.serial),
            life: shared.map(|shared| shared.life),
            claim: claim.map(|claim| ClaimSnapshot {
                replica: claim.name.clone(),
                generation: claim.generation,
                is_orphaned: orphan == Some(claim.id),
            }),
            is_settled: is_up && state.watch.is_settled(),
            errors: counts(&state.counters.errors),
            restores: counts(&state.counters.restores),
            claims: counts(&state.counters.claims),
        }
    }

    /// Why the store cannot be used, if that lasts.
    pub(in crate::token) fn problem(&self) -> Option<Problem> {
        let state = self.state.lock();
        let failing = state.failure.as_ref()?;
        let (reason, detail) = match &failing.error {
            RegisterError::Unreachable(_)
                if self.clock.now().saturating_since(failing.since) < PATIENCE =>
            {
                return None;
            }
            RegisterError::Unreachable(detail) => (Reason::StoreUnreachable, detail),
            RegisterError::Refused(detail) => (Reason::StoreRefused, detail),
            RegisterError::Garbled(detail) => (Reason::StoreGarbled, detail),
        };
        Some(Problem {
            reason,
            detail: detail.clone(),
        })
    }

    /// The record in the store's time, as far as that is known.
    pub(in crate::token) fn in_store_time(&self, record: &Record) -> Record {
        let now = self.clock.now();
        let store_now = self
            .store_time()
            .map_or_else(|| self.clock.wall(), |time| time.at_least(now));
        record.in_store_time(&*self.clock, store_now)
    }
}

enum Written {
    Yes,
    Excluded,
    Moved,
}

impl State {
    fn settled_and_free(&self) -> bool {
        self.failure.is_none()
            && self.pending.is_empty()
            && self.active.is_none()
            && self.watch.is_settled()
            && self.watch.live_claim().is_none()
    }

    fn revision(&self) -> Option<Revision> {
        self.current.as_ref().and_then(Seen::revision)
    }
}

fn busy() -> RegisterError {
    RegisterError::Unreachable("too many replicas write at the same time".to_owned())
}

fn random() -> u64 {
    // The keys of a `RandomState` differ between processes and calls even where the system call fails.
    getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(()))
}
