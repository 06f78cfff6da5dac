//! One connection: commands are sent in one pipeline, and their responses awaited.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Pipeline, ProtocolVersion, RedisConnectionInfo, Value,
    aio::MultiplexedConnection,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::timeout,
};

use super::{
    bounded::{Allowance, Bounded},
    fault::Fault,
};

/// The time that a server has for a response.
const COMMAND_LIMIT: Duration = Duration::from_millis(500);

/// How long after it what has arrived may take to be read: the timer of a process that was stopped
/// fires together with the data.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// After so many commands in a row without a response the connection is given up: the server, or
/// something on the way to it, may have forgotten it.
const MAX_SILENT: u32 = 2;

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    driver: JoinHandle<()>,
    allowance: Allowance,
    /// Commands in a row without a response.
    silent: AtomicU32,
    is_retired: AtomicBool,
}

impl Link {
    /// Over a stream that is connected. Sends nothing.
    pub(super) async fn new<S>(stream: S) -> Result<Self, Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let allowance = Allowance::default();
        let stream = Bounded::new(stream, allowance.clone());
        // Without a password, a database and a library name the crate sends nothing by itself.
        let silent = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP2)
            .set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (connection, driver) = MultiplexedConnection::new_with_config(&silent, stream, config)
            .await
            .map_err(|_| Fault::NotRedis)?;
        Ok(Self {
            connection,
            driver: tokio::spawn(driver),
            allowance,
            silent: AtomicU32::new(0),
            is_retired: AtomicBool::new(false),
        })
    }

    /// Sends the commands and returns one response for each, errors of the server included.
    pub(super) async fn run(&self, commands: &Pipeline) -> Result<Vec<Value>, Fault> {
        let mut connection = self.connection.clone();
        let _awaited = self.allowance.for_command();
        let count = commands.len();
        let mut running = std::pin::pin!(connection.send_packed_commands(commands, 0, count));
        let result = match timeout(COMMAND_LIMIT, &mut running).await {
            Ok(result) => Some(result),
            Err(_) => timeout(LAST_LOOK, running).await.ok(),
        };
        match result {
            Some(Ok(values)) if values.len() == count => {
                self.silent.store(0, Relaxed);
                Ok(values)
            }
            Some(_) => {
                self.retire();
                // As long as the stream has not ended, what it carries is no response.
                Err(self.allowance.end().unwrap_or(Fault::NotRedis))
            }
            None => {
                if self.silent.fetch_add(1, Relaxed) + 1 >= MAX_SILENT {
                    self.retire();
                }
                Err(Fault::Silent(COMMAND_LIMIT))
            }
        }
    }

    /// Makes the next call open another connection.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Relaxed);
    }

    /// Waits for the end of the connection's task: true unless it panicked.
    #[cfg(test)]
    pub(super) async fn ended(&mut self) -> bool {
        (&mut self.driver).await.is_ok()
    }

    /// Whether commands can be sent.
    pub(super) fn is_usable(&self) -> bool {
        !self.is_retired.load(Relaxed) && !self.driver.is_finished()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
