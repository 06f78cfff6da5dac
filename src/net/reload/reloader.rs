//! The task that reloads values when their files change, and warns of certificates about to expire.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Reload;
use crate::{
    base::{
        blocking,
        clock::{Moment, SharedClock},
        watch::FileWatcher,
    },
    net::tls::{Validity, ValidityWarning},
};

/// Time between two checks of the certificates' validity.
const CHECK_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Reloads values when their files change, and on request.
#[derive(Debug)]
pub struct Reloader {
    handle: ReloadHandle,
    clock: SharedClock,
    watch: FileWatcher,
    next_check: Moment,
    /// One for each value, in the same order.
    logged: Vec<Logged>,
}

/// What was logged last about a value, so that nothing is logged twice.
#[derive(Debug, Default, Clone)]
struct Logged {
    error: Option<String>,
    warning: Option<ValidityWarning>,
}

/// Gives access to the values of a [`Reloader`]; cheap to clone.
#[derive(Debug, Clone)]
pub struct ReloadHandle {
    values: Arc<[Arc<dyn Reload>]>,
    requested: Arc<Notify>,
}

impl ReloadHandle {
    /// Requests that all files be read again, whether an event has reported a change or not.
    pub fn reload(&self) {
        self.requested.notify_one();
    }

    /// The certificates that the proxy presents: their use, and their validity if it is known.
    pub fn certificates(&self) -> impl Iterator<Item = (&str, Option<Validity>)> {
        self.values
            .iter()
            .filter(|value| value.certificate().is_some())
            .map(|value| (value.name(), value.validity()))
    }
}

impl Reloader {
    /// Begins to watch the files of `values`. Logs nothing about the certificates as they are now:
    /// the check of the configuration has done so.
    pub fn new(
        values: impl IntoIterator<Item = Arc<dyn Reload>>,
        clock: SharedClock,
    ) -> (Self, ReloadHandle) {
        let values: Arc<[_]> = values
            .into_iter()
            .filter(|value| !value.files().is_empty())
            .collect();
        let files = values.iter().flat_map(|value| value.files());
        let watch = FileWatcher::new(files.map(PathBuf::as_path), Arc::clone(&clock));
        let now = clock.wall();
        let logged = values
            .iter()
            .map(|value| Logged {
                error: None,
                warning: warning(&**value, now),
            })
            .collect();
        let handle = ReloadHandle {
            values,
            requested: Arc::default(),
        };
        let next_check = clock.now() + CHECK_INTERVAL;
        (
            Self {
                handle: handle.clone(),
                clock,
                watch,
                next_check,
                logged,
            },
            handle,
        )
    }

    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let clock = Arc::clone(&self.clock);
        let requested = Arc::clone(&self.handle.requested);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = requested.notified() => self.reload().await,
                () = self.watch.changed() => self.reload().await,
                () = clock.sleep_until(self.next_check) => {
                    self.next_check = clock.now() + CHECK_INTERVAL;
                    self.check_certificates();
                }
            }
        }
    }

    async fn reload(&mut self) {
        let values = Arc::clone(&self.handle.values);
        for (value, logged) in values.iter().zip(&mut self.logged) {
            let reading = Arc::clone(value);
            // An error is a panic, which is logged already.
            let Ok(reloaded) = blocking::run(move || reading.reload()).await else {
                continue;
            };
            let name = value.name();
            match reloaded {
                Ok(is_new) => {
                    logged.error = None;
                    if is_new {
                        let files = value.files();
                        tracing::info!(r#use = name, ?files, "changed files are in use");
                        logged.warning = None;
                        warn(&**value, logged, self.clock.wall());
                    }
                }
                Err(error) => {
                    if logged.error.as_ref() != Some(&error) {
                        tracing::warn!(
                            r#use = name,
                            error,
                            "changed files cannot be used: the former contents stay in use until \
                             the next change"
                        );
                    }
                    logged.error = Some(error);
                }
            }
        }
    }

    fn check_certificates(&mut self) {
        let now = self.clock.wall();
        // The upstream and the issuer may use the same file.
        let mut seen = BTreeSet::new();
        for (value, logged) in self.handle.values.iter().zip(&mut self.logged) {
            if value.certificate().is_some_and(|file| seen.insert(file)) {
                warn(&**value, logged, now);
            }
        }
    }
}

