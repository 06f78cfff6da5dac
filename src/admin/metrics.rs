//! `/metrics`: the numbers, as Prometheus and OpenMetrics read them.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::Registry,
};

use super::Sources;
use crate::{
    base::{
        counter::{BUCKETS, Counter},
        labels::{Label, PerLabel},
        panics, process,
    },
    proxy::metrics::{Endpoint, Metrics, Named, StatusCounters},
    token::{DurationHistogram, Persistence, Reason, Snapshot, State},
};

/// All numbers at this moment.
pub(super) fn render(sources: &Sources, draining: bool) -> Response<Full<Bytes>> {
    let mut registry = Registry::default();
    let certificates = sources.reload.certificates();
    let scrape = Scrape {
        credential: sources.credential.snapshot(),
        certificates: certificates
            .map(|(name, good)| (name.to_owned(), good.map(|good| good.not_after)))
            .collect(),
        draining,
        sources: Numbers::of(sources),
    };
    registry
        .sub_registry_with_prefix("bearer_proxy")
        .register_collector(Box::new(scrape));
    registry.register_collector(Box::new(Process));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            super::respond(StatusCode::OK, content_type, Bytes::from(text))
        }
        // Writing into a string does not fail.
        Err(_) => super::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics cannot be written\n",
        ),
    }
}

impl Sources {
    /// One number of all workers together.
    pub(super) fn sum(&self, number: impl Fn(&Metrics) -> u64) -> u64 {
        self.workers.iter().map(|worker| number(worker)).sum()
    }
}

