//! The test kills the program at any moment: no token is lost, and no token is spent in a way that
//! revokes its family.
#![cfg(target_os = "linux")]

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config},
};
use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    task::{JoinSet, LocalSet},
    time::sleep,
};

use crate::common::{
    LIMIT, eventually,
    process::{Program, Running, listens},
    scripted,
};

/// The number of proxies that run at once, each with its own cloud. With tokens that live for one
/// second, each proxy waits most of the time.
const LANES: usize = 5;
const GRACE: Duration = Duration::from_secs(5);
/// The delay of each direction between the proxy and a slow issuer.
const SLOW: Duration = Duration::from_millis(200);

/// The system calls that change something around the state file, by their names on all
/// architectures, and how many of them to try in each half of a refresh.
const CALLS: [(&str, usize, usize); 8] = [
    ("?mkdir,?mkdirat", 3, 1),
    ("?flock", 2, 0),
    ("?open", 3, 0),
    ("?openat", 2, 2),
    ("?write", 4, 2),
    ("?fsync", 2, 2),
    ("?rename,?renameat,?renameat2", 1, 1),
    ("?close", 3, 2),
];

/// Where to kill: when a thread begins its nth call of this kind.
#[derive(Clone, Copy)]
struct Target {
    calls: &'static str,
    nth: usize,
    /// If true, the count starts when the intent is stored, and covers the calls that store the
    /// response. Otherwise it starts before the refresh, and covers the calls that take the lock
    /// and store the intent.
    answer: bool,
}

/// Every target on this architecture.
fn targets() -> Vec<Target> {
    let here = CALLS
        .iter()
        .filter(|(calls, ..)| cfg!(target_arch = "x86_64") || *calls != "?open");
    let each = |most, calls, answer| (1..=most).map(move |nth| Target { calls, nth, answer });
    here.flat_map(|&(calls, intent, answer)| {
        each(intent, calls, false).chain(each(answer, calls, true))
    })
    .collect()
}

