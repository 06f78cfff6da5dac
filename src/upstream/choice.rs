//! A worker's copy of the list of addresses, and the choice of a request's address.

use std::{
    cell::Cell,
    hash::{BuildHasher as _, RandomState},
    ops::Range,
    rc::Rc,
    sync::Arc,
};

use hyper::body::Body;

use super::{
    Upstream,
    addresses::{Address, AddressId, Listed},
    balance::{RoundRobin, rendezvous},
    connect::Error,
    counters::Counters,
    handle::{AddressHandle, InFlight},
    health::{Reason, State},
    pool::{Lease, Pool},
    shared::Shared,
    versions,
};
use crate::base::ticker::Ticker;

/// One worker's copy of the list, with the worker's connections.
#[derive(Debug)]
pub(super) struct LocalSet<B> {
    worker: usize,
    ticker: Rc<Ticker>,
    /// By endpoint.
    counters: Vec<Arc<Counters>>,
    /// That of the list and of the health of its addresses when `usable` was built.
    version: Option<u64>,
    /// In the order of the list.
    members: Vec<Member<B>>,
    /// The addresses that get requests.
    usable: Vec<Candidate>,
    round_robin: RoundRobin,
    random: Cell<u64>,
}

/// An address of the list.
#[derive(Debug)]
struct Member<B> {
    pool: Rc<Pool<B>>,
    /// Whether it is of the family that is not preferred.
    is_alternative: bool,
    /// The positions of its endpoint's addresses: they share its limits.
    siblings: Range<usize>,
}

/// An address that gets requests, with what the choice reads of it.
#[derive(Debug)]
struct Candidate {
    address: Arc<Address>,
    /// Its position in the list.
    position: usize,
    /// Whether it gets one request at a time.
    is_trial: bool,
}

/// An address that gets requests.
#[derive(Debug)]
struct Usable {
    /// Its position in the list.
    position: usize,
    /// In tenths.
    weight: u32,
    /// Whether it gets one request at a time.
    is_trial: bool,
}

/// The addresses that have failed a request, or that did not accept a connection for it. It goes
/// to another one if there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Visited(Vec<AddressId>);

impl Visited {
    /// One address.
    pub fn new(address: AddressId) -> Self {
        Self(vec![address])
    }

    /// Adds an address.
    pub fn add(&mut self, address: AddressId) {
        if !self.contains(address) {
            self.0.push(address);
        }
    }

    fn contains(&self, address: AddressId) -> bool {
        self.0.contains(&address)
    }
}

/// The address that was chosen for an attempt, where the request counts already.
#[derive(Debug)]
pub struct Place<B> {
    pub(super) pool: Rc<Pool<B>>,
    pub(super) in_flight: InFlight,
}

impl<B: Body + Unpin + 'static> Place<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// The address.
    pub fn address(&self) -> AddressId {
        self.pool.handle.address.id
    }

    /// The address of a connection that is not used after all.
    pub fn of(lease: Lease<B>) -> Self {
        let (pool, in_flight) = lease.into_parts();
        Self { pool, in_flight }
    }

    /// A pooled connection. An upgrade needs HTTP/1.1.
    ///
    /// # Errors
    /// Returns the place if there is none.
    pub fn reuse(self, is_upgrade: bool) -> Result<Lease<B>, Self> {
        match self.pool.reuse(versions(is_upgrade)) {
            Some(connection) => Ok(Lease::new(connection, self.pool, self.in_flight, true)),
            None => Err(self),
        }
    }
}

