//! The state file: replaced as a whole or not at all, accessible to its owner only.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{Error, Lock, Record, Store};
use crate::base::blocking;

/// In bytes; a record is far smaller.
const SIZE_LIMIT: u64 = 1024 * 1024;

/// A record in a file.
#[derive(Debug, Clone)]
pub(in crate::token) struct FileStore {
    path: PathBuf,
}

impl FileStore {
    pub(in crate::token) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The stored record; `None` if there is no file yet. Removes the temporary files of a crash
    /// during a write.
    ///
    /// # Errors
    /// When the file is not one that this program writes, or its folder is not writable.
    pub(in crate::token) fn open(&self) -> Result<Option<Record>, Error> {
        let record = self.read()?;
        let unwritable = |source| Error::Unwritable {
            path: self.path.clone(),
            source,
        };
        // Under the lock no other process is writing.
        if let Some(_lock) = try_lock(&self.path).map_err(unwritable)? {
            remove_temporary_files(&self.path);
        }
        probe_write(&self.path).map_err(unwritable)?;
        Ok(record)
    }

    fn read(&self) -> Result<Option<Record>, Error> {
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
        platform::check_mode(&self.path, &metadata)?;
        if metadata.len() > SIZE_LIMIT {
            return Err(Error::Invalid {
                path: path(),
                problem: "it is too large for a state file".to_owned(),
            });
        }
        let size = usize::try_from(metadata.len()).unwrap_or_default();
        let mut json = Zeroizing::new(Vec::with_capacity(size + 1));
        file.take(SIZE_LIMIT)
            .read_to_end(&mut json)
            .map_err(read_error)?;
        Record::from_json(&json)
            .map(Some)
            .map_err(|problem| Error::Invalid {
                path: path(),
                problem,
            })
    }
}

impl Store for FileStore {
    fn save(&self, record: Arc<Record>) -> BoxFuture<'static, io::Result<()>> {
        let path = self.path.clone();
        Box::pin(blocking_io(move || {
            replace(&path, &record).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })
        }))
    }

    fn load(&self) -> BoxFuture<'static, Result<Option<Record>, Error>> {
        let store = self.clone();
        Box::pin(async move {
            let path = store.path.clone();
            blocking::run(move || store.read())
                .await
                .unwrap_or_else(|source| Err(Error::Read { path, source }))
        })
    }

    fn try_lock(&self) -> BoxFuture<'static, io::Result<Option<Lock>>> {
        let path = self.path.clone();
        Box::pin(blocking_io(move || try_lock(&path)))
    }
}

async fn blocking_io<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    blocking::run(work).await?
}

/// Creates a file in the record's folder and removes it.
fn probe_write(path: &Path) -> io::Result<()> {
    let temporary = temporary_path(path);
    platform::create_new(&temporary)?;
    fs::remove_file(temporary)
}

/// The lock is a file of its own, since each write replaces the state file. It is never removed:
/// another process may be waiting for this very inode.
fn try_lock(path: &Path) -> io::Result<Option<Lock>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    platform::create_folder(folder_of(path))?;
    let file = platform::open_lock(Path::new(&name))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Box::new(file))),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// A crash at any point leaves the old file or the new one, complete.
fn replace(path: &Path, record: &Record) -> io::Result<()> {
    let json = record.to_json()?;
    let folder = folder_of(path);
    platform::create_folder(folder)?;
    let temporary = temporary_path(path);
    let written = write_durably(&temporary, &json).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    platform::sync_folder(folder)
}

/// In the same folder, since a rename is atomic only there. The name is unique, so that two
/// processes never write to the same temporary file.
fn temporary_path(path: &Path) -> PathBuf {
    let unique = getrandom::u64().unwrap_or_else(|_| std::process::id().into());
    folder_of(path).join(format!("{}{:016x}.tmp", temporary_prefix(path), unique))
}

