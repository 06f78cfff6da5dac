//! Which fields a message may have (RFC 9113 §8.2 and §8.3), as far as h2 ends the whole connection
//! over one that it may not.

use http::uri::Authority;
use percent_encoding::percent_encode_byte;

/// The method of the request that h2 reads in place of a malformed one. No client can send it: a
/// request with this method is malformed.
pub(super) const MALFORMED: &str = "MALFORMED";

/// The only field of the trailers that h2 reads in place of malformed ones, with the number of the
/// reason. A client that sends it makes its own request malformed.
pub(super) const MALFORMED_TRAILERS: &str = "bearer-proxy-malformed-trailers";

/// The messages that one side of a connection sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Messages {
    /// A client's.
    Requests,
    /// A server's.
    Responses,
}

/// Why a message is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The name of a field is not a token in lower case.
    Name,
    /// The value of a field has a control character.
    Value,
    /// A pseudo-header field that is unknown, missing, repeated, or behind other fields, or whose
    /// value is invalid.
    PseudoField,
    /// A field that only connections of HTTP/1.1 have, RFC 9113 §8.2.2.
    ConnectionField,
    /// `:path` is no path, or has a control character or a fragment.
    Path,
    /// The head is larger than allowed.
    TooLarge,
    /// The stream depends on itself, RFC 9113 §5.3.1.
    Dependency,
}

impl Malformed {
    /// All reasons, by their number.
    pub(super) const ALL: [Self; 7] = [
        Self::Name,
        Self::Value,
        Self::PseudoField,
        Self::ConnectionField,
        Self::Path,
        Self::TooLarge,
        Self::Dependency,
    ];
}

/// A field as h2 may read it: `None` if it is valid, otherwise another value for it.
///
/// # Errors
/// Why the message is malformed.
pub(super) fn check(
    messages: Messages,
    name: &[u8],
    value: &[u8],
) -> Result<Option<Vec<u8>>, Malformed> {
    let is_valid = match (name, messages) {
        (b":path", Messages::Requests) => return path(value),
        (b":method", Messages::Requests) => is_all(value, TOKEN) && value != MALFORMED.as_bytes(),
        (b":scheme", Messages::Requests) => {
            value.len() <= LONGEST_SCHEME
                && value.first().is_some_and(u8::is_ascii_alphabetic)
                && is_all(value, SCHEME)
        }
        (b":authority", Messages::Requests) => {
            is_all(value, HOST_NAME) || Authority::try_from(value).is_ok()
        }
        (b":protocol", Messages::Requests) => is_all(value, TOKEN),
        (b":status", Messages::Responses) => {
            matches!(value, [b'1'..=b'9', tens, ones]
                if tens.is_ascii_digit() && ones.is_ascii_digit())
        }
        ([b':', ..], _) => false,
        (
            b"connection" | b"transfer-encoding" | b"upgrade" | b"keep-alive" | b"proxy-connection",
            _,
        ) => return Err(Malformed::ConnectionField),
        (b"te", _) if value != b"trailers" => return Err(Malformed::ConnectionField),
        _ if !is_all(name, LOWER_TOKEN) => return Err(Malformed::Name),
        _ => return regular(messages, value),
    };
    is_valid.then_some(None).ok_or(Malformed::PseudoField)
}

/// The pseudo-header fields of a request so far, RFC 9113 §8.3.1.
#[derive(Debug)]
pub(super) struct PseudoFields {
    seen: u8,
    /// Whether more may follow: they precede all other fields, and trailers have none.
    is_open: bool,
    is_connect: bool,
}

impl PseudoFields {
    const METHOD: u8 = 1;
    const SCHEME: u8 = 2;
    const PATH: u8 = 4;
    const AUTHORITY: u8 = 8;
    const PROTOCOL: u8 = 16;

    /// `is_head`: otherwise of trailers.
    pub(super) fn new(is_head: bool) -> Self {
        Self {
            seen: 0,
            is_open: is_head,
            // Nothing is missing in trailers.
            is_connect: !is_head,
        }
    }

