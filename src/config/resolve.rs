//! Converts the raw values into the configuration: a function for each section, and the checks
//! across keys.

mod clients;
mod cycles;
mod initial_grant;
mod listeners;
mod outbound_proxy;
mod routes;
mod store;
mod tls;
mod token;
mod upstream;

use std::{num::NonZero, thread};

use tracing::level_filters::LevelFilter;

use self::listeners::ListenerEntry;
pub(super) use self::{store::inspect as inspect_store, token::inspect_state_file};
use super::{Config, findings::problem, keys, reader::Reader, values};
use crate::{
    admin,
    base::log,
    proxy::{
        self, AccessLog, Exhausted, ForwardedHeaders, GuardConfig, Listener, Retry, RetryJson,
    },
};

/// Reads every key. `None` only after a mistake.
pub(super) fn config(r: &mut Reader) -> Option<Config> {
    let guard = listeners::guard(r);
    let trusted_networks = listeners::trusted_networks(r);
    let mut listeners = listeners::listeners(r, &guard, &trusted_networks);
    let clients = clients::clients(r, &listeners);
    listeners::relax_guards(&mut listeners, &clients);
    listeners::recommend_required_header(r, &listeners);
    let upstreams = upstream::upstreams(r);
    let rewrites = routes::rewrites(r);
    let routes = routes::routes(r, &upstreams, &rewrites);
    routes::check(r, &upstreams, &routes, &rewrites);
    routes::warn_of_unserved_hosts(r, &routes, &listeners);
    let plain = upstreams.first()?;
    let jwt = initial_grant::jwt_section(r);
    let token = token::token(r, plain);
    let issuer = token.as_ref().map(|token| &token.issuer);
    let initial_grant = initial_grant::initial_grant(r, issuer, jwt);
    let admin = admin(r, guard);
    listeners::reject_overlaps(r, &listeners, admin.as_ref());
    cycles::reject_own_addresses(r, &listeners, admin.as_ref(), &upstreams);
    let proxy = proxy::Config {
        trusted_networks,
        routes: routes.into_iter().flatten().collect(),
        rewrites: rewrites.into_iter().flatten().collect(),
        clients,
        credentials: vec![proxy::CredentialConfig {
            wait: token.as_ref().map(|token| token.wait).unwrap_or_default(),
            issuer_paths: token::issuer_paths(r),
        }],
        ..proxy(r, listeners)
    };
    let log = log(r);
    Some(Config {
        proxy,
        upstreams,
        token: token?,
        initial_grant: initial_grant?,
        admin,
        log,
    })
}

fn proxy(r: &mut Reader, listeners: Vec<ListenerEntry>) -> proxy::Config {
    let cores = || thread::available_parallelism().map_or(1, NonZero::get);
    proxy::Config {
        listeners: listeners.into_iter().map(|entry| entry.listener).collect(),
        workers: r.count("proxy.workers", 1024).unwrap_or_else(cores),
        limits: limits(r),
        forwarded_headers: r.choice(
            "proxy.forwarded_headers",
            [
                ("x-forwarded", ForwardedHeaders::XForwarded),
                ("forwarded", ForwardedHeaders::Forwarded),
                ("off", ForwardedHeaders::Off),
            ],
        ),
        trusted_networks: Default::default(),
        first_byte_timeout: r.positive_duration("proxy.first_byte_timeout"),
        head_timeout: r.positive_duration("proxy.head_timeout"),
        body_idle_timeout: r.positive_duration("proxy.body_idle_timeout"),
        min_body_rate: r
            .read("proxy.min_body_rate", |value| {
                values::size_within(value, 0, MOST_RATE)
            })
            .unwrap_or_default(),
        idle_timeout: r.positive_duration("proxy.idle_timeout"),
        half_closed_timeout: r.positive_duration("proxy.half_closed_timeout"),
        tunnel_idle_timeout: r.positive_duration("proxy.tunnel_idle_timeout"),
        drain_delay: r.duration("proxy.drain_delay"),
        drain_timeout: r.duration("proxy.drain_timeout"),
        retry: retry(r),
        routes: Vec::new(),
        rewrites: Vec::new(),
        clients: Vec::new(),
        credentials: Vec::new(),
        access_log: r.choice(
            "log.access",
            [
                ("off", AccessLog::Off),
                ("sampled", AccessLog::Sampled),
                ("all", AccessLog::All),
            ],
        ),
    }
}

/// Bytes per second.
const MOST_RATE: usize = 1024 * 1024 * 1024;

