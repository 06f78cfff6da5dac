//! The integration tests, in one crate: one link, and helpers that are compiled once.
//!
//! A test that touches what a whole process shares (its allocator, panic hook, log subscriber,
//! descriptors or processor time) is a crate of its own beside this folder.
//!
//! | modules | subject |
//! |---|---|
//! | `main_job`, `data_path`, `uploads`, `field_uploads`, `reuse`, `protocols`, `http2`, `tunnel`, `field_h2`, `field_streams` | what an app notices: tokens, replays, bodies, connections, versions of HTTP |
//! | `field_heads`, `field_targets` | what heads of messages may look like, in both directions |
//! | `field_mapping`, `field_everything` | URLs, cookies and ranges in messages; every change that is made to a message |
//! | `load_balancers` | what nginx and HAProxy in front state of their clients, and PROXY headers |
//! | `rewrite`, `clients`, `certificates`, `tls` | URLs in responses, client authentication, certificates and their reload |
//! | `bad_input`, `differential`, `limits`, `slow`, `http2_attacks`, `secrets` | hostile clients; nginx and HAProxy as references; secrets in outputs |
//! | `faults`, `issuer`, `issuers`, `crashes`, `login`, `machine`, `field_replay` | the token's lifecycle: issuers that fail, kills, first tokens, clocks |
//! | `process`, `admin`, `config`, `confinement`, `descriptors`, `memory`, `field_operations`, `field_store` | the program as a process: commands, signals, files, the unit, its resources |
//! | `names` | names of upstreams: several addresses, changes, nameservers that fail or hang |
//! | `nodes_seen` | what operators see of the addresses of an upstream |
//! | `outbound_proxy` | Squid, a SOCKS server, and proxies that refuse or hang, between this proxy and the cloud |
//! | `replicas` (run by scripts/interop) | replicas that share a token store: real processes, a real Redis, and connections that fail |
//! | `health_checks` | active health checks of upstreams |
//! | `nodes` | several nodes of the cloud of which some are bad: failures, shares, retries |
//! | `deploy` | the processes of `deploy/compose.yaml` |
//! | `store_seen` | replicas with a Redis server: what operators see of it, and `login` |
//! | `soak` | a mixture of all faults, for a few seconds; `scripts/soak` runs it for longer |
//! | `cloud`, `documents` | the simulated cloud; what the documents claim |
//!
//! A new test scripts an upstream, starts a proxy in front of it, and looks at both sides:
//!
//! ```text
//! #[tokio::test]
//! async fn a_response_is_relayed_under_the_token() {
//!     let upstream = Upstream::new().on("/x", ok("body")).start().await;
//!     let proxy = upstream.proxy(&[]).await;
//!     assert_eq!(proxy.get("/x").await.body(), "body");
//!     assert_eq!(upstream.targets(), ["/x"]);
//! }
//! ```
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
#[cfg(target_os = "linux")]
mod deploy;
mod descriptors;
mod differential;
mod documents;
mod faults;
mod field_call;
mod field_everything;
mod field_h2;
mod field_heads;
mod field_mapping;
mod field_operations;
mod field_replay;
mod field_store;
mod field_streams;
mod field_targets;
mod field_uploads;
#[cfg(target_os = "linux")]
mod health_checks;
mod http2;
mod http2_attacks;
mod issuer;
mod issuers;
mod limits;
mod load_balancers;
mod login;
mod machine;
mod main_job;
mod memory;
#[cfg(target_os = "linux")]
mod names;
#[cfg(target_os = "linux")]
mod nodes;
mod nodes_seen;
mod outbound_proxy;
mod process;
mod protocols;
mod replicas;
mod reuse;
mod rewrite;
mod secrets;
mod slow;
mod soak;
mod store_seen;
mod tls;
mod tunnel;
mod uploads;
