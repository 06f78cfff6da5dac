//! A refresher with a simulated clock, a scripted issuer and a scripted store. All calls and writes
//! are recorded.

use std::{
    io,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(super) use crate::base::log::capture::Log;
use crate::{
    base::{
        clock::{Clock, Moment, SharedClock, Simulated},
        secret::Secret,
    },
    token::{
        Config, Credential, Failure, FailureClass, Outcome, Reason, State, StoreError, Token,
        TokenResponse,
        deadline::CallDeadline,
        initial_grant::InitialGrant,
        issuer::Issuer,
        refresher::{Refresher, Storage},
        store::{Lock, Record, Store},
        testing,
    },
};

/// More simulated time than any test needs.
const TIME_LIMIT: Duration = seconds(400 * 24 * 3600);

pub(super) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The response of a working issuer to its nth call.
pub(super) fn grant(n: usize, lifetime: Duration) -> TokenResponse {
    TokenResponse {
        access_token: Secret::new(format!("access-{n}")),
        refresh_token: Some(Secret::new(format!("refresh-{n}"))),
        lifetime,
        refresh_lifetime: Some(seconds(30 * 24 * 3600)),
    }
}

pub(super) fn failure(class: FailureClass) -> Result<TokenResponse, Failure> {
    Err(Failure::new(class, "as scripted"))
}

/// A refused client, with other failures in between.
pub(super) fn refused(n: usize) -> Result<TokenResponse, Failure> {
    failure(if n.is_multiple_of(3) {
        FailureClass::Unreachable
    } else {
        FailureClass::ClientRefused
    })
}

type Response = Box<dyn Fn(usize) -> Result<TokenResponse, Failure> + Send + Sync>;
type WriteTime = Box<dyn Fn(usize) -> Duration + Send + Sync>;
type WriteResult = Box<dyn Fn(usize) -> io::Result<()> + Send + Sync>;

/// One call of the issuer.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) at: Moment,
    pub(super) sent: String,
}

/// One write of the store.
#[derive(Debug, Clone)]
pub(super) struct Save {
    pub(super) at: Moment,
    pub(super) generation: u64,
    pub(super) refresh_token: String,
    /// The generation that was published when the write ended.
    pub(super) published: Option<u64>,
    pub(super) record: Arc<Record>,
}

pub(super) struct Setup {
    response: Response,
    latency: Duration,
    client_secrets: usize,
    write_time: WriteTime,
    write_result: WriteResult,
    refresh_token: Option<Secret>,
    initial_grant: Option<Response>,
    grace_retry: bool,
    grace_period: Duration,
    record: Option<Record>,
    machine: Option<(Arc<Simulated>, Arc<Disk>)>,
}

impl Setup {
    pub(super) fn new(
        response: impl Fn(usize) -> Result<TokenResponse, Failure> + Send + Sync + 'static,
    ) -> Self {
        Self {
            response: Box::new(response),
            latency: Duration::ZERO,
            client_secrets: 0,
            write_time: Box::new(|_| Duration::ZERO),
            write_result: Box::new(|_| Ok(())),
            refresh_token: Some(Secret::new("seed")),
            initial_grant: None,
            grace_retry: true,
            grace_period: seconds(5),
            record: None,
            machine: None,
        }
    }

    pub(super) fn latency(self, latency: Duration) -> Self {
        Self { latency, ..self }
    }

    /// The client secret has changed each of the first `client_secrets` times that it is read
    /// again.
    pub(super) fn client_secrets(self, client_secrets: usize) -> Self {
        Self {
            client_secrets,
            ..self
        }
    }

    pub(super) fn store(
        self,
        time: impl Fn(usize) -> Duration + Send + Sync + 'static,
        result: impl Fn(usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            write_time: Box::new(time),
            write_result: Box::new(result),
            ..self
        }
    }

    pub(super) fn refresh_token(self, token: &str) -> Self {
        Self {
            refresh_token: Some(Secret::new(token)),
            ..self
        }
    }

    pub(super) fn refresh_token_file(self, file: &std::path::Path) -> Self {
        Self {
            refresh_token: Some(Secret::from_file(file.to_owned()).expect("readable")),
            ..self
        }
    }

