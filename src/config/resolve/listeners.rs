//! `proxy.listen` or `[[listener]]`: the addresses to listen on, and the guard of each; and the load
//! balancers in front of them.

use std::collections::BTreeSet;

use super::tls;
use crate::{
    admin,
    config::{
        findings::{Problem, SourcePos, problem},
        raw::Value,
        reader::Reader,
        values,
    },
    net::socket::Address,
    proxy::{Client, GuardConfig, Listener, TrustedNetworks, TrustedPeer},
};

/// A listener, and the key and position of its address.
pub(super) struct ListenerEntry {
    pub(super) listener: Listener,
    pub(super) key: &'static str,
    pos: SourcePos,
}

/// The guard in `[proxy]`: the default of the listeners.
pub(super) fn guard(r: &mut Reader) -> GuardConfig {
    GuardConfig {
        allowed_hosts: allowed(r, "proxy.allowed_hosts", values::served_host),
        allowed_origins: allowed(r, "proxy.allowed_origins", values::web_origin),
        allow_navigation: r.read("proxy.allow_navigation", values::boolean) == Some(true),
        required_header: r.read("proxy.required_header", values::custom_header),
        is_off: false,
    }
}

fn allowed(
    r: &mut Reader,
    path: &str,
    parse: fn(&Value) -> Result<String, Problem>,
) -> BTreeSet<String> {
    r.list(path, parse)
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

/// The load balancers in front of the listeners.
pub(super) fn trusted_networks(r: &mut Reader) -> TrustedNetworks {
    const KEY: &str = "proxy.trusted_networks";
    let peers = r.list(KEY, values::trusted_peer);
    for (peer, pos) in &peers {
        if let TrustedPeer::Network(network) = peer
            && network.prefix_len() == 0
        {
            let reason = format!(
                "{network} is every address: each client could claim any address, scheme and host"
            );
            let hint = "write the addresses of the load balancers only";
            r.warning(pos.clone(), KEY, problem(reason, hint));
        }
    }
    peers.into_iter().map(|(peer, _)| peer).collect()
}

/// The listeners: `proxy.listen`, or `[[listener]]`.
pub(super) fn listeners(
    r: &mut Reader,
    guard: &GuardConfig,
    trusted: &TrustedNetworks,
) -> Vec<ListenerEntry> {
    const SHORT: &str = "proxy.listen";
    let open = r.read("proxy.allow_unauthenticated", values::boolean);
    let proxy_protocol = r.read("proxy.proxy_protocol", values::boolean) == Some(true);
    let tables = r.tables("listener");
    if tables.is_empty() {
        let mut listeners = Vec::new();
        for (mut address, pos) in r.non_empty_list(SHORT, values::address) {
            r.resolve_socket_path(&mut address, &pos);
            let listener = Listener {
                address,
                guard: guard.clone(),
                tls: None,
                proxy_protocol,
            };
            require_trusted_peers(r, &listener, "proxy.proxy_protocol", trusted);
            let new = ListenerEntry {
                listener,
                key: SHORT,
                pos,
            };
            require_authentication(r, &new, open);
            listeners.push(new);
        }
        return listeners;
    }
    if r.is_given(SHORT) {
        let hint = "keep one of the two: each [[listener]] has its own address";
        r.mistake(
            r.pos(SHORT),
            SHORT,
            problem("is set, and so is [[listener]]", hint),
        );
    }
    tables
        .iter()
        .filter_map(|section| listener(r, section, guard, open, proxy_protocol, trusted))
        .collect()
}

fn listener(
    r: &mut Reader,
    section: &str,
    guard: &GuardConfig,
    open: Option<bool>,
    proxy_protocol: bool,
    trusted: &TrustedNetworks,
) -> Option<ListenerEntry> {
    let key = |name: &str| format!("{section}.{name}");
    let (hosts, origins, navigation, own_open) = (
        key("allowed_hosts"),
        key("allowed_origins"),
        key("allow_navigation"),
        key("allow_unauthenticated"),
    );
    let mut guard = guard.clone();
    if r.is_given(&hosts) {
        guard.allowed_hosts = allowed(r, &hosts, values::served_host);
    }
    if r.is_given(&origins) {
        guard.allowed_origins = allowed(r, &origins, values::web_origin);
    }
    if r.is_given(&navigation) {
        guard.allow_navigation = r.read(&navigation, values::boolean) == Some(true);
    }
    let open = if r.is_given(&own_open) {
        r.read(&own_open, values::boolean)
    } else {
        open
    };
    let tls = tls::server(r, &key("tls"));
    let own_header = key("proxy_protocol");
    let (header, proxy_protocol) = if r.is_given(&own_header) {
        let is_on = r.read(&own_header, values::boolean) == Some(true);
        (own_header.as_str(), is_on)
    } else {
        ("proxy.proxy_protocol", proxy_protocol)
    };
    let mut address = r.read(&key("address"), values::address)?;
    let pos = r.pos(&key("address"));
    r.resolve_socket_path(&mut address, &pos);
    let new = ListenerEntry {
        listener: Listener {
            address,
            guard,
            tls,
            proxy_protocol,
        },
        key: "listener.address",
        pos,
    };
    require_trusted_peers(r, &new.listener, header, trusted);
    // With a mistake in that key it is still clear that clients must authenticate.
    if !r.is_given(&key("tls.client_ca_file")) {
        require_authentication(r, &new, open);
    }
    Some(new)
}

/// A listener with the PROXY protocol closes the connections of all peers that are not trusted.
fn require_trusted_peers(
    r: &mut Reader,
    listener: &Listener,
    key: &str,
    trusted: &TrustedNetworks,
) {
    let (is_served, hint, variable) = match listener.address {
        Address::Tcp(_) => (
            trusted.has_networks(),
            r#"write the load balancer's address in [proxy], as in trusted_networks = ["192.0.2.10"]"#,
            "set BEARER_PROXY__PROXY__TRUSTED_NETWORKS=192.0.2.10, with the load balancer's address",
        ),
        Address::Unix(_) => (
            trusted.contains(None),
            r#"write trusted_networks = ["unix:"] in [proxy]"#,
            "set BEARER_PROXY__PROXY__TRUSTED_NETWORKS=unix:",
        ),
    };
    if listener.proxy_protocol && !is_served {
        let reason = format!(
            "accepts no connection on {}: PROXY headers are taken from proxy.trusted_networks only",
            listener.address
        );
        let problem = problem(reason, hint).or_variable(variable);
        r.missing(r.pos(key), key, problem);
    }
}

/// A listener that other machines can reach needs client authentication: every request there uses
/// the proxy's token.
fn require_authentication(
    r: &mut Reader,
    ListenerEntry { listener, key, pos }: &ListenerEntry,
    open: Option<bool>,
) {
    const VARIABLE: &str = "listen on 127.0.0.1, or set \
        BEARER_PROXY__PROXY__ALLOW_UNAUTHENTICATED=true if the network admits only the right clients";
    let address = &listener.address;
    let has_clients = !r.tables("client").is_empty();
    if open != Some(false) || address.is_local() || has_clients {
        return;
    }
    let reason = format!(
        "{address} can be reached from other machines, and requests there use the proxy's token \
         without authentication"
    );
    let hint = if *key == "proxy.listen" {
        "listen on 127.0.0.1, authenticate clients with [[client]], or write \
         allow_unauthenticated = true in [proxy] if the network admits only the right clients"
    } else {
        "listen on 127.0.0.1, require client certificates with tls.client_ca_file, authenticate \
         clients with [[client]], or write allow_unauthenticated = true here if the network admits \
         only the right clients"
    };
    r.missing(
        pos.clone(),
        key,
        problem(reason, hint).or_variable(VARIABLE),
    );
}

/// Switches the guard off if every client has a credential that a web page in a browser cannot
/// send.
pub(super) fn relax_guards(listeners: &mut [ListenerEntry], clients: &[Client]) {
    let is_off = !clients.is_empty() && clients.iter().all(Client::is_csrf_safe);
    for entry in listeners {
        entry.listener.guard.is_off = is_off;
    }
}

/// Warns of listeners for which browsers do not identify the calling page: they send `Origin` and
/// `Sec-Fetch-Site` with simple requests only to https and to loopback.
pub(super) fn recommend_required_header(r: &mut Reader, listeners: &[ListenerEntry]) {
    for ListenerEntry { listener, key, pos } in listeners {
        let Listener {
            address,
            guard,
            tls,
            ..
        } = listener;
        let is_protected =
            guard.is_off || guard.required_header.is_some() || r.is_given("proxy.required_header");
        let has_other_names = !address.is_local() || !guard.allowed_hosts.is_empty();
        if tls.is_some() || matches!(address, Address::Unix(_)) || !has_other_names || is_protected
        {
            continue;
        }
        let reason = format!(
            "{address} is plain http with host names other than localhost, for which browsers do \
             not send Origin and Sec-Fetch-Site with simple requests: any web page could send \
             requests there"
        );
        let hint = "if the apps can send an additional header, write required_header = \
            \"x-bearer-proxy\" in [proxy]";
        let variable = "if the apps can send an additional header, set \
            BEARER_PROXY__PROXY__REQUIRED_HEADER=x-bearer-proxy";
        r.warning(
            pos.clone(),
            key,
            problem(reason, hint).or_variable(variable),
        );
    }
}

pub(super) fn reject_overlaps(
    r: &mut Reader,
    listeners: &[ListenerEntry],
    admin: Option<&admin::Config>,
) {
    let admin = admin.map(|admin| {
        (
            &admin.listener.address,
            "admin.listen",
            r.pos("admin.listen"),
        )
    });
    let data = listeners
        .iter()
        .map(|entry| (&entry.listener.address, entry.key, entry.pos.clone()));
    for (index, (address, key, pos)) in data.chain(admin).enumerate() {
        let earlier = listeners
            .iter()
            .take(index)
            .find(|earlier| overlap(&earlier.listener.address, address));
        if let Some(ListenerEntry {
            listener,
            key: earlier_key,
            ..
        }) = earlier
        {
            let reason = format!(
                "{address} overlaps with {} in {earlier_key}",
                listener.address
            );
            r.mistake(pos, key, problem(reason, "use another port"));
        }
    }
}

fn overlap(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Tcp(a), Address::Tcp(b)) => {
            let same_ip = a.ip() == b.ip()
                || a.is_ipv4() == b.is_ipv4()
                    && (a.ip().is_unspecified() || b.ip().is_unspecified());
            // With port 0 each listener gets another port.
            a.port() == b.port() && a.port() != 0 && same_ip
        }
        (a, b) => a == b,
    }
}
