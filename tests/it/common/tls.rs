//! Authorities and certificates, a cloud that speaks TLS, and a proxy that does.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use bearer_proxy::{
    app::App,
    base::clock,
    config::{self, Source},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{grant, ready, tcp};

pub type Authority = CertifiedIssuer<'static, KeyPair>;

/// A chain and its key, PEM.
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

/// One that is good until this day.
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

/// One that is good for so long from now on.
pub fn identity_for(authority: &Authority, name: &str, life: Duration) -> Pair {
    let now = clock::system()
        .wall()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + life;
    signed(authority, params)
}

/// One that nobody else vouches for.
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

/// A cloud over TLS that grants tokens and codes, and answers everything else with the token it saw. Counts the bytes
/// that it was told.
pub async fn cloud(config: Arc<ServerConfig>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, count) = (TlsAcceptor::from(Arc::clone(&config)), Arc::clone(&count));
            tokio::spawn(async move {
                let mut stream = BufReader::new(acceptor.accept(stream).await?);
                loop {
                    count.fetch_add(stream.fill_buf().await?.len(), SeqCst);
                    let (mut head, mut line) = (String::new(), String::new());
                    while stream.read_line(&mut line).await? > 2 {
                        head += &std::mem::take(&mut line).to_ascii_lowercase();
                    }
                    if head.is_empty() {
                        return std::io::Result::Ok(());
                    }
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                    stream.read_exact(&mut vec![0; length.unwrap_or(0)]).await?;
                    let answer = if head.starts_with("post /api/refreshtoken.do")
                        || head.starts_with("post /api/token.do?")
                    {
                        grant("token", 3600)
                    } else if head.starts_with("get /api/authorizebyjwt.do?") {
                        "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"code\":\"code\"}"
                            .to_owned()
                    } else {
                        let seen = head.matches("\r\nauthorization: bearer token\r\n").count();
                        format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{seen}")
                    };
                    stream.write_all(answer.as_bytes()).await?;
                    stream.flush().await?;
                }
            });
        }
    });
    (address, told)
}

pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A proxy that speaks TLS, to clients with a certificate of this authority alone, and where it is.
pub async fn with_tls(
    folder: &Path,
    authority: &Authority,
    origin: &str,
) -> (App, SocketAddr, SocketAddr) {
    with_tls_and(folder, authority, origin, "").await
}

/// The same with more in its configuration.
pub async fn with_tls_and(
    folder: &Path,
    authority: &Authority,
    origin: &str,
    more: &str,
) -> (App, SocketAddr, SocketAddr) {
    let (chain, key) = identity(authority, "localhost", false);
    write(folder, "proxy.pem", &chain);
    write(folder, "proxy.key", &key);
    write(folder, "ca.pem", &authority.pem());
    let tls =
        "{ cert_file = \"proxy.pem\", key_file = \"proxy.key\", client_ca_file = \"ca.pem\" }";
    let text = format!(
        "[proxy]\nworkers = 1\nfirst_byte_timeout = \"100ms\"\nhead_timeout = \"100ms\"\n[[listener]]\n\
         address = \"127.0.0.1:0\"\ntls = {tls}\n[upstream]\nendpoints = [\"{origin}\"]\n[token]\nclient_id = \"demo\"\n\
         client_secret = \"secret\"\nrefresh_token = \"seed\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{more}"
    );
    let file = write(folder, "proxy.toml", &text);
    let source = Source {
        file: Some(file),
        env: Vec::new(),
        overrides: Vec::new(),
    };
    let app = App::start(
        config::load(source)
            .unwrap_or_else(|e| panic!("{e}"))
            .config,
        clock::system(),
    )
    .unwrap();
    let (address, admin) = (tcp(&app.addresses()[0]), tcp(app.admin_address().unwrap()));
    ready(admin).await;
    (app, address, admin)
}

/// A client that trusts this authority, with a certificate if there is one.
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
