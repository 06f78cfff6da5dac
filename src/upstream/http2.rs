//! An HTTP/2 connection to an endpoint, shared by the requests that it carries side by side.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
};

use hyper::{
    body::Body,
    client::conn::http2::{Builder, SendRequest},
    rt::Executor,
};

use super::{
    connect::Io,
    slots::{Counters, PoolSlot},
};
use crate::base::ticker::{Deadline, Ticks};

/// Requests that one connection carries at most, whatever the server allows.
const MAX_STREAMS: usize = 32;

/// What a server may send ahead on one stream: what we hold for a client that is slow to take its answer.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Enough for all streams together, so that no slow client holds up the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;

/// What is kept of one request's body for a server that is slow to take it.
const SEND_BUFFER: usize = 64 * 1024;

/// The largest head of an answer.
const MAX_HEAD: u32 = 64 * 1024;

/// A connection and the number of its requests.
pub(super) struct Http2Connection<B> {
    sender: SendRequest<B>,
    streams: Cell<usize>,
    /// How many may be under way. A server that lowers it is heard with the next request, which then waits its turn.
    room: Cell<usize>,
    /// Takes no more requests: the server has said so, or has stopped to answer.
    retired: Cell<bool>,
    /// Armed while it carries nothing; when it is due, the connection's task ends.
    too_old: Rc<Deadline>,
    idle_timeout: Ticks,
    /// Its place among `max_connections`, while it carries something.
    place: RefCell<Option<PoolSlot>>,
    counters: Arc<Counters>,
}

/// A request's share of a connection.
pub(super) struct Stream<B> {
    pub(super) sender: SendRequest<B>,
    connection: Rc<Http2Connection<B>>,
}

impl<B: Body + Unpin + 'static> Http2Connection<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Begins to speak HTTP/2. What is returned beside the connection must be polled for it to move.
    pub(super) async fn handshake(
        io: Io,
        too_old: Rc<Deadline>,
        idle_timeout: Ticks,
        counters: Arc<Counters>,
    ) -> hyper::Result<(Rc<Self>, impl Future<Output = hyper::Result<()>>)> {
        let handshake = Builder::new(Local)
            .initial_max_send_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .max_send_buf_size(SEND_BUFFER)
            .handshake(io);
        let (sender, mut connection) = handshake.await?;
        // It begins as one that waits, and is given a request at once.
        counters.idle.add(1);
        let multiplexed = Rc::new(Self {
            sender,
            streams: Cell::new(0),
            room: Cell::new(MAX_STREAMS),
            retired: Cell::new(false),
            too_old,
            idle_timeout,
            place: RefCell::default(),
            counters,
        });
        // Weak: with the last sender the connection ends.
        let heard = Rc::downgrade(&multiplexed);
        let moving = poll_fn(move |cx| {
            let moved = Pin::new(&mut connection).poll(cx);
            if let Some(multiplexed) = heard.upgrade() {
                multiplexed
                    .room
                    .set(connection.current_max_send_streams().min(MAX_STREAMS));
            }
            moved
        });
        Ok((multiplexed, moving))
    }
}

impl<B> Http2Connection<B> {
    /// Whether it can take one more request, as far as is known.
    pub(super) fn has_room(&self) -> bool {
        self.is_open() && self.streams.get() < self.room.get()
    }

    pub(super) fn is_open(&self) -> bool {
        !self.retired.get() && self.sender.is_ready()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.streams.get() == 0
    }

    /// One more request. `place` is for the first one.
    pub(super) fn open(self: &Rc<Self>, place: Option<PoolSlot>) -> Stream<B> {
        if self.is_idle() {
            self.counters.idle.sub(1);
            *self.place.borrow_mut() = place;
        }
        self.streams.set(self.streams.get() + 1);
        self.too_old.disarm();
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

    /// No further request goes here; those under way may finish.
    pub(super) fn retire(&self) {
        self.connection.retired.set(true);
    }
}

impl<B> Drop for Stream<B> {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.streams.set(connection.streams.get() - 1);
        if connection.is_idle() {
            connection.place.take();
            connection.counters.idle.add(1);
            // One that is retired is held by nobody else any more, and closes with this.
            connection.too_old.arm(connection.idle_timeout);
        }
    }
}

impl<B> Drop for Http2Connection<B> {
    fn drop(&mut self) {
        self.counters.idle.sub(1);
    }
}

impl<B> fmt::Debug for Http2Connection<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Connection")
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}

/// Runs what a connection consists of on this thread.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F: Future<Output = ()> + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
