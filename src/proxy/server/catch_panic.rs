//! A panic ends one request, not the worker that carries many.

use std::{convert::Infallible, panic::AssertUnwindSafe, rc::Rc};

use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;

use crate::proxy::{
    error::Error,
    exchange::{Carrier, Exchange, request_body::RequestBody},
    forward::response_body::{InFlightGuard, ResponseBody},
    handler,
    worker::Worker,
};

/// Answers a request, be it with 500. One that panics later, while its answer is on its way, breaks its stream or its
/// connection: tokio ends the task.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let handling = handler::handle(Rc::clone(&worker), Rc::clone(&exchange), request);
    // What it borrowed is given back while the panic unwinds, and what it left half done is dropped with it.
    match AssertUnwindSafe(handling).catch_unwind().await {
        Ok(response) => response,
        Err(_) => Ok(internal_error(&worker, &exchange)),
    }
}

fn internal_error(worker: &Rc<Worker>, exchange: &Rc<Exchange>) -> Response<ResponseBody> {
    let error = Error::Internal;
    worker.rejected(&exchange.view(), &error, exchange);
    let number = exchange.monitor.begin_exchange();
    let account = InFlightGuard::new(
        worker,
        exchange,
        number,
        RequestBody::none(),
        worker.clock.now(),
    );
    let mut response = error
        .to_response()
        .map(|words| ResponseBody::ours(words, account));
    if exchange.carrier == Carrier::Connection {
        // Whether its body was read to the end, nobody knows.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
