//! The simulated private cloud: an issuer of tokens, a small file API behind a bearer check, and faults on demand.
//!
//! It serves two listeners: the cloud itself, and the *document host*, to which uploads and downloads are sent by absolute
//! address and which asks for no bearer token.
//!
//! # The issuer
//!
//! | interface | answer |
//! |---|---|
//! | `GET /api/authorize.do?response_type=code&client_id=&redirect_uri=&data=` | 302 to `redirect_uri?code=…&data=…`; consent is given at once |
//! | `GET /api/authorizeByJWT.do?response_type=code&client_id=&jwt_token=` | `{"code":0,"success":true,"data":{"code":…}}`, or a 302 if so configured. The payload of the JWT must name the client; **its signature is not checked** |
//! | `POST /api/token.do?grant_type=authorization_code&code=&redirect_uri=` | tokens; HTTP Basic with the raw id and secret |
//! | `POST /api/refreshToken.do?grant_type=refresh_token&refresh_token=` | tokens; HTTP Basic with the raw id and secret |
//!
//! Tokens are `{"access_token":…,"refresh_token":…,"expires_in":seconds}`; errors are those of RFC 6749 §5.2. Parameters of
//! the last two are also taken from a form body.
//!
//! # The files
//!
//! Answers are `{"code":0,"success":true,…}`, failures `{"code":status,"success":false,"message":…}`. Each path also works
//! below `/nd`. There is one flat folder; any `parent_id` means it.
//!
//! | interface | answer |
//! |---|---|
//! | `GET /api/file/list.do` | `files`: a list of `file_id`, `name`, `size` |
//! | `GET /api/file/info.do?file_id=` | `file_id`, `name`, `size` |
//! | `GET /api/file/preUploadFile.do?parent_id=&name=[&file_id=]` | `upload_token`, `url` on the document host, for one use within an hour |
//! | `POST {url}?upload_token=` on the document host | stores the body: `file_id`, `name`, `size` |
//! | `GET /api/file/download.do?file_id=` | `url` on the document host, for an hour; takes a single `Range` |
//! | `GET`, `POST`, `DELETE /api/file/delete.do?file_id=` | nothing more |
//! | any method, `/api/echo.do` | `method`, `path`, `query`, `headers` (tokens shown as `token #<serial>`), `authorization_count`, `body_length`, `body_sha256` |
//! | `GET /api/bytes.do?size=` | so many bytes: 0, 1, … 250, 0, 1, … |

mod body;
mod faults;
mod file_api;
mod files;
mod http;
mod oauth_api;
mod simulate;
mod tokens;

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    sync::broadcast,
    task::{JoinHandle, JoinSet},
};

pub use self::{
    faults::{Faults, IssuerAnswer},
    simulate::{SimulateArgs, simulate},
};
use self::{
    files::Files,
    tokens::{Issuer, Rules, random_token},
};
use crate::base::clock::SharedClock;

/// How many requests [`Cloud::received`] remembers.
const REMEMBERED: usize = 1000;

/// What a simulated cloud is made of.
#[derive(Clone)]
pub struct Config {
    /// Where the issuer and the file interfaces listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the document host listens.
    pub document_listen: SocketAddr,
    /// The document host's origin as others reach it, without a slash at the end; by default its listening address.
    pub document_origin: Option<String>,
    /// The one client.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: String,
    /// The one redirect URI, compared as text. `None` takes any.
    pub redirect_uri: Option<String>,
    /// Whether `authorizeByJWT.do` answers a code by 302 instead of JSON.
    pub jwt_redirects: bool,
    /// Refresh tokens that are valid at the start; if there are none, one is made up.
    pub seeds: Vec<String>,
    /// How long an access token lives.
    pub token_lifetime: Duration,
    /// How long a refresh token lives.
    pub refresh_lifetime: Duration,
    /// Whether each refresh replaces the refresh token.
    pub rotate: bool,
    /// How long after its replacement a refresh token may be used again without harm.
    pub reuse_grace: Duration,
    /// Where files are kept; in memory if `None`.
    pub folder: Option<PathBuf>,
    /// Bytes that files in memory may take together.
    pub memory_limit: usize,
}

impl Config {
    /// A cloud on two free loopback ports: one-hour tokens, rotation without grace, files in memory (256 MiB).
    pub fn new(client_id: impl Into<String>, client_secret: impl Into<String>) -> Self {
        let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: free_port,
            document_listen: free_port,
            document_origin: None,
            client_id: client_id.into(),
            client_secret: client_secret.into(),
            redirect_uri: None,
            jwt_redirects: false,
            seeds: Vec::new(),
            token_lifetime: Duration::from_secs(60 * 60),
            refresh_lifetime: Duration::from_secs(30 * 24 * 60 * 60),
            rotate: true,
            reuse_grace: Duration::ZERO,
            folder: None,
            memory_limit: 256 << 20,
        }
    }
}

/// What happened at the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Tokens were granted.
    Refreshed {
        /// The number of the access token, from 1.
        serial: u64,
        /// How long it lives.
        lifetime: Duration,
    },
    /// A token interface answered with an error.
    RefreshRefused {
        /// The OAuth error code, or what the script made of the call.
        error: String,
    },
    /// A spent refresh token was used, or [`Cloud::revoke_families`] called.
    FamilyRevoked,
    /// A file interface refused a bearer token.
    Rejected {
        /// The path of the request.
        path: String,
    },
}

/// A request as it arrived at either listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// How many `Authorization` lines there were.
    pub authorization_count: usize,
    /// The number of the access token, if it is one of this cloud's, valid or not.
    pub serial: Option<u64>,
    /// The status that was answered.
    pub status: u16,
}

