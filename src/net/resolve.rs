//! The addresses of a name: one look-up, and a task that repeats it.
//!
//! A look-up is `getaddrinfo` of the system, on a thread for blocking calls: hosts file, search
//! domains and the order of the addresses (RFC 6724) are those of every other program. It cannot be
//! cancelled, and takes as long as the system's resolver is configured to wait. So there is never
//! more than one for a name at a time, and nothing but [`watch_name`] waits for it.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    sync::{Arc, LazyLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::base::{
    backoff::{self, Backoff},
    host,
};

/// The most addresses of a name that are used.
pub const MAX_ADDRESSES: usize = 64;

/// A look-up that takes longer counts as failed until it ends. Longer than the resolver takes to
/// get past a dead first nameserver (5 s for each attempt).
pub const LOOKUP_LIMIT: Duration = Duration::from_secs(15);

/// The first delay between look-ups of a name that has never resolved.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The result of one look-up: addresses in the resolver's order, whose ports do not matter, or why
/// there are none.
pub type Found = Result<Vec<SocketAddr>, String>;

/// The addresses of a name, at least one and at most [`MAX_ADDRESSES`], without duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressList {
    /// The address family that the resolver puts first.
    pub first: Vec<SocketAddr>,
    /// The other family: a second way to the same servers.
    pub other: Vec<SocketAddr>,
}

impl AddressList {
    /// The addresses that were found, with this port. Those of the former list keep their order and
    /// are the last to go if there are too many: nameservers rotate addresses, and a rotation must
    /// not look like a change. `None` if nothing was found.
    fn new(found: &[SocketAddr], port: u16, former: Option<&Self>) -> Option<Self> {
        let mut seen = HashSet::new();
        let found = found
            .iter()
            .map(|address| with_port(*address, port))
            .filter(|address| seen.insert(*address));
        let found: Vec<_> = found.collect();
        let is_first_ipv6 = found.first()?.is_ipv6();
        let stays = former
            .into_iter()
            .flat_map(Self::iter)
            .filter(|address| seen.contains(address));
        let is_new = |address: &SocketAddr| former.is_none_or(|former| !former.contains(*address));
        let ordered = stays.chain(found.iter().copied().filter(is_new));
        let (mut first, mut other): (Vec<_>, Vec<_>) =
            ordered.partition(|address| address.is_ipv6() == is_first_ipv6);
        first.truncate(MAX_ADDRESSES);
        other.truncate(MAX_ADDRESSES - first.len());
        Some(Self { first, other })
    }

    /// All addresses, those of the first family first.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        self.first.iter().chain(&self.other).copied()
    }

    /// Whether it has this address.
    pub fn contains(&self, address: SocketAddr) -> bool {
        self.first.contains(&address) || self.other.contains(&address)
    }
}

impl fmt::Display for AddressList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&join(self.iter()))
    }
}

fn join(addresses: impl Iterator<Item = SocketAddr>) -> String {
    let texts: Vec<_> = addresses.map(|address| address.ip().to_string()).collect();
    texts.join(", ")
}

/// An IPv4-mapped address becomes the IPv4 address: both are one way to the server.
fn with_port(address: SocketAddr, port: u16) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => (ip, port).into(),
        IpAddr::V6(_) => {
            // Keeps the scope of a link-local address.
            let mut address = address;
            address.set_port(port);
            address
        }
    }
}

/// What is known of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookup {
    /// The last addresses that were found. `None` if the name has never resolved.
    pub list: Option<Arc<AddressList>>,
    /// Why the last look-up failed; `None` if it succeeded, or if there was none yet.
    pub error: Option<String>,
}

/// Resolves `host`, a name or an IP address without brackets, at once and then every `refresh`
/// (± 10 %, so that many instances do not ask at the same moment), and publishes what has changed.
/// A look-up that fails, finds nothing or takes longer than [`LOOKUP_LIMIT`] changes the error
/// alone. An IP address is published once.
///
/// `look_up` starts one look-up, see [`SystemResolver`]. Another one is started only when it has
/// ended, and a late result still counts.
///
/// Runs until no receiver is left.
pub async fn watch_name<F: Future<Output = Found>>(
    host: &str,
    port: u16,
    refresh: Duration,
    look_up: impl Fn() -> F,
    publish: watch::Sender<Lookup>,
) {
    if let Some(ip) = host::literal(host) {
        publish.send_modify(|known| known.list = AddressList::literal(ip, port));
        return publish.closed().await;
    }
    let name = Name {
        host,
        port,
        publish: &publish,
    };
    tokio::select! {
        () = publish.closed() => {}
        () = name.look_up_forever(refresh, look_up) => {}
    }
}

impl AddressList {
    fn literal(ip: IpAddr, port: u16) -> Option<Arc<Self>> {
        Self::new(&[(ip, port).into()], port, None).map(Arc::new)
    }
}

/// A name, and where its addresses are published.
struct Name<'a> {
    host: &'a str,
    port: u16,
    publish: &'a watch::Sender<Lookup>,
}

