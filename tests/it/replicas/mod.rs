//! Several replicas with one credential and one store, as real processes: which calls the issuer
//! receives while replicas, the store and the connections between them fail.
//!
//! Each replica reaches the store and the issuer through a relay of its own, which cuts, delays and
//! freezes. The relay to the issuer notes each refresh token that it forwards. Counters and tokens
//! are judged; times only by their order of magnitude.
//!
//! | module | subject |
//! |---|---|
//! | `world` | the cloud, the replicas, and clients |
//! | `store` | `redis-server` |
//! | `relay` | connections that fail on demand |
//! | `calm` | nothing fails; restarts of all replicas; several credentials in one store; secrets |
//! | `owners` | a replica is killed or stopped around its call |
//! | `stores` | the store is paused, restarted, emptied, replaced; connections are cut |
//! | `seeds` | rollouts of refresh tokens and client secrets |
//! | `rejections` | tokens that the upstream rejects |

mod calm;
mod owners;
mod rejections;
mod relay;
mod seeds;
mod store;
mod stores;
mod world;
