//! A request's life: guard → token → attempt → judge → (refresh → replay) → relay → account.

use std::{collections::VecDeque, convert::Infallible, rc::Rc};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header, response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{
    Exhausted,
    body::{Account, ResponseBody, Rest},
    connection::Exchange,
    error::Error,
    forward::{Answer, Passage},
    headers,
    judge::{Verdict, judge, may_repeat},
    metrics::{RetryOutcome, RetryReason},
    replay::RequestBody,
    tunnel::Upgrade,
    worker::{Carried, Worker},
};
use crate::{base::clock::Moment, token::Rejection};

/// What is read of a refusal before its request is sent again; a larger one is passed on instead.
const REFUSAL_LIMIT: usize = 64 * 1024;

/// Answers one request, whatever happens.
///
/// hyper moves this future into place for each request, so its size is paid each time: the rare paths (a new connection, a
/// replay) are boxed.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let received = worker.clock.now();
    let number = exchange.monitor.begin_exchange();
    let upgrade = Upgrade::wished(&mut request);
    let (head, body) = request.into_parts();
    let body = RequestBody::new(body, &head, &worker.recording, &exchange, number);
    let account = Account::open(&worker, &exchange, number, body.clone(), received);
    let route = worker.routes.choose(&head);
    exchange.limits.set(route.limits);
    let passage =
        Passage { worker: &worker, exchange: &exchange, route, head: &head, body: &body, upgrade: upgrade.as_ref() };
    let mut response = match passage.answer(received).await {
        Ok(Relay { head, ahead, rest }) => Response::from_parts(head, ResponseBody::relayed(ahead, rest, account)),
        Err(error) => {
            worker.refused(&error, &exchange);
            error.to_response().map(|words| ResponseBody::ours(words, account))
        }
    };
    // A client that waits to be asked for its body need not send it now, and then what follows is not that body.
    let is_unasked = body.is_untouched() && head.headers.contains_key(header::EXPECT);
    if is_unasked {
        body.refuse();
    }
    body.commit();
    *response.version_mut() = Version::HTTP_11;
    if is_unasked || worker.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    worker.answered(route, &head, response.status(), received);
    Ok(response)
}