impl Name<'_> {
    async fn look_up_forever<F: Future<Output = Found>>(
        &self,
        refresh: Duration,
        look_up: impl Fn() -> F,
    ) {
        // Without any address every request fails: the name is tried more often.
        let mut retry = Backoff::new(FIRST_RETRY.min(refresh), refresh);
        loop {
            let mut looking_up = std::pin::pin!(look_up());
            let found = match tokio::time::timeout(LOOKUP_LIMIT, &mut looking_up).await {
                Ok(found) => found,
                Err(_) => {
                    self.failed(format!("no result within {LOOKUP_LIMIT:?}"));
                    looking_up.await
                }
            };
            match found {
                Ok(found) => self.found(&found),
                Err(error) => self.failed(error),
            }
            let is_known = self.publish.borrow().list.is_some();
            let delay = if is_known {
                refresh.mul_f64(0.9 + 0.2 * backoff::random())
            } else {
                retry.next_delay()
            };
            tokio::time::sleep(delay).await;
        }
    }

    fn found(&self, found: &[SocketAddr]) {
        let former = self.publish.borrow().clone();
        let Some(list) = AddressList::new(found, self.port, former.list.as_deref()) else {
            return self.failed("the name has no address".to_owned());
        };
        let host = self.host;
        if former.error.is_some() {
            tracing::info!("{host} resolves again: {list}");
        }
        let changed = match &former.list {
            Some(former) if **former == list => None,
            Some(former) => {
                let added = join(list.iter().filter(|address| !former.contains(*address)));
                let removed = join(former.iter().filter(|address| !list.contains(*address)));
                tracing::info!(added, removed, "the addresses of {host} changed to: {list}");
                Some(Arc::new(list))
            }
            None => {
                tracing::debug!("{host} resolves to: {list}");
                Some(Arc::new(list))
            }
        };
        self.publish.send_if_modified(|known| {
            let is_modified = changed.is_some() || known.error.is_some();
            known.error = None;
            known.list = changed.or(known.list.take());
            is_modified
        });
    }

    fn failed(&self, error: String) {
        let (host, is_known) = (self.host, self.publish.borrow().list.is_some());
        if self.publish.borrow().error.is_some() {
            tracing::debug!("still cannot resolve {host}: {error}");
        } else if is_known {
            tracing::warn!(
                "cannot resolve {host}: {error}; its last known addresses stay in use: check the \
                 nameservers of this machine"
            );
        } else {
            tracing::warn!(
                "cannot resolve {host}: {error}; requests to it fail until it resolves: check the \
                 name, and the nameservers of this machine"
            );
        }
        self.publish.send_if_modified(|known| {
            let is_modified = known.error.as_ref() != Some(&error);
            known.error = Some(error);
            is_modified
        });
    }
}

/// The resolver of the system. Clones share the look-ups under way: of those of one name, one runs,
/// so that a resolver that hangs holds one thread for each name, not more.
#[derive(Debug, Clone, Default)]
pub struct SystemResolver {
    under_way: Arc<Mutex<HashMap<String, watch::Receiver<Option<Found>>>>>,
}

impl SystemResolver {
    /// That of this process: the names of upstreams and of issuers are often the same.
    pub fn shared() -> Self {
        static SHARED: LazyLock<SystemResolver> = LazyLock::new(SystemResolver::default);
        SHARED.clone()
    }

    /// Looks up `host`. Dropping the future does not end the look-up, and the next call for the
    /// same name waits for its result.
    pub async fn look_up(&self, host: &str) -> Found {
        self.join_or_start(host, system_addresses).await
    }

    async fn join_or_start(
        &self,
        host: &str,
        work: impl FnOnce(&str) -> Found + Send + 'static,
    ) -> Found {
        let mut result = {
            let mut under_way = self.under_way.lock();
            // Closed: the runtime of the look-up has ended.
            match under_way.get(host).filter(|one| one.has_changed().is_ok()) {
                Some(result) => result.clone(),
                None => {
                    let (sender, result) = watch::channel(None);
                    under_way.insert(host.to_owned(), result.clone());
                    let (this, host) = (self.clone(), host.to_owned());
                    tokio::task::spawn_blocking(move || {
                        let found = work(&host);
                        this.under_way.lock().remove(&host);
                        sender.send_replace(Some(found));
                    });
                    result
                }
            }
        };
        let found = result.wait_for(Option::is_some).await;
        let found = found.ok().and_then(|found| (*found).clone());
        found.unwrap_or_else(|| Err("the look-up was stopped".to_owned()))
    }
}

/// The addresses of a name by `getaddrinfo`.
fn system_addresses(name: &str) -> Found {
    // A dot at the end says that no search domain applies. `getaddrinfo` knows that of nameservers,
    // and finds no such name in the hosts file.
    if let Some(without_dot) = name.strip_suffix('.') {
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let found = in_hosts_file(&hosts, without_dot);
        if !found.is_empty() {
            return Ok(found);
        }
    }
    match (name, 0).to_socket_addrs() {
        Ok(found) => Ok(found.collect()),
        // RFC 6761 §6.3. Not every hosts file has these names, and nameservers need not know them.
        Err(_) if host::is_localhost(name.trim_end_matches('.')) => Ok(vec![
            (Ipv4Addr::LOCALHOST, 0).into(),
            (Ipv6Addr::LOCALHOST, 0).into(),
        ]),
        Err(error) => Err(error.to_string()),
    }
}

/// The addresses of a name in a file as in hosts(5).
fn in_hosts_file(text: &str, name: &str) -> Vec<SocketAddr> {
    let entries = text.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words
            .any(|word| word.eq_ignore_ascii_case(name))
            .then_some((address, 0).into())
    });
    entries.collect()
}
