//! The part of a request body that has been read, kept for a replay within limits on the memory
//! that it keeps allocated.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};

use crate::proxy::message::judge::Retry;

/// Frames of at least this size share the connection's read buffer. Smaller ones are copied into
/// one buffer, since each that is shared keeps a whole read buffer allocated: 20,000 chunks of one
/// byte kept 77 MB.
const SHARE_FROM: usize = 4096;

/// The size of a buffer into which small frames are copied.
const COPY_BUFFER: usize = 16 * 1024;

/// How many bytes may be kept.
#[derive(Debug, Clone)]
pub(crate) struct ReplayLimits {
    /// Of one request.
    pub(crate) body: usize,
    /// Of all requests of all workers together.
    pub(crate) total: usize,
    /// What all requests keep at the moment.
    pub(crate) kept: Arc<AtomicUsize>,
}

impl ReplayLimits {
    /// The limits of `retry`, for bodies that are counted in `kept`.
    pub(crate) fn new(retry: &Retry, kept: &Arc<AtomicUsize>) -> Self {
        Self {
            body: retry.body_limit,
            total: retry.total_limit,
            kept: Arc::clone(kept),
        }
    }

    /// Whether a body of this length may be kept whole at the moment.
    pub(crate) fn have_room_for(&self, length: u64) -> bool {
        let total = self.total.saturating_sub(self.kept.load(Relaxed));
        length <= self.body.min(total) as u64
    }
}

/// What has been read of one body.
#[derive(Debug)]
pub(crate) struct Recording {
    frames: Vec<Bytes>,
    copied: BytesMut,
    length: usize,
    /// Memory that is kept allocated, and counted in `limits.kept`.
    charged: usize,
    /// The announced length, or the size of a buffer.
    expected: usize,
    limits: ReplayLimits,
}

impl Recording {
    pub(crate) fn new(limits: ReplayLimits, length: Option<u64>) -> Self {
        let expected = length
            .and_then(|length| usize::try_from(length).ok())
            .unwrap_or(COPY_BUFFER);
        Self {
            frames: Vec::new(),
            copied: BytesMut::new(),
            length: 0,
            charged: 0,
            expected,
            limits,
        }
    }

    /// Whether the limit of one body is exceeded: it must not grow further.
    pub(crate) fn is_full(&self) -> bool {
        self.length > self.limits.body
    }

    /// The bytes that were kept.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Keeps one more frame; false if there is no memory for it. The frame that makes it
    /// [full](Self::is_full) is kept as well, so that the whole body can still be sent again.
    pub(crate) fn push(&mut self, data: &Bytes) -> bool {
        self.length += data.len();
        if data.len() >= SHARE_FROM {
            self.flush();
            self.frames.push(data.clone());
            return self.charge(data.len());
        }
        if self.copied.capacity() - self.copied.len() < data.len() {
            self.flush();
            let size = self.expected.clamp(data.len(), COPY_BUFFER);
            if !self.charge(size) {
                return false;
            }
            self.copied = BytesMut::with_capacity(size);
        }
        self.copied.extend_from_slice(data);
        true
    }

    fn flush(&mut self) {
        if !self.copied.is_empty() {
            self.frames.push(std::mem::take(&mut self.copied).freeze());
        }
    }

    fn charge(&mut self, size: usize) -> bool {
        self.charged += size;
        self.limits.kept.fetch_add(size, Relaxed) + size <= self.limits.total
    }

    /// All frames that were recorded.
    pub(crate) fn seal(&mut self) -> Vec<Bytes> {
        self.flush();
        self.frames.clone()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.limits.kept.fetch_sub(self.charged, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(body: usize, total: usize) -> (Recording, Arc<AtomicUsize>) {
        let kept = Arc::new(AtomicUsize::new(0));
        (
            Recording::new(
                ReplayLimits {
                    body,
                    total,
                    kept: Arc::clone(&kept),
                },
                None,
            ),
            kept,
        )
    }

    #[test]
    fn large_frames_are_shared_and_small_ones_are_copied_in_order() {
        let (mut recording, kept) = recording(1 << 20, 1 << 20);
        let large = Bytes::from(vec![b'L'; SHARE_FROM]);
        let mut expected = Vec::new();
        for frame in [
            Bytes::from_static(b"ab"),
            Bytes::from_static(b"c"),
            large.clone(),
            Bytes::from_static(b"d"),
        ] {
            assert!(recording.push(&frame));
            expected.extend_from_slice(&frame);
        }
        let frames = recording.seal();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1].as_ptr(), large.as_ptr());
        assert_eq!(frames.concat(), expected);
        assert_eq!(kept.load(Relaxed), SHARE_FROM + 2 * COPY_BUFFER);
        drop(recording);
        assert_eq!(kept.load(Relaxed), 0);
    }

    #[test]
    fn tiny_frames_keep_little_more_than_their_bytes() {
        let (mut recording, kept) = recording(1 << 20, 1 << 20);
        let buffer = Bytes::from(vec![b'x'; SHARE_FROM]);
        for at in 0..20_000 {
            assert!(recording.push(&buffer.slice(at % SHARE_FROM..=at % SHARE_FROM)));
        }
        assert!(
            kept.load(Relaxed) <= 20_000 + COPY_BUFFER,
            "{}",
            kept.load(Relaxed)
        );
    }

    #[test]
    fn limits_apply_to_one_body_and_to_all_together() {
        let (mut one, _) = recording(10, 1 << 20);
        assert!(one.push(&Bytes::from_static(b"0123456789")));
        assert!(!one.is_full());
        assert!(one.push(&Bytes::from_static(b"0")));
        assert!(one.is_full(), "the frame beyond the limit is kept");
        let (mut all, kept) = recording(1 << 20, 2 * SHARE_FROM);
        let large = Bytes::from(vec![0; SHARE_FROM]);
        assert!(all.push(&large) && all.push(&large));
        assert!(!all.push(&large));
        drop(all);
        assert_eq!(kept.load(Relaxed), 0);
    }
}
