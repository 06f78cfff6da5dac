//! Slots for client connections, in total and by client address. Used when a connection begins and
//! ends, never by a request.

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

/// The address that a connection counts for; `None`: a loopback address or a Unix socket, which
/// have no limit of their own.
pub(crate) type SourceAddress = Option<IpAddr>;

/// The slots of all workers together.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    limit: usize,
    open: AtomicUsize,
    addresses: PerAddressLimiter,
}

/// A connection's slot among `proxy.max_connections` and `proxy.max_connections_per_address`,
/// released when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    limiter: Arc<ConnectionLimiter>,
    metrics: Arc<Metrics>,
    source: SourceAddress,
}

impl ConnectionLimiter {
    /// At most `limit` connections in total, and `per_address` from one address.
    pub(crate) fn new(limit: usize, per_address: usize) -> Self {
        Self {
            limit,
            open: AtomicUsize::new(0),
            addresses: PerAddressLimiter::new(per_address),
        }
    }

    /// Takes a slot for a connection from `peer`, which `metrics` counts as open.
    ///
    /// # Errors
    /// Which limit is reached.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        peer: Option<SocketAddr>,
        metrics: &Arc<Metrics>,
    ) -> Result<ConnectionSlot, ConnectionRejection> {
        let source = self.take(peer)?;
        metrics.connections_open.add(1);
        Ok(ConnectionSlot {
            limiter: Arc::clone(self),
            metrics: Arc::clone(metrics),
            source,
        })
    }

    fn take(&self, peer: Option<SocketAddr>) -> Result<SourceAddress, ConnectionRejection> {
        let source = self
            .addresses
            .take(peer)
            .ok_or(ConnectionRejection::FullForAddress)?;
        if self.open.fetch_add(1, Relaxed) < self.limit {
            return Ok(source);
        }
        self.release(source);
        Err(ConnectionRejection::Full)
    }

    fn release(&self, source: SourceAddress) {
        self.open.fetch_sub(1, Relaxed);
        self.addresses.release(source);
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.limiter.release(self.source);
        self.metrics.connections_open.sub(1);
    }
}

/// Open connections by address. Behind a lock, since every worker accepts connections from any
/// address.
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

    /// Counts one more connection; `None` if its address has reached the limit.
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

/// What counts as one address: an IPv6 host usually has the whole /64 around its address.
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
    fn each_address_has_its_slots_and_releases_them() {
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
    fn both_limits_apply_and_a_rejected_connection_takes_no_slot() {
        let addresses = PerAddressLimiter::new(2);
        let limiter = ConnectionLimiter {
            limit: 3,
            open: AtomicUsize::new(0),
            addresses,
        };
        let take = |ip: &str| {
            limiter.take(Some(
                (ip.parse::<IpAddr>().expect("an address"), 5000).into(),
            ))
        };
        let (first, second) = (
            take("192.0.2.1").expect("a slot"),
            take("192.0.2.1").expect("a slot"),
        );
        for _ in 0..5 {
            assert!(matches!(
                take("192.0.2.1"),
                Err(ConnectionRejection::FullForAddress)
            ));
        }
        let third = take("192.0.2.2").expect("a slot");
        for ip in ["192.0.2.2", "192.0.2.3", "127.0.0.1", "192.0.2.3"] {
            assert!(matches!(take(ip), Err(ConnectionRejection::Full)), "{ip}");
        }
        limiter.release(first);
        let local = take("127.0.0.1").expect("a slot");
        assert!(take("192.0.2.3").is_err());
        for source in [second, third, local] {
            limiter.release(source);
        }
        assert!(limiter.addresses.open.lock().is_empty() && limiter.open.load(Relaxed) == 0);
    }
}
