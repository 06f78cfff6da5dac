//! Finds HTTP/2 frames in a byte stream, to count those that h2 does not report.

use crate::net::http2::PREFACE;

/// The length of a frame's header, RFC 9113 §4.1.
const FRAME_HEADER: usize = 9;
/// Frame types, RFC 9113 §6.
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
/// A flag of DATA.
const END_STREAM: u8 = 1;
/// An error code, RFC 9113 §7.
const REFUSED_STREAM: u8 = 7;

/// Finds the frame headers in what one side sends.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Bytes until the next header.
    pub(super) skip: usize,
    header: [u8; FRAME_HEADER],
    /// How many bytes of it are known.
    known: usize,
}

impl Frames {
    /// For what a client sends, from its preface on.
    pub(super) fn after_preface() -> Self {
        Self {
            skip: PREFACE.len(),
            ..Self::default()
        }
    }

    /// The next frame header that is complete with these bytes, which then begin behind it.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<[u8; FRAME_HEADER]> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let (header, rest) =
            bytes[skipped..].split_at((FRAME_HEADER - self.known).min(bytes.len() - skipped));
        self.header[self.known..][..header.len()].copy_from_slice(header);
        self.known += header.len();
        *bytes = rest;
        if self.known < FRAME_HEADER {
            return None;
        }
        self.known = 0;
        let [a, b, c, ..] = self.header;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        Some(self.header)
    }

    /// How many frames carry no body data. HEADERS count as well, but a stream that opens clears
    /// the count.
    pub(super) fn count(&mut self, mut bytes: &[u8]) -> u32 {
        let mut count = 0;
        while let Some([_, _, _, kind, flags, ..]) = self.next(&mut bytes) {
            // DATA with content needs no limit here: the flow-control window is one.
            let is_body = kind == DATA && (self.skip > 0 || flags & END_STREAM != 0);
            count += u32::from(!is_body);
        }
        count
    }
}

/// Counts the streams that h2 refuses over the limit of concurrent ones: it does not report them,
/// so they are found in what it sends.
#[derive(Debug, Default)]
pub(super) struct RefusedStreams {
    frames: Frames,
    /// The next byte after `frames.skip` is the last one of an RST_STREAM's error code.
    is_code_next: bool,
}

impl RefusedStreams {
    pub(super) fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut count = 0;
        loop {
            if self.is_code_next && self.frames.skip < bytes.len() {
                let code = bytes[self.frames.skip];
                bytes = &bytes[self.frames.skip + 1..];
                self.frames.skip = 0;
                self.is_code_next = false;
                count += u64::from(code == REFUSED_STREAM);
            }
            let Some([_, _, _, kind, ..]) = self.frames.next(&mut bytes) else {
                return count;
            };
            if kind == RST_STREAM {
                // All error codes fit into the last of four bytes, RFC 9113 §7.
                self.is_code_next = true;
                self.frames.skip = 3;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    #[test]
    fn frames_are_counted_however_the_stream_is_split() {
        let mut sent = PREFACE.to_vec();
        // SETTINGS, DATA, its end, an empty DATA.
        sent.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        sent.extend([0, 1, 0, DATA, 0, 0, 0, 0, 1]);
        sent.extend([6; 256]);
        sent.extend([0, 0, 0, DATA, END_STREAM, 0, 0, 0, 1]);
        sent.extend([0, 0, 0, DATA, 0, 0, 0, 0, 3]);
        sent.extend(PING);
        sent.extend(PING);
        for length in 1..sent.len() {
            let mut frames = Frames::after_preface();
            let counted: u32 = sent.chunks(length).map(|part| frames.count(part)).sum();
            assert_eq!(counted, 4, "in parts of {length}");
        }
    }

    #[test]
    fn refused_streams_are_counted_however_the_stream_is_split() {
        // SETTINGS, a refusal, another reset, DATA that looks like a refusal, a refusal.
        let mut sent = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
        let reset = |code| [0, 0, 4, RST_STREAM, 0, 0, 0, 0, 1, 0, 0, 0, code];
        sent.extend(reset(REFUSED_STREAM));
        sent.extend(reset(8));
        sent.extend([0, 0, 13, DATA, 0, 0, 0, 0, 1]);
        sent.extend(reset(REFUSED_STREAM));
        sent.extend(reset(REFUSED_STREAM));
        for length in 1..=sent.len() {
            let mut refused = RefusedStreams::default();
            let counted: u64 = sent.chunks(length).map(|part| refused.count(part)).sum();
            assert_eq!(counted, 2, "in parts of {length}");
        }
    }
}
