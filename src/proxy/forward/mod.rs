//! A request's way to the upstream, and its response's way back.

pub(crate) mod attempt;
pub(crate) mod response;
pub(crate) mod response_body;
pub(crate) mod retry;
