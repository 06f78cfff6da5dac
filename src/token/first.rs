//! First tokens without a person: where a new credential chain can come from.

use std::pin::Pin;

use super::answer::{Failure, Grant};

/// Who can begin a new credential chain without a person.
pub trait FirstTokens: Send + Sync + std::fmt::Debug {
    /// Fetches the first tokens of a new chain. Ends within twice the issuer's timeout.
    ///
    /// # Errors
    /// With what follows from the failure, and words for people that contain no secret.
    fn fetch(&self) -> Pin<Box<dyn Future<Output = Result<Grant, Failure>> + Send + '_>>;
}
