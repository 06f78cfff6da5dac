//! An HTTP/2 connection to an endpoint, and its streams.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
};

use hyper::{
    body::Body,
    client::conn::http2::{Builder, SendRequest},
    rt::Executor,
};

use hyper_util::rt::TokioIo;

use super::{
    connect::Io,
    handle::{ActiveConnection, AddressHandle},
};
use crate::{
    base::ticker::{Deadline, Ticks},
    net::http2::{HeaderFilter, Messages},
};

/// The most concurrent streams of one connection, even if the server allows more.
const MAX_STREAMS: usize = 32;

/// Receive window of a stream, in bytes: the most that is buffered for a client that reads slowly.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Receive window of a connection: that of all its streams, so that a slow client does not block
/// the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;

/// The most bytes of a request's body that are buffered for a server that reads slowly.
const SEND_BUFFER: usize = 64 * 1024;

/// A connection and the number of its streams.
pub(super) struct Http2Connection<B> {
    sender: SendRequest<B>,
    streams: Cell<usize>,
    /// The most concurrent streams. A lower `SETTINGS_MAX_CONCURRENT_STREAMS` from the server takes
    /// effect with the next request, which waits until there are fewer.
    max_streams: Cell<usize>,
    /// No new streams: the server sent GOAWAY, or no longer responds.
    retired: Cell<bool>,
    interim: Arc<AtomicU32>,
    /// Armed while there are no streams. When it is due, the connection's task ends.
    close_deadline: Rc<Deadline>,
    idle_timeout: Ticks,
    /// Held while there are streams.
    active: RefCell<Option<ActiveConnection>>,
    handle: Rc<AddressHandle>,
    _slot: Http2Slot,
}

/// One of `max_connections` connections of all workers, released on drop.
pub(super) struct Http2Slot(Arc<AtomicUsize>);

impl Http2Slot {
    /// `None` if `limit` are taken.
    pub(super) fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let slot = Self(Arc::clone(taken));
        // Above the limit, dropping `slot` undoes the addition.
        (taken.fetch_add(1, Relaxed) < limit).then_some(slot)
    }
}

impl Drop for Http2Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One stream of a connection.
pub(super) struct Stream<B> {
    sender: SendRequest<B>,
    connection: Rc<Http2Connection<B>>,
}

impl<B: Body + Unpin + 'static> Http2Connection<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Sends the connection preface (RFC 9113 §3.4). The returned future drives the connection.
    /// `max_head` is the size of the largest head, in bytes (RFC 9113 §6.5.2).
    pub(super) async fn handshake(
        io: Io,
        max_head: usize,
        close_deadline: Rc<Deadline>,
        idle_timeout: Ticks,
        handle: Rc<AddressHandle>,
        slot: Http2Slot,
    ) -> hyper::Result<(Rc<Self>, impl Future<Output = hyper::Result<()>>)> {
        let io = HeaderFilter::new(io.into_inner(), Messages::Responses, max_head);
        let interim = Arc::clone(io.interim_responses());
        let handshake = Builder::new(LocalExecutor)
            .initial_max_send_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(max_head.try_into().unwrap_or(u32::MAX))
            .max_send_buf_size(SEND_BUFFER)
            // A malformed response costs its request alone, however many there are.
            .max_local_error_reset_streams(None)
            .handshake(TokioIo::new(io));
        let (sender, mut connection) = handshake.await?;
        // Without streams it counts as idle; the caller opens one right away.
        handle.counters.idle.add(1);
        let this = Rc::new(Self {
            sender,
            streams: Cell::new(0),
            max_streams: Cell::new(MAX_STREAMS),
            retired: Cell::new(false),
            interim,
            close_deadline,
            idle_timeout,
            active: RefCell::default(),
            handle,
            _slot: slot,
        });
        // Weak: the connection closes with its last sender.
        let weak = Rc::downgrade(&this);
        let driver = poll_fn(move |cx| {
            let poll = Pin::new(&mut connection).poll(cx);
            if let Some(this) = weak.upgrade() {
                this.max_streams
                    .set(connection.current_max_send_streams().min(MAX_STREAMS));
            }
            poll
        });
        Ok((this, driver))
    }
}

impl<B> Http2Connection<B> {
    /// Whether one more stream can be opened, as far as is known.
    pub(super) fn has_capacity(&self) -> bool {
        self.is_open() && self.streams.get() < self.max_streams.get()
    }

    pub(super) fn is_open(&self) -> bool {
        !self.retired.get() && self.sender.is_ready()
    }

    /// Allows no new streams; open ones may finish.
    pub(super) fn retire(&self) {
        self.retired.set(true);
    }

    /// The number of interim responses so far.
    pub(super) fn interim(&self) -> &AtomicU32 {
        &self.interim
    }

    pub(super) fn is_idle(&self) -> bool {
        self.streams.get() == 0
    }

    /// Opens a stream.
    pub(super) fn open(self: &Rc<Self>) -> Stream<B> {
        if self.is_idle() {
            self.handle.counters.idle.sub(1);
            *self.active.borrow_mut() = Some(ActiveConnection::new(&self.handle));
        }
        self.streams.set(self.streams.get() + 1);
        self.close_deadline.disarm();
        Stream {
            sender: self.sender.clone(),
            connection: Rc::clone(self),
        }
    }
}

impl<B> Stream<B> {
    pub(super) fn is_open(&self) -> bool {
        self.connection.is_open()
    }

    /// Its sender, and the connection that it shares.
    pub(super) fn parts(&mut self) -> (&mut SendRequest<B>, &Http2Connection<B>) {
        (&mut self.sender, &self.connection)
    }

    /// Allows no new streams on the connection; open ones may finish.
    pub(super) fn retire(&self) {
        self.connection.retire();
    }
}

impl<B> Drop for Stream<B> {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.streams.set(connection.streams.get() - 1);
        if connection.is_idle() {
            connection.active.take();
            connection.handle.counters.idle.add(1);
            // A retired connection closes before that, as soon as the pool has dropped it as well.
            connection.close_deadline.arm(connection.idle_timeout);
        }
    }
}

impl<B> Drop for Http2Connection<B> {
    fn drop(&mut self) {
        self.handle.counters.idle.sub(1);
    }
}

impl<B> fmt::Debug for Http2Connection<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Connection")
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}

/// Spawns the tasks of a connection on this worker's thread.
#[derive(Debug, Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
