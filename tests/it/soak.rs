//! A mixture of faults for a long time: an odd issuer, nodes that refuse good tokens, connections
//! that break, a log that nothing reads, a full disk, pauses, new secrets, restarts and kills. No
//! family of tokens is revoked, each failure that an app sees has an explanation, and memory and
//! descriptors do not grow.
//!
//! Three proxies run at once, each with a cloud and apps of its own. `SOAK_MIXTURE` sets the
//! duration in seconds (default 6), `SOAK_SEED` the random sequence.
#![cfg(target_os = "linux")]
#![allow(unreachable_pub, reason = "the modules share it")]

mod apps;
mod cloud;
mod faults;
mod issuer;
mod program;
mod random;
mod table;
mod token_endpoint;
mod verdict;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};

use self::{
    cloud::Cloud,
    issuer::Issuer,
    program::Process,
    table::Table,
    verdict::{Tally, Why},
};
use crate::common::{LIMIT, get, process::free_address};

/// What happens in a lane, beside the faults of all lanes.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// How long the issuer accepts a refresh token again after its first use. Responses get lost
    /// only if it does.
    grace: Duration,
    /// Whether the process is restarted and killed.
    is_restarted: bool,
    /// Whether the state file is deleted, and replaced by an older one.
    loses_files: bool,
}

/// One proxy with its cloud, issuer and apps.
struct Lane {
    name: &'static str,
    rules: Rules,
    seed: u64,
    begin: Instant,
    is_over: AtomicBool,
    next_id: AtomicU64,
    issuer: Mutex<Issuer>,
    cloud: Cloud,
    process: Process,
    descriptors_at_start: AtomicUsize,
    /// Held while the disk is full.
    disk: tokio::sync::Mutex<()>,
    outages: Mutex<Outages>,
    tally: Mutex<Tally>,
    events: Mutex<BTreeMap<String, u64>>,
    journal: Mutex<File>,
}

/// When the process did not run.
#[derive(Default)]
struct Outages(Vec<Outage>);

struct Outage {
    why: Why,
    begin: Instant,
    end: Option<Instant>,
}

impl Outages {
    fn begin(&mut self, why: Why) {
        let begin = Instant::now();
        self.0.push(Outage {
            why,
            begin,
            end: None,
        });
    }

    fn end(&mut self) {
        if let Some(last) = self.0.last_mut() {
            last.end = Some(Instant::now());
        }
    }

    /// Why a request that was sent at this moment, and has failed now, may have been interrupted. A
    /// restart completes the requests that were in flight: it may affect later ones only.
    fn interruption(&self, sent: Instant) -> Option<Why> {
        let outage = self
            .0
            .iter()
            .rev()
            .find(|outage| outage.end.is_none_or(|end| sent <= end))?;
        let margin = Duration::from_secs(1);
        let is_hit = outage.why == Why::Kill || sent + margin >= outage.begin;
        is_hit.then_some(outage.why)
    }
}

impl Lane {
    async fn start(name: &'static str, rules: Rules, seed: u64) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = free_address();
        let cloud = format!("http://{}", listener.local_addr().unwrap());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let journal = File::create(folder.join(format!("soak-{name}-{seed}.log"))).unwrap();
        let lane = Arc::new(Self {
            name,
            rules,
            seed,
            begin: Instant::now(),
            is_over: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            issuer: Mutex::new(Issuer::new(rules.grace)),
            cloud: Cloud::default(),
            process: Process::new(&cloud, &format!("http://{issuer}")),
            descriptors_at_start: AtomicUsize::new(0),
            disk: tokio::sync::Mutex::default(),
            outages: Mutex::default(),
            tally: Mutex::default(),
            events: Mutex::default(),
            journal: Mutex::new(journal),
        });
        tokio::spawn(token_endpoint::listen(Arc::clone(&lane), issuer));
        tokio::spawn(cloud::listen(Arc::clone(&lane), listener));
        lane.process.program.write("client_secret", "secret-0");
        faults::new_seed(&lane);
        lane.process.start(&lane).await;
        lane.process.program.ready().await;
        let sample = lane.process.sample(0).unwrap();
        lane.descriptors_at_start.store(sample.descriptors, Relaxed);
        lane
    }