fn limits(r: &mut Reader) -> proxy::Limits {
    /// A head is buffered until it is complete.
    const LARGEST_HEAD: usize = 16 * 1024 * 1024;
    /// Percent-encoding makes it three times as long at most, and `http::Uri` takes up to 64 KiB.
    const LONGEST_URI: usize = 21 * 1024;
    let head_size = r.read("proxy.max_head_size", |value| {
        values::size_within(value, 256, LARGEST_HEAD)
    });
    let uri_length = r.read("proxy.max_uri_length", |value| {
        values::size_within(value, 16, LONGEST_URI)
    });
    if head_size
        .zip(uri_length)
        .is_some_and(|(head, uri)| head <= uri)
    {
        let reason = "is not larger than proxy.max_uri_length, and the URI is part of the head";
        r.missing(
            r.pos("proxy.max_head_size"),
            "proxy.max_head_size",
            problem(reason, "increase it, or decrease proxy.max_uri_length"),
        );
    }
    let mut count = |key: &str, most: u32| r.count(key, most).unwrap_or_default();
    proxy::Limits {
        connections: count("proxy.max_connections", 10_000_000),
        connections_per_address: count("proxy.max_connections_per_address", 10_000_000),
        requests: count("proxy.max_requests", 10_000_000),
        headers: count("proxy.max_headers", 10_000),
        streams: count("proxy.max_streams", 100_000),
        resets: count("proxy.max_resets", 10_000_000),
        control_frames: count("proxy.max_control_frames", 10_000_000),
        head_size: head_size.unwrap_or_default(),
        uri_length: uri_length.unwrap_or_default(),
    }
}

fn retry(r: &mut Reader) -> Retry {
    let mut statuses: Vec<_> = r
        .list("retry.statuses", values::error_status)
        .into_iter()
        .map(|(status, _)| status)
        .collect();
    statuses.sort_unstable();
    statuses.dedup();
    let body_limit = r.read("retry.body_limit", values::size);
    let total_limit = r.read("retry.total_limit", values::size);
    if total_limit
        .zip(body_limit)
        .is_some_and(|(total, body)| total < body)
    {
        let reason =
            "is smaller than retry.body_limit, so that no body of that size could be buffered";
        r.missing(
            r.pos("retry.total_limit"),
            "retry.total_limit",
            problem(reason, "write at least retry.body_limit"),
        );
    }
    Retry {
        statuses,
        json: retry_json(r),
        any_method: r.boolean("retry.any_method"),
        body_limit: body_limit.unwrap_or_default(),
        total_limit: total_limit.unwrap_or_default(),
        exhausted: r.read("retry.exhausted", |value| {
            values::choice(
                value,
                &[
                    ("relay", Exhausted::Relay),
                    ("bad_gateway", Exhausted::BadGateway),
                ],
            )
        }),
    }
}

/// `retry.json`, if it is given.
fn retry_json(r: &mut Reader) -> Option<RetryJson> {
    const POINTER: &str = "retry.json.pointer";
    const VALUES: &str = "retry.json.values";
    if !r.section_exists("retry.json") {
        return None;
    }
    for (needed, hint, example) in [
        (
            POINTER,
            r#"write the JSON pointer to the code, as in pointer = "/code""#,
            "/code",
        ),
        (
            VALUES,
            "write the codes that mean a rejected token, as in values = [401]",
            "401",
        ),
    ] {
        if !r.is_given(needed) {
            let variable = format!("set {}={example}", keys::variable(needed));
            r.missing(
                r.pos(needed),
                needed,
                problem("is missing", hint).or_variable(variable),
            );
        }
    }
    let pointer = r.read(POINTER, values::json_pointer);
    let values = r
        .non_empty_list(VALUES, values::code)
        .into_iter()
        .map(|(code, _)| code)
        .collect();
    Some(RetryJson {
        pointer: pointer?,
        values,
    })
}

/// The admin endpoint, if there is one. Its guard is that of the data listeners.
pub(super) fn admin(r: &mut Reader, guard: GuardConfig) -> Option<admin::Config> {
    let token = r.secret("admin.token");
    if token.as_ref().is_some_and(|token| !token.fits_header()) {
        let problem = problem(
            "is not allowed in an HTTP header",
            "use letters, digits and punctuation without spaces",
        );
        r.mistake(r.pos_of_secret("admin.token"), "admin.token", problem);
    }
    let Some(mut address) = r.read("admin.listen", values::address) else {
        if token.is_some() && !r.is_given("admin.listen") {
            let problem = problem(
                "has no effect without admin.listen",
                r#"write listen = "127.0.0.1:9180" in [admin]"#,
            )
            .or_variable("set BEARER_PROXY__ADMIN__LISTEN=127.0.0.1:9180");
            r.warning(r.pos_of_secret("admin.token"), "admin.token", problem);
        }
        return None;
    };
    let pos = r.pos("admin.listen");
    r.resolve_socket_path(&mut address, &pos);
    if !address.is_local() && token.is_none() {
        let reason = "can be reached from other machines: without admin.token it serves only \
            /healthz, /readyz and /metrics";
        r.warning(
            pos,
            "admin.listen",
            problem(
                reason,
                "set admin.token or admin.token_file to serve the other paths",
            ),
        );
    }
    Some(admin::Config {
        listener: Listener {
            address,
            guard,
            tls: None,
            proxy_protocol: false,
        },
        token,
    })
}

fn log(r: &mut Reader) -> log::Config {
    log::Config {
        level: r.choice(
            "log.level",
            [
                ("trace", LevelFilter::TRACE),
                ("debug", LevelFilter::DEBUG),
                ("info", LevelFilter::INFO),
                ("warn", LevelFilter::WARN),
                ("error", LevelFilter::ERROR),
                ("off", LevelFilter::OFF),
            ],
        ),
        format: r.choice(
            "log.format",
            [
                ("auto", log::Format::Auto),
                ("text", log::Format::Text),
                ("json", log::Format::Json),
            ],
        ),
    }
}
