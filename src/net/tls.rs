//! TLS towards clients, the upstream and the issuer: rustls with the one provider (aws-lc-rs), chosen explicitly.

mod validity;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, InvalidMessage, PeerIncompatible,
    RootCertStore, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};
use zeroize::Zeroizing;

pub use self::validity::{Validity, ValidityWarning};

/// The oldest version of TLS that is spoken.
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

/// How to trust and to greet a TLS server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Trust the certificates of this PEM file instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain, when the server asks for one. Goes with `client_key_file`.
    pub client_cert_file: Option<PathBuf>,
    /// The private key of `client_cert_file`.
    pub client_key_file: Option<PathBuf>,
    /// The name to send and to verify, when it is not the URL's.
    pub server_name: Option<String>,
    /// Servers that speak only older versions are refused.
    pub min_version: MinVersion,
}

impl Config {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        [&self.ca_file, &self.client_cert_file, &self.client_key_file]
            .into_iter()
            .flatten()
            .cloned()
    }
}

/// How to present ourselves to TLS clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Our certificate chain, PEM.
    pub cert_file: PathBuf,
    /// The private key of `cert_file`.
    pub key_file: PathBuf,
    /// Serve only clients that show a certificate which one of these vouches for, PEM.
    pub client_ca_file: Option<PathBuf>,
    /// Clients that speak only older versions are refused.
    pub min_version: MinVersion,
}

impl ServerConfig {
    /// The files that it names.
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

/// Why a TLS configuration cannot be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: it cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not PEM.
    #[error("{}: this is not valid PEM: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A certificate file without certificates.
    #[error("{}: there is no certificate in it (a PEM file begins with -----BEGIN CERTIFICATE-----)", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate that cannot be used as a trust anchor.
    #[error("{}: a certificate in it cannot be trusted: {source}", path.display())]
    BadRoot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// A key file without a key.
    #[error("{}: there is no private key in it (PKCS#8, PKCS#1 or SEC1, as PEM, not encrypted)", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The key does not belong to the certificate, or is of an unknown kind.
    #[error("{} and {}: they do not go together: {source}", certificate.display(), key.display())]
    KeyPair {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// A trust anchor that clients' certificates cannot be verified with.
    #[error("{}: clients' certificates cannot be verified with it: {source}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: VerifierBuilderError,
    },
    /// One of the two client files is missing.
    #[error("{}: a client certificate needs both tls.client_cert_file and tls.client_key_file", present.display())]
    HalfAPair {
        /// The one that is there.
        present: PathBuf,
    },
    /// The system trusts nobody.
    #[error(
        "no trusted certificates were found on this system{reason}: install ca-certificates, or set tls.ca_file"
    )]
    NoSystemRoots {
        /// What the system said, if it said something.
        reason: String,
    },
    /// The provider does not support the protocol versions.
    #[error("TLS cannot be set up: {0}")]
    Provider(rustls::Error),
}

/// A client configuration that trusts `ca_file`, or the system's certificates if there is none, and offers these
/// protocols (RFC 7301; none: no offer).
///
/// # Errors
/// When a file cannot be read or used, or when nothing at all is trusted.
pub fn client_config(config: &Config, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    let roots = match &config.ca_file {
        Some(path) => roots_of_file(path)?,
        None => roots_of_system()?,
    };
    let mut client = with_client_auth(config, roots)?;
    client.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(client)
}

/// Whether the files can be used. The system's certificates are left alone.
///
/// # Errors
/// When one of the files cannot be read or used.
pub fn check(config: &Config) -> Result<(), Error> {
    let roots = config.ca_file.as_deref().map(roots_of_file).transpose()?;
    with_client_auth(config, roots.unwrap_or_else(RootCertStore::empty)).map(drop)
}

