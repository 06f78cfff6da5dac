//! Authorities and certificates, and a cloud and a proxy that use TLS.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bearer_proxy::base::clock;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use super::{
    Proxy, toml,
    upstream::{Request, RunningUpstream, Upstream, grant, ok},
};

pub type Authority = CertifiedIssuer<'static, KeyPair>;

/// A certificate chain and its key, in PEM.
pub type Pair = (String, String);

pub fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

pub fn identity(authority: &Authority, name: &str, expired: bool) -> Pair {
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    signed(
        authority,
        if expired {
            between(params, (2020, 1, 1), (2021, 1, 1))
        } else {
            params
        },
    )
}

/// A certificate that is valid until this day.
pub fn identity_until(authority: &Authority, name: &str, until: (i32, u8, u8)) -> Pair {
    signed(
        authority,
        between(
            CertificateParams::new([name.to_owned()]).unwrap(),
            (2020, 1, 1),
            until,
        ),
    )
}

/// A certificate that is valid for `life` from now.
pub fn identity_for(authority: &Authority, name: &str, life: Duration) -> Pair {
    let now = clock::system()
        .wall()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + life;
    signed(authority, params)
}

/// A self-signed certificate.
pub fn self_signed(name: &str) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn between(
    mut params: CertificateParams,
    from: (i32, u8, u8),
    until: (i32, u8, u8),
) -> CertificateParams {
    params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
    params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
    params
}

fn signed(authority: &Authority, params: CertificateParams) -> Pair {
    let key = KeyPair::generate().unwrap();
    (
        params.signed_by(&key, authority).unwrap().pem(),
        key.serialize_pem(),
    )
}

pub fn server_config(
    authority: &Authority,
    (chain, key): Pair,
    clients: bool,
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if clients {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap(),
        )
    } else {
        builder.with_no_client_auth()
    };
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    Arc::new(
        builder
            .with_single_cert(
                chain,
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    )
}

/// A cloud with a certificate of this authority for this name. If `asks`, it requires client
/// certificates.
pub async fn cloud_named(authority: &Authority, name: &str, asks: bool) -> RunningUpstream {
    cloud(server_config(
        authority,
        identity(authority, name, false),
        asks,
    ))
    .await
}

/// A cloud over TLS that issues tokens and codes. It responds to other requests with the token that
/// it received.
pub async fn cloud(config: Arc<ServerConfig>) -> RunningUpstream {
    Upstream::new()
        .on("/api/refreshToken.do", grant("token", 3600))
        .on("/api/token.do", grant("token", 3600))
        .on("/api/authorizeByJWT.do", ok(r#"{"code":"code"}"#))
        .on("*", |request: &Request| ok(request.token()))
        .start_tls(config)
        .await
}

pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A proxy that uses TLS and accepts only clients with a certificate of this authority.
pub async fn with_tls(folder: &Path, authority: &Authority, origin: &str) -> Proxy {
    with_tls_and(folder, authority, origin, "").await
}

/// The same proxy with further lines of configuration.
pub async fn with_tls_and(folder: &Path, authority: &Authority, origin: &str, more: &str) -> Proxy {
    let (chain, key) = identity(authority, "localhost", false);
    write(folder, "proxy.pem", &chain);
    write(folder, "proxy.key", &key);
    write(folder, "ca.pem", &authority.pem());
    let tls =
        "{ cert_file = \"proxy.pem\", key_file = \"proxy.key\", client_ca_file = \"ca.pem\" }";
    let more = format!(
        "proxy.workers = 1\nproxy.first_byte_timeout = \"100ms\"\nproxy.head_timeout = \"100ms\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\ntls = {tls}\n{more}"
    );
    toml::proxy_in(folder, origin, &more).await
}

/// A client that trusts this authority, with the certificate `own` if there is one.
pub fn client_config(authority: &Authority, own: Option<Pair>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = builder.with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                .map(Result::unwrap)
                .collect();
            builder
                .with_client_auth_cert(
                    chain,
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap()
        }
    }
}
