//! Writes records in the background of the refresher: one at a time, the newest last, again until it worked.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Record, Store};
use crate::{
    base::{
        backoff::Backoff,
        clock::{Moment, SharedClock},
    },
    token::{issuer::BoxFuture, state::Persistence},
};

/// How long a new token waits for its record to be durable before it is published all the same.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the end of the program waits for a record that is not written yet.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

pub(in crate::token) struct Writer {
    store: Option<Arc<dyn Store>>,
    clock: SharedClock,
    /// The newest record, if it is not stored yet, and since when.
    unwritten: Option<(Arc<Record>, SystemTime)>,
    /// The write under way, and what it writes. Never two at a time: the older could overtake the newer.
    running: Option<(Arc<Record>, BoxFuture<'static, io::Result<()>>)>,
    retry_at: Moment,
    backoff: Backoff,
    failures: u64,
    /// So that an outage is logged once.
    is_alarmed: bool,
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
            is_alarmed: false,
        }
    }

    /// Takes over the record and returns when it is stored, when storing it failed, or after a second.
    pub(in crate::token) async fn save(&mut self, record: Record) {
        if self.store.is_none() {
            return;
        }
        let since = self
            .unwritten
            .take()
            .map_or_else(|| self.clock.wall(), |(_, since)| since);
        self.unwritten = Some((Arc::new(record), since));
        // A new record is no reason to wait for an older one's backoff.
        self.retry_at = Moment::default();
        let failures = self.failures;
        let attempted = tokio::time::timeout(PATIENCE, async {
            while self.unwritten.is_some() && self.failures == failures {
                self.progress().await;
            }
        });
        if attempted.await.is_err() && !std::mem::replace(&mut self.is_alarmed, true) {
            tracing::warn!("the state file takes over a second to write, which is not waited for");
        }
    }

    /// Resolves after each step: a write ended. Never resolves while there is nothing to write. May be dropped at any
    /// await: the write goes on, and is asked for again.
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
            self.ended(result);
        }
    }

    /// The end of the program: a last chance for what is not stored yet.
    pub(in crate::token) async fn finish(&mut self) {
        self.retry_at = Moment::default();
        let all = async {
            while self.unwritten.is_some() {
                self.progress().await;
            }
        };
        if tokio::time::timeout(LAST_PATIENCE, all).await.is_err() {
            tracing::error!(
                "the newest tokens could not be stored and are lost with this process: \
                 after a restart the refresh token may have to be renewed by hand"
            );
        }
    }

    /// Whether the newest record is stored, or never will be.
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

    fn ended(&mut self, result: io::Result<()>) {
        let Some((written, _)) = self.running.take() else {
            return;
        };
        match result {
            Ok(()) => {
                self.unwritten
                    .take_if(|(newest, _)| Arc::ptr_eq(newest, &written));
                self.backoff.reset();
                self.retry_at = Moment::default();
                if self.unwritten.is_none() && std::mem::take(&mut self.is_alarmed) {
                    tracing::info!("the state file is up to date again");
                }
            }
            Err(error) => {
                self.failures += 1;
                self.retry_at = self.clock.now() + self.backoff.next_delay();
                if !std::mem::replace(&mut self.is_alarmed, true) {
                    tracing::error!(
                        %error,
                        "the state file cannot be written: tokens are kept in memory and would be lost by a restart"
                    );
                }
            }
        }
    }
}
