//! Clocks: the boot clock, which counts suspend and ignores wall-clock jumps, and the wall clock.

mod simulated;

use std::{
    ops,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;

pub use simulated::{Jump, Simulated};

/// A point in time on the boot clock: the time since this machine started, suspend included.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Moment(Duration);

impl Moment {
    /// The moment `elapsed` after the machine's start.
    pub const fn since_boot(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// The time from the machine's start to this moment.
    pub const fn elapsed_since_boot(self) -> Duration {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl ops::Add<Duration> for Moment {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

/// A source of time that is passed in, so that tests can simulate it.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The current time on the boot clock.
    fn now(&self) -> Moment;
    /// The current calendar time. For state files, logs and certificates only: it may jump.
    fn wall(&self) -> SystemTime;
    /// Resolves when the boot clock has reached `deadline`, at once if it has already; at most a
    /// second late after a suspend.
    fn sleep_until(&self, deadline: Moment) -> BoxFuture<'_, ()>;
    /// Identifies this boot: moments of different boots cannot be compared. `None` where the
    /// platform has no such id.
    fn boot_id(&self) -> Option<&str>;
}

/// A clock shared by all parts of the program.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock: `CLOCK_BOOTTIME` on Linux, `CLOCK_MONOTONIC` on other Unixes (on macOS it
/// counts sleep), the performance counter on Windows.
///
/// `sleep_until` needs a Tokio runtime with IO and time enabled.
pub fn system() -> SharedClock {
    Arc::new(System { boot_id: boot_id() })
}

#[derive(Debug)]
struct System {
    boot_id: Option<String>,
}

impl Clock for System {
    fn now(&self) -> Moment {
        boot_time()
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep_until(&self, deadline: Moment) -> BoxFuture<'_, ()> {
        Box::pin(sleep_until(deadline))
    }

    fn boot_id(&self) -> Option<&str> {
        self.boot_id.as_deref()
    }
}

#[cfg(unix)]
fn boot_time() -> Moment {
    use rustix::time::{ClockId, clock_gettime};

    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;

    let time = clock_gettime(CLOCK);
    // Neither part of a clock that starts at boot is ever negative.
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Moment::since_boot(Duration::new(seconds, nanoseconds))
}

/// Counts from the program's start: without a boot id no moment is stored beyond the process, so
/// the origin does not matter.
#[cfg(not(unix))]
#[allow(clippy::disallowed_methods, reason = "this is the clock")]
fn boot_time() -> Moment {
    use std::{sync::OnceLock, time::Instant};

    static START: OnceLock<Instant> = OnceLock::new();
    Moment::since_boot(START.get_or_init(Instant::now).elapsed())
}

#[cfg(target_os = "linux")]
fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(not(target_os = "linux"))]
fn boot_id() -> Option<String> {
    None
}

#[cfg(target_os = "linux")]
async fn sleep_until(deadline: Moment) {
    // Without a free file descriptor, for example, the refresher must still be able to sleep.
    if wait_for_timer(deadline).await.is_err() {
        poll_until(deadline).await;
    }
}

#[cfg(not(target_os = "linux"))]
async fn sleep_until(deadline: Moment) {
    poll_until(deadline).await;
}

#[cfg(target_os = "linux")]
async fn wait_for_timer(deadline: Moment) -> std::io::Result<()> {
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::{Interest, unix::AsyncFd};

    if boot_time() >= deadline {
        return Ok(());
    }
    let timer = timerfd_create(
        TimerfdClockId::Boottime,
        TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
    )?;
    let at = deadline.elapsed_since_boot();
    let value = Timespec {
        tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: at.subsec_nanos().into(),
    };
    let once = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: value,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &once)?;
    // Tokio deprecates this for types that could return another descriptor later. An `OwnedFd`
    // cannot, and the replacement is `unsafe`, which this crate forbids.
    #[allow(deprecated, reason = "sound for an OwnedFd")]
    let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
    let _expired = timer.readable().await?;
    Ok(())
}

/// The runtime's timers stop during suspend, so the boot clock is read every second.
async fn poll_until(deadline: Moment) {
    const STEP: Duration = Duration::from_secs(1);
    loop {
        let left = deadline.saturating_since(boot_time());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(STEP)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_saturate() {
        let early = Moment::since_boot(Duration::from_secs(1));
        let late = early + Duration::from_secs(2);
        assert_eq!(late.saturating_since(early), Duration::from_secs(2));
        assert_eq!(early.saturating_since(late), Duration::ZERO);
        assert_eq!((late + Duration::MAX).elapsed_since_boot(), Duration::MAX);
    }

    #[tokio::test]
    async fn the_system_clock_sleeps_until_its_deadline_and_not_longer() {
        let clock = system();
        let deadline = clock.now() + Duration::from_millis(30);
        tokio::time::timeout(Duration::from_secs(10), clock.sleep_until(deadline))
            .await
            .expect("it wakes");
        assert!(clock.now() >= deadline);
        // A deadline in the past, even the machine's start, resolves at once.
        clock.sleep_until(Moment::default()).await;
    }

    #[tokio::test]
    async fn polling_keeps_the_deadline_too() {
        let deadline = boot_time() + Duration::from_millis(30);
        tokio::time::timeout(Duration::from_secs(10), poll_until(deadline))
            .await
            .expect("it wakes");
        assert!(boot_time() >= deadline);
    }

    #[tokio::test]
    async fn a_deadline_beyond_every_calendar_is_waited_for() {
        let clock = system();
        let forever = clock.sleep_until(Moment::since_boot(Duration::MAX));
        assert!(
            tokio::time::timeout(Duration::from_millis(30), forever)
                .await
                .is_err()
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_names_its_boots() {
        let clock = system();
        assert_eq!(clock.boot_id().map(str::len), Some(36));
        assert_eq!(clock.boot_id(), system().boot_id());
    }
}
