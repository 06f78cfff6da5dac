//! Helpers of the end-to-end tests: a proxy in this process, clients, and scripted upstreams.
#![allow(unreachable_pub, reason = "test crates share it")]

pub mod frames;
pub mod issuer_client;
#[cfg(target_os = "linux")]
pub mod names;
#[cfg(target_os = "linux")]
pub mod node;
#[cfg(unix)]
pub mod process;
pub mod strict;
pub mod tls;
pub mod toml;
pub mod upstream;
pub mod web;

use std::{future::Future, io, net::SocketAddr, time::Duration};

use bearer_proxy::{
    app::App,
    base::clock::{self, SharedClock},
    cloud::{Cloud, Config},
    config::{self, Source},
    net::socket::Address,
};
use bytes::Bytes;
use http::{Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use self::upstream::{Request, Upstream, oauth_error, ok};

/// The time limit of a wait. A wait that exceeds it fails the test.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A running proxy.
pub struct Proxy {
    pub app: App,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

/// Starts a proxy in front of `origin`, which is also the issuer, unless `more` overrides that.
pub fn proxy(origin: &str, more: &[(&str, &str)]) -> Proxy {
    proxy_on(clock::system(), origin, more)
}

/// Starts the same proxy with this clock.
pub fn proxy_on(clock: SharedClock, origin: &str, more: &[(&str, &str)]) -> Proxy {
    let usual = [
        ("proxy.listen", "127.0.0.1:0"),
        ("proxy.workers", "2"),
        ("upstream.endpoints", origin),
        ("token.client_id", "demo"),
        ("token.client_secret", "secret"),
        ("token.refresh_token", "seed"),
        ("admin.listen", "127.0.0.1:0"),
    ];
    // A `_file` key replaces the secret's own key, and `listener[…]` keys replace `proxy.listen`.
    let takes_place = |other: &str, key: &str| {
        other.trim_end_matches("_file") == key
            || key == "proxy.listen" && other.starts_with("listener[")
    };
    let is_given = |key: &str| more.iter().any(|(other, _)| takes_place(other, key));
    let kept = usual.iter().filter(|(key, _)| !is_given(key));
    let overrides = kept
        .chain(more)
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let source = Source {
        file: None,
        env: Vec::new(),
        overrides,
    };
    let config = config::load(source)
        .unwrap_or_else(|mistakes| panic!("{mistakes}"))
        .config;
    let app = App::start(config, clock).unwrap();
    Proxy::of(app)
}

/// Starts a proxy in front of `upstream` with a separate issuer, and waits until it is ready.
pub async fn in_front_of(upstream: SocketAddr, more: &[(&str, &str)]) -> Proxy {
    let issuer = issuer().await;
    let given: Vec<_> = [("token.issuer", issuer.as_str())]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    let proxy = proxy(&format!("http://{upstream}"), &given);
    proxy.ready().await;
    proxy
}

impl Proxy {
    /// The proxy `app` at its first address.
    pub fn of(app: App) -> Self {
        let (address, admin) = (tcp(&app.addresses()[0]), tcp(app.admin_address().unwrap()));
        Self {
            app,
            address,
            admin,
        }
    }

    /// Sends one request on a new connection.
    pub async fn send(&self, request: http::Request<Full<Bytes>>) -> Response<Bytes> {
        send(self.address, request).await
    }

    pub async fn get(&self, path: &str) -> Response<Bytes> {
        self.send(get(path)).await
    }

    /// Sends these bytes and reads until the connection closes.
    pub async fn raw(&self, request: &str) -> String {
        raw(self.address, request.as_bytes(), LIMIT).await
    }

    /// Sends a request with these fields and without a body: `ask("GET /", "Host: localhost\r\n")`.
    pub async fn ask(&self, request: &str, fields: &str) -> String {
        let request = format!("{request} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
        self.raw(&request).await
    }

    /// The status of the response to such a request.
    pub async fn status(&self, request: &str, fields: &str) -> u16 {
        status(&self.ask(request, fields).await)
    }

    /// Waits until `/readyz` responds 200.
    pub async fn ready(&self) {
        ready(self.admin).await;
    }

    /// The value of a metric with its labels; 0 if the metric is absent.
    pub async fn metric(&self, name: &str) -> f64 {
        metric(self.admin, name).await
    }

    /// Requests that were rejected for this reason.
    pub async fn rejected(&self, reason: &str) -> f64 {
        let name = format!("bearer_proxy_requests_rejected_total{{reason=\"{reason}\"}}");
        self.metric(&name).await
    }

    /// Waits until a metric has this value.
    pub async fn until(&self, name: &str, value: f64) {
        eventually(&format!("{name} is {value}"), async || {
            self.metric(name).await == value
        })
        .await;
    }

    /// Waits until this many requests are in flight.
    pub async fn until_in_flight(&self, count: u32) {
        self.until("bearer_proxy_requests_in_flight", count.into())
            .await;
    }

    /// Waits until this many client connections are open.
    pub async fn until_open(&self, count: u32) {
        self.until("bearer_proxy_connections_open", count.into())
            .await;
    }
}

/// The value of a metric with its labels at this admin endpoint; 0 if the metric is absent.
pub async fn metric(admin: SocketAddr, name: &str) -> f64 {
    let text = text_at(admin, "/metrics").await;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// An address on which nothing listens.
pub fn closed_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

pub fn tcp(address: &Address) -> SocketAddr {
    match address {
        Address::Tcp(address) => *address,
        Address::Unix(_) => panic!("not a TCP address"),
    }
}

/// Waits until `/readyz` at this admin endpoint responds 200.
pub async fn ready(admin: SocketAddr) {
    eventually("the proxy is ready", async || {
        send(admin, get("/readyz")).await.status() == 200
    })
    .await;
}

/// The body of the response to a GET, with any status.
pub async fn text_at(address: SocketAddr, path: &str) -> String {
    String::from_utf8(send(address, get(path)).await.into_body().to_vec()).unwrap()
}

pub fn get(path: &str) -> http::Request<Full<Bytes>> {
    http::Request::get(path)
        .header(header::HOST, "localhost")
        .body(Full::default())
        .unwrap()
}

pub fn post(path: &str, body: impl Into<Bytes>) -> http::Request<Full<Bytes>> {
    http::Request::post(path)
        .header(header::HOST, "localhost")
        .body(Full::new(body.into()))
        .unwrap()
}

/// Sends one request on a new connection.
pub async fn send(address: SocketAddr, request: http::Request<Full<Bytes>>) -> Response<Bytes> {
    let work = async { Client::connect(address).await.send(request).await };
    tokio::time::timeout(LIMIT, work)
        .await
        .expect("no response in time")
        .expect("invalid response")
}

/// A client with one connection.
pub struct Client(http1::SendRequest<Full<Bytes>>);

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn send(
        &mut self,
        request: http::Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, hyper::Error> {
        self.0.ready().await?;
        let (head, body) = self.0.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }
}

/// Waits for a condition. Checks it every few milliseconds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await; // polling a condition, within LIMIT
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("not true in time: {what}"));
}

/// A server that runs `script` for each connection, with the number of the connection, from 0.
pub async fn scripted<F: Future<Output = io::Result<()>> + Send + 'static>(
    script: impl Fn(usize, TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    scripted_at(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
}

/// The same server at this address.
pub async fn scripted_at<F: Future<Output = io::Result<()>> + Send + 'static>(
    address: SocketAddr,
    script: impl Fn(usize, TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(script(number, stream));
        }
    });
    address
}

