//! HTTP/2 with a client. Each request is a stream, and a task with deadlines of its own.

mod frames;
mod throttle;

use std::{cell::RefCell, future::poll_fn, pin::pin, rc::Rc, sync::Arc, task::Poll};

use http::Request;
use hyper::{body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;

use crate::{
    net::{
        self,
        http2::{HeaderFilter, Malformed, Messages},
    },
    proxy::{
        connection::{
            deadlines::ClientDeadlines, http2_state::Http2State, io::Io, state::ExchangeState,
            stream_state::StreamState,
        },
        exchange::Peer,
        framing::Fault,
        metrics::{ClientTimeout, ConnectionRejection, Metrics},
        server::{catch_panic, http2::throttle::ThrottledIo},
        worker::Worker,
    },
};

/// The flow-control windows of a stream and of a connection: the most that is buffered of request
/// bodies which the upstream is slow to accept.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Resets that a client may make h2 send by protocol errors on its streams, or `proxy.max_resets` if
/// that is more: h2 keeps them in memory until the client reads (RUSTSEC-2024-0003), and never
/// subtracts from their number. The requests among them also count towards `proxy.max_resets`
/// (CVE-2025-8671), from which complete responses are subtracted.
const MAX_LOCAL_RESETS: usize = 1000;

/// The most that is buffered of one response which the client is slow to accept.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves an HTTP/2 connection until either side closes it.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    io: Io,
    peer: Rc<Peer>,
    state: Arc<Http2State>,
    deadlines: ClientDeadlines,
) {
    let view = worker.view();
    let limits = &view.config().limits;
    let (max_resets, max_control_frames) =
        (saturate(limits.resets), saturate(limits.control_frames));
    let executor = StreamExecutor {
        next: Rc::default(),
        connection: Arc::clone(&state),
        metrics: Arc::clone(&worker.metrics),
    };
    let service = service_fn(|request: Request<Incoming>| {
        let deadlines = ClientDeadlines {
            read: worker.ticker.deadline(),
            write: worker.ticker.deadline(),
        };
        let stream = Rc::new(StreamState::new(
            &state,
            deadlines.read.handle(),
            deadlines.write.handle(),
            net::http2::malformed(&request).map(fault),
        ));
        let exchange = worker.exchange(&peer, ExchangeState::Http2(Rc::clone(&stream)));
        *executor.next.borrow_mut() = Some((deadlines, stream));
        catch_panic::handle(Rc::clone(&worker), exchange, request)
    });
    let connection = http2::Builder::new(executor.clone())
        .max_concurrent_streams(saturate(limits.streams))
        // Resets by the client are counted by `FloodCounters`.
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS.max(limits.resets)))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(saturate(limits.head_size))
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(
            TokioIo::new(HeaderFilter::new(
                ThrottledIo::new(io, Arc::clone(&worker.metrics), Arc::clone(&state)),
                Messages::Requests,
                limits.head_size,
            )),
            service,
        );
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        loop {
            // Other errors are ignored: the client caused them, or they were counted where they
            // occurred.
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                if ended.is_err_and(|error| is_flood(&error)) {
                    worker.connection_rejected(ConnectionRejection::Flood);
                }
                return Poll::Ready(());
            }
            let flood = state.flood();
            if flood.resets() > max_resets || flood.control_frames() > max_control_frames {
                worker.connection_rejected(ConnectionRejection::Flood);
                // One more poll, to send GOAWAY.
                connection.as_mut().graceful_shutdown();
                let _ = connection.as_mut().poll(cx);
                return Poll::Ready(());
            }
            if deadlines.read.poll_due(cx).is_pending() && deadlines.write.poll_due(cx).is_pending()
            {
                return Poll::Pending;
            }
            deadlines.count_expired(state.read_timeout(), ClientTimeout::Body, &worker.metrics);
            if deadlines.write.is_due() || !state.begin_close() {
                return Poll::Ready(());
            }
            connection.as_mut().graceful_shutdown();
        }
    })
    .await;
}

/// What a stream that is about to be executed is limited by.
type NextStream = (ClientDeadlines, Rc<StreamState>);

/// Runs each stream as a task of this thread, until one of its deadlines expires.
///
/// hyper calls the service, and then gives the executor the future that drives what the service
/// returned. What the service leaves in `next` therefore belongs to the next future.
#[derive(Clone)]
struct StreamExecutor {
    next: Rc<RefCell<Option<NextStream>>>,
    connection: Arc<Http2State>,
    metrics: Arc<Metrics>,
}

impl<F: Future<Output = ()> + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let next = self.next.borrow_mut().take();
        let open = OpenStream::new(&self.connection);
        let metrics = Arc::clone(&self.metrics);
        tokio::task::spawn_local(async move {
            match next {
                // When a deadline expires, dropping the future resets the stream.
                Some((deadlines, state)) => {
                    let is_expired = deadlines.run(pin!(stream)).await.is_none();
                    if is_expired {
                        deadlines.count_expired(
                            Some(state.read_timeout()),
                            ClientTimeout::Body,
                            &metrics,
                        );
                    }
                    let is_reset = !is_expired && !state.is_complete();
                    open.0.flood().stream_ended(is_reset);
                }
                None => stream.await,
            }
            drop(open);
        });
    }
}

/// Counts a stream as open until dropped.
struct OpenStream(Arc<Http2State>);

impl OpenStream {
    fn new(connection: &Arc<Http2State>) -> Self {
        connection.stream_opened();
        Self(Arc::clone(connection))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.stream_closed();
    }
}

/// Whether h2's own limits ended a connection, RFC 9113 §10.5.
fn is_flood(error: &hyper::Error) -> bool {
    net::http2::cause(error).and_then(h2::Error::reason) == Some(h2::Reason::ENHANCE_YOUR_CALM)
}

fn fault(malformed: Malformed) -> Fault {
    Fault::Malformed(match malformed {
        Malformed::Name => "the name of a field is not a token in lower case",
        Malformed::Value => "the value of a field has a control character",
        Malformed::PseudoField => {
            "an unknown, missing, repeated, late or invalid pseudo-header field"
        }
        Malformed::ConnectionField => "a field that HTTP/2 does not have, such as Connection",
        Malformed::Path => "not a path, or with a control character or a fragment",
        Malformed::Dependency => "a stream that depends on itself",
        Malformed::TooLarge => return Fault::HeadTooLarge,
    })
}

fn saturate(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}
