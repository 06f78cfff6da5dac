//! HTTP/1 with a client.

pub(crate) mod strict_reader;

use std::{rc::Rc, sync::Arc};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use crate::proxy::{
    connection::{deadlines::Due, io::Io, state::ConnState},
    exchange::{Carrier, Peer},
    framing,
    server::{catch_panic, http1::strict_reader::StrictReader, tunnel},
    worker::Worker,
};

/// The largest piece of a body that is read at once.
const READ_BUFFER: usize = 64 * 1024;

/// For so many fields of a head hyper has room without allocating.
const USUAL_HEADERS: usize = 100;

pub(crate) async fn serve(
    worker: Rc<Worker>,
    io: Io,
    peer: Rc<Peer>,
    monitor: Arc<ConnState>,
    due: Due,
) {
    let exchange = worker.exchange(&peer, Carrier::Connection, &monitor);
    let service = service_fn(|request| {
        catch_panic::handle(Rc::clone(&worker), Rc::clone(&exchange), request)
    });
    let view = worker.view();
    let limits = &view.config().limits;
    let heads = framing::HeadLimits {
        target: limits.uri_length,
        head: limits.head_size,
        fields: limits.headers,
    };
    let intake = StrictReader::new(io, Arc::clone(&monitor), heads);
    let mut builder = http1::Builder::new();
    if limits.headers > USUAL_HEADERS {
        builder.max_headers(limits.headers);
    }
    let connection = builder
        .half_close(true)
        .header_read_timeout(None)
        // hyper must not find a head too large that is not: it would answer in its own way.
        .max_buf_size(READ_BUFFER.max(limits.head_size) + 1)
        .title_case_headers(true)
        .writev(false)
        .serve_connection(TokioIo::new(intake), service)
        .with_upgrades();
    // What went wrong on a client's connection was the client's doing, or was counted where it happened.
    if due.cut(connection).await.is_none() {
        due.count(&exchange.monitor, &worker.metrics);
    }
    if let Some(tunnel) = exchange.tunnel.take() {
        tunnel::run(tunnel, &worker).await;
    }
}
