//! Endpoints that are listeners of this proxy: requests would come back to it.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::listeners::ListenerEntry;
use crate::{
    admin,
    base::host,
    config::{
        findings::{SourcePos, problem},
        keys,
        reader::Reader,
        values,
    },
    net::{outbound_proxy::ProxyAddress, socket::Address},
    upstream,
};

/// Something that the proxy connects to.
struct Target {
    host: String,
    port: u16,
    key: String,
    pos: SourcePos,
}

impl Target {
    /// The outbound proxy that this key names.
    fn of_proxy(r: &Reader, proxy: &ProxyAddress, key: String) -> Self {
        Self {
            host: proxy.host.clone(),
            port: proxy.port,
            pos: r.pos(&key),
            key,
        }
    }
}

/// Names other than `localhost` are not resolved: a loop through one is detected at run time (508).
pub(super) fn reject_own_addresses(
    r: &mut Reader,
    listeners: &[ListenerEntry],
    admin: Option<&admin::Config>,
    upstreams: &[upstream::Config],
) {
    let data = listeners
        .iter()
        .map(|entry| (&entry.listener.address, entry.key));
    let admin = admin.map(|admin| (&admin.listener.address, "admin.listen"));
    let own: Vec<_> = data
        .chain(admin)
        .filter_map(|(address, key)| match address {
            Address::Tcp(address) => Some((*address, key)),
            Address::Unix(_) => None,
        })
        .collect();
    for target in targets(r, upstreams) {
        let found = own.iter().find(|(address, _)| reaches(&target, *address));
        if let Some((address, listener)) = found {
            let reason = format!(
                "is {address} of {listener}, this proxy itself: its requests would come back to it"
            );
            let instead = if target.key.ends_with("proxy") {
                "write the address of the outbound proxy"
            } else {
                "write the address of the cloud"
            };
            let problem = problem(reason, instead);
            r.mistake(target.pos, &target.key, problem);
        }
    }
}

fn targets(r: &Reader, upstreams: &[upstream::Config]) -> Vec<Target> {
    let mut targets = Vec::new();
    for config in upstreams {
        let section = match config.name.as_str() {
            keys::DEFAULT => keys::UPSTREAM.to_owned(),
            name => format!("{}.{name}", keys::UPSTREAMS),
        };
        if let Some(proxy) = &config.proxy {
            targets.push(Target::of_proxy(
                r,
                proxy.address(),
                format!("{section}.proxy"),
            ));
            continue;
        }
        if let Some(address) = config.connect_to {
            let key = format!("{section}.connect_to");
            targets.push(Target {
                host: address.ip().to_string(),
                port: address.port(),
                pos: r.pos(&key),
                key,
            });
            continue;
        }
        let key = format!("{section}.endpoints");
        for (index, endpoint) in config.endpoints.iter().enumerate() {
            targets.push(Target {
                host: endpoint.host.clone(),
                port: endpoint.port,
                pos: r.pos_of_element(&key, index),
                key: key.clone(),
            });
        }
    }
    const PROXY: &str = "token.proxy";
    let proxy = r.raw_value(PROXY);
    if let Some(proxy) = proxy.and_then(|value| values::outbound_proxy(value).ok()) {
        targets.push(Target::of_proxy(r, &proxy, PROXY.to_owned()));
        return targets;
    }
    const ISSUER: &str = "token.issuer";
    let issuers = r.elements(ISSUER).into_iter();
    targets.extend(issuers.filter_map(|(value, pos)| {
        let issuer = values::endpoint(value).ok()?;
        Some(Target {
            host: issuer.host,
            port: issuer.port,
            pos: pos.clone(),
            key: ISSUER.to_owned(),
        })
    }));
    targets
}

fn reaches(target: &Target, own: SocketAddr) -> bool {
    if target.port != own.port() || own.port() == 0 {
        return false;
    }
    let ip = match target.host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical(),
        // Either loopback address may be tried.
        Err(_) if host::is_localhost(&target.host) => {
            return own.ip().is_unspecified() || host::is_loopback(own.ip());
        }
        Err(_) => return false,
    };
    if own.ip().is_unspecified() {
        let is_same_family = own.is_ipv6() || ip.is_ipv4();
        return is_same_family && (ip.is_unspecified() || is_of_this_machine(ip));
    }
    ip == own.ip().to_canonical() || ip.is_unspecified() && host::is_loopback(own.ip())
}

/// A socket can be bound only to an address of this machine. Nothing is sent.
fn is_of_this_machine(ip: IpAddr) -> bool {
    host::is_loopback(ip) || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_c6_own_addresses() {
        for (host, port, own, expected) in [
            ("127.0.0.1", 8080, "127.0.0.1:8080", true),
            ("127.0.0.1", 8080, "0.0.0.0:8080", true),
            ("127.0.0.1", 8080, "[::]:8080", true),
            ("127.9.9.9", 8080, "0.0.0.0:8080", true),
            ("0.0.0.0", 8080, "127.0.0.1:8080", true),
            ("::ffff:127.0.0.1", 8080, "127.0.0.1:8080", true),
            ("::1", 8080, "[::1]:8080", true),
            ("localhost", 8080, "127.0.0.1:8080", true),
            ("app.localhost", 8080, "[::1]:8080", true),
            ("localhost", 8080, "0.0.0.0:8080", true),
            ("127.0.0.1", 8081, "127.0.0.1:8080", false),
            ("127.0.0.2", 8080, "127.0.0.1:8080", false),
            ("::1", 8080, "127.0.0.1:8080", false),
            ("::1", 8080, "0.0.0.0:8080", false),
            ("192.0.2.1", 8080, "0.0.0.0:8080", false),
            ("cloud.example.com", 8080, "0.0.0.0:8080", false),
            ("localhost", 8080, "192.0.2.1:8080", false),
            ("127.0.0.1", 0, "127.0.0.1:0", false),
        ] {
            let target = Target {
                host: host.to_owned(),
                port,
                key: String::new(),
                pos: SourcePos::Nowhere,
            };
            let own = own.parse().expect("an address");
            assert_eq!(reaches(&target, own), expected, "{host} {port} {own}");
        }
    }
}
