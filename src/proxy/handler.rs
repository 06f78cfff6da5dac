//! A request's life: forwarding fields → guard → client → rules → token → attempt → judge →
//! (refresh → replay) → response → counters.

use std::{convert::Infallible, rc::Rc};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version, header, request, uri::PathAndQuery,
};
use hyper::body::{Body as _, Incoming};

use crate::{
    base::clock::Moment,
    proxy::{
        config::Limits,
        connection::flood,
        error::Error,
        exchange::{Exchange, continue_gate::Held, request_body::RequestBody, upgrade::Upgrade},
        forward::{
            attempt::{Next, RequestContext, UpstreamResponse},
            rejected::AuthFailure,
            response::ClientResponse,
            response_body::{InFlightGuard, ResponseBody},
            retry::is_proof,
        },
        framing::Fault,
        message::{
            headers,
            judge::{Exhausted, Verdict},
            spelling,
            urls::Destination,
        },
        token_source::{LocalToken, TokenSource},
        worker::{AccessEntry, Worker},
    },
};

/// Responds to one request, whatever happens.
///
/// hyper moves this future into place for each request, so its size is paid each time: the rare
/// paths (a new connection, a replay) are boxed.
pub(crate) fn handle(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
    // Not in the future, which would have room for the request and for its parts.
    let (head, body, upgrade) = split_request(request);
    respond(worker, exchange, head, body, upgrade)
}

