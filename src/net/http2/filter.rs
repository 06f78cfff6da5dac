//! Checks header blocks before h2 reads them, so that a malformed message costs its stream alone
//! (RFC 9113 §8.1.1): h2 ends the whole connection over a field that it cannot represent, and with
//! it every request under way.
//!
//! Blocks pass as they came until the first one that needs a change. From then on each is encoded
//! anew without reference to the dynamic table, since that of h2 no longer equals the sender's.

mod open_streams;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use self::open_streams::OpenStreams;
use super::{
    PREFACE,
    fields::{self, MALFORMED, MALFORMED_TRAILERS, Malformed, Messages, PseudoFields},
    hpack::{self, CompressionError, Decoder, ENTRY_OVERHEAD, Field},
};

/// The length of a frame's header, RFC 9113 §4.1.
const FRAME_HEADER: usize = 9;
/// The largest frame that peers may send: no `SETTINGS_MAX_FRAME_SIZE` allows more.
const MAX_FRAME: usize = 16_384;
/// How much is read at once while a block is not complete.
const READ_SIZE: usize = 4096;
/// Frame types and flags, RFC 9113 §6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The most frames of one block, beside those that the largest head needs. h2 ends connections that
/// send more.
const EXTRA_FRAMES: usize = 16;

/// The field that makes h2 reset a stream: connections have no such field in HTTP/2.
const RESET: (&str, &str) = ("connection", "close");

/// The field of a [`MALFORMED`] request that has the number of the reason.
const REASON: &str = "reason";

/// An HTTP/2 connection as h2 reads it.
#[derive(Debug)]
pub struct HeaderFilter<T> {
    io: T,
    blocks: Blocks,
    /// Read, but not complete.
    held: BytesMut,
    /// Checked, but not read by h2 yet.
    checked: BytesMut,
}

impl<T> HeaderFilter<T> {
    /// Checks what the peer sends on `io` from its first byte on. A head is too large if its fields
    /// have `max_head` bytes, in the measure of `SETTINGS_MAX_HEADER_LIST_SIZE`.
    pub fn new(io: T, messages: Messages, max_head: usize) -> Self {
        Self {
            io,
            blocks: Blocks::new(messages, max_head),
            held: BytesMut::new(),
            checked: BytesMut::new(),
        }
    }

    /// The number of interim responses (RFC 9110 §15.2) that were read so far.
    pub fn interim_responses(&self) -> &Arc<AtomicU32> {
        &self.blocks.interim
    }

