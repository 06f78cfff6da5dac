//! Fingerprints of refresh tokens that were replaced. None of them is ever sent again.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

/// Hexadecimal digits that are kept of a fingerprint: 96 bits, which no two tokens share by chance.
const DIGITS: usize = 24;
/// This many are kept whatever their age: the wall clock, which dates them, may be wrong.
const MIN_KEPT: usize = 1024;
/// A month of refreshes every three minutes, in less than half of the largest state file.
const MAX_KEPT: usize = 16 * 1024;
const SECONDS_PER_DAY: u64 = 24 * 3600;

/// By the day (since 1970) on which they were replaced, one after the other without a separator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<u64, String>", into = "BTreeMap<u64, String>")]
pub(super) struct Spent {
    days: BTreeMap<u64, String>,
}

impl Spent {
    pub(super) fn contains(&self, fingerprint: &str) -> bool {
        digits(fingerprint).is_some_and(|digits| self.all().any(|kept| kept == digits.as_bytes()))
    }

    /// Remembers a fingerprint; of more than [`MAX_KEPT`], the newest.
    pub(super) fn insert(&mut self, fingerprint: &str, at: SystemTime) {
        let Some(digits) = digits(fingerprint) else {
            return;
        };
        let today = self.days.entry(day(at)).or_default();
        // One rotation may name the same token twice.
        if !today.ends_with(digits) {
            today.push_str(digits);
        }
        self.limit();
    }

    /// Drops what is older than `lifetime`, except the last [`MIN_KEPT`].
    pub(super) fn expire(&mut self, lifetime: Duration, now: SystemTime) {
        let oldest = day(now).saturating_sub(lifetime.as_secs().div_ceil(SECONDS_PER_DAY));
        while self.len() > MIN_KEPT
            && let Some(entry) = self.days.first_entry()
            && *entry.key() < oldest
        {
            entry.remove();
        }
    }

    /// Adds what another process remembers.
    pub(super) fn merge(&mut self, other: &Self) {
        let known: HashSet<Vec<u8>> = self.all().map(<[u8]>::to_vec).collect();
        for (day, fingerprints) in &other.days {
            let mut new = String::new();
            for digits in chunks(fingerprints).filter(|digits| !known.contains(*digits)) {
                new.push_str(std::str::from_utf8(digits).unwrap_or_default());
            }
            if !new.is_empty() {
                self.days.entry(*day).or_default().push_str(&new);
            }
        }
        self.limit();
    }

    /// An upper bound of its JSON, in bytes.
    pub(super) fn json_size(&self) -> usize {
        self.days.values().map(|day| day.len() + 40).sum()
    }

    fn len(&self) -> usize {
        self.days.values().map(|day| day.len() / DIGITS).sum()
    }

    fn all(&self) -> impl Iterator<Item = &[u8]> {
        self.days.values().flat_map(|day| chunks(day))
    }

    /// Drops the oldest ones beyond [`MAX_KEPT`].
    fn limit(&mut self) {
        let mut excess = self.len().saturating_sub(MAX_KEPT);
        while excess > 0
            && let Some(mut entry) = self.days.first_entry()
        {
            let kept = entry.get().len() / DIGITS;
            if kept <= excess {
                entry.remove();
            } else {
                entry.get_mut().drain(..excess * DIGITS);
            }
            excess = excess.saturating_sub(kept);
        }
    }
}

impl From<BTreeMap<u64, String>> for Spent {
    /// Drops what this program did not write.
    fn from(mut days: BTreeMap<u64, String>) -> Self {
        days.retain(|_, day| day.is_ascii() && day.len().is_multiple_of(DIGITS));
        let mut spent = Self { days };
        spent.limit();
        spent
    }
}

impl From<Spent> for BTreeMap<u64, String> {
    fn from(spent: Spent) -> Self {
        spent.days
    }
}

fn digits(fingerprint: &str) -> Option<&str> {
    fingerprint.get(..DIGITS)
}

fn chunks(day: &str) -> impl Iterator<Item = &[u8]> {
    day.as_bytes().chunks_exact(DIGITS)
}

fn day(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs() / SECONDS_PER_DAY
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONTH: Duration = Duration::from_secs(30 * SECONDS_PER_DAY);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000 + seconds)
    }

    fn fingerprint(n: u64) -> String {
        format!("{n:024x}{:040}", 0)
    }

    /// Replaces a token every `interval` seconds, `count` times.
    fn spent(count: u64, interval: u64) -> Spent {
        let mut spent = Spent::default();
        for n in 0..count {
            spent.insert(&fingerprint(n), at(n * interval));
            spent.expire(MONTH, at(n * interval));
        }
        spent
    }

    #[test]
    fn field_a12_spent_tokens_are_remembered_for_their_lifetime_and_bounded() {
        // Refreshes every hour, every ten minutes, and every three minutes, for a month.
        for interval in [3600, 600, 180] {
            let count = MONTH.as_secs() / interval;
            let spent = spent(count, interval);
            assert_eq!(spent.len() as u64, count, "{interval}");
            assert!(spent.contains(&fingerprint(0)) && spent.contains(&fingerprint(count - 1)));
        }
        // Three months, and seconds between refreshes.
        let old = spent(3 * 4320, 600);
        assert!(old.len() < 4320 + 200 && !old.contains(&fingerprint(0)));
        let busy = spent(20_000, 5);
        assert_eq!(busy.len(), MAX_KEPT);
        assert!(busy.contains(&fingerprint(19_999)) && !busy.contains(&fingerprint(0)));
        assert!(busy.json_size() < 512 * 1024);
    }

    #[test]
    fn a_wrong_clock_drops_none_of_the_last_thousand() {
        let mut spent = spent(720, 3600);
        let later = at(20 * 365 * SECONDS_PER_DAY);
        for (n, at) in [(720, later), (721, SystemTime::UNIX_EPOCH)] {
            spent.insert(&fingerprint(n), at);
            spent.expire(MONTH, at);
        }
        assert!((0..722).all(|n| spent.contains(&fingerprint(n))));
    }

    #[test]
    fn merging_keeps_each_once_and_contents_of_others_are_dropped() {
        let mut one = spent(10, 3600);
        let mut other = spent(20, 3600);
        other.merge(&one);
        assert_eq!(other.len(), 20);
        one.merge(&other);
        assert_eq!(one, other);
        for garbage in [r#"{"1":"é"}"#, r#"{"1":"abc"}"#, r#"{"1":""}"#] {
            let spent: Spent = serde_json::from_str(garbage).expect("read");
            assert_eq!(spent.len(), 0, "{garbage}");
        }
    }
}
