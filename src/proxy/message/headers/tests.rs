use std::collections::BTreeSet;

use http::Request;

use super::*;
use crate::proxy::message::urls::{PublicUrl, UrlMap};

fn endpoint() -> Endpoint {
    Endpoint {
        scheme: Scheme::HTTPS,
        host: "cloud.example.com".into(),
        port: 443,
        authority: HeaderValue::from_static("cloud.example.com"),
        origin: "https://cloud.example.com".into(),
    }
}

fn sent(client: &[(&str, &str)], host: &Host, forwarded: ForwardedHeaders) -> HeaderMap {
    let mut request = Request::get("/");
    for (name, value) in client {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let rewrite = Outbound {
        endpoint: &endpoint(),
        host,
        forwarded,
        own_urls: OwnUrls {
            host: parts.headers.get(header::HOST),
            names: &BTreeSet::new(),
            prefix: "",
            origins: &UrlMap::default(),
        },
        client: &ClientConnection::new(Some("192.0.2.7:5000".parse().unwrap()), Scheme::HTTP),
        loop_id: &HeaderValue::from_static("bearer-proxy-1"),
        stripped: &[HeaderName::from_static("x-api-key")],
        authorization: Some(&HeaderValue::from_static("Bearer ours")),
    };
    outbound(&parts, &rewrite)
}

fn plain(client: &[(&str, &str)]) -> HeaderMap {
    sent(client, &Host::Endpoint, ForwardedHeaders::Off)
}

fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect()
}

#[test]
fn the_injected_token_is_sent_exactly_once() {
    for client in [
        &[][..],
        &[
            ("authorization", "Bearer theirs"),
            ("authorization", "Basic dTpw"),
        ],
        &[
            ("connection", "authorization"),
            ("connection", "keep-alive, Authorization"),
        ],
        &[
            ("proxy-authorization", "Basic dTpw"),
            ("connection", "close, host, cdn-loop"),
        ],
    ] {
        let out = plain(client);
        assert_eq!(all(&out, "authorization"), ["Bearer ours"], "{client:?}");
        assert_eq!(all(&out, "host"), ["cloud.example.com"], "{client:?}");
        assert_eq!(all(&out, "cdn-loop"), ["bearer-proxy-1"], "{client:?}");
        assert!(!out.contains_key("proxy-authorization"));
    }
}

#[test]
fn fields_named_by_any_connection_field_are_dropped() {
    let out = plain(&[
        ("connection", "X-One, keep-alive"),
        ("connection", "x-two"),
        ("x-one", "1"),
        ("x-two", "2"),
        ("x-three", "3"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
        ("proxy-connection", "keep-alive"),
        ("expect", "100-continue"),
    ]);
    let names: Vec<_> = out.keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["x-three", "host", "cdn-loop", "authorization"]);
}

#[test]
fn content_length_is_kept_even_as_a_connection_option() {
    let out = plain(&[("connection", "content-length"), ("content-length", "5")]);
    assert_eq!(all(&out, "content-length"), ["5"]);
}

#[test]
fn stripped_fields_are_not_forwarded() {
    let out = plain(&[
        ("x-api-key", "1"),
        ("X-API-Key", "2"),
        ("x_api-key", "3"),
        ("x-api-keys", "4"),
    ]);
    assert!(
        !out.contains_key("x-api-key")
            && !out.contains_key("x_api-key")
            && out.contains_key("x-api-keys")
    );
}

#[test]
fn dropped_fields_are_dropped_with_underscores_and_in_trailers() {
    let fields = [
        ("x_original_url", "/admin"),
        ("x-http_method_override", "DELETE"),
        ("x-rewrite-url", "/admin"),
        ("transfer_encoding", "chunked"),
        ("content_length", "5"),
        ("authorization", "Bearer theirs"),
        ("x-api-key", "1"),
        ("x_api_key", "1"),
        ("x_forwarded_host", "elsewhere"),
        ("x-forwarded_for", "192.0.2.9"),
        ("x_app_field", "stays"),
    ];
    let out = plain(&fields);
    let names: Vec<_> = out.keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["x_app_field", "host", "cdn-loop", "authorization"]);
    let mut trailers = HeaderMap::new();
    let more = [
        ("set-cookie", "a=b"),
        ("cookie", "a=b"),
        ("x-forwarded-for", "192.0.2.9"),
        ("grpc-status", "0"),
    ];
    for (name, value) in fields.into_iter().chain(more) {
        trailers.insert(name, HeaderValue::from_static(value));
    }
    clean_trailers(&mut trailers, &[HeaderName::from_static("x-api-key")]);
    let mut names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["grpc-status", "x_app_field"]);
}

