//! The calls of the operating system that a state file needs.

pub(super) use self::system::{
    access, create_folder, create_new, is_unsupported, lock_holder, open, open_for_overwriting,
    open_lock, refuses_rename, sync_folder,
};

/// Who owns a file, and who may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Its owner alone, and that is this user or root.
    Private,
    /// A group, too. The mode's permission bits.
    Group(u32),
    /// Every user may read or write it. The mode's permission bits.
    Everybody(u32),
    /// It belongs to this other user, who is not root.
    AnotherUser(u32),
}

impl Access {
    #[cfg_attr(not(unix), expect(dead_code, reason = "there are no modes"))]
    fn new(mode: u32, owner: u32, us: u32) -> Self {
        let mode = mode & 0o777;
        if owner != us && owner != 0 {
            Self::AnotherUser(owner)
        } else if mode & 0o006 != 0 {
            Self::Everybody(mode)
        } else if mode & 0o077 != 0 {
            Self::Group(mode)
        } else {
            Self::Private
        }
    }
}

#[cfg(unix)]
mod system {
    use std::{
        fs::{DirBuilder, File, OpenOptions},
        io,
        os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
        path::Path,
    };

    use rustix::{
        fs::{Mode, OFlags},
        io::Errno,
        process::geteuid,
    };

    use super::Access;
    use crate::token::store::Error;

    /// `None` if there is no file. Does not follow a link, and does not block on a pipe.
    pub(in crate::token::store) fn open(path: &Path) -> Result<Option<File>, Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            // NOTDIR: a file has taken the place of a folder above.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
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

    pub(in crate::token::store) fn access(file: &File) -> io::Result<Access> {
        let metadata = file.metadata()?;
        Ok(Access::new(
            metadata.mode(),
            metadata.uid(),
            geteuid().as_raw(),
        ))
    }

    pub(in crate::token::store) fn create_new(path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    pub(in crate::token::store) fn open_for_overwriting(path: &Path) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
    }

    pub(in crate::token::store) fn open_lock(path: &Path) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    pub(in crate::token::store) fn create_folder(folder: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)
    }

    /// Without this, a power failure may undo the rename.
    pub(in crate::token::store) fn sync_folder(folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    /// Whether the file system does not offer the operation at all, as opposed to a failure of it.
    pub(in crate::token::store) fn is_unsupported(error: &io::Error) -> bool {
        matches!(
            Errno::from_io_error(error),
            Some(
                Errno::INVAL
                    | Errno::NOSYS
                    | Errno::OPNOTSUPP
                    | Errno::BADF
                    | Errno::ACCESS
                    | Errno::PERM
                    | Errno::ISDIR
                    | Errno::NOTTY
            )
        )
    }

    /// Whether this file cannot be replaced by a rename, though its contents may be writable: it is
    /// a mount point of its own, or another user's file in a sticky folder.
    pub(in crate::token::store) fn refuses_rename(error: &io::Error) -> bool {
        matches!(
            Errno::from_io_error(error),
            Some(Errno::BUSY | Errno::XDEV | Errno::PERM | Errno::ACCESS)
        )
    }

    /// The process that holds the lock of this file, if the system shows it.
    #[cfg(target_os = "linux")]
    pub(in crate::token::store) fn lock_holder(file: &Path) -> Option<u32> {
        use rustix::fs::{major, minor};
        let metadata = std::fs::metadata(file).ok()?;
        let device = (major(metadata.dev()), minor(metadata.dev()));
        let locks = procfs::locks().ok()?;
        let holder = locks
            .iter()
            .find(|lock| lock.inode == metadata.ino() && (lock.devmaj, lock.devmin) == device)?;
        // Negative or 0 for a process of another PID namespace.
        u32::try_from(holder.pid?).ok().filter(|pid| *pid != 0)
    }

    #[cfg(not(target_os = "linux"))]
    pub(in crate::token::store) fn lock_holder(_file: &Path) -> Option<u32> {
        None
    }
}

/// Windows: the folder's access control list replaces the mode, and folders are not synced. A
/// rename that fails because a virus scanner has the file open is retried like every failed write.
#[cfg(not(unix))]
mod system {
    use std::{
        fs::{self, File, OpenOptions},
        io,
        path::Path,
    };

    use super::Access;
    use crate::token::store::Error;

    pub(in crate::token::store) fn open(path: &Path) -> Result<Option<File>, Error> {
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

    pub(in crate::token::store) fn access(_file: &File) -> io::Result<Access> {
        Ok(Access::Private)
    }

    pub(in crate::token::store) fn create_new(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).open(path)
    }

    pub(in crate::token::store) fn open_for_overwriting(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).open(path)
    }

    pub(in crate::token::store) fn open_lock(path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }

    pub(in crate::token::store) fn create_folder(folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)
    }

    pub(in crate::token::store) fn sync_folder(_folder: &Path) -> io::Result<()> {
        Ok(())
    }

    pub(in crate::token::store) fn is_unsupported(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::Unsupported
    }

    pub(in crate::token::store) fn refuses_rename(_error: &io::Error) -> bool {
        false
    }

    pub(in crate::token::store) fn lock_holder(_file: &Path) -> Option<u32> {
        None
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn field_a6_a19_modes_and_owners() {
        let us = 1000;
        for (mode, owner, expected) in [
            (0o600, us, Access::Private),
            (0o400, 0, Access::Private),
            (0o10_0600, us, Access::Private),
            (0o660, us, Access::Group(0o660)),
            (0o640, 0, Access::Group(0o640)),
            (0o601, us, Access::Group(0o601)),
            (0o644, us, Access::Everybody(0o644)),
            (0o602, us, Access::Everybody(0o602)),
            (0o777, 0, Access::Everybody(0o777)),
            (0o600, 1001, Access::AnotherUser(1001)),
            (0o666, 1001, Access::AnotherUser(1001)),
        ] {
            assert_eq!(Access::new(mode, owner, us), expected, "{mode:o} {owner}");
        }
        assert_eq!(Access::new(0o600, 1000, 0), Access::AnotherUser(1000));
    }

    #[test]
    fn field_a8_a9_which_errors_mean_that_an_operation_is_not_offered() {
        let of = |errno: Errno| io::Error::from(errno);
        for unsupported in [
            Errno::INVAL,
            Errno::NOSYS,
            Errno::OPNOTSUPP,
            Errno::BADF,
            Errno::ACCESS,
        ] {
            assert!(is_unsupported(&of(unsupported)), "{unsupported}");
        }
        for failed in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::STALE] {
            assert!(!is_unsupported(&of(failed)), "{failed}");
            assert!(!refuses_rename(&of(failed)), "{failed}");
        }
        assert!(refuses_rename(&of(Errno::BUSY)) && !refuses_rename(&of(Errno::ISDIR)));
    }
}
