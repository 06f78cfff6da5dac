//! Sockets, TLS, the errors of HTTP/2, and what follows its files.

pub mod certificate;
pub mod http2;
pub mod http_server;
pub mod reload;
pub mod socket;
pub mod tls;
