//! A request's life: guard → token → attempt → judge → (refresh → replay) → relay → account.

use std::{collections::VecDeque, convert::Infallible, rc::Rc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request, response};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming};

use super::{
    Exhausted,
    body::{Account, ResponseBody, Rest, is_cut},
    error::Error,
    exchange::{Carrier, Exchange},
    forward::{Answer, Passage},
    headers::{self, Home},
    judge::{Verdict, judge, may_repeat, refuses},
    metrics::{RetryOutcome, RetryReason},
    multiplex,
    replay::{AttemptBody, RequestBody},
    rewrite::{self, Treatment},
    tunnel::Upgrade,
    worker::{Carried, Worker},
};
use crate::{
    base::clock::Moment,
    token::Rejection,
    upstream::{Cookies, Lease},
};

/// What is read of an answer before it is known what becomes of it; a larger one is passed on instead.
const READ_AHEAD_LIMIT: usize = 64 * 1024;

/// Answers one request, whatever happens.
///
/// hyper moves this future into place for each request, so its size is paid each time: the rare paths (a new connection, a
/// replay) are boxed.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let received = worker.clock.now();
    let number = exchange.monitor.begin_exchange();
    let (head, body, upgrade) = taken_apart(request);
    let body = RequestBody::new(body, &head, &worker.recording, &exchange, number);
    let mut account = Account::open(&worker, &exchange, number, body.clone(), received);
    let route = worker.routes.choose(&head);
    exchange.limits.set(route.limits);
    exchange.caller.set(None);
    let upgrade = upgrade.as_ref().filter(|_| worker.upstreams[route.upstream].takes_upgrades());
    let passage = Passage { worker: &worker, exchange: &exchange, route, head: &head, body: &body, upgrade };
    let answer = match exchange.monitor.fault(number) {
        None => passage.answer(received).await.and_then(|relay| passage.spare_the_password(relay)),
        Some(fault) => Err(fault.into()),
    };
    account.permit = exchange.permit.take();
    let mut response = match answer {
        Ok(Relay { head, ahead, rest, rewriter }) => {
            let look = worker.look(&head);
            Response::from_parts(head, ResponseBody::relayed(ahead, rest, rewriter, look, account))
        }
        Err(error) => {
            worker.refused(&error, &exchange);
            error.to_response().map(|words| ResponseBody::ours(words, account))
        }
    };
    // A client that waits to be asked for its body need not send it now, and then what follows is not that body.
    let is_unasked = body.is_untouched() && head.headers.contains_key(header::EXPECT);
    body.commit();
    exchange.peer.gate.open_to_origins(&head.headers, response.headers_mut());
    // HTTP/1.0 knows no other end for a body of unknown length.
    let ends_with_close = head.version == Version::HTTP_10 && response.body().size_hint().exact().is_none();
    let is_draining = worker.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS;
    let is_last = is_unasked || ends_with_close || is_draining;
    if is_last && exchange.carrier == Carrier::Connection {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // To an answer that claims a later version, hyper adds the promise to keep the connection of an HTTP/1.0 client.
    *response.version_mut() = if is_last { head.version } else { Version::HTTP_11 };
    worker.answered(route, exchange.caller.get(), &head, response.status(), received);
    Ok(response)
}

/// Not in place: what an async function has borrowed once stays in its future.
fn taken_apart(mut request: Request<Incoming>) -> (request::Parts, Incoming, Option<Upgrade>) {
    let upgrade = Upgrade::wished(&mut request);
    let (mut head, body) = request.into_parts();
    if head.version == Version::HTTP_2 {
        headers::from_http2(&mut head);
    }
    headers::plain_length(&mut head.headers);
    headers::encode_target(&mut head);
    (head, body, upgrade)
}

/// Whether an answer shows that the token is good.
fn is_proof(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// An answer, ready for the client.
struct Relay {
    head: response::Parts,
    ahead: VecDeque<Frame<Bytes>>,
    rest: Option<Rest>,
    rewriter: Option<rewrite::Stream>,
}

impl Relay {
    /// An answer without a body.
    fn of_head(head: response::Parts) -> Self {
        Self { head, ahead: VecDeque::new(), rest: None, rewriter: None }
    }
}

/// An answer that refuses the token.
enum Refusal {
    /// As its status says.
    Unread(Answer),
    /// As its JSON says.
    Read(Box<Relay>, Lease<AttemptBody>),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unread(answer) => answer.head.status,
            Self::Read(relay, _) => relay.head.status,
        }
    }
}

