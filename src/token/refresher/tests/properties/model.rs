//! A model of a machine and an issuer. It records everything and notes each violated invariant.

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
        deadline::CallDeadline,
        issuer::Issuer,
        refresher::tests::harness::seconds,
        store::{AccessToken, Grant, Lock, Record, RequestTime, Store},
    },
};

const HOUR: Duration = seconds(3600);
const GRACE: Duration = seconds(5);

/// The response to one call: whether the refresh token rotates, and the access token's lifetime.
#[derive(Debug, Clone)]
pub(super) struct ScriptedResponse {
    pub(super) latency: Duration,
    pub(super) outcome: Result<(bool, Duration), FailureClass>,
}

pub(super) struct Model {
    pub(super) clock: Arc<Simulated>,
    state: Mutex<ModelState>,
}

#[derive(Default)]
struct ModelState {
    responses: VecDeque<ScriptedResponse>,
    violations: Vec<String>,
    /// Processes so far. The last one is running.
    process: usize,
    credential: Option<Credential>,
    disk: Option<Record>,
    is_locked: bool,
    is_in_flight: bool,
    /// A call ended without its response.
    is_cut: bool,
    granted: usize,
    /// Until when each access token is valid, and its lifetime.
    issued: HashMap<String, (Moment, Duration)>,
    newest: Option<Version>,
    /// When each refresh token was sent with an unknown outcome.
    unknown_outcomes: HashMap<String, Vec<Moment>>,
    replaced: HashSet<String>,
    /// In this process's calls.
    refused: HashSet<String>,
    is_client_refused: bool,
    /// Calls that may follow at once because an operator has acted: the next one, and one more if
    /// that had begun before the operator was noticed.
    hasty_calls: u8,
    is_client_secret_new: bool,
    last: Option<Call>,
}

/// A call of the running process.
#[derive(Debug, Clone)]
struct Call {
    at: Moment,
    ended: Moment,
    failure: Option<FailureClass>,
}