#[test]
fn leading_zeros_of_content_length_are_removed() {
    for (length, expected) in [
        ("0", "0"),
        ("00", "0"),
        ("0005", "5"),
        ("050", "50"),
        ("7", "7"),
        ("100", "100"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static(length));
        normalize_content_length(&mut headers);
        assert_eq!(headers[header::CONTENT_LENGTH], expected);
    }
}

#[test]
fn other_fields_are_forwarded_unchanged_and_in_order() {
    let out = plain(&[
        ("x-a", "1"),
        ("cookie", "a=b"),
        ("x-a", "2"),
        ("accept", "*/*"),
        ("cookie", "c=d"),
    ]);
    assert_eq!(all(&out, "x-a"), ["1", "2"]);
    assert_eq!(all(&out, "cookie"), ["a=b", "c=d"]);
    assert_eq!(all(&out, "accept"), ["*/*"]);
}

#[test]
fn origins_of_the_proxy_become_origins_of_the_upstream() {
    let out = plain(&[
        ("host", "localhost:8080"),
        ("origin", "http://localhost:8080"),
        ("referer", "http://Localhost:8080/a?b"),
    ]);
    assert_eq!(all(&out, "origin"), ["https://cloud.example.com"]);
    assert_eq!(all(&out, "referer"), ["https://cloud.example.com/a?b"]);
    let out = plain(&[
        ("host", "localhost"),
        ("origin", "http://localhost:8080"),
        ("referer", "http://localhostile/"),
    ]);
    assert_eq!(all(&out, "origin"), ["http://localhost:8080"]);
    assert_eq!(all(&out, "referer"), ["http://localhostile/"]);
}

#[test]
fn hosts() {
    let client = [
        ("host", "localhost:8080"),
        ("origin", "http://localhost:8080"),
    ];
    let fixed = Host::Fixed(HeaderValue::from_static("files.internal"));
    assert_eq!(
        all(&sent(&client, &fixed, ForwardedHeaders::Off), "host"),
        ["files.internal"]
    );
    let out = sent(&client, &Host::Client, ForwardedHeaders::Off);
    assert_eq!(all(&out, "host"), ["localhost:8080"]);
    assert_eq!(all(&out, "origin"), ["http://localhost:8080"]);
    assert_eq!(
        all(&sent(&[], &Host::Client, ForwardedHeaders::Off), "host"),
        ["cloud.example.com"]
    );
}

#[test]
fn forwarding_fields() {
    let client = [
        ("host", "localhost:8080"),
        ("x-forwarded-for", "198.51.100.1"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "https"),
    ];
    let out = sent(&client, &Host::Endpoint, ForwardedHeaders::XForwarded);
    assert_eq!(all(&out, "x-forwarded-for"), ["192.0.2.7"]);
    assert_eq!(all(&out, "x-forwarded-host"), ["localhost:8080"]);
    assert_eq!(all(&out, "x-forwarded-proto"), ["http"]);
    let standard = [client[0], ("forwarded", "for=198.51.100.1;proto=https")];
    let out = sent(&standard, &Host::Endpoint, ForwardedHeaders::Forwarded);
    assert_eq!(
        all(&out, "forwarded"),
        ["for=192.0.2.7;host=\"localhost:8080\";proto=http"]
    );
    assert!(!plain(&client[..1]).contains_key("x-forwarded-for"));
    let options = [
        ("connection", "x-forwarded-for"),
        ("x-forwarded-for", "198.51.100.1"),
    ];
    assert_eq!(
        all(
            &sent(&options, &Host::Endpoint, ForwardedHeaders::XForwarded),
            "x-forwarded-for"
        ),
        ["192.0.2.7"]
    );
}

