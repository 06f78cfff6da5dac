//! Forwards a request to the upstream and its response to the client.
//!
//! | File | Contents |
//! |---|---|
//! | `attempt` | sends the request to an endpoint with one token, receives the response's head |
//! | `resend` | requests that are sent again at once: to another address, or after a lost connection |
//! | `retry` | responses that reject the token: the request is sent again |
//! | `rejected` | such a response, kept meanwhile |
//! | `body_start` | reads the start of a body that may be JSON |
//! | `range` | requests for a part of a body that is rewritten |
//! | `response` | prepares the upstream's response for the client; reads a small body ahead |
//! | `response_body` | the body that the client receives, and what is counted when it ends |

pub(crate) mod attempt;
pub(crate) mod body_start;
pub(crate) mod range;
pub(crate) mod rejected;
pub(crate) mod resend;
pub(crate) mod response;
pub(crate) mod response_body;
pub(crate) mod retry;
