//! Requests that a fresh token did not help: a bounded memory of their keys.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::base::clock::Moment;

/// Identifies requests that the upstream most likely treats alike: the hash of what they have in
/// common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestKey(pub(super) u64);

/// The most keys that are remembered; the least recently used one makes room.
pub(super) const CAPACITY: usize = 256;

/// Doubling does not extend a memory beyond this. For as long, a key is not futile after a request
/// with it was accepted.
pub(super) const MAX_MEMORY: Duration = Duration::from_secs(300);

/// The keys of requests that were rejected under a fresh token.
///
/// A key whose requests are also accepted (one path for all calls of an RPC interface) says nothing
/// about the next rejection: it is *mixed*, and not futile.
#[derive(Debug)]
pub(super) struct FutileKeys {
    /// The memory of the first rejection of a key.
    memory: Duration,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: RequestKey,
    last_used: Moment,
    /// How long the last rejection is remembered.
    memory: Duration,
    futile_until: Moment,
    mixed_until: Moment,
}

impl Entry {
    fn is_futile(&self, now: Moment) -> bool {
        now < self.futile_until && !self.is_mixed(now)
    }

    fn is_mixed(&self, now: Moment) -> bool {
        now < self.mixed_until
    }
}

impl FutileKeys {
    pub(super) fn new(memory: Duration) -> Self {
        Self {
            memory,
            entries: Vec::new(),
        }
    }

    /// Whether a fresh token did not help a request with this key a short time ago.
    pub(super) fn contains(&mut self, key: RequestKey, now: Moment) -> bool {
        self.find(key).is_some_and(|entry| {
            entry.last_used = now;
            entry.is_futile(now)
        })
    }

    /// A request with this key was rejected under a fresh token.
    pub(super) fn insert(&mut self, key: RequestKey, now: Moment) {
        let memory = self.memory;
        if let Some(entry) = self.find(key) {
            entry.last_used = now;
            // Requests that were under way together count once.
            if !entry.is_futile(now) && !entry.is_mixed(now) {
                entry.memory = (entry.memory * 2).min(MAX_MEMORY.max(memory));
                entry.futile_until = now + entry.memory;
            }
            return;
        }
        if self.entries.len() == CAPACITY {
            let oldest = (0..CAPACITY).min_by_key(|at| self.entries[*at].last_used);
            oldest.map(|at| self.entries.swap_remove(at));
        }
        self.entries.push(Entry {
            key,
            last_used: now,
            memory,
            futile_until: now + memory,
            mixed_until: Moment::default(),
        });
    }

    /// A request with this key was accepted.
    pub(super) fn accepted(&mut self, key: RequestKey, now: Moment) {
        let memory = self.memory;
        if let Some(entry) = self.find(key) {
            entry.mixed_until = now + MAX_MEMORY;
            entry.futile_until = Moment::default();
            // The next rejection that a fresh token does not help is the first one again.
            entry.memory = memory / 2;
        }
    }

    fn find(&mut self, key: RequestKey) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.key == key)
    }
}

/// Whether a key may be futile, without a lock: keys that share a bit are confused.
#[derive(Debug, Default)]
pub(in crate::token) struct KeyFilter([AtomicU64; 4]);

impl KeyFilter {
    pub(super) fn update(&self, keys: &FutileKeys) {
        let mut words = [0; 4];
        for entry in &keys.entries {
            if entry.futile_until > Moment::default() {
                let (word, bit) = position(entry.key);
                words[word] |= bit;
            }
        }
        for (word, value) in self.0.iter().zip(words) {
            word.store(value, Relaxed);
        }
    }

    pub(super) fn may_contain(&self, key: RequestKey) -> bool {
        let (word, bit) = position(key);
        self.0[word].load(Relaxed) & bit != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Relaxed) == 0)
    }
}

fn position(RequestKey(hash): RequestKey) -> (usize, u64) {
    let [low, high, ..] = hash.to_le_bytes();
    (usize::from(low % 4), 1 << (high % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn memories_double_to_five_minutes_per_key() {
        let mut keys = FutileKeys::new(MEMORY);
        let mut now = at(1);
        for memory in [10, 20, 40, 80, 160, 300, 300] {
            keys.insert(RequestKey(1), now);
            keys.insert(RequestKey(1), now);
            let end = now + Duration::from_secs(memory);
            assert!(keys.contains(RequestKey(1), now + Duration::from_secs(memory - 1)));
            assert!(!keys.contains(RequestKey(1), end), "{memory}");
            now = end;
        }
        keys.insert(RequestKey(2), now);
        assert!(!keys.contains(RequestKey(2), now + MEMORY), "its own");
    }

    #[test]
    fn a_key_that_is_also_accepted_is_not_futile() {
        let mut keys = FutileKeys::new(MEMORY);
        let filter = KeyFilter::default();
        keys.insert(RequestKey(1), at(1));
        filter.update(&keys);
        assert!(filter.may_contain(RequestKey(1)) && !filter.is_empty());
        keys.accepted(RequestKey(1), at(2));
        filter.update(&keys);
        assert!(filter.is_empty());
        keys.insert(RequestKey(1), at(3));
        assert!(!keys.contains(RequestKey(1), at(3)));
        let later = at(2) + MAX_MEMORY;
        keys.insert(RequestKey(1), later);
        assert!(keys.contains(RequestKey(1), later + MEMORY / 2));
        assert!(!keys.contains(RequestKey(1), later + MEMORY));
    }

    #[test]
    fn the_least_recently_used_key_makes_room() {
        let mut keys = FutileKeys::new(MEMORY);
        for key in 0..256 {
            keys.insert(RequestKey(key), at(1));
        }
        assert!(keys.contains(RequestKey(0), at(2)));
        for key in 256..511 {
            keys.insert(RequestKey(key), at(3));
        }
        assert_eq!(keys.entries.len(), CAPACITY);
        assert!(keys.contains(RequestKey(0), at(3)));
        assert!(!keys.contains(RequestKey(1), at(3)));
    }
}
