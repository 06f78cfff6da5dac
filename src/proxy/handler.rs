//! A request's life: guard → token → attempt → judge → (refresh → replay) → relay → account.

use std::{convert::Infallible, rc::Rc};

use http::{
    HeaderValue, Request, Response, StatusCode, Version, header, request, uri::PathAndQuery,
};
use hyper::body::{Body as _, Incoming};

use crate::{
    base::clock::Moment,
    proxy::{
        Exhausted, Limits,
        connection::flood,
        error::Error,
        exchange::{Carrier, Exchange, request_body::RequestBody, upgrade::Upgrade},
        forward::{
            attempt::RequestContext,
            response::ClientResponse,
            response_body::{InFlightGuard, ResponseBody},
            retry::{AuthFailure, is_proof},
        },
        framing::Fault,
        message::{headers, judge::Verdict},
        worker::{LocalToken, Worker},
    },
};

/// Answers one request, whatever happens.
///
/// hyper moves this future into place for each request, so its size is paid each time: the rare paths (a new connection, a
/// replay) are boxed.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    if exchange.carrier == Carrier::Stream && exchange.monitor.conduct().is_unproven() {
        flood::yield_for_resets().await;
    }
    let received = worker.clock.now();
    let number = exchange.monitor.begin_exchange();
    let (head, body, upgrade) = split_request(request);
    let body = RequestBody::new(body, &head, &worker.recording, &exchange, number);
    let mut account = InFlightGuard::open(&worker, &exchange, number, body.clone(), received);
    let route = worker.routes.choose(&head);
    exchange.limits.set(route.limits);
    exchange.caller.set(None);
    let upgrade = upgrade
        .as_ref()
        .filter(|_| worker.upstreams[route.upstream].takes_upgrades());
    let passage = RequestContext {
        worker: &worker,
        exchange: &exchange,
        route,
        head: &head,
        body: &body,
        upgrade,
    };
    let answer = match exchange.monitor.fault(number) {
        None => passage
            .answer(received)
            .await
            .and_then(|relay| passage.hide_upstream_401(relay)),
        Some(fault) => Err(fault.into()),
    };
    account.permit = exchange.permit.take();
    let mut response = match answer {
        Ok(ClientResponse {
            head,
            ahead,
            rest,
            rewriter,
        }) => {
            let look = worker.look(&head);
            Response::from_parts(
                head,
                ResponseBody::relayed(ahead, rest, rewriter, look, account),
            )
        }
        Err(error) => {
            worker.refused(&error, &exchange);
            error
                .to_response()
                .map(|words| ResponseBody::ours(words, account))
        }
    };
    // A client that waits to be asked for its body need not send it now, and then what follows is not that body.
    let is_unasked = body.is_unread() && head.headers.contains_key(header::EXPECT);
    body.commit();
    exchange
        .peer
        .gate
        .open_to_origins(&head.headers, response.headers_mut());
    // HTTP/1.0 knows no other end for a body of unknown length.
    let ends_with_close =
        head.version == Version::HTTP_10 && response.body().size_hint().exact().is_none();
    let is_draining = worker.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS;
    let is_last = is_unasked || ends_with_close || is_draining;
    if is_last && exchange.carrier == Carrier::Connection {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // To an answer that claims a later version, hyper adds the promise to keep the connection of an HTTP/1.0 client.
    *response.version_mut() = if is_last {
        head.version
    } else {
        Version::HTTP_11
    };
    worker.answered(
        route,
        exchange.caller.get(),
        &head,
        response.status(),
        received,
    );
    Ok(response)
}

/// Not in place: what an async function has borrowed once stays in its future.
fn split_request(mut request: Request<Incoming>) -> (request::Parts, Incoming, Option<Upgrade>) {
    let upgrade = Upgrade::wished(&mut request);
    let (mut head, body) = request.into_parts();
    if head.version == Version::HTTP_2 {
        headers::from_http2(&mut head);
    }
    headers::plain_length(&mut head.headers);
    headers::encode_target(&mut head);
    (head, body, upgrade)
}

/// What a head has too much of; its size as a whole is limited while it is read.
fn fault(head: &request::Parts, limits: &Limits) -> Option<Fault> {
    let target = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
    if target.len() > limits.uri_length {
        return Some(Fault::TargetTooLong);
    }
    (head.headers.len() > limits.headers).then_some(Fault::HeadTooLarge)
}