/// A running simulated cloud. Dropping it stops it.
pub struct Cloud {
    state: Arc<State>,
    origin: String,
    seed: String,
    servers: Mutex<Vec<JoinHandle<()>>>,
}

/// Which listener a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Cloud,
    Document,
}

struct State {
    config: Config,
    clock: SharedClock,
    document_origin: String,
    issuer: Mutex<Issuer>,
    files: Files,
    faults: Mutex<Faults>,
    received: Mutex<VecDeque<Received>>,
    events: broadcast::Sender<Event>,
    issuer_calls: AtomicU64,
    issuer_successes: AtomicU64,
    families_revoked: AtomicU64,
    file_requests: AtomicU64,
}

impl Cloud {
    /// Binds both listeners and serves them on the current runtime.
    ///
    /// # Errors
    /// When an address cannot be bound, the folder cannot be created, or the system has no random bytes.
    pub async fn start(mut config: Config, clock: SharedClock) -> io::Result<Self> {
        if config.seeds.is_empty() {
            config.seeds.push(random_token()?);
        }
        let cloud = bind(config.listen).await?;
        let document = bind(config.document_listen).await?;
        let rules = Rules {
            token_lifetime: config.token_lifetime,
            refresh_lifetime: config.refresh_lifetime,
            rotate: config.rotate,
            reuse_grace: config.reuse_grace,
        };
        let seed = config.seeds[0].clone();
        let document_origin = match &config.document_origin {
            Some(origin) => origin.clone(),
            None => origin(document.local_addr()?),
        };
        let state = Arc::new(State {
            document_origin,
            issuer: Mutex::new(Issuer::new(rules, &config.seeds, clock.now())),
            files: Files::new(config.folder.clone(), config.memory_limit)?,
            faults: Mutex::default(),
            received: Mutex::default(),
            events: broadcast::channel(REMEMBERED).0,
            issuer_calls: AtomicU64::default(),
            issuer_successes: AtomicU64::default(),
            families_revoked: AtomicU64::default(),
            file_requests: AtomicU64::default(),
            config,
            clock,
        });
        let origin = origin(cloud.local_addr()?);
        let servers = [(cloud, Host::Cloud), (document, Host::Document)]
            .map(|(listener, host)| tokio::spawn(serve(listener, host, Arc::clone(&state))));
        Ok(Self {
            state,
            origin,
            seed,
            servers: Mutex::new(servers.into()),
        })
    }

    /// The cloud's origin: `http://127.0.0.1:port`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The document host's origin.
    pub fn document_origin(&self) -> &str {
        &self.state.document_origin
    }

    /// A refresh token that was valid at the start.
    pub fn seed(&self) -> &str {
        &self.seed
    }

    /// What goes wrong, to be read and changed. Do not hold it across an await.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.state.faults)
    }

    /// Makes every access token invalid; refresh tokens stay.
    pub fn revoke_access_tokens(&self) {
        lock(&self.state.issuer).revoke_access_tokens();
    }

    /// Makes every token invalid, as an administrator who withdraws all grants.
    pub fn revoke_families(&self) {
        let families = lock(&self.state.issuer).revoke_families();
        for _ in 0..families {
            self.state.family_revoked();
        }
    }

    /// Calls of the two token interfaces.
    pub fn issuer_calls(&self) -> u64 {
        self.state.issuer_calls.load(Relaxed)
    }

    /// Calls of the two token interfaces that were granted tokens.
    pub fn issuer_successes(&self) -> u64 {
        self.state.issuer_successes.load(Relaxed)
    }

    /// Families that were revoked so far.
    pub fn families_revoked(&self) -> u64 {
        self.state.families_revoked.load(Relaxed)
    }

    /// Requests to the interfaces behind the bearer check, refused ones included.
    pub fn file_requests(&self) -> u64 {
        self.state.file_requests.load(Relaxed)
    }

    /// The last 1,000 requests that were answered, at both listeners, oldest first.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.state.received).iter().cloned().collect()
    }

    /// What happens from now on. A receiver that falls 1,000 events behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.state.events.subscribe()
    }

    /// Closes both listeners and every connection at once.
    pub async fn shut_down(&self) {
        let servers = std::mem::take(&mut *lock(&self.servers));
        for server in servers {
            server.abort();
            // The only error is the abort itself.
            let _ = server.await;
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        lock(&self.servers).iter().for_each(JoinHandle::abort);
    }
}

impl State {
    fn send(&self, event: Event) {
        // Nobody has to listen.
        let _ = self.events.send(event);
    }

    fn family_revoked(&self) {
        self.families_revoked.fetch_add(1, Relaxed);
        self.send(Event::FamilyRevoked);
    }

    fn remember(&self, request: Received) {
        let mut received = lock(&self.received);
        if received.len() == REMEMBERED {
            received.pop_front();
        }
        received.push_back(request);
    }
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })
}

/// The origin by which this machine reaches the address.
fn origin(mut address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("http://{address}")
}

/// Accepts for ever. The connections end with this future.
async fn serve(listener: TcpListener, host: Host, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, or the caller went away: give other tasks time before the next attempt.
            state
                .clock
                .sleep_until(state.clock.now() + Duration::from_millis(10))
                .await;
            continue;
        };
        // Only a matter of speed.
        let _ = stream.set_nodelay(true);
        let state = Arc::clone(&state);
        let service = service_fn(move |request| {
            let state = Arc::clone(&state);
            async move { Ok::<_, Infallible>(http::answer(&state, host, request).await) }
        });
        connections.spawn(async move {
            // A connection that breaks is the caller's affair.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
