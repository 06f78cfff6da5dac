//! Sockets, TLS, the errors of HTTP/2, and what follows its files.

pub mod certificate;
pub mod followed;
pub mod http2;
pub mod socket;
pub mod tls;
