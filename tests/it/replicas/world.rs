//! The cloud, the replicas in front of it, and their clients.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config},
};
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    relay::{Log, Relay, Spent},
    store::Store,
};
use crate::common::{
    Client, eventually, get, post,
    process::{Program, Running, listens},
    send,
};

/// The amount of work; the environment variable `name` overrides it for long runs.
pub(super) fn amount(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// What is set up.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) replicas: usize,
    /// The lifetime of an access token. It is refreshed after half of it.
    pub(super) lifetime: Duration,
    /// How long the issuer forgives a repetition; if zero, replicas never repeat.
    pub(super) forgives: Duration,
    pub(super) latency: Duration,
    pub(super) seeds: Vec<String>,
    /// The time between two refreshes that an operator or rejections cause.
    pub(super) cooldown: Duration,
    /// Further lines of each configuration.
    pub(super) more: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            replicas: 2,
            lifetime: Duration::from_secs(6),
            forgives: Duration::ZERO,
            latency: Duration::ZERO,
            seeds: vec!["seed".to_owned()],
            cooldown: Duration::from_secs(1),
            more: String::new(),
        }
    }
}

/// One replica with its relays.
pub(super) struct Replica {
    pub(super) program: Program,
    running: Option<Running>,
    pub(super) to_store: Relay,
    pub(super) to_issuer: Relay,
    more: String,
}

impl Replica {
    /// Starts the process, which does not have to be ready.
    pub(super) async fn start(&mut self) {
        self.running = Some(self.program.start());
        listens(self.program.admin).await;
    }

    pub(super) fn signal(&self, signal: Signal) {
        self.running.as_ref().unwrap().signal(signal);
    }

    pub(super) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.running.take().unwrap().ended().await;
    }

    pub(super) async fn terminate(&mut self) {
        self.running.take().unwrap().terminate().await;
    }

    /// Stops the process for this time.
    pub(super) async fn stop_for(&self, time: Duration) {
        self.signal(Signal::STOP);
        sleep(time).await; // the time that the process is stopped
        self.signal(Signal::CONT);
    }

    fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.0.id())
    }

    /// Requests a refresh from this replica.
    pub(super) async fn request_refresh(&self) {
        // It is too early right after a refresh.
        eventually("the replica accepts the request", async || {
            let response = send(self.program.admin, post("/token/refresh", "")).await;
            response.status() == 202
        })
        .await;
    }

    pub(super) async fn generation(&self) -> u64 {
        self.program.generation().await
    }
}

/// A gateway and its cloud.
pub(super) struct World {
    pub(super) cloud: Cloud,
    pub(super) log: Log,
    pub(super) replicas: Vec<Replica>,
    setup: Setup,
}

impl World {
    /// All replicas are ready.
    pub(super) async fn start(store: &Store, setup: Setup) -> Self {
        let mut world = Self::prepare(store, setup).await;
        for replica in &mut world.replicas {
            replica.start().await;
        }
        world.ready().await;
        world
    }

    /// No replica runs yet.
    pub(super) async fn prepare(store: &Store, setup: Setup) -> Self {
        let config = Config {
            token_lifetime: setup.lifetime,
            reuse_grace: setup.forgives,
            seeds: setup.seeds.clone(),
            ..Config::new("demo", "secret")
        };
        let cloud = Cloud::start(config, clock::system()).await.unwrap();
        cloud.faults().issuer_latency = setup.latency;
        let issuer: SocketAddr = cloud
            .origin()
            .strip_prefix("http://")
            .unwrap()
            .parse()
            .unwrap();
        let log = Log::default();
        let mut replicas = Vec::new();
        for number in 0..setup.replicas {
            let to_store = Relay::to_store(store.address).await;
            let to_issuer = Relay::to_issuer(issuer, number, Arc::clone(&log)).await;
            let margin = setup.lifetime / 2;
            let more = format!(
                "token.issuer = \"{}\"\ntoken.proxy = \"socks5://{}\"\ntoken.refresh_margin = \"{}ms\"\n\
                 token.state_file = \"state/token.json\"\ntoken.grace_retry = {}\n\
                 token.store.kind = \"redis\"\ntoken.store.url = \"redis://{}\"\nlog.level = \"debug\"\nretry.cooldown = \"{}s\"\n{}",
                cloud.origin(),
                to_issuer.address,
                margin.as_millis(),
                !setup.forgives.is_zero(),
                to_store.address,
                setup.cooldown.as_secs(),
                setup.more,
            );
            let program = Program::new(cloud.origin(), &more);
            replicas.push(Replica {
                program,
                running: None,
                to_store,
                to_issuer,
                more,
            });
        }
        Self {
            cloud,
            log,
            replicas,
            setup,
        }
    }

    /// Writes the configuration of a replica again, with these lines besides.
    pub(super) fn configure(&self, replica: usize, more: &str) {
        let replica = &self.replicas[replica];
        let lines = format!("{}{more}", replica.more);
        replica.program.configure(self.cloud.origin(), &lines);
    }

    pub(super) async fn ready(&self) {
        for replica in &self.replicas {
            replica.program.ready().await;
        }
    }

    pub(super) fn spent(&self) -> Vec<Spent> {
        self.log.lock().unwrap().clone()
    }

