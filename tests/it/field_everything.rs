//! The list of changes in `docs/http.md`, compared with what becomes of a message that has every
//! field.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::common::{
    LIMIT, Proxy, connect, read_head, status, toml,
    upstream::{Request, RunningUpstream, Upstream, bytes},
};

/// The fields of requests and responses: the registry of IANA, and others that are in use. Without
/// those that frame the body, and `Host`.
const FIELDS: &str = "
    A-IM Accept Accept-Additions Accept-CH Accept-Charset Accept-Datetime Accept-Encoding
    Accept-Features Accept-Language Accept-Patch Accept-Post Accept-Ranges Accept-Signature
    Access-Control-Allow-Credentials Access-Control-Allow-Headers Access-Control-Allow-Methods
    Access-Control-Allow-Origin Access-Control-Allow-Private-Network Access-Control-Expose-Headers
    Access-Control-Max-Age Access-Control-Request-Headers Access-Control-Request-Method Age Allow
    ALPN Alt-Svc Alt-Used Alternates Apply-To-Redirect-Ref Authentication-Control
    Authentication-Info Authorization Available-Dictionary Brief C-Ext C-Man C-Opt C-PEP C-PEP-Info
    Cache-Control Cache-Status Cal-Managed-ID CalDAV-Timezones Capsule-Protocol CDN-Cache-Control
    CDN-Loop Cert-Not-After Cert-Not-Before Clear-Site-Data Client-Cert Client-Cert-Chain Close
    Cloudflare-CDN-Cache-Control Connection Content-Base Content-Digest Content-Disposition
    Content-Encoding Content-ID Content-Language Content-Location Content-MD5 Content-Range
    Content-Script-Type Content-Security-Policy Content-Security-Policy-Report-Only
    Content-Style-Type Content-Type Content-Version Cookie Cookie2 Cross-Origin-Embedder-Policy
    Cross-Origin-Opener-Policy Cross-Origin-Resource-Policy DASL Date DAV Default-Style Delta-Base
    Deprecation Depth Derived-From Destination Device-Memory Dictionary-ID Differential-ID Digest DNT
    DPoP DPoP-Nonce DPR Early-Data EDIINT-Features ETag Expect Expect-CT Expires Ext
    Forwarded Front-End-Https From GetProfile Hobareg HTTP2-Settings If If-Match If-Modified-Since
    If-None-Match If-Range If-Schedule-Tag-Match If-Unmodified-Since IM Include-Referred-Token-Binding-ID
    Isolation Keep-Alive Label Last-Event-ID Last-Modified Link Link-Template Location Lock-Token Man
    Max-Forwards Memento-Datetime Meter Method-Check MIME-Version MS-Author-Via Negotiate NEL
    OC-Checksum OC-ETag OC-FileId OC-Total-Length OData-EntityId OData-Version Opt
    Optional-WWW-Authenticate Ordering-Type Origin Origin-Agent-Cluster OSCORE
    Overwrite P3P PEP PEP-Info Permissions-Policy PICS-Label Ping-From Ping-To Position Pragma
    Prefer Preference-Applied Priority ProfileObject Protocol Protocol-Query Proxy-Authenticate
    Proxy-Authentication-Info Proxy-Authorization Proxy-Connection Proxy-Features Proxy-Instruction
    Proxy-Status Public Public-Key-Pins Range Ratelimit-Limit Redirect-Ref Referer Referer-Root
    Referrer-Policy Refresh Repeatability-Request-ID Replay-Nonce Reporting-Endpoints Repr-Digest
    Retry-After Safe Save-Data Schedule-Reply Schedule-Tag Sec-CH-UA Sec-Fetch-Dest Sec-Fetch-Mode
    Sec-Fetch-Site Sec-Fetch-User Sec-GPC Sec-Purpose Sec-Token-Binding Sec-WebSocket-Accept
    Sec-WebSocket-Extensions Sec-WebSocket-Key Sec-WebSocket-Protocol Sec-WebSocket-Version
    Security-Scheme Server Server-Timing Set-Cookie Set-Cookie2 SetProfile Signature Signature-Input
    SLUG SoapAction SourceMap Status-URI Strict-Transport-Security Sunset
    Surrogate-Capability Surrogate-Control TCN TE Timeout Timing-Allow-Origin Topic Traceparent
    Tracestate Translate TTL Tus-Resumable Tus-Version Upgrade Upgrade-Insecure-Requests
    Upload-Checksum Upload-Concat Upload-Complete Upload-Length Upload-Offset Urgency URI
    Use-As-Dictionary User-Agent Variant-Vary Vary Via Want-Content-Digest Want-Digest
    Want-Repr-Digest Warning WWW-Authenticate X-Accel-Buffering X-Accel-Expires X-Accel-Redirect
    X-Api-Key X-App-Field X-Content-Type-Options X-Correlation-ID X-CSRF-Token X-DNS-Prefetch-Control
    X-Forwarded-For X-Forwarded-Host X-Forwarded-Port X-Forwarded-Proto X-Frame-Options
    X-HTTP-Method X-HTTP-Method-Override X-Method-Override X-OC-Mtime X-Original-URL X-Powered-By
    X-Real-IP X-Request-ID X-Requested-With X-Rewrite-URL X-Robots-Tag X-UA-Compatible
    X-Updated-With X-XSRF-Token X-XSS-Protection
