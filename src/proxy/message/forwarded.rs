//! Who the client is, and how it reaches the proxy: read from the forwarding fields of a trusted
//! peer, and written into those of the request to the upstream. Pure.
//!
//! What a peer outside `proxy.trusted_networks` states is neither read nor sent on: it is replaced
//! by what the proxy knows itself. Of a trusted peer's list, the same holds for what stands before
//! the client's own address: the client has written that.

mod rfc7239;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use http::{HeaderMap, HeaderName, HeaderValue, header, request, uri::Scheme};

use crate::{
    base::{host, list_field},
    proxy::policy::{guard, trusted::TrustedNetworks},
};

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The forwarding fields that are read from trusted peers and written to the upstream. Fields of the
/// other kind are not read: a load balancer that sets one kind leaves the client's fields of the
/// other one as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedHeaders {
    /// `X-Forwarded-For`, `X-Forwarded-Host`, `X-Forwarded-Proto`.
    XForwarded,
    /// `Forwarded`, RFC 7239.
    Forwarded,
    /// None are written. Those of [`Self::XForwarded`] are read.
    Off,
}

/// A client and its connection. Prepared once per connection; for a trusted peer, once per request.
#[derive(Debug, Clone)]
pub struct ClientConnection {
    address: ClientAddress,
    /// The scheme of the URLs that the client uses.
    scheme: Scheme,
    /// The proxies between the client and this one, the client's own first.
    hops: Vec<IpAddr>,
    /// The value of `X-Forwarded-For`: client and hops. `None` if there is no address.
    forwarded_for: Option<HeaderValue>,
}

/// A client's address, as far as it is known: a Unix socket has none, and forwarding fields rarely
/// state the port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ClientAddress {
    /// An IPv4-mapped address is the IPv4 address.
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: Option<u16>,
}

/// What a forwarding field states of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Address(IpAddr, Option<u16>),
    /// `unknown`, an obfuscated identifier (RFC 7239 §6.3), or what cannot be parsed.
    Unknown,
    /// Nothing.
    Absent,
}

impl ClientConnection {
    /// A connection from `address` (`None` for a Unix socket) to a listener with `scheme`.
    pub fn new(address: Option<SocketAddr>, scheme: Scheme) -> Self {
        let address = ClientAddress {
            ip: address.map(|address| address.ip().to_canonical()),
            port: address.map(|address| address.port()),
        };
        Self::behind(address, scheme, Vec::new())
    }

    fn behind(address: ClientAddress, scheme: Scheme, hops: Vec<IpAddr>) -> Self {
        let is_known = address.ip.is_some() || !hops.is_empty();
        let forwarded_for = is_known.then(|| {
            let client = address.ip.map_or("unknown".to_owned(), |ip| ip.to_string());
            let hops = hops.iter().map(|hop| format!(", {hop}"));
            HeaderValue::try_from(client + &hops.collect::<String>()).ok()
        });
        let forwarded_for = forwarded_for.flatten();
        Self {
            address,
            scheme,
            hops,
            forwarded_for,
        }
    }

    pub(crate) fn address(&self) -> ClientAddress {
        self.address
    }

    pub(crate) fn scheme(&self) -> &Scheme {
        &self.scheme
    }
}

impl ClientAddress {
    /// For log lines; `None` if nothing is known.
    pub(crate) fn known(self) -> Option<Self> {
        self.ip.map(|_| self)
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ip, self.port) {
            (Some(ip), Some(port)) => SocketAddr::new(ip, port).fmt(f),
            (Some(ip), None) => ip.fmt(f),
            (None, _) => f.write_str("unknown"),
        }
    }
}

