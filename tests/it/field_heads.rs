//! Message heads that other proxies were reported to break: letter case, odd bytes, many fields,
//! equal lengths, and requests that nginx and HAProxy accept.

use crate::common::{
    LIMIT, Proxy,
    frames::{
        DATA, END_HEADERS, END_STREAM, HEADERS, POST, accept, greeted, head, next, until, write,
    },
    in_front_of, raw, scripted, status,
    upstream::{Request, RunningUpstream, Upstream, bytes, ok, response, unauthorized, values},
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
async fn field_b12_usual_and_unusual_names_on_one_connection() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    let lines = [
        "X-Usual: 1",
        "x-Usual: 1",
        "X-Usual: 1",
        "X-USUAL: 1",
        "X-Usual: 1",
    ];
    let requests: Vec<String> = lines
        .iter()
        .map(|line| format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{line}\r\n"))
        .collect();
    proxy
        .raw(&(requests.join("\r\n") + "Connection: close\r\n\r\n"))
        .await;
    let received = upstream.requests();
    assert_eq!(received.len(), lines.len());
    for (request, line) in received.iter().zip(lines) {
        assert!(
            request.head.contains(&format!("\r\n{line}\r\n")),
            "{}",
            request.head
        );
        assert!(
            request.head.contains("\r\nAuthorization: "),
            "{}",
            request.head
        );
    }
}

/// HTTP/2 has no capital letters, and neither has what the proxy itself writes.
#[tokio::test]
async fn field_b12_other_names_have_their_usual_spelling() {
    // From HTTP/2 to HTTP/1.1.
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    let mut client = greeted(proxy.address, &[]).await;
    let fields = [field(b"soapaction", b"x"), field(b"x-any", b"x")].concat();
    let block = [head(POST, "/x"), fields].concat();
    let flags = END_HEADERS | END_STREAM;
    write(&mut client, HEADERS, flags, 1, &block).await.unwrap();
    until(&mut client, HEADERS, 1).await.expect("a response");
    let received = upstream.requests().pop().unwrap().head;
    for name in [
        "Host",
        "SOAPAction",
        "X-Any",
        "Authorization",
        "CDN-Loop",
        "X-Forwarded-For",
    ] {
        assert!(names(&received).contains(&name), "{name}: {received}");
    }
    // And back.
    let address = scripted(move |_, mut stream| async move {
        accept(&mut stream, &[]).await?;
        loop {
            let frame = next(&mut stream).await?;
            if frame.kind == HEADERS {
                let fields = [
                    field(b"etag", b"x"),
                    field(b"www-authenticate", b"x"),
                    field(b"www-authenticate", b"y"),
                    field(b"dav", b"1"),
                    field(b"dav", b"2").repeat(7),
                    field(b"ms-author-via", b"x"),
                    field(b"content-type", b"x"),
                ];
                let block = [&[0x88][..], &fields.concat()].concat();
                write(&mut stream, HEADERS, flags, frame.stream, &block).await?;
            }
        }
    })
    .await;
    let proxy = in_front_of(address, &[("upstream.http2", "always")]).await;
    let response = proxy.ask("GET /", "Host: localhost\r\n").await;
    for name in [
        "ETag",
        "WWW-Authenticate",
        "MS-Author-Via",
        "Content-Type",
        "Cache-Control",
    ] {
        assert!(names(&response).contains(&name), "{name}: {response}");
    }
    // Repeated fields have one spelling.
    for (name, count) in [("WWW-Authenticate", 2), ("DAV", 8)] {
        let spelled = names(&response).into_iter().filter(|other| *other == name);
        assert_eq!(spelled.count(), count, "{name}: {response}");
    }
    // The proxy's own.
    let key = ("client[0].key", "0123456789abcdef0123456789abcdef");
    let more = [("client[0].name", "app"), ("client[0].basic", "app"), key];
    let proxy = upstream.proxy(&more).await;
    let response = proxy.ask("GET /", "Host: localhost\r\n").await;
    assert_eq!(status(&response), 401, "{response}");
    for name in ["WWW-Authenticate", "Content-Type", "Proxy-Status"] {
        assert!(names(&response).contains(&name), "{name}: {response}");
    }
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

/// A response whose head has these lines after the status line, and the body `ok`.
fn with_lines(status: &[u8], lines: &[u8]) -> Vec<u8> {
    [
        b"HTTP/1.1 ",
        status,
        b"\r\nA: 1\r\n",
        lines,
        b"\r\nContent-Length: 2\r\n\r\nok",
    ]
    .concat()
}

#[tokio::test]
async fn field_b11_odd_bytes_of_a_response_are_replaced_and_the_response_is_served() {
    for (sent, expected) in [
        (
            &b"Content-Disposition: attachment; filename=a\x01b"[..],
            "filename=a b\r\n",
        ),
        (b"X: a\x1b[0mb", "X: a [0mb\r\n"),
        (b"X: a\x7fb", "X: a b\r\n"),
        (b"X: a\0b", "X: a b\r\n"),
        (b"X: a\x08\x0b\x0cb", "X: a   b\r\n"),
        (b"X: a\rb", "X: a b\r\n"),
        (b"X: \xe4", "X: \u{fffd}\r\n"),
        ("X: \u{e4}".as_bytes(), "X: \u{e4}\r\n"),
        (b"X: a\r\n\tb", "X: a b\r\n"),
        (b"X : a", "X: a\r\n"),
    ] {
        let (_upstream, proxy) = sending(with_lines(b"200 OK", sent)).await;
        // The second one comes over the same connection.
        for line in ["GET /x HTTP/1.1", "GET /x HTTP/1.0", "GET /x HTTP/1.1"] {
            let request = format!("{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let response = proxy.raw(&request).await;
            assert!(response.contains(" 200 OK\r\n"), "{sent:?}: {response}");
            assert!(response.contains(expected), "{sent:?}: {response}");
            assert!(response.ends_with("\r\n\r\nok"), "{sent:?}: {response}");
        }
    }
}

#[tokio::test]
async fn field_b11_the_reason_phrase_is_kept() {
    for (sent, expected) in [
        (&b"200 Alles gut"[..], "200 Alles gut"),
        (
            "404 \u{627e}\u{4e0d}\u{5230}".as_bytes(),
            "404 \u{627e}\u{4e0d}\u{5230}",
        ),
        (b"403 Verr\xfcckt", "403 Verr\u{fffd}ckt"),
        (b"500 a\x1bb\x01", "500 a b"),
        (b"200", "200 "),
    ] {
        let (_upstream, proxy) = sending(with_lines(sent, b"X: y")).await;
        let response = proxy.ask("GET /x", "Host: localhost\r\n").await;
        let first = response.split("\r\n").next().unwrap();
        assert_eq!(first, format!("HTTP/1.1 {expected}"));
        assert!(response.ends_with("\r\n\r\nok"), "{response}");
    }
}

#[tokio::test]
async fn field_b11_what_frames_a_response_is_not_repaired() {
    for lines in [
        &b"Content-Length: 2\x01"[..],
        b"Content-Length: 2\x7f0",
        b"Content-Length\x01: 2",
        b"Transfer-Encoding: chunked\x01",
        b"Transfer-Encoding:\r\n chunked",
        b"X\x01: y",
        b"X y: z",
        b"x\"y: z",
        b": z",
        b"\x01",
    ] {
        let reply = [b"HTTP/1.1 200 OK\r\n", lines, b"\r\n\r\nok"].concat();
        let upstream = Upstream::always(bytes(reply).close()).start().await;
        let proxy = upstream.proxy(&[]).await;
        let status = proxy.status("GET /x", "Host: localhost\r\n").await;
        assert_eq!(status, 502, "{}", lines.escape_ascii());
    }
}

#[tokio::test]
async fn field_b11_odd_bytes_of_interim_responses_and_upgrades() {
    let interim = b"HTTP/1.1 103 \xe4\r\nLink: a\x01b\r\n\r\n";
    let reply = [
        &interim[..],
        &with_lines("200 \u{e4}".as_bytes(), b"X: a\x01b"),
    ]
    .concat();
    let (_upstream, proxy) = sending(reply).await;
    let response = proxy.ask("GET /x", "Host: localhost\r\n").await;
    assert!(
        response.starts_with("HTTP/1.1 200 \u{e4}\r\n"),
        "{response}"
    );
    assert!(response.contains("X: a b\r\n"), "{response}");

    let reply = b"HTTP/1.1 101 \xe4\r\nUpgrade: echo\r\nConnection: upgrade\r\nX: \x01\r\n\r\n\
                  after \x01\r\nit";
    let upstream = Upstream::always(bytes(&reply[..]).close()).start().await;
    let proxy = upstream.proxy(&[]).await;
    let fields = "Host: localhost\r\nUpgrade: echo\r\nConnection: Upgrade\r\n";
    let response = proxy.raw(&format!("GET /x HTTP/1.1\r\n{fields}\r\n")).await;
    assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
    assert!(response.ends_with("\r\n\r\nafter \x01\r\nit"), "{response}");
}

#[tokio::test]
async fn field_b10_fields_of_a_response_are_limited_by_bytes_alone() {
    for count in [99, 100, 101, 150, 1000, 3000] {
        let cookies: String = (0..count).map(|n| format!("Set-Cookie: {n}\r\n")).collect();
        let fields = format!("ETag: x\r\n{cookies}X-Last: y");
        let (_upstream, proxy) = sending(with_lines(b"200 OK", fields.as_bytes())).await;
        for _ in 0..2 {
            let response = proxy.ask("GET /x", "Host: localhost\r\n").await;
            let head = response.strip_suffix("\r\n\r\nok").expect("the body is ok");
            let expected: Vec<_> = (0..count).map(|n| n.to_string()).collect();
            assert_eq!(values(head, "set-cookie"), expected, "{count}");
            assert_eq!(values(head, "x-last"), ["y"]);
        }
    }
}

#[tokio::test]
async fn field_b10_the_key_bounds_the_head_of_a_response() {
    let large = with_lines(b"200 OK", format!("X: {}", "x".repeat(70_000)).as_bytes());
    let upstream = Upstream::new()
        .on("/large", bytes(large))
        .on("/x", ok("ok"))
        .start()
        .await;
    let proxy = upstream.proxy(&[]).await;
    assert_eq!(proxy.status("GET /large", "Host: localhost\r\n").await, 502);
    assert_eq!(proxy.rejected("invalid_answer").await, 1.0);
    assert_eq!(proxy.status("GET /x", "Host: localhost\r\n").await, 200);
    let proxy = upstream
        .proxy(&[("upstream.max_head_size", "128KiB")])
        .await;
    let response = proxy.ask("GET /large", "Host: localhost\r\n").await;
    assert!(
        response.len() > 70_000 && response.ends_with("\r\n\r\nok"),
        "{response:.80}"
    );
}

#[tokio::test]
async fn field_d6_equal_lengths_of_a_response_are_one() {
    for (lines, is_served) in [
        ("Content-Length: 2\r\nContent-Length: 2", true),
        ("Content-Length: 2, 2", true),
        ("Content-Length: 2,2\r\ncontent-length: 2", true),
        ("Content-Length: 2\r\nContent-Length: 3", false),
        ("Content-Length: 2, 3", false),
        ("Content-Length: 2,", false),
        ("Content-Length: 2, 02", false),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", false),
    ] {
        let (_upstream, proxy) = sending(format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\nok")).await;
        for method in ["GET", "HEAD", "GET"] {
            let response = proxy
                .ask(&format!("{method} /x"), "Host: localhost\r\n")
                .await;
            if !is_served {
                assert_eq!(status(&response), 502, "{lines}");
                continue;
            }
            assert_eq!(status(&response), 200, "{lines}");
            assert_eq!(values(&response, "content-length"), ["2"], "{lines}");
            assert_eq!(response.ends_with("ok"), method == "GET", "{response}");
        }
    }
}

#[tokio::test]
async fn field_b13_requests_that_nginx_and_haproxy_serve_are_sent_on_in_one_clean_form() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    for (line, fields, target) in [
        (
            &b"GET /a?b=\"c\"&d=<e> HTTP/1.1"[..],
            "",
            "/a?b=%22c%22&d=%3Ce%3E",
        ),
        (b"GET /`a<b>\" HTTP/1.1", "", "/%60a%3Cb%3E%22"),
        (b"GET /a\"b HTTP/1.1", "", "/a%22b"),
        (b"GET /\xc4\xe3?\xba\xc3 HTTP/1.1", "", "/%C4%E3?%BA%C3"),
        (b"GET /\xe4?%zz HTTP/1.0", "", "/%E4?%zz"),
        (b"GET /a|{b}^\\c HTTP/1.1", "Host: localhost\r\n", ""),
        (b"GET /a HTTP/1.2", "", "/a"),
        (b"GET /a HTTP/1.9", "X: <\r\n", "/a"),
        (b"GET   /a  HTTP/1.1", "", "/a"),
        (b"\r\n\r\n\r\nGET /a HTTP/1.1", "", "/a"),
        (b"\r\n\r\n\r\nGET /< HTTP/1.3", "", "/%3C"),
        (b"GET /a HTTP/1.1", "Expect:\r\n", "/a"),
        (b"GET /a HTTP/1.1", "Expect: ,\r\n", "/a"),
        (b"GET /a HTTP/1.1", "X: a\x01b\x1b\x7f\r\n", "/a"),
        (b"GET http://localhost:80/a HTTP/1.1", "", "/a"),
        (b"GET http://LOCALHOST:/a HTTP/1.1", "", "/a"),
        (
            b"GET https://localhost:443/a?<b> HTTP/1.1",
            "",
            "/a?%3Cb%3E",
        ),
    ] {
        let fields = format!("\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n");
        let response = raw(proxy.address, &[line, fields.as_bytes()].concat(), LIMIT).await;
        let expected = if target.is_empty() { 400 } else { 200 };
        assert_eq!(
            status(&response),
            expected,
            "{} {response}",
            line.escape_ascii()
        );
        if expected == 200 {
            let received = upstream.requests().pop().unwrap();
            assert_eq!(received.target(), target, "{}", line.escape_ascii());
            assert!(received.head.ends_with("\r\n\r\n") && received.body.is_empty());
            assert!(received.fields("expect").is_empty());
            for value in received.fields("x") {
                assert!(["<", "a b"].contains(&value), "{value:?}");
            }
        }
    }
    for (target, host) in [
        ("http://localhost", "localhost:80"),
        ("http://localhost:80", "localhost:"),
        ("http://localhost:443", ""),
        ("https://localhost:80", ""),
        ("http://localhost:8080", ""),
        ("http://localhost:080", ""),
        ("http://evil.example:80", ""),
    ] {
        let name = if host.is_empty() { "localhost" } else { host };
        let response = proxy
            .ask(&format!("GET {target}/"), &format!("Host: {name}\r\n"))
            .await;
        let expected = if host.is_empty() { 400 } else { 200 };
        assert_eq!(status(&response), expected, "{target} {host}");
    }
}

#[tokio::test]
async fn field_b13_whitespace_behind_the_size_of_a_chunk() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    for body in [
        "2  \r\nab\r\n0 \r\n\r\n",
        "2 ;a=b\r\nab\r\n0\t ; c\r\n\r\n",
        "0000000000000000000002\t\r\nab\r\n00000000000000000000\r\n\r\n",
        "2;\x01\x7f\r\nab\r\n0\r\n\r\n",
    ] {
        let fields = "Host: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n";
        let request = format!("PUT /x HTTP/1.1\r\n{fields}\r\n{body}");
        assert_eq!(status(&proxy.raw(&request).await), 200, "{body:?}");
        assert_eq!(upstream.requests().pop().unwrap().body, b"ab", "{body:?}");
    }
}

#[tokio::test]
async fn field_b13_odd_requests_among_others_on_one_connection() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    let (mut all, mut expected) = (String::new(), Vec::new());
    for number in 0..50 {
        let (first, second) = (format!("/{number}/<"), format!("/{number}/plain"));
        all += &format!("\r\n\r\nPOST {first} HTTP/1.2\r\nHost: localhost\r\nX: \x01\r\n");
        all += "Content-Length: 3\r\n\r\n\x01<>";
        all += &format!("GET {second} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        expected.extend([first.replace('<', "%3C"), second]);
    }
    all += "GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    expected.push("/last".to_owned());
    let responses = proxy.raw(&all).await;
    assert_eq!(responses.matches("HTTP/1.1 200 OK").count(), 101);
    assert_eq!(upstream.targets(), expected);
    let is_post = |request: &Request| request.method() == "POST";
    let requests = upstream.requests();
    assert!(
        requests
            .iter()
            .all(|one| !is_post(one) || one.body == b"\x01<>")
    );
}

#[tokio::test]
async fn field_d8_a_body_of_http_1_0_without_a_length_is_empty() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    for method in ["PUT", "POST", "PATCH"] {
        for (more, behind) in [
            ("", ""),
            ("Connection: keep-alive\r\n", ""),
            // Body or request: the connection ends.
            (
                "Connection: keep-alive\r\n",
                "GET /behind HTTP/1.0\r\nHost: localhost\r\n\r\n",
            ),
        ] {
            let head = format!("{method} /x HTTP/1.0\r\nHost: localhost\r\n{more}\r\n");
            let response = proxy.raw(&format!("{head}{behind}")).await;
            assert_eq!(status(&response), 200, "{response}");
            assert_eq!(response.matches("HTTP/1.").count(), 1, "{response}");
            let received = upstream.requests().pop().unwrap();
            assert_eq!((received.method(), &received.body[..]), (method, &b""[..]));
            assert!(received.fields("transfer-encoding").is_empty());
        }
    }
    assert_eq!(upstream.count(), 9);
}

/// Characters that `http::HeaderName` or CGI servers take, and that no token has.
const NO_TOKENS: &[u8] = b"\"(),/;<=>?@[\\]{} \x01\x7f\xe4";

/// A field in HPACK, without the dynamic table.
fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let string = |bytes: &[u8]| [&[bytes.len() as u8][..], bytes].concat();
    [&[0][..], &string(name), &string(value)].concat()
}