impl RequestContext<'_> {
    async fn answer(&self, received: Moment) -> Result<ClientResponse, Error> {
        self.worker.admit()?;
        if self.exchange.carrier == Carrier::Stream
            && let Some(fault) = fault(self.head, &self.worker.config.limits)
        {
            return Err(fault.into());
        }
        let peer = &*self.exchange.peer;
        peer.gate.check(self.head, &peer.known_host)?;
        if let Some(answer) = peer.gate.preflight(self.head) {
            return Ok(ClientResponse::of_head(answer));
        }
        peer.gate.check_required(&self.head.headers)?;
        self.admit()?;
        self.judge_path()?;
        if headers::has_loop_id(&self.head.headers, &self.worker.mark) {
            return Err(Error::Loop);
        }
        if !self.route.inject {
            return Box::pin(self.attempt(None))
                .await
                .map(|answer| self.relay(answer));
        }
        let mut token = self.worker.token(received).await?;
        if self.body.should_wait_for_continue() && token.expires_soon(received) {
            token = Box::pin(self.longer_lived(token)).await?;
        }
        let answer = self.attempt(Some(token.header())).await?;
        if self.judge(&answer) == Verdict::AuthorizationFailure {
            return Box::pin(self.replay(AuthFailure::Unread(answer), &token)).await;
        }
        if self.may_refuse_in_json(&answer) {
            return Box::pin(self.judge_json(answer, &token)).await;
        }
        if is_proof(answer.head.status) {
            token.accepted();
        }
        Ok(self.relay(answer))
    }

    /// Whose request it is, and whether there is room for one more of that client's.
    fn admit(&self) -> Result<(), Error> {
        let clients = &self.worker.clients;
        if clients.is_empty() {
            return Ok(());
        }
        let caller = clients.recognise(&self.exchange.peer.identity, &self.head.headers)?;
        self.exchange.caller.set(Some(caller));
        self.exchange.permit.set(clients.admit(caller)?);
        Ok(())
    }

    /// Whether the path, as the upstream sees it, may be asked for on this route and by this client; and likewise where
    /// something is to be copied or moved to.
    fn judge_path(&self) -> Result<(), Error> {
        let target = &self.head.uri;
        self.judge_one(self.route.path(target), target.path())?;
        match headers::destination(self.head)? {
            // It goes on as it is.
            Some(destination) => self.judge_one(destination.path(), destination.path()),
            None => Ok(()),
        }
    }

    /// `path` as the upstream sees it, `asked` as the client wrote it.
    fn judge_one(&self, path: &str, asked: &str) -> Result<(), Error> {
        let method = &self.head.method;
        self.route
            .rules
            .judge(method, path, &self.worker.config.issuer_segments)?;
        if self
            .worker
            .routes
            .is_ambiguous(self.head, asked, self.route)
        {
            return Err(Error::BadRequest(
                "the path can also be read as another [[route]]'s, whose rules it would escape",
            ));
        }
        match self
            .exchange
            .caller
            .get()
            .map(|caller| self.worker.clients.rules(caller))
        {
            Some(rules) if !rules.is_empty() => rules.judge(method, path, &[]),
            Some(_) | None => Ok(()),
        }
    }

    /// An app whose password is good would ask its user for another one.
    fn hide_upstream_401(&self, relay: ClientResponse) -> Result<ClientResponse, Error> {
        let is_spared = relay.head.status == StatusCode::UNAUTHORIZED
            && self
                .exchange
                .caller
                .get()
                .is_some_and(|caller| caller.by_password)
            && self.worker.config.retry.exhausted != Some(Exhausted::Relay);
        if is_spared {
            Err(Error::Challenge)
        } else {
            Ok(relay)
        }
    }

    /// A large upload may outlive the token that it begins with, and cannot be sent again: if a newer one can be had, it is
    /// worth waiting for.
    async fn longer_lived(&self, token: Rc<LocalToken>) -> Result<Rc<LocalToken>, Error> {
        let credential = &self.worker.credential;
        // Refused when the last call was a moment ago: then its outcome is what there is to wait for.
        let _ = credential.refresh_now();
        match credential
            .newer_than(Some(token.version()), self.worker.token_wait)
            .await
        {
            Some(newer) => Ok(self.worker.carry(&newer)),
            // What it had left of its life may be over by now.
            None => self.worker.token(self.worker.clock.now()).await,
        }
    }
}
