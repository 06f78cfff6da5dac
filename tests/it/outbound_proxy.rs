//! Outbound proxies: Squid, microsocks and Dante, and scripted ones that refuse, hang, or send too much.
#![cfg(target_os = "linux")]

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use crate::common::{
    self, Proxy, closed_address, eventually, issuer, post,
    process::{Program, Running, free_address, listens},
    proxy, read_head, scripted,
    tls::{Authority, authority, cloud, identity, server_config, write},
    upstream::{RunningUpstream, Upstream, grant, ok, values},
};

/// A name that only Squid knows.
const NAME: &str = "cloud.test";

const USER: &str = "us er";
const PASSWORD: &str = "r1ght:words";

/// `USER` and `PASSWORD`, as `htpasswd` writes them.
const HTPASSWD: &str = "us er:$apr1$abcdefgh$6XzKchif1G/tUgRqmQdLo/\n";

fn server(program: &str, arguments: &[&str]) -> Running {
    let path = ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(program));
    let path = path.iter().find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("{program} is missing: scripts/test installs it"));
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().unwrap())
}

struct Squid {
    address: SocketAddr,
    folder: TempDir,
    _running: Running,
}

impl Squid {
    /// A Squid that allows everything, to those who know [`PASSWORD`] if `asks`.
    async fn start(asks: bool) -> Self {
        let (address, folder) = (free_address(), tempfile::tempdir().unwrap());
        let path = folder.path();
        // Squid changes its user.
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        write(path, "hosts", &format!("127.0.0.1 {NAME}\n"));
        write(path, "passwords", HTPASSWD);
        let here = path.display();
        let access = if asks {
            format!(
                "auth_param basic program /usr/lib/squid/basic_ncsa_auth {here}/passwords\n\
                 acl known proxy_auth REQUIRED\nhttp_access allow known\nhttp_access deny all\n"
            )
        } else {
            "http_access allow all\n".to_owned()
        };
        let config = format!(
            "http_port {address}\n{access}hosts_file {here}/hosts\npid_filename none\n\
             access_log stdio:{here}/access.log\ncache_log {here}/cache.log\ncache deny all\n\
             shutdown_lifetime 0 seconds\nmax_filedescriptors 1024\n"
        );
        let config = write(path, "squid.conf", &config);
        let running = server("squid", &["-N", "-f", config.to_str().unwrap()]);
        listens(address).await;
        Self {
            address,
            folder,
            _running: running,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until the access log has a line with this text.
    async fn has_logged(&self, text: &str) {
        let log = self.folder.path().join("access.log");
        eventually(&format!("Squid has logged {text}"), async || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains(text))
        })
        .await;
    }
}

/// A microsocks, with [`USER`] and [`PASSWORD`] if `asks`.
async fn microsocks(asks: bool) -> (Running, String) {
    let address = free_address();
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut arguments = vec!["-i", &ip, "-p", &port];
    if asks {
        arguments.extend(["-u", USER, "-P", PASSWORD]);
    }
    let running = server("microsocks", &arguments);
    listens(address).await;
    (running, format!("socks5://{address}"))
}

/// A Dante that asks for nothing, and refuses connections to 127.0.0.2.
async fn dante() -> (Running, String, TempDir) {
    let (address, folder) = (free_address(), tempfile::tempdir().unwrap());
    let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
    let users = if rustix::process::geteuid().is_root() {
        "user.privileged: root\nuser.unprivileged: nobody\n"
    } else {
        ""
    };
    let (ip, port) = (address.ip(), address.port());
    let text = format!(
        "logoutput: {log}\ninternal: {ip} port = {port}\nexternal: lo\n\
         clientmethod: none\nsocksmethod: none\n{users}\
         client pass {{ from: 0/0 to: 0/0 }}\n\
         socks block {{ from: 0/0 to: 127.0.0.2/32 }}\n\
         socks pass {{ from: 0/0 to: 0/0 }}\n",
        log = path("log"),
    );
    fs::write(path("danted.conf"), text).unwrap();
    let running = server("danted", &["-f", &path("danted.conf"), "-p", &path("pid")]);
    listens(address).await;
    (running, format!("socks5://{address}"), folder)
}

