//! What happens to the issuer, the cloud, the process and its files: independent sequences of
//! faults, each with random pauses.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use super::{Lane, issuer::Mode, random::Random, verdict::Why};
use crate::common::get;

/// What an operator, or the machine, does to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The machine sleeps.
    Pause,
    /// The machine sleeps while a response of the issuer is in the socket.
    PauseInCall,
    Reload,
    /// A new client secret; its file follows later.
    NewSecret,
    /// The cloud revokes its access tokens.
    RevokeAccess,
    /// An administrator revokes all tokens; a new refresh token follows later.
    Withdraw,
    /// The current refresh token is copied to the file of the configured one.
    CopyToken,
    /// The state file disappears.
    DeleteState,
    /// An older state file is put back.
    RestoreState,
    /// The mode of the state file changes.
    ChangeMode,
    Restart,
    Kill,
}

const ALWAYS: [Event; 15] = [
    Event::Pause,
    Event::Pause,
    Event::PauseInCall,
    Event::PauseInCall,
    Event::Reload,
    Event::NewSecret,
    Event::NewSecret,
    Event::RevokeAccess,
    Event::RevokeAccess,
    Event::RevokeAccess,
    Event::Withdraw,
    Event::CopyToken,
    Event::CopyToken,
    Event::ChangeMode,
    Event::ChangeMode,
];
const RESTARTING: [Event; 6] = [
    Event::Restart,
    Event::Restart,
    Event::Restart,
    Event::Kill,
    Event::Kill,
    Event::Kill,
];
const FILES: [Event; 2] = [Event::DeleteState, Event::RestoreState];

/// Starts all sequences.
pub fn start(lane: &Arc<Lane>) -> Vec<tokio::task::JoinHandle<()>> {
    vec![
        tokio::spawn(issuer(Arc::clone(lane))),
        tokio::spawn(cloud(Arc::clone(lane))),
        tokio::spawn(disk(Arc::clone(lane))),
        tokio::spawn(log(Arc::clone(lane))),
        tokio::spawn(events(Arc::clone(lane))),
    ]
}

async fn issuer(lane: Arc<Lane>) {
    let mut random = Random::new(lane.seed, &format!("{} modes", lane.name));
    let modes: &[Mode] = if lane.rules.grace.is_zero() {
        &[
            Mode::Odd,
            Mode::Odd,
            Mode::Odd,
            Mode::Failing,
            Mode::Silent,
            Mode::Closed,
        ]
    } else {
        &[
            Mode::Odd,
            Mode::Odd,
            Mode::Lossy,
            Mode::Lossy,
            Mode::Failing,
            Mode::Silent,
            Mode::Closed,
        ]
    };
    while !lane.is_over() {
        set_mode(&lane, Mode::Normal);
        sleep(random.millis(3000..9000)).await; // between faults
        set_mode(&lane, random.pick(modes));
        sleep(random.millis(1000..6000)).await; // the length of the fault
    }
    set_mode(&lane, Mode::Normal);
}

fn set_mode(lane: &Lane, mode: Mode) {
    lane.note(&format!("issuer: {mode:?}"));
    let mut issuer = lane.issuer.lock().unwrap();
    if !matches!(issuer.mode, Mode::Normal | Mode::Odd) {
        issuer.note_fault();
    }
    issuer.mode = mode;
}

async fn cloud(lane: Arc<Lane>) {
    let mut random = Random::new(lane.seed, &format!("{} nodes", lane.name));
    while !lane.is_over() {
        sleep(random.millis(1000..4000)).await; // between faults
        let fault = random.pick(&[
            &lane.cloud.has_faulty_node,
            &lane.cloud.is_breaking,
            &lane.cloud.is_breaking,
        ]);
        fault.store(true, Relaxed);
        lane.note(if lane.cloud.has_faulty_node.load(Relaxed) {
            "cloud: a faulty node"
        } else {
            "cloud: connections break"
        });
        sleep(random.millis(1000..5000)).await; // the length of the fault
        fault.store(false, Relaxed);
        lane.note("cloud: no fault");
    }
}

async fn disk(lane: Arc<Lane>) {
    let mut random = Random::new(lane.seed, &format!("{} disk", lane.name));
    while !lane.is_over() {
        sleep(random.millis(4000..12_000)).await; // between faults
        // A clean restart on a full disk loses the newest tokens: it waits for the end of this.
        let _turn = lane.disk.lock().await;
        let room = random.within(0..400);
        lane.note(&format!("disk: {room} bytes are free"));
        *lane.process.room.lock().unwrap() = Some(room);
        lane.process.limit_files();
        sleep(random.millis(1000..10_000)).await; // the length of the fault
        *lane.process.room.lock().unwrap() = None;
        lane.process.limit_files();
        lane.note("disk: free");
    }
}

async fn log(lane: Arc<Lane>) {
    let mut random = Random::new(lane.seed, &format!("{} log", lane.name));
    while !lane.is_over() {
        sleep(random.millis(1000..5000)).await; // between faults
        lane.process.is_log_blocked.store(true, Relaxed);
        sleep(random.millis(1000..10_000)).await; // the length of the fault
        lane.process.is_log_blocked.store(false, Relaxed);
    }
}

