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
        config::ServerTls,
        connection::limits::ConnectionSlot,
        message::forwarded::ClientConnection,
        metrics::ConnectionRejection,
        server::{connection, proxy_header},
        worker::Worker,
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
            Ok((stream, peer)) => begin(&worker, stream, peer, position, server_tls.as_ref()),
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
        begin(&worker, stream, peer, position, server_tls.as_ref());
    }
}

/// A connection that is not served yet.
struct Accepted {
    worker: Rc<Worker>,
    stream: Stream,
    /// `None` on a Unix socket.
    client: Option<SocketAddr>,
    /// The position of the listener.
    position: usize,
    acceptor: Option<TlsAcceptor>,
    slot: ConnectionSlot,
}

/// Serves an accepted connection in a task of its own, or rejects it.
fn begin(
    worker: &Rc<Worker>,
    stream: Stream,
    peer: Option<SocketAddr>,
    position: usize,
    server_tls: Option<&ServerTls>,
) {
    let view = worker.view();
    let config = view.config();
    let has_header = config.listeners[position].proxy_protocol;
    if has_header && !config.trusted_networks.contains(peer.map(|peer| peer.ip())) {
        worker.connection_failed(ConnectionRejection::UntrustedPeer, peer, None);
        return;
    }
    let slot = match worker.connection_slot() {
        Ok(slot) => slot,
        Err(reason) => {
            worker.connection_failed(reason, peer, None);
            return reject(&stream, server_tls.is_some());
        }
    };
    let mut accepted = Accepted {
        worker: Rc::clone(worker),
        stream,
        client: peer,
        position,
        acceptor: server_tls.map(|tls| TlsAcceptor::from(tls.load())),
        slot,
    };
    if !has_header {
        return accepted.spawn();
    }
    tokio::task::spawn_local(async move {
        let Accepted { worker, stream, .. } = &mut accepted;
        if let Some(client) = Box::pin(proxy_header::client(worker, stream, peer)).await {
            accepted.client = client;
            // In this task: between two, draining would not know the connection.
            accepted.run().await;
        }
    });
}

/// A TLS client cannot read a response before the handshake, which would cost too much.
fn reject(stream: &Stream, has_tls: bool) {
    if !has_tls {
        stream.reject(OVERLOADED);
    }
}

impl Accepted {
    /// Serves the connection in a task of its own, within the limit of its client.
    fn spawn(mut self) {
        let Some(client) = self.admit() else { return };
        match self.acceptor.take() {
            None => drop(tokio::task::spawn_local(self.serve(client))),
            Some(acceptor) => drop(tokio::task::spawn_local(self.serve_tls(acceptor, client))),
        }
    }

    /// The same in the calling task.
    async fn run(mut self) {
        let Some(client) = self.admit() else { return };
        match self.acceptor.take() {
            None => self.serve(client).await,
            Some(acceptor) => self.serve_tls(acceptor, client).await,
        }
    }

    /// Counts the connection for its client, or rejects it.
    fn admit(&mut self) -> Option<ClientConnection> {
        let view = self.worker.view();
        let config = view.config();
        // A load balancer has the connections of all its clients.
        let is_balancer = config
            .trusted_networks
            .contains(self.client.map(|client| client.ip()));
        let counted = self.client.filter(|_| !is_balancer);
        if let Err(reason) = self.slot.count_for(counted) {
            self.worker.connection_failed(reason, self.client, None);
            reject(&self.stream, self.acceptor.is_some());
            return None;
        }
        let scheme = config.listeners[self.position].scheme();
        Some(ClientConnection::new(self.client, scheme))
    }

    async fn serve(self, client: ClientConnection) {
        let Self {
            worker,
            stream,
            position,
            slot,
            ..
        } = self;
        connection::serve(worker, Either::Left(stream), client, position).await;
        drop(slot);
    }

    async fn serve_tls(self, acceptor: TlsAcceptor, client: ClientConnection) {
        let Self {
            worker,
            stream,
            client: address,
            position,
            slot,
            ..
        } = self;
        // The handshake precedes the first request and has the time of its head.
        let view = worker.view();
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
                    address,
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
    }
}
