//! The request body, which can be sent by more than one attempt.
//!
//! A [`BodySource`] owns the client's stream and the recording of what was read from it. Each
//! attempt has an [`AttemptBody`] that reads from the source: first the recording, then what the
//! client still sends. Only the current attempt may read. An attempt whose response came early is
//! *parked*: its body waits, so that the response can be read to its end on a connection that still
//! works. Then the attempt is *ended*.

use std::{
    cell::RefCell,
    error::Error as StdError,
    fmt,
    future::poll_fn,
    mem,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Version, request};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep_until};

use crate::{
    net::http2::malformed_trailers,
    proxy::{
        exchange::{
            Exchange,
            continue_gate::{ContinueGate, Held, MIN_REST_TIME},
            recording::{Recording, ReplayLimits},
        },
        message::headers,
    },
};

/// A body of unknown length up to this size is read before its head is sent, if it ends in this
/// time.
const SMALL_BODY: usize = 8 * 1024;
const SMALL_BODY_TIME: Duration = Duration::from_millis(50);

type BoxError = Box<dyn StdError + Send + Sync>;

/// The body of a client's request; `None` inside if it has none.
#[derive(Debug, Clone)]
pub(crate) struct RequestBody(Option<Rc<RefCell<BodySource>>>);

struct BodySource {
    client: ClientStream,
    attempt: Attempt,
    response: ResponseState,
    /// The announced length; `None`: chunked.
    length: Option<u64>,
    /// Whether all of it will be recorded, as far as its length shows.
    fits_recording: bool,
    /// Data of an HTTP/2 stream that completes the announced length while the stream has not ended:
    /// malformed trailers may follow, and the upstream must not get a complete request then.
    held: Option<Frame<Bytes>>,
    /// `None` if a limit is exceeded, or once the response is being sent to the client.
    recording: Option<Recording>,
    trailers: Option<HeaderMap>,
    /// The task of the current attempt's connection, while its body waits.
    waker: Option<Waker>,
    exchange: Rc<Exchange>,
    /// The exchange's number.
    number: u32,
}

/// How much of the client's stream has been read.
enum ClientStream {
    /// Nothing.
    Unread {
        body: Incoming,
        /// The client waits for a 100 response (RFC 9110 §10.1.1).
        expects_continue: bool,
    },
    /// Not all of it.
    Reading(Incoming),
    /// All of it.
    Complete,
    /// It failed before its end.
    Failed,
    /// The rest is drained or dropped: the exchange does not need it.
    Discarded,
}

impl ClientStream {
    fn is_unread(&self) -> bool {
        match self {
            Self::Unread { .. } => true,
            Self::Reading(_) | Self::Complete | Self::Failed | Self::Discarded => false,
        }
    }

    /// Whether more can be read.
    fn is_open(&self) -> bool {
        match self {
            Self::Unread { .. } | Self::Reading(_) => true,
            Self::Complete | Self::Failed | Self::Discarded => false,
        }
    }

    /// The stream, from which something is about to be read; `None` if nothing is left.
    fn read(&mut self) -> Option<&mut Incoming> {
        if self.is_unread()
            && let Self::Unread { body, .. } = mem::replace(self, Self::Discarded)
        {
            *self = Self::Reading(body);
        }
        match self {
            Self::Reading(body) => Some(body),
            Self::Unread { .. } | Self::Complete | Self::Failed | Self::Discarded => None,
        }
    }
}

/// The last attempt to send the body.
struct Attempt {
    /// Counts attempts: the bodies of earlier ones are ended.
    number: u32,
    state: AttemptState,
    /// It is a stream of an HTTP/2 connection.
    is_http2: bool,
    /// What holds its body back.
    gate: Option<Arc<ContinueGate>>,
    /// The last attempt whose body may end early as if it were complete.
    truncatable: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttemptState {
    /// Its body reads from the source.
    Sending,
    /// Its body waits until the response, which came early, has been read.
    Parked,
    /// Its body fails, so that its upstream cannot take a part for the whole.
    Ended,
}

/// The response, as far as it matters to the body: it decides which deadlines apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseState {
    /// The upstream has not responded to the last attempt.
    Pending,
    /// Its head has arrived, or the proxy responds itself.
    Begun,
    /// It has been sent to the client: when the client's stream ends, so does the exchange.
    Ended,
    /// It will not be sent: its exchange was dropped before it began.
    Abandoned,
}