fn write_durably(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = platform::create_new(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// Removes the temporary files of killed processes. The file of a process that is writing without
/// the lock may be removed too: its rename fails, and it writes again.
fn remove_temporary_files(path: &Path) {
    let prefix = temporary_prefix(path);
    let Ok(entries) = fs::read_dir(folder_of(path)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name
            .to_str()
            .is_some_and(|name| name.starts_with(&prefix) && name.ends_with(".tmp"))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// `.token.json.` for `token.json`.
fn temporary_prefix(path: &Path) -> String {
    format!(
        ".{}.",
        path.file_name().unwrap_or_default().to_string_lossy()
    )
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
mod platform {
    use std::{
        fs::{DirBuilder, File, Metadata, OpenOptions},
        io,
        os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
        path::Path,
    };

    use rustix::{
        fs::{Mode, OFlags},
        io::Errno,
    };

    use super::Error;

    /// `None` if there is no file. Does not follow a link, and does not block on a pipe.
    pub(super) fn open(path: &Path) -> Result<Option<File>, Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            // MLINK on FreeBSD.
            Err(Errno::LOOP | Errno::MLINK) => Err(Error::Symlink {
                path: path.to_owned(),
            }),
            // A socket, or a device without a driver.
            Err(Errno::NXIO) => Err(Error::NotRegular {
                path: path.to_owned(),
            }),
            Err(error) => Err(Error::Read {
                path: path.to_owned(),
                source: error.into(),
            }),
        }
    }

    pub(super) fn check_mode(path: &Path, metadata: &Metadata) -> Result<(), Error> {
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 == 0 {
            Ok(())
        } else {
            Err(Error::InsecureMode {
                path: path.to_owned(),
                mode,
            })
        }
    }

    pub(super) fn create_new(path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    pub(super) fn open_lock(path: &Path) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)
    }

    /// Without this, a power failure may undo the rename.
    pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

/// Windows: the folder's access control list replaces the mode, and folders are not synced. A
/// rename that fails because a virus scanner has the file open is retried like every failed write.
#[cfg(not(unix))]
mod platform {
    use std::{
        fs::{self, File, Metadata, OpenOptions},
        io,
        path::Path,
    };

    use super::Error;

    pub(super) fn open(path: &Path) -> Result<Option<File>, Error> {
        let read_error = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_symlink() => Err(Error::Symlink {
                path: path.to_owned(),
            }),
            Ok(_) => File::open(path).map(Some).map_err(read_error),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(read_error(error)),
        }
    }

    pub(super) fn check_mode(_path: &Path, _metadata: &Metadata) -> Result<(), Error> {
        Ok(())
    }

    pub(super) fn create_new(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).open(path)
    }

    pub(super) fn open_lock(path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }

    pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)
    }

    pub(super) fn sync_folder(_folder: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::{base::secret::Secret, token::refresh_token::RefreshToken};

    fn record(refresh_token: &str) -> Record {
        let mut record = Record::default();
        record.refresh_token = Some(RefreshToken::new(Secret::new(refresh_token)));
        record
    }

    fn stored(store: &FileStore) -> String {
        store
            .open()
            .expect("readable")
            .expect("there")
            .refresh_token
            .expect("there")
            .secret()
            .expose()
            .to_owned()
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .expect("a folder")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    fn refusal(path: &Path) -> String {
        let error = FileStore::new(path.to_owned())
            .open()
            .expect_err("refused")
            .to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        error
    }

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
    }

    #[tokio::test]
    async fn what_is_saved_is_loaded_again_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/state/token.json");
        let store = FileStore::new(path.clone());
        assert!(store.open().expect("readable").is_none());
        for token in ["first", "second"] {
            store.save(Arc::new(record(token))).await.expect("saved");
            assert_eq!(stored(&store), token);
        }
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a folder")), 0o700);
        let mut names = names(path.parent().expect("a folder"));
        names.sort();
        assert_eq!(
            names,
            ["token.json", "token.json.lock"],
            "nothing else is left"
        );
    }

    #[tokio::test]
    async fn what_another_process_is_writing_is_no_leftover() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = FileStore::new(folder.path().join("token.json"));
        let writing = folder.path().join(".token.json.0123.tmp");
        fs::write(&writing, "x").expect("written");
        let lock = store.try_lock().await.expect("a lock").expect("free");
        assert!(store.open().expect("readable").is_none() && writing.exists());
        drop(lock);
        assert!(store.open().expect("readable").is_none() && !writing.exists());
    }

    #[tokio::test]
    async fn a_lock_shuts_others_out_until_it_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/token.json");
        let (ours, theirs) = (FileStore::new(path.clone()), FileStore::new(path.clone()));
        let lock = ours.try_lock().await.expect("a lock").expect("free");
        assert!(theirs.try_lock().await.expect("a file").is_none());
        drop(lock);
        assert!(theirs.try_lock().await.expect("a file").is_some());
        let mode = fs::metadata(folder.path().join("new/token.json.lock"))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn reading_again_leaves_alone_what_others_are_writing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token.json");
        write(&folder.path().join(".token.json.0123.tmp"), "x", 0o600);
        write(&path, r#"{"format": 1, "refresh_token": "r"}"#, 0o600);
        let record = FileStore::new(path)
            .load()
            .await
            .expect("readable")
            .expect("there");
        assert_eq!(record.refresh_token.expect("there").secret().expose(), "r");
        assert_eq!(names(folder.path()).len(), 2);
    }

    #[tokio::test]
    async fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token.json");
        // A folder at the file's path makes the rename fail, also for root.
        fs::create_dir(&path).expect("created");
        fs::write(path.join("x"), "x").expect("written");
        FileStore::new(path.clone())
            .save(Arc::new(record("r")))
            .await
            .expect_err("it cannot be replaced");
        assert_eq!(names(folder.path()), ["token.json"]);
    }

    #[test]
    fn leftovers_of_a_crash_are_removed_and_nothing_else_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token.json");
        for name in [
            ".token.json.0123.tmp",
            ".other.json.0123.tmp",
            "token.json.bak",
        ] {
            fs::write(folder.path().join(name), "x").expect("written");
        }
        assert!(FileStore::new(path).open().expect("readable").is_none());
        let mut names = names(folder.path());
        names.sort();
        assert_eq!(
            names,
            [".other.json.0123.tmp", "token.json.bak", "token.json.lock"]
        );
    }

    #[test]
    fn bad_input_23_symlinks_are_refused_even_dangling_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        symlink(&file, &link).expect("linked");
        assert!(refusal(&link).contains("symbolic link"));
        write(&file, r#"{"format": 1}"#, 0o600);
        assert!(refusal(&link).contains("symbolic link"));
        assert!(FileStore::new(file).open().is_ok());
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(refusal(folder.path()).contains("not a regular file"));
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a pipe");
        assert!(refusal(&pipe).contains("not a regular file"));
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        assert!(refusal(&socket).contains("not a regular file"));
    }

    #[test]
    fn bad_input_23_files_that_others_may_open_are_refused_with_a_remedy() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token.json");
        for mode in [0o640, 0o604, 0o620, 0o601] {
            write(&path, r#"{"format": 1}"#, mode);
            let error = refusal(&path);
            assert!(
                error.contains("chmod 600") && error.contains(&format!("{mode:03o}")),
                "{error}"
            );
        }
    }

    /// Detected at the start, before a refresh token is sent. Not even root can create a file
    /// there.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_place_that_cannot_be_written_is_refused() {
        let refused = FileStore::new("/proc/self/token.json".into()).open().err();
        assert!(
            matches!(refused, Some(Error::Unwritable { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_garbled_file_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token.json");
        for text in ["", "{\"format\": 1, \"refresh_token\": \"s3cr", "\0\0\0\0"] {
            write(&path, text, 0o600);
            let error = refusal(&path);
            assert!(
                error.contains("left as it is") && !error.contains("s3cr"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).expect("there"), text);
        }
        write(&path, &"x".repeat(2 * 1024 * 1024), 0o600);
        assert!(refusal(&path).contains("too large"));
    }
}
