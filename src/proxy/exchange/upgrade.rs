//! Protocol upgrades: WebSocket and any other `Upgrade` (RFC 9110 §7.8).
//!
//! The handshake is a request like any other, with the token and its replay. After the upstream's
//! 101 response the two connections become a tunnel.

use std::cell::RefCell;

use http::{HeaderValue, Request, Version, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};

use crate::{base::list_field, proxy::policy::clients::Permit, upstream::Reservation};

/// An upgrade that a client requests.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// The value of its `Upgrade` field.
    pub(crate) protocol: HeaderValue,
    client: RefCell<Option<OnUpgrade>>,
}

impl Upgrade {
    /// The upgrade that an HTTP/1.1 request asks for. Its body, if it has one, is sent first. An
    /// upgrade to HTTP/2 is ignored: the proxy could not inspect the requests that follow, which
    /// would carry the token.
    pub(crate) fn requested(request: &mut Request<Incoming>) -> Option<Self> {
        let protocol = request.headers().get(header::UPGRADE)?.clone();
        // In any case: what remains of the extensions is sent on.
        let client = request.extensions_mut().remove::<OnUpgrade>()?;
        let is_eligible = request.version() == Version::HTTP_11;
        if !is_eligible || !list_field::contains(request.headers(), &header::CONNECTION, "upgrade")
        {
            return None;
        }
        if list_field::contains(request.headers(), &header::UPGRADE, "h2c")
            || list_field::contains(request.headers(), &header::UPGRADE, "h2")
        {
            return None;
        }
        Some(Self {
            protocol,
            client: RefCell::new(Some(client)),
        })
    }

    /// The tunnel, once the upstream has responded 101.
    pub(crate) fn accepted(
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

/// Two connections that are about to be joined.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) client: OnUpgrade,
    pub(crate) upstream: OnUpgrade,
    /// The slot among the upstream's connections, held to the end.
    pub(crate) reservation: Reservation,
    /// The slot among the client's concurrent requests, held to the end.
    pub(crate) permit: Option<Permit>,
}
