//! The record of a credential chain, and its JSON.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    base::{
        clock::{Clock, Moment},
        secret::Secret,
    },
    token::{answer::is_legal_bearer, cache::Version},
};

const FORMAT: u32 = 1;
/// Fingerprints kept. An older configured token would be taken for a new one, and refused by the issuer.
const ADOPTED_LIMIT: usize = 256;
/// Intents kept: each one beyond the chain's own is a configured refresh token whose answer was lost.
const INTENTS_LIMIT: usize = 16;

/// All that must not be lost: the chain of refresh tokens, and the newest access token.
#[derive(Debug, Clone, Default)]
pub(in crate::token) struct Record {
    pub(in crate::token) epoch: u64,
    pub(in crate::token) generation: u64,
    pub(in crate::token) refresh_token: Option<Secret>,
    /// As the issuer told it.
    pub(in crate::token) refresh_token_expires_at: Option<SystemTime>,
    /// When this refresh token came: a different one than before.
    pub(in crate::token) refresh_token_since: Option<SystemTime>,
    pub(in crate::token) access: Option<Access>,
    /// At most one for each refresh token that is still in question: the chain's, and configured ones, which may be
    /// configured again.
    pub(in crate::token) intents: Vec<Intent>,
    /// Fingerprints of the configured refresh tokens that once began a chain; each does so once.
    adopted: Vec<String>,
}

/// A refresh token that was sent to the issuer, or was about to be, and no outcome is known: it may be spent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::token) struct Intent {
    /// The refresh token's fingerprint.
    spends: String,
    /// When it was first sent.
    at_ms: u64,
    boot_id: Option<String>,
    at_boot_ms: u64,
    /// How often it was sent without an outcome.
    pub(in crate::token) attempts: u32,
}

/// A configured refresh token that begins a new chain.
#[derive(Debug, Clone)]
pub(in crate::token) struct Seed {
    pub(in crate::token) token: Secret,
    pub(in crate::token) fingerprint: String,
}

/// What new tokens were had for.
#[derive(Debug)]
pub(in crate::token) enum Origin {
    /// The chain's refresh token.
    Chain,
    /// A configured refresh token: a new chain.
    Seed(Seed),
    /// No refresh token at all: a new chain.
    First,
}

/// An access token, and what is known about its age.
#[derive(Debug, Clone)]
pub(in crate::token) struct Access {
    pub(in crate::token) token: Secret,
    pub(in crate::token) lifetime: Duration,
    pub(in crate::token) obtained_at: SystemTime,
    /// The boot's id, and the expiry on that boot's clock.
    pub(in crate::token) boot: Option<(String, Moment)>,
}

impl Record {
    /// Whether this configured refresh token, by its fingerprint, once began a chain.
    pub(in crate::token) fn has_adopted(&self, fingerprint: &str) -> bool {
        self.adopted.iter().any(|adopted| adopted == fingerprint)
    }

    pub(in crate::token) fn version(&self) -> Version {
        Version::new(self.epoch, self.generation)
    }

    /// Whether people or other programs wrote it: as good as a configured refresh token.
    pub(in crate::token) fn is_handmade(&self) -> bool {
        self.epoch == 0
    }