    /// A field that passes [`check`] follows.
    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        if name.first() != Some(&b':') {
            self.is_open = false;
            return Ok(());
        }
        let field = match name {
            b":method" => Self::METHOD,
            b":scheme" => Self::SCHEME,
            b":path" => Self::PATH,
            b":authority" => Self::AUTHORITY,
            _ => Self::PROTOCOL,
        };
        if !self.is_open || self.seen & field != 0 {
            return Err(Malformed::PseudoField);
        }
        self.seen |= field;
        self.is_connect |= field == Self::METHOD && value == b"CONNECT";
        Ok(())
    }

    /// No field follows.
    pub(super) fn complete(&self) -> Result<(), Malformed> {
        let required = Self::METHOD | Self::SCHEME | Self::PATH;
        let is_complete = self.is_connect || self.seen & required == required;
        is_complete.then_some(()).ok_or(Malformed::PseudoField)
    }
}

/// The value of a regular field. Of control characters, RFC 9113 §8.2.1 forbids three; the others
/// are replaced in responses, as RFC 9110 §5.5 allows, since servers put texts of users into them.
fn regular(messages: Messages, value: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    if !has_any(value, CONTROL) {
        return Ok(None);
    }
    let is_forbidden = |byte: &u8| matches!(byte, 0 | b'\r' | b'\n');
    if messages == Messages::Requests || value.iter().any(is_forbidden) {
        return Err(Malformed::Value);
    }
    let clean = |byte: &u8| {
        if has_any(&[*byte], CONTROL) {
            b' '
        } else {
            *byte
        }
    };
    Ok(Some(value.iter().map(clean).collect()))
}

/// A `:path`. Old clients send some characters raw that are not allowed but have one meaning; they
/// are percent-encoded here. UTF-8 is encoded later, when the rules are checked.
fn path(path: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    if !(path.first() == Some(&b'/') || path == b"*") || has_any(path, NO_PATH) {
        return Err(Malformed::Path);
    }
    let is_utf8 = path.is_ascii() || std::str::from_utf8(path).is_ok();
    if is_utf8 && !has_any(path, RAW) {
        return Ok(None);
    }
    let mut encoded = Vec::with_capacity(path.len() + 16);
    for byte in path {
        if byte.is_ascii() && !has_any(&[*byte], RAW) {
            encoded.push(*byte);
        } else {
            encoded.extend_from_slice(percent_encode_byte(*byte).as_bytes());
        }
    }
    Ok(Some(encoded))
}

/// The longest scheme that the `http` crate takes.
const LONGEST_SCHEME: usize = 64;

/// RFC 9110 §5.6.2.
const TOKEN: u8 = 1;
/// The same without capital letters, RFC 9113 §8.2.1.
const LOWER_TOKEN: u8 = 2;
/// Control characters, except the tab.
const CONTROL: u8 = 4;
/// RFC 3986 §3.1.
const SCHEME: u8 = 8;
/// Letters, digits, `-` and `.`: an authority of these needs no further check.
const HOST_NAME: u8 = 16;
/// Never in a path: controls, the blank, and the beginning of a fragment.
const NO_PATH: u8 = 32;
/// Not allowed in a target, but without another meaning.
const RAW: u8 = 64;

const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let c = byte as u8;
        let is_token = c.is_ascii_alphanumeric()
            || matches!(c, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~');
        let is_control = c.is_ascii_control();
        let flags = [
            (is_token, TOKEN),
            (is_token && !c.is_ascii_uppercase(), LOWER_TOKEN),
            (is_control && c != b'\t', CONTROL),
            (
                c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'),
                SCHEME,
            ),
            (
                c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.'),
                HOST_NAME,
            ),
            (is_control || matches!(c, b' ' | b'#'), NO_PATH),
            (matches!(c, b'"' | b'<' | b'>' | b'`'), RAW),
        ];
        let mut flag = 0;
        while flag < flags.len() {
            if flags[flag].0 {
                classes[byte] |= flags[flag].1;
            }
            flag += 1;
        }
        byte += 1;
    }
    classes
};

fn has_any(text: &[u8], class: u8) -> bool {
    text.iter()
        .any(|byte| CLASSES[usize::from(*byte)] & class != 0)
}

