//! Notices that files change: by the system's events, and by looking again every now and then.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _, event::AccessKind};
use tokio::sync::mpsc;

use super::clock::{Moment, SharedClock};

/// Writers are given that long to finish. Whoever needs longer causes another event.
const SETTLE: Duration = Duration::from_millis(200);
/// Events get lost: network folders send none, and a folder that was replaced no more.
const POLL: Duration = Duration::from_secs(30);

/// A file's folder may not be there yet, as that of the state file before a `login` or the first refresh makes it.
const APPEAR: Duration = Duration::from_secs(1);

/// Watches the folders of a few files.
#[derive(Debug)]
pub struct FileWatcher {
    /// Folders rather than files: a file that is replaced, or that a symbolic link leads to, changes without an event
    /// of its own. Kubernetes mounts secrets so.
    folders: Vec<PathBuf>,
    unwatched: Vec<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<()>,
    clock: SharedClock,
    /// When what has changed will be told.
    settles_at: Option<Moment>,
    polls_at: Moment,
}

impl FileWatcher {
    /// Watches the folders of these files. Without a file nothing ever changes.
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
                // Full: the news is on its way already.
                let _ = sender.try_send(());
            }
        };
        let watcher = if folders.is_empty() {
            None
        } else {
            notify::recommended_watcher(handler).ok()
        };
        let polls_at = clock.now() + POLL;
        let unwatched = folders.clone();
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

    /// Resolves when something may have changed. May be dropped at any await: nothing is lost.
    pub async fn changed(&mut self) {
        if self.folders.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let until = self.settles_at.unwrap_or_else(|| self.looks_at());
            tokio::select! {
                biased;
                () = self.clock.sleep_until(until) => {
                    let missing = self.unwatched.len();
                    self.watch_folders();
                    let has_appeared = self.unwatched.len() < missing;
                    if self.settles_at.take().is_some() || has_appeared || self.polls_at <= self.clock.now() {
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

    /// When to look without being told to: soon while a folder is missing, since its coming causes no event here.
    fn looks_at(&self) -> Moment {
        let is_missing = self.watcher.is_some() && !self.unwatched.is_empty();
        if is_missing {
            self.polls_at.min(self.clock.now() + APPEAR)
        } else {
            self.polls_at
        }
    }

    /// Those that are not watched yet, because they were not there.
    fn watch_folders(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        self.unwatched
            .retain(|folder| watcher.watch(folder, RecursiveMode::NonRecursive).is_err());
    }
}

/// Looking at a file is no change of it. Otherwise each look would cause the next one.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(kind) if !matches!(kind, AccessKind::Close(notify::event::AccessMode::Write)))
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::*;
    use crate::base::clock::{Clock as _, Simulated, system};

    fn watch(file: &Path, clock: SharedClock) -> FileWatcher {
        FileWatcher::new([file], clock)
    }

    /// Told of the change, and of nothing after it.
    async fn told(watch: &mut FileWatcher) {
        tokio::time::timeout(Duration::from_secs(20), watch.changed())
            .await
            .expect("told in time");
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
        told(&mut watch).await;
        fs::rename(new, &file).expect("renamed");
        told(&mut watch).await;
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
        told(&mut watch).await;
        assert_eq!(fs::read_to_string(at("token")).expect("read"), "..2");
    }

    #[tokio::test(start_paused = true)]
    async fn reading_is_no_change_and_without_events_it_looks_again_after_a_while() {
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
        told(&mut watch).await;
        assert!(watch.unwatched.is_empty());
        fs::write(&file, "two").expect("written");
        told(&mut watch).await;
    }

    #[test]
    fn access_is_told_from_change() {
        use notify::event::{AccessMode, CreateKind, ModifyKind};
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
