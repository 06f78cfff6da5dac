//! HTTP/2, as far as hyper and h2 leave it to their users.
//!
//! | file | contents |
//! |---|---|
//! | `filter` | checks header blocks before h2 reads them |
//! | `fields` | which fields a message may have |
//! | `hpack` | reads header blocks, RFC 7541 |

mod fields;
mod filter;
mod hpack;

use std::error::Error;

pub use self::{
    fields::{Malformed, Messages},
    filter::{HeaderFilter, malformed, malformed_trailers},
};

/// The first bytes that a client sends on an HTTP/2 connection, RFC 9113 §3.4.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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
