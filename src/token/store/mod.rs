//! The token store: what survives the process.
//!
//! | file | contents |
//! |---|---|
//! | `record.rs`, `record/format.rs` | the record of a credential, and its JSON |
//! | `record/spent.rs` | the refresh tokens that were replaced |
//! | `file.rs` | the state file and its lock |
//! | `replace.rs` | replaces the file durably |
//! | `platform.rs` | the calls of the operating system |
//! | `warnings.rs` | what a volume does not offer |
//! | `writer.rs` | writes records one at a time, with retries |

mod file;
mod platform;
mod record;
mod replace;
mod warnings;
mod writer;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

pub use self::file::inspect;
pub(super) use self::{
    file::FileStore,
    record::{
        AccessToken, Grant, Intent, Owner, Record, RequestTime, Unreadable, from_millis, to_millis,
    },
    writer::Writer,
};
use crate::base::{clock::Clock, process};

/// How often a lock is tried that another process holds.
pub(super) const LOCK_POLL: Duration = Duration::from_millis(50);

/// Stores the newest record durably: what [`Store::save`] confirmed survives a power failure.
pub(super) trait Store: Send + Sync {
    /// Replaces the whole stored record. Callers wait for the previous call to end.
    fn save(&self, record: Arc<Record>) -> BoxFuture<'static, io::Result<()>>;

    /// The stored record, which another process may have written; `None` if there is none.
    fn load(&self) -> BoxFuture<'static, Result<Option<Record>, Error>>;

    /// Locks out other processes until the lock is dropped; `None` while another one holds it.
    fn try_lock(&self) -> BoxFuture<'static, io::Result<Option<Lock>>>;

    /// The id of the process that holds the lock; `None` if it is unknown.
    fn lock_holder(&self) -> BoxFuture<'static, Option<u32>>;
}

/// The exclusive right to send the stored refresh token. Released on drop, and by the operating
/// system when the process dies.
pub(super) type Lock = Box<dyn Send>;

/// Waits until no other process holds the lock.
///
/// # Errors
/// When the store cannot be locked at all.
pub(super) async fn lock(store: &dyn Store, clock: &dyn Clock) -> io::Result<Lock> {
    loop {
        if let Some(lock) = store.try_lock().await? {
            return Ok(lock);
        }
        clock.sleep_until(clock.now() + LOCK_POLL).await;
    }
}

/// Why a state file is not used. None of these changes the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("state file {}: it cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// It is a symbolic link: an attacker who can write to the folder could redirect the tokens.
    #[error(
        "state file {}: it is a symbolic link, which is refused; set token.state_file to the file \
         itself",
        path.display()
    )]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// It is a folder, a pipe, a socket or a device.
    #[error(
        "state file {}: it is not a regular file; set token.state_file to another path",
        path.display()
    )]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// Every user may read or write it, and it cannot be changed.
    #[error(
        "state file {}: its mode {mode:03o} gives access to every user, and it contains tokens; \
         run: chmod 600 '{}' (and get a new refresh token if another user may have read it), or, \
         on a volume without modes, set token.state_file_permissions = \"ignore\"",
        path.display(), path.display()
    )]
    InsecureMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user, who could have written it or could read it.
    #[error(
        "state file {}: it belongs to user {owner}, who is neither the proxy's user nor root; run: \
         chown {} '{}', or, on a volume without owners, set token.state_file_permissions = \
         \"ignore\"",
        path.display(), process::user_id().unwrap_or_default(), path.display()
    )]
    AnotherUser {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It cannot be written. A refresh would lose the refresh token that replaces the sent one.
    #[error(
        "state file {}: it cannot be written: {source}; make its folder writable for the proxy's \
         user (in a container, mount the folder and not the single file), or set \
         token.state_file to another path", path.display()
    )]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Its contents are not a record of this program.
    #[error(
        "state file {}: {problem}; it is left as it is: restore it from a backup, or move it away \
         and start again with a new refresh token", path.display()
    )]
    Garbled {
        /// The file.
        path: PathBuf,
        /// The mistake, without the file's contents.
        problem: String,
    },
    /// A newer version of this program wrote it, or it holds the tokens of another issuer or client.
    #[error(
        "state file {}: {problem}; it is left as it is: set token.state_file to a path of this \
         proxy's own, or correct the configuration, or move the file away and log in again",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The difference.
        problem: String,
    },
}
