//! List-based header fields (RFC 9110 §5.6.1): comma-separated elements, on one line or on several.

use http::{HeaderMap, HeaderName};

/// The elements of all lines of a field whose elements are tokens, as `Connection`; empty ones are
/// skipped. A quote is no delimiter: an unbalanced one must not hide the elements behind it.
pub fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| trimmed(line.as_bytes().split(|byte| *byte == b',')))
}

/// The same elements, the last one first.
pub fn elements_from_end<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .rev()
        .flat_map(|line| trimmed(line.as_bytes().rsplit(|byte| *byte == b',')))
}

/// Whether a field of tokens has this element, in any case.
pub fn contains(headers: &HeaderMap, name: &HeaderName, element: &str) -> bool {
    elements(headers, name).any(|other| other.eq_ignore_ascii_case(element.as_bytes()))
}

/// The elements of a line whose elements may have quoted strings, as `Cache-Control`; empty ones
/// are skipped.
pub fn quoted_elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut is_quoted = false;
    trimmed(line.split(move |byte| {
        is_quoted ^= *byte == b'"';
        *byte == b',' && !is_quoted
    }))
}

fn trimmed<'a>(elements: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    elements
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;

    #[test]
    fn tokens_on_all_lines() {
        let mut headers = HeaderMap::new();
        for line in ["close , \"a", ",,\tX-Hop"] {
            headers.append(header::CONNECTION, HeaderValue::from_static(line));
        }
        let all: Vec<_> = elements(&headers, &header::CONNECTION).collect();
        assert_eq!(all, [&b"close"[..], b"\"a", b"X-Hop"]);
        let from_end: Vec<_> = elements_from_end(&headers, &header::CONNECTION).collect();
        assert_eq!(from_end, [&b"X-Hop"[..], b"\"a", b"close"]);
        assert!(contains(&headers, &header::CONNECTION, "x-hop"));
        assert!(!contains(&headers, &header::CONNECTION, "hop"));
        assert!(!contains(&headers, &header::TE, "trailers"));
    }

    #[test]
    fn a_comma_in_quotes_is_no_delimiter() {
        let all: Vec<_> = quoted_elements(b"private=\"a, b\" , max-age=60,").collect();
        assert_eq!(all, [&b"private=\"a, b\""[..], b"max-age=60"]);
    }
}