impl<B: Body + Unpin + 'static> LocalSet<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub(super) fn new(worker: usize, ticker: &Rc<Ticker>, counters: Vec<Arc<Counters>>) -> Self {
        Self {
            worker,
            ticker: Rc::clone(ticker),
            counters,
            version: None,
            members: Vec::new(),
            usable: Vec::new(),
            round_robin: RoundRobin::new([]),
            random: Cell::new(RandomState::new().hash_one(worker)),
        }
    }

    pub(super) fn close_idle(&self) {
        self.members
            .iter()
            .for_each(|member| member.pool.close_idle());
    }

    /// Follows the list. Connections to addresses that stay are kept.
    #[cold]
    fn update(&mut self, shared: &Shared) {
        // Read first: a change in between leads to another update.
        self.version = Some(shared.addresses.version());
        let set = shared.addresses.load();
        let mut old = std::mem::take(&mut self.members);
        for listed in &set.listed {
            let address = &listed.address;
            let known = old
                .iter()
                .position(|member| member.pool.handle.address.id == address.id);
            let pool = match known {
                Some(known) => old.swap_remove(known).pool,
                None => {
                    let handle = AddressHandle::new(
                        Arc::clone(address),
                        Arc::clone(&self.counters[address.endpoint]),
                        Arc::clone(&shared.addresses),
                        self.worker,
                    );
                    Pool::new(handle, shared, &self.ticker)
                }
            };
            self.members.push(Member {
                pool,
                is_alternative: listed.is_alternative,
                siblings: siblings(&set.listed, address.endpoint),
            });
        }
        for removed in old {
            removed.pool.close();
        }
        let usable = usable(&set.listed, &shared.config.weights);
        self.round_robin = RoundRobin::new(usable.iter().map(|usable| usable.weight));
        let candidates = usable.iter().map(|usable| Candidate {
            address: Arc::clone(&set.listed[usable.position].address),
            position: usable.position,
            is_trial: usable.is_trial,
        });
        self.usable = candidates.collect();
    }

    /// An address that was not visited and has room.
    fn place(&self, visited: &Visited, affinity: Option<u64>) -> Option<Place<B>> {
        // Limits are reached seldom: the choice looks at all of them only after it has met one.
        let mut looks_for_room = false;
        // A trial that another worker has begun in between leads to another choice, too.
        for _ in 0..=self.usable.len() + 1 {
            let index = match affinity {
                None => {
                    let in_flight = |index: usize| {
                        let usable = &self.usable[index];
                        let is_eligible = is_eligible(usable, visited)
                            && (!looks_for_room || self.has_room(usable));
                        is_eligible.then(|| usable.address.in_flight.with_penalties())
                    };
                    self.round_robin.choose(in_flight, || self.random())
                }
                // A client's own address is waited for.
                Some(key) => {
                    let usable = self.usable.iter().enumerate();
                    let eligible = usable.filter(|(_, usable)| is_eligible(usable, visited));
                    rendezvous(
                        key,
                        eligible.map(|(index, usable)| (index, usable.address.hash)),
                    )
                }
            }?;
            let usable = &self.usable[index];
            if !self.has_room(usable) {
                if looks_for_room || affinity.is_some() {
                    return None;
                }
                looks_for_room = true;
                continue;
            }
            let member = &self.members[usable.position];
            if let Some(in_flight) = InFlight::begin(&member.pool.handle, usable.is_trial)
                // Another worker may have taken the last place in between.
                && self.requests(member) <= member.pool.limit()
            {
                return Some(Place {
                    pool: Rc::clone(&member.pool),
                    in_flight,
                });
            }
        }
        None
    }

    fn has_room(&self, usable: &Candidate) -> bool {
        let member = &self.members[usable.position];
        self.requests(member) < member.pool.limit()
    }

    /// Another address to dial when those that get requests do not connect: of the other family,
    /// or else one that is out.
    fn last_resort(&self, visited: &Visited) -> Option<Place<B>> {
        let others = || {
            self.members.iter().filter(|member| {
                !visited.contains(member.pool.handle.address.id)
                    && self.requests(member) < member.pool.limit()
            })
        };
        let alternative = others().find(|member| member.is_alternative);
        let pool = &alternative.or_else(|| others().next())?.pool;
        Some(Place {
            in_flight: InFlight::begin(&pool.handle, false)?,
            pool: Rc::clone(pool),
        })
    }

    /// Requests in flight to the address's endpoint.
    fn requests(&self, member: &Member<B>) -> usize {
        let siblings = &self.members[member.siblings.clone()];
        let counts = siblings
            .iter()
            .map(|sibling| sibling.pool.handle.address.in_flight.get() as usize);
        counts.sum()
    }

    /// Another number each time, from a random one on.
    fn random(&self) -> u64 {
        let next = self.random.get().wrapping_add(1);
        self.random.set(next);
        next
    }
}

fn is_eligible(usable: &Candidate, visited: &Visited) -> bool {
    !visited.contains(usable.address.id)
        && (!usable.is_trial || usable.address.health.is_available())
}

/// The positions of an endpoint's addresses.
fn siblings(listed: &[Listed], endpoint: usize) -> Range<usize> {
    let start = listed.partition_point(|listed| listed.address.endpoint < endpoint);
    let end = listed.partition_point(|listed| listed.address.endpoint <= endpoint);
    start..end
}

