//! What a replica has seen of the store: how long it has watched it, whether the claim of another
//! replica is still renewed, and whether the store has lost writes. Pure: it is given readings and
//! the time.

use std::{sync::Arc, time::Duration};

use super::{
    claim::{ClaimId, Pulse},
    register::Revision,
    shared::Shared,
    store_time::StoreTime,
};
use crate::base::clock::Moment;

/// How long a replica watches the store before it spends a refresh token, and how long it sees the
/// same beat of a claim before the claim is orphaned.
pub(super) const SETTLE: Duration = Duration::from_secs(3);
/// The most that one reading adds to the watched time: when nothing was read, nothing was seen.
const LONGEST_GAP: Duration = Duration::from_millis(500);

/// A decoded reading.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) stored: Option<(Revision, Arc<Shared>)>,
    pub(super) time: StoreTime,
    pub(super) connection: u64,
}

impl Seen {
    pub(super) fn shared(&self) -> Option<&Arc<Shared>> {
        self.stored.as_ref().map(|(_, shared)| shared)
    }

    pub(super) fn revision(&self) -> Option<Revision> {
        self.stored.as_ref().map(|(revision, _)| *revision)
    }
}

/// What follows from a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// The store is empty, or has an older record than before: it must be written back.
    Lost,
    Intact,
}

#[derive(Debug)]
pub(super) struct Watch {
    owner: u64,
    last_read: Option<Moment>,
    watched: Duration,
    connection: Option<u64>,
    life: Option<u64>,
    /// The whole record that was seen last, and is not older than any that was seen.
    newest: Option<Arc<Shared>>,
    /// The claim of another replica, and for how long its beat has been the same.
    foreign: Option<(Pulse, Duration)>,
}

impl Watch {
    /// `owner` is this process's own.
    pub(super) fn new(owner: u64) -> Self {
        Self {
            owner,
            last_read: None,
            watched: Duration::ZERO,
            connection: None,
            life: None,
            newest: None,
            foreign: None,
        }
    }

    /// Takes in a reading that was asked for at `now`.
    pub(super) fn observe(&mut self, seen: &Seen, now: Moment) -> Finding {
        let gap = self
            .last_read
            .replace(now)
            .map_or(Duration::ZERO, |last| now.saturating_since(last));
        let gap = gap.min(LONGEST_GAP);
        self.watched = self.watched.saturating_add(gap);
        if self.connection.replace(seen.connection) != Some(seen.connection) {
            self.watched = Duration::ZERO;
        }
        let shared = seen.shared();
        self.observe_claim(
            shared.and_then(|shared| shared.claim.as_ref().map(super::claim::Claim::pulse)),
            gap,
        );
        let Some(shared) = shared else {
            if self.newest.is_some() {
                self.watched = Duration::ZERO;
                return Finding::Lost;
            }
            return Finding::Intact;
        };
        if self
            .life
            .replace(shared.life)
            .is_some_and(|life| life != shared.life)
        {
            self.watched = Duration::ZERO;
        }
        if let Some(newest) = &self.newest
            && shared.serial < newest.serial
        {
            self.watched = Duration::ZERO;
            // The store was emptied, and others have gone on since: newer tokens win.
            if shared.record.version() <= newest.record.version() {
                return Finding::Lost;
            }
        }
        self.newest = Some(Arc::clone(shared));
        Finding::Intact
    }

    fn observe_claim(&mut self, pulse: Option<Pulse>, gap: Duration) {
        self.foreign = pulse
            .filter(|pulse| pulse.id.owner != self.owner)
            .map(|pulse| match self.foreign {
                Some((before, watched)) if before == pulse => (pulse, watched.saturating_add(gap)),
                _ => (pulse, Duration::ZERO),
            });
    }

    /// Takes in what this replica has just written itself.
    pub(super) fn wrote(&mut self, shared: &Arc<Shared>) {
        if self
            .life
            .replace(shared.life)
            .is_some_and(|life| life != shared.life)
        {
            self.watched = Duration::ZERO;
        }
        self.newest = Some(Arc::clone(shared));
    }

    /// The store was watched for long enough: it loses nothing and hides nothing.
    pub(super) fn is_settled(&self) -> bool {
        self.watched >= SETTLE
    }

    /// The claim of another replica that may be in its call.
    pub(super) fn live_claim(&self) -> Option<ClaimId> {
        self.foreign
            .filter(|(_, watched)| *watched < SETTLE)
            .map(|(pulse, _)| pulse.id)
    }

    /// The claim of another replica that has stopped to renew it.
    pub(super) fn orphan(&self) -> Option<Pulse> {
        self.foreign
            .filter(|(_, watched)| *watched >= SETTLE)
            .map(|(pulse, _)| pulse)
    }

