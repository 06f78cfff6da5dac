//! A machine and an issuer that remember everything, and note each promise that is broken.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;

use crate::{
    base::{
        clock::{Clock as _, Moment, Simulated},
        secret::Secret,
    },
    token::{
        Credential, Failure, FailureClass, StoreError, Token, TokenResponse, Version,
        issuer::Issuer,
        refresher::tests::harness::seconds,
        store::{AccessToken, Grant, Lock, Record, RequestTime, Store},
    },
};

const HOUR: Duration = seconds(3600);
const GRACE: Duration = seconds(5);

/// What the issuer does with one call: whether it rotates, and the new token's lifetime.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) latency: Duration,
    pub(super) outcome: Result<(bool, Duration), FailureClass>,
}

pub(super) struct World {
    pub(super) clock: Arc<Simulated>,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    answers: VecDeque<Answer>,
    violations: Vec<String>,
    /// Processes so far: the last one is alive.
    process: usize,
    credential: Option<Credential>,
    disk: Option<Record>,
    is_locked: bool,
    is_in_flight: bool,
    /// A call ended without its answer.
    is_cut: bool,
    granted: usize,
    /// Until when each access token is surely good, and how long it lives.
    issued: HashMap<String, (Moment, Duration)>,
    newest: Option<Version>,
    /// When each refresh token was sent without a known outcome.
    doubts: HashMap<String, Vec<Moment>>,
    replaced: HashSet<String>,
    /// By this process's calls.
    refused: HashSet<String>,
    is_client_refused: bool,
    is_client_secret_new: bool,
    last: Option<Call>,
}

/// A call of the living process.
#[derive(Debug, Clone)]
struct Call {
    at: Moment,
    ended: Moment,
    failure: Option<FailureClass>,
}

impl World {
    pub(super) fn new(answers: Vec<Answer>) -> Arc<Self> {
        let facts = Facts {
            answers: answers.into(),
            ..Facts::default()
        };
        Arc::new(Self {
            clock: Arc::new(Simulated::new()),
            facts: Mutex::new(facts),
        })
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().expect("no panic before")
    }

    /// A new process: what it calls, where it writes, and what it finds there.
    pub(super) fn boot(self: &Arc<Self>) -> (Box<dyn Issuer>, Arc<dyn Store>, Record) {
        let mut facts = self.facts();
        facts.process += 1;
        facts.last = None;
        facts.is_client_refused = false;
        facts.refused.clear();
        let issuer = Caller {
            world: Arc::clone(self),
            process: facts.process,
        };
        (
            Box::new(issuer),
            Arc::new(Disk(Arc::clone(self))),
            facts.disk.clone().unwrap_or_default(),
        )
    }

    pub(super) fn watch(&self, credential: Credential) {
        self.facts().credential = Some(credential);
    }

    /// A process has ended: were its calls let to their ends, as an orderly one's must be?
    pub(super) fn observe_end(&self, is_orderly: bool) {
        let is_cut = std::mem::take(&mut self.facts().is_cut);
        if is_orderly && is_cut {
            self.violated("shutdown cut a call");
        }
    }

    pub(super) fn change_client_secret(&self) {
        self.facts().is_client_secret_new = true;
    }

    /// From now on the issuer grants whatever is asked for.
    pub(super) fn heal(&self) {
        self.facts().answers.clear();
    }

    /// An answer of this very moment counts as received.
    pub(super) async fn let_answers_arrive(&self) {
        let is_now = self
            .facts()
            .last
            .as_ref()
            .is_some_and(|last| last.ended == self.clock.now());
        if is_now {
            self.clock
                .sleep_until(self.clock.now() + Duration::from_millis(1))
                .await;
        }
    }

    /// Somebody with the same state file spends the refresh token and stores what it got, under the lock.
    pub(super) fn refresh_in_another_process(&self, lifetime: Duration) {
        let mut facts = self.facts();
        let (false, Some(mut record)) = (facts.is_locked, facts.disk.clone()) else {
            return;
        };
        let Some(sent) = record
            .refresh_token
            .clone()
            .filter(|_| record.access.is_some())
        else {
            return;
        };
        let now = self.clock.now();
        facts.granted += 1;
        let n = facts.granted;
        let access = AccessToken::new(
            Secret::new(format!("theirs-{n}")),
            lifetime,
            RequestTime::now(&*self.clock),
            &*self.clock,
        );
        facts
            .issued
            .insert(format!("Bearer theirs-{n}"), (now + lifetime, lifetime));
        facts.replaced.insert(sent.secret().expose().to_owned());
        facts.doubts.remove(sent.secret().expose());
        facts.is_client_refused = false;
        record.advance(
            Some(Secret::new(format!("refresh-{n}"))),
            None,
            access,
            &Grant::Chain(sent),
        );
        facts.disk = Some(record);
    }

