//! What the rejected requests of a credential know of each other: the state of [`rule`], shared by
//! all workers.

mod futile;
mod rule;

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};

pub use self::futile::RequestKey;
pub(super) use self::rule::{BURST, Case, Decision, VerificationOutcome};
use self::{futile::KeyFilter, rule::Rule};
use super::cache::Version;
use crate::base::clock::Moment;

/// The rejected requests of a credential. Only they take its lock.
#[derive(Debug)]
pub(super) struct Rejections {
    rule: Mutex<Rule>,
    /// Of the rule's futile keys.
    filter: KeyFilter,
    hasher: RandomState,
    verified: Notify,
}

impl Rejections {
    pub(super) fn new(cooldown: Duration) -> Self {
        Self {
            rule: Mutex::new(Rule::new(cooldown)),
            filter: KeyFilter::default(),
            hasher: RandomState::new(),
            verified: Notify::new(),
        }
    }

    pub(super) fn key(&self, properties: impl Hash) -> RequestKey {
        RequestKey(self.hasher.hash_one(properties))
    }

    pub(super) fn decide(&self, case: &Case, now: Moment) -> Decision {
        self.rule.lock().decide(case, now)
    }

    /// The verification of a token has ended; `None`: without an outcome.
    pub(super) fn finish_verification(
        &self,
        version: Version,
        outcome: Option<VerificationOutcome>,
        now: Moment,
    ) {
        self.rule.lock().verified(version, outcome, now);
        self.verified.notify_waiters();
    }

    /// Resolves when a verification ends.
    pub(super) fn verified(&self) -> Notified<'_> {
        self.verified.notified()
    }

    /// A request with this key was rejected under a fresh token.
    pub(super) fn remember_futile(&self, key: RequestKey, now: Moment) {
        let mut rule = self.rule.lock();
        rule.futile.insert(key, now);
        self.filter.update(&rule.futile);
    }

    /// A request with this key was accepted. Takes no lock for nearly all keys.
    pub(super) fn accepted(&self, key: RequestKey, now: Moment) {
        if self.filter.may_contain(key) {
            let mut rule = self.rule.lock();
            rule.futile.accepted(key, now);
            self.filter.update(&rule.futile);
        }
    }

    /// Whether accepted requests must be reported.
    pub(super) fn is_watching(&self) -> bool {
        !self.filter.is_empty()
    }
}
