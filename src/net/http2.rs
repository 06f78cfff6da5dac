//! Errors of HTTP/2, which hyper does not expose.

use std::error::Error;

/// The HTTP/2 error that caused an error of hyper, if one did.
pub fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}
