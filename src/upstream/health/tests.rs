//! The states of an address, event by event.

use std::sync::Barrier;

use proptest::prelude::*;

use super::*;

const SLOW_START: Duration = Duration::from_secs(10);

/// The random number without jitter.
const MIDDLE: u64 = 200;

fn at(seconds: f64) -> Moment {
    Moment::since_boot(Duration::from_secs(1000) + Duration::from_secs_f64(seconds))
}

fn health() -> Arc<Health> {
    Arc::new(Health::new(2, SLOW_START, true, at(0.0)))
}

fn fail(health: &Health, seconds: f64) -> Option<Transition> {
    health.failed(0, at(seconds), Reason::Status, MIDDLE, || Some(()))
}

fn succeed(health: &Health, seconds: f64) -> Option<Transition> {
    health.succeeded(0, || at(seconds))
}

fn transition(
    (from, to): (State, State),
    reason: Reason,
    until: Option<Moment>,
) -> Option<Transition> {
    Some(Transition {
        from,
        to,
        reason,
        until,
    })
}

/// Five failures at this time.
fn eject(health: &Health, seconds: f64) -> Option<Transition> {
    let results: Vec<_> = (0..5).map(|_| fail(health, seconds)).collect();
    assert_eq!(results[..4], [None; 4]);
    results[4]
}

#[test]
fn two_connections_in_a_row_make_it_unreachable_and_one_brings_it_back() {
    let health = health();
    assert_eq!(health.connect_failed(at(1.0)), None);
    assert_eq!(health.connected(at(1.1)), None, "the row begins anew");
    assert_eq!(health.connect_failed(at(1.2)), None);
    assert!(health.is_available());
    assert_eq!(
        health.connect_failed(at(1.3)),
        transition((State::In, State::Unreachable), Reason::Connect, None)
    );
    assert!(!health.is_available() && !health.is_ejected());
    assert_eq!(health.connect_failed(at(1.4)), None, "counted once");
    assert_eq!(health.tick(at(1000.0)), None, "time alone does not help");
    // A pooled connection may still work.
    assert_eq!(succeed(&health, 1000.0), None);
    assert_eq!(
        health.connected(at(1000.0)),
        transition((State::Unreachable, State::In), Reason::Connect, None)
    );
    assert!(health.is_available());
    assert_eq!(health.connected(at(1000.1)), None);
    assert_eq!(health.connect_failed(at(1000.2)), None, "a new row");
}

#[test]
fn five_failures_in_a_row_eject_and_a_success_resets_the_row() {
    let health = health();
    for seconds in [0.0, 0.1, 0.2, 0.3] {
        assert_eq!(fail(&health, seconds), None);
    }
    assert_eq!(succeed(&health, 0.4), None);
    let until = Some(at(11.0));
    assert_eq!(
        eject(&health, 1.0),
        transition((State::In, State::Failing), Reason::Status, until)
    );
    assert!(!health.is_available() && health.is_ejected() && !health.is_trial());
    assert_eq!(
        health.snapshot(),
        Snapshot {
            state: State::Failing,
            reason: Some(Reason::Status),
            since: at(1.0),
            until,
            ejections: 1,
            weight_tenths: 10,
        }
    );
    // Requests that were under way.
    assert_eq!(fail(&health, 1.1), None);
    assert_eq!(succeed(&health, 1.2), None);
    assert!(!health.is_available());
}

#[test]
fn failures_are_counted_over_all_workers() {
    let health = health();
    for worker in [0, 1, 0, 1] {
        let failed = health.failed(worker, at(0.0), Reason::Broken, 0, || Some(()));
        assert_eq!(failed, None);
    }
    let failed = health.failed(1, at(0.0), Reason::Timeout, 0, || Some(()));
    assert_eq!(failed.map(|failed| failed.reason), Some(Reason::Timeout));
    // A worker that does not exist has no counters, and breaks nothing.
    assert_eq!(
        health.failed(9, at(0.0), Reason::Status, 0, || Some(())),
        None
    );
    assert_eq!(health.succeeded(9, || at(0.0)), None);
}

