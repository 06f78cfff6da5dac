//! The state file's format: JSON.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{AccessToken, Intent, Record, Spent, from_millis, millis, to_millis};
use crate::{
    base::{clock::Moment, secret::Secret},
    token::{
        issuer::IssuerConfig, refresh_token::RefreshToken, token_response::is_valid_access_token,
    },
};

const FORMAT: u32 = 1;

/// The issuer and the client that tokens belong to. Another issuer must not see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::token) struct Owner {
    /// The origins of its servers, at least one.
    issuers: Vec<String>,
    client_id: String,
}

impl Owner {
    pub(in crate::token) fn new(config: &IssuerConfig) -> Self {
        let origins = config.origins.iter();
        Self {
            issuers: origins
                .map(|url| url.origin().ascii_serialization())
                .collect(),
            client_id: config.client_id.clone(),
        }
    }

    /// Whether a server of the one issuer is one of the other's, so that servers can be added and
    /// removed. The same cloud may be addressed by http and by https.
    fn is_same(&self, other: &Self) -> bool {
        let host = |issuer: &String| match issuer.split_once("://") {
            Some((_, host)) => host.to_owned(),
            None => issuer.clone(),
        };
        let is_ours = |issuer| self.issuers.iter().any(|own| host(own) == host(issuer));
        other.issuers.iter().any(is_ours) && self.client_id == other.client_id
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| text.chars().take(200).collect::<String>();
        let issuer = shown(&self.issuers.join(", "));
        let client = shown(&self.client_id);
        write!(f, "client {client:?} of issuer {issuer:?}")
    }
}

/// Why the contents of a state file are not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::token) enum Unreadable {
    /// It is not a record: the mistake and its position, without any of the contents.
    Garbled(String),
    /// A newer version of this program wrote it, or another issuer's tokens are in it: it must not
    /// be replaced.
    Foreign(String),
}

impl Record {
    /// JSON, in one allocation, which is wiped on drop.
    pub(in crate::token) fn to_json(
        &self,
        owner: &Owner,
    ) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
        let access = self.access.as_ref();
        let text = |secret: &Secret| secret.expose().to_owned();
        let format = Format {
            format: FORMAT,
            issuer: owner.issuers.first().cloned(),
            other_issuers: owner.issuers.iter().skip(1).cloned().collect(),
            client_id: Some(owner.client_id.clone()),
            epoch: self.epoch,
            generation: self.generation,
            refresh_token: self
                .refresh_token
                .as_ref()
                .map(|token| text(token.secret())),
            seed: self.seed.as_ref().map(|token| text(token.secret())),
            refresh_token_expires_at_ms: self.refresh_token_expires_at.map(to_millis),
            refresh_token_since_ms: self.refresh_token_since.map(to_millis),
            access_token: access.map(|access| text(&access.secret)),
            lifetime_ms: access.map(|access| millis(access.lifetime)),
            obtained_at_ms: access.map(|access| to_millis(access.requested_at)),
            expires_at_ms: access.map(|access| to_millis(access.requested_at + access.lifetime)),
            boot_id: access
                .and_then(|access| access.boot.as_ref())
                .map(|(id, _)| id.clone()),
            expires_at_boot_ms: access
                .and_then(|access| access.boot.as_ref())
                .map(|(_, expires_at)| millis(expires_at.elapsed_since_boot())),
            adopted: self.adopted.clone(),
            intents: self.intents.clone(),
            spent: self.spent.clone(),
            is_grace_refused: self.is_grace_refused,
        };
        // A vector that grows would leave unwiped copies behind, so its capacity allows for the
        // worst case: every byte escaped.
        let secrets = [&format.access_token, &format.refresh_token, &format.seed];
        let secrets: usize = secrets.into_iter().flatten().map(String::len).sum();
        let others = 80 * self.adopted.len()
            + 512 * self.intents.len()
            + self.spent.json_size()
            + owner
                .issuers
                .iter()
                .map(|issuer| 6 * issuer.len() + 16)
                .sum::<usize>()
            + 6 * owner.client_id.len()
            + 1024;
        let mut json = Zeroizing::new(Vec::with_capacity(6 * secrets + others));
        serde_json::to_writer_pretty(&mut *json, &format)?;
        json.push(b'\n');
        Ok(json)
    }

    /// # Errors
    /// When it is not a record of this owner.
    pub(in crate::token) fn from_json(json: &[u8], owner: &Owner) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct Head {
            format: serde_json::Value,
        }
        // The parser's message may quote a value, so only its position is used.
        let garbled = |error: serde_json::Error| {
            Unreadable::Garbled(format!(
                "line {}, column {}: this is not a state file of this program",
                error.line(),
                error.column()
            ))
        };
        let head: Head = serde_json::from_slice(json).map_err(garbled)?;
        if head.format != FORMAT {
            // Anything but a number is not quoted.
            let number = head.format.as_number().map(|number| format!(" {number}"));
            return Err(Unreadable::Foreign(format!(
                "its format{} is unknown to this version of the program",
                number.unwrap_or_default()
            )));
        }
        let mut format: Format = serde_json::from_slice(json).map_err(garbled)?;
        if let Some(other) = format.take_owner(owner)
            && !other.is_same(owner)
        {
            return Err(Unreadable::Foreign(format!(
                "it holds the tokens of {other}, and this proxy is {owner}"
            )));
        }
        let access = format.take_access().map_err(Unreadable::Garbled)?;
        let token = |text: &mut Option<String>| {
            let text = text.take().filter(|token| !token.is_empty());
            text.map(|token| RefreshToken::new(Secret::new(token)))
        };
        Ok(Self {
            epoch: format.epoch,
            generation: format.generation,
            refresh_token: token(&mut format.refresh_token),
            seed: token(&mut format.seed),
            refresh_token_expires_at: format.refresh_token_expires_at_ms.and_then(from_millis),
            refresh_token_since: format.refresh_token_since_ms.and_then(from_millis),
            access,
            adopted: std::mem::take(&mut format.adopted),
            intents: std::mem::take(&mut format.intents),
            spent: std::mem::take(&mut format.spent),
            is_grace_refused: format.is_grace_refused,
        })
    }
}

