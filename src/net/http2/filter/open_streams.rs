//! The streams that a client has not ended, RFC 9113 §5.1.

use std::collections::VecDeque;

/// The most streams that are kept: more than `SETTINGS_MAX_CONCURRENT_STREAMS` usually allows, since
/// a client does not end streams that the server has reset.
const CAPACITY: usize = 256;

/// The streams that a client has opened and not ended.
#[derive(Debug, Default)]
pub(super) struct OpenStreams {
    /// In ascending order.
    streams: VecDeque<u32>,
    /// The highest stream that was removed for lack of space. Of streams up to it, it is not known
    /// whether they are open.
    highest_removed: u32,
}

impl OpenStreams {
    /// Adds a stream that is higher than all before it.
    pub(super) fn open(&mut self, stream: u32) {
        if self.streams.len() == CAPACITY {
            self.highest_removed = self.streams.pop_front().unwrap_or_default();
        }
        self.streams.push_back(stream);
    }

    /// The client ends a stream, which need not be open.
    pub(super) fn end(&mut self, stream: u32) {
        if let Ok(index) = self.streams.binary_search(&stream) {
            self.streams.remove(index);
        }
    }

    pub(super) fn may_be_open(&self, stream: u32) -> bool {
        stream <= self.highest_removed || self.streams.binary_search(&stream).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_open_until_they_end() {
        let mut open = OpenStreams::default();
        for stream in [1, 3, 9] {
            open.open(stream);
        }
        open.end(3);
        open.end(5);
        let table = [
            (1, true),
            (3, false),
            (5, false),
            (7, false),
            (9, true),
            (11, false),
        ];
        for (stream, expected) in table {
            assert_eq!(open.may_be_open(stream), expected, "{stream}");
        }
    }

    #[test]
    fn streams_that_never_end_take_bounded_memory_and_stay_possibly_open() {
        let mut open = OpenStreams::default();
        let last = 20_001;
        for stream in (1..=last).step_by(2) {
            open.open(stream);
        }
        assert!(open.streams.capacity() <= CAPACITY);
        assert!((1..=last).step_by(2).all(|stream| open.may_be_open(stream)));
        open.end(last);
        assert!(!open.may_be_open(last) && open.may_be_open(last - 2));
    }
}