    pub(super) fn violated(&self, promise: &str) {
        let now = self.clock.now();
        self.facts().violations.push(format!("{now:?}: {promise}"));
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.facts().violations.clone()
    }

    pub(super) fn usable(&self, credential: &Credential) -> Option<Arc<Token>> {
        let now = self.clock.now();
        credential
            .token()
            .as_ref()
            .filter(|token| token.is_usable(now))
            .cloned()
    }

    /// Looks at what the data path would send now.
    pub(super) fn observe(&self, credential: &Credential) {
        if let Some(token) = self.usable(credential) {
            self.observe_token(&token);
        }
        let newest = credential.token().as_ref().map(|token| token.version());
        let before = self.facts().newest;
        if newest.is_some() && newest < before {
            self.violated(&format!("the version fell from {before:?} to {newest:?}"));
        }
        self.facts().newest = newest.max(before);
    }

    pub(super) fn observe_handed_out(&self, token: &Token, above: Option<Version>) {
        self.observe_token(token);
        if Some(token.version()) <= above {
            self.violated("a waiter got no newer token");
        }
    }

    /// A waiter got nothing.
    pub(super) fn observe_none(&self, credential: &Credential, above: Option<Version>) {
        let Some(token) = self
            .usable(credential)
            .filter(|token| Some(token.version()) > above)
        else {
            return;
        };
        // What comes in the very moment of the deadline, or from another process, may be missed.
        let is_theirs = token.header().as_bytes().starts_with(b"Bearer theirs");
        let is_just_now = self
            .facts()
            .last
            .as_ref()
            .is_none_or(|last| last.ended == self.clock.now());
        if !is_theirs && !is_just_now {
            self.violated("a waiter got nothing, and there was a newer token");
        }
    }

    fn observe_token(&self, token: &Token) {
        let good_until = self
            .facts()
            .issued
            .get(header(token))
            .map(|(until, _)| *until);
        if good_until.is_none_or(|until| until <= self.clock.now() || until < token.expires_at()) {
            self.violated(&format!(
                "expired or unknown: {} at {:?}, {good_until:?}",
                token.version(),
                token.expires_at()
            ));
        }
    }

    /// A call begins: is it one that may be?
    fn begin(&self, process: usize, spends: &str) -> Answer {
        let now = self.clock.now();
        let mut facts = self.facts();
        let mut broken = facts.broken_by_calling(now, process);
        broken.extend(facts.broken_by_spending(now, spends));
        facts.violations.extend(
            broken
                .iter()
                .map(|promise| format!("{now:?}: {promise}, with {spends}")),
        );
        facts.is_in_flight = true;
        facts.doubts.entry(spends.to_owned()).or_default().push(now);
        facts.answers.pop_front().unwrap_or(Answer {
            latency: Duration::ZERO,
            outcome: Ok((true, HOUR)),
        })
    }

    fn end(
        &self,
        at: Moment,
        spends: &str,
        outcome: &Result<(bool, Duration), FailureClass>,
    ) -> Result<TokenResponse, Failure> {
        let mut facts = self.facts();
        let ended = self.clock.now();
        facts.last = Some(Call {
            at,
            ended,
            failure: outcome.err(),
        });
        match outcome {
            Ok((rotates, lifetime)) => {
                facts.doubts.remove(spends);
                facts.is_client_refused = false;
                facts.granted += 1;
                let n = facts.granted;
                facts
                    .issued
                    .insert(format!("Bearer access-{n}"), (at + *lifetime, *lifetime));
                if *rotates {
                    facts.replaced.insert(spends.to_owned());
                }
                Ok(TokenResponse {
                    access_token: Secret::new(format!("access-{n}")),
                    refresh_token: rotates.then(|| Secret::new(format!("refresh-{n}"))),
                    lifetime: *lifetime,
                    refresh_lifetime: None,
                })
            }
            Err(class) => {
                match class {
                    FailureClass::Ambiguous | FailureClass::Garbled => {}
                    FailureClass::RefreshTokenRefused => {
                        facts.doubts.remove(spends);
                        facts.refused.insert(spends.to_owned());
                        facts.is_client_refused = false;
                    }
                    _ => {
                        facts.doubts.get_mut(spends).map(Vec::pop);
                        facts.is_client_refused |= *class == FailureClass::ClientRefused;
                    }
                }
                Err(Failure::new(*class, "as generated"))
            }
        }
    }
}

