//! The state of an upstream, for the admin endpoint.

use std::{
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use super::{
    addresses::{AddressSet, Listed},
    health::{Reason, Snapshot, State},
    shared::Shared,
};

/// The state of an upstream.
#[derive(Debug, Clone)]
pub struct Status {
    /// In the order of the configuration.
    pub endpoints: Vec<EndpointStatus>,
    /// Requests that wait because all addresses are full.
    pub queue_length: usize,
}

/// The state of one endpoint.
#[derive(Debug, Clone)]
pub struct EndpointStatus {
    /// As configured.
    pub origin: String,
    /// Why the last look-up of the name failed. The addresses of the one before stay in use.
    pub resolve_error: Option<Arc<str>>,
    /// The addresses of its name, or its only one.
    pub addresses: Vec<AddressStatus>,
    /// How often addresses were taken out of use, those that the name has lost included.
    pub ejections: Vec<(Reason, u64)>,
}

impl EndpointStatus {
    /// Whether one of the addresses is in use.
    pub fn is_healthy(&self) -> bool {
        self.addresses.iter().any(AddressStatus::is_healthy)
    }
}

/// The state of one address.
#[derive(Debug, Clone)]
pub struct AddressStatus {
    /// `IP:port`, or that the name is resolved by the outbound proxy.
    pub address: String,
    /// The state.
    pub state: State,
    /// Why the address is not in use, or is on trial.
    pub reason: Option<Reason>,
    /// When the state began.
    pub since: SystemTime,
    /// When the state ends, if that is known.
    pub until: Option<SystemTime>,
    /// Requests under way.
    pub in_flight: u32,
    /// How often it was taken out of use.
    pub ejections: u64,
    /// The weight in tenths of the configured one: less than ten during slow start.
    pub weight_tenths: u32,
    /// Whether it is of the address family that the resolver does not prefer.
    pub is_alternative: bool,
}

impl AddressStatus {
    /// Whether it is in use, with one request at a time or with all that come.
    pub fn is_healthy(&self) -> bool {
        matches!(self.state, State::In | State::Trial)
    }
}

impl Shared {
    /// The state of the upstream. Not for the request path: it locks and allocates.
    pub fn status(&self) -> Status {
        let set = self.addresses.load();
        let endpoints = 0..self.config.endpoints.len();
        Status {
            endpoints: endpoints
                .map(|endpoint| self.endpoint(endpoint, &set))
                .collect(),
            queue_length: self.addresses.queue.length(),
        }
    }

    fn endpoint(&self, endpoint: usize, set: &AddressSet) -> EndpointStatus {
        let own = set.listed.iter();
        let own = own.filter(|listed| listed.address.endpoint == endpoint);
        let ejections = self.addresses.ejections[endpoint].iter();
        EndpointStatus {
            origin: self.config.endpoints[endpoint].origin.clone(),
            resolve_error: set.errors[endpoint].clone(),
            addresses: own.map(|listed| self.address(listed)).collect(),
            ejections: ejections
                .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
                .collect(),
        }
    }

    fn address(&self, listed: &Listed) -> AddressStatus {
        let Listed {
            address,
            is_alternative,
        } = listed;
        let Snapshot {
            state,
            reason,
            since,
            until,
            ejections,
            weight_tenths,
        } = address.health.snapshot();
        AddressStatus {
            address: address.target.to_string(),
            state,
            reason,
            since: self.addresses.date(since),
            until: until.map(|until| self.addresses.date(until)),
            in_flight: address.in_flight.get(),
            ejections,
            weight_tenths,
            is_alternative: *is_alternative,
        }
    }
}
