//! One client connection, and which protocol it speaks.

use std::{io, rc::Rc, sync::Arc};

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio_util::either::Either;

use crate::{
    net::certificate::CertificateNames,
    proxy::{
        connection::{
            deadlines::Due,
            io::{Io, Transport},
            state::ConnState,
        },
        exchange::Peer,
        message::headers::ClientConnection,
        server::{
            http1,
            http2::{self, frames::PREFACE},
        },
        settings::View,
        worker::Worker,
    },
};

/// Room for what is read while it is not known yet which protocol it is.
const FIRST_READ: usize = 4096;

/// Serves a connection of the listener at this position until either side ends it.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    stream: Transport,
    client: ClientConnection,
    listener: usize,
) {
    let view = worker.view();
    let (read_due, write_due) = (worker.ticker.deadline(), worker.ticker.deadline());
    let monitor = ConnState::new(
        read_due.handle(),
        write_due.handle(),
        Arc::clone(&view.timeouts),
    );
    let monitor = Arc::new(monitor);
    let _registered = worker.register(&monitor);
    let names = certificate_names(&view, &stream);
    let peer = Rc::new(Peer::new(client, listener, names, view));
    let metrics = Arc::clone(&worker.metrics);
    let mut io = Io::new(stream, Arc::clone(&monitor), Arc::clone(&metrics));
    let due = Due {
        read: read_due,
        write: write_due,
    };
    match due.cut(protocol(&mut io)).await {
        Some(Ok(Protocol::Http1)) => http1::serve(worker, io, peer, monitor, due).await,
        // Rarer, larger, and longer-lived.
        Some(Ok(Protocol::Http2)) => Box::pin(http2::serve(worker, io, peer, monitor, due)).await,
        Some(Err(_)) => {}
        None => due.count(&monitor, &metrics),
    }
}

/// The names of the client's certificate, where any `[[client]]` is recognised by one.
fn certificate_names(view: &View, stream: &Transport) -> CertificateNames {
    let shown = match stream {
        Either::Right(stream) if view.clients().uses_certificates() => {
            stream.get_ref().1.peer_certificates()
        }
        Either::Right(_) | Either::Left(_) => None,
    };
    shown
        .and_then(|chain| chain.first())
        .map(CertificateNames::of)
        .unwrap_or_default()
}

/// Which protocol a client speaks. HTTP/1.0 and 1.1 are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// Finds out what the client speaks: TLS has agreed on it, and in clear the first bytes tell.
async fn protocol(io: &mut Io) -> io::Result<Protocol> {
    if let Some(agreed) = io.agreed_protocol() {
        return Ok(if agreed == Some(b"h2") {
            Protocol::Http2
        } else {
            Protocol::Http1
        });
    }
    let mut read = BytesMut::with_capacity(FIRST_READ);
    let protocol = loop {
        let is_end = io.read_buf(&mut read).await? == 0;
        let known = read.len().min(PREFACE.len());
        if is_end || read[..known] != PREFACE[..known] {
            break Protocol::Http1;
        }
        if known == PREFACE.len() {
            break Protocol::Http2;
        }
    };
    io.unread(read.freeze());
    Ok(protocol)
}
