//! The choice of the address for a request: weighted round robin among the addresses that are not
//! busier than the others. Pure: no clock, no I/O, no allocation.
//!
//! An address that is slow or does not respond keeps its requests in flight, so that it gets no
//! further ones: the bound on the difference limits how many requests wait for it, without any
//! knowledge of its health. Round robin within the bound spreads requests by weight while there is
//! little to do, where the least loaded address alone would always be the first one.

use std::cell::Cell;

/// With more eligible addresses than this, two random ones are compared instead of all: each
/// comparison reads a counter that other workers write.
const MOST_COMPARED: usize = 16;

/// Random draws before the choice among many addresses takes the next eligible address in order.
const MOST_DRAWS: usize = 64;

/// How busy an address is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Requests in flight, those of all workers.
    pub(super) in_flight: u32,
    /// The share of the requests that the address should get, relative to the others; above zero.
    pub(super) weight: u32,
}

impl Load {
    /// Whether this address has fewer requests in flight than `other`, each divided by its weight.
    fn is_less_than(self, other: Self) -> bool {
        u64::from(self.in_flight) * u64::from(other.weight)
            < u64::from(other.in_flight) * u64::from(self.weight)
    }
}

/// An address that may be chosen: its index and its load.
type Candidate = (usize, Load);

/// One worker's position in the weighted round robin.
#[derive(Debug)]
pub(super) struct RoundRobin {
    /// For each address the requests that it should have got minus those that it got, multiplied by
    /// the sum of the weights.
    credits: Box<[Cell<i64>]>,
    /// The greatest weight that a draw has seen, for draws by weight.
    heaviest: Cell<u32>,
}

impl RoundRobin {
    /// A round robin that begins with the first of `n` addresses.
    pub(super) fn new(n: usize) -> Self {
        Self {
            credits: vec![Cell::new(0); n].into(),
            heaviest: Cell::new(1),
        }
    }

    /// Chooses the address for a request; the caller then counts the request as in flight.
    ///
    /// `load` returns the load of the address with an index, `None` if the address is not eligible
    /// (not healthy, full, or tried before). It is called up to a hundred times and must be cheap; what
    /// it returns may change in between. `random` is called at most once, only above 16 eligible
    /// addresses.
    ///
    /// `None` if no address is eligible.
    pub(super) fn choose(
        &self,
        load: impl Fn(usize) -> Option<Load>,
        random: impl FnOnce() -> u64,
    ) -> Option<usize> {
        let load = |index: usize| load(index).filter(|load| load.weight > 0);
        let mut candidates = [(0, Load::default()); MOST_COMPARED];
        let mut count = 0;
        for index in 0..self.credits.len() {
            let Some(load_of_index) = load(index) else {
                continue;
            };
            if count == MOST_COMPARED {
                return self.better_of_two(load, random());
            }
            candidates[count] = (index, load_of_index);
            count += 1;
        }
        match &candidates[..count] {
            [] => None,
            [(only, _)] => Some(*only),
            several => Some(self.in_turn(several)),
        }
    }

    /// Weighted round robin among the candidates within the bound. There is at least one.
    fn in_turn(&self, candidates: &[Candidate]) -> usize {
        let mut least = candidates[0].1;
        let (mut lightest, mut heaviest) = (least.weight, least.weight);
        for (_, load) in &candidates[1..] {
            if load.is_less_than(least) {
                least = *load;
            }
            lightest = lightest.min(load.weight);
            heaviest = heaviest.max(load.weight);
        }
        // The usual case, which needs no multiplication.
        let is_even = lightest == heaviest;
        // in_flight / weight <= least.in_flight / least.weight + 1 / lightest
        let (least_weight, lightest) = (u128::from(least.weight), u128::from(lightest));
        let bound = u128::from(least.in_flight) * lightest + least_weight;
        let is_within = |load: &Load| {
            if is_even {
                return load.in_flight <= least.in_flight.saturating_add(1);
            }
            u128::from(load.in_flight) * least_weight * lightest <= bound * u128::from(load.weight)
        };
        let within = || candidates.iter().filter(|(_, load)| is_within(load));

        let total: i64 = within().map(|(_, load)| i64::from(load.weight)).sum();
        let mut chosen: Option<(usize, Turn)> = None;
        for (index, load) in within() {
            let weight = i64::from(load.weight);
            let credit = self.credits[*index].get() + weight;
            self.credits[*index].set(credit);
            let turn = Turn {
                is_early: credit <= 0,
                missing: total - credit,
                weight,
            };
            if chosen.is_none_or(|(_, first)| turn.is_before(first)) {
                chosen = Some((*index, turn));
            }
        }
        // The least loaded candidate is within the bound, so that there is a chosen one.
        let index = chosen.map_or(candidates[0].0, |(index, _)| index);
        let credit = &self.credits[index];
        credit.set(credit.get() - total);
        index
    }

