//! Requests whose token was rejected: whether they get a newer token, and how long they wait.
//!
//! [`Rejections`](super::rejection::Rejections) decides; this file waits.

use std::{hash::Hash, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    cache::{Token, Version},
    credential::{Credential, WaiterSlot},
    rejection::{Case, Decision, RequestKey, VerificationOutcome},
};
use crate::base::clock::Moment;

/// How long a request that got no newer token in time waits for the verification of another one,
/// to verify the token itself.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// A request whose token was rejected, and that can be sent again.
#[derive(Debug)]
pub struct RejectedRequest {
    version: Version,
    key: RequestKey,
    /// Whether it was not sent again with the same token yet.
    can_verify: bool,
    /// It has waited for a newer token, and there was none in time.
    has_waited: bool,
}

impl RejectedRequest {
    /// `version`: the rejected token. `key`: from [`Credential::request_key`].
    pub fn new(version: Version, key: RequestKey) -> Self {
        Self {
            version,
            key,
            can_verify: true,
            has_waited: false,
        }
    }

    /// The key it was made with.
    pub fn key(&self) -> RequestKey {
        self.key
    }
}

/// What to do about a response that rejected a token.
#[derive(Debug)]
pub enum Rejection {
    /// There is a newer token: replay with it.
    Newer(Arc<Token>),
    /// Send the request again, with the same token over another connection.
    Verify(Verification),
    /// A newer token is being requested. It pays to ask again at this moment.
    Refreshing {
        /// When a verification is possible again.
        ask_again: Option<Moment>,
    },
    /// No refresh is allowed yet. Ask again at `ask_again`.
    Waiting {
        /// When the decision may change.
        ask_again: Moment,
        /// When the next refresh is allowed, unless the request waits for a verification.
        next_refresh: Option<Moment>,
    },
    /// A newer token would not help: relay the response.
    Futile,
}

/// What a rejected request gets after a wait.
#[derive(Debug)]
pub enum Replacement {
    /// A newer token: replay with it.
    Newer(Arc<Token>),
    /// Send the request again, with the same token over another connection.
    Verify(Verification),
    /// A newer token would not help.
    Futile,
    /// There was no newer token in time.
    Late,
}

/// A rejected token that is being tried again. Dropped without an outcome, another request may try.
#[derive(Debug)]
pub struct Verification {
    credential: Credential,
    version: Version,
    outcome: Option<VerificationOutcome>,
}

impl Credential {
    /// The key of a request with these properties.
    pub fn request_key(&self, properties: impl Hash) -> RequestKey {
        self.shared.rejections.key(properties)
    }

    /// Reports that a request that cannot be sent again was rejected.
    pub fn rejected(&self, version: Version) -> Rejection {
        self.decide(version, None)
    }

    /// What a rejected request gets: waits at most `wait` for a refresh to be allowed, and at most
    /// `wait` for a requested one. A request that gets no newer token verifies the rejected one,
    /// proven or not: the server that rejected it may be the only one that does. Dropping the future
    /// cancels the wait, never the refresh.
    pub async fn replacement(&self, request: &mut RejectedRequest, wait: Duration) -> Replacement {
        let mut status = self.status.clone();
        let mut deadline = Instant::now() + wait;
        let mut is_refreshing = false;
        let mut slot = None;
        loop {
            // Both are armed before the decision: what changes in between is not missed.
            let mut verified = std::pin::pin!(self.shared.rejections.verified());
            verified.as_mut().enable();
            let needs_operator = status.borrow_and_update().needs_operator();
            let decision = self.decide(request.version, Some(request));
            let is_verifying = matches!(
                decision,
                Rejection::Waiting {
                    next_refresh: None,
                    ..
                }
            );
            let mut is_too_late = false;
            let ask_again = match decision {
                Rejection::Newer(token) => return Replacement::Newer(token),
                Rejection::Verify(verification) => {
                    request.can_verify = false;
                    return Replacement::Verify(verification);
                }
                Rejection::Futile => return Replacement::Futile,
                Rejection::Refreshing { ask_again } => {
                    if !std::mem::replace(&mut is_refreshing, true) {
                        deadline = Instant::now() + wait;
                    }
                    ask_again.map(|moment| self.instant(moment))
                }
                Rejection::Waiting {
                    ask_again,
                    next_refresh,
                } => {
                    is_too_late = next_refresh.is_some_and(|next| self.instant(next) > deadline);
                    Some(self.instant(ask_again))
                }
            };
            if slot.is_none() {
                slot = WaiterSlot::take(&self.shared.waiters);
            }
            let is_hopeless = (needs_operator || request.has_waited) && !is_verifying;
            if is_hopeless || is_too_late || slot.is_none() || Instant::now() >= deadline {
                if request.has_waited || !request.can_verify {
                    return Replacement::Late;
                }
                request.has_waited = true;
                deadline = Instant::now() + LAST_WAIT;
                continue;
            }
            let ask_again = ask_again.map_or(deadline, |again| again.min(deadline));
            tokio::select! {
                changed = status.changed() => if changed.is_err() {
                    // The refresher has ended.
                    return Replacement::Late;
                },
                () = verified => {}
                () = sleep_until(ask_again) => {}
            }
        }
    }

