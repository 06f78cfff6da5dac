//! Stores the tokens of `login`, beside proxies that may be running with the same state file or the
//! same shared store.

use std::{io, sync::Arc, time::Duration};

use super::{
    Config, InitialGrantConfig,
    fleet::{self, Fleet},
    issuer::client_fingerprint,
    refresh_token::RefreshToken,
    store::{self, AccessToken, FileStore, Grant, Record, RequestTime, Store as _},
    token_response::{Failure, TokenResponse},
};
use crate::base::{clock::SharedClock, secret::Secret};

/// Why the tokens were not stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state file is unusable.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The state file cannot be written.
    #[error("the tokens cannot be stored: {0}")]
    Write(io::Error),
    /// The shared store's settings are unusable.
    #[error(transparent)]
    Fleet(#[from] fleet::Error),
    /// The shared store cannot be used now.
    #[error("the shared token store: {0}; run bearer-proxy login again when it can be used")]
    SharedStore(String),
    /// The tokens are in the shared store alone.
    #[error("the tokens are in the shared token store, but not in token.state_file: {0}")]
    Copy(io::Error),
}

/// A login in progress: a store that is about to get a new chain.
#[derive(Debug)]
pub struct Login {
    file: Option<FileStore>,
    /// The store that replicas share. The state file then is a copy.
    fleet: Option<Arc<Fleet>>,
    /// The fingerprint of the client secret.
    client: String,
    clock: SharedClock,
    began_at: RequestTime,
}

impl Login {
    /// Call it before the tokens are requested: their lifetime counts from here, and an unusable
    /// store is detected before the code is used.
    ///
    /// # Errors
    /// When there is a state file that is unusable, or the shared store does not respond.
    pub async fn begin(
        config: &Config,
        initial_grant: Option<&InitialGrantConfig>,
        clock: SharedClock,
    ) -> Result<Self, Error> {
        let file = config.state_file.clone();
        let file = file.map(|path| FileStore::new(path, config));
        if let Some(file) = &file {
            file.open()?;
        }
        let opened = fleet::configured(config, initial_grant, &clock)?;
        let fleet = opened.map(|(fleet, _)| fleet);
        if let Some(fleet) = &fleet {
            let looked = fleet.look().await;
            looked.map_err(|error| Error::SharedStore(error.to_string()))?;
        }
        Ok(Self {
            file,
            fleet,
            client: client_fingerprint(&config.issuer.client_secret),
            began_at: RequestTime::now(&*clock),
            clock,
        })
    }

    /// Stores the tokens as a new chain. It replaces the stored chain and the configured refresh
    /// token, if there is one. Returns the remaining lifetime of the access token.
    ///
    /// Waits while another process refreshes the stored chain.
    ///
    /// # Errors
    /// When the state file cannot be read or written.
    pub async fn store(
        self,
        response: TokenResponse,
        configured: Option<&Secret>,
    ) -> Result<Duration, Error> {
        let expires_at = self.began_at.moment + response.lifetime;
        let access = AccessToken::new(
            response.access_token,
            response.lifetime,
            self.began_at,
            &*self.clock,
        );
        let clock = SharedClock::clone(&self.clock);
        let newest = response.refresh_token.clone();
        let (rotated, lifetime) = (response.refresh_token, response.refresh_lifetime);
        self.update(configured.into_iter().chain(&newest), |record| {
            record.advance(rotated.clone(), lifetime, access.clone(), &Grant::Initial);
        })
        .await?;
        Ok(expires_at.saturating_since(clock.now()))
    }

    /// Stores the refresh token of a response that is unusable otherwise, as a new chain: the code
    /// of the login is used up. False if there is none.
    ///
    /// # Errors
    /// Like [`Login::store`].
    pub async fn store_refresh_token(
        self,
        failure: &Failure,
        configured: Option<&Secret>,
    ) -> Result<bool, Error> {
        let Some(token) = failure.rotated.clone() else {
            return Ok(false);
        };
        let since = self.began_at.wall;
        let newest = token.secret().clone();
        self.update(configured.into_iter().chain([&newest]), |record| {
            record.rotate(token.clone(), since, &Grant::Initial);
        })
        .await?;
        Ok(true)
    }

    /// Changes the stored record. None of the `known` refresh tokens may begin a chain later: the
    /// configured one is older than this login.
    async fn update(
        self,
        known: impl Iterator<Item = &Secret>,
        change: impl Fn(&mut Record),
    ) -> Result<(), Error> {
        let known: Vec<_> = known
            .map(|token| RefreshToken::new(token.clone()))
            .collect();
        let begin = move |mut record: Record| {
            for token in &known {
                if !record.has_adopted(token.fingerprint()) {
                    record.adopt(token);
                }
            }
            change(&mut record);
            record
        };
        match (self.fleet, self.file) {
            (Some(fleet), file) => update_shared(&fleet, &self.client, file, begin).await,
            (None, Some(file)) => {
                // Around both reading and writing. A volume without locks is used without one, as by
                // the refresher.
                let _lock = store::lock(&file, &*self.clock).await.ok();
                let record = begin(file.load().await?.unwrap_or_default());
                file.save(Arc::new(record)).await.map_err(Error::Write)
            }
            (None, None) => Err(Error::Write(io::Error::other(
                "neither token.state_file nor [token.store] is set",
            ))),
        }
    }
}

