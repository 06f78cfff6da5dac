//! How an HTTP/2 client behaves. Pings, settings, windows, empty frames, streams that are reset at once: all this costs a
//! client nothing and us something. So it is read in small pieces, between which others have their turn, and not for ever.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    base::coop::CoopBudget,
    proxy::{connection::state::ConnState, metrics::Metrics, server::connection::PREFACE},
};

/// How much is read before others have their turn.
struct ReadQuota {
    frames: u32,
    /// What is read at once, beside the rest of a frame that has begun.
    bytes: usize,
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

/// A frame's head: RFC 9113 §4.1.
const FRAME_HEAD: usize = 9;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const RST_STREAM: u8 = 3;
const REFUSED_STREAM: u8 = 7;

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

    fn quota(&self) -> ReadQuota {
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

/// Finds where the frames begin in what one side sends.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes until the next one.
    skip: usize,
    head: [u8; FRAME_HEAD],
    known: usize,
}

impl Frames {
    fn behind_preface() -> Self {
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
    fn count(&mut self, mut bytes: &[u8]) -> u32 {
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
struct RefusedStreams {
    frames: Frames,
    /// The next byte is the end of a reset's reason.
    reason_is_next: bool,
}

impl RefusedStreams {
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
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

/// A client's socket, for HTTP/2.
pub(crate) struct ThrottledIo<T> {
    io: T,
    frames: Frames,
    refusals: RefusedStreams,
    metrics: Arc<Metrics>,
    monitor: Arc<ConnState>,
    budget: CoopBudget,
}

impl<T> ThrottledIo<T> {
    pub(crate) fn new(io: T, metrics: Arc<Metrics>, monitor: Arc<ConnState>) -> Self {
        let (frames, refusals) = (Frames::behind_preface(), RefusedStreams::default());
        Self {
            io,
            frames,
            refusals,
            metrics,
            monitor,
            budget: CoopBudget::default(),
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let refused = self.refusals.count(bytes);
        if refused > 0 {
            self.metrics.streams_refused.add(refused);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ThrottledIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let quota = this.monitor.conduct().quota();
        ready!(this.budget.poll_ready(cx, quota.frames as usize));
        let most = buf.remaining().min(this.frames.skip + quota.bytes);
        let mut piece = ReadBuf::new(buf.initialize_unfilled_to(most));
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, &mut piece) else {
            this.budget.reset();
            return Poll::Pending;
        };
        read?;
        let frames = this.frames.count(piece.filled());
        let read = piece.filled().len();
        buf.advance(read);
        this.budget.spend(frames as usize);
        this.monitor.control_frames_read(frames);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ThrottledIo<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        let mut rest = written;
        for buf in bufs {
            let sent = rest.min(buf.len());
            self.sent(&buf[..sent]);
            rest -= sent;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
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