impl ResponseState {
    fn has_begun(self) -> bool {
        match self {
            Self::Begun | Self::Ended => true,
            Self::Pending | Self::Abandoned => false,
        }
    }

    fn is_over(self) -> bool {
        match self {
            Self::Ended | Self::Abandoned => true,
            Self::Pending | Self::Begun => false,
        }
    }
}

impl RequestBody {
    /// Takes over a client's body. It is recorded from the first byte, as far as the limits allow.
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
        let limits = ReplayLimits::new(&exchange.view().config().retry, kept);
        let length = client.size_hint().exact();
        let fits_recording = length.is_some_and(|length| limits.have_room_for(length));
        // The proxy sends no 100 response on HTTP/2: a stream whose body is not read costs nothing.
        let expects_continue =
            head.version < Version::HTTP_2 && headers::expects_continue(&head.headers);
        Self(Some(Rc::new(RefCell::new(BodySource {
            client: ClientStream::Unread {
                body: client,
                expects_continue,
            },
            attempt: Attempt {
                number: 0,
                state: AttemptState::Ended,
                is_http2: false,
                gate: None,
                truncatable: None,
            },
            response: ResponseState::Pending,
            length,
            fits_recording,
            held: None,
            recording: Some(Recording::new(limits, length)),
            trailers: None,
            waker: None,
            exchange: Rc::clone(exchange),
            number,
        }))))
    }

    /// No body at all.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// The body of a new attempt, which ends the one before. It waits for `gate` to open, if there
    /// is one.
    pub(crate) fn attempt(&self, gate: Option<Arc<ContinueGate>>, is_http2: bool) -> AttemptBody {
        let Some(source) = &self.0 else {
            return AttemptBody { reader: None };
        };
        let mut borrowed = source.borrow_mut();
        borrowed.begin_attempt(is_http2);
        borrowed.attempt.gate.clone_from(&gate);
        let recorded = borrowed
            .recording
            .as_mut()
            .map(Recording::seal)
            .unwrap_or_default();
        AttemptBody {
            reader: Some(Reader {
                source: Rc::clone(source),
                attempt: borrowed.attempt.number,
                gate,
                hold: None,
                recorded: recorded.into_iter(),
                length: borrowed.length,
                is_finished: false,
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
            .is_some_and(|source| source.borrow().length.is_none())
    }

    /// Whether another attempt can send all of it.
    pub(crate) fn can_replay(&self) -> bool {
        self.0.as_ref().is_none_or(|source| {
            let source = source.borrow();
            match source.client {
                ClientStream::Unread { .. } => true,
                ClientStream::Failed => false,
                ClientStream::Reading(_) | ClientStream::Complete | ClientStream::Discarded => {
                    source.recording.is_some()
                }
            }
        })
    }

    /// What of the body should be held back, so that it can still be sent again when the upstream
    /// rejects the token: it may be too large to be recorded, or the client itself waits for a 100
    /// response.
    pub(crate) fn to_hold(&self) -> Option<Held> {
        let source = self.0.as_ref()?.borrow();
        match source.client {
            ClientStream::Unread {
                expects_continue, ..
            } => (expects_continue || !source.fits_recording).then_some(Held::All),
            ClientStream::Reading(_) => {
                (!source.fits_recording && source.recording.is_some()).then_some(Held::Rest)
            }
            ClientStream::Complete | ClientStream::Failed | ClientStream::Discarded => None,
        }
    }

    /// Whether the current attempt has sent the head alone: the body was held back to the end.
    pub(crate) fn is_held_back(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|source| source.borrow().attempt.is_held_back())
    }

    /// Reads a body of unknown length that may be small: if it ends soon, all of it is recorded,
    /// and it need not be held back. Returns whether it did.
    pub(crate) async fn read_small(&self) -> bool {
        let Some(source) = &self.0 else { return true };
        {
            let source = source.borrow();
            let expects_continue = match source.client {
                ClientStream::Unread {
                    expects_continue, ..
                } => expects_continue,
                _ => true,
            };
            if expects_continue || source.length.is_some() {
                return false;
            }
        }
        let read = poll_fn(|cx| {
            let mut source = source.borrow_mut();
            while source.client.is_open() && source.has_recorded_less_than(SMALL_BODY) {
                ready!(source.poll_client(cx));
            }
            Poll::Ready(())
        });
        // What takes longer is held back.
        let _ = tokio::time::timeout(SMALL_BODY_TIME, read).await;
        let source = source.borrow();
        source.exchange.state.pause_body();
        !source.client.is_open()
    }

    /// Whether nothing was read of it: a client that waits for a 100 response has no reason to send
    /// it any more.
    pub(crate) fn is_unread(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|source| source.borrow().client.is_unread())
    }

    /// Whether the client has sent all of it.
    pub(crate) fn is_complete(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|source| matches!(source.borrow().client, ClientStream::Complete))
    }

    /// Whether the client's stream failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|source| matches!(source.borrow().client, ClientStream::Failed))
    }

    /// Makes the current attempt's body wait. It must be ended later, or its connection never
    /// becomes idle.
    pub(crate) fn park(&self) {
        if let Some(source) = &self.0 {
            let mut source = source.borrow_mut();
            if source.attempt.state == AttemptState::Sending {
                source.attempt.state = AttemptState::Parked;
            }
            source.exchange.state.pause_body();
        }
    }

    /// Lets a parked attempt continue.
    pub(crate) fn unpark(&self) {
        if let Some(source) = &self.0 {
            let mut source = source.borrow_mut();
            if source.attempt.state == AttemptState::Parked {
                source.attempt.state = AttemptState::Sending;
            }
            source.wake();
        }
    }

    /// Ends the current attempt: its body fails, so that the upstream cannot take a part for the
    /// whole. Its connection is lost.
    pub(crate) fn end_attempt(&self) {
        if let Some(source) = &self.0 {
            source.borrow_mut().end_attempt();
        }
    }

    /// Ends the current attempt, whose complete response came before the end of its body. A chunked
    /// body ends as if it were complete, since the upstream does not need the rest; one with a
    /// length fails, unless all of it has been sent. Returns whether the connection can be reused.
    pub(crate) fn end_rejected_attempt(&self) -> bool {
        let Some(source) = &self.0 else { return true };
        let mut source = source.borrow_mut();
        let is_chunked = source.length.is_none();
        source.attempt.truncatable = is_chunked.then_some(source.attempt.number);
        let is_reusable = is_chunked || !source.client.is_open();
        source.end_attempt();
        is_reusable
    }

    /// The response is being sent to the client: there will be no further attempt, and nothing
    /// needs to be kept for one.
    pub(crate) fn commit(&self) {
        if let Some(source) = &self.0 {
            let mut source = source.borrow_mut();
            source.recording = None;
            source.begin_response();
            // What was held back beyond the recording passes now.
            source.wake();
        }
    }

    /// The response's head has arrived: from now on the response body has the deadline.
    pub(crate) fn begin_response(&self) {
        if let Some(source) = &self.0 {
            source.borrow_mut().begin_response();
        }
    }

    /// The response has ended. True if the exchange is over; otherwise it ends when the rest of the
    /// request has been read.
    pub(crate) fn end_response(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|source| source.borrow_mut().end_response())
    }
}

