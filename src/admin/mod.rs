//! The admin listener: health, metrics, status. Reads snapshots and never drives the data path.

mod health;
mod metrics;
mod page;
mod status;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts, uri::Scheme};
use http_body_util::Full;
use tokio_util::sync::CancellationToken;

use crate::{
    base::{retry_after::retry_after, secret::Secret},
    net::{
        http_server, reload,
        socket::{Bound, Listener as Socket},
        tls,
    },
    proxy::{
        GuardConfig, Listener, Metrics,
        connection::limits::{PerAddressLimiter, SourceAddress},
        policy::guard::{Exposure, Guard, KnownHost, exposure},
    },
    token::{Credential, ManualRefreshError},
    upstream,
};

/// What the admin listener needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen, and the local guard's exceptions (those of the data listeners).
    pub listener: Listener,
    /// Needed for everything but `/healthz`, `/readyz` and `/metrics` when listening beyond loopback, and wherever it is set.
    pub token: Option<Secret>,
}

/// The token as its file has it.
pub type Token = reload::Reloadable<Secret>;

/// Why the token's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] tls::Error),
    /// It holds no secret.
    #[error("admin.token_file cannot be used: {0}")]
    Unusable(#[from] io::Error),
    /// It holds something else.
    #[error("the token in admin.token_file cannot stand in an HTTP header")]
    Unfit,
}

impl Config {
    /// The token, to be read again when its file changes.
    ///
    /// # Errors
    /// When its file no longer is what it was when it was checked.
    pub fn token(&self) -> Result<Option<Arc<Token>>, TokenError> {
        let Some(token) = self.token.clone() else {
            return Ok(None);
        };
        let file = token.file().map(PathBuf::from);
        let make = move || {
            let token = token.read_again()?;
            if token.fits_header() {
                Ok(token)
            } else {
                Err(TokenError::Unfit)
            }
        };
        Token::new("admin".to_owned(), file, None, make).map(|token| Some(Arc::new(token)))
    }
}

/// What there is to report on.
#[derive(Debug)]
pub struct Sources {
    /// The credential.
    pub credential: Credential,
    /// The numbers of each worker.
    pub workers: Arc<[Arc<Metrics>]>,
    /// The upstreams, in the order of the configuration.
    pub upstreams: Vec<upstream::Config>,
    /// The certificates that we show.
    pub reload: reload::ReloadHandle,
    /// Where JSON answers are searched for a code.
    pub json_pointer: String,
    /// Set when this process is about to end.
    pub draining: CancellationToken,
}

/// The admin endpoint's server.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    max_connections: usize,
    handler: Arc<Handler>,
}

/// A connection's share of what its address may hold, given back when dropped.
#[derive(Debug)]
struct ConnectionSlot {
    addresses: Arc<PerAddressLimiter>,
    source: SourceAddress,
}

/// Who answers.
#[derive(Debug)]
struct Handler {
    gate: Guard,
    exposure: Exposure,
    token: Option<Arc<Token>>,
    sources: Sources,
}

impl Server {
    /// Takes over what was bound for it. Serves at most `max_connections` at a time.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn new(
        guard: GuardConfig,
        token: Option<Arc<Token>>,
        bound: Bound,
        max_connections: usize,
        sources: Sources,
    ) -> io::Result<Self> {
        let exposure = exposure(bound.address());
        let gate = Guard::new(guard, exposure, Scheme::HTTP);
        let seed = bound
            .into_listeners(1)?
            .pop()
            .ok_or(io::ErrorKind::NotFound)?;
        let handler = Handler {
            gate,
            exposure,
            token,
            sources,
        };
        Ok(Self {
            socket: seed.register()?,
            max_connections,
            handler: Arc::new(handler),
        })
    }

    /// Serves until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let admit = admission(self.max_connections);
        let respond = move |request: &Parts| self.handler.respond(request);
        let stop = stop.cancelled_owned();
        http_server::serve(self.socket, self.max_connections, admit, respond, stop).await;
    }
}

/// Admits a quarter of all connections from each address: health checks must get through beside a client that holds as many
/// as it can.
fn admission(max_connections: usize) -> impl Fn(Option<SocketAddr>) -> Option<ConnectionSlot> {
    let addresses = Arc::new(PerAddressLimiter::new((max_connections / 4).max(1)));
    move |peer| {
        let source = addresses.take(peer)?;
        Some(ConnectionSlot {
            addresses: Arc::clone(&addresses),
            source,
        })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.addresses.release(self.source);
    }
}