async fn respond(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    mut head: request::Parts,
    body: Incoming,
    upgrade: Option<Upgrade>,
) -> Result<Response<ResponseBody>, Infallible> {
    if exchange.state.is_unproven() {
        flood::yield_for_resets().await;
    }
    let received = worker.clock.now();
    let view = exchange.begin(worker.view());
    let number = exchange.state.begin_exchange();
    let stated = exchange.peer.client_of(&mut head);
    let client = stated.as_deref().unwrap_or(&exchange.peer.client);
    let fault = exchange
        .state
        .fault(number)
        .or_else(|| fault(&mut head, &exchange, &view.config().limits));
    if upgrade.is_some() {
        exchange.state.expect_upgrade();
    }
    let body = RequestBody::new(body, &head, &worker.shared.kept, &exchange, number);
    let mut in_flight = InFlightGuard::new(&worker, &exchange, number, body.clone(), received);
    let route = view.routes.choose(&head);
    exchange.timeouts.set(route.timeouts);
    exchange.caller.set(None);
    let upgrade = upgrade
        .as_ref()
        .filter(|_| worker.upstream(route).supports_upgrade());
    let context = RequestContext {
        worker: &worker,
        view: &view,
        exchange: &exchange,
        client,
        route,
        head: &head,
        host: head.headers.get(header::HOST),
        body: &body,
        upgrade,
        sends_range: true,
    };
    let outcome = match fault {
        None => context
            .respond(received)
            .await
            .and_then(|response| context.hide_upstream_401(response)),
        Some(fault) => Err(fault.into()),
    };
    in_flight.permit = exchange.permit.take();
    // On HTTP/2 the body of a request whose stream goes on fails for its trailers alone.
    let is_malformed =
        matches!(fault, Some(Fault::Malformed(_))) || matches!(outcome, Err(Error::ClientBody));
    let mut response = match outcome {
        Ok(response) => {
            let observer = worker.observer(&response.head, received);
            response.into_http(observer, in_flight)
        }
        Err(error) => {
            worker.rejected(&view, &error, &exchange, client);
            error
                .to_response()
                .map(|problem| ResponseBody::local(problem, in_flight))
        }
    };
    if is_malformed && !exchange.state.is_http1() {
        response.body_mut().end_malformed();
    }
    // A client that waits for 100 need not send its body now. What follows is either that body or the
    // next request, and nothing distinguishes them.
    let is_body_uncertain = body.is_unread() && headers::expects_continue(&head.headers);
    body.commit();
    let guard = view.guard(exchange.peer.listener);
    guard.add_cors_headers(&head.headers, response.headers_mut());
    // RFC 9112 §6.3: HTTP/1.0 has no other end for a body of unknown length.
    let ends_with_close =
        head.version == Version::HTTP_10 && response.body().size_hint().exact().is_none();
    response.body_mut().ends_with_close = ends_with_close;
    let is_draining = worker.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS;
    let is_last = is_body_uncertain || is_length_missing(&head) || ends_with_close || is_draining;
    if is_last && exchange.state.is_http1() {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // The proxy's own, or from HTTP/2: hyper has recorded no spelling of names.
    if exchange.state.is_http1()
        && response.extensions().is_empty()
        && spelling::is_needed(response.headers())
    {
        *response.extensions_mut() = worker.usual_names.clone();
    }
    // For a response of a later version, hyper adds `Connection: keep-alive` for HTTP/1.0 clients.
    *response.version_mut() = if is_last {
        head.version
    } else {
        Version::HTTP_11
    };
    worker.responded(
        &view,
        &AccessEntry {
            route,
            caller: exchange.caller.get(),
            client,
            request: &head,
            status: response.status(),
            received,
        },
    );
    Ok(response)
}

/// A function of its own: what an async function has borrowed once stays in its future.
fn split_request(mut request: Request<Incoming>) -> (request::Parts, Incoming, Option<Upgrade>) {
    let upgrade = Upgrade::requested(&mut request);
    let (mut head, body) = request.into_parts();
    if head.version == Version::HTTP_2 {
        headers::from_http2(&mut head);
    }
    headers::normalize_content_length(&mut head.headers);
    (head, body, upgrade)
}

/// Whether bytes that follow may be a body instead of the next request: without a length, some
/// HTTP/1.0 clients send one to the end of the connection (RFC 1945 §8.3). It counts as empty.
fn is_length_missing(head: &request::Parts) -> bool {
    head.version == Version::HTTP_10
        && matches!(head.method, Method::POST | Method::PUT | Method::PATCH)
        && !head.headers.contains_key(header::CONTENT_LENGTH)
}

/// What a head has too much of; its size as a whole is limited while it is read. Of HTTP/1, the
/// framing has counted before. Encodes the target of a head that has no fault: the limit is one of
/// the target as the client wrote it.
fn fault(head: &mut request::Parts, exchange: &Exchange, limits: &Limits) -> Option<Fault> {
    if !exchange.state.is_http1() {
        let target = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
        if target.len() > limits.uri_length {
            return Some(Fault::TargetTooLong);
        }
        if head.headers.len() > limits.headers {
            return Some(Fault::HeadTooLarge);
        }
    }
    headers::encode_target(head).err()
}

impl RequestContext<'_> {
    async fn respond(&self, received: Moment) -> Result<ClientResponse, Error> {
        let config = self.view.config();
        self.worker.admit(config.limits.requests)?;
        let peer = &*self.exchange.peer;
        let guard = self.view.guard(peer.listener);
        guard.check(self.head, &peer.known_host, self.client.scheme())?;
        if let Some(response) = guard.preflight(self.head) {
            return Ok(ClientResponse::without_body(response));
        }
        guard.check_required(&self.head.headers)?;
        self.admit()?;
        self.check_paths()?;
        if headers::has_loop_id(&self.head.headers, &self.worker.loop_id) {
            return Err(Error::Loop);
        }
        let Some(source) = self.worker.token_source(self.route) else {
            return Box::pin(self.attempt(None))
                .await
                .map(|response| self.relay(response));
        };
        let mut token = source.token(received).await?;
        if self.body.to_hold() == Some(Held::All) && token.expires_soon(received) {
            token = Box::pin(source.longer_lived(&token)).await?;
        }
        let attempted = self.attempt(Some(token.header())).await;
        let rest = match self.conclude(attempted?, source, &token) {
            Next::Done(response) => return Ok(response),
            Next::Rest(rest) => rest,
        };
        rest.await
    }

    /// The client's response, or a replay before it if this one rejects the token.
    fn conclude<'a>(
        &'a self,
        response: UpstreamResponse,
        source: &'a TokenSource,
        token: &'a LocalToken,
    ) -> Next<'a, ClientResponse, Error> {
        if self.judge(&response) == Verdict::AuthorizationFailure {
            let failure = AuthFailure::Unread(response);
            return Next::Rest(Box::pin(self.replay(failure, source, token)));
        }
        if self.may_reject_in_json(&response) {
            return Next::Rest(Box::pin(self.judge_json(response, source, token)));
        }
        if is_proof(response.head.status) {
            self.accepted(source, token);
        }
        Next::Done(self.relay(response))
    }

    /// Finds the client that sends the request, and applies its rate and concurrency limits.
    fn admit(&self) -> Result<(), Error> {
        let clients = self.view.clients();
        if clients.is_empty() {
            return Ok(());
        }
        let identity = self.exchange.peer.identity(self.client.address().ip);
        let caller = clients.authenticate(&identity, &self.head.headers)?;
        self.exchange.caller.set(Some(caller));
        self.exchange.permit.set(clients.admit(caller)?);
        Ok(())
    }

    /// Applies the rules of the route and of the client to the path, and to the `Destination` of COPY
    /// and MOVE (RFC 4918 §10.3).
    fn check_paths(&self) -> Result<(), Error> {
        let target = &self.head.uri;
        self.check_path(self.route.path(target), target.path())?;
        if !Destination::is_part_of(&self.head.method) {
            return Ok(());
        }
        match self.own_urls().destination(self.head)? {
            Some(Destination { written, sent }) => self.check_path(sent.path(), written.path()),
            None => Ok(()),
        }
    }

    /// `path` as the upstream receives it, `asked` as the client wrote it.
    fn check_path(&self, path: &str, asked: &str) -> Result<(), Error> {
        let method = &self.head.method;
        self.route
            .rules
            .judge(method, path, &self.view.issuer_paths)?;
        if self.view.routes.is_ambiguous(self.head, asked, self.route) {
            return Err(Error::BadRequest(
                "the path can also be read as another [[route]]'s, whose rules it would escape",
            ));
        }
        match self
            .exchange
            .caller
            .get()
            .map(|caller| self.view.clients().rules(caller))
        {
            Some(rules) if !rules.is_empty() => rules.judge(method, path, &[]),
            Some(_) | None => Ok(()),
        }
    }

    /// A client that used Basic would prompt for its password on a 401 of the upstream: respond 502.
    fn hide_upstream_401(&self, response: ClientResponse) -> Result<ClientResponse, Error> {
        let is_hidden = response.head.status == StatusCode::UNAUTHORIZED
            && self
                .exchange
                .caller
                .get()
                .is_some_and(|caller| caller.by_password)
            && self.view.config().retry.exhausted != Some(Exhausted::Relay);
        if is_hidden {
            Err(Error::HiddenChallenge)
        } else {
            Ok(response)
        }
    }
}