    /// How often each refresh token has reached the issuer.
    pub(super) fn uses(&self) -> BTreeMap<String, usize> {
        let mut uses = BTreeMap::new();
        for spent in self.spent() {
            *uses.entry(spent.token).or_default() += 1;
        }
        uses
    }

    /// No refresh token has reached the issuer twice, and no family is revoked.
    pub(super) fn check(&self, what: &str) {
        let reused: Vec<_> = self
            .uses()
            .into_iter()
            .filter(|(_, uses)| *uses > 1)
            .collect();
        assert!(reused.is_empty(), "{what}: {reused:?}\n{}", self.logs());
        assert_eq!(self.cloud.families_revoked(), 0, "{what}\n{}", self.logs());
    }

    pub(super) fn logs(&self) -> String {
        let logs = self.replicas.iter().map(|replica| replica.program.log());
        let mut text = String::new();
        for (number, log) in logs.enumerate() {
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            text += &format!("replica {number}:\n{}\n", last.join("\n"));
        }
        text
    }

    /// Waits until another refresh token reaches the issuer.
    pub(super) async fn next_call(&self) -> Spent {
        let before = self.spent().len();
        self.until("a call reaches the issuer", async || {
            self.spent().len() > before
        })
        .await;
        self.spent()[before].clone()
    }

    /// Waits for a claim. Returns the replica that owns it.
    pub(super) async fn next_claim(&self, store: &Store) -> usize {
        let mut owner = None;
        self.until("a replica claims", async || {
            owner = self.claimant(store).await;
            owner.is_some()
        })
        .await;
        owner.unwrap()
    }

    pub(super) async fn claimant(&self, store: &Store) -> Option<usize> {
        let shared = store.shared().await?;
        let name = shared["claim"]["name"].as_str()?.to_owned();
        let pid = name.rsplit(':').next()?.parse().ok();
        self.replicas
            .iter()
            .position(|replica| replica.pid() == pid)
    }

    /// The highest generation of the replicas.
    pub(super) async fn generation(&self) -> u64 {
        let mut newest = 0;
        for replica in self
            .replicas
            .iter()
            .filter(|replica| replica.running.is_some())
        {
            newest = newest.max(replica.generation().await);
        }
        newest
    }

    /// Waits until these replicas have a token of a later generation. Returns the time that it took.
    pub(super) async fn until_after(&self, generation: u64, replicas: &[usize]) -> Duration {
        let begin = Instant::now();
        for replica in replicas {
            self.until(
                &format!("replica {replica} has a token after {generation}"),
                async || self.replicas[*replica].generation().await > generation,
            )
            .await;
        }
        begin.elapsed()
    }

    /// All replicas go on together.
    pub(super) async fn goes_on(&self) {
        let all: Vec<_> = (0..self.replicas.len()).collect();
        let generation = self.generation().await;
        self.until_after(generation, &all).await;
    }

    /// Waits for a condition. A failure shows what the replicas have logged.
    pub(super) async fn until(&self, what: &str, condition: impl AsyncFnMut() -> bool) {
        let waiting = eventually(what, condition);
        if timeout(Duration::from_secs(25), waiting).await.is_err() {
            let spent = self.spent();
            panic!("not true in time: {what}\n{spent:#?}\n{}", self.logs());
        }
    }

    /// A round-robin client of these replicas.
    pub(super) fn load(&self, replicas: &[usize]) -> Load {
        let addresses = replicas
            .iter()
            .map(|number| self.replicas[*number].program.address);
        Load::start(addresses.collect())
    }

    /// The time in which a token is refreshed at the latest.
    pub(super) fn lifetime(&self) -> Duration {
        self.setup.lifetime
    }
}

/// A client that sends requests to several replicas in turn.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    client: JoinHandle<Vec<String>>,
}

impl Load {
    fn start(addresses: Vec<SocketAddr>) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (is_over, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let client = tokio::spawn(async move {
            let mut failures = Vec::new();
            for address in addresses.into_iter().cycle() {
                if is_over.load(Relaxed) {
                    break;
                }
                match status(address, "/api/echo.do").await {
                    Some(200) => {}
                    other => failures.push(format!("{address}: {other:?}")),
                }
                count.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(20)).await; // the pace of the load
            }
            failures
        });
        Self { stop, sent, client }
    }

    /// Ends the load. Every request must have succeeded.
    pub(super) async fn finish(self, what: &str) {
        self.stop.store(true, Relaxed);
        let failures = self.client.await.unwrap();
        assert!(failures.is_empty(), "{what}: {failures:?}");
        assert!(self.sent.load(Relaxed) > 0, "{what}: no requests");
    }
}

/// The status of the response to a GET; `None` if there is none.
pub(super) async fn status(address: SocketAddr, path: &str) -> Option<u16> {
    let exchange = async {
        let mut client = Client::connect(address).await;
        client.send(get(path)).await.ok()
    };
    let response = timeout(Duration::from_secs(20), exchange).await.ok()??;
    Some(response.status().as_u16())
}

/// The credential's state in a status.
pub(super) async fn state(replica: &Replica) -> Value {
    replica.program.credential().await
}
