//! First tokens that a person got, stored from another process than the one that runs.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    store::{AccessToken, Error as StoreError, FileStore, Grant, Lock, Store as _, fingerprint},
    token_response::TokenResponse,
};
use crate::base::{
    clock::{Moment, SharedClock},
    secret::Secret,
};

/// A refresh under way holds the lock for seconds at most.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// Why first tokens were not stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state file cannot be used as it is.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be written, or not be locked.
    #[error("the tokens cannot be stored: {0}")]
    Write(io::Error),
}

/// A state file that is about to get a new credential chain.
#[derive(Debug)]
pub struct Login {
    file: PathBuf,
    clock: SharedClock,
    since: (Moment, SystemTime),
}

impl Login {
    /// To be begun before the tokens are asked for: their lifetime counts from here, and a state file that cannot be used
    /// is found out about while no code is spent yet.
    ///
    /// # Errors
    /// When the state file, if there is one, cannot be used as it is.
    pub fn begin(state_file: &Path, clock: SharedClock) -> Result<Self, Error> {
        FileStore::new(state_file.to_owned()).open()?;
        let since = (clock.now(), clock.wall());
        Ok(Self {
            file: state_file.to_owned(),
            clock,
            since,
        })
    }

    /// Stores the tokens as a new credential chain, which takes the place of whatever is stored and of the configured
    /// refresh token, if there is one. Returns how long the access token still lives.
    ///
    /// Waits for a process that refreshes the stored chain at this moment.
    ///
    /// # Errors
    /// When the state file cannot be locked, read or written.
    pub async fn store(
        self,
        grant: TokenResponse,
        configured: Option<&Secret>,
    ) -> Result<Duration, Error> {
        let (sent_at, obtained_at) = self.since;
        let expires_at = sent_at + grant.lifetime;
        let access = AccessToken {
            token: grant.access_token,
            lifetime: grant.lifetime,
            obtained_at,
            boot: self.clock.boot_id().map(|id| (id.to_owned(), expires_at)),
        };
        let store = FileStore::new(self.file);
        // Held until the end, around reading and writing.
        let _lock = lock(&store, &self.clock).await.map_err(Error::Write)?;
        let mut record = store.load().await?.unwrap_or_default();
        // A configured refresh token is older than this login: it must not begin a chain after it.
        for older in configured
            .into_iter()
            .chain(&grant.refresh_token)
            .map(fingerprint)
        {
            if !record.has_adopted(&older) {
                record.adopt(older);
            }
        }
        record.advance(
            grant.refresh_token,
            grant.refresh_lifetime,
            access,
            Grant::Initial,
        );
        store.save(Arc::new(record)).await.map_err(Error::Write)?;
        Ok(expires_at.saturating_since(self.clock.now()))
    }
}

/// Waits until no other process holds it.
async fn lock(store: &FileStore, clock: &SharedClock) -> io::Result<Lock> {
    loop {
        if let Some(lock) = store.try_lock().await? {
            return Ok(lock);
        }
        clock.sleep_until(clock.now() + LOCK_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::clock, token::store::Record};

    fn grant(number: u32) -> TokenResponse {
        TokenResponse {
            access_token: Secret::new(format!("access{number}")),
            refresh_token: Some(Secret::new(format!("refresh{number}"))),
            lifetime: Duration::from_secs(3600),
            refresh_lifetime: None,
        }
    }

    async fn log_in(file: &Path, number: u32, configured: Option<&Secret>) -> Duration {
        let login = Login::begin(file, clock::system()).expect("usable");
        login
            .store(grant(number), configured)
            .await
            .expect("stored")
    }

    fn stored(file: &Path) -> Record {
        FileStore::new(file.to_owned())
            .open()
            .expect("readable")
            .expect("there")
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
        assert!(first.has_adopted(&fingerprint(&configured)));
        log_in(&file, 2, Some(&configured)).await;
        let second = stored(&file);
        assert!(second.version() > first.version() && second.epoch > first.epoch);
        assert!(second.has_adopted(&fingerprint(&configured)));
        assert!(second.has_adopted(&fingerprint(&Secret::new("refresh2"))));
        assert_eq!(second.refresh_token.expect("there").expose(), "refresh2");
        assert_eq!(second.access.expect("there").token.expose(), "access2");
    }

    #[tokio::test]
    async fn a_process_that_refreshes_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token.json");
        log_in(&file, 1, None).await;
        let held = lock(&FileStore::new(file.clone()), &clock::system())
            .await
            .expect("locked");
        let mut login = std::pin::pin!(log_in(&file, 2, None));
        // A second descriptor waits as another process would.
        tokio::time::timeout(Duration::from_millis(50), &mut login)
            .await
            .expect_err("it waits");
        assert_eq!(
            stored(&file).refresh_token.expect("there").expose(),
            "refresh1"
        );
        drop(held);
        login.await;
        assert_eq!(
            stored(&file).refresh_token.expect("there").expose(),
            "refresh2"
        );
    }

    #[test]
    fn a_state_file_that_cannot_be_used_is_found_out_about_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token.json");
        std::fs::write(&file, "garbage").expect("written");
        assert!(Login::begin(&file, clock::system()).is_err());
    }
}
