//! One attempt: a request goes to an endpoint with one token, and its answer's head comes back.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Poll, ready},
};

use http::{HeaderValue, Request, StatusCode, Version, header, request, response};
use hyper::{body::Incoming, client::conn::TrySendError};

use crate::{
    proxy::{
        error::Error,
        exchange::{
            Exchange, continue_gate as expect,
            continue_gate::ContinueGate,
            request_body::{AttemptBody, RequestBody},
            upgrade::Upgrade,
        },
        message::headers::{self, Outbound},
        metrics::{RetryOutcome, RetryReason},
        route::Route,
        settings::View,
        worker::Worker,
    },
    upstream::{self, Endpoint, EndpointIndex, Lease, Upstream},
};

/// A request on its way, whatever becomes of it.
#[derive(Clone, Copy)]
pub(crate) struct RequestContext<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) view: &'a View,
    pub(crate) exchange: &'a Exchange,
    pub(crate) route: &'a Route,
    pub(crate) head: &'a request::Parts,
    pub(crate) body: &'a RequestBody,
    pub(crate) upgrade: Option<&'a Upgrade>,
}

/// An upstream's answer, its body not read yet.
#[derive(Debug)]
pub(crate) struct UpstreamResponse {
    pub(crate) head: response::Parts,
    pub(crate) body: Incoming,
    pub(crate) lease: Lease<AttemptBody>,
}

