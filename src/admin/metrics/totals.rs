//! The counters of all workers, added up.

use std::{collections::BTreeMap, sync::Arc};

use super::writer::{Labels, Series, labels};
use crate::{
    base::{
        counter::{BUCKETS, Counter},
        labels::{Label, PerLabel, labels as label_values},
    },
    proxy::metrics::{Metrics, Named, StatusCounters},
};

label_values! {
    /// Values of the label `state` of `upstream_connections`.
    enum ConnectionState {
        Active => "active",
        Idle => "idle",
    }
}

label_values! {
    /// Values of the label `outcome` of `json_answers`.
    enum JsonOutcome {
        Rewritten => "rewritten",
        Encoded => "coded",
    }
}

/// The counters of all workers, added up.
#[derive(Debug)]
pub(super) struct Totals {
    pub(super) requests: Series<u64>,
    pub(super) client_requests: Series<u64>,
    pub(super) requests_rejected: Series<u64>,
    pub(super) retries: Series<u64>,
    pub(super) connections_rejected: Series<u64>,
    pub(super) clients_late: Series<u64>,
    pub(super) json_answers: Series<u64>,
    pub(super) upstream_connections: Series<f64>,
    pub(super) upstream_errors: Series<u64>,
    pub(super) requests_in_flight: u64,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) connections_open: u64,
    pub(super) streams_refused: u64,
    pub(super) tunnels_open: u64,
    pub(super) duration: ([u64; BUCKETS.len() + 1], f64),
}

impl Totals {
    pub(super) fn of(workers: &[Arc<Metrics>]) -> Self {
        let total = |counter: fn(&Metrics) -> &Counter| {
            let values = workers.iter().map(|worker| counter(worker).value());
            values.sum::<u64>()
        };
        Self {
            requests: by_code("route", workers, |worker| &worker.routes),
            client_requests: by_code("client", workers, |worker| &worker.clients),
            requests_rejected: by_label("reason", workers, |worker| &worker.rejected),
            retries: sum(workers, |worker| {
                worker.retries.iter().flat_map(|(reason, outcomes)| {
                    outcomes.iter().map(move |(outcome, counter)| {
                        let outcome = ("outcome", outcome.label());
                        (
                            labels([("reason", reason.label()), outcome]),
                            counter.value(),
                        )
                    })
                })
            }),
            connections_rejected: by_label("reason", workers, |worker| {
                &worker.connections_rejected
            }),
            clients_late: by_label("limit", workers, |worker| &worker.client_timeouts),
            json_answers: sum(workers, json_answers),
            upstream_connections: sum(workers, upstream_connections)
                .into_iter()
                .map(|(labels, n)| (labels, n as f64))
                .collect(),
            upstream_errors: sum(workers, upstream_errors),
            requests_in_flight: total(|worker| &worker.in_flight),
            received_bytes: total(|worker| &worker.received_bytes),
            sent_bytes: total(|worker| &worker.sent_bytes),
            connections_open: total(|worker| &worker.connections_open),
            streams_refused: total(|worker| &worker.streams_refused),
            tunnels_open: total(|worker| &worker.tunnels_open),
            duration: duration(workers),
        }
    }
}

