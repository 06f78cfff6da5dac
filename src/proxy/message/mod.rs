//! What is read from and changed in the heads and bodies of messages.

pub(crate) mod cache_control;
pub mod headers;
pub(crate) mod judge;
pub mod observed;
pub(crate) mod urls;
