//! One exchange, a request and its response: what its handler, its bodies and its connection share.
//!
//! | File | Contents |
//! |---|---|
//! | `request_body` | the request body, which can be sent by more than one attempt |
//! | `recording` | the part of it that is kept for that, within memory limits |
//! | `continue_gate` | `Expect: 100-continue` toward the upstream |
//! | `upgrade` | a requested protocol upgrade, and the tunnel that it becomes |

pub(crate) mod continue_gate;
pub(crate) mod recording;
pub(crate) mod request_body;
pub(crate) mod upgrade;

use std::{
    cell::{Cell, Ref, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use http::request;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::{
    base::ticker::Deadline,
    net::certificate::CertificateNames,
    proxy::{
        connection::{lingering::UnreadBody, state::ExchangeState},
        exchange::upgrade::Tunnel,
        message::forwarded::{self, ClientConnection},
        policy::{
            clients::{ClientId, ConnectionIdentity, Permit},
            guard::KnownHost,
        },
        route::RouteTimeouts,
        settings::View,
    },
};

/// The other end of a connection: a client, or a load balancer with the requests of many.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The client, unless [`Self::client_of`] a request says otherwise.
    pub(crate) client: ClientConnection,
    /// The position of the listener that accepted it.
    pub(crate) listener: usize,
    /// The names in the client's certificate.
    pub(crate) names: CertificateNames,
    pub(crate) known_host: KnownHost,
    /// Whether its forwarding fields say who the client is.
    is_trusted: Cell<bool>,
    identity: RefCell<ConnectionIdentity>,
    /// The address that `identity` is the one of.
    identified: Cell<Option<IpAddr>>,
    /// The settings that all of these were derived from.
    view: RefCell<Rc<View>>,
}

impl Peer {
    pub(crate) fn new(
        client: ClientConnection,
        listener: usize,
        names: CertificateNames,
        view: Rc<View>,
    ) -> Self {
        let ip = client.address().ip;
        Self {
            client,
            listener,
            known_host: KnownHost::default(),
            is_trusted: Cell::new(view.config().trusted_networks.contains(ip)),
            identity: RefCell::new(identity(&view, ip, &names)),
            identified: Cell::new(ip),
            names,
            view: RefCell::new(view),
        }
    }

    /// The client of a request, if the peer is trusted to say so. The request's `Host` becomes the
    /// one that this client used.
    pub(crate) fn client_of(&self, head: &mut request::Parts) -> Option<Box<ClientConnection>> {
        self.is_trusted.get().then(|| {
            let view = self.view.borrow();
            let (fields, trusted) = (
                view.config().forwarded_headers,
                &view.config().trusted_networks,
            );
            Box::new(forwarded::read(head, &self.client, fields, trusted))
        })
    }

    /// The `[[client]]`s that a request may come from whose client has this address.
    pub(crate) fn identity(&self, ip: Option<IpAddr>) -> Ref<'_, ConnectionIdentity> {
        if self.identified.replace(ip) != ip {
            *self.identity.borrow_mut() = identity(&self.view.borrow(), ip, &self.names);
        }
        self.identity.borrow()
    }

    /// Discards what was derived from other settings than these.
    fn adopt(&self, view: &Rc<View>) {
        if !Rc::ptr_eq(&self.view.borrow(), view) {
            *self.known_host.borrow_mut() = None;
            *self.identity.borrow_mut() = identity(view, self.identified.get(), &self.names);
            let trusted = &view.config().trusted_networks;
            self.is_trusted
                .set(trusted.contains(self.client.address().ip));
            *self.view.borrow_mut() = Rc::clone(view);
        }
    }
}

fn identity(view: &View, ip: Option<IpAddr>, names: &CertificateNames) -> ConnectionIdentity {
    let clients = view.clients();
    if clients.is_empty() {
        return ConnectionIdentity::default();
    }
    clients.identity(ip, names)
}

