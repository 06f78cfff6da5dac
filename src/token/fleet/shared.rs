//! What replicas share: the record of the credential, and what each of them must know before it sends
//! the refresh token. All times are the store's.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::claim::Claim;
use crate::{
    base::secret::Secret,
    token::{
        refresh_token::RefreshToken,
        store::{Owner, Record, Unreadable, from_millis, to_millis},
    },
};

const FORMAT: u32 = 1;
/// More writes or generations than any store will see.
const MAX_COUNT: u64 = u64::MAX / 2;
/// Refused refresh tokens that are remembered. Each of them took an operator or a new chain.
const MAX_REFUSED: usize = 16;
/// Refresh tokens that are kept although the chain has gone on without them.
const MAX_SPARES: usize = 2;

/// The shared record.
#[derive(Debug, Clone, Default)]
pub(in crate::token) struct Shared {
    /// Counts the writes. A lower one than before shows that the store has lost some.
    pub(in crate::token) serial: u64,
    /// A random number that changes when a lost record is written back.
    pub(in crate::token) life: u64,
    /// The credential's own record, its times in the store's time.
    pub(in crate::token) record: Record,
    /// The highest generation that a claim has announced.
    pub(in crate::token) announced: u64,
    /// The replica that is calling the issuer.
    pub(in crate::token) claim: Option<Claim>,
    /// Fingerprints of refresh tokens that the issuer refused. The newest is the last.
    pub(in crate::token) refused: Vec<String>,
    /// Refresh tokens that late responses brought. Each is tried once if the chain is refused.
    pub(in crate::token) spares: Vec<RefreshToken>,
    pub(in crate::token) limits: Limits,
}

/// When replicas may call the issuer again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::token) struct Limits {
    /// The end of the backoff after the issuer's last response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before_ms: Option<u64>,
    /// The end of its `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    throttled_until_ms: Option<u64>,
    /// The issuer refused the client with this secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::token) client_refused: Option<ClientRefused>,
    /// When the budget of refreshes that rejections cause is whole again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget_whole_at_ms: Option<u64>,
}

/// The issuer refused the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::token) struct ClientRefused {
    /// The fingerprint of its secret: replicas with another secret are not concerned.
    pub(in crate::token) secret: String,
    at_ms: u64,
}

impl ClientRefused {
    pub(in crate::token) fn new(secret: String, at: SystemTime) -> Self {
        Self {
            secret,
            at_ms: to_millis(at),
        }
    }

    pub(in crate::token) fn at(&self) -> SystemTime {
        from_millis(self.at_ms).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl Limits {
    pub(in crate::token) fn not_before(&self) -> Option<SystemTime> {
        self.not_before_ms.and_then(from_millis)
    }

    pub(in crate::token) fn throttled_until(&self) -> Option<SystemTime> {
        self.throttled_until_ms.and_then(from_millis)
    }

    pub(in crate::token) fn budget_whole_at(&self) -> Option<SystemTime> {
        self.budget_whole_at_ms.and_then(from_millis)
    }

    pub(in crate::token) fn set_not_before(&mut self, time: Option<SystemTime>) {
        self.not_before_ms = time.map(to_millis);
    }

    pub(in crate::token) fn set_throttled_until(&mut self, time: Option<SystemTime>) {
        self.throttled_until_ms = time.map(to_millis);
    }

    pub(in crate::token) fn set_budget_whole_at(&mut self, time: SystemTime) {
        self.budget_whole_at_ms = Some(to_millis(time));
    }

    /// After a success the budget goes on, and so does the refusal of a client secret other than
    /// `accepted`: replicas may still have it, and it is tried once a minute by all of them together.
    pub(in crate::token) fn clear(&mut self, accepted: Option<&str>) {
        *self = Self {
            budget_whole_at_ms: self.budget_whole_at_ms,
            client_refused: self
                .client_refused
                .take_if(|refused| Some(refused.secret.as_str()) != accepted),
            ..Self::default()
        };
    }
}

impl Shared {
    pub(in crate::token) fn is_refused(&self, token: &RefreshToken) -> bool {
        self.refused
            .iter()
            .any(|refused| refused == token.fingerprint())
    }

    pub(in crate::token) fn refuse(&mut self, fingerprint: &str) {
        self.refused.retain(|refused| refused != fingerprint);
        self.refused.push(fingerprint.to_owned());
        let excess = self.refused.len().saturating_sub(MAX_REFUSED);
        self.refused.drain(..excess);
        self.spares
            .retain(|spare| spare.fingerprint() != fingerprint);
    }

    /// Keeps a refresh token that the chain has gone on without.
    pub(in crate::token) fn add_spare(&mut self, token: &RefreshToken) {
        if self.record.knows(token) || self.is_refused(token) || self.spares.contains(token) {
            return;
        }
        self.spares.push(token.clone());
        let excess = self.spares.len().saturating_sub(MAX_SPARES);
        self.spares.drain(..excess);
    }

    /// JSON: one document for what replicas share, and the record as the state file holds it. In one
    /// allocation, which is wiped on drop.
    pub(in crate::token) fn to_bytes(
        &self,
        owner: &Owner,
    ) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
        let record = self.record.to_json(owner)?;
        let head = Head {
            format: FORMAT,
            serial: self.serial,
            life: self.life,
            announced: self.announced,
            claim: self.claim.clone(),
            refused: self.refused.clone(),
            spares: self
                .spares
                .iter()
                .map(|spare| spare.secret().expose().to_owned())
                .collect(),
            limits: self.limits.clone(),
        };
        let secrets: usize = head.spares.iter().map(String::len).sum();
        let size = 6 * secrets + 80 * head.refused.len() + 4096 + record.len();
        let mut bytes = Zeroizing::new(Vec::with_capacity(size));
        serde_json::to_writer(&mut *bytes, &head)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&record);
        Ok(bytes)
    }

