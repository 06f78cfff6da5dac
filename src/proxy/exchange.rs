//! One request and its answer: what all parts of the way share.

pub(crate) mod continue_gate;
pub(crate) mod recording;
pub(crate) mod request_body;
pub(crate) mod upgrade;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::{
    base::ticker::Deadline,
    net::certificate::CertificateNames,
    proxy::{
        connection::{lingering::UnreadBody, state::ConnState},
        exchange::upgrade::Tunnel,
        message::headers::ClientConnection,
        policy::{
            clients::{ClientId, ConnectionIdentity, Permit},
            guard::KnownHost,
        },
        route::RouteTimeouts,
        settings::View,
    },
};

/// Who is at the other end of a connection, and by which door it came.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) client: ClientConnection,
    /// The position of its listener.
    pub(crate) listener: usize,
    /// Of the certificate that the client showed.
    pub(crate) names: CertificateNames,
    pub(crate) known_host: KnownHost,
    pub(crate) identity: RefCell<ConnectionIdentity>,
    /// The settings with which `known_host` and `identity` were found.
    view: RefCell<Rc<View>>,
}

impl Peer {
    pub(crate) fn new(
        client: ClientConnection,
        listener: usize,
        names: CertificateNames,
        view: Rc<View>,
    ) -> Self {
        let identity = identity(&view, &client, &names);
        Self {
            client,
            listener,
            names,
            known_host: KnownHost::default(),
            identity: RefCell::new(identity),
            view: RefCell::new(view),
        }
    }

    /// Forgets what other settings than these have found.
    fn adopt(&self, view: &Rc<View>) {
        if !Rc::ptr_eq(&self.view.borrow(), view) {
            *self.known_host.borrow_mut() = None;
            *self.identity.borrow_mut() = identity(view, &self.client, &self.names);
            *self.view.borrow_mut() = Rc::clone(view);
        }
    }
}

/// The clients that a connection may belong to.
fn identity(
    view: &View,
    client: &ClientConnection,
    names: &CertificateNames,
) -> ConnectionIdentity {
    let clients = view.clients();
    if clients.is_empty() {
        return ConnectionIdentity::default();
    }
    clients.identity(client.address().map(|address| address.ip()), names)
}

/// What an exchange takes up of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// All of it, one exchange after the other: HTTP/1.
    Connection,
    /// One stream of it, beside others: HTTP/2.
    Stream,
}

/// What all parts of an exchange share. On HTTP/1, one serves all requests of a connection in turn.
pub(crate) struct Exchange {
    pub(crate) peer: Rc<Peer>,
    pub(crate) carrier: Carrier,
    /// When the upstream has been silent for too long.
    pub(crate) upstream_deadline: Deadline,
    /// What the upstream of this request may take its time with.
    pub(crate) timeouts: Cell<RouteTimeouts>,
    pub(crate) monitor: Arc<ConnState>,
    pub(crate) lingering: mpsc::UnboundedSender<UnreadBody>,
    /// The settings with which its request began.
    pub(crate) view: RefCell<Rc<View>>,
    /// Who sent this request, if clients have names.
    pub(crate) caller: Cell<Option<ClientId>>,
    /// Its place among that client's requests that are under way.
    pub(crate) permit: Cell<Option<Permit>>,
    /// What becomes of the connection after an answer of 101.
    pub(crate) tunnel: RefCell<Option<Tunnel>>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("peer", &self.peer)
            .field("carrier", &self.carrier)
            .finish_non_exhaustive()
    }
}

impl Exchange {
    /// A request begins: what it finds are these settings, to its end.
    pub(crate) fn begin(&self, current: Rc<View>) -> Rc<View> {
        if !Rc::ptr_eq(&self.view.borrow(), &current) {
            *self.view.borrow_mut() = Rc::clone(&current);
        }
        self.peer.adopt(&current);
        current
    }

    /// The settings of the request under way.
    pub(crate) fn view(&self) -> Rc<View> {
        Rc::clone(&self.view.borrow())
    }

    /// The client owes us more of its body; the upstream nothing.
    pub(crate) fn waiting_for_client(&self, before_answer: bool) {
        self.monitor.waiting_for_body();
        if before_answer {
            self.upstream_deadline.disarm();
        }
    }

    /// The client sent so many bytes; the upstream must take them.
    pub(crate) fn client_moved(&self, n: usize, before_answer: bool) {
        if before_answer {
            self.monitor.body_moved(n as u64);
            self.upstream_deadline.arm(self.timeouts.get().body_idle);
        } else {
            // Both may be talking now, as long as neither is silent.
            self.monitor.body_is_free();
        }
    }

    /// The client has sent everything; the upstream must answer.
    pub(crate) fn client_finished(&self, before_answer: bool) {
        self.monitor.body_is_free();
        if before_answer {
            self.upstream_deadline.arm(self.timeouts.get().response);
        }
    }

    /// The upstream must go on with its answer's body.
    pub(crate) fn waiting_for_upstream(&self) {
        self.upstream_deadline
            .arm_if_idle(self.timeouts.get().body_idle);
    }

    /// A piece of the answer is there for the client to take. On HTTP/1 the socket tells when it does.
    pub(crate) fn offered(&self) {
        if self.carrier == Carrier::Stream {
            self.monitor.offered();
        }
    }

    /// The client has room for more.
    pub(crate) fn taken(&self) {
        if self.carrier == Carrier::Stream {
            self.monitor.taken();
        }
    }

    /// Reads a client's body out that nobody wants any more. A stream is simply reset: the others need not wait for it.
    pub(crate) fn linger(&self, body: Incoming, exchange: u32, is_unasked: bool) {
        if self.carrier == Carrier::Connection {
            let monitor = Arc::clone(&self.monitor);
            // Whoever reads it out has limits of its own.
            monitor.body_pauses();
            // Fails only when the worker is gone, and the connection with it.
            let _ = self.lingering.send(UnreadBody {
                body,
                monitor,
                exchange,
                is_unasked,
            });
        }
    }
}
