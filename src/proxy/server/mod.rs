//! The client's side: accepting connections and serving HTTP on them.
//!
//! | File | Contents |
//! |---|---|
//! | `listener` | accepts connections, checks the connection limits, performs the TLS handshake |
//! | `proxy_header` | reads the PROXY header of a load balancer |
//! | `connection` | serves one connection: detects its protocol, then `http1` or `http2` |
//! | `http1` | HTTP/1 with hyper; `strict_reader` rejects malformed requests before hyper reads them |
//! | `http2` | HTTP/2 with hyper and h2; `throttle` and `frames` protect against floods |
//! | `catch_panic` | responds 500 to a request whose handler panics |
//! | `tunnel` | copies bytes in both directions after a protocol upgrade |

pub(crate) mod catch_panic;
pub(crate) mod connection;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod listener;
pub(crate) mod proxy_header;
pub(crate) mod tunnel;
