//! The data path against upstreams that follow a script: requests, responses, retries, timeouts, connections.

mod connections;
mod early_responses;
mod requests;
mod responses;
mod retries;
mod timeouts;
