//! What a rejection leads to: a pure function of the state that earlier ones have left, and of the
//! time.
//!
//! A rejection does not say whether the token was revoked, whether no token is good enough for this
//! request, or whether the server that was asked is at fault. The rule finds out in this order:
//!
//! 1. A request whose [key](RequestKey) was rejected under a fresh token before is *futile*: its
//!    response is relayed. See [`FutileKeys`].
//! 2. A token that was accepted since it was issued is *verified*: one request is sent again with
//!    the same token over another connection. If that is accepted, the other requests are verified
//!    as well, and there is no refresh.
//! 3. Otherwise the token is refreshed, within a budget for all rejections of a credential. While
//!    the budget is spent, requests wait for the next refresh.

use std::time::Duration;

use super::futile::{FutileKeys, RequestKey};
use crate::{base::clock::Moment, token::Version};

/// Refreshes that rejections may cause at once, after a time without any. Later ones are a cooldown
/// apart.
pub(in crate::token) const BURST: u32 = 3;

/// How long the other requests wait for a verification, and how long its outcome holds.
const VERIFICATION_TIME: Duration = Duration::from_secs(1);

/// A rejected request.
#[derive(Debug, Clone, Copy)]
pub(in crate::token) struct Case {
    /// `None`: the request cannot be sent again.
    pub(in crate::token) key: Option<RequestKey>,
    /// The rejected token, which is the current one.
    pub(in crate::token) version: Version,
    /// Whether a request with the token was accepted.
    pub(in crate::token) is_proven: bool,
    /// Whether a refresh was requested already.
    pub(in crate::token) is_refresh_requested: bool,
    /// Whether the request can be sent again with the same token, and has not been yet.
    pub(in crate::token) can_verify: bool,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) enum Decision {
    /// Relay the response: a newer token would not help.
    Relay,
    /// Send the request again, with the same token over another connection.
    Verify,
    /// Request a refresh.
    Refresh,
    /// Wait for the requested refresh. Ask again at this moment.
    Join { ask_again: Option<Moment> },
    /// Wait until something changes. Ask again at `ask_again`; the next refresh is allowed at
    /// `next_refresh`, if that is what the request waits for.
    Wait {
        ask_again: Moment,
        next_refresh: Option<Moment>,
    },
}

/// The state of the rule, for one credential.
#[derive(Debug)]
pub(super) struct Rule {
    budget: Budget,
    /// The last verification.
    verification: Option<Verification>,
    pub(super) futile: FutileKeys,
}

#[derive(Debug, Clone, Copy)]
struct Verification {
    version: Version,
    state: VerificationState,
    /// `None`: as long as the token is the current one.
    until: Option<Moment>,
}

