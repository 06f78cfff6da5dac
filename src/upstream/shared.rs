//! State of one upstream that all workers share.

use std::sync::{Arc, atomic::AtomicUsize};

use http::uri::Scheme;
use rustls::pki_types::ServerName;

use super::{
    addresses::Addresses,
    config::{Config, Endpoint, Http2},
    expect::ExpectMemory,
    sockets::Sockets,
};
use crate::{
    base::clock::SharedClock,
    net::{outbound_proxy::AbsoluteForm, reload, tls},
};

/// ALPN protocol IDs, RFC 7301 §6.
pub(super) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// State of one upstream that all workers share.
#[derive(Debug, Clone)]
pub struct Shared {
    pub(super) config: Arc<Config>,
    tls_configs: Option<Arc<reload::Reloadable<TlsConfigs>>>,
    pub(super) endpoints: Vec<SharedEndpoint>,
    pub(super) addresses: Arc<Addresses>,
    pub(super) sockets: Arc<Sockets>,
}

/// State of one endpoint that all workers share.
#[derive(Debug, Clone)]
pub(super) struct SharedEndpoint {
    pub(super) tls: Option<EndpointTls>,
    /// How requests are sent, if an HTTP proxy forwards them one by one.
    pub(super) absolute_form: Option<AbsoluteForm>,
    /// Open HTTP/2 connections of all workers.
    pub(super) http2_connections: Arc<AtomicUsize>,
    pub(super) expect: Arc<ExpectMemory>,
    pub(super) sockets: Arc<Sockets>,
}

/// What a TLS handshake with an endpoint needs.
#[derive(Debug, Clone)]
pub(super) struct EndpointTls {
    pub(super) configs: Arc<reload::Reloadable<TlsConfigs>>,
    /// The name for SNI and for the verification of the certificate.
    pub(super) server_name: ServerName<'static>,
}

/// The TLS configuration, one value for each set of ALPN protocols.
pub(super) struct TlsConfigs {
    /// Offers the protocols that [`Http2`] allows.
    pub(super) any: Arc<rustls::ClientConfig>,
    /// Offers HTTP/1.1 alone.
    pub(super) http1: Arc<rustls::ClientConfig>,
}

/// Why an upstream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A TLS file cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Neither a DNS name nor an IP address.
    #[error("\"{0}\" is not a name that a TLS certificate can carry")]
    ServerName(String),
}

impl Shared {
    /// Reads the TLS files if an endpoint uses `https`. `sockets` is the limit for all upstreams.
    ///
    /// # Errors
    /// When a TLS file or a server name cannot be used.
    pub fn new(
        config: Config,
        sockets: &Arc<Sockets>,
        workers: usize,
        clock: SharedClock,
    ) -> Result<Self, SetupError> {
        let needs_tls = config
            .endpoints
            .iter()
            .any(|endpoint| endpoint.scheme == Scheme::HTTPS);
        let tls_configs = needs_tls
            .then(|| TlsConfigs::reloadable(&config))
            .transpose()?
            .map(Arc::new);
        let endpoint_tls = |endpoint: &Endpoint| -> Result<_, SetupError> {
            match &tls_configs {
                Some(configs) if endpoint.scheme == Scheme::HTTPS => {
                    let name = config
                        .tls
                        .server_name
                        .clone()
                        .unwrap_or_else(|| endpoint.host.clone());
                    let server_name = ServerName::try_from(name.clone())
                        .map_err(|_| SetupError::ServerName(name))?;
                    Ok(Some(EndpointTls {
                        configs: Arc::clone(configs),
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
                    tls: endpoint_tls(endpoint)?,
                    absolute_form: absolute_form(&config, endpoint),
                    http2_connections: Arc::default(),
                    expect: Arc::default(),
                    sockets: Arc::clone(sockets),
                })
            })
            .collect::<Result<_, SetupError>>()?;
        let config = Arc::new(config);
        Ok(Self {
            addresses: Arc::new(Addresses::new(Arc::clone(&config), workers, clock)),
            config,
            tls_configs,
            endpoints,
            sockets: Arc::clone(sockets),
        })
    }

    /// The configuration of the upstream.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The reload of the TLS files, if an endpoint uses `https`.
    pub fn reloadable(&self) -> Option<Arc<dyn reload::Reload>> {
        Some(Arc::clone(self.tls_configs.as_ref()?) as Arc<dyn reload::Reload>)
    }
}

/// HTTP/2 has no form for proxies that do not tunnel it.
fn absolute_form(config: &Config, endpoint: &Endpoint) -> Option<AbsoluteForm> {
    let proxy = config.proxy.as_ref()?;
    let form = AbsoluteForm::new(
        proxy,
        endpoint.scheme.as_str(),
        endpoint.authority.as_bytes(),
    );
    form.filter(|_| config.http2 != Http2::Always)
}

impl TlsConfigs {
    fn reloadable(config: &Config) -> Result<reload::Reloadable<Self>, tls::Error> {
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