/// How far an answer was read.
enum ReadAhead {
    /// To its end; the connection is free.
    Whole(Relay, Lease<AttemptBody>),
    /// It is too large, or too slow, to be kept: it can only be passed on.
    Endless(Relay),
    /// Its connection broke before its end, so that it cannot be shown to anybody.
    Broken,
}

impl Passage<'_> {
    async fn answer(&self, received: Moment) -> Result<Relay, Error> {
        self.worker.admit()?;
        if self.exchange.carrier == Carrier::Stream
            && let Some(fault) = multiplex::fault(self.head, &self.worker.config.limits)
        {
            return Err(fault.into());
        }
        let peer = &*self.exchange.peer;
        peer.gate.check(self.head, &peer.known_host)?;
        if let Some(answer) = peer.gate.preflight(self.head) {
            return Ok(Relay::of_head(answer));
        }
        peer.gate.check_required(&self.head.headers)?;
        self.admit()?;
        self.judge_path()?;
        if headers::has_been_here(&self.head.headers, &self.worker.mark) {
            return Err(Error::Loop);
        }
        if !self.route.inject {
            return Box::pin(self.attempt(None)).await.map(|answer| self.relay(answer));
        }
        let mut token = self.worker.token(received).await?;
        if self.body.is_better_held_back() && token.ends_soon(received) {
            token = Box::pin(self.longer_lived(token)).await?;
        }
        let answer = self.attempt(Some(token.header())).await?;
        if self.judge(&answer) == Verdict::AuthorizationFailure {
            return Box::pin(self.replay(Refusal::Unread(answer), &token)).await;
        }
        if self.may_refuse_in_json(&answer) {
            return Box::pin(self.judge_json(answer, &token)).await;
        }
        if is_proof(answer.head.status) {
            token.accepted();
        }
        Ok(self.relay(answer))
    }

    /// Whose request it is, and whether there is room for one more of that client's.
    fn admit(&self) -> Result<(), Error> {
        let clients = &self.worker.clients;
        if clients.is_empty() {
            return Ok(());
        }
        let caller = clients.recognise(&self.exchange.peer.visitor, &self.head.headers)?;
        self.exchange.caller.set(Some(caller));
        self.exchange.permit.set(clients.admit(caller)?);
        Ok(())
    }

    /// Whether the path, as the upstream sees it, may be asked for on this route and by this client; and likewise where
    /// something is to be copied or moved to.
    fn judge_path(&self) -> Result<(), Error> {
        let target = &self.head.uri;
        self.judge_one(self.route.path(target), target.path())?;
        match headers::destination(self.head)? {
            // It goes on as it is.
            Some(destination) => self.judge_one(destination.path(), destination.path()),
            None => Ok(()),
        }
    }

    /// `path` as the upstream sees it, `asked` as the client wrote it.
    fn judge_one(&self, path: &str, asked: &str) -> Result<(), Error> {
        let method = &self.head.method;
        self.route.rules.judge(method, path, &self.worker.config.issuer_segments)?;
        if self.worker.routes.is_ambiguous(self.head, asked, self.route) {
            return Err(Error::BadRequest(
                "the path can also be read as another [[route]]'s, whose rules it would escape",
            ));
        }
        match self.exchange.caller.get().map(|caller| self.worker.clients.rules(caller)) {
            Some(rules) if !rules.is_empty() => rules.judge(method, path, &[]),
            Some(_) | None => Ok(()),
        }
    }

    /// An app whose password is good would ask its user for another one.
    fn spare_the_password(&self, relay: Relay) -> Result<Relay, Error> {
        let is_spared = relay.head.status == StatusCode::UNAUTHORIZED
            && self.exchange.caller.get().is_some_and(|caller| caller.by_password)
            && self.worker.config.retry.exhausted != Some(Exhausted::Relay);
        if is_spared { Err(Error::Challenge) } else { Ok(relay) }
    }

    /// An answer that may be a refusal under a status that is none: it is read before the client sees any of it.
    async fn judge_json(&self, answer: Answer, token: &Carried) -> Result<Relay, Error> {
        match self.read_ahead(answer).await {
            ReadAhead::Whole(relay, lease) if self.is_refusal_in_json(&relay.ahead) => {
                self.replay(Refusal::Read(Box::new(relay), lease), token).await
            }
            ReadAhead::Whole(relay, lease) => {
                token.accepted();
                lease.release();
                Ok(relay)
            }
            ReadAhead::Endless(relay) => {
                token.accepted();
                Ok(relay)
            }
            ReadAhead::Broken => Err(Error::BrokenOff),
        }
    }

    fn may_refuse_in_json(&self, answer: &Answer) -> bool {
        if self.worker.config.retry.json.is_none() || self.head.method == Method::HEAD || answer.body.is_end_stream() {
            return false;
        }
        let head = &answer.head;
        if !head.status.is_success() || !rewrite::is_json(&head.headers) {
            return false;
        }
        let is_coded = rewrite::is_coded(&head.headers);
        if is_coded && !self.route.is_rewritten {
            self.worker.metrics.treated(Treatment::Coded);
        }
        !is_coded && answer.body.size_hint().exact().is_none_or(|length| length <= READ_AHEAD_LIMIT as u64)
    }

    fn is_refusal_in_json(&self, read: &VecDeque<Frame<Bytes>>) -> bool {
        let whole: Vec<u8> = read.iter().filter_map(Frame::data_ref).flatten().copied().collect();
        self.worker.config.retry.json.as_ref().is_some_and(|json| refuses(&whole, json))
    }

    /// A large upload may outlive the token that it begins with, and cannot be sent again: if a newer one can be had, it is
    /// worth waiting for.
    async fn longer_lived(&self, token: Rc<Carried>) -> Result<Rc<Carried>, Error> {
        let credential = &self.worker.credential;
        // Refused when the last call was a moment ago: then its outcome is what there is to wait for.
        let _ = credential.refresh_now();
        match credential.newer_than(Some(token.version()), self.worker.token_wait).await {
            Some(newer) => Ok(self.worker.carry(&newer)),
            // What it had left of its life may be over by now.
            None => self.worker.token(self.worker.clock.now()).await,
        }
    }

    /// The token was refused: send the request again under a newer one, once; or else pass the refusal on.
    async fn replay(&self, refusal: Refusal, refused: &Carried) -> Result<Relay, Error> {
        let rejection = self.worker.credential.rejected(refused.version());
        let repeatable = may_repeat(refusal.status(), &self.head.method, &self.worker.config.retry);
        if !repeatable || !self.body.can_repeat() {
            let refusal = match refusal {
                Refusal::Unread(answer) => self.relay(answer),
                Refusal::Read(relay, lease) => {
                    lease.release();
                    *relay
                }
            };
            return self.exhausted(RetryOutcome::BodyNotKept, refusal);
        }
        // The refusal is read first: an attempt that is ended may take its connection, and the refusal, with it.
        self.body.park();
        let read = match refusal {
            Refusal::Unread(answer) => self.read_ahead(answer).await,
            Refusal::Read(relay, lease) => ReadAhead::Whole(*relay, lease),
        };
        let refusal = match read {
            ReadAhead::Whole(refusal, lease) => {
                if self.body.leave_off() {
                    lease.release();
                }
                Some(refusal)
            }
            ReadAhead::Endless(refusal) => {
                self.body.unpark();
                return self.exhausted(RetryOutcome::BodyNotKept, refusal);
            }
            ReadAhead::Broken => {
                self.body.end();
                None
            }
        };
        let exhausted = |outcome| match refusal {
            Some(refusal) => self.exhausted(outcome, refusal),
            None => Err(Error::BrokenOff),
        };
        let newer = match rejection {
            Rejection::Newer(token) => token,
            Rejection::Futile => return exhausted(RetryOutcome::Cooldown),
            Rejection::Refreshing => {
                match self.worker.credential.newer_than(Some(refused.version()), self.worker.token_wait).await {
                    Some(token) => token,
                    None => return exhausted(RetryOutcome::NoNewerToken),
                }
            }
        };
        let token = self.worker.carry(&newer);
        let second = match self.attempt(Some(token.header())).await {
            Ok(second) => second,
            Err(error) => {
                self.worker.refused(&error, self.exchange);
                return exhausted(RetryOutcome::Failed);
            }
        };
        let mut is_refused = self.judge(&second) == Verdict::AuthorizationFailure;
        let is_proof = is_proof(second.head.status);
        let second = if !is_refused && self.may_refuse_in_json(&second) {
            match self.read_ahead(second).await {
                ReadAhead::Whole(relay, lease) => {
                    is_refused = self.is_refusal_in_json(&relay.ahead);
                    lease.release();
                    relay
                }
                ReadAhead::Endless(relay) => relay,
                ReadAhead::Broken => return Err(Error::BrokenOff),
            }
        } else {
            self.relay(second)
        };
        if is_refused {
            token.replay_rejected();
            return self.exhausted(RetryOutcome::Rejected, second);
        }
        token.replay_accepted();
        if is_proof {
            token.accepted();
        }
        self.worker.metrics.retried(RetryReason::Unauthorized, RetryOutcome::Accepted);
        Ok(second)
    }

    fn judge(&self, answer: &Answer) -> Verdict {
        judge(answer.head.status, &answer.head.headers, &self.worker.config.retry)
    }

    /// The refusal is the answer, unless the operator does not want apps to see it.
    fn exhausted(&self, outcome: RetryOutcome, refusal: Relay) -> Result<Relay, Error> {
        self.worker.metrics.retried(RetryReason::Unauthorized, outcome);
        match self.worker.config.retry.exhausted {
            None | Some(Exhausted::Relay) => Ok(refusal),
            Some(Exhausted::BadGateway) => Err(Error::Refused),
        }
    }

    fn relay(&self, answer: Answer) -> Relay {
        let Answer { mut head, body, lease } = answer;
        let protocol = head.headers.get(header::UPGRADE).cloned();
        let rewriter = self.prepare(&mut head, lease.endpoint());
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.extend(protocol.map(|protocol| (header::UPGRADE, protocol)));
            let upstream = head.extensions.remove();
            let tunnel = self.upgrade.zip(upstream).and_then(|(upgrade, upstream)| {
                let permit = self.exchange.permit.take();
                upgrade.agreed(upstream, lease, permit)
            });
            *self.exchange.tunnel.borrow_mut() = tunnel;
            return Relay::of_head(head);
        }
        Relay { head, ahead: VecDeque::new(), rest: Some(Rest { body, lease }), rewriter }
    }

    /// The head as the client gets it, and what brings the addresses in its body home.
    fn prepare(&self, head: &mut response::Parts, endpoint: &crate::upstream::Endpoint) -> Option<rewrite::Stream> {
        let rewrites = &self.worker.rewrites;
        let host = self.head.headers.get(header::HOST);
        let home = Home { client: &self.exchange.peer.client, host, prefix: self.route.home() };
        let privacy = self.route.inject.then_some(self.worker.privacy);
        headers::inbound(head, endpoint, &self.route.origins, &home, privacy);
        if self.worker.upstreams[self.route.upstream].config().cookies == Cookies::Drop {
            head.headers.remove(header::SET_COOKIE);
        }
        rewrite::bring_cookies_home(&mut head.headers, &endpoint.host, rewrites);
        if rewrites.is_empty() {
            return None;
        }
        if !self.route.is_rewritten {
            return None;
        }
        let treatment = rewrites.treat(head);
        self.worker.metrics.treated(treatment);
        (treatment == Treatment::Rewritten).then(|| rewrite::Stream::new(Rc::clone(rewrites), home.base()))
    }

    /// Reads an answer's body as far as it may be kept.
    async fn read_ahead(&self, answer: Answer) -> ReadAhead {
        let Answer { mut head, mut body, lease } = answer;
        let rewriter = self.prepare(&mut head, lease.endpoint());
        let mut ahead = VecDeque::new();
        let mut length = 0;
        self.exchange.waiting_for_upstream();
        let is_whole = loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = self.exchange.answer_due.due() => break false,
            };
            match frame {
                None if !is_cut(&body, &lease, self.body) => break true,
                Some(Ok(mut frame)) => {
                    length += frame.data_ref().map_or(0, Bytes::len);
                    if let Some(trailers) = frame.trailers_mut() {
                        headers::clean_trailers(trailers, &[]);
                    }
                    ahead.push_back(frame);
                    if length > READ_AHEAD_LIMIT {
                        break false;
                    }
                }
                None | Some(Err(_)) => {
                    self.exchange.answer_due.disarm();
                    self.worker.upstream_failed(lease.endpoint(), "truncated");
                    return ReadAhead::Broken;
                }
            }
        };
        self.exchange.answer_due.disarm();
        if !is_whole {
            return ReadAhead::Endless(Relay { head, ahead, rest: Some(Rest { body, lease }), rewriter });
        }
        ReadAhead::Whole(Relay { head, ahead, rest: None, rewriter }, lease)
    }
}
