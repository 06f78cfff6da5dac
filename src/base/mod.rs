//! What every layer may use: time, secrets, backoff, shutdown, logging.

pub mod backoff;
pub mod clock;
pub mod log;
pub mod secret;
pub mod ticker;
