//! The admin endpoint: health, metrics, status. Reads snapshots and never drives the data path.
//!
//! | file | contents |
//! |---|---|
//! | `handler` | routes and authenticates requests |
//! | `health` | `/readyz` |
//! | `metrics` | `/metrics` |
//! | `page` | `/`, the status as an HTML page |
//! | `response` | how responses are built |
//! | `sources` | the data that it reads |
//! | `status` | `/status`, JSON |

mod handler;
mod health;
mod metrics;
mod page;
mod response;
mod sources;
mod status;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use http::request::Parts;
use tokio_util::sync::CancellationToken;

use self::handler::Handler;
pub use self::sources::Sources;
use crate::{
    base::secret::Secret,
    net::{
        http_server, reload,
        socket::{Bound, Listener as Socket},
        tls,
    },
    proxy::{
        Listener,
        connection::limits::{PerAddressLimiter, SourceAddress},
        policy::guard::{Guard, GuardConfig, exposure},
    },
};

/// The configuration of the admin endpoint.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address, and the exceptions of the guard (those of the data listeners).
    pub listener: Listener,
    /// Required beyond loopback, and on loopback if set, for all paths but `/healthz`, `/readyz`
    /// and `/metrics`.
    pub token: Option<Secret>,
}

/// The admin token, reloaded when its file changes.
pub type Token = reload::Reloadable<Secret>;

/// Why the file of the admin token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] tls::Error),
    /// It contains no secret.
    #[error("admin.token_file cannot be used: {0}")]
    Unusable(#[from] io::Error),
    /// It contains characters that are not allowed in a header field.
    #[error(
        "the token in admin.token_file must be one word of visible ASCII characters, to fit into \
         a header"
    )]
    Unfit,
}

impl Config {
    /// The token, if one is configured.
    ///
    /// # Errors
    /// When its file has become unusable since the configuration was validated.
    pub fn token(&self) -> Result<Option<Arc<Token>>, TokenError> {
        let Some(token) = self.token.clone() else {
            return Ok(None);
        };
        let file = token.file().map(PathBuf::from);
        let build = move || {
            let token = token.read_again()?;
            if token.fits_header() {
                Ok(token)
            } else {
                Err(TokenError::Unfit)
            }
        };
        Token::new("admin".to_owned(), file, None, build).map(|token| Some(Arc::new(token)))
    }
}

/// The server of the admin endpoint.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    max_connections: usize,
    handler: Arc<Handler>,
}

impl Server {
    /// A server on a bound address, with at most `max_connections` at a time.
    ///
    /// # Errors
    /// When the listening socket cannot be set up.
    pub fn new(
        guard: GuardConfig,
        token: Option<Arc<Token>>,
        bound: Bound,
        max_connections: usize,
        sources: Sources,
    ) -> io::Result<Self> {
        let exposure = exposure(bound.address());
        let handler = Handler {
            guard: Guard::new(guard, exposure),
            exposure,
            token,
            sources,
        };
        let mut listeners = bound.into_listeners(1)?;
        let listener = listeners.pop().ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            socket: listener.register()?,
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

/// A connection, counted with its address until it is dropped.
#[derive(Debug)]
struct ConnectionSlot {
    addresses: Arc<PerAddressLimiter>,
    source: SourceAddress,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.addresses.release(self.source);
    }
}

/// Admits at most a quarter of `max_connections` from each address, so that health checks are
/// served although another client opens as many as it can.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_token_leaves_the_former_one_in_use() {
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
            proxy_protocol: false,
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
    fn one_address_cannot_take_all_slots() {
        let admit = admission(8);
        let from = |last: u8| admit(Some(([192, 0, 2, last], 5000).into()));
        let (first, _second) = (from(1).unwrap(), from(1).unwrap());
        assert!(from(1).is_none());
        let _other = from(2).unwrap();
        drop(first);
        assert!(from(1).is_some());
    }
}
