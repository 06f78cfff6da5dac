//! The seam for grants that need neither a refresh token nor a user.

use std::fmt::Debug;

use futures_util::future::BoxFuture;

use super::token_response::{Failure, TokenResponse};

/// Obtains the first tokens of a chain without a refresh token and without a user.
///
/// The refresher uses it when there is no refresh token, when the issuer refused it, and when it
/// may have been used already.
pub trait InitialGrant: Send + Sync + Debug {
    /// Requests the tokens. Ends within the issuer's timeout.
    ///
    /// # Errors
    /// Classified like the failures of a refresh. After a refusal (`invalid_grant`,
    /// `invalid_client`) the refresher tries again after a minute.
    fn request_tokens(&self) -> BoxFuture<'_, Result<TokenResponse, Failure>>;
}
