//! HTTP/2 with a client: many requests side by side on one connection, each a task with deadlines of its own.

pub(crate) mod frames;
mod throttle;

use std::{cell::RefCell, future::poll_fn, pin::pin, rc::Rc, sync::Arc, task::Poll};

use hyper::{rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;

use crate::{
    net,
    proxy::{
        connection::{deadlines::Due, io::Io, state::ConnState},
        exchange::{Carrier, Peer},
        metrics::{ConnectionRejection, Metrics},
        server::{catch_panic, http2::throttle::ThrottledIo},
        worker::Worker,
    },
};

/// What a client may send ahead, on one stream and on all of them: what we hold of it at most.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Resets that a client makes us send by errors of its own (CVE-2025-8671). One that is well makes none.
const FORCED_RESETS: usize = 20;

/// What is kept of one answer for a client that is slow to take it.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves an HTTP/2 connection until either side has had enough.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    io: Io,
    peer: Rc<Peer>,
    monitor: Arc<ConnState>,
    due: Due,
) {
    monitor.multiplex();
    let view = worker.view();
    let limits = &view.config().limits;
    let (most_resets, most_frames) = (number(limits.resets), number(limits.control_frames));
    let conduct = monitor.conduct();
    let streams = Streams {
        begun: Rc::default(),
        connection: Arc::clone(&monitor),
        metrics: Arc::clone(&worker.metrics),
    };
    let service = service_fn(|request| {
        let (read, write) = (worker.ticker.deadline(), worker.ticker.deadline());
        let monitor = Arc::new(ConnState::of_stream(
            &monitor,
            read.handle(),
            write.handle(),
        ));
        let exchange = worker.exchange(&peer, Carrier::Stream, &monitor);
        *streams.begun.borrow_mut() = Some((Due { read, write }, monitor));
        catch_panic::handle(Rc::clone(&worker), exchange, request)
    });
    let connection = http2::Builder::new(streams.clone())
        .max_concurrent_streams(number(limits.streams))
        // Those of its own are counted below.
        .max_local_error_reset_streams(Some(FORCED_RESETS))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(number(limits.head_size))
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(
            TokioIo::new(ThrottledIo::new(
                io,
                Arc::clone(&worker.metrics),
                Arc::clone(&monitor),
            )),
            service,
        );
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        loop {
            // What else went wrong on a client's connection was the client's doing, or was counted where it happened.
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                if ended.is_err_and(|error| is_flood(&error)) {
                    worker.connection_rejected(ConnectionRejection::Flood);
                }
                return Poll::Ready(());
            }
            if conduct.resets() > most_resets || conduct.frames() > most_frames {
                worker.connection_rejected(ConnectionRejection::Flood);
                // A last look at the connection, in which it says goodbye.
                connection.as_mut().graceful_shutdown();
                let _ = connection.as_mut().poll(cx);
                return Poll::Ready(());
            }
            if due.read.poll_due(cx).is_pending() && due.write.poll_due(cx).is_pending() {
                return Poll::Pending;
            }
            due.count(&monitor, &worker.metrics);
            if due.write.is_due() {
                return Poll::Ready(());
            }
            if !monitor.leave() {
                return Poll::Ready(());
            }
            connection.as_mut().graceful_shutdown();
        }
    })
    .await;
}

/// What a stream that has begun is watched by.
type Begun = (Due, Arc<ConnState>);

/// Runs each request's stream as a task of this thread.
///
/// hyper calls the service and then hands over the stream that will drive what the service returned. So what the service
/// leaves here belongs to the next stream that comes.
#[derive(Clone)]
struct Streams {
    begun: Rc<RefCell<Option<Begun>>>,
    connection: Arc<ConnState>,
    metrics: Arc<Metrics>,
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let begun = self.begun.borrow_mut().take();
        let under_way = UnderWay::new(&self.connection);
        let metrics = Arc::clone(&self.metrics);
        tokio::task::spawn_local(async move {
            match begun {
                // A client that is late has its stream reset.
                Some((due, monitor)) => {
                    let is_late = due.cut(stream).await.is_none();
                    if is_late {
                        due.count(&monitor, &metrics);
                    }
                    under_way
                        .0
                        .conduct()
                        .ended(!is_late && !monitor.is_complete());
                }
                None => stream.await,
            }
            drop(under_way);
        });
    }
}

/// Whether the protocol's own bounds ended a connection: RFC 9113 §10.5.
fn is_flood(error: &hyper::Error) -> bool {
    net::http2::cause(error).and_then(h2::Error::reason) == Some(h2::Reason::ENHANCE_YOUR_CALM)
}

fn number(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}

/// Counts a stream while it lasts, however it ends.
struct UnderWay(Arc<ConnState>);

impl UnderWay {
    fn new(connection: &Arc<ConnState>) -> Self {
        connection.stream_opened();
        Self(Arc::clone(connection))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.stream_closed();
    }
}
