//! The simulated issuer. It rotates refresh tokens; a second use of one, after `grace`, revokes its
//! family. It knows what the proxy can know, which decides whether a failure is explained.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

/// The lifetime that the proxy assumes when a response states no usable one.
pub const DEFAULT_LIFETIME: u64 = 6;
/// `token.timeout`, in seconds.
pub const TIMEOUT: u64 = 2;
/// The issuer accepts tokens for longer than it states.
const TOLERANCE: Duration = Duration::from_secs(3);
/// A token that arrived later than this before a decision may not have been used for it.
const SETTLED: Duration = Duration::from_secs(1);
/// Grants that are remembered.
const KEPT: usize = 200;

/// How the issuer responds during a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Normal,
    /// Grants in responses that are odd, or slow.
    Odd,
    /// Server errors, and connections that are closed before the request is processed.
    Failing,
    /// No response; nothing is granted.
    Silent,
    /// Nothing listens.
    Closed,
    /// Grants whose responses are lost. Only for issuers with a grace.
    Lossy,
}

pub struct Issuer {
    grace: Duration,
    pub mode: Mode,
    /// The client secret that is valid now.
    pub secret: String,
    refresh_tokens: HashMap<String, RefreshToken>,
    access_tokens: HashMap<String, AccessToken>,
    /// The families that an administrator or a second use revoked.
    dead: HashSet<u64>,
    /// Tokens that the proxy can use, oldest first.
    usable: Vec<Usable>,
    family: u64,
    serial: u64,
    /// When the proxy last had a reason not to have a token.
    last_fault: Instant,
    /// The refresh tokens that the process left behind when it was killed, and when.
    at_kill: HashMap<String, Instant>,
    /// The client's secret was refused, and no token was delivered since.
    pub is_client_refused: bool,
    /// Stops the process during the next call, before the response is sent.
    pub stop_in_next_call: bool,
    pub counts: Counts,
    /// The times of calls, for the highest rate.
    pub calls: Vec<Instant>,
}

#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub calls: u64,
    pub grants: u64,
    pub odd: u64,
    pub failed: u64,
    /// Families that were revoked because a refresh token was used twice.
    pub revoked: u64,
    /// The same, where a kill lost the response: the documentation concedes these.
    pub revoked_after_kill: u64,
}

struct RefreshToken {
    family: u64,
    spent: Option<Instant>,
}

struct AccessToken {
    family: u64,
    serial: u64,
    expires: Instant,
    is_revoked: bool,
    was_accepted: bool,
}

struct Usable {
    access_token: String,
    delivered: Instant,
    expires: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Valid,
    Refused { serial: u64, was_accepted: bool },
}

/// The content of a response that grants tokens.
pub struct Granted {
    pub access_token: String,
    pub refresh_token: String,
    /// Seconds.
    pub lifetime: u64,
}

