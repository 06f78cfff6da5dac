//! The register on a Redis or Valkey server: one hash, with the fields `rev` (the revision, decimal)
//! and `data`, and without an expiry.
//!
//! | file | contents |
//! |---|---|
//! | `connect.rs` | which server, name resolution, TLS, authentication, redirections |
//! | `link.rs` | one connection: commands within a limit of time |
//! | `bounded.rs` | the limit of what is received |
//! | `look.rs` | what a server says of itself |
//! | `fault.rs` | errors: their class, and what to change |
//! | `compare_and_set.lua` | the conditional write |
//!
//! Only commands that every service of this kind allows are used, and no subscription. The script is
//! sent whole each time: a server that was restarted or replaced does not know its hash.

mod bounded;
mod connect;
mod fault;
mod link;
mod look;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use redis::{Pipeline, Value as Response};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

pub(in crate::token) use self::connect::Error;
use self::{
    connect::{Connected, Connector},
    fault::Fault,
    look::Look,
};
use super::{
    config::{RedisConfig, RedisServer},
    info::{Finding, RegisterInfo},
    register::{Reading, Register, RegisterError, Replaced, Revision, VALUE_LIMIT, Value},
};
use crate::{
    base::{backoff, clock::SharedClock},
    net::reload::Reload,
};

const COMPARE_AND_SET: &str = include_str!("compare_and_set.lua");

/// The longest pause between two attempts to connect.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// The limit of a call, attempts to connect included.
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// How long the server waits for a replica to confirm a write.
const REPLICA_LIMIT: Duration = Duration::from_millis(100);

/// The server is asked about itself again after this time: replicas come, and roles change.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// A register on a Redis or Valkey server.
#[derive(Debug)]
pub(in crate::token) struct RedisRegister {
    key: String,
    connector: Connector,
    clock: SharedClock,
    line: tokio::sync::Mutex<Line>,
    info: ArcSwap<RegisterInfo>,
    /// What was logged: once in the life of a process, not at each connection.
    warned: Mutex<Vec<Finding>>,
}

/// The present connection, and when there may be another.
#[derive(Debug)]
struct Line {
    current: Option<Arc<Open>>,
    /// Connections so far.
    count: u64,
    /// Why the last attempt failed, and when the next one may be made. After a success the next one
    /// needs no pause.
    failed: Option<(RegisterError, Instant)>,
}

/// A connection.
#[derive(Debug)]
struct Open {
    link: link::Link,
    server: RedisServer,
    number: u64,
    look: Mutex<(Instant, Look)>,
}

impl RedisRegister {
    /// A register under this key. Connects to nothing yet.
    pub(in crate::token) fn new(
        config: &RedisConfig,
        key: String,
        clock: SharedClock,
    ) -> Result<Self, Error> {
        let servers: Vec<_> = config.servers.iter().map(ToString::to_string).collect();
        Ok(Self {
            connector: Connector::new(config, &key)?,
            key,
            clock,
            line: tokio::sync::Mutex::new(Line {
                current: None,
                count: 0,
                failed: None,
            }),
            info: ArcSwap::from_pointee(RegisterInfo {
                kind: "redis",
                server: servers.join(", "),
                ..RegisterInfo::default()
            }),
            warned: Mutex::default(),
        })
    }

    /// What reloads the TLS settings when their files change; `None` without TLS.
    pub(in crate::token) fn reloadable(&self) -> Option<Arc<dyn Reload>> {
        self.connector.reloadable()
    }

