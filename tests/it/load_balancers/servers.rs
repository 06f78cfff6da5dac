//! nginx and HAProxy of Debian in front of the proxy, with the lines that
//! `docs/configuration.md` recommends.

use std::{fs, net::SocketAddr, path::Path};

use super::{BALANCER, configured, exchange, request, talkative};
use crate::common::{
    Proxy,
    process::{Running, free_address, listens, start_installed},
    toml,
    upstream::{RunningUpstream, Upstream, ok},
    web::{Client, Identity, Speech},
};

/// The example in this language that contains these words, with the address of `proxy` in it.
fn example(language: &str, words: &str, proxy: SocketAddr) -> String {
    let document = fs::read_to_string("docs/configuration.md").unwrap();
    let begin = format!("```{language}\n");
    let examples = document.split(&begin).skip(1);
    let mut examples = examples.map(|rest| rest.split_once("```").unwrap().0);
    let example = examples.find(|example| example.contains(words)).unwrap();
    ["192.0.2.20:8080", "192.0.2.20:8443"]
        .iter()
        .fold(example.to_owned(), |text, address| {
            text.replace(address, &proxy.to_string())
        })
}

/// nginx, which ends TLS at the second address.
async fn nginx(folder: &Path, identity: &Identity, location: &str) -> (Running, [SocketAddr; 2]) {
    let (plain, tls) = (free_address(), free_address());
    identity.write(folder);
    let path = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {path}/{name};\n"))
        .concat();
    let text = format!(
        "daemon off;\nmaster_process off;\npid {path}/nginx.pid;\nerror_log {path}/nginx.log;\n\
         events {{ worker_connections 256; }}\nhttp {{\naccess_log off;\n{temporary}\
         server {{ listen {plain}; listen {tls} ssl http2; server_name files.example.com;\n\
         ssl_certificate {path}/server.pem; ssl_certificate_key {path}/server.key;\n\
         location / {{ proxy_bind {BALANCER};\n{location}\n}} }}\n}}\n"
    );
    fs::write(folder.join("nginx.conf"), text).unwrap();
    let (conf, log) = (folder.join("nginx.conf"), folder.join("nginx.log"));
    let [conf, log, folder] = [&conf, &log, folder].map(|path| path.to_str().unwrap());
    let running = start_installed("nginx", &["-e", log, "-p", folder, "-c", conf]);
    listens(plain).await;
    (running, [plain, tls])
}

async fn haproxy(folder: &Path, rest: &str) -> Running {
    let text = format!(
        "global\n  maxconn 256\ndefaults\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         \x20 source {BALANCER}\n{rest}"
    );
    let path = folder.join("haproxy.cfg");
    fs::write(&path, text).unwrap();
    start_installed("haproxy", &["-db", "-f", path.to_str().unwrap()])
}

