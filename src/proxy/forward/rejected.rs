//! A response that rejects the token, kept while the request is sent again.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;

use crate::{
    proxy::{
        error::Error,
        exchange::request_body::AttemptBody,
        forward::{
            attempt::{RequestContext, UpstreamResponse},
            response::{ClientResponse, READ_AHEAD_LIMIT},
            response_body::{UpstreamBody, is_truncated},
        },
        message::headers,
    },
    upstream::{AddressId, Failure, Lease},
};

/// How long the next attempt waits for the rest of the rejection's body, so that its connection can
/// be used again: most bodies arrive with the head.
const BODY_TIME: Duration = Duration::from_millis(50);

/// A response that rejects the token.
pub(crate) enum AuthFailure {
    /// By its status.
    Unread(UpstreamResponse),
    /// By its JSON body, which has been read.
    Read(Box<ClientResponse>, Lease<AttemptBody>),
}

impl AuthFailure {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Unread(response) => response.head.status,
            Self::Read(response, _) => response.head.status,
        }
    }

    fn lease(&self) -> &Lease<AttemptBody> {
        match self {
            Self::Unread(response) => &response.lease,
            Self::Read(_, lease) => lease,
        }
    }
}

/// A response that rejects the token, in case that it is what the client gets. Its body is read
/// only as far as that costs no time: unread, it holds its connection, which then closes.
pub(crate) struct RejectedResponse<'a> {
    context: RequestContext<'a>,
    response: ClientResponse,
    /// Of a response that was read to its end: the connection can be used again.
    lease: Option<Lease<AttemptBody>>,
    /// How much of the body has been read.
    length: usize,
    /// The endpoint, if the response broke off before its end.
    truncated_by: Option<String>,
    /// The address that sent it.
    address: AddressId,
}

impl<'a> RejectedResponse<'a> {
    /// Keeps a response. The attempt's body waits, since ending it could close the connection and
    /// with it the rest of the response.
    pub(crate) fn new(context: RequestContext<'a>, failure: AuthFailure) -> Self {
        context.body.park();
        let address = failure.lease().address();
        let (response, lease) = match failure {
            AuthFailure::Unread(response) => (context.relay(response), None),
            AuthFailure::Read(response, lease) => {
                let is_reusable = context.body.end_rejected_attempt();
                (*response, is_reusable.then_some(lease))
            }
        };
        Self {
            context,
            response,
            lease,
            length: 0,
            truncated_by: None,
            address,
        }
    }

    pub(crate) fn address(&self) -> AddressId {
        self.address
    }

    /// Reads the body while `wait` runs; at its end, other requests may use the connection.
    pub(crate) async fn read_during<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let mut wait = std::pin::pin!(wait);
        let read = async {
            self.read().await;
            self.release();
        };
        tokio::select! {
            biased;
            result = &mut wait => return result,
            () = read => {}
        }
        wait.await
    }

    /// Reads what is left of the body, unless it takes time.
    pub(crate) async fn read_briefly(&mut self) {
        // What exceeds the time is dropped or relayed.
        let _ = tokio::time::timeout(BODY_TIME, self.read()).await;
    }

    /// Reads the body to its end or to the limit. Can be cancelled and called again.
    async fn read(&mut self) {
        while let Some(unread) = &mut self.response.unread {
            if self.length > READ_AHEAD_LIMIT {
                return;
            }
            match unread.body.frame().await {
                Some(Ok(mut frame)) => {
                    self.length += frame.data_ref().map_or(0, Bytes::len);
                    if let Some(trailers) = frame.trailers_mut() {
                        headers::clean_trailers(trailers, &[]);
                    }
                    self.response.buffered.push_back(frame);
                }
                None if !is_truncated(&unread.body, &unread.lease, self.context.body) => {
                    let is_reusable = self.context.body.end_rejected_attempt();
                    let unread = self.response.unread.take();
                    self.lease = unread
                        .filter(|_| is_reusable)
                        .map(|UpstreamBody { lease, .. }| lease);
                }
                None | Some(Err(_)) => {
                    let endpoint = unread.lease.endpoint().origin.clone();
                    unread.lease.count(Failure::Truncated);
                    self.context.body.end_attempt();
                    self.response.unread = None;
                    self.truncated_by = Some(endpoint);
                }
            }
        }
    }

    /// Lets other requests use the connection, if the response was read to its end.
    pub(crate) fn release(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.release();
        }
    }

    /// Lets no other request use the connection: its server rejects what others accept.
    pub(crate) fn retire(self) {
        if let Some(unread) = &self.response.unread {
            unread.lease.retire();
        }
        if let Some(lease) = &self.lease {
            lease.retire();
        }
    }

    /// The response for the client.
    ///
    /// # Errors
    /// When it broke off before its end.
    pub(crate) fn relay(mut self) -> Result<ClientResponse, Error> {
        self.release();
        if let Some(endpoint) = self.truncated_by {
            return Err(Error::ConnectionClosed { endpoint });
        }
        if self.response.unread.is_some() {
            self.context.body.unpark();
        }
        Ok(self.response)
    }
}
