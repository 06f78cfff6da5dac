//! Configurable upstreams and issuers that record the requests that they receive.

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

use super::{Proxy, in_front_of, read_head, scripted_at};

/// A received request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The number of its connection, from 0.
    pub connection: usize,
    /// The number of the request, from 0.
    pub number: usize,
    pub arrived: Instant,
    /// The request line and the fields, to the empty line.
    pub head: String,
    /// The body without chunked framing. Empty if the upstream responds early.
    pub body: Vec<u8>,
}

impl Request {
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap()
    }

    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn path(&self) -> &str {
        self.target().split('?').next().unwrap()
    }

    /// The values of all fields of this name.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        values(&self.head, name)
    }

    /// A parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let query = self.target().split_once('?').map_or("", |(_, query)| query);
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
    }

    /// The refresh token in the query; empty if there is none.
    pub fn refresh_token(&self) -> String {
        self.parameter("refresh_token").unwrap_or_default()
    }

    /// The bearer token; empty if there is none.
    pub fn token(&self) -> &str {
        let value = self.fields("authorization");
        let token = value
            .first()
            .and_then(|value| value.strip_prefix("Bearer "));
        token.unwrap_or_default()
    }
}

/// The values of all fields of this name in a head.
pub fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let head = head.split_once("\r\n\r\n").map_or(head, |(head, _)| head);
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

pub fn content_length(head: &str) -> usize {
    values(head, "content-length")
        .first()
        .map_or(0, |length| length.parse().unwrap())
}

type Pending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What an upstream does with a request.
#[derive(Clone)]
pub struct Reply {
    bytes: Vec<u8>,
    /// The offset of the body in `bytes`.
    body: usize,
    then: Then,
    after: Option<Arc<dyn Fn() -> Pending + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Reads the next request.
    Continue,
    Close,
    /// Sends nothing more, until the peer closes.
    Hold,
}

/// A response with a body and its length; `fields` are lines that end in CR LF.
pub fn response(status: &str, fields: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let length = format!("Content-Length: {}\r\n\r\n", body.len());
    let head = format!("HTTP/1.1 {status}\r\n{fields}{length}");
    Reply {
        bytes: [head.as_bytes(), body].concat(),
        body: head.len(),
        then: Then::Continue,
        after: None,
    }
}

pub fn ok(body: impl AsRef<[u8]>) -> Reply {
    response("200 OK", "", body)
}

/// A 401 with a field that distinguishes it from a 401 of the proxy.
pub fn unauthorized(body: impl AsRef<[u8]>) -> Reply {
    response("401 Unauthorized", "X-Refusal: original\r\n", body)
}

/// A reply of exactly these bytes.
pub fn bytes(bytes: impl Into<Vec<u8>>) -> Reply {
    let bytes = bytes.into();
    Reply {
        body: bytes.len(),
        bytes,
        then: Then::Continue,
        after: None,
    }
}

/// No response. The connection stays open until the peer closes it.
pub fn silence() -> Reply {
    bytes("").hold()
}

/// An issuer's response: a token with this lifetime in seconds, and the refresh token `next`.
pub fn grant(access_token: &str, lifetime: u64) -> Reply {
    granting(access_token, "next", lifetime)
}

fn granting(access_token: &str, refresh_token: &str, lifetime: u64) -> Reply {
    let body = format!(
        r#"{{"access_token":"{access_token}","refresh_token":"{refresh_token}","expires_in":{lifetime}}}"#
    );
    response("200 OK", "Content-Type: application/json\r\n", body)
}

/// An error of RFC 6749 §5.2.
pub fn oauth_error(error: &str) -> Reply {
    response(
        "400 Bad Request",
        "Content-Type: application/json\r\n",
        format!(r#"{{"error":"{error}"}}"#),
    )
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.80}", self.bytes.escape_ascii().to_string())
    }
}

impl Reply {
    /// Closes the connection after the response.
    pub fn close(mut self) -> Self {
        self.then = Then::Close;
        self
    }

    /// Sends nothing after the response and keeps the connection open until the peer closes it.
    pub fn hold(mut self) -> Self {
        self.then = Then::Hold;
        self
    }

    /// Sends these bytes after the response.
    pub fn followed_by(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.bytes.extend_from_slice(bytes.as_ref());
        self
    }

    /// Sends the reply on a connection that the test serves.
    pub async fn send(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        stream.write_all(&self.bytes).await
    }

