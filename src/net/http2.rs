//! What hyper keeps to itself about HTTP/2.

use std::error::Error;

/// The protocol's own error beneath one of hyper's, if it came from there.
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
