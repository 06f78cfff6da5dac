//! Requests for a part of a body whose URLs are rewritten. A part cannot be rewritten: a URL may be
//! cut, and offsets refer to the original body. So the whole body is requested instead. Parts of
//! all other bodies are forwarded.

use http::{HeaderValue, Method, StatusCode, header};

use crate::proxy::{
    error::Error,
    forward::attempt::{RequestContext, UpstreamResponse},
    message::json_body::{self, Format},
};

impl RequestContext<'_> {
    /// Whether a response may be a part of a body that is rewritten, or say that a part of it does
    /// not exist: the client knows the length of the rewritten body.
    ///
    /// Only bodies of safe requests are requested a second time.
    pub(crate) fn may_be_part_of_json(&self, response: &UpstreamResponse) -> bool {
        self.route.is_rewritten
            && self.sends_range
            && matches!(
                response.head.status,
                StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE
            )
            && matches!(self.head.method, Method::GET | Method::HEAD)
            && self.head.headers.contains_key(header::RANGE)
            && self.body.is_empty()
    }

    /// The response to the same request without `Range` if its body is rewritten, otherwise `part`.
    pub(crate) async fn whole_if_rewritten(
        &self,
        mut part: UpstreamResponse,
        authorization: Option<&HeaderValue>,
    ) -> Result<UpstreamResponse, Error> {
        let is_head = self.head.method == Method::HEAD;
        let whole = Self {
            sends_range: false,
            ..*self
        };
        let format = match part.head.status {
            StatusCode::PARTIAL_CONTENT => json_body::format_of_whole(&part.head),
            _ => Format::Uncertain,
        };
        let is_json = match format {
            Format::Json => true,
            Format::Other if json_body::is_multipart(&part.head.headers) && !is_head => {
                let mut parts = Vec::new();
                part = self
                    .read_start(part, |data| {
                        parts.extend_from_slice(data);
                        json_body::is_first_part_json(&parts)
                    })
                    .await?;
                part.is_json()
            }
            Format::Other => false,
            // The first character of the whole body decides, which a HEAD does not show.
            Format::Uncertain if is_head && part.head.status == StatusCode::PARTIAL_CONTENT => {
                false
            }
            Format::Uncertain => {
                return match whole.attempt_whole(authorization).await {
                    Ok(response) if response.is_json() => Ok(response),
                    Ok(response) => {
                        response.discard();
                        Ok(part)
                    }
                    Err(_) => Ok(part),
                };
            }
        };
        if is_json {
            part.discard();
            whole.attempt_whole(authorization).await
        } else {
            Ok(part)
        }
    }
}
