//! Prepares an upstream's response for the client.

use std::{collections::VecDeque, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response, uri::Scheme};
use http_body_util::BodyExt as _;
use hyper::body::Frame;

use crate::{
    proxy::{
        exchange::request_body::AttemptBody,
        forward::{
            attempt::{RequestContext, UpstreamResponse},
            response_body::{InFlightGuard, ResponseBody, UpstreamBody, is_truncated},
        },
        message::{
            forwarded, headers,
            observed::Observer,
            urls::{self, BodyRewrite, CookieMap, FieldMap, PublicUrl},
        },
    },
    upstream::{Cookies, Endpoint, Failure, Lease},
};

/// The most that is read of a body before it is decided what the client gets, in bytes and time. A
/// larger or slower body is relayed.
pub(crate) const READ_AHEAD_LIMIT: usize = 64 * 1024;
const READ_AHEAD_TIME: Duration = Duration::from_secs(1);

/// A response as the client gets it.
pub(crate) struct ClientResponse {
    pub(crate) head: response::Parts,
    /// The part of the body that has been read.
    pub(crate) buffered: VecDeque<Frame<Bytes>>,
    pub(crate) unread: Option<UpstreamBody>,
    rewriter: Option<urls::JsonRewriter>,
}

impl ClientResponse {
    /// A response without a body.
    pub(crate) fn without_body(head: response::Parts) -> Self {
        Self {
            head,
            buffered: VecDeque::new(),
            unread: None,
            rewriter: None,
        }
    }

    /// The response for hyper. Its body feeds the observer and holds the guard to its end.
    pub(crate) fn into_http(
        self,
        observer: Option<Box<Observer>>,
        in_flight: InFlightGuard,
    ) -> Response<ResponseBody> {
        let Self {
            head,
            buffered,
            unread,
            rewriter,
        } = self;
        let body = ResponseBody::forwarded(buffered, unread, rewriter, observer, in_flight);
        Response::from_parts(head, body)
    }
}

/// The result of reading a body ahead.
pub(crate) enum ReadAhead {
    /// It was read to its end; its connection can be released.
    Complete(ClientResponse, Lease<AttemptBody>),
    /// It is too large or too slow: it can only be relayed.
    TooLarge(ClientResponse),
    /// It was cut short: no client may get it.
    Truncated {
        /// The origin of the endpoint.
        endpoint: String,
    },
}

impl RequestContext<'_> {
    /// Prepares a response whose body is forwarded as it arrives.
    pub(crate) fn relay(&self, response: UpstreamResponse) -> ClientResponse {
        let is_json = self.route.is_rewritten && response.is_json();
        let UpstreamResponse {
            mut head,
            start,
            body,
            lease,
        } = response;
        let is_upgrade = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = is_upgrade
            .then(|| head.headers.get(header::UPGRADE).cloned())
            .flatten();
        let rewriter = self.prepare(&mut head, lease.endpoint(), is_json);
        if is_upgrade {
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
            return ClientResponse::without_body(head);
        }
        ClientResponse {
            head,
            buffered: start.frames,
            unread: Some(UpstreamBody { body, lease }),
            rewriter,
        }
    }

    /// Changes the head to what the client gets. Returns the rewriter of the URLs in its body, if
    /// they are rewritten.
    fn prepare(
        &self,
        head: &mut response::Parts,
        endpoint: &Endpoint,
        is_json: bool,
    ) -> Option<urls::JsonRewriter> {
        let url_map = &self.view.url_map;
        let public_url = PublicUrl {
            scheme: self.client.scheme(),
            host: self.host,
            prefix: self.route.public_prefix(),
        };
        let cache_policy = self.route.credential.map(|_| self.view.cache_policy);
        let field_map = FieldMap {
            scheme: &endpoint.scheme,
            origins: &self.route.origins,
            public_url,
        };
        headers::inbound(head, field_map, cache_policy);
        if head.headers.contains_key(header::SET_COOKIE) {
            self.prepare_cookies(&mut head.headers, endpoint, public_url);
        }
        for urls in [&self.route.origins, url_map] {
            if let Some((found, configured)) = urls.take_other_scheme() {
                self.worker.other_scheme(found, configured);
            }
        }
        if url_map.is_empty() || !self.route.is_rewritten {
            return None;
        }
        let body_rewrite = url_map.prepare_body(head, is_json);
        self.worker.metrics.body_rewritten(body_rewrite);
        (body_rewrite == BodyRewrite::Rewritten)
            .then(|| urls::JsonRewriter::new(Rc::clone(url_map), public_url.origin()))
    }

    fn prepare_cookies(
        &self,
        headers: &mut HeaderMap,
        endpoint: &Endpoint,
        public_url: PublicUrl<'_>,
    ) {
        if self.view.upstream(self.route).cookies == Cookies::Drop {
            headers.remove(header::SET_COOKIE);
            return;
        }
        let cookies = CookieMap {
            upstream_host: &endpoint.host,
            urls: &self.view.url_map,
            prefix: public_url.prefix,
            is_secure: *public_url.scheme == Scheme::HTTPS
                || forwarded::is_behind_tls(&self.head.headers),
        };
        cookies.apply(headers);
    }

    /// Reads a response's body, up to [`READ_AHEAD_LIMIT`] and for [`READ_AHEAD_TIME`].
    pub(crate) async fn read_ahead(&self, response: UpstreamResponse) -> ReadAhead {
        let is_json = self.route.is_rewritten && response.is_json();
        let UpstreamResponse {
            mut head,
            start,
            mut body,
            lease,
        } = response;
        let rewriter = self.prepare(&mut head, lease.endpoint(), is_json);
        let mut buffered = start.frames;
        let data = buffered.iter().filter_map(Frame::data_ref);
        let mut length: usize = data.map(Bytes::len).sum();
        self.exchange.upstream_deadline.arm(READ_AHEAD_TIME.into());
        let is_complete = loop {
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
                    buffered.push_back(frame);
                    if length > READ_AHEAD_LIMIT {
                        break false;
                    }
                }
                None | Some(Err(_)) => {
                    self.exchange.upstream_deadline.disarm();
                    lease.count(Failure::Truncated);
                    return ReadAhead::Truncated {
                        endpoint: lease.endpoint().origin.clone(),
                    };
                }
            }
        };
        self.exchange.upstream_deadline.disarm();
        if !is_complete {
            return ReadAhead::TooLarge(ClientResponse {
                head,
                buffered,
                unread: Some(UpstreamBody { body, lease }),
                rewriter,
            });
        }
        ReadAhead::Complete(
            ClientResponse {
                head,
                buffered,
                unread: None,
                rewriter,
            },
            lease,
        )
    }
}
