//! The refresher of a replica: it follows the shared record, claims its calls, and stores their
//! outcomes there.

use std::{
    cmp::Ordering,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use super::{Refresher, chain::Attempt, plan::Plan};
use crate::{
    base::{clock::Moment, secret::Secret},
    token::{
        fleet::{
            CallOutcome, CallResult, ClientRefused, Fleet, ForCall, Note, OnStoreFailure, Revision,
            View,
        },
        refresh_token::RefreshToken,
        rejection::BURST,
        state::{Problem, Reason},
        store::{Grant, Record},
        token_response::FailureClass,
    },
};

/// The time between two attempts to claim a call.
const REPETITION: Duration = Duration::from_millis(250);

/// What other replicas have learned from the issuer.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// The reading that was followed, and the claim that was live then.
    seen: Option<(Revision, Option<String>)>,
    /// Refresh tokens that the chain has gone on without.
    spares: Vec<RefreshToken>,
    /// When the shared budget allows the next refresh that a rejection causes.
    pub(super) rejection_allowed_at: Moment,
    /// The replica's own copy of the record was offered to an empty store.
    is_offered: bool,
}

impl Refresher {
    /// Takes over what the shared record has that this replica does not know.
    pub(super) fn follow_fleet(&mut self) {
        let Some(fleet) = self.fleet.clone() else {
            return;
        };
        let is_superseded = fleet.take_superseded();
        let Some(view) = fleet.view() else {
            self.offer_to(&fleet);
            return;
        };
        let seen = Some((view.revision, view.being_spent.clone()));
        if self.followed.seen == seen && !is_superseded {
            return;
        }
        self.followed.seen = seen;
        let now = self.shared.clock.now();
        let mut stored = view
            .shared
            .record
            .in_local_time(&*self.shared.clock, view.time.at_most(now));
        if let Some(fingerprint) = &view.being_spent {
            // The call is under way. Its intent says something only if the claim is orphaned.
            stored.undo_intent(fingerprint);
        }
        for refused in &view.shared.refused {
            self.chain.learn_refused(refused);
        }
        self.followed.spares.clone_from(&view.shared.spares);
        let ours = &self.chain.record;
        let is_same_token = stored.refresh_token == ours.refresh_token;
        match stored.version().cmp(&ours.version()) {
            Ordering::Greater => self.take_over_shared(stored),
            _ if is_superseded && !is_same_token => self.take_over_shared(stored),
            Ordering::Equal if !is_same_token => self.take_over_shared(stored),
            Ordering::Equal => {
                self.followed.is_offered = false;
                self.chain.follow(stored);
            }
            Ordering::Less => self.offer_to(&fleet),
        }
        self.heed_limits(&view, now);
        self.assess();
        // The replica whose call was refused may have died before it tried a spare.
        if matches!(self.plan(), Plan::Blocked(_)) && self.try_spare() {
            self.assess();
        }
    }

    fn take_over_shared(&mut self, stored: Record) {
        self.take_over(stored);
        self.timing.backoff_until = Moment::default();
        self.followed.is_offered = false;
        self.writer.enqueue(self.chain.record.clone());
    }

    /// This replica's own copy is newer than what is stored: from its file, or from before the store
    /// lost it.
    fn offer_to(&mut self, fleet: &Arc<Fleet>) {
        let record = &self.chain.record;
        let Some(token) = record.refresh_token.clone() else {
            return;
        };
        if !fleet.was_read() || self.followed.is_offered || self.chain.is_refused(&token) {
            return;
        }
        if !fleet.is_idle() {
            // Once what is pending is stored.
            self.followed.seen = None;
            return;
        }
        self.followed.is_offered = true;
        fleet.offer(CallResult {
            claim: None,
            record: fleet.in_store_time(record),
            before: record.version(),
            grant: Grant::Chain(token),
            client: None,
        });
    }

