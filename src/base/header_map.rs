//! Removes fields from a message.

use http::{HeaderMap, HeaderName};

/// Removes the fields that `is_removed` selects by their names. If most messages have none, one pass
/// over their names is cheaper than to look each name up.
pub fn remove_where(headers: &mut HeaderMap, is_removed: impl Fn(&HeaderName) -> bool) {
    let removed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_removed(name))
        .cloned()
        .collect();
    for name in removed {
        headers.remove(name);
    }
}
