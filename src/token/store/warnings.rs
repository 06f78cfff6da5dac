//! Warnings of what a volume does not offer, each logged once.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// What the store has to do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Warning {
    /// Data or a rename cannot be made durable.
    Sync,
    /// The file cannot be replaced by a rename.
    InPlace,
    /// The mode gives access to other users.
    Mode,
    /// There is no space.
    Full,
}

/// Which warnings were logged.
#[derive(Debug, Default)]
pub(super) struct Warnings([AtomicBool; 4]);

impl Warnings {
    pub(super) fn is_first(&self, warning: Warning) -> bool {
        !self.0[warning as usize].swap(true, Relaxed)
    }

    /// Logs the warning, unless it was logged already.
    pub(super) fn once(&self, warning: Warning, path: &Path, error: &io::Error) {
        if !self.is_first(warning) {
            return;
        }
        let path = path.display();
        match warning {
            Warning::Sync => tracing::warn!(
                %error,
                "state file {path}: this volume cannot sync files or folders: after a power \
                 failure the newest tokens may be lost"
            ),
            Warning::InPlace => tracing::warn!(
                %error,
                "state file {path}: it cannot be replaced, only overwritten, with a copy beside it \
                 meanwhile: mount its folder instead of the single file, so that a crash leaves the \
                 old file or the new one"
            ),
            Warning::Full => tracing::warn!(
                %error,
                "state file {path}: it cannot be written: new tokens are kept in memory and would \
                 be lost by a restart; free space on its volume"
            ),
            // It needs the mode and says it itself.
            Warning::Mode => {}
        }
    }
}