impl Facts {
    fn broken_by_calling(&self, now: Moment, process: usize) -> Vec<&'static str> {
        let mut broken = Vec::new();
        if self.is_in_flight {
            broken.push("two calls at once");
        }
        if process != self.process {
            broken.push("a call after the end of its process");
        }
        let Some(last) = &self.last else {
            return broken;
        };
        let since = now.saturating_since(last.at);
        if self.is_client_refused && since < seconds(60) {
            broken.push("a refused client asked again within a minute");
        }
        match last.failure {
            Some(FailureClass::Throttled(wait)) if now < last.ended + wait => {
                broken.push("a call within Retry-After")
            }
            Some(
                FailureClass::Throttled(_)
                | FailureClass::RefreshTokenRefused
                | FailureClass::ClientRefused,
            )
            | None => {}
            Some(_) if since < seconds(1) => broken.push("a failed call repeated within a second"),
            Some(_) => {}
        }
        broken
    }

    fn broken_by_spending(&self, now: Moment, spends: &str) -> Vec<&'static str> {
        let mut broken = Vec::new();
        if self.replaced.contains(spends) {
            broken.push("a refresh token spent twice");
        }
        if self.refused.contains(spends) {
            broken.push("a refused refresh token sent again");
        }
        let is_allowed = match self
            .doubts
            .get(spends)
            .map(Vec::as_slice)
            .unwrap_or_default()
        {
            [] => true,
            [only] if now.saturating_since(*only) < GRACE => true,
            _ => self.has_little_to_lose(now),
        };
        if !is_allowed {
            broken.push("a refresh token that may be spent was sent again too late, and too early");
        }
        broken
    }

    /// The documented late retry: under a minute, or under a fifth of its life, is left of the token that serves.
    fn has_little_to_lose(&self, now: Moment) -> bool {
        let Some(token) = self
            .credential
            .as_ref()
            .and_then(|credential| credential.token().clone())
        else {
            return true;
        };
        let left = token.expires_at().saturating_since(now);
        let lifetime = self
            .issued
            .get(header(&token))
            .map_or(Duration::ZERO, |(_, lifetime)| *lifetime);
        left <= seconds(60).max(lifetime / 5)
    }
}

fn header(token: &Token) -> &str {
    token.header().to_str().expect("text")
}

struct Caller {
    world: Arc<World>,
    process: usize,
}

/// The call is over, also when its process was killed.
struct InFlight<'a> {
    world: &'a World,
    is_answered: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut facts = self.world.facts();
        facts.is_in_flight = false;
        facts.is_cut |= !self.is_answered;
    }
}

impl Issuer for Caller {
    fn refresh<'a>(
        &'a self,
        refresh_token: &'a Secret,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>> {
        Box::pin(async move {
            let (at, spends) = (self.world.clock.now(), refresh_token.expose());
            let answer = self.world.begin(self.process, spends);
            let mut in_flight = InFlight {
                world: &self.world,
                is_answered: false,
            };
            if !answer.latency.is_zero() {
                self.world.clock.sleep_until(at + answer.latency).await;
            }
            in_flight.is_answered = true;
            self.world.end(at, spends, &answer.outcome)
        })
    }

    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool> {
        let mut facts = self.world.facts();
        let is_new = std::mem::take(&mut facts.is_client_secret_new);
        let now = self.world.clock.now();
        // Read right after the refusal, it is worth a call at once: another client, as it were.
        if is_new && facts.last.as_ref().is_some_and(|last| last.ended == now) {
            facts.is_client_refused = false;
        }
        Box::pin(async move { is_new })
    }
}

struct Disk(Arc<World>);

struct DiskLock(Arc<World>);

impl Drop for DiskLock {
    fn drop(&mut self) {
        self.0.facts().is_locked = false;
    }
}

impl Store for Disk {
    fn save(&self, record: Arc<Record>) -> BoxFuture<'static, io::Result<()>> {
        self.0.facts().disk = Some(Record::clone(&record));
        Box::pin(async { Ok(()) })
    }

    fn load(&self) -> BoxFuture<'static, Result<Option<Record>, StoreError>> {
        let record = self.0.facts().disk.clone();
        Box::pin(async { Ok(record) })
    }

    fn try_lock(&self) -> BoxFuture<'static, io::Result<Option<Lock>>> {
        let is_free = !std::mem::replace(&mut self.0.facts().is_locked, true);
        let lock = is_free.then(|| Box::new(DiskLock(Arc::clone(&self.0))) as Lock);
        Box::pin(async { Ok(lock) })
    }
}
