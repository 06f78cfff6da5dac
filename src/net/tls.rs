//! TLS towards clients, the upstream and the issuer: rustls with the one provider (aws-lc-rs), chosen explicitly.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use zeroize::Zeroizing;

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
}

/// How to present ourselves to TLS clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Our certificate chain, PEM.
    pub cert_file: PathBuf,
    /// The private key of `cert_file`.
    pub key_file: PathBuf,
    /// Ask clients for a certificate that one of these vouches for, PEM.
    pub client_ca_file: Option<PathBuf>,
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
    /// One of the two client files is missing.
    #[error("{}: a client certificate needs both tls.client_cert_file and tls.client_key_file", present.display())]
    HalfAPair {
        /// The one that is there.
        present: PathBuf,
    },
    /// The system trusts nobody.
    #[error("no trusted certificates were found on this system{reason}: install ca-certificates, or set tls.ca_file")]
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
    let builder = builder()?.with_root_certificates(roots);
    let mut client = match (&config.client_cert_file, &config.client_key_file) {
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|source| Error::KeyPair { certificate: certificate.clone(), key: key.clone(), source })?,
        (None, None) => builder.with_no_client_auth(),
        (Some(present), None) | (None, Some(present)) => return Err(Error::HalfAPair { present: present.clone() }),
    };
    client.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(client)
}

/// A client configuration that trusts nobody: for clients that want one although they will speak plain HTTP.
///
/// # Errors
/// When the provider lacks the protocol versions.
pub fn client_config_without_trust() -> Result<ClientConfig, Error> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::Provider)
}

fn roots_of_file(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| Error::BadRoot { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

fn roots_of_system() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry certificates that nobody can parse: the others still count.
    let (usable, _unusable) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let reason = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(Error::NoSystemRoots { reason });
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|source| Error::Pem { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(Error::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|source| match source {
        pem::Error::NoItemsFound => Error::NoKey { path: path.to_owned() },
        source => Error::Pem { path: path.to_owned(), source },
    })
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    std::fs::read(path).map(Zeroizing::new).map_err(|source| Error::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("a folder") }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, text).expect("written");
            path
        }
    }

    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["cloud.example.com".to_owned()]).expect("a certificate");
        (cert.pem(), signing_key.serialize_pem())
    }

    fn error(config: &Config) -> String {
        client_config(config, &[]).expect_err("refused").to_string()
    }

    #[test]
    fn a_private_ca_a_client_certificate_and_alpn() {
        let files = Files::new();
        let (certificate, key) = pair();
        let config = Config {
            ca_file: Some(files.write("ca.pem", &certificate)),
            client_cert_file: Some(files.write("client.pem", &certificate)),
            client_key_file: Some(files.write("client.key", &key)),
            server_name: None,
        };
        let client = client_config(&config, &[b"http/1.1"]).expect("usable");
        assert_eq!(client.alpn_protocols, [b"http/1.1"]);
        assert!(client.client_auth_cert_resolver.has_certs());
    }

    #[test]
    fn every_error_names_its_file() {
        let files = Files::new();
        let (certificate, key) = pair();
        let (_, foreign_key) = pair();
        let good = files.write("good.pem", &certificate);
        let key = files.write("good.key", &key);
        let foreign_key = files.write("foreign.key", &foreign_key);
        let empty = files.write("empty.pem", "");
        let torn = files.write("torn.pem", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
        let no_der = files.write("noder.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let missing = files.folder.path().join("missing.pem");

        let ca = |path: &PathBuf| Config { ca_file: Some(path.clone()), ..Config::default() };
        let client = |certificate: Option<&PathBuf>, key: Option<&PathBuf>| Config {
            ca_file: Some(good.clone()),
            client_cert_file: certificate.cloned(),
            client_key_file: key.cloned(),
            server_name: None,
        };
        for (config, file, says) in [
            (ca(&missing), &missing, "cannot be read"),
            (ca(&empty), &empty, "no certificate"),
            (ca(&torn), &torn, "not valid PEM"),
            (ca(&no_der), &no_der, "cannot be trusted"),
            (client(Some(&good), Some(&good)), &good, "no private key"),
            (client(Some(&good), Some(&foreign_key)), &foreign_key, "do not go together"),
            (client(Some(&good), None), &good, "needs both"),
            (client(None, Some(&key)), &key, "needs both"),
        ] {
            let error = error(&config);
            assert!(error.contains(&file.display().to_string()) && error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_private_ca_replaces_the_systems() {
        let files = Files::new();
        let (certificate, _) = pair();
        let roots = roots_of_file(&files.write("ca.pem", &certificate)).expect("usable");
        assert_eq!(roots.len(), 1);
    }
}