impl Attempt {
    fn is_held_back(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.holds_all())
    }
}

impl BodySource {
    fn has_recorded_less_than(&self, length: usize) -> bool {
        self.recording
            .as_ref()
            .is_some_and(|recording| recording.length() < length)
    }

    fn begin_attempt(&mut self, is_http2: bool) {
        self.end_attempt();
        self.attempt.number = self.attempt.number.wrapping_add(1);
        self.attempt.state = AttemptState::Sending;
        self.attempt.is_http2 = is_http2;
        self.response = ResponseState::Pending;
    }

    fn end_attempt(&mut self) {
        self.attempt.state = AttemptState::Ended;
        self.wake();
    }

    fn attempt_state(&self, attempt: u32) -> AttemptState {
        if attempt == self.attempt.number {
            self.attempt.state
        } else {
            AttemptState::Ended
        }
    }

    fn begin_response(&mut self) {
        match self.response {
            ResponseState::Pending => {
                self.response = ResponseState::Begun;
                self.exchange.state.begin_response();
            }
            ResponseState::Begun | ResponseState::Ended | ResponseState::Abandoned => {}
        }
    }

    fn end_response(&mut self) -> bool {
        self.response = match self.response {
            ResponseState::Begun | ResponseState::Ended => ResponseState::Ended,
            ResponseState::Pending | ResponseState::Abandoned => ResponseState::Abandoned,
        };
        if self.client.is_unread()
            || self.attempt.state == AttemptState::Parked
            || self.attempt.is_held_back()
        {
            // The upstream has responded without it, or it will not be sent again: it would wait
            // for ever.
            self.end_attempt();
        }
        if self.attempt.is_http2 && self.client.is_open() {
            // A server that has sent its whole response need not accept the rest (RFC 9113 §8.1).
            // If it leaves the stream's window closed, h2 does not even poll this body, and what
            // the client sends would not be read.
            self.end_attempt();
            self.linger();
            return !self.exchange.state.is_http1();
        }
        !self.client.is_open()
    }

