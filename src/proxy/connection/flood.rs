//! HTTP/2 flood protection: counters and read quotas.
//!
//! Pings, settings, window updates, empty frames and streams that are reset at once cost a client
//! nothing and the proxy something. Frames are therefore read in small batches, between which other
//! tasks run, and over a limit the connection is closed. RFC 9113 §10.5.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// How much is read before the task yields.
pub(crate) struct ReadQuota {
    pub(crate) frames: u32,
    /// Bytes per read, in addition to the rest of a frame that has begun.
    pub(crate) bytes: usize,
}

/// As many requests as clients usually send at once. It is also enough for h2 to see in its first
/// read that streams are reset.
const NORMAL_QUOTA: ReadQuota = ReadQuota {
    frames: 64,
    bytes: 2048,
};
/// A dozen pings.
const REDUCED_QUOTA: ReadQuota = ReadQuota {
    frames: 8,
    bytes: 256,
};

/// Control frames in a row that a well-behaved client sends, at most.
const NORMAL_CONTROL_FRAMES: u32 = 32;

/// What a client has done on one connection. Atomics, since the socket that counts must be `Send`;
/// one thread uses them.
#[derive(Debug, Default)]
pub(crate) struct FloodCounters {
    /// Frames without body data since a request last made progress. Each tick subtracts one.
    control_frames: AtomicU32,
    /// The tick of the last frame.
    counted_at: AtomicU64,
    /// Streams that ended before their response did, less those that ended in good order: opening
    /// and resetting a stream costs a client nothing, and the proxy a request (CVE-2023-44487).
    resets: AtomicU32,
    has_completed_stream: AtomicBool,
}

impl FloodCounters {
    /// Counts frames that carry no body data, at the tick `now`.
    pub(crate) fn control_frames_received(&self, frames: u32, now: u64) {
        let elapsed = now - self.counted_at.load(Relaxed);
        self.counted_at.store(now, Relaxed);
        let before = u64::from(self.control_frames()).saturating_sub(elapsed) as u32;
        self.control_frames
            .store(before.saturating_add(frames), Relaxed);
    }

    /// A request made progress.
    pub(crate) fn progress(&self) {
        self.control_frames.store(0, Relaxed);
    }

    pub(crate) fn control_frames(&self) -> u32 {
        self.control_frames.load(Relaxed)
    }

    /// A stream has ended, `is_reset` if before the end of its response.
    pub(crate) fn stream_ended(&self, is_reset: bool) {
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

    /// Whether the client has not yet received a complete response, or resets streams: its next
    /// request may be followed by a reset, see [`yield_for_resets`].
    pub(crate) fn is_unproven(&self) -> bool {
        self.resets() > 0 || !self.has_completed_stream.load(Relaxed)
    }

    pub(crate) fn quota(&self) -> ReadQuota {
        if self.control_frames() > NORMAL_CONTROL_FRAMES {
            REDUCED_QUOTA
        } else {
            NORMAL_QUOTA
        }
    }
}

/// Yields until a reset that immediately follows a request has been read, so that no work is begun
/// for it.
///
/// Three turns: in the first the connection's task yields, in the second it reads the reset, and in
/// the third hyper sees it before it polls the request.
pub(crate) async fn yield_for_resets() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tick_subtracts_a_control_frame_and_progress_clears_them() {
        let flood = FloodCounters::default();
        flood.control_frames_received(10, 1000);
        flood.control_frames_received(10, 1000);
        assert_eq!(flood.control_frames(), 20);
        flood.control_frames_received(1, 1005);
        assert_eq!(flood.control_frames(), 16);
        flood.control_frames_received(1, 9000);
        assert_eq!(flood.control_frames(), 1);
        flood.control_frames_received(u32::MAX, 9000);
        assert_eq!(flood.control_frames(), u32::MAX);
        flood.progress();
        assert_eq!(flood.control_frames(), 0);
    }

    #[test]
    fn a_client_is_unproven_before_its_first_response_and_while_it_resets_more_than_it_receives() {
        let flood = FloodCounters::default();
        assert!(flood.is_unproven(), "a new one");
        flood.stream_ended(false);
        assert!(!flood.is_unproven(), "a response was received");
        flood.stream_ended(true);
        flood.stream_ended(true);
        flood.stream_ended(false);
        assert!(flood.is_unproven(), "one reset remains");
        flood.stream_ended(false);
        assert!(!flood.is_unproven(), "none remains");
    }
}
