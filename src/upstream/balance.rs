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

/// What the choice sees of an address that cannot be chosen.
const NOT_ELIGIBLE: u32 = u32::MAX;

/// The most requests in flight that are distinguished: with one more, the number still fits, and is
/// not that of an address that cannot be chosen.
const MOST_IN_FLIGHT: u32 = u32::MAX - 2;

/// How busy an address is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    in_flight: u32,
    weight: u32,
}

impl Load {
    /// Whether this address has fewer requests in flight than `other`, each divided by its weight.
    fn is_less_than(self, other: Self) -> bool {
        u64::from(self.in_flight) * u64::from(other.weight)
            < u64::from(other.in_flight) * u64::from(self.weight)
    }
}

/// One worker's position in the weighted round robin.
#[derive(Debug)]
pub(super) struct RoundRobin {
    slots: Box<[Slot]>,
    /// Whether all weights are equal: the usual case, in which each counts as one.
    is_even: bool,
    heaviest: u32,
}

/// An address of the round robin.
#[derive(Debug)]
struct Slot {
    /// The share of the requests that the address should get, relative to the others; above zero.
    weight: u32,
    /// At the choice under way. [`NOT_ELIGIBLE`] if the address cannot be chosen.
    in_flight: Cell<u32>,
    /// The requests that it should have got minus those that it got, multiplied by the sum of the
    /// weights.
    credit: Cell<i64>,
}

impl Slot {
    fn is_eligible(&self) -> bool {
        self.in_flight.get() != NOT_ELIGIBLE
    }

    fn load(&self) -> Load {
        Load {
            in_flight: self.in_flight.get(),
            weight: self.weight,
        }
    }
}