/// Adds up the time series of all workers that have the same labels.
fn sum<'a, I>(workers: &'a [Arc<Metrics>], series: impl Fn(&'a Metrics) -> I) -> Series<u64>
where
    I: IntoIterator<Item = (Labels, u64)>,
{
    let mut sums = BTreeMap::new();
    for (labels, n) in workers.iter().flat_map(|worker| series(worker)) {
        *sums.entry(labels).or_insert(0) += n;
    }
    sums.into_iter().collect()
}

/// A time series for each value of a label.
fn by_label<L: Label>(
    name: &'static str,
    workers: &[Arc<Metrics>],
    counters: fn(&Metrics) -> &PerLabel<L, Counter>,
) -> Series<u64> {
    sum(workers, |worker| {
        let counters = counters(worker).iter();
        counters.map(|(value, counter)| (labels([(name, value.label())]), counter.value()))
    })
}

/// A time series for each route or client and each status code that occurred.
fn by_code(
    name: &'static str,
    workers: &[Arc<Metrics>],
    counters: fn(&Metrics) -> &Named<StatusCounters>,
) -> Series<u64> {
    sum(workers, |worker| {
        let mut series = Vec::new();
        for (value, counters) in counters(worker).all() {
            for (code, n) in counters.by_code() {
                series.push((labels([(name, &value), ("code", &code.to_string())]), n));
            }
        }
        series
    })
}

fn json_answers(worker: &Metrics) -> impl Iterator<Item = (Labels, u64)> {
    JsonOutcome::ALL.into_iter().map(|outcome| {
        let counter = match outcome {
            JsonOutcome::Rewritten => &worker.rewritten,
            JsonOutcome::Encoded => &worker.encoded,
        };
        (labels([("outcome", outcome.label())]), counter.value())
    })
}

fn upstream_connections(worker: &Metrics) -> impl Iterator<Item = (Labels, u64)> {
    worker
        .endpoints
        .all()
        .into_iter()
        .flat_map(|(origin, endpoint)| {
            ConnectionState::ALL.map(|state| {
                let counter = match state {
                    ConnectionState::Active => &endpoint.active,
                    ConnectionState::Idle => &endpoint.idle,
                };
                let labels = labels([("endpoint", &*origin), ("state", state.label())]);
                (labels, counter.value())
            })
        })
}

fn upstream_errors(worker: &Metrics) -> Vec<(Labels, u64)> {
    let mut series = Vec::new();
    for (origin, endpoint) in worker.endpoints.all() {
        for (failure, counter) in endpoint.failures.iter() {
            let labels = labels([("endpoint", &*origin), ("error", failure.label())]);
            series.push((labels, counter.value()));
        }
    }
    series
}

/// The counts of the buckets, and the sum in seconds.
fn duration(workers: &[Arc<Metrics>]) -> ([u64; BUCKETS.len() + 1], f64) {
    let mut buckets = [0; BUCKETS.len() + 1];
    let mut seconds = 0.0;
    for worker in workers {
        let (counts, sum) = worker.duration.counts();
        for (bucket, count) in buckets.iter_mut().zip(counts) {
            *bucket += count;
        }
        seconds += sum.as_secs_f64();
    }
    (buckets, seconds)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::proxy::metrics::{RetryOutcome, RetryReason};

    /// The counts by the value of a label.
    fn counts(series: &Series<u64>, name: &str) -> BTreeMap<String, u64> {
        let values = series.iter().map(|(labels, n)| {
            let label = labels.iter().find(|(label, _)| *label == name);
            (label.expect("a label of this name").1.clone(), *n)
        });
        values.collect()
    }

    /// One count for each value of a label, a different one for each.
    fn count<L: Label>(counters: &PerLabel<L, Counter>) {
        for (value, counter) in counters.iter() {
            counter.add(1 + value.index() as u64);
        }
    }

    /// The counts of two workers for which [`count`] was called.
    fn expected<L: Label>(_: &PerLabel<L, Counter>) -> BTreeMap<String, u64> {
        let values = L::VALUES.iter();
        let counts = values.map(|value| (value.label().to_owned(), 2 * (1 + value.index() as u64)));
        counts.collect()
    }

    #[test]
    fn every_value_of_every_label_is_exported_with_the_sum_of_all_workers() {
        let workers: [Arc<Metrics>; 2] = Default::default();
        for worker in &workers {
            count(&worker.rejected);
            count(&worker.connections_rejected);
            count(&worker.client_timeouts);
            let endpoint = worker.endpoints.get("http://cloud.example");
            count(&endpoint.failures);
            endpoint.active.add(3);
            worker.rewritten.add(1);
            worker.encoded.add(2);
            for (_, outcomes) in worker.retries.iter() {
                count(outcomes);
            }
        }
        let totals = Totals::of(&workers);
        assert_eq!(
            counts(&totals.requests_rejected, "reason"),
            expected(&workers[0].rejected)
        );
        assert_eq!(
            counts(&totals.connections_rejected, "reason"),
            expected(&workers[0].connections_rejected)
        );
        assert_eq!(
            counts(&totals.clients_late, "limit"),
            expected(&workers[0].client_timeouts)
        );
        assert_eq!(
            counts(&totals.upstream_errors, "error"),
            expected(&workers[0].endpoints.get("http://cloud.example").failures)
        );
        assert_eq!(
            counts(&totals.retries, "outcome"),
            expected(&workers[0].retries[RetryReason::Unauthorized])
        );
        assert_eq!(
            totals.retries.len(),
            RetryReason::ALL.len() * RetryOutcome::ALL.len()
        );
        assert_eq!(
            counts(&totals.json_answers, "outcome"),
            [("coded".to_owned(), 4), ("rewritten".to_owned(), 2)].into()
        );
        let connections = totals.upstream_connections.iter();
        let connections: Vec<_> = connections
            .map(|(labels, n)| (labels[1].1.as_str(), *n))
            .collect();
        assert_eq!(connections, [("active", 6.0), ("idle", 0.0)]);
    }
}
