//! HTTP/1.0 and HTTP/1.1 with a client.

pub(crate) mod strict_reader;

use std::{pin::pin, rc::Rc, sync::Arc};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use crate::proxy::{
    connection::{
        deadlines::ClientDeadlines, http1_state::Http1State, io::Io, state::ExchangeState,
    },
    exchange::Peer,
    framing,
    server::{catch_panic, http1::strict_reader::StrictReader, tunnel},
    worker::Worker,
};

/// The largest part of a body that is read at once.
const READ_BUFFER: usize = 64 * 1024;

/// The number of fields for which hyper has space without allocating.
const DEFAULT_MAX_HEADERS: usize = 100;

/// Serves an HTTP/1 connection until either side closes it, and after an upgrade its tunnel.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    io: Io,
    peer: Rc<Peer>,
    state: Arc<Http1State>,
    deadlines: ClientDeadlines,
) {
    let exchange = worker.exchange(&peer, ExchangeState::Http1(Arc::clone(&state)));
    let service = service_fn(|request| {
        catch_panic::handle(Rc::clone(&worker), Rc::clone(&exchange), request)
    });
    let view = worker.view();
    let limits = &view.config().limits;
    let head_limits = framing::HeadLimits {
        target: limits.uri_length,
        head: limits.head_size,
        fields: limits.headers,
    };
    let reader = StrictReader::new(io, Arc::clone(&state), head_limits);
    let mut builder = http1::Builder::new();
    if limits.headers > DEFAULT_MAX_HEADERS {
        builder.max_headers(limits.headers);
    }
    let connection = builder
        .half_close(true)
        .header_read_timeout(None)
        // Larger than the reader's own limit, also where the target is percent-encoded: hyper would
        // respond to an oversized head by itself, uncounted and unlogged.
        .max_buf_size(READ_BUFFER.max(limits.head_size + 2 * limits.uri_length) + 1)
        .preserve_header_case(true)
        // For the fields that the proxy adds, and those of HTTP/2 upstreams.
        .title_case_headers(true)
        .writev(false)
        .serve_connection(TokioIo::new(reader), service)
        .with_upgrades();
    // An error is ignored: the client caused it, or it was counted where it occurred.
    if deadlines.run(pin!(connection)).await.is_none() {
        deadlines.count_expired(state.read_timeout(), state.write_timeout(), &worker.metrics);
    }
    if let Some(tunnel) = exchange.tunnel.take() {
        tunnel::run(tunnel, &worker).await;
    }
}
