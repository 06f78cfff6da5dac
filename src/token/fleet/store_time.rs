//! The store's clock as a reading shows it.

use std::time::{Duration, SystemTime};

use crate::base::clock::Moment;

/// A time of the store, between two moments of this machine.
#[derive(Debug, Clone, Copy)]
pub(in crate::token) struct StoreTime {
    pub(in crate::token) asked: Moment,
    pub(in crate::token) answered: Moment,
    pub(in crate::token) time: SystemTime,
}

impl StoreTime {
    /// The store's time at `moment`, or an earlier one. For what is stored: it may look older than it
    /// is, never younger.
    pub(in crate::token) fn at_least(&self, moment: Moment) -> SystemTime {
        if moment >= self.answered {
            self.time + moment.saturating_since(self.answered)
        } else {
            self.time
                .checked_sub(self.answered.saturating_since(moment))
                .unwrap_or(SystemTime::UNIX_EPOCH)
        }
    }

    /// The store's time at `moment`, or a later one. For what was read.
    pub(in crate::token) fn at_most(&self, moment: Moment) -> SystemTime {
        self.time + moment.saturating_since(self.asked)
    }

    /// The moment of a time that lies ahead; `now` if it has passed.
    pub(in crate::token) fn moment(&self, time: SystemTime, now: Moment) -> Moment {
        let left: Duration = time.duration_since(self.at_least(now)).unwrap_or_default();
        now + left
    }
}
