//! The token's lifecycle: kept fresh by one refresher task, read by everybody without blocking.
//!
//! [`Refresher`] is the task, [`Credential`] the handle for everybody else, [`Token`] what they share through one cell.
//!
//! | file | what it is for |
//! |---|---|
//! | `refresher.rs` | the one task that calls the issuer, and what follows from each answer |
//! | `refresher/plan.rs` | what to call next, and when |
//! | `refresher/chain.rs` | what chains of tokens come from: the stored record, other processes, the configuration |
//! | `schedule.rs` | the moments, as pure functions |
//! | `cache.rs` | a token, its version, and the marks that decide whether a rejection is worth a refresh |
//! | `credential.rs` | reading, waiting, reporting |
//! | `state.rs` | what is told to people and machines |
//! | `issuer.rs`, `channel.rs`, `answer.rs` | the call, how it is sent, and the judgement of its answer |
//! | `exchange.rs`, `jwt.rs`, `first.rs` | first tokens: for a code, and without a person |
//! | `login.rs` | first tokens that a person got, stored beside a running refresher |
//! | `store/` | where tokens outlive the process |

mod cache;
pub mod code_grant;
mod credential;
mod endpoint;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod initial_grant;
pub mod issuer;
pub mod jwt_grant;
pub mod login;
mod refresher;
mod schedule;
mod state;
mod store;
#[cfg(test)]
mod testing;
mod token_response;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::{
    cache::{Token, Version},
    credential::{Credential, MAX_WAITERS, ManualRefreshError, Rejection},
    initial_grant::InitialGrant,
    refresher::{Error, Refresher},
    state::{DurationHistogram, Outcome, Persistence, Reason, Refresh, Snapshot, State, Status},
    store::Error as StoreError,
    token_response::{Failure, FailureClass, TokenResponse},
};
use crate::base::secret::Secret;

/// A named credential: what to refresh, with what, and where to keep it. Nothing about it is global.
#[derive(Debug, Clone)]
pub struct Config {
    /// The credential's name in metrics and status; `default` today.
    pub name: String,
    /// How to talk to the issuer.
    pub issuer: IssuerConfig,
    /// The configured refresh token, if any: the seed of a credential chain.
    pub refresh_token: Option<Secret>,
    /// Where tokens are kept over a restart.
    pub state_file: Option<PathBuf>,
    /// How long before expiry to refresh; `None`: max(5 min, 20 % of the lifetime). Never more than half the lifetime.
    pub refresh_margin: Option<Duration>,
    /// How long a refresh token lives whose issuer does not tell, from the last different one.
    pub refresh_lifetime: Duration,
    /// Whether a refresh token that may be spent is sent once more, and what follows from that.
    pub grace_retry: bool,
    /// How long a request may wait for a token.
    pub wait: Duration,
    /// The least time between two refreshes that rejections ask for.
    pub cooldown: Duration,
}

impl Config {
    /// The files that the credential comes from.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let secrets = [
            Some(&self.issuer.client_secret),
            self.refresh_token.as_ref(),
        ];
        secrets
            .into_iter()
            .flatten()
            .filter_map(Secret::file)
            .chain(self.state_file.as_deref())
    }
}

/// How to talk to the issuer: `POST {url}`, HTTP Basic, grant in the URL or in a form.
#[derive(Debug, Clone)]
pub struct IssuerConfig {
    /// The refresh interface: issuer origin and `refresh_path`, without a query.
    pub refresh_url: url::Url,
    /// The client's id.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: Secret,
    /// Where the grant's parameters go.
    pub parameters: ParameterLocation,
    /// How id and secret are encoded before Base64.
    pub basic_encoding: BasicEncoding,
    /// Where the answer's fields are.
    pub fields: ResponseFields,
    /// Limit for a whole call.
    pub timeout: Duration,
    /// The lifetime of a token whose answer names none.
    pub default_expires_in: Duration,
    /// Trust and greeting, if the issuer is `https`.
    pub tls: crate::net::tls::Config,
}

/// Where the credential's first tokens come from.
#[derive(Debug, Clone)]
pub struct InitialGrantConfig {
    /// How codes become tokens.
    pub code: code_grant::Config,
    /// How to get codes without a person, if that is configured.
    pub jwt: Option<jwt_grant::Config>,
}

/// Where the grant's parameters go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterLocation {
    /// Into the URL, as the cloud documents it.
    Query,
    /// Into an `application/x-www-form-urlencoded` body, as RFC 6749 §6 has it.
    Form,
}

/// How id and secret are encoded before Base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasicEncoding {
    /// As they are.
    Raw,
    /// Form-encoded first, RFC 6749 §2.3.1.
    Form,
}

/// JSON pointers (RFC 6901) to the fields of the issuer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseFields {
    /// Default `/access_token`.
    pub access_token: String,
    /// Default `/refresh_token`.
    pub refresh_token: String,
    /// Default `/expires_in`, seconds.
    pub expires_in: String,
    /// Default `/refresh_expires_in`, seconds.
    pub refresh_expires_in: String,
}

impl Default for ResponseFields {
    fn default() -> Self {
        let field = |name| format!("/{name}");
        Self {
            access_token: field("access_token"),
            refresh_token: field("refresh_token"),
            expires_in: field("expires_in"),
            refresh_expires_in: field("refresh_expires_in"),
        }
    }
}