/// An upstream that reads all bytes and sends no response.
pub async fn silent_upstream() -> SocketAddr {
    scripted(|_, mut stream| async move { stream.read_to_end(&mut Vec::new()).await.map(drop) })
        .await
}

/// The origin of an address whose handshakes hang: connections beyond the backlog are not accepted.
pub fn black_hole() -> (socket2::Socket, Vec<std::net::TcpStream>, String) {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let limit = Duration::from_millis(100);
    let mut fillers = Vec::new();
    while let Ok(filler) = std::net::TcpStream::connect_timeout(&address, limit) {
        fillers.push(filler);
    }
    (socket, fillers, format!("http://{address}"))
}

/// Reads a head byte by byte, so that the bytes after it stay unread. Empty if the peer closes the
/// connection first.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && head.is_empty() => {
                return Ok(String::new());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Opens a connection and sends these bytes.
pub async fn connect(address: SocketAddr, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream
}

/// Reads until the peer closes the connection. Panics if the peer resets it or exceeds `LIMIT`.
pub async fn read_to_close(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes))
        .await
        .unwrap_or_else(|_| panic!("the connection is still open"))
        .unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The status of a response.
pub fn status(response: &str) -> u16 {
    let status = response.split(' ').nth(1);
    status
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("not a response: {response:?}"))
}

/// Sends raw bytes. Reads until the peer closes the connection or sends nothing for `silence`.
pub async fn raw(address: SocketAddr, request: &[u8], silence: Duration) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(n)) = tokio::time::timeout(silence, stream.read(&mut buffer)).await {
        if n == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The origin of an issuer that grants `token-1`, `token-2`, … for an hour each.
pub async fn issuer() -> String {
    upstream::issuer().start().await.origin()
}

/// The origin of a cloud that is its own issuer and responds 200 to everything else.
pub async fn cloud() -> String {
    Upstream::new().issuing().start().await.origin()
}

/// The simulated cloud. Its issuer accepts the refresh token `seed`.
pub async fn simulated_cloud(clock: SharedClock) -> Cloud {
    let config = Config {
        seeds: vec!["seed".into()],
        ..Config::new("demo", "secret")
    };
    Cloud::start(config, clock).await.unwrap()
}

/// A cloud whose issuer accepts the refresh token `good` and any code, and refuses other requests.
pub async fn picky() -> String {
    let cloud = Upstream::always(|request: &Request| {
        let is_good = request.refresh_token() == "good" || request.parameter("code").is_some();
        match request.method() {
            "GET" => ok(""),
            _ if is_good => upstream::grant("token", 3600),
            _ => oauth_error("invalid_grant"),
        }
    });
    cloud.start().await.origin()
}
