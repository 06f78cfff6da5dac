//! Faults that operators reported of proxies like this one: connections and HTTP/2.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

use tokio_rustls::TlsConnector;

use crate::common::{
    Client, LIMIT, Proxy, connect,
    frames::{
        DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, POST, RST_STREAM, accept, greeted,
        next as next_frame, request, until, write,
    },
    get, in_front_of, issuer, post, proxy, read_head, read_to_close, scripted,
    tls::{authority, client_config, cloud, identity, write as write_file},
    toml,
    upstream::{Upstream, bytes, ok, read_body, silence, unauthorized, values},
};

/// A proxy with one worker in front of an upstream that closes each connection instead of
/// responding to the second request on it. Returns the number of requests that it received.
async fn closes_under_the_second_request() -> (Proxy, Arc<AtomicUsize>) {
    let received = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&received);
    let address = scripted(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            read_head(&mut stream).await?;
            count.fetch_add(1, SeqCst);
            ok("ok").send(&mut stream).await?;
            read_head(&mut stream).await?;
            count.fetch_add(1, SeqCst);
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(address, &[("proxy.workers", "1")]).await;
    (proxy, received)
}

#[tokio::test]
async fn field_b6_webdav_methods_are_repeated_when_a_kept_connection_closes() {
    let table = [
        ("GET PUT DELETE", 200),
        (
            "PROPFIND REPORT SEARCH COPY MOVE UNLOCK PROPPATCH MKCOL",
            200,
        ),
        (
            "ACL CHECKOUT MERGE MKACTIVITY ORDERPATCH VERSION-CONTROL",
            200,
        ),
        ("POST LOCK PATCH SUBSCRIBE", 502),
    ];
    for (methods, expected) in table {
        for method in methods.split(' ') {
            let (proxy, received) = closes_under_the_second_request().await;
            let mut client = Client::connect(proxy.address).await;
            assert_eq!(client.send(get("/first")).await.unwrap().status(), 200);
            let mut request = get("/second");
            *request.method_mut() = method.parse().unwrap();
            let status = client.send(request).await.unwrap().status();
            assert_eq!(status, expected, "{method}");
            let sent = if expected == 200 { 3 } else { 2 };
            assert_eq!(received.load(SeqCst), sent, "{method}");
        }
    }
}

/// What a POST gets of a response that is cut short, on connections of HTTP/1.1.
const POST_REQUEST: &str = "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi";

