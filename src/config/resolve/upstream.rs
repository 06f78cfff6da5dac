//! `[upstream]` and `[upstreams.NAME]`.

use std::{ops::RangeInclusive, time::Duration};

use http::{StatusCode, uri::Scheme};

use super::{outbound_proxy::outbound_proxy, tls};
use crate::{
    base::host,
    config::{
        findings::{Problem, SourcePos, problem},
        keys,
        raw::Value,
        reader::Reader,
        values,
    },
    net::{
        self,
        outbound_proxy::{OutboundProxy, Protocol},
    },
    upstream::{Affinity, Config, Cookies, Endpoint, HealthCheck, Host, Http2},
};

/// A head of HTTP/2 counts 32 bytes for each field beside its text (RFC 9113 §6.5.2), and
/// `http::HeaderMap` takes up to 24,576 fields.
const LARGEST_HEAD: usize = 512 * 1024;

/// Every status below 500: even a 401 is a sign of life.
const SIGNS_OF_LIFE: RangeInclusive<u16> = 100..=499;

/// All upstreams, `[upstream]` first.
pub(super) fn upstreams(r: &mut Reader) -> Vec<Config> {
    let plain = upstream(r, keys::UPSTREAM, keys::DEFAULT);
    for (index, endpoint) in plain.endpoints.iter().enumerate() {
        let pos = r.pos_of_element("upstream.endpoints", index);
        let proxy = plain.proxy.as_deref();
        warn_if_plain_http(r, endpoint, proxy, &pos, "upstream.endpoints");
    }
    let mut all = vec![plain];
    for section in r.upstreams() {
        let name = section
            .strip_prefix(keys::UPSTREAMS)
            .unwrap_or_default()
            .trim_start_matches('.');
        all.push(upstream(r, &section, name));
    }
    all
}

fn upstream(r: &mut Reader, section: &str, name: &str) -> Config {
    let key = |name: &str| format!("{section}.{name}");
    let endpoints: Vec<Endpoint> = r
        .non_empty_list(&key("endpoints"), values::endpoint)
        .into_iter()
        .map(|(endpoint, _)| endpoint)
        .collect();
    let tls = tls::client(r, &key("tls"));
    let all_plain = endpoints
        .iter()
        .all(|endpoint| endpoint.scheme == Scheme::HTTP);
    if tls != net::tls::Config::default() && all_plain && !endpoints.is_empty() {
        warn_of_unused_tls(r, &key("tls"), "no endpoint begins with https://");
    }
    let has_clients = !r.tables("client").is_empty();
    let cookies = r.read(&key("cookies"), |value| {
        values::choice(value, &[("pass", Cookies::Pass), ("drop", Cookies::Drop)])
    });
    let cookies = cookies.unwrap_or(if has_clients {
        Cookies::Drop
    } else {
        Cookies::Pass
    });
    let config = Config {
        name: name.to_owned(),
        weights: weights(r, section, endpoints.len()),
        affinity: r.choice(
            &key("affinity"),
            [("none", Affinity::None), ("client", Affinity::Client)],
        ),
        endpoints,
        host: r.read(&key("host"), host_setting).unwrap_or(Host::Endpoint),
        connect_to: r.read(&key("connect_to"), values::socket_address),
        dns_refresh: r.positive_duration(&key("dns_refresh")),
        proxy: outbound_proxy(r, section),
        connect_timeout: r.positive_duration(&key("connect_timeout")),
        handshake_timeout: r.positive_duration(&key("handshake_timeout")),
        response_timeout: r.positive_duration(&key("response_timeout")),
        body_idle_timeout: r.positive_duration(&key("body_idle_timeout")),
        idle_timeout: r.positive_duration(&key("idle_timeout")),
        max_connections: r
            .count(&key("max_connections"), 10_000_000)
            .unwrap_or_default(),
        max_requests: r
            .count(&key("max_requests"), 10_000_000)
            .unwrap_or_default(),
        queue: r
            .read(&key("queue"), |value| values::integer(value, 0, 1_000_000))
            .and_then(|length| length.try_into().ok())
            .unwrap_or_default(),
        queue_timeout: r.positive_duration(&key("queue_timeout")),
        retry_statuses: retry_statuses(r, &key("retry_statuses")),
        slow_start: r.duration(&key("slow_start")),
        health: health_check(r, &key("health")),
        max_head_size: r
            .read(&key("max_head_size"), |value| {
                values::size_within(value, 4096, LARGEST_HEAD)
            })
            .unwrap_or_default(),
        cookies,
        http2: r.choice(
            &key("http2"),
            [
                ("auto", Http2::Auto),
                ("always", Http2::Always),
                ("never", Http2::Never),
            ],
        ),
        tls,
    };
    if let Some(proxy) = &config.proxy {
        reject_useless_with_proxy(r, section, &config, proxy);
    }
    config
}