#[test]
fn half_of_twenty_requests_in_ten_seconds_eject() {
    // Failures and successes alternate: never two failures in a row.
    let pairs = |health: &Health, seconds: f64, pairs: usize| {
        (0..pairs)
            .filter_map(|_| {
                assert_eq!(succeed(health, seconds), None);
                fail(health, seconds)
            })
            .next()
    };
    let health = health();
    assert_eq!(pairs(&health, 1.0, 9), None, "18 requests are too few");
    assert!(pairs(&health, 1.0, 1).is_some());
    // One failed trial is enough, though the row is short.
    assert!(health.tick(at(11.0)).is_some());
    assert!(fail(&health, 11.0).is_some());

    let health = self::health();
    assert_eq!(pairs(&health, 1.0, 9), None);
    for seconds in [4.0, 8.0, 11.5] {
        health.tick(at(seconds));
    }
    assert_eq!(pairs(&health, 11.5, 9), None, "the first 18 are too old");
    assert!(pairs(&health, 11.5, 1).is_some());

    // Without a tick in between.
    let health = self::health();
    assert_eq!(pairs(&health, 1.0, 9), None);
    assert_eq!(pairs(&health, 30.0, 9), None);

    let health = self::health();
    assert_eq!(succeed(&health, 1.0), None);
    assert_eq!(pairs(&health, 1.0, 100), None, "one less than half failed");
}

#[test]
fn a_sole_address_or_more_than_half_are_not_ejected() {
    let health = health();
    for _ in 0..100 {
        let failed = health.failed(0, at(0.0), Reason::Broken, 0, || None::<()>);
        assert_eq!(failed, None);
    }
    assert!(health.is_available() && !health.is_ejected());
    assert_eq!(health.snapshot().ejections, 0);
    // As soon as it may be ejected, the next failure does.
    assert!(fail(&health, 1.0).is_some_and(|failed| failed.until == Some(at(11.0))));
}

#[test]
fn the_permission_to_eject_is_asked_for_only_when_needed_and_held_until_published() {
    struct Guard<'a>(&'a Health);
    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            assert!(self.0.is_ejected(), "the guard is dropped too early");
        }
    }
    let health = health();
    for _ in 0..4 {
        health.failed(0, at(0.0), Reason::Status, 0, || -> Option<()> {
            panic!("not to be ejected yet")
        });
    }
    let failed = health.failed(0, at(0.0), Reason::Status, 0, || Some(Guard(&health)));
    assert!(failed.is_some());
}

#[test]
fn after_its_time_it_gets_one_request_at_a_time_until_one_succeeds() {
    let health = health();
    assert!(health.try_begin_trial().is_none(), "it is in");
    eject(&health, 0.0);
    // A request that was under way ends the row, not the ejection.
    assert_eq!(succeed(&health, 0.1), None);
    assert_eq!(health.tick(at(9.9)), None);
    assert!(health.try_begin_trial().is_none());
    assert_eq!(
        health.tick(at(10.0)),
        transition((State::Failing, State::Trial), Reason::Status, None)
    );
    assert_eq!(health.tick(at(10.1)), None);
    assert!(health.is_available() && health.is_trial() && health.is_ejected());
    let trial = health.try_begin_trial().unwrap();
    assert!(!health.is_available() && health.try_begin_trial().is_none());
    // The client went away: there was no verdict, so that the next request is a trial.
    drop(trial);
    assert!(health.is_available());
    let trial = health.try_begin_trial().unwrap();
    assert_eq!(
        succeed(&health, 11.0),
        transition((State::Trial, State::In), Reason::Status, None)
    );
    drop(trial);
    assert!(health.is_available() && !health.is_trial() && !health.is_ejected());
    assert_eq!(health.snapshot().reason, None);
    // The five failures are forgotten.
    assert_eq!(fail(&health, 11.1), None);
}

#[test]
fn a_failed_trial_ejects_again_for_longer() {
    let health = health();
    let mut now = 0.0;
    eject(&health, now);
    // 10, 20, 30 s … and never longer than five minutes.
    for times in 2..40 {
        now = health
            .snapshot()
            .until
            .unwrap()
            .elapsed_since_boot()
            .as_secs_f64()
            - 1000.0;
        assert!(health.tick(at(now)).is_some());
        let seconds = f64::from(times * 10).min(300.0);
        assert_eq!(
            fail(&health, now),
            transition(
                (State::Trial, State::Failing),
                Reason::Status,
                Some(at(now + seconds))
            )
        );
    }
    assert_eq!(health.snapshot().ejections, 39);

    // If it may not be ejected again, it goes on with trials.
    now += 300.0;
    assert!(health.tick(at(now)).is_some());
    let failed = health.failed(0, at(now), Reason::Broken, 0, || None::<()>);
    assert_eq!((failed, health.is_trial()), (None, true));
}