/// How the upstream responds to the same token over another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) enum VerificationOutcome {
    Accepted,
    Rejected {
        /// At another address: two servers agree, so that no later request asks a second one.
        is_elsewhere: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VerificationState {
    Running,
    Accepted,
    Rejected,
}

impl Rule {
    /// `cooldown`: the time between two refreshes that rejections cause.
    pub(super) fn new(cooldown: Duration) -> Self {
        Self {
            budget: Budget::new(cooldown),
            verification: None,
            futile: FutileKeys::new(cooldown),
        }
    }

    pub(super) fn decide(&mut self, case: &Case, now: Moment) -> Decision {
        if case.key.is_some_and(|key| self.futile.contains(key, now)) {
            return Decision::Relay;
        }
        let mut verify_again = None;
        if case.is_proven && case.can_verify {
            let last = self
                .verification
                .filter(|last| last.version == case.version)
                .filter(|last| last.until.is_none_or(|until| now < until));
            match last.map(|last| (last.state, last.until)) {
                None => {
                    self.verification = Some(Verification {
                        version: case.version,
                        state: VerificationState::Running,
                        until: Some(now + VERIFICATION_TIME),
                    });
                    return Decision::Verify;
                }
                Some((VerificationState::Accepted, _)) => return Decision::Verify,
                Some((VerificationState::Running, until)) => {
                    return Decision::Wait {
                        ask_again: until.unwrap_or(now),
                        next_refresh: None,
                    };
                }
                Some((VerificationState::Rejected, until)) => verify_again = until,
            }
        }
        if case.is_refresh_requested {
            return Decision::Join {
                ask_again: verify_again,
            };
        }
        match self.budget.take(now) {
            Ok(()) => Decision::Refresh,
            Err(next) => Decision::Wait {
                ask_again: verify_again.map_or(next, |again| again.min(next)),
                next_refresh: Some(next),
            },
        }
    }

    /// The verification of a token has ended; `None`: without an outcome.
    pub(super) fn verified(
        &mut self,
        version: Version,
        outcome: Option<VerificationOutcome>,
        now: Moment,
    ) {
        let Some(last) = &mut self.verification else {
            return;
        };
        // One of several in parallel: the first acceptance holds until its time has passed.
        if last.version != version || last.state != VerificationState::Running {
            return;
        }
        let Some(outcome) = outcome else {
            self.verification = None;
            return;
        };
        last.until = Some(now + VERIFICATION_TIME);
        last.state = match outcome {
            VerificationOutcome::Accepted => VerificationState::Accepted,
            VerificationOutcome::Rejected { is_elsewhere } => {
                if is_elsewhere {
                    last.until = None;
                }
                VerificationState::Rejected
            }
        };
    }
}

/// [`BURST`] refreshes at once, then one each cooldown.
#[derive(Debug)]
struct Budget {
    cooldown: Duration,
    /// When the budget is whole again.
    whole_at: Moment,
}

impl Budget {
    fn new(cooldown: Duration) -> Self {
        Self {
            cooldown,
            whole_at: Moment::default(),
        }
    }

    /// Takes one refresh.
    ///
    /// # Errors
    /// When the next one is allowed.
    fn take(&mut self, now: Moment) -> Result<(), Moment> {
        let spare = self.cooldown.saturating_mul(BURST - 1);
        let whole_at = self.whole_at.elapsed_since_boot();
        let next = Moment::since_boot(whole_at.saturating_sub(spare));
        if next > now {
            return Err(next);
        }
        self.whole_at = self.whole_at.max(now) + self.cooldown;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOLDOWN: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    fn rejected(key: u64) -> Case {
        Case {
            key: Some(RequestKey(key)),
            version: Version::new(1, 1),
            is_proven: false,
            is_refresh_requested: false,
            can_verify: true,
        }
    }

    fn proven(key: u64) -> Case {
        Case {
            is_proven: true,
            ..rejected(key)
        }
    }

    #[test]
    fn three_refreshes_at_once_and_then_one_a_cooldown() {
        let mut rule = Rule::new(COOLDOWN);
        let mut refreshes = Vec::new();
        for second in 100..=160 {
            for key in 0..10 {
                if rule.decide(&rejected(key), at(second)) == Decision::Refresh {
                    refreshes.push(second);
                }
            }
        }
        assert_eq!(refreshes, [100, 100, 100, 110, 120, 130, 140, 150, 160]);
        assert_eq!(
            rule.decide(&rejected(1), at(161)),
            Decision::Wait {
                ask_again: at(170),
                next_refresh: Some(at(170))
            }
        );
        assert_eq!(
            rule.decide(&rejected(1), at(170)),
            Decision::Refresh,
            "after that time it is allowed"
        );
        let mut refreshes = 0;
        while rule.decide(&rejected(1), at(1000)) == Decision::Refresh {
            refreshes += 1;
        }
        assert_eq!(refreshes, 3, "no more than three are saved");
    }

    #[test]
    fn one_request_verifies_a_proven_token_and_the_others_wait_for_the_outcome() {
        let waiting = Decision::Wait {
            ask_again: at(2),
            next_refresh: None,
        };
        let version = Version::new(1, 1);
        for (outcome, next) in [
            (Some(VerificationOutcome::Accepted), Decision::Verify),
            (
                Some(VerificationOutcome::Rejected {
                    is_elsewhere: false,
                }),
                Decision::Refresh,
            ),
            (None, Decision::Verify),
        ] {
            let mut rule = Rule::new(COOLDOWN);
            assert_eq!(rule.decide(&proven(1), at(1)), Decision::Verify);
            assert_eq!(rule.decide(&proven(2), at(1)), waiting);
            rule.verified(version, outcome, at(1));
            assert_eq!(rule.decide(&proven(2), at(1)), next, "{outcome:?}");
        }
    }

    #[test]
    fn a_verification_delays_others_by_a_second_at_most_and_concerns_one_token() {
        let mut rule = Rule::new(COOLDOWN);
        assert_eq!(rule.decide(&proven(1), at(1)), Decision::Verify);
        assert_eq!(rule.decide(&proven(2), at(2)), Decision::Verify);
        let other = Case {
            version: Version::new(1, 2),
            ..proven(1)
        };
        assert_eq!(rule.decide(&other, at(2)), Decision::Verify);
        rule.verified(
            Version::new(1, 1),
            Some(VerificationOutcome::Accepted),
            at(2),
        );
        assert!(matches!(
            rule.decide(&other, at(2)),
            Decision::Wait {
                next_refresh: None,
                ..
            }
        ));
    }

    #[test]
    fn a_token_that_two_addresses_rejected_is_not_verified_again() {
        for is_elsewhere in [false, true] {
            let mut rule = Rule::new(COOLDOWN);
            assert_eq!(rule.decide(&proven(1), at(1)), Decision::Verify);
            let outcome = VerificationOutcome::Rejected { is_elsewhere };
            rule.verified(Version::new(1, 1), Some(outcome), at(1));
            assert_eq!(rule.decide(&proven(1), at(1)), Decision::Refresh);
            let later = rule.decide(&proven(2), at(60));
            assert_eq!(later == Decision::Verify, !is_elsewhere);
            let newer = Case {
                version: Version::new(1, 2),
                ..proven(2)
            };
            assert_eq!(rule.decide(&newer, at(61)), Decision::Verify);
        }
    }

    #[test]
    fn what_cannot_be_verified_is_refreshed_and_what_is_requested_is_joined() {
        let mut rule = Rule::new(COOLDOWN);
        let unrepeatable = Case {
            key: None,
            can_verify: false,
            ..proven(1)
        };
        assert_eq!(rule.decide(&unrepeatable, at(1)), Decision::Refresh);
        let joining = Case {
            is_refresh_requested: true,
            ..unrepeatable
        };
        assert_eq!(
            rule.decide(&joining, at(1)),
            Decision::Join { ask_again: None }
        );
    }

    #[test]
    fn a_futile_request_neither_refreshes_nor_verifies() {
        let mut rule = Rule::new(COOLDOWN);
        rule.futile.insert(RequestKey(1), at(1));
        for case in [rejected(1), proven(1)] {
            assert_eq!(rule.decide(&case, at(2)), Decision::Relay);
        }
        assert_eq!(rule.decide(&rejected(2), at(2)), Decision::Refresh);
        assert_eq!(rule.decide(&rejected(1), at(11)), Decision::Refresh);
    }
}