/// One weight for each endpoint.
fn weights(r: &mut Reader, section: &str, endpoints: usize) -> Vec<u32> {
    let (key, endpoints_key) = (format!("{section}.weights"), format!("{section}.endpoints"));
    if !r.is_given(&key) {
        return vec![1; endpoints];
    }
    let weights = r.list(&key, |value| values::integer(value, 1, 1000));
    // Elements with mistakes count as well: they are reported already.
    let length = |path: &str| match r.raw_value(path) {
        Some(Value::List(elements)) => Some(elements.len()),
        _ => None,
    };
    if let (Some(given), Some(expected)) = (length(&key), length(&endpoints_key))
        && given != expected
    {
        let reason =
            format!("does not have one number for each endpoint: {given} instead of {expected}");
        let ones = vec!["1"; expected].join(", ");
        let hint = format!("write for example weights = [{ones}]");
        let problem = problem(reason, hint).or_variable(format!("set it for example to {ones}"));
        r.mistake(r.pos(&key), &key, problem);
    }
    weights.into_iter().map(|(weight, _)| weight).collect()
}

fn retry_statuses(r: &mut Reader, key: &str) -> Vec<StatusCode> {
    let statuses = r.list(key, values::server_error_status);
    let mut statuses: Vec<_> = statuses.into_iter().map(|(status, _)| status).collect();
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

/// `[upstream.health]`: `None` without a path.
fn health_check(r: &mut Reader, section: &str) -> Option<HealthCheck> {
    if !r.section_exists(section) {
        return None;
    }
    let key = |name: &str| format!("{section}.{name}");
    let path_key = key("path");
    if !r.is_given(&path_key) {
        let hint = r#"write the path of the health check, as in path = "/healthz""#;
        let problem = problem("is missing", hint)
            .or_variable("set it to the path of the health check, for example /healthz");
        r.missing(r.pos(&path_key), &path_key, problem);
    }
    let expect = if r.is_given(&key("expect")) {
        let statuses = r.non_empty_list(&key("expect"), values::statuses);
        statuses.into_iter().map(|(statuses, _)| statuses).collect()
    } else {
        vec![SIGNS_OF_LIFE]
    };
    let mut duration = |name, default| {
        r.read(&key(name), values::positive_duration)
            .unwrap_or(default)
    };
    let (interval, timeout) = (
        duration("interval", Duration::from_secs(5)),
        duration("timeout", Duration::from_secs(2)),
    );
    let mut count = |name, default| {
        r.read(&key(name), |value| values::integer(value, 1, 1000))
            .unwrap_or(default)
    };
    let (fall, rise) = (count("fall", 3), count("rise", 2));
    Some(HealthCheck {
        path: r.read(&path_key, values::url_path)?.parse().ok()?,
        interval,
        timeout,
        fall,
        rise,
        expect,
    })
}

fn host_setting(value: &Value) -> Result<Host, Problem> {
    match values::text(value)? {
        "endpoint" => Ok(Host::Endpoint),
        "client" => Ok(Host::Client),
        _ => values::host_header(value).map(Host::Fixed),
    }
}

/// Reports keys that an outbound proxy makes ineffective.
fn reject_useless_with_proxy(
    r: &mut Reader,
    section: &str,
    config: &Config,
    proxy: &OutboundProxy,
) {
    let connect_to = format!("{section}.connect_to");
    if r.is_given(&connect_to) {
        let reason = format!("cannot be used with {section}.proxy, which resolves the names");
        let problem = problem(reason, "remove one of the two");
        r.mistake(r.pos(&connect_to), &connect_to, problem);
    }
    // RFC 9112 §3.2.2.
    let mut endpoints = config.endpoints.iter();
    let has_absolute_form = proxy.address().protocol == Protocol::Http
        && config.http2 != Http2::Always
        && endpoints.any(|endpoint| endpoint.scheme == Scheme::HTTP);
    if has_absolute_form && config.host != Host::Endpoint {
        let host = format!("{section}.host");
        let reason = "has no effect on http:// endpoints behind an HTTP proxy, which replaces Host";
        let hint = "remove it, or use https:// endpoints or a socks5:// proxy";
        r.mistake(r.pos(&host), &host, problem(reason, hint));
    }
}

/// Warns of a plain http endpoint, to which secrets are sent, if others can read them: on the
/// network, or at the proxy that the requests pass.
pub(super) fn warn_if_plain_http(
    r: &mut Reader,
    endpoint: &Endpoint,
    proxy: Option<&OutboundProxy>,
    pos: &SourcePos,
    key: &str,
) {
    let reason = match proxy {
        _ if endpoint.scheme != Scheme::HTTP => return,
        Some(proxy) => format!(
            "is plain http: the proxy {} can read tokens and secrets",
            proxy.address()
        ),
        None if host::is_local(&endpoint.host) => return,
        None => "is plain http to another machine: tokens and secrets can be read on the network"
            .to_owned(),
    };
    let problem = problem(reason, "use https:// if the cloud supports it");
    r.warning(pos.clone(), key, problem);
}

pub(super) fn warn_of_unused_tls(r: &mut Reader, section: &str, reason: &str) {
    r.warning(
        r.pos_of_section(section),
        section,
        problem(
            format!("has no effect: {reason}"),
            "remove it, or use https://",
        ),
    );
}
