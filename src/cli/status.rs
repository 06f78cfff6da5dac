//! `status`: the status of the proxy that runs with this configuration.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::{
    config_file::ConfigFile,
    output::{print_error, print_line},
    runtime::control_runtime,
};
use crate::{
    admin,
    net::socket::{Address, connect_to_listener},
};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print the status as JSON
    #[arg(long)]
    json: bool,
    /// Repeat every second, until interrupted
    #[arg(long)]
    watch: bool,
    /// Check only whether the process is alive: exit code 0 or 1
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    live: bool,
}

const NOT_READY: u8 = 1;
const UNREACHABLE: u8 = 2;
const TIMEOUT: Duration = Duration::from_secs(3);
const RESPONSE_LIMIT: usize = 1024 * 1024;

pub(super) fn status(config: &ConfigFile, args: &StatusArgs) -> ExitCode {
    // The rest of the configuration is not read: a health check must not fail for a secret that
    // only `run` can read.
    let admin = match config.load_admin() {
        Ok(admin) => admin,
        Err(_) if args.live => return ExitCode::from(NOT_READY),
        Err(code) => return code,
    };
    let unreachable = if args.live { NOT_READY } else { UNREACHABLE };
    let Some(admin) = admin else {
        print_error(format_args!("there is no admin endpoint: set admin.listen"));
        return ExitCode::from(unreachable);
    };
    let runtime = match control_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(format_args!("cannot start: {error}"));
            return ExitCode::from(unreachable);
        }
    };
    runtime.block_on(async {
        loop {
            let result = if args.live {
                show_live(&admin).await
            } else {
                show(&admin, args.json).await
            };
            let code = result.unwrap_or_else(|error| {
                print_error(format_args!("{}: {error}", admin.listener.address));
                ExitCode::from(unreachable)
            });
            if !args.watch {
                return code;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
}

async fn show_live(admin: &admin::Config) -> Result<ExitCode, String> {
    let (status, _) = get(admin, "/healthz").await?;
    Ok(if status == StatusCode::OK {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_READY)
    })
}

async fn show(admin: &admin::Config, json: bool) -> Result<ExitCode, String> {
    let (ready, _) = get(admin, "/readyz").await?;
    let (status, body) = get(admin, "/status").await?;
    if status != StatusCode::OK {
        return Err(format!(
            "the admin endpoint responded {status}: {}",
            String::from_utf8_lossy(&body).trim()
        ));
    }
    if json {
        print_line(format_args!(
            "{}",
            String::from_utf8_lossy(&body).trim_end()
        ));
    } else {
        let status: Value =
            serde_json::from_slice(&body).map_err(|_| "the response is not a status".to_owned())?;
        for line in describe(&status, ready == StatusCode::OK) {
            print_line(format_args!("{line}"));
        }
    }
    Ok(if ready == StatusCode::OK {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_READY)
    })
}

/// The status as text.
fn describe(status: &Value, ready: bool) -> Vec<String> {
    let mut lines = vec![format!(
        "bearer-proxy {}: {}",
        word(&status["version"]),
        if ready { "ready" } else { "not ready" }
    )];
    for credential in status["credentials"].as_array().into_iter().flatten() {
        describe_credential(credential, &mut lines);
    }
    for upstream in status["upstreams"].as_array().into_iter().flatten() {
        describe_upstream(upstream, &mut lines);
    }
    let seen = &status["seen_in_json"];
    for code in seen["codes"].as_array().into_iter().flatten() {
        let (code, pointer) = (word(&code["code"]), word(&seen["pointer"]));
        lines.push(format!(
            "responses have the code {code} at {pointer}: if it means a rejected token, add it to \
             retry.json"
        ));
    }
    for origin in seen["origins"].as_array().into_iter().flatten() {
        let origin = word(&origin["origin"]);
        lines.push(format!(
            "responses contain URLs of {origin}: if apps cannot reach it, add a [[rewrite]] for it"
        ));
    }
    for origin in status["other_schemes"].as_array().into_iter().flatten() {
        let origin = word(&origin["origin"]);
        lines.push(format!(
            "responses lead to {origin}, which is configured with another scheme: write it in \
             upstream.endpoints or [[rewrite]]"
        ));
    }
    if let Some(count) = status["rejected_links"]["count"]
        .as_u64()
        .filter(|count| *count > 0)
    {
        lines.push(format!(
            "{count} links of other sites were not followed: proxy.allow_navigation allows them"
        ));
    }
    lines
}

fn describe_credential(credential: &Value, lines: &mut Vec<String>) {
    let reason = credential["reason"]
        .as_str()
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    lines.push(format!(
        "token {}: {}{reason}",
        word(&credential["name"]),
        word(&credential["state"])
    ));
    if let Some(problem) = credential["problem"].as_str() {
        lines.push(format!("  {problem}"));
    }
    lines.push(format!(
        "  access token expires in: {}",
        seconds(&credential["expires_in"])
    ));
    lines.push(format!(
        "  refresh token expires in: {}",
        seconds(&credential["refresh_token_expires_in"])
    ));
    if credential["seed_refused"] == Value::Bool(true) {
        lines.push(
            "  NOT TAKEN: the issuer refused the newly configured refresh token; the stored one \
             stays in use"
                .to_owned(),
        );
    }
    if credential["persisted"] == Value::Bool(false) {
        lines.push(
            "  NOT STORED: the last tokens could not be written to state_file, see the log"
                .to_owned(),
        );
    }
    if !credential["store"].is_null() {
        describe_store(&credential["store"], lines);
    }
}

/// The store that replicas share. What is usual is left out.
fn describe_store(store: &Value, lines: &mut Vec<String>) {
    let is_up = store["up"] == Value::Bool(true);
    let mut line = format!("store {}: {}", word(&store["kind"]), word(&store["server"]));
    match store["since"].as_str().filter(|_| is_up) {
        Some(since) => line += &format!(", up since {since}"),
        None if is_up => line += ", up",
        None => line += ", DOWN",
    }
    if let Some(version) = store["version"].as_str() {
        line += &format!(", {version}");
    }
    for (name, label) in [("role", ""), ("persistence", "persistence ")] {
        if let Some(value) = store[name].as_str().filter(|value| *value != "unknown") {
            line += &format!(", {label}{}", value.replace('_', " "));
        }
    }
    if let Some(replicas) = store["replicas"].as_u64().filter(|replicas| *replicas > 0) {
        line += &format!(", {replicas} replicas");
    }
    lines.push(line);
    if let Some(problem) = store["problem"].as_str() {
        lines.push(format!("  {problem}"));
    }
    for finding in store["findings"].as_array().into_iter().flatten() {
        lines.push(format!("  warning: {}", word(finding)));
    }
    let settled = match store["settled"] == Value::Bool(true) {
        true => "settled",
        false => "settling: it watches the store, and refreshes nothing yet",
    };
    lines.push(format!(
        "  this replica: {}, {settled}",
        word(&store["replica"])
    ));
    let serial = store["serial"].as_u64();
    let serial = serial.map_or_else(|| "none".to_owned(), |serial| format!("serial {serial}"));
    let life = store["life"].as_str();
    let life = life.map_or_else(String::new, |life| format!(", life {life}"));
    lines.push(format!("  record: {serial}{life}"));
    let claim = &store["claim"];
    if !claim.is_null() {
        let orphaned = match claim["orphaned"] == Value::Bool(true) {
            true => ", and does not renew its claim any more",
            false => "",
        };
        let generation = claim["generation"].as_u64().unwrap_or_default();
        lines.push(format!(
            "  {} refreshes (generation {generation}){orphaned}",
            word(&claim["replica"])
        ));
    }
}

fn describe_upstream(upstream: &Value, lines: &mut Vec<String>) {
    let name = word(&upstream["name"]);
    for endpoint in upstream["endpoints"].as_array().into_iter().flatten() {
        lines.push(format!("upstream {name}: {}", word(&endpoint["origin"])));
        if let Some(error) = endpoint["resolve_error"].as_str() {
            lines.push(format!(
                "  NOT RESOLVED: {error}; the last known addresses stay in use"
            ));
        }
        let addresses = endpoint["addresses"].as_array().into_iter().flatten();
        lines.extend(addresses.map(describe_address));
    }
    if let Some(waiting) = upstream["queue_length"]
        .as_u64()
        .filter(|length| *length > 0)
    {
        lines.push(format!(
            "upstream {name}: {waiting} requests wait in the queue, since all addresses are full \
             (upstream.max_connections, upstream.max_requests)"
        ));
    }
}

/// One line. What is usual is left out.
fn describe_address(address: &Value) -> String {
    let state = word(&address["state"]);
    let mut line = format!("  {}: {state}", word(&address["address"]));
    if let Some(reason) = address["reason"].as_str() {
        line += &format!(" ({reason})");
    }
    if state != "in" {
        line += &format!(" since {}", word(&address["since"]));
    }
    if let Some(until) = address["until"].as_str() {
        line += &format!(" until {until}");
    }
    let number = |name: &str| address[name].as_u64().unwrap_or_default();
    line += &format!(", {} in flight", number("in_flight"));
    if number("ejections") > 0 {
        line += &format!(", ejections: {}", number("ejections"));
    }
    if let Some(tenths) = address["weight_tenths"]
        .as_u64()
        .filter(|tenths| *tenths < 10)
    {
        line += &format!(", at {} % of its weight", tenths * 10);
    }
    if address["other_family"] == Value::Bool(true) {
        line += ", other address family";
    }
    line
}

/// A text of the status. A status without it is still shown: it may be another version's.
fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn seconds(value: &Value) -> String {
    value.as_i64().map_or_else(
        || "unknown".to_owned(),
        |seconds| {
            humantime::format_duration(Duration::from_secs(seconds.unsigned_abs())).to_string()
        },
    )
}

async fn get(admin: &admin::Config, path: &str) -> Result<(StatusCode, Bytes), String> {
    tokio::time::timeout(TIMEOUT, get_without_timeout(admin, path))
        .await
        .unwrap_or_else(|_| Err(format!("no response within {TIMEOUT:?}")))
}

async fn get_without_timeout(
    admin: &admin::Config,
    path: &str,
) -> Result<(StatusCode, Bytes), String> {
    let address = &admin.listener.address;
    let stream = connect_to_listener(address, TIMEOUT)
        .await
        .map_err(|error| {
            format!("cannot connect ({error}); is the proxy running with this configuration?")
        })?;
    let broken = |error: hyper::Error| format!("invalid response: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let host = match address {
        Address::Tcp(address) => format!("localhost:{}", address.port()),
        Address::Unix(_) => "localhost".to_owned(),
    };
    let mut request = Request::get(path).header("host", host);
    if let Some(token) = &admin.token {
        request = request.header("authorization", format!("Bearer {}", token.expose()));
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|_| "admin.token cannot be sent in a header".to_owned())?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), RESPONSE_LIMIT)
        .collect()
        .await;
    Ok((
        status,
        body.map_err(|error| format!("invalid response: {error}"))?
            .to_bytes(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_in_words_and_never_a_panic() {
        let status = serde_json::json!({
            "version": "1.2.3",
            "credentials": [{ "name": "default", "state": "stale", "reason": "issuer_unreachable", "problem": "look here", "expires_in": 61 }],
            "upstreams": [
                { "name": "default", "endpoints": [{ "origin": "https://cloud.example.com" }] },
                {
                    "name": "files",
                    "queue_length": 2,
                    "endpoints": [{
                        "origin": "https://files.example.com",
                        "resolve_error": "no such name",
                        "addresses": [
                            { "address": "192.0.2.1:443", "state": "in", "since": "2026-01-02T03:04:05Z", "in_flight": 3, "weight_tenths": 10 },
                            { "address": "192.0.2.2:443", "state": "failing", "reason": "status", "since": "2026-01-02T03:04:05Z", "until": "2026-01-02T03:04:15Z", "ejections": 2 },
                            { "address": "[2001:db8::1]:443", "state": "in", "weight_tenths": 3, "other_family": true },
                            7,
                        ],
                    }],
                },
            ],
            "seen_in_json": {
                "pointer": "/code",
                "codes": [{ "code": "1201" }],
                "origins": [{ "origin": "http://document.example.com" }],
            },
            "other_schemes": [{ "origin": "https://cloud.example.com" }],
            "rejected_links": { "count": 3 },
        });
        assert_eq!(
            describe(&status, true),
            [
                "bearer-proxy 1.2.3: ready",
                "token default: stale (issuer_unreachable)",
                "  look here",
                "  access token expires in: 1m 1s",
                "  refresh token expires in: unknown",
                "upstream default: https://cloud.example.com",
                "upstream files: https://files.example.com",
                "  NOT RESOLVED: no such name; the last known addresses stay in use",
                "  192.0.2.1:443: in, 3 in flight",
                "  192.0.2.2:443: failing (status) since 2026-01-02T03:04:05Z until \
                 2026-01-02T03:04:15Z, 0 in flight, ejections: 2",
                "  [2001:db8::1]:443: in, 0 in flight, at 30 % of its weight, other address family",
                "  ?: ? since ?, 0 in flight",
                "upstream files: 2 requests wait in the queue, since all addresses are full \
                 (upstream.max_connections, upstream.max_requests)",
                "responses have the code 1201 at /code: if it means a rejected token, add it to \
                 retry.json",
                "responses contain URLs of http://document.example.com: if apps cannot reach it, \
                 add a [[rewrite]] for it",
                "responses lead to https://cloud.example.com, which is configured with another \
                 scheme: write it in upstream.endpoints or [[rewrite]]",
                "3 links of other sites were not followed: proxy.allow_navigation allows them",
            ]
        );
        assert_eq!(describe(&Value::Null, false), ["bearer-proxy ?: not ready"]);
    }

    #[test]
    fn a_shared_store_in_words() {
        let described = |store: Value| {
            let mut lines = Vec::new();
            describe_store(&store, &mut lines);
            lines
        };
        let up = serde_json::json!({
            "kind": "redis",
            "server": "192.0.2.1:6379",
            "up": true,
            "since": "2026-01-02T03:04:05Z",
            "version": "Redis 7.2.4",
            "role": "primary",
            "replicas": 1,
            "persistence": "append_only_file",
            "findings": ["it accepts writes without its replicas"],
            "serial": 12,
            "life": "00000000000000ab",
            "claim": { "replica": "b:2", "generation": 7, "orphaned": true },
            "settled": true,
            "replica": "a:1",
        });
        assert_eq!(
            described(up),
            [
                "store redis: 192.0.2.1:6379, up since 2026-01-02T03:04:05Z, Redis 7.2.4, primary, \
                 persistence append only file, 1 replicas",
                "  warning: it accepts writes without its replicas",
                "  this replica: a:1, settled",
                "  record: serial 12, life 00000000000000ab",
                "  b:2 refreshes (generation 7), and does not renew its claim any more",
            ]
        );
        let down = serde_json::json!({
            "kind": "redis",
            "server": "192.0.2.1:6379",
            "up": false,
            "since": null,
            "problem": "no response",
            "role": "unknown",
            "persistence": "unknown",
            "claim": null,
            "settled": false,
            "replica": "a:1",
        });
        assert_eq!(
            described(down),
            [
                "store redis: 192.0.2.1:6379, DOWN",
                "  no response",
                "  this replica: a:1, settling: it watches the store, and refreshes nothing yet",
                "  record: none",
            ]
        );
        assert_eq!(described(serde_json::json!(7)).len(), 3);
    }
}
