//! What to call next, and when.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::Refresher;
use crate::{
    base::{clock::Moment, secret::Secret},
    token::{
        state::{Problem, Reason},
        store::{Intent, RefreshToken, fingerprint},
    },
};

/// How long after it was first sent a refresh token may be sent once more: issuers forgive that for a few seconds.
const GRACE: Duration = Duration::from_secs(5);
/// With less life than this left, or this share of it, a token is worth the risk of losing it.
const LAST_MINUTE: Duration = Duration::from_secs(60);
const LAST_SHARE: u32 = 5;

/// Where the next tokens come from.
pub(super) enum Source<'a> {
    /// A configured refresh token that was never tried.
    Seed(&'a RefreshToken),
    /// The chain's refresh token.
    Chain(&'a Secret),
    /// No refresh token at all.
    InitialGrant,
}

/// One call, from its decision to its end.
#[derive(Debug)]
pub(super) struct Attempt {
    /// The refresh token that it spends, if any.
    pub(super) spends: Option<RefreshToken>,
    pub(super) is_seed: bool,
    /// What was in question before.
    pub(super) intents_before: Vec<Intent>,
}

impl Refresher {
    /// When to call next; `None`: only a person can help.
    pub(super) fn due(&self) -> Option<Moment> {
        let is_requested = self.shared.requested.load(Relaxed);
        let is_wanted = is_requested
            || self
                .shared
                .token
                .load()
                .as_ref()
                .is_some_and(|token| token.is_refresh_requested());
        let at = match self.source()? {
            Source::Seed(seed) if self.is_possibly_spent(&seed.fingerprint) && !is_requested => {
                self.last_chance()
            }
            Source::Chain(token)
                if self.is_possibly_spent(&fingerprint(token)) && !is_requested =>
            {
                self.last_chance()
            }
            Source::Seed(_) => Moment::default(),
            // A wish brings the schedule forward, never the end of a backoff.
            Source::Chain(_) | Source::InitialGrant if is_wanted => Moment::default(),
            Source::Chain(_) | Source::InitialGrant => self.refresh_at,
        };
        Some(at.max(self.not_before))
    }

    pub(super) fn source(&self) -> Option<Source<'_>> {
        let seed = self
            .seed
            .as_ref()
            .filter(|seed| self.may_spend(&seed.fingerprint))
            .map(Source::Seed);
        let chain = || {
            let token = self.record.refresh_token.as_ref()?;
            self.may_spend(&fingerprint(token))
                .then_some(Source::Chain(token))
        };
        seed.or_else(chain)
            .or_else(|| self.initial_grant.is_some().then_some(Source::InitialGrant))
    }

    pub(super) fn attempt(&self) -> Option<Attempt> {
        let (spends, is_seed) = match self.source()? {
            Source::Seed(seed) => (Some(seed.clone()), true),
            Source::Chain(token) => (
                Some(RefreshToken {
                    token: token.clone(),
                    fingerprint: fingerprint(token),
                }),
                false,
            ),
            Source::InitialGrant => (None, false),
        };
        Some(Attempt {
            spends,
            is_seed,
            intents_before: self.record.intents.clone(),
        })
    }

    /// After a call whose outcome is unknown: whether what follows need not wait.
    pub(super) fn is_worth_repeating(&self, attempt: &Attempt) -> bool {
        attempt.spends.as_ref().is_some_and(|spent| {
            !self.is_possibly_spent(&spent.fingerprint)
                || matches!(self.source(), Some(Source::InitialGrant))
        })
    }

    /// Says what only a person can help with, and takes it back when there is a way on.
    pub(super) fn assess(&mut self) {
        let reason = self.problem.as_ref().map(|problem| problem.reason);
        if self.source().is_some() {
            let is_over = match reason {
                Some(Reason::NoCredential | Reason::OutcomeUnknown) => true,
                Some(Reason::RefreshTokenRefused) => self.initial_grant.is_none(),
                _ => false,
            };
            if is_over {
                self.problem = None;
                self.not_before = Moment::default();
            }
            return;
        }
        let token = self
            .seed
            .as_ref()
            .map(|seed| &seed.token)
            .or(self.record.refresh_token.as_ref());
        let (reason, detail) = match token.map(fingerprint) {
            None => (
                Reason::NoCredential,
                "there is no refresh token: set token.refresh_token_file, or log in",
            ),
            Some(fingerprint) if self.refused.contains(&fingerprint) => return,
            Some(_) => (
                Reason::OutcomeUnknown,
                "the issuer's answer was lost, so that the refresh token may be spent, and token.grace_retry forbids \
                 to try it again: get a new one",
            ),
        };
        self.problem = Some(Problem {
            reason,
            detail: detail.to_owned(),
        });
    }

    /// A refresh token that was refused is never sent again. One that may be spent is not sent again if first tokens can
    /// be had instead, or if that is forbidden.
    fn may_spend(&self, fingerprint: &String) -> bool {
        let is_better_left = !self.grace_retry || self.initial_grant.is_some();
        !(self.refused.contains(fingerprint)
            || is_better_left && self.is_possibly_spent(fingerprint))
    }

    /// Whether it may be spent, and it is too late for the issuer to forgive a repetition.
    fn is_possibly_spent(&self, fingerprint: &str) -> bool {
        self.record.intent(fingerprint).is_some_and(|intent| {
            let is_young = intent
                .age(&*self.shared.clock)
                .is_some_and(|age| age < GRACE);
            !(self.grace_retry && intent.attempts == 1 && is_young)
        })
    }

    /// To send a refresh token again that is spent may revoke the access token too: that waits until there is little to
    /// lose.
    fn last_chance(&self) -> Moment {
        let lifetime = self
            .record
            .access
            .as_ref()
            .map_or(Duration::ZERO, |access| access.lifetime);
        let little = LAST_MINUTE.max(lifetime / LAST_SHARE);
        self.expiry().map_or(Moment::default(), |expiry| {
            Moment::since_boot(expiry.elapsed_since_boot().saturating_sub(little))
        })
    }
}
