//! The apps: clients of the proxy that compare every byte, and classify every result.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    Lane,
    random::{Random, content},
    verdict,
};
use crate::common::{
    get,
    web::{self, Body},
};

/// How long an app waits for a response.
const PATIENCE: Duration = Duration::from_secs(40);

/// What an app requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// GET of files on one connection.
    Reader,
    /// GET of files, each on a new connection.
    Visitor,
    /// PUT and POST on one connection.
    Uploader,
    /// WebDAV's methods on one connection.
    Dav,
    /// Concurrent requests on one HTTP/2 connection.
    Http2,
    /// A path that always refuses.
    Forbidden,
}

pub const APPS: [App; 9] = [
    App::Reader,
    App::Reader,
    App::Visitor,
    App::Uploader,
    App::Uploader,
    App::Uploader,
    App::Dav,
    App::Http2,
    App::Forbidden,
];

/// A request of an app.
#[derive(Debug, Clone)]
pub struct Sent {
    pub app: App,
    pub id: u64,
    pub method: Method,
    pub size: usize,
    pub at: Instant,
}

/// What the app got.
#[derive(Debug)]
pub enum Got {
    Response(StatusCode, Bytes),
    /// A response that ended before its body was complete.
    Truncated,
    /// The connection ended before a response.
    Broken(String),
    NoConnection(String),
    TimedOut,
}

impl Sent {
    pub fn is_idempotent(&self) -> bool {
        self.method != Method::POST
    }

    /// The content of the response.
    pub fn expected(&self) -> Vec<u8> {
        content(self.id, self.size)
    }

    fn request(&self, random: &mut Random) -> Request<Body> {
        let path = match self.app {
            App::Forbidden => "/forbidden",
            _ if self.method == Method::GET => "/file",
            _ => "/echo",
        };
        let (id, size) = (self.id, self.size);
        let body = match self.method {
            Method::GET => web::whole(""),
            _ if random.percent(50) => web::whole(self.expected()),
            _ => {
                let content = self.expected();
                let chunks = content.chunks(self.size / 3 + 1);
                web::stream(chunks.map(Bytes::copy_from_slice).collect(), None)
            }
        };
        Request::builder()
            .method(&self.method)
            .uri(format!("{path}?id={id}&size={size}"))
            .header(header::HOST, "localhost")
            .body(body)
            .unwrap()
    }
}

/// A connection of an app, if it is open.
enum Connection {
    Closed,
    Http1(conn::http1::SendRequest<Body>),
    Http2(conn::http2::SendRequest<Body>),
}

impl Connection {
    async fn open(&mut self, app: App, address: SocketAddr) -> Result<(), String> {
        let is_open = match self {
            Self::Closed => false,
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        };
        if is_open && app != App::Visitor {
            return Ok(());
        }
        let text = |error: hyper::Error| format!("{error:?}");
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let io = TokioIo::new(stream);
        *self = if app == App::Http2 {
            let made = conn::http2::handshake(TokioExecutor::new(), io).await;
            let (sender, connection) = made.map_err(text)?;
            tokio::spawn(connection);
            Self::Http2(sender)
        } else {
            let (sender, connection) = conn::http1::handshake(io).await.map_err(text)?;
            tokio::spawn(connection);
            Self::Http1(sender)
        };
        Ok(())
    }

    async fn send(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http2(sender) => {
                request.headers_mut().remove(header::HOST);
                let target = format!("http://localhost{}", request.uri());
                *request.uri_mut() = target.parse().unwrap();
                *request.version_mut() = Version::HTTP_2;
                sender.send_request(request).await
            }
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Closed => unreachable!("it was opened"),
        }
    }

    async fn exchange(&mut self, app: App, address: SocketAddr, request: Request<Body>) -> Got {
        if let Err(error) = self.open(app, address).await {
            return Got::NoConnection(error);
        }
        let response = match self.send(request).await {
            Ok(response) => response,
            Err(error) => {
                *self = Self::Closed;
                return Got::Broken(format!("{error:?}"));
            }
        };
        let status = response.status();
        match response.into_body().collect().await {
            Ok(body) => Got::Response(status, body.to_bytes()),
            Err(_) => {
                *self = Self::Closed;
                Got::Truncated
            }
        }
    }
}

