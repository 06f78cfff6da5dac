//! Who may call, over real sockets: pages, programs, and clients by name.

use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt as _;

use crate::common::{
    LIMIT, Proxy, in_front_of, raw, read_head, scripted,
    web::{self, Identity, Speech},
};

/// The heads that reached the upstream.
type Seen = Arc<Mutex<Vec<String>>>;

/// An upstream that answers 200 with these fields, and notes what it sees.
async fn upstream(fields: &'static str) -> (std::net::SocketAddr, Seen) {
    let seen = Seen::default();
    let note = Arc::clone(&seen);
    let address = scripted(move |_, mut stream| {
        let seen = Arc::clone(&note);
        async move {
            loop {
                let head = read_head(&mut stream).await?;
                if head.is_empty() {
                    return Ok(());
                }
                seen.lock().unwrap().push(head.to_ascii_lowercase());
                let answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok");
                stream.write_all(answer.as_bytes()).await?;
            }
        }
    })
    .await;
    (address, seen)
}

/// Asks for `target` with these fields; the whole answer.
async fn ask(proxy: &Proxy, request: &str, fields: &str) -> String {
    let request = format!("{request} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
    raw(proxy.address, request.as_bytes(), LIMIT).await
}

fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("{answer}"))
}

fn field<'a>(answer: &'a str, name: &str) -> Vec<&'a str> {
    let head = answer.split_once("\r\n\r\n").unwrap_or((answer, "")).0;
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_10_foreign_pages_and_rebound_names_reach_nothing_in_any_version() {
    let (upstream, seen) = upstream("").await;
    let proxy = in_front_of(upstream, &[("proxy.allowed_hosts", "proxy.lan")]).await;
    let page = ("origin", "https://evil.example");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16, &'a str);
    let table: &[Case<'_>] = &[
        ("evil.example", &[], 421, "proxy.allowed_hosts"),
        ("127.0.0.1.evil.example", &[], 421, "proxy.allowed_hosts"),
        ("0.0.0.0:8080", &[], 421, ""),
        ("[::]", &[], 421, ""),
        ("192.0.2.1", &[], 421, "proxy.allowed_hosts"),
        ("localhost:8080", &[page], 403, "proxy.allowed_origins"),
        (
            "localhost:8080",
            &[("origin", "null")],
            403,
            "proxy.allowed_origins",
        ),
        (
            "localhost:8080",
            &[("origin", "http://localhost:3000")],
            403,
            "proxy.allowed_origins",
        ),
        (
            "localhost:8080",
            &[("sec-fetch-site", "cross-site")],
            403,
            "proxy.allowed_origins",
        ),
        (
            "localhost:8080",
            &[("sec-fetch-site", "same-site")],
            403,
            "proxy.allowed_origins",
        ),
        (
            "localhost:8080",
            &[page, ("access-control-request-method", "PUT")],
            403,
            "proxy.allowed_origins",
        ),
    ];
    let identity = Identity::new();
    for (host, fields, expected, key) in table {
        for (address, speech) in [
            (proxy.address, Speech::Http11),
            (proxy.address, Speech::Http2),
            (proxy.admin, Speech::Http11),
        ] {
            let mut client = web::Client::connect(speech, address, &identity).await;
            let method = if fields.len() == 2 { "OPTIONS" } else { "GET" };
            let mut request = http::Request::builder()
                .method(method)
                .uri("/healthz")
                .header("host", *host);
            for (name, value) in *fields {
                request = request.header(*name, *value);
            }
            let (answer, body) = client
                .send(request.body(web::whole("")).unwrap())
                .await
                .unwrap()
                .into_parts();
            assert_eq!(answer.status, *expected, "{host} {fields:?} {speech:?}");
            let words = http_body_util::BodyExt::collect(body)
                .await
                .unwrap()
                .to_bytes();
            let words = String::from_utf8_lossy(&words);
            assert!(words.contains(key), "{host} {fields:?}: {words}");
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
        }
    }
    assert!(seen.lock().unwrap().is_empty(), "something went upstream");
    for fields in [
        "Host: proxy.lan\r\n",
        "Host: a.localhost:1\r\nOrigin: http://a.localhost:1\r\nSec-Fetch-Site: same-origin\r\n",
    ] {
        assert_eq!(status(&ask(&proxy, "GET /", fields).await), 200, "{fields}");
    }
}

