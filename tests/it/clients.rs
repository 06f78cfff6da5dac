//! Client authentication and authorization: web pages, programs, and clients by name.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{
    Client, LIMIT, connect, eventually, get, in_front_of, raw, read_head, read_to_close, scripted,
    status,
    upstream::{self, Upstream, values},
    web::{self, Identity, Speech},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_10_foreign_pages_and_rebound_names_reach_nothing_in_any_version() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream
        .proxy(&[("proxy.allowed_hosts", "proxy.lan")])
        .await;
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
            let (response, body) = client
                .send(request.body(web::whole("")).unwrap())
                .await
                .unwrap()
                .into_parts();
            assert_eq!(response.status, *expected, "{host} {fields:?} {speech:?}");
            let words = http_body_util::BodyExt::collect(body)
                .await
                .unwrap()
                .to_bytes();
            let words = String::from_utf8_lossy(&words);
            assert!(words.contains(key), "{host} {fields:?}: {words}");
            assert!(!response.headers.contains_key("access-control-allow-origin"));
        }
    }
    assert!(upstream.count() == 0, "a refused request was forwarded");
    for fields in [
        "Host: proxy.lan\r\n",
        "Host: a.localhost:1\r\nOrigin: http://a.localhost:1\r\nSec-Fetch-Site: same-origin\r\n",
    ] {
        assert_eq!(proxy.status("GET /", fields).await, 200, "{fields}");
    }
}