impl Handler {
    fn respond(&self, request: &Parts) -> Response<Full<Bytes>> {
        if let Err(error) = self.gate.check(request, &KnownHost::default()) {
            return error.to_response().map(Full::new);
        }
        let open = matches!(request.uri.path(), "/healthz" | "/readyz" | "/metrics");
        if !open && let Some(refusal) = self.refusal(request) {
            return refusal;
        }
        let is_read = matches!(request.method, Method::GET | Method::HEAD);
        match request.uri.path() {
            "/token/refresh" if request.method == Method::POST => self.refresh(),
            "/token/refresh" => not_allowed("POST"),
            "/healthz" | "/readyz" | "/metrics" | "/status" | "/" if !is_read => {
                not_allowed("GET, HEAD")
            }
            "/healthz" => text(StatusCode::OK, "alive\n"),
            "/readyz" => health::readiness(&self.sources.credential.snapshot(), self.is_draining()),
            "/metrics" => metrics::render(&self.sources, self.is_draining()),
            "/status" => json(
                StatusCode::OK,
                &status::status(&self.sources, self.is_draining()),
            ),
            "/" => page::page(&status::status(&self.sources, self.is_draining())),
            _ => text(
                StatusCode::NOT_FOUND,
                "There is /healthz, /readyz, /metrics, /status and /token/refresh (POST).\n",
            ),
        }
    }

    /// Everything but the open paths needs the token beyond loopback, and wherever one is set.
    fn refusal(&self, request: &Parts) -> Option<Response<Full<Bytes>>> {
        let Some(token) = &self.token else {
            if self.exposure == Exposure::Network {
                let words = "Beyond loopback this needs a token: set admin.token.\n";
                return Some(text(StatusCode::FORBIDDEN, words));
            }
            return None;
        };
        let shown = request
            .headers
            .get(header::AUTHORIZATION)
            .map(HeaderValue::as_bytes);
        let shown = shown.and_then(|shown| {
            let (scheme, token) = shown.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
        });
        let expected = token.load();
        let is_it = |shown| {
            aws_lc_rs::constant_time::verify_slices_are_equal(shown, expected.expose().as_bytes())
                .is_ok()
        };
        if shown.is_some_and(is_it) {
            return None;
        }
        let mut refusal = text(
            StatusCode::UNAUTHORIZED,
            "This needs `Authorization: Bearer` with admin.token.\n",
        );
        refusal
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        Some(refusal)
    }

    fn refresh(&self) -> Response<Full<Bytes>> {
        match self.sources.credential.refresh_now() {
            Ok(()) => text(StatusCode::ACCEPTED, "refreshing\n"),
            Err(ManualRefreshError::TooEarly { retry_after }) => {
                let mut refusal = text(
                    StatusCode::TOO_MANY_REQUESTS,
                    "it is too early for another refresh\n",
                );
                let retry_after = self::retry_after(retry_after);
                refusal
                    .headers_mut()
                    .insert(header::RETRY_AFTER, retry_after);
                refusal
            }
            Err(ManualRefreshError::NoCredential) => text(
                StatusCode::CONFLICT,
                "there is no refresh token that the issuer would take: configure a new one (files are read again now)\n",
            ),
        }
    }

    fn is_draining(&self) -> bool {
        self.sources.draining.is_cancelled()
    }
}

fn not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

fn text(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    respond(
        status,
        "text/plain; charset=utf-8",
        Bytes::from_static(words.as_bytes()),
    )
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    respond(
        status,
        "application/json",
        Bytes::from(format!("{value:#}\n")),
    )
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_token_leaves_the_former_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let write = |token: &str| std::fs::write(&file, token).unwrap();
        write("first");
        let listener = Listener {
            address: "127.0.0.1:0"
                .parse()
                .map(crate::net::socket::Address::Tcp)
                .unwrap(),
            guard: GuardConfig::default(),
            tls: None,
        };
        let config = Config {
            listener,
            token: Some(Secret::from_file(file.clone()).unwrap()),
        };
        let token = config.token().unwrap().unwrap();
        for bad in ["", "two words", "two\nlines"] {
            write(bad);
            assert!(
                reload::Reload::reload(&*token).is_err() && token.load().expose() == "first",
                "{bad:?}"
            );
        }
        write("second\n");
        assert!(reload::Reload::reload(&*token).unwrap() && token.load().expose() == "second");
    }

    #[test]
    fn one_address_does_not_take_the_places_of_all() {
        let admit = admission(8);
        let from = |last: u8| admit(Some(([192, 0, 2, last], 5000).into()));
        let (first, _second) = (from(1).unwrap(), from(1).unwrap());
        assert!(from(1).is_none());
        let _other = from(2).unwrap();
        drop(first);
        assert!(from(1).is_some());
    }
}
