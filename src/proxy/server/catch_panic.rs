//! A panic ends one request, not the worker and its other connections.

use std::{convert::Infallible, panic::AssertUnwindSafe, rc::Rc};

use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;

use crate::proxy::{
    error::Error,
    exchange::{Exchange, request_body::RequestBody},
    forward::response_body::{InFlightGuard, ResponseBody},
    handler,
    worker::Worker,
};

/// Handles a request; responds 500 if its handler panics. A panic later, while the response is
/// being sent, aborts the stream or the connection: tokio ends its task.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let handling = handler::handle(Rc::clone(&worker), Rc::clone(&exchange), request);
    // Unwind safe: guards release what the handler has borrowed, and its partial results are
    // dropped with its future.
    match AssertUnwindSafe(handling).catch_unwind().await {
        Ok(response) => response,
        Err(_) => Ok(internal_error(&worker, &exchange)),
    }
}

fn internal_error(worker: &Rc<Worker>, exchange: &Rc<Exchange>) -> Response<ResponseBody> {
    let error = Error::Internal;
    let client = &exchange.peer.client;
    worker.rejected(&exchange.view(), &error, exchange, client);
    let number = exchange.state.begin_exchange();
    let in_flight = InFlightGuard::new(
        worker,
        exchange,
        number,
        RequestBody::none(),
        worker.clock.now(),
    );
    let mut response = error
        .to_response()
        .map(|body| ResponseBody::local(body, in_flight));
    if exchange.state.is_http1() {
        // It is unknown whether the request body was read to its end.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
