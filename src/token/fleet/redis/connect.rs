//! Connections to the server that is in charge of the key: asked of the Sentinels, redirected by a
//! cluster, or as configured. Names are resolved and secrets are read anew for each of them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::Value;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::timeout;

use super::{
    fault::{self, Fault},
    link::Link,
    look::Look,
};
use crate::{
    base::{blocking, secret::Secret},
    net::{dial, reload, reload::Reload as _, socket, tls},
    token::{
        endpoint::connect::{self, Tls},
        fleet::{
            config::{RedisConfig, RedisServer},
            register::RegisterError,
        },
    },
};

/// The limit for everything from the resolution of the name to the last response about the server.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// After this time without a connection, the next server is tried beside the ones before it.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Redirections by a cluster that are followed for one connection.
const MAX_HOPS: usize = 3;

/// Why no connection can be made, ever.
#[derive(Debug, thiserror::Error)]
pub(in crate::token) enum Error {
    /// A CA file or the client certificate.
    #[error("the TLS settings for the token store: {0}")]
    Tls(#[from] tls::Error),
    /// `server_name` is not a host name.
    #[error(
        "token.store.tls.server_name: this is not a host name; write the name in the server's \
         certificate, or leave it out"
    )]
    ServerName,
}

/// Opens connections.
#[derive(Debug)]
pub(super) struct Connector {
    servers: Vec<RedisServer>,
    /// The index of the server that is tried first: the last one that worked.
    first: AtomicUsize,
    sentinel: Option<Sentinel>,
    login: Login,
    database: u32,
    tls: Option<Arc<reload::Reloadable<Arc<ClientConfig>>>>,
    server_name: Option<ServerName<'static>>,
    key: String,
}

#[derive(Debug)]
struct Sentinel {
    primary: String,
    login: Login,
}

/// How to authenticate.
#[derive(Debug)]
struct Login {
    user: Option<String>,
    /// As it was read last: a file that is being replaced may be empty or absent.
    password: Option<Mutex<Secret>>,
}

/// A connection that was just made.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) link: Link,
    pub(super) server: RedisServer,
    pub(super) look: Look,
}

impl Connector {
    /// Connects to nothing yet.
    pub(super) fn new(config: &RedisConfig, key: &str) -> Result<Self, Error> {
        let has_tls = config.servers.iter().any(|server| server.is_tls);
        let server_name = config.tls.server_name.clone().map(ServerName::try_from);
        let server_name = server_name.transpose().map_err(|_| Error::ServerName)?;
        let tls = has_tls.then(|| reloadable(&config.tls)).transpose()?;
        Ok(Self {
            servers: config.servers.clone(),
            first: AtomicUsize::new(0),
            sentinel: config.sentinel.clone().map(|primary| Sentinel {
                primary,
                login: Login::new(None, config.sentinel_password.as_ref()),
            }),
            login: Login::new(config.user.as_ref(), config.password.as_ref()),
            database: config.database,
            tls: tls.map(Arc::new),
            server_name,
            key: key.to_owned(),
        })
    }

    /// What reloads the TLS settings when their files change; `None` without TLS.
    pub(super) fn reloadable(&self) -> Option<Arc<dyn reload::Reload>> {
        let tls = self.tls.as_ref()?;
        Some(Arc::clone(tls) as Arc<dyn reload::Reload>)
    }

    /// Connects to the first server that can be used, within [`CONNECT_LIMIT`].
    pub(super) async fn connect(&self) -> Result<Connected, RegisterError> {
        let count = self.servers.len();
        let first = self.first.load(Relaxed);
        let in_order = (0..count).map(|index| (first + index) % count);
        let attempt = async |index: usize| {
            let connected = self.connect_by(&self.servers[index]).await?;
            Ok((index, connected))
        };
        let attempts = dial::first_success(in_order, ATTEMPT_DELAY, attempt);
        let errors = match timeout(CONNECT_LIMIT, attempts).await {
            Ok(Ok((index, connected))) => {
                self.first.store(index, Relaxed);
                return Ok(connected);
            }
            Ok(Err(errors)) => errors,
            Err(_) => vec![self.silent()],
        };
        // The ones at the end of a long list must have their turn, too.
        self.first.store((first + 1) % count.max(1), Relaxed);
        Err(combined(errors))
    }