impl RoundRobin {
    /// A round robin that begins with the first of the addresses with these weights; a weight of
    /// zero counts as one.
    pub(super) fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let slots = weights.into_iter().map(|weight| Slot {
            weight: weight.max(1),
            in_flight: Cell::new(NOT_ELIGIBLE),
            credit: Cell::new(0),
        });
        let slots: Box<[_]> = slots.collect();
        let heaviest = slots.iter().map(|slot| slot.weight).max().unwrap_or(1);
        Self {
            is_even: slots.iter().all(|slot| slot.weight == heaviest),
            heaviest,
            slots,
        }
    }

    /// Chooses the address for a request; the caller then counts the request as in flight.
    ///
    /// `in_flight` returns the requests in flight to the address with an index, those of all
    /// workers; `None` if the address is not eligible (not healthy, full, or tried before). It is
    /// called up to a hundred times and must be cheap; what it returns may change in between.
    /// `random` is called at most once, only above 16 eligible addresses.
    ///
    /// `None` if no address is eligible.
    pub(super) fn choose(
        &self,
        in_flight: impl Fn(usize) -> Option<u32>,
        random: impl FnOnce() -> u64,
    ) -> Option<usize> {
        if self.slots.len() > MOST_COMPARED && self.has_many(&in_flight) {
            return self.better_of_two(in_flight, random());
        }
        let mut least = NOT_ELIGIBLE;
        for (index, slot) in self.slots.iter().enumerate() {
            let in_flight = in_flight(index).map_or(NOT_ELIGIBLE, |n| n.min(MOST_IN_FLIGHT));
            slot.in_flight.set(in_flight);
            least = least.min(in_flight);
        }
        if least == NOT_ELIGIBLE {
            None
        } else if self.is_even {
            Some(self.in_turn(least + 1))
        } else {
            Some(self.in_turn_by_weight())
        }
    }

    /// Whether more addresses are eligible than are compared.
    #[cold]
    fn has_many(&self, in_flight: impl Fn(usize) -> Option<u32>) -> bool {
        let eligible = (0..self.slots.len()).filter_map(in_flight);
        eligible.take(MOST_COMPARED + 1).count() > MOST_COMPARED
    }

    /// Round robin among the addresses with at most so many requests in flight. There is at least
    /// one. The same as [by weight](Self::in_turn_by_weight) with equal weights: the highest credit
    /// comes first.
    fn in_turn(&self, most: u32) -> usize {
        let (mut first, mut highest, mut total) = (0, i64::MIN, 0);
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.in_flight.get() <= most {
                let credit = slot.credit.get() + 1;
                slot.credit.set(credit);
                total += 1;
                if credit > highest {
                    (first, highest) = (index, credit);
                }
            }
        }
        self.slots[first].credit.set(highest - total);
        first
    }

    /// Weighted round robin among the eligible addresses within the bound. There is at least one.
    #[inline(never)]
    fn in_turn_by_weight(&self) -> usize {
        let slots = || self.slots.iter().enumerate();
        let eligible = || slots().filter(|(_, slot)| slot.is_eligible());
        let loads = || eligible().map(|(_, slot)| slot.load());
        let less = |a: Load, b: Load| if b.is_less_than(a) { b } else { a };
        let least = loads().reduce(less).unwrap_or_default();
        let lightest = loads().map(|load| load.weight).min().unwrap_or(1);
        // in_flight / weight <= least.in_flight / least.weight + 1 / lightest
        let (least_weight, lightest) = (u128::from(least.weight), u128::from(lightest));
        let bound = u128::from(least.in_flight) * lightest + least_weight;
        let is_within = |load: Load| {
            u128::from(load.in_flight) * least_weight * lightest <= bound * u128::from(load.weight)
        };
        let within = || eligible().filter(|(_, slot)| is_within(slot.load()));

        let total: i64 = within().map(|(_, slot)| i64::from(slot.weight)).sum();
        let mut chosen: Option<(usize, Turn)> = None;
        for (index, slot) in within() {
            let weight = i64::from(slot.weight);
            let credit = slot.credit.get() + weight;
            slot.credit.set(credit);
            let turn = Turn {
                is_early: credit <= 0,
                missing: total - credit,
                weight,
            };
            if chosen.is_none_or(|(_, first)| turn.is_before(first)) {
                chosen = Some((index, turn));
            }
        }
        // The least loaded address is within the bound, so that there is a chosen one.
        let index = chosen.map_or(0, |(index, _)| index);
        let credit = &self.slots[index].credit;
        credit.set(credit.get() - total);
        index
    }

    /// The less loaded of two different addresses that are drawn by weight; the first one if both
    /// are equal. An idle upstream thus gets its requests by weight.
    fn better_of_two(
        &self,
        in_flight: impl Fn(usize) -> Option<u32>,
        random: u64,
    ) -> Option<usize> {
        let mut random = Random(random);
        let first = self.draw(&in_flight, None, &mut random)?;
        let Some(second) = self.draw(&in_flight, Some(first.0), &mut random) else {
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
        in_flight: &impl Fn(usize) -> Option<u32>,
        excluded: Option<usize>,
        random: &mut Random,
    ) -> Option<(usize, Load)> {
        let n = self.slots.len();
        let eligible = |index: usize| {
            let in_flight = in_flight(index).filter(|_| excluded != Some(index))?;
            let weight = self.slots[index].weight;
            Some((index, Load { in_flight, weight }))
        };
        for _ in 0..MOST_DRAWS {
            let Some(drawn) = eligible(random.below(n)) else {
                continue;
            };
            if random.below(self.heaviest as usize) < drawn.1.weight as usize {
                return Some(drawn);
            }
        }
        let start = random.below(n);
        (start..n).chain(0..start).find_map(eligible)
    }
}

/// When an address is next in the round robin: the address that would be the first to lag a whole
/// request behind its share comes first, unless it is ahead of its share.
///
/// With this order (earliest deadline first) no address is ever a whole request away from its share
/// while the eligible addresses stay the same. Taking the highest credit, as "smooth" weighted
/// round robin does, exceeds that with many different weights.
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