/// The addresses that get requests: those that are in, and of an endpoint of which no address of the
/// preferred family connects, the others; all, if none is in.
fn usable(listed: &[Listed], weights: &[u32]) -> Vec<Usable> {
    let usable = |position: usize, is_trial: bool| {
        let address = &listed[position].address;
        let weight = weights.get(address.endpoint).copied().unwrap_or(1);
        Usable {
            position,
            weight: weight.saturating_mul(address.health.weight_tenths()),
            is_trial,
        }
    };
    let is_unreachable =
        |listed: &Listed| listed.address.health.snapshot().state == State::Unreachable;
    let is_preferred = |position: &usize| {
        let listed_here = &listed[*position];
        let siblings = &listed[siblings(listed, listed_here.address.endpoint)];
        let (other, first): (Vec<_>, Vec<_>) =
            siblings.iter().partition(|listed| listed.is_alternative);
        let uses_other =
            first.iter().copied().all(is_unreachable) && !other.iter().copied().all(is_unreachable);
        listed_here.is_alternative == uses_other
    };
    let preferred: Vec<_> = (0..listed.len()).filter(is_preferred).collect();
    let state = |position: usize| listed[position].address.health.snapshot().state;
    if !preferred
        .iter()
        .any(|position| state(*position) == State::In)
    {
        // An address on trial cannot serve all requests alone.
        let all = preferred.iter().map(|position| usable(*position, false));
        return all.collect();
    }
    let in_service = preferred
        .iter()
        .filter_map(|position| match state(*position) {
            State::In => Some(usable(*position, false)),
            State::Trial => Some(usable(*position, true)),
            State::Unreachable | State::Failing | State::Unhealthy => None,
        });
    in_service.collect()
}

