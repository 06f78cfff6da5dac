//! `bearer-proxy`: a reverse proxy that lets any app use a private file cloud without knowing about
//! tokens.
//!
//! # Layers
//!
//! Imports point down only; `tests/layering.rs` holds the order.
//!
//! | layer | module | purpose |
//! |---|---|---|
//! | 8 | [`cli`] | the commands: `run`, `init`, `check`, `login`, `status`, `demo`, `simulate` |
//! | 7 | [`app`] | composition: a validated configuration becomes running listeners, workers and tasks |
//! | 6 | [`config`] | from the user's words to the `Config` of each component, with every mistake at once |
//! | 5 | [`admin`] | health, metrics, status: reads snapshots, never drives the data path |
//! | 4 | [`proxy`] | the data path: a request's life, on single-threaded workers |
//! | 3 | [`token`], [`upstream`] | the token's lifecycle; connections to the cloud. They never import each other |
//! | 2 | [`net`] | sockets, TLS, certificates, the errors of HTTP/2 |
//! | 1 | [`base`] | clock, secrets, backoff, signals, logging, metric labels |
//! | – | [`cloud`] | a simulated private cloud. Imports `base` alone, so that it cannot share a mistake with the proxy |
//!
//! Read in this order: [`app`] (what exists), `proxy/handler.rs` (what happens to a request),
//! `token/refresher.rs` (why this proxy is special).
//!
//! # Glossary
//!
//! Everything else is named as RFC 9110, RFC 6749, nginx and tokio name it.
//!
//! | term | meaning |
//! |---|---|
//! | access log, sampled | at most ten lines a second, half of them kept for server errors |
//! | attempt | one sending of a request to an endpoint, under one token |
//! | chain | the refresh tokens that descend from one another by rotation |
//! | cooldown | the time between two refreshes that rejections cause, and for which a futile request is remembered at first |
//! | credential | a named chain of tokens with its issuer; `default` is the only one today |
//! | endpoint | an origin of an upstream; several share its load |
//! | exchange | a request and its response on a client connection |
//! | futile | of a request: it was rejected under a fresh token, too |
//! | gate | holds a request's body, or what exceeds its recording, back until the upstream sends 100, or a time has passed |
//! | grace retry | sending a refresh token once more, at once, after its response was lost |
//! | guard | refuses requests that web pages send to a listener without permission |
//! | intent | the durable note, before a call to the issuer, of which refresh token is about to be sent; while it is open, that token may have been used |
//! | lease | the right to send requests on one upstream connection |
//! | lingering | reading out a request's body that is no longer needed, so that the client sees the response |
//! | loop id | marks requests that have passed this instance, in `CDN-Loop` (RFC 8586) |
//! | parked | of a request's body: it waits while a rejection is read, to be ended afterwards |
//! | peer | the other end of a client's connection: the client, or a load balancer, which is trusted to state its clients or not |
//! | proof | a 2xx or 101 under a token: the upstream accepts it |
//! | rejection | a response that says that the token is not valid (`retry.statuses`, `retry.json`) |
//! | replay | the second attempt of a request, under a newer token |
//! | seed | a configured refresh token that was never used: a chain begins with it, once |
//! | verification | a rejected request that is sent again with the same, proven token, over another connection |
//! | version | identifies a token: the *epoch* (when its chain began, milliseconds since 1970) and the *generation* (counts all tokens) |
//! | view | the settings as one worker uses them; a request takes it once |

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
