//! The state file: replaced as a whole or not at all, accessible to its owner only.

#[cfg(all(test, unix))]
mod tests;

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{
    Error, Lock, Owner, Record, Store,
    platform::{self, Access},
    record::Unreadable,
    replace::{self, temporary_files},
    warnings::{Warning, Warnings},
};
use crate::{
    base::{blocking, process},
    token::Config,
};

/// In bytes; a record is smaller.
const SIZE_LIMIT: u64 = 1024 * 1024;
/// A file that another process overwrites in place is garbled for a moment: it is read again.
const READS: usize = 3;
const READ_INTERVAL: Duration = Duration::from_millis(30);

/// A record in a file.
#[derive(Debug, Clone)]
pub(in crate::token) struct FileStore {
    path: PathBuf,
    /// Whose tokens it holds.
    owner: Arc<Owner>,
    /// Whether the mode and the owner of the file matter: some mounts know neither.
    checks_permissions: bool,
    warnings: Arc<Warnings>,
}

/// The stored record, and what cannot be done with the store.
#[derive(Debug)]
pub(in crate::token) struct Opened {
    /// `None` if there is no token yet.
    pub(in crate::token) record: Option<Record>,
    /// Why the store cannot be locked.
    pub(in crate::token) lock_problem: Option<io::Error>,
}

/// An open state file and what is in it.
struct Contents {
    bytes: Zeroizing<Vec<u8>>,
    file: File,
}

/// How strict the file's permissions are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permissions {
    /// At the start: refuse what every user may read or write, unless it can be mended.
    Enforce,
    /// At run time: mend what can be mended. An unread record would be the greater danger.
    Mend,
    /// Without changing anything: refuse what every user may read or write.
    Inspect,
}

/// What the start would warn of in a credential's state file. Changes nothing.
///
/// # Errors
/// When the start would refuse the state file, or when every user may read or write it.
pub fn inspect(config: &Config) -> Result<Vec<String>, Error> {
    let store = config.state_file.clone();
    let store = store.map(|path| FileStore::new(path, config));
    store.map_or_else(|| Ok(Vec::new()), |store| store.inspect())
}

impl FileStore {
    pub(in crate::token) fn new(path: PathBuf, config: &Config) -> Self {
        Self {
            path,
            owner: Arc::new(Owner::new(&config.issuer)),
            checks_permissions: config.checks_state_file_permissions,
            warnings: Arc::default(),
        }
    }

    /// The stored record. Tries everything that the running process will do with the file, warns of
    /// what is not possible, and cleans up after a crash during a write.
    ///
    /// # Errors
    /// When the file is not one that this program writes, or when going on would lose tokens.
    pub(in crate::token) fn open(&self) -> Result<Opened, Error> {
        match self.read(Permissions::Enforce) {
            // A copy beside it may be complete.
            Ok(_) | Err(Error::Garbled { .. }) => {}
            Err(error) => return Err(error),
        }
        let unwritable = |source| Error::Unwritable {
            path: self.path.clone(),
            source,
        };
        replace::create_folder(&self.path).map_err(unwritable)?;
        let locked = try_lock(&self.path);
        // Where no process can lock the file, none is excluded; but a crash left the same behind.
        let is_busy = matches!(locked, Ok(None));
        let newest = match is_busy {
            true => None,
            false => self.recover().map_err(unwritable)?,
        };
        let (lock, lock_problem) = match locked {
            Ok(lock) => (lock, None),
            Err(error) => (None, Some(error)),
        };
        if newest.is_some() {
            // It is stored in its copy only.
            return Ok(Opened {
                record: newest,
                lock_problem,
            });
        }
        self.read(Permissions::Enforce)?;
        if !is_busy {
            for file in temporary_files(&self.path) {
                let _ = fs::remove_file(file);
            }
        }
        let tried = match (&lock, self.contents()?) {
            (Some(_), Some(contents)) => {
                replace::replace(&self.path, &contents.bytes, &self.warnings)
            }
            // Without the lock, another process may have stored newer contents meanwhile.
            _ => replace::try_out(&self.path, &self.warnings),
        };
        match tried {
            // What is stored is usable, and space may be freed.
            Err(error) if is_full(&error) => self.warnings.once(Warning::Full, &self.path, &error),
            tried => tried.map_err(unwritable)?,
        }
        Ok(Opened {
            record: self.read(Permissions::Enforce)?,
            lock_problem,
        })
    }

