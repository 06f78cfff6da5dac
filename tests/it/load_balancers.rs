//! Load balancers in front of the proxy, whose forwarding fields and PROXY headers say who the
//! client is. The tests' own stand at 127.0.0.2; `servers` has nginx and HAProxy.

mod header;
#[cfg(target_os = "linux")]
mod servers;

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
};

use crate::common::{
    Proxy, eventually, read_to_close, status, toml,
    upstream::{self, Upstream, ok, response, values},
    web::{Body, Client, Identity, Speech, whole},
};

/// The load balancer, and a peer that is none.
const BALANCER: &str = "127.0.0.2";
const STRANGER: &str = "127.0.0.3";

/// A connection from this address.
async fn connect_from(ip: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(ip.parse().unwrap(), 0))
        .unwrap();
    let stream = socket.connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends these bytes from this address and reads until the connection closes.
async fn raw_from(ip: &str, to: SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut stream = connect_from(ip, to).await;
    stream.write_all(request.as_ref()).await.unwrap();
    read_to_close(&mut stream).await
}

/// A GET with these fields, after whose response the connection closes.
fn get_with(fields: &str) -> String {
    format!("GET /x HTTP/1.1\r\n{fields}Connection: close\r\n\r\n")
}

fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(whole("")).unwrap()
}

