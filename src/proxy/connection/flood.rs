//! How an HTTP/2 client behaves. Pings, settings, windows, empty frames, streams that are reset at once: all this costs a
//! client nothing and us something. So it is read in small pieces, between which others have their turn, and not for ever.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// How much is read before others have their turn.
pub(crate) struct ReadQuota {
    pub(crate) frames: u32,
    /// What is read at once, beside the rest of a frame that has begun.
    pub(crate) bytes: usize,
}

/// As many requests as usual clients send at once. And enough for h2 to see at the first look that streams come to be reset.
const NORMAL_QUOTA: ReadQuota = ReadQuota {
    frames: 64,
    bytes: 2048,
};
/// A dozen pings.
const REDUCED_QUOTA: ReadQuota = ReadQuota {
    frames: 8,
    bytes: 256,
};

/// So many frames in a row a usual client says beside its requests.
const USUAL_FRAMES: u32 = 32;

/// What a client has done on this connection. Changed by one thread alone, but reached from what must be `Send`.
#[derive(Debug, Default)]
pub(crate) struct FloodCounters {
    /// Frames that carry nothing of a body, since something of a request moved. One more is forgiven at each tick.
    frames: AtomicU32,
    control_frames_read: AtomicU64,
    /// Streams that ended before their answer did, less those that ended well: opening and resetting streams costs a client
    /// nothing, and us a request each (CVE-2023-44487).
    resets: AtomicU32,
    has_completed_stream: AtomicBool,
}

impl FloodCounters {
    /// So many frames more, at this tick.
    pub(crate) fn control_frames_read(&self, frames: u32, now: u64) {
        let forgiven = now - self.control_frames_read.load(Relaxed);
        self.control_frames_read.store(now, Relaxed);
        let before = u64::from(self.frames.load(Relaxed)).saturating_sub(forgiven) as u32;
        self.frames.store(before.saturating_add(frames), Relaxed);
    }

    /// Something of a request moved.
    pub(crate) fn moved(&self) {
        self.frames.store(0, Relaxed);
    }

    pub(crate) fn frames(&self) -> u32 {
        self.frames.load(Relaxed)
    }

    /// A stream has ended.
    pub(crate) fn ended(&self, is_reset: bool) {
        let resets = self.resets.load(Relaxed);
        self.resets.store(
            if is_reset {
                resets + 1
            } else {
                resets.saturating_sub(1)
            },
            Relaxed,
        );
        if !is_reset {
            self.has_completed_stream.store(true, Relaxed);
        }
    }

    pub(crate) fn resets(&self) -> u32 {
        self.resets.load(Relaxed)
    }

    /// Whether the client has yet to show that it means what it asks for.
    pub(crate) fn is_unproven(&self) -> bool {
        self.resets() > 0 || !self.has_completed_stream.load(Relaxed)
    }

    pub(crate) fn quota(&self) -> ReadQuota {
        if self.frames() > USUAL_FRAMES {
            REDUCED_QUOTA
        } else {
            NORMAL_QUOTA
        }
    }
}

/// Lets a reset arrive that follows at once, so that nothing is begun for it. The connection has given others their turn, is
/// read in the next, and hyper looks for a reset when this is polled after that.
pub(crate) async fn yield_for_resets() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_forgiven_at_each_tick_and_all_of_them_when_something_moves() {
        let conduct = FloodCounters::default();
        conduct.control_frames_read(10, 1000);
        conduct.control_frames_read(10, 1000);
        assert_eq!(conduct.frames(), 20);
        conduct.control_frames_read(1, 1005);
        assert_eq!(conduct.frames(), 16);
        conduct.control_frames_read(1, 9000);
        assert_eq!(conduct.frames(), 1);
        conduct.control_frames_read(u32::MAX, 9000);
        assert_eq!(conduct.frames(), u32::MAX);
        conduct.moved();
        assert_eq!(conduct.frames(), 0);
    }

    #[test]
    fn a_client_is_in_doubt_until_it_takes_an_answer_and_when_it_resets_more_than_it_takes() {
        let conduct = FloodCounters::default();
        assert!(conduct.is_unproven(), "a new one");
        conduct.ended(false);
        assert!(!conduct.is_unproven(), "an answer was taken");
        conduct.ended(true);
        conduct.ended(true);
        conduct.ended(false);
        assert!(conduct.is_unproven(), "one reset is left");
        conduct.ended(false);
        assert!(!conduct.is_unproven(), "none is left");
    }
}
