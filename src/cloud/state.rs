//! What all requests of a simulated cloud share.

use std::{
    collections::VecDeque,
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::{
    config::Config, faults::Faults, files::Files, shared::SharedIssuer, tokens::GrantRules,
};
use crate::base::clock::SharedClock;

/// Requests kept in [`State::received`], and events kept for a slow receiver.
const KEPT: usize = 1000;

/// What happened at the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Tokens were granted.
    Refreshed {
        /// The number of the access token, from 1.
        serial: u64,
        /// Its lifetime.
        lifetime: Duration,
    },
    /// A token interface responded with an error.
    RefreshRefused {
        /// The OAuth error code, or the name of the scripted response.
        error: String,
    },
    /// A spent refresh token was used, or [`Cloud::revoke_families`](super::Cloud::revoke_families)
    /// called.
    FamilyRevoked,
    /// A file interface rejected a bearer token.
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
    /// Number of `Authorization` lines.
    pub authorization_count: usize,
    /// The number of the access token, if this cloud has issued it, valid or not.
    pub serial: Option<u64>,
    /// The status of the response.
    pub status: u16,
}

pub(super) struct State {
    pub(super) config: Config,
    pub(super) clock: SharedClock,
    pub(super) document_origin: String,
    pub(super) issuer: SharedIssuer,
    pub(super) files: Files,
    pub(super) faults: Mutex<Faults>,
    pub(super) received: Mutex<VecDeque<Received>>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) issuer_calls: AtomicU64,
    pub(super) issuer_successes: AtomicU64,
    pub(super) families_revoked: AtomicU64,
    pub(super) file_requests: AtomicU64,
}

impl State {
    /// # Errors
    /// When the folder of the files cannot be created, or the state file cannot be used.
    pub(super) fn new(
        config: Config,
        clock: SharedClock,
        document_origin: String,
    ) -> io::Result<Self> {
        let rules = GrantRules {
            token_lifetime: config.token_lifetime,
            refresh_lifetime: config.refresh_lifetime,
            rotate: config.rotate,
            reuse_grace: config.reuse_grace,
        };
        Ok(Self {
            document_origin,
            issuer: SharedIssuer::open(
                config.state_file.clone(),
                rules,
                &config.seeds,
                clock.now(),
            )?,
            files: Files::new(config.folder.clone(), config.memory_limit)?,
            faults: Mutex::default(),
            received: Mutex::default(),
            events: broadcast::channel(KEPT).0,
            issuer_calls: AtomicU64::default(),
            issuer_successes: AtomicU64::default(),
            families_revoked: AtomicU64::default(),
            file_requests: AtomicU64::default(),
            config,
            clock,
        })
    }

    pub(super) fn send(&self, event: Event) {
        // Fails when there is no receiver, which is fine.
        let _ = self.events.send(event);
    }

    pub(super) fn family_revoked(&self) {
        self.families_revoked.fetch_add(1, Relaxed);
        self.send(Event::FamilyRevoked);
    }

    pub(super) fn record(&self, request: Received) {
        let mut received = self.received.lock();
        if received.len() == KEPT {
            received.pop_front();
        }
        received.push_back(request);
    }
}
