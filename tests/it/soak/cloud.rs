//! The simulated cloud behind three nodes. `/file` sends a file, `/echo` sends a request's body
//! back, `/forbidden` always refuses. Nodes refuse good tokens and connections break during the
//! periods of these faults; every attempt of a request is recorded.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

use super::{
    Lane,
    issuer::Verdict,
    random::{Random, content},
};
use crate::common::{
    read_head,
    upstream::{Request, read_body},
};

/// `retry.cooldown` in seconds.
pub const COOLDOWN: u64 = 4;

/// Connections are distributed over this many nodes in turn.
pub const NODES: u64 = 3;
/// The node that refuses good tokens while [`Cloud::has_faulty_node`].
const FAULTY: u64 = 1;

#[derive(Default)]
pub struct Cloud {
    /// One node refuses every token.
    pub has_faulty_node: AtomicBool,
    /// Connections break.
    pub is_breaking: AtomicBool,
    connections: AtomicU64,
    /// The milliseconds since the start of the lane when an idle connection was last closed.
    last_idle_close: AtomicU64,
    /// The same of a replay with a newer token that the faulty node refused.
    last_refused_replay: AtomicU64,
    attempts: std::sync::Mutex<HashMap<u64, Vec<Attempt>>>,
}

/// What happened to a request that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    pub connection: u64,
    /// Whether it is the first request on its connection.
    pub is_first: bool,
    /// The serial of its access token; 0: unknown.
    pub token: u64,
    /// Whether the cloud had accepted that token before.
    pub was_accepted: bool,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Processed, with a complete response.
    Applied,
    /// The token is not valid.
    Refused,
    /// Refused by the node that refuses every token.
    RefusedByFaultyNode,
    /// The path always refuses.
    Forbidden,
    /// Not processed: the connection was closed before a response.
    Cut,
    /// Processed, and the connection was closed before a response.
    AppliedThenCut,
    /// Processed; the connection was closed within the response's body.
    CutInBody,
}

impl Attempt {
    pub fn is_refused(&self) -> bool {
        matches!(
            self.outcome,
            Outcome::Refused | Outcome::RefusedByFaultyNode | Outcome::Forbidden
        )
    }

    pub fn is_applied(&self) -> bool {
        matches!(
            self.outcome,
            Outcome::Applied | Outcome::AppliedThenCut | Outcome::CutInBody
        )
    }
}

impl Cloud {
    pub fn take_attempts(&self, id: u64) -> Vec<Attempt> {
        self.attempts
            .lock()
            .unwrap()
            .remove(&id)
            .unwrap_or_default()
    }

    /// Whether the faulty node refused a replay a short time ago. Until a request like it is
    /// accepted, a newer token counts as no help for such requests.
    pub fn refused_replay(&self, lane: &Lane) -> bool {
        let last = self.last_refused_replay.load(Relaxed);
        last > 0 && lane.age() < last + 1000 * COOLDOWN
    }

    /// Whether an idle connection was closed within the last second.
    pub fn closed_idle_connection(&self, lane: &Lane) -> bool {
        lane.age() < self.last_idle_close.load(Relaxed) + 1000
    }
}

/// Closes a connection by a reset.
pub fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

pub async fn listen(lane: Arc<Lane>, listener: TcpListener) {
    loop {
        let (stream, _): (_, SocketAddr) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(serve(Arc::clone(&lane), stream));
    }
}

async fn serve(lane: Arc<Lane>, stream: TcpStream) -> io::Result<()> {
    let number = lane.cloud.connections.fetch_add(1, Relaxed);
    let mut connection = Connection {
        random: Random::new(lane.seed, &format!("{} cloud {number}", lane.name)),
        stream: BufReader::new(stream),
        number,
        requests: 0,
        lane,
    };
    while connection.exchange().await? {
        connection.requests += 1;
    }
    Ok(())
}

struct Connection {
    lane: Arc<Lane>,
    stream: BufReader<TcpStream>,
    random: Random,
    number: u64,
    requests: u64,
}

impl Connection {
    /// Serves one request. False if the connection ends.
    async fn exchange(&mut self) -> io::Result<bool> {
        if self.requests > 0 && self.is_breaking(10) {
            let idle = self.random.millis(0..30);
            if timeout(idle, self.stream.fill_buf()).await.is_err() {
                let cloud = &self.lane.cloud;
                cloud.last_idle_close.store(self.lane.age(), Relaxed);
                return Ok(false);
            }
        }
        let head = read_head(&mut self.stream).await?;
        if head.is_empty() {
            return Ok(false);
        }
        let mut request = Request {
            connection: 0,
            number: 0,
            arrived: Instant::now(),
            head,
            body: Vec::new(),
        };
        if self.is_breaking(4) {
            self.record(&request, Outcome::Cut);
            return self.cut();
        }
        match self.refusal(&request) {
            Some(outcome) => {
                self.record(&request, outcome);
                self.refuse(&request).await
            }
            None => {
                if !request.fields("expect").is_empty() {
                    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
                    self.stream.get_mut().write_all(interim).await?;
                }
                request.body = read_body(&mut self.stream, &request.head).await?;
                self.respond(&request).await
            }
        }
    }

