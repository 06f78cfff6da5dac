//! The task that keeps what is made of files up to date with them, and warns of
//! certificates that come to their end.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::Notify;

use super::Held;
use crate::{
    base::{
        clock::{Moment, SharedClock},
        watch::Watch,
    },
    net::tls::{Concern, Validity},
};

/// How often dates are looked at that nothing else brings up.
const LOOK: Duration = Duration::from_secs(24 * 3600);

/// Reads files again when they change.
#[derive(Debug)]
pub struct Keeper {
    certificates: Certificates,
    clock: SharedClock,
    watch: Watch,
    looks_at: Moment,
    /// In the order of what is held: why the files cannot be used, and what was said of the certificate.
    told: Vec<Told>,
}

#[derive(Debug, Default, Clone)]
struct Told {
    unusable: Option<String>,
    concern: Option<Concern>,
}

/// What is in use. A cheap handle.
#[derive(Debug, Clone)]
pub struct Certificates {
    held: Arc<[Arc<dyn Held>]>,
    wake: Arc<Notify>,
}

impl Certificates {
    /// Has the files read again soon, whether they seem to have changed or not.
    pub fn reload(&self) {
        self.wake.notify_one();
    }

    /// The certificates that we show: what for, and how long they are good, if that can be told.
    pub fn validities(&self) -> impl Iterator<Item = (&str, Option<Validity>)> {
        let shown = self.held.iter().filter(|held| held.certificate().is_some());
        shown.map(|held| (held.name(), held.validity()))
    }
}

impl Keeper {
    /// Begins to watch. What is wrong with the certificates now was told by whoever checked the configuration.
    pub fn new(
        held: impl IntoIterator<Item = Arc<dyn Held>>,
        clock: SharedClock,
    ) -> (Self, Certificates) {
        let held: Arc<[_]> = held
            .into_iter()
            .filter(|held| !held.files().is_empty())
            .collect();
        let watch = Watch::new(
            held.iter()
                .flat_map(|held| held.files())
                .map(PathBuf::as_path),
            Arc::clone(&clock),
        );
        let now = clock.wall();
        let told = held
            .iter()
            .map(|held| Told {
                unusable: None,
                concern: concern(&**held, now),
            })
            .collect();
        let certificates = Certificates {
            held,
            wake: Arc::default(),
        };
        let looks_at = clock.now() + LOOK;
        (
            Self {
                certificates: certificates.clone(),
                clock,
                watch,
                looks_at,
                told,
            },
            certificates,
        )
    }

    /// Runs until `stop` resolves.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let (clock, wake) = (Arc::clone(&self.clock), Arc::clone(&self.certificates.wake));
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return,
                () = wake.notified() => self.reload().await,
                () = self.watch.changed() => self.reload().await,
                () = clock.sleep_until(self.looks_at) => {
                    self.looks_at = clock.now() + LOOK;
                    self.warn();
                }
            }
        }
    }

    async fn reload(&mut self) {
        let held = Arc::clone(&self.certificates.held);
        for (held, told) in held.iter().zip(&mut self.told) {
            let reading = Arc::clone(held);
            let Ok(read) = tokio::task::spawn_blocking(move || reading.reload()).await else {
                continue;
            };
            let name = held.name();
            match read {
                Ok(is_new) => {
                    told.unusable = None;
                    if is_new {
                        tracing::info!(r#use = name, files = ?held.files(), "changed files are in use");
                        told.concern = None;
                        warn(&**held, told, self.clock.wall());
                    }
                }
                Err(error) => {
                    if told.unusable.as_ref() != Some(&error) {
                        tracing::warn!(
                            r#use = name,
                            error,
                            "changed files cannot be used: what was made of them before stays in use until the next change"
                        );
                    }
                    told.unusable = Some(error);
                }
            }
        }
    }

    fn warn(&mut self) {
        let now = self.clock.wall();
        // One file may be used for the upstream and the issuer alike.
        let mut seen = BTreeSet::new();
        for (held, told) in self.certificates.held.iter().zip(&mut self.told) {
            if held.certificate().is_some_and(|file| seen.insert(file)) {
                warn(&**held, told, now);
            }
        }
    }
}

