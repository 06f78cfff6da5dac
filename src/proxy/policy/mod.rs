//! Which requests are served.
//!
//! | file | contents |
//! |---|---|
//! | `guard` | checks of `Host`, `Origin` and `Sec-Fetch-Site`, and of the form of requests |
//! | `cors` | CORS response headers and preflight responses for allowed origins |
//! | `rules` | allowed and denied paths |
//! | `issuer_path` | the issuer's own paths, which no client may request |
//! | `paths` | how servers interpret paths |
//! | `clients` | client authentication, rates and concurrency |
//! | `trusted` | the load balancers in front, which state who the client is |

pub(crate) mod clients;
pub(crate) mod cors;
pub(crate) mod guard;
pub mod issuer_path;
pub(crate) mod paths;
pub mod rules;
pub mod trusted;