/// Logs a line at each threshold, and one at each check after the expiry.
fn warn(value: &dyn Reload, logged: &mut Logged, now: SystemTime) {
    let warning = warning(value, now);
    if let Some(warning) = warning
        && (logged.warning != Some(warning) || matches!(warning, ValidityWarning::Expired(_)))
    {
        let file = value.certificate().map(|file| file.display().to_string());
        tracing::warn!(
            r#use = value.name(),
            file,
            "a certificate {warning}: put a new one into its file"
        );
    }
    logged.warning = warning;
}

fn warning(value: &dyn Reload, now: SystemTime) -> Option<ValidityWarning> {
    value.validity().and_then(|validity| validity.warning(now))
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        time::{Duration, SystemTime},
    };

    use parking_lot::Mutex;

    use super::*;
    use crate::base::{
        clock::{Clock as _, Simulated},
        log::capture::Log,
    };

    /// A value whose validity and reloads are set by the test.
    #[derive(Debug)]
    struct Scripted {
        files: [PathBuf; 1],
        not_after: Mutex<SystemTime>,
        next: Mutex<Result<bool, String>>,
    }

    impl Reload for Scripted {
        fn name(&self) -> &str {
            "listener:x"
        }

        fn files(&self) -> &[PathBuf] {
            &self.files
        }

        fn certificate(&self) -> Option<&Path> {
            Some(&self.files[0])
        }

        fn validity(&self) -> Option<Validity> {
            let not_after = *self.not_after.lock();
            Some(Validity {
                not_before: SystemTime::UNIX_EPOCH,
                not_after,
            })
        }

        fn reload(&self) -> Result<bool, String> {
            std::mem::replace(&mut *self.next.lock(), Ok(false))
        }
    }

    struct Bench {
        value: Arc<Scripted>,
        handle: ReloadHandle,
        clock: Arc<Simulated>,
        log: Log,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        /// A reloader of one certificate that is valid for `left`.
        fn new(left: Duration) -> Self {
            let log = Log::capture();
            let folder = tempfile::tempdir().expect("a folder");
            let clock = Arc::new(Simulated::new());
            let value = Arc::new(Scripted {
                files: [folder.path().join("server.pem")],
                not_after: Mutex::new(clock.wall() + left),
                next: Mutex::new(Ok(false)),
            });
            let (reloader, handle) = Reloader::new(
                [Arc::clone(&value) as Arc<dyn Reload>],
                Arc::clone(&clock) as SharedClock,
            );
            tokio::spawn(reloader.run(CancellationToken::new()));
            Self {
                value,
                handle,
                clock,
                log,
                _folder: folder,
            }
        }

        async fn pass(&self, time: Duration) {
            self.clock.sleep_until(self.clock.now() + time).await;
        }

        /// Reloads with this result.
        async fn reload(&self, next: Result<bool, String>) {
            *self.value.next.lock() = next;
            self.handle.reload();
            self.pass(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_warning_is_logged_at_each_threshold_and_every_day_after_the_expiry() {
        let bench = Bench::new(CHECK_INTERVAL * 7 / 2);
        bench.pass(CHECK_INTERVAL / 2).await;
        assert_eq!(
            bench.log.lines("a certificate"),
            0,
            "at the start the check of the configuration warns"
        );
        for (day, warnings) in [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4)] {
            bench.pass(CHECK_INTERVAL).await;
            assert_eq!(
                bench.log.lines("a certificate"),
                warnings,
                "day {day}:\n{}",
                bench.log.text()
            );
        }
        let text = bench.log.text();
        for expected in [
            "expires within 3 days",
            "expires within a day",
            "expired on",
            "listener:x",
            "server.pem",
        ] {
            assert!(text.contains(expected), "{expected} in:\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_logged_once_and_a_new_certificate_is_checked() {
        let bench = Bench::new(CHECK_INTERVAL * 100);
        for _ in 0..2 {
            bench
                .reload(Err("the key does not match the certificate".to_owned()))
                .await;
            assert_eq!(
                bench.log.lines("the key does not match the certificate"),
                1,
                "{}",
                bench.log.text()
            );
        }
        bench.reload(Err("it cannot be read".to_owned())).await;
        assert_eq!(bench.log.lines("stay in use"), 2, "{}", bench.log.text());
        *bench.value.not_after.lock() = bench.clock.wall() + CHECK_INTERVAL * 10;
        bench.reload(Ok(true)).await;
        assert_eq!(
            bench.log.lines("changed files are in use"),
            1,
            "{}",
            bench.log.text()
        );
        assert_eq!(
            bench.log.lines("expires within 14 days"),
            1,
            "{}",
            bench.log.text()
        );
        bench.reload(Ok(false)).await;
        assert_eq!(bench.log.lines("WARN"), 3, "{}", bench.log.text());
    }
}
