//! `/`: the status as an HTML page.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;

use super::response;
use crate::net::http_server::HttpResponse;

/// The page: no scripts, no external resources.
pub(super) fn page(status: &Value) -> HttpResponse {
    let credential = &status["credentials"][0];
    let body = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta http-equiv=\"refresh\" content=\"10\"><title>bearer-proxy: {state}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;\
         padding:0 1rem}}pre{{background:#8882;padding:1rem;overflow:auto}}\
         td,th{{padding:0 1rem 0 0;text-align:left}}</style>\
         <h1>bearer-proxy {version}</h1>\
         <p>The token is <strong>{state}</strong> ({reason}).</p>\
         <p>For programs: <a href=\"/readyz\">/readyz</a>, <a href=\"/metrics\">/metrics</a>, \
         <a href=\"/status\">/status</a>.</p>\
         {store}{addresses}<pre>{details}</pre>",
        version = escaped(&status["version"]),
        state = escaped(&credential["state"]),
        reason = escaped(&credential["reason"]),
        store = store(&credential["store"]),
        addresses = addresses(status),
        details = escape(&format!("{status:#}")),
    );
    let mut response = response::respond(
        StatusCode::OK,
        "text/html; charset=utf-8",
        Bytes::from(body),
    );
    let policy = HeaderValue::from_static(
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    );
    response
        .headers_mut()
        .insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

/// The shared token store, in a sentence.
fn store(store: &Value) -> String {
    if store.is_null() {
        return String::new();
    }
    let state = match (store["up"].as_bool(), store["settled"].as_bool()) {
        (Some(true), Some(true)) => "up",
        (Some(true), _) => "up; this replica watches it and refreshes nothing yet",
        _ => "down",
    };
    let claim = match store["claim"]["replica"].as_str() {
        Some(replica) => format!(" {} refreshes.", escape(replica)),
        None => String::new(),
    };
    format!(
        "<p>The token store ({kind}, {server}) is <strong>{state}</strong>.{claim} This replica is \
         {replica}.</p>",
        kind = escaped(&store["kind"]),
        server = escaped(&store["server"]),
        replica = escaped(&store["replica"]),
    )
}

/// A table of the addresses of all upstreams.
fn addresses(status: &Value) -> String {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut rows = String::new();
    for upstream in list(&status["upstreams"]) {
        for endpoint in list(&upstream["endpoints"]) {
            for address in list(&endpoint["addresses"]) {
                let cells = [
                    escaped(&upstream["name"]),
                    escaped(&endpoint["origin"]),
                    escaped(&address["address"]),
                    escaped(&address["state"]),
                    escaped(&address["reason"]),
                    escaped(&address["since"]),
                    address["in_flight"]
                        .as_u64()
                        .unwrap_or_default()
                        .to_string(),
                    address["ejections"]
                        .as_u64()
                        .unwrap_or_default()
                        .to_string(),
                ];
                rows += &format!("<tr><td>{}</tr>", cells.join("<td>"));
            }
        }
    }
    format!(
        "<table><tr><th>Upstream<th>Endpoint<th>Address<th>State<th>Reason<th>Since<th>In flight\
         <th>Ejections</tr>{rows}</table>"
    )
}

fn escaped(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn markup_in_the_status_is_escaped() {
        let status = serde_json::json!({
            "version": "1",
            "credentials": [
                {
                    "state": "dead",
                    "reason": "<script>",
                    "problem": "</pre><img src=x>",
                    "store": {
                        "kind": "redis",
                        "server": "<script>",
                        "up": true,
                        "settled": true,
                        "claim": { "replica": "<script>" },
                        "replica": "<img>",
                    },
                },
            ],
            "upstreams": [{
                "name": "files",
                "endpoints": [{
                    "origin": "<script>",
                    "addresses": [{ "address": "192.0.2.1:80", "state": "in", "in_flight": 3 }],
                }],
            }],
        });
        let body = super::page(&status)
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes();
        let body = std::str::from_utf8(&body).unwrap();
        assert!(
            body.contains("&lt;script&gt;") && body.contains("&lt;/pre&gt;&lt;img"),
            "{body}"
        );
        let row = "<tr><td>files<td>&lt;script&gt;<td>192.0.2.1:80<td>in<td><td><td>3<td>0</tr>";
        assert!(body.contains(row), "{body}");
        let store = "<p>The token store (redis, &lt;script&gt;) is <strong>up</strong>. \
                     &lt;script&gt; refreshes. This replica is &lt;img&gt;.</p>";
        assert!(body.contains(store), "{body}");
        assert!(!body.contains("<script") && !body.contains("<img"));
    }
}
