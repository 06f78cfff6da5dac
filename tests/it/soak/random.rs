//! Reproducible random numbers (SplitMix64).

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Range,
    time::Duration,
};

pub struct Random(u64);

impl Random {
    /// The sequence of one task: each name has its own.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, name).hash(&mut hasher);
        Self(hasher.finish())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    pub fn percent(&mut self, share: u64) -> bool {
        self.next() % 100 < share
    }

    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.next() as usize % choices.len()].clone()
    }

    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }
}

/// The content of the file with this number: the cloud sends it, and apps expect it.
pub fn content(number: u64, size: usize) -> Vec<u8> {
    let mut random = Random(number);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
