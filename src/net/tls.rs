//! TLS towards clients, the upstream and the issuer: rustls with the one provider (aws-lc-rs), chosen explicitly.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{VerifierBuilderError, WebPkiClientVerifier},
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
    /// Serve only clients that show a certificate which one of these vouches for, PEM.
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

/// A server configuration that shows `cert_file`. With `client_ca_file` it refuses clients without a certificate that was
/// issued by one of those. It offers no protocols (RFC 7301): whoever serves them adds them to `alpn_protocols`.
///
/// # Errors
/// When a file cannot be read or used.
pub fn server_config(config: &ServerConfig) -> Result<rustls::ServerConfig, Error> {
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Provider)?;
    let builder = match &config.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots_of_file(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|source| Error::ClientCa { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let ServerConfig { cert_file: certificate, key_file: key, .. } = config;
    builder.with_single_cert(certificates(certificate)?, private_key(key)?).map_err(|source| Error::KeyPair {
        certificate: certificate.clone(),
        key: key.clone(),
        source,
    })
}

/// A client configuration that trusts nobody: for clients that want one although they will speak plain HTTP.
///
/// # Errors
/// When the provider lacks the protocol versions.
pub fn client_config_without_trust() -> Result<ClientConfig, Error> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(Error::Provider)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
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

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey, IsCa, KeyPair, generate_simple_self_signed,
    };
    use rustls::{ClientConnection, ServerConnection, pki_types::ServerName};

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

    /// A handshake in memory: what was agreed, or who refused.
    fn handshake(
        client: ClientConfig,
        server: rustls::ServerConfig,
    ) -> Result<Option<rustls::ProtocolVersion>, String> {
        let name = ServerName::try_from("cloud.example.com").expect("a name");
        let mut client = ClientConnection::new(Arc::new(client), name).expect("a client");
        let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
        while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).expect("memory");
            server.read_tls(&mut &wire[..]).expect("memory");
            server.process_new_packets().map_err(|error| format!("server: {error}"))?;
            wire.clear();
            server.write_tls(&mut wire).expect("memory");
            client.read_tls(&mut &wire[..]).expect("memory");
            client.process_new_packets().map_err(|error| format!("client: {error}"))?;
        }
        Ok(server.protocol_version())
    }

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
    }

    fn identity(files: &Files, authority: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["cloud.example.com".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, authority).expect("a certificate");
        (
            files.write(&format!("{name}.pem"), &certificate.pem()),
            files.write(&format!("{name}.key"), &key.serialize_pem()),
        )
    }

    #[test]
    fn a_server_shows_its_certificate_and_asks_for_one_only_when_told_to() {
        let files = Files::new();
        let (ours, other) = (authority(), authority());
        let (ca, other_ca) = (files.write("ca.pem", &ours.pem()), files.write("other.pem", &other.pem()));
        let (cert_file, key_file) = identity(&files, &ours, "server");
        let shown = identity(&files, &ours, "client");
        let open = ServerConfig { cert_file, key_file, client_ca_file: None };
        let closed = |ca: &PathBuf| ServerConfig { client_ca_file: Some(ca.clone()), ..open.clone() };
        let try_with = |server: &ServerConfig, shown: Option<&(PathBuf, PathBuf)>| {
            let client = Config {
                ca_file: Some(ca.clone()),
                client_cert_file: shown.map(|(certificate, _)| certificate.clone()),
                client_key_file: shown.map(|(_, key)| key.clone()),
                server_name: None,
            };
            handshake(client_config(&client, &[]).expect("a client"), server_config(server).expect("a server"))
        };
        let tls13 = Ok(Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(try_with(&open, None), tls13);
        assert_eq!(try_with(&open, Some(&shown)), tls13);
        assert_eq!(try_with(&closed(&ca), Some(&shown)), tls13);
        let without = try_with(&closed(&ca), None).expect_err("no certificate was shown");
        assert!(without.starts_with("server: ") && without.contains("no certificates"), "{without}");
        let unknown = try_with(&closed(&other_ca), Some(&shown)).expect_err("the wrong authority");
        assert!(unknown.starts_with("server: ") && unknown.contains("certificate"), "{unknown}");
        assert!(server_config(&open).expect("a server").alpn_protocols.is_empty());
    }

    #[test]
    fn every_error_of_a_server_names_its_file() {
        let files = Files::new();
        let (certificate, key) = pair();
        let cert_file = files.write("server.pem", &certificate);
        let key_file = files.write("server.key", &key);
        let foreign_key = files.write("foreign.key", &pair().1);
        let no_der = files.write("noder.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let missing = files.folder.path().join("missing.pem");
        let good = ServerConfig { cert_file: cert_file.clone(), key_file, client_ca_file: None };
        let ca = |path: &PathBuf| ServerConfig { client_ca_file: Some(path.clone()), ..good.clone() };
        for (config, file, says) in [
            (ServerConfig { cert_file: missing.clone(), ..good.clone() }, &missing, "cannot be read"),
            (ServerConfig { key_file: missing.clone(), ..good.clone() }, &missing, "cannot be read"),
            (ServerConfig { key_file: cert_file.clone(), ..good.clone() }, &cert_file, "no private key"),
            (ServerConfig { key_file: foreign_key.clone(), ..good.clone() }, &foreign_key, "do not go together"),
            (ca(&missing), &missing, "cannot be read"),
            (ca(&good.key_file), &good.key_file, "no certificate"),
            (ca(&no_der), &no_der, "cannot be trusted"),
        ] {
            let error = server_config(&config).expect_err("refused").to_string();
            assert!(error.contains(&file.display().to_string()) && error.contains(says), "{error}");
        }
    }
}
