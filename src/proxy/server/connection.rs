//! Serves one client connection: detects its protocol, then speaks HTTP/1 or HTTP/2.

use std::{io, pin::pin, rc::Rc, sync::Arc};

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio_util::either::Either;

use crate::{
    net::{certificate::CertificateNames, http2::PREFACE},
    proxy::{
        connection::{
            deadlines::ClientDeadlines,
            http1_state::Http1State,
            http2_state::Http2State,
            io::{Io, Transport},
            state::ConnState,
        },
        exchange::Peer,
        message::forwarded::ClientConnection,
        server::{http1, http2},
        settings::View,
        worker::Worker,
    },
};

/// Buffer for the bytes that are read to detect the protocol.
const DETECTION_BUFFER: usize = 4096;

/// HTTP/1.0 and 1.1 are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// Serves a connection, which the listener at this position accepted, until either side closes it.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    transport: Transport,
    client: ClientConnection,
    listener: usize,
) {
    let view = worker.view();
    let timeouts = Arc::clone(&view.timeouts);
    let deadlines = ClientDeadlines {
        read: worker.ticker.deadline(),
        write: worker.ticker.deadline(),
    };
    let state = Arc::new(Http1State::new(
        deadlines.read.handle(),
        deadlines.write.handle(),
        Arc::clone(&timeouts),
    ));
    let registration = worker.register(ConnState::Http1(Arc::clone(&state)));
    let names = certificate_names(&view, &transport);
    let peer = Rc::new(Peer::new(client, listener, names, view));
    let mut io = Io::new(
        transport,
        ConnState::Http1(Arc::clone(&state)),
        Arc::clone(&worker.metrics),
    );
    let protocol = deadlines.run(pin!(detect_protocol(&mut io))).await;
    match protocol {
        Some(Ok(Protocol::Http1)) => http1::serve(worker, io, peer, state, deadlines).await,
        Some(Ok(Protocol::Http2)) => {
            let state = Arc::new(Http2State::new(
                deadlines.read.handle(),
                deadlines.write.handle(),
                timeouts,
            ));
            registration.replace(ConnState::Http2(Arc::clone(&state)));
            io.set_state(ConnState::Http2(Arc::clone(&state)));
            // Boxed: these are fewer, and their future is larger.
            Box::pin(http2::serve(worker, io, peer, state, deadlines)).await;
        }
        Some(Err(_)) => {}
        None => {
            deadlines.count_expired(state.read_timeout(), state.write_timeout(), &worker.metrics);
        }
    }
}

/// The names in the client's certificate, if any `[[client]]` is recognised by one.
fn certificate_names(view: &View, transport: &Transport) -> CertificateNames {
    let certificates = match transport {
        Either::Right(stream) if view.clients().uses_certificates() => {
            stream.get_ref().1.peer_certificates()
        }
        Either::Right(_) | Either::Left(_) => None,
    };
    certificates
        .and_then(|chain| chain.first())
        .map(CertificateNames::of)
        .unwrap_or_default()
}

/// With TLS, what ALPN agreed on; in clear, HTTP/2 if the first bytes are its preface (prior
/// knowledge, RFC 9113 §3.3).
async fn detect_protocol(io: &mut Io) -> io::Result<Protocol> {
    if let Some(negotiated) = io.alpn_protocol() {
        return Ok(if negotiated == Some(b"h2") {
            Protocol::Http2
        } else {
            Protocol::Http1
        });
    }
    let mut read = BytesMut::with_capacity(DETECTION_BUFFER);
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