    /// The newest record that was seen.
    pub(super) fn newest(&self) -> Option<&Arc<Shared>> {
        self.newest.as_ref()
    }

    /// The record was lost, and is not to be brought back.
    pub(super) fn forget(&mut self) {
        self.newest = None;
        self.watched = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::token::fleet::claim::Claim;

    const OURS: u64 = 1;
    const THEIRS: u64 = 2;

    struct Watching {
        watch: Watch,
        now: Moment,
        seen: Seen,
    }

    impl Watching {
        fn new() -> Self {
            let time = StoreTime {
                asked: Moment::default(),
                answered: Moment::default(),
                time: SystemTime::UNIX_EPOCH,
            };
            Self {
                watch: Watch::new(OURS),
                now: Moment::since_boot(Duration::from_secs(100)),
                seen: Seen {
                    stored: None,
                    time,
                    connection: 1,
                },
            }
        }

        fn store(&mut self, serial: u64, life: u64, claim: Option<(u64, u64)>) {
            let claim = claim.map(|(owner, beat)| Claim {
                id: ClaimId { owner, number: 1 },
                name: String::new(),
                generation: 1,
                beat,
                spends: None,
            });
            let shared = Shared {
                serial,
                life,
                claim,
                ..Shared::default()
            };
            self.seen.stored = Some((Revision(serial), Arc::new(shared)));
        }

        /// Reads `times` times, `interval` milliseconds apart.
        fn read(&mut self, times: u32, interval: u64) -> Finding {
            let mut finding = Finding::Intact;
            for _ in 0..times {
                self.now = self.now + Duration::from_millis(interval);
                finding = self.watch.observe(&self.seen, self.now);
            }
            finding
        }
    }

    #[test]
    fn only_time_in_which_the_store_is_read_counts() {
        for (times, interval, is_settled) in [
            (13, 250, true),
            (12, 250, false),
            (7, 1000, true),
            (6, 1000, false),
            (2, 3_600_000, false),
        ] {
            let mut watching = Watching::new();
            watching.read(times, interval);
            assert_eq!(
                watching.watch.is_settled(),
                is_settled,
                "{times} {interval}"
            );
        }
    }

    #[test]
    fn a_new_connection_another_life_and_lost_writes_begin_anew() {
        type Event = fn(&mut Watching);
        let events: [(Event, Finding); 4] = [
            (|watching| watching.seen.connection = 2, Finding::Intact),
            (|watching| watching.store(6, 2, None), Finding::Intact),
            (|watching| watching.store(4, 1, None), Finding::Lost),
            (|watching| watching.seen.stored = None, Finding::Lost),
        ];
        for (n, (event, expected)) in events.into_iter().enumerate() {
            let mut watching = Watching::new();
            watching.store(5, 1, None);
            watching.read(20, 250);
            assert!(watching.watch.is_settled());
            event(&mut watching);
            assert_eq!(watching.read(1, 250), expected, "{n}");
            assert!(!watching.watch.is_settled(), "{n}");
            if expected == Finding::Lost {
                let newest = watching.watch.newest().expect("kept");
                assert_eq!(newest.serial, 5);
            }
        }
    }

    #[test]
    fn newer_tokens_with_a_lower_serial_are_not_overwritten() {
        let mut watching = Watching::new();
        watching.store(5, 1, None);
        watching.read(20, 250);
        let mut newer = Shared {
            serial: 2,
            life: 2,
            ..Shared::default()
        };
        newer.record.epoch = 1;
        watching.seen.stored = Some((Revision(9), Arc::new(newer)));
        assert_eq!(watching.read(1, 250), Finding::Intact);
        assert!(!watching.watch.is_settled());
        assert_eq!(watching.watch.newest().expect("kept").serial, 2);
    }

    #[test]
    fn a_claim_is_orphaned_when_its_beat_was_seen_unchanged_for_three_seconds() {
        let mut watching = Watching::new();
        watching.store(5, 1, Some((THEIRS, 1)));
        watching.read(12, 250);
        assert!(watching.watch.live_claim().is_some() && watching.watch.orphan().is_none());
        watching.store(6, 1, Some((THEIRS, 2)));
        watching.read(10, 250);
        assert!(watching.watch.live_claim().is_some(), "it was renewed");
        // A suspend is not seen time.
        watching.read(1, 3_600_000);
        assert!(watching.watch.orphan().is_none());
        watching.read(1, 250);
        let orphan = watching.watch.orphan().expect("an orphan");
        assert_eq!(orphan.beat, 2);
        assert!(watching.watch.live_claim().is_none());
        // Our own claim is none of another replica.
        watching.store(7, 1, Some((OURS, 1)));
        watching.read(20, 250);
        assert!(watching.watch.live_claim().is_none() && watching.watch.orphan().is_none());
    }
}