/// An authority, and the file of its certificate.
struct Trust {
    authority: Authority,
    ca: PathBuf,
    _folder: TempDir,
}

impl Trust {
    fn new() -> Self {
        let (authority, folder) = (authority(), tempfile::tempdir().unwrap());
        let ca = write(folder.path(), "ca.pem", &authority.pem());
        Self {
            authority,
            ca,
            _folder: folder,
        }
    }

    fn key(&self) -> (&'static str, &str) {
        ("upstream.tls.ca_file", self.ca.to_str().unwrap())
    }

    /// A cloud that issues tokens, and its origin by this name.
    async fn cloud(&self, name: &str) -> (RunningUpstream, String) {
        let pair = identity(&self.authority, name, false);
        let cloud = cloud(server_config(&self.authority, pair, false)).await;
        let origin = format!("https://{name}:{}", cloud.address.port());
        (cloud, origin)
    }
}

/// Responds with the version and the length of the request.
async fn describe(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let version = request.version();
    let length = request
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes()
        .len();
    Ok(Response::new(Full::from(format!("{version:?} {length}"))))
}

/// A cloud that speaks HTTP/2 alone, over TLS if there is an authority.
async fn http2_cloud(authority: Option<&Authority>) -> SocketAddr {
    let acceptor = authority.map(|authority| {
        let pair = identity(authority, NAME, false);
        let mut config = (*server_config(authority, pair, false)).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    });
    scripted(move |_, stream| {
        let acceptor = acceptor.clone();
        async move {
            let server = http2::Builder::new(TokioExecutor::new());
            let served = match acceptor {
                Some(acceptor) => {
                    let io = TokioIo::new(acceptor.accept(stream).await?);
                    server.serve_connection(io, service_fn(describe)).await
                }
                None => {
                    let io = TokioIo::new(stream);
                    server.serve_connection(io, service_fn(describe)).await
                }
            };
            served.map_err(io::Error::other)
        }
    })
    .await
}

/// The keys of user and password.
fn credentials(password: &str) -> [(&str, &str); 2] {
    [
        ("upstream.proxy_user", USER),
        ("upstream.proxy_password", password),
    ]
}

