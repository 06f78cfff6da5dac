//! Responses that reject the token: the request is sent again with a newer token, or with the same
//! one over another connection, or the client gets the rejection.

use std::{pin::pin, time::Duration};

use http::{Method, StatusCode};
use hyper::body::{Body as _, Frame};
use tokio::time::timeout;

use crate::{
    proxy::{
        error::Error,
        forward::{
            attempt::{RequestContext, UpstreamResponse, Way},
            rejected::{AuthFailure, RejectedResponse},
            response::{ClientResponse, READ_AHEAD_LIMIT, ReadAhead},
        },
        message::{
            json_body,
            judge::{Exhausted, Verdict, judge, may_replay, reports_failure},
            methods,
            urls::BodyRewrite,
        },
        metrics::{RetryOutcome, RetryReason},
        token_source::{LocalToken, Replacement, TokenSource},
    },
    token::{RejectedRequest, RequestKey, Verification},
    upstream::{AddressId, Reason, Visited},
};

/// How long a request waits for the response to its verification, if it can be sent once more: a
/// refresh is then the faster way to find out.
const VERIFICATION_LIMIT: Duration = Duration::from_secs(3);

/// The verdict on a response, and the response.
enum Judged {
    Rejected(AuthFailure),
    /// The token was accepted, or the response says nothing about it.
    Relayed(ClientResponse),
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
        match self.judge_body(response).await? {
            Judged::Rejected(failure) => self.replay(failure, source, token).await,
            Judged::Relayed(response) => {
                self.accepted(source, token);
                Ok(response)
            }
        }
    }

    async fn judge_body(&self, response: UpstreamResponse) -> Result<Judged, Error> {
        match self.read_ahead(response).await {
            ReadAhead::Complete(response, lease) if self.is_rejected_in_json(&response) => Ok(
                Judged::Rejected(AuthFailure::Read(Box::new(response), lease)),
            ),
            ReadAhead::Complete(response, lease) => {
                lease.release();
                Ok(Judged::Relayed(response))
            }
            ReadAhead::TooLarge(response) => Ok(Judged::Relayed(response)),
            ReadAhead::Truncated { endpoint } => Err(Error::ConnectionClosed { endpoint }),
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

    /// The upstream rejected the token: sends the request again as the credential says. If that is
    /// not possible or does not help, the client gets the rejection.
    pub(crate) async fn replay(
        &self,
        failure: AuthFailure,
        source: &TokenSource,
        token: &LocalToken,
    ) -> Result<ClientResponse, Error> {
        if !self.is_replayable(&failure) {
            return self.relay_unrepeatable(failure, source, token);
        }
        let mut request = RejectedRequest::new(token.version(), self.key(source));
        let mut rejected = RejectedResponse::new(*self, failure);
        loop {
            let replacement = rejected.read_during(source.replacement(&mut request)).await;
            let verification = match replacement {
                Replacement::Newer(newer) => {
                    rejected.read_briefly().await;
                    rejected.release();
                    return self
                        .replay_with(&newer, rejected, source, request.key())
                        .await;
                }
                Replacement::Verify(verification) => verification,
                Replacement::Futile => return self.fall_back(RetryOutcome::Cooldown, rejected),
                Replacement::Late => return self.fall_back(RetryOutcome::NoNewerToken, rejected),
            };
            rejected.read_briefly().await;
            match self.verify(verification, &rejected, token).await? {
                None => {}
                Some(Judged::Relayed(response)) => {
                    if is_proof(response.head.status) {
                        rejected.retire();
                    }
                    self.accepted_if_proof(&response, source, token);
                    return Ok(response);
                }
                Some(Judged::Rejected(again)) => {
                    rejected.release();
                    if !self.is_replayable(&again) {
                        return self.relay_unrepeatable(again, source, token);
                    }
                    rejected = RejectedResponse::new(*self, again);
                }
            }
        }
    }

    /// Leads to another address than this one; where a client's requests stay at its address, to any:
    /// its uploads may depend on it.
    fn other_than(&self, address: AddressId) -> Visited {
        match self.affinity() {
            None => Visited::new(address),
            Some(_) => Visited::default(),
        }
    }

    fn is_replayable(&self, failure: &AuthFailure) -> bool {
        let retry = &self.view.config().retry;
        may_replay(failure.status(), &self.head.method, retry) && self.body.can_replay()
    }

    /// The rejection of a request that cannot be sent again. It counts for the requests that can:
    /// the token is refreshed.
    fn relay_unrepeatable(
        &self,
        failure: AuthFailure,
        source: &TokenSource,
        token: &LocalToken,
    ) -> Result<ClientResponse, Error> {
        source.rejected(token);
        self.exhausted(RetryOutcome::BodyNotKept, self.relay_failure(failure))
    }

    /// Sends the request again with the same token, over another connection. `None` if there was no
    /// other connection, or if it broke off or did not respond in [`VERIFICATION_LIMIT`] and the
    /// request can be repeated.
    ///
    /// # Errors
    /// That of the attempt: the request may have been applied.
    async fn verify(
        &self,
        verification: Verification,
        rejected: &RejectedResponse<'_>,
        token: &LocalToken,
    ) -> Result<Option<Judged>, Error> {
        let visited = self.other_than(rejected.address());
        let way = Way {
            // A load balancer may connect a new connection to another server.
            is_alone: visited == Visited::default() || !self.upstream().has_several(),
            visited,
            ..Way::default()
        };
        let attempt = self.attempt_over(way, Some(token.header()));
        let mut attempt = pin!(attempt);
        let attempted = match timeout(VERIFICATION_LIMIT, &mut attempt).await {
            Ok(attempted) => attempted,
            Err(_) if self.is_repeatable() => {
                self.count(RetryReason::OtherConnection, RetryOutcome::Failed);
                return Ok(None);
            }
            Err(_) => attempt.await,
        };
        let (judged, address) = match attempted {
            Ok(second) => {
                let address = second.lease.address();
                (self.judge_whole(second).await, Some(address))
            }
            Err(error) => (Err(error), None),
        };
        let is_elsewhere = address.is_some_and(|address| address != rejected.address());
        let outcome = match &judged {
            Ok(Judged::Rejected(_)) => {
                verification.rejected(is_elsewhere);
                RetryOutcome::Rejected
            }
            Ok(Judged::Relayed(response)) => {
                // A server checks the token before it says that a file was not modified or found.
                if !response.head.status.is_server_error() {
                    verification.accepted();
                    if is_elsewhere {
                        self.upstream()
                            .failed(rejected.address(), Reason::TokenRefused);
                    }
                }
                RetryOutcome::Accepted
            }
            Err(_) => RetryOutcome::Failed,
        };
        self.count(RetryReason::OtherConnection, outcome);
        match judged {
            Err(error) if self.is_harmless(&error) => Ok(None),
            judged => judged.map(Some),
        }
    }

    /// Whether the request can be sent again though it may have been applied.
    fn is_repeatable(&self) -> bool {
        methods::is_idempotent(&self.head.method) && self.body.can_replay()
    }

    /// Whether a failed attempt can be followed by another one.
    fn is_harmless(&self, error: &Error) -> bool {
        match error {
            Error::Connect(_) => true,
            Error::ConnectionClosed { .. }
            | Error::ResponseTimeout { .. }
            | Error::InvalidResponse { .. } => self.is_repeatable(),
            _ => false,
        }
    }

    /// Sends the request again with a newer token. From then on the first response says nothing
    /// about whether the request was applied, so the client gets the outcome of this attempt.
    async fn replay_with(
        &self,
        newer: &LocalToken,
        rejected: RejectedResponse<'_>,
        source: &TokenSource,
        key: RequestKey,
    ) -> Result<ClientResponse, Error> {
        let way = Way {
            visited: self.other_than(rejected.address()),
            ..Way::default()
        };
        let judged = match self.attempt_over(way, Some(newer.header())).await {
            Ok(second) => self.judge_whole(second).await,
            // Nothing was sent.
            Err(error @ Error::Connect(_)) => {
                self.worker
                    .rejected(self.view, &error, self.exchange, self.client);
                return self.fall_back(RetryOutcome::Failed, rejected);
            }
            Err(error) => Err(error),
        };
        match judged {
            Ok(Judged::Rejected(failure)) => {
                source.replay_rejected(newer, key);
                let response = self.relay_failure(failure);
                self.exhausted(RetryOutcome::Rejected, response)
            }
            Ok(Judged::Relayed(response)) => {
                self.count(RetryReason::Unauthorized, RetryOutcome::Accepted);
                self.accepted_if_proof(&response, source, newer);
                Ok(response)
            }
            Err(error) => {
                self.count(RetryReason::Unauthorized, RetryOutcome::Failed);
                Err(error)
            }
        }
    }

    /// The verdict on a response, by its head or by its JSON body.
    async fn judge_whole(&self, response: UpstreamResponse) -> Result<Judged, Error> {
        if self.judge(&response) == Verdict::AuthorizationFailure {
            Ok(Judged::Rejected(AuthFailure::Unread(response)))
        } else if self.may_reject_in_json(&response) {
            self.judge_body(response).await
        } else {
            Ok(Judged::Relayed(self.relay(response)))
        }
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

    fn accepted_if_proof(
        &self,
        response: &ClientResponse,
        source: &TokenSource,
        token: &LocalToken,
    ) {
        if is_proof(response.head.status) {
            self.accepted(source, token);
        }
    }

    /// Reports that the upstream accepted the token.
    pub(crate) fn accepted(&self, source: &TokenSource, token: &LocalToken) {
        if token.needs_proof() {
            source.accepted(token, self.key(source));
        }
    }

    /// What requests have in common that an upstream most likely treats alike.
    fn key(&self, source: &TokenSource) -> RequestKey {
        let client = self.exchange.caller.get().map(|caller| caller.client);
        let (method, path) = (&self.head.method, self.head.uri.path());
        source.key((self.route.position, client, method.is_safe(), path))
    }

    fn fall_back(
        &self,
        outcome: RetryOutcome,
        rejected: RejectedResponse<'_>,
    ) -> Result<ClientResponse, Error> {
        self.exhausted(outcome, rejected.relay()?)
    }

    /// The client gets the rejection, or 502 if `retry.exhausted` says so.
    fn exhausted(
        &self,
        outcome: RetryOutcome,
        rejection: ClientResponse,
    ) -> Result<ClientResponse, Error> {
        self.count(RetryReason::Unauthorized, outcome);
        match self.view.config().retry.exhausted {
            None | Some(Exhausted::Relay) => Ok(rejection),
            Some(Exhausted::BadGateway) => Err(Error::TokenRejected),
        }
    }

    fn count(&self, reason: RetryReason, outcome: RetryOutcome) {
        self.worker.metrics.retried(reason, outcome);
    }
}
