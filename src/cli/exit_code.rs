//! Exit codes other than 0.

/// The command failed.
pub(super) const FAILED: u8 = 1;
/// `EX_USAGE`: invalid command line.
pub(super) const USAGE: u8 = 64;
/// `EX_CONFIG`: invalid configuration.
pub(super) const CONFIG: u8 = 78;