#[test]
fn each_good_ten_minutes_take_one_off() {
    let health = health();
    let mut now = 0.0;
    for times in 1..=3 {
        let until = eject(&health, now).unwrap().until;
        assert_eq!(until, Some(at(now + f64::from(times * 10))), "{times}");
        now += f64::from(times * 10);
        assert!(health.tick(at(now)).is_some());
        assert!(succeed(&health, now).is_some());
    }
    // 19 minutes are one: the fourth ejection is the third again.
    now += 19.0 * 60.0;
    assert_eq!(health.tick(at(now)), None);
    assert_eq!(eject(&health, now).unwrap().until, Some(at(now + 30.0)));
    now += 30.0;
    health.tick(at(now));
    succeed(&health, now);
    // Several at once, as after a suspend; never below none.
    now += 100.0 * 60.0;
    health.tick(at(now));
    assert_eq!(eject(&health, now).unwrap().until, Some(at(now + 10.0)));
}

#[test]
fn ejections_differ_by_a_fifth() {
    for (times, random, millis) in [
        (1, 0, 8_000),
        (1, 200, 10_000),
        (1, 400, 12_000),
        (1, 401, 8_000),
        (2, 400, 24_000),
        (30, 0, 240_000),
        (30, 400, 300_000),
        (u32::MAX, 0, 300_000),
        (u32::MAX, u64::MAX, 300_000),
    ] {
        let expected = Duration::from_millis(millis);
        assert_eq!(ejection(times, random), expected, "{times}, {random}");
    }
}

#[test]
fn failing_and_then_unreachable_comes_back_by_a_connection() {
    let health = health();
    eject(&health, 0.0);
    assert_eq!(health.connect_failed(at(1.0)), None);
    assert_eq!(
        health.connect_failed(at(1.1)),
        transition((State::Failing, State::Unreachable), Reason::Connect, None)
    );
    assert_eq!(health.snapshot().ejections, 1, "it was out already");
    assert_eq!(health.tick(at(60.0)), None, "the ejection is over");
    assert!(health.connected(at(60.0)).is_some());
    assert!(health.is_available());
}

#[test]
fn what_failed_before_does_not_count_after_the_return() {
    let health = health();
    // Four failures in a row, and ten of 20 requests.
    for seconds in [0.0; 6] {
        assert_eq!(succeed(&health, seconds), None);
        assert_eq!(fail(&health, seconds), None);
    }
    for seconds in [0.0; 4] {
        assert_eq!(succeed(&health, seconds), None);
    }
    for seconds in [0.0; 3] {
        assert_eq!(fail(&health, seconds), None);
    }
    health.connect_failed(at(0.0));
    health.connect_failed(at(0.0));
    assert_eq!(fail(&health, 0.0), None, "it is out already");
    assert!(health.connected(at(1.0)).is_some());
    assert_eq!(fail(&health, 1.0), None);
    assert!(health.is_available());
    // Connections and checks have rows of their own.
    assert_eq!(health.connect_failed(at(1.0)), None);
    assert_eq!(succeed(&health, 1.0), None);
    assert!(health.connect_failed(at(1.0)).is_some());
}

#[test]
fn active_checks_take_out_after_fall_failures_and_bring_back_after_rise_successes() {
    let health = health();
    let check = |is_healthy, seconds| health.checked(is_healthy, 3, 2, at(seconds));
    // A good check has made a connection.
    assert_eq!(health.connect_failed(at(0.0)), None);
    assert_eq!(check(true, 0.1), None);
    assert_eq!(health.connect_failed(at(0.2)), None);
    for is_healthy in [false, false, true, false, false] {
        assert_eq!(check(is_healthy, 1.0), None);
    }
    assert_eq!(
        check(false, 2.0),
        transition((State::In, State::Unhealthy), Reason::Check, None)
    );
    assert!(!health.is_available() && !health.is_ejected());
    assert_eq!(check(false, 3.0), None);
    // Neither time nor requests nor connections bring it back.
    assert_eq!(health.tick(at(500.0)), None);
    assert_eq!(succeed(&health, 500.0), None);
    assert_eq!(health.connected(at(500.0)), None);
    assert_eq!(fail(&health, 500.0), None);
    for _ in 0..3 {
        assert_eq!(health.connect_failed(at(500.0)), None);
    }
    for is_healthy in [true, false, true] {
        assert_eq!(check(is_healthy, 501.0), None);
    }
    assert_eq!(
        check(true, 502.0),
        transition((State::Unhealthy, State::In), Reason::Check, None)
    );
    assert_eq!(check(true, 503.0), None);
}

#[test]
fn active_checks_replace_other_states() {
    // A good check has made a connection.
    let health = health();
    health.connect_failed(at(0.0));
    health.connect_failed(at(0.0));
    assert_eq!(
        health.checked(true, 3, 2, at(1.0)),
        transition((State::Unreachable, State::In), Reason::Connect, None)
    );
    // A good check says nothing about the requests of clients.
    let health = self::health();
    eject(&health, 0.0);
    for _ in 0..5 {
        assert_eq!(health.checked(true, 3, 2, at(1.0)), None);
    }
    assert_eq!(
        health.checked(false, 1, 2, at(2.0)),
        transition((State::Failing, State::Unhealthy), Reason::Check, None)
    );
    assert_eq!(health.tick(at(60.0)), None, "only checks end it");
}