    /// What the start would refuse or warn of, without changing anything.
    ///
    /// # Errors
    /// When the start would refuse the file, or when every user may read or write it.
    pub(in crate::token) fn inspect(&self) -> Result<Vec<String>, Error> {
        self.read(Permissions::Inspect)?;
        let mut warnings = Vec::new();
        if self.checks_permissions
            && let Some(file) = platform::open(&self.path)?
            && let Ok(Access::Group(mode)) = platform::access(&file)
        {
            warnings.push(format!(
                "has mode {mode:03o}, which gives access to a group; the proxy sets 600 when it \
                 starts as its owner"
            ));
        }
        if self.checks_permissions && process::is_writable_by_others(replace::folder_of(&self.path))
        {
            warnings.push(
                "is in a folder that every user can write to, so that others can replace it"
                    .to_owned(),
            );
        }
        Ok(warnings)
    }

    /// After a crash: a complete copy beside the file that is newer, or whose file is garbled,
    /// replaces it. On a full volume it may stay where it is: then this is its record.
    fn recover(&self) -> io::Result<Option<Record>> {
        let stored = match self.read(Permissions::Enforce) {
            // Written by an operator, after the copy.
            Ok(Some(record)) if record.is_handwritten() && record.refresh_token.is_some() => {
                return Ok(None);
            }
            Ok(record) => record.map(|record| record.version()),
            Err(Error::Garbled { .. }) => None,
            // Reported by the caller.
            Err(_) => return Ok(None),
        };
        let copies = temporary_files(&self.path).filter_map(|path| {
            let copy = Self {
                path,
                ..self.clone()
            };
            let record = copy.read(Permissions::Enforce).ok()??;
            Some((copy, record))
        });
        let newest = copies.max_by_key(|(_, record)| record.version());
        let Some((copy, record)) = newest.filter(|(_, record)| Some(record.version()) > stored)
        else {
            return Ok(None);
        };
        match replace::put_in_place(&copy.path, &self.path, &self.warnings) {
            Ok(()) => Ok(None),
            Err(error) if is_full(&error) => {
                self.warnings.once(Warning::Full, &self.path, &error);
                Ok(Some(record))
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, permissions: Permissions) -> Result<Option<Record>, Error> {
        let Some(Contents { bytes, file }) = self.contents()? else {
            return Ok(None);
        };
        if self.checks_permissions {
            self.check(permissions, &file)?;
        }
        // A file that was created to be mounted or filled later.
        if bytes.trim_ascii().is_empty() {
            return Ok(None);
        }
        let record = Record::from_json(&bytes, &self.owner);
        record.map(Some).map_err(|unreadable| match unreadable {
            Unreadable::Garbled(problem) => Error::Garbled {
                path: self.path.clone(),
                problem,
            },
            Unreadable::Foreign(problem) => Error::Foreign {
                path: self.path.clone(),
                problem,
            },
        })
    }

    fn contents(&self) -> Result<Option<Contents>, Error> {
        let path = || self.path.clone();
        let read_error = |source| Error::Read {
            path: path(),
            source,
        };
        let Some(file) = platform::open(&self.path)? else {
            return Ok(None);
        };
        // Metadata of the open file: the path could be replaced after the check.
        let metadata = file.metadata().map_err(read_error)?;
        if !metadata.is_file() {
            return Err(Error::NotRegular { path: path() });
        }
        if metadata.len() > SIZE_LIMIT {
            return Err(Error::Garbled {
                path: path(),
                problem: "it is too large for a state file".to_owned(),
            });
        }
        let size = usize::try_from(metadata.len()).unwrap_or_default();
        let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
        (&file)
            .take(SIZE_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(read_error)?;
        Ok(Some(Contents { bytes, file }))
    }

    /// Checks the permissions of the open file, and mends them where this is wanted and possible.
    fn check(&self, permissions: Permissions, file: &File) -> Result<(), Error> {
        let access = || {
            platform::access(file).map_err(|source| Error::Read {
                path: self.path.clone(),
                source,
            })
        };
        let found = access()?;
        let is_open = |access| matches!(access, Access::Group(_) | Access::Everybody(_));
        if permissions != Permissions::Inspect && is_open(found) {
            // Where it has no effect, the mode stays as it is.
            let _ = process::make_private(file);
        }
        let mended = access()?;
        match (found, mended) {
            (_, Access::AnotherUser(owner)) => Err(Error::AnotherUser {
                path: self.path.clone(),
                owner,
            }),
            (_, Access::Everybody(mode)) if permissions != Permissions::Mend => {
                Err(Error::InsecureMode {
                    path: self.path.clone(),
                    mode,
                })
            }
            (Access::Group(mode) | Access::Everybody(mode), _)
                if permissions != Permissions::Inspect =>
            {
                self.warn_of_mode(mode, mended);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn warn_of_mode(&self, mode: u32, mended: Access) {
        if !self.warnings.is_first(Warning::Mode) {
            return;
        }
        let path = self.path.display();
        let now = if mended == Access::Private {
            "it is 600 now"
        } else {
            "it cannot be changed here"
        };
        tracing::warn!(
            "state file {path}: its mode {mode:03o} gave access to users other than its owner, and \
             it contains tokens: {now}; get a new refresh token if such a user may have read it"
        );
    }

    /// Neither a newer version's record nor another issuer's tokens are replaced.
    fn save_now(&self, record: &Record) -> io::Result<()> {
        if let Err(error @ Error::Foreign { .. }) = self.read(Permissions::Mend) {
            return Err(io::Error::other(error));
        }
        let json = record.to_json(&self.owner)?;
        replace::replace(&self.path, &json, &self.warnings).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
        })
    }
}

impl Store for FileStore {
    fn save(&self, record: Arc<Record>) -> BoxFuture<'static, io::Result<()>> {
        let store = self.clone();
        Box::pin(blocking_io(move || store.save_now(&record)))
    }

    fn load(&self) -> BoxFuture<'static, Result<Option<Record>, Error>> {
        let store = self.clone();
        Box::pin(async move {
            let mut reads = 1;
            loop {
                let (path, reader) = (store.path.clone(), store.clone());
                match blocking::run(move || reader.read(Permissions::Mend)).await {
                    Ok(Err(Error::Garbled { .. })) if reads < READS => {
                        tokio::time::sleep(READ_INTERVAL).await;
                    }
                    Ok(result) => return result,
                    Err(source) => return Err(Error::Read { path, source }),
                }
                reads += 1;
            }
        })
    }

    fn try_lock(&self) -> BoxFuture<'static, io::Result<Option<Lock>>> {
        let path = self.path.clone();
        Box::pin(blocking_io(move || {
            replace::create_folder(&path)?;
            try_lock(&path)
        }))
    }

    fn lock_holder(&self) -> BoxFuture<'static, Option<u32>> {
        let path = lock_path(&self.path);
        Box::pin(async move {
            let holder = blocking::run(move || platform::lock_holder(&path)).await;
            holder.ok().flatten()
        })
    }
}

async fn blocking_io<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    blocking::run(work).await?
}

/// The lock is a file of its own, since each write replaces the state file. It is never removed:
/// another process may be waiting for this very inode.
fn try_lock(path: &Path) -> io::Result<Option<Lock>> {
    let file = platform::open_lock(&lock_path(path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Box::new(file))),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            // RLIMIT_FSIZE, which systemd calls LimitFSIZE.
            | io::ErrorKind::FileTooLarge
    )
}
