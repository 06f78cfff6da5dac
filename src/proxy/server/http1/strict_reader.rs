//! What hyper gets to read of an HTTP/1 connection: whole requests whose ends are the same to everybody.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::{
    connection::{io::Io, state::ConnState},
    framing::{FaultSite, Framing, HeadLimits, Scan},
};

/// What hyper reads in the place of something that is no request, so that it is answered, counted and logged as the others
/// are. Nothing of what the client sent is in it.
const STAND_IN: &[u8] = b"MALFORMED * HTTP/1.1\r\nconnection: close\r\n\r\n";

/// What is read at most of a client that is not listened to any more, so that the close does not take our answer with it.
const FAREWELL: usize = 1024 * 1024;

/// A client's socket behind the strict reading of `framing.rs`.
pub(crate) struct StrictReader {
    io: Io,
    framing: Framing,
    monitor: Arc<ConnState>,
    /// The beginning of a head.
    held: BytesMut,
    /// Found good, and not handed on yet.
    good: Bytes,
    /// Heads found good so far, which is the number of their last exchange.
    heads: u32,
    end: Option<End>,
    /// What was read since the end.
    ignored: usize,
}

/// No more is read from the client.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The next request is the stand-in.
    StandIn,
    /// Nothing follows.
    Silence,
    /// The body that was begun is malformed.
    Body,
}

impl StrictReader {
    pub(crate) fn new(io: Io, monitor: Arc<ConnState>, limits: HeadLimits) -> Self {
        let framing = Framing::new(limits);
        Self {
            io,
            framing,
            monitor,
            held: BytesMut::new(),
            good: Bytes::new(),
            heads: 0,
            end: None,
            ignored: 0,
        }
    }

    /// The socket, if nothing was read from it beyond what was handed on.
    pub(crate) fn into_inner(self) -> Option<Io> {
        let is_at_rest = self.held.is_empty() && self.good.is_empty() && self.end.is_none();
        is_at_rest.then_some(self.io)
    }

    /// Leaves in the buffer what is good of what was read behind `before`.
    fn sift(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let read = &buf.filled()[before..];
        let is_held = !self.held.is_empty();
        if is_held {
            self.held.extend_from_slice(read);
        }
        let Scan { good, heads, fault } =
            self.framing.read(if is_held { &self.held } else { read });
        self.heads = self.heads.wrapping_add(heads);
        if is_held {
            self.good = self.held.split_to(good).freeze();
            if self.held.is_empty() {
                // What is left of it would keep all of it.
                self.held = BytesMut::new();
            }
            buf.set_filled(before);
        } else {
            self.held.extend_from_slice(&read[good..]);
            buf.set_filled(before + good);
        }
        if let Some((place, fault)) = fault {
            self.held = BytesMut::new();
            self.end = Some(match place {
                FaultSite::Request => {
                    self.monitor.misread(self.heads.wrapping_add(1), fault);
                    End::StandIn
                }
                FaultSite::Body => End::Body,
            });
        }
    }

    /// Waits for the client to close, within bounds.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut room = [0; 4096];
        while self.ignored < FAREWELL {
            let mut buf = ReadBuf::new(&mut room);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => self.ignored += buf.filled().len(),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for StrictReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if !this.good.is_empty() {
                let n = this.good.len().min(buf.remaining());
                buf.put_slice(&this.good.split_to(n));
                return Poll::Ready(Ok(()));
            }
            match this.end {
                None => {}
                Some(End::StandIn) => {
                    this.good = Bytes::from_static(STAND_IN);
                    this.end = Some(End::Silence);
                    continue;
                }
                Some(End::Silence) => return Poll::Ready(Ok(())),
                Some(End::Body) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            this.sift(buf, before);
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for StrictReader {
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
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        if self.end.is_some() {
            self.monitor.say_goodbye();
            ready!(self.poll_farewell(cx));
        }
        Poll::Ready(Ok(()))
    }
}
