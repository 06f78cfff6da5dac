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
            later(self.time, moment.saturating_since(self.answered))
        } else {
            self.time
                .checked_sub(self.answered.saturating_since(moment))
                .unwrap_or(SystemTime::UNIX_EPOCH)
        }
    }

    /// The store's time at `moment`, or a later one. For what was read.
    pub(in crate::token) fn at_most(&self, moment: Moment) -> SystemTime {
        later(self.time, moment.saturating_since(self.asked))
    }

    /// The moment of a time that lies ahead, at most [`MAX_AHEAD`]; `now` if it has passed.
    pub(in crate::token) fn moment(&self, time: SystemTime, now: Moment) -> Moment {
        let left = time.duration_since(self.at_least(now)).unwrap_or_default();
        now + left.min(MAX_AHEAD)
    }
}

/// No backoff is longer, and neither is a `Retry-After` that is heeded. A store whose clock was ahead
/// for a while has stored later times.
const MAX_AHEAD: Duration = Duration::from_secs(300);

/// A hostile store can have any time.
fn later(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_add(by).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn at(time: SystemTime) -> StoreTime {
        StoreTime {
            asked: Moment::since_boot(seconds(10)),
            answered: Moment::since_boot(seconds(12)),
            time,
        }
    }

    #[test]
    fn what_is_stored_looks_older_and_what_is_read_too() {
        let epoch = SystemTime::UNIX_EPOCH;
        let store = at(epoch + seconds(1000));
        let moment = |n| Moment::since_boot(seconds(n));
        assert_eq!(store.at_least(moment(15)), epoch + seconds(1003));
        assert_eq!(store.at_least(moment(11)), epoch + seconds(999));
        assert_eq!(store.at_most(moment(15)), epoch + seconds(1005));
        let now = moment(12);
        assert_eq!(store.moment(epoch + seconds(1060), now), now + seconds(60));
        assert_eq!(store.moment(epoch + seconds(900), now), now);
        assert_eq!(
            store.moment(epoch + seconds(9_000_000), now),
            now + MAX_AHEAD
        );
    }

    #[test]
    fn no_time_of_a_store_is_too_extreme() {
        let latest = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(i64::MAX.unsigned_abs()))
            .expect("representable");
        for time in [SystemTime::UNIX_EPOCH, latest] {
            for moment in [0, 11, u64::MAX] {
                let moment = Moment::since_boot(Duration::from_secs(moment));
                let store = at(time);
                let (least, most) = (store.at_least(moment), store.at_most(moment));
                assert!(store.moment(least.max(most), moment) >= moment);
            }
        }
    }
}
