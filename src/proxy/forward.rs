//! One attempt: a request goes to an endpoint with one token, and its answer's head comes back.

use std::{future::poll_fn, pin::pin, task::Poll};

use http::{HeaderValue, Request, Uri, Version, header, request, response, uri};
use hyper::body::Incoming;

use super::{
    connection::Exchange,
    error::Error,
    headers::{self, Rewrite},
    metrics::{RetryOutcome, RetryReason},
    replay::{AttemptBody, RequestBody},
    worker::Worker,
};
use crate::upstream::{Lease, Turn};

/// An upstream's answer, its body not read yet.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: response::Parts,
    pub(crate) body: Incoming,
    pub(crate) lease: Lease<AttemptBody>,
}

/// Sends the request and waits for the head of its answer.
///
/// A pooled connection may have been closed by the upstream a moment ago. If nothing of the request was written, or if it
/// is idempotent and can be sent again whole, it goes out once more on a new connection.
pub(crate) async fn attempt(
    worker: &Worker,
    exchange: &Exchange,
    head: &request::Parts,
    body: &RequestBody,
    authorization: &HeaderValue,
) -> Result<Answer, Error> {
    // One turn an attempt: a connection that is reused and one that is dialled lead to the same endpoint.
    let turn = worker.upstream.turn();
    if let Some(lease) = pooled(worker, turn, head).await {
        match send(worker, exchange, lease, head, body, authorization).await {
            Ok(answer) => return Ok(answer),
            Err(Failure { error, repeatable: false }) => return Err(error),
            Err(Failure { repeatable: true, .. }) => {}
        }
        let second = Box::pin(on_new_connection(worker, turn, exchange, head, body, authorization)).await;
        let outcome = if second.is_ok() { RetryOutcome::Accepted } else { RetryOutcome::Failed };
        worker.metrics.retried(RetryReason::ConnectionLost, outcome);
        return second;
    }
    Box::pin(on_new_connection(worker, turn, exchange, head, body, authorization)).await
}

/// A connection that has served before and is not known to be closed.
///
/// A request that must not be sent twice first lets the runtime look for news from the network: a close that has arrived
/// already is then known.
async fn pooled(worker: &Worker, turn: Turn, head: &request::Parts) -> Option<Lease<AttemptBody>> {
    let mut lease = worker.upstream.reuse(turn)?;
    while !head.method.is_idempotent() {
        tokio::task::yield_now().await;
        if lease.is_open() {
            break;
        }
        lease = worker.upstream.reuse(turn)?;
    }
    Some(lease)
}

async fn on_new_connection(
    worker: &Worker,
    turn: Turn,
    exchange: &Exchange,
    head: &request::Parts,
    body: &RequestBody,
    authorization: &HeaderValue,
) -> Result<Answer, Error> {
    let lease = worker.upstream.dial(turn).await.map_err(|error| worker.upstream_unreachable(error))?;
    send(worker, exchange, lease, head, body, authorization).await.map_err(|failure| failure.error)
}

struct Failure {
    error: Error,
    /// Sending it again cannot do anything twice.
    repeatable: bool,
}

async fn send(
    worker: &Worker,
    exchange: &Exchange,
    mut lease: Lease<AttemptBody>,
    head: &request::Parts,
    body: &RequestBody,
    authorization: &HeaderValue,
) -> Result<Answer, Failure> {
    let rewrite = Rewrite {
        endpoint: lease.endpoint(),
        host: &worker.upstream.config().host,
        forwarded: worker.config.forwarded_headers,
        client: &exchange.client,
        mark: &worker.mark,
        authorization: Some(authorization),
    };
    let request = outbound(head, body, &rewrite);
    if body.is_empty() {
        exchange.client_finished(true);
    }
    let sent = {
        let mut sending = pin!(lease.send(request));
        poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready(sent) => Poll::Ready(Some(sent)),
            Poll::Pending => exchange.answer_due.poll_due(cx).map(|()| None),
        })
        .await
    };
    exchange.answer_due.disarm();
    match sent {
        Some(Ok(response)) => {
            let (head, answer) = response.into_parts();
            if !headers::is_unambiguous(&head) {
                body.end();
                worker.upstream_failed(lease.endpoint(), Error::InvalidAnswer.label());
                return Err(Failure { error: Error::InvalidAnswer, repeatable: false });
            }
            body.answered();
            Ok(Answer { head, body: answer, lease })
        }
        Some(Err(mut failed)) => {
            let unwritten = failed.take_message().is_some();
            let whole = head.method.is_idempotent() && body.can_repeat();
            let error = classify(&failed.into_error(), body);
            let repeatable = unwritten || whole && matches!(error, Error::BrokenOff);
            if !repeatable || !lease.is_reused() {
                body.end();
                worker.upstream_failed(lease.endpoint(), error.label());
            }
            Err(Failure { error, repeatable })
        }
        None => {
            body.end();
            worker.upstream_failed(lease.endpoint(), Error::ResponseTimeout.label());
            Err(Failure { error: Error::ResponseTimeout, repeatable: false })
        }
    }
}

fn classify(error: &hyper::Error, body: &RequestBody) -> Error {
    if body.has_failed() {
        Error::ClientBody
    } else if error.is_parse() {
        Error::InvalidAnswer
    } else {
        Error::BrokenOff
    }
}

fn outbound(head: &request::Parts, body: &RequestBody, rewrite: &Rewrite<'_>) -> Request<AttemptBody> {
    let mut request = Request::new(body.attempt());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = origin_form(&head.uri);
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers::outbound(head, rewrite);
    if body.is_chunked() {
        // Without it, hyper sends no body at all with methods that usually have none.
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    request
}

/// The target without scheme and authority: where a request goes is not for the request to say.
fn origin_form(target: &Uri) -> Uri {
    if target.authority().is_none() {
        return target.clone();
    }
    let mut parts = uri::Parts::default();
    parts.path_and_query = target.path_and_query().cloned();
    Uri::from_parts(parts).unwrap_or_default()
}