    fn silent(&self) -> RegisterError {
        let servers: Vec<_> = self.servers.iter().map(ToString::to_string).collect();
        RegisterError::Unreachable(format!(
            "{}: no connection within {CONNECT_LIMIT:?}: check token.store.url (with TLS rediss://, \
             without it redis://) and the network",
            servers.join(", ")
        ))
    }

    /// Connects to `entry`, or to the server that `entry` names: a Sentinel, or a node of a cluster.
    async fn connect_by(&self, entry: &RedisServer) -> Result<Connected, RegisterError> {
        let mut server = match &self.sentinel {
            None => entry.clone(),
            Some(sentinel) => self.primary(entry, sentinel).await?,
        };
        for _ in 0..MAX_HOPS {
            match self.open(&server).await {
                Ok((link, look)) => return Ok(Connected { link, server, look }),
                Err(Fault::Moved(next)) => server = next,
                Err(Fault::Replica) if self.sentinel.is_some() => {
                    return Err(RegisterError::Unreachable(format!(
                        "{server}: it is a replica, although the Sentinel {entry} names it as the \
                         primary: a failover may be under way"
                    )));
                }
                Err(fault) => return Err(fault.at(&server, &self.key)),
            }
        }
        let text = format!("{entry}: the nodes of the cluster name each other for the key");
        Err(RegisterError::Unreachable(text))
    }

    /// The primary's address, as the Sentinel at `entry` knows it.
    async fn primary(
        &self,
        entry: &RedisServer,
        sentinel: &Sentinel,
    ) -> Result<RedisServer, RegisterError> {
        let refused = |what: &str| RegisterError::Refused(format!("the Sentinel {entry}: {what}"));
        let asked = async {
            let link = self.dial(entry).await?;
            sentinel.login.apply(&link, entry).await?;
            let mut command = redis::pipe();
            let name = &sentinel.primary;
            command
                .cmd("SENTINEL")
                .arg("get-master-addr-by-name")
                .arg(name);
            one(link.run(&command).await?)
        };
        let response = match asked.await {
            Ok(Value::ServerError(error)) => match error.code() {
                "ERR" => {
                    return Err(refused(
                        "it does not know the command SENTINEL: with token.store.sentinel, \
                         token.store.url names the Sentinels (port 26379)",
                    ));
                }
                "NOAUTH" | "WRONGPASS" => return Err(refused(SENTINEL_PASSWORD)),
                _ => Err(Fault::of_server(&error, entry)),
            },
            Ok(Value::Nil) => {
                return Err(refused(
                    "it knows no primary of this name: correct token.store.sentinel",
                ));
            }
            Ok(Value::Array(parts)) => match &parts[..] {
                [Value::BulkString(host), Value::BulkString(port)] => {
                    let (host, port) = (std::str::from_utf8(host), std::str::from_utf8(port));
                    let address = host.ok().zip(port.ok());
                    let primary = address.and_then(|(host, port)| fault::server(host, port, entry));
                    primary.ok_or(Fault::NotRedis)
                }
                _ => Err(Fault::NotRedis),
            },
            Ok(_) => Err(Fault::NotRedis),
            Err(Fault::Server(_)) => return Err(refused(SENTINEL_PASSWORD)),
            Err(fault) => Err(fault),
        };
        response.map_err(|fault| fault.at(entry, &self.key))
    }

    /// A connection that is ready for commands, and what the server says of itself.
    async fn open(&self, server: &RedisServer) -> Result<(Link, Look), Fault> {
        let link = self.dial(server).await?;
        self.login.apply(&link, server).await?;
        let mut commands = redis::pipe();
        if self.database != 0 {
            commands.cmd("SELECT").arg(self.database);
        }
        commands.cmd("HGET").arg(&self.key).arg("rev");
        commands.cmd("ROLE");
        commands.cmd("INFO");
        let mut responses = link.run(&commands).await?;
        let look = responses.pop().zip(responses.pop());
        let look = look
            .map(|(info, role)| Look::new(&role, &info))
            .unwrap_or_default();
        if self.database != 0
            && let Some(Value::ServerError(error)) = responses.first()
        {
            return Err(Fault::of_server(error, server));
        }
        // What concerns the key is reported by the commands that use it.
        if let Some(Value::ServerError(error)) = responses.last() {
            let fault = Fault::of_server(error, server);
            if fault.ends_connection() {
                return Err(fault);
            }
        }
        if look.is_useless() {
            return Err(Fault::Replica);
        }
        Ok((link, look))
    }

