//! Logins that were started and not completed: `login --code` runs in another process than the
//! `login` that printed the authorization URL, and has to know its `data`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;

/// Logins that are remembered; each further one makes the oldest forgotten.
const MAX_PENDING: usize = 8;

/// The hashes of their `data`, in a file beside the state file. They are not secret. Without a state
/// file none are remembered.
pub(super) struct Pending {
    file: Option<PathBuf>,
    /// The oldest first.
    hashes: Vec<String>,
}

impl Pending {
    /// Those of this state file. A file that cannot be read counts as empty.
    pub(super) fn load(state_file: Option<&Path>) -> Self {
        let file = state_file.map(|state_file| {
            let mut file = state_file.as_os_str().to_owned();
            file.push(".login");
            PathBuf::from(file)
        });
        let text = file.as_ref().map(fs::read_to_string);
        let text = text.and_then(Result::ok).unwrap_or_default();
        let hashes = text.lines().map(ToOwned::to_owned).collect();
        Self { file, hashes }
    }

    /// Whether a login with this `data` was started here. Also true if none is remembered: then
    /// nothing is known about it.
    pub(super) fn includes(&self, data: &str) -> bool {
        self.hashes.is_empty() || self.hashes.contains(&hash(data))
    }

    /// Remembers a login. If that fails, a later `login --code` cannot check its `data`.
    pub(super) fn add(mut self, data: &str) {
        let Some(file) = self.file else {
            return;
        };
        self.hashes.push(hash(data));
        let forgotten = self.hashes.len().saturating_sub(MAX_PENDING);
        self.hashes.drain(..forgotten);
        if let Some(folder) = file.parent() {
            let _ = fs::create_dir_all(folder);
        }
        let _ = fs::write(&file, self.hashes.join("\n") + "\n");
    }

    /// A login was completed.
    pub(super) fn clear(self) {
        if let Some(file) = self.file {
            let _ = fs::remove_file(file);
        }
    }

    #[cfg(test)]
    pub(super) fn of(data: &[&str]) -> Self {
        Self {
            file: None,
            hashes: data.iter().map(|data| hash(data)).collect(),
        }
    }
}

fn hash(data: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, data.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_logins_are_remembered_until_one_is_completed() {
        let folder = tempfile::tempdir().expect("a folder");
        let state_file = folder.path().join("state/token.json");
        let load = || Pending::load(Some(&state_file));
        assert!(load().includes("any"));
        for n in 0..10 {
            load().add(&n.to_string());
        }
        assert!(load().includes("2") && load().includes("9"));
        assert!(!load().includes("1") && !load().includes("") && !load().includes("any"));
        load().clear();
        assert!(load().includes("any"));
    }
}
