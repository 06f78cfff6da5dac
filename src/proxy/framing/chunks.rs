//! Chunked transfer coding, RFC 9112 §7.1.

use super::{Fault, HeadLimits, is_field_value, is_token};

/// The most bytes of a chunk's size and extensions.
const MAX_LINE: usize = 1024;

/// The most bytes of the trailer section.
const MAX_TRAILERS: usize = 16 * 1024;

/// A chunked body that is being read.
#[derive(Debug)]
pub(super) struct Chunks {
    part: Part,
    /// The bytes of the current chunk that remain.
    left: u64,
    /// The bytes of the current line, or of the trailer section.
    length: usize,
    /// The number of trailer fields.
    fields: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Size,
    /// Whitespace after the size.
    Space,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataEnd,
    /// The start of a line after the last chunk.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastEnd,
}

impl Default for Chunks {
    fn default() -> Self {
        Self {
            part: Part::Size,
            left: 0,
            length: 0,
            fields: 0,
        }
    }
}

impl Chunks {
    /// Reads more bytes. Returns how many are good, and whether the body ends after them.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        limits: HeadLimits,
    ) -> (usize, Result<bool, Fault>) {
        let mut at = 0;
        while at < bytes.len() {
            if self.part == Part::Data {
                let rest = bytes.len() - at;
                let taken = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                self.left -= taken as u64;
                at += taken;
                if self.left == 0 {
                    self.part = Part::DataCr;
                }
                continue;
            }
            if self.part == Part::LastEnd && bytes[at] == b'\n' {
                return (at + 1, Ok(true));
            }
            match self.byte(bytes[at], limits) {
                Some(part) => self.part = part,
                None => {
                    return (
                        at,
                        Err(Fault::Malformed(
                            "the request's body is not in valid chunked coding",
                        )),
                    );
                }
            }
            at += 1;
        }
        (at, Ok(false))
    }

    /// The part after this byte of a line; `None` if the byte is invalid there.
    fn byte(&mut self, byte: u8, limits: HeadLimits) -> Option<Part> {
        self.length += 1;
        let is_trailer = matches!(
            self.part,
            Part::Trailer | Part::TrailerName | Part::TrailerValue | Part::TrailerEnd
        );
        if self.length > if is_trailer { MAX_TRAILERS } else { MAX_LINE } {
            return None;
        }
        match (self.part, byte) {
            // Below 2^60, with any number of leading zeros.
            (Part::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.left < 1 << 56 => {
                let digit = (byte as char).to_digit(16)?;
                self.left = self.left * 16 + u64::from(digit);
                Some(Part::Size)
            }
            (Part::Size, b' ' | b'\t') if self.length > 1 => Some(Part::Space),
            (Part::Space, b' ' | b'\t') => Some(Part::Space),
            (Part::Size, b'\r') if self.length > 1 => Some(Part::SizeEnd),
            (Part::Size, b';') if self.length > 1 => Some(Part::Extension),
            (Part::Space | Part::Extension, b'\r') => Some(Part::SizeEnd),
            (Part::Space, b';') => Some(Part::Extension),
            // Extensions are not sent on (RFC 9112 §7.1.1).
            (Part::Extension, _) if byte != b'\n' => Some(Part::Extension),
            (Part::SizeEnd, b'\n') => {
                self.length = 0;
                Some(if self.left == 0 {
                    Part::Trailer
                } else {
                    Part::Data
                })
            }
            (Part::DataCr, b'\r') => Some(Part::DataEnd),
            (Part::DataEnd, b'\n') => {
                self.length = 0;
                Some(Part::Size)
            }
            (Part::Trailer, b'\r') => Some(Part::LastEnd),
            (Part::Trailer, _) if is_token(byte) && self.fields < limits.fields => {
                self.fields += 1;
                Some(Part::TrailerName)
            }
            (Part::TrailerName, b':') => Some(Part::TrailerValue),
            (Part::TrailerName, _) if is_token(byte) => Some(Part::TrailerName),
            (Part::TrailerValue, b'\r') => Some(Part::TrailerEnd),
            (Part::TrailerValue, _) if is_field_value(byte) => Some(Part::TrailerValue),
            (Part::TrailerEnd, b'\n') => Some(Part::Trailer),
            _ => None,
        }
    }
}
