//! The task that repeats look-ups, with a scripted resolver and simulated time.

use std::{
    collections::VecDeque,
    sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
};

use futures_util::FutureExt as _;
use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::base::log::capture::Log;

const SECOND: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_secs(10);

fn address(text: &str) -> SocketAddr {
    let ip: IpAddr = text.parse().unwrap();
    (ip, 0).into()
}

fn addresses(text: &str) -> Vec<SocketAddr> {
    text.split_whitespace().map(address).collect()
}

/// `1.2.3.4 ::1 | 5.6.7.8` with port 80.
fn list(text: &str) -> AddressList {
    let (first, other) = text.split_once('|').unwrap_or((text, ""));
    let family = |text| {
        let found = addresses(text).into_iter();
        found.map(|address| with_port(address, 80)).collect()
    };
    AddressList {
        first: family(first),
        other: family(other),
    }
}

/// One result of the resolver, and how long it takes.
type Step = (Duration, Found);

fn at_once(text: &str) -> Step {
    (Duration::ZERO, Ok(addresses(text)))
}

fn failure() -> Step {
    (Duration::ZERO, Err("no such name".to_owned()))
}

/// A name that is watched. Each look-up takes the next step of the script; the last one stays.
struct Watched {
    lookup: watch::Receiver<Lookup>,
    started: Arc<AtomicUsize>,
    at_a_time: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
    log: Log,
}

/// Counts the look-ups under way, also those that are dropped.
struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

fn watched(host: &'static str, steps: impl IntoIterator<Item = Step>) -> Watched {
    let log = Log::capture();
    let (publish, lookup) = watch::channel(Lookup::default());
    let steps = Arc::new(Mutex::new(steps.into_iter().collect::<VecDeque<_>>()));
    let (started, running) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let at_a_time = Arc::<AtomicUsize>::default();
    let (count, most) = (Arc::clone(&started), Arc::clone(&at_a_time));
    let look_up = move || {
        count.fetch_add(1, SeqCst);
        most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
        let (steps, guard) = (Arc::clone(&steps), UnderWay(Arc::clone(&running)));
        async move {
            let (duration, found) = {
                let mut steps = steps.lock();
                match steps.len() {
                    1 => steps[0].clone(),
                    _ => steps.pop_front().expect("a step"),
                }
            };
            sleep(duration).await;
            drop(guard);
            found
        }
    };
    let watching = async move { watch_name(host, 80, REFRESH, look_up, publish).await };
    Watched {
        lookup,
        started,
        at_a_time,
        task: tokio::spawn(watching),
        log,
    }
}

impl Watched {
    /// The next published change; panics if there is none within `limit`.
    async fn change_within(&mut self, limit: Duration) -> Lookup {
        tokio::time::timeout(limit, self.lookup.changed())
            .await
            .expect("a change in time")
            .expect("the task runs");
        self.lookup.borrow_and_update().clone()
    }

    async fn change(&mut self) -> Lookup {
        self.change_within(12 * SECOND).await
    }

    async fn no_change_within(&mut self, limit: Duration) {
        let change = tokio::time::timeout(limit, self.lookup.changed()).await;
        assert!(change.is_err(), "changed to {:?}", self.lookup.borrow());
    }

    fn started(&self) -> usize {
        self.started.load(SeqCst)
    }
}

fn found(text: &str) -> Lookup {
    Lookup {
        list: Some(Arc::new(list(text))),
        error: None,
    }
}

#[test]
fn lists() {
    for (found, expected) in [
        ("1.1.1.1", "1.1.1.1"),
        ("::1 1.1.1.1", "::1 | 1.1.1.1"),
        (
            "1.1.1.1 ::1 2.2.2.2 ::2 1.1.1.1",
            "1.1.1.1 2.2.2.2 | ::1 ::2",
        ),
        ("::ffff:1.1.1.1 1.1.1.1 ::ffff:2.2.2.2", "1.1.1.1 2.2.2.2"),
    ] {
        let made = AddressList::new(&addresses(found), 80, None).unwrap();
        assert_eq!(made, list(expected), "{found}");
    }
    assert_eq!(AddressList::new(&[], 80, Some(&list("1.1.1.1"))), None);
}

#[test]
fn addresses_that_stay_keep_their_order() {
    for (former, found, expected) in [
        ("1.1.1.1 2.2.2.2", "2.2.2.2 1.1.1.1", "1.1.1.1 2.2.2.2"),
        (
            "1.1.1.1 2.2.2.2 3.3.3.3",
            "4.4.4.4 3.3.3.3 1.1.1.1",
            "1.1.1.1 3.3.3.3 4.4.4.4",
        ),
        ("1.1.1.1", "2.2.2.2", "2.2.2.2"),
        ("::1 ::2 | 1.1.1.1", "::2 1.1.1.1 ::1", "::1 ::2 | 1.1.1.1"),
        // The other family is preferred now.
        ("::1 ::2 | 1.1.1.1", "1.1.1.1 ::2 ::1", "1.1.1.1 | ::1 ::2"),
    ] {
        let made = AddressList::new(&addresses(found), 80, Some(&list(former))).unwrap();
        assert_eq!(made, list(expected), "{former} then {found}");
    }
}