fn with_client_auth(config: &Config, roots: RootCertStore) -> Result<ClientConfig, Error> {
    let builder = builder(config.min_version)?.with_root_certificates(roots);
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

/// A server configuration that shows `cert_file`. With `client_ca_file` it refuses clients without a certificate that was
/// issued by one of those, with each connection: a session that is resumed would outlive the certificate that began it. It
/// offers these protocols (RFC 7301; none: no offer).
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

/// A client configuration that trusts nobody: for clients that want one although they will speak plain HTTP.
///
/// # Errors
/// When the provider lacks the protocol versions.
pub fn client_config_without_roots() -> Result<ClientConfig, Error> {
    Ok(builder(MinVersion::default())?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

/// What to do about a server that a handshake failed with, as the end of a sentence; empty where there is no advice.
pub fn server_advice(error: &rustls::Error) -> &'static str {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext,
        NotValidYet, NotValidYetContext, Other, UnknownIssuer,
    };
    use PeerIncompatible::{ServerDoesNotSupportTls12Or13, ServerTlsVersionIsDisabledByOurConfig};
    match error {
        // An authority that was made anew, under the same name, leaves a bad signature.
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            " (nobody who is trusted here vouches for it: for a private authority, name its certificate in tls.ca_file)"
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            " (check the address, or write the name that the certificate carries as tls.server_name)"
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            " (the server needs a new certificate, or this machine's clock is wrong)"
        }
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            " (this machine's clock may be wrong)"
        }
        // Made by hand, most often: the whole of `openssl req -x509`.
        rustls::Error::InvalidCertificate(Other(other)) if is_authority(other) => {
            " (the server shows the certificate of an authority: let it issue another one for the server, and name the \
             authority's in tls.ca_file)"
        }
        rustls::Error::PeerIncompatible(
            ServerDoesNotSupportTls12Or13 | ServerTlsVersionIsDisabledByOurConfig,
        )
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            " (the server speaks no version that is allowed here: see tls.min_version)"
        }
        _ => "",
    }
}

/// The same about a client that a handshake failed with.
pub fn client_advice(error: &rustls::Error) -> &'static str {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext, NotValidYet,
        NotValidYetContext, Other, UnknownIssuer,
    };
    use PeerIncompatible::{
        SignatureAlgorithmsExtensionRequired, SupportedVersionsExtensionRequired, Tls12NotOffered,
        Tls12NotOfferedOrEnabled,
    };
    match error {
        rustls::Error::NoCertificatesPresented => {
            " (tls.client_ca_file asks every client for a certificate: give the app one and its key)"
        }
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            " (no authority in tls.client_ca_file has issued the client's certificate)"
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            " (the client needs a new certificate, or this machine's clock is wrong)"
        }
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            " (this machine's clock may be wrong)"
        }
        rustls::Error::InvalidCertificate(InvalidPurpose | InvalidPurposeContext { .. }) => {
            " (the client's certificate is not meant for clients: its extended key usage has to name clientAuth)"
        }
        rustls::Error::InvalidCertificate(Other(other)) if is_authority(other) => {
            " (the client shows the certificate of an authority, as `openssl req -x509` makes them: let that issue another \
             one for the client)"
        }
        rustls::Error::InvalidCertificate(Other(other)) if is_of_version_1(other) => {
            " (the client's certificate is of version 1: issue one with extensions, which is of version 3)"
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            " (the client does not speak TLS: give it an address that begins with https://)"
        }
        // Without the first two extensions a client speaks neither 1.2 nor 1.3.
        rustls::Error::PeerIncompatible(
            SignatureAlgorithmsExtensionRequired
            | SupportedVersionsExtensionRequired
            | Tls12NotOffered
            | Tls12NotOfferedOrEnabled,
        )
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            " (the client speaks no version that is allowed here: see tls.min_version)"
        }
        _ => "",
    }
}

fn is_authority(error: &rustls::OtherError) -> bool {
    error.to_string().contains("CaUsedAsEndEntity")
}

fn is_of_version_1(error: &rustls::OtherError) -> bool {
    error.to_string().contains("UnsupportedCertVersion")
}

/// What rustls said, where it was the cause.
pub fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|cause| cause.downcast_ref())
}

fn builder(
    least: MinVersion,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(least.versions())
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
    // Systems carry certificates that nobody can parse: the others still count.
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
    let text = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
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
