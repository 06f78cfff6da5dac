//! The body that a client receives, and what is counted and released when it ends.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::{
    base::clock::Moment,
    proxy::{
        exchange::{
            Exchange,
            request_body::{AttemptBody, RequestBody},
        },
        message::{headers, observed::Observer, urls},
        policy::clients::Permit,
        worker::Worker,
    },
    upstream::{Failure, Lease},
};

/// The body of a response to a client.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    /// Read ahead, or the proxy's own.
    buffered: VecDeque<Frame<Bytes>>,
    unread: Option<UpstreamBody>,
    /// Rewrites the URLs in it.
    rewriter: Option<urls::JsonRewriter>,
    observer: Option<Box<Observer>>,
    cut: Option<Cut>,
    /// On HTTP/1 its end is the close of the connection.
    pub(crate) ends_with_close: bool,
    in_flight: InFlightGuard,
}

/// The premature end of a response, which waits until what precedes it has reached the client:
/// hyper discards what it has not written when a body fails. A client that gets nothing of a
/// response, its head included, takes the request for lost and may send it again.
struct Cut {
    error: Option<ResponseBodyError>,
    drained: Pin<Box<dyn Future<Output = ()>>>,
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cut")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

/// The part of a body that has not been read from the upstream.
#[derive(Debug)]
pub(crate) struct UpstreamBody {
    pub(crate) body: Incoming,
    pub(crate) lease: Lease<AttemptBody>,
}

/// Counts a request as in flight; dropped when its response has ended, however that happens.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    request: RequestBody,
    received: Moment,
    number: u32,
    /// Held to the end of the response.
    pub(crate) permit: Option<Permit>,
}

/// The response is cut short by the upstream. It must fail toward the client as well, which must
/// not take a part for the whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResponseBodyError {
    /// Without a source: hyper would reset a client's stream with the upstream's error code, which
    /// may say that the request was not processed.
    #[error("the upstream failed before the end of its response body: {0}")]
    Upstream(hyper::Error),
    #[error("the upstream reset the stream before the end of its response body")]
    Reset,
    #[error(
        "the upstream sent nothing of its response body for too long (upstream.body_idle_timeout)"
    )]
    Timeout,
    /// Not a failure: a stream error is due to a malformed request, RFC 9113 §8.1.1.
    #[error("the response to a malformed request is complete")]
    Malformed(#[source] h2::Error),
}

/// Whether a response body that has ended was cut short.
///
/// hyper reports a stream that was reset without an error code as one that has ended. That is
/// correct after a complete response that came early, where the server does not read the rest of
/// the request (RFC 9113 §8.1); but a request without a body has no rest.
pub(crate) fn is_truncated(
    response: &Incoming,
    lease: &Lease<AttemptBody>,
    request: &RequestBody,
) -> bool {
    lease.is_http2() && request.is_empty() && !response.is_end_stream()
}

impl ResponseBody {
    /// A body of the proxy's own.
    pub(crate) fn local(body: Bytes, in_flight: InFlightGuard) -> Self {
        Self {
            buffered: VecDeque::from([Frame::data(body)]),
            unread: None,
            rewriter: None,
            observer: None,
            cut: None,
            ends_with_close: false,
            in_flight,
        }
    }

    /// An upstream's body, of which a part may have been read ahead.
    pub(crate) fn forwarded(
        buffered: VecDeque<Frame<Bytes>>,
        unread: Option<UpstreamBody>,
        rewriter: Option<urls::JsonRewriter>,
        observer: Option<Box<Observer>>,
        in_flight: InFlightGuard,
    ) -> Self {
        let mut body = Self {
            buffered,
            unread,
            rewriter,
            observer,
            cut: None,
            ends_with_close: false,
            in_flight,
        };
        if body
            .unread
            .as_ref()
            .is_some_and(|unread| unread.body.is_end_stream())
        {
            body.release_upstream();
        }
        body
    }

    fn release_upstream(&mut self) {
        if let Some(unread) = self.unread.take() {
            unread.lease.release();
        }
    }

    /// The upstream failed: so must the response, as soon as what precedes is written.
    fn cut(&mut self, failure: Failure, error: ResponseBodyError) {
        if let Some(unread) = self.unread.take() {
            unread.lease.count(failure);
        }
        self.end_with(error);
    }

    /// Lets the stream of a malformed request end in a reset, after this response.
    pub(crate) fn end_malformed(&mut self) {
        self.end_with(ResponseBodyError::Malformed(
            h2::Reason::PROTOCOL_ERROR.into(),
        ));
    }

