//! Sockets and TLS.

pub mod certificate;
pub mod socket;
pub mod tls;
