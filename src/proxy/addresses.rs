//! How many connections each address has open. Asked when a connection begins and ends, never by a request.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Mutex,
};

/// Where a connection comes from, as far as it counts; `None`: from this machine.
pub(crate) type Source = Option<IpAddr>;

/// The counts of all workers together. A lock, since connections of one address come to every worker.
#[derive(Debug)]
pub(crate) struct Addresses {
    limit: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Addresses {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, open: Mutex::default() }
    }

    /// Counts one more connection; `None` if there are too many from there.
    pub(crate) fn take(&self, peer: Option<SocketAddr>) -> Option<Source> {
        let Some(source) = peer.and_then(|peer| source(peer.ip())) else { return Some(None) };
        let mut open = self.lock();
        let count = open.entry(source).or_default();
        (*count < self.limit).then(|| *count += 1)?;
        Some(Some(source))
    }

    /// A connection has ended.
    pub(crate) fn give_back(&self, source: Source) {
        let Some(source) = source else { return };
        if let Entry::Occupied(mut entry) = self.lock().entry(source) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Nothing panics while it is held.
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What counts as one address: whoever has one of IPv6 has the whole /64 around it.
fn source(ip: IpAddr) -> Source {
    match ip.to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V6(ip) => Some(IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)))),
        ip => Some(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_places_and_gives_them_back() {
        let addresses = Addresses::new(2);
        let take = |ip: &str| addresses.take(Some((ip.parse::<IpAddr>().expect("an address"), 5000).into()));
        for ip in ["192.0.2.1", "2001:db8::1", "192.0.2.2"] {
            assert!(take(ip).is_some() && take(ip).is_some() && take(ip).is_none(), "{ip}");
        }
        assert_eq!((take("::ffff:192.0.2.1"), take("2001:db8::ffff")), (None, None));
        assert!(take("2001:db8:0:1::1").is_some());
        let ip = "192.0.2.1".parse().expect("an address");
        let source = Some(ip);
        addresses.give_back(source);
        assert_eq!((take("192.0.2.1"), take("192.0.2.1")), (Some(source), None));
        addresses.give_back(source);
        addresses.give_back(source);
        assert_eq!(addresses.lock().get(&ip), None);
        for _ in 0..10 {
            assert_eq!((take("127.0.0.1"), take("::1"), addresses.take(None)), (Some(None), Some(None), Some(None)));
        }
    }
}
