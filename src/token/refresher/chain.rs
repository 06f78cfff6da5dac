//! The refresh tokens that a credential knows: its chain, a seed, and those that the issuer
//! refused. State only: it performs no I/O.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use super::plan::{Candidate, Standing};
use crate::{
    base::{
        clock::{Clock, Moment},
        secret::Secret,
    },
    token::{
        cache::Version,
        fleet::Claimed,
        refresh_token::RefreshToken,
        store::{AccessToken, Grant, Intent, Record},
        token_response::FailureClass,
    },
};

/// Refused refresh tokens that are remembered. Each of them took an operator or a new chain.
const MAX_REFUSED: usize = 16;

pub(super) struct Chain {
    /// The newest record. The stored one is older while writing fails.
    pub(super) record: Record,
    /// A configured refresh token that was never used. If the issuer refuses it, the chain goes on.
    pub(super) seed: Option<RefreshToken>,
    /// The newest seed was refused, and the chain goes on.
    pub(super) is_seed_refused: bool,
    /// Fingerprints of refresh tokens that the issuer refused: none of them is sent again.
    refused: VecDeque<String>,
}

/// A call from its decision to its end.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) grant: Grant,
    /// The open intents before this call's own.
    intents_before: Vec<Intent>,
    /// The refresh token may have been used, and is sent once more within the grace period.
    is_grace_retry: bool,
    /// The version of the record before the call.
    pub(super) version_before: Version,
    /// Of a replica: its claim, until the outcome is stored.
    pub(super) claimed: Option<Claimed>,
}

impl Attempt {
    /// A repetition must be written before the grace period ends, which began with the first
    /// sending.
    pub(super) fn grace_ends_at(&self, period: Duration, clock: &dyn Clock) -> Option<Moment> {
        if !self.is_grace_retry {
            return None;
        }
        let token = self.grant.refresh_token()?.fingerprint();
        let intents = &self.intents_before;
        let age = intents
            .iter()
            .find(|intent| intent.is_of(token))
            .and_then(|intent| intent.age(clock))?;
        Some(clock.now() + period.saturating_sub(age))
    }
}

impl Chain {
    pub(super) fn new(record: Record) -> Self {
        Self {
            record,
            seed: None,
            is_seed_refused: false,
            refused: VecDeque::new(),
        }
    }

    /// Takes a configured refresh token as the seed, unless it is known already: then it is older
    /// than the chain, or was refused. True if it was taken.
    pub(super) fn offer_seed(&mut self, configured: Secret) -> bool {
        let token = RefreshToken::new(configured);
        let is_known = self.record.knows(&token)
            || self.is_refused(&token)
            || self.seed.as_ref() == Some(&token);
        if !is_known {
            self.seed = Some(token);
            self.is_seed_refused = false;
        }
        !is_known
    }

    /// Takes the refresh token of an operator's file as the seed, like [`Chain::offer_seed`]. The
    /// record keeps it: it replaces that file before the token has been tried.
    pub(super) fn offer_handwritten(&mut self, token: &RefreshToken) -> bool {
        let is_new = self.offer_seed(token.secret().clone());
        if is_new {
            self.record.seed = Some(token.clone());
        }
        is_new
    }

    /// Takes the seed that the record keeps, if there is no other.
    pub(super) fn take_up_kept_seed(&mut self) {
        if self.seed.is_none()
            && let Some(kept) = &self.record.seed
        {
            self.offer_seed(kept.secret().clone());
        }
    }

    pub(super) fn candidate(
        &self,
        token: &RefreshToken,
        grace_period: Duration,
        clock: &dyn Clock,
    ) -> Candidate {
        Candidate {
            token: token.clone(),
            standing: self.standing(token, grace_period, clock),
        }
    }

    pub(super) fn standing(
        &self,
        token: &RefreshToken,
        grace_period: Duration,
        clock: &dyn Clock,
    ) -> Standing {
        let intent = self.record.intent(token.fingerprint());
        let age = intent.and_then(|intent| intent.age(clock));
        let grace_period = match self.record.is_grace_refused {
            true => Duration::ZERO,
            false => grace_period,
        };
        Standing::new(self.is_refused(token), intent, age, grace_period)
    }

    /// Begins a call. The intent must be stored before the refresh token is sent.
    pub(super) fn begin(
        &mut self,
        grant: Grant,
        grace_period: Duration,
        clock: &dyn Clock,
    ) -> Attempt {
        let intents_before = self.record.intents.clone();
        let is_grace_retry = grant.refresh_token().is_some_and(|token| {
            self.record.intent(token.fingerprint()).is_some()
                && self.standing(token, grace_period, clock) == Standing::Good
        });
        if let Some(token) = grant.refresh_token() {
            self.record.open_intent(token, clock);
        }
        Attempt {
            grant,
            intents_before,
            is_grace_retry,
            version_before: self.record.version(),
            claimed: None,
        }
    }

