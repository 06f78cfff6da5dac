//! An outbound (forward) proxy, through which upstreams and the issuer are reached from networks
//! that allow no direct connections.
//!
//! | proxy | endpoint | how |
//! |---|---|---|
//! | HTTP | `https`, or HTTP/2 without TLS | a tunnel by CONNECT (RFC 9110 §9.3.6) |
//! | HTTP | `http` | requests in absolute form (RFC 9112 §3.2.2): [`AbsoluteForm`] |
//! | SOCKS5 | either | a tunnel (RFC 1928, with user and password by RFC 1929) |
//!
//! The proxy resolves the names of endpoints.

mod absolute_form;
mod tunnel;

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::HeaderValue;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

pub use self::absolute_form::AbsoluteForm;
use super::{
    reload::{Reload, Reloadable},
    socket::{self, Stream},
    tls,
};
use crate::base::{host, secret::Secret};

/// The longest user and the longest password of SOCKS5, in bytes (RFC 1929 §2).
const LONGEST_SOCKS5_TEXT: usize = 255;

/// The protocol to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 over plain TCP.
    Http,
    /// SOCKS5.
    Socks5,
}

/// Where a proxy listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyAddress {
    /// Its protocol.
    pub protocol: Protocol,
    /// A name or an IP address (IPv6 without brackets).
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            Protocol::Http => "http",
            Protocol::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}", authority(&self.host, self.port))
    }
}

/// Why a user and a password cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file of the password.
    #[error(transparent)]
    File(#[from] tls::Error),
    /// The file of the password cannot be read, or holds no secret.
    #[error("the password cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// More than one line, or control characters.
    #[error("the password has more than one line, or control characters")]
    NotOneLine,
    /// SOCKS5 limits both.
    #[error("SOCKS5 allows {LONGEST_SOCKS5_TEXT} bytes for the user and for the password")]
    TooLong,
}

/// Why there is no connection through a proxy. Nothing of a request was sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the proxy itself.
    #[error("cannot connect to the proxy {proxy}: {source}: check the address of the proxy")]
    Unreachable {
        /// The proxy and its key.
        proxy: Arc<str>,
        /// The error of the resolver or of TCP.
        source: io::Error,
    },
    /// The proxy did not accept a connection, or did not respond, in time.
    #[error("the proxy {proxy} {what} within {limit:?}")]
    Timeout {
        /// The proxy and its key.
        proxy: Arc<str>,
        /// What is missing.
        what: &'static str,
        /// The limit for all of it.
        limit: Duration,
    },
    /// The proxy refuses, or cannot serve, the connection or the request.
    #[error("the proxy {proxy} {refusal}")]
    Refused {
        /// The proxy and its key.
        proxy: Arc<str>,
        /// Its reason.
        refusal: Refusal,
    },
}

/// Why a proxy does not serve a connection or a request.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It wants a user and a password, and none is configured.
    #[error("asks for a user and a password: set proxy_user and proxy_password_file")]
    NoCredentials,
    /// It does not accept the configured ones.
    #[error("rejects proxy_user and its password")]
    Credentials,
    /// Its rules do not allow the destination.
    #[error("does not allow {target} ({response}): ask its administrator to allow it")]
    Denied {
        /// `host:port`.
        target: String,
        /// Its status or reply.
        response: String,
    },
    /// It could not connect to the destination, or does not serve such requests.
    #[error("has not connected to {target}: it responded {response}")]
    Failed {
        /// `host:port`.
        target: String,
        /// Its status or reply.
        response: String,
    },
    /// It does not speak the protocol.
    #[error("does not respond as a proxy of its scheme ({0}): check scheme and port")]
    Malformed(String),
}

impl Refusal {
    /// Whether user and password are the cause.
    pub fn is_authentication(&self) -> bool {
        matches!(self, Self::NoCredentials | Self::Credentials)
    }
}

impl Error {
    /// The proxy, without its key: the next hop of RFC 9209 §2.1.2.
    pub fn next_hop(&self) -> &str {
        let (Self::Unreachable { proxy, .. }
        | Self::Timeout { proxy, .. }
        | Self::Refused { proxy, .. }) = self;
        proxy.split(' ').next().unwrap_or_default()
    }
}

/// An outbound proxy.
#[derive(Debug)]
pub struct OutboundProxy {
    address: ProxyAddress,
    /// `http://proxy.example.com:3128 (upstream.proxy)`, for messages.
    name: Arc<str>,
    credentials: Option<Arc<Reloadable<Credentials>>>,
}

