//! The changes of the shared record: pure functions of what is stored. A change that is applied
//! again, because the response to it was lost, does nothing.

use std::{sync::Arc, time::SystemTime};

use super::{
    claim::{Claim, ClaimId, Pulse},
    shared::{ClientRefused, Shared},
};
use crate::token::{
    cache::Version,
    refresh_token::RefreshToken,
    store::{Grant, Record},
};

/// What a change makes of the stored record.
#[derive(Debug)]
pub(in crate::token) enum Effect {
    /// This is to be stored instead.
    Replace(Box<Shared>),
    /// It was applied before, or there is nothing to change.
    Nothing,
    /// What is stored excludes it.
    Excluded,
}

/// A change of the shared record.
#[derive(Debug, Clone)]
pub(in crate::token) enum Change {
    Claim(NewClaim),
    /// The owner of a claim lives.
    Beat(Held),
    Withdraw(ClaimId),
    Result(Box<CallResult>),
    /// Writes back what the store has lost.
    Restore(Arc<Shared>),
    Note(Note),
}

/// Claims the next call.
#[derive(Debug, Clone)]
pub(in crate::token) struct NewClaim {
    pub(in crate::token) id: ClaimId,
    pub(in crate::token) name: String,
    pub(in crate::token) grant: Grant,
    /// The version that the plan was made for.
    pub(in crate::token) version: Version,
    /// A claim that is not renewed any more, and may be replaced.
    pub(in crate::token) orphan: Option<Pulse>,
    /// The store's time.
    pub(in crate::token) at: SystemTime,
    /// When the budget of rejections is whole again, if a rejection causes the call.
    pub(in crate::token) budget_whole_at: Option<SystemTime>,
}

/// A claim that its owner renews.
#[derive(Debug, Clone)]
pub(in crate::token) struct Held {
    pub(in crate::token) claim: Claim,
    /// The version of the record when it was claimed.
    pub(in crate::token) version: Version,
    /// When it was claimed, in the store's time.
    pub(in crate::token) at: SystemTime,
}

/// The outcome of a call: new tokens.
#[derive(Debug, Clone)]
pub(in crate::token) struct CallResult {
    /// `None` without a claim: of `login`.
    pub(in crate::token) claim: Option<ClaimId>,
    /// The record with the new tokens, in the store's time.
    pub(in crate::token) record: Record,
    /// What was presented.
    pub(in crate::token) grant: Grant,
    /// The version that was current before the call.
    pub(in crate::token) before: Version,
    /// The fingerprint of the client secret that the issuer accepted; `None` without a call.
    pub(in crate::token) client: Option<String>,
}

/// What the issuer said.
#[derive(Debug, Clone, Default)]
pub(in crate::token) struct Note {
    /// The claim whose call has ended.
    pub(in crate::token) claim: Option<ClaimId>,
    /// The call did not use its refresh token.
    pub(in crate::token) is_unused: bool,
    /// The issuer refused this refresh token.
    pub(in crate::token) refused: Option<RefreshToken>,
    /// This seed began a chain or never will.
    pub(in crate::token) adopted: Option<RefreshToken>,
    pub(in crate::token) client_refused: Option<ClientRefused>,
    /// Replicas call no earlier.
    pub(in crate::token) not_before: Option<SystemTime>,
    pub(in crate::token) throttled_until: Option<SystemTime>,
    pub(in crate::token) is_grace_refused: bool,
}

impl Change {
    /// `life` is a random number, in case the record begins a new life.
    pub(in crate::token) fn apply(&self, stored: Option<&Shared>, life: u64) -> Effect {
        match self {
            Self::Claim(claim) => claim.apply(stored, life),
            Self::Beat(held) => held.beat(stored),
            Self::Withdraw(id) => withdraw(stored, *id),
            Self::Result(result) => result.apply(stored, life),
            Self::Restore(seen) => restore(stored, seen, life),
            Self::Note(note) => note.apply(stored),
        }
    }
}

impl NewClaim {
    fn apply(&self, stored: Option<&Shared>, life: u64) -> Effect {
        let mut next = match stored {
            Some(stored) => stored.clone(),
            None => Shared {
                life,
                ..Shared::default()
            },
        };
        match &next.claim {
            Some(claim) if claim.id == self.id => return Effect::Nothing,
            Some(claim) if self.orphan != Some(claim.pulse()) => return Effect::Excluded,
            Some(_) | None => {}
        }
        let spends = self.grant.refresh_token();
        // After a store has lost everything, a chain is not called, but a new one may begin.
        if stored.is_some() && next.record.version() != self.version
            || matches!(self.grant, Grant::Chain(_)) && next.record.refresh_token.as_ref() != spends
            || spends.is_some_and(|token| next.is_refused(token))
            || self.grant.is_seed() && spends.is_some_and(|seed| next.record.knows(seed))
        {
            return Effect::Excluded;
        }
        if let Some(token) = spends {
            next.record.open_intent_at(token.fingerprint(), self.at);
            next.spares.retain(|spare| spare != token);
        }
        next.announced = next.announced.max(next.record.generation).saturating_add(1);
        next.claim = Some(Claim {
            id: self.id,
            name: self.name.clone(),
            generation: next.announced,
            beat: 0,
            spends: spends.map(|token| token.fingerprint().to_owned()),
        });
        if let Some(whole_at) = self.budget_whole_at {
            next.limits.set_budget_whole_at(whole_at);
        }
        Effect::Replace(Box::new(next))
    }
}

