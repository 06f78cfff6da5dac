//! A clock for tests: follows Tokio's time, which tests can pause, and simulates suspends and jumps
//! of the wall clock.

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{Clock, Moment};

/// A clock controlled by tests.
///
/// Under `#[tokio::test(start_paused = true)]` it advances whenever the runtime is idle, so that
/// hours pass at once. [`Simulated::suspend`] advances it without Tokio's timers,
/// [`Simulated::jump_wall`] moves the wall clock alone.
#[derive(Debug)]
pub struct Simulated {
    boot_id: Option<String>,
    origin: Instant,
    uptime: Duration,
    wall: Mutex<SystemTime>,
    /// Time spent in suspend. A watch channel, because the end of a suspend must wake all sleepers.
    suspended: watch::Sender<Duration>,
}

impl Simulated {
    /// A machine up for an hour, in the year 2025.
    pub fn new() -> Self {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000);
        Self::booted(Some("boot-1"), Duration::from_secs(3600), wall)
    }

    /// A machine with this boot id and uptime, whose wall clock shows `wall`.
    pub fn booted(boot_id: Option<&str>, uptime: Duration, wall: SystemTime) -> Self {
        Self {
            boot_id: boot_id.map(str::to_owned),
            origin: Instant::now(),
            uptime,
            wall: Mutex::new(wall),
            suspended: watch::Sender::new(Duration::ZERO),
        }
    }

    /// Simulates a suspend: both clocks advance by `time`, timers do not.
    pub fn suspend(&self, time: Duration) {
        self.suspended.send_modify(|suspended| *suspended += time);
    }

    /// Simulates a change of the wall clock.
    pub fn jump_wall(&self, direction: Jump, by: Duration) {
        let mut wall = self.wall.lock();
        *wall = match direction {
            Jump::Forwards => *wall + by,
            Jump::Backwards => *wall - by,
        };
    }

    /// The time since this clock was created, suspend included.
    fn elapsed(&self) -> Duration {
        self.origin.elapsed() + *self.suspended.borrow()
    }
}

/// The direction of [`Simulated::jump_wall`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    /// Into the future.
    Forwards,
    /// Into the past.
    Backwards,
}

impl Default for Simulated {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for Simulated {
    fn now(&self) -> Moment {
        Moment::since_boot(self.uptime + self.elapsed())
    }

    fn wall(&self) -> SystemTime {
        *self.wall.lock() + self.elapsed()
    }

    fn sleep_until(&self, deadline: Moment) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut suspends = self.suspended.subscribe();
            loop {
                suspends.mark_unchanged();
                let left = deadline.saturating_since(self.now());
                if left.is_zero() {
                    return;
                }
                // The sender is part of `self`, so `changed` cannot fail. After either result the
                // clock is read again.
                let _ = tokio::time::timeout(left, suspends.changed()).await;
            }
        })
    }

    fn boot_id(&self) -> Option<&str> {
        self.boot_id.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn idle_time_passes_at_once_on_both_clocks() {
        let clock = Simulated::new();
        let (now, wall) = (clock.now(), clock.wall());
        clock.sleep_until(now + HOUR).await;
        assert_eq!(clock.now(), now + HOUR);
        assert_eq!(clock.wall(), wall + HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspend_counts_and_wakes_sleepers() {
        let clock = Arc::new(Simulated::new());
        let (now, timers) = (clock.now(), Instant::now());
        let sleeper = tokio::spawn({
            let clock = Arc::clone(&clock);
            async move { clock.sleep_until(now + HOUR).await }
        });
        tokio::task::yield_now().await;
        clock.suspend(2 * HOUR);
        sleeper.await.expect("it wakes");
        assert_eq!(clock.now(), now + 2 * HOUR);
        assert_eq!(
            timers.elapsed(),
            Duration::ZERO,
            "timers do not advance during suspend"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_calendar_jumps_alone() {
        let clock = Simulated::new();
        let (now, wall) = (clock.now(), clock.wall());
        clock.jump_wall(Jump::Backwards, 48 * HOUR);
        assert_eq!(clock.wall(), wall - 48 * HOUR);
        clock.jump_wall(Jump::Forwards, 96 * HOUR);
        assert_eq!(clock.wall(), wall + 48 * HOUR);
        assert_eq!(clock.now(), now);
    }
}
