//! The register on real servers and on hostile ones.

mod hostile;
#[cfg(target_os = "linux")]
mod real;
#[cfg(target_os = "linux")]
mod topologies;
