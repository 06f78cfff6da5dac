//! An upstream node whose behaviour changes while a test runs, and that counts what it receives.

use std::{
    convert::Infallible,
    future::{Future, pending},
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    process,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicU16, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use super::web::{Body, whole};

/// What a node does with connections and requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Responds 200 after this time.
    Good(Duration),
    /// Responds with this status at once.
    Status(u16),
    /// Responds with this status to `/healthz`, and 200 to all else.
    Health(u16),
    /// Responds 401 at once, unless the token is `token-N` with at least this number.
    Requires(u64),
    /// Sends half of a response's body, and no more.
    Half,
    /// Reads a request and closes the connection.
    Breaks,
    /// Never responds.
    Silent,
    /// Accepts connections and resets them at once.
    Resets,
    /// Accepts connections and closes them at once.
    Closes,
    /// Refuses connections; closes those that are open, as a killed process does.
    Refuses,
    /// Drops SYNs; connections that are open are closed.
    DropsSyns,
    /// The kernel accepts connections and data, and nothing reads them, as with a process after
    /// SIGSTOP.
    Stopped,
}

/// The behaviour of a good node.
pub const GOOD: Behaviour = Behaviour::Good(Duration::from_millis(20));
/// Refuses every token.
pub const REFUSES_TOKENS: Behaviour = Behaviour::Requires(u64::MAX);

impl Behaviour {
    fn listens(self) -> bool {
        !matches!(self, Self::Refuses | Self::DropsSyns)
    }
}

/// The head of a request that a node received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub token: String,
    /// The port of the peer: which connection it came over.
    pub connection: u16,
}

#[derive(Debug, Default)]
struct Log {
    connections: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
}

/// A server on a loopback address of its own.
#[derive(Debug)]
pub struct Node {
    pub address: SocketAddr,
    is_http2: bool,
    log: Arc<Log>,
    behaviour: watch::Sender<Behaviour>,
    accepting: Option<JoinHandle<()>>,
    /// The listener that never accepts, and the connections that fill its queue.
    black_hole: Vec<Socket>,
}

impl Node {
    pub async fn start(behaviour: Behaviour) -> Self {
        Self::start_as(behaviour, false).await
    }

    /// A node that speaks HTTP/2 with prior knowledge alone.
    pub async fn start_http2(behaviour: Behaviour) -> Self {
        Self::start_as(behaviour, true).await
    }

    async fn start_as(behaviour: Behaviour, is_http2: bool) -> Self {
        // An address that no other test uses: the port stays free while nothing listens on it.
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let [high, low] = NEXT.fetch_add(1, Relaxed).to_be_bytes();
        let own = u8::try_from(1 + process::id() % 250).unwrap();
        let address = SocketAddr::from((Ipv4Addr::new(127, own, high, low), 0));
        let listener = TcpListener::bind(address).await.unwrap();
        let mut node = Self {
            address: listener.local_addr().unwrap(),
            is_http2,
            log: Arc::default(),
            behaviour: watch::Sender::new(GOOD),
            accepting: None,
            black_hole: Vec::new(),
        };
        node.accept_on(listener);
        node.set(behaviour).await;
        node
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes the behaviour. It applies when this returns.
    pub async fn set(&mut self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
        self.black_hole.clear();
        if !behaviour.listens() {
            self.close().await;
        }
        if behaviour == Behaviour::DropsSyns {
            self.black_hole = black_hole(self.address);
        } else if behaviour.listens() && self.accepting.is_none() {
            let listener = TcpListener::bind(self.address).await.unwrap();
            self.accept_on(listener);
        }
    }

    /// Closes the port and all connections, in the middle of responses too, and listens again.
    pub async fn restart(&mut self) {
        let behaviour = *self.behaviour.borrow();
        self.set(Behaviour::Refuses).await;
        self.set(behaviour).await;
    }

    async fn close(&mut self) {
        if let Some(task) = self.accepting.take() {
            task.abort();
            let _ = task.await;
        }
    }

    fn accept_on(&mut self, listener: TcpListener) {
        let (log, is_http2) = (Arc::clone(&self.log), self.is_http2);
        let mut behaviour = self.behaviour.subscribe();
        self.accepting = Some(tokio::spawn(async move {
            // Connections end with the task that accepted them.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let now = *behaviour.borrow_and_update();
                let stream = tokio::select! {
                    stream = listener.accept(), if now != Behaviour::Stopped => stream.unwrap().0,
                    _ = connections.join_next(), if !connections.is_empty() => continue,
                    changed = behaviour.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                };
                log.connections.fetch_add(1, SeqCst);
                stream.set_nodelay(true).unwrap();
                match *behaviour.borrow() {
                    Behaviour::Resets => reset(&stream),
                    Behaviour::Closes => {}
                    _ => {
                        let (log, behaviour) = (Arc::clone(&log), behaviour.clone());
                        connections.spawn(serve(stream, is_http2, log, behaviour));
                    }
                }
            }
        }));
    }

