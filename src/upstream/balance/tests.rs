//! Properties of the choice, and simulations with clients that send a request after the other.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use proptest::prelude::*;

use super::*;

/// Addresses of the same weight.
fn even(n: usize) -> RoundRobin {
    RoundRobin::new(std::iter::repeat_n(10, n))
}

fn no_random() -> u64 {
    panic!("few addresses need no random number")
}

/// Up to 16 addresses with a weight.
fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        proptest::collection::vec(1..=4_u32, 1..=16),
        proptest::collection::vec(1..=1000_u32, 1..=16),
        proptest::collection::vec(prop_oneof![Just(1_u32), Just(10), Just(100)], 1..=16),
    ]
}

#[test]
fn nothing_is_chosen_from_nothing() {
    assert_eq!(RoundRobin::new([]).choose(|_| None, no_random), None);
    assert_eq!(even(40).choose(|_| None, no_random), None);
    assert_eq!(RoundRobin::new([3, 1]).choose(|_| None, no_random), None);
    // A weight of zero would divide by zero.
    assert!(
        RoundRobin::new([0, 0])
            .choose(|_| Some(0), no_random)
            .is_some()
    );
    assert_eq!(rendezvous(1, std::iter::empty()), None);
}

#[test]
fn a_single_eligible_address_takes_all_and_leaves_no_trace() {
    for round_robin in [even(20), RoundRobin::new(1..=20)] {
        for _ in 0..100 {
            let chosen = round_robin.choose(|index| (index == 13).then_some(u32::MAX), no_random);
            assert_eq!(chosen, Some(13));
        }
        assert!(round_robin.slots.iter().all(|slot| slot.credit.get() == 0));
    }
}

#[test]
fn equal_addresses_take_turns_in_order() {
    let round_robin = even(3);
    let turns: Vec<_> = (0..7)
        .filter_map(|_| round_robin.choose(|_| Some(5), no_random))
        .collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0]);
}

#[test]
fn the_greatest_numbers_do_not_overflow() {
    let weights = |index: u32| if index == 3 { 1 } else { u32::MAX };
    for round_robin in [even(16), RoundRobin::new((0..16).map(weights))] {
        for turn in 0..100 {
            let in_flight = |index: usize| {
                let is_odd = (index + turn).is_multiple_of(2);
                (index != 5).then_some(u32::MAX - u32::from(is_odd))
            };
            let chosen = round_robin.choose(in_flight, no_random);
            assert!(chosen.is_some_and(|chosen| chosen != 5));
        }
    }
}

#[test]
fn many_addresses_get_traffic_by_weight_while_idle() {
    // Of 40 addresses, every third is not eligible; the last one has ten times the weight.
    let round_robin = RoundRobin::new((0..40).map(|index| if index == 38 { 10 } else { 1 }));
    let mut random = Random(7);
    let load = |index: usize| (!index.is_multiple_of(3)).then_some(0);
    let mut counts = [0_u32; 40];
    for _ in 0..70_000 {
        let seed = random.below(usize::MAX) as u64;
        counts[round_robin.choose(load, || seed).unwrap()] += 1;
    }
    // 26 are eligible; the weights add up to 35.
    for (index, count) in counts.into_iter().enumerate() {
        match index {
            _ if index.is_multiple_of(3) => assert_eq!(count, 0, "{index}"),
            38 => assert!((19_000..21_000).contains(&count), "{counts:?}"),
            _ => assert!((1_800..2_200).contains(&count), "{counts:?}"),
        }
    }
}

#[test]
fn of_many_addresses_the_busy_ones_get_less() {
    // One of 20 is full of requests: it is chosen only if it is drawn twice, which never happens.
    let round_robin = even(20);
    let load = |index| Some(if index == 4 { 1000 } else { 3 });
    for seed in 0..10_000 {
        assert_ne!(round_robin.choose(load, || seed), Some(4));
    }
}

#[test]
fn a_needle_among_many_addresses_is_found_even_if_no_draw_hits_it() {
    // 17 of 5,000 are eligible when they are counted, and only one after that.
    let round_robin = even(5000);
    let calls = Cell::new(0);
    let load = |index: usize| {
        calls.set(calls.get() + 1);
        let is_eligible = if calls.get() <= 17 {
            true
        } else {
            index == 4321
        };
        is_eligible.then_some(0)
    };
    assert_eq!(round_robin.choose(load, || 3), Some(4321));
}