/// Asserts that the response is the proxy's own error of this reason, and that it names the outbound
/// proxy and no password.
async fn assert_names(
    proxy: &Proxy,
    response: Response<Bytes>,
    url: &str,
    reason: &str,
    kind: &str,
) {
    let body = String::from_utf8(response.body().to_vec()).unwrap();
    let status = if reason == "proxy_timeout" { 504 } else { 502 };
    assert_eq!(response.status(), status, "{body}");
    let expected = format!("bearer-proxy; error={kind}; next-hop=\"{url}\"");
    assert_eq!(response.headers()["proxy-status"], expected, "{body}");
    assert!(body.contains(&format!("{url} (upstream.proxy)")), "{body}");
    assert!(!body.contains(PASSWORD), "{body}");
    assert!(proxy.rejected(reason).await >= 1.0, "{reason}");
    let metrics = common::text_at(proxy.admin, "/metrics").await;
    let counted = metrics.lines().any(|line| {
        line.starts_with("bearer_proxy_upstream_errors_total")
            && line.contains(&format!("error=\"{reason}\""))
            && !line.ends_with(" 0")
    });
    assert!(counted, "{reason}: {metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_and_its_issuer_are_reached_through_squid() {
    let (squid, trust) = (Squid::start(false).await, Trust::new());
    let (cloud, origin) = trust.cloud(NAME).await;
    let proxy = proxy(&origin, &[("upstream.proxy", &squid.url()), trust.key()]);
    proxy.ready().await;
    assert_eq!(proxy.get("/file").await.body(), "token");
    let upload = vec![b'x'; 3 << 20];
    assert_eq!(proxy.send(post("/upload", upload)).await.status(), 200);
    assert_eq!(cloud.requests().last().unwrap().body.len(), 3 << 20);
    squid
        .has_logged(&format!("CONNECT {NAME}:{}", cloud.address.port()))
        .await;
    assert_eq!(proxy.rejected("proxy_refused").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_is_spoken_through_a_tunnel_of_squid() {
    let (squid, trust) = (Squid::start(false).await, Trust::new());
    let issuer = issuer().await;
    for (authority, scheme, http2) in [
        (Some(&trust.authority), "https", "auto"),
        (None, "http", "always"),
    ] {
        let port = http2_cloud(authority).await.port();
        let more = [
            ("upstream.proxy", &*squid.url()),
            ("upstream.http2", http2),
            ("token.issuer", &issuer),
            trust.key(),
        ];
        let more = match authority {
            Some(_) => &more[..],
            None => &more[..3],
        };
        let proxy = proxy(&format!("{scheme}://{NAME}:{port}"), more);
        proxy.ready().await;
        for length in [0, 100_000] {
            let response = proxy.send(post("/", vec![b'x'; length])).await;
            assert_eq!(response.body(), &format!("HTTP/2.0 {length}"));
        }
        // It logs a tunnel when it ends.
        drop(proxy);
        squid.has_logged(&format!("CONNECT {NAME}:{port}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_http_endpoints_are_forwarded_by_squid() {
    let squid = Squid::start(true).await;
    let cloud = Upstream::new().issuing().start().await;
    let port = cloud.address.port();
    let url = squid.url();
    let more = [&credentials(PASSWORD)[..], &[("upstream.proxy", &url)]].concat();
    let proxy = proxy(&format!("http://{NAME}:{port}"), &more);
    proxy.ready().await;
    squid
        .has_logged(&format!("POST http://{NAME}:{port}/api/refreshToken.do"))
        .await;
    assert_eq!(proxy.get("/file?a=b//c").await.body(), "ok");
    let response = proxy.send(post("/upload", vec![b'x'; 1 << 20])).await;
    assert_eq!(response.body(), "ok");
    squid
        .has_logged(&format!("GET http://{NAME}:{port}/file?"))
        .await;
    let [first, second] = &cloud.requests()[..] else {
        panic!("{:?}", cloud.targets());
    };
    assert_eq!(first.target(), "/file?a=b//c");
    assert_eq!(first.token(), "token");
    assert_eq!(first.fields("host"), [format!("{NAME}:{port}")]);
    assert_eq!(first.fields("proxy-authorization"), [""; 0]);
    assert_eq!(second.body.len(), 1 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn squid_refuses_and_is_named() {
    let (squid, trust) = (Squid::start(true).await, Trust::new());
    let (cloud, https) = trust.cloud(NAME).await;
    let plain = Upstream::new().start().await;
    let http = format!("http://{NAME}:{}", plain.address.port());
    let (url, issuer) = (squid.url(), issuer().await);
    for origin in [&https, &http] {
        for credentials in [&credentials("wr0ng")[..], &[]] {
            let more = [
                ("upstream.proxy", &*url),
                ("token.issuer", &issuer),
                trust.key(),
            ];
            let more = [credentials, &more].concat();
            let more = match origin == &http {
                true => &more[..more.len() - 1],
                false => &more[..],
            };
            let proxy = proxy(origin, more);
            proxy.ready().await;
            let response = proxy.send(post("/x", "body")).await;
            let body = String::from_utf8_lossy(response.body()).into_owned();
            let expected = match credentials {
                [] => "set proxy_user and proxy_password_file",
                _ => "rejects proxy_user and its password",
            };
            assert!(body.contains(expected), "{body}");
            let kind = "proxy_configuration_error";
            assert_names(&proxy, response, &url, "proxy_refused", kind).await;
        }
    }
    assert!(cloud.is_untouched() && plain.is_untouched());
    // Squid reaches no server there.
    let more = [
        &credentials(PASSWORD)[..],
        &[("upstream.proxy", &url), ("token.issuer", &issuer)],
    ]
    .concat();
    for scheme in ["https", "http"] {
        let port = closed_address().port();
        let proxy = proxy(&format!("{scheme}://{NAME}:{port}"), &more);
        proxy.ready().await;
        let response = proxy.get("/x").await;
        let body = String::from_utf8_lossy(response.body()).into_owned();
        assert!(
            body.contains(&format!(
                "has not connected to {NAME}:{port}: it responded 503"
            )),
            "{body}"
        );
        let kind = "destination_unavailable";
        assert_names(&proxy, response, &url, "proxy_refused", kind).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_call_of_the_issuer_spends_nothing_and_succeeds_after_the_password_is_mended() {
    let squid = Squid::start(true).await;
    let trust = Trust::new();
    let (https_cloud, https) = trust.cloud(NAME).await;
    let http_cloud = Upstream::new().issuing().start().await;
    let http = format!("http://{NAME}:{}", http_cloud.address.port());
    for (origin, cloud) in [(&https, &https_cloud), (&http, &http_cloud)] {
        let folder = tempfile::tempdir().unwrap();
        let file = write(folder.path(), "password", "wr0ng");
        let url = squid.url();
        let more = [
            ("upstream.proxy", &*url),
            ("upstream.proxy_user", USER),
            ("upstream.proxy_password_file", file.to_str().unwrap()),
            trust.key(),
        ];
        let more = match origin == &http {
            true => &more[..3],
            false => &more[..],
        };
        let proxy = proxy(origin, more);
        let reason = async || {
            let status = common::text_at(proxy.admin, "/status").await;
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            status["credentials"][0].clone()
        };
        eventually("the issuer is unreachable", async || {
            reason().await["reason"] == "issuer_unreachable"
        })
        .await;
        let status = reason().await.to_string();
        assert!(
            status.contains(&format!("{url} (upstream.proxy)")),
            "{status}"
        );
        assert!(!status.contains("wr0ng"), "{status}");
        assert!(cloud.is_untouched());
        fs::write(&file, PASSWORD).unwrap();
        proxy.app.reload_files();
        proxy.ready().await;
        assert_eq!(proxy.get("/x").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_and_its_issuer_are_reached_through_socks5() {
    let trust = Trust::new();
    let (https_cloud, https) = trust.cloud("localhost").await;
    let http_cloud = Upstream::new().issuing().start().await;
    let http = format!("http://localhost:{}", http_cloud.address.port());
    let [open, asking] = [microsocks(false).await, microsocks(true).await];
    let (_dante, dante, _folder) = dante().await;
    for (url, asks) in [(&open.1, false), (&asking.1, true), (&dante, false)] {
        for (origin, cloud) in [(&https, &https_cloud), (&http, &http_cloud)] {
            let mut more = vec![("upstream.proxy", &**url)];
            if asks {
                more.extend(credentials(PASSWORD));
            }
            if origin == &https {
                more.push(trust.key());
            }
            let proxy = proxy(origin, &more);
            proxy.ready().await;
            let upload = proxy.send(post("/upload", vec![b'x'; 1 << 20])).await;
            assert_eq!(upload.status(), 200);
            let received = cloud.requests().pop().unwrap();
            assert_eq!(
                (received.body.len(), received.target()),
                (1 << 20, "/upload")
            );
        }
    }
    let issuer = issuer().await;
    let more = [("upstream.proxy", &*dante), ("token.issuer", &issuer)];
    let proxy_to_blocked = proxy("http://127.0.0.2:1", &more);
    proxy_to_blocked.ready().await;
    let response = proxy_to_blocked.get("/x").await;
    let kind = "destination_unavailable";
    assert_names(&proxy_to_blocked, response, &dante, "proxy_refused", kind).await;

    let url = asking.1;
    let before = http_cloud.connections();
    for credentials in [&credentials("wr0ng")[..], &[]] {
        let more = [
            credentials,
            &[("upstream.proxy", &url), ("token.issuer", &issuer)],
        ]
        .concat();
        let proxy = proxy(&http, &more);
        proxy.ready().await;
        let response = proxy.get("/x").await;
        let kind = "proxy_configuration_error";
        assert_names(&proxy, response, &url, "proxy_refused", kind).await;
    }
    assert_eq!(http_cloud.connections(), before);
}

#[tokio::test]
async fn proxies_that_refuse_lie_or_hang() {
    let issuer = issuer().await;
    let endless: &[u8] = b"HTTP/1.1 200 OK\r\nX: ";
    for (response, ends, reason, kind) in [
        (
            &b"HTTP/1.1 403 x\r\n\r\n"[..],
            true,
            "proxy_refused",
            "destination_unavailable",
        ),
        (
            b"HTTP/1.1 502 x\r\n\r\n",
            true,
            "proxy_refused",
            "destination_unavailable",
        ),
        (
            b"HTTP/1.1 407 x\r\n\r\n",
            true,
            "proxy_refused",
            "proxy_configuration_error",
        ),
        (
            b"SSH-2.0-x\r\n\r\n",
            true,
            "proxy_refused",
            "destination_unavailable",
        ),
        (b"", true, "proxy_refused", "destination_unavailable"),
        (b"", false, "proxy_timeout", "connection_timeout"),
        (
            b"HTTP/1.1 200 OK\r\n",
            false,
            "proxy_timeout",
            "connection_timeout",
        ),
        (endless, false, "proxy_refused", "destination_unavailable"),
    ] {
        let is_endless = response == endless;
        let outbound = scripted(move |_, mut stream| async move {
            read_head(&mut stream).await?;
            stream.write_all(response).await?;
            if is_endless {
                loop {
                    stream.write_all(&[b'a'; 4096]).await?;
                }
            }
            if !ends {
                stream.read_to_end(&mut Vec::new()).await?;
            }
            Ok(())
        })
        .await;
        let url = format!("http://{outbound}");
        let more = [
            ("upstream.proxy", &*url),
            ("upstream.connect_timeout", "500ms"),
            ("token.issuer", &issuer),
        ];
        let proxy = proxy("https://cloud.test", &more);
        proxy.ready().await;
        let got = proxy.send(post("/x", "body")).await;
        assert_names(&proxy, got, &url, reason, kind).await;
    }
    let url = format!("http://{}", closed_address());
    for origin in ["https://cloud.test", "http://cloud.test"] {
        let more = [("upstream.proxy", &*url), ("token.issuer", &issuer)];
        let proxy = proxy(origin, &more);
        proxy.ready().await;
        let got = proxy.get("/x").await;
        assert_names(&proxy, got, &url, "proxy_unreachable", "connection_refused").await;
    }
}

/// After the proxy's response, it is the destination that does not respond, or not in TLS.
#[tokio::test]
async fn what_comes_through_a_tunnel_is_the_endpoint_s() {
    let issuer = issuer().await;
    for (behind, reason, status) in [("", "connect_timeout", 504), ("behind", "tls", 502)] {
        let outbound = scripted(move |_, mut stream| async move {
            read_head(&mut stream).await?;
            let response = format!("HTTP/1.1 200 OK\r\n\r\n{behind}");
            stream.write_all(response.as_bytes()).await?;
            stream.read_to_end(&mut Vec::new()).await.map(drop)
        })
        .await;
        let more = [
            ("upstream.proxy", &*format!("http://{outbound}")),
            ("upstream.handshake_timeout", "300ms"),
            ("token.issuer", &issuer),
        ];
        let proxy = proxy("https://cloud.test", &more);
        proxy.ready().await;
        assert_eq!(proxy.get("/x").await.status(), status);
        assert_eq!(proxy.rejected(reason).await, 1.0, "{reason}");
    }
}

/// An HTTP proxy that records the first line and the credentials of each connection's first head. It
/// connects to the port on this machine whatever the name is, and forwards that head alone in
/// origin form.
async fn recorder() -> (String, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let log = Arc::clone(&seen);
    let address = scripted(move |_, mut stream| {
        let log = Arc::clone(&log);
        async move {
            let head = read_head(&mut stream).await?;
            let line = head.lines().next().unwrap_or_default().to_owned();
            let credentials = values(&head, "proxy-authorization").join(",");
            log.lock().unwrap().push(format!("{line} {credentials}"));
            let target = line.split(' ').nth(1).unwrap_or_default();
            let port = target.rsplit(':').next().unwrap_or_default();
            let port = port.split('/').next().unwrap_or_default();
            let mut server = TcpStream::connect(format!("127.0.0.1:{port}")).await?;
            if head.starts_with("CONNECT") {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            } else {
                let origin = target.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
                let head = head.replacen(&origin, "", 1);
                server.write_all(head.as_bytes()).await?;
            }
            tokio::io::copy_bidirectional(&mut stream, &mut server)
                .await
                .map(drop)
        }
    })
    .await;
    (format!("http://{address}"), seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_upstream_and_the_issuer_have_their_own_proxy() {
    let (of_files, files_log) = recorder().await;
    let (of_issuer, issuer_log) = recorder().await;
    let direct = Upstream::new().start().await;
    let files = Upstream::always(ok("files")).start().await;
    let issuer = issuer().await;
    let files_origin = format!("http://files.test:{}", files.address.port());
    let folder = tempfile::tempdir().unwrap();
    let more = format!(
        "token.issuer = \"{issuer}\"\ntoken.proxy = \"{of_issuer}\"\n\
         token.proxy_user = \"of_issuer\"\ntoken.proxy_password = \"word\"\n\
         [upstreams.files]\nendpoints = [\"{files_origin}\"]\nproxy = \"{of_files}\"\n\
         [[route]]\nprefix = \"/files\"\nupstream = \"files\"\n"
    );
    let proxy = common::toml::proxy_in(folder.path(), &direct.origin(), &more).await;
    assert_eq!(proxy.get("/x").await.body(), "ok");
    assert_eq!(proxy.get("/files/y").await.body(), "files");
    let expected = format!("GET {files_origin}/files/y HTTP/1.1 ");
    assert_eq!(*files_log.lock().unwrap(), [expected]);
    let calls = issuer_log.lock().unwrap().clone();
    let [call] = &calls[..] else {
        panic!("{calls:?}");
    };
    assert!(
        call.starts_with(&format!("POST {issuer}/api/refreshToken.do?"))
            && call.ends_with("Basic b2ZfaXNzdWVyOndvcmQ="),
        "{call}"
    );
    assert_eq!(files.targets(), ["/files/y"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_a_proxy_is_used_again() {
    let (url, seen) = recorder().await;
    let cloud = Upstream::new().start().await;
    let issuer = issuer().await;
    let more = [
        ("upstream.proxy", &*url),
        ("token.issuer", &issuer),
        ("proxy.workers", "1"),
    ];
    let proxy = proxy(&cloud.origin(), &more);
    proxy.ready().await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/x").await.status(), StatusCode::OK);
    }
    assert_eq!((seen.lock().unwrap().len(), cloud.connections()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_have_no_effect_and_one_line_names_the_key() {
    let cloud = Upstream::new().issuing().start().await;
    let (url, seen) = recorder().await;
    for (more, lines) in [
        (String::new(), 1),
        (format!("upstream.proxy = \"{url}\"\n"), 0),
    ] {
        let program = Program::new(&cloud.origin(), &more);
        let mut command = program.command();
        for name in ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"] {
            command.env(name, "http://user:s3cret-words@127.0.0.1:1");
        }
        let mut running = program.start_as(command);
        program.ready().await;
        assert_eq!(program.get("/x").await, 200);
        running.terminate().await;
        let log = program.log();
        let named = log.lines().filter(|line| line.contains("upstream.proxy"));
        assert_eq!(named.count(), lines, "{log}");
        assert!(!log.contains("s3cret"), "{log}");
    }
    assert!(!seen.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_the_proxy_cannot_reach_is_followed_by_the_next_one() {
    let trust = Trust::new();
    let (cloud, origin) = trust.cloud("localhost").await;
    let (url, seen) = recorder().await;
    let issuer = issuer().await;
    let down = format!("https://down.test:{}", closed_address().port());
    let endpoints = format!("{down},{origin}");
    let more = [
        ("upstream.proxy", &*url),
        ("upstream.endpoints", &endpoints),
        ("token.issuer", &issuer),
        ("proxy.workers", "1"),
        trust.key(),
    ];
    let proxy = proxy(&origin, &more);
    proxy.ready().await;
    for number in 0..4 {
        let response = proxy.send(post(&format!("/{number}"), "body")).await;
        assert_eq!(response.status(), 200);
    }
    assert_eq!(cloud.targets(), ["/0", "/1", "/2", "/3"]);
    let is_tried = |line: &String| line.starts_with("CONNECT down.test");
    assert!(seen.lock().unwrap().iter().any(is_tried));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_log_and_no_page_contains_the_password() {
    let cloud = Upstream::new().issuing().start().await;
    let (url, seen) = recorder().await;
    let more = format!(
        "upstream.proxy = \"{url}\"\nupstream.proxy_user = \"{USER}\"\n\
         upstream.proxy_password = \"{PASSWORD}\"\nlog.level = \"trace\"\n"
    );
    let program = Program::new(&cloud.origin(), &more);
    let mut running = program.start_ready().await;
    assert_eq!(program.get("/x").await, 200);
    let encoded = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let is_sent = |line: &String| line.ends_with(&encoded);
    assert!(seen.lock().unwrap().iter().all(is_sent));
    let pages = program.status().await + &common::text_at(program.admin, "/metrics").await;
    running.terminate().await;
    for text in [program.log(), pages] {
        for secret in [PASSWORD, &encoded] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_tokens_come_through_the_proxy() {
    let cloud = Upstream::new()
        .on("/api/authorizeByJWT.do", ok(r#"{"code":"code"}"#))
        .on("/api/token.do", grant("token", 3600))
        .start()
        .await;
    let (url, seen) = recorder().await;
    let more = format!("upstream.proxy = \"{url}\"\ntoken.jwt.key = \"{PASSWORD}\"\n");
    let program = Program::without_token(&cloud.origin(), &more);
    let mut running = program.start_ready().await;
    running.terminate().await;
    let calls = seen.lock().unwrap().clone();
    let origin = cloud.origin();
    let expected = ["GET ", "POST "].map(|method| format!("{method}{origin}/api/"));
    assert!(
        calls.len() == 2
            && calls
                .iter()
                .zip(expected)
                .all(|(call, start)| call.starts_with(&start)),
        "{calls:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_squid_has_not_forwarded_goes_to_the_next_endpoint() {
    let squid = Squid::start(false).await;
    let cloud = Upstream::new().start().await;
    let down = format!("http://{NAME}:{}", closed_address().port());
    let origin = format!("http://{NAME}:{}", cloud.address.port());
    let (endpoints, url, issuer) = (format!("{down},{origin}"), squid.url(), issuer().await);
    let more = [
        ("upstream.proxy", &*url),
        ("upstream.endpoints", &endpoints),
        ("token.issuer", &issuer),
        ("proxy.workers", "1"),
    ];
    let proxy = proxy(&origin, &more);
    proxy.ready().await;
    for number in 0..4 {
        let response = proxy.send(post(&format!("/{number}"), "body")).await;
        assert_eq!(response.status(), 200);
    }
    assert_eq!(cloud.targets(), ["/0", "/1", "/2", "/3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_checks_pass_the_proxy() {
    let (trust, issuer) = (Trust::new(), issuer().await);
    let (https_cloud, https) = trust.cloud("localhost").await;
    let http_cloud = Upstream::new().start().await;
    for (origin, cloud) in [(&https, &https_cloud), (&http_cloud.origin(), &http_cloud)] {
        let (url, seen) = recorder().await;
        let more = [
            ("upstream.proxy", &*url),
            ("upstream.health.path", "/health"),
            ("token.issuer", &issuer),
            trust.key(),
        ];
        let more = match origin == &https {
            true => &more[..],
            false => &more[..3],
        };
        let proxy = proxy(origin, more);
        proxy.ready().await;
        eventually("the cloud is checked", async || cloud.count() > 0).await;
        assert_eq!(cloud.targets()[0], "/health");
        assert_eq!(cloud.requests()[0].token(), "");
        assert!(!seen.lock().unwrap().is_empty());
    }
}
