//! The peers that state who the client is: load balancers and proxies in front of this one.

use std::net::IpAddr;

use ipnet::IpNet;

/// One element of `proxy.trusted_networks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustedPeer {
    /// The peers in this network. An IPv4-mapped one is written as the IPv4 network.
    Network(IpNet),
    /// The peers on Unix sockets.
    UnixSockets,
}

/// `proxy.trusted_networks`. What other peers state of their clients is ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedNetworks {
    networks: Vec<IpNet>,
    has_unix_sockets: bool,
}

impl TrustedNetworks {
    /// Whether a peer at this address is trusted; `None`: on a Unix socket.
    pub fn contains(&self, peer: Option<IpAddr>) -> bool {
        let Some(peer) = peer else {
            return self.has_unix_sockets;
        };
        let mut networks = self.networks.iter();
        !self.networks.is_empty() && {
            let peer = peer.to_canonical();
            networks.any(|network| network.contains(&peer))
        }
    }

    /// Whether a peer over TCP can be trusted.
    pub fn has_networks(&self) -> bool {
        !self.networks.is_empty()
    }
}

impl FromIterator<TrustedPeer> for TrustedNetworks {
    fn from_iter<I: IntoIterator<Item = TrustedPeer>>(peers: I) -> Self {
        let mut trusted = Self::default();
        for peer in peers {
            match peer {
                TrustedPeer::Network(network) => trusted.networks.push(network),
                TrustedPeer::UnixSockets => trusted.has_unix_sockets = true,
            }
        }
        trusted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_unix_sockets() {
        let network = |text: &str| TrustedPeer::Network(text.parse().unwrap());
        let trusts =
            |trusted: &TrustedNetworks, peer: &str| trusted.contains(Some(peer.parse().unwrap()));
        let trusted: TrustedNetworks = [network("10.0.0.0/8"), network("2001:db8::/32")]
            .into_iter()
            .collect();
        for (peer, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(trusts(&trusted, peer), expected, "{peer}");
        }
        assert!(!trusted.contains(None));
        let socket: TrustedNetworks = [TrustedPeer::UnixSockets].into_iter().collect();
        assert!(socket.contains(None) && !trusts(&socket, "10.1.2.3") && !socket.has_networks());
        let none = TrustedNetworks::default();
        assert!(!none.contains(None) && !trusts(&none, "127.0.0.1"));
    }
}
