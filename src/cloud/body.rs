//! Bodies of responses: bytes, files, a generated pattern, and one without an end.

use std::{
    io,
    ops::Range,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead as _, ReadBuf};

const CHUNK: u64 = 64 * 1024;
const PERIOD: usize = 251;
static PATTERN: LazyLock<Bytes> =
    LazyLock::new(|| (0..PERIOD * 256).map(|at| (at % PERIOD) as u8).collect());

/// The body of a response.
pub(super) enum ResponseBody {
    /// These bytes, in one piece.
    Whole(Bytes),
    /// The file from its current position, this number of bytes.
    File(tokio::fs::File, u64),
    /// This part of the endless sequence 0, 1, … 250, 0, 1, …
    Pattern(Range<u64>),
    /// The beginning of a JSON object, then spaces without end.
    Endless(&'static str),
}

impl ResponseBody {
    fn remaining(&self) -> Option<u64> {
        match self {
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::File(_, remaining) => Some(*remaining),
            Self::Pattern(range) => Some(range.end.saturating_sub(range.start)),
            Self::Endless(_) => None,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.remaining() == Some(0) {
            return Poll::Ready(None);
        }
        let bytes = match &mut *self {
            Self::Whole(bytes) => std::mem::take(bytes),
            Self::Endless("") => Bytes::from_static(&[b' '; 1024]),
            Self::Endless(start) => Bytes::from_static(std::mem::take(start).as_bytes()),
            Self::Pattern(range) => {
                let start = (range.start % PERIOD as u64) as usize;
                let left = range.end - range.start;
                let end = (PATTERN.len() as u64).min((start as u64).saturating_add(left)) as usize;
                range.start += (end - start) as u64;
                PATTERN.slice(start..end)
            }
            Self::File(file, remaining) => {
                let mut chunk = vec![0; CHUNK.min(*remaining) as usize];
                let mut buffer = ReadBuf::new(&mut chunk);
                ready!(Pin::new(file).poll_read(cx, &mut buffer))?;
                let read = buffer.filled().len();
                if read == 0 {
                    // The file has shrunk. Only an error tells the client that the announced length
                    // is not reached.
                    return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
                }
                *remaining -= read as u64;
                chunk.truncate(read);
                chunk.into()
            }
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