    fn is_breaking(&mut self, percent: u64) -> bool {
        self.lane.cloud.is_breaking.load(Relaxed) && self.random.percent(percent)
    }

    /// Why the request is refused; `None` if its token is good.
    fn refusal(&mut self, request: &Request) -> Option<Outcome> {
        let verdict = self.lane.issuer.lock().unwrap().check(request.token());
        let has_faulty_node = self.lane.cloud.has_faulty_node.load(Relaxed);
        if let Verdict::Refused { .. } = verdict {
            Some(Outcome::Refused)
        } else if has_faulty_node && self.number % NODES == FAULTY {
            Some(Outcome::RefusedByFaultyNode)
        } else if request.path().starts_with("/forbidden") {
            Some(Outcome::Forbidden)
        } else {
            None
        }
    }

    fn record(&self, request: &Request, outcome: Outcome) {
        let is_accepted = !matches!(
            outcome,
            Outcome::Refused | Outcome::RefusedByFaultyNode | Outcome::Cut
        );
        let (token, was_accepted) = {
            let mut issuer = self.lane.issuer.lock().unwrap();
            issuer.note_accepted(request.token(), is_accepted)
        };
        let attempt = Attempt {
            connection: self.number,
            is_first: self.requests == 0,
            token,
            was_accepted,
            outcome,
        };
        let cloud = &self.lane.cloud;
        let mut attempts = cloud.attempts.lock().unwrap();
        let earlier = attempts.entry(number(request, "id")).or_default();
        if outcome == Outcome::RefusedByFaultyNode && earlier.iter().any(|one| one.token != token) {
            let age = self.lane.age();
            cloud.last_refused_replay.store(age, Relaxed);
        }
        earlier.push(attempt);
    }

    /// Ends the connection without a response.
    fn cut(&mut self) -> io::Result<bool> {
        if self.random.percent(50) {
            reset(self.stream.get_ref());
        }
        Ok(false)
    }

    /// A 401, before or after the request's body, with a short body or a long one.
    async fn refuse(&mut self, request: &Request) -> io::Result<bool> {
        let challenge = self.random.pick(&[
            "",
            "WWW-Authenticate: Bearer\r\n",
            "WWW-Authenticate: Bearer error=\"invalid_token\"\r\n",
            "WWW-Authenticate: Bearer error=\"token_expired\"\r\n",
        ]);
        let length = self.random.pick(&[0, 0, 40, 40, 40, 70_000]);
        let is_early = !request.fields("expect").is_empty() || self.random.percent(20);
        if !is_early {
            read_body(&mut self.stream, &request.head).await?;
        }
        let close = if is_early {
            "Connection: close\r\n"
        } else {
            ""
        };
        let head = format!(
            "HTTP/1.1 401 Unauthorized\r\n{challenge}{close}Content-Length: {length}\r\n\r\n"
        );
        let stream = self.stream.get_mut();
        stream
            .write_all(&[head.as_bytes(), &vec![b'x'; length]].concat())
            .await?;
        if is_early {
            // Unread data in a closed socket would reset the connection.
            stream.shutdown().await?;
            let mut rest = Vec::new();
            let reading = self.stream.read_to_end(&mut rest);
            let _ = timeout(Duration::from_secs(2), reading).await;
        }
        Ok(!is_early)
    }

    /// Processes a request, and responds unless the connection breaks.
    async fn respond(&mut self, request: &Request) -> io::Result<bool> {
        if self.is_breaking(3) {
            self.record(request, Outcome::AppliedThenCut);
            return self.cut();
        }
        let body = match request.path() {
            "/file" => content(number(request, "id"), number(request, "size") as usize),
            _ => request.body.clone(),
        };
        let is_cut = body.len() > 1 && self.is_breaking(3);
        self.record(
            request,
            if is_cut {
                Outcome::CutInBody
            } else {
                Outcome::Applied
            },
        );
        if self.random.percent(5) {
            sleep(self.random.millis(0..200)).await; // the cloud's delay
        }
        let mut bytes = b"HTTP/1.1 200 OK\r\n".to_vec();
        let (first, second) = body.split_at(body.len() / 2);
        if self.random.percent(50) {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend(first);
            if !is_cut {
                bytes.extend(second);
            }
        } else {
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in [first, second] {
                if !chunk.is_empty() {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                if is_cut {
                    break;
                }
            }
            if !is_cut {
                bytes.extend(b"0\r\n\r\n");
            }
        }
        self.stream.get_mut().write_all(&bytes).await?;
        if is_cut { self.cut() } else { Ok(true) }
    }
}

/// A parameter that is a number.
fn number(request: &Request, name: &str) -> u64 {
    let value = request.parameter(name);
    value.map_or(0, |value| value.parse().unwrap())
}
