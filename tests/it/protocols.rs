//! Every HTTP version on either side. The proxy returns the same response as a direct connection.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::common::{
    LIMIT, Proxy, eventually, proxy,
    web::{Body, Client, Identity, Speech, serve, stream, whole},
};

const CLIENTS: [Speech; 6] = [
    Speech::Http10,
    Speech::Http10KeepAlive,
    Speech::Http11,
    Speech::Http2,
    Speech::Http11OverTls,
    Speech::Http2OverTls,
];
const UPSTREAMS: [Speech; 4] = [
    Speech::Http11,
    Speech::Http2,
    Speech::Http11OverTls,
    Speech::Http2OverTls,
];

fn file() -> Bytes {
    (0..100_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// A small cloud with an issuer, a file, and an echo that reports the received trailers.
async fn cloud(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let answer = Response::builder().header(header::CONTENT_TYPE, "application/octet-stream");
    let answer = match head.uri.path() {
        "/api/refreshToken.do" => {
            let grant = r#"{"access_token":"token","refresh_token":"next","expires_in":3600}"#;
            Response::builder()
                .header(header::CONTENT_TYPE, "application/json")
                .body(whole(grant))
        }
        "/file" if head.headers.contains_key(header::IF_NONE_MATCH) => answer
            .status(304)
            .header(header::ETAG, "\"1\"")
            .body(whole("")),
        "/file" if head.headers.contains_key(header::RANGE) => {
            let range = format!("bytes 100-199/{}", file().len());
            answer
                .status(206)
                .header(header::CONTENT_RANGE, range)
                .body(whole(file().slice(100..200)))
        }
        "/file" => {
            let answer = answer
                .header(header::ETAG, "\"1\"")
                .header(header::CONTENT_LENGTH, file().len());
            answer.body(whole(if head.method == "HEAD" {
                Bytes::new()
            } else {
                file()
            }))
        }
        "/nothing" => answer.status(204).body(whole("")),
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("abc"));
            trailers.insert(
                header::AUTHORIZATION,
                HeaderValue::from_static("never passed on"),
            );
            let frames = vec![Bytes::from_static(b"first,"), Bytes::from_static(b"second")];
            answer
                .header(header::TRAILER, "x-checksum, authorization")
                .body(stream(frames, Some(trailers)))
        }
        "/echo" => {
            let collected = body.collect().await.unwrap();
            let seen = |name| {
                collected
                    .trailers()
                    .and_then(|trailers| trailers.get(name))
                    .cloned()
            };
            let checksum = seen("x-checksum").unwrap_or(HeaderValue::from_static("none"));
            let stolen = seen("authorization").unwrap_or(HeaderValue::from_static("none"));
            answer
                .header("x-trailer-seen", checksum)
                .header("x-credential-seen", stolen)
                .body(whole(collected.to_bytes()))
        }
        other => answer.status(404).body(whole(other.to_owned())),
    };
    answer.unwrap()
}

/// The parts of a response that the tests compare.
#[derive(Debug, PartialEq)]
struct Seen {
    status: StatusCode,
    headers: Vec<(String, String)>,
    body: Bytes,
    checksum: Option<HeaderValue>,
}

async fn seen(response: Response<Incoming>) -> Seen {
    let (head, body) = response.into_parts();
    // Hop-by-hop fields, and fields that the proxy adds.
    let of_the_hop = |name: &str| {
        matches!(
            name,
            "connection" | "transfer-encoding" | "date" | "cache-control"
        )
    };
    let mut headers: Vec<_> = head
        .headers
        .iter()
        .filter(|(name, _)| !of_the_hop(name.as_str()))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    Seen {
        status: head.status,
        headers,
        checksum: trailers.get("x-checksum").cloned(),
        body: collected.to_bytes(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Get,
    Head,
    Post,
    ChunkedPost,
    Trailers,
    RequestTrailers,
    NotModified,
    NoContent,
    Range,
}

const CASES: [Case; 9] = [
    Case::Get,
    Case::Head,
    Case::Post,
    Case::ChunkedPost,
    Case::Trailers,
    Case::RequestTrailers,
    Case::NotModified,
    Case::NoContent,
    Case::Range,
];

fn request(case: Case, speech: Speech) -> Request<Body> {
    let million: Vec<Bytes> = (0..100_u8).map(|n| Bytes::from(vec![n; 10_000])).collect();
    let request = Request::builder().header(header::HOST, "localhost");
    let request = match speech {
        Speech::Http10KeepAlive => request.header(header::CONNECTION, "keep-alive"),
        _ => request,
    };
    let request = match case {
        Case::Get => request.uri("/file").body(whole("")),
        Case::Head => request.method("HEAD").uri("/file").body(whole("")),
        Case::Post => request
            .method("POST")
            .uri("/echo")
            .body(whole(million.concat())),
        Case::ChunkedPost => request
            .method("POST")
            .uri("/echo")
            .body(stream(million, None)),
        Case::Trailers => request
            .uri("/trailers")
            .header(header::TE, "trailers")
            .body(whole("")),
        Case::RequestTrailers => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("abc"));
            trailers.insert(header::AUTHORIZATION, HeaderValue::from_static("stolen"));
            let request = request
                .method("POST")
                .uri("/echo")
                .header(header::TRAILER, "x-checksum, authorization");
            request.body(stream(million, Some(trailers)))
        }
        Case::NotModified => request
            .uri("/file")
            .header(header::IF_NONE_MATCH, "\"1\"")
            .body(whole("")),
        Case::NoContent => request.uri("/nothing").body(whole("")),
        Case::Range => request
            .uri("/file")
            .header(header::RANGE, "bytes=100-199")
            .body(whole("")),
    };
    request.unwrap()
}

