//! The simulated private cloud.
