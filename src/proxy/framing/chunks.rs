//! Chunked bodies, RFC 9112 §7.1.

use super::{Fault, HeadLimits, is_in_values, is_token};

/// The most bytes of a chunk's line: its size and its extensions.
const LINE: usize = 1024;

/// The most bytes of trailers.
const TRAILERS: usize = 16 * 1024;

/// A chunked body, as far as it was read.
#[derive(Debug)]
pub(super) struct Chunks {
    part: Part,
    /// Bytes of this chunk that are to come.
    left: u64,
    /// Bytes of this line, or of the trailers.
    length: usize,
    fields: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataEnd,
    /// The beginning of a line behind the last chunk.
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
    /// Reads on. Returns how many bytes are good, and whether the body ends behind them.
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
                            "the chunks of the request's body are malformed",
                        )),
                    );
                }
            }
            at += 1;
        }
        (at, Ok(false))
    }

    /// The part that follows this byte of a line; `None` if it has no place there.
    fn byte(&mut self, byte: u8, limits: HeadLimits) -> Option<Part> {
        self.length += 1;
        let is_trailer = matches!(
            self.part,
            Part::Trailer | Part::TrailerName | Part::TrailerValue | Part::TrailerEnd
        );
        if self.length > if is_trailer { TRAILERS } else { LINE } {
            return None;
        }
        match (self.part, byte) {
            (Part::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.length <= 15 => {
                let digit = (byte as char).to_digit(16)?;
                self.left = self.left * 16 + u64::from(digit);
                Some(Part::Size)
            }
            (Part::Size, b'\r') if self.length > 1 => Some(Part::SizeEnd),
            (Part::Size, b';') if self.length > 1 => Some(Part::Extension),
            (Part::Extension, b'\r') => Some(Part::SizeEnd),
            (Part::Extension, _) if is_in_values(byte) => Some(Part::Extension),
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
            (Part::TrailerValue, _) if is_in_values(byte) => Some(Part::TrailerValue),
            (Part::TrailerEnd, b'\n') => Some(Part::Trailer),
            _ => None,
        }
    }
}