proptest! {
    #[test]
    fn shares_follow_the_weights_within_one_request_while_idle(
        weights in weights(),
        requests in 1..400_u32,
    ) {
        let round_robin = RoundRobin::new(weights.iter().copied());
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let mut counts = vec![0_u64; weights.len()];
        for sent in 1..=u64::from(requests) {
            let chosen = round_robin.choose(|_| Some(0), no_random);
            counts[chosen.unwrap()] += 1;
            for (count, weight) in counts.iter().zip(&weights) {
                // |count - sent * weight / total| < 1
                let difference = (count * total).abs_diff(sent * u64::from(*weight));
                prop_assert!(
                    difference < total || weights.len() == 1,
                    "{counts:?} of {sent} for {weights:?}"
                );
            }
        }
    }

    #[test]
    fn in_flight_never_spreads_by_more_than_one_request(
        weights in weights(),
        steps in proptest::collection::vec((any::<bool>(), any::<u16>()), 1..300),
    ) {
        let round_robin = RoundRobin::new(weights.iter().copied());
        let mut in_flight = vec![0_u32; weights.len()];
        let lightest = f64::from(*weights.iter().min().unwrap());
        for (is_end, which) in steps {
            if is_end {
                let ended = usize::from(which) % weights.len();
                in_flight[ended] = in_flight[ended].saturating_sub(1);
                continue;
            }
            let load = |index: usize| Some(in_flight[index]);
            let chosen = round_robin.choose(load, no_random).unwrap();
            let relative = |index: usize| f64::from(in_flight[index]) / f64::from(weights[index]);
            let least = (0..weights.len()).map(relative).fold(f64::INFINITY, f64::min);
            prop_assert!(
                relative(chosen) <= least + 1.0 / lightest + 1e-9,
                "{chosen} of {in_flight:?} for {weights:?}"
            );
            in_flight[chosen] += 1;
        }
    }

    #[test]
    fn every_eligible_address_gets_traffic_and_no_other(
        weights in weights(),
        is_in in proptest::collection::vec(any::<bool>(), 16),
    ) {
        let round_robin = RoundRobin::new(weights.iter().copied());
        let load = |index: usize| is_in[index].then_some(0);
        let eligible: BTreeSet<_> = (0..weights.len()).filter(|index| is_in[*index]).collect();
        let total: u32 = eligible.iter().map(|index| weights[*index]).sum();
        let chosen: BTreeSet<_> = (0..2 * total)
            .filter_map(|_| round_robin.choose(load, no_random))
            .collect();
        prop_assert_eq!(chosen, eligible);
    }

    #[test]
    fn any_loads_are_survived(
        addresses in proptest::collection::vec(
            (any::<u32>(), proptest::option::of(any::<u32>())),
            0..40,
        ),
        seed in any::<u64>(),
    ) {
        let round_robin = RoundRobin::new(addresses.iter().map(|(weight, _)| *weight));
        let in_flight = |index: usize| addresses[index].1;
        let is_eligible = |index: usize| in_flight(index).is_some();
        for turn in 0..20 {
            let chosen = round_robin.choose(in_flight, || seed.wrapping_add(turn));
            prop_assert_eq!(chosen.is_some(), (0..addresses.len()).any(is_eligible));
            prop_assert!(chosen.is_none_or(is_eligible));
        }
    }

    /// The fast choice among equal weights is the one by weight.
    #[test]
    fn equal_weights_need_no_weighing(
        n in 1..=16_usize,
        loads in proptest::collection::vec(
            proptest::collection::vec(proptest::option::of(0..4_u32), 16),
            1..50,
        ),
    ) {
        let round_robin = even(n);
        let by_weight = RoundRobin {
            is_even: false,
            ..even(n)
        };
        for loads in loads {
            let chosen = |round_robin: &RoundRobin| {
                round_robin.choose(|index| loads[index], no_random)
            };
            prop_assert_eq!(chosen(&round_robin), chosen(&by_weight));
        }
    }

    #[test]
    fn a_removed_address_moves_only_its_own_clients(
        ids in proptest::collection::btree_set(any::<u64>(), 2..20),
        keys in proptest::collection::vec(any::<u64>(), 1..100),
        removed in any::<usize>(),
    ) {
        let ids: Vec<_> = ids.into_iter().collect();
        let removed = removed % ids.len();
        let all = || ids.iter().copied().enumerate();
        for key in keys {
            let before = rendezvous(key, all());
            let after = rendezvous(key, all().filter(|(index, _)| *index != removed));
            if before == Some(removed) {
                prop_assert!(after.is_some_and(|after| after != removed));
            } else {
                prop_assert_eq!(after, before);
            }
            // The order of the addresses does not matter.
            prop_assert_eq!(rendezvous(key, all().collect::<Vec<_>>().into_iter().rev()), before);
        }
    }
}

