//! The issuer's codes, refresh tokens in families, and access tokens. Pure: the time is a
//! parameter, and there is no HTTP.

use std::{collections::HashMap, io, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use serde::{Deserialize, Serialize};

use crate::base::clock::Moment;

/// Lifetime of an authorization code.
const CODE_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How long an expired access token keeps its serial.
const SERIAL_KEPT: Duration = Duration::from_secs(60 * 60);

/// The configured rules for granting tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GrantRules {
    pub(super) token_lifetime: Duration,
    pub(super) refresh_lifetime: Duration,
    pub(super) rotate: bool,
    pub(super) reuse_grace: Duration,
}

/// The grant state machine.
#[derive(Serialize, Deserialize)]
pub(super) struct Issuer {
    #[serde(skip)]
    rules: GrantRules,
    codes: HashMap<String, Code>,
    refresh_tokens: HashMap<String, RefreshToken>,
    access_tokens: HashMap<String, AccessToken>,
    families: u64,
    serials: u64,
}

#[derive(Serialize, Deserialize)]
struct Code {
    redirect_uri: Option<String>,
    expires: Moment,
}

#[derive(Serialize, Deserialize)]
struct RefreshToken {
    family: u64,
    expires: Moment,
    /// When it was exchanged for its successor.
    spent: Option<Moment>,
}

#[derive(Serialize, Deserialize)]
struct AccessToken {
    serial: u64,
    family: u64,
    expires: Moment,
    revoked: bool,
}

/// A new pair of tokens.
pub(super) struct Grant {
    pub(super) access_token: String,
    pub(super) refresh_token: String,
    pub(super) lifetime: Duration,
    /// The number of the access token, from 1.
    pub(super) serial: u64,
}

/// Why there is no grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrantError {
    /// The code or refresh token is unknown, expired, spent, or meant for another redirect URI.
    Invalid,
    /// A spent refresh token was used again: its whole family is revoked (RFC 9700 §4.14.2).
    Reused,
    /// The system has no random bytes.
    NoRandomness,
}

impl From<io::Error> for GrantError {
    fn from(_: io::Error) -> Self {
        Self::NoRandomness
    }
}

impl Issuer {
    /// An issuer for which each of `seeds` is a valid refresh token of its own family.
    pub(super) fn new(rules: GrantRules, seeds: &[String], now: Moment) -> Self {
        let mut issuer = Self {
            rules,
            codes: HashMap::new(),
            refresh_tokens: HashMap::new(),
            access_tokens: HashMap::new(),
            families: 0,
            serials: 0,
        };
        for seed in seeds {
            let family = issuer.new_family();
            issuer.insert_refresh_token(seed.clone(), family, now);
        }
        issuer
    }

    /// Takes over the state of another issuer in JSON, except for its rules.
    pub(super) fn restore(&mut self, json: &[u8]) -> io::Result<()> {
        let rules = self.rules;
        *self = serde_json::from_slice(json)?;
        self.rules = rules;
        Ok(())
    }

    /// A new authorization code, bound to the redirect URI of its request, if there was one.
    pub(super) fn code(&mut self, redirect_uri: Option<String>, now: Moment) -> io::Result<String> {
        self.codes.retain(|_, code| now < code.expires);
        let code = random_token()?;
        self.codes.insert(
            code.clone(),
            Code {
                redirect_uri,
                expires: now + CODE_LIFETIME,
            },
        );
        Ok(code)
    }

    /// Exchanges a code for the first tokens of a new family. The attempt spends the code even if
    /// it fails.
    pub(super) fn exchange(
        &mut self,
        code: &str,
        redirect_uri: Option<&str>,
        now: Moment,
    ) -> Result<Grant, GrantError> {
        let code = self.codes.remove(code).ok_or(GrantError::Invalid)?;
        let other_uri = code.redirect_uri.is_some() && code.redirect_uri.as_deref() != redirect_uri;
        if now >= code.expires || other_uri {
            return Err(GrantError::Invalid);
        }
        let family = self.new_family();
        self.grant(family, None, now)
    }

