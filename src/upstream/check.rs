//! Active health checks of one address: a request on a connection of its own, without a token.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::{self, HeaderName},
    uri::{Authority, PathAndQuery},
};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    rt::Executor,
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    addresses::Target,
    config::{Config, Endpoint, HealthCheck, Host},
    connect::{self, HttpVersions, Io, Protocol},
    shared::SharedEndpoint,
};
use crate::net::http2::{HeaderFilter, Messages};

/// The most bytes that are read of a response's body; its connection closes then.
const MAX_BODY: usize = 64 * 1024;

const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("bearer-proxy/", env!("CARGO_PKG_VERSION")));

/// An address of an endpoint, and how to connect to it.
#[derive(Debug, Clone)]
pub(super) struct CheckTarget {
    pub(super) target: Target,
    pub(super) endpoint: Endpoint,
    pub(super) shared: SharedEndpoint,
    pub(super) config: Arc<Config>,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    /// TCP, TLS, or the outbound proxy.
    #[error(transparent)]
    Connect(connect::Error),
    /// No head of a response within `timeout`.
    #[error("no response to GET {path} within {limit:?}")]
    Timeout {
        /// The path that was requested.
        path: PathAndQuery,
        /// `timeout`.
        limit: Duration,
    },
    /// The connection broke, or the response is malformed.
    #[error("GET {path} failed: {source}")]
    Http {
        /// The path that was requested.
        path: PathAndQuery,
        /// hyper's error.
        source: hyper::Error,
    },
    /// An unexpected status.
    #[error("the response to GET {path} has the status {status}")]
    Status {
        /// The path that was requested.
        path: PathAndQuery,
        /// The status of the response.
        status: StatusCode,
    },
}

/// Sends one request to the address, within `timeout`.
///
/// # Errors
/// When no response comes in time, or one with an unexpected status.
pub(super) async fn check(target: &CheckTarget, config: &HealthCheck) -> Result<(), CheckError> {
    let deadline = Instant::now() + config.timeout;
    // Ends the tasks of the connection when the check ends.
    let tasks = Tasks::default();
    let _end = tasks.end_on_drop();
    let requesting = tokio::time::timeout_at(deadline, request(target, config, &tasks));
    let response = requesting.await.unwrap_or_else(|_| {
        Err(CheckError::Timeout {
            path: config.path.clone(),
            limit: config.timeout,
        })
    })?;
    let status = response.status();
    // A server that is cut off in the middle of a small response logs an error at each check. What
    // happens to the body does not matter.
    let _ = tokio::time::timeout_at(deadline, read(response.into_body())).await;
    if config.expects(status) {
        Ok(())
    } else {
        Err(CheckError::Status {
            path: config.path.clone(),
            status,
        })
    }
}

/// The head of the response.
async fn request(
    target: &CheckTarget,
    config: &HealthCheck,
    tasks: &Tasks,
) -> Result<Response<Incoming>, CheckError> {
    let connected = connect::connect(
        &target.config,
        &target.endpoint,
        &target.target,
        &target.shared,
        HttpVersions::Any,
        Instant::now() + config.timeout,
    );
    let (io, protocol) = connected.await.map_err(CheckError::Connect)?;
    let max_head = target.config.max_head_size;
    let sent = match protocol {
        Protocol::Http1 => send_http1(io, target.http1_request(config), max_head, tasks).await,
        Protocol::Http2 => send_http2(io, target.http2_request(config), max_head, tasks).await,
    };
    let response = sent.map_err(|source| CheckError::Http {
        path: config.path.clone(),
        source,
    })?;
    let (status, headers) = (response.status(), response.headers());
    match connect::proxy_refusal(&target.endpoint, &target.shared, status, headers) {
        Some(error) => Err(CheckError::Connect(error)),
        None => Ok(response),
    }
}

impl CheckTarget {
    /// The host of requests that clients cause, so that the same virtual server responds.
    fn host(&self) -> &HeaderValue {
        match &self.config.host {
            Host::Fixed(host) => host,
            Host::Endpoint | Host::Client => &self.endpoint.authority,
        }
    }

    fn http1_request(&self, config: &HealthCheck) -> Request<Empty<Bytes>> {
        let mut request = request_to(Uri::from(config.path.clone()));
        let fields = [
            (header::HOST, self.host().clone()),
            (header::CONNECTION, HeaderValue::from_static("close")),
        ];
        request.headers_mut().extend(fields);
        if let Some(form) = &self.shared.absolute_form {
            form.apply(&mut request);
        }
        request
    }

    fn http2_request(&self, config: &HealthCheck) -> Request<Empty<Bytes>> {
        let mut parts = Uri::from(config.path.clone()).into_parts();
        // The configuration has validated the host.
        parts.authority = Authority::try_from(self.host().as_bytes()).ok();
        parts.scheme = Some(self.endpoint.scheme.clone());
        request_to(Uri::from_parts(parts).unwrap_or_else(|_| config.path.clone().into()))
    }
}

fn request_to(uri: Uri) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri;
    let fields: [(HeaderName, HeaderValue); 2] = [
        (header::USER_AGENT, USER_AGENT),
        (header::ACCEPT, HeaderValue::from_static("*/*")),
    ];
    request.headers_mut().extend(fields);
    request
}

async fn send_http1(
    mut io: Io,
    request: Request<Empty<Bytes>>,
    max_head: usize,
    tasks: &Tasks,
) -> hyper::Result<Response<Incoming>> {
    let heads = io.inner_mut().repair_heads(max_head);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_BODY.max(max_head) + 1)
        .allow_spaces_after_header_name_in_responses(true)
        .title_case_headers(true)
        .handshake(io)
        .await?;
    tasks.execute(connection);
    heads.expect_head();
    sender.send_request(request).await
}

async fn send_http2(
    io: Io,
    request: Request<Empty<Bytes>>,
    max_head: usize,
    tasks: &Tasks,
) -> hyper::Result<Response<Incoming>> {
    let io = HeaderFilter::new(io.into_inner(), Messages::Responses, max_head);
    let (mut sender, connection) = http2::Builder::new(tasks.clone())
        .max_header_list_size(max_head.try_into().unwrap_or(u32::MAX))
        .handshake(TokioIo::new(io))
        .await?;
    tasks.execute(connection);
    sender.send_request(request).await
}

/// Reads a body to its end, or to [`MAX_BODY`] bytes.
async fn read(mut body: Incoming) {
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, Bytes::len);
        if length > MAX_BODY {
            return;
        }
    }
}

/// The tasks of one connection.
#[derive(Debug, Clone, Default)]
struct Tasks(CancellationToken);

impl Tasks {
    fn end_on_drop(&self) -> DropGuard {
        self.0.clone().drop_guard()
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(task));
    }
}