/// Starts a proxy with a plaintext listener and a TLS listener, in front of a cloud that uses the
/// protocol `upstream`.
async fn proxy_before(
    upstream: Speech,
    address: SocketAddr,
    folder: &std::path::Path,
    more: &[(&str, &str)],
) -> (Proxy, SocketAddr) {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let scheme = if upstream.is_tls() { "https" } else { "http" };
    let origin = format!("{scheme}://localhost:{}", address.port());
    let (ca, chain, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let mut given = vec![
        ("listener[0].address", "127.0.0.1:0"),
        ("listener[1].address", "127.0.0.1:0"),
        ("listener[1].tls.cert_file", &chain),
        ("listener[1].tls.key_file", &key),
        (
            "upstream.http2",
            if upstream == Speech::Http2 {
                "always"
            } else {
                "auto"
            },
        ),
    ];
    if upstream.is_tls() {
        given.push(("upstream.tls.ca_file", &ca));
    }
    if upstream.is_http2() {
        // The proxy calls the issuer over HTTP/1.1.
        let issuer = Box::leak(crate::common::issuer().await.into_boxed_str());
        given.push(("token.issuer", issuer));
    }
    given.extend_from_slice(more);
    let proxy = proxy(&origin, &given);
    proxy.ready().await;
    let over_tls = crate::common::tcp(&proxy.app.addresses()[1]);
    (proxy, over_tls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pair_of_protocols_brings_what_a_direct_connection_brings() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::new());
    identity.write(folder.path());
    let mut tried = 0;
    for upstream in UPSTREAMS {
        let address = serve(upstream, &identity, cloud).await;
        let (proxy, over_tls) = proxy_before(upstream, address, folder.path(), &[]).await;
        let mut direct = Client::connect(upstream, address, &identity).await;
        for speech in CLIENTS {
            let at = if speech.is_tls() {
                over_tls
            } else {
                proxy.address
            };
            let mut through = Client::connect(speech, at, &identity).await;
            for case in CASES {
                if speech == Speech::Http10 {
                    through = Client::connect(speech, at, &identity).await;
                }
                // HTTP/1.0 has no chunked encoding.
                if speech.is_http10() && matches!(case, Case::ChunkedPost | Case::RequestTrailers) {
                    continue;
                }
                let what = format!("{case:?} from {speech:?} to {upstream:?}");
                let mut expected = seen(direct.send(request(case, upstream)).await.unwrap()).await;
                expected
                    .headers
                    .retain(|(name, _)| name != "x-credential-seen");
                if speech.is_http10() {
                    expected.checksum = None;
                    expected.headers.retain(|(name, _)| name != "trailer");
                }
                let answer = tokio::time::timeout(LIMIT, through.send(request(case, speech))).await;
                let mut got = seen(answer.expect(&what).expect(&what)).await;
                if case == Case::RequestTrailers {
                    let credential = got
                        .headers
                        .iter()
                        .find(|(name, _)| name == "x-credential-seen")
                        .unwrap();
                    assert_eq!(credential.1, "none", "{what}");
                    let checksum = got
                        .headers
                        .iter()
                        .find(|(name, _)| name == "x-trailer-seen")
                        .unwrap();
                    assert_eq!(checksum.1, "abc", "{what}");
                }
                got.headers.retain(|(name, _)| name != "x-credential-seen");
                assert_eq!(got, expected, "{what}");
                tried += 1;
                // The connection closes at the end of the body.
                if speech == Speech::Http10KeepAlive && case == Case::Trailers {
                    through = Client::connect(speech, at, &identity).await;
                }
            }
        }
    }
    assert_eq!(tried, 4 * (2 * 7 + 4 * 9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_says_in_its_own_ways_what_a_request_says() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::new();
    identity.write(folder.path());
    // The upstream returns the request that it received.
    let echo = |request: Request<Incoming>| async move {
        if request.uri().path() == "/api/refreshToken.do" {
            return cloud(request).await;
        }
        let mut lines: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .filter(|line| !line.starts_with("cdn-loop"))
            .collect();
        lines.sort();
        Response::new(whole(format!(
            "{:?} {}\n{}",
            request.version(),
            request.uri(),
            lines.join("\n")
        )))
    };
    let address = serve(Speech::Http11, &identity, echo).await;
    let (proxy, _) = proxy_before(Speech::Http11, address, folder.path(), &[]).await;
    let mut client = Client::connect(Speech::Http2, proxy.address, &identity).await;
    let crumbs = Request::get("/a?b")
        .header(header::HOST, "localhost:8080")
        .header(header::COOKIE, "a=1")
        .header(header::COOKIE, "b=2")
        .header(header::AUTHORIZATION, "mine")
        .body(whole(""))
        .unwrap();
    let answer = seen(client.send(crumbs).await.unwrap()).await;
    let words = String::from_utf8(answer.body.to_vec()).unwrap();
    let expected = format!(
        "HTTP/1.1 /a?b\nauthorization: Bearer token\ncookie: a=1; b=2\nhost: localhost:{}\nx-forwarded-for: \
         127.0.0.1\nx-forwarded-host: localhost:8080\nx-forwarded-proto: http",
        address.port()
    );
    assert_eq!(words, expected);
    // The proxy checks the host and the origin of an HTTP/2 request.
    let foreign = Request::get("/")
        .header(header::HOST, "evil.example")
        .body(whole(""))
        .unwrap();
    assert_eq!(client.send(foreign).await.unwrap().status(), 421);
    let origin = Request::get("/")
        .header(header::HOST, "localhost")
        .header(header::ORIGIN, "http://evil.example");
    assert_eq!(
        client
            .send(origin.body(whole("")).unwrap())
            .await
            .unwrap()
            .status(),
        403
    );

    let address = serve(Speech::Http2, &identity, echo).await;
    let (proxy, _) = proxy_before(Speech::Http2, address, folder.path(), &[]).await;
    let mut client = Client::connect(Speech::Http11, proxy.address, &identity).await;
    let request = Request::get("/a?b")
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "x-hop");
    let answer = seen(
        client
            .send(request.header("x-hop", "1").body(whole("")).unwrap())
            .await
            .unwrap(),
    )
    .await;
    let words = String::from_utf8(answer.body.to_vec()).unwrap();
    let expected = format!(
        "HTTP/2.0 http://localhost:{}/a?b\nauthorization: Bearer token-",
        address.port()
    );
    assert!(words.starts_with(&expected), "{words}");
    assert!(!words.contains("x-hop"), "{words}");
}

/// Data flows in both directions at the same time, as in gRPC streams. Trailers with a status end
/// the response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_flow_both_ways_at_once_over_http2() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::new();
    identity.write(folder.path());
    // The upstream responds immediately and returns each piece when it arrives.
    let echo = |request: Request<Incoming>| async move {
        let pieces = futures_util::stream::unfold(request.into_body(), |mut body| async move {
            let frame = body.frame().await?;
            Some((Ok(frame.unwrap()), body))
        });
        let status = async {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("5"));
            Ok(hyper::body::Frame::trailers(trailers))
        };
        let body = http_body_util::StreamBody::new(futures_util::StreamExt::chain(
            pieces,
            futures_util::stream::once(status),
        ));
        Response::builder()
            .header(header::CONTENT_TYPE, "application/grpc")
            .body(body.boxed_unsync())
            .unwrap()
    };
    let address = serve(Speech::Http2, &identity, echo).await;
    let (proxy, _) = proxy_before(Speech::Http2, address, folder.path(), &[]).await;
    let mut client = Client::connect(Speech::Http2, proxy.address, &identity).await;
    let (pieces, taken) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let body = futures_util::stream::unfold(taken, |mut taken| async move {
        taken
            .recv()
            .await
            .map(|piece| (Ok(hyper::body::Frame::data(piece)), taken))
    });
    let request = Request::post("/service/method")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(http_body_util::StreamBody::new(body).boxed_unsync())
        .unwrap();
    pieces.send(Bytes::from_static(b"0")).unwrap();
    let mut answer = client.send(request).await.unwrap().into_body();
    for n in 0..50 {
        let back = tokio::time::timeout(LIMIT, answer.frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(
            back.into_data().unwrap(),
            n.to_string(),
            "each piece returns before the client sends the next"
        );
        if n < 49 {
            pieces.send(Bytes::from((n + 1).to_string())).unwrap();
        }
    }
    drop(pieces);
    let trailers = answer
        .frame()
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    assert_eq!(trailers["grpc-status"], "5");
    assert!(answer.frame().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_client_is_told_to_leave_and_what_is_under_way_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::new();
    identity.write(folder.path());
    let (begun, release) = (
        Arc::new(tokio::sync::Notify::new()),
        Arc::new(tokio::sync::Notify::new()),
    );
    let (tell, wait) = (Arc::clone(&begun), Arc::clone(&release));
    let slow = move |request: Request<Incoming>| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        async move {
            if request.uri().path() == "/file" {
                tell.notify_one();
                wait.notified().await;
            }
            cloud(request).await
        }
    };
    let address = serve(Speech::Http11, &identity, slow).await;
    let (proxy, _) = proxy_before(
        Speech::Http11,
        address,
        folder.path(),
        &[("proxy.drain_delay", "0s")],
    )
    .await;
    let mut client = Client::connect(Speech::Http2, proxy.address, &identity).await;
    let mut another = client.another();
    let answering = tokio::spawn(async move {
        seen(
            client
                .send(request(Case::Get, Speech::Http2))
                .await
                .unwrap(),
        )
        .await
    });
    begun.notified().await;
    let draining = tokio::spawn(proxy.app.shut_down());
    eventually("the proxy accepts no new requests", async || {
        another
            .send(request(Case::NoContent, Speech::Http2))
            .await
            .is_err()
    })
    .await;
    release.notify_one();
    assert_eq!(answering.await.unwrap().body, file());
    tokio::time::timeout(Duration::from_secs(10), draining)
        .await
        .expect("the connection closes in time")
        .unwrap();
}

/// The client opens a stream as soon as the previous one has ended, so that the connection is never
/// idle for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_http2_client_does_not_delay_the_shutdown() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::new();
    identity.write(folder.path());
    let address = serve(Speech::Http11, &identity, cloud).await;
    let (proxy, _) = proxy_before(
        Speech::Http11,
        address,
        folder.path(),
        // Longer than the test may take.
        &[("proxy.drain_timeout", "10m")],
    )
    .await;
    let mut client = Client::connect(Speech::Http2, proxy.address, &identity).await;
    let busy = tokio::spawn(async move {
        let next = || request(Case::NoContent, Speech::Http2);
        while let Ok(response) = client.send(next()).await {
            seen(response).await;
        }
    });
    proxy.until_open(1).await;
    tokio::time::timeout(LIMIT, proxy.app.shut_down())
        .await
        .expect("the client gets GOAWAY");
    busy.await.unwrap();
}

