//! The integration tests, in one crate: one link, and helpers that are compiled once.
//!
//! A test that needs a process of its own is a crate of its own beside this folder.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

mod admin;
mod bad_input;
mod certificates;
mod clients;
mod cloud;
mod config;
mod confinement;
mod crashes;
mod data_path;
mod descriptors;
mod differential;
mod documents;
mod faults;
mod field_operations;
mod http2;
mod http2_attacks;
mod issuer;
mod limits;
mod login;
mod machine;
mod main_job;
mod memory;
mod process;
mod protocols;
mod reuse;
mod rewrite;
mod secrets;
mod slow;
mod tls;
mod tunnel;
mod uploads;