async fn events(lane: Arc<Lane>) {
    let mut random = Random::new(lane.seed, &format!("{} events", lane.name));
    let mut choices = ALWAYS.to_vec();
    if lane.rules.is_restarted {
        choices.extend(RESTARTING);
    }
    if lane.rules.loses_files {
        choices.extend(FILES);
    }
    while !lane.is_over() {
        sleep(random.millis(500..5000)).await; // between events
        let event = random.pick(&choices);
        lane.note(&format!("event: {event:?}"));
        *lane
            .events
            .lock()
            .unwrap()
            .entry(format!("{event:?}"))
            .or_default() += 1;
        happen(&lane, &mut random, event).await;
        revive(&lane).await;
    }
}

async fn happen(lane: &Arc<Lane>, random: &mut Random, event: Event) {
    let process = &lane.process;
    let program = &process.program;
    match event {
        Event::Pause => {
            process.pause(lane);
            sleep(random.millis(1000..5000)).await; // the length of the pause
            process.resume(lane);
        }
        Event::PauseInCall => {
            lane.issuer.lock().unwrap().stop_in_next_call = true;
            let stopped = timeout(Duration::from_secs(10), process.stopped_in_call.notified());
            if stopped.await.is_ok() {
                sleep(random.millis(2500..4000)).await; // longer than token.timeout
            }
            lane.issuer.lock().unwrap().stop_in_next_call = false;
            process.resume(lane);
        }
        Event::Reload => process.signal(Signal::HUP),
        Event::NewSecret => {
            let secret = format!("secret-{}", random.next() % 10_000);
            lane.issuer.lock().unwrap().secret.clone_from(&secret);
            sleep(random.millis(0..4000)).await; // until the operator follows
            program.write("client_secret", secret);
            lane.issuer.lock().unwrap().note_fault();
            if random.percent(50) {
                process.signal(Signal::HUP);
            }
        }
        Event::RevokeAccess => lane.issuer.lock().unwrap().revoke_access_tokens(),
        Event::Withdraw => {
            lane.issuer.lock().unwrap().withdraw();
            sleep(random.millis(1000..5000)).await; // until the operator follows
        }
        Event::CopyToken => {
            if let Some(stored) = process.stored() {
                program.write("refresh_token", stored);
            }
        }
        Event::DeleteState => {
            let _ = fs::remove_file(process.state_file());
        }
        Event::RestoreState => {
            if let Ok(older) = fs::read(process.state_file()) {
                sleep(random.millis(1000..6000)).await; // the age of the backup
                let _ = fs::write(process.state_file(), older);
            }
        }
        Event::ChangeMode => {
            let mode = random.pick(&[0o660, 0o640, 0o644, 0o666, 0o777]);
            let _ = fs::set_permissions(process.state_file(), fs::Permissions::from_mode(mode));
        }
        Event::Restart => {
            let _free = lane.disk.lock().await;
            restart(lane, Signal::TERM, Why::Restart, random).await;
        }
        Event::Kill => restart(lane, Signal::KILL, Why::Kill, random).await,
    }
}

async fn restart(lane: &Arc<Lane>, signal: Signal, why: Why, random: &mut Random) {
    lane.outages.lock().unwrap().begin(why);
    lane.process.end(lane, signal).await;
    if signal == Signal::KILL
        && let Some(stored) = lane.process.stored()
    {
        let configured = lane.process.program.read("refresh_token");
        let mut issuer = lane.issuer.lock().unwrap();
        let is_lost = issuer.is_spent(&stored);
        if is_lost || !issuer.is_of_newest_family(&stored) {
            // That the configured one was used is not stored either.
            issuer.note_kill(configured);
        }
        issuer.note_kill(stored);
        drop(issuer);
        if is_lost && lane.rules.grace.is_zero() {
            *lane
                .events
                .lock()
                .unwrap()
                .entry("Kill with a lost token".to_owned())
                .or_default() += 1;
            if random.percent(50) {
                new_seed(lane);
            }
        }
    }
    sleep(random.millis(0..1500)).await; // the process is down
    lane.process.start(lane).await;
    lane.issuer.lock().unwrap().note_fault();
    lane.outages.lock().unwrap().end();
    lane.note("the program runs");
}

/// Writes a refresh token of a new family, as an operator does.
pub fn new_seed(lane: &Lane) {
    let seed = lane.issuer.lock().unwrap().new_seed();
    lane.note(&format!("operator: {seed}"));
    lane.process.program.write("refresh_token", seed);
}

/// What an operator does when the credential is dead.
pub async fn revive(lane: &Arc<Lane>) {
    let is_alive = lane.issuer.lock().unwrap().is_alive();
    if !is_alive {
        return new_seed(lane);
    }
    let status = super::apps::request_once(lane.process.program.admin, get("/status")).await;
    let Ok(status) = status else { return };
    let status: serde_json::Value = serde_json::from_slice(status.body()).unwrap_or_default();
    let credential = &status["credentials"][0];
    if credential["state"] != "dead" {
        return;
    }
    let fault_free = lane.issuer.lock().unwrap().fault_free();
    if fault_free > Duration::from_secs(5) {
        let reason = credential["reason"].to_string();
        lane.unexplained(&format!("dead while the refresh token is valid: {reason}"));
    }
    if credential["reason"] != "client_refused" {
        new_seed(lane);
    }
}