    fn decide(&self, version: Version, request: Option<&RejectedRequest>) -> Rejection {
        let now = self.shared.clock.now();
        let current = self.shared.token.load();
        // A refresh is due anyway.
        let is_refreshing = Rejection::Refreshing { ask_again: None };
        let Some(token) = current.as_ref() else {
            return is_refreshing;
        };
        let is_usable = token.is_usable(now);
        if token.version() != version {
            return if token.version() > version && is_usable {
                Rejection::Newer(Arc::clone(token))
            } else {
                is_refreshing
            };
        }
        let case = Case {
            key: request.map(|request| request.key),
            version,
            is_proven: token.is_proven() || request.is_some_and(|request| request.has_waited),
            // A token that has expired meanwhile can still be verified: the refresh may take long,
            // and the server that rejected it may be the only one that does.
            is_refresh_requested: token.is_refresh_requested() || !is_usable,
            can_verify: request.is_some_and(|request| request.can_verify),
        };
        match self.shared.rejections.decide(&case, now) {
            Decision::Relay => Rejection::Futile,
            Decision::Verify => Rejection::Verify(Verification {
                credential: self.clone(),
                version,
                outcome: None,
            }),
            Decision::Refresh => {
                token.request_refresh();
                self.shared.wake.notify_one();
                Rejection::Refreshing { ask_again: None }
            }
            Decision::Join { ask_again } => Rejection::Refreshing { ask_again },
            Decision::Wait {
                ask_again,
                next_refresh,
            } => Rejection::Waiting {
                ask_again,
                next_refresh,
            },
        }
    }

    /// A moment of this credential's clock on the runtime's, on which requests wait.
    fn instant(&self, moment: Moment) -> Instant {
        Instant::now() + moment.saturating_since(self.shared.clock.now())
    }

    /// A request with this token, which [needs a proof](Token::needs_proof), was accepted.
    pub fn accepted(&self, token: &Token, key: RequestKey) {
        token.set_proven();
        let shared = &self.shared;
        shared.rejections.accepted(key, shared.clock.now());
    }

    /// A request was rejected under this token too, which it got instead of a rejected one.
    pub fn replay_rejected(&self, token: &Token, key: RequestKey) {
        let current = self.shared.token.load();
        // Another request may have had the token replaced already: then it says nothing.
        let Some(current) = current
            .as_ref()
            .filter(|current| current.version() == token.version())
        else {
            return;
        };
        let shared = &self.shared;
        shared.rejections.remember_futile(key, shared.clock.now());
        current.watch();
    }
}

impl Verification {
    /// The upstream accepted the token.
    pub fn accepted(mut self) {
        self.outcome = Some(VerificationOutcome::Accepted);
    }

    /// The upstream rejected the token once more; if `is_elsewhere`, at another address.
    pub fn rejected(mut self, is_elsewhere: bool) {
        self.outcome = Some(VerificationOutcome::Rejected { is_elsewhere });
    }
}

impl Drop for Verification {
    fn drop(&mut self) {
        let shared = &self.credential.shared;
        let now = shared.clock.now();
        shared
            .rejections
            .finish_verification(self.version, self.outcome, now);
    }
}