    /// What the issuer said to another replica holds for this one, too.
    fn heed_limits(&mut self, view: &View, now: Moment) {
        let limits = &view.shared.limits;
        let moment = |time| view.time.moment(time, now);
        if let Some(until) = limits.throttled_until() {
            self.timing.throttled_until = self.timing.throttled_until.max(moment(until));
        }
        if let Some(until) = limits.not_before() {
            self.timing.backoff_until = self.timing.backoff_until.max(moment(until));
        }
        if let Some(whole_at) = limits.budget_whole_at() {
            let spare = self.policy.cooldown.saturating_mul(BURST - 1);
            self.followed.rejection_allowed_at =
                moment(whole_at.checked_sub(spare).unwrap_or(whole_at))
                    .min(now + self.policy.cooldown);
        }
        if let Some(refused) = &limits.client_refused
            && refused.secret == self.issuer.client_fingerprint()
        {
            const INTERVAL: Duration = Duration::from_secs(60);
            self.timing.backoff_until = self
                .timing
                .backoff_until
                .max(moment(refused.at() + INTERVAL));
            self.problem.get_or_insert_with(|| Problem {
                reason: Reason::ClientRefused,
                detail: "the issuer refused the client (token.client_id, token.client_secret), as \
                         another replica reports"
                    .to_owned(),
            });
        }
    }

    /// What to do without the store. A credential that turns out to rotate needs it.
    pub(super) fn on_store_failure(&self) -> OnStoreFailure {
        if self.policy.rotates && self.initial_grant.is_none() {
            OnStoreFailure::Wait
        } else {
            self.policy.on_store_failure
        }
    }

    /// The issuer has sent another refresh token, although the configuration says that it never does.
    pub(super) fn notice_rotation(&mut self, received: Option<&Secret>, attempt: &Attempt) {
        let Some(sent) = attempt.grant.refresh_token() else {
            return;
        };
        let is_same = |token: &Secret| RefreshToken::new(token.clone()) == *sent;
        if self.policy.rotates || received.is_none_or(is_same) {
            return;
        }
        self.policy.rotates = true;
        tracing::error!(
            credential = self.shared.name,
            "the issuer replaces the refresh token, although token.rotation is \"none\": without the \
             shared store this replica waits from now on; set token.rotation = \"rotate\""
        );
    }

    /// Claims the call. False if it must not be made now.
    pub(super) async fn claim(&mut self, fleet: &Arc<Fleet>, attempt: &mut Attempt) -> bool {
        let situation = self.situation();
        let is_rejection = situation.is_rejected && !situation.is_requested;
        let call = ForCall {
            grant: attempt.grant.clone(),
            version: self.chain.record.version(),
            until: attempt.grace_ends_at(self.policy.grace_period, &*self.shared.clock),
            cooldown: is_rejection.then_some(self.policy.cooldown),
        };
        let Some(claimed) = fleet.claim(call).await else {
            self.chain.abandon(attempt);
            self.lock_wait.put_off(self.shared.clock.now() + REPETITION);
            return false;
        };
        attempt.claimed = Some(claimed);
        true
    }

    /// The next generation is the announced one, which no other replica uses.
    pub(super) fn count_from_claim(&mut self, attempt: &Attempt) {
        if let Some(claimed) = &attempt.claimed {
            self.chain.record.generation = claimed.generation.saturating_sub(1);
        }
    }

    /// Stores new tokens. Returns when they are stored, or after a second.
    pub(super) async fn store_result(&mut self, attempt: &mut Attempt) {
        let record = self.chain.record.clone();
        let Some(fleet) = self.fleet.clone() else {
            return self.writer.save(record).await;
        };
        let result = CallResult {
            claim: None,
            record: fleet.in_store_time(&record),
            grant: attempt.grant.clone(),
            before: attempt.version_before,
            client: Some(self.issuer.client_fingerprint()),
        };
        let claimed = attempt.claimed.take();
        fleet
            .finish(claimed, CallOutcome::Result(Box::new(result)))
            .await;
        self.writer.enqueue(record);
    }

