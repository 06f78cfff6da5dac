//! Which requests are served: the local guard, CORS, path rules, clients.

pub(crate) mod clients;
pub(crate) mod cors;
pub(crate) mod guard;
pub mod rules;
