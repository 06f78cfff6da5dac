//! The PROXY header at the beginning of a load balancer's connection, before TLS and HTTP.

use std::{io, net::SocketAddr, pin::pin, rc::Rc, sync::Arc};

use crate::{
    net::{
        proxy_protocol::{self, Origin},
        socket::Stream,
    },
    proxy::{
        connection::{deadlines::ClientDeadlines, http1_state::Http1State, state::ConnState},
        metrics::ConnectionRejection,
        worker::Worker,
    },
};

/// Reads the header within `first_byte_timeout`, and returns the client's address; that of `peer`
/// for a connection of the load balancer itself. `None` if the connection must be closed, which was
/// counted.
pub(crate) async fn client(
    worker: &Rc<Worker>,
    stream: &mut Stream,
    peer: Option<SocketAddr>,
) -> Option<Option<SocketAddr>> {
    let deadlines = ClientDeadlines {
        read: worker.ticker.deadline(),
        write: worker.ticker.deadline(),
    };
    // That of a connection which waits for its first byte, also while draining.
    let state = Arc::new(Http1State::new(
        deadlines.read.handle(),
        deadlines.write.handle(),
        Arc::clone(&worker.view().timeouts),
    ));
    let _registration = worker.register(ConnState::Http1(Arc::clone(&state)));
    let read = deadlines.run(pin!(proxy_protocol::read(stream))).await;
    let is_fault = match &read {
        Some(Ok(Origin::Client(client))) => return Some(Some(*client)),
        Some(Ok(Origin::LoadBalancer)) => return Some(peer),
        Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            worker.connection_failed(ConnectionRejection::ProxyHeader, peer, Some(error));
            return None;
        }
        Some(Err(_)) => true,
        None => state.read_timeout().is_some(),
    };
    if is_fault {
        // Not logged: health checks may open a connection and close it again.
        worker.metrics.connections_rejected[ConnectionRejection::ProxyHeader].add(1);
    }
    None
}
