//! Connections that stop speaking HTTP: WebSocket and every other `Upgrade` (RFC 9110 §7.8).
//!
//! The handshake is a request like any other, with the token and its replay. After the upstream's 101 both connections are
//! one: bytes both ways, each half closed when its sender is done.

use std::cell::RefCell;

use http::{HeaderValue, Request, Version, header};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};

use crate::{base::list_field, proxy::policy::clients::Permit, upstream::Reservation};

/// A client's wish to speak something else.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// As the client names it.
    pub(crate) protocol: HeaderValue,
    client: RefCell<Option<OnUpgrade>>,
}

impl Upgrade {
    /// The wish of an HTTP/1.1 request without a body. HTTP/2 is not reached this way: that would take the connection out
    /// of our hands, and the token with it.
    pub(crate) fn wished(request: &mut Request<Incoming>) -> Option<Self> {
        let protocol = request.headers().get(header::UPGRADE)?;
        let is_wished = request.version() == Version::HTTP_11 && request.body().is_end_stream();
        if !is_wished || !list_field::contains(request.headers(), &header::CONNECTION, "upgrade") {
            return None;
        }
        if list_field::contains(request.headers(), &header::UPGRADE, "h2c")
            || list_field::contains(request.headers(), &header::UPGRADE, "h2")
        {
            return None;
        }
        let protocol = protocol.clone();
        let client = request.extensions_mut().remove::<OnUpgrade>()?;
        Some(Self {
            protocol,
            client: RefCell::new(Some(client)),
        })
    }

    /// The upstream has agreed.
    pub(crate) fn agreed(
        &self,
        upstream: OnUpgrade,
        reservation: Reservation,
        permit: Option<Permit>,
    ) -> Option<Tunnel> {
        Some(Tunnel {
            client: self.client.take()?,
            upstream,
            reservation,
            permit,
        })
    }
}

/// Two connections that are about to become one.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) client: OnUpgrade,
    pub(crate) upstream: OnUpgrade,
    /// Its place among the upstream's connections is held to the end.
    pub(crate) reservation: Reservation,
    /// Its place among the requests of its client likewise.
    pub(crate) permit: Option<Permit>,
}