    /// # Errors
    /// When the bytes are no shared record of this owner.
    pub(in crate::token) fn from_bytes(bytes: &[u8], owner: &Owner) -> Result<Self, Unreadable> {
        let garbled =
            || Unreadable::Garbled("it does not contain a record of this program".to_owned());
        let mut documents = serde_json::Deserializer::from_slice(bytes).into_iter::<Head>();
        let head = documents.next().ok_or_else(garbled)?;
        let record = bytes.get(documents.byte_offset()..).unwrap_or_default();
        let mut head = match head {
            Ok(head) => head,
            Err(_) => return Err(Self::unknown_format(bytes).unwrap_or_else(garbled)),
        };
        if head.format != FORMAT {
            return Err(Self::unknown_format(bytes).unwrap_or_else(garbled));
        }
        // Sums of such numbers would not grow any more, and hide that the store loses writes.
        if head.serial > MAX_COUNT || head.announced > MAX_COUNT {
            return Err(garbled());
        }
        Ok(Self {
            serial: head.serial,
            life: head.life,
            record: Record::from_json(record, owner)?,
            announced: head.announced,
            claim: head.claim.take(),
            refused: std::mem::take(&mut head.refused),
            spares: head
                .spares
                .iter()
                .map(|spare| RefreshToken::new(Secret::new(spare.as_str())))
                .collect(),
            limits: std::mem::take(&mut head.limits),
        })
    }

    /// The record of a newer version of this program.
    fn unknown_format(bytes: &[u8]) -> Option<Unreadable> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let mut documents = serde_json::Deserializer::from_slice(bytes).into_iter::<Format>();
        let Format { format } = documents.next()?.ok()?;
        (format != FORMAT).then(|| {
            Unreadable::Foreign(format!(
                "its format {format} is unknown to this version of the program"
            ))
        })
    }
}

/// The first document.
#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    serial: u64,
    life: u64,
    announced: u64,
    claim: Option<Claim>,
    #[serde(default)]
    refused: Vec<String>,
    #[serde(default)]
    spares: Vec<String>,
    #[serde(default)]
    limits: Limits,
}

impl Drop for Head {
    fn drop(&mut self) {
        self.spares.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::{fleet::claim::ClaimId, testing};

    fn owner() -> Owner {
        Owner::new(&testing::config(None).issuer)
    }

    fn full() -> Shared {
        let token = |text: &str| RefreshToken::new(Secret::new(text));
        let mut shared = Shared {
            serial: MAX_COUNT,
            life: 7,
            announced: 3,
            claim: Some(Claim {
                id: ClaimId {
                    owner: u64::MAX,
                    number: 2,
                },
                name: "a \"replica\"".to_owned(),
                generation: 3,
                beat: 9,
                spends: Some("ab".to_owned()),
            }),
            spares: vec![token("spare \u{1f600} \"1\""), token("spare 2")],
            ..Shared::default()
        };
        shared.record.refresh_token = Some(token("refresh"));
        shared.refuse("refused");
        shared.limits.set_not_before(from_millis(5));
        shared.limits.client_refused =
            Some(ClientRefused::new("s".to_owned(), SystemTime::UNIX_EPOCH));
        shared
    }

    #[test]
    fn what_is_written_is_read_again() {
        let shared = full();
        let bytes = shared.to_bytes(&owner()).expect("JSON");
        assert!(bytes.capacity() >= bytes.len());
        let read = Shared::from_bytes(&bytes, &owner()).expect("a record");
        assert_eq!(format!("{read:?}"), format!("{shared:?}"));
        assert_eq!(read.spares, shared.spares);
        assert_eq!(read.limits, shared.limits);
    }

    #[test]
    fn a_newer_format_and_another_owner_are_named() {
        let mut other = testing::config(None).issuer;
        other.client_id = "another".to_owned();
        let foreign = full().to_bytes(&Owner::new(&other)).expect("JSON");
        let newer = br#"{"format": 2, "serial": "?"}"#.to_vec();
        for (bytes, part) in [(foreign.to_vec(), "another"), (newer, "format 2")] {
            match Shared::from_bytes(&bytes, &owner()) {
                Err(Unreadable::Foreign(problem)) => assert!(problem.contains(part), "{problem}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_serial_that_cannot_grow_is_no_record() {
        let shared = Shared {
            serial: u64::MAX,
            ..full()
        };
        let bytes = shared.to_bytes(&owner()).expect("JSON");
        assert!(matches!(
            Shared::from_bytes(&bytes, &owner()),
            Err(Unreadable::Garbled(_))
        ));
    }

    proptest! {
        /// Half a record, or one with another byte, is none, or a whole one; and never a panic.
        #[test]
        fn a_damaged_record_is_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let bytes = full().to_bytes(&owner()).expect("JSON");
            let at = at.index(bytes.len());
            prop_assert!(Shared::from_bytes(&bytes[..at.min(bytes.len() - 2)], &owner()).is_err());
            let mut damaged = bytes.to_vec();
            damaged[at] = byte;
            let _ = Shared::from_bytes(&damaged, &owner());
        }
    }
}
