//! One attempt: the request is sent to an endpoint with one token, and the head of the response is
//! received.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Poll, ready},
};

use futures_util::future::LocalBoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, Version, header, request, response};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::TrySendError,
};

use crate::{
    proxy::{
        error::Error,
        exchange::{
            Exchange,
            continue_gate::{CONTINUE_TIMEOUT, ContinueGate, Held, MIN_REST_TIME},
            request_body::{AttemptBody, RequestBody},
            upgrade::Upgrade,
        },
        forward::body_start::{BodyStart, Truncated},
        message::{
            forwarded::ClientConnection,
            headers::{self, Outbound},
            json_body::{self, Format},
            judge::Verdict,
            methods, spelling,
            urls::OwnUrls,
        },
        metrics::{RetryOutcome, RetryReason},
        route::Route,
        settings::View,
        worker::Worker,
    },
    upstream::{
        self, Counters, Endpoint, ExpectSupport, Failure, Lease, Loss, Place, Reason, Upstream,
        Visited,
    },
};

/// How often `response_timeout` is granted again, if the upstream has sent interim responses
/// meanwhile: they report that it still works on the request (RFC 2518 §10.1), but a broken server
/// may send them for ever.
const MAX_RENEWALS: u32 = 10;

/// More interim responses than this are no report of progress.
const MAX_INTERIM: u32 = 1000;

/// Statuses with which servers refuse an expectation that they do not know, beside 417.
const EXPECTATION_REFUSALS: [StatusCode; 4] = [
    StatusCode::BAD_REQUEST,
    StatusCode::EXPECTATION_FAILED,
    StatusCode::NOT_IMPLEMENTED,
    StatusCode::HTTP_VERSION_NOT_SUPPORTED,
];

/// A request and what its processing needs.
#[derive(Clone, Copy)]
pub(crate) struct RequestContext<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) view: &'a View,
    pub(crate) exchange: &'a Exchange,
    pub(crate) client: &'a ClientConnection,
    pub(crate) route: &'a Route,
    pub(crate) head: &'a request::Parts,
    /// Its `Host`.
    pub(crate) host: Option<&'a HeaderValue>,
    pub(crate) body: &'a RequestBody,
    pub(crate) upgrade: Option<&'a Upgrade>,
    /// Whether the client's `Range` is sent.
    pub(crate) sends_range: bool,
}

/// An upstream's response whose body has not been read, or only its start.
#[derive(Debug)]
pub(crate) struct UpstreamResponse {
    pub(crate) head: response::Parts,
    pub(crate) start: BodyStart,
    pub(crate) body: Incoming,
    pub(crate) lease: Lease<AttemptBody>,
}

impl UpstreamResponse {
    /// Whether the body is JSON, by its media type or by its first character.
    pub(crate) fn is_json(&self) -> bool {
        self.start.is_json || json_body::format(&self.head) == Format::Json
    }

    /// Ends a response that no client gets. Its connection is kept if nothing is left to read.
    pub(crate) fn discard(self) {
        if self.body.is_end_stream() {
            self.lease.release();
        }
    }

    /// Whether the response has no body.
    pub(crate) fn is_empty(&self) -> bool {
        self.start.frames.is_empty() && self.body.is_end_stream()
    }
}

/// When the request body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SendBody {
    Immediately,
    /// After a 100 response, or [`CONTINUE_TIMEOUT`] without one.
    AfterContinue,
    /// As far as it is recorded at once, the rest a little later.
    InTwoParts,
}

/// Where an attempt goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Way {
    /// Another address than these, if there is one.
    pub(crate) visited: Visited,
    /// The address whose connection was lost: its pooled connections may be as dead.
    pub(crate) lost: Option<upstream::AddressId>,
    /// A connection of its own, which a load balancer may connect to another server.
    pub(crate) is_alone: bool,
    /// How often the request was sent again.
    pub(crate) retries: u32,
}

