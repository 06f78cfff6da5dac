//! `/readyz`: should requests be sent here?

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::status::date;
use crate::token::Snapshot;

/// Ready with a usable token and while not draining. The upstream's health does not count: otherwise one cloud outage would
/// remove every replica.
pub(super) fn readiness(credential: &Snapshot, draining: bool) -> Response<Full<Bytes>> {
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
    super::json(
        status,
        &json!({ "ready": ready, "state": credential.state.label(), "reason": reason, "since": since }),
    )
}