    /// Exchanges a refresh token for new tokens.
    pub(super) fn refresh(&mut self, token: &str, now: Moment) -> Result<Grant, GrantError> {
        let GrantRules {
            rotate,
            reuse_grace,
            ..
        } = self.rules;
        let known = self
            .refresh_tokens
            .get_mut(token)
            .filter(|known| now < known.expires)
            .ok_or(GrantError::Invalid)?;
        let family = known.family;
        match known.spent {
            Some(spent) if reuse_grace.is_zero() || now.saturating_since(spent) > reuse_grace => {
                self.revoke_family(family);
                Err(GrantError::Reused)
            }
            None if rotate => {
                known.spent = Some(now);
                self.grant(family, None, now)
            }
            None => self.grant(family, Some(token), now),
            Some(_) => self.grant(family, None, now),
        }
    }

    /// The serial of an access token that is valid now.
    pub(super) fn valid(&self, token: &str, now: Moment) -> Option<u64> {
        self.access_tokens
            .get(token)
            .filter(|known| !known.revoked && now < known.expires)
            .map(|known| known.serial)
    }

    /// The serial of an access token, valid or not.
    pub(super) fn serial(&self, token: &str) -> Option<u64> {
        self.access_tokens.get(token).map(|known| known.serial)
    }

    /// Makes every access token invalid; refresh tokens stay valid.
    pub(super) fn revoke_access_tokens(&mut self) {
        self.access_tokens
            .values_mut()
            .for_each(|token| token.revoked = true);
    }

    /// Makes every token invalid. Returns the number of families.
    pub(super) fn revoke_families(&mut self) -> u64 {
        let mut families: Vec<u64> = self
            .refresh_tokens
            .drain()
            .map(|(_, token)| token.family)
            .collect();
        families.sort_unstable();
        families.dedup();
        self.revoke_access_tokens();
        families.len() as u64
    }

    fn grant(&mut self, family: u64, keep: Option<&str>, now: Moment) -> Result<Grant, GrantError> {
        self.refresh_tokens.retain(|_, token| now < token.expires);
        self.access_tokens
            .retain(|_, token| now < token.expires + SERIAL_KEPT);
        let access_token = random_token()?;
        let refresh_token = keep.map_or_else(random_token, |token| Ok(token.to_owned()))?;
        self.insert_refresh_token(refresh_token.clone(), family, now);
        self.serials += 1;
        let serial = self.serials;
        let lifetime = self.rules.token_lifetime;
        let token = AccessToken {
            serial,
            family,
            expires: now + lifetime,
            revoked: false,
        };
        self.access_tokens.insert(access_token.clone(), token);
        Ok(Grant {
            access_token,
            refresh_token,
            lifetime,
            serial,
        })
    }

    fn insert_refresh_token(&mut self, refresh_token: String, family: u64, now: Moment) {
        let expires = now + self.rules.refresh_lifetime;
        self.refresh_tokens.insert(
            refresh_token,
            RefreshToken {
                family,
                expires,
                spent: None,
            },
        );
    }

    fn new_family(&mut self) -> u64 {
        self.families += 1;
        self.families
    }

    fn revoke_family(&mut self, family: u64) {
        self.refresh_tokens
            .retain(|_, token| token.family != family);
        self.access_tokens
            .values_mut()
            .filter(|token| token.family == family)
            .for_each(|token| token.revoked = true);
    }
}

