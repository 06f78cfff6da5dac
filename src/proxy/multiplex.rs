//! HTTP/2 with a client: many requests side by side on one connection, each a task with deadlines of its own.

use std::{cell::RefCell, future::poll_fn, pin::pin, rc::Rc, sync::Arc, task::Poll};

use hyper::{rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;

use super::{
    connection::{Due, Io, READ_BUFFER},
    exchange::{Carrier, Exchange, Peer},
    handler,
    monitor::Monitor,
    worker::Worker,
};

/// Requests that a client may have under way on one connection.
const MAX_STREAMS: u32 = 128;

/// What a client may send ahead, on one stream and on all of them: what we hold of it at most.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What is kept of one answer for a client that is slow to take it.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves an HTTP/2 connection until either side has had enough.
pub(crate) async fn serve(worker: Rc<Worker>, io: Io, peer: Rc<Peer>, monitor: Arc<Monitor>, due: Due) {
    monitor.multiplex();
    let streams = Streams { begun: Rc::default(), connection: Arc::clone(&monitor) };
    let service = service_fn(|request| {
        let (read, write) = (worker.ticker.deadline(), worker.ticker.deadline());
        let monitor = Arc::new(Monitor::new(read.remote(), write.remote(), Arc::clone(&worker.limits)));
        let exchange = Exchange::new(&worker, &peer, Carrier::Stream, &monitor);
        *streams.begun.borrow_mut() = Some(Due { read, write });
        handler::handle(Rc::clone(&worker), exchange, request)
    });
    let connection = http2::Builder::new(streams.clone())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(READ_BUFFER as u32)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        loop {
            // What went wrong on a client's connection was the client's doing, or was counted where it happened.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if due.read.poll_due(cx).is_pending() {
                return due.write.poll_due(cx);
            }
            if !monitor.leave() {
                return Poll::Ready(());
            }
            connection.as_mut().graceful_shutdown();
        }
    })
    .await;
}

/// Runs each request's stream as a task of this thread.
///
/// hyper calls the service and then hands over the stream that will drive what the service returned. So what the service
/// leaves here belongs to the next stream that comes.
#[derive(Clone)]
struct Streams {
    begun: Rc<RefCell<Option<Due>>>,
    connection: Arc<Monitor>,
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let due = self.begun.borrow_mut().take();
        let under_way = UnderWay::new(&self.connection);
        tokio::task::spawn_local(async move {
            match due {
                // A client that is late has its stream reset.
                Some(due) => drop(due.cut(stream).await),
                None => stream.await,
            }
            drop(under_way);
        });
    }
}

/// Counts a stream while it lasts, however it ends.
struct UnderWay(Arc<Monitor>);

impl UnderWay {
    fn new(connection: &Arc<Monitor>) -> Self {
        connection.stream_opened();
        Self(Arc::clone(connection))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.stream_closed();
    }
}