/// A response that is cut short, and what a client of HTTP/1.1 gets of its body.
const CUT_SHORT: [(&str, &str); 4] = [
    ("Content-Length: 5\r\n\r\n", ""),
    ("Content-Length: 5\r\n\r\nhal", "hal"),
    ("Transfer-Encoding: chunked\r\n\r\n", ""),
    ("Transfer-Encoding: chunked\r\n\r\n3\r\nhal\r\n", "hal"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d3_the_head_of_a_response_that_is_cut_short_reaches_the_client() {
    for (response, body) in CUT_SHORT {
        let reply = bytes(format!("HTTP/1.1 200 OK\r\nX-Head: whole\r\n{response}")).close();
        let upstream = Upstream::always(reply).start().await;
        let proxy = upstream.proxy(&[]).await;
        for _ in 0..40 {
            let mut client = connect(proxy.address, POST_REQUEST).await;
            // Panics at a reset: HTTP/1.1 shows the cut by the length or the missing last chunk.
            let got = read_to_close(&mut client).await;
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{response}: {got}");
            assert!(got.contains("x-head: whole\r\n") || got.contains("X-Head: whole\r\n"));
            assert!(got.contains(body) && !got.ends_with("0\r\n\r\n"), "{got}");
        }
        for _ in 0..20 {
            let mut client = greeted(proxy.address, &[]).await;
            request(&mut client, 1, POST, "/x").await;
            let head = until(&mut client, HEADERS, 1).await.expect("a head");
            assert_eq!(head.payload[0], 0x88, "{response}: `:status: 200` in HPACK");
            let end = until(&mut client, RST_STREAM, 1).await.expect("a reset");
            assert_ne!(end.reason(), 0, "{response}");
        }
        assert_eq!(upstream.count(), 60, "{response}: each is sent once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d3_a_reset_follows_the_head_where_only_the_close_ends_the_response() {
    let reply = bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").close();
    let upstream = Upstream::always(reply).start().await;
    let proxy = upstream.proxy(&[]).await;
    for _ in 0..40 {
        let mut client = connect(proxy.address, "GET /x HTTP/1.0\r\n\r\n").await;
        let head = tokio::time::timeout(LIMIT, read_head(&mut client))
            .await
            .unwrap();
        assert!(head.unwrap().starts_with("HTTP/1.0 200 OK\r\n"));
        let end = client.read_u8().await.unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

/// A field in HPACK: a literal that enters the dynamic table, or does not.
fn field(is_indexed: bool, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut field = vec![if is_indexed { 0x40 } else { 0 }];
    for string in [name, value] {
        assert!(string.len() < 0x7f);
        field.push(string.len() as u8);
        field.extend(string);
    }
    field
}

/// An upstream that keeps POST requests under way until it has responded to a GET with `block`.
/// Returns the number of connections and of GET requests.
async fn odd_upstream(block: Vec<u8>) -> (SocketAddr, Arc<[AtomicUsize; 2]>) {
    let counts = Arc::<[AtomicUsize; 2]>::default();
    let (shared, block) = (Arc::clone(&counts), Arc::new(block));
    let address = scripted(move |_, mut stream| {
        let (counts, block) = (Arc::clone(&shared), Arc::clone(&block));
        counts[0].fetch_add(1, SeqCst);
        async move {
            accept(&mut stream, &[]).await?;
            let (mut posts, mut is_odd) = (Vec::new(), false);
            loop {
                let frame = next_frame(&mut stream).await?;
                let is_end = frame.flags & END_STREAM != 0;
                match frame.kind {
                    HEADERS if is_end => {
                        counts[1].fetch_add(1, SeqCst);
                        let flags = END_HEADERS | END_STREAM;
                        if is_odd {
                            write(&mut stream, HEADERS, flags, frame.stream, &[0x88]).await?;
                        } else {
                            write(&mut stream, HEADERS, flags, frame.stream, &block).await?;
                            is_odd = true;
                        }
                    }
                    DATA if is_end => posts.push(frame.stream),
                    _ => {}
                }
                if is_odd {
                    for post in posts.drain(..) {
                        let flags = END_HEADERS | END_STREAM;
                        write(&mut stream, HEADERS, flags, post, &[0x88]).await?;
                    }
                }
            }
        }
    })
    .await;
    (address, counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d1_a_malformed_response_costs_its_own_stream_alone() {
    let table: [(&[u8], &[u8], u16); 14] = [
        (b"content-disposition", b"attachment; filename=a\x01b", 200),
        (b"x", b"a\x7fb", 200),
        (b"x", b"\x1b[31m", 200),
        (b"x", b"a\0b", 502),
        (b"x", b"a\r\nset-cookie: b", 502),
        (b"X-Upper", b"a", 502),
        (b"x y", b"a", 502),
        (b"x\xe9", b"a", 502),
        (b"", b"a", 502),
        (b":unknown", b"a", 502),
        (b":path", b"/", 502),
        (b":status", b"200", 502),
        (b"connection", b"close", 502),
        (b"te", b"gzip", 502),
    ];
    let mut blocks: Vec<(Vec<u8>, u16)> = table
        .iter()
        .flat_map(|(name, value, status)| {
            [true, false].map(|is_indexed| {
                (
                    [&[0x88][..], &field(is_indexed, name, value)].concat(),
                    *status,
                )
            })
        })
        .collect();
    for status in [&b"99"[..], b"2000", b"", b"2x0"] {
        blocks.push((field(true, b":status", status), 502));
    }
    blocks.push((Vec::new(), 502));
    for (block, expected) in blocks {
        let shown = block.escape_ascii().to_string();
        let (address, counts) = odd_upstream(block).await;
        let more = [("upstream.http2", "always"), ("proxy.workers", "1")];
        let proxy = in_front_of(address, &more).await;
        let posts: Vec<_> = (0..5)
            .map(|_| {
                let address = proxy.address;
                tokio::spawn(async move {
                    let mut client = Client::connect(address).await;
                    client.send(post("/slow", "body")).await.unwrap().status()
                })
            })
            .collect();
        proxy.until_in_flight(5).await;
        assert_eq!(proxy.get("/bad").await.status(), expected, "{shown}");
        for post in posts {
            assert_eq!(post.await.unwrap(), 200, "{shown}");
        }
        assert_eq!(proxy.get("/good").await.status(), 200, "{shown}");
        let counts = [counts[0].load(SeqCst), counts[1].load(SeqCst)];
        assert_eq!(counts, [1, 2], "connections and requests: {shown}");
    }
}

/// Sends a request on a stream, with more fields in HPACK.
async fn request_with(stream: &mut TcpStream, number: u32, fields: &[u8]) {
    // GET, http, /, and an authority.
    let block = [b"\x82\x86\x84\x01\x09localhost", fields].concat();
    let flags = END_HEADERS | END_STREAM;
    write(stream, HEADERS, flags, number, &block).await.unwrap();
}

/// `:status` in HPACK's static table.
const STATUS_200: u8 = 0x88;
const STATUS_400: u8 = 0x8c;
const PROTOCOL_ERROR: u32 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d2_a_malformed_request_costs_its_own_stream_alone() {
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let slow = ok("slow").after(move || {
        let released = Arc::clone(&released);
        async move { released.notified().await }
    });
    let upstream = Upstream::new().on("/slow", slow).start().await;
    let proxy = upstream.proxy(&[]).await;
    let mut client = greeted(proxy.address, &[]).await;
    request(&mut client, 1, POST, "/slow").await;
    proxy.until_in_flight(1).await;
    let malformed: [(&[u8], &[u8]); 15] = [
        (b"x", b"a\0b"),
        (b"x", b"a\x01b"),
        (b"x", b"a\nb"),
        (b"X-Upper", b"a"),
        (b"x y", b"a"),
        (b"x\"y", b"a"),
        (b"", b"a"),
        (b":unknown", b"a"),
        (b":status", b"200"),
        (b":path", b"/a b"),
        (b":method", b"MALFORMED"),
        (b":authority", b"again"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"te", b"gzip"),
    ];
    let mut number = 1;
    // More of them than h2 would reset before it ends the connection.
    for (name, value) in malformed.iter().cycle().take(45) {
        number += 2;
        request_with(&mut client, number, &field(number % 4 == 1, name, value)).await;
        let head = until(&mut client, HEADERS, number)
            .await
            .expect("a response");
        assert_eq!(head.payload[0], STATUS_400, "{}", name.escape_ascii());
        let end = until(&mut client, RST_STREAM, number)
            .await
            .expect("a reset");
        assert_eq!(end.reason(), PROTOCOL_ERROR);
    }
    assert_eq!(proxy.rejected("bad_request").await, 45.0);
    // Old clients send paths in Latin-1, as nginx and HAProxy accept.
    number += 2;
    let path = [
        &[0x82, 0x86, 0x04, 6][..],
        b"/caf\xe9?",
        b"\x01\x09localhost",
    ]
    .concat();
    let flags = END_HEADERS | END_STREAM;
    write(&mut client, HEADERS, flags, number, &path)
        .await
        .unwrap();
    let head = until(&mut client, HEADERS, number)
        .await
        .expect("a response");
    assert_eq!(head.payload[0], STATUS_200);
    release.notify_one();
    let head = until(&mut client, HEADERS, 1).await.expect("a response");
    assert_eq!(head.payload[0], STATUS_200);
    assert_eq!(upstream.targets(), ["/slow", "/caf%E9?"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_d7_bad_hpack_data_is_a_compression_error() {
    const COMPRESSION_ERROR: u32 = 9;
    let upstream = Upstream::new().start().await;
    for head_size in ["64KiB", "1MiB", "22KiB"] {
        let proxy = upstream.proxy(&[("proxy.max_head_size", head_size)]).await;
        for block in [
            // An entry that does not exist; a name that is cut short; Huffman code with an end in
            // it; a table that is too large; a number that is too large.
            &b"\x82\xbf"[..],
            b"\x82\x00\x05ab",
            b"\x82\x00\x84\xff\xff\xff\xff\x00",
            b"\x3f\xff\xff\xff\x7f",
            b"\xff\xff\xff\xff\xff\xff",
        ] {
            let mut client = greeted(proxy.address, &[]).await;
            let flags = END_HEADERS | END_STREAM;
            write(&mut client, HEADERS, flags, 1, block).await.unwrap();
            let go_away = until(&mut client, GOAWAY, 0).await.expect("a GOAWAY");
            let shown = block.escape_ascii();
            assert_eq!(go_away.reason(), COMPRESSION_ERROR, "{head_size}: {shown}");
        }
    }
}

/// A self-signed certificate, of an authority if `is_ca`, with alternative names, a common name, and
/// an end in this year.
fn self_signed(is_ca: bool, names: &[&str], common: &str, until: i32) -> (String, KeyPair) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key)
}

/// A server that presents a certificate with this key, which need not be its own.
fn presents(certificate: &str, key: &KeyPair) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let resolver = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = builder.with_no_client_auth();
    Arc::new(config.with_cert_resolver(Arc::new(resolver)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c4_a_server_may_present_a_certificate_that_is_itself_in_ca_file() {
    let (_, other_key) = self_signed(true, &["localhost"], "other", 2100);
    let table = [
        (true, &["localhost"][..], "x", 2100, None),
        (false, &["localhost"], "x", 2100, None),
        (true, &["*.example.com", "localhost"], "x", 2100, None),
        // Without alternative names, as `openssl req -x509 -subj /CN=localhost` creates it.
        (true, &[], "localhost", 2100, None),
        (false, &[], "LocalHost", 2100, None),
        (
            true,
            &["cloud.example.com"],
            "x",
            2100,
            Some("tls.server_name"),
        ),
        (
            true,
            &["cloud.example.com"],
            "localhost",
            2100,
            Some("tls.server_name"),
        ),
        (
            true,
            &[],
            "cloud.example.com",
            2100,
            Some("tls.server_name"),
        ),
        (true, &["localhost"], "x", 2021, Some("a new certificate")),
        (true, &[], "localhost", 2021, Some("a new certificate")),
    ];
    let folder = tempfile::tempdir().unwrap();
    let plain_issuer = issuer().await;
    for (is_ca, names, common, until, refusal) in table {
        let (certificate, key) = self_signed(is_ca, names, common, until);
        let ca = write_file(folder.path(), "ca.pem", &certificate);
        let ca = ("upstream.tls.ca_file", ca.to_str().unwrap());
        let cloud = cloud(presents(&certificate, &key)).await;
        let what = format!("{is_ca} {names:?} {common} {until}");
        if let Some(refusal) = refusal {
            let proxy = proxy(&cloud.origin(), &[ca, ("token.issuer", &plain_issuer)]);
            proxy.ready().await;
            let response = proxy.get("/").await;
            assert_eq!(response.status(), 502, "{what}");
            let detail = String::from_utf8_lossy(response.body());
            assert!(detail.contains(refusal), "{what}: {detail}");
            assert!(cloud.is_untouched(), "{what}");
        } else {
            // The cloud is the issuer as well.
            let proxy = proxy(&cloud.origin(), &[ca]);
            proxy.ready().await;
            assert_eq!(proxy.get("/").await.body(), "token", "{what}");
        }
    }
    // Another one's certificate proves nothing without its key.
    let (certificate, _) = self_signed(true, &["localhost"], "x", 2100);
    let ca = write_file(folder.path(), "ca.pem", &certificate);
    let thief = cloud(presents(&certificate, &other_key)).await;
    let given = [
        ("upstream.tls.ca_file", ca.to_str().unwrap()),
        ("token.issuer", &plain_issuer),
    ];
    let proxy = proxy(&thief.origin(), &given);
    proxy.ready().await;
    assert_eq!(proxy.get("/").await.status(), 502);
    assert!(thief.is_untouched());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c8_an_upgrade_with_a_body_passes_with_that_body() {
    const FRAMED: [&str; 2] = [
        "Content-Length: 4\r\n\r\nbody",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ];
    let address = scripted(|_, mut stream| async move {
        loop {
            let head = read_head(&mut stream).await?;
            if head.is_empty() {
                return Ok(());
            }
            if !values(&head, "expect").is_empty() {
                bytes("HTTP/1.1 100 Continue\r\n\r\n")
                    .send(&mut stream)
                    .await?;
            }
            let body = read_body(&mut stream, &head).await?;
            if head.contains("token-1\r\n") {
                unauthorized("").send(&mut stream).await?;
                continue;
            }
            assert_eq!(values(&head, "upgrade"), ["tcp"], "{head}");
            bytes("HTTP/1.1 101 Fine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
                .followed_by(body)
                .send(&mut stream)
                .await?;
            let (mut read, mut write) = stream.split();
            return tokio::io::copy(&mut read, &mut write).await.map(drop);
        }
    })
    .await;
    for framed in FRAMED {
        // The first one is replayed after a 401.
        let proxy = in_front_of(address, &[]).await;
        for _ in 0..2 {
            let head = "POST /exec HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                        Upgrade: tcp\r\n";
            let mut client = connect(proxy.address, format!("{head}{framed}")).await;
            let head = tokio::time::timeout(LIMIT, read_head(&mut client))
                .await
                .unwrap();
            assert!(head.unwrap().starts_with("HTTP/1.1 101 "), "{framed}");
            client.write_all(b" and the tunnel").await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(
                read_to_close(&mut client).await,
                "body and the tunnel",
                "{framed}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c8_a_101_before_the_end_of_the_body_is_no_tunnel() {
    let agree = "HTTP/1.1 101 Fine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    let upstream = Upstream::always(bytes(agree).hold()).early().start().await;
    let proxy = upstream.proxy(&[]).await;
    let request = "POST /exec HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                   Upgrade: tcp\r\nContent-Length: 4\r\n\r\nbo";
    let mut client = connect(proxy.address, request).await;
    let head = tokio::time::timeout(LIMIT, read_head(&mut client))
        .await
        .unwrap();
    assert!(head.unwrap().starts_with("HTTP/1.1 502 "));
}

/// An upstream over HTTP/2 or HTTP/1.1 that sends this many interim responses, one each 200 ms or as
/// fast as `pause` says, and then 200.
async fn reports_progress(is_http2: bool, count: usize, pause: Duration) -> SocketAddr {
    scripted(move |_, mut stream| async move {
        if !is_http2 {
            while !read_head(&mut stream).await?.is_empty() {
                for number in 0..count {
                    tokio::time::sleep(pause).await; // the upstream's work
                    let interim = match number % 2 {
                        0 => "HTTP/1.1 102 Processing\r\n\r\n",
                        _ => "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",
                    };
                    stream.write_all(interim.as_bytes()).await?;
                }
                ok("done").send(&mut stream).await?;
            }
            return Ok(());
        }
        accept(&mut stream, &[]).await?;
        loop {
            let frame = next_frame(&mut stream).await?;
            if frame.kind != HEADERS {
                continue;
            }
            for number in 0..count {
                tokio::time::sleep(pause).await; // the upstream's work
                // `:status: 102`, which enters the dynamic table, and then its entry there.
                let block: &[u8] = if number == 0 { b"\x48\x03102" } else { b"\xbe" };
                write(&mut stream, HEADERS, END_HEADERS, frame.stream, block).await?;
            }
            let flags = END_HEADERS | END_STREAM;
            write(&mut stream, HEADERS, flags, frame.stream, &[STATUS_200]).await?;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c11_and_d5_interim_responses_renew_the_timeout_within_a_bound() {
    let endless = 1_000_000;
    let each = Duration::from_millis;
    let run = async |is_http2: bool, count, pause, timeout, request| {
        let address = reports_progress(is_http2, count, pause).await;
        let http2 = if is_http2 { "always" } else { "never" };
        let more = [
            ("upstream.http2", http2),
            ("upstream.response_timeout", timeout),
            ("proxy.workers", "1"),
        ];
        let proxy = in_front_of(address, &more).await;
        proxy.send(request).await.status().as_u16()
    };
    for is_http2 in [false, true] {
        for request in [get("/scan"), post("/scan", "body")] {
            assert_eq!(run(is_http2, 12, each(200), "1s", request).await, 200);
        }
        // Silence is not renewed, nor are interim responses without end.
        assert_eq!(run(is_http2, 1, each(60_000), "50ms", get("/")).await, 504);
        assert_eq!(run(is_http2, endless, each(5), "50ms", get("/")).await, 504);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b15_clients_that_gave_up_hold_no_request() {
    let upstream = Upstream::new().on("/hang", silence()).start().await;
    let more = [
        ("proxy.half_closed_timeout", "200ms"),
        ("proxy.max_requests", "50"),
        ("proxy.workers", "1"),
    ];
    let proxy = upstream.proxy(&more).await;
    let next = "GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let late = "bearer_proxy_clients_late_total{limit=\"half_closed_timeout\"}";
    let mut gone = 0.0;
    for request in [
        "GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /hang HTTP/1.0\r\n\r\n".to_owned(),
        "POST /hang HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
        // The end stands behind another request.
        format!("GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n{next}"),
    ] {
        let mut clients = Vec::new();
        for _ in 0..50 {
            let mut client = connect(proxy.address, &request).await;
            client.shutdown().await.unwrap();
            clients.push(client);
        }
        gone += 50.0;
        proxy.until(late, gone).await;
        proxy.until_in_flight(0).await;
        assert_eq!(proxy.get("/next").await.status(), 200, "{request}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b15_a_client_that_closes_its_side_and_reads_gets_its_responses() {
    let slow = Arc::new(Notify::new());
    let release = Arc::clone(&slow);
    let reply = ok("slow").after(move || {
        let release = Arc::clone(&release);
        async move { release.notified().await }
    });
    let upstream = Upstream::new().on("/slow", reply).start().await;
    let proxy = upstream.proxy(&[]).await;
    // Two requests at once, and then the end: the second one was read while the first was served.
    let request = "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n\
                   GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut client = connect(proxy.address, request).await;
    client.shutdown().await.unwrap();
    proxy.until_in_flight(1).await;
    slow.notify_one();
    let got = read_to_close(&mut client).await;
    assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 2, "{got}");
    assert!(
        got.contains("\r\n\r\nslowHTTP/1.1") && got.ends_with("ok"),
        "{got}"
    );
    // A large response is read slowly, but read.
    let large = Upstream::always(ok(vec![b'x'; 20_000_000])).start().await;
    let proxy = large.proxy(&[("proxy.half_closed_timeout", "500ms")]).await;
    let mut client = connect(proxy.address, "GET / HTTP/1.0\r\n\r\n").await;
    client.shutdown().await.unwrap();
    let (mut count, mut buffer) = (0, vec![0; 1_000_000]);
    loop {
        let n = tokio::time::timeout(LIMIT, client.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        if n == 0 {
            break;
        }
        count += n;
        tokio::time::sleep(Duration::from_millis(20)).await; // a slow reader
    }
    assert!(count > 20_000_000, "{count}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b15_a_close_over_tls_is_noticed_as_well() {
    let upstream = Upstream::new()
        .on("/hang", silence())
        .issuing()
        .start()
        .await;
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let (chain, key) = identity(&authority, "localhost", false);
    write_file(folder.path(), "proxy.pem", &chain);
    write_file(folder.path(), "proxy.key", &key);
    write_file(folder.path(), "ca.pem", &authority.pem());
    let more = "proxy.half_closed_timeout = \"200ms\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
                tls = { cert_file = \"proxy.pem\", key_file = \"proxy.key\", client_ca_file = \"ca.pem\" }";
    let proxy = toml::proxy_in(folder.path(), &upstream.origin(), more).await;
    let own = identity(&authority, "client", false);
    let connector = TlsConnector::from(Arc::new(client_config(&authority, Some(own))));
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let mut client = connector.connect(name, stream).await.unwrap();
    client
        .write_all(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    proxy.until_in_flight(1).await;
    client.shutdown().await.unwrap();
    proxy.until_in_flight(0).await;
}
