//! What to do when a TLS handshake has failed.

use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible};

/// What to do when a handshake with a server has failed, in parentheses after the error message;
/// empty where there is no advice.
pub fn server_advice(error: &rustls::Error) -> &'static str {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext,
        NotValidYet, NotValidYetContext, Other, UnknownIssuer,
    };
    use PeerIncompatible::{ServerDoesNotSupportTls12Or13, ServerTlsVersionIsDisabledByOurConfig};
    match error {
        // A bad signature: an authority was created again under the same name.
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            " (no trusted authority has issued it: for a private one, set tls.ca_file to its \
             certificate)"
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            " (check the address, or set tls.server_name to a name in the certificate)"
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            " (the server needs a new certificate, or this machine's clock is wrong)"
        }
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            " (this machine's clock may be wrong)"
        }
        rustls::Error::InvalidCertificate(Other(other)) if is_authority(other) => {
            " (the server presents the certificate of an authority: add this very certificate to \
             tls.ca_file, or issue another one for the server with it)"
        }
        rustls::Error::InvalidCertificate(Other(other)) if is_of_version_1(other) => {
            " (the server's certificate has version 1: issue one with extensions, in version 3)"
        }
        rustls::Error::PeerIncompatible(
            ServerDoesNotSupportTls12Or13 | ServerTlsVersionIsDisabledByOurConfig,
        )
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            " (the server supports no TLS version that is allowed here: see tls.min_version)"
        }
        _ => "",
    }
}

/// Like [`server_advice`], when a handshake with a client has failed.
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
            " (tls.client_ca_file requires a certificate: configure one and its key in the client)"
        }
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            " (the client certificate was not issued by an authority in tls.client_ca_file)"
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            " (the client needs a new certificate, or this machine's clock is wrong)"
        }
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            " (this machine's clock may be wrong)"
        }
        rustls::Error::InvalidCertificate(InvalidPurpose | InvalidPurposeContext { .. }) => {
            " (the client certificate is not valid for clients: its extended key usage must \
             contain clientAuth)"
        }
        rustls::Error::InvalidCertificate(Other(other)) if is_authority(other) => {
            " (the client presents the certificate of an authority, as `openssl req -x509` \
             creates it: issue another one for the client with it)"
        }
        rustls::Error::InvalidCertificate(Other(other)) if is_of_version_1(other) => {
            " (the client certificate has version 1: issue one with extensions, in version 3)"
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            " (the client does not use TLS: configure an address that begins with https:// in it)"
        }
        // Without the first two extensions a client supports neither TLS 1.2 nor 1.3.
        rustls::Error::PeerIncompatible(
            SignatureAlgorithmsExtensionRequired
            | SupportedVersionsExtensionRequired
            | Tls12NotOffered
            | Tls12NotOfferedOrEnabled,
        )
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            " (the client supports no TLS version that is allowed here: see tls.min_version)"
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
