//! What every request pays: taking the token, and rewriting its head.

#[path = "../tests/it/common/credential.rs"]
mod credential;

use std::{collections::BTreeSet, hint::black_box, time::Duration};

use bearer_proxy::{
    base::clock,
    proxy::{
        ForwardedHeaders,
        message::{
            forwarded::ClientConnection,
            headers::{Outbound, outbound},
            urls::{OwnUrls, UrlMap},
        },
    },
    token::Refresher,
    upstream::{Endpoint, Host},
};
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderValue, Request, uri::Scheme};

fn rewriting_a_head(criterion: &mut Criterion) {
    let (head, ()) = Request::get("/api/file/list.do?parent_id=17")
        .header("host", "localhost:8080")
        .header("user-agent", "legacy/1.0")
        .header("accept", "application/json")
        .header("accept-encoding", "gzip")
        .header("accept-language", "en")
        .header("content-type", "application/json")
        .header("cookie", "session=0123456789abcdef")
        .header("connection", "keep-alive")
        .body(())
        .expect("a legal request")
        .into_parts();
    let endpoint = Endpoint {
        scheme: Scheme::HTTPS,
        host: "cloud.example.com".into(),
        port: 443,
        authority: HeaderValue::from_static("cloud.example.com"),
        origin: "https://cloud.example.com".into(),
    };
    let client = ClientConnection::new(Some(([192, 0, 2, 7], 5000).into()), Scheme::HTTP);
    let loop_id = HeaderValue::from_static("bearer-proxy-0123456789abcdef");
    let authorization = HeaderValue::from_static("Bearer 0123456789abcdef0123456789abcdef");
    let rewrite = Outbound {
        endpoint: &endpoint,
        host: &Host::Endpoint,
        forwarded: ForwardedHeaders::XForwarded,
        own_urls: OwnUrls {
            host: head.headers.get("host"),
            names: &BTreeSet::new(),
            prefix: "",
            origins: &UrlMap::default(),
        },
        client: &client,
        loop_id: &loop_id,
        stripped: &[],
        authorization: Some(&authorization),
    };
    criterion.bench_function("rewriting a head", |bencher| {
        bencher.iter(|| outbound(black_box(&head), &rewrite));
    });
}

fn taking_the_token(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = clock::system();
    let (_refresher, credential) =
        Refresher::new(credential::config(folder.path()), None, clock.clone())
            .expect("a credential");
    criterion.bench_function("taking the token", |bencher| {
        bencher.iter(|| {
            let token = credential.token();
            token
                .as_ref()
                .is_some_and(|token| token.is_usable(clock.now()))
        });
    });
}

criterion_group! {
    name = hot_path;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = taking_the_token, rewriting_a_head
}
criterion_main!(hot_path);
