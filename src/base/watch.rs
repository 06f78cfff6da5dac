//! Notices that files have changed: through events of the file system, and by polling.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc;

use super::clock::{Moment, SharedClock};

/// Delay after an event, so that a writer can finish. A slower writer causes another event.
const SETTLE: Duration = Duration::from_millis(200);
/// The polling interval, for missing events: network file systems send none, nor does a folder that
/// was replaced.
const POLL: Duration = Duration::from_secs(30);

/// The polling interval while a folder does not exist: that of the state file is created by `login`
/// or by the first refresh.
const MISSING_POLL: Duration = Duration::from_secs(1);

/// Watches the folders of a set of files.
#[derive(Debug)]
pub struct FileWatcher {
    /// Folders rather than files: no event is sent for a watched file that is replaced, or reached
    /// through a symbolic link that is replaced, as in secrets that Kubernetes mounts.
    folders: Vec<PathBuf>,
    unwatched: Vec<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<()>,
    clock: SharedClock,
    /// When `changed` resolves after an event.
    settles_at: Option<Moment>,
    polls_at: Moment,
}

impl FileWatcher {
    /// Watches the folders of these files. Without any file, `changed` never resolves.
    pub fn new<'a>(files: impl IntoIterator<Item = &'a Path>, clock: SharedClock) -> Self {
        let mut folders: Vec<_> = files
            .into_iter()
            .filter_map(Path::parent)
            .map(|folder| {
                if folder.as_os_str().is_empty() {
                    ".".into()
                } else {
                    folder.to_owned()
                }
            })
            .collect();
        folders.sort();
        folders.dedup();
        let (sender, events) = mpsc::channel(1);
        let handler = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| is_change(event.kind)) {
                // If the channel is full, a notification is already pending.
                let _ = sender.try_send(());
            }
        };
        let watcher = if folders.is_empty() {
            None
        } else {
            notify::recommended_watcher(handler).ok()
        };
        let polls_at = clock.now() + POLL;
        let unwatched = Vec::new();
        let mut watch = Self {
            folders,
            unwatched,
            watcher,
            events,
            clock,
            settles_at: None,
            polls_at,
        };
        watch.watch_folders();
        watch
    }

    /// Resolves when a file may have changed. Cancel safe.
    pub async fn changed(&mut self) {
        if self.folders.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let until = self.settles_at.unwrap_or_else(|| self.next_poll());
            tokio::select! {
                biased;
                () = self.clock.sleep_until(until) => {
                    let missing = self.unwatched.len();
                    self.watch_folders();
                    let has_appeared = self.unwatched.len() < missing;
                    let is_settled = self.settles_at.take().is_some();
                    if is_settled || has_appeared || self.polls_at <= self.clock.now() {
                        self.polls_at = self.clock.now() + POLL;
                        return;
                    }
                }
                Some(()) = self.events.recv() => {
                    self.settles_at.get_or_insert(self.clock.now() + SETTLE);
                }
            }
        }
    }

    /// When to poll without an event: soon while a folder is missing, as its creation causes no
    /// event.
    fn next_poll(&self) -> Moment {
        let is_missing = self.watcher.is_some() && !self.unwatched.is_empty();
        if is_missing {
            self.polls_at.min(self.clock.now() + MISSING_POLL)
        } else {
            self.polls_at
        }
    }

    /// Watches the folders, also those that were removed or replaced by others of the same name: the
    /// system watches a folder, not its name.
    fn watch_folders(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let is_missing = |folder: &&PathBuf| {
            let watched = watcher.watch(folder, RecursiveMode::NonRecursive);
            watched.is_err()
        };
        self.unwatched = self.folders.iter().filter(is_missing).cloned().collect();
    }
}

/// Reading a file is not a change of it: otherwise each reload would cause the next one.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::*;
    use crate::base::clock::{Clock as _, Simulated, system};

    fn watch(file: &Path, clock: SharedClock) -> FileWatcher {
        FileWatcher::new([file], clock)
    }

    /// The change is reported, and nothing after it.
    async fn reports(watch: &mut FileWatcher) {
        tokio::time::timeout(Duration::from_secs(20), watch.changed())
            .await
            .expect("reported in time");
        quiet(watch).await;
    }

    async fn quiet(watch: &mut FileWatcher) {
        while tokio::time::timeout(SETTLE * 2, watch.changed())
            .await
            .is_ok()
        {}
    }

    #[tokio::test]
    async fn a_file_that_is_written_or_replaced_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, new) = (folder.path().join("token"), folder.path().join("new"));
        for path in [&file, &new] {
            fs::write(path, "one").expect("written");
        }
        let mut watch = watch(&file, system());
        fs::write(&file, "two").expect("written");
        reports(&mut watch).await;
        fs::rename(new, &file).expect("renamed");
        reports(&mut watch).await;
        assert!(watch.unwatched.is_empty());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_swapped_link_to_the_files_folder_is_noticed_as_kubernetes_makes_them() {
        use std::os::unix::fs::symlink;

        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(at(version)).expect("created");
            fs::write(at(version).join("token"), version).expect("written");
        }
        symlink("..1", at("..data")).expect("linked");
        symlink("..data/token", at("token")).expect("linked");
        symlink("..2", at("..tmp")).expect("linked");
        let mut watch = watch(&at("token"), system());
        fs::rename(at("..tmp"), at("..data")).expect("swapped");
        reports(&mut watch).await;
        assert_eq!(fs::read_to_string(at("token")).expect("read"), "..2");
    }

    #[tokio::test(start_paused = true)]
    async fn reading_is_no_change_and_without_events_files_are_polled() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        fs::write(&file, "one").expect("written");
        let clock = Arc::new(Simulated::new());
        let mut watch = watch(&file, Arc::clone(&clock) as SharedClock);
        quiet(&mut watch).await;
        for _ in 0..3 {
            let before = clock.now();
            fs::read(&file).expect("read");
            watch.changed().await;
            assert!(clock.now().saturating_since(before) >= POLL - SETTLE * 2);
        }
    }

    #[tokio::test]
    async fn a_folder_that_appears_is_noticed_and_watched_from_then_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state").join("token.json");
        let mut watch = watch(&file, system());
        assert_eq!(watch.unwatched.len(), 1);
        fs::create_dir(folder.path().join("state")).expect("created");
        reports(&mut watch).await;
        assert!(watch.unwatched.is_empty());
        fs::write(&file, "two").expect("written");
        reports(&mut watch).await;
    }

    #[test]
    fn access_is_distinguished_from_change() {
        use notify::event::{CreateKind, ModifyKind};
        assert!(
            is_change(EventKind::Modify(ModifyKind::Any))
                && is_change(EventKind::Create(CreateKind::File))
        );
        assert!(is_change(EventKind::Access(AccessKind::Close(
            AccessMode::Write
        ))));
        assert!(!is_change(EventKind::Access(AccessKind::Open(
            AccessMode::Any
        ))));
        assert!(!is_change(EventKind::Access(AccessKind::Close(
            AccessMode::Read
        ))));
    }
}
