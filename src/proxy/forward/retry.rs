//! Responses that reject the token: the request is sent once more with a newer token, or the client
//! gets the rejection.

use std::rc::Rc;

use http::{Method, StatusCode};
use hyper::body::{Body as _, Frame};

use crate::{
    proxy::{
        error::Error,
        exchange::request_body::AttemptBody,
        forward::{
            attempt::{RequestContext, UpstreamResponse},
            response::{ClientResponse, READ_AHEAD_LIMIT, ReadAhead},
        },
        message::{
            json_body,
            judge::{Exhausted, Verdict, judge, may_replay, reports_failure},
            urls::BodyRewrite,
        },
        metrics::{RetryOutcome, RetryReason},
        token_source::{LocalToken, Rejection, TokenSource},
    },
    upstream::Lease,
};

/// A response that rejects the token.
pub(crate) enum AuthFailure {
    /// By its status.
    Unread(UpstreamResponse),
    /// By its JSON body, which has been read.
    Read(Box<ClientResponse>, Lease<AttemptBody>),
}

impl AuthFailure {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unread(response) => response.head.status,
            Self::Read(response, _) => response.head.status,
        }
    }
}

/// A response that rejects the token, read before the replay.
enum ReadFailure {
    /// What the client gets if the replay does not succeed; `None`: 502, since the connection broke
    /// before the end of the response.
    Fallback(Option<ClientResponse>),
    /// It is too large to keep: it can only be relayed, and its attempt continues.
    TooLarge(ClientResponse),
}

/// Whether a response with this status shows that the upstream accepts the token.
pub(crate) fn is_proof(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}

