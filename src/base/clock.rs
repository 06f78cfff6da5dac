//! Time that counts suspend and ignores wall-clock jumps.

use std::{
    future::Future,
    ops,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A moment on the boot clock: time since this machine started, suspend included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(Duration);

impl Moment {
    /// The moment that lies this long after the machine's start.
    pub const fn since_boot(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// Time from the machine's start to this moment.
    pub const fn elapsed_since_boot(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to this moment; zero if `earlier` is later.
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

/// A clock, handed to whoever needs time, so that tests can move it.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Now, on the boot clock.
    fn now(&self) -> Moment;
    /// Now, as people and other machines count it. For state files and logs only: it jumps.
    fn wall(&self) -> SystemTime;
    /// Resolves when the boot clock has reached `deadline`, at once if it has; within a second of a wake from suspend.
    fn sleep_until(&self, deadline: Moment) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Names this boot: boot-clock moments of another boot mean nothing. `None` where the platform cannot tell.
    fn boot_id(&self) -> Option<&str>;
}

/// A clock that can be shared.
pub type SharedClock = Arc<dyn Clock>;
