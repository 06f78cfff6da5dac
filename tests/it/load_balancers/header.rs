//! `proxy_protocol` of a `[[listener]]`.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt as _;

use super::{BALANCER, STRANGER, connect_from, exchange, get_with, raw_from, request};
use crate::common::{
    LIMIT, Proxy, connect, eventually, read_to_close, status, toml,
    upstream::{RunningUpstream, Upstream, ok},
    web::{Client, Identity, Speech},
};

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 203.0.113.1 5000 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x10\
    \xc0\x00\x02\x07\xcb\x00\x71\x01\x13\x88\x01\xbb\x04\x00\x01\x00";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

/// Closed connections, by this reason.
async fn until_closed(proxy: &Proxy, reason: &str, count: usize) {
    let name = format!("bearer_proxy_connections_rejected_total{{reason=\"{reason}\"}}");
    let count = u32::try_from(count).unwrap();
    proxy.until(&name, count.into()).await;
}

/// A proxy with the PROXY protocol, and further keys of `[proxy]`; with TLS if there is a folder
/// with certificates.
async fn proxy_with(origin: &str, more: &str, identity: Option<&Identity>) -> Proxy {
    let folder = tempfile::tempdir().unwrap();
    let tls = match identity {
        Some(identity) => {
            identity.write(folder.path());
            "tls = { cert_file = \"server.pem\", key_file = \"server.key\" }\n"
        }
        None => "",
    };
    let more = format!(
        "proxy.trusted_networks = [\"{BALANCER}\", \"198.51.100.0/24\"]\n{more}\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nproxy_protocol = true\n{tls}"
    );
    toml::proxy_in(folder.path(), origin, &more).await
}

async fn upstream() -> RunningUpstream {
    Upstream::always(ok("ok")).issuing().start().await
}

