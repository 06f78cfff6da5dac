//! Message heads that other proxies were reported to break: letter case, odd bytes, many fields,
//! equal lengths, and requests that nginx and HAProxy accept.

use crate::common::{
    Proxy,
    upstream::{Request, RunningUpstream, Upstream, bytes, response, unauthorized},
};

/// The names of the fields of a head, as they are spelled, without those that every message has.
fn names(head: &str) -> Vec<&str> {
    let head = head.split("\r\n\r\n").next().unwrap();
    let lines = head.split("\r\n").skip(1);
    lines.map(|line| line.split(':').next().unwrap()).collect()
}

/// An upstream that always sends this, and a proxy in front of it.
async fn sending(reply: impl Into<Vec<u8>>) -> (RunningUpstream, Proxy) {
    let upstream = Upstream::always(bytes(reply)).start().await;
    let proxy = upstream.proxy(&[]).await;
    (upstream, proxy)
}

/// Names in spellings that old clients and servers compare letter by letter.
const ODD_NAMES: &[&str] = &[
    "ETag",
    "WWW-Authenticate",
    "DAV",
    "MS-Author-Via",
    "SOAPAction",
    "x-lower-case",
    "X-UPPER-CASE",
    "xMiXeD-cAsE_1",
    "Content-MD5",
    "content-type",
    "LAST-MODIFIED",
];

/// One line for each name, and for some a second one in another spelling.
fn odd_fields() -> String {
    let lines = ODD_NAMES.iter().map(|name| format!("{name}: x\r\n"));
    lines
        .chain(["X-Twice: 1\r\nx-twice: 2\r\nX-TWICE: 3\r\n".to_owned()])
        .collect()
}

#[tokio::test]
async fn field_b12_letter_case_of_names_is_kept_in_both_directions() {
    let reply = format!(
        "HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok",
        odd_fields()
    );
    let (upstream, proxy) = sending(reply).await;
    for (line, more, body) in [
        ("GET /x HTTP/1.1", "", ""),
        ("HEAD /x HTTP/1.1", "", ""),
        ("POST /x HTTP/1.1", "content-LENGTH: 2\r\n", "ab"),
        (
            "POST /x HTTP/1.1",
            "Transfer-Encoding: chunked\r\n",
            "2\r\nab\r\n0\r\n\r\n",
        ),
        ("GET /x HTTP/1.0", "", ""),
    ] {
        let fields = odd_fields();
        let request =
            format!("{line}\r\nhost: localhost\r\nCONNECTION: close\r\n{fields}{more}\r\n{body}");
        let response = proxy.raw(&request).await;
        let received = upstream.requests().pop().unwrap().head;
        for name in ODD_NAMES.iter().chain(&["X-Twice", "x-twice", "X-TWICE"]) {
            assert!(names(&received).contains(name), "{name}: {received}");
            assert!(names(&response).contains(name), "{name}: {response}");
        }
        for (value, name) in [("1", "X-Twice"), ("2", "x-twice"), ("3", "X-TWICE")] {
            let line = format!("\r\n{name}: {value}\r\n");
            assert!(
                received.contains(&line) && response.contains(&line),
                "{line}"
            );
        }
        assert!(names(&response).contains(&"content-length"), "{response}");
        // The proxy's own fields.
        for name in [
            "Authorization",
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "X-Forwarded-Proto",
        ] {
            assert!(names(&received).contains(&name), "{name}: {received}");
        }
        assert!(names(&response).contains(&"Cache-Control"), "{response}");
    }
}

#[tokio::test]
async fn field_b12_a_replay_and_a_later_request_spell_their_own_names() {
    let upstream = Upstream::always(|request: &Request| match request.token() {
        "token-1" => unauthorized(""),
        _ => response("200 OK", "ETag: x\r\n", "ok"),
    })
    .start()
    .await;
    let proxy = upstream.proxy(&[]).await;
    let first = "GET /x HTTP/1.1\r\nHost: localhost\r\nx-Odd: 1\r\nX-REMOVED: 1\r\n\
                 Connection: x-removed\r\n\r\n";
    let second = "GET /x HTTP/1.1\r\nHost: localhost\r\nX-oDD: 1\r\nx-removed: 1\r\n\
                  Connection: close\r\n\r\n";
    let responses = proxy.raw(&format!("{first}{second}")).await;
    assert_eq!(
        responses.matches("\r\nETag: x\r\n").count(),
        2,
        "{responses}"
    );
    let heads: Vec<String> = upstream
        .requests()
        .into_iter()
        .map(|one| one.head)
        .collect();
    assert_eq!(heads.len(), 3);
    assert_eq!(heads[0].replace("token-1", "token-2"), heads[1]);
    for head in &heads[..2] {
        assert!(head.contains("\r\nx-Odd: 1\r\n"), "{head}");
        assert!(!head.to_lowercase().contains("removed"), "{head}");
    }
    assert!(heads[2].contains("\r\nX-oDD: 1\r\n"), "{}", heads[2]);
    assert!(heads[2].contains("\r\nx-removed: 1\r\n"), "{}", heads[2]);
}

#[tokio::test]
async fn field_b12_an_upgrade_keeps_the_spelling() {
    let reply = bytes(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: x\r\n\r\n",
    );
    let upstream = Upstream::always(reply.close()).start().await;
    let proxy = upstream.proxy(&[]).await;
    let fields = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n";
    let request = format!("GET /x HTTP/1.1\r\n{fields}\r\n");
    let response = proxy.raw(&request).await;
    assert!(
        names(&response).contains(&"Sec-WebSocket-Accept"),
        "{response}"
    );
    let received = upstream.requests().pop().unwrap().head;
    assert!(
        names(&received).contains(&"Sec-WebSocket-Key"),
        "{received}"
    );
}