/// What all parts of an exchange share. On HTTP/1, one serves all exchanges of a connection in
/// turn; on HTTP/2, each stream has its own.
pub(crate) struct Exchange {
    pub(crate) peer: Rc<Peer>,
    pub(crate) state: ExchangeState,
    /// Expires when the upstream has been silent for too long.
    pub(crate) upstream_deadline: Deadline,
    /// The timeouts of the request's route.
    pub(crate) timeouts: Cell<RouteTimeouts>,
    pub(crate) lingering: mpsc::UnboundedSender<UnreadBody>,
    /// The settings with which its request began.
    pub(crate) view: RefCell<Rc<View>>,
    /// The client that sent this request, if clients are configured.
    pub(crate) caller: Cell<Option<ClientId>>,
    /// Its slot among that client's concurrent requests.
    pub(crate) permit: Cell<Option<Permit>>,
    /// Set by a 101 response: the connection becomes this tunnel.
    pub(crate) tunnel: RefCell<Option<Tunnel>>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Exchange {
    /// A request begins: it uses these settings to its end.
    pub(crate) fn begin(&self, current: Rc<View>) -> Rc<View> {
        if !Rc::ptr_eq(&self.view.borrow(), &current) {
            *self.view.borrow_mut() = Rc::clone(&current);
        }
        self.peer.adopt(&current);
        current
    }

    /// The settings of the current request.
    pub(crate) fn view(&self) -> Rc<View> {
        Rc::clone(&self.view.borrow())
    }

    /// The proxy waits for more of the request body. Until then the upstream has no deadline,
    /// unless its response has begun.
    pub(crate) fn wait_for_client(&self, has_response: bool) {
        self.state.wait_for_body();
        if !has_response {
            self.upstream_deadline.disarm();
        }
    }

    /// Bytes of the request body have arrived; the upstream must accept them.
    pub(crate) fn body_received(&self, bytes: usize, has_response: bool) {
        if has_response {
            // Request and response may both be under way now; each has a deadline of its own.
            self.state.end_body_wait();
        } else {
            self.state.body_received(bytes as u64);
            self.upstream_deadline.arm(self.timeouts.get().body_idle);
        }
    }

    /// The request body is complete; the upstream must respond.
    pub(crate) fn body_complete(&self, has_response: bool) {
        self.state.end_body_wait();
        if !has_response {
            self.upstream_deadline.arm(self.timeouts.get().response);
        }
    }

    /// The upstream must send more of its response body.
    pub(crate) fn wait_for_upstream(&self) {
        self.upstream_deadline
            .arm_if_idle(self.timeouts.get().body_idle);
    }

    /// Drains a request body that has no reader any more, so that the client reads the response. A
    /// stream is reset instead, since that does not affect the others of its connection.
    pub(crate) fn linger(&self, body: Incoming, exchange: u32, is_unrequested: bool) {
        match &self.state {
            ExchangeState::Http1(state) => {
                // Lingering has timeouts of its own.
                self.state.pause_body();
                // Fails only when the worker is gone, and the connection with it.
                let _ = self.lingering.send(UnreadBody {
                    body,
                    state: Arc::clone(state),
                    exchange,
                    is_unrequested,
                });
            }
            ExchangeState::Http2(_) => drop(body),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use http::{Request, uri::Scheme};

    use super::*;
    use crate::{
        base::{clock, ticker::Ticker},
        config::{self, Source},
        proxy::{
            connection::http1_state::Http1State, metrics::Metrics, policy::clients::Clients,
            settings::Settings,
        },
    };

    /// The settings of a proxy that serves these hosts, and no others.
    fn view(allowed_hosts: &str) -> Rc<View> {
        let overrides = [
            ("proxy.listen", "127.0.0.1:8080"),
            ("proxy.allowed_hosts", allowed_hosts),
            ("upstream.endpoints", "http://127.0.0.1:1"),
            ("token.client_id", "demo"),
            ("token.client_secret", "secret"),
            ("token.refresh_token", "seed"),
        ];
        let overrides = overrides.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let source = Source {
            file: None,
            env: Vec::new(),
            overrides: overrides.to_vec(),
        };
        let loaded = config::load(source).unwrap().config;
        let config = loaded.proxy;
        let settings = Settings {
            clients: Arc::new(Clients::new(&config.clients, &clock::system()).unwrap()),
            upstreams: loaded.upstreams,
            addresses: config
                .listeners
                .iter()
                .map(|listener| listener.address.clone())
                .collect(),
            config,
        };
        let draining = Arc::<AtomicBool>::default();
        Rc::new(View::new(
            &Arc::new(settings),
            &Metrics::default(),
            &draining,
        ))
    }

    fn exchange(view: &Rc<View>) -> Exchange {
        let ticker = Ticker::new();
        let (read, write) = (ticker.deadline(), ticker.deadline());
        let timeouts = Arc::clone(&view.timeouts);
        let state = Http1State::new(read.handle(), write.handle(), timeouts);
        let client = ClientConnection::new(None, Scheme::HTTP);
        let names = CertificateNames::default();
        Exchange {
            peer: Rc::new(Peer::new(client, 0, names, Rc::clone(view))),
            state: ExchangeState::Http1(Arc::new(state)),
            upstream_deadline: ticker.deadline(),
            timeouts: Cell::new(view.routes.default_timeouts()),
            lingering: mpsc::unbounded_channel().0,
            view: RefCell::new(Rc::clone(view)),
            caller: Cell::default(),
            permit: Cell::default(),
            tunnel: RefCell::default(),
        }
    }

    #[test]
    fn a_request_keeps_the_settings_with_which_it_began_and_the_next_one_has_the_new_ones() {
        let (closed, open) = (view("other.example.com"), view("files.example.com"));
        let exchange = exchange(&closed);
        let request = Request::get("/").header("host", "files.example.com");
        let (head, ()) = request.body(()).unwrap().into_parts();
        let is_served = |view: &View| {
            let guard = view.guard(exchange.peer.listener);
            let known = &exchange.peer.known_host;
            guard.check(&head, known, &Scheme::HTTP).is_ok()
        };
        let under_way = exchange.begin(Rc::clone(&closed));
        assert!(!is_served(&under_way));
        let next = exchange.begin(Rc::clone(&open));
        assert!(is_served(&next), "the new settings are used at once");
        assert!(Rc::ptr_eq(&exchange.view(), &next));
        assert!(
            under_way.config().listeners[0]
                .guard
                .allowed_hosts
                .contains("other.example.com"),
            "the first request still has its own"
        );
        let last = exchange.begin(closed);
        assert!(!is_served(&last), "the host of other settings is forgotten");
    }
}