impl Held {
    fn beat(&self, stored: Option<&Shared>) -> Effect {
        let Some(stored) = stored else {
            return Effect::Excluded;
        };
        let mut next = stored.clone();
        match &mut next.claim {
            Some(claim) if claim.id == self.claim.id => {
                claim.beat = claim.beat.wrapping_add(1);
            }
            Some(_) => return Effect::Excluded,
            // Another replica wrote back what it had seen before this claim.
            None if next.record.version() == self.version => {
                if let Some(fingerprint) = &self.claim.spends {
                    next.record.open_intent_at(fingerprint, self.at);
                }
                next.announced = next.announced.max(self.claim.generation);
                next.claim = Some(self.claim.clone());
            }
            None => return Effect::Excluded,
        }
        Effect::Replace(Box::new(next))
    }
}

/// Nothing was sent: the claim and its intent were for nothing.
fn withdraw(stored: Option<&Shared>, id: ClaimId) -> Effect {
    let Some(stored) = stored else {
        return Effect::Nothing;
    };
    let mut next = stored.clone();
    match next.claim.take_if(|claim| claim.id == id) {
        Some(claim) => {
            if let Some(fingerprint) = &claim.spends {
                next.record.undo_intent(fingerprint);
            }
            Effect::Replace(Box::new(next))
        }
        None => Effect::Nothing,
    }
}

impl CallResult {
    fn apply(&self, stored: Option<&Shared>, life: u64) -> Effect {
        let Some(stored) = stored else {
            return Effect::Replace(Box::new(Shared {
                life,
                announced: self.record.generation,
                record: self.record.clone(),
                ..Shared::default()
            }));
        };
        let (ours, theirs) = (&self.record, &stored.record);
        let is_same_token = ours.refresh_token == theirs.refresh_token;
        if is_same_token && ours.version() <= theirs.version() {
            return withdraw_only(stored, self.claim);
        }
        let spent = self.grant.refresh_token();
        let is_child =
            !self.grant.begins_chain() && spent.is_some() && theirs.refresh_token.as_ref() == spent;
        let is_successor = ours.version() > theirs.version()
            && (self.grant.begins_chain() || theirs.version() < self.before);
        let mut next = stored.clone();
        if is_child || is_successor {
            next.record = ours.clone();
            next.record.merge_history(theirs);
            // Another version could be behind the one that a later claim has announced.
            next.announced = next.announced.max(ours.generation);
            next.claim = None;
            next.limits.clear(self.client.as_deref());
            if !is_child {
                next.life = life;
            }
            return Effect::Replace(Box::new(next));
        }
        next.claim.take_if(|claim| Some(claim.id) == self.claim);
        if let Some(token) = &ours.refresh_token {
            next.add_spare(token);
        }
        Effect::Replace(Box::new(next))
    }
}

fn withdraw_only(stored: &Shared, claim: Option<ClaimId>) -> Effect {
    let mut next = stored.clone();
    match next.claim.take_if(|found| Some(found.id) == claim) {
        Some(_) => Effect::Replace(Box::new(next)),
        None => Effect::Nothing,
    }
}

/// The whole record, claims included: the replica that owns one may be in its call.
fn restore(stored: Option<&Shared>, seen: &Shared, life: u64) -> Effect {
    if stored.is_some_and(|stored| {
        stored.serial >= seen.serial || stored.record.version() > seen.record.version()
    }) {
        return Effect::Nothing;
    }
    let mut next = Shared {
        life,
        ..seen.clone()
    };
    if let Some(stored) = stored {
        for refused in &stored.refused {
            next.refuse(refused);
        }
        next.record.merge_history(&stored.record);
        next.announced = next.announced.max(stored.announced);
    }
    Effect::Replace(Box::new(next))
}

impl Note {
    fn apply(&self, stored: Option<&Shared>) -> Effect {
        let Some(stored) = stored else {
            // What was lost is written back first.
            return Effect::Excluded;
        };
        let mut next = stored.clone();
        let ended = next
            .claim
            .take_if(|claim| self.claim.is_some_and(|ours| ours == claim.id));
        let is_over = ended.is_some();
        if self.is_unused
            && let Some(fingerprint) = ended.and_then(|claim| claim.spends)
        {
            next.record.undo_intent(&fingerprint);
        }
        let mut is_new = is_over;
        if let Some(token) = &self.refused
            && !next.is_refused(token)
        {
            next.refuse(token.fingerprint());
            next.record.close_intent(token);
            is_new = true;
        }
        if let Some(seed) = &self.adopted
            && !next.record.has_adopted(seed.fingerprint())
        {
            next.record.adopt(seed);
            is_new = true;
        }
        if self.is_grace_refused && !next.record.is_grace_refused {
            next.record.is_grace_refused = true;
            is_new = true;
        }
        let before = next.limits.clone();
        if let Some(refused) = &self.client_refused {
            next.limits.client_refused = Some(refused.clone());
        }
        if self.not_before > next.limits.not_before() {
            next.limits.set_not_before(self.not_before);
        }
        if self.throttled_until > next.limits.throttled_until() {
            next.limits.set_throttled_until(self.throttled_until);
        }
        if is_new || next.limits != before {
            Effect::Replace(Box::new(next))
        } else {
            Effect::Nothing
        }
    }
}

#[cfg(test)]
mod tests;