/// The file. Everything but the format may be missing, so that an operator can write
/// `{"format": 1, "refresh_token": "…"}`.
#[derive(Serialize, Deserialize)]
struct Format {
    format: u32,
    /// The first of the issuer's servers, as versions that know one server only expect it.
    issuer: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    other_issuers: Vec<String>,
    client_id: Option<String>,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    generation: u64,
    refresh_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<String>,
    refresh_token_expires_at_ms: Option<u64>,
    refresh_token_since_ms: Option<u64>,
    access_token: Option<String>,
    lifetime_ms: Option<u64>,
    obtained_at_ms: Option<u64>,
    /// `obtained_at_ms` plus `lifetime_ms`, for readers of the file.
    expires_at_ms: Option<u64>,
    boot_id: Option<String>,
    expires_at_boot_ms: Option<u64>,
    #[serde(default)]
    adopted: Vec<String>,
    #[serde(default)]
    intents: Vec<Intent>,
    #[serde(default)]
    spent: Spent,
    #[serde(default, rename = "grace_refused")]
    is_grace_refused: bool,
}

impl Format {
    /// Records of older versions and those that an operator wrote name none.
    fn take_owner(&mut self, ours: &Owner) -> Option<Owner> {
        let others = std::mem::take(&mut self.other_issuers);
        let issuers: Vec<_> = self.issuer.take().into_iter().chain(others).collect();
        let client_id = self.client_id.take();
        (!issuers.is_empty() || client_id.is_some()).then(|| Owner {
            issuers: match issuers.is_empty() {
                true => ours.issuers.clone(),
                false => issuers,
            },
            client_id: client_id.unwrap_or_else(|| ours.client_id.clone()),
        })
    }

    /// An access token of unknown age is not used: `None`.
    fn take_access(&mut self) -> Result<Option<AccessToken>, String> {
        let (Some(secret), Some(lifetime), Some(requested_at)) = (
            self.access_token.take().map(Secret::new),
            self.lifetime_ms,
            self.obtained_at_ms.and_then(from_millis),
        ) else {
            return Ok(None);
        };
        if !is_valid_access_token(secret.expose()) {
            return Err(
                "its access token contains characters that are not allowed in a header".to_owned(),
            );
        }
        let boot_expiry = self
            .expires_at_boot_ms
            .map(|at| Moment::since_boot(Duration::from_millis(at)));
        let boot = self.boot_id.take().zip(boot_expiry);
        Ok(Some(AccessToken {
            secret,
            lifetime: Duration::from_millis(lifetime),
            requested_at,
            boot,
        }))
    }
}

impl Drop for Format {
    fn drop(&mut self) {
        use zeroize::Zeroize as _;
        self.access_token.zeroize();
        self.refresh_token.zeroize();
        self.seed.zeroize();
    }
}
