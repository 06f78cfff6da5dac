//! `/metrics`: OpenMetrics text. Each metric is declared once, with its help text; METRICS.md
//! explains the names and labels.

mod totals;
mod upstreams;
mod writer;

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::StatusCode;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text::encode},
    registry::Registry,
};

use self::{
    totals::Totals,
    upstreams::Upstreams,
    writer::{Series, Writer, labels},
};
use super::{Sources, response};
use crate::{
    base::{counter::BUCKETS, labels::Label, log, panics, process},
    net::http_server::HttpResponse,
    token::{DurationHistogram, Persistence, Snapshot},
};

/// All metrics, as they are now.
pub(super) fn render(sources: &Sources, draining: bool) -> HttpResponse {
    let mut registry = Registry::default();
    let certificates = sources.reload.certificates();
    let upstreams = sources.upstreams.iter();
    let upstreams = upstreams.map(|shared| (&*shared.config().name, shared.status()));
    let upstreams: Vec<_> = upstreams.collect();
    let scrape = Scrape {
        credential: sources.credential.snapshot(),
        certificates: certificates
            .map(|(name, validity)| (name.to_owned(), validity.map(|validity| validity.not_after)))
            .collect(),
        draining,
        totals: Totals::of(&sources.workers),
        upstreams: Upstreams::of(&upstreams),
    };
    registry
        .sub_registry_with_prefix("bearer_proxy")
        .register_collector(Box::new(scrape));
    registry.register_collector(Box::new(Process));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response::respond(StatusCode::OK, content_type, Bytes::from(text))
        }
        // Writing into a string does not fail.
        Err(_) => response::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics cannot be written\n",
        ),
    }
}

/// All values of one scrape.
#[derive(Debug)]
struct Scrape {
    credential: Snapshot,
    /// The use of each certificate, and its expiry if it is known.
    certificates: Vec<(String, Option<SystemTime>)>,
    draining: bool,
    totals: Totals,
    upstreams: Upstreams,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.encode_process(&mut writer)?;
        self.encode_requests(&mut writer)?;
        self.encode_client_connections(&mut writer)?;
        self.encode_upstream(&mut writer)?;
        self.encode_addresses(&mut writer)?;
        self.encode_certificates(&mut writer)?;
        self.encode_refreshes(&mut writer)?;
        self.encode_store(&mut writer)?;
        self.encode_token(&mut writer)
    }
}

impl Scrape {
    fn encode_process(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let revision = option_env!("BEARER_PROXY_REVISION").unwrap_or("unknown");
        let build = labels([
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", revision),
        ]);
        writer.gauges("build_info", "Always 1", &vec![(build, 1.0)])?;
        writer.gauge(
            "draining",
            "1 while the process is shutting down",
            f64::from(u8::from(self.draining)),
        )?;
        writer.counter(
            "panics",
            "Bugs in the proxy; the log has the location",
            panics::count(),
        )?;
        writer.counter(
            "log_lines_dropped",
            "Log lines that were dropped because standard error was not read",
            log::dropped_lines(),
        )
    }

    fn encode_requests(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let totals = &self.totals;
        writer.counters(
            "requests",
            "Responses to clients, including those that the proxy generates",
            &totals.requests,
        )?;
        writer.counters(
            "client_requests",
            "Responses to each [[client]]",
            &totals.client_requests,
        )?;
        let (buckets, seconds) = &totals.duration;
        writer.histogram(
            "request_duration_seconds",
            "Time from a request's head to the end of its response",
            &BUCKETS,
            buckets,
            *seconds,
        )?;
        writer.gauge(
            "requests_in_flight",
            "Requests whose response is not complete",
            totals.requests_in_flight as f64,
        )?;
        writer.counters(
            "requests_rejected",
            "Responses that the proxy generates itself, by reason",
            &totals.requests_rejected,
        )?;
        writer.counters(
            "retries",
            "Requests that were replayed, or should have been",
            &totals.retries,
        )?;
        writer.counters(
            "json_answers",
            "JSON responses that were subject to a [[rewrite]], by outcome",
            &totals.json_answers,
        )
    }

    fn encode_client_connections(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let totals = &self.totals;
        writer.counter(
            "received_bytes",
            "Bytes received from clients",
            totals.received_bytes,
        )?;
        writer.counter("sent_bytes", "Bytes sent to clients", totals.sent_bytes)?;
        writer.gauge(
            "connections_open",
            "Open client connections",
            totals.connections_open as f64,
        )?;
        writer.gauge(
            "tunnels_open",
            "Open client connections that were upgraded",
            totals.tunnels_open as f64,
        )?;
        writer.counters(
            "connections_rejected",
            "Client connections that were rejected or closed, by reason",
            &totals.connections_rejected,
        )?;
        writer.counter(
            "streams_refused",
            "HTTP/2 requests over proxy.max_streams",
            totals.streams_refused,
        )?;
        writer.counters(
            "clients_late",
            "Client connections closed and HTTP/2 streams reset because a limit expired, by limit",
            &totals.clients_late,
        )
    }

    fn encode_upstream(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.gauges(
            "upstream_connections",
            "Connections to the cloud, by state",
            &self.totals.upstream_connections,
        )?;
        writer.counters(
            "upstream_errors",
            "Errors of the cloud, by kind",
            &self.totals.upstream_errors,
        )
    }

    fn encode_addresses(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let upstreams = &self.upstreams;
        writer.gauges(
            "endpoint_healthy",
            "1 if an address of the endpoint is in use or on trial",
            &upstreams.endpoint_healthy,
        )?;
        writer.gauges(
            "upstream_address_healthy",
            "1 if the address is in use or on trial",
            &upstreams.address_healthy,
        )?;
        writer.gauges(
            "upstream_requests_in_flight",
            "Requests under way to an address",
            &upstreams.in_flight,
        )?;
        writer.counters(
            "upstream_ejections",
            "How often addresses were taken out of use, by reason",
            &upstreams.ejections,
        )?;
        writer.gauges(
            "upstream_queue_length",
            "Requests that wait because all addresses are full",
            &upstreams.queue_length,
        )
    }