/// The upstream reads a body of unknown length and its trailers, and refuses the request by a
/// status or by JSON. The proxy sends the request again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_stream_is_sent_again_with_its_trailers_between_any_protocols() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::new();
    identity.write(folder.path());
    let issuer = crate::common::issuer().await;
    let frames: Vec<Bytes> = (0..30_u8).map(|n| Bytes::from(vec![n; 10_000])).collect();
    let checksum = HeaderMap::from_iter([(
        header::HeaderName::from_static("x-checksum"),
        "abc".parse().unwrap(),
    )]);
    for (upstream, speech) in UPSTREAMS
        .into_iter()
        .flat_map(|upstream| CLIENTS.map(|speech| (upstream, speech)))
    {
        if speech.is_http10() {
            continue;
        }
        for by_json in [false, true] {
            let refused = Arc::new(Mutex::new(None));
            let refusing = move |request: Request<Incoming>| {
                let refused = Arc::clone(&refused);
                async move {
                    if request.uri().path() != "/refusing" {
                        return cloud(request).await;
                    }
                    let token = request.headers()[header::AUTHORIZATION].clone();
                    let is_bad =
                        *refused.lock().unwrap().get_or_insert_with(|| token.clone()) == token;
                    let body = request.into_body().collect().await.unwrap();
                    let trailers = body.trailers().cloned();
                    let answer =
                        Response::builder().header(header::CONTENT_TYPE, "application/json");
                    match (is_bad, by_json) {
                        (true, false) => answer.status(401).body(whole("no")).unwrap(),
                        (true, true) => answer.body(whole(r#"{"code":401}"#)).unwrap(),
                        (false, _) => {
                            let answer = answer.header(header::TRAILER, "x-checksum");
                            answer
                                .body(stream(vec![body.to_bytes()], trailers))
                                .unwrap()
                        }
                    }
                }
            };
            let address = serve(upstream, &identity, refusing).await;
            let mut more = vec![];
            if by_json {
                more.extend([
                    ("retry.json.pointer", "/code"),
                    ("retry.json.values", "401"),
                ]);
            }
            if !upstream.is_http2() {
                more.push(("token.issuer", &issuer));
            }
            let (proxy, over_tls) = proxy_before(upstream, address, folder.path(), &more).await;
            let at = if speech.is_tls() {
                over_tls
            } else {
                proxy.address
            };
            let mut client = Client::connect(speech, at, &identity).await;
            let request = Request::put("/refusing")
                .header(header::HOST, "localhost")
                .header(header::TE, "trailers");
            let request = request.header(header::TRAILER, "x-checksum");
            let answer = client.send(
                request
                    .body(stream(frames.clone(), Some(checksum.clone())))
                    .unwrap(),
            );
            let what = format!("{speech:?} to {upstream:?}, by JSON: {by_json}");
            let answer = tokio::time::timeout(LIMIT, answer)
                .await
                .expect(&what)
                .expect(&what);
            let status = answer.status();
            let body = answer.into_body().collect().await.expect(&what);
            assert_eq!(
                (status.as_u16(), body.trailers()),
                (200, Some(&checksum)),
                "{what}"
            );
            assert_eq!(body.to_bytes(), frames.concat(), "{what}");
            let accepted =
                r#"bearer_proxy_retries_total{reason="unauthorized",outcome="accepted"}"#;
            assert_eq!(proxy.metric(accepted).await, 1.0, "{what}");
        }
    }
}

/// Responses that the proxy reads before it forwards them: JSON that may be a refusal, and a
/// refusal that a new token does not resolve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_read_ahead_keep_their_trailers() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::new();
    identity.write(folder.path());
    let issuer = crate::common::issuer().await;
    let checksum = HeaderMap::from_iter([(
        header::HeaderName::from_static("x-checksum"),
        "abc".parse().unwrap(),
    )]);
    for (upstream, speech) in [
        (Speech::Http11, Speech::Http11),
        (Speech::Http2OverTls, Speech::Http2),
    ] {
        let sent = checksum.clone();
        let answering = move |request: Request<Incoming>| {
            let sent = sent.clone();
            async move {
                let status = match request.uri().path() {
                    "/json" => 200,
                    "/refused" => 401,
                    _ => return cloud(request).await,
                };
                let answer = Response::builder()
                    .status(status)
                    .header(header::TRAILER, "x-checksum");
                let answer = answer.header(header::CONTENT_TYPE, "application/json");
                answer
                    .body(stream(
                        vec![Bytes::from_static(b"{\"code\":0}")],
                        Some(sent),
                    ))
                    .unwrap()
            }
        };
        let address = serve(upstream, &identity, answering).await;
        let mut more = vec![
            ("retry.json.pointer", "/code"),
            ("retry.json.values", "401"),
        ];
        if !upstream.is_http2() {
            more.push(("token.issuer", &issuer));
        }
        let (proxy, _) = proxy_before(upstream, address, folder.path(), &more).await;
        for (path, status) in [("/json", 200), ("/refused", 401)] {
            let mut client = Client::connect(speech, proxy.address, &identity).await;
            let request = Request::get(path)
                .header(header::HOST, "localhost")
                .header(header::TE, "trailers");
            let answer = client.send(request.body(stream(Vec::new(), None)).unwrap());
            let answer = tokio::time::timeout(LIMIT, answer)
                .await
                .expect(path)
                .expect(path);
            assert_eq!(answer.status(), status);
            let body = answer.into_body().collect().await.expect(path);
            assert_eq!(body.trailers(), Some(&checksum), "{path}, {speech:?}");
            assert_eq!(body.to_bytes(), &b"{\"code\":0}"[..]);
        }
    }
}
