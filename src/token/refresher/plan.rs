//! Which call to make next, and when: pure functions of a [`Situation`]. They need neither a clock
//! nor a store.

use std::time::Duration;

use crate::{
    base::clock::Moment,
    token::{
        issuer::READ_ON,
        refresh_token::RefreshToken,
        state::{Problem, Reason},
        store::{Grant, Intent},
        token_response::FailureClass,
    },
};

/// If this much of an access token's life is left, or this share of it, a refresh may risk its
/// revocation.
const LAST_MINUTE: Duration = Duration::from_secs(60);
const LAST_SHARE: u32 = 5;
/// The shortest time between calls of a refused client.
const REFUSED_CLIENT_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest time between a call with an unknown outcome and its repetition.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait for a response, unless `token.timeout` is longer.
const MAX_READ_ON: Duration = Duration::from_secs(300);

/// Everything that the next call depends on, at one moment.
#[derive(Debug, Clone)]
pub(super) struct Situation {
    /// The seed: a configured refresh token that was never used. It takes precedence over the
    /// chain.
    pub(super) seed: Option<Candidate>,
    /// The chain's refresh token.
    pub(super) chain: Option<Candidate>,
    /// Whether tokens can be obtained without a refresh token.
    pub(super) has_initial_grant: bool,
    /// Whether a refresh token that may have been used can be sent once more.
    pub(super) grace_retry: bool,
    /// An operator asked for a refresh.
    pub(super) is_requested: bool,
    /// Another process may have used the refresh tokens: the stored record cannot be read, or its
    /// lock is held for longer than a call takes.
    pub(super) is_in_doubt: bool,
    /// The upstream rejected the cached token.
    pub(super) is_rejected: bool,
    /// When the budget of all replicas allows a refresh that a rejection causes.
    pub(super) rejection_allowed_at: Moment,
    /// When the cached token is due for its scheduled refresh.
    pub(super) refresh_at: Moment,
    /// The end of the backoff. An operator's request ends it earlier.
    pub(super) backoff_until: Moment,
    /// The end of the issuer's `Retry-After`. Nothing ends it earlier.
    pub(super) throttled_until: Moment,
    /// When the cached token expires; `None` if there is no usable one.
    pub(super) expires_at: Option<Moment>,
    /// The lifetime of the newest access token.
    pub(super) lifetime: Duration,
}

/// A refresh token that could be sent.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) token: RefreshToken,
    pub(super) standing: Standing,
}

/// What is known of a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was not sent, or the outcome is unknown but so recent that the issuer accepts a
    /// repetition.
    Good,
    /// It was sent, the outcome is unknown, and it is too late for a repetition.
    PossiblyUsed,
    /// The issuer refused it: it is never sent again.
    Refused,
}

impl Standing {
    /// `age` is the time since the intent was opened; `None` if unknown. The issuer accepts a
    /// repetition for `grace_period` after that.
    pub(super) fn new(
        is_refused: bool,
        intent: Option<&Intent>,
        age: Option<Duration>,
        grace_period: Duration,
    ) -> Self {
        match intent {
            _ if is_refused => Self::Refused,
            None => Self::Good,
            Some(intent) if intent.attempts == 1 && age.is_some_and(|age| age < grace_period) => {
                Self::Good
            }
            Some(_) => Self::PossiblyUsed,
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// Present `grant` to the issuer at `due`.
    Call { grant: Grant, due: Moment },
    /// Make no call until an operator acts.
    Blocked(Blocker),
}

/// Why no call can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocker {
    /// There is no refresh token, and no other grant.
    NoRefreshToken,
    /// The issuer refused the only refresh token.
    Refused,
    /// The only refresh token may have been used, and must not be sent again.
    OutcomeUnknown,
}

impl Plan {
    /// When to call; `None` without a call.
    pub(super) fn due(&self) -> Option<Moment> {
        match self {
            Self::Call { due, .. } => Some(*due),
            Self::Blocked(_) => None,
        }
    }

    /// What to call with; `None` without a call.
    pub(super) fn grant(&self) -> Option<&Grant> {
        match self {
            Self::Call { grant, .. } => Some(grant),
            Self::Blocked(_) => None,
        }
    }

