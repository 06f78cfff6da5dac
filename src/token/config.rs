//! The configuration of a credential.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    code_grant,
    endpoint::Servers,
    fleet,
    issuer::{self, IssuerConfig},
    jwt_grant::{self, JwtGrant},
};
use crate::base::{clock::SharedClock, secret::Secret};

/// A named credential: what to refresh, with what, and where to store it. Nothing about it is
/// global.
#[derive(Debug, Clone)]
pub struct Config {
    /// The credential's name in metrics and status; `default` today.
    pub name: String,
    /// How to call the issuer.
    pub issuer: IssuerConfig,
    /// The configured refresh token, if any: the seed of a chain.
    pub refresh_token: Option<Secret>,
    /// The store that several replicas share.
    pub store: Option<fleet::Config>,
    /// The state file, which keeps tokens across restarts; beside a store, this replica's own copy.
    pub state_file: Option<PathBuf>,
    /// Whether the state file's mode and owner matter: some volumes know neither.
    pub checks_state_file_permissions: bool,
    /// How long before expiry to refresh; `None`: max(5 min, 20 % of the lifetime). Never more
    /// than half the lifetime.
    pub refresh_margin: Option<Duration>,
    /// The lifetime of a refresh token if the issuer states none, from the last different one.
    pub refresh_lifetime: Duration,
    /// Whether a refresh token that may have been used is sent once more.
    pub grace_retry: bool,
    /// How long after a refresh token was first sent the issuer accepts it once more. Zero without
    /// [`Config::grace_retry`].
    pub grace_period: Duration,
    /// Whether the issuer replaces the refresh token at a refresh.
    pub rotates: bool,
    /// How long a request may wait for a token.
    pub wait: Duration,
    /// The time between two refreshes that rejections cause, after a few at once.
    pub cooldown: Duration,
}

impl Config {
    /// The files that the credential is read from.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
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

/// How the credential's first tokens are obtained.
#[derive(Debug, Clone)]
pub struct InitialGrantConfig {
    /// The authorization code grant, which `login` uses, and the JWT grant after its first step.
    pub code: code_grant::Config,
    /// Codes without a user, if configured.
    pub jwt: Option<jwt_grant::Config>,
}

impl InitialGrantConfig {
    /// The grant that needs no user; `None` unless `[token.jwt]` is configured. Connects to nothing
    /// yet.
    ///
    /// # Errors
    /// When the TLS settings are unusable.
    pub fn build(
        &self,
        issuer: &IssuerConfig,
        clock: SharedClock,
    ) -> Result<Option<JwtGrant>, issuer::Error> {
        Ok(self.at_servers(&issuer.servers()?, issuer, clock))
    }

    /// Like [`InitialGrantConfig::build`], with these servers of the issuer.
    pub(super) fn at_servers(
        &self,
        servers: &Arc<Servers>,
        issuer: &IssuerConfig,
        clock: SharedClock,
    ) -> Option<JwtGrant> {
        let (servers, jwt) = (Arc::clone(servers), self.jwt.clone()?);
        Some(JwtGrant::new(servers, jwt, &self.code, issuer, clock))
    }
}
