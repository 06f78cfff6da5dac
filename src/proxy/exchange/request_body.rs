//! A request's body, held so that it can be sent more than once.
//!
//! One holder owns the client's stream and what was recorded of it, and hands itself from attempt to attempt. Each attempt
//! has a body of its own that reads from the holder: first what was recorded, then what the client still sends. Only the
//! current attempt may read. An attempt that was answered early is *parked* (its body waits, so that its answer can be
//! read to the end on a connection that still works), then *ended*.

use std::{
    cell::RefCell,
    error::Error as StdError,
    fmt,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Version, header, request};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::proxy::{
    exchange::{
        Carrier, Exchange,
        continue_gate::ContinueGate,
        recording::{Recording, ReplayLimits},
    },
    message::headers,
};

/// The body of a client's request. `None` inside: there is none.
#[derive(Debug, Clone)]
pub(crate) struct RequestBody(Option<Rc<RefCell<Holder>>>);

struct Holder {
    /// Taken when read to its end, or given to whoever reads it out after an early answer.
    client: Option<Incoming>,
    length: Option<u64>,
    recording: Option<Recording>,
    trailers: Option<HeaderMap>,
    attempt: u32,
    /// An attempt that was ended, and whose body ends where it was.
    refused_attempt: Option<u32>,
    parked: bool,
    /// The current attempt is a stream of an HTTP/2 connection.
    on_stream: bool,
    waker: Option<Waker>,
    failed: bool,
    /// Somebody was already told how this request ends: the body is no longer what its deadline waits for.
    answered: bool,
    /// The answer has ended as well: when the client's stream ends, so does the exchange.
    closed: bool,
    /// Nobody has asked the client for a byte yet.
    unread: bool,
    /// The client waits to be asked for it.
    is_expected: bool,
    exchange: Rc<Exchange>,
    number: u32,
}

impl RequestBody {
    /// Takes over a client's body. It is recorded from the first byte unless its length says that this is in vain.
    pub(crate) fn new(
        client: Incoming,
        head: &request::Parts,
        kept: &Arc<AtomicUsize>,
        exchange: &Rc<Exchange>,
        number: u32,
    ) -> Self {
        if client.is_end_stream() {
            return Self(None);
        }
        let length = client.size_hint().exact();
        let limits = ReplayLimits::new(&exchange.view().config().retry, kept);
        let keep = length.is_none_or(|length| limits.have_room_for(length));
        Self(Some(Rc::new(RefCell::new(Holder {
            client: Some(client),
            length,
            recording: keep.then(|| Recording::new(limits, length)),
            trailers: None,
            attempt: 0,
            refused_attempt: None,
            parked: false,
            on_stream: false,
            waker: None,
            failed: false,
            answered: false,
            closed: false,
            unread: true,
            // On HTTP/2 nobody answers it, and nobody need: a stream that is not wanted costs nothing.
            is_expected: head.version < Version::HTTP_2
                && head.headers.contains_key(header::EXPECT),
            exchange: Rc::clone(exchange),
            number,
        }))))
    }

    /// No body at all.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// The body of the next attempt. Whatever came before is ended.
    /// It waits behind the gate, if there is one.
    pub(crate) fn attempt(&self, gate: Option<Arc<ContinueGate>>, on_stream: bool) -> AttemptBody {
        let Some(holder) = &self.0 else {
            return AttemptBody { reader: None };
        };
        self.end();
        let mut borrowed = holder.borrow_mut();
        borrowed.answered = false;
        borrowed.on_stream = on_stream;
        let recorded = borrowed
            .recording
            .as_mut()
            .map(Recording::seal)
            .unwrap_or_default();
        let (attempt, length) = (borrowed.attempt, borrowed.length);
        let holder = Rc::clone(holder);
        AttemptBody {
            reader: Some(Reader {
                holder,
                attempt,
                gate,
                recorded: recorded.into_iter(),
                length,
                over: false,
            }),
        }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the length was not announced.
    pub(crate) fn is_chunked(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|holder| holder.borrow().length.is_none())
    }

