//! `bearer-proxy`: a reverse proxy that lets any app use a private file cloud without knowing about tokens.
//!
//! # The map
//!
//! Imports point down only; `tests/layering.rs` holds the order.
//!
//! | layer | module | what it is for |
//! |---|---|---|
//! | 8 | [`cli`] | the commands: `run`, `init`, `check`, `login`, `status`, `demo`, `simulate` |
//! | 7 | [`app`] | composition: a validated configuration becomes running listeners, workers and tasks |
//! | 6 | [`config`] | the user's words, turned into the `Config` of each component; every mistake at once |
//! | 5 | [`admin`] | health, metrics, status: reads snapshots, never drives the data path |
//! | 4 | [`proxy`] | the data path: a request's life, on one single-threaded worker |
//! | 3 | [`token`], [`upstream`] | the token's lifecycle; connections to the cloud. They never import each other |
//! | 2 | [`net`] | sockets, TLS, the errors of HTTP/2 |
//! | 1 | [`base`] | clock, secrets, backoff, signals, logging, metric labels |
//! | – | [`cloud`] | a simulated private cloud. Imports `base` alone, so that it cannot share a mistake with the proxy |
//!
//! Read in this order: [`app`] (what exists), `proxy/handler.rs` (what happens to a request),
//! `token/refresher.rs` (why this proxy is special).

pub mod admin;
pub mod app;
pub mod base;
pub mod cli;
pub mod cloud;
pub mod config;
pub mod net;
pub mod proxy;
pub mod token;
pub mod upstream;