/// A container's 0.0.0.0 is published on localhost, where web pages can reach it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_client_authentication_pages_are_still_refused() {
    let upstream = Upstream::new().start().await;
    let more = [
        ("proxy.listen", "0.0.0.0:0"),
        ("proxy.allow_unauthenticated", "true"),
    ];
    let mut proxy = upstream.proxy(&more).await;
    proxy.address.set_ip([127, 0, 0, 1].into());
    for (fields, expected) in [
        ("Host: evil.example\r\n", 421),
        ("Host: 0.0.0.0\r\n", 421),
        ("Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: same-site\r\n", 403),
        ("Host: localhost\r\n", 200),
        ("Host: 192.0.2.1\r\n", 200),
    ] {
        assert_eq!(proxy.status("GET /", fields).await, expected, "{fields:?}");
    }
    assert_eq!(upstream.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_allowed_origins_may_send_requests_and_read_responses() {
    let plain = Upstream::new().start().await;
    let more = [
        ("proxy.allowed_origins", "https://app.example.com"),
        ("proxy.required_header", "x-app"),
    ];
    let proxy = plain.proxy(&more).await;
    let page =
        "Host: localhost\r\nOrigin: https://app.example.com\r\nSec-Fetch-Site: cross-site\r\n";
    // The browser's preflight cannot carry credentials.
    let asking = format!(
        "{page}Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-app\r\n"
    );
    let response = proxy.ask("OPTIONS /x", &asking).await;
    assert_eq!(status(&response), 204, "{response}");
    assert_eq!(
        values(&response, "access-control-allow-origin"),
        ["https://app.example.com"]
    );
    assert_eq!(values(&response, "access-control-allow-methods"), ["PUT"]);
    assert_eq!(values(&response, "access-control-allow-headers"), ["x-app"]);
    assert!(values(&response, "vary").contains(&"Origin"), "{response}");
    assert_eq!(plain.count(), 0, "a preflight was forwarded");

    let response = proxy.ask("PUT /x", &format!("{page}X-App: 1\r\n")).await;
    assert_eq!(status(&response), 200, "{response}");
    assert_eq!(
        values(&response, "access-control-allow-origin"),
        ["https://app.example.com"]
    );
    assert_eq!(values(&response, "vary"), ["Origin"]);
    // The page can read the proxy's own responses as well; other clients get no such fields.
    let refused = proxy.ask("PUT /x", page).await;
    assert_eq!(
        (
            status(&refused),
            values(&refused, "access-control-allow-origin").len()
        ),
        (403, 1),
        "{refused}"
    );
    let program = proxy.ask("GET /x", "Host: localhost\r\nX-App: 1\r\n").await;
    assert_eq!(
        (
            status(&program),
            values(&program, "access-control-allow-origin").len()
        ),
        (200, 0),
        "{program}"
    );
    // OPTIONS that is not a preflight is forwarded.
    assert_eq!(
        proxy
            .status("OPTIONS /x", &format!("{page}X-App: 1\r\n"))
            .await,
        200
    );
    assert_eq!(plain.count(), 3);

    let own = "Access-Control-Allow-Origin: https://other.example\r\nVary: Accept\r\n";
    let own = Upstream::always(upstream::response("200 OK", own, "ok"));
    let proxy = own.start().await.proxy(&more).await;
    let response = proxy.ask("GET /x", &format!("{page}X-App: 1\r\n")).await;
    assert_eq!(
        values(&response, "access-control-allow-origin"),
        ["https://other.example"]
    );
    assert_eq!(values(&response, "vary"), ["Accept"]);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_required_header_is_checked_over_tcp_and_not_forwarded() {
    let upstream = Upstream::new().start().await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("proxy.sock");
    let listen = format!("127.0.0.1:0,unix:{}", socket.display());
    let proxy = upstream
        .proxy(&[
            ("proxy.listen", &listen),
            ("proxy.required_header", "X-App"),
        ])
        .await;
    let refused = proxy.ask("GET /", "Host: localhost\r\n").await;
    assert_eq!(status(&refused), 403);
    assert!(refused.contains("proxy.required_header"), "{refused}");
    assert_eq!(proxy.rejected("required_header").await, 1.0);
    assert!(upstream.count() == 0);
    assert_eq!(
        proxy
            .status("GET /", "Host: localhost\r\nX-App: anything\r\n")
            .await,
        200
    );
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let response = read_to_close(&mut stream).await;
    assert_eq!(status(&response), 200, "{response}");
    let requests = upstream.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert!(request.fields("x-app").is_empty(), "{}", request.head);
    }
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
async fn clients_are_identified_by_their_credentials_and_others_get_401() {
    let upstream = Upstream::new().start().await;
    let more = [("route[0].prefix", "/plain"), ("route[0].inject", "false")];
    let proxy = upstream.proxy(&two_and(&more)).await;
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
        // Authentication precedes authorization.
        (HOST.to_owned(), "/api/token.do", 401),
        (by_key.clone(), "/api/token.do", 403),
    ] {
        let response = proxy.ask(&format!("GET {path}"), &fields).await;
        assert_eq!(status(&response), expected, "{fields:?}: {response}");
        let challenges = if expected == 401 {
            vec![
                r#"ApiKey realm="bearer-proxy", header="x-key""#,
                r#"Basic realm="bearer-proxy", charset="UTF-8""#,
            ]
        } else {
            Vec::new()
        };
        assert_eq!(values(&response, "www-authenticate"), challenges);
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
    assert_eq!(proxy.rejected("unauthenticated").await, 4.0);
    let requests = upstream.requests();
    assert_eq!(requests.len(), 4);
    for request in requests {
        let head = request.head.to_ascii_lowercase();
        assert!(!head.contains("key") && !head.contains("basic"), "{head}");
        let has_token = request.token().starts_with("token");
        assert_eq!(has_token, request.path() != "/plain", "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_may_carry_several_clients_and_no_key_is_forwarded_in_trailers() {
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
            let response = client.send(request).await.unwrap();
            assert_eq!(response.status(), expected, "{speech:?} {name}: {value}");
            http_body_util::BodyExt::collect(response.into_body())
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
async fn where_every_client_needs_a_key_hosts_and_origins_are_not_checked() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&TWO[..3]).await;
    let foreign =
        "Host: any.example\r\nOrigin: https://any.example\r\nSec-Fetch-Site: cross-site\r\n";
    assert_eq!(
        proxy
            .status("GET /", &format!("{foreign}X-Key: key-of-a\r\n"))
            .await,
        200
    );
    assert_eq!(proxy.status("GET /", foreign).await, 401);
    let preflight = format!("{foreign}Access-Control-Request-Method: GET\r\n");
    assert_eq!(proxy.status("OPTIONS /", &preflight).await, 401);
    assert_eq!(proxy.status("GET /", "X-Key: key-of-a\r\n").await, 400);
    let admin = raw(
        proxy.admin,
        b"GET /healthz HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n\r\n",
        LIMIT,
    )
    .await;
    assert_eq!(status(&admin), 421, "{admin}");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_a_file_is_replaced_without_a_restart_also_on_open_connections() {
    let upstream = Upstream::new().start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "first\n").unwrap();
    let client = [
        ("client[0].name", "a"),
        ("client[0].header", "X-Key"),
        ("client[0].key_file", file.to_str().unwrap()),
    ];
    let proxy = upstream.proxy(&client).await;
    let with_key = |key: &str| {
        let mut request = get("/");
        request.headers_mut().insert("x-key", key.parse().unwrap());
        request
    };
    let mut keep_alive = Client::connect(proxy.address).await;
    assert_eq!(
        keep_alive.send(with_key("first")).await.unwrap().status(),
        200
    );
    std::fs::write(&file, "second\n").unwrap();
    eventually("the new key is accepted", async || {
        proxy.send(with_key("second")).await.status() == 200
    })
    .await;
    assert_eq!(
        keep_alive.send(with_key("first")).await.unwrap().status(),
        401
    );
    assert_eq!(
        keep_alive.send(with_key("second")).await.unwrap().status(),
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_needs_no_key_and_a_key_does_not_help_from_elsewhere() {
    let upstream = Upstream::new().start().await;
    let near = [
        ("client[0].name", "near"),
        ("client[0].networks", "127.0.0.0/8"),
    ];
    let proxy = upstream.proxy(&near).await;
    assert_eq!(proxy.status("GET /", HOST).await, 200);
    let far = [("client[0].networks", "192.0.2.0/24,2001:db8::/32")];
    let proxy = upstream.proxy(&two_and(&far)[..]).await;
    assert_eq!(
        proxy
            .status("GET /", &format!("{HOST}X-Key: key-of-a\r\n"))
            .await,
        401,
        "the credentials of b might help"
    );
    let proxy = upstream.proxy(&[&TWO[..3], &far[..]].concat()).await;
    let response = proxy
        .ask("GET /", &format!("{HOST}X-Key: key-of-a\r\n"))
        .await;
    assert_eq!(
        (
            status(&response),
            values(&response, "www-authenticate").len()
        ),
        (403, 0),
        "{response}"
    );
    assert_eq!(proxy.rejected("stranger").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_rules_of_its_own_on_the_path_that_is_forwarded() {
    let upstream = Upstream::new().start().await;
    let more = [
        ("client[0].allow", "/api"),
        ("client[0].deny", "DELETE /,/api/admin"),
        ("route[0].prefix", "/files"),
        ("route[0].strip_prefix", "true"),
    ];
    let proxy = upstream.proxy(&two_and(&more)).await;
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
        assert_eq!(proxy.status(request, fields).await, expected, "{request}");
    }
    assert_eq!(upstream.count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_holds_over_all_workers() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream
        .proxy(&two_and(&[
            ("client[0].rate", "5/h"),
            ("proxy.workers", "4"),
        ]))
        .await;
    let mut responses = Vec::new();
    for _ in 0..12 {
        responses.push(
            proxy
                .ask("GET /", &format!("{HOST}X-Key: key-of-a\r\n"))
                .await,
        );
    }
    let statuses: Vec<u16> = responses.iter().map(|response| status(response)).collect();
    assert_eq!(statuses, [vec![200; 5], vec![429; 7]].concat());
    let retry_after: u64 = values(&responses[11], "retry-after")[0].parse().unwrap();
    assert!((600..=720).contains(&retry_after), "{retry_after}");
    assert_eq!(
        proxy.status("GET /", &format!("{HOST}{BY_BASIC}")).await,
        200,
        "another client"
    );
    assert_eq!(upstream.count(), 6);
    assert_eq!(
        proxy
            .metric("bearer_proxy_client_requests_total{client=\"a\",code=\"429\"}")
            .await,
        7.0
    );
    assert_eq!(proxy.rejected("rate").await, 7.0);
}

/// An upstream that sends half a response and waits: in the first step it closes its third connection, in the second it
/// sends the rest on the others.
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
async fn a_concurrency_slot_is_held_to_the_end_of_the_response_and_freed_however_it_ends() {
    let (upstream, step) = halves().await;
    let proxy = in_front_of(
        upstream,
        &two_and(&[("client[0].concurrency", "3"), ("proxy.workers", "3")]),
    )
    .await;
    let request = format!("GET / HTTP/1.1\r\n{HOST}X-Key: key-of-a\r\nConnection: close\r\n\r\n");
    let mut in_flight = Vec::new();
    let mut send_one_more = async || {
        let mut stream = connect(proxy.address, &request).await;
        let is_served = read_head(&mut stream)
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200");
        in_flight.extend(is_served.then_some(stream));
        is_served
    };
    for _ in 0..3 {
        assert!(send_one_more().await);
    }
    let refused = proxy.raw(&request).await;
    assert_eq!(
        (status(&refused), values(&refused, "retry-after")),
        (429, vec!["1"]),
        "{refused}"
    );
    step.send_replace(1);
    eventually("the slot of the truncated response is free", send_one_more).await;
    step.send_replace(2);
    let mut whole = 0;
    for mut stream in in_flight {
        let mut body = String::new();
        let read = tokio::time::timeout(LIMIT, stream.read_to_string(&mut body))
            .await
            .unwrap();
        whole += usize::from(read.is_ok() && body == "halfhalf");
    }
    assert_eq!(whole, 3);
    for _ in 0..4 {
        assert_eq!(status(&proxy.raw(&request).await), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_of_a_client_that_disconnects_is_free_before_the_upstream_responds() {
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
    let waiting = connect(proxy.address, request("/never")).await;
    tokio::time::timeout(LIMIT, arrived.wait_for(|arrived| *arrived))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status(&proxy.raw(&plain).await), 429);
    socket2::SockRef::from(&waiting)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(waiting);
    eventually("the slot is free again", async || {
        status(&proxy.raw(&plain).await) == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_connection_holds_its_slot() {
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
    let upgrade = format!(
        "GET / HTTP/1.1\r\n{HOST}X-Key: key-of-a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
    );
    let mut tunnel = connect(proxy.address, upgrade).await;
    assert!(
        read_head(&mut tunnel)
            .await
            .unwrap()
            .starts_with("HTTP/1.1 101")
    );
    for _ in 0..3 {
        assert_eq!(status(&proxy.raw(&plain).await), 429);
    }
    drop(tunnel);
    eventually("the slot is free again", async || {
        status(&proxy.raw(&plain).await) == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_401_of_the_upstream_is_hidden_from_clients_that_use_basic() {
    let refused = upstream::response("401 Unauthorized", "WWW-Authenticate: Basic\r\n", "never");
    let upstream = Upstream::always(refused).start().await;
    let routes = [("route[0].prefix", "/plain"), ("route[0].inject", "false")];
    for (exhausted, by_key, by_basic) in [
        (None, 401, 502),
        (Some("relay"), 401, 401),
        (Some("bad_gateway"), 502, 502),
    ] {
        let mut more = routes.to_vec();
        more.extend(exhausted.map(|exhausted| ("retry.exhausted", exhausted)));
        let proxy = upstream.proxy(&two_and(&more)).await;
        for path in ["/", "/plain/x"] {
            let key = proxy
                .ask(
                    &format!("GET {path}"),
                    &format!("{HOST}X-Key: key-of-a\r\n"),
                )
                .await;
            let basic = proxy
                .ask(&format!("GET {path}"), &format!("{HOST}{BY_BASIC}"))
                .await;
            // Without a token the upstream judges the client's own credentials, but a browser would still ask for a password.
            let by_key = if path == "/" { by_key } else { 401 };
            assert_eq!(
                (status(&key), status(&basic)),
                (by_key, by_basic),
                "{exhausted:?} {path}: {basic}"
            );
            assert_eq!(
                values(&basic, "www-authenticate").len(),
                usize::from(by_basic == 401),
                "{basic}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_of_a_shared_account_are_private() {
    const FIELDS: &str = "Cache-Control: public, max-age=60, s-maxage=600\r\nSet-Cookie: session=1\r\nSet-Cookie: b=2\r\n";
    let upstream = Upstream::always(upstream::response("200 OK", FIELDS, "ok"))
        .start()
        .await;
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
        // A cache uses one entry for both clients.
        (&TWO, &by_basic, &ours, 0),
        (&only_basic, &by_basic, &theirs, 0),
        (&passing, &by_key, &ours, 2),
    ] {
        let proxy = upstream.proxy(clients).await;
        let response = proxy.ask("GET /", fields).await;
        assert_eq!(status(&response), 200, "{response}");
        assert_eq!(values(&response, "cache-control"), sharing, "{clients:?}");
        assert_eq!(
            values(&response, "set-cookie").len(),
            cookies,
            "{clients:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_12_no_client_reaches_the_issuers_paths_in_any_spelling_or_version() {
    let upstream = Upstream::new().start().await;
    let more = [
        ("route[0].prefix", "/open"),
        ("route[0].strip_prefix", "true"),
        ("route[0].inject", "false"),
    ];
    let proxy = upstream.proxy(&two_and(&more)).await;
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
    assert!(upstream.count() == 0, "a refused request was forwarded");
    assert_eq!(
        proxy
            .status("GET /api/tokens.do", &format!("{HOST}X-Key: key-of-a\r\n"))
            .await,
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_of_a_route_hold_for_every_spelling_of_its_prefix() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream
        .proxy(&[("route[0].prefix", "/api"), ("route[0].deny", "/api/admin")])
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
            proxy.status(&format!("GET {path}"), HOST).await,
            expected,
            "{path}"
        );
    }
    assert_eq!(upstream.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_apply_to_the_destination_of_copy_and_move_as_well() {
    let upstream = Upstream::new().start().await;
    let rules = [
        ("route[0].prefix", "/dav"),
        ("route[0].deny", "/dav/secret"),
    ];
    let proxy = upstream.proxy(&rules).await;
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
        let response = proxy
            .ask(
                request,
                &format!("Host: localhost:8080\r\n{destination}\r\n"),
            )
            .await;
        assert_eq!(status(&response), expected, "{request} {destination}");
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(
        requests[0].fields("destination"),
        [format!("{}/dav/b", upstream.origin())]
    );
}
