//! Accepts connections until draining begins.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;

use crate::{
    net::{
        socket::{Listener, Stream, is_exhaustion},
        tls,
    },
    proxy::{
        config::ServerTls, message::headers::ClientConnection, metrics::ConnectionRejection,
        server::connection, worker::Worker,
    },
};

/// Pause after `accept` failed because file descriptors or memory are exhausted.
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(100);

/// Sent on a connection that exceeds a limit.
const OVERLOADED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Retry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Accepts and serves the connections of the listener at this position until `stop` resolves, and
/// after that those that are in the queue: closing the listener would reset them.
pub(crate) async fn accept(
    worker: Rc<Worker>,
    listener: Listener,
    position: usize,
    server_tls: Option<ServerTls>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => spawn(&worker, stream, peer, position, server_tls.as_ref()),
            Err(error) if is_exhaustion(&error) => {
                worker.connection_failed(ConnectionRejection::AcceptFailed, None, Some(&error));
                tokio::time::sleep(EXHAUSTION_PAUSE).await;
            }
            // The client has closed the connection already.
            Err(_) => {}
        }
    }
    let queued = || {
        poll_fn(|cx| match pin!(listener.accept()).poll(cx) {
            Poll::Ready(Ok(queued)) => Poll::Ready(Some(queued)),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(None),
        })
    };
    while let Some((stream, peer)) = queued().await {
        spawn(&worker, stream, peer, position, server_tls.as_ref());
    }
}

/// Serves a connection in a task of its own, or rejects it.
fn spawn(
    worker: &Rc<Worker>,
    stream: Stream,
    peer: Option<SocketAddr>,
    position: usize,
    server_tls: Option<&ServerTls>,
) {
    let Some(slot) = worker.connection_slot(peer) else {
        // A TLS client cannot read a response before the handshake, which would cost too much.
        match server_tls {
            Some(_) => drop(stream),
            None => stream.reject(OVERLOADED),
        }
        return;
    };
    let view = worker.view();
    let client = ClientConnection::new(peer, view.guard(position).scheme().clone());
    let worker = Rc::clone(worker);
    let Some(acceptor) = server_tls.map(|tls| TlsAcceptor::from(tls.load())) else {
        let serving = connection::serve(worker, Either::Left(stream), client, position);
        tokio::task::spawn_local(async move {
            serving.await;
            drop(slot);
        });
        return;
    };
    tokio::task::spawn_local(async move {
        // The handshake precedes the first request and has the time of its head.
        let config = view.config();
        let limit = config.first_byte_timeout + config.head_timeout;
        match tokio::time::timeout(limit, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                connection::serve(worker, Either::Right(Box::new(stream)), client, position).await;
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                let advice = tls::cause(&error).map_or("", tls::client_advice);
                worker.connection_failed(
                    ConnectionRejection::Handshake,
                    peer,
                    Some(&format_args!("{error}{advice}")),
                );
            }
            // Counted but not logged: health checks and browsers often close before the handshake
            // is complete.
            Ok(Err(_)) | Err(_) => {
                worker.metrics.connections_rejected[ConnectionRejection::Handshake].add(1);
            }
        }
        drop(slot);
    });
}
