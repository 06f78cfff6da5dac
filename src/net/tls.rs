//! TLS with clients, the upstream and the issuer: rustls with aws-lc-rs, its provider set
//! explicitly.

mod advice;
mod pinned;
mod validity;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, SupportedProtocolVersion, WantsVerifier,
    client::WantsClientCert,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};
use zeroize::Zeroizing;

pub use self::{
    advice::{client_advice, server_advice},
    validity::{Validity, ValidityWarning},
};

/// The minimum version of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2, RFC 5246.
    #[default]
    Tls12,
    /// TLS 1.3, RFC 8446.
    Tls13,
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static FROM_1_2: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        static FROM_1_3: [&SupportedProtocolVersion; 1] = [&TLS13];
        match self {
            Self::Tls12 => &FROM_1_2,
            Self::Tls13 => &FROM_1_3,
        }
    }
}

/// TLS settings towards a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Trust anchors, PEM, that replace those of the system. A server may also present one of these
    /// certificates itself.
    pub ca_file: Option<PathBuf>,
    /// The certificate chain to present when the server requests one. Requires `client_key_file`.
    pub client_cert_file: Option<PathBuf>,
    /// The private key of `client_cert_file`.
    pub client_key_file: Option<PathBuf>,
    /// The server name to send (SNI) and to verify, if it differs from the host of the URL.
    pub server_name: Option<String>,
    /// Servers that support only older versions are refused.
    pub min_version: MinVersion,
}

impl Config {
    /// The configured files.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        [&self.ca_file, &self.client_cert_file, &self.client_key_file]
            .into_iter()
            .flatten()
            .cloned()
    }
}

/// TLS settings towards clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// The certificate chain to present, PEM.
    pub cert_file: PathBuf,
    /// The private key of `cert_file`.
    pub key_file: PathBuf,
    /// Accept only clients with a certificate issued by one of these authorities, PEM.
    pub client_ca_file: Option<PathBuf>,
    /// Clients that support only older versions are refused.
    pub min_version: MinVersion,
}

impl ServerConfig {
    /// The configured files.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        [
            Some(&self.cert_file),
            Some(&self.key_file),
            self.client_ca_file.as_ref(),
        ]
        .into_iter()
        .flatten()
        .cloned()
    }
}

/// Why TLS settings cannot be used. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: it cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file is not PEM.
    #[error("{}: it is not valid PEM: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// A file contains no certificate.
    #[error(
        "{}: there is no certificate in it (a PEM file begins with -----BEGIN CERTIFICATE-----)",
        path.display()
    )]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// No server can be verified with the trust anchors.
    #[error("{}: servers cannot be verified with it: {source}", path.display())]
    ServerCa {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: VerifierBuilderError,
    },
    /// A certificate cannot be used as a trust anchor.
    #[error("{}: a certificate in it cannot be trusted: {source}", path.display())]
    BadRoot {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// A file contains no private key.
    #[error(
        "{}: there is no private key in it (PKCS#8, PKCS#1 or SEC1, as PEM, not encrypted)",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The key does not match the certificate, or its type is not supported.
    #[error(
        "{} and {}: the key does not match the certificate: {source}",
        certificate.display(),
        key.display()
    )]
    KeyPair {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// Client certificates cannot be verified with the trust anchors.
    #[error("{}: client certificates cannot be verified with it: {source}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: VerifierBuilderError,
    },
    /// Only one of the two client files is set.
    #[error(
        "{}: a client certificate needs both tls.client_cert_file and tls.client_key_file",
        present.display()
    )]
    HalfAPair {
        /// The file that is set.
        present: PathBuf,
    },
    /// The system has no usable trust anchor.
    #[error(
        "no trusted certificates were found on this system{reason}: \
         install ca-certificates, or set tls.ca_file"
    )]
    NoSystemRoots {
        /// The error of the system, in parentheses, if there was one.
        reason: String,
    },
    /// The provider does not support the TLS versions.
    #[error("TLS cannot be set up: {0}")]
    Provider(rustls::Error),
}

