//! The form that the standard requires, of a head that deviates from it.

use percent_encoding::{AsciiSet, percent_encode};

use super::{is_field_value, parts};

/// Characters that RFC 3986 excludes. `http::Uri` rejects them, except `"` in a path. All bytes
/// outside ASCII are encoded.
const EXCLUDED: &AsciiSet = &AsciiSet::EMPTY.add(b'"').add(b'<').add(b'>').add(b'`');

/// Whether a target has one of [`EXCLUDED`].
pub(super) fn has_excluded(target: &[u8]) -> bool {
    target
        .iter()
        .any(|byte| matches!(byte, b'"' | b'<' | b'>' | b'`'))
}

/// Percent-encodes the characters of a target that must be encoded (RFC 3986 §2.1), also those of
/// other charsets than UTF-8: the server decodes the same bytes.
pub(super) fn encoded(target: &[u8]) -> Vec<u8> {
    percent_encode(target, EXCLUDED).to_string().into_bytes()
}

/// Appends a complete and acceptable head, repaired: without empty lines before it, with one space
/// between the parts of the request line, version 1.0 or 1.1, a target that is percent-encoded, and
/// spaces in place of control characters.
pub(super) fn repair(head: &[u8], out: &mut Vec<u8>) {
    let lines = head.split(|byte| *byte == b'\n');
    let mut lines = lines
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .skip_while(|line| line.is_empty());
    if let Some(([method, target, version], _)) = lines.next().and_then(parts) {
        let version: &[u8] = if version == b"HTTP/1.0" {
            version
        } else {
            b"HTTP/1.1"
        };
        out.extend_from_slice(&[method, &encoded(target), version].join(&b' '));
    }
    out.extend_from_slice(b"\r\n");
    for line in lines.take_while(|line| !line.is_empty()) {
        out.extend(line.iter().map(|byte| match byte {
            byte if is_field_value(*byte) => *byte,
            _ => b' ',
        }));
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}