/// The address of the client of the last request.
fn client(upstream: &RunningUpstream) -> String {
    let seen = upstream.requests().pop().unwrap();
    seen.fields("x-forwarded-for").join(" | ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_header_precedes_http_and_tls() {
    let upstream = upstream().await;
    let identity = Identity::new();
    let (plain, tls) = (
        proxy_with(&upstream.origin(), "", None).await,
        proxy_with(&upstream.origin(), "", Some(&identity)).await,
    );
    for (header, expected) in [
        (V1, "192.0.2.7"),
        (V2, "192.0.2.7"),
        (LOCAL, BALANCER),
        (b"PROXY UNKNOWN\r\n", BALANCER),
        (b"PROXY TCP6 2001:db8::7 ::1 5000 443\r\n", "2001:db8::7"),
    ] {
        for speech in [
            Speech::Http10,
            Speech::Http11,
            Speech::Http2,
            Speech::Http11OverTls,
            Speech::Http2OverTls,
        ] {
            let proxy = if speech.is_tls() { &tls } else { &plain };
            let mut stream = connect_from(BALANCER, proxy.address).await;
            stream.write_all(header).await.unwrap();
            let mut connection = Client::over(speech, stream, &identity).await;
            for _ in 0..2 {
                let fields = [("host", "localhost"), ("x-forwarded-proto", "gopher")];
                let got = exchange(&mut connection, request("GET", "/x", &fields)).await;
                assert_eq!(got.status(), 200);
                assert_eq!(client(&upstream), expected, "{}", header.escape_ascii());
                if speech.is_http10() {
                    break;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_header_may_arrive_in_pieces() {
    let upstream = upstream().await;
    let proxy = proxy_with(&upstream.origin(), "", None).await;
    for header in [V1, V2, LOCAL] {
        let stream = [header, get_with("Host: localhost\r\n").as_bytes()].concat();
        for cut in 1..header.len() + 3 {
            let (first, second) = stream.split_at(cut);
            let mut connection = connect_from(BALANCER, proxy.address).await;
            connection.write_all(first).await.unwrap();
            tokio::task::yield_now().await;
            connection.write_all(second).await.unwrap();
            let got = read_to_close(&mut connection).await;
            assert_eq!(status(&got), 200, "{cut}: {got}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_good_header_are_closed_and_counted() {
    let upstream = upstream().await;
    let identity = Identity::new();
    let (plain, tls) = (
        proxy_with(&upstream.origin(), "", None).await,
        proxy_with(&upstream.origin(), "", Some(&identity)).await,
    );
    let too_large = [&V2[..14], &[0xff, 0xff], &[0; 5000]].concat();
    let endless = [b"PROXY UNKNOWN ", &[b'x'; 5000][..]].concat();
    let bad: [&[u8]; 9] = [
        b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"PROXY TCP4 192.0.2.7 203.0.113.1 5000\r\nGET",
        b"PROXY TCP4 192.0.2.7.8 203.0.113.1 5000 443\r\nGET",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x0c",
        &too_large,
        &endless,
        b"P\xff",
    ];
    for proxy in [&plain, &tls] {
        for bytes in bad {
            let mut stream = connect_from(BALANCER, proxy.address).await;
            stream.write_all(bytes).await.unwrap();
            assert_eq!(closed(&mut stream).await, "", "{}", bytes.escape_ascii());
        }
        until_closed(proxy, "proxy_header", bad.len()).await;
        // The peer has gone.
        for bytes in [&b""[..], b"PROXY", &V2[..14], &V2[..20]] {
            let mut stream = connect_from(BALANCER, proxy.address).await;
            stream.write_all(bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(closed(&mut stream).await, "");
        }
        until_closed(proxy, "proxy_header", bad.len() + 4).await;
        for (count, ip) in (1..).zip([STRANGER, "127.0.0.1"]) {
            let mut stream = connect_from(ip, proxy.address).await;
            // The connection may be closed before.
            let _ = stream.write_all(V1).await;
            let _ = stream.write_all(get_with("").as_bytes()).await;
            assert_eq!(closed(&mut stream).await, "", "a stranger is served");
            until_closed(proxy, "untrusted_peer", count).await;
        }
        proxy.until_open(0).await;
    }
    assert!(upstream.count() <= 2, "only the issuer's calls");
    // A second header is no request, and no handshake.
    for first in [V1, V2] {
        for second in [V1, V2] {
            let rest = get_with("Host: localhost\r\n");
            let twice = [first, second, rest.as_bytes()].concat();
            let got = raw_from(BALANCER, plain.address, &twice).await;
            assert_eq!(status(&got), 400, "{got}");
            let mut stream = connect_from(BALANCER, tls.address).await;
            stream.write_all(&twice).await.unwrap();
            let got = closed(&mut stream).await;
            assert!(!got.contains("HTTP/"), "{got}");
        }
    }
    until_closed(&tls, "tls_handshake", 4).await;
}

/// What comes until the peer closes the connection, in any way.
async fn closed(stream: &mut tokio::net::TcpStream) -> String {
    use tokio::io::AsyncReadExt as _;

    let mut got = Vec::new();
    // A reset follows if bytes were not read.
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut got))
        .await
        .expect("the connection is still open");
    String::from_utf8_lossy(&got).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_does_not_arrive_in_time_is_none() {
    let upstream = upstream().await;
    let more = "proxy.first_byte_timeout = \"500ms\"";
    let proxy = proxy_with(&upstream.origin(), more, None).await;
    let mut waiting = Vec::new();
    for bytes in [&b""[..], b"PROXY TCP4 192.0.2.7", &V2[..14]] {
        let mut stream = connect_from(BALANCER, proxy.address).await;
        stream.write_all(bytes).await.unwrap();
        waiting.push(stream);
    }
    for mut stream in waiting {
        assert_eq!(read_to_close(&mut stream).await, "");
    }
    until_closed(&proxy, "proxy_header", 3).await;
    // The first byte of the request has a limit of its own, as without a header.
    let mut stream = connect_from(BALANCER, proxy.address).await;
    stream.write_all(V2).await.unwrap();
    assert_eq!(read_to_close(&mut stream).await, "");
    let late = "bearer_proxy_clients_late_total{limit=\"first_byte_timeout\"}";
    proxy.until(late, 1.0).await;
    until_closed(&proxy, "proxy_header", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_behind_a_load_balancer_has_its_own_connection_limit() {
    let upstream = upstream().await;
    let more = "proxy.max_connections_per_address = 2\nproxy.workers = 1";
    let proxy = proxy_with(&upstream.origin(), more, None).await;
    let header = |client: &str| format!("PROXY TCP4 {client} 203.0.113.1 5000 443\r\n");
    let open = async |address: SocketAddr, header: &[u8]| {
        let mut stream = connect_from(BALANCER, address).await;
        stream.write_all(header).await.unwrap();
        stream
    };
    let full = "max_connections_per_address";
    let mut held = Vec::new();
    let clients = ["192.0.2.7", "192.0.2.8", "192.0.2.9"];
    for client in clients.iter().cycle().take(6) {
        let mut stream = open(proxy.address, header(client).as_bytes()).await;
        let request = "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = [0; 12];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut response)
            .await
            .unwrap();
        assert_eq!(&response, b"HTTP/1.1 200");
        held.push(stream);
    }
    for (count, client) in (1..).zip(clients) {
        let mut third = open(proxy.address, header(client).as_bytes()).await;
        let got = closed(&mut third).await;
        assert_eq!(status(&got), 503, "{client}: {got}");
        until_closed(&proxy, full, count).await;
    }
    // The load balancer itself has no limit, and neither has one behind it.
    for header in [LOCAL.to_vec(), header("198.51.100.1").into_bytes()] {
        for _ in 0..4 {
            let mut stream = open(proxy.address, &header).await;
            let request = "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut response = [0; 12];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut response)
                .await
                .unwrap();
            assert_eq!(&response, b"HTTP/1.1 200");
            held.push(stream);
        }
    }
    until_closed(&proxy, full, clients.len()).await;
    drop(held);
    proxy.until_open(0).await;
    let mut stream = open(proxy.address, header("192.0.2.7").as_bytes()).await;
    stream
        .write_all(get_with("Host: localhost\r\n").as_bytes())
        .await
        .unwrap();
    assert_eq!(status(&read_to_close(&mut stream).await), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_the_header_states_nothing_unless_it_is_trusted_too() {
    let upstream = upstream().await;
    let proxy = proxy_with(&upstream.origin(), "", None).await;
    let fields = "Host: localhost\r\nX-Forwarded-For: 203.0.113.9\r\n";
    for (source, expected) in [
        ("192.0.2.7", "192.0.2.7"),
        // Another load balancer, in front of this one.
        ("198.51.100.1", "203.0.113.9, 198.51.100.1"),
    ] {
        let header = format!("PROXY TCP4 {source} 203.0.113.1 5000 443\r\n");
        let got = raw_from(BALANCER, proxy.address, header + &get_with(fields)).await;
        assert_eq!(status(&got), 200, "{got}");
        assert_eq!(client(&upstream), expected);
    }
    let local = [LOCAL, get_with(fields).as_bytes()].concat();
    let got = raw_from(BALANCER, proxy.address, local).await;
    assert_eq!(status(&got), 200, "{got}");
    assert_eq!(client(&upstream), format!("203.0.113.9, {BALANCER}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_header_is_under_way_is_still_served_while_draining() {
    let upstream = upstream().await;
    let proxy = proxy_with(&upstream.origin(), "", None).await;
    let address = proxy.address;
    let mut stream = connect_from(BALANCER, address).await;
    stream.write_all(&V2[..10]).await.unwrap();
    proxy.until_open(1).await;
    let ending = tokio::spawn(proxy.app.shut_down());
    eventually("the listener is closed", async || {
        tokio::net::TcpStream::connect(address).await.is_err()
    })
    .await;
    let rest = [&V2[10..], get_with("Host: localhost\r\n").as_bytes()].concat();
    stream.write_all(&rest).await.unwrap();
    let got = read_to_close(&mut stream).await;
    assert_eq!(status(&got), 200, "{got}");
    assert_eq!(client(&upstream), "192.0.2.7");
    tokio::time::timeout(LIMIT, ending)
        .await
        .expect("it ends")
        .unwrap();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_header_precedes_requests_on_a_unix_socket() {
    let upstream = upstream().await;
    let folder = tempfile::tempdir().unwrap();
    let more = "proxy.trusted_networks = [\"unix:\"]\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
        [[listener]]\naddress = \"unix:proxy.sock\"\nproxy_protocol = true\n";
    let proxy = toml::proxy_in(folder.path(), &upstream.origin(), more).await;
    for header in [V1, V2] {
        let socket = folder.path().join("proxy.sock");
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let request = [header, get_with("Host: any\r\n").as_bytes()].concat();
        stream.write_all(&request).await.unwrap();
        let got = read_to_close(&mut stream).await;
        assert_eq!(status(&got), 200, "{got}");
        assert_eq!(client(&upstream), "192.0.2.7");
    }
    // The other listener has no header.
    let request = get_with("Host: localhost\r\n");
    let mut stream = connect(proxy.address, request).await;
    assert_eq!(status(&read_to_close(&mut stream).await), 200);
}