/// A container's 0.0.0.0 is published on localhost, where pages are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_lets_everybody_in_lets_no_page_in() {
    let (upstream, seen) = upstream("").await;
    let more = [
        ("proxy.listen", "0.0.0.0:0"),
        ("proxy.allow_unauthenticated", "true"),
    ];
    let mut proxy = in_front_of(upstream, &more).await;
    proxy.address.set_ip([127, 0, 0, 1].into());
    for (fields, expected) in [
        ("Host: evil.example\r\n", 421),
        ("Host: 0.0.0.0\r\n", 421),
        ("Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: same-site\r\n", 403),
        ("Host: localhost\r\n", 200),
        ("Host: 192.0.2.1\r\n", 200),
    ] {
        assert_eq!(
            status(&ask(&proxy, "GET /", fields).await),
            expected,
            "{fields:?}"
        );
    }
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_allowed_origins_may_call_and_read() {
    let (plain, seen) = upstream("").await;
    let more = [
        ("proxy.allowed_origins", "https://app.example.com"),
        ("proxy.required_header", "x-app"),
    ];
    let proxy = in_front_of(plain, &more).await;
    let page =
        "Host: localhost\r\nOrigin: https://app.example.com\r\nSec-Fetch-Site: cross-site\r\n";
    // The browser asks first, and can show nothing yet.
    let asking = format!(
        "{page}Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-app\r\n"
    );
    let answer = ask(&proxy, "OPTIONS /x", &asking).await;
    assert_eq!(status(&answer), 204, "{answer}");
    assert_eq!(
        field(&answer, "access-control-allow-origin"),
        ["https://app.example.com"]
    );
    assert_eq!(field(&answer, "access-control-allow-methods"), ["PUT"]);
    assert_eq!(field(&answer, "access-control-allow-headers"), ["x-app"]);
    assert!(field(&answer, "vary").contains(&"Origin"), "{answer}");
    assert!(seen.lock().unwrap().is_empty(), "a preflight went upstream");

    let answer = ask(&proxy, "PUT /x", &format!("{page}X-App: 1\r\n")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(
        field(&answer, "access-control-allow-origin"),
        ["https://app.example.com"]
    );
    assert_eq!(field(&answer, "vary"), ["Origin"]);
    // An answer of ours can be read as well, and others are not opened.
    let refused = ask(&proxy, "PUT /x", page).await;
    assert_eq!(
        (
            status(&refused),
            field(&refused, "access-control-allow-origin").len()
        ),
        (403, 1),
        "{refused}"
    );
    let program = ask(&proxy, "GET /x", "Host: localhost\r\nX-App: 1\r\n").await;
    assert_eq!(
        (
            status(&program),
            field(&program, "access-control-allow-origin").len()
        ),
        (200, 0),
        "{program}"
    );
    // OPTIONS that are no preflight are the upstream's business.
    assert_eq!(
        status(&ask(&proxy, "OPTIONS /x", &format!("{page}X-App: 1\r\n")).await),
        200
    );
    assert_eq!(seen.lock().unwrap().len(), 3);

    let (own, _) =
        upstream("Access-Control-Allow-Origin: https://other.example\r\nVary: Accept\r\n").await;
    let proxy = in_front_of(own, &more).await;
    let answer = ask(&proxy, "GET /x", &format!("{page}X-App: 1\r\n")).await;
    assert_eq!(
        field(&answer, "access-control-allow-origin"),
        ["https://other.example"]
    );
    assert_eq!(field(&answer, "vary"), ["Accept"]);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_required_header_is_asked_for_over_tcp_and_goes_no_further() {
    use tokio::io::AsyncReadExt as _;

    let (upstream, seen) = upstream("").await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("proxy.sock");
    let listen = format!("127.0.0.1:0,unix:{}", socket.display());
    let proxy = in_front_of(
        upstream,
        &[
            ("proxy.listen", &listen),
            ("proxy.required_header", "X-App"),
        ],
    )
    .await;
    let refused = ask(&proxy, "GET /", "Host: localhost\r\n").await;
    assert_eq!(status(&refused), 403);
    assert!(refused.contains("proxy.required_header"), "{refused}");
    assert_eq!(
        proxy
            .metric("bearer_proxy_requests_rejected_total{reason=\"required_header\"}")
            .await,
        1.0
    );
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(
        status(&ask(&proxy, "GET /", "Host: localhost\r\nX-App: anything\r\n").await),
        200
    );
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    let seen = seen.lock().unwrap();
    assert!(
        seen.len() == 2 && !seen.iter().any(|head| head.contains("x-app")),
        "{seen:?}"
    );
}

const HOST: &str = "Host: localhost\r\n";

/// `a` shows a key in a header, `b` by HTTP Basic.
const TWO: [(&str, &str); 6] = [
    ("client[0].name", "a"),
    ("client[0].key", "key-of-a"),
    ("client[0].header", "X-Key"),
    ("client[1].name", "b"),
    ("client[1].key", "key-of-b"),
    ("client[1].basic", "b"),
];

/// `b:key-of-b`.
const BY_BASIC: &str = "Authorization: Basic YjprZXktb2YtYg==\r\n";

fn two_and<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    TWO.iter().chain(more).copied().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_known_by_what_they_show_and_nobody_else_is_served() {
    let (upstream, seen) = upstream("").await;
    let more = [("route[0].prefix", "/plain"), ("route[0].inject", "false")];
    let proxy = in_front_of(upstream, &two_and(&more)).await;
    let by_key = format!("{HOST}X-Key: key-of-a\r\n");
    for (fields, path, expected) in [
        (by_key.clone(), "/", 200),
        (format!("{HOST}{BY_BASIC}"), "/", 200),
        (format!("{HOST}{BY_BASIC}X-Key: some\r\n"), "/plain", 200),
        (format!("{by_key}Connection: x-key\r\n"), "/plain", 200),
        (HOST.to_owned(), "/", 401),
        (format!("{HOST}X-Key: key-of-b\r\n"), "/", 401),
        (
            format!("{HOST}Authorization: Bearer key-of-a\r\n"),
            "/plain",
            401,
        ),
        // The guard comes first.
        (
            format!("{by_key}Origin: https://evil.example\r\n"),
            "/",
            403,
        ),
        (format!("{BY_BASIC}Host: evil.example\r\n"), "/", 421),
        // And who somebody is before what it asks for.
        (HOST.to_owned(), "/api/token.do", 401),
        (by_key.clone(), "/api/token.do", 403),
    ] {
        let answer = ask(&proxy, &format!("GET {path}"), &fields).await;
        assert_eq!(status(&answer), expected, "{fields:?}: {answer}");
        let challenges = if expected == 401 {
            vec![
                r#"ApiKey realm="bearer-proxy", header="x-key""#,
                r#"Basic realm="bearer-proxy", charset="UTF-8""#,
            ]
        } else {
            Vec::new()
        };
        assert_eq!(field(&answer, "www-authenticate"), challenges);
    }
    let metric = async |client: &str, code: &str| {
        proxy
            .metric(&format!(
                "bearer_proxy_client_requests_total{{client=\"{client}\",code=\"{code}\"}}"
            ))
            .await
    };
    assert_eq!(
        [
            metric("a", "200").await,
            metric("a", "403").await,
            metric("b", "200").await
        ],
        [2.0, 1.0, 2.0]
    );
    assert_eq!(
        proxy
            .metric("bearer_proxy_requests_rejected_total{reason=\"unauthenticated\"}")
            .await,
        4.0
    );
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 4);
    for head in &*seen {
        assert!(!head.contains("key") && !head.contains("basic"), "{head}");
        assert_eq!(
            head.contains("authorization: bearer token"),
            !head.starts_with("get /plain"),
            "{head}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_may_carry_several_clients_and_no_key_in_trailers() {
    let identity = Identity::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let upstream = web::serve(Speech::Http2, &identity, move |request| {
        let seen = Arc::clone(&note);
        async move {
            let (head, body) = request.into_parts();
            let body = http_body_util::BodyExt::collect(body).await.unwrap();
            seen.lock()
                .unwrap()
                .push((head.headers, body.trailers().cloned()));
            http::Response::new(web::whole("ok"))
        }
    })
    .await;
    let proxy = in_front_of(upstream, &two_and(&[("upstream.http2", "always")])).await;
    for speech in [Speech::Http11, Speech::Http2] {
        let mut client = web::Client::connect(speech, proxy.address, &identity).await;
        for (name, value, expected) in [
            ("x-key", "key-of-a", 200),
            ("x-key", "key-of-a", 200),
            ("x-key", "key-of-A", 401),
            ("x-other", "key-of-a", 401),
            ("authorization", "Basic YjprZXktb2YtYg==", 200),
            ("authorization", "Basic YjprZXktb2YtYh==", 401),
            ("x-key", "key-of-a", 200),
        ] {
            let names = ["x-key", "x_key"].map(http::HeaderName::from_static);
            let trailers = names
                .map(|name| (name, "key-of-a".parse().unwrap()))
                .into_iter()
                .collect();
            let body = web::stream(vec!["body".into()], Some(trailers));
            let request = http::Request::post("/")
                .header("host", "localhost")
                .header(name, value);
            let request = request
                .header("te", "trailers")
                .header("trailer", "x-key, x_key")
                .body(body)
                .unwrap();
            let answer = client.send(request).await.unwrap();
            assert_eq!(answer.status(), expected, "{speech:?} {name}: {value}");
            http_body_util::BodyExt::collect(answer.into_body())
                .await
                .unwrap();
        }
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 8);
    for (head, trailers) in &*seen {
        assert!(
            !head.contains_key("x-key")
                && head["authorization"]
                    .as_bytes()
                    .starts_with(b"Bearer token"),
            "{head:?}"
        );
        assert!(
            trailers.as_ref().is_none_or(http::HeaderMap::is_empty),
            "{trailers:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_every_client_shows_a_key_that_no_page_has_names_and_origins_are_free() {
    let (upstream, seen) = upstream("").await;
    let proxy = in_front_of(upstream, &TWO[..3]).await;
    let foreign =
        "Host: any.example\r\nOrigin: https://any.example\r\nSec-Fetch-Site: cross-site\r\n";
    assert_eq!(
        status(&ask(&proxy, "GET /", &format!("{foreign}X-Key: key-of-a\r\n")).await),
        200
    );
    assert_eq!(status(&ask(&proxy, "GET /", foreign).await), 401);
    let preflight = format!("{foreign}Access-Control-Request-Method: GET\r\n");
    assert_eq!(status(&ask(&proxy, "OPTIONS /", &preflight).await), 401);
    assert_eq!(
        status(&ask(&proxy, "GET /", "X-Key: key-of-a\r\n").await),
        400
    );
    let admin = raw(
        proxy.admin,
        b"GET /healthz HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n\r\n",
        LIMIT,
    )
    .await;
    assert_eq!(status(&admin), 421, "{admin}");
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_a_file_is_exchanged_without_a_restart_also_on_connections_that_stand() {
    let (upstream, _) = upstream("").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "first\n").unwrap();
    let client = [
        ("client[0].name", "a"),
        ("client[0].header", "X-Key"),
        ("client[0].key_file", file.to_str().unwrap()),
    ];
    let proxy = in_front_of(upstream, &client).await;
    let with_key = |key: &str| {
        let mut request = crate::common::get("/");
        request.headers_mut().insert("x-key", key.parse().unwrap());
        request
    };
    let mut standing = crate::common::Client::connect(proxy.address).await;
    assert_eq!(
        standing.send(with_key("first")).await.unwrap().status(),
        200
    );
    std::fs::write(&file, "second\n").unwrap();
    crate::common::eventually("the new key is known", async || {
        proxy.send(with_key("second")).await.status() == 200
    })
    .await;
    assert_eq!(
        standing.send(with_key("first")).await.unwrap().status(),
        401
    );
    assert_eq!(
        standing.send(with_key("second")).await.unwrap().status(),
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_let_in_without_a_key_and_no_key_helps_from_elsewhere() {
    let (upstream, _) = upstream("").await;
    let near = [
        ("client[0].name", "near"),
        ("client[0].networks", "127.0.0.0/8"),
    ];
    let proxy = in_front_of(upstream, &near).await;
    assert_eq!(status(&ask(&proxy, "GET /", HOST).await), 200);
    let far = [("client[0].networks", "192.0.2.0/24,2001:db8::/32")];
    let proxy = in_front_of(upstream, &two_and(&far)[..]).await;
    assert_eq!(
        status(&ask(&proxy, "GET /", &format!("{HOST}X-Key: key-of-a\r\n")).await),
        401,
        "b might help"
    );
    let proxy = in_front_of(upstream, &[&TWO[..3], &far[..]].concat()).await;
    let answer = ask(&proxy, "GET /", &format!("{HOST}X-Key: key-of-a\r\n")).await;
    assert_eq!(
        (status(&answer), field(&answer, "www-authenticate").len()),
        (403, 0),
        "{answer}"
    );
    assert_eq!(
        proxy
            .metric("bearer_proxy_requests_rejected_total{reason=\"stranger\"}")
            .await,
        1.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_rules_of_its_own_on_the_path_that_is_sent() {
    let (upstream, seen) = upstream("").await;
    let more = [
        ("client[0].allow", "/api"),
        ("client[0].deny", "DELETE /,/api/admin"),
        ("route[0].prefix", "/files"),
        ("route[0].strip_prefix", "true"),
    ];
    let proxy = in_front_of(upstream, &two_and(&more)).await;
    let by_key = format!("{HOST}X-Key: key-of-a\r\n");
    let by_basic = format!("{HOST}{BY_BASIC}");
    for (request, fields, expected) in [
        ("GET /api/x", &by_key, 200),
        ("GET /files/api/x", &by_key, 200),
        ("GET /files/x", &by_key, 403),
        ("GET /x", &by_key, 403),
        ("DELETE /api/x", &by_key, 403),
        ("GET /files/API/%61dmin", &by_key, 403),
        ("GET /api/../x", &by_key, 400),
        ("DELETE /api/admin/../x", &by_basic, 200),
        ("GET /api/token.do", &by_basic, 403),
    ] {
        assert_eq!(
            status(&ask(&proxy, request, fields).await),
            expected,
            "{request}"
        );
    }
    assert_eq!(seen.lock().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_holds_over_all_workers() {
    let (upstream, seen) = upstream("").await;
    let proxy = in_front_of(
        upstream,
        &two_and(&[("client[0].rate", "5/h"), ("proxy.workers", "4")]),
    )
    .await;
    let mut answers = Vec::new();
    for _ in 0..12 {
        answers.push(ask(&proxy, "GET /", &format!("{HOST}X-Key: key-of-a\r\n")).await);
    }
    let statuses: Vec<u16> = answers.iter().map(|answer| status(answer)).collect();
    assert_eq!(statuses, [vec![200; 5], vec![429; 7]].concat());
    let retry_after: u64 = field(&answers[11], "retry-after")[0].parse().unwrap();
    assert!((600..=720).contains(&retry_after), "{retry_after}");
    assert_eq!(
        status(&ask(&proxy, "GET /", &format!("{HOST}{BY_BASIC}")).await),
        200,
        "another client"
    );
    assert_eq!(seen.lock().unwrap().len(), 6);
    assert_eq!(
        proxy
            .metric("bearer_proxy_client_requests_total{client=\"a\",code=\"429\"}")
            .await,
        7.0
    );
    assert_eq!(
        proxy
            .metric("bearer_proxy_requests_rejected_total{reason=\"rate\"}")
            .await,
        7.0
    );
}

/// An upstream that sends half an answer and waits: in the first step its third connection breaks off, in the second the
/// others send the rest.
async fn halves() -> (std::net::SocketAddr, tokio::sync::watch::Sender<u8>) {
    let (step, steps) = tokio::sync::watch::channel(0);
    let address = scripted(move |number, mut stream| {
        let mut steps = steps.clone();
        async move {
            read_head(&mut stream).await?;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
                .await?;
            if number == 2 {
                return steps
                    .wait_for(|step| *step > 0)
                    .await
                    .map(drop)
                    .map_err(std::io::Error::other);
            }
            let _ = steps.wait_for(|step| *step > 1).await;
            stream.write_all(b"half").await
        }
    })
    .await;
    (address, step)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_is_held_to_the_end_of_the_answer_and_given_back_however_it_ends() {
    use tokio::io::AsyncReadExt as _;

    let (upstream, step) = halves().await;
    let proxy = in_front_of(
        upstream,
        &two_and(&[("client[0].concurrency", "3"), ("proxy.workers", "3")]),
    )
    .await;
    let request = format!("GET / HTTP/1.1\r\n{HOST}X-Key: key-of-a\r\nConnection: close\r\n\r\n");
    let mut under_way = Vec::new();
    let mut ask_for_one_more = async || {
        let mut stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let is_served = read_head(&mut stream)
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200");
        under_way.extend(is_served.then_some(stream));
        is_served
    };
    for _ in 0..3 {
        assert!(ask_for_one_more().await);
    }
    let refused = raw(proxy.address, request.as_bytes(), LIMIT).await;
    assert_eq!(
        (status(&refused), field(&refused, "retry-after")),
        (429, vec!["1"]),
        "{refused}"
    );
    step.send_replace(1);
    crate::common::eventually(
        "the place of the answer that broke off is free",
        ask_for_one_more,
    )
    .await;
    step.send_replace(2);
    let mut whole = 0;
    for mut stream in under_way {
        let mut body = String::new();
        let read = tokio::time::timeout(LIMIT, stream.read_to_string(&mut body))
            .await
            .unwrap();
        whole += usize::from(read.is_ok() && body == "halfhalf");
    }
    assert_eq!(whole, 3);
    for _ in 0..4 {
        assert_eq!(
            status(&raw(proxy.address, request.as_bytes(), LIMIT).await),
            200
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_place_of_a_client_that_breaks_off_is_free_before_the_upstream_answers() {
    let (arrives, mut arrived) = tokio::sync::watch::channel(false);
    let upstream = scripted(move |_, mut stream| {
        let arrives = arrives.clone();
        async move {
            if read_head(&mut stream).await?.starts_with("GET /never") {
                arrives.send_replace(true);
                std::future::pending::<()>().await;
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await
        }
    })
    .await;
    let proxy = in_front_of(upstream, &two_and(&[("client[0].concurrency", "1")])).await;
    let request = |path: &str| {
        format!("GET {path} HTTP/1.1\r\n{HOST}X-Key: key-of-a\r\nConnection: close\r\n\r\n")
    };
    let plain = request("/");
    let mut waiting = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    waiting
        .write_all(request("/never").as_bytes())
        .await
        .unwrap();
    tokio::time::timeout(LIMIT, arrived.wait_for(|arrived| *arrived))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        status(&raw(proxy.address, plain.as_bytes(), LIMIT).await),
        429
    );
    socket2::SockRef::from(&waiting)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(waiting);
    crate::common::eventually("the place is free again", async || {
        status(&raw(proxy.address, plain.as_bytes(), LIMIT).await) == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_connection_holds_its_place() {
    let upstream = scripted(|_, mut stream| async move {
        let head = read_head(&mut stream).await?;
        if !head.to_ascii_lowercase().contains("\r\nupgrade: echo") {
            return stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await;
        }
        stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
            )
            .await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink())
            .await
            .map(drop)
    })
    .await;
    let proxy = in_front_of(upstream, &two_and(&[("client[0].concurrency", "1")])).await;
    let plain = format!("GET / HTTP/1.1\r\n{HOST}X-Key: key-of-a\r\nConnection: close\r\n\r\n");
    let mut tunnel = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let wish = format!(
        "GET / HTTP/1.1\r\n{HOST}X-Key: key-of-a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
    );
    tunnel.write_all(wish.as_bytes()).await.unwrap();
    assert!(
        read_head(&mut tunnel)
            .await
            .unwrap()
            .starts_with("HTTP/1.1 101")
    );
    for _ in 0..3 {
        assert_eq!(
            status(&raw(proxy.address, plain.as_bytes(), LIMIT).await),
            429
        );
    }
    drop(tunnel);
    crate::common::eventually("the place is free again", async || {
        status(&raw(proxy.address, plain.as_bytes(), LIMIT).await) == 200
    })
    .await;
}

/// An upstream that refuses everything.
async fn refusing() -> std::net::SocketAddr {
    scripted(|_, mut stream| async move {
        while !read_head(&mut stream).await?.is_empty() {
            let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 5\r\n\r\nnever";
            stream.write_all(answer.as_bytes()).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_password_the_clouds_refusal_is_no_word_on_the_password() {
    let upstream = refusing().await;
    let routes = [("route[0].prefix", "/plain"), ("route[0].inject", "false")];
    for (exhausted, by_key, by_basic) in [
        (None, 401, 502),
        (Some("relay"), 401, 401),
        (Some("bad_gateway"), 502, 502),
    ] {
        let mut more = routes.to_vec();
        more.extend(exhausted.map(|exhausted| ("retry.exhausted", exhausted)));
        let proxy = in_front_of(upstream, &two_and(&more)).await;
        for path in ["/", "/plain/x"] {
            let key = ask(
                &proxy,
                &format!("GET {path}"),
                &format!("{HOST}X-Key: key-of-a\r\n"),
            )
            .await;
            let basic = ask(&proxy, &format!("GET {path}"), &format!("{HOST}{BY_BASIC}")).await;
            // Where no token is added, what is refused is the client's own business; a password is none the less.
            let by_key = if path == "/" { by_key } else { 401 };
            assert_eq!(
                (status(&key), status(&basic)),
                (by_key, by_basic),
                "{exhausted:?} {path}: {basic}"
            );
            assert_eq!(
                field(&basic, "www-authenticate").len(),
                usize::from(by_basic == 401),
                "{basic}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_a_shared_account_are_kept_apart() {
    const FIELDS: &str = "Cache-Control: public, max-age=60, s-maxage=600\r\nSet-Cookie: session=1\r\nSet-Cookie: b=2\r\n";
    let (upstream, _) = upstream(FIELDS).await;
    let by_key = format!("{HOST}X-Key: key-of-a\r\n");
    let by_basic = format!("{HOST}{BY_BASIC}");
    let theirs = ["public, max-age=60, s-maxage=600"];
    let ours = ["max-age=60", "private"];
    let only_basic: Vec<_> = TWO[3..]
        .iter()
        .map(|(key, value)| (key.replace('1', "0"), *value))
        .collect();
    let only_basic: Vec<_> = only_basic
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    let passing = two_and(&[("upstream.cookies", "pass")]);
    for (clients, fields, sharing, cookies) in [
        (&[][..], HOST, &theirs[..], 2),
        (&[("upstream.cookies", "drop")], HOST, &theirs, 0),
        (&TWO, &by_key, &ours, 0),
        // One entry in a cache serves both.
        (&TWO, &by_basic, &ours, 0),
        (&only_basic, &by_basic, &theirs, 0),
        (&passing, &by_key, &ours, 2),
    ] {
        let proxy = in_front_of(upstream, clients).await;
        let answer = ask(&proxy, "GET /", fields).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert_eq!(field(&answer, "cache-control"), sharing, "{clients:?}");
        assert_eq!(field(&answer, "set-cookie").len(), cookies, "{clients:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_12_no_client_spends_or_mints_tokens_in_any_spelling_or_version() {
    let (upstream, seen) = upstream("").await;
    let more = [
        ("route[0].prefix", "/open"),
        ("route[0].strip_prefix", "true"),
        ("route[0].inject", "false"),
    ];
    let proxy = in_front_of(upstream, &two_and(&more)).await;
    let identity = Identity::new();
    let own = [
        "token.do",
        "refreshToken.do?grant_type=refresh_token&refresh_token=x",
        "authorize.do?response_type=code",
        "authorizeByJWT.do",
        "REFRESHTOKEN.DO",
        "refreshtoken.do;jsessionid=1",
        "to%6ben.do",
        "to%256Ben.do",
        "to%E2%84%AAen.do",
        "token.do%20",
        "token.do%3fx",
        "token.do%2523",
        "token.do./x",
        "x/..;/token.do",
    ];
    for path in own {
        for before in ["/api/", "/open/api/", "//", "/nd/api/"] {
            for speech in [Speech::Http11, Speech::Http2] {
                let mut client = web::Client::connect(speech, proxy.address, &identity).await;
                let request =
                    http::Request::post(format!("{before}{path}")).header("host", "localhost");
                let request = request
                    .header("x-key", "key-of-a")
                    .body(web::whole(""))
                    .unwrap();
                assert_eq!(
                    client.send(request).await.unwrap().status(),
                    403,
                    "{before}{path} {speech:?}"
                );
            }
        }
    }
    assert!(seen.lock().unwrap().is_empty(), "something went upstream");
    assert_eq!(
        status(
            &ask(
                &proxy,
                "GET /api/tokens.do",
                &format!("{HOST}X-Key: key-of-a\r\n")
            )
            .await
        ),
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_of_a_route_are_not_escaped_by_spelling_its_prefix_in_another_way() {
    let (upstream, seen) = upstream("").await;
    let proxy = in_front_of(
        upstream,
        &[("route[0].prefix", "/api"), ("route[0].deny", "/api/admin")],
    )
    .await;
    for (path, expected) in [
        ("/api/admin", 403),
        ("/%61pi/admin", 400),
        ("/API/admin", 400),
        ("//api/admin", 400),
        ("/x/../api/admin", 400),
        ("/api;x/admin", 400),
        ("/api%3fx", 400),
        ("/api/admin%23x", 403),
        ("/api/x", 200),
        ("/x/api/admin", 200),
    ] {
        assert_eq!(
            status(&ask(&proxy, &format!("GET {path}"), HOST).await),
            expected,
            "{path}"
        );
    }
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_hold_for_where_something_is_copied_or_moved_to_as_well() {
    let (upstream, seen) = upstream("").await;
    let rules = [
        ("route[0].prefix", "/dav"),
        ("route[0].deny", "/dav/secret"),
    ];
    let proxy = in_front_of(upstream, &rules).await;
    for (request, destination, expected) in [
        (
            "MOVE /dav/a",
            "Destination: http://localhost:8080/dav/secret/b",
            403,
        ),
        ("COPY /dav/a", "Destination: /dav/SECRET", 403),
        ("MOVE /dav/a", "Destination: /dav/x/../secret", 400),
        ("MOVE /dav/a", "Destination: //localhost/dav/secret", 400),
        ("MOVE /dav/a", "Destination: dav/secret", 400),
        (
            "MOVE /dav/a",
            "Destination: /dav/b\r\nDestination: /dav/secret",
            400,
        ),
        ("MOVE /elsewhere", "Destination: /dav/secret", 400),
        ("MOVE /dav/a", "Destination: /api/token.do", 403),
        (
            "MOVE /dav/a",
            "Destination: http://localhost:8080/dav/b",
            200,
        ),
        ("MOVE /dav/a", "Destination: /dav/b", 200),
        ("GET /dav/a", "Destination: Rome, in words", 200),
    ] {
        let answer = ask(
            &proxy,
            request,
            &format!("Host: localhost:8080\r\n{destination}\r\n"),
        )
        .await;
        assert_eq!(status(&answer), expected, "{request} {destination}");
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert!(
        seen[0].contains(&format!("destination: http://{upstream}/dav/b\r\n")),
        "{}",
        seen[0]
    );
}