#[tokio::test]
async fn field_d4_names_of_requests_over_http2_are_tokens() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[]).await;
    let mut client = greeted(proxy.address, &[]).await;
    let mut number = 1;
    for byte in NO_TOKENS {
        let odd = [b'x', *byte, b'y'];
        // In the head.
        let flags = END_HEADERS | END_STREAM;
        let block = [head(POST, "/head"), field(&odd, b"v")].concat();
        write(&mut client, HEADERS, flags, number, &block)
            .await
            .unwrap();
        let response = until(&mut client, HEADERS, number)
            .await
            .expect("a response");
        assert_eq!(response.payload[0], 0x8c, "400 for {}", odd.escape_ascii());
        // In the trailers, which are sent on if they are declared.
        number += 2;
        let block = [head(POST, "/trailers"), field(b"trailer", &odd[..1])].concat();
        write(&mut client, HEADERS, END_HEADERS, number, &block)
            .await
            .unwrap();
        write(&mut client, DATA, 0, number, b"body").await.unwrap();
        let block = field(&odd, b"v");
        write(&mut client, HEADERS, flags, number, &block)
            .await
            .unwrap();
        number += 2;
    }
    let block = [head(POST, "/last"), field(b"x!#$%&'*+-.^_`|~1", b"v")].concat();
    let flags = END_HEADERS | END_STREAM;
    write(&mut client, HEADERS, flags, number, &block)
        .await
        .unwrap();
    let response = until(&mut client, HEADERS, number)
        .await
        .expect("a response");
    assert_eq!(response.payload[0], 0x88, "200");
    for request in upstream.requests() {
        let lines = request.head.trim_end().split("\r\n").skip(1);
        for line in lines {
            let name = line.split(':').next().unwrap();
            let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            assert!(
                !name.is_empty() && name.chars().all(is_token),
                "{}",
                request.head
            );
        }
        assert_ne!(request.target(), "/head");
    }
}

