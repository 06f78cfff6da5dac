//! TLS towards the upstream and the issuer: rustls with the one provider (aws-lc-rs), chosen explicitly.

use std::path::PathBuf;

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
