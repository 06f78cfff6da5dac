//! An answer's body on its way to the client, and the accounts that are closed when it ends.

use std::{
    collections::VecDeque,
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
        error::UpstreamFailure,
        exchange::{
            Exchange,
            request_body::{AttemptBody, RequestBody},
        },
        message::{headers, observed::Observer, urls as rewrite},
        policy::clients::Permit,
        worker::Worker,
    },
    upstream::Lease,
};

/// What a client receives.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    /// Read ahead, or ours.
    ahead: VecDeque<Frame<Bytes>>,
    rest: Option<UpstreamBody>,
    /// Brings addresses in it home.
    rewriter: Option<rewrite::JsonRewriter>,
    look: Option<Box<Observer>>,
    account: InFlightGuard,
}

/// What is still to come from the upstream.
#[derive(Debug)]
pub(crate) struct UpstreamBody {
    pub(crate) body: Incoming,
    pub(crate) lease: Lease<AttemptBody>,
}

/// Closed when the answer has ended, however it ended.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    request: RequestBody,
    received: Moment,
    number: u32,
    /// Held to the end of the answer.
    pub(crate) permit: Option<Permit>,
}

/// The upstream broke off, and so must we: the client must not take a part for the whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the upstream broke off in the middle of its answer")]
    Upstream(#[source] hyper::Error),
    #[error("the upstream reset its answer before the end")]
    Reset,
    #[error(
        "the upstream was silent for too long in the middle of its answer (upstream.body_idle_timeout)"
    )]
    Silent,
}

/// Whether an answer that seems to be over was broken off.
///
/// hyper takes a reset for an end if it states no error. That is right behind a whole answer that came early, which leaves
/// the rest of its request unread (RFC 9113 §8.1); but a request without a body has no rest.
pub(crate) fn is_truncated(
    answer: &Incoming,
    lease: &Lease<AttemptBody>,
    request: &RequestBody,
) -> bool {
    lease.is_http2() && request.is_empty() && !answer.is_end_stream()
}

impl ResponseBody {
    /// A body of our own.
    pub(crate) fn local(body: Bytes, account: InFlightGuard) -> Self {
        Self {
            ahead: VecDeque::from([Frame::data(body)]),
            rest: None,
            rewriter: None,
            look: None,
            account,
        }
    }

    /// An upstream's body, some of it perhaps read ahead.
    pub(crate) fn relayed(
        ahead: VecDeque<Frame<Bytes>>,
        rest: Option<UpstreamBody>,
        rewriter: Option<rewrite::JsonRewriter>,
        look: Option<Box<Observer>>,
        account: InFlightGuard,
    ) -> Self {
        let mut body = Self {
            ahead,
            rest,
            rewriter,
            look,
            account,
        };
        if body
            .rest
            .as_ref()
            .is_some_and(|rest| rest.body.is_end_stream())
        {
            body.finish();
        }
        body
    }

    fn finish(&mut self) {
        if let Some(rest) = self.rest.take() {
            rest.lease.release();
        }
    }

    fn break_off(&mut self, failure: UpstreamFailure) {
        let InFlightGuard {
            worker, exchange, ..
        } = &self.account;
        if let Some(rest) = self.rest.take() {
            let view = exchange.view();
            worker.upstream_failed(&view, &rest.lease.endpoint().origin, failure);
        }
        exchange.state.abort();
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        this.account.exchange.state.response_accepted();
        loop {
            let frame = ready!(this.poll_upstream(cx));
            let Some(rewriter) = &mut this.rewriter else {
                this.account.exchange.state.response_offered();
                return Poll::Ready(frame);
            };
            let rewritten = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => rewriter.feed(&data),
                    // Trailers tell of the body as it was.
                    Err(_) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let held = rewriter.finish();
                    this.rewriter = None;
                    held
                }
            };
            if !rewritten.is_empty() {
                this.account.exchange.state.response_offered();
                return Poll::Ready(Some(Ok(Frame::data(rewritten))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.rest.is_none() && self.rewriter.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rewriter.is_some() {
            return SizeHint::default();
        }
        // With a length, HTTP/1.1 has no place for trailers.
        if self.ahead.back().is_some_and(Frame::is_trailers) {
            return SizeHint::default();
        }
        let ahead: u64 = self
            .ahead
            .iter()
            .filter_map(Frame::data_ref)
            .map(|data| data.len() as u64)
            .sum();
        let rest = self
            .rest
            .as_ref()
            .map_or(SizeHint::with_exact(0), |rest| rest.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(ahead + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(ahead + upper);
        }
        hint
    }
}

impl ResponseBody {
    /// What comes from the upstream, as it came.
    fn poll_upstream(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self;
        if let Some(frame) = this.ahead.pop_front() {
            if let (Some(look), Some(data)) = (&mut this.look, frame.data_ref()) {
                look.push(data);
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(rest) = &mut this.rest else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = Pin::new(&mut rest.body).poll_frame(cx) else {
            let exchange = &this.account.exchange;
            exchange.wait_for_upstream();
            ready!(exchange.upstream_deadline.poll_due(cx));
            this.break_off(UpstreamFailure::ResponseTimeout);
            return Poll::Ready(Some(Err(Broken::Silent)));
        };
        this.account.exchange.upstream_deadline.disarm();
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers, &[]);
                }
                if let (Some(look), Some(data)) = (&mut this.look, frame.data_ref()) {
                    look.push(data);
                }
                if rest.body.is_end_stream() {
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.break_off(UpstreamFailure::Truncated);
                Poll::Ready(Some(Err(Broken::Upstream(error))))
            }
            None if is_truncated(&rest.body, &rest.lease, &this.account.request) => {
                this.break_off(UpstreamFailure::Truncated);
                Poll::Ready(Some(Err(Broken::Reset)))
            }
            None => {
                this.finish();
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for ResponseBody {
    /// hyper need not ask for the end of a body whose length it knows.
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.account.exchange.state.complete();
        }
        if let Some(look) = self.look.take() {
            let view = self.account.exchange.view();
            self.account.worker.observed(&view, &look);
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