/// What follows a step of a request: its outcome, or a rare path to it, which is boxed. The future of
/// each request would else have room for both. What an async function has borrowed once stays in
/// its future too, so that the decision is a function of its own.
pub(crate) enum Next<'a, T, E> {
    Done(T),
    Rest(LocalBoxFuture<'a, Result<T, E>>),
}

/// Why an attempt on one connection failed.
pub(super) struct SendError {
    pub(super) error: Error,
    /// The request can be sent again without being processed twice.
    pub(super) resend: Option<Resend>,
}

impl From<Error> for SendError {
    fn from(error: Error) -> Self {
        Self {
            error,
            resend: None,
        }
    }
}

/// A request that can be sent again.
pub(super) struct Resend {
    /// The connection may have been closed while it was idle, or the upstream states that it did not
    /// process the request: no sign of overload, so the retry needs no budget.
    pub(super) is_free: bool,
    pub(super) address: upstream::AddressId,
    /// Of the endpoint, for a request that is not sent again after all.
    pub(super) counters: Arc<Counters>,
}

impl RequestContext<'_> {
    /// Sends the request and waits for the head of the response.
    ///
    /// A request that was not processed, or that may be processed twice, is sent again where that can
    /// help, see [`resend`](super::resend).
    pub(crate) fn attempt(
        &self,
        authorization: Option<&HeaderValue>,
    ) -> impl Future<Output = Result<UpstreamResponse, Error>> {
        self.upstream().count_request();
        self.attempt_over(Way::default(), authorization)
    }

    /// The same on this way.
    pub(crate) async fn attempt_over(
        &self,
        mut way: Way,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        let send_body = match self.body.to_hold() {
            None => SendBody::Immediately,
            Some(Held::Rest) => SendBody::InTwoParts,
            Some(Held::All) => {
                return Box::pin(self.attempt_with_continue(way, authorization)).await;
            }
        };
        let attempted = self.attempt_with(&mut way, send_body, authorization);
        let attempted = attempted.await;
        let rest = match self.whole(attempted?, authorization) {
            Next::Done(response) => return Ok(response),
            Next::Rest(rest) => rest,
        };
        rest.await
    }

    /// What the client gets for this response: the whole body, if it is a part of one that is
    /// rewritten.
    fn whole<'a>(
        &'a self,
        response: UpstreamResponse,
        authorization: Option<&'a HeaderValue>,
    ) -> Next<'a, UpstreamResponse, Error> {
        if self.may_be_part_of_json(&response) {
            Next::Rest(Box::pin(self.whole_if_rewritten(response, authorization)))
        } else {
            Next::Done(response)
        }
    }

    /// The same for a request without `Range` and body.
    pub(crate) async fn attempt_whole(
        &self,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        let mut way = Way::default();
        self.attempt_with(&mut way, SendBody::Immediately, authorization)
            .await
    }

    /// An upstream may refuse the expectation, or break off when it sees one. Since no byte of the
    /// body was sent, the request is then repeated without it (RFC 9110 §10.1.1).
    async fn attempt_with_continue(
        &self,
        mut way: Way,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        let first = self
            .attempt_with(&mut way, SendBody::AfterContinue, authorization)
            .await;
        let refusal = match &first {
            Ok(response) => Some(response.head.status),
            Err(Error::ConnectionClosed { .. }) => None,
            Err(_) => return first,
        };
        let is_refusal = refusal.is_none_or(|status| EXPECTATION_REFUSALS.contains(&status));
        if !is_refusal || !self.body.is_held_back() || !self.body.can_replay() {
            return first;
        }
        drop(first);
        let second = self.attempt_with(&mut way, SendBody::InTwoParts, authorization);
        let second = Box::pin(second).await?;
        if Some(second.head.status) != refusal {
            let now = self.worker.clock.now();
            second.lease.remember_expect(ExpectSupport::Refused, now);
        }
        Ok(second)
    }

    async fn attempt_with(
        &self,
        way: &mut Way,
        send_body: SendBody,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        let lease = self.connect(way).await?;
        let first = self.send(lease, send_body, authorization).await;
        let rest = match self.go_on(first, way, send_body, authorization) {
            Next::Done(response) => return Ok(response),
            Next::Rest(rest) => rest,
        };
        rest.await
    }

    /// What follows from the outcome of the first attempt: nothing, as a rule.
    fn go_on<'a>(
        &'a self,
        first: Result<UpstreamResponse, SendError>,
        way: &'a mut Way,
        send_body: SendBody,
        authorization: Option<&'a HeaderValue>,
    ) -> Next<'a, UpstreamResponse, Error> {
        match first {
            Ok(response)
                if !self.is_unavailable(&response) && !self.has_uncertain_body(&response) =>
            {
                Next::Done(response)
            }
            first => Next::Rest(Box::pin(self.attempt_again(
                first,
                way,
                send_body,
                authorization,
            ))),
        }
    }

    /// The proxy's URLs in the request.
    pub(crate) fn own_urls(&self) -> OwnUrls<'_> {
        OwnUrls {
            host: self.host,
            names: self.view.guard(self.exchange.peer.listener).names(),
            prefix: self.route.public_prefix(),
            origins: &self.route.origins,
        }
    }

    pub(crate) fn upstream(&self) -> &Upstream<AttemptBody> {
        self.worker.upstream(self.route)
    }

    /// A connection on this way, a pooled one if there is one. Addresses that do not connect are
    /// added to the way.
    pub(super) async fn connect(&self, way: &mut Way) -> Result<Lease<AttemptBody>, Error> {
        let place = match self.upstream().place(&way.visited, self.affinity()) {
            Some(place) => place,
            None => Box::pin(self.wait_for_place(way)).await?,
        };
        self.connect_to(place, way).await
    }

    /// The same, to this address first.
    pub(super) async fn connect_to(
        &self,
        place: Place<AttemptBody>,
        way: &mut Way,
    ) -> Result<Lease<AttemptBody>, Error> {
        match self.reuse_connection(place, way).await {
            Ok(lease) => Ok(lease),
            Err(place) => Box::pin(self.dial(place, way)).await,
        }
    }

    async fn wait_for_place(&self, way: &Way) -> Result<Place<AttemptBody>, Error> {
        let place = self
            .upstream()
            .wait_for_place(&way.visited, self.affinity())
            .await;
        Ok(place.inspect_err(|error| {
            let counters = self.worker.metrics.endpoints.get(error.endpoint());
            counters.failures[error.failure()].add(1);
        })?)
    }

    /// What requests of one client have in common, if they go to one address.
    pub(super) fn affinity(&self) -> Option<u64> {
        self.upstream().affinity(|| {
            let caller = self.exchange.caller.get();
            match caller.map(|caller| self.view.clients().name(caller)) {
                Some(name) => upstream::affinity_key(name.as_bytes()),
                None => match self.client.address().ip {
                    Some(ip) => upstream::affinity_key(ip.to_string().as_bytes()),
                    None => 0,
                },
            }
        })
    }

    /// A pooled connection that is not known to be closed.
    ///
    /// A request that is not idempotent yields once before it takes one: the runtime then polls the
    /// network, and a FIN that has already arrived is noticed.
    ///
    /// # Errors
    /// Returns the place if there is none.
    async fn reuse_connection(
        &self,
        place: Place<AttemptBody>,
        way: &Way,
    ) -> Result<Lease<AttemptBody>, Place<AttemptBody>> {
        if way.is_alone || way.lost == Some(place.address()) {
            return Err(place);
        }
        let mut lease = place.reuse(self.upgrade.is_some())?;
        while !methods::is_idempotent(&self.head.method) {
            tokio::task::yield_now().await;
            if lease.is_open() {
                break;
            }
            lease = Place::of(lease).reuse(self.upgrade.is_some())?;
        }
        Ok(lease)
    }

    async fn dial(
        &self,
        place: Place<AttemptBody>,
        way: &mut Way,
    ) -> Result<Lease<AttemptBody>, Error> {
        let dial = upstream::Dial {
            is_upgrade: self.upgrade.is_some(),
            is_alone: way.is_alone,
            lost: way.lost,
        };
        let chosen = place.address();
        let dialled = self
            .upstream()
            .dial(place, dial, &mut way.visited, self.affinity());
        let dialled = dialled.await;
        let outcome = match &dialled {
            Ok(lease) if lease.address() == chosen => None,
            Ok(_) => Some(RetryOutcome::Accepted),
            Err(_) if self.upstream().has_several() => Some(RetryOutcome::Failed),
            Err(_) => None,
        };
        if let Some(outcome) = outcome {
            self.worker
                .metrics
                .retried(RetryReason::Unreachable, outcome);
        }
        Ok(dialled?)
    }

    pub(super) async fn send(
        &self,
        mut lease: Lease<AttemptBody>,
        send_body: SendBody,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, SendError> {
        let Self { exchange, body, .. } = *self;
        let gate = match send_body {
            SendBody::Immediately => None,
            _ => Box::pin(self.gate(send_body, &lease)).await?,
        };
        let request = self.request(&lease, gate.as_ref(), authorization)?;
        if gate.as_ref().is_some_and(|gate| gate.held() == Held::All) {
            exchange.upstream_deadline.arm(CONTINUE_TIMEOUT.into());
        } else if body.is_empty() {
            exchange.body_complete(false);
        } else {
            // The upstream must accept some of the body. On HTTP/2 this includes the wait for a
            // stream, which its limit of concurrent streams may delay.
            exchange
                .upstream_deadline
                .arm(exchange.timeouts.get().body_idle);
        }
        let sent = {
            let (sending, interim) = lease.send(request);
            let mut sending = pin!(sending);
            let before = interim.load(Relaxed);
            let (mut known, mut renewals) = (0, MAX_RENEWALS);
            poll_fn(|cx| match sending.as_mut().poll(cx) {
                Poll::Ready(sent) => Poll::Ready(Some(sent)),
                Poll::Pending => {
                    ready!(exchange.upstream_deadline.poll_due(cx));
                    let Some(gate) = gate.as_ref().filter(|gate| gate.holds_all()) else {
                        let count = interim.load(Relaxed).wrapping_sub(before);
                        let is_renewed = count > known && count <= MAX_INTERIM && renewals > 0;
                        if !is_renewed || !body.is_complete() {
                            return Poll::Ready(None);
                        }
                        (known, renewals) = (count, renewals - 1);
                        exchange.body_complete(false);
                        return exchange.upstream_deadline.poll_due(cx).map(|()| None);
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
        if let Some(gate) = &gate {
            self.learn(gate, &lease);
        }
        match sent {
            Some(Ok(response)) => {
                let (mut head, response_body) = response.into_parts();
                if let Some(error) = lease.proxy_refusal(&head) {
                    return Err(self.not_forwarded(error, &lease));
                }
                // After a 101 before the end of the body, the rest of it would be the beginning of
                // the tunnel.
                let may_upgrade = self.upgrade.is_some() && body.is_complete();
                if !headers::is_unambiguous(&mut head, may_upgrade) {
                    body.end_attempt();
                    lease.failed(Reason::Broken);
                    lease.count(Failure::InvalidResponse);
                    let endpoint = lease.endpoint().origin.clone();
                    return Err(Error::InvalidResponse { endpoint }.into());
                }
                if headers::authenticates_connection(&head.headers) {
                    lease.retire();
                }
                body.begin_response();
                let response = UpstreamResponse {
                    head,
                    start: BodyStart::default(),
                    body: response_body,
                    lease,
                };
                self.note_status(&response);
                Ok(response)
            }
            Some(Err(failed)) => Err(self.send_error(failed, &lease)),
            None => {
                body.end_attempt();
                // The connection may be the cause.
                lease.retire();
                lease.failed(Reason::Timeout);
                lease.count(Failure::ResponseTimeout);
                let endpoint = lease.endpoint().origin.clone();
                Err(Error::ResponseTimeout { endpoint }.into())
            }
        }
    }

    /// The same with the start of the response's body, if that decides whether it is JSON.
    pub(super) async fn send_for_json(
        &self,
        lease: Lease<AttemptBody>,
        send_body: SendBody,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, SendError> {
        let response = self.send(lease, send_body, authorization).await?;
        self.with_start(response).await
    }

    /// The response with the start of its body, if that decides whether it is JSON.
    pub(super) async fn with_start(
        &self,
        response: UpstreamResponse,
    ) -> Result<UpstreamResponse, SendError> {
        if self.has_uncertain_body(&response) {
            Ok(self.read_start(response, json_body::begins_json).await?)
        } else {
            Ok(response)
        }
    }

    /// Whether the start of a response's body has to be read, to decide whether it is JSON.
    fn has_uncertain_body(&self, response: &UpstreamResponse) -> bool {
        let is_judged = self.route.credential.is_some()
            && self.view.config().retry.json.is_some()
            && response.head.status.is_success();
        (is_judged || self.route.is_rewritten)
            && self.head.method != Method::HEAD
            && !response.body.is_end_stream()
            && json_body::format(&response.head) == Format::Uncertain
            // The body of a rejection is not waited for.
            && !(self.route.credential.is_some()
                && self.judge(response) == Verdict::AuthorizationFailure)
    }

    /// Reads the start of a response's body until `is_json` is decided.
    pub(crate) async fn read_start(
        &self,
        mut response: UpstreamResponse,
        is_json: impl FnMut(&[u8]) -> Option<bool>,
    ) -> Result<UpstreamResponse, Error> {
        let UpstreamResponse { body, lease, .. } = &mut response;
        match BodyStart::read(body, lease, self.body, self.exchange, is_json).await {
            Ok(start) => Ok(UpstreamResponse { start, ..response }),
            Err(Truncated) => {
                self.body.end_attempt();
                lease.count(Failure::Truncated);
                let endpoint = lease.endpoint().origin.clone();
                Err(Error::ConnectionClosed { endpoint })
            }
        }
    }

    /// What holds the body back on this connection.
    ///
    /// # Errors
    /// [`Error::ClientBody`] when the client's stream fails.
    async fn gate(
        &self,
        send_body: SendBody,
        lease: &Lease<AttemptBody>,
    ) -> Result<Option<Arc<ContinueGate>>, SendError> {
        let now = self.worker.clock.now();
        let support = match send_body {
            SendBody::AfterContinue if !lease.is_http2() => lease.expect_support(now),
            _ => ExpectSupport::Refused,
        };
        if support == ExpectSupport::Unknown {
            let is_small = self.body.read_small().await;
            return if self.body.has_failed() {
                Err(Error::ClientBody.into())
            } else {
                Ok((!is_small).then(ContinueGate::all))
            };
        }
        let time = (lease.connect_time() * 3).clamp(MIN_REST_TIME, CONTINUE_TIMEOUT);
        let sends_expect = support == ExpectSupport::Ignored;
        Ok(Some(ContinueGate::rest(time, sends_expect)))
    }

    /// Remembers how the endpoint treats `Expect`.
    fn learn(&self, gate: &ContinueGate, lease: &Lease<AttemptBody>) {
        let now = self.worker.clock.now();
        if gate.is_confirmed() {
            lease.remember_expect(ExpectSupport::Unknown, now);
        } else if gate.sends_expect() && !gate.holds_all() {
            lease.remember_expect(ExpectSupport::Ignored, now);
        }
    }

    /// Reports to the address's health whether its response is one of a server that works. A response
    /// that rejects the token says neither, until another address has been asked.
    fn note_status(&self, response: &UpstreamResponse) {
        let status = response.head.status;
        if is_gateway_error(status) {
            response.lease.failed(Reason::Status);
        } else if self.route.credential.is_none()
            || self.judge(response) != Verdict::AuthorizationFailure
        {
            response.lease.succeeded();
        }
    }

    fn send_error(
        &self,
        mut failed: TrySendError<Request<AttemptBody>>,
        lease: &Lease<AttemptBody>,
    ) -> SendError {
        let is_unwritten = failed.take_message().is_some();
        let failed = failed.into_error();
        let error = classify(&failed, self.body, lease.endpoint());
        let is_unprocessed = upstream::is_unprocessed(&failed)
            || lease.is_reused() && (is_unwritten || self.body.is_held_back());
        let is_lost = matches!(error, Error::ConnectionClosed { .. }) && !lease.has_received();
        let loss = if is_unprocessed {
            Loss::Idle
        } else if is_lost {
            lease.loss()
        } else {
            Loss::InUse
        };
        if loss != Loss::Idle && error.upstream_failure().is_some() {
            lease.failed(Reason::Broken);
        }
        let is_repeatable = is_unprocessed || is_lost && methods::is_idempotent(&self.head.method);
        let resend = (is_repeatable && self.body.can_replay()).then(|| Resend {
            // Each loss of an idle connection follows a response: no budget is needed as a bound.
            is_free: loss != Loss::InUse,
            address: lease.address(),
            counters: lease.counters(),
        });
        if resend.is_none() {
            self.body.end_attempt();
            if let Some(failure) = error.upstream_failure() {
                lease.count(failure);
            }
        }
        SendError { error, resend }
    }

    /// The outbound proxy has forwarded nothing of the request: it may reach another endpoint.
    fn not_forwarded(&self, error: upstream::Error, lease: &Lease<AttemptBody>) -> SendError {
        lease.failed(Reason::Connect);
        let is_repeatable = self.upstream().has_several() && self.body.can_replay();
        let resend = is_repeatable.then(|| Resend {
            is_free: true,
            address: lease.address(),
            counters: lease.counters(),
        });
        if resend.is_none() {
            self.body.end_attempt();
            lease.count(error.failure());
        }
        SendError {
            error: Error::Connect(error),
            resend,
        }
    }

    fn request(
        &self,
        lease: &Lease<AttemptBody>,
        gate: Option<&Arc<ContinueGate>>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<AttemptBody>, Error> {
        let outbound = Outbound {
            endpoint: lease.endpoint(),
            host: &self.upstream().config().host,
            forwarded: self.view.config().forwarded_headers,
            own_urls: self.own_urls(),
            client: self.client,
            loop_id: &self.worker.loop_id,
            stripped: &self.view.stripped,
            authorization,
        };
        let mut request = Request::new(self.body.attempt(gate.cloned(), lease.is_http2()));
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.route.target(&self.head.uri).map_err(|_| {
            Error::BadRequest("the target is not valid in origin form, with the prefix removed")
        })?;
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = headers::outbound(self.head, &outbound);
        // The letter case of the names, as hyper recorded it. Usual names are written like
        // `Content-Type` anyway, which is cheaper than to look each one up.
        if !lease.is_http2() {
            if self.head.version == Version::HTTP_2 {
                if spelling::is_needed(&self.head.headers) {
                    *request.extensions_mut() = self.worker.usual_names.clone();
                }
            } else if self.exchange.state.has_unusual_names() {
                *request.extensions_mut() = self.head.extensions.clone();
            }
        }
        if let Some(gate) = gate {
            gate.prepare(&mut request);
        }
        if !self.sends_range {
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
            // Without it, hyper sends no body with methods that usually have none.
            request.headers_mut().insert(
                header::TRANSFER_ENCODING,
                HeaderValue::from_static("chunked"),
            );
        }
        if lease.is_http2() {
            headers::for_http2(&mut request, &lease.endpoint().scheme)
                .map_err(|_| Error::BadRequest("the target or Host cannot be sent over HTTP/2"))?;
        }
        Ok(request)
    }
}

/// Whether a server, or a gateway before it, states that it cannot serve.
pub(super) fn is_gateway_error(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

fn classify(error: &hyper::Error, body: &RequestBody, endpoint: &Endpoint) -> Error {
    let endpoint = || endpoint.origin.clone();
    if body.has_failed() {
        Error::ClientBody
    } else if error.is_parse() || upstream::is_malformed(error) {
        Error::InvalidResponse {
            endpoint: endpoint(),
        }
    } else {
        Error::ConnectionClosed {
            endpoint: endpoint(),
        }
    }
}