    /// Whether a call is possible again that this problem excluded.
    pub(super) fn resolves(&self, problem: Reason, has_initial_grant: bool) -> bool {
        let Self::Call { .. } = self else {
            return false;
        };
        match problem {
            Reason::NoCredential | Reason::OutcomeUnknown => true,
            // With an initial grant, this is the refusal of that grant, which a retry may end.
            Reason::RefreshTokenRefused => !has_initial_grant,
            _ => false,
        }
    }
}

impl Blocker {
    /// The problem that only an operator can solve; `None` if the issuer's refusal already is it.
    pub(super) fn problem(self) -> Option<Problem> {
        let (reason, detail) = match self {
            Self::NoRefreshToken => (
                Reason::NoCredential,
                "there is no refresh token: set token.refresh_token_file, or run bearer-proxy \
                 login",
            ),
            Self::Refused => return None,
            Self::OutcomeUnknown => (
                Reason::OutcomeUnknown,
                "the issuer's response was lost, so the refresh token may have been used, and \
                 token.grace_retry = false forbids to send it again: get a new one",
            ),
        };
        Some(Problem {
            reason,
            detail: detail.to_owned(),
        })
    }
}

/// When to give up a call that was sent at `sent_at`.
///
/// The alternative to reading on is to send a refresh token again that may have been used. So the
/// call lasts as long as the cached access token, and [`READ_ON`] timeouts at least; but a response
/// that has not come after [`MAX_READ_ON`] does not come any more.
pub(super) fn give_up_at(sent_at: Moment, timeout: Duration, expires_at: Option<Moment>) -> Moment {
    let least = sent_at + timeout.saturating_mul(READ_ON);
    let most = sent_at + MAX_READ_ON;
    expires_at.map_or(least, |expiry| least.max(expiry.min(most)))
}

impl Situation {
    pub(super) fn plan(&self) -> Plan {
        let seed = self.seed.as_ref().filter(|seed| self.may_send(seed));
        let chain = self.chain.as_ref().filter(|chain| self.may_send(chain));
        let (grant, due) = if let Some(seed) = seed {
            let due = self.due(seed.standing, Moment::default());
            (Grant::Seed(seed.token.clone()), due)
        } else if let Some(chain) = chain {
            let due = self.due(chain.standing, self.next_refresh());
            (Grant::Chain(chain.token.clone()), due)
        } else if self.has_initial_grant {
            (Grant::Initial, self.next_refresh())
        } else {
            return Plan::Blocked(self.blocker());
        };
        // A rejection does not shorten a backoff.
        let backoff_until = if self.is_requested {
            Moment::default()
        } else {
            self.backoff_until
        };
        Plan::Call {
            grant,
            due: due.max(backoff_until).max(self.throttled_until),
        }
    }

    fn may_send(&self, candidate: &Candidate) -> bool {
        match candidate.standing {
            Standing::Good => true,
            Standing::PossiblyUsed => self.grace_retry && !self.has_initial_grant,
            Standing::Refused => false,
        }
    }

    /// Only an operator takes the risk of [`Standing::PossiblyUsed`] at once; what another process
    /// is doing, not even an operator knows.
    fn due(&self, standing: Standing, otherwise: Moment) -> Moment {
        if self.is_in_doubt {
            self.last_chance().max(otherwise)
        } else if standing == Standing::PossiblyUsed && !self.is_requested {
            self.last_chance()
        } else {
            otherwise
        }
    }

    fn next_refresh(&self) -> Moment {
        if self.is_requested {
            Moment::default()
        } else if self.is_rejected {
            self.rejection_allowed_at.min(self.refresh_at)
        } else {
            self.refresh_at
        }
    }

    /// An issuer that sees a refresh token for the second time may revoke the access token as well.
    /// So that call waits until little of the access token's life is left.
    fn last_chance(&self) -> Moment {
        let little = LAST_MINUTE.max(self.lifetime / LAST_SHARE);
        self.expires_at.map_or(Moment::default(), |expiry| {
            Moment::since_boot(expiry.elapsed_since_boot().saturating_sub(little))
        })
    }

    fn blocker(&self) -> Blocker {
        match self.seed.as_ref().or(self.chain.as_ref()) {
            None => Blocker::NoRefreshToken,
            Some(candidate) if candidate.standing == Standing::Refused => Blocker::Refused,
            Some(_) => Blocker::OutcomeUnknown,
        }
    }
}

/// A failed call, and what its retry depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct FailedCall {
    pub(super) class: FailureClass,
    /// When the request was sent.
    pub(super) sent_at: Moment,
    pub(super) now: Moment,
    /// Whether the issuer had refused the client already before this call.
    pub(super) is_client_refused: bool,
    /// What is known of the sent refresh token; `None` if the call sent none.
    pub(super) standing: Option<Standing>,
    /// Whether the next call presents an initial grant instead of a refresh token.
    pub(super) is_initial_grant_next: bool,
}

/// When to call again after a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// Not before this moment.
    At(Moment),
    /// After the backoff.
    WithBackoff,
    /// At once if the client secret has changed; otherwise not before this moment.
    WithNewSecretOrAt(Moment),
}

impl FailedCall {
    pub(super) fn retry(&self) -> Retry {
        let next_probe = self.sent_at + REFUSED_CLIENT_INTERVAL;
        match self.class {
            // Of an initial grant: otherwise the plan has no further call with this token.
            FailureClass::RefreshTokenRefused => Retry::At(next_probe),
            FailureClass::Throttled(wait) if self.is_client_refused => {
                Retry::At(next_probe.max(self.now + wait))
            }
            // Other failures in between do not end the refusal of the client.
            _ if self.is_client_refused => Retry::At(next_probe.max(self.now)),
            FailureClass::ClientRefused => Retry::WithNewSecretOrAt(next_probe),
            FailureClass::Throttled(wait) => Retry::At(self.now + wait),
            FailureClass::Garbled | FailureClass::Ambiguous if self.is_worth_repeating() => {
                Retry::At((self.sent_at + MIN_INTERVAL).max(self.now))
            }
            FailureClass::Garbled
            | FailureClass::Ambiguous
            | FailureClass::Unreachable
            | FailureClass::Failing => Retry::WithBackoff,
        }
    }

    /// After an unknown outcome: whether the same refresh token can be repeated within the grace
    /// period, or an initial grant replaces it.
    fn is_worth_repeating(&self) -> bool {
        self.standing.is_some_and(|standing| {
            standing != Standing::PossiblyUsed || self.is_initial_grant_next
        })
    }
}

#[cfg(test)]
mod tests;
