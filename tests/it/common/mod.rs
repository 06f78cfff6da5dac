//! What the end-to-end tests share: a proxy in this process, clients, and upstreams that do exactly as told.
#![allow(unreachable_pub, reason = "test crates share it")]

pub mod frames;
#[cfg(unix)]
pub mod process;
pub mod strict;
pub mod tls;
pub mod web;

use std::{future::Future, io, net::SocketAddr, time::Duration};

use bearer_proxy::{
    app::App,
    base::clock::{self, SharedClock},
    config::{self, Source},
    net::socket::Address,
};
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Longer than anything here takes; a test that waits this long has failed.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A running proxy.
pub struct Proxy {
    pub app: App,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

/// Starts a proxy in front of `origin`, with an issuer there, unless `more` says otherwise.
pub fn proxy(origin: &str, more: &[(&str, &str)]) -> Proxy {
    proxy_on(clock::system(), origin, more)
}

/// The same on a machine with this clock.
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
    // A secret's file takes its place, and so do listeners of their own.
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

/// Starts a proxy in front of `upstream`, with an issuer elsewhere, and waits until it is ready.
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
    /// By the first of its addresses.
    pub fn of(app: App) -> Self {
        let (address, admin) = (tcp(&app.addresses()[0]), tcp(app.admin_address().unwrap()));
        Self {
            app,
            address,
            admin,
        }
    }

    /// Sends one request on a connection of its own.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        send(self.address, request).await
    }

    pub async fn get(&self, path: &str) -> Response<Bytes> {
        self.send(get(path)).await
    }

    /// Waits until `/readyz` says yes.
    pub async fn ready(&self) {
        ready(self.admin).await;
    }

    /// The value of a metric, its labels as they are written; 0 if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = text_at(self.admin, "/metrics").await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

pub fn tcp(address: &Address) -> SocketAddr {
    match address {
        Address::Tcp(address) => *address,
        Address::Unix(_) => panic!("not a TCP address"),
    }
}

/// Waits until `/readyz` there says yes.
pub async fn ready(admin: SocketAddr) {
    eventually("it is ready", async || {
        send(admin, get("/readyz")).await.status() == 200
    })
    .await;
}

/// What is answered there, whatever the status.
pub async fn text_at(address: SocketAddr, path: &str) -> String {
    String::from_utf8(send(address, get(path)).await.into_body().to_vec()).unwrap()
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path)
        .header(header::HOST, "localhost")
        .body(Full::default())
        .unwrap()
}

pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path)
        .header(header::HOST, "localhost")
        .body(Full::new(body.into()))
        .unwrap()
}

/// Sends one request on a connection of its own.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let work = async { Client::connect(address).await.send(request).await };
    tokio::time::timeout(LIMIT, work)
        .await
        .expect("no answer in time")
        .expect("no proper answer")
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
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, hyper::Error> {
        self.0.ready().await?;
        let (head, body) = self.0.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }
}

/// Waits for a condition, asking every few milliseconds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await; // polling a condition, within LIMIT
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// A server that does with each connection whatever `script` does; gets its number, from 0.
pub async fn scripted<F: Future<Output = io::Result<()>> + Send + 'static>(
    script: impl Fn(usize, TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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

/// Reads a head, byte by byte, so that what follows stays unread. Empty if the peer closes first.
pub async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
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

/// The same in a cloud that is its own issuer: whoever asks for a token is granted `token`, and the head is that of the
/// first request that asks for something else.
pub async fn read_head_granting(stream: &mut TcpStream) -> io::Result<String> {
    loop {
        let head = read_head(stream).await?;
        if !head.starts_with("POST /api/refreshToken.do") {
            return Ok(head);
        }
        stream.write_all(grant("token", 3600).as_bytes()).await?;
    }
}

/// Sends raw bytes and reads until the peer closes or answers nothing more for `silence`.
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

/// An issuer's answer.
pub fn grant(access_token: &str, lifetime: u64) -> String {
    let body = format!(
        r#"{{"access_token":"{access_token}","refresh_token":"next","expires_in":{lifetime}}}"#
    );
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An issuer that grants `token-1`, `token-2`, … for an hour each.
pub async fn issuer() -> String {
    let address = scripted(|number, mut stream| async move {
        for call in 1.. {
            if read_head(&mut stream).await?.is_empty() {
                break;
            }
            // Each connection counts on its own: enough to tell tokens apart.
            stream
                .write_all(grant(&format!("token-{number}-{call}"), 3600).as_bytes())
                .await?;
        }
        Ok(())
    })
    .await;
    format!("http://{address}")
}

/// A cloud whose issuer takes the refresh token `good` and any code, and refuses others. It answers whatever else is asked.
pub async fn picky() -> String {
    let address = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        let answer = if head.starts_with("GET") {
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
        } else if head.contains("refresh_token=good ") || head.contains("code=") {
            grant("token", 3600)
        } else {
            let body = r#"{"error":"invalid_grant"}"#;
            format!(
                "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        stream.write_all(answer.as_bytes()).await
    })
    .await;
    format!("http://{address}")
}
