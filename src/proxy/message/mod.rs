//! What the proxy reads and changes in requests and responses.
//!
//! | file | contents |
//! |---|---|
//! | `headers` | the head of a request to the upstream, and of a response to the client |
//! | `forwarded` | who the client is, as load balancers state it and as the upstream learns it |
//! | `cache_control` | `Cache-Control` of responses to requests with the injected token |
//! | `urls` | URLs in requests, mapped to the upstream; in responses (fields, cookies, JSON), mapped to the proxy |
//! | `json_body` | which bodies are JSON |
//! | `judge` | which responses are authorization failures, and which requests may be replayed |
//! | `methods` | which methods are idempotent |
//! | `spelling` | the usual letter case of field names |
//! | `observed` | error codes and origins in JSON that are not configured, for `/status` |

pub(crate) mod cache_control;
pub mod forwarded;
pub mod headers;
pub(crate) mod json_body;
pub(crate) mod judge;
pub(crate) mod methods;
pub mod observed;
pub(crate) mod spelling;
pub mod urls;
