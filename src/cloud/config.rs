//! How a simulated cloud is set up.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// How a simulated cloud is set up.
#[derive(Clone)]
pub struct Config {
    /// Where the issuer and the file API listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the document host listens.
    pub document_listen: SocketAddr,
    /// The document host's origin as clients reach it, without a slash at the end; by default its
    /// listening address.
    pub document_origin: Option<String>,
    /// The id of the only client.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: String,
    /// The registered redirect URI, compared as text. `None` allows any.
    pub redirect_uri: Option<String>,
    /// Whether `authorizeByJWT.do` returns the code by 302 instead of in JSON.
    pub jwt_redirects: bool,
    /// Where the issuer's state is kept, which several nodes may share; in memory if `None`. Its
    /// times count from the start of this machine.
    pub state_file: Option<PathBuf>,
    /// Refresh tokens that are valid at the start; if there are none, one is generated. A state
    /// file that exists has its own.
    pub seeds: Vec<String>,
    /// Lifetime of an access token.
    pub token_lifetime: Duration,
    /// Lifetime of a refresh token.
    pub refresh_lifetime: Duration,
    /// Whether each refresh replaces the refresh token.
    pub rotate: bool,
    /// How long after its replacement a refresh token may be used again without revoking its
    /// family.
    pub reuse_grace: Duration,
    /// Where files are kept; in memory if `None`.
    pub folder: Option<PathBuf>,
    /// Bytes that files in memory may take together.
    pub memory_limit: usize,
}

impl Config {
    /// A cloud on two free loopback ports: one-hour tokens, rotation without grace, files in memory
    /// (256 MiB).
    pub fn new(client_id: impl Into<String>, client_secret: impl Into<String>) -> Self {
        let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: free_port,
            document_listen: free_port,
            document_origin: None,
            client_id: client_id.into(),
            client_secret: client_secret.into(),
            redirect_uri: None,
            jwt_redirects: false,
            state_file: None,
            seeds: Vec::new(),
            token_lifetime: Duration::from_secs(60 * 60),
            refresh_lifetime: Duration::from_secs(30 * 24 * 60 * 60),
            rotate: true,
            reuse_grace: Duration::ZERO,
            folder: None,
            memory_limit: 256 << 20,
        }
    }
}
