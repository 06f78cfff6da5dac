//! The lifecycle of a credential's tokens: one task keeps the access token fresh, and every worker
//! reads it without blocking.
//!
//! [`Refresher`] is the task, [`Credential`] the handle for everything else, and [`Token`] the
//! cached access token that they share through one `ArcSwap` cell.
//!
//! # Files
//!
//! | file | contents |
//! |---|---|
//! | `config.rs` | the configuration of a credential |
//! | `credential.rs` | the handle: read the token, wait for a newer one, refresh by hand |
//! | `cache.rs` | the cached token and its version |
//! | `replacement.rs` | requests whose token was rejected: which get a newer token, how long they wait |
//! | `rejection.rs` | what these requests know of each other |
//! | `rejection/rule.rs` | the pure rule: verification, budget of refreshes |
//! | `rejection/futile.rs` | the requests that a fresh token did not help |
//! | `refresher.rs` | the task: executes the plan, one call to the issuer at a time |
//! | `refresher/plan.rs` | pure functions: which call to make next, when, and when to retry |
//! | `refresher/situation.rs` | the refresher's state as the plan's input |
//! | `refresher/chain.rs` | the known refresh tokens: chain, seed, refused ones |
//! | `refresher/reload.rs` | the stored record of other processes, and the files of secrets |
//! | `refresher/lock.rs` | waits for the moment of the next call and for the store's lock |
//! | `refresher/report.rs` | status, telemetry, log |
//! | `schedule.rs` | pure functions: margins, waits |
//! | `state.rs` | states, reasons, outcomes, snapshots |
//! | `issuer.rs` | the token endpoint |
//! | `endpoint.rs` | the HTTP client for one endpoint: connection, exchange, what was received |
//! | `deadline.rs` | when a call to the issuer is given up |
//! | `token_response.rs` | parsing of responses, classification of failures |
//! | `token_response/` | odd framing, content codings, JSON in odd wrapping |
//! | `code_grant.rs`, `jwt_grant.rs` | the first tokens of a chain: for a code, for a JWT |
//! | `initial_grant.rs` | the seam for grants without a refresh token |
//! | `login.rs` | stores the tokens of `login` beside a running proxy |
//! | `refresh_token.rs` | a refresh token and its fingerprint |
//! | `store/` | the token store: the record, the state file, its lock, the writer |
//!
//! # The life of a refresh
//!
//! A refresh is due at the scheduled moment (a margin before the access token expires), when the
//! upstream rejected the token, or when an operator asks. Then the refresher
//!
//! 1. locks the state file,
//! 2. reads the record again and goes on with a newer one,
//! 3. stores an intent,
//! 4. calls the issuer once,
//! 5. saves the new tokens,
//! 6. publishes the access token, which wakes the requests that wait for it.
//!
//! After a failure its class decides: an unknown outcome is repeated once within a few seconds, a
//! refused refresh token is never sent again, everything else is retried with backoff.
//!
//! # States
//!
//! | state | meaning | left when |
//! |---|---|---|
//! | `starting` | there was no token yet | the first token arrives |
//! | `fresh` | usable; refreshing works | a refresh fails, or the token expires |
//! | `stale` | usable; a refresh is overdue or fails | a refresh succeeds, or the token expires |
//! | `expired` | no usable token; refreshing is retried | a refresh succeeds |
//! | `dead` | the issuer refused the credential | there is a new refresh token or client secret |
//!
//! A token that is still valid stays in use in the state `dead`, too.
//!
//! # Terms
//!
//! - *chain*: a refresh token and those that replaced it, one after the other.
//! - *seed*: a configured refresh token that was never used; it can begin a new chain, once.
//! - *epoch*, *generation*: the version of a token. The epoch identifies the chain and increases
//!   with each new one; the generation counts all tokens.
//! - *intent*: the stored note that a refresh token is about to be sent; while it is open, that
//!   token may have been used.
//! - *proof*: a 2xx or 101 for a request with a token: the upstream accepts it.
//! - *verification*: a rejected request that is sent again with the same, proven token.
//! - *futile*: a request that was rejected under a fresh token too, so that refreshing does not help.
//! - *grant*: what is presented to the issuer for tokens (RFC 6749 §1.3); an *initial grant* needs
//!   no refresh token.

mod cache;
pub mod code_grant;
mod config;
mod credential;
mod deadline;
mod endpoint;
pub mod fleet;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod initial_grant;
pub mod issuer;
pub mod jwt_grant;
pub mod login;
mod refresh_token;
mod refresher;
mod rejection;
mod replacement;
mod schedule;
mod state;
mod store;
#[cfg(test)]
mod testing;
mod token_response;

pub use self::{
    cache::{Token, Version},
    config::{Config, InitialGrantConfig},
    credential::{Credential, MAX_WAITERS, ManualRefreshError},
    issuer::{BasicEncoding, IssuerConfig, ParameterLocation},
    refresher::{Error, Refresher},
    rejection::RequestKey,
    replacement::{RejectedRequest, Rejection, Replacement, Verification},
    state::{DurationHistogram, Outcome, Persistence, Reason, Refresh, Snapshot, State, Status},
    store::{Error as StoreError, inspect as inspect_state_file},
    token_response::{Failure, FailureClass, ResponseFields, TokenResponse},
};
