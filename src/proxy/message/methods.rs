//! Properties of request methods.

use http::Method;

/// Whether a request with this method may be sent twice with the effect of once (RFC 9110 §9.2.2).
/// Beside the methods of HTTP, these are all extensions that the IANA registry of HTTP methods
/// lists as idempotent: above all WebDAV (RFC 4918), its versioning (RFC 3253) and SEARCH.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    method.is_idempotent()
        || matches!(
            method.as_str(),
            "ACL"
                | "BASELINE-CONTROL"
                | "BIND"
                | "CHECKIN"
                | "CHECKOUT"
                | "COPY"
                | "LABEL"
                | "LINK"
                | "MERGE"
                | "MKACTIVITY"
                | "MKCALENDAR"
                | "MKCOL"
                | "MKREDIRECTREF"
                | "MKWORKSPACE"
                | "MOVE"
                | "ORDERPATCH"
                | "PROPFIND"
                | "PROPPATCH"
                | "QUERY"
                | "REBIND"
                | "REPORT"
                | "SEARCH"
                | "UNBIND"
                | "UNCHECKOUT"
                | "UNLINK"
                | "UNLOCK"
                | "UPDATE"
                | "UPDATEREDIRECTREF"
                | "VERSION-CONTROL"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_b6_extensions_are_idempotent_as_they_are_registered() {
        for (methods, expected) in [
            ("GET HEAD OPTIONS TRACE PUT DELETE", true),
            (
                "PROPFIND REPORT SEARCH COPY MOVE UNLOCK PROPPATCH MKCOL",
                true,
            ),
            (
                "ACL BIND CHECKIN CHECKOUT MERGE ORDERPATCH QUERY VERSION-CONTROL",
                true,
            ),
            ("POST PATCH LOCK CONNECT", false),
            ("propfind Copy SUBSCRIBE PURGE", false),
        ] {
            for method in methods.split(' ') {
                let parsed = Method::from_bytes(method.as_bytes()).unwrap();
                assert_eq!(is_idempotent(&parsed), expected, "{method}");
            }
        }
    }
}
