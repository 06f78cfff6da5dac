//! The issuer's state: in memory, or in a file that several nodes of one cloud share.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use super::tokens::{GrantRules, Issuer};
use crate::base::clock::Moment;

/// The issuer of one cloud, whose nodes may be several processes.
pub(super) struct SharedIssuer {
    file: Option<PathBuf>,
    cached: Mutex<Cached>,
}

struct Cached {
    issuer: Issuer,
    /// The contents of the file that `issuer` equals.
    text: Vec<u8>,
}

impl SharedIssuer {
    /// The issuer in this file, or in memory. `seeds` are valid refresh tokens of a new issuer; a
    /// file that exists has its own.
    ///
    /// # Errors
    /// The file cannot be read or written, or is not a state of an issuer.
    pub(super) fn open(
        file: Option<PathBuf>,
        rules: GrantRules,
        seeds: &[String],
        now: Moment,
    ) -> io::Result<Self> {
        let issuer = Issuer::new(rules, seeds, now);
        let text = Vec::new();
        let shared = Self {
            file,
            cached: Mutex::new(Cached { issuer, text }),
        };
        shared.change(|_| ())?;
        Ok(shared)
    }

    /// Looks at the issuer.
    ///
    /// # Errors
    /// The file cannot be read, or is not a state of an issuer.
    pub(super) fn read<T>(&self, look: impl FnOnce(&Issuer) -> T) -> io::Result<T> {
        let mut cached = self.cached.lock();
        if let Some(file) = &self.file {
            cached.reload(file)?;
        }
        Ok(look(&cached.issuer))
    }

    /// Changes the issuer, for all nodes.
    ///
    /// # Errors
    /// The file cannot be read or written, or is not a state of an issuer.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Issuer) -> T) -> io::Result<T> {
        let mut cached = self.cached.lock();
        let Some(file) = &self.file else {
            return Ok(change(&mut cached.issuer));
        };
        // Held for microseconds; closing the file unlocks it.
        let lock = File::create(file.with_extension("lock"))?;
        lock.lock()?;
        cached.reload(file)?;
        let outcome = change(&mut cached.issuer);
        cached.text = serde_json::to_vec(&cached.issuer)?;
        let new = file.with_extension("new");
        fs::write(&new, &cached.text)?;
        // Readers take no lock: they see the old file or the new one.
        fs::rename(&new, file)?;
        Ok(outcome)
    }
}

impl Cached {
    fn reload(&mut self, file: &Path) -> io::Result<()> {
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if text != self.text {
            self.issuer.restore(&text)?;
            self.text = text;
        }
        Ok(())
    }
}