#[test]
fn the_weight_grows_from_a_tenth_to_the_whole() {
    let health = health();
    assert_eq!(health.weight_tenths(), 10, "the first list starts at once");
    eject(&health, 0.0);
    health.tick(at(10.0));
    succeed(&health, 10.0);
    let weights: Vec<_> = [10.0, 11.0, 11.2, 15.0, 19.0, 19.9, 20.0, 99.0]
        .into_iter()
        .map(|seconds| {
            health.tick(at(seconds));
            health.weight_tenths()
        })
        .collect();
    assert_eq!(weights, [1, 1, 2, 5, 9, 9, 10, 10]);

    let new = |slow_start| Health::new(1, slow_start, false, at(0.0)).weight_tenths();
    assert_eq!((new(SLOW_START), new(Duration::ZERO)), (1, 10));
    assert_eq!(new(Duration::MAX), 1);
}

#[test]
fn a_success_reads_no_clock_while_nothing_is_wrong() {
    let health = health();
    let no_clock = || -> Moment { panic!("the clock is read") };
    for _ in 0..100 {
        assert_eq!(health.succeeded(0, no_clock), None);
    }
    fail(&health, 0.0);
    assert_eq!(succeed(&health, 0.1), None);
    assert_eq!(health.succeeded(1, no_clock), None);
    assert_eq!(health.totals().requests, 103);
}

#[test]
fn of_several_workers_one_gets_the_transition() {
    for _ in 0..50 {
        let health = Arc::new(Health::new(8, SLOW_START, true, at(0.0)));
        let barrier = Barrier::new(8);
        let transitions: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|worker| {
                    let (health, barrier) = (&health, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        let fail =
                            |_| health.failed(worker, at(0.0), Reason::Status, 0, || Some(()));
                        (0..10).filter_map(fail).count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(transitions, 1);
        assert_eq!(health.totals().failures, 80, "each worker has its counters");
    }
}

#[derive(Debug, Clone)]
enum Event {
    Connected,
    ConnectFailed,
    Succeeded,
    Failed { may_eject: bool, random: u64 },
    Checked(bool),
    Ticked,
}

fn event() -> impl Strategy<Value = (Event, u32)> {
    let event = prop_oneof![
        1 => Just(Event::Connected),
        2 => Just(Event::ConnectFailed),
        2 => Just(Event::Succeeded),
        6 => (any::<bool>(), any::<u64>())
            .prop_map(|(may_eject, random)| Event::Failed { may_eject, random }),
        1 => any::<bool>().prop_map(Event::Checked),
        2 => Just(Event::Ticked),
    ];
    (event, prop_oneof![0..100_u32, 0..2_000_000_u32])
}

proptest! {
    #[test]
    fn any_events_lead_from_state_to_state(events in proptest::collection::vec(event(), 0..200)) {
        let health = health();
        let mut state = State::In;
        let mut now = at(0.0);
        for (event, millis) in events {
            now = now + Duration::from_millis(millis.into());
            let transition = match event {
                Event::Connected => health.connected(now),
                Event::ConnectFailed => health.connect_failed(now),
                Event::Succeeded => health.succeeded(0, || now),
                Event::Failed { may_eject, random } => {
                    let permission = || may_eject.then_some(());
                    health.failed(1, now, Reason::Broken, random, permission)
                }
                Event::Checked(is_healthy) => health.checked(is_healthy, 3, 2, now),
                Event::Ticked => health.tick(now),
            };
            if let Some(transition) = transition {
                prop_assert_eq!(transition.from, state);
                prop_assert_ne!(transition.to, state, "{:?}", transition);
                state = transition.to;
            }
            let snapshot = health.snapshot();
            prop_assert_eq!(snapshot.state, state);
            prop_assert_eq!(snapshot.reason.is_none(), state == State::In);
            prop_assert_eq!(snapshot.until.is_some(), state == State::Failing);
            prop_assert!((1..=10).contains(&snapshot.weight_tenths));
            prop_assert_eq!(
                health.is_available(),
                matches!(state, State::In | State::Trial)
            );
            if let Some(until) = snapshot.until {
                let length = until.saturating_since(snapshot.since);
                prop_assert!((8..=300).contains(&length.as_secs()), "{:?}", length);
            }
            if matches!(event, Event::Succeeded) {
                prop_assert_eq!(health.inner.lock().failures, 0);
            }
        }
    }
}
