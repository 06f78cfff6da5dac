//! Where tokens outlive the process.

mod file;
mod record;
mod writer;

use std::{io, path::PathBuf, sync::Arc};

pub(super) use self::{
    file::FileStore,
    record::{AccessToken, Grant, Intent, Record, RefreshToken, fingerprint},
    writer::Writer,
};
use super::issuer::BoxFuture;

/// Keeps the newest record durably: what [`Store::save`] confirmed survives a power cut.
pub(super) trait Store: Send + Sync {
    /// Replaces the stored record as a whole. Never called again before it has ended.
    fn save(&self, record: Arc<Record>) -> BoxFuture<'static, io::Result<()>>;

    /// The stored record, which another process may have written; `None` if there is none.
    fn load(&self) -> BoxFuture<'static, Result<Option<Record>, Error>>;

    /// Shuts other processes out until the lock is dropped; `None` while another one holds it.
    fn try_lock(&self) -> BoxFuture<'static, io::Result<Option<Lock>>>;
}

/// The right to spend the stored refresh token. Given back on drop, and by the system when the process dies.
pub(super) type Lock = Box<dyn Send>;

/// Why a state file is not used. None of these touches the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("state file {}: it cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a symbolic link: whoever owns the folder could send our tokens elsewhere.
    #[error(
        "state file {}: it is a symbolic link, which is refused; set token.state_file to the file itself",
        path.display()
    )]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// It is a folder, a pipe or a device.
    #[error("state file {}: it is not a regular file; set token.state_file to another path", path.display())]
    NotRegular {
        /// What is there.
        path: PathBuf,
    },
    /// Others than its owner may read or write it.
    #[error(
        "state file {}: its mode {mode:03o} lets others than its owner in, and it holds tokens; \
         run: chmod 600 '{}' (and get a new refresh token if somebody may have read it)",
        path.display(), path.display()
    )]
    Accessible {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its folder does not let us write. Spending a refresh token then would lose its successor.
    #[error(
        "state file {}: it cannot be written: {source}; let the proxy's user write to its folder, or set \
         token.state_file to another path", path.display()
    )]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what this program writes.
    #[error(
        "state file {}: {what}; it is left as it is: restore it from a backup, or move it away and start again \
         with a new refresh token", path.display()
    )]
    Garbled {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without its contents.
        what: String,
    },
}