";

/// The value of a field in a message: one that is changed if any value is.
fn value(name: &str, cloud: &str) -> String {
    let value = match name {
        "access-control-allow-origin" | "origin" => "http://localhost",
        "cache-control" => "max-age=60",
        "connection" => "x-nominated",
        "content-encoding" => "identity",
        "content-type" => "application/json",
        "date" => "Mon, 30 Nov 2026 12:00:00 GMT",
        "destination" | "referer" => "http://localhost/x",
        "expect" => "100-continue",
        "if" => "<http://localhost/x> (<urn:1>)",
        "sec-fetch-site" => "none",
        "set-cookie" => "a=b; Secure",
        "te" => "gzip",
        "upgrade" => "other",
        "www-authenticate" => "Basic realm=\"x\"",
        "location" | "content-location" | "uri" => return format!("{cloud}/x"),
        "link" => return format!("<{cloud}/x>; rel=next"),
        "refresh" => return format!("5; url={cloud}/x"),
        _ => "value",
    };
    value.to_owned()
}

fn everything(cloud: &str) -> HeaderMap {
    FIELDS
        .split_whitespace()
        .map(|name| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            let value = value(name.as_str(), cloud).parse().unwrap();
            (name, value)
        })
        .collect()
}

/// What becomes of fields: by their name in lower case, `changed`, `removed` or `added`.
type Changes = BTreeMap<String, &'static str>;

fn changes(before: &HeaderMap, after: &HeaderMap) -> Changes {
    let all = |headers: &HeaderMap, name: &str| -> Vec<HeaderValue> {
        headers.get_all(name).iter().cloned().collect()
    };
    let change = |name: &str| match (all(before, name), all(after, name)) {
        (before, after) if before == after => None,
        (before, _) if before.is_empty() => Some("added"),
        (_, after) if after.is_empty() => Some("removed"),
        _ => Some("changed"),
    };
    let names = before.keys().chain(after.keys()).map(HeaderName::as_str);
    names
        .filter_map(|name| Some((name.to_owned(), change(name)?)))
        .collect()
}

/// The tables of a section of `docs/http.md`, each as what becomes of fields that are present, and
/// of those that are absent.
fn documented(section: &str) -> Vec<[Changes; 2]> {
    let text = include_str!("../../docs/http.md");
    let section = text.split("\n## ").find(|part| part.starts_with(section));
    let mut tables = Vec::new();
    for line in section.unwrap().lines() {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        if !line.starts_with('|') || line.starts_with("|---") {
            continue;
        }
        if cells[0] == "Field" {
            tables.push([Changes::new(), Changes::new()]);
            continue;
        }
        let table = tables.last_mut().unwrap();
        for name in cells[0]
            .split(',')
            .map(|name| name.trim().trim_matches('`'))
        {
            for (column, cell) in cells[1..].iter().enumerate() {
                let known = ["changed", "removed", "added"].into_iter();
                let change = known.into_iter().find(|known| known == cell);
                assert!(change.is_some() || *cell == "–", "{line}");
                table[column].extend(change.map(|change| (name.to_lowercase(), change)));
            }
        }
    }
    tables
}

