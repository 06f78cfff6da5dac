//! An answer on its way from the upstream to the client.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header, response};
use http_body_util::BodyExt as _;
use hyper::body::Frame;

use crate::{
    proxy::{
        error::UpstreamFailure,
        exchange::request_body::AttemptBody,
        forward::{
            attempt::{RequestContext, UpstreamResponse},
            response_body::{UpstreamBody, is_truncated},
        },
        message::{
            headers::{self, PublicUrl},
            urls as rewrite,
            urls::BodyRewrite,
        },
    },
    upstream::{Cookies, Endpoint, Lease},
};

/// What is read of an answer before it is known what becomes of it; a larger one is passed on instead.
pub(crate) const READ_AHEAD_LIMIT: usize = 64 * 1024;

/// An answer, ready for the client.
pub(crate) struct ClientResponse {
    pub(crate) head: response::Parts,
    pub(crate) ahead: VecDeque<Frame<Bytes>>,
    pub(crate) rest: Option<UpstreamBody>,
    pub(crate) rewriter: Option<rewrite::JsonRewriter>,
}

impl ClientResponse {
    /// An answer without a body.
    pub(crate) fn of_head(head: response::Parts) -> Self {
        Self {
            head,
            ahead: VecDeque::new(),
            rest: None,
            rewriter: None,
        }
    }
}

/// How far an answer was read.
pub(crate) enum ReadAhead {
    /// To its end; the connection is free.
    Whole(ClientResponse, Lease<AttemptBody>),
    /// It is too large, or too slow, to be kept: it can only be passed on.
    TooLarge(ClientResponse),
    /// Its connection broke before its end, so that it cannot be shown to anybody.
    Broken,
}

impl RequestContext<'_> {
    /// Makes an answer ready, its body unread.
    pub(crate) fn relay(&self, answer: UpstreamResponse) -> ClientResponse {
        let UpstreamResponse {
            mut head,
            body,
            lease,
        } = answer;
        let protocol = head.headers.get(header::UPGRADE).cloned();
        let rewriter = self.prepare(&mut head, lease.endpoint());
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            head.headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers
                .extend(protocol.map(|protocol| (header::UPGRADE, protocol)));
            let upstream = head.extensions.remove();
            let tunnel = self.upgrade.zip(upstream).and_then(|(upgrade, upstream)| {
                let permit = self.exchange.permit.take();
                upgrade.accepted(upstream, lease.into_reservation()?, permit)
            });
            *self.exchange.tunnel.borrow_mut() = tunnel;
            return ClientResponse::of_head(head);
        }
        ClientResponse {
            head,
            ahead: VecDeque::new(),
            rest: Some(UpstreamBody { body, lease }),
            rewriter,
        }
    }

    /// The head as the client gets it, and what brings the addresses in its body home.
    fn prepare(
        &self,
        head: &mut response::Parts,
        endpoint: &Endpoint,
    ) -> Option<rewrite::JsonRewriter> {
        let url_map = &self.view.url_map;
        let host = self.head.headers.get(header::HOST);
        let public_url = PublicUrl {
            client: &self.exchange.peer.client,
            host,
            prefix: self.route.public_prefix(),
        };
        let cache_policy = self.route.credential.map(|_| self.view.cache_policy);
        headers::inbound(
            head,
            endpoint,
            &self.route.origins,
            &public_url,
            cache_policy,
        );
        if self.view.upstream(self.route).cookies == Cookies::Drop {
            head.headers.remove(header::SET_COOKIE);
        }
        rewrite::map_cookies(&mut head.headers, &endpoint.host, url_map);
        if url_map.is_empty() || !self.route.is_rewritten {
            return None;
        }
        let body_rewrite = url_map.prepare_body(head);
        self.worker.metrics.body_rewritten(body_rewrite);
        (body_rewrite == BodyRewrite::Rewritten)
            .then(|| rewrite::JsonRewriter::new(Rc::clone(url_map), public_url.origin()))
    }

    /// Reads an answer's body as far as it may be kept.
    pub(crate) async fn read_ahead(&self, answer: UpstreamResponse) -> ReadAhead {
        let UpstreamResponse {
            mut head,
            mut body,
            lease,
        } = answer;
        let rewriter = self.prepare(&mut head, lease.endpoint());
        let mut ahead = VecDeque::new();
        let mut length = 0;
        self.exchange.wait_for_upstream();
        let is_whole = loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = self.exchange.upstream_deadline.due() => break false,
            };
            match frame {
                None if !is_truncated(&body, &lease, self.body) => break true,
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
                    self.exchange.upstream_deadline.disarm();
                    let origin = &lease.endpoint().origin;
                    self.worker
                        .upstream_failed(self.view, origin, UpstreamFailure::Truncated);
                    return ReadAhead::Broken;
                }
            }
        };
        self.exchange.upstream_deadline.disarm();
        if !is_whole {
            return ReadAhead::TooLarge(ClientResponse {
                head,
                ahead,
                rest: Some(UpstreamBody { body, lease }),
                rewriter,
            });
        }
        ReadAhead::Whole(
            ClientResponse {
                head,
                ahead,
                rest: None,
                rewriter,
            },
            lease,
        )
    }
}