/// 256 random bits, safe in a URL.
pub(super) fn random_token() -> io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const RULES: GrantRules = GrantRules {
        token_lifetime: HOUR,
        refresh_lifetime: Duration::MAX,
        rotate: true,
        reuse_grace: Duration::ZERO,
    };

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    fn issuer(rules: GrantRules) -> Issuer {
        Issuer::new(rules, &["seed".to_owned()], at(0))
    }

    #[test]
    fn a_refresh_rotates_and_the_new_token_goes_on() {
        let mut issuer = issuer(RULES);
        let first = issuer.refresh("seed", at(1)).ok().unwrap();
        let second = issuer.refresh(&first.refresh_token, at(2)).ok().unwrap();
        assert_ne!(first.refresh_token, second.refresh_token);
        assert_ne!(first.access_token, second.access_token);
        assert_eq!((first.serial, second.serial, second.lifetime), (1, 2, HOUR));
        assert_eq!(
            issuer.valid(&first.access_token, at(2)),
            Some(1),
            "a refresh leaves the old access token alone"
        );
    }

    #[test]
    fn reuse_revokes_the_family_and_no_other() {
        let mut issuer = Issuer::new(RULES, &["seed".to_owned(), "other".to_owned()], at(0));
        let grant = issuer.refresh("seed", at(1)).ok().unwrap();
        let other = issuer.refresh("other", at(1)).ok().unwrap();
        assert_eq!(
            issuer.refresh("seed", at(2)).err(),
            Some(GrantError::Reused)
        );
        assert_eq!(
            issuer.refresh(&grant.refresh_token, at(2)).err(),
            Some(GrantError::Invalid)
        );
        assert_eq!(issuer.valid(&grant.access_token, at(2)), None);
        assert_eq!(issuer.serial(&grant.access_token), Some(1));
        assert_eq!(issuer.valid(&other.access_token, at(2)), Some(2));
        assert!(issuer.refresh(&other.refresh_token, at(2)).is_ok());
    }

    #[test]
    fn within_the_grace_reuse_rotates_again_and_after_it_revokes() {
        let mut issuer = issuer(GrantRules {
            reuse_grace: Duration::from_secs(10),
            ..RULES
        });
        let first = issuer.refresh("seed", at(1)).ok().unwrap();
        let again = issuer.refresh("seed", at(11)).ok().unwrap();
        assert_ne!(first.refresh_token, again.refresh_token);
        assert_eq!(
            issuer.refresh("seed", at(12)).err(),
            Some(GrantError::Reused)
        );
        assert_eq!(
            issuer.refresh(&again.refresh_token, at(12)).err(),
            Some(GrantError::Invalid)
        );
    }

    #[test]
    fn without_rotation_the_same_refresh_token_stays() {
        let mut issuer = issuer(GrantRules {
            rotate: false,
            ..RULES
        });
        for second in 1..4 {
            assert_eq!(
                issuer
                    .refresh("seed", at(second))
                    .ok()
                    .unwrap()
                    .refresh_token,
                "seed"
            );
        }
    }

    #[test]
    fn tokens_expire() {
        let mut issuer = issuer(GrantRules {
            refresh_lifetime: 2 * HOUR,
            ..RULES
        });
        let grant = issuer.refresh("seed", at(0)).ok().unwrap();
        assert_eq!(issuer.valid(&grant.access_token, at(3599)), Some(1));
        assert_eq!(issuer.valid(&grant.access_token, at(3600)), None);
        assert_eq!(
            issuer.refresh(&grant.refresh_token, at(7200)).err(),
            Some(GrantError::Invalid)
        );
        assert!(issuer.refresh(&grant.refresh_token, at(7199)).is_ok());
    }

    #[test]
    fn a_code_is_spent_by_its_first_use_even_a_failed_one() {
        let mut issuer = issuer(RULES);
        let code = issuer.code(Some("http://app/".to_owned()), at(0)).unwrap();
        assert!(issuer.exchange(&code, Some("http://app/"), at(1)).is_ok());
        assert_eq!(
            issuer.exchange(&code, Some("http://app/"), at(1)).err(),
            Some(GrantError::Invalid)
        );
        let code = issuer.code(Some("http://app/".to_owned()), at(1)).unwrap();
        assert_eq!(
            issuer.exchange(&code, Some("http://evil/"), at(1)).err(),
            Some(GrantError::Invalid)
        );
        assert_eq!(
            issuer.exchange(&code, Some("http://app/"), at(1)).err(),
            Some(GrantError::Invalid)
        );
    }

    #[test]
    fn a_code_lives_five_minutes() {
        let mut issuer = issuer(RULES);
        let [early, late] = [(); 2].map(|()| issuer.code(None, at(0)).unwrap());
        assert!(issuer.exchange(&early, None, at(299)).is_ok());
        assert_eq!(
            issuer.exchange(&late, None, at(300)).err(),
            Some(GrantError::Invalid)
        );
    }

    #[test]
    fn revoking_everything_leaves_nothing_valid() {
        let mut issuer = issuer(RULES);
        let grant = issuer.refresh("seed", at(0)).ok().unwrap();
        issuer.revoke_access_tokens();
        assert_eq!(issuer.valid(&grant.access_token, at(0)), None);
        let next = issuer.refresh(&grant.refresh_token, at(0)).ok().unwrap();
        assert_eq!(issuer.revoke_families(), 1);
        assert_eq!(issuer.valid(&next.access_token, at(0)), None);
        assert_eq!(
            issuer.refresh(&next.refresh_token, at(0)).err(),
            Some(GrantError::Invalid)
        );
    }
}