impl Model {
    pub(super) fn new(responses: Vec<ScriptedResponse>) -> Arc<Self> {
        let state = ModelState {
            responses: responses.into(),
            ..ModelState::default()
        };
        Arc::new(Self {
            clock: Arc::new(Simulated::new()),
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, ModelState> {
        self.state.lock().expect("no panic before")
    }

    /// Starts a process: its issuer, its store, and the stored record.
    pub(super) fn boot(self: &Arc<Self>) -> (Box<dyn Issuer>, Arc<dyn Store>, Record) {
        let mut state = self.state();
        state.process += 1;
        state.last = None;
        state.is_client_refused = false;
        state.refused.clear();
        let issuer = Caller {
            model: Arc::clone(self),
            process: state.process,
        };
        (
            Box::new(issuer),
            Arc::new(Disk(Arc::clone(self))),
            state.disk.clone().unwrap_or_default(),
        )
    }

    pub(super) fn watch(&self, credential: Credential) {
        self.state().credential = Some(credential);
    }

    /// A process has ended. An orderly shutdown must not cut a call.
    pub(super) fn observe_end(&self, is_orderly: bool) {
        let is_cut = std::mem::take(&mut self.state().is_cut);
        if is_orderly && is_cut {
            self.violated("shutdown cut a call");
        }
    }

    pub(super) fn change_client_secret(&self) {
        self.state().is_client_secret_new = true;
    }

    /// From now on each call succeeds.
    pub(super) fn heal(&self) {
        self.state().responses.clear();
    }

    /// A response of this very moment counts as received.
    pub(super) async fn let_responses_arrive(&self) {
        let is_now = self
            .state()
            .last
            .as_ref()
            .is_some_and(|last| last.ended == self.clock.now());
        if is_now {
            self.clock
                .sleep_until(self.clock.now() + Duration::from_millis(1))
                .await;
        }
    }

    /// Another process refreshes with the same state file, under the lock.
    pub(super) fn refresh_in_another_process(&self, lifetime: Duration) {
        let mut state = self.state();
        let (false, Some(mut record)) = (state.is_locked, state.disk.clone()) else {
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
        state.granted += 1;
        let n = state.granted;
        let access = AccessToken::new(
            Secret::new(format!("theirs-{n}")),
            lifetime,
            RequestTime::now(&*self.clock),
            &*self.clock,
        );
        state
            .issued
            .insert(format!("Bearer theirs-{n}"), (now + lifetime, lifetime));
        state.replaced.insert(sent.secret().expose().to_owned());
        state.unknown_outcomes.remove(sent.secret().expose());
        state.is_client_refused = false;
        record.advance(
            Some(Secret::new(format!("refresh-{n}"))),
            None,
            access,
            &Grant::Chain(sent),
        );
        state.disk = Some(record);
    }

    pub(super) fn violated(&self, invariant: &str) {
        let now = self.clock.now();
        self.state()
            .violations
            .push(format!("{now:?}: {invariant}"));
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    pub(super) fn usable(&self, credential: &Credential) -> Option<Arc<Token>> {
        let now = self.clock.now();
        credential
            .token()
            .as_ref()
            .filter(|token| token.is_usable(now))
            .cloned()
    }

    /// Checks what the data path would send now.
    pub(super) fn observe(&self, credential: &Credential) {
        if let Some(token) = self.usable(credential) {
            self.observe_token(&token);
        }
        let newest = credential.token().as_ref().map(|token| token.version());
        let before = self.state().newest;
        if newest.is_some() && newest < before {
            self.violated(&format!("the version fell from {before:?} to {newest:?}"));
        }
        self.state().newest = newest.max(before);
    }

    pub(super) fn observe_handed_out(&self, token: &Token, above: Option<Version>) {
        self.observe_token(token);
        if Some(token.version()) <= above {
            self.violated("a waiter got no newer token");
        }
    }

    /// A waiter got no token.
    pub(super) fn observe_none(&self, credential: &Credential, above: Option<Version>) {
        let Some(token) = self
            .usable(credential)
            .filter(|token| Some(token.version()) > above)
        else {
            return;
        };
        // A token of the deadline's very moment, or of another process, may be missed.
        let is_theirs = token.header().as_bytes().starts_with(b"Bearer theirs");
        let is_just_now = self
            .state()
            .last
            .as_ref()
            .is_none_or(|last| last.ended == self.clock.now());
        if !is_theirs && !is_just_now {
            self.violated("a waiter got nothing, and there was a newer token");
        }
    }

    fn observe_token(&self, token: &Token) {
        let good_until = self
            .state()
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

    /// An operator changes a file or sends SIGHUP: the next call may follow at once.
    pub(super) fn operator_acts(&self) {
        self.state().hasty_calls = 2;
    }

    /// A call begins. Checks whether it is allowed.
    fn begin(&self, process: usize, token: &str) -> ScriptedResponse {
        let now = self.clock.now();
        let mut state = self.state();
        let mut violations = state.violations_by_calling(now, process);
        violations.extend(state.violations_by_sending(now, token));
        state.violations.extend(
            violations
                .iter()
                .map(|violation| format!("{now:?}: {violation}, with {token}")),
        );
        state.hasty_calls = state.hasty_calls.saturating_sub(1);
        state.is_in_flight = true;
        state
            .unknown_outcomes
            .entry(token.to_owned())
            .or_default()
            .push(now);
        state.responses.pop_front().unwrap_or(ScriptedResponse {
            latency: Duration::ZERO,
            outcome: Ok((true, HOUR)),
        })
    }

    fn end(
        &self,
        at: Moment,
        token: &str,
        outcome: &Result<(bool, Duration), FailureClass>,
    ) -> Result<TokenResponse, Failure> {
        let mut state = self.state();
        let ended = self.clock.now();
        state.last = Some(Call {
            at,
            ended,
            failure: outcome.err(),
        });
        match outcome {
            Ok((rotates, lifetime)) => {
                state.unknown_outcomes.remove(token);
                state.is_client_refused = false;
                state.granted += 1;
                let n = state.granted;
                state
                    .issued
                    .insert(format!("Bearer access-{n}"), (at + *lifetime, *lifetime));
                if *rotates {
                    state.replaced.insert(token.to_owned());
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
                        state.unknown_outcomes.remove(token);
                        state.refused.insert(token.to_owned());
                        state.is_client_refused = false;
                    }
                    _ => {
                        state.unknown_outcomes.get_mut(token).map(Vec::pop);
                        state.is_client_refused |= *class == FailureClass::ClientRefused;
                    }
                }
                Err(Failure::new(*class, "as generated"))
            }
        }
    }
}

impl ModelState {
    fn violations_by_calling(&self, now: Moment, process: usize) -> Vec<&'static str> {
        let mut violations = Vec::new();
        if self.is_in_flight {
            violations.push("two calls at once");
        }
        if process != self.process {
            violations.push("a call after the end of its process");
        }
        let Some(last) = &self.last else {
            return violations;
        };
        let since = now.saturating_since(last.at);
        if self.is_client_refused && since < seconds(60) && self.hasty_calls == 0 {
            violations.push("a refused client called again within a minute");
        }
        match last.failure {
            Some(FailureClass::Throttled(wait)) if now < last.ended + wait => {
                violations.push("a call within Retry-After");
            }
            Some(
                FailureClass::Throttled(_)
                | FailureClass::RefreshTokenRefused
                | FailureClass::ClientRefused,
            )
            | None => {}
            Some(_) if since < seconds(1) && self.hasty_calls == 0 => {
                violations.push("a failed call repeated within a second");
            }
            Some(_) => {}
        }
        violations
    }

    fn violations_by_sending(&self, now: Moment, token: &str) -> Vec<&'static str> {
        let mut violations = Vec::new();
        if self.replaced.contains(token) {
            violations.push("a refresh token sent twice");
        }
        if self.refused.contains(token) {
            violations.push("a refused refresh token sent again");
        }
        let is_allowed = match self
            .unknown_outcomes
            .get(token)
            .map(Vec::as_slice)
            .unwrap_or_default()
        {
            [] => true,
            [only] if now.saturating_since(*only) < GRACE => true,
            _ => self.has_little_to_lose(now),
        };
        if !is_allowed {
            violations.push("a possibly used refresh token was sent again after the grace period");
        }
        violations
    }

    /// The documented last chance: less than a minute, or than a fifth of its life, is left of the
    /// cached token.
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
    model: Arc<Model>,
    process: usize,
}

/// Ends the call, also when its process was killed.
struct InFlight<'a> {
    model: &'a Model,
    is_answered: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut state = self.model.state();
        state.is_in_flight = false;
        state.is_cut |= !self.is_answered;
    }
}

impl Issuer for Caller {
    fn refresh<'a>(
        &'a self,
        refresh_token: &'a Secret,
        _deadline: &'a CallDeadline,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>> {
        Box::pin(async move {
            let (at, token) = (self.model.clock.now(), refresh_token.expose());
            let response = self.model.begin(self.process, token);
            let mut in_flight = InFlight {
                model: &self.model,
                is_answered: false,
            };
            if !response.latency.is_zero() {
                self.model.clock.sleep_until(at + response.latency).await;
            }
            in_flight.is_answered = true;
            self.model.end(at, token, &response.outcome)
        })
    }

    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool> {
        let mut state = self.model.state();
        let is_new = std::mem::take(&mut state.is_client_secret_new);
        // A new secret allows a call at once.
        if is_new {
            state.hasty_calls = 2;
            state.is_client_refused = false;
        }
        Box::pin(async move { is_new })
    }

    fn client_fingerprint(&self) -> String {
        String::new()
    }

    fn client_refused(&mut self) {}
}

struct Disk(Arc<Model>);

struct DiskLock(Arc<Model>);

impl Drop for DiskLock {
    fn drop(&mut self) {
        self.0.state().is_locked = false;
    }
}

impl Store for Disk {
    fn save(&self, record: Arc<Record>) -> BoxFuture<'static, io::Result<()>> {
        self.0.state().disk = Some(Record::clone(&record));
        Box::pin(async { Ok(()) })
    }

    fn load(&self) -> BoxFuture<'static, Result<Option<Record>, StoreError>> {
        let record = self.0.state().disk.clone();
        Box::pin(async { Ok(record) })
    }

    fn lock_holder(&self) -> BoxFuture<'static, Option<u32>> {
        Box::pin(async { None })
    }

    fn try_lock(&self) -> BoxFuture<'static, io::Result<Option<Lock>>> {
        let is_free = !std::mem::replace(&mut self.0.state().is_locked, true);
        let lock = is_free.then(|| Box::new(DiskLock(Arc::clone(&self.0))) as Lock);
        Box::pin(async { Ok(lock) })
    }
}
