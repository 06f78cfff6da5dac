//! `/readyz`: whether a load balancer should send requests to this instance.

use http::StatusCode;
use serde_json::json;

use super::{response, status::date};
use crate::{net::http_server::HttpResponse, token::Snapshot};

/// Ready with a usable token, unless draining. The state of the upstream does not count: otherwise
/// an outage of the cloud would make every replica unready.
pub(super) fn readiness(credential: &Snapshot, draining: bool) -> HttpResponse {
    let ready = credential.is_ready() && !draining;
    let reason = if draining {
        "draining"
    } else {
        credential.reason.label()
    };
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let since = date(credential.since);
    let state = credential.state.label();
    let body = json!({ "ready": ready, "state": state, "reason": reason, "since": since });
    response::json(status, &body)
}