    /// Faults and apps for this time, then the checks without faults.
    async fn run(self: Arc<Self>, duration: Duration) {
        let mut apps: Vec<_> = apps::APPS
            .iter()
            .enumerate()
            .map(|(number, app)| tokio::spawn(apps::run(Arc::clone(&self), *app, number)))
            .collect();
        apps.push(tokio::spawn(apps::watch(Arc::clone(&self))));
        let mut others = faults::start(&self);
        others.push(tokio::spawn(sample(Arc::clone(&self))));
        sleep(duration).await; // the duration of the test
        self.is_over.store(true, Relaxed);
        for task in others.into_iter().chain(apps) {
            task.await.unwrap();
        }
        self.process.end_faults(&self);
        self.settle().await;
    }

    /// Without faults, requests succeed again, and nothing is left of the former ones.
    async fn settle(self: &Arc<Self>) {
        let process = &self.process;
        let begin = Instant::now();
        let mut problem = String::new();
        while begin.elapsed() < LIMIT {
            faults::revive(self).await;
            problem = match self.rest().await {
                Ok(()) => {
                    let after = begin.elapsed();
                    let sample = process.sample(self.age());
                    return self.note(&format!("at rest after {after:.1?}: {sample:?}"));
                }
                Err(problem) => problem,
            };
            sleep(Duration::from_millis(200)).await; // polls the condition
        }
        self.unexplained(&format!("after the faults: {problem}"));
    }

    async fn rest(&self) -> Result<(), String> {
        let program = &self.process.program;
        let response = apps::request_once(program.address, get("/file?id=1&size=10")).await?;
        if response.status() != 200 {
            return Err(format!("a GET gets {}", response.status()));
        }
        let metrics = apps::request_once(program.admin, get("/metrics")).await?;
        let metrics = String::from_utf8_lossy(metrics.body()).into_owned();
        for line in [
            "bearer_proxy_connections_open 0.0",
            "bearer_proxy_requests_in_flight 0.0",
            "bearer_proxy_panics_total 0",
            "bearer_proxy_token_store_up 1",
        ] {
            if !metrics.lines().any(|other| other.starts_with(line)) {
                return Err(format!("the metrics have no line {line}"));
            }
        }
        let before = self.descriptors_at_start.load(Relaxed);
        let descriptors = self
            .process
            .sample(0)
            .map_or(0, |sample| sample.descriptors);
        if descriptors > before + 4 {
            return Err(format!("{descriptors} descriptors, {before} before"));
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Milliseconds since the start.
    fn age(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap()
    }

    /// Writes a line to the journal of this lane.
    fn note(&self, text: &str) {
        let age = self.begin.elapsed().as_secs_f64();
        // A full disk of the machine does not fail the test.
        let _ = writeln!(self.journal.lock().unwrap(), "{age:09.3} {text}");
    }

    fn unexplained(&self, problem: &str) {
        self.note(&format!("UNEXPLAINED {problem}"));
        let mut tally = self.tally.lock().unwrap();
        *tally.unexplained.entry(problem.to_owned()).or_default() += 1;
    }
}

async fn sample(lane: Arc<Lane>) {
    while !lane.is_over() {
        let sample = lane.process.sample(lane.age());
        lane.process.samples.lock().unwrap().extend(sample);
        sleep(Duration::from_millis(250)).await; // the interval of the samples
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixture_of_faults_revokes_no_family_and_explains_every_failure() {
    let number =
        |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let duration = Duration::from_secs(number("SOAK_MIXTURE", 6));
    let seed = number("SOAK_SEED", 1);
    let strict = Rules {
        grace: Duration::ZERO,
        is_restarted: false,
        loses_files: true,
    };
    let restarted = Rules {
        is_restarted: true,
        loses_files: false,
        ..strict
    };
    let lenient = Rules {
        grace: Duration::from_secs(60),
        is_restarted: true,
        loses_files: true,
    };
    let mut lanes = Vec::new();
    for (name, rules) in [
        ("strict", strict),
        ("restarted", restarted),
        ("lenient", lenient),
    ] {
        lanes.push(Lane::start(name, rules, seed).await);
    }
    let runs: Vec<_> = lanes
        .iter()
        .map(|lane| tokio::spawn(Arc::clone(lane).run(duration)))
        .collect();
    for run in runs {
        run.await.unwrap();
    }
    let mut problems = Vec::new();
    for lane in &lanes {
        let table = Table::new(lane, duration);
        println!("\n{}", table.text);
        problems.extend(table.problems);
        lane.process.end(lane, Signal::TERM).await;
    }
    assert!(
        problems.is_empty(),
        "seed {seed}: {problems:#?}\nthe journals are in {}",
        env!("CARGO_TARGET_TMPDIR")
    );
}
