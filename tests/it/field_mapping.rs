//! Messages between apps and the cloud: URLs, cookies and rules.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use bytes::Bytes;
use http_body_util::Full;

use crate::common::{
    Proxy, text_at, toml,
    upstream::{Request, RunningUpstream, Upstream, ok, response, values},
};

/// A proxy whose `proxy.toml` has these lines besides the usual ones.
async fn configured(origin: &str, more: &str) -> Proxy {
    toml::proxy_in(tempfile::tempdir().unwrap().path(), origin, more).await
}

/// An upstream at `/dav` without the prefix.
fn below_dav(origin: &str) -> String {
    format!(
        "[upstreams.dav]\nendpoints = [\"{origin}\"]\n\
         [[route]]\nprefix = \"/dav\"\nupstream = \"dav\"\nstrip_prefix = true\ndeny = [\"/secret\"]\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b5_request_fields_name_the_cloud_instead_of_the_proxy() {
    let upstream = Upstream::always(ok("")).issuing().start().await;
    let cloud = upstream.origin();
    let proxy = configured(&cloud, &below_dav(&cloud)).await;
    let ours = format!("http://{}", proxy.address);
    let host = format!("Host: {}\r\n", proxy.address);
    let secure = ours.replace("http:", "https:");
    for (request, name, written, sent) in [
        (
            "PUT /f",
            "If",
            format!("<{ours}/f> (<opaquelocktoken:1>)"),
            format!("<{cloud}/f> (<opaquelocktoken:1>)"),
        ),
        (
            "MOVE /f",
            "Destination",
            format!("{secure}/g"),
            format!("{cloud}/g"),
        ),
        (
            "MOVE /dav/f",
            "Destination",
            format!("{ours}/dav/g"),
            format!("{cloud}/g"),
        ),
        (
            "COPY /dav/f",
            "Destination",
            "/dav/g".to_owned(),
            "/g".to_owned(),
        ),
        (
            "LOCK /dav/f",
            "If",
            "</dav/f> (<urn:1>)".to_owned(),
            "</f> (<urn:1>)".to_owned(),
        ),
        (
            "GET /f",
            "Referer",
            format!("{ours}/g?h"),
            format!("{cloud}/g?h"),
        ),
        ("GET /f", "Origin", ours.clone(), cloud.clone()),
        ("GET /dav/f", "Origin", ours.clone(), cloud.clone()),
        (
            "GET /f",
            "Referer",
            "https://other.example/".to_owned(),
            "https://other.example/".to_owned(),
        ),
    ] {
        let fields = format!("{host}{name}: {written}\r\n");
        assert_eq!(
            proxy.status(request, &fields).await,
            200,
            "{request} {fields}"
        );
        let requests = upstream.requests();
        assert_eq!(
            requests.last().unwrap().fields(name),
            [sent],
            "{request} {written}"
        );
    }
    // The rules see the path that is sent.
    for (destination, expected) in [("/dav/secret", 403), ("/secret", 403), ("/dav/x", 200)] {
        let fields = format!("{host}Destination: {ours}{destination}\r\n");
        assert_eq!(
            proxy.status("MOVE /dav/f", &fields).await,
            expected,
            "{destination}"
        );
    }
}

const JSON_401: &str = "[retry.json]\npointer = \"/code\"\nvalues = [401]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b3_json_of_any_text_type_can_reject_the_token() {
    let codes: [(&str, &[u8]); 9] = [
        ("Content-Type: text/html\r\n", b"{\"code\":401}"),
        (
            "Content-Type: text/html;charset=GBK\r\n",
            b"\r\n {\"code\":401,\"m\":\"\xC4\xE3\"}",
        ),
        ("Content-Type: text/plain\r\n", b"{\"code\":\"401\"}"),
        ("Content-Type: text/json\r\n", b"{\"code\":401}"),
        (
            "Content-Type: application/json\r\n",
            b"\xEF\xBB\xBF{\"code\":401}",
        ),
        (
            "Content-Type: text/plain\r\n",
            b"\xEF\xBB\xBF{\"code\":401}",
        ),
        ("Content-Type: \r\n", b"{\"code\":401}\0"),
        ("", b"{\"code\":401}"),
        ("Content-Type: application/json\r\n", b"{\"code\":401}\n"),
    ];
    let other: [(&str, &[u8]); 4] = [
        ("Content-Type: text/html\r\n", b"<p>{\"code\":401}"),
        (
            "Content-Type: application/octet-stream\r\n",
            b"{\"code\":401}",
        ),
        (
            "Content-Type: text/plain\r\nContent-Disposition: attachment\r\n",
            b"{\"code\":401}",
        ),
        ("Content-Type: text/plain\r\n", b"{\"code\":200}"),
    ];
    for (number, (fields, body)) in codes.into_iter().chain(other).enumerate() {
        let is_rejection = number < codes.len();
        let asked = AtomicUsize::new(0);
        let upstream = Upstream::always(move |_: &Request| match asked.fetch_add(1, SeqCst) {
            0 => response("200 OK", fields, body),
            _ => ok("accepted"),
        });
        let upstream = upstream.issuing().start().await;
        let proxy = configured(&upstream.origin(), JSON_401).await;
        let received = proxy.get("/").await;
        let expected = if is_rejection { &b"accepted"[..] } else { body };
        assert_eq!(
            &received.body()[..],
            expected,
            "{fields} {}",
            body.escape_ascii()
        );
        assert_eq!(upstream.count(), 1 + usize::from(is_rejection), "{fields}");
    }
}

