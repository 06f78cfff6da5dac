//! Replaces a file durably: a crash at any point leaves the old contents or the new ones, complete.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{
    platform,
    warnings::{Warning, Warnings},
};

const SUFFIX: &str = ".tmp";

/// Replaces the contents of the file, or creates it.
///
/// A file that cannot be replaced by a rename is overwritten; a complete copy stays beside it until
/// that has succeeded.
pub(super) fn replace(path: &Path, contents: &[u8], warnings: &Warnings) -> io::Result<()> {
    create_folder(path)?;
    let temporary = temporary_path(path, unique());
    let written = write_durably(&temporary, path, contents, warnings);
    match written.and_then(|()| fs::rename(&temporary, path)) {
        Err(error) if platform::refuses_rename(&error) && temporary.exists() => {
            warnings.once(Warning::InPlace, path, &error);
            overwrite(path, temporary, contents, warnings)?;
        }
        Err(error) => {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        Ok(()) => {}
    }
    sync_folder(path, warnings)
}

/// Lets a complete copy that is stored beside the file replace it. A rename needs no space.
pub(super) fn put_in_place(copy: &Path, path: &Path, warnings: &Warnings) -> io::Result<()> {
    // Its writer may not have come to this.
    tolerate_unsupported(
        platform::open_for_overwriting(copy)?.sync_all(),
        path,
        warnings,
    )?;
    match fs::rename(copy, path) {
        Err(error) if platform::refuses_rename(&error) => {
            warnings.once(Warning::InPlace, path, &error);
            let contents = Zeroizing::new(fs::read(copy)?);
            overwrite(path, copy.to_owned(), &contents, warnings)?;
        }
        renamed => renamed?,
    }
    sync_folder(path, warnings)
}

/// Creates a file in the folder, renames it, and removes it.
pub(super) fn try_out(path: &Path, warnings: &Warnings) -> io::Result<()> {
    let (first, second) = (
        temporary_path(path, unique()),
        temporary_path(path, unique()),
    );
    let tried = write_durably(&first, path, b"{}", warnings)
        .and_then(|()| fs::rename(&first, &second))
        .and_then(|()| sync_folder(path, warnings));
    for file in [first, second] {
        let _ = fs::remove_file(file);
    }
    tried
}

pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    platform::create_folder(folder_of(path))
}

/// The files of unfinished writes. A process that writes without the lock may have just created
/// one.
pub(super) fn temporary_files(path: &Path) -> impl Iterator<Item = PathBuf> {
    let prefix = temporary_prefix(path);
    let entries = fs::read_dir(folder_of(path)).into_iter().flatten();
    entries.flatten().filter_map(move |entry| {
        let name = entry.file_name();
        let name = name.to_str()?;
        (name.starts_with(&prefix) && name.ends_with(SUFFIX)).then(|| entry.path())
    })
}

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Without truncating first: until the last step, the file is as long as the longer contents. If it
/// fails, the complete copy stays.
fn overwrite(
    path: &Path,
    mut copy: PathBuf,
    contents: &[u8],
    warnings: &Warnings,
) -> io::Result<()> {
    // One name for all attempts: the copies of failed ones do not add up.
    let usual = temporary_path(path, 0);
    if fs::rename(&copy, &usual).is_ok() {
        copy = usual;
    }
    let mut file = platform::open_for_overwriting(path)?;
    file.write_all(contents)?;
    file.set_len(contents.len() as u64)?;
    tolerate_unsupported(file.sync_all(), path, warnings)?;
    fs::remove_file(copy)
}

fn write_durably(
    temporary: &Path,
    path: &Path,
    contents: &[u8],
    warnings: &Warnings,
) -> io::Result<()> {
    let mut file = platform::create_new(temporary)?;
    file.write_all(contents)?;
    tolerate_unsupported(file.sync_all(), path, warnings)
}

fn sync_folder(path: &Path, warnings: &Warnings) -> io::Result<()> {
    tolerate_unsupported(platform::sync_folder(folder_of(path)), path, warnings)
}

/// What the volume does not offer is no failure of this write.
fn tolerate_unsupported(
    synced: io::Result<()>,
    path: &Path,
    warnings: &Warnings,
) -> io::Result<()> {
    match synced {
        Err(error) if platform::is_unsupported(&error) => {
            warnings.once(Warning::Sync, path, &error);
            Ok(())
        }
        synced => synced,
    }
}

/// In the same folder, since a rename is atomic only there.
fn temporary_path(path: &Path, number: u64) -> PathBuf {
    folder_of(path).join(format!("{}{number:016x}{SUFFIX}", temporary_prefix(path)))
}

/// Two processes never write to the same temporary file.
fn unique() -> u64 {
    getrandom::u64().unwrap_or_else(|_| std::process::id().into())
}

/// `.token.json.` for `token.json`.
fn temporary_prefix(path: &Path) -> String {
    format!(
        ".{}.",
        path.file_name().unwrap_or_default().to_string_lossy()
    )
}
