//! `tls` tables: checks the files' content, and that a certificate and its key match.

use std::path::{Path, PathBuf};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{Error as PemError, PemObject},
};

use crate::{
    base::clock,
    config::{findings::problem, keys, reader::Reader, values},
    net::tls::{self, Error, MinVersion, Validity, ValidityWarning},
};

/// TLS towards servers: which to trust, and the client certificate.
pub(super) fn client(r: &mut Reader, section: &str) -> tls::Config {
    let key = |name: &str| format!("{section}.{name}");
    let cert_key = key("client_cert_file");
    let key_key = key("client_key_file");
    for (given, other) in [(&cert_key, &key_key), (&key_key, &cert_key)] {
        if r.is_given(given) && !r.is_given(other) {
            let problem = problem(
                "needs the other file of the pair",
                format!("set {other} as well"),
            )
            .or_variable(format!("set {} as well", keys::variable(other)));
            r.missing(r.pos(given), given, problem);
        }
    }
    let config = tls::Config {
        ca_file: pem_file::<CertificateDer<'_>>(r, &key("ca_file"), "certificate"),
        client_cert_file: pem_file::<CertificateDer<'_>>(r, &cert_key, "certificate"),
        client_key_file: pem_file::<PrivateKeyDer<'_>>(r, &key_key, "private key"),
        server_name: r.read(&key("server_name"), values::server_name),
        min_version: min_version(r, &key("min_version")),
    };
    warn_of_dates(r, &cert_key, config.client_cert_file.as_deref());
    let trust = tls::Config {
        client_cert_file: None,
        client_key_file: None,
        ..config.clone()
    };
    if let Err(error) = tls::check(&trust) {
        reject(
            r,
            &key("ca_file"),
            &error,
            "name a PEM file with CA certificates",
        );
    }
    let own = tls::Config {
        ca_file: None,
        ..config.clone()
    };
    match tls::check(&own) {
        // Half a pair has been reported above.
        Ok(()) | Err(Error::HalfAPair { .. }) => {}
        Err(error @ Error::KeyPair { .. }) => {
            reject(
                r,
                &key_key,
                &error,
                "name the private key of that certificate",
            );
        }
        Err(error) => reject(r, &cert_key, &error, "get the file again from its source"),
    }
    config
}

fn reject(r: &mut Reader, key: &str, error: &Error, hint: &str) {
    r.mistake(
        r.pos(key),
        key,
        problem(format!("cannot be used: {error}"), hint),
    );
}

fn min_version(r: &mut Reader, key: &str) -> MinVersion {
    r.choice(
        key,
        [("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)],
    )
}

/// An expired certificate is a warning: the configuration itself is right.
fn warn_of_dates(r: &mut Reader, key: &str, certificate: Option<&Path>) {
    let validity =
        certificate.and_then(|certificate| Validity::of_file(certificate).ok().flatten());
    if let Some(warning) = validity.and_then(|validity| validity.warning(clock::system().wall())) {
        let hint = match warning {
            ValidityWarning::NotYetValid(_) => "check this machine's clock, or wait",
            ValidityWarning::ExpiresSoon(..) | ValidityWarning::Expired(_) => {
                "replace the file; a running proxy reads it again"
            }
        };
        r.warning(
            r.pos(key),
            key,
            problem(format!("names a certificate that {warning}"), hint),
        );
    }
}

/// Checks that the first PEM section is readable. [`tls::check`] checks the rest, and the files
/// together.
fn pem_file<T: PemObject>(r: &mut Reader, key: &str, what: &str) -> Option<PathBuf> {
    let file = r.path(key)?;
    let problem = match T::from_pem_file(&file) {
        Ok(_) => return Some(file),
        Err(PemError::Io(error)) => problem(
            format!("cannot read {}: {error}", file.display()),
            "check the path and the permissions",
        ),
        Err(_) => problem(
            format!("{} contains no {what} in PEM", file.display()),
            format!("name a file with -----BEGIN … {}-----", what.to_uppercase()),
        ),
    };
    r.mistake(r.pos(key), key, problem);
    None
}

/// TLS of a listener, if it has such a table.
pub(super) fn server(r: &mut Reader, section: &str) -> Option<tls::ServerConfig> {
    if !r.section_exists(section) {
        return None;
    }
    let key = |name: &str| format!("{section}.{name}");
    let (cert_key, key_key, ca_key) = (key("cert_file"), key("key_file"), key("client_ca_file"));
    for (needed, hint) in [
        (
            &cert_key,
            "name a PEM file with the certificate and its chain",
        ),
        (
            &key_key,
            "name a PEM file with the private key of tls.cert_file",
        ),
    ] {
        if !r.is_given(needed) {
            r.missing(r.pos(needed), needed, problem("is missing", hint));
        }
    }
    let certificate = pem_file::<CertificateDer<'_>>(r, &cert_key, "certificate");
    let private_key = pem_file::<PrivateKeyDer<'_>>(r, &key_key, "private key");
    let client_ca_file = pem_file::<CertificateDer<'_>>(r, &ca_key, "certificate");
    let min_version = min_version(r, &key("min_version"));
    warn_of_dates(r, &cert_key, certificate.as_deref());
    let config = tls::ServerConfig {
        cert_file: certificate?,
        key_file: private_key?,
        client_ca_file,
        min_version,
    };
    if let Err(error) = tls::server_config(&config, &[]) {
        let (key, hint) = match &error {
            Error::KeyPair { .. } => (key_key, "name the private key of that certificate"),
            Error::BadRoot { .. } | Error::ClientCa { .. } => {
                (ca_key, "name a PEM file with CA certificates")
            }
            Error::Read { path, .. } | Error::Pem { path, .. }
                if Some(path) == config.client_ca_file.as_ref() =>
            {
                (ca_key, "get the file again from its source")
            }
            Error::NoKey { .. } => (key_key, "get the file again from its source"),
            _ => (cert_key, "get the file again from its source"),
        };
        reject(r, &key, &error, hint);
    }
    Some(config)
}