/// A number with its labels, as many as there are of one name.
type Series = Vec<(Vec<(&'static str, String)>, u64)>;

/// The workers' numbers, added up.
#[derive(Debug)]
struct Numbers {
    requests: Series,
    client_requests: Series,
    rejected: Series,
    retries: Series,
    connections_rejected: Series,
    late: Series,
    upstream_connections: Series,
    upstream_errors: Series,
    in_flight: u64,
    received_bytes: u64,
    sent_bytes: u64,
    connections_open: u64,
    streams_refused: u64,
    tunnels_open: u64,
    rewritten: u64,
    coded: u64,
    duration: ([u64; BUCKETS.len() + 1], f64),
}

#[derive(Debug)]
struct Scrape {
    credential: Snapshot,
    /// What for, and when it ends.
    certificates: Vec<(String, Option<SystemTime>)>,
    draining: bool,
    sources: Numbers,
}

impl Numbers {
    fn of(sources: &Sources) -> Self {
        let workers = &sources.workers;
        let mut buckets = [0; BUCKETS.len() + 1];
        let mut seconds = 0.0;
        for worker in workers.iter() {
            let (counts, sum) = worker.duration.counts();
            buckets
                .iter_mut()
                .zip(counts)
                .for_each(|(bucket, count)| *bucket += count);
            seconds += sum.as_secs_f64();
        }
        Self {
            requests: by_status("route", workers, |worker| &worker.routes),
            client_requests: by_status("client", workers, |worker| &worker.clients),
            rejected: by_label("reason", workers, |worker| &worker.rejected),
            retries: added_up(workers.iter().flat_map(|worker| {
                worker.retries.iter().flat_map(|(reason, outcomes)| {
                    outcomes.iter().map(move |(outcome, n)| {
                        let labels = vec![
                            ("reason", reason.label().to_owned()),
                            ("outcome", outcome.label().to_owned()),
                        ];
                        (labels, n.value())
                    })
                })
            })),
            connections_rejected: by_label("reason", workers, |worker| {
                &worker.connections_rejected
            }),
            late: by_label("limit", workers, |worker| &worker.client_timeouts),
            upstream_connections: added_up(endpoints(workers).flat_map(|(origin, endpoint)| {
                let labels =
                    |state: &str| vec![("endpoint", origin.clone()), ("state", state.to_owned())];
                [
                    (labels("active"), endpoint.connections.active.value()),
                    (labels("idle"), endpoint.connections.idle.value()),
                ]
            })),
            upstream_errors: added_up(endpoints(workers).flat_map(|(origin, endpoint)| {
                let failures = endpoint.failures.iter().map(|(failure, n)| {
                    let labels = vec![
                        ("endpoint", origin.clone()),
                        ("error", failure.label().to_owned()),
                    ];
                    (labels, n.value())
                });
                failures.collect::<Vec<_>>()
            })),
            in_flight: sources.sum(|worker| worker.in_flight.value()),
            received_bytes: sources.sum(|worker| worker.received_bytes.value()),
            sent_bytes: sources.sum(|worker| worker.sent_bytes.value()),
            connections_open: sources.sum(|worker| worker.connections_open.value()),
            streams_refused: sources.sum(|worker| worker.streams_refused.value()),
            tunnels_open: sources.sum(|worker| worker.tunnels_open.value()),
            rewritten: sources.sum(|worker| worker.rewritten.value()),
            coded: sources.sum(|worker| worker.encoded.value()),
            duration: (buckets, seconds),
        }
    }
}

/// Responses by status code, for each name.
fn by_status(
    name: &'static str,
    workers: &[Arc<Metrics>],
    counters: fn(&Metrics) -> &Named<StatusCounters>,
) -> Series {
    added_up(workers.iter().flat_map(|worker| {
        counters(worker)
            .all()
            .into_iter()
            .flat_map(|(value, counters)| {
                let counted = counters
                    .by_code()
                    .map(|(code, n)| (vec![(name, value.clone()), ("code", code.to_string())], n));
                counted.collect::<Vec<_>>()
            })
    }))
}

/// One series for each value of the label.
fn by_label<L: Label>(
    name: &'static str,
    workers: &[Arc<Metrics>],
    counters: fn(&Metrics) -> &PerLabel<L, Counter>,
) -> Series {
    added_up(workers.iter().flat_map(|worker| {
        counters(worker)
            .iter()
            .map(move |(value, n)| (vec![(name, value.label().to_owned())], n.value()))
    }))
}

/// The endpoints of all workers.
fn endpoints(workers: &[Arc<Metrics>]) -> impl Iterator<Item = (String, Arc<Endpoint>)> + '_ {
    workers.iter().flat_map(|worker| worker.endpoints.all())
}

fn added_up(all: impl Iterator<Item = (Vec<(&'static str, String)>, u64)>) -> Series {
    let mut sums = std::collections::BTreeMap::new();
    for (labels, n) in all {
        *sums.entry(labels).or_insert(0) += n;
    }
    sums.into_iter().collect()
}

/// Writes one metric after another.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn metric<'s>(
        &'s mut self,
        name: &'s str,
        help: &'s str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.metric(name, help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.metric(name, help, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn counters(&mut self, name: &str, help: &str, series: &Series) -> fmt::Result {
        let mut metric = self.metric(name, help, MetricType::Counter)?;
        series.iter().try_for_each(|(labels, n)| {
            metric
                .encode_family(&labels.as_slice())?
                .encode_counter::<NoLabelSet, _, u64>(n, None)
        })
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        series: &[(Vec<(&'static str, String)>, f64)],
    ) -> fmt::Result {
        let mut metric = self.metric(name, help, MetricType::Gauge)?;
        series
            .iter()
            .try_for_each(|(labels, n)| metric.encode_family(&labels.as_slice())?.encode_gauge(n))
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) -> fmt::Result {
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        let count = counts.iter().sum();
        let mut metric = self.metric(name, help, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.encode_build(&mut writer)?;
        self.encode_requests(&mut writer)?;
        self.encode_certificates(&mut writer)?;
        self.encode_token(&mut writer)
    }
}

/// Seconds since 1970; 0: not known.
fn seconds(moment: Option<SystemTime>) -> f64 {
    moment
        .and_then(|moment| moment.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |since| since.as_secs_f64())
}

impl Scrape {
    fn encode_build(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            (
                "revision",
                option_env!("BEARER_PROXY_REVISION")
                    .unwrap_or("unknown")
                    .to_owned(),
            ),
        ];
        writer.gauges("build_info", "What this is; always 1", &[(labels, 1.0)])?;
        writer.gauge(
            "draining",
            "1 while the process is about to end",
            f64::from(u8::from(self.draining)),
        )
    }

    fn encode_requests(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let numbers = &self.sources;
        let (buckets, seconds) = &numbers.duration;
        writer.counters("requests", "Answers, by status code", &numbers.requests)?;
        writer.counters(
            "client_requests",
            "Answers to known clients, by status code",
            &numbers.client_requests,
        )?;
        let help = "From a request's head to the end of its answer";
        writer.histogram(
            "request_duration_seconds",
            help,
            &BUCKETS,
            buckets,
            *seconds,
        )?;
        writer.gauge(
            "requests_in_flight",
            "Requests whose answer is not complete",
            numbers.in_flight as f64,
        )?;
        writer.counters(
            "requests_rejected",
            "Answers that are the proxy's own, by reason",
            &numbers.rejected,
        )?;
        writer.counter(
            "received_bytes",
            "Bytes read from clients",
            numbers.received_bytes,
        )?;
        writer.counter("sent_bytes", "Bytes written to clients", numbers.sent_bytes)?;
        writer.counters(
            "retries",
            "Requests sent again, or that should have been",
            &numbers.retries,
        )?;
        writer.counter(
            "panics",
            "Mistakes of this program; the log tells where",
            panics::count(),
        )?;
        writer.gauge(
            "connections_open",
            "Client connections",
            numbers.connections_open as f64,
        )?;
        let json = [("rewritten", numbers.rewritten), ("coded", numbers.coded)];
        let json: Series = json
            .map(|(outcome, n)| (vec![("outcome", outcome.to_owned())], n))
            .into();
        writer.counters(
            "json_answers",
            "JSON answers by what became of the addresses in them",
            &json,
        )?;
        let help = "Requests over HTTP/2 beyond what their connection may have under way";
        writer.counter("streams_refused", help, numbers.streams_refused)?;
        writer.gauge(
            "tunnels_open",
            "Upgraded connections",
            numbers.tunnels_open as f64,
        )?;
        let help = "Client connections turned away, by reason";
        writer.counters("connections_rejected", help, &numbers.connections_rejected)?;
        let help = "Client connections closed and streams reset, by the limit that had passed";
        writer.counters("clients_late", help, &numbers.late)?;
        let connections = numbers
            .upstream_connections
            .iter()
            .map(|(labels, n)| (labels.clone(), *n as f64));
        let connections: Vec<_> = connections.collect();
        writer.gauges(
            "upstream_connections",
            "Connections to endpoints, by state",
            &connections,
        )?;
        writer.counters(
            "upstream_errors",
            "Failures of endpoints, by kind",
            &numbers.upstream_errors,
        )
    }

    fn encode_certificates(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let ends = self
            .certificates
            .iter()
            .map(|(name, end)| (vec![("use", name.clone())], seconds(*end)));
        let help = "When the first certificate of a chain that we show expires; 0: not known";
        writer.gauges(
            "certificate_expiry_timestamp_seconds",
            help,
            &ends.collect::<Vec<_>>(),
        )
    }

    fn encode_token(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let credential = &self.credential;
        let named = |more: &[(&'static str, &str)]| {
            let mut labels = vec![("credential", credential.name.clone())];
            labels.extend(
                more.iter()
                    .map(|(name, value)| (*name, (*value).to_owned())),
            );
            labels
        };
        let refreshes: Series = credential
            .refreshes
            .iter()
            .map(|(outcome, n)| (named(&[("outcome", outcome.label())]), *n))
            .collect();
        writer.counters(
            "token_refreshes",
            "Calls of the issuer, by outcome",
            &refreshes,
        )?;
        let durations = &credential.refresh_durations;
        let (bounds, counts) = (&DurationHistogram::BOUNDS, durations.counts());
        writer.histogram(
            "token_refresh_duration_seconds",
            "Calls of the issuer",
            bounds,
            counts,
            durations.sum(),
        )?;
        let expiry = [(named(&[]), seconds(credential.expires_at))];
        writer.gauges(
            "token_expiry_timestamp_seconds",
            "When the access token expires; 0: there is none",
            &expiry,
        )?;
        let expiry = [(named(&[]), seconds(credential.refresh_token_expires_at))];
        let help = "When the refresh token expires; 0: not known";
        writer.gauges("refresh_token_expiry_timestamp_seconds", help, &expiry)?;
        let states: Vec<_> = State::ALL
            .iter()
            .map(|state| {
                (
                    named(&[("state", state.label())]),
                    f64::from(u8::from(*state == credential.state)),
                )
            })
            .collect();
        writer.gauges("token_state", "1 for the current state", &states)?;
        let reasons: Vec<_> = Reason::ALL
            .iter()
            .map(|reason| {
                (
                    named(&[("reason", reason.label())]),
                    f64::from(u8::from(*reason == credential.reason)),
                )
            })
            .collect();
        writer.gauges(
            "token_state_reason",
            "1 for the reason of the current state",
            &reasons,
        )?;
        let since = [(named(&[]), seconds(Some(credential.since)))];
        writer.gauges(
            "token_state_since_timestamp_seconds",
            "Since when the state is the current one",
            &since,
        )?;
        let refused = [(named(&[]), f64::from(u8::from(credential.seed_refused)))];
        let help = "1: the newly configured refresh token was refused, and the stored one goes on";
        writer.gauges("token_seed_refused", help, &refused)?;
        let generation = [(named(&[]), credential.generation as f64)];
        writer.gauges(
            "token_generation",
            "Counts the tokens; 0: there is none",
            &generation,
        )?;
        let up = !matches!(credential.persistence, Persistence::Failing { .. });
        writer.gauge(
            "token_store_up",
            "0 while new tokens cannot be stored",
            f64::from(u8::from(up)),
        )
    }
}

/// The usual numbers of a process, under their usual names.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let Some(usage) = process::usage() else {
            return Ok(());
        };
        let mut cpu = writer.metric("process_cpu_seconds", "CPU time", MetricType::Counter)?;
        cpu.encode_counter::<NoLabelSet, _, u64>(&usage.cpu_seconds, None)?;
        writer.gauge(
            "process_resident_memory_bytes",
            "Memory in use",
            usage.resident_bytes as f64,
        )?;
        writer.gauge(
            "process_virtual_memory_bytes",
            "Address space",
            usage.virtual_bytes as f64,
        )?;
        writer.gauge(
            "process_start_time_seconds",
            "Start, since 1970",
            usage.start_seconds,
        )?;
        writer.gauge(
            "process_open_fds",
            "Open file descriptors",
            usage.open_descriptors as f64,
        )?;
        writer.gauge(
            "process_max_fds",
            "Limit of open file descriptors",
            usage.descriptor_limit as f64,
        )?;
        writer.gauge("process_threads", "Threads", usage.threads as f64)
    }
}