    /// Runs `commands` on the present connection, or on a new one. A node that names another one for
    /// the key has carried out nothing, so they are repeated there.
    async fn run<T>(
        &self,
        commands: impl Fn(&Open) -> Pipeline,
        parse: impl Fn(&Open, Vec<Response>) -> Result<T, Fault>,
    ) -> Result<T, RegisterError> {
        let running = async {
            let mut is_repeated = false;
            loop {
                let open = self.open().await?;
                let responses = open.link.run(&commands(&open)).await;
                let fault = match responses.and_then(|responses| parse(&open, responses)) {
                    Ok(result) => return Ok(result),
                    Err(fault) => fault,
                };
                if fault.ends_connection() {
                    open.link.retire();
                }
                if matches!(fault, Fault::Moved(_)) && !is_repeated {
                    is_repeated = true;
                    continue;
                }
                return Err(self.failed(&open, &fault));
            }
        };
        let error = match timeout(CALL_LIMIT, running).await {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(error)) => error,
            Err(_) => {
                let server = self.info().server.clone();
                let text = format!("{server}: no result within {CALL_LIMIT:?}");
                RegisterError::Unreachable(text)
            }
        };
        self.note(&error);
        Err(error)
    }

    /// The present connection, or a new one. While one is made, other calls wait for it; until the
    /// next may be made, they fail at once.
    async fn open(&self) -> Result<Arc<Open>, RegisterError> {
        let mut line = self.line.lock().await;
        if let Some(open) = &line.current
            && open.link.is_usable()
        {
            return Ok(Arc::clone(open));
        }
        if let Some(open) = line.current.take() {
            self.disconnected(&open);
        }
        if let Some((error, next_attempt)) = &line.failed
            && Instant::now() < *next_attempt
        {
            return Err(error.clone());
        }
        // For the case that the caller gives this attempt up.
        let server = self.info().server.clone();
        let error = RegisterError::Unreachable(format!("{server}: no connection yet"));
        line.failed = Some((error, Instant::now() + pause()));
        match self.connector.connect().await {
            Ok(connected) => {
                line.failed = None;
                line.count += 1;
                let open = Arc::new(self.connected(connected, line.count));
                line.current = Some(Arc::clone(&open));
                Ok(open)
            }
            Err(error) => {
                line.failed = Some((error.clone(), Instant::now() + pause()));
                Err(error)
            }
        }
    }

    fn connected(&self, connected: Connected, number: u64) -> Open {
        let Connected { link, server, look } = connected;
        let open = Open {
            link,
            server,
            number,
            look: Mutex::new((Instant::now(), look.clone())),
        };
        tracing::debug!(number, "connected to the token store {}", open.server);
        let (since, before) = (self.clock.wall(), self.info());
        if before.connection > 0 && before.server != open.server.to_string() {
            tracing::info!(
                "the token store is {} now, was {}",
                open.server,
                before.server
            );
        }
        self.info.rcu(|info| RegisterInfo {
            connection: number,
            server: open.server.to_string(),
            connected_since: Some(since),
            ..RegisterInfo::clone(info)
        });
        self.seen(&open, look);
        open
    }

    /// Publishes what the server says of itself, and warns of it.
    fn seen(&self, open: &Open, look: Look) {
        self.info.rcu(|info| RegisterInfo {
            version: look.version.clone(),
            role: look.role,
            replicas: look.replicas,
            persistence: look.persistence,
            findings: Vec::new(),
            ..RegisterInfo::clone(info)
        });
        for finding in &look.findings {
            self.found(open, *finding);
        }
        *open.look.lock() = (Instant::now(), look);
    }

    /// Publishes `finding`, and logs it once.
    fn found(&self, open: &Open, finding: Finding) {
        if !self.info.load().findings.contains(&finding) {
            self.info.rcu(|info| {
                let mut info = RegisterInfo::clone(info);
                info.findings.push(finding);
                info
            });
        }
        let mut warned = self.warned.lock();
        if !warned.contains(&finding) {
            warned.push(finding);
            tracing::warn!("the token store {}: {finding}", open.server);
        }
    }

    fn failed(&self, open: &Open, fault: &Fault) -> RegisterError {
        if !open.link.is_usable() {
            self.disconnected(open);
        }
        fault.at(&open.server, &self.key)
    }

    /// Publishes the end of `open`, unless there is another connection already.
    fn disconnected(&self, open: &Open) {
        self.info.rcu(|info| {
            let mut info = RegisterInfo::clone(info);
            if info.connection == open.number {
                info.connected_since = None;
            }
            info
        });
    }

    fn note(&self, error: &RegisterError) {
        let last_error = Some((self.clock.wall(), error.to_string()));
        self.info.rcu(|info| RegisterInfo {
            last_error: last_error.clone(),
            ..RegisterInfo::clone(info)
        });
    }

    /// The commands of a reading, and of a look at the server if it is time for one.
    fn reading(&self, open: &Open) -> Pipeline {
        let mut commands = redis::pipe();
        commands.cmd("TIME");
        commands.cmd("HMGET").arg(&self.key).arg("rev").arg("data");
        if open.look.lock().0.elapsed() >= LOOK_INTERVAL {
            commands.cmd("ROLE");
            commands.cmd("INFO");
        }
        commands
    }

    fn read_from(&self, open: &Open, responses: Vec<Response>) -> Result<Reading, Fault> {
        let mut responses = responses.into_iter();
        let (time, value) = (responses.next(), responses.next());
        if let Some((role, info)) = responses.next().zip(responses.next()) {
            let look = Look::new(&role, &info);
            let is_useless = look.is_useless();
            self.seen(open, look);
            if is_useless {
                return Err(Fault::Replica);
            }
        }
        // The error about the key says more.
        let value = value_of(response(value, &open.server)?)?;
        let time = look::time(&response(time, &open.server)?)?;
        if look::is_skewed(time, self.clock.wall()) {
            self.found(open, Finding::Skew);
        }
        Ok(Reading {
            value,
            time,
            connection: open.number,
        })
    }

    /// The commands of a conditional write. If there are replicas, one of them should confirm it,
    /// which the server tells the connection of the write alone.
    fn writing(&self, open: &Open, seen: Option<Revision>, new: &Value) -> Pipeline {
        let mut commands = redis::pipe();
        let seen = seen.map_or_else(String::new, |seen| seen.0.to_string());
        commands
            .cmd("EVAL")
            .arg(COMPARE_AND_SET)
            .arg(1)
            .arg(&self.key);
        commands
            .arg(seen)
            .arg(new.revision.0.to_string())
            .arg(&**new.bytes);
        if open.look.lock().1.replicas > 0 {
            commands
                .cmd("WAIT")
                .arg(1)
                .arg(REPLICA_LIMIT.as_millis() as u64);
        }
        commands
    }

    fn written(&self, open: &Open, responses: Vec<Response>) -> Result<Replaced, Fault> {
        let mut responses = responses.into_iter();
        let replaced = match response(responses.next(), &open.server)? {
            Response::Int(1) => Replaced::Done,
            Response::Int(0) => Replaced::Moved,
            _ => return Err(Fault::NotRedis),
        };
        match responses.next() {
            Some(Response::Int(0)) if replaced == Replaced::Done => {
                self.found(open, Finding::Unconfirmed);
                self.info.rcu(|info| RegisterInfo {
                    unconfirmed_writes: info.unconfirmed_writes + 1,
                    ..RegisterInfo::clone(info)
                });
            }
            Some(Response::ServerError(error)) => {
                let fault = Fault::of_server(&error, &open.server);
                // The server has become a replica, and may have lost the write. Without the right to
                // wait it goes on.
                if fault.ends_connection() {
                    return Err(fault);
                }
            }
            _ => {}
        }
        Ok(replaced)
    }
}

