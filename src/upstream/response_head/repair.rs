//! Finds the end of a response's head, and repairs what hyper would refuse. Pure.

use http::{HeaderName, HeaderValue};
use hyper::ext::ReasonPhrase;
use memchr::memchr;

use super::Remainder;

/// The number of fields that hyper takes. It refuses a head with more than 100; some places are for
/// fields that it needs wherever they are.
const MAX_FIELDS: usize = 80;

/// The most lines of a head: `http::HeaderMap` has a limit, beyond which it panics.
const MAX_LINES: usize = 16 * 1024;

/// Looks for the end of a head.
#[derive(Debug)]
pub(super) struct Scanner {
    /// The size of the largest head.
    limit: usize,
    /// The position up to which the end of the line was searched.
    searched: usize,
    /// The start of the current line.
    line: usize,
    /// The start of the status line.
    status_line: usize,
    /// The number of lines so far, without empty lines before the status line.
    lines: usize,
}

/// The result of a scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// The head is not complete: scan again with more bytes.
    Partial,
    /// The bytes do not begin with a status line of HTTP/1. An empty line may never follow.
    Foreign,
    /// The head is larger than allowed.
    TooLarge,
    Complete(Head),
}

/// A complete head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes, with the empty line.
    pub(super) length: usize,
    /// hyper takes it as it is.
    pub(super) is_regular: bool,
    /// No interim response. Meaningful if the head is regular.
    pub(super) is_final: bool,
}

impl Scanner {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            searched: 0,
            line: 0,
            status_line: 0,
            lines: 0,
        }
    }

    /// The next head begins.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.limit);
    }

    /// Scans a head that `bytes` begins with. After a partial scan they begin with the same bytes.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Scan {
        match self.find_end(bytes) {
            Scan::Complete(head) if head.is_regular => Scan::Complete(head),
            _ if !may_become_status_line(&bytes[self.status_line..]) => Scan::Foreign,
            scan => scan,
        }
    }

    fn find_end(&mut self, bytes: &[u8]) -> Scan {
        while let Some(found) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + found;
            let is_empty = matches!(&bytes[self.line..end], b"" | b"\r");
            (self.line, self.searched) = (end + 1, end + 1);
            if end >= self.limit || self.lines > MAX_LINES {
                return Scan::TooLarge;
            }
            if !is_empty {
                self.lines += 1;
            } else if self.lines > 0 {
                return Scan::Complete(self.head(&bytes[..=end]));
            } else {
                self.status_line = end + 1;
            }
        }
        self.searched = bytes.len();
        if bytes.len() >= self.limit {
            return Scan::TooLarge;
        }
        Scan::Partial
    }

    fn head(&self, head: &[u8]) -> Head {
        Head {
            length: head.len(),
            is_regular: self.lines <= MAX_FIELDS + 1 && is_regular(head),
            is_final: head.get(9) != Some(&b'1') || head.get(9..12) == Some(b"101"),
        }
    }
}

/// Whether the bytes begin with `HTTP/1.1 `, with any version, or an empty line, or can do so with
/// more bytes.
fn may_become_status_line(bytes: &[u8]) -> bool {
    let mut pairs = bytes.iter().zip(b"HTTP/0.0 ");
    matches!(bytes, b"\r" | [b'\n', ..] | [b'\r', b'\n', ..])
        || pairs
            .all(|(byte, expected)| byte == expected || *expected == b'0' && byte.is_ascii_digit())
}

/// Whether hyper takes a head as it is, but for mistakes that are not repaired.
fn is_regular(head: &[u8]) -> bool {
    let status_line = memchr(b'\n', head).map_or(head, |end| &head[..end]);
    // No early exit: to check every byte is cheaper than to branch on each.
    let pairs = head.iter().zip(&head[1..]);
    (head.starts_with(b"HTTP/1.1 ") || head.starts_with(b"HTTP/1.0 "))
        && head[9] != b' '
        && status_line.is_ascii()
        && !pairs.fold(false, |odd, (byte, next)| {
            odd | (is_control(*byte) & (*byte != b'\r') & (*byte != b'\n'))
                | ((*byte == b'\r') & (*next != b'\n'))
                | ((*byte == b'\n') & ((*next == b' ') | (*next == b'\t')))
        })
}

/// A head that hyper takes, or refuses for a mistake that is not repaired.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repaired {
    pub(super) head: Vec<u8>,
    pub(super) is_final: bool,
    pub(super) remainder: Remainder,
}