impl Issuer {
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            mode: Mode::Normal,
            secret: "secret-0".to_owned(),
            refresh_tokens: HashMap::new(),
            access_tokens: HashMap::new(),
            dead: HashSet::new(),
            usable: Vec::new(),
            family: 0,
            serial: 0,
            last_fault: Instant::now(),
            at_kill: HashMap::new(),
            is_client_refused: false,
            stop_in_next_call: false,
            counts: Counts::default(),
            calls: Vec::new(),
        }
    }

    /// A refresh token of a new family, as an operator gets it.
    pub fn new_seed(&mut self) -> String {
        self.family += 1;
        let seed = format!("seed-{}", self.family);
        let token = RefreshToken {
            family: self.family,
            spent: None,
        };
        self.refresh_tokens.insert(seed.clone(), token);
        self.last_fault = Instant::now();
        seed
    }

    /// Whether the newest family can go on.
    pub fn is_alive(&self) -> bool {
        !self.dead.contains(&self.family)
    }

    /// An administrator revokes all tokens.
    pub fn withdraw(&mut self) {
        self.dead.insert(self.family);
        self.revoke_access_tokens();
    }

    /// Access tokens become invalid; refresh tokens stay valid.
    pub fn revoke_access_tokens(&mut self) {
        for token in self.access_tokens.values_mut() {
            token.is_revoked = true;
        }
        let known = &self.access_tokens;
        self.usable
            .retain(|usable| !known[&usable.access_token].is_revoked);
    }

    /// Something is happening that may leave the proxy without a token.
    pub fn note_fault(&mut self) {
        self.last_fault = Instant::now();
    }

    /// The time since the proxy last had a reason not to have a token.
    pub fn fault_free(&self) -> Duration {
        if self.is_alive() {
            self.last_fault.elapsed()
        } else {
            Duration::ZERO
        }
    }

    /// The serial of the newest token that the proxy has had for a while, if it is valid.
    pub fn settled_token(&self) -> Option<u64> {
        let now = Instant::now();
        let mut newest_first = self.usable.iter().rev();
        let newest = newest_first.find(|usable| usable.delivered + SETTLED < now)?;
        let is_valid = now + Duration::from_millis(500) < newest.expires;
        is_valid.then(|| self.access_tokens[&newest.access_token].serial)
    }

    pub fn check(&mut self, access_token: &str) -> Verdict {
        let refused = |serial, was_accepted| Verdict::Refused {
            serial,
            was_accepted,
        };
        let Some(token) = self.access_tokens.get_mut(access_token) else {
            return refused(0, false);
        };
        let is_valid = !token.is_revoked
            && !self.dead.contains(&token.family)
            && Instant::now() < token.expires + TOLERANCE;
        if is_valid {
            Verdict::Valid
        } else {
            refused(token.serial, token.was_accepted)
        }
    }

    /// The serial of a token, and whether the cloud has accepted it before. Notes its acceptance.
    pub fn note_accepted(&mut self, access_token: &str, is_accepted: bool) -> (u64, bool) {
        let Some(token) = self.access_tokens.get_mut(access_token) else {
            return (0, false);
        };
        let before = token.was_accepted;
        token.was_accepted |= is_accepted;
        (token.serial, before)
    }

    /// The process was killed, and the next one may find this refresh token.
    pub fn note_kill(&mut self, stored: String) {
        if self.is_spent(&stored) {
            // The next process has none of the newer tokens.
            self.usable.clear();
        }
        self.at_kill.insert(stored, Instant::now());
        self.note_fault();
    }

    /// Whether the replacement of this refresh token was granted, and is not stored.
    pub fn is_spent(&self, refresh_token: &str) -> bool {
        self.refresh_tokens
            .get(refresh_token)
            .is_some_and(|token| token.spent.is_some())
    }

    /// Whether a refresh token is of the family that an operator got last.
    pub fn is_of_newest_family(&self, refresh_token: &str) -> bool {
        self.refresh_tokens
            .get(refresh_token)
            .is_some_and(|token| token.family == self.family)
    }

    /// The remaining life of the newest token.
    pub fn left(&self) -> Duration {
        self.usable.last().map_or(Duration::ZERO, |usable| {
            usable.expires.saturating_duration_since(Instant::now())
        })
    }

    /// Spends a refresh token.
    ///
    /// # Errors
    /// Why the response is `invalid_grant`.
    pub fn grant(&mut self, presented: &str, lifetime: u64) -> Result<Granted, String> {
        let now = Instant::now();
        let Some(token) = self.refresh_tokens.get_mut(presented) else {
            return Err("unknown".to_owned());
        };
        let family = token.family;
        if self.dead.contains(&family) {
            return Err("of a revoked family".to_owned());
        }
        if let Some(spent) = token.spent
            && (self.grace.is_zero() || now - spent > self.grace)
        {
            let killed = self.at_kill.get(presented);
            let is_conceded = killed.is_some_and(|killed| spent < *killed + SETTLED);
            if is_conceded {
                self.counts.revoked_after_kill += 1;
            } else {
                self.counts.revoked += 1;
            }
            self.dead.insert(family);
            self.revoke_access_tokens();
            let after = now - spent;
            return Err(format!(
                "spent {after:.1?} ago: family {family} is revoked, conceded: {is_conceded}"
            ));
        }
        token.spent.get_or_insert(now);
        self.serial += 1;
        self.counts.grants += 1;
        let refresh_token = format!("refresh-{family}-{}", self.serial);
        let access_token = format!("access-{family}-{}", self.serial);
        self.refresh_tokens.insert(
            refresh_token.clone(),
            RefreshToken {
                family,
                spent: None,
            },
        );
        self.access_tokens.insert(
            access_token.clone(),
            AccessToken {
                family,
                serial: self.serial,
                expires: now + Duration::from_secs(lifetime),
                is_revoked: false,
                was_accepted: false,
            },
        );
        Ok(Granted {
            access_token,
            refresh_token,
            lifetime,
        })
    }

    /// The proxy can use this token from now on.
    pub fn note_delivered(&mut self, access_token: &str) {
        self.is_client_refused = false;
        let token = &self.access_tokens[access_token];
        if token.is_revoked || self.dead.contains(&token.family) {
            return;
        }
        self.usable.push(Usable {
            access_token: access_token.to_owned(),
            delivered: Instant::now(),
            expires: token.expires,
        });
        if self.usable.len() > KEPT {
            self.usable.remove(0);
        }
    }
}
