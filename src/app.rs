//! Composition: builds a running proxy from a validated configuration, and ends it in order.
//!
//! What exists, in the order in which [`App::start`] builds it:
//!
//! | part | role | runs on |
//! |---|---|---|
//! | [`Bound`] addresses | held first, so that a second instance fails before it touches a file | – |
//! | [`DescriptorBudget`] | divides the limit of open files between clients, upstreams and admin | – |
//! | [`upstream::Shared`] | endpoints, TLS settings and addresses of each upstream; a task resolves names and checks addresses | this runtime |
//! | [`Refresher`] | keeps the token valid; all other parts read its [`Credential`] | this runtime |
//! | [`Proxy`] | the data path: single-threaded workers | a thread for each worker |
//! | [`Reloader`] | rebuilds TLS settings, client keys and the admin token from their files | this runtime |
//! | [`admin::Server`] | health, metrics, status | this runtime |
//!
//! "This runtime" is the one that calls [`App::start`]. The workers share no thread with it, so
//! that no background task delays a request.
//!
//! [`App::shut_down`] ends the parts in this order: readiness off; `proxy.drain_delay`; the
//! workers, once their requests are complete or `proxy.drain_timeout` is over; the refresher, once
//! a refresh that was sent is stored; the reloader; the admin endpoint.

