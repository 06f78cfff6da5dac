//! Sockets and TLS, for clients, the upstream and the issuer alike.
//!
//! | file | contents |
//! |---|---|
//! | [`certificate`] | the names in a client certificate |
//! | [`dial`] | which of several addresses to connect to: attempts that overlap |
//! | [`http2`] | malformed messages on HTTP/2, before h2 reads them; the HTTP/2 error behind one of hyper's |
//! | [`http_server`] | a small HTTP/1.1 server: the admin endpoint, the callback of `login` |
//! | [`outbound_proxy`] | connections to upstreams and the issuer through an HTTP or SOCKS5 proxy |
//! | [`proxy_protocol`] | the PROXY header with which a load balancer begins a connection |
//! | [`reload`] | values that are rebuilt when their files change: TLS settings, client keys |
//! | [`resolve`] | the addresses of a name, and a task that keeps them up to date |
//! | [`socket`] | listening and connected sockets: TCP, and Unix sockets |
//! | [`tls`] | TLS settings from files, the validity of certificates, advice on handshake errors |

pub mod certificate;
pub mod dial;
pub mod http2;
pub mod http_server;
pub mod outbound_proxy;
pub mod proxy_protocol;
pub mod reload;
pub mod resolve;
pub mod socket;
pub mod tls;
