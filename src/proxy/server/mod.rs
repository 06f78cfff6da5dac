//! The client's side: listeners, protocols, connections.

pub(crate) mod catch_panic;
pub(crate) mod connection;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod listener;
pub(crate) mod tunnel;