    fn end_with(&mut self, error: ResponseBodyError) {
        let state = self.in_flight.exchange.state.clone();
        self.cut = Some(Cut {
            error: Some(error),
            drained: Box::pin(state.drained()),
        });
    }

    fn poll_cut(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let Some(Cut { error, drained }) = &mut self.cut else {
            return Poll::Ready(None);
        };
        if error.is_some() {
            ready!(drained.as_mut().poll(cx));
            if self.ends_with_close {
                self.in_flight.exchange.state.abort();
            }
            if matches!(error, Some(ResponseBodyError::Malformed(_))) {
                self.in_flight.exchange.state.complete();
            }
        }
        Poll::Ready(error.take().map(Err))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let this = self.get_mut();
        this.in_flight.exchange.state.response_accepted();
        loop {
            let frame = ready!(this.poll_upstream(cx));
            let Some(rewriter) = &mut this.rewriter else {
                this.in_flight.exchange.state.response_offered();
                return Poll::Ready(frame);
            };
            let rewritten = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => rewriter.feed(&data),
                    // Trailers may describe the original body, such as its digest.
                    Err(_) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let remainder = rewriter.finish();
                    this.rewriter = None;
                    remainder
                }
            };
            if !rewritten.is_empty() {
                this.in_flight.exchange.state.response_offered();
                return Poll::Ready(Some(Ok(Frame::data(rewritten))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.buffered.is_empty()
            && self.unread.is_none()
            && self.rewriter.is_none()
            && self.cut.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rewriter.is_some() {
            return SizeHint::default();
        }
        // HTTP/1.1 sends trailers with chunked bodies only, so the length must stay unknown.
        if self.buffered.back().is_some_and(Frame::is_trailers) {
            return SizeHint::default();
        }
        let buffered: u64 = self
            .buffered
            .iter()
            .filter_map(Frame::data_ref)
            .map(|data| data.len() as u64)
            .sum();
        let unread = self
            .unread
            .as_ref()
            .map_or(SizeHint::with_exact(0), |unread| unread.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(buffered + unread.lower());
        if let Some(upper) = unread.upper() {
            hint.set_upper(buffered + upper);
        }
        hint
    }
}

impl ResponseBody {
    /// The next frame from the upstream, not rewritten.
    fn poll_upstream(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let this = self;
        if let Some(frame) = this.buffered.pop_front() {
            if let (Some(observer), Some(data)) = (&mut this.observer, frame.data_ref()) {
                observer.push(data);
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(unread) = &mut this.unread else {
            return this.poll_cut(cx);
        };
        let Poll::Ready(frame) = Pin::new(&mut unread.body).poll_frame(cx) else {
            let exchange = &this.in_flight.exchange;
            exchange.wait_for_upstream();
            ready!(exchange.upstream_deadline.poll_due(cx));
            this.cut(Failure::ResponseTimeout, ResponseBodyError::Timeout);
            return this.poll_cut(cx);
        };
        this.in_flight.exchange.upstream_deadline.disarm();
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers, &[]);
                }
                if let (Some(observer), Some(data)) = (&mut this.observer, frame.data_ref()) {
                    observer.push(data);
                }
                if unread.body.is_end_stream() {
                    this.release_upstream();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let error = ResponseBodyError::Upstream(error);
                this.cut(Failure::Truncated, error);
                this.poll_cut(cx)
            }
            None if is_truncated(&unread.body, &unread.lease, &this.in_flight.request) => {
                this.cut(Failure::Truncated, ResponseBodyError::Reset);
                this.poll_cut(cx)
            }
            None => {
                this.release_upstream();
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for ResponseBody {
    /// Here, since hyper need not poll for the end of a body whose length it knows.
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.in_flight.exchange.state.complete();
        }
        if let Some(observer) = self.observer.take() {
            let view = self.in_flight.exchange.view();
            self.in_flight.worker.observed(&view, &observer);
        }
    }
}

impl InFlightGuard {
    pub(crate) fn new(
        worker: &Rc<Worker>,
        exchange: &Rc<Exchange>,
        number: u32,
        request: RequestBody,
        received: Moment,
    ) -> Self {
        worker.metrics.in_flight.add(1);
        worker.shared.requests.fetch_add(1, Relaxed);
        Self {
            worker: Rc::clone(worker),
            exchange: Rc::clone(exchange),
            request,
            received,
            number,
            permit: None,
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let metrics = &self.worker.metrics;
        metrics.in_flight.sub(1);
        self.worker.shared.requests.fetch_sub(1, Relaxed);
        metrics
            .duration
            .observe(self.worker.clock.now().saturating_since(self.received));
        self.exchange.upstream_deadline.disarm();
        if self.request.end_response() {
            self.exchange.state.end_exchange(self.number);
        }
    }
}
