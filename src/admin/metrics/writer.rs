//! Writes metrics in the OpenMetrics format.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Label names and values of one time series.
pub(super) type Labels = Vec<(&'static str, String)>;

/// The time series of one metric.
pub(super) type Series<T> = Vec<(Labels, T)>;

/// Builds [`Labels`].
pub(super) fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.map(|(name, value)| (name, value.to_owned())).to_vec()
}

/// Writes one metric after the other.
pub(super) struct Writer<'a>(pub(super) DescriptorEncoder<'a>);

impl Writer<'_> {
    fn metric<'s>(
        &'s mut self,
        name: &'s str,
        help: &'s str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.metric(name, help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    pub(super) fn float_counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.metric(name, help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.metric(name, help, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    pub(super) fn counters(&mut self, name: &str, help: &str, series: &Series<u64>) -> fmt::Result {
        let mut metric = self.metric(name, help, MetricType::Counter)?;
        series.iter().try_for_each(|(labels, value)| {
            metric
                .encode_family(&labels.as_slice())?
                .encode_counter::<NoLabelSet, _, u64>(value, None)
        })
    }

    pub(super) fn gauges(&mut self, name: &str, help: &str, series: &Series<f64>) -> fmt::Result {
        let mut metric = self.metric(name, help, MetricType::Gauge)?;
        series.iter().try_for_each(|(labels, value)| {
            metric
                .encode_family(&labels.as_slice())?
                .encode_gauge(value)
        })
    }

    /// `counts` are those of the buckets, not cumulative; the last one has no upper bound. The sum
    /// is in seconds.
    pub(super) fn histogram(
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