    /// Waits for `ready` before it responds.
    pub fn after<F>(mut self, ready: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.after = Some(Arc::new(move || Box::pin(ready())));
        self
    }
}

/// A reply, or a function that computes one.
pub trait Respond: Send + Sync + 'static {
    fn reply(&self, request: &Request) -> Reply;
}

impl Respond for Reply {
    fn reply(&self, _: &Request) -> Reply {
        self.clone()
    }
}

impl<F: Fn(&Request) -> Reply + Send + Sync + 'static> Respond for F {
    fn reply(&self, request: &Request) -> Reply {
        self(request)
    }
}

/// An upstream that does not run yet. By default, it responds 200 to every request.
pub struct Upstream {
    routes: Vec<(String, Box<dyn Respond>)>,
    early: bool,
    issues: bool,
    /// Whether the upstream keeps requests. It always counts them.
    records: bool,
}

impl Upstream {
    pub fn new() -> Self {
        Self {
            routes: Vec::new(),
            early: false,
            issues: false,
            records: true,
        }
    }

    /// Sets the reply for a path. `*` at the end of the path matches any suffix. The first
    /// path that matches applies.
    pub fn on(mut self, path: &str, reply: impl Respond) -> Self {
        self.routes.push((path.to_owned(), Box::new(reply)));
        self
    }

    /// An upstream that sends this reply to every request.
    pub fn always(reply: impl Respond) -> Self {
        Self::new().on("*", reply)
    }

    /// Makes the upstream its own issuer. It grants `token` for an hour to every token request, and
    /// does not record these requests.
    pub fn issuing(mut self) -> Self {
        self.issues = true;
        self
    }

    /// Replies after the head of a request, without its body.
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// Counts requests and does not keep them, for tests that send many requests.
    pub fn unrecorded(mut self) -> Self {
        self.records = false;
        self
    }

    pub async fn start(self) -> RunningUpstream {
        self.start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts the upstream at this address.
    pub async fn start_at(self, address: SocketAddr) -> RunningUpstream {
        let (this, log) = (Arc::new(self), Arc::<Log>::default());
        let shared = Arc::clone(&log);
        let address = scripted_at(address, move |connection, stream| {
            let (this, log) = (Arc::clone(&this), Arc::clone(&shared));
            log.connections.fetch_add(1, SeqCst);
            async move { this.serve(connection, stream, &log).await }
        })
        .await;
        RunningUpstream {
            address,
            scheme: "http",
            log,
        }
    }

    /// Starts the upstream over TLS. Its origin is at `localhost`.
    pub async fn start_tls(self, config: Arc<ServerConfig>) -> RunningUpstream {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        self.start_tls_at(any, config).await
    }

    /// Starts the upstream over TLS at this address.
    pub async fn start_tls_at(
        self,
        address: SocketAddr,
        config: Arc<ServerConfig>,
    ) -> RunningUpstream {
        let (this, log) = (Arc::new(self), Arc::<Log>::default());
        let shared = Arc::clone(&log);
        let address = scripted_at(address, move |connection, stream| {
            let (this, log) = (Arc::clone(&this), Arc::clone(&shared));
            let acceptor = TlsAcceptor::from(Arc::clone(&config));
            log.connections.fetch_add(1, SeqCst);
            async move {
                let stream = acceptor.accept(stream).await?;
                this.serve(connection, stream, &log).await
            }
        })
        .await;
        RunningUpstream {
            address,
            scheme: "https",
            log,
        }
    }

    async fn serve(
        &self,
        connection: usize,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        log: &Log,
    ) -> io::Result<()> {
        loop {
            let head = read_head(&mut stream).await;
            if !matches!(&head, Ok(head) if head.is_empty()) {
                log.is_touched.store(true, SeqCst);
            }
            let head = head?;
            if head.is_empty() {
                return Ok(());
            }
            if self.issues && head.starts_with("POST /api/refreshToken.do") {
                grant("token", 3600).send(&mut stream).await?;
                continue;
            }
            let body = if self.early {
                Vec::new()
            } else {
                if !values(&head, "expect").is_empty() {
                    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                }
                read_body(&mut stream, &head).await?
            };
            let request = Request {
                connection,
                number: log.count.fetch_add(1, SeqCst),
                arrived: Instant::now(),
                head,
                body,
            };
            if self.records {
                log.requests.lock().unwrap().push(request.clone());
            }
            let fits = |path: &str| match path.strip_suffix('*') {
                Some(prefix) => request.path().starts_with(prefix),
                None => request.path() == path,
            };
            let route = self.routes.iter().find(|(path, _)| fits(path));
            let reply = route.map_or_else(|| ok("ok"), |(_, reply)| reply.reply(&request));
            if let Some(ready) = &reply.after {
                ready().await;
            }
            let length = if request.method() == "HEAD" {
                reply.body
            } else {
                reply.bytes.len()
            };
            stream.write_all(&reply.bytes[..length]).await?;
            stream.flush().await?;
            match reply.then {
                Then::Continue => {}
                Then::Close => return Ok(()),
                Then::Hold => return stream.read_to_end(&mut Vec::new()).await.map(drop),
            }
        }
    }
}

const REFRESH: &str = "/api/refreshToken.do";

/// Reads the body after a head, by its length or its chunks.
pub async fn read_body(stream: &mut (impl AsyncRead + Unpin), head: &str) -> io::Result<Vec<u8>> {
    if values(head, "transfer-encoding").is_empty() {
        let mut body = vec![0; content_length(head)];
        stream.read_exact(&mut body).await?;
        return Ok(body);
    }
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(stream.read_u8().await?);
        }
        let size = String::from_utf8_lossy(&line);
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).await?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