    /// One refresh further: a new access token, and a new refresh token unless the issuer kept the one that was spent.
    pub(in crate::token) fn advance(
        &mut self,
        rotated: Option<Secret>,
        refresh_lifetime: Option<Duration>,
        access: Access,
        origin: Origin,
    ) {
        if self.is_handmade()
            && let Some(token) = &self.refresh_token
        {
            self.adopt(fingerprint(token));
        }
        if self.is_handmade() || !matches!(origin, Origin::Chain) {
            self.epoch = to_millis(access.obtained_at).max(self.epoch.saturating_add(1));
        }
        self.generation = self.generation.saturating_add(1);
        let spent = match origin {
            Origin::Chain => self.refresh_token.clone(),
            Origin::Seed(seed) => {
                self.adopt(seed.fingerprint);
                Some(seed.token)
            }
            Origin::First => None,
        };
        let newest = rotated.or_else(|| spent.clone());
        let is_another = newest.as_ref().map(Secret::expose) != self.refresh_token.as_ref().map(Secret::expose);
        if is_another {
            self.refresh_token_since = Some(access.obtained_at);
            self.refresh_token_expires_at = None;
        }
        if let Some(lifetime) = refresh_lifetime {
            self.refresh_token_expires_at = Some(access.obtained_at + lifetime);
        }
        let replaced = [self.refresh_token.as_ref(), newest.as_ref(), spent.as_ref()];
        let replaced = replaced.map(|token: Option<&Secret>| token.map(fingerprint));
        self.intents.retain(|intent| !replaced.iter().flatten().any(|known| *known == intent.spends));
        self.refresh_token = newest;
        self.access = Some(access);
    }

    /// When the refresh token expires: as the issuer told it, or `lifetime` after it came.
    pub(in crate::token) fn refresh_token_expiry(&self, lifetime: Duration) -> Option<SystemTime> {
        self.refresh_token_expires_at.or_else(|| self.refresh_token_since?.checked_add(lifetime))
    }

    /// The refresh token of that fingerprint, if it was sent and no outcome is known.
    pub(in crate::token) fn intent(&self, fingerprint: &str) -> Option<&Intent> {
        self.intents.iter().find(|intent| intent.spends == fingerprint)
    }

    /// Whether the chain's own refresh token may be spent.
    pub(in crate::token) fn is_in_doubt(&self) -> bool {
        self.chain_fingerprint().is_some_and(|chain| self.intent(&chain).is_some())
    }

    fn chain_fingerprint(&self) -> Option<String> {
        self.refresh_token.as_ref().map(fingerprint)
    }

    /// The refresh token of that fingerprint is about to be sent.
    pub(in crate::token) fn intend(&mut self, fingerprint: &str, clock: &dyn Clock) {
        if let Some(intent) = self.intents.iter_mut().find(|intent| intent.spends == fingerprint) {
            intent.attempts = intent.attempts.saturating_add(1);
            return;
        }
        if self.intents.len() >= INTENTS_LIMIT {
            let chain = self.chain_fingerprint();
            let oldest = self.intents.iter().position(|intent| Some(&intent.spends) != chain.as_ref());
            self.intents.remove(oldest.unwrap_or_default());
        }
        self.intents.push(Intent {
            spends: fingerprint.to_owned(),
            at_ms: to_millis(clock.wall()),
            boot_id: clock.boot_id().map(str::to_owned),
            at_boot_ms: millis(clock.now().elapsed_since_boot()),
            attempts: 1,
        });
    }

    /// The outcome is known.
    pub(in crate::token) fn forget_intent(&mut self, fingerprint: &str) {
        self.intents.retain(|intent| intent.spends != fingerprint);
    }

    /// What another process noted about the same chain.
    pub(in crate::token) fn take_notes(&mut self, stored: Self) {
        self.intents = stored.intents;
        self.adopted = stored.adopted;
    }

    /// From now on this configured refresh token is never tried again.
    pub(in crate::token) fn adopt(&mut self, fingerprint: String) {
        self.adopted.push(fingerprint);
        self.adopted.drain(..self.adopted.len().saturating_sub(ADOPTED_LIMIT));
    }