#[test]
fn affinity_spreads_clients_evenly_even_if_keys_and_ids_are_consecutive() {
    let mut counts = [0; 5];
    for key in 0..10_000 {
        counts[rendezvous(key, (0..5).map(|id| (id, id as u64))).unwrap()] += 1;
    }
    assert!(
        counts.iter().all(|count| (1_850..2_150).contains(count)),
        "{counts:?}"
    );
}

/// An address in a simulation.
#[derive(Clone, Copy)]
struct Server {
    weight: u32,
    behaviour: Behaviour,
}

#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    /// Responds after this time on average, exponentially distributed.
    Responds(f64),
    /// Responds to no request within a minute.
    Hangs,
    /// Fails after a millisecond; the request stays counted for a second more.
    Fails,
}

/// What happens in a simulation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Send,
    End(usize),
    /// The end of the second in which a failed request stays counted.
    Forget(usize),
}

/// The shares of the servers, in percent of `requests`, with clients that send the next request as
/// soon as the last one has ended. The times are random, and the same in each run.
fn simulate(servers: &[Server], clients: usize, requests: u32) -> Vec<f64> {
    const NANOS: f64 = 1e9;
    let mut random = Random(1);
    let mut events = BinaryHeap::new();
    for client in 0..clients {
        events.push(Reverse((client as u64, client, Event::Send)));
    }
    let mut number = clients;
    let round_robin = RoundRobin::new(servers.iter().map(|server| server.weight));
    let mut in_flight = vec![0; servers.len()];
    let mut counts = vec![0; servers.len()];
    while let Some(Reverse((now, _, event))) = events.pop() {
        if counts.iter().sum::<u32>() == requests {
            break;
        }
        let mut push = |delay: f64, event| {
            number += 1;
            events.push(Reverse((now + (delay * NANOS) as u64, number, event)));
        };
        match event {
            Event::Send => {
                let load = |index: usize| Some(in_flight[index]);
                let chosen = round_robin.choose(load, no_random).unwrap();
                in_flight[chosen] += 1;
                counts[chosen] += 1;
                let unit = (random.below(1 << 53) + 1) as f64 / (1_u64 << 53) as f64;
                let duration = match servers[chosen].behaviour {
                    Behaviour::Responds(mean) => -mean * unit.ln(),
                    Behaviour::Hangs => 60.0,
                    Behaviour::Fails => 0.001,
                };
                push(duration, Event::End(chosen));
            }
            Event::End(index) => {
                if servers[index].behaviour == Behaviour::Fails {
                    push(1.0, Event::Forget(index));
                } else {
                    in_flight[index] -= 1;
                }
                push(1e-6, Event::Send);
            }
            Event::Forget(index) => in_flight[index] -= 1,
        }
    }
    let percent = |count| 100.0 * f64::from(count) / f64::from(requests);
    counts.into_iter().map(percent).collect()
}

const GOOD: Server = Server {
    weight: 1,
    behaviour: Behaviour::Responds(0.05),
};

#[test]
fn an_address_that_never_responds_gets_almost_nothing() {
    let hangs = Server {
        behaviour: Behaviour::Hangs,
        ..GOOD
    };
    let shares = simulate(&[GOOD, GOOD, hangs], 32, 6000);
    assert!(shares[2] > 0.0 && shares[2] <= 0.3, "{shares:?}");
}

#[test]
fn an_address_that_fails_at_once_gets_little_since_failures_stay_counted() {
    let fails = Server {
        behaviour: Behaviour::Fails,
        ..GOOD
    };
    let shares = simulate(&[GOOD, GOOD, fails], 32, 20_000);
    assert!(shares[2] > 0.0 && shares[2] <= 3.0, "{shares:?}");
}

#[test]
fn weights_hold_at_any_number_of_clients() {
    let heavy = Server { weight: 10, ..GOOD };
    for clients in [1, 4, 32] {
        let shares = simulate(&[heavy, GOOD], clients, 20_000);
        assert!((shares[0] - 90.9).abs() < 0.2, "{clients}: {shares:?}");
    }
}

#[test]
fn equal_addresses_get_equal_shares_and_a_slow_one_less() {
    for clients in [2, 64] {
        let shares = simulate(&[GOOD; 3], clients, 20_000);
        assert!(
            shares.iter().all(|share| (share - 33.3).abs() < 0.5),
            "{clients}: {shares:?}"
        );
    }
    let slow = Server {
        behaviour: Behaviour::Responds(0.5),
        ..GOOD
    };
    let shares = simulate(&[GOOD, GOOD, slow], 32, 20_000);
    assert!((3.0..8.0).contains(&shares[2]), "{shares:?}");
}