    /// Whether another attempt would send all of it.
    pub(crate) fn can_replay(&self) -> bool {
        self.0.as_ref().is_none_or(|holder| {
            let holder = holder.borrow();
            (holder.recording.is_some() || holder.unread) && !holder.failed
        })
    }

    /// Whether it should wait until its upstream wants it: it may turn out too large to be kept, or the client waits as
    /// well.
    pub(crate) fn should_wait_for_continue(&self) -> bool {
        self.0.as_ref().is_some_and(|holder| {
            let holder = holder.borrow();
            holder.unread
                && (holder.length.is_none() || holder.recording.is_none() || holder.is_expected)
        })
    }

    /// Whether the client still waits to be asked for its body: it has no reason to send it any more.
    pub(crate) fn is_unread(&self) -> bool {
        self.0.as_ref().is_some_and(|holder| holder.borrow().unread)
    }

    /// Whether the client's stream broke.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.as_ref().is_some_and(|holder| holder.borrow().failed)
    }

    /// Lets the current attempt's body wait. It must be ended later, or its connection never finishes.
    pub(crate) fn park(&self) {
        if let Some(holder) = &self.0 {
            let mut holder = holder.borrow_mut();
            holder.parked = true;
            holder.exchange.monitor.body_pauses();
        }
    }

    /// Lets a parked attempt go on.
    pub(crate) fn unpark(&self) {
        if let Some(holder) = &self.0 {
            let mut holder = holder.borrow_mut();
            holder.parked = false;
            holder.wake();
        }
    }

    /// Ends the current attempt: its body fails, so that its upstream cannot take a part for the whole. That connection is
    /// lost.
    pub(crate) fn end(&self) {
        if let Some(holder) = &self.0 {
            holder.borrow_mut().end();
        }
    }

    /// Ends the current attempt, which was refused in full, before all of its body was sent: chunks end here as if they were
    /// whole, since the upstream wants no more of them; a body with a length fails, unless all of it is on its way. Whether
    /// the connection can be used again.
    pub(crate) fn end_refused(&self) -> bool {
        let Some(holder) = &self.0 else { return true };
        let is_usable = {
            let mut holder = holder.borrow_mut();
            let is_chunked = holder.length.is_none();
            holder.refused_attempt = is_chunked.then_some(holder.attempt);
            is_chunked || holder.client.is_none()
        };
        self.end();
        is_usable
    }

    /// The answer is on its way to the client: nothing will be sent again, so nothing needs to be kept.
    pub(crate) fn commit(&self) {
        if let Some(holder) = &self.0 {
            let mut holder = holder.borrow_mut();
            holder.recording = None;
            holder.answer();
        }
    }

    /// The answer's head is here: from now on its body has the deadline.
    pub(crate) fn answered(&self) {
        if let Some(holder) = &self.0 {
            holder.borrow_mut().answer();
        }
    }

    /// The answer has ended. True if the client has sent everything, so that the exchange is over; otherwise it is over
    /// when the rest was read.
    pub(crate) fn close(&self) -> bool {
        self.0.as_ref().is_none_or(|holder| {
            let mut holder = holder.borrow_mut();
            holder.closed = true;
            if holder.unread || holder.parked {
                // The upstream has answered without it, or nobody is left to send it again: it would wait for ever.
                holder.end();
            }
            if holder.on_stream && holder.client.is_some() {
                // A server that has answered in full need not take the rest (RFC 9113 §8.1), and if it leaves the stream's
                // window shut, this body is not even asked for it: nobody would read what the client goes on writing.
                holder.end();
                holder.linger();
                return holder.exchange.carrier == Carrier::Stream;
            }
            holder.client.is_none()
        })
    }
}

impl Holder {
    fn end(&mut self) {
        self.attempt += 1;
        self.parked = false;
        self.wake();
    }