impl RequestContext<'_> {
    /// Sends the request and waits for the head of its answer.
    ///
    /// A pooled connection may have been closed by the upstream a moment ago. If nothing of the request was written, or if
    /// it is idempotent and can be sent again whole, it goes out once more on a new connection.
    pub(crate) async fn attempt(
        self,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        if self.body.should_wait_for_continue() {
            return Box::pin(self.attempt_with_continue(authorization)).await;
        }
        self.attempt_as(Start::Immediately, authorization).await
    }

    async fn attempt_with_continue(
        self,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        let answer = self.attempt_as(Start::OnContinue, authorization).await?;
        if answer.head.status != StatusCode::EXPECTATION_FAILED || !self.body.can_replay() {
            return Ok(answer);
        }
        // RFC 9110 §10.1.1: what cannot be expected is asked for again without.
        drop(answer);
        Box::pin(self.attempt_as(Start::Immediately, authorization)).await
    }

    async fn attempt_as(
        self,
        start: Start,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        // One turn an attempt: a connection that is reused and one that is dialled lead to the same endpoint.
        let endpoint_index = self.upstream().next_endpoint();
        if let Some(lease) = self.pooled(endpoint_index).await {
            match self.send(lease, start, authorization).await {
                Ok(answer) => return Ok(answer),
                Err(Failure {
                    error,
                    again: false,
                }) => return Err(error),
                Err(Failure { again: true, .. }) => {}
            }
            let second =
                Box::pin(self.on_new_connection(endpoint_index, start, authorization)).await;
            let outcome = if second.is_ok() {
                RetryOutcome::Accepted
            } else {
                RetryOutcome::Failed
            };
            self.worker
                .metrics
                .retried(RetryReason::ConnectionLost, outcome);
            return second;
        }
        Box::pin(self.on_new_connection(endpoint_index, start, authorization)).await
    }

    fn upstream(&self) -> &Upstream<AttemptBody> {
        self.worker.upstream(self.route)
    }

    /// A connection that has served before and is not known to be closed.
    ///
    /// A request that must not be sent twice first lets the runtime look for news from the network: a close that has
    /// arrived already is then known.
    async fn pooled(&self, endpoint_index: EndpointIndex) -> Option<Lease<AttemptBody>> {
        let mut lease = self
            .upstream()
            .reuse(endpoint_index, self.upgrade.is_some())?;
        while !self.head.method.is_idempotent() {
            tokio::task::yield_now().await;
            if lease.is_open() {
                break;
            }
            lease = self
                .upstream()
                .reuse(endpoint_index, self.upgrade.is_some())?;
        }
        Some(lease)
    }

    async fn on_new_connection(
        self,
        endpoint_index: EndpointIndex,
        start: Start,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        let mut dials = MAX_DIALS;
        loop {
            dials -= 1;
            let dialled = self
                .upstream()
                .dial(endpoint_index, self.upgrade.is_some())
                .await;
            let lease = dialled.map_err(|error| self.unreachable(error))?;
            match self.send(lease, start, authorization).await {
                Ok(answer) => return Ok(answer),
                Err(Failure { again: true, .. }) if dials > 0 => {}
                Err(Failure { error, .. }) => return Err(error),
            }
        }
    }

    async fn send(
        self,
        mut lease: Lease<AttemptBody>,
        start: Start,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Failure> {
        let Self {
            worker,
            exchange,
            body,
            ..
        } = self;
        let gate =
            (start == Start::OnContinue && !lease.is_http2()).then(Arc::<ContinueGate>::default);
        let request = self.request(&lease, gate.as_ref(), authorization);
        match &gate {
            Some(_) if !lease.ignores_expect(worker.clock.now()) => exchange
                .upstream_deadline
                .arm(expect::CONTINUE_TIMEOUT.into()),
            None if body.is_empty() => exchange.body_complete(false),
            gate => {
                gate.iter().for_each(|gate| gate.open());
                // The upstream must take some of it. On HTTP/2, it may not even let the stream begin.
                exchange
                    .upstream_deadline
                    .arm(exchange.timeouts.get().body_idle);
            }
        }
        let sent = {
            let mut sending = pin!(lease.send(request));
            poll_fn(|cx| match sending.as_mut().poll(cx) {
                Poll::Ready(sent) => Poll::Ready(Some(sent)),
                Poll::Pending => {
                    ready!(exchange.upstream_deadline.poll_due(cx));
                    let Some(gate) = gate.as_ref().filter(|gate| !gate.is_open()) else {
                        return Poll::Ready(None);
                    };
                    exchange
                        .upstream_deadline
                        .arm(exchange.timeouts.get().body_idle);
                    gate.open();
                    exchange.upstream_deadline.poll_due(cx).map(|()| None)
                }
            })
            .await
        };
        exchange.upstream_deadline.disarm();
        if let Some(gate) = gate.filter(|gate| gate.is_open()) {
            lease.remember_expect(gate.is_confirmed(), worker.clock.now());
        }
        match sent {
            Some(Ok(response)) => {
                let (head, answer) = response.into_parts();
                if !headers::is_unambiguous(&head, self.upgrade.is_some()) {
                    body.end_attempt();
                    self.count_failure(lease.endpoint(), &Error::InvalidResponse);
                    return Err(Failure {
                        error: Error::InvalidResponse,
                        again: false,
                    });
                }
                if headers::authenticates_connection(&head.headers) {
                    lease.retire();
                }
                body.begin_response();
                Ok(UpstreamResponse {
                    head,
                    body: answer,
                    lease,
                })
            }
            Some(Err(failed)) => Err(self.failure(failed, &lease)),
            None => {
                body.end_attempt();
                // It may be the connection that is dead.
                lease.retire();
                self.count_failure(lease.endpoint(), &Error::ResponseTimeout);
                Err(Failure {
                    error: Error::ResponseTimeout,
                    again: false,
                })
            }
        }
    }

    /// Counts a connection that was not made.
    fn unreachable(&self, error: upstream::Error) -> Error {
        let origin = error.endpoint().to_owned();
        let error = Error::Connect(error);
        if let Some(failure) = error.upstream_failure() {
            self.worker.upstream_failed(self.view, &origin, failure);
        }
        error
    }

    /// Counts an error against the endpoint, if the endpoint is at fault.
    fn count_failure(&self, endpoint: &Endpoint, error: &Error) {
        if let Some(failure) = error.upstream_failure() {
            self.worker
                .upstream_failed(self.view, &endpoint.origin, failure);
        }
    }

    fn failure(
        &self,
        mut failed: TrySendError<Request<AttemptBody>>,
        lease: &Lease<AttemptBody>,
    ) -> Failure {
        let is_unwritten = failed.take_message().is_some();
        let failed = failed.into_error();
        let error = classify(&failed, self.body);
        let is_lost = lease.is_reused()
            && (is_unwritten
                || self.head.method.is_idempotent() && matches!(error, Error::ConnectionClosed));
        let again = (is_lost || upstream::is_unprocessed(&failed)) && self.body.can_replay();
        if !again {
            self.body.end_attempt();
            self.count_failure(lease.endpoint(), &error);
        }
        Failure { error, again }
    }

    fn request(
        &self,
        lease: &Lease<AttemptBody>,
        gate: Option<&Arc<ContinueGate>>,
        authorization: Option<&HeaderValue>,
    ) -> Request<AttemptBody> {
        let outbound = Outbound {
            endpoint: lease.endpoint(),
            host: &self.upstream().config().host,
            forwarded: self.view.config().forwarded_headers,
            client: &self.exchange.peer.client,
            loop_id: &self.worker.loop_id,
            stripped: &self.view.stripped,
            authorization,
        };
        let mut request = Request::new(self.body.attempt(gate.cloned(), lease.is_http2()));
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.route.target(&self.head.uri);
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = headers::outbound(self.head, &outbound);
        if let Some(gate) = gate {
            gate.expect_continue(&mut request);
        }
        if self.route.is_rewritten {
            // Parts of an answer, and compressed ones, cannot be rewritten.
            request.headers_mut().remove(header::RANGE);
            request.headers_mut().remove(header::IF_RANGE);
        }
        if self.route.is_rewritten
            || self.view.config().retry.json.is_some() && self.route.credential.is_some()
        {
            request.headers_mut().insert(
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            );
        }
        if headers::accepts_trailers(&self.head.headers) {
            request
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("te"));
            request
                .headers_mut()
                .insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if let Some(upgrade) = self.upgrade {
            request
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            request
                .headers_mut()
                .insert(header::UPGRADE, upgrade.protocol.clone());
        }
        if self.body.is_chunked() {
            // Without it, hyper sends no body at all with methods that usually have none.
            request.headers_mut().insert(
                header::TRANSFER_ENCODING,
                HeaderValue::from_static("chunked"),
            );
        }
        if lease.is_http2() {
            headers::for_http2(&mut request, &lease.endpoint().scheme);
        }
        request
    }
}

/// When a request's body follows its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Immediately,
    /// When the upstream asks for it, or has had the time to.
    OnContinue,
}

struct Failure {
    error: Error,
    /// It can be sent again, on a new connection, and nothing is done twice.
    again: bool,
}

/// New connections for one request: a server may refuse it on more than one, and do so again and again.
const MAX_DIALS: u32 = 3;

fn classify(error: &hyper::Error, body: &RequestBody) -> Error {
    if body.has_failed() {
        Error::ClientBody
    } else if error.is_parse() {
        Error::InvalidResponse
    } else {
        Error::ConnectionClosed
    }
}
