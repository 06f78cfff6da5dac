//! How servers interpret paths. Pure.
//!
//! Some decode a path twice, treat `\` as `/`, cut parameters off at `;`, drop what follows a decoded
//! `?`, ignore case or trailing dots.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use crate::proxy::error::Error;

/// The most rounds of percent-decoding. A path that changes after that is rejected.
pub(super) const MAX_DECODINGS: usize = 3;

/// Every interpretation of a path, in the form of [`normalize`].
pub(crate) fn interpretations(path: &str) -> impl Iterator<Item = String> {
    let decoded = |decoded_path: &Vec<u8>| decode(decoded_path, false).ok().flatten();
    let all =
        std::iter::successors(Some(path.as_bytes().to_vec()), decoded).take(MAX_DECODINGS + 1);
    all.flat_map(|decoded_path| {
        let text = fold_case(String::from_utf8_lossy(&decoded_path));
        [normalize(&text), normalize(before_query(&text))]
    })
}

/// Whether a path has one interpretation, apart from case and trailing dots.
pub(super) fn is_unambiguous(path: &str) -> bool {
    let mut before = b'/';
    !path.bytes().any(|byte| {
        let is_dots = byte == b'.' && before == b'.';
        before = byte;
        is_dots || !byte.is_ascii() || matches!(byte, b'%' | b'\\' | b';' | b' ')
    })
}

/// Whether `..` leads above the root at some point: servers resolve that differently.
pub(super) fn escapes_root(path: &str) -> bool {
    let mut depth = 0_i32;
    path.split(['/', '\\']).any(|segment| {
        match segment.split(';').next().unwrap_or_default() {
            ".." => depth -= 1,
            "" | "." => {}
            _ => depth += 1,
        }
        depth < 0
    })
}

/// The path up to a decoded `?` or `#`: some servers split off the query after decoding.
pub(super) fn before_query(decoded: &str) -> &str {
    decoded.split(['?', '#']).next().unwrap_or_default()
}

/// A segment without its parameters and without the trailing characters that some servers and file
/// systems ignore.
pub(super) fn trimmed(segment: &str) -> &str {
    // Segments are short: a search for the character costs more to set up than to do.
    let length = segment.bytes().position(|byte| byte == b';');
    let name = &segment[..length.unwrap_or(segment.len())];
    name.trim_end_matches(|c: char| c == '.' || c.is_whitespace() || c.is_control())
}

/// Whether there are dot segments, also after trailing characters are ignored.
pub(super) fn has_dot_segments(path: &str) -> bool {
    path.split(['/', '\\'])
        .any(|segment| segment.starts_with('.') && trimmed(segment).is_empty())
}

/// Folds the case of letters outside ASCII. Some fold to ASCII letters, so that servers that ignore
/// case treat them as equal: the Kelvin sign U+212A to `k`, the long s U+017F to `s`, the dotless i
/// U+0131 to `i`. So does U+0130 where a server compares single characters; Unicode's own mapping
/// adds a combining dot.
pub(super) fn fold_case(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.is_ascii() {
        text
    } else {
        Cow::Owned(text.to_uppercase().to_lowercase().replace("i\u{307}", "i"))
    }
}

/// Whether decoding produced slashes.
pub(super) fn has_encoded_slash(decoded: &str, path: &str) -> bool {
    let slashes = |text: &str| {
        text.bytes()
            .filter(|byte| matches!(byte, b'/' | b'\\'))
            .count()
    };
    slashes(decoded) != slashes(path)
}

/// A path in the most lenient interpretation: `\` is `/`, empty segments and parameters are
/// removed, dot segments are resolved, dots and spaces at the end of a segment are removed, lower
/// case.
pub(crate) fn normalize(path: &str) -> String {
    let folded = fold_case(path.into());
    let mut segments: Vec<&str> = Vec::new();
    for segment in folded.split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default() {
            ".." => drop(segments.pop()),
            name if trimmed(name).is_empty() => {}
            name => segments.push(trimmed(name)),
        }
    }
    format!("/{}", segments.join("/")).to_ascii_lowercase()
}

/// Percent-decodes a path once; `None` if there is nothing to decode. A `%` without two digits is an
/// error in the path that the client sent (`is_written`), and unchanged in a decoded one.
pub(super) fn decode(path: &[u8], is_written: bool) -> Result<Option<Vec<u8>>, Error> {
    if is_written && !is_well_encoded(path) {
        return Err(Error::BadRequest(
            "a % in the path is not followed by two hexadecimal digits",
        ));
    }
    let Cow::Owned(decoded) = Cow::from(percent_decode(path)) else {
        return Ok(None);
    };
    if decoded.contains(&0) {
        return Err(Error::BadRequest("the path contains an encoded NUL"));
    }
    Ok(Some(decoded))
}

/// Whether each `%` is followed by two hexadecimal digits.
fn is_well_encoded(path: &[u8]) -> bool {
    let mut behind_percent = path.split(|byte| *byte == b'%').skip(1);
    behind_percent.all(|rest| {
        rest.get(..2)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}