/// The lines that map the document host to `/_document`.
const REWRITE: &str = "[upstreams.documents]\nendpoints = [\"http://document.example.com\"]\n\
    [[route]]\nprefix = \"/_document\"\nupstream = \"documents\"\nstrip_prefix = true\n\
    [[rewrite]]\nfrom = \"http://document.example.com\"\nto = \"/_document\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b8_small_json_of_any_text_type_is_rewritten() {
    let large = format!("{{\"pad\":\"{}\",", " ".repeat(70_000));
    for (fields, start, is_rewritten) in [
        ("Content-Type: text/html\r\n", "{", true),
        (
            "Content-Type: text/plain; charset=utf-8\r\n",
            "\u{FEFF} {",
            true,
        ),
        ("Content-Type: text/json\r\n", "{", true),
        ("Content-Type: text/json\r\n", &*large, true),
        ("", "{", true),
        ("Content-Type: text/html\r\n", "<a>{", false),
        ("Content-Type: text/html\r\n", &*large, false),
        ("Content-Type: text/xml\r\n", "{", false),
        (
            "Content-Type: text/plain\r\nContent-Disposition: attachment\r\n",
            "{",
            false,
        ),
    ] {
        let body = |url: &str| format!("{start}\"url\":\"{url}/a\"}}");
        let original = body("http://document.example.com");
        let fields = format!("{fields}ETag: \"x\"\r\n");
        let upstream = Upstream::always(response("200 OK", &fields, &original)).issuing();
        let upstream = upstream.start().await;
        let proxy = configured(&upstream.origin(), REWRITE).await;
        let received = proxy.get("/").await;
        let expected = if is_rewritten {
            body("http://localhost/_document")
        } else {
            original
        };
        assert!(received.body() == &expected, "{fields} {received:?}");
        assert_eq!(
            received.headers().contains_key("etag"),
            !is_rewritten,
            "{fields}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b8_response_fields_name_the_proxy_instead_of_the_cloud() {
    let respond = |request: &Request| {
        let host = request.fields("host")[0].to_owned();
        let path = if request.path() == "/path" {
            String::new()
        } else {
            format!("http://{host}")
        };
        let fields = format!(
            "Location: {path}/l\r\nContent-Location: {path}/c\r\nRefresh: 5; url={path}/r\r\n\
             Link: <{path}/1>; rel=next, <{path}/2>\r\nLink: <{path}/3>\r\nURI: <{path}/u>\r\n"
        );
        response("200 OK", &fields, "")
    };
    let upstream = Upstream::always(respond).issuing().start().await;
    let proxy = configured(&upstream.origin(), &below_dav(&upstream.origin())).await;
    for (target, ours) in [
        ("/x", "http://localhost"),
        ("/dav/x", "http://localhost/dav"),
        ("/dav/path", "/dav"),
        ("/path", ""),
    ] {
        let received = proxy.get(target).await;
        let all = |name: &str| {
            let values = received.headers().get_all(name).iter();
            values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(all("location"), [format!("{ours}/l")], "{target}");
        assert_eq!(all("content-location"), [format!("{ours}/c")]);
        assert_eq!(all("refresh"), [format!("5; url={ours}/r")]);
        let links = [
            format!("<{ours}/1>; rel=next, <{ours}/2>"),
            format!("<{ours}/3>"),
        ];
        assert_eq!(all("link"), links);
        assert_eq!(all("uri"), [format!("<{ours}/u>")]);
    }
}

/// A server of `/file`, with this type and content, that supports ranges.
async fn serving(kind: &'static str, content: Vec<u8>) -> RunningUpstream {
    let respond = move |request: &Request| {
        let all = content.len();
        let part = |range: &str| {
            let (first, last) = range.trim().split_once('-').unwrap();
            let first: usize = first.parse().unwrap();
            first..last.parse().map_or(all, |last: usize| all.min(last + 1))
        };
        let ranges = request.fields("range");
        let ranges = ranges
            .first()
            .and_then(|range| range.strip_prefix("bytes="));
        let kind = format!("Content-Type: {kind}\r\n");
        let Some(ranges) = ranges else {
            return response("200 OK", &format!("{kind}ETag: \"e\"\r\n"), &content);
        };
        let parts: Vec<_> = ranges.split(',').map(part).collect();
        let range = |part: &Range<usize>| {
            format!(
                "Content-Range: bytes {}-{}/{all}\r\n",
                part.start,
                part.end - 1
            )
        };
        match &parts[..] {
            [one] if one.start >= all => {
                let fields = format!("Content-Range: bytes */{all}\r\nContent-Type: text/html\r\n");
                response("416 Range Not Satisfiable", &fields, "<p>416")
            }
            [one] => {
                let fields = format!("{kind}{}ETag: \"e\"\r\n", range(one));
                response("206 Partial Content", &fields, &content[one.clone()])
            }
            several => {
                let one = |part: &Range<usize>| {
                    let head = format!("\r\n--b\r\n{kind}{}\r\n", range(part));
                    [head.as_bytes(), &content[part.clone()]].concat()
                };
                let body = [
                    &several.iter().map(one).collect::<Vec<_>>().concat()[..],
                    b"\r\n--b--",
                ];
                let fields = "Content-Type: multipart/byteranges; boundary=b\r\n";
                response("206 Partial Content", fields, body.concat())
            }
        }
    };
    Upstream::always(respond).issuing().start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b7_parts_of_what_is_not_rewritten_pass() {
    let json = br#"{"url":"http://document.example.com/a"}"#.to_vec();
    let whole = br#"{"url":"http://localhost/_document/a"}"#.to_vec();
    let file: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let text = b"http://document.example.com/ without braces".to_vec();
    for (kind, content, range, expected) in [
        (
            "application/zip",
            &file,
            "bytes=5-",
            (206, file[5..].to_vec()),
        ),
        (
            "application/zip",
            &file,
            "bytes=100000-100009",
            (206, file[100_000..100_010].to_vec()),
        ),
        (
            "application/zip",
            &file,
            "bytes=200000-",
            (416, b"<p>416".to_vec()),
        ),
        ("text/plain", &text, "bytes=5-", (206, text[5..].to_vec())),
        ("text/plain", &text, "bytes=500-", (416, b"<p>416".to_vec())),
        ("text/plain", &file, "bytes=5-", (206, file[5..].to_vec())),
        ("application/json", &json, "bytes=5-", (200, whole.clone())),
        (
            "application/json",
            &json,
            "bytes=500-",
            (200, whole.clone()),
        ),
        (
            "application/json",
            &json,
            "bytes=0-1,5-6",
            (200, whole.clone()),
        ),
        ("text/html", &json, "bytes=5-", (200, whole.clone())),
        ("text/html", &json, "bytes=500-", (200, whole.clone())),
    ] {
        let upstream = serving(kind, content.clone()).await;
        let proxy = configured(&upstream.origin(), REWRITE).await;
        let request = get_with(&[("range", range), ("if-range", "\"e\"")]);
        let received = proxy.send(request).await;
        let case = format!("{kind} {range}");
        assert_eq!(received.status(), expected.0, "{case}");
        assert!(received.body() == &expected.1, "{case} {received:?}");
        assert_eq!(
            received.headers().contains_key("content-range"),
            expected.0 != 200,
            "{case}"
        );
        let requests = upstream.requests();
        assert_eq!(requests[0].fields("range"), [range]);
        assert_eq!(requests[0].fields("if-range"), ["\"e\""]);
        for again in &requests[1..] {
            assert!(again.fields("range").is_empty() && again.fields("if-range").is_empty());
            assert_eq!(again.token(), "token");
        }
        // What is not rewritten costs no second request where its type shows that.
        let is_certain = !kind.starts_with("text/") && expected.0 == 206;
        assert!(!is_certain || requests.len() == 1, "{case}");
    }
    // Several parts of a file.
    let upstream = serving("application/zip", file.clone()).await;
    let proxy = configured(&upstream.origin(), REWRITE).await;
    let received = proxy.send(get_with(&[("range", "bytes=0-1,5-6")])).await;
    assert_eq!(received.status(), 206);
    assert!(
        received.body().ends_with(b"\x05\x06\r\n--b--"),
        "{received:?}"
    );
    assert_eq!(upstream.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b7_ranges_of_other_methods() {
    let json = br#"{"url":"http://document.example.com/a"}"#.to_vec();
    let upstream = serving("application/json", json.clone()).await;
    let proxy = configured(&upstream.origin(), REWRITE).await;
    let fields = "Host: localhost\r\nRange: bytes=5-\r\n";
    assert_eq!(proxy.status("HEAD /file", fields).await, 200);
    assert_eq!(upstream.count(), 2);
    // The response to a POST is not requested again.
    let fields = format!("{fields}Content-Length: 0\r\n");
    assert_eq!(proxy.status("POST /file", &fields).await, 206);
    assert_eq!(upstream.count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b7_a_part_is_kept_if_the_whole_cannot_be_had() {
    let respond = |request: &Request| match request.fields("range")[..] {
        [] => response(
            "500 Internal Server Error",
            "Content-Type: text/css\r\n",
            "",
        ),
        _ => response(
            "206 Partial Content",
            "Content-Type: text/plain\r\nContent-Range: bytes 0-3/9\r\n",
            "part",
        ),
    };
    let upstream = Upstream::always(respond).issuing().start().await;
    let proxy = configured(&upstream.origin(), REWRITE).await;
    let received = proxy.send(get_with(&[("range", "bytes=0-3")])).await;
    assert_eq!(
        (received.status().as_u16(), &received.body()[..]),
        (206, &b"part"[..])
    );
}

fn get_with(fields: &[(&str, &str)]) -> http::Request<Full<Bytes>> {
    let mut request = http::Request::get("/file").header("host", "localhost");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b9_cookies_come_back_over_plain_http_and_under_a_stripped_prefix() {
    let fields = "Set-Cookie: a=1; Path=/api; Secure; SameSite=None\r\nSet-Cookie: b=2; Path=/; HttpOnly\r\n";
    let upstream = Upstream::always(response("200 OK", fields, ""))
        .issuing()
        .start()
        .await;
    let proxy = configured(&upstream.origin(), &below_dav(&upstream.origin())).await;
    let balanced = "Host: localhost\r\nX-Forwarded-Proto: https\r\n";
    let standard = "Host: localhost\r\nForwarded: for=192.0.2.1;proto=https\r\n";
    for (request, more, expected) in [
        (
            "GET /x",
            "Host: localhost\r\n",
            ["a=1; Path=/api", "b=2; Path=/; HttpOnly"],
        ),
        (
            "GET /dav/x",
            "Host: localhost\r\n",
            ["a=1; Path=/dav/api", "b=2; Path=/dav; HttpOnly"],
        ),
        // The client's own connection is encrypted.
        (
            "GET /x",
            balanced,
            [
                "a=1; Path=/api; Secure; SameSite=None",
                "b=2; Path=/; HttpOnly",
            ],
        ),
        (
            "GET /x",
            standard,
            [
                "a=1; Path=/api; Secure; SameSite=None",
                "b=2; Path=/; HttpOnly",
            ],
        ),
    ] {
        let received = proxy.ask(request, more).await;
        assert_eq!(
            values(&received, "set-cookie"),
            expected,
            "{request} {more}"
        );
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_b16_a_redirect_to_the_other_scheme_stays_at_the_proxy() {
    use crate::common::{eventually, get, process::Program, send};
    let respond = |request: &Request| {
        let target = format!("https://{}{}", request.fields("host")[0], request.target());
        response(
            "301 Moved Permanently",
            &format!("Location: {target}\r\n"),
            "",
        )
    };
    let upstream = Upstream::always(respond).issuing().start().await;
    let program = Program::new(&upstream.origin(), "proxy.workers = 2");
    let _running = program.start_ready().await;
    // Each connection may be served by another worker.
    for _ in 0..20 {
        let received = send(program.address, get("/a?b")).await;
        assert_eq!(received.headers()["location"], "http://localhost/a?b");
    }
    let origin = format!("https://{}", upstream.address);
    let status: serde_json::Value = serde_json::from_str(&program.status().await).unwrap();
    assert_eq!(status["other_schemes"][0]["origin"], origin, "{status}");
    assert_eq!(status["other_schemes"].as_array().unwrap().len(), 1);
    eventually("it is logged", async || program.log().contains(&origin)).await;
    assert_eq!(
        program.log().matches("another scheme").count(),
        1,
        "{}",
        program.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_c10_a_link_of_another_site_gets_a_page_that_says_what_to_set() {
    let upstream = Upstream::always(ok("document")).issuing().start().await;
    let link = "Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n\
                Sec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\nAccept: text/html\r\n";
    let proxy = configured(&upstream.origin(), "").await;
    let received = proxy.ask("GET /document", link).await;
    assert!(received.starts_with("HTTP/1.1 403"), "{received}");
    assert_eq!(
        values(&received, "content-type"),
        ["text/html; charset=utf-8"]
    );
    assert!(received.contains("allow_navigation = true"), "{received}");
    assert_eq!(proxy.rejected("foreign_navigation").await, 1.0);
    let status = text_at(proxy.admin, "/status").await;
    assert!(status.contains("proxy.allow_navigation"), "{status}");
    assert_eq!(upstream.count(), 0);
    let proxy = configured(&upstream.origin(), "proxy.allow_navigation = true\n").await;
    assert_eq!(proxy.status("GET /document", link).await, 200);
    assert_eq!(proxy.status("DELETE /document", link).await, 403);
}
