//! What operators see of the addresses of an upstream: `/status`, its text and page, metrics, and
//! which endpoint an error names.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::common::{
    Proxy, closed_address, eventually, get, in_front_of, issuer, post,
    process::Program,
    proxy, read_head, scripted, send, silent_upstream, text_at,
    upstream::{
        Request, RunningUpstream, Upstream, bytes, grant, ok, response, silence, unauthorized,
    },
};

async fn status(admin: SocketAddr) -> Value {
    serde_json::from_str(&text_at(admin, "/status").await).unwrap()
}

/// The first upstream in `/status`.
async fn upstream_status(admin: SocketAddr) -> Value {
    status(admin).await["upstreams"][0].clone()
}

/// A metric of an endpoint.
async fn metric(proxy: &Proxy, name: &str, endpoint: &str, more: &str) -> f64 {
    let series = format!("bearer_proxy_{name}{{endpoint=\"{endpoint}\"{more}}}");
    let text = text_at(proxy.admin, "/metrics").await;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in {text}"))
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_accepts_no_connection_is_shown_as_unreachable() {
    let good = Upstream::always(ok("ok")).unrecorded().start().await;
    let closed = closed_address();
    let origins = [good.origin(), format!("http://{closed}")];
    let (issuer, endpoints) = (issuer().await, origins.join(","));
    let proxy = proxy(&endpoints, &[("token.issuer", &issuer)]);
    proxy.ready().await;
    for (origin, address) in [(&origins[0], good.address), (&origins[1], closed)] {
        let label = format!(",address=\"{address}\"");
        assert_eq!(metric(&proxy, "endpoint_healthy", origin, "").await, 1.0);
        assert_eq!(
            metric(&proxy, "upstream_address_healthy", origin, &label).await,
            1.0
        );
    }
    let label = format!(",address=\"{closed}\"");
    eventually("the address is out", async || {
        assert_eq!(proxy.get("/").await.status(), 200);
        metric(&proxy, "upstream_address_healthy", &origins[1], &label).await == 0.0
    })
    .await;
    assert_eq!(
        metric(&proxy, "endpoint_healthy", &origins[0], "").await,
        1.0
    );
    assert_eq!(
        metric(&proxy, "endpoint_healthy", &origins[1], "").await,
        0.0
    );
    for (reason, count) in [("connect", 1.0), ("status", 0.0)] {
        let label = format!(",reason=\"{reason}\"");
        let ejections = metric(&proxy, "upstream_ejections_total", &origins[1], &label).await;
        assert_eq!(ejections, count, "{reason}");
    }
    let upstream = upstream_status(proxy.admin).await;
    let [first, second] = [0, 1].map(|endpoint| upstream["endpoints"][endpoint].clone());
    assert_eq!(
        (&first["healthy"], &second["healthy"]),
        (&json!(true), &json!(false))
    );
    let address = &first["addresses"][0];
    assert_eq!(address["address"], good.address.to_string());
    assert_eq!(
        (&address["state"], &address["reason"]),
        (&json!("in"), &Value::Null)
    );
    assert_eq!(address["weight_tenths"], 10);
    let address = &second["addresses"][0];
    assert_eq!(address["address"], closed.to_string());
    assert_eq!(
        (&address["state"], &address["reason"], &address["ejections"]),
        (&json!("unreachable"), &json!("connect"), &json!(1))
    );
    let page = text_at(proxy.admin, "/").await;
    let row = format!("<td>{closed}<td>unreachable<td>connect<td>");
    assert!(page.contains(&row), "{page}");
}

/// Another address keeps the requests, so that it can be ejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ejected_address_is_shown_with_the_end_of_its_ejection() {
    let good = Upstream::always(ok("ok")).unrecorded().start().await;
    let bad = Upstream::always(response("503 Service Unavailable", "", ""))
        .unrecorded()
        .start()
        .await;
    let more = format!("token.issuer = \"{}\"\n", issuer().await);
    let program = Program::new(&format!("{}\", \"{}", good.origin(), bad.origin()), &more);
    let _running = program.start_ready().await;
    let address =
        async || upstream_status(program.admin).await["endpoints"][1]["addresses"][0].clone();
    eventually("the address is out", async || {
        program.get("/").await;
        address().await["state"] == "failing"
    })
    .await;
    let address = address().await;
    assert_eq!(address["reason"], "status");
    let (since, until) = (&address["since"], &address["until"]);
    assert!(
        since.as_str().unwrap() < until.as_str().unwrap(),
        "{address}"
    );
    let (code, text, _) = program.run(&["status"]);
    assert_eq!(code, 0);
    let line = format!("  {}: failing (status) since 20", bad.address);
    assert!(text.contains(&line), "{text}");
    let line = format!("  {}: in, ", good.address);
    assert!(text.contains(&line), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_and_in_the_queue_are_shown() {
    let silent = silent_upstream().await;
    let limits = [
        ("upstream.max_requests", "1"),
        ("upstream.queue_timeout", "60s"),
        ("proxy.half_closed_timeout", "100ms"),
    ];
    let proxy = in_front_of(silent, &limits).await;
    let (address, origin) = (proxy.address, format!("http://{silent}"));
    let label = format!(",address=\"{silent}\"");
    let queue = "bearer_proxy_upstream_queue_length{upstream=\"default\"}";
    proxy.until(queue, 0.0).await;
    let mut clients = JoinSet::new();
    for _ in 0..3 {
        clients.spawn(async move { send(address, get("/")).await });
    }
    proxy.until(queue, 2.0).await;
    let in_flight = metric(&proxy, "upstream_requests_in_flight", &origin, &label).await;
    assert_eq!(in_flight, 1.0);
    let upstream = upstream_status(proxy.admin).await;
    assert_eq!(upstream["queue_length"], 2);
    assert_eq!(upstream["endpoints"][0]["addresses"][0]["in_flight"], 1);
    clients.shutdown().await;
    proxy.until(queue, 0.0).await;
    eventually("no request is in flight", async || {
        metric(&proxy, "upstream_requests_in_flight", &origin, &label).await == 0.0
    })
    .await;
}

/// The value of `Proxy-Status` for an error of this kind that names this server.
fn proxy_status(error: &str, origin: &str) -> String {
    format!("bearer-proxy; error={error}; next-hop=\"{origin}\"")
}

/// A POST is sent to one of them only, and its error names that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_names_the_endpoint_that_got_the_request() {
    let broken = async |reply| Upstream::always(reply).start().await;
    for (reply, error) in [
        (bytes("").close(), "connection_terminated"),
        (bytes("").hold(), "http_response_timeout"),
        (bytes("SMTP ready\r\n\r\n").close(), "http_protocol_error"),
    ] {
        let nodes = [broken(reply.clone()).await, broken(reply).await];
        let origins = nodes
            .iter()
            .map(RunningUpstream::origin)
            .collect::<Vec<_>>();
        let endpoints = origins.join(",");
        let issuer = issuer().await;
        let more = [
            ("token.issuer", issuer.as_str()),
            ("upstream.response_timeout", "200ms"),
        ];
        let proxy = proxy(&endpoints, &more);
        proxy.ready().await;
        for number in 0..4 {
            let path = format!("/{number}");
            let response = proxy.send(post(&path, "body")).await;
            let mut asked = nodes.iter().filter(|node| node.targets().contains(&path));
            let (asked, other) = (asked.next().unwrap(), asked.next());
            assert!(other.is_none(), "{error}");
            let body = String::from_utf8_lossy(response.body()).into_owned();
            assert_eq!(
                response.headers()["proxy-status"],
                proxy_status(error, &asked.origin()),
                "{body}"
            );
            assert!(body.contains(&asked.origin()), "{body}");
        }
    }
}

/// Where the proxy reads a body before it decides, and the body is cut short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_names_the_endpoint_whose_response_broke_off_while_it_was_judged() {
    let json = [
        ("retry.json.pointer", "/code"),
        ("retry.json.values", "401"),
    ];
    let cut = |head: &str, body: &str| {
        bytes(format!(
            "HTTP/1.1 {head}\r\nContent-Length: 100\r\n\r\n{body}"
        ))
        .close()
    };
    for reply in [
        cut("200 OK\r\nContent-Type: application/json", "{"),
        cut("200 OK\r\nContent-Type: text/html", " "),
    ] {
        let upstream = Upstream::always(reply).start().await;
        let proxy = in_front_of(upstream.address, &json).await;
        let response = proxy.get("/").await;
        assert_eq!(
            response.headers()["proxy-status"],
            proxy_status("connection_terminated", &upstream.origin()),
            "{response:?}"
        );
    }
}