    /// Moves what is complete from `held` to `checked`.
    fn check_held(&mut self) {
        loop {
            let Step { passed, change } = self.blocks.step(&self.held);
            self.checked.extend_from_slice(&self.held[..passed]);
            self.held.advance(passed);
            let Some(Change { replaced, frames }) = change else {
                break;
            };
            self.checked.extend_from_slice(&frames);
            self.held.advance(replaced);
        }
        if self.held.is_empty() {
            // Even empty it would keep its buffer allocated.
            self.held = BytesMut::new();
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for HeaderFilter<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.held.is_empty() && this.checked.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let read = &buf.filled()[before..];
            let Step { passed, change } = this.blocks.step(read);
            if passed == read.len() {
                return Poll::Ready(Ok(()));
            }
            let replaced = change.map_or(0, |change| {
                this.checked.extend_from_slice(&change.frames);
                change.replaced
            });
            this.held.extend_from_slice(&read[passed + replaced..]);
            buf.set_filled(before + passed);
            this.check_held();
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        while this.checked.is_empty() {
            this.held.reserve(READ_SIZE);
            if ready!(poll_read_buf(Pin::new(&mut this.io), cx, &mut this.held))? == 0 {
                // The end: what is left is not complete, which h2 reports.
                this.checked = std::mem::take(&mut this.held);
                break;
            }
            this.check_held();
        }
        let length = this.checked.len().min(buf.remaining());
        buf.put_slice(&this.checked[..length]);
        this.checked.advance(length);
        if this.checked.is_empty() {
            this.checked = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for HeaderFilter<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
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

/// Why the request in place of a malformed one was malformed; `None` for any other request.
pub fn malformed<B>(request: &http::Request<B>) -> Option<Malformed> {
    if request.method().as_str() != MALFORMED {
        return None;
    }
    reason(request.headers().get(REASON)?)
}

/// Why the trailers in whose place these are were malformed; `None` for any other trailers.
pub fn malformed_trailers(trailers: &HeaderMap) -> Option<Malformed> {
    reason(trailers.get(MALFORMED_TRAILERS)?)
}

fn reason(number: &HeaderValue) -> Option<Malformed> {
    let number: usize = number.to_str().ok()?.parse().ok()?;
    Malformed::ALL.get(number).copied()
}

/// What can be done with some bytes.
#[derive(Debug, Default)]
struct Step {
    /// How many of them pass as they are.
    passed: usize,
    /// What follows those; `None`: nothing, or a block that is not complete.
    change: Option<Change>,
}

/// Other frames in place of a block's.
#[derive(Debug)]
struct Change {
    /// The length of the block's frames.
    replaced: usize,
    frames: Vec<u8>,
}

/// The frames of one direction of a connection.
#[derive(Debug)]
struct Blocks {
    messages: Messages,
    max_head: usize,
    /// The most frames of one block.
    max_frames: usize,
    decoder: Decoder,
    /// Bytes until the next frame.
    skip: usize,
    /// h2's dynamic table no longer equals the sender's.
    is_translated: bool,
    /// h2 ends the connection over what follows.
    is_broken: bool,
    /// The highest stream with a block so far.
    last_stream: u32,
    /// Not followed in responses: which of those streams are open, h2 knows as the client.
    open: OpenStreams,
    interim: Arc<AtomicU32>,
}

impl Blocks {
    fn new(messages: Messages, max_head: usize) -> Self {
        Self {
            messages,
            max_head,
            max_frames: EXTRA_FRAMES + 2 * max_head / MAX_FRAME,
            decoder: Decoder::new(),
            skip: match messages {
                Messages::Requests => PREFACE.len(),
                Messages::Responses => 0,
            },
            is_translated: false,
            is_broken: false,
            last_stream: 0,
            open: OpenStreams::default(),
            interim: Arc::default(),
        }
    }

    fn step(&mut self, bytes: &[u8]) -> Step {
        let mut passed = 0;
        loop {
            let skipped = self.skip.min(bytes.len() - passed);
            self.skip -= skipped;
            passed += skipped;
            let rest = &bytes[passed..];
            if self.is_broken {
                return Step {
                    passed: bytes.len(),
                    change: None,
                };
            }
            let Some(header) = FrameHeader::of(rest) else {
                return Step {
                    passed,
                    change: None,
                };
            };
            if header.kind != HEADERS {
                if header.ends_stream() {
                    self.open.end(header.stream);
                }
                self.skip = FRAME_HEADER + header.length;
                continue;
            }
            match Block::of(rest, self.max_frames) {
                Gathered::Complete(block) => match self.check(&block) {
                    None => self.skip = block.length,
                    Some(frames) => {
                        let replaced = block.length;
                        let change = Some(Change { replaced, frames });
                        return Step { passed, change };
                    }
                },
                Gathered::Partial => {
                    return Step {
                        passed,
                        change: None,
                    };
                }
                Gathered::Invalid => self.is_broken = true,
            }
        }
    }

    /// Checks a block. Returns the frames in its place, if it must be changed.
    fn check(&mut self, block: &Block<'_>) -> Option<Vec<u8>> {
        let is_first = block.stream > self.last_stream;
        self.last_stream = self.last_stream.max(block.stream);
        let is_ended = self.follow(block, is_first);
        let mut check = Check {
            messages: self.messages,
            max_head: self.max_head,
            size: 0,
            is_interim: false,
            malformed: block.depends_on_itself.then_some(Malformed::Dependency),
            pseudo_fields: match self.messages {
                Messages::Requests => Some(PseudoFields::new(is_first)),
                Messages::Responses => None,
            },
            translation: self.is_translated.then(Vec::new),
        };
        let fields = &*block.fields;
        let decoded = self
            .decoder
            .decode(fields, |field| check.field(fields, field));
        let Check {
            malformed,
            pseudo_fields,
            translation,
            is_interim,
            ..
        } = check;
        if is_interim {
            self.interim.fetch_add(1, Relaxed);
        }
        let malformed = malformed.or(pseudo_fields.and_then(|fields| fields.complete().err()));
        let translation = match (decoded, malformed) {
            (Err(CompressionError), _) => {
                self.is_broken = true;
                return Some(self.compression_error(block.stream));
            }
            // Over this one, h2 ends the connection (RFC 9113 §5.1), or ignores it on a stream that
            // it has reset. A malformed one would cost the stream alone.
            (Ok(()), _) if is_ended => Vec::new(),
            (Ok(()), Some(malformed)) => self.substitute(malformed, is_first, block.is_last),
            (Ok(()), None) => match (translation, &block.fields) {
                (Some(translation), _) => translation,
                // h2 allows only few CONTINUATION frames, however small.
                (None, Cow::Owned(joined)) => {
                    return Some(frames(block.stream, block.is_last, joined));
                }
                (None, Cow::Borrowed(_)) => return None,
            },
        };
        self.is_translated = true;
        Some(frames(
            block.stream,
            block.is_last || is_ended,
            &translation,
        ))
    }

    /// Follows the state of a block's stream. Returns whether the client had ended it before.
    fn follow(&mut self, block: &Block<'_>, is_first: bool) -> bool {
        if self.messages == Messages::Responses {
            return false;
        }
        let is_ended = !is_first && !self.open.may_be_open(block.stream);
        match (is_first, block.is_last) {
            (true, false) => self.open.open(block.stream),
            (false, true) => self.open.end(block.stream),
            _ => {}
        }
        is_ended
    }

    /// The block in place of a malformed one: a request that the handler rejects, so that it is
    /// counted and logged, or trailers with which the body of the request fails. h2 would reset the
    /// stream, but end the connection after a number of streams. It does reset the stream of other
    /// blocks: responses, and trailers that the client has not ended its stream with.
    fn substitute(&self, malformed: Malformed, is_first: bool, is_last: bool) -> Vec<u8> {
        let mut block = Vec::new();
        let reason = Malformed::ALL.iter().position(|other| *other == malformed);
        let reason = reason.unwrap_or_default().to_string();
        let mut encode = |name: &str, value: &str| {
            hpack::encode(name.as_bytes(), value.as_bytes(), &mut block);
        };
        match (self.messages, is_first, is_last) {
            (Messages::Requests, true, _) => {
                encode(":method", MALFORMED);
                encode(":scheme", "http");
                encode(":path", "*");
                encode(REASON, &reason);
            }
            (Messages::Requests, false, true) => encode(MALFORMED_TRAILERS, &reason),
            (Messages::Requests, false, false) | (Messages::Responses, ..) => {
                encode(RESET.0, RESET.1);
            }
        }
        block
    }

    /// A block over which h2 ends the connection with COMPRESSION_ERROR (RFC 9113 §4.3). Over one
    /// that cannot be decoded it sends PROTOCOL_ERROR; but not if the fields are too large, and end
    /// with a string that is too long to be kept.
    fn compression_error(&self, stream: u32) -> Vec<u8> {
        /// `accept-encoding: gzip, deflate` in the static table, and its size.
        const ENTRY: (u8, usize) = (0x90, 60);
        let mut block = vec![ENTRY.0; self.max_head / ENTRY.1 + 1];
        // A name of 2^28 bytes.
        block.extend_from_slice(&[0, 0x7f, 0xff, 0xff, 0xff, 0x7f]);
        block.resize(block.len() + self.max_head + MAX_FRAME, b'x');
        frames(stream, true, &block)
    }
}

/// The check of one block.
struct Check {
    messages: Messages,
    max_head: usize,
    /// The size of the fields so far.
    size: usize,
    /// A response whose status is 1xx.
    is_interim: bool,
    malformed: Option<Malformed>,
    /// Those of a request. h2 rejects a wrong order as well, but ends the connection if a client has
    /// it reset many streams.
    pseudo_fields: Option<PseudoFields>,
    /// The block for h2, if it is not the one that was received.
    translation: Option<Vec<u8>>,
}

impl Check {
    fn field(&mut self, block: &[u8], field: Field<'_>) {
        let Field {
            name,
            value,
            is_dynamic,
            position,
        } = field;
        self.size = self.size + name.len() + value.len() + ENTRY_OVERHEAD;
        if self.size >= self.max_head {
            self.malformed.get_or_insert(Malformed::TooLarge);
        }
        if self.malformed.is_some() {
            return;
        }
        self.is_interim |= name == b":status" && value.first() == Some(&b'1');
        let is_in_order = match &mut self.pseudo_fields {
            Some(pseudo_fields) => pseudo_fields.add(name, value),
            None => Ok(()),
        };
        // While nothing was changed, every entry was valid when it was inserted. The static table has
        // fields of both requests and responses.
        let checked = if is_dynamic && self.translation.is_none() {
            Ok(None)
        } else {
            fields::check(self.messages, name, value)
        };
        match is_in_order.and(checked) {
            Ok(None) => {
                if let Some(translation) = &mut self.translation {
                    hpack::encode(name, value, translation);
                }
            }
            Ok(Some(clean)) => {
                // The tables are equal up to here.
                let translation = self
                    .translation
                    .get_or_insert_with(|| block[..position].to_vec());
                hpack::encode(name, &clean, translation);
            }
            Err(malformed) => self.malformed = Some(malformed),
        }
    }
}

/// The header of a frame, RFC 9113 §4.1.
#[derive(Debug, Clone, Copy)]
struct FrameHeader {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHeader {
    fn of(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<FRAME_HEADER>()?;
        Some(Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        })
    }

    /// Whether the sender ends the stream with this frame, which has no header block.
    fn ends_stream(self) -> bool {
        self.kind == RST_STREAM || self.kind == DATA && self.flags & END_STREAM != 0
    }

    fn write(self, frames: &mut Vec<u8>) {
        let [_, length @ ..] = (self.length as u32).to_be_bytes();
        frames.extend_from_slice(&length);
        frames.extend_from_slice(&[self.kind, self.flags]);
        frames.extend_from_slice(&self.stream.to_be_bytes());
    }
}

/// A header block that is complete.
#[derive(Debug)]
struct Block<'a> {
    /// The length of all its frames.
    length: usize,
    stream: u32,
    /// Nothing follows on the stream.
    is_last: bool,
    depends_on_itself: bool,
    fields: Cow<'a, [u8]>,
}

/// The result of looking for the end of a block.
enum Gathered<'a> {
    Complete(Block<'a>),
    /// More bytes are needed.
    Partial,
    /// h2 ends the connection over these frames.
    Invalid,
}

impl<'a> Block<'a> {
    /// The block whose HEADERS frame the bytes begin with.
    fn of(bytes: &'a [u8], max_frames: usize) -> Gathered<'a> {
        let (first, payload) = match frame(bytes) {
            Frame::Complete(header, payload) => (header, payload),
            Frame::Partial => return Gathered::Partial,
            Frame::TooLarge => return Gathered::Invalid,
        };
        let Some((fields, dependency)) = unpadded(first.flags, payload) else {
            return Gathered::Invalid;
        };
        let (mut length, mut last, mut count) = (FRAME_HEADER + first.length, first, 1);
        let mut more = Vec::new();
        while last.flags & END_HEADERS == 0 {
            let (next, part) = match frame(&bytes[length..]) {
                Frame::Complete(header, payload) => (header, payload),
                Frame::Partial => return Gathered::Partial,
                Frame::TooLarge => return Gathered::Invalid,
            };
            count += 1;
            let is_next = next.kind == CONTINUATION && next.stream == first.stream;
            if !is_next || count > max_frames {
                return Gathered::Invalid;
            }
            more.push(part);
            length += FRAME_HEADER + next.length;
            last = next;
        }
        Gathered::Complete(Self {
            length,
            stream: first.stream,
            is_last: first.flags & END_STREAM != 0,
            depends_on_itself: dependency == Some(first.stream),
            fields: if more.is_empty() {
                fields.into()
            } else {
                [&[fields], &more[..]].concat().concat().into()
            },
        })
    }
}

enum Frame<'a> {
    Complete(FrameHeader, &'a [u8]),
    /// More bytes are needed.
    Partial,
    TooLarge,
}

/// The frame that the bytes begin with.
fn frame(bytes: &[u8]) -> Frame<'_> {
    let Some(header) = FrameHeader::of(bytes) else {
        return Frame::Partial;
    };
    if header.length > MAX_FRAME {
        return Frame::TooLarge;
    }
    match bytes.get(FRAME_HEADER..FRAME_HEADER + header.length) {
        Some(payload) => Frame::Complete(header, payload),
        None => Frame::Partial,
    }
}

/// A HEADERS frame's part of the block, and the stream that it depends on, RFC 9113 §6.2.
fn unpadded(flags: u8, payload: &[u8]) -> Option<(&[u8], Option<u32>)> {
    let (padding, payload) = match payload.split_first() {
        Some((padding, rest)) if flags & PADDED != 0 => (usize::from(*padding), rest),
        None if flags & PADDED != 0 => return None,
        _ => (0, payload),
    };
    let (dependency, payload) = if flags & PRIORITY != 0 {
        let ([a, b, c, d, _weight], rest) = payload.split_first_chunk()?;
        (Some(u32::from_be_bytes([*a & 0x7f, *b, *c, *d])), rest)
    } else {
        (None, payload)
    };
    let length = payload.len().checked_sub(padding)?;
    Some((&payload[..length], dependency))
}

/// A HEADERS frame with this block, and CONTINUATION frames if one is too small for it.
fn frames(stream: u32, is_last: bool, block: &[u8]) -> Vec<u8> {
    let mut frames = Vec::with_capacity(block.len() + FRAME_HEADER);
    let (mut kind, mut flags) = (HEADERS, if is_last { END_STREAM } else { 0 });
    let mut rest = block;
    loop {
        let (part, behind) = rest.split_at(rest.len().min(MAX_FRAME));
        if behind.is_empty() {
            flags |= END_HEADERS;
        }
        let length = part.len();
        let header = FrameHeader {
            length,
            kind,
            flags,
            stream,
        };
        header.write(&mut frames);
        frames.extend_from_slice(part);
        if behind.is_empty() {
            return frames;
        }
        (kind, flags, rest) = (CONTINUATION, 0, behind);
    }
}
