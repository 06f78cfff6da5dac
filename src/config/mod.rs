//! The user's words, turned into the `Config` of each component, every mistake reported at once.

use crate::{admin, base::log, proxy, token, upstream};

/// A validated configuration: nothing in it is optional that the program needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data path.
    pub proxy: proxy::Config,
    /// The cloud.
    pub upstream: upstream::Config,
    /// The credential.
    pub token: token::Config,
    /// The admin listener, unless there is none.
    pub admin: Option<admin::Config>,
    /// Logging.
    pub log: log::Config,
}
