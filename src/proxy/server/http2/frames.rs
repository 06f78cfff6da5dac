//! Where HTTP/2 frames begin in what one side sends.

/// What begins every HTTP/2 connection: RFC 9113 §3.4.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame's head: RFC 9113 §4.1.
const FRAME_HEAD: usize = 9;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const RST_STREAM: u8 = 3;
const REFUSED_STREAM: u8 = 7;

/// Finds where the frames begin in what one side sends.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// Bytes until the next one.
    pub(crate) skip: usize,
    head: [u8; FRAME_HEAD],
    known: usize,
}

impl Frames {
    pub(crate) fn behind_preface() -> Self {
        Self {
            skip: PREFACE.len(),
            ..Self::default()
        }
    }

    /// The head of the next frame that is whole in these bytes, which then begin behind it.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<[u8; FRAME_HEAD]> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let (head, rest) =
            bytes[skipped..].split_at((FRAME_HEAD - self.known).min(bytes.len() - skipped));
        self.head[self.known..][..head.len()].copy_from_slice(head);
        self.known += head.len();
        *bytes = rest;
        if self.known < FRAME_HEAD {
            return None;
        }
        self.known = 0;
        let [a, b, c, ..] = self.head;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        Some(self.head)
    }

    /// How many of them carry nothing of a body. Heads of requests are among these: a request that begins has moved on.
    pub(crate) fn count(&mut self, mut bytes: &[u8]) -> u32 {
        let mut count = 0;
        while let Some([_, _, _, kind, flags, ..]) = self.next(&mut bytes) {
            // What is sent ahead is limited by its window.
            let is_body = kind == DATA && (self.skip > 0 || flags & END_STREAM != 0);
            count += u32::from(!is_body);
        }
        count
    }
}

/// Finds the streams that were refused in what we send: h2 does that by itself, and tells nobody.
#[derive(Debug, Default)]
pub(crate) struct RefusedStreams {
    frames: Frames,
    /// The next byte is the end of a reset's reason.
    reason_is_next: bool,
}

impl RefusedStreams {
    pub(crate) fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut count = 0;
        loop {
            if self.reason_is_next && self.frames.skip < bytes.len() {
                let reason = bytes[self.frames.skip];
                bytes = &bytes[self.frames.skip + 1..];
                self.frames.skip = 0;
                self.reason_is_next = false;
                count += u64::from(reason == REFUSED_STREAM);
            }
            let Some([_, _, _, kind, ..]) = self.frames.next(&mut bytes) else {
                return count;
            };
            if kind == RST_STREAM {
                // All reasons fit into the last of four bytes: RFC 9113 §7.
                self.reason_is_next = true;
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
    fn frames_are_counted_wherever_the_pieces_end() {
        let mut said = PREFACE.to_vec();
        // Settings, a body, its end, a piece of nothing.
        said.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        said.extend([0, 1, 0, DATA, 0, 0, 0, 0, 1]);
        said.extend([6; 256]);
        said.extend([0, 0, 0, DATA, END_STREAM, 0, 0, 0, 1]);
        said.extend([0, 0, 0, DATA, 0, 0, 0, 0, 3]);
        said.extend(PING);
        said.extend(PING);
        for length in 1..said.len() {
            let mut frames = Frames::behind_preface();
            let counted: u32 = said.chunks(length).map(|piece| frames.count(piece)).sum();
            assert_eq!(counted, 4, "in pieces of {length}");
        }
    }

    #[test]
    fn refusals_are_found_wherever_the_pieces_end() {
        // Settings, a refusal, another reset, a body that looks like a refusal, a refusal.
        let mut said = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
        let reset = |reason| [0, 0, 4, RST_STREAM, 0, 0, 0, 0, 1, 0, 0, 0, reason];
        said.extend(reset(REFUSED_STREAM));
        said.extend(reset(8));
        said.extend([0, 0, 13, DATA, 0, 0, 0, 0, 1]);
        said.extend(reset(REFUSED_STREAM));
        said.extend(reset(REFUSED_STREAM));
        for length in 1..=said.len() {
            let mut refusals = RefusedStreams::default();
            let counted: u64 = said.chunks(length).map(|piece| refusals.count(piece)).sum();
            assert_eq!(counted, 2, "in pieces of {length}");
        }
    }
}
