//! WebSockets and other upgrades through the proxy.

use std::{io, net::SocketAddr};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::Role},
};

use crate::common::{LIMIT, Proxy, eventually, in_front_of, read_head, scripted};

/// Accepts a WebSocket handshake, unless its token is the first one.
async fn shake_hands(stream: &mut TcpStream) -> io::Result<bool> {
    loop {
        let head = read_head(stream).await?;
        if head.is_empty() {
            return Ok(false);
        }
        if head.contains("token-1\r\n") {
            stream
                .write_all(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
                .await?;
            continue;
        }
        let field = |name: &str| {
            let line = head
                .lines()
                .find(|line| line.to_ascii_lowercase().starts_with(name));
            line.map(|line| line.split_once(": ").unwrap().1)
        };
        assert_eq!(
            field("connection:").unwrap().to_ascii_lowercase(),
            "upgrade",
            "{head}"
        );
        assert_eq!(field("upgrade:"), Some("websocket"), "{head}");
        let key = field("sec-websocket-key:").unwrap();
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await?;
        return Ok(true);
    }
}

/// Returns every message. At the end, reads the remaining bytes, so that a reset does not discard
/// sent data.
async fn echo_server() -> SocketAddr {
    scripted(|_, mut stream| async move {
        if !shake_hands(&mut stream).await? {
            return Ok(());
        }
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                break;
            }
        }
        let mut stream = socket.into_inner();
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        Ok(())
    })
    .await
}

const TUNNELS: &str = "bearer_proxy_tunnels_open";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_whose_token_was_refused_first_carries_messages_of_any_size() {
    let proxy = in_front_of(echo_server().await, &[]).await;
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut socket, answer) = client_async("ws://localhost/socket", stream).await.unwrap();
    assert_eq!(answer.status(), 101);
    for size in [0, 1, 125, 126, 65_535, 65_536, 8_000_000] {
        let message = Message::binary(vec![7_u8; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message, "{size}");
    }
    assert_eq!(proxy.metric(TUNNELS).await, 1.0);
    assert_eq!(
        proxy
            .metric("bearer_proxy_retries_total{reason=\"unauthorized\",outcome=\"accepted\"}")
            .await,
        1.0
    );
    let connections = "bearer_proxy_connections_open";
    assert_eq!(
        proxy.metric(connections).await,
        1.0,
        "the proxy still counts the connection"
    );
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    drop(socket);
    eventually("the proxy counts no tunnel and no connection", async || {
        proxy.metric(TUNNELS).await + proxy.metric(connections).await == 0.0
    })
    .await;
}

const ASK: &[u8] =
    b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
const AGREE: &[u8] = b"HTTP/1.1 101 Fine\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";