    /// The less loaded of two different addresses that are drawn by weight; the first one if both
    /// are equal. An idle upstream thus gets its requests by weight.
    fn better_of_two(&self, load: impl Fn(usize) -> Option<Load>, random: u64) -> Option<usize> {
        let mut random = Random(random);
        let first = self.draw(&load, None, &mut random)?;
        let Some(second) = self.draw(&load, Some(first.0), &mut random) else {
            return Some(first.0);
        };
        let better = if second.1.is_less_than(first.1) {
            second
        } else {
            first
        };
        Some(better.0)
    }

    /// Draws an eligible address other than `excluded`, with a probability in proportion to its
    /// weight.
    fn draw(
        &self,
        load: &impl Fn(usize) -> Option<Load>,
        excluded: Option<usize>,
        random: &mut Random,
    ) -> Option<Candidate> {
        let n = self.credits.len();
        let eligible = |index: usize| {
            let is_excluded = excluded == Some(index);
            Some((index, load(index).filter(|_| !is_excluded)?))
        };
        for _ in 0..MOST_DRAWS {
            let Some(drawn) = eligible(random.below(n)) else {
                continue;
            };
            let weight = drawn.1.weight;
            self.heaviest.set(self.heaviest.get().max(weight));
            if random.below(self.heaviest.get() as usize) < weight as usize {
                return Some(drawn);
            }
        }
        let start = random.below(n);
        (start..n).chain(0..start).find_map(eligible)
    }
}

/// When a candidate is next in the round robin: the candidate that would be the first to lag a whole
/// request behind its share comes first, unless it is ahead of its share.
///
/// With this order (earliest deadline first) no address is ever a whole request away from its share
/// while the candidates stay the same. Taking the highest credit, as "smooth" weighted round robin
/// does, exceeds that with many different weights.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// Whether the address has already got more than its share.
    is_early: bool,
    /// The credit that is missing to lag a whole request behind.
    missing: i64,
    /// The credit that each choice adds.
    weight: i64,
}

impl Turn {
    fn is_before(self, other: Self) -> bool {
        if self.is_early != other.is_early {
            return other.is_early;
        }
        if self.weight == other.weight {
            return self.missing < other.missing;
        }
        i128::from(self.missing) * i128::from(other.weight)
            < i128::from(other.missing) * i128::from(self.weight)
    }
}

/// Affinity: the address that gets the requests of the client with this `key`, by rendezvous
/// (highest random weight) hashing. An address that is removed moves only its own clients, to all
/// the others alike.
///
/// `ids` yields the index and a stable id of each eligible address. `None` if there is none.
pub(super) fn rendezvous(key: u64, ids: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
    let key = mix(key);
    ids.max_by_key(|(_, id)| (mix(key ^ mix(*id)), *id))
        .map(|(index, _)| index)
}

/// Random numbers from one random number (SplitMix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// The next number below `n`, which is above zero.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // The upper half of the product is evenly distributed, without a division.
        let scaled = u128::from(mix(self.0)) * n as u128;
        (scaled >> 64) as usize
    }
}

/// Distributes similar numbers evenly: the last step of SplitMix64, a bijection.
fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests;