/// The tables as one. A later one replaces what an earlier one says of a field.
fn together<'a>(tables: impl IntoIterator<Item = &'a [Changes; 2]>) -> [Changes; 2] {
    let mut all = [Changes::new(), Changes::new()];
    for table in tables {
        for (all, one) in all.iter_mut().zip(table) {
            all.extend(one.clone());
        }
    }
    all
}

/// A cloud that responds with every field at `/all`, and elsewhere with none but those that frame
/// the body.
async fn cloud() -> RunningUpstream {
    let respond = |request: &Request| {
        let cloud = format!("http://{}", request.fields("host")[0]);
        let fields: String = match request.path() {
            "/all" => lines(&everything(&cloud)),
            _ => "Content-Type: application/json\r\n".to_owned(),
        };
        bytes(format!(
            "HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\n{{}}"
        ))
    };
    Upstream::always(respond).issuing().start().await
}

fn lines(fields: &HeaderMap) -> String {
    let line =
        |(name, value): (_, &HeaderValue)| format!("{name}: {}\r\n", value.to_str().unwrap());
    fields.iter().map(line).collect()
}

fn fields_of(head: &str) -> HeaderMap {
    let head = head.trim_end();
    let lines = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "));
    lines
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
        .collect()
}

/// What becomes of a request and of its response.
async fn observed(
    upstream: &RunningUpstream,
    proxy: &Proxy,
    path: &str,
    fields: &HeaderMap,
) -> [Changes; 2] {
    let mut sent = fields.clone();
    sent.insert("host", HeaderValue::from_static("localhost"));
    let request = format!("GET {path} HTTP/1.1\r\n{}\r\n", lines(&sent));
    let mut client = connect(proxy.address, request).await;
    let head = tokio::time::timeout(LIMIT, read_head(&mut client)).await;
    let head = head.expect("no response in time").unwrap();
    assert_eq!(status(&head), 200, "{head}");
    let forwarded = fields_of(&upstream.requests().last().unwrap().head);
    let mut original = match path {
        "/all" => everything(&upstream.origin()),
        _ => HeaderMap::from_iter([(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )]),
    };
    original.insert("content-length", HeaderValue::from_static("2"));
    let mut response = changes(&original, &fields_of(&head));
    // The framing on the client's connection.
    response.remove("transfer-encoding");
    [changes(&sent, &forwarded), response]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_everything_that_is_changed_in_a_message_is_documented() {
    let upstream = cloud().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("key"),
        "0123456789abcdef0123456789abcdef",
    )
    .unwrap();
    let limit = "proxy.max_headers = 500\n";
    let all_on = format!(
        "{limit}proxy.allowed_origins = [\"https://app.example.com\"]\n\
         [[rewrite]]\nfrom = \"http://document.example.com\"\nto = \"/\"\n\
         [[client]]\nname = \"app\"\nheader = \"x-api-key\"\nkey_file = \"key\"\n"
    );
    let [requests, responses] = [
        documented("Request headers"),
        documented("Response headers"),
    ];
    assert_eq!((requests.len(), responses.len()), (2, 3));
    for (lines, tables) in [(limit, 1), (&*all_on, 3)] {
        let proxy = toml::proxy_in(folder.path(), &upstream.origin(), lines).await;
        let request_changes = together(requests.iter().take(tables));
        let response_changes = together(responses.iter().take(tables));
        let key = HeaderValue::from_static("0123456789abcdef0123456789abcdef");
        for (column, path) in [(0, "/all"), (1, "/none")] {
            let mut fields = match path {
                "/all" => everything(&upstream.origin()),
                _ => HeaderMap::new(),
            };
            let mut expected = [
                request_changes[column].clone(),
                response_changes[column].clone(),
            ];
            if column == 1 {
                // These frame the body or are set in any case, so that no message is without them.
                expected[0].insert("host".to_owned(), "changed");
                if tables > 1 {
                    expected[1].insert("content-length".to_owned(), "removed");
                }
            }
            if tables > 1 {
                fields.insert("x-api-key", key.clone());
                expected[0].insert("x-api-key".to_owned(), "removed");
                fields.insert(
                    "origin",
                    HeaderValue::from_static("https://app.example.com"),
                );
                expected[0].remove("origin");
            }
            let seen = observed(&upstream, &proxy, path, &fields).await;
            assert_eq!(seen, expected, "{path} {lines}");
        }
    }
}
