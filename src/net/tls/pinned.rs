//! Servers whose own certificate is in `ca_file`.
//!
//! Servers without an authority often have a self-signed certificate, as `openssl req -x509`
//! creates it. It is a certificate of an authority, which no server may present by the rules of
//! chains. Where the operator names that very certificate, there is no chain to build.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::{certificate::X509Certificate, parse_x509_certificate};

/// Accepts servers with a certificate that an authority has issued, or that is pinned.
#[derive(Debug)]
pub(super) struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// Each of the certificates is both: trusted for servers that present it, and as an authority.
    ///
    /// # Errors
    /// When none of `roots` can be used.
    pub(super) fn new(
        pinned: Vec<CertificateDer<'static>>,
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        Ok(Self {
            chains: chains.build()?,
            pinned,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.pinned.contains(end_entity) {
            return self.chains.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            );
        }
        let (_, parsed) = parse_x509_certificate(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        check_dates(&parsed, now)?;
        match verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name) {
            Err(_) if is_common_name(&parsed, server_name) => {}
            result => result?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn check_dates(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    let error = if seconds < validity.not_before.timestamp() {
        CertificateError::NotValidYet
    } else if seconds > validity.not_after.timestamp() {
        CertificateError::Expired
    } else {
        return Ok(());
    };
    Err(Error::InvalidCertificate(error))
}

/// Whether the common name is that of the server, in a certificate without alternative names
/// (RFC 6125 §6.4.4): older self-signed ones have no others.
fn is_common_name(certificate: &X509Certificate<'_>, server: &ServerName<'_>) -> bool {
    if !matches!(certificate.subject_alternative_name(), Ok(None)) {
        return false;
    }
    let names: Vec<_> = certificate.subject().iter_common_name().collect();
    match names[..] {
        [name] => name
            .as_str()
            .is_ok_and(|name| name.eq_ignore_ascii_case(&server.to_str())),
        _ => false,
    }
}