    /// JSON, in one allocation that is wiped.
    pub(super) fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
        let access = self.access.as_ref();
        let text = |secret: &Secret| secret.expose().to_owned();
        let format = Format {
            format: FORMAT,
            epoch: self.epoch,
            generation: self.generation,
            refresh_token: self.refresh_token.as_ref().map(text),
            refresh_token_expires_at_ms: self.refresh_token_expires_at.map(to_millis),
            refresh_token_since_ms: self.refresh_token_since.map(to_millis),
            access_token: access.map(|access| text(&access.token)),
            lifetime_ms: access.map(|access| millis(access.lifetime)),
            obtained_at_ms: access.map(|access| to_millis(access.obtained_at)),
            expires_at_ms: access.map(|access| to_millis(access.obtained_at + access.lifetime)),
            boot_id: access.and_then(|access| access.boot.as_ref()).map(|(id, _)| id.clone()),
            expires_at_boot_ms: access
                .and_then(|access| access.boot.as_ref())
                .map(|(_, expires_at)| millis(expires_at.elapsed_since_boot())),
            adopted: self.adopted.clone(),
            intents: self.intents.clone(),
        };
        // A vector that grows leaves unwiped copies behind, so it gets room for the worst: every byte escaped.
        let secrets =
            format.access_token.as_ref().map_or(0, String::len) + format.refresh_token.as_ref().map_or(0, String::len);
        let others = 80 * self.adopted.len() + 512 * self.intents.len() + 1024;
        let mut json = Zeroizing::new(Vec::with_capacity(6 * secrets + others));
        serde_json::to_writer_pretty(&mut *json, &format)?;
        json.push(b'\n');
        Ok(json)
    }

    /// # Errors
    /// With what is wrong, without any of the contents.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        // The parser's own words may quote a value: its place must do.
        let garbled = |error: serde_json::Error| {
            format!("line {}, column {}: this is not a state file of this program", error.line(), error.column())
        };
        let head: Head = serde_json::from_slice(json).map_err(garbled)?;
        if head.format != FORMAT {
            return Err(format!("its format {} is not known to this version of the program", head.format));
        }
        let mut format: Format = serde_json::from_slice(json).map_err(garbled)?;
        let access = format.take_access()?;
        Ok(Self {
            epoch: format.epoch,
            generation: format.generation,
            refresh_token: format.refresh_token.take().filter(|token| !token.is_empty()).map(Secret::new),
            refresh_token_expires_at: format.refresh_token_expires_at_ms.and_then(from_millis),
            refresh_token_since: format.refresh_token_since_ms.and_then(from_millis),
            access,
            adopted: std::mem::take(&mut format.adopted),
            intents: std::mem::take(&mut format.intents),
        })
    }
}

/// When a stored access token expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) struct Expiry {
    pub(in crate::token) at: Moment,
    /// Whether that is more than an upper limit.
    pub(in crate::token) is_certain: bool,
}

impl Access {
    /// The expiry on this boot's clock.
    pub(in crate::token) fn expiry(&self, clock: &dyn Clock) -> Expiry {
        let now = clock.now();
        if let (Some((boot, at)), Some(this_boot)) = (&self.boot, clock.boot_id())
            && boot == this_boot
            // A token from the future was stored on another clock: in another time namespace, say.
            && at.saturating_since(now) <= self.lifetime
        {
            return Expiry { at: *at, is_certain: true };
        }
        // After another boot there is only the calendar. One that went back leaves the age unknown, but no token lives
        // longer than its lifetime.
        match clock.wall().duration_since(self.obtained_at) {
            Ok(age) => Expiry { at: now + self.lifetime.saturating_sub(age), is_certain: true },
            Err(_) => Expiry { at: now + self.lifetime, is_certain: false },
        }
    }
}

impl Origin {
    /// What a new chain begins with, for people.
    pub(in crate::token) fn begins_with(&self) -> Option<&'static str> {
        match self {
            Self::Chain => None,
            Self::Seed(_) => Some("the configured refresh token"),
            Self::First => Some("first tokens"),
        }
    }
}

impl Intent {
    /// Time since the refresh token was first sent; `None` if the calendar went back.
    pub(in crate::token) fn age(&self, clock: &dyn Clock) -> Option<Duration> {
        if self.boot_id.is_some() && self.boot_id.as_deref() == clock.boot_id() {
            let sent = Moment::since_boot(Duration::from_millis(self.at_boot_ms));
            return (sent <= clock.now()).then(|| clock.now().saturating_since(sent));
        }
        clock.wall().duration_since(from_millis(self.at_ms)?).ok()
    }
}