    /// Gives the rest of the client's stream up.
    fn linger(&mut self) {
        match mem::replace(&mut self.client, ClientStream::Discarded) {
            ClientStream::Unread {
                body,
                expects_continue,
            } => self.exchange.linger(body, self.number, expects_continue),
            ClientStream::Reading(body) => self.exchange.linger(body, self.number, false),
            over @ (ClientStream::Complete | ClientStream::Failed | ClientStream::Discarded) => {
                self.client = over;
            }
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Reads and records the next frame of the client's stream.
    fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(client) = self.client.read() else {
            return Poll::Ready(None);
        };
        let Poll::Ready(mut frame) = poll_next(client, &mut self.held, cx) else {
            if self.attempt.is_http2 {
                self.waker = Some(cx.waker().clone());
            }
            self.exchange.wait_for_client(self.response.has_begun());
            return Poll::Pending;
        };
        let is_last = client.is_end_stream();
        let is_http1 = self.exchange.state.is_http1();
        let length = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref())
            .map_or(0, Bytes::len);
        self.exchange
            .body_received(length, self.response.has_begun());
        if let Some(Ok(trailers)) = &mut frame
            && let Some(trailers) = trailers.trailers_mut()
        {
            if !is_http1 && malformed_trailers(trailers).is_some() {
                self.client = ClientStream::Failed;
                return Poll::Ready(Some(Err(MalformedTrailers.into())));
            }
            headers::clean_trailers(trailers, &self.exchange.view().stripped);
            self.trailers = Some(trailers.clone());
            frame = self.held.take().map(Ok).or(frame);
        }
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref()
                    && let Some(recording) = &mut self.recording
                    && !recording.push(data)
                {
                    self.recording = None;
                }
                // hyper does not poll again after the announced length, nor after trailers.
                if is_last || self.trailers.is_some() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.client = ClientStream::Failed;
                Poll::Ready(Some(Err(error.into())))
            }
            // hyper reports a stream that was reset without an error code as one that has ended.
            None if !is_http1 && !is_last => {
                self.client = ClientStream::Failed;
                Poll::Ready(Some(Err(ClientReset.into())))
            }
            None => {
                self.complete();
                Poll::Ready(None)
            }
        }
    }

    /// The client has sent everything.
    fn complete(&mut self) {
        self.client = ClientStream::Complete;
        self.exchange.body_complete(self.response.has_begun());
        if self.response.is_over() {
            self.exchange.state.end_exchange(self.number);
        }
    }
}

/// The next frame of a client's stream, without the data that is `held`: it follows when the stream
/// has ended, before the trailers.
fn poll_next(
    client: &mut Incoming,
    held: &mut Option<Frame<Bytes>>,
    cx: &mut Context<'_>,
) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
    loop {
        let frame = ready!(Pin::new(&mut *client).poll_frame(cx));
        let is_data = frame
            .as_ref()
            .is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_data));
        if is_data && client.size_hint().exact() == Some(0) && !client.is_end_stream() {
            // What follows the last data is empty data, if it is data.
            if let Some(Ok(data)) = frame {
                held.get_or_insert(data);
            }
            continue;
        }
        let has_ended = is_data || frame.is_none() && client.is_end_stream();
        return Poll::Ready(match held.take_if(|_| has_ended) {
            Some(data) => Some(Ok(data)),
            None => frame,
        });
    }
}