/// Whether an answer shows that the token is good.
fn is_proof(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// An answer of the upstream's, ready for the client.
struct Relay {
    head: response::Parts,
    ahead: VecDeque<Bytes>,
    rest: Option<Rest>,
}

/// How far a refusal was read.
enum Refusal {
    /// To its end.
    Whole(Relay),
    /// It is too large, or too slow, to be kept: it can only be passed on.
    Endless(Relay),
    /// Its connection broke before its end, so that it cannot be shown to anybody.
    Broken,
}

impl Passage<'_> {
    async fn answer(&self, received: Moment) -> Result<Relay, Error> {
        self.exchange.gate.check(self.head, &self.exchange.known_host)?;
        if headers::has_been_here(&self.head.headers, &self.worker.mark) {
            return Err(Error::Loop);
        }
        if !self.route.inject {
            return self.attempt(None).await.map(|answer| self.relay(answer));
        }
        let mut token = self.worker.token(received).await?;
        if self.body.is_better_held_back() && token.ends_soon(received) {
            token = Box::pin(self.longer_lived(token)).await;
        }
        let answer = self.attempt(Some(token.header())).await?;
        if self.judge(&answer) == Verdict::Relay {
            if is_proof(answer.head.status) {
                token.accepted();
            }
            return Ok(self.relay(answer));
        }
        Box::pin(self.replay(answer, &token)).await
    }

    /// A large upload may outlive the token that it begins with, and cannot be sent again: if a newer one can be had, it is
    /// worth waiting for.
    async fn longer_lived(&self, token: Rc<Carried>) -> Rc<Carried> {
        let credential = &self.worker.credential;
        // Refused when the last call was a moment ago: then its outcome is what there is to wait for.
        let _ = credential.refresh_now();
        let newer = credential.newer_than(Some(token.version()), self.worker.token_wait).await;
        newer.map_or(token, |newer| self.worker.carry(&newer))
    }

    /// The token was refused: send the request again under a newer one, once; or else pass the refusal on.
    async fn replay(&self, refusal: Answer, refused: &Carried) -> Result<Relay, Error> {
        let rejection = self.worker.credential.rejected(refused.version());
        let repeatable = may_repeat(refusal.head.status, &self.head.method, &self.worker.config.retry);
        if !repeatable || !self.body.can_repeat() {
            return self.exhausted(RetryOutcome::BodyNotKept, self.relay(refusal));
        }
        // The refusal is read first: an attempt that is ended may take its connection, and the refusal, with it.
        self.body.park();
        let refusal = match self.read_refusal(refusal).await {
            Refusal::Whole(refusal) => Some(refusal),
            Refusal::Endless(refusal) => {
                self.body.unpark();
                return self.exhausted(RetryOutcome::BodyNotKept, refusal);
            }
            Refusal::Broken => None,
        };
        self.body.end();
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
        if self.judge(&second) == Verdict::AuthorizationFailure {
            token.replay_rejected();
            return self.exhausted(RetryOutcome::Rejected, self.relay(second));
        }
        token.replay_accepted();
        if is_proof(second.head.status) {
            token.accepted();
        }
        self.worker.metrics.retried(RetryReason::Unauthorized, RetryOutcome::Accepted);
        Ok(self.relay(second))
    }

    fn judge(&self, answer: &Answer) -> Verdict {
        judge(answer.head.status, &answer.head.headers, &self.worker.config.retry)
    }

    /// The refusal is the answer, unless the operator does not want apps to see it.
    fn exhausted(&self, outcome: RetryOutcome, refusal: Relay) -> Result<Relay, Error> {
        self.worker.metrics.retried(RetryReason::Unauthorized, outcome);
        match self.worker.config.retry.exhausted {
            Exhausted::Relay => Ok(refusal),
            Exhausted::BadGateway => Err(Error::Refused),
        }
    }

    fn relay(&self, answer: Answer) -> Relay {
        let Answer { mut head, body, lease } = answer;
        let protocol = head.headers.get(header::UPGRADE).cloned();
        self.prepare(&mut head, lease.endpoint());
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.extend(protocol.map(|protocol| (header::UPGRADE, protocol)));
            let upstream = head.extensions.remove();
            let tunnel = self.upgrade.zip(upstream).and_then(|(upgrade, upstream)| upgrade.agreed(upstream, lease));
            *self.exchange.tunnel.borrow_mut() = tunnel;
            return Relay { head, ahead: VecDeque::new(), rest: None };
        }
        Relay { head, ahead: VecDeque::new(), rest: Some(Rest { body, lease }) }
    }

    fn prepare(&self, head: &mut response::Parts, endpoint: &crate::upstream::Endpoint) {
        headers::inbound(head, endpoint, self.head.headers.get(header::HOST), self.route.inject);
    }

    /// Reads a refusal's body as far as it may be kept.
    async fn read_refusal(&self, answer: Answer) -> Refusal {
        let Answer { mut head, mut body, lease } = answer;
        self.prepare(&mut head, lease.endpoint());
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
                None => break true,
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        length += data.len();
                        ahead.push_back(data);
                    }
                    if length > REFUSAL_LIMIT {
                        break false;
                    }
                }
                Some(Err(_)) => {
                    self.exchange.answer_due.disarm();
                    self.worker.upstream_failed(lease.endpoint(), "truncated");
                    return Refusal::Broken;
                }
            }
        };
        self.exchange.answer_due.disarm();
        if !is_whole {
            return Refusal::Endless(Relay { head, ahead, rest: Some(Rest { body, lease }) });
        }
        // Servers that refuse a body often do not read it, and close. The replay must not meet that close.
        if self.body.is_empty() {
            lease.release();
        }
        Refusal::Whole(Relay { head, ahead, rest: None })
    }
}