/// SHA-256 in hexadecimal: tells refresh tokens apart without keeping them.
pub(in crate::token) fn fingerprint(token: &Secret) -> String {
    digest(&SHA256, token.expose().as_bytes()).as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The file. Everything but the format may be missing, so that `{"format": 1, "refresh_token": "…"}` is a state file.
#[derive(Serialize, Deserialize)]
struct Format {
    format: u32,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    generation: u64,
    refresh_token: Option<String>,
    refresh_token_expires_at_ms: Option<u64>,
    refresh_token_since_ms: Option<u64>,
    access_token: Option<String>,
    lifetime_ms: Option<u64>,
    obtained_at_ms: Option<u64>,
    /// For people and other programs: obtained plus lifetime.
    expires_at_ms: Option<u64>,
    boot_id: Option<String>,
    expires_at_boot_ms: Option<u64>,
    #[serde(default)]
    adopted: Vec<String>,
    #[serde(default)]
    intents: Vec<Intent>,
}

impl Format {
    /// An access token of unknown age is worth nothing: `None`.
    fn take_access(&mut self) -> Result<Option<Access>, String> {
        let (Some(token), Some(lifetime), Some(obtained_at)) =
            (self.access_token.take().map(Secret::new), self.lifetime_ms, self.obtained_at_ms.and_then(from_millis))
        else {
            return Ok(None);
        };
        if !is_legal_bearer(token.expose()) {
            return Err("its access token has characters that no header may carry".to_owned());
        }
        let boot_expiry = self.expires_at_boot_ms.map(|at| Moment::since_boot(Duration::from_millis(at)));
        let boot = self.boot_id.take().zip(boot_expiry);
        Ok(Some(Access { token, lifetime: Duration::from_millis(lifetime), obtained_at, boot }))
    }
}

impl Drop for Format {
    fn drop(&mut self) {
        use zeroize::Zeroize as _;
        self.access_token.zeroize();
        self.refresh_token.zeroize();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn to_millis(time: SystemTime) -> u64 {
    millis(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn from_millis(millis: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Simulated;

    const HOUR: Duration = Duration::from_secs(3600);

    fn record(clock: &dyn Clock) -> Record {
        let mut record = Record {
            epoch: 1_750_000_000_123,
            generation: 42,
            refresh_token: Some(Secret::new("r+%&=ü\"\n")),
            refresh_token_expires_at: from_millis(1_760_000_000_000),
            refresh_token_since: from_millis(1_750_000_000_000),
            access: Some(Access {
                token: Secret::new("abc"),
                lifetime: HOUR,
                obtained_at: clock.wall(),
                boot: clock.boot_id().map(|id| (id.to_owned(), clock.now() + HOUR)),
            }),
            adopted: Vec::new(),
            intents: Vec::new(),
        };
        record.adopt(fingerprint(&Secret::new("seed")));
        record.intend("a fingerprint", clock);
        record
    }

    fn reread(record: &Record) -> Record {
        Record::from_json(&record.to_json().expect("JSON")).expect("readable")
    }

    /// A machine like `Simulated::new`, but of that boot, so long up, and with its calendar so far from 2025's.
    fn machine(boot: Option<&str>, uptime: Duration, calendar: Duration) -> Simulated {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000) - 48 * HOUR + calendar;
        Simulated::booted(boot, uptime, wall)
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_survives_its_json() {
        let clock = Simulated::new();
        let (old, new) = (record(&clock), reread(&record(&clock)));
        assert_eq!((new.epoch, new.generation), (old.epoch, old.generation));
        assert_eq!(new.refresh_token.expect("kept").expose(), "r+%&=ü\"\n");
        assert_eq!(new.refresh_token_expires_at, old.refresh_token_expires_at);
        assert_eq!(new.refresh_token_since, old.refresh_token_since);
        assert!(new.adopted == old.adopted && new.adopted.len() == 1);
        assert!(new.intents == old.intents && new.intents.len() == 1);
        let (new, old) = (new.access.expect("kept"), old.access.expect("there"));
        assert_eq!(new.token.expose(), "abc");
        assert_eq!((new.lifetime, new.boot), (old.lifetime, old.boot));
    }

    #[test]
    fn serialising_never_reallocates() {
        let clock = Simulated::new();
        let mut record = record(&clock);
        record.refresh_token = Some(Secret::new("\u{1}".repeat(16 * 1024)));
        for n in 0..ADOPTED_LIMIT + 10 {
            record.adopt(fingerprint(&Secret::new(n.to_string())));
            record.intend(&fingerprint(&Secret::new(n.to_string())), &clock);
        }
        let json = record.to_json().expect("JSON");
        assert_eq!(record.adopted.len(), ADOPTED_LIMIT);
        assert!(json.len() > 6 * 16 * 1024);
        // A vector that had grown would have doubled its capacity.
        assert_eq!(json.capacity(), 6 * (16 * 1024 + 3) + 80 * ADOPTED_LIMIT + 512 * INTENTS_LIMIT + 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn an_intent_knows_its_age_over_a_restart_and_counts_its_attempts() {
        let (second, clock) = (Duration::from_secs(1), machine(Some("a"), HOUR, 48 * HOUR));
        let mut record = Record::default();
        record.intend("x", &clock);
        let later = machine(Some("a"), HOUR + second, Duration::ZERO);
        record.intend("x", &later);
        let intent = reread(&record).intent("x").expect("kept").clone();
        assert_eq!((intent.attempts, intent.age(&later)), (2, Some(second)), "of the first attempt, by the boot clock");
        let rebooted = |calendar| intent.age(&machine(Some("b"), second, calendar));
        assert_eq!(rebooted(49 * HOUR), Some(HOUR));
        assert_eq!(rebooted(47 * HOUR), None, "a calendar that went back");
    }

    #[tokio::test(start_paused = true)]
    async fn the_chains_own_doubt_outlives_those_of_configured_tokens() {
        let clock = Simulated::new();
        let chain = fingerprint(&Secret::new("chain"));
        let mut record = Record { refresh_token: Some(Secret::new("chain")), ..Record::default() };
        record.intend(&chain, &clock);
        for n in 0..2 * INTENTS_LIMIT {
            record.intend(&n.to_string(), &clock);
        }
        assert_eq!(record.intents.len(), INTENTS_LIMIT);
        assert!(record.is_in_doubt() && record.intent("31").is_some() && record.intent("0").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn new_tokens_settle_the_doubt_about_their_own_chain_alone() {
        let clock = Simulated::new();
        let access = || Access { token: Secret::new("a"), lifetime: HOUR, obtained_at: clock.wall(), boot: None };
        let seed = |name: &str| Seed { token: Secret::new(name), fingerprint: fingerprint(&Secret::new(name)) };
        for origin in [Origin::Chain, Origin::Seed(seed("b")), Origin::First] {
            let mut record = Record { refresh_token: Some(Secret::new("chain")), ..Record::default() };
            for token in ["chain", "a", "b"] {
                record.intend(&seed(token).fingerprint, &clock);
            }
            let is_seed = matches!(origin, Origin::Seed(_));
            record.advance(Some(Secret::new("next")), None, access(), origin);
            assert!(record.intent(&seed("chain").fingerprint).is_none());
            assert!(record.intent(&seed("a").fingerprint).is_some(), "a rolled-back configuration may bring it back");
            assert_eq!(record.intent(&seed("b").fingerprint).is_none(), is_seed);
        }
    }

    #[test]
    fn a_refresh_token_is_as_old_as_its_last_change() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let access = |obtained_at| Access { token: Secret::new("a"), lifetime: HOUR, obtained_at, boot: None };
        let mut record = Record::default();
        let seed = Seed { token: Secret::new("r"), fingerprint: fingerprint(&Secret::new("r")) };
        record.advance(None, None, access(at(10)), Origin::Seed(seed));
        assert_eq!(record.refresh_token_expiry(HOUR), Some(at(3610)));
        for same in [None, Some(Secret::new("r"))] {
            record.advance(same, None, access(at(20)), Origin::Chain);
            assert_eq!(record.refresh_token_expiry(HOUR), Some(at(3610)));
        }
        record.advance(Some(Secret::new("s")), None, access(at(30)), Origin::Chain);
        assert_eq!(record.refresh_token_expiry(HOUR), Some(at(3630)));
        record.advance(None, Some(2 * HOUR), access(at(40)), Origin::Chain);
        assert_eq!(record.refresh_token_expiry(HOUR), Some(at(7240)), "the issuer knows better");
        record.advance(None, None, access(at(50)), Origin::First);
        assert!(record.refresh_token.is_none(), "a new chain takes nothing over");
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_same_boot_the_calendar_does_not_matter() {
        let access = record(&machine(Some("a"), HOUR, 48 * HOUR)).access.expect("there");
        for calendar in [Duration::ZERO, 48 * HOUR, 96 * HOUR] {
            let clock = machine(Some("a"), HOUR + HOUR / 4, calendar);
            let expiry = access.expiry(&clock);
            assert_eq!(expiry, Expiry { at: Moment::since_boot(2 * HOUR), is_certain: true });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_another_boot_the_smaller_of_remainder_and_lifetime_counts() {
        let access = record(&machine(Some("a"), HOUR, 48 * HOUR)).access.expect("there");
        for boot in [Some("b"), None] {
            let left = |calendar| {
                let clock = machine(boot, Duration::from_secs(10), calendar);
                let expiry = access.expiry(&clock);
                (expiry.at.saturating_since(clock.now()), expiry.is_certain)
            };
            assert_eq!(left(48 * HOUR + HOUR / 4), (HOUR / 4 * 3, true));
            assert_eq!(left(96 * HOUR), (Duration::ZERO, true));
            assert_eq!(left(Duration::ZERO), (HOUR, false), "a calendar that went back");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_of_another_time_namespace_is_not_believed() {
        let access = record(&machine(Some("a"), 1000 * HOUR, 48 * HOUR)).access.expect("there");
        let clock = machine(Some("a"), HOUR, 48 * HOUR + HOUR / 2);
        assert_eq!(access.expiry(&clock).at, clock.now() + HOUR / 2);
    }

    #[test]
    fn the_least_state_file_holds_a_refresh_token() {
        let record = Record::from_json(br#"{"format": 1, "refresh_token": "r"}"#).expect("readable");
        assert_eq!(record.refresh_token.expect("there").expose(), "r");
        assert!(record.access.is_none());
    }

    #[test]
    fn an_access_token_of_unknown_age_is_dropped() {
        let record =
            Record::from_json(br#"{"format": 1, "refresh_token": "r", "access_token": "a", "lifetime_ms": 1}"#);
        assert!(record.expect("readable").access.is_none());
    }

    #[test]
    fn mistakes_are_placed_and_never_quoted() {
        for (json, says) in [
            ("", "line 1, column 0"),
            ("{\"format\": 1,\n \"generation\": \"s3cret\"}", "line 2, column 23"),
            ("{\"format\": 2, \"refresh_token\": \"s3cret\"}", "format 2"),
            ("{\"refresh_token\": \"s3cret\"}", "line 1"),
            (
                "{\"format\": 1, \"access_token\": \"s3cret\\r\\n\", \"lifetime_ms\": 1, \"obtained_at_ms\": 1}",
                "access token",
            ),
        ] {
            let error = Record::from_json(json.as_bytes()).expect_err("refused");
            assert!(error.contains(says) && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn fingerprints_are_sha_256() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(fingerprint(&Secret::new("abc")), abc);
    }
}
