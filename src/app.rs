//! Composition: a validated configuration becomes running listeners, workers and tasks, and ends as one.
//!
//! The workers have threads of their own; everything else (refresher, admin, logging of transitions) runs on the runtime
//! that calls [`App::start`], so that none of it delays a request.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    admin,
    base::{clock::SharedClock, descriptors::DescriptorBudget, process},
    config::Config,
    net::{
        reload,
        socket::{Address, Bound},
        tls,
    },
    proxy::{self, Proxy, message::observed as seen},
    token::{self, Credential, InitialGrant, Refresher, jwt_grant::JwtGrant},
    upstream,
};

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process serves there, or the system does not allow it.
    #[error("cannot listen on {address}: {}", explained(.source))]
    Listen {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// A listener's certificate, key or authorities.
    #[error(transparent)]
    ListenerTls(#[from] tls::Error),
    /// The admin endpoint's token.
    #[error(transparent)]
    AdminToken(#[from] admin::TokenError),
    /// The state file, or what the issuer's client needs.
    #[error(transparent)]
    Token(#[from] token::Error),
    /// What the upstream's connections need.
    #[error(transparent)]
    Upstream(#[from] upstream::SetupError),
    /// The system refuses threads or sockets.
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

fn greeting(
    bound: &Bound,
    config: Option<&tls::ServerConfig>,
) -> Result<Option<proxy::Greeting>, tls::Error> {
    let Some(config) = config.cloned() else {
        return Ok(None);
    };
    let name = format!("listener:{}", bound.address());
    let (files, certificate) = (
        config.files().collect::<Vec<_>>(),
        Some(config.cert_file.clone()),
    );
    let make = move || tls::server_config(&config, proxy::ALPN);
    Ok(Some(Arc::new(reload::Reloadable::new(
        name,
        files,
        certificate,
        make,
    )?)))
}

/// Lowers `proxy.max_connections` to what the limit of open files allows, and says so.
fn share_descriptors(config: &mut proxy::Config) -> DescriptorBudget {
    let (limit, configured) = (process::descriptor_limit(), config.limits.connections);
    let shares = DescriptorBudget::new(limit, config.workers, config.listeners.len(), configured);
    if shares.clients < configured {
        tracing::warn!(
            "the limit of open files, {limit}, allows {} connections from apps, fewer than proxy.max_connections \
             ({configured}): raise the limit (`ulimit -Hn`, LimitNOFILE= of systemd), or lower the key",
            shares.clients,
        );
    }
    config.limits.connections = shares.clients;
    shares
}

/// A running proxy.
#[derive(Debug)]
pub struct App {
    proxy: Proxy,
    drain_delay: Duration,
    credential: Credential,
    reload: reload::ReloadHandle,
    addresses: Vec<Address>,
    admin_address: Option<Address>,
    draining: Arc<AtomicBool>,
    refresher: Task,
    reloader: Task,
    admin: Option<Task>,
}

/// A task and the way to ask it to end.
#[derive(Debug)]
struct Task {
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Task {
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        start: impl FnOnce(oneshot::Receiver<()>) -> F,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self {
            stop,
            running: tokio::spawn(start(stopped)),
        }
    }

    async fn end(self) {
        // Fails only if it has ended by itself.
        let _ = self.stop.send(());
        let _ = self.running.await;
    }
}

fn bind(address: &Address) -> Result<Bound, Error> {
    Bound::new(address).map_err(|source| Error::Listen {
        address: address.clone(),
        source,
    })
}

impl App {
    /// Binds everything first, so that a second instance touches nothing that belongs to the first; then starts.
    ///
    /// # Errors
    /// When an address is taken, or a file that was fine when it was checked no longer is.
    pub fn start(mut config: Config, clock: SharedClock) -> Result<Self, Error> {
        let bound = config
            .proxy
            .listeners
            .iter()
            .map(|listener| bind(&listener.address))
            .collect::<Result<Vec<_>, _>>()?;
        let admin_bound = config
            .admin
            .as_ref()
            .map(|admin| bind(&admin.listener.address))
            .transpose()?;
        let addresses = bound.iter().map(|bound| bound.address().clone()).collect();
        let admin_address = admin_bound.as_ref().map(|bound| bound.address().clone());

        let shares = share_descriptors(&mut config.proxy);
        let sockets = upstream::Sockets::new(shares.upstream);
        let shared = config
            .upstreams
            .into_iter()
            .map(|upstream| upstream::Shared::new(upstream, &sockets));
        let shared: Vec<_> = shared.collect::<Result<_, _>>()?;
        let upstreams = shared
            .iter()
            .map(|upstream| upstream.config().clone())
            .collect();
        let token_wait = config.token.wait;
        let initial_grant = JwtGrant::new(
            &config.initial_grant,
            &config.token.issuer,
            SharedClock::clone(&clock),
        )
        .map_err(token::Error::from)?
        .map(|grant| Box::new(grant) as Box<dyn InitialGrant>);
        let (refresher, credential) =
            Refresher::new(config.token, initial_grant, SharedClock::clone(&clock))?;
        let drain_delay = config.proxy.drain_delay;
        let json_pointer = seen::pointer(config.proxy.retry.json.as_ref()).to_owned();
        let greetings = bound
            .iter()
            .zip(&config.proxy.listeners)
            .map(|(bound, listener)| greeting(bound, listener.tls.as_ref()));
        let greetings = greetings.collect::<Result<Vec<_>, _>>()?;
        let reloadables = greetings
            .iter()
            .flatten()
            .map(|greeting| Arc::clone(greeting) as Arc<dyn reload::Reload>);
        let reloadables = reloadables
            .chain(shared.iter().filter_map(upstream::Shared::reloadable))
            .chain(refresher.reloadable());
        let mut reloadables: Vec<_> = reloadables.collect();
        let bound = bound.into_iter().zip(greetings).collect();
        let proxy = Proxy::start(config.proxy, bound, shared, credential.clone(), token_wait)?;
        reloadables.push(proxy.reloadable());
        let admin_token = config
            .admin
            .as_ref()
            .map(admin::Config::token)
            .transpose()?
            .flatten();
        reloadables.extend(
            admin_token
                .iter()
                .map(|token| Arc::<admin::Token>::clone(token) as Arc<dyn reload::Reload>),
        );
        let (reloader, reload) = reload::Reloader::new(reloadables, clock);
        let draining = Arc::new(AtomicBool::new(false));
        let admin = match config.admin.zip(admin_bound) {
            None => None,
            Some((admin, bound)) => {
                let sources = admin::Sources {
                    credential: credential.clone(),
                    workers: proxy.metrics(),
                    upstreams,
                    reload: reload.clone(),
                    json_pointer,
                    draining: Arc::clone(&draining),
                };
                let server = admin::Server::new(
                    admin.listener.guard,
                    admin_token,
                    bound,
                    shares.admin,
                    sources,
                )?;
                Some(Task::spawn(|stop| server.run(async { drop(stop.await) })))
            }
        };
        let refresher = Task::spawn(|stop| refresher.run(async { drop(stop.await) }));
        let reloader = Task::spawn(|stop| reloader.run(async { drop(stop.await) }));
        Ok(Self {
            proxy,
            drain_delay,
            credential,
            reload,
            addresses,
            admin_address,
            draining,
            refresher,
            reloader,
            admin,
        })
    }

    /// Has everything read again that comes from files beside the configuration: secrets, the state file, certificates, clients' keys.
    pub fn reload_files(&self) {
        self.credential.reload();
        self.reload.reload();
    }

    /// Where apps reach the proxy, with the ports that were chosen for 0.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Where the admin endpoint is.
    pub fn admin_address(&self) -> Option<&Address> {
        self.admin_address.as_ref()
    }

    /// The credential, to watch it.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// Resolves when a part that has to last has ended by itself, after a panic in it: this process is of no use any more.
    /// Says which part.
    pub async fn failed(&mut self) -> &'static str {
        poll_fn(|cx| {
            let tasks = [
                ("what keeps the token fresh", Some(&mut self.refresher)),
                (
                    "what keeps certificates and the keys of clients up to date",
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

    /// Ends in order: not ready any more, a while for load balancers to notice, requests in flight, the token refresher (a
    /// refresh that was sent is waited for and stored), the admin endpoint last.
    pub async fn shut_down(self) {
        self.draining.store(true, Relaxed);
        if !self.drain_delay.is_zero() {
            tokio::time::sleep(self.drain_delay).await;
        }
        self.proxy.drain().await;
        self.refresher.end().await;
        self.reloader.end().await;
        if let Some(admin) = self.admin {
            admin.end().await;
        }
    }
}
