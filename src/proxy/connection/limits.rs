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

/// The address that a connection counts for; `None`: one without a limit of its own.
pub(crate) type SourceAddress = Option<IpAddr>;

/// The slots of all workers together.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    limit: usize,
    open: AtomicUsize,
    addresses: PerAddressLimiter,
}

/// A connection's slot among `proxy.max_connections`, and once its client is known among
/// `proxy.max_connections_per_address`. Released when dropped.
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

    /// Takes a slot for a connection, which `metrics` counts as open.
    ///
    /// # Errors
    /// [`ConnectionRejection::Full`].
    pub(crate) fn acquire(
        self: &Arc<Self>,
        metrics: &Arc<Metrics>,
    ) -> Result<ConnectionSlot, ConnectionRejection> {
        if self.open.fetch_add(1, Relaxed) >= self.limit {
            self.open.fetch_sub(1, Relaxed);
            return Err(ConnectionRejection::Full);
        }
        metrics.connections_open.add(1);
        Ok(ConnectionSlot {
            limiter: Arc::clone(self),
            metrics: Arc::clone(metrics),
            source: None,
        })
    }
}

impl ConnectionSlot {
    /// Counts the connection for its client. Called once.
    ///
    /// # Errors
    /// [`ConnectionRejection::FullForAddress`].
    pub(crate) fn count_for(
        &mut self,
        client: Option<SocketAddr>,
    ) -> Result<(), ConnectionRejection> {
        self.source = self
            .limiter
            .addresses
            .take(client)
            .ok_or(ConnectionRejection::FullForAddress)?;
        Ok(())
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.limiter.open.fetch_sub(1, Relaxed);
        self.limiter.addresses.release(self.source);
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
    fn both_limits_apply_and_a_rejected_connection_keeps_no_slot() {
        let limiter = Arc::new(ConnectionLimiter::new(3, 2));
        let metrics = Arc::<Metrics>::default();
        let take = |ip: &str| {
            let mut slot = limiter.acquire(&metrics)?;
            slot.count_for(Some(
                (ip.parse::<IpAddr>().expect("an address"), 5000).into(),
            ))?;
            Ok(slot)
        };
        let mut slots = vec![
            take("192.0.2.1").expect("a slot"),
            take("192.0.2.1").expect("a slot"),
        ];
        for _ in 0..5 {
            assert!(matches!(
                take("192.0.2.1"),
                Err(ConnectionRejection::FullForAddress)
            ));
        }
        slots.push(take("192.0.2.2").expect("a slot"));
        for ip in ["192.0.2.2", "192.0.2.3", "127.0.0.1", "192.0.2.3"] {
            assert!(matches!(take(ip), Err(ConnectionRejection::Full)), "{ip}");
        }
        assert_eq!(metrics.connections_open.value(), 3);
        slots.remove(0);
        slots.push(take("127.0.0.1").expect("a slot"));
        assert!(take("192.0.2.3").is_err());
        drop(slots);
        assert!(limiter.addresses.open.lock().is_empty() && limiter.open.load(Relaxed) == 0);
        assert_eq!(metrics.connections_open.value(), 0);
    }
}
