//! An address as one worker uses it, and a request's count there.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use super::{
    addresses::{Address, Addresses},
    counters::Counters,
    health::{Reason, Trial},
};

/// How long a failed request stays counted: otherwise an address that fails fast would look idle.
const PENALTY: Duration = Duration::from_secs(1);

/// An address as one worker uses it.
#[derive(Debug)]
pub(super) struct AddressHandle {
    pub(super) address: Arc<Address>,
    /// Of the endpoint.
    pub(super) counters: Arc<Counters>,
    addresses: Arc<Addresses>,
    worker: usize,
}

impl AddressHandle {
    pub(super) fn new(
        address: Arc<Address>,
        counters: Arc<Counters>,
        addresses: Arc<Addresses>,
        worker: usize,
    ) -> Rc<Self> {
        Rc::new(Self {
            address,
            counters,
            addresses,
            worker,
        })
    }

    /// A request to the address got a response.
    pub(super) fn succeeded(&self) {
        self.addresses.succeeded(&self.address, self.worker);
    }

    /// A request to the address failed there.
    pub(super) fn failed(self: &Rc<Self>, reason: Reason) {
        self.addresses.failed(&self.address, self.worker, reason);
        self.penalize();
    }

    /// A connection to the address was made.
    pub(super) fn connected(&self) {
        self.addresses.connected(&self.address);
    }

    /// A connection to the address could not be made.
    pub(super) fn connect_failed(self: &Rc<Self>) {
        self.addresses.connect_failed(&self.address);
        self.penalize();
    }

    fn penalize(self: &Rc<Self>) {
        if self.addresses.load().listed.len() < 2 {
            return;
        }
        self.address.in_flight.add_penalty();
        let address = Arc::clone(&self.address);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(PENALTY).await;
            address.in_flight.remove_penalty();
        });
    }
}

/// A request's count at an address: from the choice to the end of the response, dialing included.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) handle: Rc<AddressHandle>,
    /// Of an address that gets one request at a time.
    trial: RefCell<Option<Trial>>,
}

impl InFlight {
    /// The outcome of the request is known: if it was a trial, the next one may begin. The response may
    /// last for hours.
    pub(super) fn end_trial(&self) {
        self.trial.borrow_mut().take();
    }

    /// Counts a request. `None` if the address is on trial and has its request already, or is not on
    /// trial any more.
    pub(super) fn begin(handle: &Rc<AddressHandle>, is_trial: bool) -> Option<Self> {
        let trial = if is_trial {
            Some(handle.address.health.try_begin_trial()?)
        } else {
            None
        };
        handle.address.in_flight.add();
        Some(Self {
            handle: Rc::clone(handle),
            trial: RefCell::new(trial),
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let AddressHandle {
            address, addresses, ..
        } = &*self.handle;
        address.in_flight.remove();
        addresses.queue.freed();
    }
}

/// Counts a connection as one that carries a request, until it is dropped.
#[derive(Debug)]
pub(super) struct ActiveConnection(Rc<AddressHandle>);

impl ActiveConnection {
    pub(super) fn new(handle: &Rc<AddressHandle>) -> Self {
        handle.counters.active.add(1);
        Self(Rc::clone(handle))
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.counters.active.sub(1);
    }
}