    fn encode_certificates(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let expiries = self
            .certificates
            .iter()
            .map(|(name, expiry)| (labels([("use", name)]), timestamp(*expiry)));
        writer.gauges(
            "certificate_expiry_timestamp_seconds",
            "Earliest expiry in a certificate chain; 0: unknown",
            &expiries.collect(),
        )
    }

    fn encode_refreshes(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let credential = &self.credential;
        let outcomes = credential.refreshes.iter().map(|(outcome, n)| {
            let name = ("credential", credential.name.as_str());
            (labels([name, ("outcome", outcome.label())]), *n)
        });
        writer.counters(
            "token_refreshes",
            "Calls to the issuer, by outcome",
            &outcomes.collect(),
        )?;
        let durations = &credential.refresh_durations;
        writer.histogram(
            "token_refresh_duration_seconds",
            "Duration of the calls to the issuer",
            &DurationHistogram::BOUNDS,
            durations.counts(),
            durations.sum(),
        )
    }

    fn encode_store(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let credential = &self.credential;
        let store = credential.store.as_ref();
        let is_up = match store {
            Some(store) => store.is_up,
            None => !matches!(credential.persistence, Persistence::Failing { .. }),
        };
        writer.gauge(
            "token_store_up",
            "0 while new tokens cannot be stored",
            f64::from(u8::from(is_up)),
        )?;
        writer.counters(
            "token_store_errors",
            "Commands to the shared token store that failed, by error",
            &counts("error", store.map(|store| &store.errors)),
        )?;
        writer.counters(
            "token_store_restores",
            "Records that were written back into the shared token store, by reason",
            &counts("reason", store.map(|store| &store.restores)),
        )?;
        writer.counters(
            "token_claims",
            "Claims of refreshes in the shared token store, by outcome",
            &counts("outcome", store.map(|store| &store.claims)),
        )?;
        let is_settling = store.is_some_and(|store| !store.is_settled);
        writer.gauge(
            "token_settling",
            "1 while this replica watches the shared token store, and refreshes nothing",
            f64::from(u8::from(is_settling)),
        )
    }

    fn encode_token(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let credential = &self.credential;
        let mut gauge = |name, help, value: f64| {
            let labels = labels([("credential", &*credential.name)]);
            writer.gauges(name, help, &vec![(labels, value)])
        };
        gauge(
            "token_expiry_timestamp_seconds",
            "Expiry of the access token; 0: no token",
            timestamp(credential.expires_at),
        )?;
        gauge(
            "refresh_token_expiry_timestamp_seconds",
            "Expiry of the refresh token; 0: unknown",
            timestamp(credential.refresh_token_expires_at),
        )?;
        gauge(
            "token_state_since_timestamp_seconds",
            "Start of the current state",
            timestamp(Some(credential.since)),
        )?;
        gauge(
            "token_seed_refused",
            "1: the issuer rejected the newly configured refresh token; the stored one is used",
            f64::from(u8::from(credential.seed_refused)),
        )?;
        gauge(
            "token_generation",
            "Number of the current token, counted up; 0: no token",
            credential.generation as f64,
        )?;
        writer.gauges(
            "token_state",
            "1 for the current state",
            &one_hot(&credential.name, "state", credential.state),
        )?;
        writer.gauges(
            "token_state_reason",
            "1 for the reason of the current state",
            &one_hot(&credential.name, "reason", credential.reason),
        )
    }
}

/// A time series for each value of a label; 0 without counts.
fn counts<L: Label>(name: &'static str, counts: Option<&Vec<(L, u64)>>) -> Series<u64> {
    let zeros = || L::VALUES.iter().map(|value| (*value, 0)).collect();
    let counts = counts.cloned().unwrap_or_else(zeros);
    counts
        .into_iter()
        .map(|(value, count)| (labels([(name, value.label())]), count))
        .collect()
}

/// A time series for each value of a label: 1 for the current one, 0 for the others.
fn one_hot<L: Label + PartialEq>(credential: &str, name: &'static str, current: L) -> Series<f64> {
    L::VALUES
        .iter()
        .map(|value| {
            let labels = labels([("credential", credential), (name, value.label())]);
            (labels, f64::from(u8::from(*value == current)))
        })
        .collect()
}

/// Seconds since 1970; 0: unknown.
fn timestamp(moment: Option<SystemTime>) -> f64 {
    moment
        .and_then(|moment| moment.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |since| since.as_secs_f64())
}

/// The standard metrics of a process.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let Some(usage) = process::usage() else {
            return Ok(());
        };
        writer.float_counter(
            "process_cpu_seconds",
            "User and system CPU time",
            usage.cpu_seconds,
        )?;
        let mut gauge = |name, help, value| writer.gauge(name, help, value);
        gauge(
            "process_resident_memory_bytes",
            "Resident memory",
            usage.resident_bytes as f64,
        )?;
        gauge(
            "process_virtual_memory_bytes",
            "Virtual memory",
            usage.virtual_bytes as f64,
        )?;
        gauge(
            "process_start_time_seconds",
            "Start time, in seconds since 1970",
            usage.start_seconds,
        )?;
        gauge(
            "process_open_fds",
            "Open file descriptors",
            usage.open_descriptors as f64,
        )?;
        gauge(
            "process_max_fds",
            "Limit of open file descriptors",
            usage.descriptor_limit as f64,
        )?;
        gauge("process_threads", "Threads", usage.threads as f64)
    }
}