/// A client configuration that trusts `ca_file`, or the system's trust anchors without it, and
/// offers the protocols `alpn` (RFC 7301; none: the extension is not sent).
///
/// # Errors
/// When a file cannot be read or used, or when there is no trust anchor.
pub fn client_config(config: &Config, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    let mut client = match &config.ca_file {
        Some(path) => with_ca_file(config, path)?,
        None => with_client_auth(
            config,
            builder(config.min_version)?.with_root_certificates(roots_of_system()?),
        )?,
    };
    client.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(client)
}

/// Checks the files, but not the system's trust anchors.
///
/// # Errors
/// When one of the files cannot be read or used.
pub fn check(config: &Config) -> Result<(), Error> {
    match &config.ca_file {
        Some(path) => with_ca_file(config, path),
        None => with_client_auth(
            config,
            builder(config.min_version)?.with_root_certificates(RootCertStore::empty()),
        ),
    }
    .map(drop)
}

fn with_ca_file(config: &Config, path: &Path) -> Result<ClientConfig, Error> {
    let verifier = pinned::Verifier::new(certificates(path)?, roots_of_file(path)?, provider())
        .map_err(|source| Error::ServerCa {
            path: path.to_owned(),
            source,
        })?;
    let builder = builder(config.min_version)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    with_client_auth(config, builder)
}

fn with_client_auth(
    config: &Config,
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
) -> Result<ClientConfig, Error> {
    match (&config.client_cert_file, &config.client_key_file) {
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|source| Error::KeyPair {
                certificate: certificate.clone(),
                key: key.clone(),
                source,
            }),
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(present), None) | (None, Some(present)) => Err(Error::HalfAPair {
            present: present.clone(),
        }),
    }
}

/// A server configuration that presents `cert_file` and offers the protocols `alpn` (RFC 7301;
/// none: the extension is not sent).
///
/// With `client_ca_file` it refuses clients without a certificate issued by one of these
/// authorities, and resumes no sessions: a resumed session is not verified again, and would outlive
/// the expiry of its certificate.
///
/// # Errors
/// When a file cannot be read or used.
pub fn server_config(config: &ServerConfig, alpn: &[&[u8]]) -> Result<rustls::ServerConfig, Error> {
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(config.min_version.versions())
        .map_err(Error::Provider)?;
    let builder = match &config.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots_of_file(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|source| Error::ClientCa {
                    path: path.clone(),
                    source,
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let ServerConfig {
        cert_file: certificate,
        key_file: key,
        ..
    } = config;
    let mut server = builder
        .with_single_cert(certificates(certificate)?, private_key(key)?)
        .map_err(|source| Error::KeyPair {
            certificate: certificate.clone(),
            key: key.clone(),
            source,
        })?;
    server.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    if config.client_ca_file.is_some() {
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    }
    Ok(server)
}

/// The TLS error that caused an IO error, if one did.
pub fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|cause| cause.downcast_ref())
}

fn builder(min_version: MinVersion) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(min_version.versions())
        .map_err(Error::Provider)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots_of_file(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| Error::BadRoot {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(roots)
}

fn roots_of_system() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // System stores contain certificates that cannot be parsed: the others are used.
    let (usable, _unusable) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let reason = found
            .errors
            .first()
            .map(|error| format!(" ({error})"))
            .unwrap_or_default();
        return Err(Error::NoSystemRoots { reason });
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let contents = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&contents)
        .collect::<Result<_, _>>()
        .map_err(|source| Error::Pem {
            path: path.to_owned(),
            source,
        })?;
    if certificates.is_empty() {
        return Err(Error::NoCertificate {
            path: path.to_owned(),
        });
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|source| match source {
        pem::Error::NoItemsFound => Error::NoKey {
            path: path.to_owned(),
        },
        source => Error::Pem {
            path: path.to_owned(),
            source,
        },
    })
}

pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    std::fs::read(path)
        .map(Zeroizing::new)
        .map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests;
