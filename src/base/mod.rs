//! What every layer may use: time, secrets, backoff, shutdown, logging, changing files.

pub mod backoff;
pub mod clock;
pub(crate) mod coop;
#[cfg(test)]
pub(crate) mod corpus;
pub mod counter;
pub mod descriptors;
pub mod host;
pub mod labels;
pub mod log;
pub mod panics;
pub mod per_second;
pub mod process;
pub mod secret;
pub mod shutdown;
pub mod ticker;
pub mod watch;
