//! The program: its process, what it writes to the log, its limits and its resources.

use std::{
    fs,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::unix::pipe::Receiver,
    sync::Notify,
    time::{Instant, sleep},
};

use super::{Lane, cloud::COOLDOWN, verdict::BODY_LIMIT};
use crate::common::{
    LIMIT, get,
    process::{Program, Running, command},
};

/// `SOAK_PROGRAM` names another one.
const PROGRAM: &str = env!("CARGO_BIN_EXE_bearer-proxy");

/// A shutdown ends within this time: no request of an app takes longer.
const SHUTDOWN: Duration = Duration::from_secs(20);

/// The process of a lane and the faults of its environment.
pub struct Process {
    pub program: Program,
    running: Mutex<Option<Running>>,
    /// Nothing reads the log.
    pub is_log_blocked: AtomicBool,
    /// The size in bytes at which a write to a file fails, as on a full disk.
    pub room: Mutex<Option<u64>>,
    /// The process was stopped by the issuer, in the middle of a call.
    pub stopped_in_call: Notify,
    /// When the process last went on after a stop, in milliseconds since the start of the lane.
    resumed: AtomicU64,
    pub panics: AtomicU64,
    pub samples: Mutex<Vec<Sample>>,
}

/// The resources that a process uses at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub age: u64,
    /// Resident memory in KiB.
    pub memory: u64,
    pub descriptors: usize,
}

impl Process {
    pub fn new(cloud: &str, issuer: &str) -> Self {
        let more = format!(
            "token.issuer = \"{issuer}\"\n\
             token.client_secret_file = \"client_secret\"\n\
             token.refresh_token_file = \"refresh_token\"\n\
             token.timeout = \"{timeout}s\"\n\
             token.wait = \"5s\"\n\
             token.default_expires_in = \"{lifetime}s\"\n\
             proxy.workers = 2\n\
             upstream.response_timeout = \"20s\"\n\
             upstream.idle_timeout = \"3s\"\n\
             retry.body_limit = \"{BODY_LIMIT}B\"\n\
             retry.cooldown = \"{COOLDOWN}s\"\n\
             log.access = \"all\"\n\
             log.format = \"text\"\n",
            timeout = super::issuer::TIMEOUT,
            lifetime = super::issuer::DEFAULT_LIFETIME,
        );
        Self {
            program: Program::with_state(cloud, &more),
            running: Mutex::new(None),
            is_log_blocked: AtomicBool::new(false),
            room: Mutex::new(None),
            stopped_in_call: Notify::new(),
            resumed: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            samples: Mutex::default(),
        }
    }

    pub fn state_file(&self) -> PathBuf {
        self.program.path("state/token.json")
    }

    /// The refresh token in the state file.
    pub fn stored(&self) -> Option<String> {
        let text = fs::read_to_string(self.state_file()).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(json["refresh_token"].as_str()?.to_owned())
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(running) = &*self.running.lock().unwrap() {
            // Fails if the process has just ended.
            let _ = kill_process(Pid::from_child(&running.0), signal);
        }
    }

    /// Stops the process, as a machine that sleeps.
    pub fn pause(&self, lane: &Lane) {
        lane.note("SIGSTOP");
        self.signal(Signal::STOP);
    }

    pub fn resume(&self, lane: &Lane) {
        self.signal(Signal::CONT);
        self.resumed.store(lane.age(), Relaxed);
        lane.issuer.lock().unwrap().note_fault();
        lane.note("SIGCONT");
    }

    /// Whether the process was stopped a short time ago: time that a request waited has passed.
    pub fn was_stopped(&self, lane: &Lane) -> bool {
        lane.age() < self.resumed.load(Relaxed) + 2000
    }

    /// Starts the program until its listeners are open.
    pub async fn start(&self, lane: &Arc<Lane>) {
        while let Err(status) = self.try_start(lane).await {
            lane.unexplained(&format!("the program does not start: {status}"));
            sleep(Duration::from_secs(1)).await; // the pause of a service manager
        }
    }