#[derive(Debug, Default)]
struct Log {
    connections: AtomicUsize,
    /// Whether any byte has arrived.
    is_touched: AtomicBool,
    count: AtomicUsize,
    requests: Mutex<Vec<Request>>,
}

/// A running upstream.
pub struct RunningUpstream {
    pub address: SocketAddr,
    scheme: &'static str,
    log: Arc<Log>,
}

impl RunningUpstream {
    pub fn origin(&self) -> String {
        match self.scheme {
            "https" => format!("https://localhost:{}", self.address.port()),
            scheme => format!("{scheme}://{}", self.address),
        }
    }

    /// Whether no byte has arrived. Over TLS, only application data counts.
    pub fn is_untouched(&self) -> bool {
        !self.log.is_touched.load(SeqCst)
    }

    /// Starts a proxy in front of this upstream, with a separate issuer. Waits until it is ready.
    pub async fn proxy(&self, more: &[(&str, &str)]) -> Proxy {
        in_front_of(self.address, more).await
    }

    /// The number of accepted connections.
    pub fn connections(&self) -> usize {
        self.log.connections.load(SeqCst)
    }

    /// All requests, in the order in which they arrived.
    pub fn requests(&self) -> Vec<Request> {
        self.log.requests.lock().unwrap().clone()
    }

    /// The number of requests.
    pub fn count(&self) -> usize {
        self.log.count.load(SeqCst)
    }

    /// The times between successive requests.
    pub fn gaps(&self) -> Vec<Duration> {
        let requests = self.requests();
        let pairs = requests.windows(2);
        pairs
            .map(|pair| pair[1].arrived - pair[0].arrived)
            .collect()
    }

    /// The targets of all requests.
    pub fn targets(&self) -> Vec<String> {
        let requests = self.requests();
        requests.iter().map(|one| one.target().to_owned()).collect()
    }
}

/// An issuer for the client `demo` with the secret `secret`. It grants `token-1`, `token-2`, … for
/// an hour each. It accepts the refresh token `seed` any number of times, and each issued refresh
/// token once. It refuses all other requests.
pub fn issuer() -> Upstream {
    let valid = Mutex::new(BTreeSet::new());
    let calls = AtomicUsize::new(0);
    Upstream::always(move |request: &Request| {
        let basic = format!("Basic {}", STANDARD.encode("demo:secret"));
        if request.fields("authorization") != [basic] {
            return oauth_error("invalid_client");
        }
        let is_refresh = (request.method(), request.path()) == ("POST", REFRESH)
            && request.parameter("grant_type").as_deref() == Some("refresh_token");
        if !is_refresh {
            return oauth_error("invalid_request");
        }
        let spent = request.refresh_token();
        if spent != "seed" && !valid.lock().unwrap().remove(&spent) {
            return oauth_error("invalid_grant");
        }
        let number = calls.fetch_add(1, SeqCst) + 1;
        let next = format!("refresh-{number}");
        valid.lock().unwrap().insert(next.clone());
        granting(&format!("token-{number}"), &next, 3600)
    })
}
