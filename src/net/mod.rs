//! Sockets and TLS.

pub mod socket;
pub mod tls;
