//! Sockets, TLS, and the errors of HTTP/2.

pub mod certificate;
pub mod http2;
pub mod socket;
pub mod tls;