#[tokio::test]
async fn field_d4_names_of_responses_over_http2_are_tokens() {
    for byte in NO_TOKENS {
        let odd = [b'x', *byte, b'y'];
        let address = scripted(move |_, mut stream| async move {
            accept(&mut stream, &[]).await?;
            let mut is_first = true;
            loop {
                let frame = next(&mut stream).await?;
                if frame.kind != HEADERS {
                    continue;
                }
                let flags = END_HEADERS | END_STREAM;
                if is_first {
                    let block = [&[0x88][..], &field(&odd, b"v")].concat();
                    write(&mut stream, HEADERS, flags, frame.stream, &block).await?;
                } else {
                    let block = [&[0x88][..], &field(b"trailer", b"x")].concat();
                    write(&mut stream, HEADERS, END_HEADERS, frame.stream, &block).await?;
                    write(&mut stream, DATA, 0, frame.stream, b"body").await?;
                    let block = field(&odd, b"v");
                    write(&mut stream, HEADERS, flags, frame.stream, &block).await?;
                }
                is_first = false;
            }
        })
        .await;
        let more = [("upstream.http2", "always"), ("proxy.workers", "1")];
        let proxy = in_front_of(address, &more).await;
        let fields = "Host: localhost\r\nTE: trailers\r\n";
        assert_eq!(proxy.status("GET /", fields).await, 502);
        let response = proxy.ask("GET /", fields).await;
        let odd = String::from_utf8_lossy(&odd).into_owned();
        assert!(!response.contains(&odd), "{response}");
        assert!(!response.ends_with("0\r\n\r\n"), "cut short: {response}");
    }
}

#[tokio::test]
async fn field_d4_names_over_http1_are_tokens() {
    let upstream = Upstream::always(|request: &Request| {
        let number: usize = request.target()[1..].parse().unwrap();
        let odd = [b"x", &NO_TOKENS[number..=number], b"y: v\r\n"].concat();
        bytes(
            [
                b"HTTP/1.1 200 OK\r\n",
                &odd[..],
                b"Content-Length: 0\r\n\r\n",
            ]
            .concat(),
        )
    })
    .start()
    .await;
    let proxy = upstream.proxy(&[]).await;
    for (number, byte) in NO_TOKENS.iter().enumerate() {
        assert_eq!(
            proxy
                .status(&format!("GET /{number}"), "Host: localhost\r\n")
                .await,
            502
        );
        let fields = [b"Host: localhost\r\nx", &[*byte][..], b"y: v\r\n\r\n"].concat();
        let request = [b"GET /0 HTTP/1.1\r\n", &fields[..]].concat();
        assert_eq!(status(&raw(proxy.address, &request, LIMIT).await), 400);
    }
    assert_eq!(upstream.count(), NO_TOKENS.len());
}