    /// The call is not made after all.
    pub(super) fn abandon(&mut self, attempt: &Attempt) {
        self.record.intents.clone_from(&attempt.intents_before);
    }

    /// Takes in the tokens of a successful call.
    pub(super) fn advance(
        &mut self,
        refresh_token: Option<Secret>,
        refresh_lifetime: Option<Duration>,
        access: AccessToken,
        grant: &Grant,
    ) {
        self.record
            .advance(refresh_token, refresh_lifetime, access, grant);
        self.settle(grant);
    }

    /// Takes in the new refresh token of a response whose access token is unusable.
    pub(super) fn rotate(&mut self, token: RefreshToken, since: SystemTime, grant: &Grant) {
        self.record.rotate(token, since, grant);
        self.settle(grant);
    }

    /// After a new chain has begun, neither its seed nor a refused token may begin another one, also
    /// after a restart.
    fn settle(&mut self, grant: &Grant) {
        if grant.begins_chain() {
            self.seed = None;
            self.is_seed_refused = false;
            let since = self.record.refresh_token_since;
            for refused in &self.refused {
                self.record
                    .spend(refused, since.unwrap_or(SystemTime::UNIX_EPOCH));
            }
        }
    }

    /// Takes over what another process noted about the same chain.
    pub(super) fn merge_notes(&mut self, stored: Record) {
        self.record.merge_notes(stored);
        self.drop_known_seed();
        self.take_up_kept_seed();
    }

    /// Closes the intent of a failed call, unless the outcome is unknown. True if the record
    /// changed.
    pub(super) fn close_intent(&mut self, class: FailureClass, attempt: &Attempt) -> bool {
        let Some(token) = attempt.grant.refresh_token() else {
            return false;
        };
        match class {
            FailureClass::Ambiguous | FailureClass::Garbled => false,
            FailureClass::RefreshTokenRefused => {
                self.record.seed.take_if(|seed| seed == token);
                self.record.intents.clone_from(&attempt.intents_before);
                self.record.close_intent(token);
                self.record.is_grace_refused |= attempt.is_grace_retry;
                true
            }
            // This call did not use the refresh token; an earlier one may have.
            FailureClass::ClientRefused
            | FailureClass::Throttled(_)
            | FailureClass::Unreachable
            | FailureClass::Failing => {
                self.record.intents.clone_from(&attempt.intents_before);
                true
            }
        }
    }

    /// Notes that the issuer refused this refresh token.
    pub(super) fn refuse(&mut self, token: &RefreshToken) {
        self.refused.truncate(MAX_REFUSED - 1);
        self.refused.push_front(token.fingerprint().to_owned());
        if self.record.seed.is_some() && self.seed.as_ref() == Some(token) {
            // The record's was put off by a configured one.
            self.seed = None;
            self.take_up_kept_seed();
        }
    }

    /// Another replica was refused with this refresh token.
    pub(super) fn learn_refused(&mut self, fingerprint: &str) {
        if !self.refused.iter().any(|refused| refused == fingerprint) {
            self.refused.truncate(MAX_REFUSED - 1);
            self.refused.push_front(fingerprint.to_owned());
        }
    }

    /// Gives the refused seed up for good, and returns it. The chain goes on.
    pub(super) fn discard_seed(&mut self) -> Option<RefreshToken> {
        let seed = self.seed.take();
        if let Some(seed) = &seed {
            self.record.adopt(seed);
        }
        self.is_seed_refused = true;
        seed
    }

    /// The shared record, of the same version: its intents count, since replicas withdraw them.
    pub(super) fn follow(&mut self, stored: Record) {
        let mut replaced = std::mem::replace(&mut self.record, stored);
        self.record.merge_history(&replaced);
        self.record.keep_seed(replaced.seed.take());
        self.drop_known_seed();
    }

    /// Goes on with a newer record, which another process stored.
    pub(super) fn take_over(&mut self, stored: Record) {
        let replaced = std::mem::replace(&mut self.record, stored);
        self.record.merge_history(&replaced);
        self.record.keep_seed(replaced.seed);
        self.drop_known_seed();
        self.take_up_kept_seed();
    }

    /// A configured token that is part of the chain must not begin another one: a copy of what
    /// another process stored looks new until its record is read.
    fn drop_known_seed(&mut self) {
        self.seed.take_if(|seed| self.record.knows(seed));
        let is_useless = |seed: &RefreshToken| self.record.knows(seed) || self.is_refused(seed);
        if self.record.seed.as_ref().is_some_and(is_useless) {
            self.record.seed = None;
        }
    }

    pub(super) fn is_refused(&self, token: &RefreshToken) -> bool {
        self.refused
            .iter()
            .any(|refused| refused == token.fingerprint())
    }
}