use std::{future::poll_fn, io, pin::Pin, sync::Arc, task::Poll, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    admin,
    base::{clock::SharedClock, descriptors::DescriptorBudget, process},
    config::Config,
    net::{
        reload::{Reload, ReloadHandle, Reloadable, Reloader},
        resolve::SystemResolver,
        socket::{Address, Bound},
        tls,
    },
    proxy::{self, Proxy, message::observed},
    token::{self, Credential, Refresher},
    upstream,
};

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {}", explained(.source))]
    Listen {
        /// The address.
        address: Address,
        /// The error of the system.
        source: io::Error,
    },
    /// A listener's certificate, key or client authorities cannot be used.
    #[error(transparent)]
    ListenerTls(#[from] tls::Error),
    /// The admin endpoint's token cannot be used.
    #[error(transparent)]
    AdminToken(#[from] admin::TokenError),
    /// The state file cannot be used, or the issuer's HTTP client cannot be built.
    #[error(transparent)]
    Token(#[from] token::Error),
    /// The TLS settings or the server name of an upstream cannot be used.
    #[error(transparent)]
    Upstream(#[from] upstream::SetupError),
    /// The system refuses a thread or a socket.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

fn explained(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there already (stop it, or choose another port)".into()
        }
        io::ErrorKind::PermissionDenied => {
            "the system does not allow it (ports below 1024 need a privilege)".into()
        }
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address".into(),
        _ => error.to_string(),
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct App {
    proxy: Proxy,
    upkeep: Vec<Task>,
    refresher: Task,
    reloader: Task,
    admin: Option<Task>,

    credential: Credential,
    reload: ReloadHandle,
    addresses: Vec<Address>,
    admin_address: Option<Address>,
    drain_delay: Duration,
    /// Cancelled when the shutdown begins; `/readyz` reports it.
    draining: CancellationToken,
    /// Stops every part when this is dropped without a shutdown.
    _stop: DropGuard,
}

impl App {
    /// Builds and starts all parts.
    ///
    /// # Errors
    /// When an address cannot be bound, or a file has become unusable since the configuration was
    /// validated.
    pub fn start(mut config: Config, clock: SharedClock) -> Result<Self, Error> {
        // All addresses first: a second instance fails here, before it touches a file of the first.
        let bound = bind_all(&config.proxy.listeners)?;
        let admin = config.admin.take().map(AdminListener::bind).transpose()?;
        Self::build(config, bound, admin, clock)
    }

    fn build(
        config: Config,
        bound: Vec<Bound>,
        admin: Option<AdminListener>,
        clock: SharedClock,
    ) -> Result<Self, Error> {
        let addresses = bound.iter().map(|bound| bound.address().clone()).collect();
        let admin_address = admin.as_ref().map(|admin| admin.bound.address().clone());
        let descriptors = divide_descriptors(&config.proxy);
        let proxies = config.outbound_proxies();
        let upstreams = share_upstreams(
            config.upstreams,
            descriptors.upstream,
            config.proxy.workers,
            &clock,
        )?;
        let stop = CancellationToken::new();
        let stop_on_drop = stop.clone().drop_guard();
        // First, so that names are resolved when the first requests come.
        let resolver = SystemResolver::shared();
        let upkeep = upstreams.iter().map(|shared| {
            let (shared, resolver) = (shared.clone(), resolver.clone());
            Task::spawn(&stop, |stop| shared.upkeep(resolver, stop))
        });
        let upkeep = upkeep.collect();
        let initial_grant = Some(&config.initial_grant);
        let (refresher, credential) = Refresher::new(config.token, initial_grant, clock.clone())?;
        let listeners = add_tls(bound, &config.proxy.listeners)?;
        let mut reloadables = reloadables(&listeners, &upstreams, &refresher, admin.as_ref());

        let drain_delay = config.proxy.drain_delay;
        let json_pointer = observed::pointer(config.proxy.retry.json.as_ref()).to_owned();
        let proxy = Proxy::start(
            config.proxy,
            listeners,
            upstreams.clone(),
            vec![credential.clone()],
            clock.clone(),
            descriptors.clients,
            stop.child_token(),
        )?;
        reloadables.push(proxy.reloadable());
        reloadables.extend(proxies.iter().filter_map(|proxy| proxy.reloadable()));
        let (reloader, reload) = Reloader::new(reloadables, clock);

        let draining = CancellationToken::new();
        let sources = admin::Sources {
            credential: credential.clone(),
            workers: proxy.metrics(),
            upstreams,
            reload: reload.clone(),
            json_pointer,
            draining: draining.clone(),
        };
        let admin = admin.map(|admin| admin.server(descriptors.admin, sources));
        let admin = admin.transpose()?;
        Ok(Self {
            proxy,
            upkeep,
            refresher: Task::spawn(&stop, |stop| refresher.run(stop)),
            reloader: Task::spawn(&stop, |stop| reloader.run(stop)),
            admin: admin.map(|admin| Task::spawn(&stop, |stop| admin.run(stop))),
            credential,
            reload,
            addresses,
            admin_address,
            drain_delay,
            draining,
            _stop: stop_on_drop,
        })
    }

    /// Reads all files beside the configuration again: secrets, the state file, certificates,
    /// client keys, the admin token.
    pub fn reload_files(&self) {
        self.credential.reload();
        self.reload.reload();
    }

    /// The addresses of the listeners, with the ports that the system chose for 0.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The address of the admin endpoint, if there is one.
    pub fn admin_address(&self) -> Option<&Address> {
        self.admin_address.as_ref()
    }

    /// The credential.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// Resolves with the name of a part that has ended by itself, which only a panic can cause. The
    /// proxy cannot go on without it; the process should end and be restarted.
    pub async fn failed(&mut self) -> &'static str {
        poll_fn(|cx| {
            let tasks = [
                ("the token refresher", Some(&mut self.refresher)),
                (
                    "the reload of certificates and client keys",
                    Some(&mut self.reloader),
                ),
                ("the admin endpoint", self.admin.as_mut()),
            ];
            for (name, task) in tasks {
                if task.is_some_and(|task| Pin::new(&mut task.running).poll(cx).is_ready()) {
                    return Poll::Ready(name);
                }
            }
            self.proxy.poll_failed(cx).map(|()| "a worker")
        })
        .await
    }

    /// Ends all parts in order, see the module documentation. Returns when the last one has ended.
    pub async fn shut_down(self) {
        self.draining.cancel();
        self.credential.drain();
        if !self.drain_delay.is_zero() {
            tokio::time::sleep(self.drain_delay).await;
        }
        self.proxy.drain().await;
        for upkeep in self.upkeep {
            upkeep.end().await;
        }
        self.refresher.end().await;
        self.reloader.end().await;
        if let Some(admin) = self.admin {
            admin.end().await;
        }
    }
}

/// A background task and the token that stops it.
#[derive(Debug)]
struct Task {
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Task {
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        parent: &CancellationToken,
        start: impl FnOnce(CancellationToken) -> F,
    ) -> Self {
        let stop = parent.child_token();
        Self {
            running: tokio::spawn(start(stop.clone())),
            stop,
        }
    }

    async fn end(self) {
        self.stop.cancel();
        // An error means that the task has panicked, which is logged already.
        let _ = self.running.await;
    }
}

/// The admin endpoint before it is served.
struct AdminListener {
    bound: Bound,
    guard: proxy::policy::guard::GuardConfig,
    token: Option<Arc<admin::Token>>,
}

impl AdminListener {
    fn bind(config: admin::Config) -> Result<Self, Error> {
        Ok(Self {
            bound: bind(&config.listener.address)?,
            token: config.token()?,
            guard: config.listener.guard,
        })
    }

    fn server(self, max_connections: usize, sources: admin::Sources) -> io::Result<admin::Server> {
        admin::Server::new(self.guard, self.token, self.bound, max_connections, sources)
    }
}

fn bind(address: &Address) -> Result<Bound, Error> {
    Bound::new(address).map_err(|source| Error::Listen {
        address: address.clone(),
        source,
    })
}

fn bind_all(listeners: &[proxy::Listener]) -> Result<Vec<Bound>, Error> {
    listeners
        .iter()
        .map(|listener| bind(&listener.address))
        .collect()
}

/// Adds the TLS settings of each listener that has any.
fn add_tls(
    bound: Vec<Bound>,
    listeners: &[proxy::Listener],
) -> Result<Vec<(Bound, Option<proxy::ServerTls>)>, tls::Error> {
    bound
        .into_iter()
        .zip(listeners)
        .map(|(bound, listener)| {
            let tls = listener.tls.as_ref();
            let tls = tls.map(|config| listener_tls(bound.address(), config));
            Ok((bound, tls.transpose()?))
        })
        .collect()
}

fn listener_tls(
    address: &Address,
    config: &tls::ServerConfig,
) -> Result<proxy::ServerTls, tls::Error> {
    let config = config.clone();
    let certificate = Some(config.cert_file.clone());
    let tls = Reloadable::new(
        format!("listener:{address}"),
        config.files().collect::<Vec<_>>(),
        certificate,
        move || tls::server_config(&config, proxy::ALPN),
    )?;
    Ok(Arc::new(tls))
}

/// Divides the limit of open files, and warns where it allows less than `proxy.max_connections`.
fn divide_descriptors(config: &proxy::Config) -> DescriptorBudget {
    let (limit, configured) = (process::descriptor_limit(), config.limits.connections);
    let budget = DescriptorBudget::new(limit, config.workers, config.listeners.len(), configured);
    if budget.clients < configured {
        tracing::warn!(
            "the limit of open files, {limit}, allows {} client connections, fewer than \
             proxy.max_connections ({configured}): raise the limit (`ulimit -Hn`, LimitNOFILE= of \
             systemd), or lower the key",
            budget.clients,
        );
    }
    budget
}

/// Upstreams whose connections together take at most `max_sockets` descriptors.
fn share_upstreams(
    configs: Vec<upstream::Config>,
    max_sockets: usize,
    workers: usize,
    clock: &SharedClock,
) -> Result<Vec<upstream::Shared>, upstream::SetupError> {
    let sockets = upstream::Sockets::new(max_sockets);
    configs
        .into_iter()
        .map(|config| upstream::Shared::new(config, &sockets, workers, clock.clone()))
        .collect()
}

/// The values that are rebuilt when their files change, without the client keys, which the data path
/// creates.
fn reloadables(
    listeners: &[(Bound, Option<proxy::ServerTls>)],
    upstreams: &[upstream::Shared],
    refresher: &Refresher,
    admin: Option<&AdminListener>,
) -> Vec<Arc<dyn Reload>> {
    let listener_tls = listeners.iter().filter_map(|(_, tls)| tls.clone());
    let mut reloadables: Vec<_> = listener_tls.map(erase).collect();
    reloadables.extend(upstreams.iter().filter_map(upstream::Shared::reloadable));
    reloadables.extend(refresher.reloadables().iter().cloned());
    reloadables.extend(admin.and_then(|admin| admin.token.clone()).map(erase));
    reloadables
}

fn erase<T: Send + Sync + 'static>(value: Arc<Reloadable<T>>) -> Arc<dyn Reload> {
    value
}