    /// Notes how a call has failed, for all replicas.
    pub(super) async fn store_failure(&mut self, class: FailureClass, attempt: &mut Attempt) {
        let Some(fleet) = self.fleet.clone() else {
            return;
        };
        let token = attempt.grant.refresh_token();
        let outcome = match class {
            FailureClass::Unreachable => CallOutcome::NotSent,
            class => CallOutcome::Note(Note {
                is_unused: matches!(
                    class,
                    FailureClass::ClientRefused
                        | FailureClass::Throttled(_)
                        | FailureClass::Failing
                ),
                refused: token
                    .filter(|_| class == FailureClass::RefreshTokenRefused)
                    .cloned(),
                is_grace_refused: self.chain.record.is_grace_refused,
                client_refused: (class == FailureClass::ClientRefused).then(|| {
                    ClientRefused::new(
                        self.issuer.client_fingerprint(),
                        self.store_time(&fleet, self.shared.clock.now()),
                    )
                }),
                // What concerns one refresh token or one secret does not delay others.
                not_before: match class {
                    FailureClass::RefreshTokenRefused if token.is_some() => None,
                    FailureClass::ClientRefused => None,
                    _ => self.shared_limit(&fleet, self.timing.backoff_until),
                },
                throttled_until: self.shared_limit(&fleet, self.timing.throttled_until),
                ..Note::default()
            }),
        };
        fleet.finish(attempt.claimed.take(), outcome).await;
    }

    /// Notes for all replicas that a seed is not tried again.
    pub(super) async fn store_adopted(&mut self, seed: Option<RefreshToken>) {
        match self.fleet.clone() {
            None => self.writer.save(self.chain.record.clone()).await,
            Some(fleet) => {
                let note = Note {
                    adopted: seed,
                    ..Note::default()
                };
                fleet.finish(None, CallOutcome::Note(note)).await;
            }
        }
    }

    /// `None` if it has passed.
    fn shared_limit(&self, fleet: &Fleet, until: Moment) -> Option<SystemTime> {
        (until > self.shared.clock.now()).then(|| self.store_time(fleet, until))
    }

    fn store_time(&self, fleet: &Fleet, moment: Moment) -> SystemTime {
        fleet
            .store_time()
            .map_or_else(|| self.shared.clock.wall(), |time| time.at_least(moment))
    }

    /// The chain was refused: a refresh token that it went on without is tried as a seed.
    pub(super) fn try_spare(&mut self) -> bool {
        while let Some(spare) = self.followed.spares.pop() {
            if self.chain.offer_seed(spare.secret().clone()) {
                tracing::warn!(
                    credential = self.shared.name,
                    "the issuer refused the refresh token: another one, which a late response \
                     brought, is tried"
                );
                return true;
            }
        }
        false
    }

    /// A replica that drains leaves the next call to the others, until its own token has expired.
    pub(super) fn put_off_while_draining(&self, due: Moment) -> Moment {
        match self.expiry() {
            Some(expiry) if self.fleet.is_some() && self.shared.is_draining.load(Relaxed) => {
                due.max(expiry)
            }
            _ => due,
        }
    }

    /// The refresh token of a handwritten file is a seed: no chain that the store has lost.
    pub(super) fn take_handwritten_as_seed(&mut self) {
        if self.fleet.is_none() || !self.chain.record.is_handwritten() {
            return;
        }
        // As an empty store has it.
        self.chain.record.generation = 0;
        if let Some(token) = self.chain.record.refresh_token.take() {
            self.chain.offer_handwritten(&token);
        }
    }

    /// Requests for a refresh that arrive while this replica may not call.
    pub(super) fn mark_overdue(&self, due: Option<Moment>) {
        if let Some(fleet) = &self.fleet {
            fleet.set_overdue(due.is_some_and(|due| due <= self.shared.clock.now()));
        }
    }
}
