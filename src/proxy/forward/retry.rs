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
            attempt::{Answer, Passage},
            response::{READ_AHEAD_LIMIT, ReadAhead, Relay},
        },
        message::{
            judge::{Verdict, judge, may_repeat, refuses},
            urls as rewrite,
            urls::Treatment,
        },
        metrics::{RetryOutcome, RetryReason},
        worker::Carried,
    },
    token::Rejection,
    upstream::Lease,
};

/// An answer that refuses the token.
pub(crate) enum Refusal {
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

/// Whether an answer shows that the token is good.
pub(crate) fn is_proof(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}

impl Passage<'_> {
    /// An answer that may be a refusal under a status that is none: it is read before the client sees any of it.
    pub(crate) async fn judge_json(&self, answer: Answer, token: &Carried) -> Result<Relay, Error> {
        match self.read_ahead(answer).await {
            ReadAhead::Whole(relay, lease) if self.is_refusal_in_json(&relay.ahead) => {
                self.replay(Refusal::Read(Box::new(relay), lease), token)
                    .await
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

    /// Whether an answer's body could say what its status does not.
    pub(crate) fn may_refuse_in_json(&self, answer: &Answer) -> bool {
        if self.worker.config.retry.json.is_none()
            || self.head.method == Method::HEAD
            || answer.body.is_end_stream()
        {
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
        !is_coded
            && answer
                .body
                .size_hint()
                .exact()
                .is_none_or(|length| length <= READ_AHEAD_LIMIT as u64)
    }

    fn is_refusal_in_json(&self, read: &VecDeque<Frame<Bytes>>) -> bool {
        let whole: Vec<u8> = read
            .iter()
            .filter_map(Frame::data_ref)
            .flatten()
            .copied()
            .collect();
        self.worker
            .config
            .retry
            .json
            .as_ref()
            .is_some_and(|json| refuses(&whole, json))
    }

    /// The token was refused: send the request again under a newer one, once; or else pass the refusal on.
    pub(crate) async fn replay(&self, refusal: Refusal, refused: &Carried) -> Result<Relay, Error> {
        let rejection = self.worker.credential.rejected(refused.version());
        let repeatable = may_repeat(
            refusal.status(),
            &self.head.method,
            &self.worker.config.retry,
        );
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
                match self
                    .worker
                    .credential
                    .newer_than(Some(refused.version()), self.worker.token_wait)
                    .await
                {
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
        self.worker
            .metrics
            .retried(RetryReason::Unauthorized, RetryOutcome::Accepted);
        Ok(second)
    }

    /// What its head says of the token.
    pub(crate) fn judge(&self, answer: &Answer) -> Verdict {
        judge(
            answer.head.status,
            &answer.head.headers,
            &self.worker.config.retry,
        )
    }

    /// The refusal is the answer, unless the operator does not want apps to see it.
    fn exhausted(&self, outcome: RetryOutcome, refusal: Relay) -> Result<Relay, Error> {
        self.worker
            .metrics
            .retried(RetryReason::Unauthorized, outcome);
        match self.worker.config.retry.exhausted {
            None | Some(Exhausted::Relay) => Ok(refusal),
            Some(Exhausted::BadGateway) => Err(Error::Refused),
        }
    }
}
