//! What every layer may use. Imports nothing from the other layers.
//!
//! | file | contents |
//! |---|---|
//! | [`backoff`] | exponential backoff with jitter |
//! | [`blocking`] | runs file I/O on a thread for blocking calls |
//! | [`cache_line`] | values that do not share a cache line with others |
//! | [`clock`] | the boot clock, the wall clock, and a simulated clock for tests |
//! | `coop` | cooperative yielding for tasks whose input never runs dry |
//! | `corpus` | runs fuzz targets on their stored corpus (tests only) |
//! | [`counter`] | counters and histograms with a single writer |
//! | [`descriptors`] | divides the limit of open files between the users of descriptors |
//! | [`header_map`] | removes fields from messages |
//! | [`host`] | parses `host[:port]`, tells which hosts are this machine |
//! | [`labels`] | enums of metric labels, and tables with an entry for each label |
//! | [`list_field`] | elements of list-based header fields |
//! | [`log`] | the log subscriber |
//! | [`panics`] | counts and logs panics |
//! | [`per_second`] | limits how often something happens in each second |
//! | [`process`] | resource usage, resource limits, core dumps, file modes |
//! | [`retry_after`] | the `Retry-After` field of responses |
//! | [`secret`] | secrets that never print themselves, and secret files |
//! | [`signals`] | SIGTERM, SIGINT and SIGHUP, and their Windows counterparts |
//! | [`ticker`] | coarse deadlines: one timer for each worker |
//! | [`watch`] | notices that files have changed |

pub mod backoff;
pub mod blocking;
pub mod cache_line;
pub mod clock;
pub(crate) mod coop;
#[cfg(test)]
pub(crate) mod corpus;
pub mod counter;
pub mod descriptors;
pub mod header_map;
pub mod host;
pub mod labels;
pub mod list_field;
pub mod log;
pub mod panics;
pub mod per_second;
pub mod process;
pub mod retry_after;
pub mod secret;
pub mod signals;
pub mod ticker;
pub mod watch;
