//! Absolute addresses come home, and refusals in JSON are refusals: an app that reaches the proxy alone.

use std::{net::SocketAddr, sync::Arc};

use bearer_proxy::{
    app::App,
    base::clock::{self, Simulated},
    cloud::{Cloud, Config},
    config::{self, Source},
};
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::common::{Proxy, eventually, get, post, read_head, read_head_granting, scripted, send};

/// A proxy whose `proxy.toml` has these lines besides the usual ones.
async fn configured(origin: &str, more: &str) -> Proxy {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.toml");
    let text = format!(
        "[proxy]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\n[upstream]\nendpoints = [\"{origin}\"]\n[token]\n\
         client_id = \"demo\"\nclient_secret = \"secret\"\nrefresh_token = \"seed\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{more}"
    );
    std::fs::write(&file, text).unwrap();
    let source = Source {
        file: Some(file),
        env: Vec::new(),
        overrides: Vec::new(),
    };
    let config = config::load(source)
        .unwrap_or_else(|mistakes| panic!("{mistakes}"))
        .config;
    let proxy = Proxy::of(App::start(config, clock::system()).unwrap());
    proxy.ready().await;
    proxy
}

async fn cloud() -> Cloud {
    let config = Config {
        seeds: vec!["seed".into()],
        ..Config::new("demo", "secret")
    };
    Cloud::start(config, Arc::new(Simulated::new()))
        .await
        .unwrap()
}

fn json(answer: &Response<Bytes>) -> Value {
    serde_json::from_slice(answer.body()).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// The lines that bring the document host home.
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

/// A cloud that tells what it was asked, and answers with these fields and this body.
async fn answering(fields: &'static str, body: &'static [u8]) -> SocketAddr {
    scripted(move |_, mut stream| async move {
        loop {
            let head = read_head_granting(&mut stream).await?;
            if head.is_empty() {
                return Ok(());
            }
            let accepts = head
                .lines()
                .find(|line| line.to_ascii_lowercase().starts_with("accept-encoding:"));
            let has_range = head.to_ascii_lowercase().contains("\r\nrange:");
            let asked = format!(
                "X-Asked: {} range={has_range}\r\n",
                accepts.unwrap_or("nothing")
            );
            let length = format!("Content-Length: {}\r\n\r\n", body.len());
            stream
                .write_all(format!("HTTP/1.1 200 OK\r\n{fields}{asked}{length}").as_bytes())
                .await?;
            if !head.starts_with("HEAD") {
                stream.write_all(body).await?;
            }
        }
    })
    .await
}

const ADDRESS: &[u8] =
    br#"{"url":"http:\/\/document.example.com\/a","text":"http://document.example.comx/"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_json_are_rewritten_and_nothing_else_is() {
    let fields = "Content-Type: application/json\r\nETag: \"x\"\r\nAccept-Ranges: bytes\r\n\
                  Location: http://document.example.com/l?x\r\nContent-Location: http://DOCUMENT.example.com:80/c\r\n\
                  Set-Cookie: a=b; Domain=.example.com; Path=/\r\n";
    let origin = answering(fields, ADDRESS).await;
    let lines = two_steps("http://document.example.com", None);
    let proxy = configured(&format!("http://{origin}"), &lines).await;
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
        let answer = proxy.send(request(method)).await;
        let field = |name: &str| {
            answer
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap())
        };
        assert_eq!(
            field("x-asked").unwrap().to_ascii_lowercase(),
            "accept-encoding: identity range=false",
            "{method}"
        );
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
            assert_eq!(&answer.body()[..], expected);
        }
    }
    for (fields, coded) in [
        ("Content-Type: text/plain\r\nETag: \"x\"\r\n", 0.0),
        (
            "Content-Type: application/json\r\nContent-Encoding: br\r\nETag: \"x\"\r\n",
            1.0,
        ),
    ] {
        let origin = answering(fields, ADDRESS).await;
        let proxy = configured(&format!("http://{origin}"), &lines).await;
        let answer = proxy.send(request("GET")).await;
        assert_eq!(&answer.body()[..], ADDRESS);
        assert_eq!(answer.headers()["etag"], "\"x\"");
        assert_eq!(
            answer.headers()["content-length"],
            ADDRESS.len().to_string().as_str()
        );
        assert_eq!(
            proxy
                .metric(r#"bearer_proxy_json_answers_total{outcome="coded"}"#)
                .await,
            coded
        );
    }
    // Without a rule nothing is asked for, and nothing is touched.
    let proxy = configured(&format!("http://{origin}"), "").await;
    let answer = proxy.send(request("GET")).await;
    assert_eq!(
        answer.headers()["x-asked"]
            .to_str()
            .unwrap()
            .to_ascii_lowercase(),
        "accept-encoding: gzip range=true"
    );
    assert_eq!(&answer.body()[..], ADDRESS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_below_a_stripped_prefix_comes_back_below_it() {
    for (location, expected) in [
        ("Location: /x\r\n", "/_document/x"),
        ("Location: ../x\r\n", "../x"),
        ("Location: //other.example/x\r\n", "//other.example/x"),
    ] {
        let documents = answering(location, b"").await;
        let cloud = cloud().await;
        let proxy = configured(
            cloud.origin(),
            &two_steps(&format!("http://{documents}"), None),
        )
        .await;
        assert_eq!(
            proxy.get("/_document/y").await.headers()["location"],
            expected
        );
    }
}

const JSON_401: &str = "[retry.json]\npointer = \"/code\"\nvalues = [401]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_within_a_200_leads_to_a_replay() {
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
        "the app notices nothing"
    );
    let accepted = r#"bearer_proxy_retries_total{reason="unauthorized",outcome="accepted"}"#;
    assert_eq!(proxy.metric(accepted).await, 1.0);
    // Nobody knows whether a POST was applied under a 200.
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

/// Answers of other kinds begin before they end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_no_small_json_are_not_held_back() {
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
                while !read_head_granting(&mut stream).await?.is_empty() {
                    stream
                        .write_all(format!("HTTP/1.1 200 OK\r\n{fields}\r\n1234").as_bytes())
                        .await?;
                    may_go_on.wait_for(|go_on| *go_on).await.unwrap();
                    stream.write_all(&vec![b' '; size - 4]).await?;
                }
                Ok(())
            }
        })
        .await;
        let proxy = configured(&format!("http://{origin}"), JSON_401).await;
        let mut client = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        let first = async {
            let head = read_head(&mut client).await.unwrap();
            let mut begun = [0; 4];
            tokio::io::AsyncReadExt::read_exact(&mut client, &mut begun)
                .await
                .unwrap();
            (head, begun)
        };
        let (head, begun) = tokio::time::timeout(crate::common::LIMIT, first)
            .await
            .expect("the beginning comes by itself");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(&begun, b"1234");
        go_on.send(true).unwrap();
        let mut rest = vec![0; size - 4];
        tokio::io::AsyncReadExt::read_exact(&mut client, &mut rest)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_tells_what_answers_carry_that_nothing_handles() {
    let fields = "Content-Type: application/json\r\n";
    let body: &[u8] =
        br#"{"code":1201,"success":false,"url":"http:\/\/document.example.com\/a?secret"}"#;
    let address = answering(fields, body).await;
    let status = async |proxy: &Proxy| {
        // The body is looked into once it has passed.
        eventually("it was noted", async || {
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
    let plain = configured(&format!("http://{address}"), "").await;
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

    // What is handled is not told.
    let handled = configured(
        &format!("http://{address}"),
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
