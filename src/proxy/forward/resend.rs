//! Requests that are sent again at once: which, where, and how often. The client does not notice.
//!
//! | what happened | what follows |
//! |---|---|
//! | no connection | the next address is dialled (`upstream::dial`) |
//! | nothing was written on a pooled connection, or the upstream did not process the request | sent again, any method |
//! | the connection closed before any byte of the response | sent again if the method is idempotent and the body can be repeated, within the budget; without it if the connection may have been closed while it was idle |
//! | a status in `upstream.retry_statuses` | GET, HEAD, OPTIONS, if another address is in, within the budget |
//! | no response in time, or the head has come | never |

use http::{HeaderValue, Method};

use crate::proxy::{
    error::Error,
    forward::attempt::{RequestContext, Resend, SendBody, SendError, UpstreamResponse, Way},
    message::judge::Verdict,
    metrics::{RetryOutcome, RetryReason},
};

/// How often a request is sent again, the replay with a newer token not included.
const MAX_RETRIES: u32 = 2;

impl RequestContext<'_> {
    /// Whether another address may have a better response.
    pub(super) fn is_unavailable(&self, response: &UpstreamResponse) -> bool {
        let status = response.head.status;
        status.is_server_error()
            && matches!(
                self.head.method,
                Method::GET | Method::HEAD | Method::OPTIONS
            )
            && self.body.is_empty()
            && self.upstream().config().retry_statuses.contains(&status)
            && !(self.route.credential.is_some()
                && self.judge(response) == Verdict::AuthorizationFailure)
    }

    /// Sends the request again as long as the outcome of the last attempt allows.
    pub(super) async fn attempt_again(
        &self,
        outcome: Result<UpstreamResponse, SendError>,
        way: &mut Way,
        send_body: SendBody,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        let mut outcome = match outcome {
            Ok(response) => self.with_start(response).await,
            Err(error) => Err(error),
        };
        while way.retries < MAX_RETRIES {
            way.retries += 1;
            outcome = match outcome {
                Ok(response) if self.is_unavailable(&response) => {
                    let again = self.elsewhere(response, way, send_body, authorization);
                    match again.await {
                        Ok(second) => Ok(second),
                        Err(first) => return Ok(*first),
                    }
                }
                Ok(response) => return Ok(response),
                Err(SendError {
                    error,
                    resend: Some(resend),
                }) => {
                    if !resend.is_free && !self.upstream().may_retry() {
                        self.count_retry(
                            RetryReason::ConnectionLost,
                            RetryOutcome::BudgetExhausted,
                        );
                        return Err(self.given_up(error, &resend));
                    }
                    let again = self
                        .after_loss(&resend, way, send_body, authorization)
                        .await;
                    let is_accepted = again.is_ok();
                    self.count_retry(RetryReason::ConnectionLost, outcome_of(is_accepted));
                    again
                }
                Err(SendError {
                    error,
                    resend: None,
                }) => return Err(error),
            };
        }
        outcome.map_err(|SendError { error, resend }| match resend {
            Some(resend) => self.given_up(error, &resend),
            None => error,
        })
    }

    /// Sends the request to another address, after one that cannot serve it.
    ///
    /// # Errors
    /// Returns the response if there is no other address, or if that fails.
    async fn elsewhere(
        &self,
        response: UpstreamResponse,
        way: &mut Way,
        send_body: SendBody,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Box<UpstreamResponse>> {
        way.visited.add(response.lease.address());
        let Some(place) = self.upstream().other_place(&way.visited, self.affinity()) else {
            return Err(Box::new(response));
        };
        if !self.upstream().may_retry() {
            self.count_retry(RetryReason::Status, RetryOutcome::BudgetExhausted);
            return Err(Box::new(response));
        }
        let second = match self.connect_to(place, way).await {
            Ok(lease) => self
                .send_for_json(lease, send_body, authorization)
                .await
                .ok(),
            Err(_) => None,
        };
        let is_accepted = second
            .as_ref()
            .is_some_and(|second| !self.is_unavailable(second));
        self.count_retry(RetryReason::Status, outcome_of(is_accepted));
        match second {
            Some(second) => {
                response.discard();
                Ok(second)
            }
            None => Err(Box::new(response)),
        }
    }

    /// Sends a request again whose connection was lost.
    async fn after_loss(
        &self,
        resend: &Resend,
        way: &mut Way,
        send_body: SendBody,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, SendError> {
        // A connection that was closed while it was idle is no reason to leave a client's own address.
        if !(resend.is_free && self.affinity().is_some()) {
            way.visited.add(resend.address);
        }
        way.lost = Some(resend.address);
        let lease = self.connect(way).await?;
        self.send_for_json(lease, send_body, authorization).await
    }

    /// The error of a request that could be sent again, and is not.
    fn given_up(&self, error: Error, resend: &Resend) -> Error {
        self.body.end_attempt();
        if let Some(failure) = error.upstream_failure() {
            resend.counters.failures[failure].add(1);
        }
        error
    }

    fn count_retry(&self, reason: RetryReason, outcome: RetryOutcome) {
        self.worker.metrics.retried(reason, outcome);
    }
}

fn outcome_of(is_accepted: bool) -> RetryOutcome {
    if is_accepted {
        RetryOutcome::Accepted
    } else {
        RetryOutcome::Failed
    }
}