#[test]
fn a_forwarding_loop_is_detected() {
    let loop_id = HeaderValue::from_static("bearer-proxy-1");
    let first = plain(&[("cdn-loop", "other")]);
    assert!(has_loop_id(&first, &loop_id));
    assert!(!has_loop_id(
        &first,
        &HeaderValue::from_static("bearer-proxy-2")
    ));
}

fn received(headers: &[(&str, &str)], injected: bool) -> HeaderMap {
    let mut response = http::Response::builder();
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let (mut parts, ()) = response.body(()).unwrap().into_parts();
    let field_map = FieldMap {
        scheme: &Scheme::HTTPS,
        origins: &UrlMap::default(),
        public_url: PublicUrl {
            scheme: &Scheme::HTTP,
            host: None,
            prefix: "/prefix",
        },
    };
    let cache_policy = injected.then_some(CachePolicy::IfUnspecified);
    inbound(&mut parts, field_map, cache_policy);
    parts.headers
}

#[test]
fn ambiguous_responses_are_rejected() {
    type Case<'a> = (u16, &'a [(&'a str, &'a str)], bool);
    let table: &[Case<'_>] = &[
        (200, &[], true),
        (200, &[("content-length", "5")], true),
        (200, &[("transfer-encoding", "Chunked")], true),
        (200, &[("content-length", "")], false),
        (
            200,
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            false,
        ),
        (200, &[("transfer-encoding", "gzip, chunked")], false),
        (200, &[("transfer-encoding", "gzip")], false),
        (
            200,
            &[
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            false,
        ),
        (101, &[], false),
    ];
    for (status, headers, expected) in table {
        let mut response = http::Response::builder().status(*status);
        for (name, value) in *headers {
            response = response.header(*name, *value);
        }
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        assert_eq!(
            is_unambiguous(&mut parts, false),
            *expected,
            "{status} {headers:?}"
        );
        assert_eq!(
            is_unambiguous(&mut parts, true),
            *expected || *status == 101,
            "{status} {headers:?}"
        );
    }
}

#[test]
fn field_d6_equal_lengths_are_one() {
    for (lengths, expected) in [
        (&["5"][..], Some("5")),
        (&["5", "5"], Some("5")),
        (&["5, 5"], Some("5")),
        (&["5,5", "5 ,\t5"], Some("5")),
        (&["0", "0", "0"], Some("0")),
        (&["5", "6"], None),
        (&["5, 6"], None),
        (&["5", "05"], None),
        (&["5,"], None),
        (&[",5"], None),
        (&["5;5"], None),
        (&["+5", "+5"], None),
        (&["", ""], None),
        (&["5 5"], None),
    ] {
        let mut response = http::Response::builder();
        for length in lengths {
            response = response.header("content-length", *length);
        }
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        let is_accepted = is_unambiguous(&mut parts, false);
        assert_eq!(is_accepted, expected.is_some(), "{lengths:?}");
        if let Some(expected) = expected {
            let kept: Vec<_> = parts.headers.get_all("content-length").iter().collect();
            assert_eq!(kept, [expected], "{lengths:?}");
        }
    }
}

#[test]
fn urls_in_all_lines_of_a_field_are_mapped() {
    let headers = received(
        &[("link", "</a>"), ("x-link", "</a>"), ("link", "</b>")],
        false,
    );
    assert_eq!(all(&headers, "link"), ["</prefix/a>", "</prefix/b>"]);
    assert_eq!(all(&headers, "x-link"), ["</a>"]);
}

#[test]
fn responses_to_the_injected_token_are_private() {
    assert_eq!(
        all(
            &received(&[("cache-control", "max-age=60")], true),
            "cache-control"
        ),
        ["max-age=60", "private"]
    );
    assert!(!received(&[], false).contains_key("cache-control"));
}

#[test]
fn hop_by_hop_fields_of_responses_are_dropped() {
    let headers = received(
        &[
            ("connection", "close, x-hop"),
            ("connection", "x-other"),
            ("x-hop", "1"),
            ("x-other", "2"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("etag", "\"e\""),
        ],
        false,
    );
    assert_eq!(
        headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
        ["etag"]
    );
}
