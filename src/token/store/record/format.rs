//! The state file's format: JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{AccessToken, Intent, Record, Spent, from_millis, millis, to_millis};
use crate::{
    base::{clock::Moment, secret::Secret},
    token::{refresh_token::RefreshToken, token_response::is_valid_access_token},
};

const FORMAT: u32 = 1;

impl Record {
    /// JSON, in one allocation, which is wiped on drop.
    pub(in crate::token::store) fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
        let access = self.access.as_ref();
        let text = |secret: &Secret| secret.expose().to_owned();
        let format = Format {
            format: FORMAT,
            epoch: self.epoch,
            generation: self.generation,
            refresh_token: self
                .refresh_token
                .as_ref()
                .map(|token| text(token.secret())),
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
        let secrets = format.access_token.as_ref().map_or(0, String::len)
            + format.refresh_token.as_ref().map_or(0, String::len);
        let others =
            80 * self.adopted.len() + 512 * self.intents.len() + self.spent.json_size() + 1024;
        let mut json = Zeroizing::new(Vec::with_capacity(6 * secrets + others));
        serde_json::to_writer_pretty(&mut *json, &format)?;
        json.push(b'\n');
        Ok(json)
    }

    /// # Errors
    /// The mistake and its position, without any of the contents.
    pub(in crate::token::store) fn from_json(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        // The parser's message may quote a value, so only its position is used.
        let garbled = |error: serde_json::Error| {
            format!(
                "line {}, column {}: this is not a state file of this program",
                error.line(),
                error.column()
            )
        };
        let head: Head = serde_json::from_slice(json).map_err(garbled)?;
        if head.format != FORMAT {
            return Err(format!(
                "its format {} is unknown to this version of the program",
                head.format
            ));
        }
        let mut format: Format = serde_json::from_slice(json).map_err(garbled)?;
        let access = format.take_access()?;
        Ok(Self {
            epoch: format.epoch,
            generation: format.generation,
            refresh_token: format
                .refresh_token
                .take()
                .filter(|token| !token.is_empty())
                .map(|token| RefreshToken::new(Secret::new(token))),
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
    }
}