/// The amount of work; the environment variable `name` overrides it for long runs.
fn amount(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// The part of an amount for one lane.
fn share(amount: usize, lane: usize) -> usize {
    (lane..amount).step_by(LANES).count()
}

/// Runs `work` in all lanes concurrently.
async fn in_lanes<T: 'static, F: Future<Output = T> + 'static>(
    work: impl Fn(usize) -> F,
) -> Vec<T> {
    let local = LocalSet::new();
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        lanes.spawn_local_on(work(lane), &local);
    }
    local.run_until(lanes.join_all()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_11_killed_at_every_system_call_of_persisting() {
    let kills = amount("SOAK_KILLS", 100);
    // Each lane runs the whole plan in a cycle; the lanes start at different places.
    let plan = targets();
    let results = in_lanes(|lane| {
        let begin = lane * plan.len() / LANES;
        kill_at_each(
            plan.iter()
                .copied()
                .cycle()
                .skip(begin)
                .take(share(kills, lane))
                .collect(),
        )
    })
    .await;
    let (mut hits, mut lost) = (BTreeMap::<&str, usize>::new(), 0);
    for (hit, more_lost) in results {
        hit.into_iter()
            .for_each(|calls| *hits.entry(calls).or_default() += 1);
        lost += more_lost;
    }
    let on_the_path: usize = hits.values().sum();
    println!(
        "{kills} kills, {on_the_path} of them at a call for the state, {lost} responses lost: {hits:?}"
    );
    assert!(
        plan.iter().all(|target| hits.contains_key(target.calls)),
        "a kind of call was never hit: {hits:?}"
    );
    assert!(
        on_the_path * 2 >= kills,
        "too few kills hit the state: {hits:?}"
    );
    // A response that is complete in a temporary file is recovered, so only kills before that lose
    // one.
    assert!(
        lost * 16 >= kills,
        "too few kills lost a response: {lost} of {kills}"
    );
}

/// Kills one proxy at each of these calls in turn. Returns which kinds of calls on the state were
/// hit, and how many grants were lost.
async fn kill_at_each(jobs: Vec<Target>) -> (Vec<&'static str>, usize) {
    let bench = Bench::start(GRACE, SLOW / 2).await;
    let mut hits = Vec::new();
    for (kill, target) in jobs.into_iter().enumerate() {
        let mut running = bench.in_service().await;
        let before = bench.state();
        if target.answer {
            eventually("a refresh begins", async || bench.state().is_open()).await;
        }
        let last_call = kill_at(&mut running, target, &bench).await;
        if last_call.contains(bench.state_file.parent().unwrap().to_str().unwrap()) {
            hits.push(target.calls);
        }
        bench.check_after_kill(&before, kill + 1);
    }
    let _running = bench.in_service().await;
    assert_eq!(bench.cloud.families_revoked(), 0);
    (hits, bench.lost())
}

/// Kills the process at the target, counted from now on. Returns the call at which it died.
///
/// The main thread is excluded: it stores nothing, but closes timers and writes the log.
async fn kill_at(
    running: &mut Running,
    Target { calls, nth, .. }: Target,
    bench: &Bench,
) -> String {
    let (trace, words) = (bench.program.path("trace"), bench.program.path("strace"));
    let pid = running.0.id().to_string();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let threads = threads.map(|thread| thread.unwrap().file_name().into_string().unwrap());
    let others = threads
        .filter(|thread| *thread != pid)
        .flat_map(|thread| ["-p".to_owned(), thread]);
    let child = Command::new("strace")
        .args(["-y", "-s", "8", "-e", &format!("trace={calls}"), "-e"])
        .arg(format!("inject={calls}:signal=SIGKILL:when={nth}"))
        .arg("-o")
        .arg(&trace)
        .args(others)
        .stdin(Stdio::null())
        .stderr(fs::File::create(&words).unwrap())
        .spawn()
        .expect("strace is needed: scripts/test installs it");
    let mut strace = Running(child);
    let status = running.ended().await;
    let words = fs::read_to_string(&words).unwrap();
    assert!(status.to_string().contains("SIGKILL"), "{status}: {words}");
    strace.ended().await;
    let trace = fs::read_to_string(&trace).unwrap();
    let begins =
        |line: &&str| line.contains('(') && !line.contains("resumed>") && !line.contains("+++");
    trace
        .lines()
        .rev()
        .find(begins)
        .unwrap_or_else(|| panic!("nothing traced: {words}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_every_few_refreshes_of_a_slow_issuer_no_family_is_revoked() {
    let cycles = amount("SOAK_CYCLES", 50);
    let results = in_lanes(|lane| kill_every_few(share(cycles, lane))).await;
    let sum = |part: fn(&Kills) -> usize| results.iter().map(part).sum::<usize>();
    let (kills, open, lost) = (
        sum(|kills| kills.all),
        sum(|kills| kills.open),
        sum(|kills| kills.lost),
    );
    let refreshes = sum(|kills| kills.refreshes);
    println!(
        "{refreshes} refreshes, {kills} kills, {open} of them with an open intent, {lost} responses lost"
    );
    assert!(
        refreshes >= cycles && kills * 4 >= cycles,
        "{refreshes} refreshes, {kills} kills"
    );
    assert!(
        open * 3 >= kills,
        "only {open} of {kills} kills hit an open intent"
    );
    assert!(
        lost * 8 >= kills,
        "only {lost} of {kills} kills lost a response"
    );
}

struct Kills {
    all: usize,
    /// Kills with an intent in the file.
    open: usize,
    /// Kills after the grant and before it was stored.
    lost: usize,
    refreshes: usize,
}

/// Runs this many refreshes, and kills the process at every second or third one.
async fn kill_every_few(cycles: usize) -> Kills {
    let bench = Bench::start(GRACE, SLOW).await;
    let (mut kills, mut open) = (0, 0);
    while bench.granted() < cycles {
        let mut running = bench.in_service().await;
        let granted = bench.granted() + kills % 2;
        eventually("refreshes continue", async || bench.granted() >= granted).await;
        let before = bench.state();
        if kills % 3 != 2 {
            eventually("a refresh begins", async || bench.state().is_open()).await;
        }
        // The delay varies: the kill comes before or after the issuer has spent the token.
        sleep(SLOW * 2 * (kills as u32 * 3 % 8) / 8).await;
        running.signal(Signal::KILL);
        running.ended().await;
        kills += 1;
        open += usize::from(bench.state().is_open());
        bench.check_after_kill(&before, kills);
    }
    let _running = bench.in_service().await;
    assert_eq!(bench.cloud.families_revoked(), 0);
    Kills {
        all: kills,
        open,
        lost: bench.lost(),
        refreshes: bench.granted(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_in_the_middle_of_a_slow_refresh_it_stores_the_answer_first() {
    let bench = Bench::start(Duration::ZERO, SLOW).await;
    for round in 0..amount("SOAK_STOPS", 8) {
        let mut running = bench.in_service().await;
        eventually("a refresh begins", async || bench.state().is_open()).await;
        // Before the token is sent, a process that ends does not send it any more.
        let granted = bench.granted();
        eventually("the token is used", async || bench.granted() > granted).await;
        running.signal(Signal::TERM);
        assert!(
            bench.state().is_open(),
            "round {round}: the refresh ended before the signal"
        );
        assert_eq!(running.ended().await.code(), Some(0));
        assert_eq!(
            bench.granted(),
            granted + 1,
            "round {round}: another refresh, or none"
        );
        assert!(
            !bench.state().is_open() && bench.lost() == 0,
            "round {round}: the response was not stored"
        );
    }
    let _running = bench.in_service().await;
    assert_eq!((bench.cloud.families_revoked(), bench.lost()), (0, 0));
}

/// Without grace, the refresh token that a killed process spent is dead, and a second use revokes
/// its family: once, because that is remembered. A JWT key starts a new family without manual work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_grace_a_jwt_brings_it_back_each_time() {
    let jwt = "token.jwt.key = \"0123456789abcdef0123456789abcdef\"\n";
    let bench = Bench::start_with(Duration::ZERO, SLOW, jwt).await;
    let rounds = amount("SOAK_REVIVALS", 6);
    let mut running = bench.in_service().await;
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        eventually("a refresh begins", async || bench.state().is_open()).await;
        let granted = bench.granted();
        eventually("the token is spent", async || bench.granted() > granted).await;
        running.signal(Signal::KILL);
        running.ended().await;
        let killed = tokio::time::Instant::now();
        running = bench.in_service().await;
        slowest = slowest.max(killed.elapsed());
    }
    let revoked = bench.cloud.families_revoked();
    println!(
        "{rounds} kills of a spent token, {revoked} families revoked, back in service after {slowest:?} at most"
    );
    // The first refusal of a retry within the grace period shows that the cloud has none. From then
    // on a spent token is not sent again.
    assert_eq!(revoked, 1, "families were revoked");
    assert!(slowest < LIMIT / 2, "back in service after {slowest:?}");
}

/// A strict cloud with tokens that live for one second, and the folder of the proxy in front of it.
struct Bench {
    cloud: Cloud,
    program: Program,
    state_file: PathBuf,
}

impl Bench {
    /// Returns when the first tokens are stored. `slow` is the delay of each direction to the
    /// issuer.
    async fn start(reuse_grace: Duration, slow: Duration) -> Self {
        Self::start_with(reuse_grace, slow, "").await
    }

    /// The same with additional lines of configuration.
    async fn start_with(reuse_grace: Duration, slow: Duration, more: &str) -> Self {
        let config = Config {
            token_lifetime: Duration::from_secs(1),
            reuse_grace,
            seeds: vec!["seed".into()],
            ..Config::new("demo", "secret")
        };
        let cloud = Cloud::start(config, clock::system()).await.unwrap();
        let issuer = if slow.is_zero() {
            cloud.origin().to_owned()
        } else {
            relay(cloud.origin(), slow).await
        };
        let more = format!("token.issuer = \"{issuer}\"\nlog.level = \"error\"\n{more}");
        let program = Program::new(cloud.origin(), &more);
        let state_file = program.path("state/token.json");
        program.configure(
            cloud.origin(),
            &format!("token.state_file = \"{}\"\n{more}", state_file.display()),
        );
        let bench = Self {
            cloud,
            program,
            state_file,
        };
        let mut running = bench.program.start();
        eventually("the first tokens are stored", async || {
            bench.state_file.exists() && bench.state().generation >= 1
        })
        .await;
        running.signal(Signal::KILL);
        running.ended().await;
        bench
    }

    /// A proxy that is ready, and that has refreshed since its start and stored the result.
    async fn in_service(&self) -> Running {
        let (granted, generation) = (self.granted(), self.state().generation);
        let running = self.program.start();
        listens(self.program.admin).await;
        let refreshed = |state: &Stored| state.generation > generation && !state.is_open();
        eventually("the proxy refreshes again", async || {
            self.granted() > granted && refreshed(&self.state())
        })
        .await;
        self.program.ready().await;
        running
    }

    fn granted(&self) -> usize {
        self.cloud.issuer_successes().try_into().unwrap()
    }

    /// The number of grants that no process stored.
    fn lost(&self) -> usize {
        self.granted() - self.state().generation
    }

    /// The stored state; it must be complete and private at every moment.
    fn state(&self) -> Stored {
        let text = fs::read_to_string(&self.state_file).expect("the state file exists");
        let mode = fs::metadata(&self.state_file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let json: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        Stored {
            generation: json["generation"].as_u64().unwrap().try_into().unwrap(),
            refresh_token: json["refresh_token"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            intents: json["intents"].as_array().unwrap().len(),
        }
    }

    /// The file is an old one or a new one, and each kill loses at most the one response in flight.
    fn check_after_kill(&self, before: &Stored, kills: usize) {
        let after = self.state();
        assert!(!after.refresh_token.is_empty(), "the refresh token is lost");
        assert!(
            after.generation >= before.generation,
            "the file is older than before"
        );
        let is_same = after.refresh_token == before.refresh_token;
        assert_eq!(
            is_same,
            after.generation == before.generation,
            "the file mixes two versions"
        );
        assert!(
            self.lost() <= kills,
            "{} responses lost by {kills} kills",
            self.lost()
        );
        assert_eq!(self.cloud.families_revoked(), 0);
    }
}

struct Stored {
    generation: usize,
    refresh_token: String,
    intents: usize,
}

impl Stored {
    /// Whether an intent to spend a refresh token is stored.
    fn is_open(&self) -> bool {
        self.intents > 0
    }
}

/// A slow path to the issuer. Sent bytes arrive even if the sender has died in the meantime.
async fn relay(origin: &str, delay: Duration) -> String {
    let target: SocketAddr = origin.strip_prefix("http://").unwrap().parse().unwrap();
    let address = scripted(move |_, client| async move {
        let (mut client_in, mut client_out) = client.into_split();
        let (mut cloud_in, mut cloud_out) =
            tokio::net::TcpStream::connect(target).await?.into_split();
        let both = tokio::join!(
            carry(&mut client_in, &mut cloud_out, delay), //
            carry(&mut cloud_in, &mut client_out, delay),
        );
        both.0.and(both.1)
    })
    .await;
    format!("http://{address}")
}

async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    delay: Duration,
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        sleep(delay).await;
        to.write_all(&buffer[..n]).await?;
    }
}
