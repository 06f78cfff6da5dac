use std::time::Duration;

use http::{HeaderMap, Request, StatusCode, header};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

/// A response, and the number of bytes that are read before it: [`HEAD`] is a head of HTTP.
type Response = (usize, &'static [u8]);

const HEAD: usize = 0;

/// A proxy that sends these responses, and then closes the connection unless `holds`.
async fn scripted(responses: Vec<Response>, holds: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for (reads, response) in responses {
            let mut request = vec![0; reads];
            let _ = stream.read_exact(&mut request).await;
            while reads == HEAD && !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let _ = stream.write_all(response).await;
        }
        if holds {
            std::future::pending::<()>().await;
        }
        // Without unread bytes: they would make the close a reset.
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    port
}

fn outbound(protocol: Protocol, port: u16, credentials: Option<(&str, &str)>) -> OutboundProxy {
    let address = ProxyAddress {
        protocol,
        host: "127.0.0.1".to_owned(),
        port,
    };
    let credentials = credentials.map(|(user, password)| (user.to_owned(), Secret::new(password)));
    OutboundProxy::new(address, "upstream.proxy", credentials).unwrap()
}

#[tokio::test]
async fn responses_to_connect() {
    let large: &[u8] = Box::leak(
        [b"HTTP/1.1 200 OK\r\n".to_vec(), vec![b'a'; 40_000]]
            .concat()
            .into(),
    );
    let many: &[u8] = Box::leak(
        [
            b"HTTP/1.1 200 OK\r\n".to_vec(),
            b"a: b\r\n".repeat(200),
            b"\r\n".to_vec(),
        ]
        .concat()
        .into(),
    );
    for (response, expected) in [
        (&b"HTTP/1.1 200 Connection established\r\n\r\n"[..], ""),
        (b"HTTP/1.0 200 OK\nVia: x\n\n", ""),
        (b"HTTP/1.1 204 x\r\n\r\n", ""),
        (b"HTTP/1.1 407 x\r\n\r\n", "asks for a user and a password"),
        (
            b"HTTP/1.1 403 x\r\n\r\n",
            "does not allow cloud.test:443 (403)",
        ),
        (
            b"HTTP/1.1 502 x\r\n\r\n",
            "has not connected to cloud.test:443: it responded 502",
        ),
        (b"HTTP/1.1 101 x\r\n\r\n", "it responded 101"),
        (b"HTTP/1.1 200 OK\r\n", "it closed the connection"),
        (b"", "it closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "check scheme and port"),
        (b"\x05\xff\n\n", "check scheme and port"),
        (b"HTTP/1.1 000 x\r\n\r\n", "no status"),
        (large, "is larger than 16384 bytes"),
        (many, "check scheme and port"),
    ] {
        let port = scripted(vec![(HEAD, response)], false).await;
        let opened = outbound(Protocol::Http, port, None)
            .tunnel("cloud.test", 443, LIMIT)
            .await;
        let shown = response[..response.len().min(80)].escape_ascii();
        match opened {
            Ok(_) => assert_eq!(expected, "", "{shown}"),
            Err(error) => {
                let error = error.to_string();
                let is_expected = !expected.is_empty() && error.contains(expected);
                assert!(is_expected, "{shown}: {error}");
                assert!(
                    error.starts_with(&format!(
                        "the proxy http://127.0.0.1:{port} (upstream.proxy)"
                    )),
                    "{error}"
                );
            }
        }
    }
}

#[tokio::test]
async fn responses_of_socks5() {
    const OPENED: (usize, &[u8]) = (17, b"\x05\0\0\x01\x7f\0\0\x01\x1f\x90");
    let with_name: (usize, &[u8]) = (17, b"\x05\0\0\x03\x02ab\x1f\x90");
    for (responses, expected) in [
        (vec![(3, &b"\x05\0"[..]), OPENED], ""),
        (vec![(3, b"\x05\0"), with_name], ""),
        (vec![(3, b"\x05\xff")], "asks for a user and a password"),
        (vec![(3, b"\x05\x02")], "asks for a user and a password"),
        (vec![(3, b"\x05\x01")], "check scheme and port"),
        (
            vec![(3, b"HTTP/1.1 400 x\r\n\r\n")],
            "check scheme and port",
        ),
        (vec![(3, b"\x05\0"), (17, b"")], "it closed the connection"),
        (
            vec![(3, b"\x05\0"), (17, b"\x05\x01\0\x01\0\0\0\0\0\0")],
            "has not connected",
        ),
        (
            vec![(3, b"\x05\0"), (17, b"\x05\x02\0\x01\0\0\0\0\0\0")],
            "does not allow cloud.test:443",
        ),
        (
            vec![(3, b"\x05\0"), (17, b"\x05\x04\0\x01\0\0\0\0\0\0")],
            "Host unreachable",
        ),
        (
            vec![(3, b"\x05\0"), (17, b"\x05\x05\0\x01\0\0\0\0\0\0")],
            "Connection refused",
        ),
        (
            vec![(3, b"\x05\0"), (17, b"\x05\x63\0\x01\0\0\0\0\0\0")],
            "check scheme and port",
        ),
        (
            vec![(3, b"\x05\0"), (17, b"\x05\0\0\x09\0\0\0\0\0\0")],
            "check scheme and port",
        ),
    ] {
        let shown = format!("{responses:?}");
        let port = scripted(responses, false).await;
        let opened = outbound(Protocol::Socks5, port, None)
            .tunnel("cloud.test", 443, LIMIT)
            .await;
        match opened {
            Ok(_) => assert_eq!(expected, "", "{shown}"),
            Err(error) => {
                let error = error.to_string();
                let is_expected = !expected.is_empty() && error.contains(expected);
                assert!(is_expected, "{shown}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn bytes_behind_the_response_belong_to_the_destination() {
    const BEHIND: &[u8] = b"behind";
    for (protocol, responses) in [
        (
            Protocol::Http,
            vec![(HEAD, &b"HTTP/1.1 200 x\r\n\r\nbehind"[..])],
        ),
        (
            Protocol::Socks5,
            vec![
                (3, b"\x05\0"),
                (17, b"\x05\0\0\x01\x7f\0\0\x01\x1f\x90behind"),
            ],
        ),
    ] {
        let port = scripted(responses, false).await;
        let proxy = outbound(protocol, port, None);
        let mut stream = proxy.tunnel("cloud.test", 443, LIMIT).await.unwrap();
        let mut behind = vec![0; BEHIND.len()];
        stream.read_exact(&mut behind).await.unwrap();
        assert_eq!(behind, BEHIND, "{protocol:?}");
    }
}

#[tokio::test]
async fn rejected_credentials_are_not_printed() {
    for (protocol, responses) in [
        (Protocol::Http, vec![(HEAD, &b"HTTP/1.1 407 x\r\n\r\n"[..])]),
        (Protocol::Socks5, vec![(4, b"\x05\x02"), (18, b"\x01\x01")]),
        (Protocol::Socks5, vec![(4, b"\x05\xff")]),
    ] {
        let port = scripted(responses, false).await;
        let proxy = outbound(protocol, port, Some(("user", "secr3t-word")));
        let error = proxy.tunnel("cloud.test", 443, LIMIT).await.unwrap_err();
        let shown = format!("{error} {error:?} {proxy:?}");
        assert!(error.to_string().contains("rejects proxy_user"), "{shown}");
        assert!(!shown.contains("secr3t"), "{shown}");
        assert!(
            !shown.contains(&BASE64_STANDARD.encode("user:secr3t-word")),
            "{shown}"
        );
        assert_eq!(error.next_hop(), proxy.address().to_string());
    }
}

#[tokio::test]
async fn a_proxy_that_cannot_be_reached_or_hangs_is_named() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    for protocol in [Protocol::Http, Protocol::Socks5] {
        let error = outbound(protocol, port, None)
            .tunnel("cloud.test", 443, LIMIT)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        let hanging = scripted(Vec::new(), true).await;
        let limit = Duration::from_millis(50);
        let error = outbound(protocol, hanging, None)
            .tunnel("cloud.test", 443, limit)
            .await
            .unwrap_err();
        let expected =
            format!("127.0.0.1:{hanging} (upstream.proxy) has not responded within 50ms");
        assert!(error.to_string().ends_with(&expected), "{error}");
    }
}

#[test]
fn requests_in_absolute_form() {
    let proxy = Arc::new(outbound(Protocol::Http, 1, Some(("user", "word"))));
    let form = |scheme, authority: &str| AbsoluteForm::new(&proxy, scheme, authority.as_bytes());
    assert!(form("https", "cloud.test").is_none());
    let socks5 = Arc::new(outbound(Protocol::Socks5, 1, None));
    assert!(AbsoluteForm::new(&socks5, "http", b"cloud.test").is_none());
    for (authority, target, expected) in [
        ("cloud.test", "/a?b=//c", "http://cloud.test/a?b=//c"),
        ("cloud.test:8000", "//a", "http://cloud.test:8000//a"),
        ("[2001:db8::1]:8000", "/?", "http://[2001:db8::1]:8000/?"),
        ("cloud.test", "*", "http://cloud.test/"),
    ] {
        let mut request = Request::new(());
        *request.uri_mut() = target.parse().unwrap();
        form("http", authority).unwrap().apply(&mut request);
        assert_eq!(request.uri().to_string(), expected);
        let credentials = &request.headers()[header::PROXY_AUTHORIZATION];
        assert_eq!(credentials, "Basic dXNlcjp3b3Jk");
        assert!(credentials.is_sensitive());
    }
    let form = form("http", "cloud.test").unwrap();
    for (status, squid, is_refusal) in [
        (407, None, true),
        (403, None, false),
        (403, Some("ERR_ACCESS_DENIED 0"), true),
        (503, Some("ERR_CONNECT_FAIL 111"), true),
        (503, Some("ERR_DNS_FAIL"), true),
        (502, Some("ERR_READ_ERROR 104"), false),
        (504, Some("ERR_DNS_FAILURE 0"), false),
        (401, None, false),
        (200, None, false),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(error) = squid {
            headers.insert("x-squid-error", error.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        let refusal = form.refusal(status, &headers);
        assert_eq!(refusal.is_some(), is_refusal, "{status} {squid:?}");
    }
}

#[test]
fn a_password_that_has_changed_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let password = Secret::from_file(file.clone()).unwrap();
    let address = ProxyAddress {
        protocol: Protocol::Http,
        host: "::1".to_owned(),
        port: 3128,
    };
    let proxy = OutboundProxy::new(address, "upstream.proxy", Some(("u".to_owned(), password)));
    let proxy = Arc::new(proxy.unwrap());
    assert_eq!(proxy.address().to_string(), "http://[::1]:3128");
    let form = AbsoluteForm::new(&proxy, "http", b"cloud.test").unwrap();
    let sent = || {
        let mut request = Request::new(());
        form.apply(&mut request);
        request.headers()[header::PROXY_AUTHORIZATION].clone()
    };
    assert_eq!(
        sent(),
        format!("Basic {}", BASE64_STANDARD.encode("u:first"))
    );
    let reloadable = proxy.reloadable().unwrap();
    for (content, is_used) in [("two\nlines", false), ("", false), ("next", true)] {
        std::fs::write(&file, content).unwrap();
        assert_eq!(reloadable.reload().is_ok(), is_used, "{content:?}");
    }
    assert_eq!(
        sent(),
        format!("Basic {}", BASE64_STANDARD.encode("u:next"))
    );
}