    async fn dial(&self, server: &RedisServer) -> Result<Link, Fault> {
        let stream = self.stream(server).await;
        let stream = stream.map_err(|error| Fault::of_stream(&error))?;
        Link::new(stream).await
    }

    async fn stream(&self, server: &RedisServer) -> io::Result<connect::Transport> {
        let tls = match &self.tls {
            Some(tls) if server.is_tls => {
                let reloading = Arc::clone(tls);
                // If the files cannot be used, those before them stay in use. The reloader, which
                // watches them, reports that.
                let _ = blocking::run(move || reloading.reload()).await;
                let server_name = match &self.server_name {
                    Some(name) => name.clone(),
                    None => ServerName::try_from(server.host.clone()).map_err(io::Error::other)?,
                };
                let config = Arc::clone(&*tls.load());
                Some(Tls {
                    config,
                    server_name,
                })
            }
            _ => None,
        };
        let tcp = socket::connect(&server.host, server.port, CONNECT_LIMIT);
        connect::connect(tcp, tls, CONNECT_LIMIT).await
    }
}

const SENTINEL_PASSWORD: &str = "it requires another password: correct \
                                 token.store.sentinel_password_file";

impl Login {
    fn new(user: Option<&String>, password: Option<&Secret>) -> Self {
        Self {
            user: user.cloned(),
            password: password.cloned().map(Mutex::new),
        }
    }

    /// Authenticates, or sends a harmless command if there is no password. It comes alone: a server
    /// that does not serve us responds once and closes.
    async fn apply(&self, link: &Link, server: &RedisServer) -> Result<(), Fault> {
        let mut command = redis::pipe();
        match &self.password {
            None => {
                command.cmd("PING");
            }
            Some(password) => {
                let known = password.lock().clone();
                if let Ok(Ok(read)) = blocking::run(move || known.read_again()).await {
                    *password.lock() = read;
                }
                command.cmd("AUTH");
                if let Some(user) = &self.user {
                    command.arg(user);
                }
                command.arg(password.lock().expose());
            }
        }
        let responses = link.run(&command).await;
        match one(responses.map_err(|fault| fault.at_first(server))?)? {
            Value::ServerError(error) => {
                let fault = Fault::of_server(&error, server);
                // Without the right to PING it goes on, unless the server requires a password.
                if self.password.is_some() || fault.ends_connection() {
                    return Err(fault);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn one(responses: Vec<Value>) -> Result<Value, Fault> {
    responses.into_iter().next().ok_or(Fault::NotRedis)
}

/// Of several errors, one that needs an operator decides.
fn combined(errors: Vec<RegisterError>) -> RegisterError {
    let mut texts: Vec<String> = Vec::new();
    for error in &errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let text = texts.join("; ");
    let is_garbled = |error: &RegisterError| matches!(error, RegisterError::Garbled(_));
    let is_refused = |error: &RegisterError| matches!(error, RegisterError::Refused(_));
    if errors.iter().any(is_garbled) {
        RegisterError::Garbled(text)
    } else if errors.iter().any(is_refused) {
        RegisterError::Refused(text)
    } else {
        RegisterError::Unreachable(text)
    }
}

fn reloadable(config: &tls::Config) -> Result<reload::Reloadable<Arc<ClientConfig>>, tls::Error> {
    let files: Vec<_> = config.files().collect();
    let certificate = config.client_cert_file.clone();
    let config = config.clone();
    reload::Reloadable::new("store:client".to_owned(), files, certificate, move || {
        tls::client_config(&config, &[]).map(Arc::new)
    })
}