/// Sends requests of a WebDAV client in a browser's page through the load balancer, which it
/// reaches under `scheme`.
async fn is_served(
    mut client: Client,
    upstream: &RunningUpstream,
    scheme: &str,
    forged: &[(&str, &str)],
) {
    let (origin, destination) = (
        format!("{scheme}://files.example.com"),
        format!("{scheme}://files.example.com/g"),
    );
    let fields = [
        ("host", "files.example.com"),
        ("origin", &origin),
        ("sec-fetch-site", "same-origin"),
        ("destination", &destination),
    ];
    for _ in 0..3 {
        let fields = [&fields[..], forged].concat();
        let got = exchange(&mut client, request("MOVE", "/f", &fields)).await;
        assert_eq!(got.status(), 200, "{got:?}");
        let location = got.headers()["location"].to_str().unwrap();
        assert_eq!(location, format!("{origin}/there"));
        let json = format!(r#"{{"url":"{origin}/_document/f"}}"#);
        assert_eq!(got.body(), json.as_str());
        let seen = upstream.requests().pop().unwrap();
        let seen = |name: &str| seen.fields(name).join(" | ");
        assert_eq!(seen("destination"), format!("{}/g", upstream.origin()));
        assert_eq!(seen("x-forwarded-for"), "127.0.0.1, 127.0.0.2");
        assert_eq!(seen("x-forwarded-host"), "files.example.com");
        assert_eq!(seen("x-forwarded-proto"), scheme);
    }
}

const FORGED: [(&str, &str); 3] = [
    ("x-forwarded-for", "127.0.0.2"),
    ("x-forwarded-host", "forged.example"),
    ("x-forwarded-proto", "gopher"),
];

async fn proxy_behind(upstream: &RunningUpstream) -> Proxy {
    let more = "proxy.trusted_networks = [\"127.0.0.2\"]\n\
        proxy.allowed_hosts = [\"files.example.com\"]\n\
        [upstreams.documents]\nendpoints = [\"http://document.example.com\"]\n\
        [[route]]\nprefix = \"/_document\"\nupstream = \"documents\"\n\
        [[rewrite]]\nfrom = \"http://document.example.com\"\nto = \"/_document\"\n";
    configured(&upstream.origin(), more).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_states_the_client_as_documented() {
    let upstream = talkative().start().await;
    let proxy = proxy_behind(&upstream).await;
    let (folder, identity) = (tempfile::tempdir().unwrap(), Identity::new());
    let location = example("nginx", "X-Forwarded-For", proxy.address);
    let (_nginx, [plain, tls]) = nginx(folder.path(), &identity, &location).await;
    for (speech, address, scheme) in [
        (Speech::Http11, plain, "http"),
        (Speech::Http11OverTls, tls, "https"),
        (Speech::Http2OverTls, tls, "https"),
    ] {
        for forged in [&[][..], &FORGED] {
            let client = Client::connect(speech, address, &identity).await;
            is_served(client, &upstream, scheme, forged).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_states_the_client_as_documented() {
    let upstream = talkative().start().await;
    let proxy = proxy_behind(&upstream).await;
    let (folder, identity) = (tempfile::tempdir().unwrap(), Identity::new());
    identity.write(folder.path());
    let pem = ["server.pem", "server.key"]
        .map(|name| fs::read_to_string(folder.path().join(name)).unwrap());
    fs::write(folder.path().join("both.pem"), pem.concat()).unwrap();
    let (plain, tls) = (free_address(), free_address());
    let frontend = example("haproxy", "forwardfor", proxy.address);
    let rest = format!(
        "frontend it\n  mode http\n  bind {plain}\n  bind {tls} ssl crt {} alpn h2,http/1.1\n{frontend}\n\
         \x20 default_backend proxy\nbackend proxy\n  mode http\n  server proxy1 {}\n",
        folder.path().join("both.pem").display(),
        proxy.address
    );
    let _haproxy = haproxy(folder.path(), &rest).await;
    listens(tls).await;
    for (speech, address, scheme) in [
        (Speech::Http11, plain, "http"),
        (Speech::Http11OverTls, tls, "https"),
        (Speech::Http2OverTls, tls, "https"),
    ] {
        for forged in [&[][..], &FORGED] {
            let client = Client::connect(speech, address, &identity).await;
            is_served(client, &upstream, scheme, forged).await;
        }
    }
}

/// The documented line, as it is with TLS and in both versions, and health checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_sends_the_proxy_protocol_as_documented() {
    let upstream = Upstream::always(ok("ok")).issuing().start().await;
    let identity = Identity::new();
    for tls in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        identity.write(folder.path());
        let certificate = if tls {
            "tls = { cert_file = \"server.pem\", key_file = \"server.key\" }\n"
        } else {
            ""
        };
        let more = format!(
            "proxy.trusted_networks = [\"{BALANCER}\"]\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             proxy_protocol = true\n{certificate}"
        );
        let proxy = toml::proxy_in(folder.path(), &upstream.origin(), &more).await;
        let line = example("haproxy", "send-proxy-v2", proxy.address);
        for version in ["send-proxy-v2", "send-proxy", "send-proxy-v2-ssl"] {
            for mode in if tls { &["tcp"][..] } else { &["tcp", "http"] } {
                let at = free_address();
                let server = line.replace("send-proxy-v2", version);
                let rest = format!("listen it\n  mode {mode}\n  bind {at}\n  {server}\n");
                let _haproxy = haproxy(folder.path(), &rest).await;
                listens(at).await;
                let speeches: &[Speech] = match (tls, *mode) {
                    (true, _) => &[Speech::Http11OverTls, Speech::Http2OverTls],
                    (false, "tcp") => &[Speech::Http11, Speech::Http2],
                    (false, _) => &[Speech::Http11],
                };
                for speech in speeches {
                    for source in ["127.0.0.5", "127.0.0.6"] {
                        let stream = super::connect_from(source, at).await;
                        let mut client = Client::over(*speech, stream, &identity).await;
                        for _ in 0..2 {
                            let fields = [("host", "localhost"), ("x-forwarded-for", "192.0.2.9")];
                            let got = exchange(&mut client, request("GET", "/x", &fields)).await;
                            assert_eq!(got.status(), 200, "{version} {mode}");
                            let seen = upstream.requests().pop().unwrap();
                            assert_eq!(seen.fields("x-forwarded-for"), [source], "{version}");
                        }
                    }
                }
            }
        }
        let closed = "bearer_proxy_connections_rejected_total{reason=\"untrusted_peer\"}";
        assert_eq!(proxy.metric(closed).await, 0.0);
    }
}