impl Drop for BodySource {
    /// No attempt sends this body any more, but the client may send its whole body before it reads
    /// the response: closing the connection now would destroy that response.
    fn drop(&mut self) {
        self.linger();
    }
}

impl fmt::Debug for BodySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodySource")
            .field("attempt", &self.attempt.number)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// The body of one attempt; `None` inside if the request has none.
#[derive(Debug)]
pub(crate) struct AttemptBody {
    reader: Option<Reader>,
}

#[derive(Debug)]
struct Reader {
    source: Rc<RefCell<BodySource>>,
    attempt: u32,
    gate: Option<Arc<ContinueGate>>,
    /// Ends the wait at the gate.
    hold: Option<Pin<Box<Sleep>>>,
    /// What is left of the recording that this attempt began with.
    recorded: std::vec::IntoIter<Bytes>,
    length: Option<u64>,
    is_finished: bool,
}

/// The error of a request body whose stream the client reset.
#[derive(Debug, thiserror::Error)]
#[error("the client reset the stream before the end of its request body")]
struct ClientReset;

/// The error of a request body behind which malformed trailers follow.
#[derive(Debug, thiserror::Error)]
#[error("the trailers of the request are malformed")]
struct MalformedTrailers;

/// The error of a body whose attempt was ended.
#[derive(Debug, thiserror::Error)]
#[error("this attempt to send the request has been ended")]
struct AttemptEnded;

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
        if reader.is_finished {
            return Poll::Ready(None);
        }
        let mut source = reader.source.borrow_mut();
        match source.attempt_state(reader.attempt) {
            AttemptState::Sending => {}
            AttemptState::Parked => {
                source.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            AttemptState::Ended => {
                reader.is_finished = true;
                let is_truncatable = source.attempt.truncatable == Some(reader.attempt);
                return Poll::Ready((!is_truncatable).then(|| Err(AttemptEnded.into())));
            }
        }
        if let Some(gate) = &reader.gate
            && gate.held() == Held::All
        {
            if gate.poll_open(cx).is_pending() {
                source.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            // Without a 100 response, the upstream may still reject the head.
            reader.gate = (!gate.is_confirmed()).then(|| ContinueGate::rest(MIN_REST_TIME, false));
        }
        if let Some(data) = reader.recorded.next() {
            source
                .exchange
                .body_received(0, source.response.has_begun());
            if !source.client.is_open()
                && source.trailers.is_none()
                && reader.recorded.as_slice().is_empty()
            {
                reader.is_finished = true;
                source.exchange.body_complete(source.response.has_begun());
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if !source.client.is_open() {
            reader.is_finished = true;
            source.exchange.body_complete(source.response.has_begun());
            return Poll::Ready(
                source
                    .trailers
                    .clone()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            );
        }
        if source.recording.as_ref().is_some_and(Recording::is_full) {
            if let Some(gate) = &reader.gate {
                let hold = reader.hold.get_or_insert_with(|| {
                    source.exchange.state.pause_body();
                    Box::pin(sleep_until(gate.rest_from()))
                });
                if gate.poll_open(cx).is_pending() && hold.as_mut().poll(cx).is_pending() {
                    source.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                reader.gate = None;
                reader.hold = None;
            }
            source.recording = None;
        }
        let frame = ready!(source.poll_client(cx));
        reader.is_finished = match &frame {
            Some(Ok(frame)) => {
                let has_trailers = frame.is_data() && source.trailers.is_some();
                !source.client.is_open() && !has_trailers
            }
            Some(Err(_)) | None => true,
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(|reader| reader.is_finished)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.reader {
            None => SizeHint::with_exact(0),
            Some(reader) => reader.length.map(SizeHint::with_exact).unwrap_or_default(),
        }
    }
}
