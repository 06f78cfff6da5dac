//! Answers that refuse the token: the request goes out once more under a newer one, or the refusal is what the client gets.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::body::{Body as _, Frame};

use crate::{
    proxy::{
        Exhausted,
        error::Error,
        exchange::request_body::AttemptBody,
        forward::{
            attempt::{RequestContext, UpstreamResponse},
            response::{ClientResponse, READ_AHEAD_LIMIT, ReadAhead},
        },
        message::{
            judge::{Verdict, judge, may_replay, reports_failure},
            urls as rewrite,
            urls::BodyRewrite,
        },
        metrics::{RetryOutcome, RetryReason},
        token_source::{LocalToken, Rejection, TokenSource},
    },
    upstream::Lease,
};

/// An answer that reports_failure the token.
pub(crate) enum AuthFailure {
    /// As its status says.
    Unread(UpstreamResponse),
    /// As its JSON says.
    Read(Box<ClientResponse>, Lease<AttemptBody>),
}

impl AuthFailure {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unread(answer) => answer.head.status,
            Self::Read(relay, _) => relay.head.status,
        }
    }
}

/// Whether an answer shows that the token is good.
pub(crate) fn is_proof(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}

impl RequestContext<'_> {
    /// An answer that may be a refusal under a status that is none: it is read before the client sees any of it.
    pub(crate) async fn judge_json(
        &self,
        answer: UpstreamResponse,
        source: &TokenSource,
        token: &LocalToken,
    ) -> Result<ClientResponse, Error> {
        match self.read_ahead(answer).await {
            ReadAhead::Whole(relay, lease) if self.is_rejected_in_json(&relay.ahead) => {
                self.replay(AuthFailure::Read(Box::new(relay), lease), source, token)
                    .await
            }
            ReadAhead::Whole(relay, lease) => {
                token.accepted();
                lease.release();
                Ok(relay)
            }
            ReadAhead::TooLarge(relay) => {
                token.accepted();
                Ok(relay)
            }
            ReadAhead::Broken => Err(Error::ConnectionClosed),
        }
    }

    /// Whether an answer's body could say what its status does not.
    pub(crate) fn may_reject_in_json(&self, answer: &UpstreamResponse) -> bool {
        if self.view.config().retry.json.is_none()
            || self.head.method == Method::HEAD
            || answer.body.is_end_stream()
        {
            return false;
        }
        let head = &answer.head;
        if !head.status.is_success() || !rewrite::is_json(&head.headers) {
            return false;
        }
        let is_encoded = rewrite::is_encoded(&head.headers);
        if is_encoded && !self.route.is_rewritten {
            self.worker.metrics.body_rewritten(BodyRewrite::Encoded);
        }
        !is_encoded
            && answer
                .body
                .size_hint()
                .exact()
                .is_none_or(|length| length <= READ_AHEAD_LIMIT as u64)
    }

    fn is_rejected_in_json(&self, read: &VecDeque<Frame<Bytes>>) -> bool {
        let whole: Vec<u8> = read
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
            .is_some_and(|json| reports_failure(&whole, json))
    }

    /// The token was refused: send the request again under a newer one, once; or else pass the refusal on.
    pub(crate) async fn replay(
        &self,
        refusal: AuthFailure,
        source: &TokenSource,
        refused: &LocalToken,
    ) -> Result<ClientResponse, Error> {
        let rejection = source.rejected(refused);
        let repeatable = may_replay(
            refusal.status(),
            &self.head.method,
            &self.view.config().retry,
        );
        if !repeatable || !self.body.can_replay() {
            let refusal = match refusal {
                AuthFailure::Unread(answer) => self.relay(answer),
                AuthFailure::Read(relay, lease) => {
                    lease.release();
                    *relay
                }
            };
            return self.exhausted(RetryOutcome::BodyNotKept, refusal);
        }
        // The refusal is read first: an attempt that is ended may take its connection, and the refusal, with it.
        self.body.park();
        let read = match refusal {
            AuthFailure::Unread(answer) => self.read_ahead(answer).await,
            AuthFailure::Read(relay, lease) => ReadAhead::Whole(*relay, lease),
        };
        let refusal = match read {
            ReadAhead::Whole(refusal, lease) => {
                if self.body.end_rejected_attempt() {
                    lease.release();
                }
                Some(refusal)
            }
            ReadAhead::TooLarge(refusal) => {
                self.body.unpark();
                return self.exhausted(RetryOutcome::BodyNotKept, refusal);
            }
            ReadAhead::Broken => {
                self.body.end_attempt();
                None
            }
        };
        let exhausted = |outcome| match refusal {
            Some(refusal) => self.exhausted(outcome, refusal),
            None => Err(Error::ConnectionClosed),
        };
        let token = match rejection {
            Rejection::Newer(token) => token,
            Rejection::Futile => return exhausted(RetryOutcome::Cooldown),
            Rejection::Refreshing => match source.newer_than(Some(refused.version())).await {
                Some(token) => token,
                None => return exhausted(RetryOutcome::NoNewerToken),
            },
        };
        let second = match self.attempt(Some(token.header())).await {
            Ok(second) => second,
            Err(error) => {
                self.worker.rejected(self.view, &error, self.exchange);
                return exhausted(RetryOutcome::Failed);
            }
        };
        let mut is_refused = self.judge(&second) == Verdict::AuthorizationFailure;
        let is_proof = is_proof(second.head.status);
        let second = if !is_refused && self.may_reject_in_json(&second) {
            match self.read_ahead(second).await {
                ReadAhead::Whole(relay, lease) => {
                    is_refused = self.is_rejected_in_json(&relay.ahead);
                    lease.release();
                    relay
                }
                ReadAhead::TooLarge(relay) => relay,
                ReadAhead::Broken => return Err(Error::ConnectionClosed),
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
        self.worker
            .metrics
            .retried(RetryReason::Unauthorized, RetryOutcome::Accepted);
        Ok(second)
    }

    /// What its head says of the token.
    pub(crate) fn judge(&self, answer: &UpstreamResponse) -> Verdict {
        judge(
            answer.head.status,
            &answer.head.headers,
            &self.view.config().retry,
        )
    }

    /// The refusal is the answer, unless the operator does not want apps to see it.
    fn exhausted(
        &self,
        outcome: RetryOutcome,
        refusal: ClientResponse,
    ) -> Result<ClientResponse, Error> {
        self.worker
            .metrics
            .retried(RetryReason::Unauthorized, outcome);
        match self.view.config().retry.exhausted {
            None | Some(Exhausted::Relay) => Ok(refusal),
            Some(Exhausted::BadGateway) => Err(Error::TokenRejected),
        }
    }
}