impl RequestContext<'_> {
    /// The verdict on a response's head.
    pub(crate) fn judge(&self, response: &UpstreamResponse) -> Verdict {
        judge(
            response.head.status,
            &response.head.headers,
            &self.view.config().retry,
        )
    }

    /// Whether a response of another status may reject the token in a JSON body, which then is read
    /// before the client gets any of it.
    pub(crate) fn may_reject_in_json(&self, response: &UpstreamResponse) -> bool {
        if self.view.config().retry.json.is_none()
            || self.head.method == Method::HEAD
            || response.is_empty()
        {
            return false;
        }
        let head = &response.head;
        if !head.status.is_success() || !response.is_json() {
            return false;
        }
        let is_encoded = json_body::is_encoded(&head.headers);
        if is_encoded && !self.route.is_rewritten {
            self.worker.metrics.body_rewritten(BodyRewrite::Encoded);
        }
        !is_encoded
            && response
                .body
                .size_hint()
                .exact()
                .is_none_or(|length| length <= READ_AHEAD_LIMIT as u64)
    }

    /// Reads a response that [may reject the token](Self::may_reject_in_json). If it does, the
    /// request is replayed.
    pub(crate) async fn judge_json(
        &self,
        response: UpstreamResponse,
        source: &TokenSource,
        token: &LocalToken,
    ) -> Result<ClientResponse, Error> {
        match self.read_ahead(response).await {
            ReadAhead::Complete(response, lease) if self.is_rejected_in_json(&response) => {
                self.replay(AuthFailure::Read(Box::new(response), lease), source, token)
                    .await
            }
            ReadAhead::Complete(response, lease) => {
                token.accepted();
                lease.release();
                Ok(response)
            }
            ReadAhead::TooLarge(response) => {
                token.accepted();
                Ok(response)
            }
            ReadAhead::Truncated => Err(Error::ConnectionClosed),
        }
    }

    fn is_rejected_in_json(&self, response: &ClientResponse) -> bool {
        let body: Vec<u8> = response
            .buffered
            .iter()
            .filter_map(Frame::data_ref)
            .flatten()
            .copied()
            .collect();
        self.view
            .config()
            .retry
            .json
            .as_ref()
            .is_some_and(|json| reports_failure(&body, json))
    }

    /// The upstream rejected the token: sends the request once more with a newer one. If that is
    /// not possible or does not help, the client gets the rejection.
    pub(crate) async fn replay(
        &self,
        failure: AuthFailure,
        source: &TokenSource,
        token: &LocalToken,
    ) -> Result<ClientResponse, Error> {
        let rejection = source.rejected(token);
        if !self.is_replayable(&failure) {
            return self.exhausted(RetryOutcome::BodyNotKept, self.relay_failure(failure));
        }
        let fallback = match self.read_failure(failure).await {
            ReadFailure::Fallback(fallback) => fallback,
            ReadFailure::TooLarge(response) => {
                return self.exhausted(RetryOutcome::BodyNotKept, response);
            }
        };
        let newer = match newer_token(rejection, source, token).await {
            Ok(newer) => newer,
            Err(outcome) => return self.fall_back(outcome, fallback),
        };
        match self.attempt(Some(newer.header())).await {
            Ok(second) => self.conclude(second, &newer).await,
            Err(error) => {
                self.worker.rejected(self.view, &error, self.exchange);
                self.fall_back(RetryOutcome::Failed, fallback)
            }
        }
    }

    fn is_replayable(&self, failure: &AuthFailure) -> bool {
        let retry = &self.view.config().retry;
        may_replay(failure.status(), &self.head.method, retry) && self.body.can_replay()
    }

    fn relay_failure(&self, failure: AuthFailure) -> ClientResponse {
        match failure {
            AuthFailure::Unread(response) => self.relay(response),
            AuthFailure::Read(response, lease) => {
                lease.release();
                *response
            }
        }
    }

    /// Reads the rejection to its end and then ends its attempt, in this order: ending the attempt
    /// can close its connection, and with it the rest of the response.
    async fn read_failure(&self, failure: AuthFailure) -> ReadFailure {
        self.body.park();
        let read = match failure {
            AuthFailure::Unread(response) => self.read_ahead(response).await,
            AuthFailure::Read(response, lease) => ReadAhead::Complete(*response, lease),
        };
        match read {
            ReadAhead::Complete(response, lease) => {
                if self.body.end_rejected_attempt() {
                    lease.release();
                }
                ReadFailure::Fallback(Some(response))
            }
            ReadAhead::TooLarge(response) => {
                self.body.unpark();
                ReadFailure::TooLarge(response)
            }
            ReadAhead::Truncated => {
                self.body.end_attempt();
                ReadFailure::Fallback(None)
            }
        }
    }

    /// Judges the response to the second attempt, and reports the verdict on its token.
    async fn conclude(
        &self,
        second: UpstreamResponse,
        token: &LocalToken,
    ) -> Result<ClientResponse, Error> {
        let is_proof = is_proof(second.head.status);
        let (verdict, second) = self.judge_and_relay(second).await?;
        match verdict {
            Verdict::AuthorizationFailure => {
                token.replay_rejected();
                self.exhausted(RetryOutcome::Rejected, second)
            }
            Verdict::Relay => {
                token.replay_accepted();
                if is_proof {
                    token.accepted();
                }
                self.count_replay(RetryOutcome::Accepted);
                Ok(second)
            }
        }
    }

    /// The verdict on a response, by its head or its JSON body, and the response for the client.
    async fn judge_and_relay(
        &self,
        response: UpstreamResponse,
    ) -> Result<(Verdict, ClientResponse), Error> {
        let verdict = self.judge(&response);
        if verdict == Verdict::AuthorizationFailure || !self.may_reject_in_json(&response) {
            return Ok((verdict, self.relay(response)));
        }
        match self.read_ahead(response).await {
            ReadAhead::Complete(response, lease) => {
                lease.release();
                let verdict = if self.is_rejected_in_json(&response) {
                    Verdict::AuthorizationFailure
                } else {
                    Verdict::Relay
                };
                Ok((verdict, response))
            }
            ReadAhead::TooLarge(response) => Ok((Verdict::Relay, response)),
            ReadAhead::Truncated => Err(Error::ConnectionClosed),
        }
    }

    fn fall_back(
        &self,
        outcome: RetryOutcome,
        fallback: Option<ClientResponse>,
    ) -> Result<ClientResponse, Error> {
        match fallback {
            Some(response) => self.exhausted(outcome, response),
            None => Err(Error::ConnectionClosed),
        }
    }

    /// The client gets the rejection, or 502 if `retry.exhausted` says so.
    fn exhausted(
        &self,
        outcome: RetryOutcome,
        rejection: ClientResponse,
    ) -> Result<ClientResponse, Error> {
        self.count_replay(outcome);
        match self.view.config().retry.exhausted {
            None | Some(Exhausted::Relay) => Ok(rejection),
            Some(Exhausted::BadGateway) => Err(Error::TokenRejected),
        }
    }

    fn count_replay(&self, outcome: RetryOutcome) {
        self.worker
            .metrics
            .retried(RetryReason::Unauthorized, outcome);
    }
}

/// A newer token than the rejected one; waits for it while it is being fetched.
///
/// # Errors
/// Why there is none.
async fn newer_token(
    rejection: Rejection,
    source: &TokenSource,
    rejected: &LocalToken,
) -> Result<Rc<LocalToken>, RetryOutcome> {
    match rejection {
        Rejection::Newer(token) => Ok(token),
        Rejection::Futile => Err(RetryOutcome::Cooldown),
        Rejection::Refreshing => source
            .newer_than(Some(rejected.version()))
            .await
            .ok_or(RetryOutcome::NoNewerToken),
    }
}
