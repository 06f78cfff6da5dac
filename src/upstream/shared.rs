//! What the workers share of one upstream.

use std::sync::{Arc, atomic::AtomicUsize};

use http::uri::Scheme;
use rustls::pki_types::ServerName;

use super::{
    config::{Config, Endpoint, Http2},
    sockets::Sockets,
};
use crate::net::{reload, tls};

/// What all workers share of one upstream.
#[derive(Debug, Clone)]
pub struct Shared {
    pub(super) config: Arc<Config>,
    greetings: Option<Arc<reload::Reloadable<TlsConfigs>>>,
    pub(super) endpoints: Vec<SharedEndpoint>,
    pub(super) sockets: Arc<Sockets>,
}

/// What all workers share of one endpoint.
#[derive(Debug, Clone)]
pub(super) struct SharedEndpoint {
    pub(super) tls: Option<Tls>,
    /// Connections of all workers that carry a request.
    pub(super) active: Arc<AtomicUsize>,
    pub(super) sockets: Arc<Sockets>,
}

/// How to greet, and which name to send and to verify.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub(super) greetings: Arc<reload::Reloadable<TlsConfigs>>,
    pub(super) server_name: ServerName<'static>,
}

/// What the files of `tls` come to.
pub(super) struct TlsConfigs {
    /// Offers what `http2` says.
    pub(super) any: Arc<rustls::ClientConfig>,
    /// Offers HTTP/1.1 alone.
    pub(super) http1: Arc<rustls::ClientConfig>,
}

/// Their names in the TLS handshake, RFC 7301.
pub(super) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why an upstream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A TLS file cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// There is no way to verify such a name.
    #[error("\"{0}\" is not a name that a TLS certificate can carry")]
    ServerName(String),
}

impl Shared {
    /// Reads the TLS files, if an endpoint needs them. `sockets` are those of all upstreams.
    ///
    /// # Errors
    /// When a TLS file or a server's name cannot be used.
    pub fn new(config: Config, sockets: &Arc<Sockets>) -> Result<Self, SetupError> {
        let needs_tls = config
            .endpoints
            .iter()
            .any(|endpoint| endpoint.scheme == Scheme::HTTPS);
        let greetings = needs_tls
            .then(|| TlsConfigs::following(&config))
            .transpose()?
            .map(Arc::new);
        let target = |endpoint: &Endpoint| -> Result<_, SetupError> {
            match &greetings {
                Some(greetings) if endpoint.scheme == Scheme::HTTPS => {
                    let name = config
                        .tls
                        .server_name
                        .clone()
                        .unwrap_or_else(|| endpoint.host.clone());
                    let server_name = ServerName::try_from(name.clone())
                        .map_err(|_| SetupError::ServerName(name))?;
                    Ok(Some(Tls {
                        greetings: Arc::clone(greetings),
                        server_name,
                    }))
                }
                _ => Ok(None),
            }
        };
        let endpoints = config
            .endpoints
            .iter()
            .map(|endpoint| {
                Ok(SharedEndpoint {
                    tls: target(endpoint)?,
                    active: Arc::default(),
                    sockets: Arc::clone(sockets),
                })
            })
            .collect::<Result<_, SetupError>>()?;
        Ok(Self {
            config: Arc::new(config),
            greetings,
            endpoints,
            sockets: Arc::clone(sockets),
        })
    }

    /// What was configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What follows the files of `tls`, if an endpoint needs them.
    pub fn reloadable(&self) -> Option<Arc<dyn reload::Reload>> {
        Some(Arc::clone(self.greetings.as_ref()?) as Arc<dyn reload::Reload>)
    }
}

impl TlsConfigs {
    fn following(config: &Config) -> Result<reload::Reloadable<Self>, tls::Error> {
        let name = format!("upstream:{}:client", config.name);
        let (tls, http2) = (config.tls.clone(), config.http2);
        let make = move || Self::new(&tls, http2);
        reload::Reloadable::new(
            name,
            config.tls.files(),
            config.tls.client_cert_file.clone(),
            make,
        )
    }

    fn new(config: &tls::Config, http2: Http2) -> Result<Self, tls::Error> {
        let any: &[&[u8]] = match http2 {
            Http2::Auto => &[HTTP2, HTTP1],
            Http2::Always => &[HTTP2],
            Http2::Never => &[HTTP1],
        };
        let any = tls::client_config(config, any)?;
        let mut http1 = any.clone();
        http1.alpn_protocols = vec![HTTP1.to_vec()];
        Ok(Self {
            any: Arc::new(any),
            http1: Arc::new(http1),
        })
    }
}