    /// Starts the program. Returns when its listeners are open.
    ///
    /// # Errors
    /// When it ends before that.
    ///
    /// Writes over the limit of [`Process::limit_files`] fail with an error only if the signal
    /// SIGXFSZ is ignored, which the shell arranges.
    async fn try_start(&self, lane: &Arc<Lane>) -> Result<(), ExitStatus> {
        let folder = self.program.folder.path();
        let script = "trap '' XFSZ; exec \"$0\" run";
        let child = command("/bin/sh", folder)
            .args(["-c", script])
            .arg(std::env::var_os("SOAK_PROGRAM").unwrap_or_else(|| PROGRAM.into()))
            // Freed memory returns to the system at once: resident memory is memory in use.
            .env("MIMALLOC_PURGE_DELAY", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut running = Running(child.unwrap());
        let log = OwnedFd::from(running.0.stderr.take().unwrap());
        let log = Receiver::from_owned_fd(log).unwrap();
        *self.running.lock().unwrap() = Some(running);
        let reader = Arc::clone(lane);
        tokio::spawn(async move { reader.process.read_log(&reader, log).await });
        self.limit_files();
        let begin = Instant::now();
        while !self.is_up().await {
            assert!(begin.elapsed() < LIMIT, "the program does not start");
            if let Some(status) = self.exited() {
                return Err(status);
            }
            sleep(Duration::from_millis(10)).await; // polls until it listens
        }
        Ok(())
    }

    fn exited(&self) -> Option<ExitStatus> {
        let mut running = self.running.lock().unwrap();
        running.as_mut()?.0.try_wait().unwrap()
    }

    async fn is_up(&self) -> bool {
        let live = super::apps::request_once(self.program.admin, get("/healthz")).await;
        live.is_ok_and(|response| response.status() == 200)
            && tokio::net::TcpStream::connect(self.program.address)
                .await
                .is_ok()
    }

    /// Sends a signal that ends the process, and waits for the end.
    pub async fn end(&self, lane: &Lane, signal: Signal) {
        let running = self.running.lock().unwrap().take();
        let Some(mut running) = running else { return };
        running.signal(signal);
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = running.0.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < 2 * LIMIT, "the program does not end");
            sleep(Duration::from_millis(5)).await; // polls until it ends
        };
        let duration = begin.elapsed();
        lane.note(&format!("{signal:?}: {status} after {duration:.1?}"));
        if signal == Signal::TERM && status.code() != Some(0) {
            lane.unexplained(&format!("the program ended with {status}"));
        }
        if duration > SHUTDOWN {
            lane.unexplained(&format!("{signal:?}: the program ended late"));
        }
    }

    /// Applies `room` to the process: writes beyond this offset of a file fail.
    pub fn limit_files(&self) {
        if let Some(running) = &*self.running.lock().unwrap() {
            let maximum = getrlimit(Resource::Fsize).maximum;
            let current = self.room.lock().unwrap().or(maximum);
            let limit = Rlimit { current, maximum };
            // Fails if the process has just ended.
            let _ = prlimit(Some(Pid::from_child(&running.0)), Resource::Fsize, limit);
        }
    }

    /// Reads the log until the process ends, except while it is blocked.
    async fn read_log(&self, lane: &Lane, log: Receiver) {
        let mut lines = BufReader::new(log).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            while self.is_log_blocked.load(Relaxed) {
                sleep(Duration::from_millis(20)).await; // polls the end of the fault
            }
            let line = String::from_utf8_lossy(&line);
            if line.contains("panicked") {
                self.panics.fetch_add(1, Relaxed);
            }
            if !line.contains(" INFO request ") {
                lane.note(&format!("log: {line}"));
            }
        }
    }

    /// The resources in use; `None` while the process does not run.
    pub fn sample(&self, age: u64) -> Option<Sample> {
        let running = self.running.lock().unwrap();
        let running = running.as_ref()?;
        // A process that has ended and was not waited for has no memory.
        let status = fs::read_to_string(format!("/proc/{}/status", running.0.id())).ok()?;
        status.contains("VmRSS").then(|| Sample {
            age,
            memory: running.memory("VmRSS"),
            descriptors: running.descriptors(),
        })
    }

    /// Ends every fault of the environment.
    pub fn end_faults(&self, lane: &Lane) {
        self.is_log_blocked.store(false, Relaxed);
        *self.room.lock().unwrap() = None;
        self.limit_files();
        self.resume(lane);
    }
}