fn many(range: std::ops::Range<u32>) -> Vec<SocketAddr> {
    let ips = range.map(|number| Ipv4Addr::from(0x0a00_0000 + number));
    ips.map(|ip| (ip, 0).into()).collect()
}

#[test]
fn at_most_64_addresses_and_the_same_ones_each_time() {
    let all = many(0..200);
    let first = AddressList::new(&all, 80, None).unwrap();
    assert_eq!(first.iter().count(), MAX_ADDRESSES);
    let mut rotated = all.clone();
    for _ in 0..200 {
        rotated.rotate_left(17);
        let again = AddressList::new(&rotated, 80, Some(&first)).unwrap();
        assert_eq!(again, first);
    }
    let six: Vec<_> = many(0..60)
        .into_iter()
        .chain(addresses("::1 ::2 ::3 ::4 ::5 ::6"))
        .collect();
    let both = AddressList::new(&six, 80, None).unwrap();
    assert_eq!((both.first.len(), both.other.len()), (60, 4));
    let only = AddressList::new(&[all, six].concat(), 80, None).unwrap();
    assert_eq!((only.first.len(), only.other.len()), (64, 0));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_published_and_a_rotation_is_not() {
    let mut name = watched(
        "cloud.example",
        [
            at_once("1.1.1.1 2.2.2.2"),
            at_once("2.2.2.2 1.1.1.1"),
            at_once("1.1.1.1 2.2.2.2 1.1.1.1"),
            at_once("3.3.3.3 2.2.2.2"),
        ],
    );
    assert_eq!(name.change_within(SECOND).await, found("1.1.1.1 2.2.2.2"));
    let kept = name.lookup.borrow().list.clone().unwrap();
    name.no_change_within(26 * SECOND).await;
    assert_eq!(name.started(), 3);
    assert!(Arc::ptr_eq(
        &kept,
        name.lookup.borrow().list.as_ref().unwrap()
    ));
    assert_eq!(name.change().await, found("2.2.2.2 3.3.3.3"));
    assert_eq!(name.log.lines("WARN") + name.log.lines("ERROR"), 0);
    let changes = name
        .log
        .lines("the addresses of cloud.example changed to: 2.2.2.2, 3.3.3.3");
    assert_eq!(changes, 1, "{}", name.log.text());
    for part in ["added=\"3.3.3.3\"", "removed=\"1.1.1.1\""] {
        assert_eq!(name.log.lines(part), 1, "{}", name.log.text());
    }
}

#[tokio::test(start_paused = true)]
async fn look_ups_are_repeated_with_jitter() {
    let name = watched("cloud.example", [at_once("1.1.1.1")]);
    let mut gaps = Vec::new();
    let mut last = Instant::now();
    for count in 1..=50 {
        while name.started() < count {
            advance(Duration::from_millis(10)).await;
            tokio::task::yield_now().await;
        }
        gaps.push(last.elapsed());
        last = Instant::now();
    }
    let gaps = &gaps[1..];
    let range = Duration::from_millis(8990)..=Duration::from_millis(11020);
    assert!(gaps.iter().all(|gap| range.contains(gap)), "{gaps:?}");
    assert!(
        gaps.iter().any(|gap| *gap < Duration::from_millis(9700)),
        "{gaps:?}"
    );
    assert!(
        gaps.iter().any(|gap| *gap > Duration::from_millis(10300)),
        "{gaps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_keeps_the_list_and_is_logged_once() {
    let mut name = watched(
        "cloud.example",
        [
            at_once("1.1.1.1"),
            failure(),
            failure(),
            at_once(""),
            at_once("1.1.1.1"),
            failure(),
        ],
    );
    assert_eq!(name.change_within(SECOND).await, found("1.1.1.1"));
    for error in ["no such name", "the name has no address"] {
        let failed = name.change_within(23 * SECOND).await;
        assert_eq!(failed.error.as_deref(), Some(error));
        assert_eq!(failed.list, found("1.1.1.1").list);
    }
    let warnings = name.log.lines("its last known addresses stay in use");
    assert_eq!((warnings, name.log.lines("WARN")), (1, 1));
    assert_eq!(name.change().await, found("1.1.1.1"));
    assert_eq!(name.log.lines("INFO"), 1, "{}", name.log.text());
    assert_eq!(name.log.lines("cloud.example resolves again: 1.1.1.1"), 1);
    // The next failure is a new one.
    assert!(name.change().await.error.is_some());
    assert_eq!(name.log.lines("WARN"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_does_not_exist_at_the_start_is_tried_more_often() {
    let begin = Instant::now();
    let steps = (0..4).map(|_| failure()).chain([at_once("1.1.1.1")]);
    let mut name = watched("cloud.example", steps);
    let failed = name.change_within(SECOND).await;
    assert_eq!((failed.list, failed.error.is_some()), (None, true));
    assert_eq!(name.log.lines("requests to it fail until it resolves"), 1);
    // At most 2 + 4 + 8 + 10 s.
    assert_eq!(name.change_within(24 * SECOND).await, found("1.1.1.1"));
    assert!(begin.elapsed() >= 4 * SECOND, "{:?}", begin.elapsed());
    assert_eq!((name.started(), name.log.lines("WARN")), (5, 1));
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_hangs_at_the_start_counts_as_failed_until_it_responds() {
    let begin = Instant::now();
    let hanging = (30 * SECOND, Ok(addresses("1.1.1.1")));
    let mut name = watched("cloud.example", [hanging, at_once("1.1.1.1")]);
    let failed = name.change_within(16 * SECOND).await;
    assert_eq!(failed.error.as_deref(), Some("no result within 15s"));
    assert_eq!((failed.list, begin.elapsed()), (None, LOOKUP_LIMIT));
    assert_eq!(name.change_within(16 * SECOND).await, found("1.1.1.1"));
    assert_eq!(begin.elapsed(), 30 * SECOND);
    name.no_change_within(REFRESH * 10).await;
    assert_eq!(name.at_a_time.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_hangs_later_keeps_the_list_and_one_look_up() {
    let never = (Duration::from_secs(1_000_000), Err(String::new()));
    let mut name = watched("cloud.example", [at_once("1.1.1.1"), never]);
    assert_eq!(name.change_within(SECOND).await, found("1.1.1.1"));
    let failed = name.change_within(27 * SECOND).await;
    assert_eq!(failed.list, found("1.1.1.1").list);
    name.no_change_within(REFRESH * 1000).await;
    assert_eq!((name.started(), name.at_a_time.load(SeqCst)), (2, 1));
    assert_eq!(name.log.lines("WARN"), 1);
}

#[tokio::test(start_paused = true)]
async fn ip_addresses_are_not_looked_up() {
    for (host, expected) in [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
    ] {
        let mut name = watched(host, [failure()]);
        assert_eq!(name.change_within(SECOND).await, found(expected));
        name.no_change_within(REFRESH * 10).await;
        assert_eq!(name.started(), 0, "{host}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_its_last_receiver() {
    let never = (Duration::from_secs(1_000_000), Err(String::new()));
    for (host, step) in [
        ("cloud.example", at_once("1.1.1.1")),
        ("cloud.example", never),
        ("127.0.0.1", failure()),
    ] {
        let name = watched(host, [step]);
        sleep(25 * SECOND).await;
        assert!(!name.task.is_finished());
        drop(name.lookup);
        tokio::time::timeout(SECOND, name.task)
            .await
            .expect("the end")
            .expect("no panic");
    }
}

#[tokio::test]
async fn the_same_name_is_looked_up_once_at_a_time() {
    let resolver = SystemResolver::default();
    let (release, wait) = mpsc::channel::<()>();
    let mut first = Box::pin(resolver.join_or_start("cloud.example", move |_| {
        let _ = wait.recv();
        Ok(addresses("1.1.1.1"))
    }));
    assert!((&mut first).now_or_never().is_none());
    // Dropping the first call leaves the look-up.
    drop(first);
    let mut joined: Vec<_> = (0..3)
        .map(|_| Box::pin(resolver.join_or_start("cloud.example", |_| panic!("a second one"))))
        .collect();
    for joined in &mut joined {
        assert!(joined.now_or_never().is_none());
    }
    let other = resolver.join_or_start("other.example", |_| Ok(addresses("2.2.2.2")));
    assert_eq!(other.await, Ok(addresses("2.2.2.2")));
    drop(release);
    for joined in joined {
        assert_eq!(joined.await, Ok(addresses("1.1.1.1")));
    }
    // The next one is new.
    let next = resolver.join_or_start("cloud.example", |_| Err("gone".into()));
    assert_eq!(next.await, Err("gone".to_owned()));
    assert!(resolver.under_way.lock().is_empty());
}

#[tokio::test]
async fn names_that_this_machine_knows_or_refuses() {
    let resolver = SystemResolver::default();
    for name in ["localhost", "localhost."] {
        let found = resolver.look_up(name).await.expect(name);
        let is_local = |address: &SocketAddr| host::is_loopback(address.ip());
        assert!(!found.is_empty() && found.iter().all(is_local), "{name}");
    }
    let long = "a".repeat(70_000);
    for name in ["", ".", "a\0b", "a b", &long] {
        assert!(resolver.look_up(name).await.is_err(), "{name:.20}");
    }
}

#[test]
fn a_hosts_file() {
    let text = "# cloud.test\n127.0.0.1 localhost\n\n\
                10.0.0.1\tx Cloud.Test # y.test\nfe80::1%eth0 cloud.test\n  ::2 cloud.test\n\
                not-an-address cloud.test\n10.0.0.3";
    for (name, expected) in [
        ("cloud.test", "10.0.0.1 ::2"),
        ("CLOUD.test", "10.0.0.1 ::2"),
        ("x", "10.0.0.1"),
        ("y.test", ""),
        ("10.0.0.3", ""),
        ("", ""),
    ] {
        assert_eq!(in_hosts_file(text, name), addresses(expected), "{name}");
    }
}