/// The client that a trusted peer states, and how it reaches the peer.
///
/// The client is the last address of the list that is not trusted, or the first one if all are. A
/// request without a list is the peer's own. Scheme and host are the values at the same position,
/// from the end, as the client's address, or the first ones: a proxy appends to each list or
/// replaces it.
///
/// The request's `Host` becomes the one that the client used, so that the guard, the routes and
/// the URLs in messages all see that one.
pub(crate) fn read(
    head: &mut request::Parts,
    peer: &ClientConnection,
    fields: ForwardedHeaders,
    trusted: &TrustedNetworks,
) -> ClientConnection {
    let (client, host) = match fields {
        ForwardedHeaders::XForwarded | ForwardedHeaders::Off => {
            read_x_forwarded(&head.headers, peer, trusted)
        }
        ForwardedHeaders::Forwarded => read_forwarded(&head.headers, peer, trusted),
    };
    if let Some(host) = host {
        replace_host(head, host);
    }
    client
}

fn read_x_forwarded(
    headers: &HeaderMap,
    peer: &ClientConnection,
    trusted: &TrustedNetworks,
) -> (ClientConnection, Option<HeaderValue>) {
    let mut path = Path::new(peer, trusted);
    for element in list_field::elements_from_end(headers, &X_FORWARDED_FOR) {
        if !path.extend(node(element)) {
            break;
        }
    }
    let depth = path.length.max(1);
    let at = |name: &HeaderName| {
        let elements = list_field::elements_from_end(headers, name);
        elements.take(depth).last()
    };
    let scheme = at(&X_FORWARDED_PROTO).and_then(scheme);
    let host = at(&X_FORWARDED_HOST).and_then(legal_host);
    (path.client(scheme, peer), host)
}

fn read_forwarded(
    headers: &HeaderMap,
    peer: &ClientConnection,
    trusted: &TrustedNetworks,
) -> (ClientConnection, Option<HeaderValue>) {
    let elements = rfc7239::elements(headers);
    let mut path = Path::new(peer, trusted);
    for element in elements.iter().rev() {
        if !path.extend(element.node) {
            break;
        }
    }
    let position = elements.len().saturating_sub(path.length.max(1));
    let client = elements.get(position);
    let scheme = client.and_then(|element| scheme(element.proto.as_deref()?));
    let host = client.and_then(|element| legal_host(element.host.as_deref()?));
    (path.client(scheme, peer), host)
}

/// The way of a request from its client to this proxy, followed from this end.
struct Path<'a> {
    trusted: &'a TrustedNetworks,
    client: ClientAddress,
    /// From this end. A peer on a Unix socket has no address.
    hops: Vec<IpAddr>,
    /// The number of elements that were read.
    length: usize,
}

impl<'a> Path<'a> {
    fn new(peer: &ClientConnection, trusted: &'a TrustedNetworks) -> Self {
        Self {
            trusted,
            client: peer.address,
            hops: Vec::new(),
            length: 0,
        }
    }

    /// Adds what the last known proxy states of its own peer. Returns whether that is a trusted
    /// proxy, too, which was stated more.
    fn extend(&mut self, node: Node) -> bool {
        self.length += 1;
        let next = match node {
            Node::Absent => return false,
            Node::Unknown => ClientAddress::default(),
            Node::Address(ip, port) => ClientAddress { ip: Some(ip), port },
        };
        self.hops.extend(self.client.ip);
        self.client = next;
        next.ip.is_some() && self.trusted.contains(next.ip)
    }

    fn client(mut self, scheme: Option<Scheme>, peer: &ClientConnection) -> ClientConnection {
        self.hops.reverse();
        let scheme = scheme.unwrap_or_else(|| peer.scheme.clone());
        ClientConnection::behind(self.client, scheme, self.hops)
    }
}

/// A node without quotes: an address, in brackets if it is IPv6 (which some omit), and a port.
fn node(text: &[u8]) -> Node {
    let Ok(text) = std::str::from_utf8(text) else {
        return Node::Unknown;
    };
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Node::Address(ip.to_canonical(), None);
    }
    let is_port = |port: &str| {
        let is_number = || port.bytes().all(|byte| byte.is_ascii_digit());
        // Obfuscated, RFC 7239 §6.3.
        port.starts_with('_') || is_number()
    };
    match host::split(text) {
        Some((address, port)) if port.is_none_or(is_port) => match host::literal(address) {
            Some(ip) => Node::Address(ip, port.and_then(|port| port.parse().ok())),
            None => Node::Unknown,
        },
        _ => Node::Unknown,
    }
}

