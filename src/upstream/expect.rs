//! How an endpoint treats `Expect: 100-continue` (RFC 9110 §10.1.1), as far as is known.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::base::clock::Moment;

/// How long an experience counts.
const MEMORY: Duration = Duration::from_secs(600);

/// What to expect of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectSupport {
    /// It responds 100, or nothing is known.
    Unknown,
    /// It did not respond 100 in time: requests do not wait for it.
    Ignored,
    /// It rejected the expectation, or closed the connection: requests are sent without.
    Refused,
}

/// The experience of all workers with one endpoint.
#[derive(Debug, Default)]
pub(super) struct ExpectMemory {
    /// In milliseconds since boot.
    ignored_until: AtomicU64,
    refused_until: AtomicU64,
}

impl ExpectMemory {
    pub(super) fn get(&self, now: Moment) -> ExpectSupport {
        let now = millis(now);
        if now < self.refused_until.load(Relaxed) {
            ExpectSupport::Refused
        } else if now < self.ignored_until.load(Relaxed) {
            ExpectSupport::Ignored
        } else {
            ExpectSupport::Unknown
        }
    }

    /// Records an experience. [`ExpectSupport::Unknown`]: the endpoint responded 100.
    pub(super) fn remember(&self, support: ExpectSupport, now: Moment) {
        let until = millis(now + MEMORY);
        match support {
            ExpectSupport::Unknown => self.ignored_until.store(0, Relaxed),
            ExpectSupport::Ignored => self.ignored_until.store(until, Relaxed),
            ExpectSupport::Refused => self.refused_until.store(until, Relaxed),
        }
    }
}

fn millis(moment: Moment) -> u64 {
    u64::try_from(moment.elapsed_since_boot().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_experience_counts_for_ten_minutes_and_a_refusal_more_than_silence() {
        let memory = ExpectMemory::default();
        let begin = Moment::since_boot(Duration::from_secs(100));
        assert_eq!(memory.get(begin), ExpectSupport::Unknown);
        memory.remember(ExpectSupport::Ignored, begin);
        assert_eq!(memory.get(begin), ExpectSupport::Ignored);
        memory.remember(ExpectSupport::Refused, begin);
        memory.remember(ExpectSupport::Unknown, begin);
        assert_eq!(memory.get(begin), ExpectSupport::Refused);
        assert_eq!(memory.get(begin + MEMORY), ExpectSupport::Unknown);
    }
}