/// Repairs a complete head:
///
/// - A control character in a value or in the reason phrase, CR and NUL among them, becomes a space
///   (RFC 9110 §5.5), and so does the line end of a folded line (RFC 9112 §5.2).
/// - A later minor version becomes HTTP/1.1 (RFC 9110 §6.2).
/// - A reason phrase outside ASCII, and fields beyond those that hyper takes, are set apart.
///
/// Fields that frame the body, and malformed names, stay as they are: hyper judges them.
pub(super) fn repair(head: &[u8]) -> Repaired {
    let lines = head.split(|byte| *byte == b'\n');
    let mut lines = lines
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .skip_while(|line| line.is_empty());
    let mut out = Vec::with_capacity(head.len());
    let mut remainder = Remainder::default();
    let is_final = match lines.next().map(|line| (line, status_line(line))) {
        Some((_, Some(status))) => {
            out.extend_from_slice(status.version);
            out.extend_from_slice(status.code);
            out.push(b' ');
            if status.reason.is_ascii() {
                out.extend_from_slice(&status.reason);
            } else {
                remainder.reason = ReasonPhrase::try_from(status.reason).ok();
            }
            !status.code.starts_with(b"1") || status.code == b"101"
        }
        Some((line, None)) => {
            out.extend_from_slice(line);
            true
        }
        None => true,
    };
    out.extend_from_slice(b"\r\n");
    for (position, line) in unfolded(lines.take_while(|line| !line.is_empty()))
        .iter()
        .enumerate()
    {
        match field(line).filter(|(name, _)| position >= MAX_FIELDS && !is_for_hyper(name)) {
            Some(field) => remainder.fields.push(field),
            None => {
                out.extend_from_slice(line);
                out.extend_from_slice(b"\r\n");
            }
        }
    }
    out.extend_from_slice(b"\r\n");
    Repaired {
        head: out,
        is_final,
        remainder,
    }
}

struct StatusLine<'a> {
    version: &'static [u8],
    code: &'a [u8],
    reason: Vec<u8>,
}

/// `HTTP/1.1 200 OK`, or with another version, more spaces, or control characters in the phrase.
fn status_line(line: &[u8]) -> Option<StatusLine<'_>> {
    let version: &[u8] = match line.get(..9)? {
        b"HTTP/1.0 " => b"HTTP/1.0 ",
        [b'H', b'T', b'T', b'P', b'/', b'1'..=b'9', b'.', minor, b' ']
            if minor.is_ascii_digit() =>
        {
            b"HTTP/1.1 "
        }
        _ => return None,
    };
    let rest = line[9..].trim_ascii_start();
    let (code, reason) = rest.split_at_checked(3)?;
    let reason = without_controls(reason);
    (code.iter().all(u8::is_ascii_digit) && matches!(reason.first(), None | Some(b' '))).then(
        || StatusLine {
            version,
            code,
            reason: reason.trim_ascii().to_vec(),
        },
    )
}

/// The fields, each on one line, and without control characters in their values.
fn unfolded<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut fields: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        let is_folded = line.starts_with(b" ") || line.starts_with(b"\t");
        match fields.last_mut() {
            Some(field) if is_folded && !is_framing(name(field)) => {
                field.push(b' ');
                field.extend_from_slice(without_controls(line).trim_ascii());
            }
            _ => {
                let value = name(line).len();
                let is_kept = is_folded || value == line.len() || is_framing(name(line));
                fields.push(if is_kept {
                    line.to_vec()
                } else {
                    [&line[..value], &without_controls(&line[value..])[..]].concat()
                });
            }
        }
    }
    fields
}

/// What precedes the colon.
fn name(line: &[u8]) -> &[u8] {
    memchr(b':', line).map_or(line, |colon| &line[..colon])
}

/// The name and the value of a well-formed line.
fn field(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let name = name(line);
    let value = line.get(name.len() + 1..)?.trim_ascii();
    let name = name.trim_ascii_end();
    // `HeaderName` takes a quotation mark, which is no token character (RFC 9110 §5.6.2).
    if name.contains(&b'"') {
        return None;
    }
    Some((
        HeaderName::from_bytes(name).ok()?,
        HeaderValue::from_bytes(value).ok()?,
    ))
}

/// Whether a field decides where the body ends (RFC 9112 §6.3).
fn is_framing(name: &[u8]) -> bool {
    let name = name.trim_ascii();
    name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"transfer-encoding")
}

/// Whether hyper itself acts on a field.
fn is_for_hyper(name: &HeaderName) -> bool {
    is_framing(name.as_str().as_bytes()) || *name == http::header::CONNECTION
}

fn without_controls(bytes: &[u8]) -> Vec<u8> {
    let replaced = |byte: &u8| if is_control(*byte) { b' ' } else { *byte };
    bytes.iter().map(replaced).collect()
}

/// Control characters but for the tab.
fn is_control(byte: u8) -> bool {
    (byte < b' ') & (byte != b'\t') | (byte == 0x7f)
}