    /// Configures an initial grant; its calls send no refresh token.
    pub(super) fn initial_grant(
        self,
        response: impl Fn(usize) -> Result<TokenResponse, Failure> + Send + Sync + 'static,
    ) -> Self {
        Self {
            initial_grant: Some(Box::new(response)),
            ..self
        }
    }

    pub(super) fn no_grace_retry(self) -> Self {
        Self {
            grace_retry: false,
            ..self.grace_period(Duration::ZERO)
        }
    }

    pub(super) fn grace_period(self, grace_period: Duration) -> Self {
        Self {
            grace_period,
            ..self
        }
    }

    pub(super) fn no_refresh_token(self) -> Self {
        Self {
            refresh_token: None,
            ..self
        }
    }

    pub(super) fn record(self, record: Record) -> Self {
        Self {
            record: Some(record),
            ..self
        }
    }

    /// Another process on the same machine.
    pub(super) fn beside(self, harness: &Harness) -> Self {
        Self {
            machine: Some((Arc::clone(&harness.clock), Arc::clone(&harness.store.disk))),
            ..self
        }
    }

    pub(super) fn start(self) -> Harness {
        let (clock, disk) = self.machine.unwrap_or_default();
        if let Some(record) = self.record {
            disk.put(record);
        }
        let issuer = Arc::new(ScriptedCalls {
            clock: Arc::clone(&clock),
            response: self.response,
            latency: self.latency,
            calls: Mutex::default(),
        });
        let store = Arc::new(ScriptedStore {
            clock: Arc::clone(&clock),
            time: self.write_time,
            result: self.write_result,
            saves: Mutex::default(),
            disk: Arc::clone(&disk),
            credential: OnceLock::new(),
        });
        let initial_grant = self.initial_grant.map(|response| {
            let script = ScriptedCalls {
                clock: Arc::clone(&clock),
                response,
                latency: self.latency,
                calls: Mutex::default(),
            };
            Arc::new(script)
        });
        let client_secrets = Arc::new(AtomicUsize::new(self.client_secrets));
        let (refresher, credential) = Refresher::with(
            Config {
                grace_retry: self.grace_retry,
                grace_period: self.grace_period,
                ..testing::config(self.refresh_token)
            },
            Arc::clone(&clock) as SharedClock,
            Box::new(ScriptedIssuer {
                script: Arc::clone(&issuer),
                client_secrets: Arc::clone(&client_secrets),
            }),
            initial_grant
                .clone()
                .map(|script| Box::new(script) as Box<dyn InitialGrant>),
            Storage {
                store: Some(Arc::new(Arc::clone(&store))),
                fleet: None,
            },
            disk.record().unwrap_or_default(),
        );
        assert!(store.credential.set(credential.clone()).is_ok());
        let stop = CancellationToken::new();
        let task = tokio::spawn(refresher.run(stop.clone()));
        Harness {
            clock,
            credential,
            issuer,
            initial_grant,
            store,
            client_secrets,
            running: Some((stop, task)),
        }
    }
}