impl Register for RedisRegister {
    fn read(&self) -> BoxFuture<'_, Result<Reading, RegisterError>> {
        Box::pin(self.run(
            |open| self.reading(open),
            |open, responses| self.read_from(open, responses),
        ))
    }

    fn replace(
        &self,
        seen: Option<Revision>,
        new: Value,
    ) -> BoxFuture<'_, Result<Replaced, RegisterError>> {
        Box::pin(async move {
            self.run(
                |open| self.writing(open, seen, &new),
                |open, responses| self.written(open, responses),
            )
            .await
        })
    }

    fn info(&self) -> Arc<RegisterInfo> {
        self.info.load_full()
    }
}

/// A pause before the next attempt to connect, at random: replicas that lost the server together do
/// not return together.
fn pause() -> Duration {
    MAX_PAUSE.mul_f64(backoff::random())
}

/// A response that is no error.
fn response(response: Option<Response>, from: &RedisServer) -> Result<Response, Fault> {
    match response {
        Some(Response::ServerError(error)) => Err(Fault::of_server(&error, from)),
        Some(response) => Ok(response),
        None => Err(Fault::NotRedis),
    }
}

/// The value in a response to `HMGET key rev data`.
fn value_of(response: Response) -> Result<Option<Value>, Fault> {
    let Response::Array(fields) = response else {
        return Err(Fault::NotRedis);
    };
    let Ok([revision, data]) = <[Response; 2]>::try_from(fields) else {
        return Err(Fault::NotRedis);
    };
    match (revision, data) {
        (Response::Nil, Response::Nil) => Ok(None),
        (Response::BulkString(revision), Response::BulkString(data)) => {
            let bytes = Zeroizing::new(data);
            if bytes.len() > VALUE_LIMIT {
                return Err(Fault::TooLarge);
            }
            let revision = revision_of(&revision)
                .ok_or(Fault::Garbled("has a field rev that is no revision"))?;
            Ok(Some(Value { revision, bytes }))
        }
        (Response::Nil, Response::BulkString(_)) => Err(Fault::Garbled("has no field rev")),
        (Response::BulkString(_), Response::Nil) => Err(Fault::Garbled("has no field data")),
        _ => Err(Fault::NotRedis),
    }
}

/// Only as this program writes it: the conditional write compares the digits.
fn revision_of(digits: &[u8]) -> Option<Revision> {
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == digits).then_some(Revision(number))
}
