//! The results of a lane.

use std::{fmt::Write as _, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{Lane, program::Sample, verdict::Why};

/// The most issuer calls in ten seconds.
const MOST_CALLS: usize = 40;
/// Memory and descriptors are compared by fifths of the time.
const PARTS: u64 = 5;
/// For shorter times, memory has no level yet.
const SHORTEST: Duration = Duration::from_secs(60);

/// The results of a lane as text, and what is wrong with them.
#[derive(Default)]
pub struct Table {
    pub text: String,
    pub problems: Vec<String>,
}

impl Table {
    pub fn new(lane: &Lane, duration: Duration) -> Self {
        let mut table = Self::default();
        table.line(&format!("{}: {:?}, {duration:?}", lane.name, lane.rules));
        table.requests(lane);
        table.issuer(lane);
        table.line(&format!("events: {:?}", lane.events.lock().unwrap()));
        table.resources(lane, duration);
        let panics = lane.process.panics.load(Relaxed);
        if panics > 0 {
            table.problem(lane, &format!("{panics} panics"));
        }
        table
    }

    fn line(&mut self, text: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{text}");
    }

    fn count(&mut self, name: &str, count: u64) {
        self.line(&format!("{count:>10}  {name}"));
    }

    fn problem(&mut self, lane: &Lane, text: &str) {
        self.problems.push(format!("{}: {text}", lane.name));
    }

    fn requests(&mut self, lane: &Lane) {
        let tally = lane.tally.lock().unwrap();
        let explained: u64 = tally.explained.values().sum();
        let unexplained: u64 = tally.unexplained.values().sum();
        self.count("requests", tally.ok + explained + unexplained);
        self.count("ok", tally.ok);
        for why in Why::ALL {
            let count = tally.explained.get(&why).copied().unwrap_or_default();
            self.count(&format!("explained: {why:?}"), count);
        }
        self.count("unexplained", unexplained);
        for (problem, count) in &tally.unexplained {
            self.count(&format!("unexplained: {problem}"), *count);
            self.problem(lane, &format!("{count} times: {problem}"));
        }
    }

    fn issuer(&mut self, lane: &Lane) {
        let issuer = lane.issuer.lock().unwrap();
        let counts = issuer.counts;
        self.count("issuer calls", counts.calls);
        self.count("issuer calls that failed", counts.failed);
        self.count("grants", counts.grants);
        self.count("grants in odd or late responses", counts.odd);
        self.count("families revoked", counts.revoked);
        self.count(
            "families revoked because a kill lost the response",
            counts.revoked_after_kill,
        );
        let window = Duration::from_secs(10);
        let calls = &issuer.calls;
        let within = |begin: usize| {
            let later = calls[begin..].iter();
            later
                .take_while(|call| **call - calls[begin] < window)
                .count()
        };
        let most = (0..calls.len()).map(within).max().unwrap_or_default();
        self.count("issuer calls in ten seconds, at most", most as u64);
        if counts.revoked > 0 {
            self.problem(lane, &format!("{} families revoked", counts.revoked));
        }
        if most > MOST_CALLS {
            self.problem(lane, &format!("{most} issuer calls in ten seconds"));
        }
    }

    /// Memory and descriptors are flat if the median of the last fifth of the time is not above
    /// that of the second fifth, by more than what depends on the load at the moment. A process
    /// that is restarted begins anew, so it is not compared.
    fn resources(&mut self, lane: &Lane, duration: Duration) {
        let samples = lane.process.samples.lock().unwrap();
        let length = u64::try_from(duration.as_millis()).unwrap() / PARTS;
        let medians = |number: u64| {
            let is_within = |sample: &&Sample| sample.age / length == number;
            let part = || samples.iter().filter(is_within);
            (
                median(part().map(|sample| sample.memory)),
                median(part().map(|sample| sample.descriptors)),
            )
        };
        let usage: Vec<(u64, usize)> = (0..PARTS).map(medians).collect();
        self.line(&format!(
            "memory in KiB and descriptors, medians of each fifth: {usage:?}"
        ));
        let ((memory, descriptors), (memory_at_end, descriptors_at_end)) = (usage[1], usage[4]);
        let is_flat = memory_at_end <= memory + memory / 10 + 4096
            && descriptors_at_end <= descriptors + descriptors / 4 + 16;
        if !lane.rules.is_restarted && duration >= SHORTEST && !is_flat {
            self.problem(lane, &format!("memory or descriptors grow: {usage:?}"));
        }
    }
}

fn median<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