    fn answer(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            self.exchange.monitor.answer_begins();
        }
    }

    fn linger(&mut self) {
        if let Some(client) = self.client.take() {
            self.exchange
                .linger(client, self.number, self.unread && self.is_expected);
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The client's next frame, recorded on the way.
    fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(client) = &mut self.client else {
            return Poll::Ready(None);
        };
        self.unread = false;
        let Poll::Ready(frame) = Pin::new(&mut *client).poll_frame(cx) else {
            if self.on_stream {
                self.waker = Some(cx.waker().clone());
            }
            self.exchange.waiting_for_client(!self.answered);
            return Poll::Pending;
        };
        let is_last = client.is_end_stream();
        let moved = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref())
            .map_or(0, Bytes::len);
        self.exchange.client_moved(moved, !self.answered);
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref()
                    && let Some(recording) = &mut self.recording
                    && !recording.push(data)
                {
                    self.recording = None;
                }
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers, &self.exchange.view().stripped);
                    self.trailers = Some(trailers.clone());
                }
                // hyper does not ask again once it has as much as was announced, nor behind trailers.
                if is_last || frame.is_trailers() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.failed = true;
                self.client = None;
                Poll::Ready(Some(Err(error.into())))
            }
            // hyper takes a stream that is reset for one that has ended, if the reset states no error.
            None if self.exchange.carrier == Carrier::Stream && !is_last => {
                self.failed = true;
                self.client = None;
                Poll::Ready(Some(Err(Reset.into())))
            }
            None => {
                self.finish();
                Poll::Ready(None)
            }
        }
    }

    /// The client has sent everything.
    fn finish(&mut self) {
        self.client = None;
        self.exchange.client_finished(!self.answered);
        if self.closed {
            self.exchange.monitor.end_exchange(self.number);
        }
    }
}

impl Drop for Holder {
    /// Nobody sends this body any more, but the client may go on writing and not look for its answer before it is done:
    /// closing now would destroy that answer. So the rest is read out, within bounds.
    fn drop(&mut self) {
        self.linger();
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder")
            .field("attempt", &self.attempt)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

/// The body of one attempt.
#[derive(Debug)]
pub(crate) struct AttemptBody {
    reader: Option<Reader>,
}

#[derive(Debug)]
struct Reader {
    holder: Rc<RefCell<Holder>>,
    attempt: u32,
    gate: Option<Arc<ContinueGate>>,
    recorded: std::vec::IntoIter<Bytes>,
    length: Option<u64>,
    over: bool,
}

/// What a body fails with that its client gave up.
#[derive(Debug, thiserror::Error)]
#[error("the client reset its request before the end")]
struct Reset;

/// What a body fails with when its attempt is over.
#[derive(Debug, thiserror::Error)]
#[error("this attempt is over")]
struct Over;

impl Body for AttemptBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(reader) = &mut self.reader else {
            return Poll::Ready(None);
        };
        if reader.over {
            return Poll::Ready(None);
        }
        let mut holder = reader.holder.borrow_mut();
        if holder.attempt != reader.attempt {
            reader.over = true;
            return Poll::Ready(
                (holder.refused_attempt != Some(reader.attempt)).then(|| Err(Over.into())),
            );
        }
        if holder.parked {
            holder.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if let Some(gate) = &reader.gate {
            if gate.poll_open(cx).is_pending() {
                holder.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            reader.gate = None;
        }
        if let Some(data) = reader.recorded.next() {
            // It came before.
            holder.exchange.client_moved(0, !holder.answered);
            if holder.client.is_none()
                && holder.trailers.is_none()
                && reader.recorded.as_slice().is_empty()
            {
                reader.over = true;
                holder.exchange.client_finished(!holder.answered);
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if holder.client.is_none() {
            reader.over = true;
            holder.exchange.client_finished(!holder.answered);
            return Poll::Ready(
                holder
                    .trailers
                    .clone()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            );
        }
        let frame = ready!(holder.poll_client(cx));
        reader.over = !matches!(&frame, Some(Ok(_))) || holder.client.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(|reader| reader.over)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.reader {
            None => SizeHint::with_exact(0),
            Some(reader) => reader.length.map(SizeHint::with_exact).unwrap_or_default(),
        }
    }
}