pub(super) struct Harness {
    pub(super) clock: Arc<Simulated>,
    pub(super) credential: Credential,
    issuer: Arc<ScriptedCalls>,
    initial_grant: Option<Arc<ScriptedCalls>>,
    store: Arc<ScriptedStore>,
    /// How often the client secret has changed when it is read again.
    client_secrets: Arc<AtomicUsize>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Harness {
    /// The cached token, once there is a usable one.
    pub(super) async fn token(&self) -> Arc<Token> {
        self.credential
            .newer_than(None, TIME_LIMIT)
            .await
            .expect("a token")
    }

    pub(super) fn usable(&self) -> Option<Arc<Token>> {
        self.credential
            .token()
            .as_ref()
            .filter(|token| token.is_usable(self.clock.now()))
            .cloned()
    }

    pub(super) async fn until(&self, state: State, reason: Reason) {
        let mut status = self.credential.subscribe();
        let reached = status.wait_for(|status| status.state == state && status.reason == reason);
        let reached = tokio::time::timeout(TIME_LIMIT, reached).await;
        assert!(
            reached.is_ok_and(|reached| reached.is_ok()),
            "{state:?} {reason:?}: {:?}",
            self.credential.snapshot()
        );
    }

    /// Simulated time passes.
    pub(super) async fn pass(&self, time: Duration) {
        self.clock.sleep_until(self.clock.now() + time).await;
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.issuer.calls.lock().unwrap().clone()
    }

    /// Calls of the initial grant.
    pub(super) fn first_calls(&self) -> Vec<Call> {
        self.initial_grant
            .as_ref()
            .map_or_else(Vec::new, |script| script.calls.lock().unwrap().clone())
    }

    /// Times between calls.
    pub(super) fn gaps(&self) -> Vec<Duration> {
        self.calls()
            .windows(2)
            .map(|pair| pair[1].at.saturating_since(pair[0].at))
            .collect()
    }

    /// Every write, intents included.
    pub(super) fn writes(&self) -> Vec<Save> {
        self.store.saves.lock().unwrap().clone()
    }

    /// The writes of new tokens.
    pub(super) fn saves(&self) -> Vec<Save> {
        let is_new = |save: &Save| save.generation > 0 && save.record.intents.is_empty();
        self.writes().into_iter().filter(is_new).collect()
    }

    /// The record that a restart would find.
    pub(super) fn stored(&self) -> Record {
        self.store.disk.record().unwrap_or_default()
    }

    /// The file of the client secret is written.
    pub(super) fn change_client_secret(&self) {
        self.client_secrets.store(1, Relaxed);
    }

    /// What the file watcher does when one of the files may have changed.
    pub(super) fn reread_files(&self) {
        self.credential.reread_files();
    }

    /// Another process writes the file.
    pub(super) fn put(&self, record: Record) {
        self.store.disk.put(record);
    }

    /// The file is removed.
    pub(super) fn remove_stored(&self) {
        *self.store.disk.record.lock().unwrap() = None;
    }

    /// The file cannot be read, or can be read again.
    pub(super) fn make_unreadable(&self, is_unreadable: bool) {
        let is = &self.store.disk.is_unreadable;
        is.store(is_unreadable, Relaxed);
    }

    /// Another process locks or unlocks the file.
    pub(super) fn hold_lock(&self, is_held: bool) {
        self.store.disk.is_locked.store(is_held, Relaxed);
    }

    pub(super) fn count(&self, outcome: Outcome) -> u64 {
        self.credential
            .snapshot()
            .refreshes
            .iter()
            .find(|(label, _)| *label == outcome)
            .expect("counted")
            .1
    }

    /// Shuts the refresher down and waits for its end.
    pub(super) async fn stop(mut self) -> Self {
        let (stop, task) = self.running.take().expect("running");
        stop.cancel();
        tokio::time::timeout(TIME_LIMIT, task)
            .await
            .expect("it ends")
            .expect("without a panic");
        self
    }

    /// A process after this one on the same machine.
    pub(super) async fn restart(self, setup: Setup) -> Self {
        setup.beside(&self.stop().await).start()
    }

    /// The same after [`Harness::stop`].
    pub(super) async fn restart_after(self, setup: Setup) -> Self {
        self.hold_lock(false);
        setup.beside(&self).start()
    }

    /// `kill -9`, and a process after this one.
    pub(super) async fn crash(mut self, setup: Setup) -> Self {
        let (_stop, task) = self.running.take().expect("running");
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
        setup.beside(&self).start()
    }
}

struct ScriptedCalls {
    clock: Arc<Simulated>,
    response: Response,
    latency: Duration,
    calls: Mutex<Vec<Call>>,
}

impl ScriptedCalls {
    async fn call(&self, sent: String) -> Result<TokenResponse, Failure> {
        let n = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(Call {
                at: self.clock.now(),
                sent,
            });
            calls.len()
        };
        if !self.latency.is_zero() {
            self.clock
                .sleep_until(self.clock.now() + self.latency)
                .await;
        }
        (self.response)(n)
    }

    async fn call_until(
        &self,
        sent: String,
        deadline: &CallDeadline,
    ) -> Result<TokenResponse, Failure> {
        let late = Failure::new(FailureClass::Ambiguous, "given up");
        deadline.run(self.call(sent)).await.unwrap_or(Err(late))
    }
}

