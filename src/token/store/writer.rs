//! Writes records beside the refresher's other work: one write at a time, the newest record last,
//! repeated until it succeeds.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;

use super::{Record, Store};
use crate::{
    base::{
        backoff::Backoff,
        clock::{Moment, SharedClock},
    },
    token::state::Persistence,
};

/// How long a new token waits for its record to be durable. After that it is published all the
/// same.
const SAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long shutdown waits for a record that is not written yet.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

pub(in crate::token) struct Writer {
    store: Option<Arc<dyn Store>>,
    clock: SharedClock,
    /// The newest record, if it is not stored yet, and since when.
    unwritten: Option<(Arc<Record>, SystemTime)>,
    /// The write in progress, and its record. Of two at a time, the older could overtake the newer.
    running: Option<(Arc<Record>, BoxFuture<'static, io::Result<()>>)>,
    retry_at: Moment,
    backoff: Backoff,
    failures: u64,
    /// An outage is logged once.
    is_outage_logged: bool,
}

impl Writer {
    pub(in crate::token) fn new(store: Option<Arc<dyn Store>>, clock: SharedClock) -> Self {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        Self {
            store,
            clock,
            unwritten: None,
            running: None,
            retry_at: Moment::default(),
            backoff,
            failures: 0,
            is_outage_logged: false,
        }
    }

    /// Takes over the record. Returns when it is stored, when storing it failed, or after
    /// [`SAVE_TIMEOUT`].
    pub(in crate::token) async fn save(&mut self, record: Record) {
        if self.store.is_none() {
            return;
        }
        let since = self
            .unwritten
            .take()
            .map_or_else(|| self.clock.wall(), |(_, since)| since);
        self.unwritten = Some((Arc::new(record), since));
        // A new record is tried at once, whatever the backoff of the previous one.
        self.retry_at = Moment::default();
        let failures = self.failures;
        let attempted = tokio::time::timeout(SAVE_TIMEOUT, async {
            while self.unwritten.is_some() && self.failures == failures {
                self.progress().await;
            }
        });
        if attempted.await.is_err() && !std::mem::replace(&mut self.is_outage_logged, true) {
            tracing::warn!(
                "writing the state file takes longer than a second: new tokens are used before \
                 they are stored"
            );
        }
    }

    /// Takes over the record, and writes it beside other work.
    pub(in crate::token) fn enqueue(&mut self, record: Record) {
        if self.store.is_some() {
            let since = self.unwritten.take().map(|(_, since)| since);
            let since = since.unwrap_or_else(|| self.clock.wall());
            self.unwritten = Some((Arc::new(record), since));
            self.retry_at = Moment::default();
        }
    }

    /// Another process stored this newer record: an older one is not written any more. One that is
    /// just being written is followed by the newer one.
    pub(in crate::token) fn supersede(&mut self, stored: &Record) {
        let older = self.unwritten.take();
        if self.running.is_some() {
            self.unwritten = older.map(|(_, since)| (Arc::new(stored.clone()), since));
        } else {
            self.is_outage_logged = false;
        }
        self.retry_at = Moment::default();
    }

    /// Resolves when a write has ended; pends while there is nothing to write. Cancel-safe: a write
    /// goes on, and the next call waits for it.
    pub(in crate::token) async fn progress(&mut self) {
        if self.running.is_none() {
            let (Some(store), Some((record, _))) = (&self.store, &self.unwritten) else {
                return std::future::pending().await;
            };
            self.clock.sleep_until(self.retry_at).await;
            self.running = Some((Arc::clone(record), store.save(Arc::clone(record))));
        }
        if let Some((_, write)) = &mut self.running {
            let result = write.await;
            self.write_ended(result);
        }
    }

    /// Shutdown: a last chance for a record that is not stored yet.
    pub(in crate::token) async fn finish(&mut self) {
        self.retry_at = Moment::default();
        let all = async {
            while self.unwritten.is_some() {
                self.progress().await;
            }
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
            tracing::error!(
                "the newest tokens could not be stored and are lost with this process: \
                 after a restart a new refresh token may be necessary"
            );
        }
    }

    /// Whether there is nothing to write.
    pub(in crate::token) fn is_idle(&self) -> bool {
        self.unwritten.is_none()
    }

    pub(in crate::token) fn persistence(&self) -> Persistence {
        match (&self.store, &self.unwritten) {
            (None, _) => Persistence::Off,
            (Some(_), None) => Persistence::Stored,
            (Some(_), Some((_, since))) => Persistence::Failing { since: *since },
        }
    }

    fn write_ended(&mut self, result: io::Result<()>) {
        let Some((written, _)) = self.running.take() else {
            return;
        };
        match result {
            Ok(()) => {
                self.unwritten
                    .take_if(|(newest, _)| Arc::ptr_eq(newest, &written));
                self.backoff.reset();
                self.retry_at = Moment::default();
                if self.unwritten.is_none() && std::mem::take(&mut self.is_outage_logged) {
                    tracing::info!("the state file is up to date again");
                }
            }
            Err(error) => {
                self.failures += 1;
                self.retry_at = self.clock.now() + self.backoff.next_delay();
                if !std::mem::replace(&mut self.is_outage_logged, true) {
                    tracing::error!(
                        %error,
                        "the state file cannot be written: new tokens are kept in memory and \
                         would be lost by a restart"
                    );
                }
            }
        }
    }
}
