//! A simulated register for tests: replicas reach it, or do not, as a test decides.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::{
    fence::Fence,
    info::RegisterInfo,
    register::{Reading, Register, RegisterError, Replaced, Revision, Value},
};
pub(in crate::token) use super::{member::Identity, seal::Seal, shared::Shared};
use crate::{
    base::clock::{Clock as _, Moment, SharedClock, Simulated},
    token::store::Owner,
};

/// A command takes that long to the server, and that long back.
const WAY: Duration = Duration::from_millis(1);
const COMMAND_TIMEOUT: Duration = Duration::from_millis(500);
/// Values that a failover can bring back.
const HISTORY: usize = 8;

/// The server.
pub(in crate::token) struct Server {
    clock: Arc<Simulated>,
    state: Mutex<State>,
    pub(in crate::token) reads: AtomicU64,
}

#[derive(Default)]
struct State {
    value: Option<Value>,
    history: VecDeque<Option<Value>>,
    /// Identifies the process of the server.
    incarnation: u64,
    frozen_until: Moment,
    down_until: Moment,
}

/// The connection of one replica.
#[derive(Clone)]
pub(in crate::token) struct Link {
    server: Arc<Server>,
    link: Arc<Mutex<LinkState>>,
}

#[derive(Default)]
struct LinkState {
    cut_until: Moment,
    /// The incarnation that the connection leads to.
    incarnation: Option<u64>,
    connections: u64,
    silent: u32,
}

impl Server {
    pub(in crate::token) fn new(clock: Arc<Simulated>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            state: Mutex::default(),
            reads: AtomicU64::new(0),
        })
    }

    pub(in crate::token) fn link(self: &Arc<Self>) -> Link {
        Link {
            server: Arc::clone(self),
            link: Arc::default(),
        }
    }

    /// It reads no command for this time; those that are sent are carried out afterwards.
    pub(in crate::token) fn freeze(&self, time: Duration) {
        self.state.lock().frozen_until = self.clock.now() + time;
    }

    /// It starts anew after this time. All connections break.
    pub(in crate::token) fn restart(&self, time: Duration) {
        let mut state = self.state.lock();
        state.incarnation += 1;
        state.down_until = self.clock.now() + time;
    }

    /// The last `writes` are lost.
    pub(in crate::token) fn lose(&self, writes: usize) {
        let mut state = self.state.lock();
        for _ in 0..writes {
            if let Some(value) = state.history.pop_back() {
                state.value = value;
            }
        }
    }

    pub(in crate::token) fn wipe(&self) {
        self.state.lock().value = None;
    }

    pub(in crate::token) fn put(&self, bytes: &[u8]) {
        self.state.lock().value = Some(Value {
            revision: Revision(1),
            bytes: bytes.to_vec().into(),
        });
    }

    pub(in crate::token) fn bytes(&self) -> Option<Vec<u8>> {
        let state = self.state.lock();
        state.value.as_ref().map(|value| value.bytes.to_vec())
    }

    pub(in crate::token) fn shared(&self, owner: &Owner) -> Option<Shared> {
        let bytes = self.bytes()?;
        Some(Shared::from_bytes(&bytes, owner).expect("a shared record"))
    }
}

impl Link {
    /// Nothing passes for this time.
    pub(in crate::token) fn cut(&self, time: Duration) {
        self.link.lock().cut_until = self.server.clock.now() + time;
    }

    fn is_cut(&self) -> bool {
        self.link.lock().cut_until > self.server.clock.now()
    }

    /// The incarnation of the server and the number of the connection.
    fn connect(&self) -> Option<(u64, u64)> {
        let now = self.server.clock.now();
        let state = self.server.state.lock();
        let mut link = self.link.lock();
        let is_down = state.down_until > now;
        if is_down {
            link.incarnation = None;
        }
        if link.incarnation != Some(state.incarnation) || link.silent >= 2 {
            if is_down || link.cut_until > now || state.frozen_until > now {
                return None;
            }
            link.incarnation = Some(state.incarnation);
            link.connections += 1;
            link.silent = 0;
        }
        Some((state.incarnation, link.connections))
    }

    /// Carries `command` out, whether or not the response arrives in time.
    async fn send<T: Send + 'static>(
        &self,
        command: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<(T, u64), RegisterError> {
        let unreachable = || RegisterError::Unreachable("simulated".to_owned());
        let clock = Arc::clone(&self.server.clock);
        let deadline = clock.now() + COMMAND_TIMEOUT;
        let Some((incarnation, connection)) = self.connect() else {
            clock
                .sleep_until(clock.now() + Duration::from_millis(100))
                .await;
            return Err(unreachable());
        };
        let link = self.clone();
        let work = async move {
            clock.sleep_until(clock.now() + WAY).await;
            if link.is_cut() {
                return std::future::pending().await;
            }
            loop {
                let frozen_until = link.server.state.lock().frozen_until;
                if frozen_until <= clock.now() {
                    break;
                }
                clock.sleep_until(frozen_until).await;
            }
            let done = {
                let mut state = link.server.state.lock();
                if state.incarnation != incarnation {
                    None
                } else {
                    Some(command(&mut state))
                }
            };
            clock.sleep_until(clock.now() + WAY).await;
            match done {
                Some(done) if !link.is_cut() => done,
                _ => std::future::pending().await,
            }
        };
        // In a task: a command that was sent is carried out although no task waits for it any more.
        let mut task = tokio::spawn(work);
        tokio::select! {
            done = &mut task => {
                self.link.lock().silent = 0;
                done.map(|done| (done, connection)).map_err(|_| unreachable())
            }
            () = self.server.clock.sleep_until(deadline) => {
                self.link.lock().silent += 1;
                Err(unreachable())
            }
        }
    }
}

impl Register for Link {
    fn read(&self) -> BoxFuture<'_, Result<Reading, RegisterError>> {
        self.server.reads.fetch_add(1, Relaxed);
        let clock = Arc::clone(&self.server.clock);
        Box::pin(async move {
            let read = move |state: &mut State| (state.value.clone(), clock.wall());
            let ((value, time), connection) = self.send(read).await?;
            Ok(Reading {
                value,
                time: time + Duration::from_secs(12345),
                connection,
            })
        })
    }

    fn replace(
        &self,
        seen: Option<Revision>,
        new: Value,
    ) -> BoxFuture<'_, Result<Replaced, RegisterError>> {
        Box::pin(async move {
            let replace = move |state: &mut State| {
                if state.value.as_ref().map(|value| value.revision) != seen {
                    return Replaced::Moved;
                }
                let old = state.value.replace(new);
                state.history.push_back(old);
                if state.history.len() > HISTORY {
                    state.history.pop_front();
                }
                Replaced::Done
            };
            let (replaced, _) = self.send(replace).await?;
            Ok(replaced)
        })
    }

    fn info(&self) -> Arc<RegisterInfo> {
        Arc::default()
    }
}

/// The bytes of an empty record of this owner.
pub(in crate::token) fn empty_record(owner: &Owner) -> Vec<u8> {
    let bytes = Shared::default().to_bytes(owner);
    bytes.expect("it can be written").to_vec()
}

/// The fence of a claim that was lost.
pub(in crate::token) fn closed_fence(clock: SharedClock) -> Fence {
    let now = clock.now();
    let fence = Fence::new(clock, now, None);
    fence.lose();
    fence
}
