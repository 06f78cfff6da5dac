//! The start of a response's body, read where the head does not show whether the body is JSON.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};

use crate::proxy::{
    exchange::{
        Exchange,
        request_body::{AttemptBody, RequestBody},
    },
    forward::response_body::is_truncated,
    message::{headers, json_body},
};
use crate::upstream::Lease;

/// How long the start of a body may take. Later, the body counts as other than JSON.
const LIMIT: Duration = Duration::from_secs(1);

/// The part of a body that has been read to decide whether it is JSON.
#[derive(Debug, Default)]
pub(crate) struct BodyStart {
    pub(crate) frames: VecDeque<Frame<Bytes>>,
    pub(crate) is_json: bool,
}

/// The body is cut short.
pub(crate) struct Truncated;

impl BodyStart {
    /// Reads a body until `is_json`, which gets the data of each frame, is decided.
    pub(crate) async fn read(
        body: &mut Incoming,
        lease: &Lease<AttemptBody>,
        request: &RequestBody,
        exchange: &Exchange,
        mut is_json: impl FnMut(&[u8]) -> Option<bool>,
    ) -> Result<Self, Truncated> {
        let mut start = Self::default();
        let mut length = 0;
        exchange.upstream_deadline.arm(LIMIT.into());
        while length <= json_body::SMALL {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = exchange.upstream_deadline.due() => break,
            };
            let mut frame = match frame {
                Some(Ok(frame)) => frame,
                None if !is_truncated(body, lease, request) => break,
                None | Some(Err(_)) => {
                    exchange.upstream_deadline.disarm();
                    return Err(Truncated);
                }
            };
            if let Some(trailers) = frame.trailers_mut() {
                headers::clean_trailers(trailers, &[]);
            }
            let data = frame.data_ref().map_or(&[][..], |data| data);
            let decision = is_json(data);
            length += data.len() as u64;
            start.frames.push_back(frame);
            if let Some(is_json) = decision {
                start.is_json = is_json;
                break;
            }
        }
        exchange.upstream_deadline.disarm();
        Ok(start)
    }
}
