//! Listening and connected sockets, TCP and (on Unix) local ones. The only place that knows their platform.

use std::{fmt, net::SocketAddr, path::PathBuf};

/// Where a listener listens: `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/bearer-proxy.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A local socket, created with mode 0600.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