fn is_all(text: &[u8], class: u8) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|byte| CLASSES[usize::from(*byte)] & class != 0)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Method, StatusCode, uri::PathAndQuery};

    use super::*;

    /// h2 reads what is checked with these functions.
    #[test]
    fn whatever_passes_is_accepted_by_the_http_crate() {
        for byte in 0..=u8::MAX {
            let value = [b'v', byte, b'v'];
            for messages in [Messages::Requests, Messages::Responses] {
                match check(messages, b"name", &value) {
                    Ok(None) => assert!(HeaderValue::from_bytes(&value).is_ok(), "{byte}"),
                    Ok(Some(clean)) => assert!(HeaderValue::from_bytes(&clean).is_ok(), "{byte}"),
                    Err(_) => assert!(HeaderValue::from_bytes(&value).is_err(), "{byte}"),
                }
            }
            let name = [b'n', byte];
            if check(Messages::Requests, &name, b"").is_ok() {
                assert!(HeaderName::from_lowercase(&name).is_ok(), "{byte}");
            }
            if check(Messages::Requests, b":method", &name).is_ok() {
                assert!(Method::from_bytes(&name).is_ok(), "{byte}");
            }
            for path in [[b'/', byte, b'x'], [b'/', b'?', byte]] {
                let accepted = match check(Messages::Requests, b":path", &path) {
                    Ok(None) => path.to_vec(),
                    Ok(Some(encoded)) => encoded,
                    Err(_) => continue,
                };
                assert!(PathAndQuery::try_from(&accepted[..]).is_ok(), "{byte}");
            }
            if check(Messages::Requests, b":scheme", &[b'a', byte]).is_ok() {
                assert!(
                    http::uri::Scheme::try_from(&[b'a', byte][..]).is_ok(),
                    "{byte}"
                );
            }
            if check(Messages::Requests, b":authority", &[b'a', byte]).is_ok() {
                assert!(Authority::try_from(&[b'a', byte][..]).is_ok(), "{byte}");
            }
        }
        for status in ["", "9", "99", "099", "2000", "1e2", "+20", "20 "] {
            let checked = check(Messages::Responses, b":status", status.as_bytes());
            assert_eq!(checked, Err(Malformed::PseudoField), "{status}");
        }
        for status in ["100", "200", "999"] {
            let checked = check(Messages::Responses, b":status", status.as_bytes());
            assert_eq!(checked, Ok(None));
            assert!(StatusCode::from_bytes(status.as_bytes()).is_ok());
        }
    }

    #[test]
    fn malformed_and_cleaned_fields() {
        use Malformed::{Name, Path, PseudoField, Value};
        use Messages::{Requests, Responses};
        type Case = (
            Messages,
            &'static [u8],
            &'static [u8],
            Result<Option<&'static str>, Malformed>,
        );
        let table: [Case; 27] = [
            (Responses, b"x", b"a\x01b\x7f\x1b", Ok(Some("a b  "))),
            (Responses, b"x", b"a\tb \xff", Ok(None)),
            (Responses, b"x", b"a\0b", Err(Value)),
            (Responses, b"x", b"a\r\nb: c", Err(Value)),
            (Requests, b"x", b"a\x01b", Err(Value)),
            (Requests, b"x", b"a\0b", Err(Value)),
            (Requests, b"X-Name", b"", Err(Name)),
            (Requests, b"x name", b"", Err(Name)),
            (Requests, b"x\"y", b"", Err(Name)),
            (Responses, b"x(y", b"", Err(Name)),
            (Responses, b"x:y", b"", Err(Name)),
            (Responses, b"", b"x", Err(Name)),
            (Responses, b"x\xe9", b"", Err(Name)),
            (Responses, b":foo", b"", Err(PseudoField)),
            (Responses, b":path", b"/", Err(PseudoField)),
            (Requests, b":status", b"200", Err(PseudoField)),
            (Requests, b":method", b"MALFORMED", Err(PseudoField)),
            (Requests, b":method", b"GET ", Err(PseudoField)),
            (Requests, b":authority", b"a b", Err(PseudoField)),
            (Requests, b":authority", b"[::1]:8080", Ok(None)),
            (Requests, b":path", b"/caf\xc3\xa9", Ok(None)),
            (
                Requests,
                b":path",
                b"/caf\xe9?\xe9",
                Ok(Some("/caf%E9?%E9")),
            ),
            (
                Requests,
                b":path",
                b"/a<b?\">`",
                Ok(Some("/a%3Cb?%22%3E%60")),
            ),
            (Requests, b":path", b"/a b", Err(Path)),
            (Requests, b":path", b"/a#b", Err(Path)),
            (Requests, b":path", b"a", Err(Path)),
            (Requests, b":path", b"", Err(Path)),
        ];
        for (messages, name, value, expected) in table {
            let expected = expected.map(|clean| clean.map(|clean| clean.as_bytes().to_vec()));
            let shown = (name.escape_ascii(), value.escape_ascii());
            assert_eq!(
                check(messages, name, value),
                expected,
                "{messages:?} {shown:?}"
            );
        }
    }
}