/// A user and a password, as both protocols need them.
struct Credentials {
    user: String,
    password: Secret,
    /// `Basic …` (RFC 7617).
    basic: HeaderValue,
}

impl OutboundProxy {
    /// Connects to nothing yet. `key` is the configuration key, for messages; `credentials` are the
    /// user and the password, which is read again when its file changes.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub fn new(
        address: ProxyAddress,
        key: &str,
        credentials: Option<(String, Secret)>,
    ) -> Result<Self, CredentialsError> {
        let protocol = address.protocol;
        let credentials = credentials.map(|(user, password)| {
            let file = password.file().map(PathBuf::from);
            let build = move || Credentials::read(protocol, &user, &password);
            Reloadable::new(format!("{key}:credentials"), file, None, build).map(Arc::new)
        });
        Ok(Self {
            name: format!("{address} ({key})").into(),
            address,
            credentials: credentials.transpose()?,
        })
    }

    /// Where the proxy listens.
    pub fn address(&self) -> &ProxyAddress {
        &self.address
    }

    /// What reloads the password when its file changes; `None` without one.
    pub fn reloadable(&self) -> Option<Arc<dyn Reload>> {
        let credentials = self.credentials.as_ref()?;
        Some(Arc::clone(credentials) as Arc<dyn Reload>)
    }

    /// Connects to the proxy itself, within `limit`.
    ///
    /// # Errors
    /// When the proxy cannot be reached.
    pub async fn connect(&self, limit: Duration) -> Result<Stream, Error> {
        let ProxyAddress { host, port, .. } = &self.address;
        let connected = socket::connect(host, *port, limit).await;
        connected.map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => self.timeout("accepts no connection", limit),
            _ => Error::Unreachable {
                proxy: Arc::clone(&self.name),
                source,
            },
        })
    }

    /// Opens a connection to a destination through the proxy, all within `limit`. Nothing behind the
    /// proxy's response has been read from it.
    ///
    /// # Errors
    /// When the proxy cannot be reached, or refuses.
    pub async fn tunnel(&self, host: &str, port: u16, limit: Duration) -> Result<Stream, Error> {
        let end = Instant::now() + limit;
        let stream = self.connect(limit).await?;
        let credentials = self.credentials.as_ref().map(|current| current.load());
        let credentials = credentials.as_deref();
        let opening = async {
            match self.address.protocol {
                Protocol::Http => tunnel::http(stream, host, port, credentials).await,
                Protocol::Socks5 => tunnel::socks5(stream, host, port, credentials).await,
            }
        };
        match timeout_at(end, opening).await {
            Ok(opened) => opened.map_err(|refusal| self.refused(refusal)),
            Err(_) => Err(self.timeout("has not responded", limit)),
        }
    }

    /// A connection on which requests to a destination can be sent: to the proxy, if it forwards them
    /// one by one, or else through the proxy.
    ///
    /// # Errors
    /// When the proxy cannot be reached, or refuses.
    pub async fn reach(
        &self,
        forwards_requests: bool,
        host: &str,
        port: u16,
        limit: Duration,
    ) -> Result<Stream, Error> {
        if forwards_requests {
            self.connect(limit).await
        } else {
            self.tunnel(host, port, limit).await
        }
    }

    fn timeout(&self, what: &'static str, limit: Duration) -> Error {
        Error::Timeout {
            proxy: Arc::clone(&self.name),
            what,
            limit,
        }
    }

    fn refused(&self, refusal: Refusal) -> Error {
        Error::Refused {
            proxy: Arc::clone(&self.name),
            refusal,
        }
    }
}

impl Credentials {
    fn read(protocol: Protocol, user: &str, password: &Secret) -> Result<Self, CredentialsError> {
        let password = password.read_again()?;
        if !password.is_one_line() {
            return Err(CredentialsError::NotOneLine);
        }
        let longest = user.len().max(password.expose().len());
        if protocol == Protocol::Socks5 && longest > LONGEST_SOCKS5_TEXT {
            return Err(CredentialsError::TooLong);
        }
        let pair = Zeroizing::new(format!("{user}:{}", password.expose()));
        let basic = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(&*pair)));
        // Base64 is always allowed in a header.
        let mut basic = HeaderValue::from_str(&basic).map_err(|_| CredentialsError::NotOneLine)?;
        basic.set_sensitive(true);
        Ok(Self {
            user: user.to_owned(),
            password,
            basic,
        })
    }
}

/// `host:port` (RFC 3986 §3.2).
fn authority(host: &str, port: u16) -> String {
    if host::literal(host).is_some_and(|address| address.is_ipv6()) || host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests;
