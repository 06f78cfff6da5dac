//! The state of all upstreams, by endpoint and address.
//!
//! Only addresses that a name has at the moment are exported, at most 64 for each name: the series of
//! an address ends with it. What is counted up is counted for each endpoint, which stays.

use std::{collections::BTreeMap, ops::AddAssign};

use super::writer::{Labels, Series, labels};
use crate::upstream::Status;

/// The time series of all upstreams.
///
/// An endpoint of several upstreams has one time series: numbers are added up, and it is healthy if
/// it is for all of them.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    pub(super) endpoint_healthy: Series<f64>,
    pub(super) address_healthy: Series<f64>,
    pub(super) in_flight: Series<f64>,
    pub(super) ejections: Series<u64>,
    pub(super) queue_length: Series<f64>,
}

impl Upstreams {
    /// The states with the names of the upstreams.
    pub(super) fn of(upstreams: &[(&str, Status)]) -> Self {
        let mut endpoint_healthy = BTreeMap::new();
        let mut address_healthy = BTreeMap::new();
        let mut in_flight = BTreeMap::new();
        let mut ejections = BTreeMap::new();
        for endpoint in upstreams.iter().flat_map(|(_, status)| &status.endpoints) {
            let name = ("endpoint", &*endpoint.origin);
            all(&mut endpoint_healthy, labels([name]), endpoint.is_healthy());
            for address in &endpoint.addresses {
                let labels = labels([name, ("address", &address.address)]);
                add(&mut in_flight, labels.clone(), f64::from(address.in_flight));
                all(&mut address_healthy, labels, address.is_healthy());
            }
            for (reason, count) in &endpoint.ejections {
                let labels = labels([name, ("reason", reason.label())]);
                add(&mut ejections, labels, *count);
            }
        }
        let queue_length = upstreams.iter().map(|(name, status)| {
            let length = status.queue_length as f64;
            (labels([("upstream", name)]), length)
        });
        Self {
            endpoint_healthy: gauges(endpoint_healthy),
            address_healthy: gauges(address_healthy),
            in_flight: in_flight.into_iter().collect(),
            ejections: ejections.into_iter().collect(),
            queue_length: queue_length.collect(),
        }
    }
}

fn all(series: &mut BTreeMap<Labels, bool>, labels: Labels, value: bool) {
    *series.entry(labels).or_insert(true) &= value;
}

fn add<N: AddAssign + Default>(series: &mut BTreeMap<Labels, N>, labels: Labels, value: N) {
    *series.entry(labels).or_default() += value;
}

fn gauges(series: BTreeMap<Labels, bool>) -> Series<f64> {
    let values = series.into_iter();
    values
        .map(|(labels, value)| (labels, f64::from(u8::from(value))))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::upstream::{AddressStatus, EndpointStatus, Reason, State};

    fn endpoint(addresses: &[(&str, State, u32)]) -> EndpointStatus {
        let addresses = addresses
            .iter()
            .map(|(address, state, in_flight)| AddressStatus {
                address: (*address).to_owned(),
                state: *state,
                reason: None,
                since: UNIX_EPOCH,
                until: None,
                in_flight: *in_flight,
                ejections: 0,
                weight_tenths: 10,
                is_alternative: false,
            });
        EndpointStatus {
            origin: "http://cloud.example".to_owned(),
            resolve_error: None,
            addresses: addresses.collect(),
            ejections: vec![(Reason::Connect, 2), (Reason::Status, 0)],
        }
    }

    fn status(addresses: &[(&str, State, u32)]) -> Status {
        Status {
            endpoints: vec![endpoint(addresses)],
            queue_length: 3,
        }
    }

    /// The labels and values, in one word each.
    fn words<N: ToString>(series: &Series<N>) -> Vec<String> {
        let words = series.iter().map(|(labels, value)| {
            let values = labels.iter().map(|(_, value)| value.clone());
            let words: Vec<_> = values.chain([value.to_string()]).collect();
            words.join(" ")
        });
        words.collect()
    }

    #[test]
    fn an_endpoint_is_healthy_if_one_of_its_addresses_is_in_or_on_trial() {
        let (up, down) = (["http://cloud.example 1"], ["http://cloud.example 0"]);
        for (addresses, expected) in [
            (&[("a", State::In, 0), ("b", State::Failing, 0)][..], up),
            (&[("a", State::Trial, 0)], up),
            (
                &[("a", State::Unreachable, 0), ("b", State::Failing, 0)],
                down,
            ),
            (&[("a", State::Unhealthy, 0)], down),
            // A name that has never resolved.
            (&[], down),
        ] {
            let series = Upstreams::of(&[("default", status(addresses))]);
            assert_eq!(words(&series.endpoint_healthy), expected, "{addresses:?}");
        }
    }

    #[test]
    fn every_time_series_occurs_once_though_two_upstreams_have_the_same_endpoint() {
        let one = status(&[("a", State::In, 2), ("b", State::Unreachable, 0)]);
        let other = status(&[("a", State::Failing, 5)]);
        let series = Upstreams::of(&[("default", one), ("other", other)]);
        assert_eq!(words(&series.endpoint_healthy), ["http://cloud.example 0"]);
        assert_eq!(
            words(&series.address_healthy),
            ["http://cloud.example a 0", "http://cloud.example b 0"]
        );
        assert_eq!(
            words(&series.in_flight),
            ["http://cloud.example a 7", "http://cloud.example b 0"]
        );
        assert_eq!(
            words(&series.ejections),
            [
                "http://cloud.example connect 4",
                "http://cloud.example status 0"
            ]
        );
        assert_eq!(words(&series.queue_length), ["default 3", "other 3"]);
    }
}