/// The scheme of the request's URL. Some proxies name that of a WebSocket.
fn scheme(proto: &[u8]) -> Option<Scheme> {
    let is_one_of = |names: [&str; 2]| {
        let mut names = names.iter();
        names.any(|name| proto.eq_ignore_ascii_case(name.as_bytes()))
    };
    match () {
        () if is_one_of(["https", "wss"]) => Some(Scheme::HTTPS),
        () if is_one_of(["http", "ws"]) => Some(Scheme::HTTP),
        () => None,
    }
}

fn legal_host(host: &[u8]) -> Option<HeaderValue> {
    guard::host_name(host)?;
    HeaderValue::from_bytes(host).ok()
}

/// A request whose own `Host` is missing or ambiguous keeps it, and is rejected.
fn replace_host(head: &mut request::Parts, host: HeaderValue) {
    if !matches!(guard::host_of(head), Ok(Some(_))) {
        return;
    }
    head.headers.insert(header::HOST, host);
    if head.uri.authority().is_some() {
        // It named the same host as `Host` did.
        let mut target = std::mem::take(&mut head.uri).into_parts();
        (target.scheme, target.authority) = (None, None);
        // A target with an authority has a path, which is valid without it.
        head.uri = target.try_into().unwrap_or_default();
    }
}

/// Whether a load balancer states that the client's own connection to it is encrypted. Anyone may
/// state it where it makes the response stricter.
pub(crate) fn is_behind_tls(headers: &HeaderMap) -> bool {
    let protocol = headers.get(X_FORWARDED_PROTO);
    protocol.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"https"))
        || list_field::elements(headers, &header::FORWARDED).any(|element| {
            element
                .split(|byte| *byte == b';')
                .any(|pair| pair.trim_ascii().eq_ignore_ascii_case(b"proto=https"))
        })
}

/// The fields that [`write`] sets.
#[cfg(any(test, fuzzing))]
pub(crate) fn sent(
    client: &ClientConnection,
    host: Option<&HeaderValue>,
    fields: ForwardedHeaders,
) -> HeaderMap {
    let mut out = HeaderMap::new();
    write(&mut out, client, host, fields);
    out
}

/// Sets the forwarding fields of a request to the upstream. `host` is the `Host` that the client
/// used.
pub(super) fn write(
    out: &mut HeaderMap,
    client: &ClientConnection,
    host: Option<&HeaderValue>,
    fields: ForwardedHeaders,
) {
    match fields {
        ForwardedHeaders::Off => {}
        ForwardedHeaders::XForwarded => {
            let mut set = |name: HeaderName, value: Option<HeaderValue>| match value {
                Some(value) => drop(out.insert(name, value)),
                None => drop(out.remove(name)),
            };
            set(X_FORWARDED_FOR, client.forwarded_for.clone());
            set(X_FORWARDED_HOST, host.cloned());
            let proto = if client.scheme == Scheme::HTTPS {
                "https"
            } else {
                "http"
            };
            set(X_FORWARDED_PROTO, Some(HeaderValue::from_static(proto)));
        }
        ForwardedHeaders::Forwarded => {
            let mut value = rfc7239::node(client.address.ip);
            if let Some(host) = host.and_then(|host| host.to_str().ok()) {
                value.push_str(";host=\"");
                value.push_str(host);
                value.push('"');
            }
            value.push_str(";proto=");
            value.push_str(client.scheme.as_str());
            for hop in &client.hops {
                value.push_str(", ");
                value.push_str(&rfc7239::node(Some(*hop)));
            }
            match HeaderValue::try_from(value) {
                Ok(value) => drop(out.insert(header::FORWARDED, value)),
                Err(_) => drop(out.remove(header::FORWARDED)),
            }
        }
    }
}
