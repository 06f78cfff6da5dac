//! First tokens: how a chain begins without a refresh token.

use std::fmt::Debug;

use super::{
    issuer::BoxFuture,
    token_response::{Failure, TokenResponse},
};

/// A way to get first tokens without a person and without a refresh token.
///
/// Used when there is no refresh token, when the issuer refused it, and when it may be spent.
pub trait InitialGrant: Send + Sync + Debug {
    /// Fetches them. Ends within the issuer's timeout.
    ///
    /// # Errors
    /// Failures are classed like those of a refresh; a refusal (`invalid_grant`, `invalid_client`) is tried again after
    /// a minute.
    fn request_tokens(&self) -> BoxFuture<'_, Result<TokenResponse, Failure>>;
}