impl<B: Body + Unpin + 'static> Upstream<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// The address of a request, if one has room and no request waits: one that was not visited, or
    /// else any. A client's own address is looked at in any case: requests that wait for other
    /// addresses would delay it. The accepted cost is that it may overtake one that waits for its own.
    pub fn place(&self, visited: &Visited, affinity: Option<u64>) -> Option<Place<B>> {
        if affinity.is_none() && !self.shared.addresses.queue.is_empty() {
            return None;
        }
        self.any_place(visited, affinity)
    }

    fn any_place(&self, visited: &Visited, affinity: Option<u64>) -> Option<Place<B>> {
        self.other_place(visited, affinity).or_else(|| {
            if visited.0.is_empty() {
                return None;
            }
            self.other_place(&Visited::default(), affinity)
        })
    }

    /// An address that has room and was not visited.
    pub fn other_place(&self, visited: &Visited, affinity: Option<u64>) -> Option<Place<B>> {
        self.update();
        self.local.borrow().place(visited, affinity)
    }

    /// An address that gets no requests, for one that no other address accepts.
    pub(super) fn last_resort(&self, visited: &Visited) -> Option<Place<B>> {
        self.update();
        self.local.borrow().last_resort(visited)
    }

    fn update(&self) {
        let version = self.shared.addresses.version();
        if self.local.borrow().version != Some(version) {
            self.local.borrow_mut().update(&self.shared);
        }
    }

    /// Waits for a place: until the first look-up of a name has ended, for at most
    /// `connect_timeout`, or in the queue while all addresses are full.
    ///
    /// # Errors
    /// [`Error::Resolve`] without any address, [`Error::Full`] when no place becomes free in time.
    pub async fn wait_for_place(
        &self,
        visited: &Visited,
        affinity: Option<u64>,
    ) -> Result<Place<B>, Error> {
        let (config, addresses) = (&self.shared.config, &self.shared.addresses);
        let known = addresses.wait_until_known();
        // Without an address, the error says so.
        let _ = tokio::time::timeout(config.connect_timeout, known).await;
        if let Some((endpoint, detail)) = addresses.unresolved() {
            return Err(Error::Resolve {
                endpoint: config.endpoints[endpoint].origin.clone(),
                detail,
            });
        }
        if let Some(place) = self.place(visited, affinity) {
            return Ok(place);
        }
        let place = || self.any_place(visited, affinity);
        let queue = &addresses.queue;
        let place = queue.wait_for(config.queue, config.queue_timeout, place);
        place.await.ok_or_else(|| Error::Full {
            endpoint: config.endpoints[0].origin.clone(),
        })
    }

    /// The affinity key of a client's requests; `None` if its requests may go to any address.
    pub fn affinity(&self, key: impl FnOnce() -> u64) -> Option<u64> {
        match self.shared.config.affinity {
            super::Affinity::None => None,
            super::Affinity::Client => Some(key()),
        }
    }

    /// A request failed at this address.
    pub fn failed(&self, address: AddressId, reason: Reason) {
        let local = self.local.borrow();
        let mut pools = local.members.iter().map(|member| &member.pool);
        if let Some(pool) = pools.find(|pool| pool.handle.address.id == address) {
            pool.handle.failed(reason);
        }
    }

    /// The number of addresses, those that are out included.
    pub(super) fn count(&self) -> usize {
        self.update();
        self.local.borrow().members.len()
    }

    /// Whether more than one address gets requests.
    pub fn has_several(&self) -> bool {
        self.update();
        self.local.borrow().usable.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use bytes::Bytes;
    use futures_util::future::poll_immediate;
    use http_body_util::Empty;

    use super::*;
    use crate::{
        base::clock::{self, Moment},
        upstream::{
            Affinity, Config, Sockets,
            addresses::{Address, Target},
            health::Health,
            testing,
        },
    };

    const START: Moment = Moment::since_boot(Duration::from_secs(100));

    fn listed(number: u16, endpoint: usize, is_alternative: bool) -> Listed {
        let target = Target::Socket(([127, 0, 0, 1], number).into());
        let health = Health::new(1, Duration::ZERO, true, START);
        Listed {
            address: Arc::new(Address::new(
                number.into(),
                endpoint,
                "origin",
                target,
                health,
            )),
            is_alternative,
        }
    }

    fn unreachable(listed: &Listed) {
        for _ in 0..2 {
            listed.address.health.connect_failed(START);
        }
    }

    fn failing(listed: &Listed) {
        for _ in 0..5 {
            let health = &listed.address.health;
            health.failed(0, START, Reason::Status, 0, || Some(()));
        }
    }

    /// The positions of the addresses that get requests, and whether as a trial.
    fn positions(listed: &[Listed]) -> Vec<(usize, bool)> {
        let usable = usable(listed, &[1, 3]);
        usable
            .iter()
            .map(|usable| (usable.position, usable.is_trial))
            .collect()
    }

    #[test]
    fn addresses_that_are_out_get_no_requests_unless_all_are_out() {
        let list = [
            listed(1, 0, false),
            listed(2, 1, false),
            listed(3, 1, false),
        ];
        assert_eq!(positions(&list), [(0, false), (1, false), (2, false)]);
        unreachable(&list[1]);
        assert_eq!(positions(&list), [(0, false), (2, false)]);
        failing(&list[0]);
        assert_eq!(positions(&list), [(2, false)]);
        list[0].address.health.tick(START + Duration::from_secs(60));
        assert_eq!(positions(&list), [(0, true), (2, false)]);
        unreachable(&list[2]);
        let all = [(0, false), (1, false), (2, false)];
        assert_eq!(positions(&list), all, "one on trial is not enough");
    }

    #[test]
    fn the_other_family_is_used_while_no_address_of_the_preferred_one_connects() {
        let list = [
            listed(1, 0, false),
            listed(2, 0, false),
            listed(3, 0, true),
            listed(4, 1, false),
        ];
        assert_eq!(positions(&list), [(0, false), (1, false), (3, false)]);
        unreachable(&list[0]);
        assert_eq!(positions(&list), [(1, false), (3, false)]);
        unreachable(&list[1]);
        assert_eq!(positions(&list), [(2, false), (3, false)]);
        unreachable(&list[2]);
        assert_eq!(positions(&list), [(3, false)]);
        list[1].address.health.connected(START);
        assert_eq!(positions(&list), [(1, false), (3, false)]);
    }

    #[test]
    fn weights_and_limits_are_those_of_the_endpoint() {
        let list = [
            listed(1, 0, false),
            listed(2, 1, false),
            listed(3, 1, false),
        ];
        let usable = usable(&list, &[1, 3]);
        let found = usable.iter().map(|usable| {
            (
                usable.weight,
                siblings(&list, list[usable.position].address.endpoint),
            )
        });
        assert_eq!(
            found.collect::<Vec<_>>(),
            [(10, 0..1), (30, 1..3), (30, 1..3)]
        );
    }

    #[test]
    fn a_trial_ends_with_the_verdict_and_not_with_the_response() {
        let list = listed(1, 0, false);
        failing(&list);
        list.address.health.tick(START + Duration::from_secs(60));
        let addresses = testing::addresses(&[1]);
        let handle = AddressHandle::new(list.address, Arc::default(), addresses, 0);
        let request = InFlight::begin(&handle, true).expect("the first one");
        assert!(InFlight::begin(&handle, true).is_none(), "one at a time");
        request.end_trial();
        assert!(InFlight::begin(&handle, true).is_some());
    }

    /// The ports of the addresses at which so many requests find a place.
    fn places(
        upstream: &Upstream<Empty<Bytes>>,
        requests: usize,
        affinity: Option<u64>,
    ) -> Vec<u16> {
        let places = (0..requests).map_while(|_| upstream.place(&Visited::default(), affinity));
        // All at once: each goes on counting.
        let places: Vec<_> = places.collect();
        let targets = places.iter().map(|place| &place.pool.handle.address.target);
        targets
            .map(|target| match target {
                Target::Socket(address) => address.port(),
                Target::Proxy(_) => 0,
            })
            .collect()
    }

    fn upstream(max_requests: usize) -> Upstream<Empty<Bytes>> {
        let config = Config {
            max_connections: max_requests,
            max_requests,
            affinity: Affinity::Client,
            ..testing::config(vec![
                testing::endpoint("127.0.0.1", 1),
                testing::endpoint("127.0.0.1", 2),
            ])
        };
        let shared = Shared::new(config, &Sockets::new(1), 1, clock::system()).expect("valid");
        Upstream::new(shared, 0, &Ticker::new(), |_| Arc::default())
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_failed_request_counts_for_the_choice_and_for_no_limit() {
        let upstream = upstream(2);
        assert_eq!(places(&upstream, 9, None), [1, 2, 1, 2]);
        let set = upstream.shared.addresses.load();
        for _ in 0..3 {
            upstream.failed(set.listed[0].address.id, Reason::Status);
        }
        let mut found = places(&upstream, 9, None);
        assert_eq!(found[..2], [2, 2], "the other one is less loaded");
        found.sort_unstable();
        assert_eq!(found, [1, 1, 2, 2], "each has room for two");
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_clients_own_address_is_not_left_when_it_is_full() {
        let upstream = upstream(2);
        let own = places(&upstream, 1, Some(7))[0];
        assert_eq!(places(&upstream, 9, Some(7)), [own, own]);
        let other = (0..).find(|key| places(&upstream, 1, Some(*key)) != [own]);
        assert_eq!(places(&upstream, 9, other).len(), 2);
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn the_wait_for_a_clients_own_address_ends() {
        let mut upstream = upstream(1);
        Arc::make_mut(&mut upstream.shared.config).queue = 1;
        let own = upstream.place(&Visited::default(), Some(7)).expect("room");
        let waited = upstream.wait_for_place(&Visited::default(), Some(7)).await;
        assert!(matches!(waited, Err(Error::Full { .. })));
        drop(own);
        assert!(upstream.place(&Visited::default(), Some(7)).is_some());
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn requests_that_wait_for_another_address_delay_no_client() {
        let mut upstream = upstream(1);
        Arc::make_mut(&mut upstream.shared.config).queue = 2;
        let visited = Visited::default();
        let first = upstream.place(&visited, Some(7)).expect("room");
        let is_other = |key: &u64| places(&upstream, 1, Some(*key)).len() == 1;
        let other = (0..).find(is_other).expect("a client of the other one");

        let mut waiting = pin!(upstream.wait_for_place(&visited, Some(7)));
        assert!(poll_immediate(waiting.as_mut()).await.is_none());
        let second = upstream.place(&visited, Some(other)).expect("room");

        let mut behind = pin!(upstream.wait_for_place(&visited, Some(other)));
        assert!(poll_immediate(behind.as_mut()).await.is_none());
        drop(second);
        assert!(poll_immediate(waiting.as_mut()).await.is_none());
        let second = poll_immediate(behind).await.expect("woken").expect("room");

        drop(first);
        assert!(waiting.await.is_ok());
        drop(second);
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn the_last_resort_is_an_address_that_is_out_and_has_room() {
        let upstream = upstream(1);
        let first = upstream.place(&Visited::default(), None).expect("room");
        let visited = Visited::new(first.address());
        let other = upstream.last_resort(&visited).expect("the other one");
        assert_ne!(other.address(), first.address());
        assert!(upstream.last_resort(&visited).is_none(), "it is full");
        drop(other);
        assert!(upstream.last_resort(&visited).is_some());
    }
}
