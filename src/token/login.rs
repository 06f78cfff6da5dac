//! Stores the tokens of `login`, beside a proxy that may be running with the same state file.

use std::{io, path::Path, sync::Arc, time::Duration};

use super::{
    Config,
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
}

/// A login in progress: a state file that is about to get a new chain.
#[derive(Debug)]
pub struct Login {
    store: FileStore,
    clock: SharedClock,
    began_at: RequestTime,
}

impl Login {
    /// Call it before the tokens are requested: their lifetime counts from here, and an unusable
    /// state file is detected before the code is used.
    ///
    /// # Errors
    /// When there is a state file that is unusable.
    pub fn begin(state_file: &Path, config: &Config, clock: SharedClock) -> Result<Self, Error> {
        let store = FileStore::new(state_file.to_owned(), config);
        store.open()?;
        Ok(Self {
            store,
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
            record.advance(rotated, lifetime, access, &Grant::Initial);
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
            record.rotate(token, since, &Grant::Initial);
        })
        .await?;
        Ok(true)
    }

    /// Changes the stored record. None of the `known` refresh tokens may begin a chain later: the
    /// configured one is older than this login.
    async fn update(
        self,
        known: impl Iterator<Item = &Secret>,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), Error> {
        let store = self.store;
        // Around both reading and writing. A volume without locks is used without one, as by the
        // refresher.
        let _lock = store::lock(&store, &*self.clock).await.ok();
        let mut record = store.load().await?.unwrap_or_default();
        for token in known {
            let token = RefreshToken::new(token.clone());
            if !record.has_adopted(token.fingerprint()) {
                record.adopt(&token);
            }
        }
        change(&mut record);
        store.save(Arc::new(record)).await.map_err(Error::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::clock,
        token::{store::Record, testing},
    };

    fn response(number: u32) -> TokenResponse {
        TokenResponse {
            access_token: Secret::new(format!("access{number}")),
            refresh_token: Some(Secret::new(format!("refresh{number}"))),
            lifetime: Duration::from_secs(3600),
            refresh_lifetime: None,
        }
    }

    async fn log_in(file: &Path, number: u32, configured: Option<&Secret>) -> Duration {
        let login = Login::begin(file, &testing::config(None), clock::system()).expect("usable");
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

    #[test]
    fn an_unusable_state_file_is_detected_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token.json");
        std::fs::write(&file, "garbage").expect("written");
        assert!(Login::begin(&file, &testing::config(None), clock::system()).is_err());
    }
}