/// The shared store first: what is there counts.
async fn update_shared(
    fleet: &Fleet,
    client: &str,
    file: Option<FileStore>,
    begin: impl Fn(Record) -> Record,
) -> Result<(), Error> {
    let copy = match &file {
        Some(file) => file.load().await?,
        None => None,
    };
    let mut newest = None;
    let stored = fleet.store_login(client, |stored| {
        let record = begin(newer_of(stored, copy.clone()));
        newest = Some(record.clone());
        record
    });
    let stored = stored.await;
    stored.map_err(|error| Error::SharedStore(error.to_string()))?;
    match (file, newest) {
        (Some(file), Some(record)) => file.save(Arc::new(record)).await.map_err(Error::Copy),
        _ => Ok(()),
    }
}

/// The newer record, with what the older one knows of earlier chains.
fn newer_of(stored: Option<Record>, copy: Option<Record>) -> Record {
    let (Some(mut newer), Some(mut older)) = (stored.clone(), copy.clone()) else {
        return stored.or(copy).unwrap_or_default();
    };
    if older.version() > newer.version() {
        std::mem::swap(&mut older, &mut newer);
    }
    newer.merge_history(&older);
    if older.is_handwritten()
        && let Some(token) = &older.refresh_token
        && !newer.has_adopted(token.fingerprint())
    {
        newer.adopt(token);
    }
    newer
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{base::clock, token::testing};

    async fn begin(file: &Path) -> Result<Login, Error> {
        let config = Config {
            state_file: Some(file.to_owned()),
            ..testing::config(None)
        };
        Login::begin(&config, None, clock::system()).await
    }

    fn response(number: u32) -> TokenResponse {
        TokenResponse {
            access_token: Secret::new(format!("access{number}")),
            refresh_token: Some(Secret::new(format!("refresh{number}"))),
            lifetime: Duration::from_secs(3600),
            refresh_lifetime: None,
        }
    }

    async fn log_in(file: &Path, number: u32, configured: Option<&Secret>) -> Duration {
        let login = begin(file).await.expect("usable");
        login
            .store(response(number), configured)
            .await
            .expect("stored")
    }

    fn stored(file: &Path) -> Record {
        FileStore::new(file.to_owned(), &testing::config(None))
            .open()
            .expect("readable")
            .record
            .expect("there")
    }

    fn refresh_token(file: &Path) -> String {
        let token = stored(file).refresh_token.expect("there");
        token.secret().expose().to_owned()
    }

    fn has_adopted(record: &Record, token: &Secret) -> bool {
        record.has_adopted(RefreshToken::new(token.clone()).fingerprint())
    }

    #[tokio::test]
    async fn each_login_is_a_new_chain_and_forgets_no_adopted_token() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("new/token.json");
        let configured = Secret::new("configured");
        let left = log_in(&file, 1, Some(&configured)).await;
        assert!(
            left > Duration::from_secs(3500) && left <= Duration::from_secs(3600),
            "{left:?}"
        );
        let first = stored(&file);
        assert!(has_adopted(&first, &configured));
        log_in(&file, 2, Some(&configured)).await;
        let second = stored(&file);
        assert!(second.version() > first.version() && second.epoch > first.epoch);
        assert!(has_adopted(&second, &configured));
        assert!(has_adopted(&second, &Secret::new("refresh2")));
        assert_eq!(
            second.refresh_token.expect("there").secret().expose(),
            "refresh2"
        );
        assert_eq!(second.access.expect("there").secret.expose(), "access2");
    }

    #[tokio::test]
    async fn a_login_waits_for_a_process_that_refreshes() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token.json");
        log_in(&file, 1, None).await;
        let held = store::lock(
            &FileStore::new(file.clone(), &testing::config(None)),
            &*clock::system(),
        )
        .await
        .expect("locked");
        let mut login = std::pin::pin!(log_in(&file, 2, None));
        // A second descriptor waits as another process does.
        tokio::time::timeout(Duration::from_millis(50), &mut login)
            .await
            .expect_err("it waits");
        assert_eq!(refresh_token(&file), "refresh1");
        drop(held);
        login.await;
        assert_eq!(refresh_token(&file), "refresh2");
    }

    #[tokio::test]
    async fn an_unusable_state_file_is_detected_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token.json");
        std::fs::write(&file, "garbage").expect("written");
        assert!(begin(&file).await.is_err());
    }
}