/// One line at each of the thresholds, and one a day when it is too late.
fn warn(held: &dyn Held, told: &mut Told, now: SystemTime) {
    let concern = concern(held, now);
    if let Some(concern) = concern
        && (told.concern != Some(concern) || matches!(concern, Concern::Expired(_)))
    {
        let file = held.certificate().map(|file| file.display().to_string());
        tracing::warn!(
            r#use = held.name(),
            file,
            "a certificate {concern}: put a new one into its file"
        );
    }
    told.concern = concern;
}

fn concern(held: &dyn Held, now: SystemTime) -> Option<Concern> {
    held.validity().and_then(|validity| validity.concern(now))
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::Mutex,
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::base::{
        clock::{Clock as _, Simulated},
        log::capture::Log,
    };

    /// What a file holds is played.
    #[derive(Debug)]
    struct Played {
        files: [PathBuf; 1],
        not_after: Mutex<SystemTime>,
        next: Mutex<Result<bool, String>>,
    }

    impl Held for Played {
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
            let not_after = *self.not_after.lock().expect("a lock");
            Some(Validity {
                not_before: SystemTime::UNIX_EPOCH,
                not_after,
            })
        }

        fn reload(&self) -> Result<bool, String> {
            std::mem::replace(&mut *self.next.lock().expect("a lock"), Ok(false))
        }
    }

    struct Bench {
        held: Arc<Played>,
        certificates: Certificates,
        clock: Arc<Simulated>,
        log: Log,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        /// A keeper of one certificate that is good for so long.
        fn new(left: Duration) -> Self {
            let log = Log::capture();
            let folder = tempfile::tempdir().expect("a folder");
            let clock = Arc::new(Simulated::new());
            let held = Arc::new(Played {
                files: [folder.path().join("server.pem")],
                not_after: Mutex::new(clock.wall() + left),
                next: Mutex::new(Ok(false)),
            });
            let (keeper, certificates) = Keeper::new(
                [Arc::clone(&held) as Arc<dyn Held>],
                Arc::clone(&clock) as SharedClock,
            );
            tokio::spawn(keeper.run(std::future::pending()));
            Self {
                held,
                certificates,
                clock,
                log,
                _folder: folder,
            }
        }

        async fn pass(&self, time: Duration) {
            self.clock.sleep_until(self.clock.now() + time).await;
        }

        /// The next reading of the files comes to this.
        async fn reads(&self, next: Result<bool, String>) {
            *self.held.next.lock().expect("a lock") = next;
            self.certificates.reload();
            self.pass(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_person_is_warned_at_each_threshold_and_every_day_when_it_is_too_late() {
        let bench = Bench::new(LOOK * 7 / 2);
        bench.pass(LOOK / 2).await;
        assert_eq!(
            bench.log.lines("a certificate"),
            0,
            "the start is for whoever checks the configuration"
        );
        for (day, warnings) in [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4)] {
            bench.pass(LOOK).await;
            assert_eq!(
                bench.log.lines("a certificate"),
                warnings,
                "day {day}:\n{}",
                bench.log.text()
            );
        }
        let text = bench.log.text();
        for told in [
            "expires within 3 days",
            "expires within a day",
            "expired on",
            "listener:x",
            "server.pem",
        ] {
            assert!(text.contains(told), "{told} in:\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_used_is_told_once_and_what_can_is_looked_at() {
        let bench = Bench::new(LOOK * 100);
        for _ in 0..2 {
            bench.reads(Err("they do not go together".to_owned())).await;
            assert_eq!(
                bench.log.lines("they do not go together"),
                1,
                "{}",
                bench.log.text()
            );
        }
        bench.reads(Err("it cannot be read".to_owned())).await;
        assert_eq!(bench.log.lines("stays in use"), 2, "{}", bench.log.text());
        *bench.held.not_after.lock().expect("a lock") = bench.clock.wall() + LOOK * 10;
        bench.reads(Ok(true)).await;
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
        bench.reads(Ok(false)).await;
        assert_eq!(bench.log.lines("WARN"), 3, "{}", bench.log.text());
    }
}
