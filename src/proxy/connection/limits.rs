//! How many connections are open, in all and from each address. Asked when a connection begins and ends, never by a request.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use crate::{
    base::host,
    proxy::metrics::{ConnectionRejection, Metrics},
};

/// Where a connection comes from, as far as it counts; `None`: from this machine.
pub(crate) type SourceAddress = Option<IpAddr>;

/// The slots of connections, for all workers together.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    limit: usize,
    taken: AtomicUsize,
    addresses: PerAddressLimiter,
}

impl ConnectionLimiter {
    pub(crate) fn new(limit: usize, per_address: usize) -> Self {
        Self {
            limit,
            taken: AtomicUsize::new(0),
            addresses: PerAddressLimiter::new(per_address),
        }
    }

    /// Takes one, to be given back when the connection has ended.
    ///
    /// # Errors
    /// When there is none, which limit that is due to.
    pub(crate) fn take(
        &self,
        peer: Option<SocketAddr>,
    ) -> Result<SourceAddress, ConnectionRejection> {
        let source = self
            .addresses
            .take(peer)
            .ok_or(ConnectionRejection::FullForAddress)?;
        if self.taken.fetch_add(1, Relaxed) < self.limit {
            return Ok(source);
        }
        self.release(source);
        Err(ConnectionRejection::Full)
    }

    pub(crate) fn release(&self, source: SourceAddress) {
        self.taken.fetch_sub(1, Relaxed);
        self.addresses.release(source);
    }
}

/// A connection's place among `proxy.max_connections` and those of its address, given back when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    pub(crate) limiter: Arc<ConnectionLimiter>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) source: SourceAddress,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.limiter.release(self.source);
        self.metrics.connections_open.sub(1);
    }
}

/// The counts of each address. A lock, since connections of one address come to every worker.
#[derive(Debug)]
pub(crate) struct PerAddressLimiter {
    limit: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl PerAddressLimiter {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            open: Mutex::default(),
        }
    }

    /// Counts one more connection; `None` if there are too many from there.
    pub(crate) fn take(&self, peer: Option<SocketAddr>) -> Option<SourceAddress> {
        let Some(source) = peer.and_then(|peer| source(peer.ip())) else {
            return Some(None);
        };
        let mut open = self.open.lock();
        let count = open.entry(source).or_default();
        (*count < self.limit).then(|| *count += 1)?;
        Some(Some(source))
    }

    pub(crate) fn release(&self, source: SourceAddress) {
        let Some(source) = source else { return };
        if let Entry::Occupied(mut entry) = self.open.lock().entry(source) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// What counts as one address: whoever has one of IPv6 has the whole /64 around it.
fn source(ip: IpAddr) -> SourceAddress {
    match ip.to_canonical() {
        ip if host::is_loopback(ip) => None,
        IpAddr::V6(ip) => Some(IpAddr::V6(Ipv6Addr::from_bits(
            ip.to_bits() & !u128::from(u64::MAX),
        ))),
        ip => Some(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_places_and_gives_them_back() {
        let addresses = PerAddressLimiter::new(2);
        let take = |ip: &str| {
            addresses.take(Some(
                (ip.parse::<IpAddr>().expect("an address"), 5000).into(),
            ))
        };
        for ip in ["192.0.2.1", "2001:db8::1", "192.0.2.2"] {
            assert!(
                take(ip).is_some() && take(ip).is_some() && take(ip).is_none(),
                "{ip}"
            );
        }
        assert_eq!(
            (take("::ffff:192.0.2.1"), take("2001:db8::ffff")),
            (None, None)
        );
        assert!(take("2001:db8:0:1::1").is_some());
        let ip = "192.0.2.1".parse().expect("an address");
        let source = Some(ip);
        addresses.release(source);
        assert_eq!((take("192.0.2.1"), take("192.0.2.1")), (Some(source), None));
        addresses.release(source);
        addresses.release(source);
        assert_eq!(addresses.open.lock().get(&ip), None);
        for _ in 0..10 {
            assert_eq!(
                (take("127.0.0.1"), take("::1"), addresses.take(None)),
                (Some(None), Some(None), Some(None))
            );
        }
    }

    #[test]
    fn both_limits_hold_and_who_is_turned_away_takes_no_place() {
        let addresses = PerAddressLimiter::new(2);
        let connection_limiter = ConnectionLimiter {
            limit: 3,
            taken: AtomicUsize::new(0),
            addresses,
        };
        let take = |ip: &str| {
            connection_limiter.take(Some(
                (ip.parse::<IpAddr>().expect("an address"), 5000).into(),
            ))
        };
        let (first, second) = (
            take("192.0.2.1").expect("a place"),
            take("192.0.2.1").expect("a place"),
        );
        for _ in 0..5 {
            assert!(matches!(
                take("192.0.2.1"),
                Err(ConnectionRejection::FullForAddress)
            ));
        }
        let third = take("192.0.2.2").expect("a place");
        for ip in ["192.0.2.2", "192.0.2.3", "127.0.0.1", "192.0.2.3"] {
            assert!(matches!(take(ip), Err(ConnectionRejection::Full)), "{ip}");
        }
        connection_limiter.release(first);
        let local = take("127.0.0.1").expect("a place");
        assert!(take("192.0.2.3").is_err());
        for source in [second, third, local] {
            connection_limiter.release(source);
        }
        assert!(
            connection_limiter.addresses.open.lock().is_empty()
                && connection_limiter.taken.load(Relaxed) == 0
        );
    }
}