/// Sends requests until the lane ends.
pub async fn run(lane: Arc<Lane>, app: App, number: usize) {
    let name = format!("{} app {number}", lane.name);
    let mut random = Random::new(lane.seed, &name);
    let mut connection = Connection::Closed;
    while !lane.is_over() {
        if let (App::Http2, Connection::Http2(sender)) = (app, &connection) {
            let mut streams = tokio::task::JoinSet::new();
            for _ in 0..3 {
                let mut other = Connection::Http2(sender.clone());
                let (mut sent, request) = next(&lane, app, &mut random);
                let lane = Arc::clone(&lane);
                streams.spawn(async move {
                    one(&lane, &mut other, &mut sent, request).await;
                });
            }
            streams.join_all().await;
        }
        let (mut sent, request) = next(&lane, app, &mut random);
        if !one(&lane, &mut connection, &mut sent, request).await {
            sleep(Duration::from_millis(150)).await; // the app's pause after a failure
        }
        let pause = match app {
            App::Forbidden => random.millis(50..400),
            _ => random.millis(0..40),
        };
        sleep(pause).await; // the app's pace
    }
}

fn next(lane: &Lane, app: App, random: &mut Random) -> (Sent, Request<Body>) {
    let method = match app {
        App::Reader | App::Visitor | App::Forbidden => Method::GET,
        App::Uploader => random.pick(&[Method::PUT, Method::POST, Method::POST]),
        App::Http2 => random.pick(&[Method::GET, Method::PUT, Method::POST]),
        App::Dav => {
            let name: &[u8] = random.pick(&[
                b"PROPFIND" as &[u8],
                b"PROPPATCH",
                b"REPORT",
                b"SEARCH",
                b"MKCOL",
                b"COPY",
                b"MOVE",
                b"UNLOCK",
            ]);
            Method::from_bytes(name).unwrap()
        }
    };
    let size = match random.within(0..20) {
        0 => 0,
        1..15 => random.within(1..4000),
        15..19 => random.within(4000..100_000),
        _ => random.within(100_000..400_000),
    };
    let sent = Sent {
        app,
        id: lane.next_id.fetch_add(1, Relaxed),
        method,
        size: usize::try_from(size).unwrap(),
        at: Instant::now(),
    };
    let request = sent.request(random);
    (sent, request)
}

/// Sends one request and classifies its result. True if it succeeded.
async fn one(
    lane: &Lane,
    connection: &mut Connection,
    sent: &mut Sent,
    request: Request<Body>,
) -> bool {
    sent.at = Instant::now();
    let address = lane.process.program.address;
    let exchange = connection.exchange(sent.app, address, request);
    let got = match timeout(PATIENCE, exchange).await {
        Ok(got) => got,
        Err(_) => {
            *connection = Connection::Closed;
            Got::TimedOut
        }
    };
    let is_ok = matches!(got, Got::Response(StatusCode::OK, _));
    verdict::judge(lane, sent, &got);
    is_ok
}

/// Sends one request on a new connection.
pub async fn request_once(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, String> {
    let work = async {
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let text = |error: hyper::Error| format!("{error:?}");
        let made = conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = made.map_err(text)?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(text)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(text)?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    let response = timeout(Duration::from_secs(10), work).await;
    response.unwrap_or_else(|_| Err("no response in ten seconds".to_owned()))
}

/// Requests the admin endpoint until the lane ends: it must respond while the process runs.
pub async fn watch(lane: Arc<Lane>) {
    while !lane.is_over() {
        for path in ["/healthz", "/status", "/metrics"] {
            let begin = Instant::now();
            let response = request_once(lane.process.program.admin, get(path)).await;
            let problem = match response {
                Ok(response) if response.status() == 200 => None,
                Ok(response) => Some(response.status().to_string()),
                Err(error) => Some(error),
            };
            if let Some(problem) = problem
                && lane.outages.lock().unwrap().interruption(begin).is_none()
            {
                lane.unexplained(&format!("admin {path}: {problem}"));
            }
        }
        sleep(Duration::from_millis(500)).await; // the pace of a monitor
    }
}