async fn ask(proxy: &Proxy) -> TcpStream {
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(ASK).await.unwrap();
    let head = tokio::time::timeout(LIMIT, read_head(&mut client))
        .await
        .unwrap()
        .unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(
        head.to_ascii_lowercase().contains("\r\nupgrade: x\r\n"),
        "{head}"
    );
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_may_finish_first_and_goes_on_listening() {
    for client_first in [true, false] {
        let upstream = scripted(move |_, mut stream| async move {
            let head = read_head(&mut stream).await?.to_ascii_lowercase();
            assert!(
                head.contains("\r\nupgrade: x\r\n") && head.contains("bearer token"),
                "{head}"
            );
            // Bytes after the response head belong to the new protocol.
            stream.write_all(&[AGREE, b"hello"].concat()).await?;
            if client_first {
                let mut all = String::new();
                stream.read_to_string(&mut all).await?;
                return stream.write_all(all.to_uppercase().as_bytes()).await;
            }
            stream.shutdown().await?;
            let mut all = String::new();
            stream.read_to_string(&mut all).await?;
            assert_eq!(all, "still here");
            Ok(())
        })
        .await;
        let proxy = in_front_of(upstream, &[]).await;
        let mut client = ask(&proxy).await;
        let mut all = String::new();
        if client_first {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            client.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "helloQUESTION");
        } else {
            client.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "hello");
            assert_eq!(
                proxy.metric(TUNNELS).await,
                1.0,
                "one direction is still open"
            );
            client.write_all(b"still here").await.unwrap();
            client.shutdown().await.unwrap();
        }
        eventually("the tunnel closes", async || {
            proxy.metric(TUNNELS).await == 0.0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_without_the_token_takes_upgrades_too() {
    let upstream = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?.to_ascii_lowercase();
        assert!(
            head.starts_with("get /x ") && !head.contains("authorization:"),
            "{head}"
        );
        stream.write_all(AGREE).await?;
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.map(drop)
    })
    .await;
    let proxy = in_front_of(
        upstream,
        &[("route[0].prefix", "/x"), ("route[0].inject", "false")],
    )
    .await;
    // The client sends bytes directly after the 101, many times. The proxy must not treat them as
    // bytes before the 101.
    for _ in 0..200 {
        let mut client = ask(&proxy).await;
        client.write_all(b"at once").await.unwrap();
        let mut echo = [0; 7];
        tokio::time::timeout(LIMIT, client.read_exact(&mut echo))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&echo, b"at once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_05_bytes_before_the_101_go_nowhere() {
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let upstream = scripted(move |_, mut stream| {
        let heard = heard.clone();
        async move {
            read_head(&mut stream).await?;
            stream.write_all(AGREE).await?;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            heard.send(rest).unwrap();
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    // A complete request, a partial request, and a frame.
    for early in [
        &b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"GET /smu",
        b"\x81\x05hello",
    ] {
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        client.write_all(&[ASK, early].concat()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LIMIT, client.read_to_end(&mut answer))
            .await
            .unwrap();
        assert_eq!(
            tokio::time::timeout(LIMIT, hears.recv())
                .await
                .unwrap()
                .unwrap(),
            b""
        );
    }
    let counted = "bearer_proxy_connections_rejected_total{reason=\"bytes_before_upgrade\"}";
    assert_eq!(proxy.metric(counted).await, 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_05_what_is_no_upgrade_stays_a_request() {
    let upstream = scripted(|_, mut stream| async move {
        while let head = read_head(&mut stream).await?.to_ascii_lowercase()
            && !head.is_empty()
        {
            let offered = head.contains("\r\nupgrade:") || head.contains("http2-settings");
            let unasked = head.contains("get /unasked ");
            let answer: &[u8] = match (unasked, offered) {
                (true, _) => AGREE,
                (false, true) => b"HTTP/1.1 500 Offered\r\nContent-Length: 0\r\n\r\n",
                (false, false) => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            stream.write_all(answer).await?;
        }
        Ok(())
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let head = tokio::time::timeout(LIMIT, read_head(&mut client))
            .await
            .unwrap()
            .unwrap();
        assert!(head.contains(" 200 "), "{request}: {head}");
    }
    assert_eq!(proxy.get("/unasked").await.status(), 502);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_when_nothing_moves_and_with_the_proxy() {
    let silent = || async {
        scripted(|_, mut stream| async move {
            read_head(&mut stream).await?;
            stream.write_all(AGREE).await?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.map(drop)
        })
        .await
    };
    let proxy = in_front_of(silent().await, &[("proxy.tunnel_idle_timeout", "300ms")]).await;
    let mut client = ask(&proxy).await;
    let closed = tokio::time::timeout(LIMIT, client.read_u8())
        .await
        .expect("the connection closes in time");
    assert!(closed.is_err());
    let proxy = in_front_of(silent().await, &[("proxy.drain_timeout", "300ms")]).await;
    let mut client = ask(&proxy).await;
    // The client receives the 101 before the proxy counts the tunnel.
    eventually("the proxy counts the tunnel", async || {
        proxy.metric(TUNNELS).await == 1.0
    })
    .await;
    tokio::time::timeout(LIMIT, proxy.app.shut_down())
        .await
        .expect("the proxy shuts down within drain_timeout");
    assert!(
        tokio::time::timeout(LIMIT, client.read_u8())
            .await
            .expect("the connection closes in time")
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_the_sender_back() {
    let (tell, mut told) = tokio::sync::watch::channel(0_u64);
    let upstream = scripted(move |_, mut stream| {
        let tell = tell.clone();
        async move {
            read_head(&mut stream).await?;
            stream.write_all(AGREE).await?;
            loop {
                stream.write_all(&[b'x'; 1 << 16]).await?;
                tell.send_modify(|sent| *sent += 1 << 16);
            }
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let client = ask(&proxy).await;
    // The upstream stops when all buffers are full. The buffers then hold all bytes that it sent.
    let mut sent = 0;
    eventually("the upstream stops sending", async || {
        let stopped = tokio::time::timeout(LIMIT / 60, told.changed())
            .await
            .is_err();
        sent = *told.borrow_and_update();
        stopped
    })
    .await;
    assert!(
        sent > 0 && sent < 32 << 20,
        "the upstream sent {sent} bytes"
    );
    drop(client);
    eventually("the tunnel closes", async || {
        proxy.metric(TUNNELS).await == 0.0
    })
    .await;
}

/// One frame of a client (RFC 6455 §5.2): the byte `first`, then the length, the mask and the
/// payload.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes()[..], reason].concat())
}

/// The bytes that a client sends after the handshake, and the size of each write.
struct Case {
    what: String,
    bytes: Vec<u8>,
    piece: usize,
}

/// The chapters of the Autobahn suite: framing, pings and pongs, reserved bits, opcodes,
/// fragmentation, UTF-8, closing, sizes.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |what: &str, frames: &[Vec<u8>], pieces: &[usize]| {
        let bytes = frames.concat();
        for &piece in pieces {
            cases.push(Case {
                what: format!("{what}, in pieces of {piece}"),
                bytes: bytes.clone(),
                piece,
            });
        }
    };
    let whole = &[usize::MAX][..];
    let bye = || close(1000, b"");
    for opcode in [1_u8, 2] {
        for size in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537, 1 << 20] {
            case(
                &format!("1 framing: opcode {opcode}, {size}"),
                &[frame(0x80 | opcode, &vec![b'*'; size]), bye()],
                whole,
            );
        }
        for size in [0, 1, 127, 1000] {
            let frames = [frame(0x80 | opcode, &vec![b'*'; size]), bye()];
            case(
                &format!("1 framing: opcode {opcode}, {size}"),
                &frames,
                &[1, 7, 997],
            );
        }
    }
    for opcode in [9_u8, 10] {
        for size in [0, 1, 10, 125, 126, 200] {
            let frames = [
                frame(0x80 | opcode, &vec![0xfe; size]),
                frame(0x81, b"after"),
                bye(),
            ];
            case(
                &format!("2 control: opcode {opcode}, {size}"),
                &frames,
                &[usize::MAX, 1],
            );
        }
        case(
            &format!("2 control: opcode {opcode}, fragmented"),
            &[frame(opcode, b"part"), frame(0x80, b"rest")],
            whole,
        );
        case(
            &format!("2 control: ten of opcode {opcode}"),
            &[frame(0x80 | opcode, b"n").repeat(10), bye()],
            whole,
        );
    }
    for reserved in 1..8_u8 {
        for opcode in [1_u8, 2, 8, 9] {
            let frames = [
                frame(0x81, b"before"),
                frame(0x80 | reserved << 4 | opcode, b"\x03\xe8"),
                frame(0x81, b"after"),
            ];
            case(
                &format!("3 reserved bits {reserved}, opcode {opcode}"),
                &frames,
                &[usize::MAX, 3],
            );
        }
    }
    for opcode in [3_u8, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        for payload in [&b""[..], b"reserved"] {
            let frames = [
                frame(0x81, b"before"),
                frame(0x80 | opcode, payload),
                frame(0x81, b"after"),
            ];
            case(&format!("4 opcode {opcode} {payload:?}"), &frames, whole);
        }
    }
    let fragments: [(&str, Vec<Vec<u8>>); 9] = [
        (
            "two fragments",
            vec![frame(0x01, b"frag"), frame(0x80, b"ment"), bye()],
        ),
        (
            "a ping between two fragments",
            vec![
                frame(0x01, b"frag"),
                frame(0x89, b"ping"),
                frame(0x80, b"ment"),
                bye(),
            ],
        ),
        (
            "empty fragments",
            vec![frame(0x01, b""), frame(0x00, b""), frame(0x80, b""), bye()],
        ),
        (
            "a continuation without a first fragment",
            vec![frame(0x80, b"what"), frame(0x81, b"after")],
        ),
        (
            "an unfinished message, then text",
            vec![frame(0x01, b"frag"), frame(0x81, b"text")],
        ),
        (
            "a continuation after the last fragment",
            vec![frame(0x01, b"a"), frame(0x80, b"b"), frame(0x80, b"c")],
        ),
        (
            "one hundred fragments",
            [
                vec![frame(0x02, b"x")],
                vec![frame(0x00, b"y"); 98],
                vec![frame(0x80, b"z"), bye()],
            ]
            .concat(),
        ),
        (
            "a close between two fragments",
            vec![frame(0x01, b"frag"), bye(), frame(0x80, b"ment")],
        ),
        (
            "two fragmented messages",
            vec![
                frame(0x01, b"1"),
                frame(0x80, b"2"),
                frame(0x02, b"3"),
                frame(0x80, b"4"),
                bye(),
            ],
        ),
    ];
    for (what, frames) in &fragments {
        case(&format!("5 fragments: {what}"), frames, &[usize::MAX, 1, 5]);
    }
    let texts: [&[u8]; 12] = [
        "κόσμε".as_bytes(),
        "\u{10ffff}".as_bytes(),
        "\u{0}\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}".as_bytes(),
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"\xf4\x90\x80\x80",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xed\xbf\xbf",
        b"\xff",
        b"\xfe\xfe\xff\xff",
        b"\xce",
        b"\x80",
    ];
    for (number, text) in texts.iter().enumerate() {
        case(
            &format!("6 text {number}"),
            &[frame(0x81, text), frame(0x81, b"after"), bye()],
            &[usize::MAX, 1],
        );
        let (first, second) = text.split_at(text.len() / 2);
        case(
            &format!("6 text {number}, split"),
            &[frame(0x01, first), frame(0x80, second), bye()],
            whole,
        );
    }
    for code in [
        0, 999, 1000, 1001, 1003, 1004, 1005, 1006, 1007, 1011, 1012, 1015, 1016, 1100, 2999, 3000,
        4999, 5000, 65_535,
    ] {
        for reason in [&b""[..], b"good bye"] {
            case(
                &format!("7 close {code} {reason:?}"),
                &[close(code, reason), frame(0x81, b"after")],
                whole,
            );
        }
    }
    case("7 close without a code", &[frame(0x88, b"")], whole);
    case(
        "7 close with an incomplete code",
        &[frame(0x88, b"\x03")],
        whole,
    );
    case(
        "7 close with a reason that is not UTF-8",
        &[close(1000, b"\xff")],
        whole,
    );
    case(
        "7 close that is too long",
        &[close(1000, &[b'*'; 124])],
        whole,
    );
    case("7 two closes", &[bye(), bye()], whole);
    case("7 no frame", &[], whole);
    case(
        "7 incomplete frame",
        &[frame(0x81, b"half")[..5].to_vec()],
        whole,
    );
    for size in [1 << 18, 1 << 20, 4 << 20] {
        case(
            &format!("9 large {size}"),
            &[frame(0x82, &vec![0xaa; size]), bye()],
            &[usize::MAX, 1 << 16, 1447],
        );
    }
    case(
        "10 many small messages",
        &[frame(0x81, b"0123456789").repeat(2000), bye()],
        &[usize::MAX, 1000],
    );
    cases
}

/// Returns the bytes that the server sends after the handshake until the connection closes.
async fn transcript(server: SocketAddr, case: &Case) -> Vec<u8> {
    let talk = async {
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let handshake = "GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(handshake.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await.unwrap().to_ascii_lowercase();
        assert!(
            head.contains(" 101 ") && head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{head}"
        );
        let (mut read, mut write) = stream.into_split();
        let sending = async {
            for piece in case.bytes.chunks(case.piece) {
                write.write_all(piece).await.unwrap();
            }
            write.shutdown().await.unwrap();
        };
        let mut all = Vec::new();
        let (read, ()) = tokio::join!(read.read_to_end(&mut all), sending);
        read.unwrap();
        all
    };
    tokio::time::timeout(LIMIT, talk)
        .await
        .unwrap_or_else(|_| panic!("the connection did not close in time: {}", case.what))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_websocket_conversation_is_the_same_as_without_the_proxy() {
    let server = echo_server().await;
    let proxy = in_front_of(server, &[]).await;
    let cases = cases();
    assert!(cases.len() >= 200, "{}", cases.len());
    let mut answered = 0;
    for case in &cases {
        let direct = transcript(server, case).await;
        let proxied = transcript(proxy.address, case).await;
        assert!(
            direct == proxied,
            "{}: {} bytes directly, {} through the proxy",
            case.what,
            direct.len(),
            proxied.len()
        );
        answered += usize::from(!direct.is_empty());
    }
    println!("{} cases, {answered} with a response", cases.len());
    assert!(
        answered * 10 >= cases.len() * 7,
        "the server responded in only {answered} of {} cases",
        cases.len()
    );
}