/// A response that rejects the token is read while a newer token is awaited, and none comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_names_the_endpoint_whose_rejection_broke_off() {
    let calls = AtomicUsize::new(0);
    let issuer = Upstream::always(move |_: &Request| {
        if calls.fetch_add(1, Relaxed) == 0 {
            grant("token", 3600)
        } else {
            silence()
        }
    });
    let issuer = issuer.start().await.origin();
    let cut = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\ncut";
    let upstream = Upstream::always(move |request: &Request| match request.number {
        // It proves the token, so that the next rejection is verified before the refresh.
        0 => ok("accepted"),
        _ => bytes(cut).close(),
    });
    let upstream = upstream.start().await;
    let more = [("token.issuer", issuer.as_str()), ("token.wait", "500ms")];
    let proxy = proxy(&upstream.origin(), &more);
    proxy.ready().await;
    assert_eq!(proxy.get("/").await.status(), 200);
    let response = proxy.get("/").await;
    assert_eq!(
        response.headers()["proxy-status"],
        proxy_status("connection_terminated", &upstream.origin()),
        "{response:?}"
    );
}

/// No endpoint is at fault: a request that was refused, a client that did not send its body, a token
/// that no endpoint accepts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_no_endpoint_has_caused_names_none() {
    let upstream = Upstream::always(unauthorized("no")).start().await;
    let proxy = in_front_of(upstream.address, &[("retry.exhausted", "bad_gateway")]).await;
    for (request, error) in [
        (
            "GET / HTTP/1.1\r\nHost: other.example\r\n",
            "http_request_denied",
        ),
        (
            "GET /api/token.do HTTP/1.1\r\nHost: localhost\r\n",
            "http_request_denied",
        ),
        (
            "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx",
            "http_request_error",
        ),
        (
            "GET / HTTP/1.1\r\nHost: localhost\r\n",
            "http_protocol_error",
        ),
    ] {
        let request = format!("{request}Connection: close\r\n\r\n");
        let response = proxy.raw(&request).await;
        let line = format!("\r\nproxy-status: bearer-proxy; error={error}\r\n");
        assert!(response.to_ascii_lowercase().contains(&line), "{response}");
    }
}

/// A connection that was used before and is found dead is no error of its endpoint. Once it cannot
/// be replaced, the error is that of the new connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_connection_the_error_is_that_of_the_next_one() {
    let serves = scripted(|_, mut stream| async move {
        use tokio::io::AsyncWriteExt as _;
        if read_head(&mut stream).await?.starts_with("GET /garbage") {
            stream.write_all(b"garbage\r\n\r\n").await?;
        } else {
            let kept = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(kept).await?;
            read_head(&mut stream).await?;
        }
        Ok(())
    })
    .await;
    let proxy = in_front_of(serves, &[("proxy.workers", "1")]).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    // The pooled connection closes without a response; a new one gets garbage.
    let response = proxy.get("/garbage").await;
    assert_eq!(
        response.headers()["proxy-status"],
        proxy_status("http_protocol_error", &format!("http://{serves}"))
    );
}