async fn exchange(client: &mut Client, request: Request<Body>) -> Response<Bytes> {
    let (head, body) = client.send(request).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

async fn configured(origin: &str, more: &str) -> Proxy {
    toml::proxy_in(tempfile::tempdir().unwrap().path(), origin, more).await
}

/// An upstream whose responses name it in every way that is mapped.
fn talkative() -> Upstream {
    let reply = |request: &upstream::Request| {
        let host = request.fields("host")[0].to_owned();
        let fields = format!(
            "Location: http://{host}/there\r\nLink: <http://{host}/next>; rel=next\r\n\
             Set-Cookie: s=1; Secure; SameSite=None\r\nContent-Type: application/json\r\n"
        );
        let body = r#"{"url":"http://document.example.com/f"}"#;
        response("200 OK", &fields, body)
    };
    Upstream::new().issuing().on("*", reply)
}

const REWRITTEN: &str = "proxy.trusted_networks = [\"127.0.0.2\"]\n\
    proxy.allowed_hosts = [\"files.example.com\", \"inner\"]\n\
    [upstreams.documents]\nendpoints = [\"http://document.example.com\"]\n\
    [[route]]\nprefix = \"/_document\"\nupstream = \"documents\"\n\
    [[rewrite]]\nfrom = \"http://document.example.com\"\nto = \"/_document\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_peer_states_the_clients_address_scheme_and_host() {
    let upstream = talkative().start().await;
    let cloud = upstream.origin();
    let host = upstream.address.to_string();
    let identity = Identity::new();
    for (kind, stated) in [
        (
            "x-forwarded",
            &[
                ("x-forwarded-for", "203.0.113.9, 192.0.2.7"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "files.example.com"),
                // Not read.
                ("forwarded", "for=198.51.100.1;host=inner;proto=http"),
            ][..],
        ),
        (
            "forwarded",
            &[
                (
                    "forwarded",
                    "for=203.0.113.9;proto=http, for=192.0.2.7;proto=https;host=\"files.example.com\"",
                ),
                ("x-forwarded-for", "198.51.100.1"),
                ("x-forwarded-proto", "http"),
            ],
        ),
    ] {
        let more = format!("proxy.forwarded_headers = \"{kind}\"\n{REWRITTEN}");
        let proxy = configured(&cloud, &more).await;
        for speech in [Speech::Http11, Speech::Http2] {
            let stream = connect_from(BALANCER, proxy.address).await;
            let mut client = Client::over(speech, stream, &identity).await;
            let own = [
                ("host", "inner"),
                ("origin", "https://files.example.com"),
                ("sec-fetch-site", "same-origin"),
                ("destination", "https://files.example.com/g"),
            ];
            let fields = [stated, &own].concat();
            let got = exchange(&mut client, request("MOVE", "/f", &fields)).await;
            assert_eq!(got.status(), 200, "{kind}: {got:?}");
            let field = |name: &str| got.headers()[name].to_str().unwrap();
            assert_eq!(field("location"), "https://files.example.com/there");
            assert_eq!(field("link"), "<https://files.example.com/next>; rel=next");
            assert_eq!(field("set-cookie"), "s=1; Secure; SameSite=None");
            let json = r#"{"url":"https://files.example.com/_document/f"}"#;
            assert_eq!(got.body(), json);
            let seen = upstream.requests().pop().unwrap();
            let seen = |name: &str| seen.fields(name).join(" | ");
            assert_eq!(seen("destination"), format!("{cloud}/g"));
            assert_eq!(seen("origin"), cloud);
            assert_eq!(seen("host"), host);
            if kind == "x-forwarded" {
                assert_eq!(seen("x-forwarded-for"), "192.0.2.7, 127.0.0.2");
                assert_eq!(seen("x-forwarded-host"), "files.example.com");
                assert_eq!(seen("x-forwarded-proto"), "https");
            } else {
                assert_eq!(
                    seen("forwarded"),
                    "for=192.0.2.7;host=\"files.example.com\";proto=https, for=127.0.0.2"
                );
            }
            // The scheme and host are those of this request, not of the connection.
            let fields = [("host", "inner"), ("origin", "https://inner")];
            let got = exchange(&mut client, request("GET", "/f", &fields[..1])).await;
            assert_eq!(got.headers()["location"], "http://inner/there");
            assert_eq!(got.headers()["set-cookie"], "s=1");
            // Hosts and origins are checked as the client wrote them.
            for (host, origin, status) in [
                ("evil.example", None, 421),
                ("files.example.com", Some("https://evil.example"), 403),
                ("files.example.com", Some("http://files.example.com"), 403),
                ("files.example.com", None, 200),
            ] {
                let forwarded = format!("for=192.0.2.7;proto=https;host={host}");
                let mut fields = vec![
                    ("host", "inner"),
                    ("x-forwarded-host", host),
                    ("x-forwarded-proto", "https"),
                    ("forwarded", &forwarded),
                ];
                fields.extend(origin.map(|origin| ("origin", origin)));
                let got = exchange(&mut client, request("GET", "/f", &fields)).await;
                assert_eq!(got.status(), status, "{host} {origin:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_peers_state_is_ignored_and_replaced() {
    let upstream = talkative().start().await;
    for (kind, name, expected) in [
        ("x-forwarded", "x-forwarded-for", STRANGER),
        (
            "forwarded",
            "forwarded",
            "for=127.0.0.3;host=\"inner\";proto=http",
        ),
    ] {
        let more = format!("proxy.forwarded_headers = \"{kind}\"\n{REWRITTEN}");
        let proxy = configured(&upstream.origin(), &more).await;
        let stated = "Host: inner\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
            X-Forwarded-Host: files.example.com\r\n\
            Forwarded: for=192.0.2.7;proto=https;host=files.example.com\r\n";
        let got = raw_from(STRANGER, proxy.address, get_with(stated)).await;
        assert_eq!(values(&got, "location"), ["http://inner/there"], "{got}");
        let seen = upstream.requests().pop().unwrap();
        assert_eq!(seen.fields(name), [expected]);
        if kind == "x-forwarded" {
            assert_eq!(seen.fields("x-forwarded-host"), ["inner"]);
            assert_eq!(seen.fields("x-forwarded-proto"), ["http"]);
        }
        let page = format!("{stated}Origin: https://files.example.com\r\n");
        let got = raw_from(STRANGER, proxy.address, get_with(&page)).await;
        assert_eq!(status(&got), 403, "{got}");
    }
}

const NETWORKS: &str = "[[client]]\nname = \"office\"\nnetworks = [\"192.0.2.0/24\"]\n\
    [[client]]\nname = \"branch\"\nnetworks = [\"2001:db8::/32\"]\ndeny = [\"/private\"]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_of_a_load_balancer_carries_clients_of_several_networks() {
    let upstream = Upstream::always(ok("")).issuing().start().await;
    let more = format!("proxy.trusted_networks = [\"127.0.0.2\"]\n{NETWORKS}");
    let proxy = configured(&upstream.origin(), &more).await;
    let identity = Identity::new();
    let table = [
        ("192.0.2.7", "/x", 200),
        ("2001:db8::1", "/x", 200),
        ("2001:db8::1", "/private", 403),
        ("192.0.2.7:4711", "/private", 200),
        ("[2001:db8::1]:4711", "/private", 403),
        ("198.51.100.7", "/x", 403),
        ("192.0.2.7, 198.51.100.7", "/x", 403),
        ("198.51.100.7, 192.0.2.7", "/x", 200),
        ("192.0.2.7, unknown", "/x", 403),
        ("192.0.2.7, garbage", "/x", 403),
        ("127.0.0.2", "/x", 403),
        ("192.0.2.7, 127.0.0.2", "/x", 200),
    ];
    for speech in [Speech::Http11, Speech::Http2] {
        let stream = connect_from(BALANCER, proxy.address).await;
        let mut client = Client::over(speech, stream, &identity).await;
        for (list, path, status) in table {
            let fields = [("host", "localhost"), ("x-forwarded-for", list)];
            let got = exchange(&mut client, request("GET", path, &fields)).await;
            assert_eq!(got.status(), status, "{list} {path}");
        }
        let got = exchange(&mut client, request("GET", "/x", &[("host", "localhost")])).await;
        assert_eq!(got.status(), 403, "the load balancer is in no network");
        let stream = connect_from(STRANGER, proxy.address).await;
        let mut client = Client::over(speech, stream, &identity).await;
        let fields = [("host", "localhost"), ("x-forwarded-for", "192.0.2.7")];
        let got = exchange(&mut client, request("GET", "/x", &fields)).await;
        assert_eq!(got.status(), 403, "a stranger stated an address");
    }
    let counted = |client: &str, code: u16| {
        format!("bearer_proxy_client_requests_total{{client=\"{client}\",code=\"{code}\"}}")
    };
    proxy.until(&counted("office", 200), 8.0).await;
    proxy.until(&counted("branch", 403), 4.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_see_the_host_that_the_client_used() {
    let (plain, routed) = (
        Upstream::always(ok("plain")).issuing().start().await,
        Upstream::always(ok("routed")).start().await,
    );
    let more = format!(
        "proxy.trusted_networks = [\"127.0.0.2\"]\nproxy.allowed_hosts = [\"docs.example.com\"]\n\
         [upstreams.docs]\nendpoints = [\"{}\"]\nhost = \"client\"\n\
         [[route]]\nhost = \"docs.example.com\"\nupstream = \"docs\"\n",
        routed.origin()
    );
    let proxy = configured(&plain.origin(), &more).await;
    let fields = "Host: localhost\r\nX-Forwarded-Host: docs.example.com\r\n";
    let got = raw_from(BALANCER, proxy.address, get_with(fields)).await;
    assert!(got.ends_with("routed"), "{got}");
    assert_eq!(routed.requests()[0].fields("host"), ["docs.example.com"]);
    let got = raw_from(STRANGER, proxy.address, get_with(fields)).await;
    assert!(got.ends_with("plain"), "{got}");
    // An absolute target names the same host as `Host` does, and is replaced with it.
    let absolute = format!("GET http://localhost/x HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
    let got = raw_from(BALANCER, proxy.address, absolute).await;
    assert!(got.ends_with("routed"), "{got}");
    for ambiguous in [
        format!("GET http://other/x HTTP/1.1\r\n{fields}Connection: close\r\n\r\n"),
        get_with(&format!("Host: other\r\n{fields}")),
        get_with("X-Forwarded-Host: docs.example.com\r\n"),
    ] {
        let got = raw_from(BALANCER, proxy.address, &ambiguous).await;
        assert_eq!(status(&got), 400, "{ambiguous}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_behind_a_load_balancer_stays_at_its_address_of_the_cloud() {
    let named = |name: &'static str| Upstream::always(ok(name)).issuing().start();
    let (first, second) = (named("first").await, named("second").await);
    let more = format!(
        "proxy.trusted_networks = [\"{BALANCER}\"]\nupstream.affinity = \"client\"\n\
         upstream.endpoints = [\"{}\", \"{}\"]\n",
        first.origin(),
        second.origin()
    );
    let proxy = configured(&first.origin(), &more).await;
    let stream = connect_from(BALANCER, proxy.address).await;
    let mut client = Client::over(Speech::Http11, stream, &Identity::new()).await;
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let mut places = Vec::new();
        for last in 0..16 {
            let ip = format!("192.0.2.{last}");
            let fields = [("host", "localhost"), ("x-forwarded-for", ip.as_str())];
            let got = exchange(&mut client, request("GET", "/x", &fields)).await;
            places.push(String::from_utf8(got.into_body().to_vec()).unwrap());
        }
        rounds.push(places);
    }
    assert!(
        rounds.iter().all(|places| *places == rounds[0]),
        "{rounds:?}"
    );
    for name in ["first", "second"] {
        assert!(rounds[0].iter().any(|place| place == name), "{rounds:?}");
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_logs_name_the_client_and_not_the_load_balancer() {
    let upstream = Upstream::always(ok("")).issuing().start().await;
    let more =
        "proxy.trusted_networks = [\"127.0.0.2\"]\nlog.access = \"all\"\nlog.format = \"json\"\n";
    let program = crate::common::process::Program::new(&upstream.origin(), more);
    let _running = program.start_ready().await;
    for (ip, host) in [
        (BALANCER, "localhost"),
        (BALANCER, "evil.example"),
        (STRANGER, "localhost"),
    ] {
        let fields = format!("Host: {host}\r\nX-Forwarded-For: 192.0.2.7\r\n");
        raw_from(ip, program.address, get_with(&fields)).await;
    }
    let peers = || -> Vec<String> {
        let lines = program.log();
        let lines = lines.lines().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let fields = line.get("fields").unwrap_or(&line);
            let status = fields.get("status")?.as_u64()?;
            let peer = fields.get("peer").and_then(serde_json::Value::as_str);
            let peer = peer.unwrap_or("none").split(':').next()?.to_owned();
            Some(format!("{status} {peer}"))
        });
        lines.collect()
    };
    let expected = [
        "200 192.0.2.7",
        "421 192.0.2.7",
        "421 192.0.2.7",
        "200 127.0.0.3",
    ];
    eventually("the lines are written", async || peers() == expected).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_on_unix_sockets_are_trusted_if_listed() {
    let upstream = Upstream::always(ok("")).issuing().start().await;
    for (trusted, expected) in [("unix:", &["192.0.2.7"][..]), ("127.0.0.2", &[])] {
        let folder = tempfile::tempdir().unwrap();
        let more = format!(
            "proxy.trusted_networks = [\"{trusted}\"]\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [[listener]]\naddress = \"unix:proxy.sock\"\n"
        );
        let _proxy = toml::proxy_in(folder.path(), &upstream.origin(), &more).await;
        let socket = folder.path().join("proxy.sock");
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let request = get_with("Host: any\r\nX-Forwarded-For: 192.0.2.7\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let got = read_to_close(&mut stream).await;
        assert_eq!(status(&got), 200, "{got}");
        let seen = upstream.requests().pop().unwrap();
        assert_eq!(seen.fields("x-forwarded-for"), expected);
    }
}
