//! Rewriting of absolute URLs in heads and JSON, and authorization failures in JSON.

use std::sync::Arc;

use bearer_proxy::{base::clock::Simulated, cloud::Cloud};
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{
    LIMIT, Proxy, connect, eventually, get, post, read_head, scripted, send, simulated_cloud, toml,
    upstream::{RunningUpstream, Upstream, grant, response},
};

/// A proxy whose `proxy.toml` has these lines besides the usual ones.
async fn configured(origin: &str, more: &str) -> Proxy {
    toml::proxy_in(tempfile::tempdir().unwrap().path(), origin, more).await
}

async fn cloud() -> Cloud {
    simulated_cloud(Arc::new(Simulated::new())).await
}

fn json(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).unwrap_or_else(|error| panic!("{error}: {response:?}"))
}

/// The lines that route the document host through the proxy.
fn two_steps(documents: &str, inject: Option<bool>) -> String {
    let inject = inject
        .map(|inject| format!("inject = {inject}\n"))
        .unwrap_or_default();
    format!(
        "[upstreams.documents]\nendpoints = [\"{documents}\"]\n\
         [[route]]\nprefix = \"/_document\"\nupstream = \"documents\"\nstrip_prefix = true\n{inject}\
         [[rewrite]]\nfrom = \"{documents}\"\nto = \"/_document\"\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_and_downloads_in_two_steps_work_through_the_proxy_alone() {
    for inject in [None, Some(true)] {
        let cloud = cloud().await;
        let proxy = configured(cloud.origin(), &two_steps(cloud.document_origin(), inject)).await;
        let content: Vec<u8> = (0..300_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
        // A token that is dead by then is renewed in the first step.
        cloud.revoke_access_tokens();
        let announced = json(
            &proxy
                .get("/api/file/preUploadFile.do?parent_id=1&name=a")
                .await,
        );
        let url = announced["url"].as_str().unwrap().to_owned();
        let path = url
            .strip_prefix("http://localhost/_document/")
            .unwrap_or_else(|| panic!("{url}"));
        let target = format!(
            "/_document/{path}?upload_token={}",
            announced["upload_token"].as_str().unwrap()
        );
        let uploaded = json(&proxy.send(post(&target, content.clone())).await);
        assert_eq!(
            (uploaded["success"].as_bool(), uploaded["size"].as_u64()),
            (Some(true), Some(300_000))
        );
        let file = uploaded["file_id"].as_str().unwrap();
        let announced = json(
            &proxy
                .get(&format!("/api/file/download.do?file_id={file}"))
                .await,
        );
        let url = announced["url"].as_str().unwrap().to_owned();
        let target = url
            .strip_prefix("http://localhost")
            .unwrap_or_else(|| panic!("{url}"));
        let whole = proxy.get(target).await;
        assert_eq!(*whole.body(), content);
        // What is downloaded is not rewritten, so that parts of it can be asked for.
        let part = Request::get(target)
            .header(header::HOST, "localhost")
            .header(header::RANGE, "bytes=10-19");
        let part = proxy.send(part.body(Full::default()).unwrap()).await;
        assert_eq!(
            (part.status().as_u16(), &part.body()[..]),
            (206, &content[10..20])
        );
        let second_steps: Vec<_> = cloud
            .received()
            .into_iter()
            .filter(|request| {
                request.path.contains("/downloadFile.do") || request.path.contains("/uploadFile.do")
            })
            .collect();
        assert!(second_steps.len() >= 3);
        let tokens = usize::from(inject == Some(true));
        assert!(
            second_steps
                .iter()
                .all(|request| request.authorization_count == tokens),
            "{second_steps:?}"
        );
        let labelled =
            |code| format!(r#"bearer_proxy_requests_total{{route="/_document",code="{code}"}}"#);
        assert_eq!(
            (
                proxy.metric(&labelled(200)).await,
                proxy.metric(&labelled(206)).await
            ),
            (2.0, 1.0)
        );
        assert!(
            proxy
                .metric(r#"bearer_proxy_json_answers_total{outcome="rewritten"}"#)
                .await
                >= 2.0
        );
    }
}

/// A cloud that responds to everything with these fields and this body.
async fn responding(fields: &str, body: &'static [u8]) -> RunningUpstream {
    let reply = response("200 OK", fields, body);
    Upstream::always(reply).issuing().start().await
}

const ADDRESS: &[u8] =
    br#"{"url":"http:\/\/document.example.com\/a","text":"http://document.example.comx/"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_json_are_rewritten_and_no_other_content() {
    let fields = "Content-Type: application/json\r\nETag: \"x\"\r\nAccept-Ranges: bytes\r\n\
                  Location: http://document.example.com/l?x\r\nContent-Location: http://DOCUMENT.example.com:80/c\r\n\
                  Set-Cookie: a=b; Domain=.example.com; Path=/\r\n";
    let upstream = responding(fields, ADDRESS).await;
    let lines = two_steps("http://document.example.com", None);
    let proxy = configured(&upstream.origin(), &lines).await;
    let request = |method: &str| {
        let request = Request::builder()
            .method(method)
            .uri("/")
            .header(header::HOST, "localhost:8080");
        let request = request
            .header(header::ACCEPT_ENCODING, "gzip")
            .header(header::RANGE, "bytes=0-1");
        request.body(Full::<Bytes>::default()).unwrap()
    };
    for method in ["GET", "HEAD"] {
        let response = proxy.send(request(method)).await;
        let field = |name: &str| {
            response
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap())
        };
        let requests = upstream.requests();
        let forwarded = requests.last().unwrap();
        assert_eq!(
            forwarded.fields("accept-encoding"),
            ["identity"],
            "{method}"
        );
        assert_eq!(forwarded.fields("range"), ["bytes=0-1"], "{method}");
        assert_eq!(
            field("location"),
            Some("http://localhost:8080/_document/l?x")
        );
        assert_eq!(
            field("content-location"),
            Some("http://localhost:8080/_document/c")
        );
        assert_eq!(field("set-cookie"), Some("a=b; Path=/"));
        assert_eq!(
            (
                field("etag"),
                field("accept-ranges"),
                field("content-length")
            ),
            (None, None, None),
            "{method}"
        );
        if method == "GET" {
            let expected = br#"{"url":"http:\/\/localhost:8080\/_document\/a","text":"http://document.example.comx/"}"#;
            assert_eq!(&response.body()[..], expected);
        }
    }
    for (fields, coded) in [
        ("Content-Type: application/xml\r\nETag: \"x\"\r\n", 0.0),
        (
            "Content-Type: application/json\r\nContent-Encoding: br\r\nETag: \"x\"\r\n",
            1.0,
        ),
    ] {
        let other = responding(fields, ADDRESS).await;
        let proxy = configured(&other.origin(), &lines).await;
        let response = proxy.send(request("GET")).await;
        assert_eq!(&response.body()[..], ADDRESS);
        assert_eq!(response.headers()["etag"], "\"x\"");
        assert_eq!(
            response.headers()["content-length"],
            ADDRESS.len().to_string().as_str()
        );
        assert_eq!(
            proxy
                .metric(r#"bearer_proxy_json_answers_total{outcome="coded"}"#)
                .await,
            coded
        );
    }
    // Without a rule neither the request nor the response is changed.
    let proxy = configured(&upstream.origin(), "").await;
    let response = proxy.send(request("GET")).await;
    assert_eq!(&response.body()[..], ADDRESS);
    let requests = upstream.requests();
    let forwarded = requests.last().unwrap();
    assert_eq!(forwarded.fields("accept-encoding"), ["gzip"]);
    assert_eq!(forwarded.fields("range"), ["bytes=0-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_location_below_a_stripped_prefix_gets_the_prefix_back() {
    for (location, expected) in [
        ("Location: /x\r\n", "/_document/x"),
        ("Location: ../x\r\n", "../x"),
        ("Location: //other.example/x\r\n", "//other.example/x"),
    ] {
        let documents = responding(location, b"").await;
        let cloud = cloud().await;
        let proxy = configured(cloud.origin(), &two_steps(&documents.origin(), None)).await;
        assert_eq!(
            proxy.get("/_document/y").await.headers()["location"],
            expected
        );
    }
}

const JSON_401: &str = "[retry.json]\npointer = \"/code\"\nvalues = [401]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorization_failure_within_a_200_leads_to_a_replay() {
    let refusing = async || {
        let cloud = cloud().await;
        cloud.faults().in_body_failures = true;
        cloud
    };
    let cloud = refusing().await;
    let proxy = configured(cloud.origin(), JSON_401).await;
    assert_eq!(json(&proxy.get("/api/echo.do").await)["success"], true);
    cloud.revoke_access_tokens();
    assert_eq!(
        json(&proxy.get("/api/echo.do").await)["success"],
        true,
        "the client gets the replayed response"
    );
    let accepted = r#"bearer_proxy_retries_total{reason="unauthorized",outcome="accepted"}"#;
    assert_eq!(proxy.metric(accepted).await, 1.0);
    // A POST may have been applied under a 200.
    cloud.revoke_access_tokens();
    let refused = proxy.send(post("/api/echo.do", "body")).await;
    assert_eq!(
        (
            refused.status().as_u16(),
            json(&refused)["success"].as_bool()
        ),
        (200, Some(false))
    );
    let cloud = refusing().await;
    let proxy = configured(
        cloud.origin(),
        &format!("[retry]\nany_method = true\n{JSON_401}"),
    )
    .await;
    cloud.revoke_access_tokens();
    assert_eq!(
        json(&proxy.send(post("/api/echo.do", "body")).await)["success"],
        true
    );
}

/// Other responses are relayed while they arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_that_are_not_small_json_are_not_held_back() {
    for (fields, size) in [
        ("Content-Type: text/plain\r\nContent-Length: 10\r\n", 10),
        (
            "Content-Type: application/json\r\nContent-Length: 100000\r\n",
            100_000,
        ),
    ] {
        let (go_on, may_go_on) = tokio::sync::watch::channel(false);
        let origin = scripted(move |_, mut stream| {
            let mut may_go_on = may_go_on.clone();
            async move {
                let head = read_head(&mut stream).await?;
                if head.starts_with("POST /api/refreshToken.do") {
                    return grant("token", 3600).close().send(&mut stream).await;
                }
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\n{fields}\r\n1234").as_bytes())
                    .await?;
                may_go_on.wait_for(|go_on| *go_on).await.unwrap();
                stream.write_all(&vec![b' '; size - 4]).await
            }
        })
        .await;
        let proxy = configured(&format!("http://{origin}"), JSON_401).await;
        let mut client = connect(proxy.address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let first = async {
            let head = read_head(&mut client).await.unwrap();
            let mut begun = [0; 4];
            client.read_exact(&mut begun).await.unwrap();
            (head, begun)
        };
        let (head, begun) = tokio::time::timeout(LIMIT, first)
            .await
            .expect("the beginning arrives by itself");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(&begun, b"1234");
        go_on.send(true).unwrap();
        let mut rest = vec![0; size - 4];
        client.read_exact(&mut rest).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_shows_codes_and_origins_in_json_that_no_key_handles() {
    let fields = "Content-Type: application/json\r\n";
    let body: &[u8] =
        br#"{"code":1201,"success":false,"url":"http:\/\/document.example.com\/a?secret"}"#;
    let upstream = responding(fields, body).await;
    let status = async |proxy: &Proxy| {
        // The body is inspected after it was relayed.
        eventually("it was recorded", async || {
            let status = json(&send(proxy.admin, get("/status")).await);
            status["seen_in_json"]["codes"]
                .as_array()
                .is_some_and(|codes| !codes.is_empty())
                || status["seen_in_json"]["origins"]
                    .as_array()
                    .is_some_and(|origins| !origins.is_empty())
        })
        .await;
        json(&send(proxy.admin, get("/status")).await)["seen_in_json"].clone()
    };
    let plain = configured(&upstream.origin(), "").await;
    assert_eq!(plain.get("/").await.status(), 200);
    let seen = status(&plain).await;
    assert_eq!(
        (seen["pointer"].as_str(), seen["codes"][0]["code"].as_str()),
        (Some("/code"), Some("1201"))
    );
    assert_eq!(
        (
            seen["codes"][0]["answers"].as_u64(),
            seen["codes"][0]["key"].as_str()
        ),
        (Some(1), Some("retry.json"))
    );
    let origin = &seen["origins"][0];
    assert_eq!(
        origin["origin"].as_str(),
        Some("http://document.example.com")
    );
    assert_eq!(origin["key"].as_str(), Some("[[rewrite]]"));
    assert!(!seen.to_string().contains("secret"));

    // What a key handles is not shown.
    let handled = configured(
        &upstream.origin(),
        &two_steps("http://document.example.com", None),
    )
    .await;
    assert_eq!(handled.get("/").await.status(), 200);
    let seen = status(&handled).await;
    assert_eq!(
        (
            seen["codes"][0]["code"].as_str(),
            seen["origins"].as_array().map(Vec::len)
        ),
        (Some("1201"), Some(0))
    );
}