    /// The number of accepted connections.
    pub fn connections(&self) -> usize {
        self.log.connections.load(SeqCst)
    }

    /// The largest number of requests without a response at a time.
    pub fn most_at_once(&self) -> usize {
        self.log.most_at_once.load(SeqCst)
    }

    /// All requests, in the order in which they arrived.
    pub fn seen(&self) -> Vec<Seen> {
        self.log.seen.lock().unwrap().clone()
    }

    /// The number of requests.
    pub fn count(&self) -> usize {
        self.log.seen.lock().unwrap().len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(task) = &self.accepting {
            task.abort();
        }
    }
}

fn reset(stream: &TcpStream) {
    SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// A listener with a full queue: the kernel drops further SYNs.
fn black_hole(address: SocketAddr) -> Vec<Socket> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.set_reuse_address(true).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let callers = (0..4).map(|_| {
        let caller = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        caller.set_nonblocking(true).unwrap();
        let _ = caller.connect(&address.into()); // in progress
        caller
    });
    let mut held: Vec<Socket> = callers.collect();
    held.push(listener);
    held
}

/// Serves one connection, except while the node is stopped.
async fn serve(
    stream: TcpStream,
    is_http2: bool,
    log: Arc<Log>,
    mut behaviour: watch::Receiver<Behaviour>,
) {
    let connection = stream.peer_addr().map_or(0, |peer| peer.port());
    let current = behaviour.clone();
    let service = service_fn(move |request| {
        let (log, behaviour) = (Arc::clone(&log), *current.borrow());
        async move {
            let response = respond(request, connection, &log, behaviour).await;
            match behaviour {
                Behaviour::Breaks => Err(io::Error::other("the node breaks off")),
                _ => Ok(response),
            }
        }
    });
    let io = TokioIo::new(stream);
    if is_http2 {
        let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
        while_it_runs(serving, &mut behaviour).await;
    } else {
        let serving = http1::Builder::new().serve_connection(io, service);
        while_it_runs(serving, &mut behaviour).await;
    }
}

async fn while_it_runs(
    serving: impl Future<Output = hyper::Result<()>>,
    behaviour: &mut watch::Receiver<Behaviour>,
) {
    let mut serving = pin!(serving);
    loop {
        let is_stopped = *behaviour.borrow_and_update() == Behaviour::Stopped;
        tokio::select! {
            _ = &mut serving, if !is_stopped => return,
            changed = behaviour.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Counts a request until its response begins.
struct AtOnce<'a>(&'a Log);

impl<'a> AtOnce<'a> {
    fn begin(log: &'a Log) -> Self {
        let now = log.at_once.fetch_add(1, SeqCst) + 1;
        log.most_at_once.fetch_max(now, SeqCst);
        Self(log)
    }
}

impl Drop for AtOnce<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, SeqCst);
    }
}

async fn respond(
    request: Request<Incoming>,
    connection: u16,
    log: &Log,
    behaviour: Behaviour,
) -> Response<Body> {
    let token = request.headers().get(header::AUTHORIZATION);
    let token = token.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let token = token.unwrap_or_default().to_owned();
    let number: u64 = token
        .strip_prefix("token-")
        .map_or(0, |number| number.parse().unwrap());
    let path = request.uri().path().to_owned();
    // Counted by its head: a request whose body breaks off has been seen as well.
    log.seen.lock().unwrap().push(Seen {
        method: request.method().to_string(),
        target: path.clone(),
        token,
        connection,
    });
    let _at_once = AtOnce::begin(log);
    let has_body = request.into_body().collect().await.is_ok();
    let status = match behaviour {
        _ if !has_body => 400,
        Behaviour::Good(delay) => {
            tokio::time::sleep(delay).await;
            200
        }
        Behaviour::Status(status) => status,
        Behaviour::Health(status) if path == "/healthz" => status,
        Behaviour::Requires(least) if number < least => 401,
        Behaviour::Silent => pending().await,
        _ => 200,
    };
    let mut response = Response::new(whole("ok"));
    if behaviour == Behaviour::Half {
        let half = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"half")));
        let frames = stream::iter([half]).chain(stream::pending());
        *response.body_mut() = StreamBody::new(frames).boxed_unsync();
        let length = header::HeaderValue::from_static("100");
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
    }
    *response.status_mut() = status.try_into().unwrap();
    response
}
