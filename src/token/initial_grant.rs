//! The seam for grants that need neither a refresh token nor a user.

use std::fmt::Debug;

use futures_util::future::BoxFuture;

use super::{
    deadline::CallDeadline,
    token_response::{Failure, TokenResponse},
};

/// Obtains the first tokens of a chain without a refresh token and without a user.
///
/// The refresher uses it when there is no refresh token, when the issuer refused it, and when it
/// may have been used already.
pub(super) trait InitialGrant: Send + Sync + Debug {
    /// Requests the tokens. Ends at the deadline.
    ///
    /// # Errors
    /// Classified like the failures of a refresh. After a refusal (`invalid_grant`,
    /// `invalid_client`) the refresher tries again after a minute.
    fn request_tokens<'a>(
        &'a self,
        deadline: &'a CallDeadline,
    ) -> BoxFuture<'a, Result<TokenResponse, Failure>>;
}