struct ScriptedIssuer {
    script: Arc<ScriptedCalls>,
    client_secrets: Arc<AtomicUsize>,
}

impl Issuer for ScriptedIssuer {
    fn refresh<'a>(
        &'a self,
        refresh_token: &'a Secret,
        deadline: &'a CallDeadline,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>> {
        let sent = refresh_token.expose().to_owned();
        Box::pin(self.script.call_until(sent, deadline))
    }

    fn reload_client_secret(&mut self) -> BoxFuture<'_, bool> {
        let used = |left: usize| left.checked_sub(1);
        let changed = self
            .client_secrets
            .fetch_update(Relaxed, Relaxed, used)
            .is_ok();
        Box::pin(async move { changed })
    }

    fn client_refused(&mut self) {}

    fn client_fingerprint(&self) -> String {
        self.client_secrets.load(Relaxed).to_string()
    }
}

impl std::fmt::Debug for ScriptedCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScriptedCalls")
    }
}

impl InitialGrant for Arc<ScriptedCalls> {
    fn request_tokens<'a>(
        &'a self,
        deadline: &'a CallDeadline,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>> {
        Box::pin(self.call_until(String::new(), deadline))
    }
}

/// The state file, which all processes of the machine share.
#[derive(Default)]
struct Disk {
    record: Mutex<Option<Record>>,
    is_unreadable: AtomicBool,
    is_locked: AtomicBool,
}

impl Disk {
    fn record(&self) -> Option<Record> {
        self.record.lock().unwrap().clone()
    }

    fn put(&self, record: Record) {
        *self.record.lock().unwrap() = Some(record);
    }
}

struct DiskLock(Arc<Disk>);

impl Drop for DiskLock {
    fn drop(&mut self) {
        self.0.is_locked.store(false, Relaxed);
    }
}

struct ScriptedStore {
    disk: Arc<Disk>,
    clock: Arc<Simulated>,
    time: WriteTime,
    result: WriteResult,
    saves: Mutex<Vec<Save>>,
    credential: OnceLock<Credential>,
}

impl Store for Arc<ScriptedStore> {
    fn save(&self, record: Arc<Record>) -> BoxFuture<'static, io::Result<()>> {
        let store = Arc::clone(self);
        Box::pin(async move {
            let at = store.clock.now();
            let n = store.saves.lock().unwrap().len() + 1;
            let time = (store.time)(n);
            if !time.is_zero() {
                store.clock.sleep_until(at + time).await;
            }
            let credential = store.credential.get().expect("set at the start");
            let save = Save {
                at,
                generation: record.generation,
                refresh_token: record
                    .refresh_token
                    .as_ref()
                    .map_or("", |token| token.secret().expose())
                    .to_owned(),
                published: credential
                    .token()
                    .as_ref()
                    .map(|token| token.version().generation()),
                record: Arc::clone(&record),
            };
            store.saves.lock().unwrap().push(save);
            if store.disk.is_unreadable.load(Relaxed) {
                return Err(io::Error::other("its format 2 is unknown"));
            }
            (store.result)(n).inspect(|()| store.disk.put(Record::clone(&record)))
        })
    }

    fn load(&self) -> BoxFuture<'static, Result<Option<Record>, StoreError>> {
        let record = match self.disk.is_unreadable.load(Relaxed) {
            true => Err(StoreError::Foreign {
                path: "token.json".into(),
                problem: "its format 2 is unknown".to_owned(),
            }),
            false => Ok(self.disk.record()),
        };
        Box::pin(async move { record })
    }

    fn lock_holder(&self) -> BoxFuture<'static, Option<u32>> {
        Box::pin(async { Some(4242) })
    }

    fn try_lock(&self) -> BoxFuture<'static, io::Result<Option<Lock>>> {
        let is_free = !self.disk.is_locked.swap(true, Relaxed);
        let lock = is_free.then(|| Box::new(DiskLock(Arc::clone(&self.disk))) as Lock);
        Box::pin(async move { Ok(lock) })
    }
}
