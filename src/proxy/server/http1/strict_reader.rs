//! What hyper reads of an HTTP/1 connection: only requests that the strict parser of `framing.rs`
//! accepts, so that every recipient finds the same end of each (request smuggling, RFC 9112 §11.2).

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::{
    connection::{http1_state::Http1State, io::Io},
    framing::{FaultSite, Framing, HeadLimits, Scan},
};

/// What hyper reads in place of a malformed request, so that the handler rejects, counts and logs
/// it as it does others. Contains nothing that the client sent.
const SUBSTITUTE: &[u8] = b"MALFORMED * HTTP/1.1\r\nconnection: close\r\n\r\n";

/// Bytes that are read and discarded at most after a malformed request, so that closing the socket
/// does not reset the connection and with it the response.
const MAX_DISCARDED: usize = 1024 * 1024;

/// The client's socket behind the strict parser.
pub(crate) struct StrictReader {
    io: Io,
    framing: Framing,
    state: Arc<Http1State>,
    /// The beginning of a head that is not complete yet.
    partial: BytesMut,
    /// Accepted, and not read by hyper yet.
    accepted: Bytes,
    /// Heads accepted so far, which is the number of the last one's exchange.
    heads: u32,
    /// Set after a fault: nothing more is accepted from the client.
    end: Option<End>,
    /// Bytes discarded since the fault.
    discarded: usize,
}

/// What hyper reads after a fault.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The substitute for the malformed request, then the end of the stream.
    Substitute,
    /// The end of the stream.
    Eof,
    /// An error: the fault is within a body.
    Error,
}

impl StrictReader {
    pub(crate) fn new(io: Io, state: Arc<Http1State>, limits: HeadLimits) -> Self {
        let framing = Framing::new(limits);
        Self {
            io,
            framing,
            state,
            partial: BytesMut::new(),
            accepted: Bytes::new(),
            heads: 0,
            end: None,
            discarded: 0,
        }
    }

    /// The socket, if hyper has read all that was read from it.
    pub(crate) fn into_inner(self) -> Option<Io> {
        let is_drained = self.partial.is_empty()
            && self.accepted.is_empty()
            && !self.io.has_unread()
            && self.end.is_none();
        is_drained.then_some(self.io)
    }

    /// Parses what was read behind `before` and leaves in the buffer what was accepted of it.
    fn parse(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let read = &buf.filled()[before..];
        let has_partial = !self.partial.is_empty();
        if has_partial {
            self.partial.extend_from_slice(read);
        }
        let Scan {
            good,
            repaired,
            heads,
            fault,
        } = self
            .framing
            .read(if has_partial { &self.partial } else { read });
        self.heads = self.heads.wrapping_add(heads);
        if self.framing.has_unusual_names() {
            self.state.set_unusual_names();
        }
        if let Some(repaired) = repaired {
            if has_partial {
                self.partial.advance(good);
            } else {
                self.partial.extend_from_slice(&read[good..]);
            }
            self.accepted = repaired.into();
            buf.set_filled(before);
        } else if has_partial {
            self.accepted = self.partial.split_to(good).freeze();
            buf.set_filled(before);
        } else {
            self.partial.extend_from_slice(&read[good..]);
            buf.set_filled(before + good);
        }
        if has_partial && self.partial.is_empty() {
            // Even empty it would keep the whole buffer allocated.
            self.partial = BytesMut::new();
        }
        if let Some((site, fault)) = fault {
            self.partial = BytesMut::new();
            self.end = Some(match site {
                FaultSite::Request => {
                    self.state.set_malformed(self.heads.wrapping_add(1), fault);
                    End::Substitute
                }
                FaultSite::Body => End::Error,
            });
        }
    }

    /// Fails if the client has gone while its request is served.
    ///
    /// hyper does not read meanwhile, since a client may close its sending side and wait for the
    /// response. One that has gone would otherwise hold its slots until the upstream responds.
    fn check_client(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.state.is_in_exchange() {
            return Ok(());
        }
        if self.framing.is_in_body() || self.end.is_some() || !self.state.may_read_ahead() {
            return self.io.check_reset(cx);
        }
        self.io.read_ahead(cx)
    }

    /// Reads and discards until the client closes, within limits.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut buffer = [0; 4096];
        while self.discarded < MAX_DISCARDED {
            let mut buf = ReadBuf::new(&mut buffer);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => self.discarded += buf.filled().len(),
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
            if !this.accepted.is_empty() {
                let n = this.accepted.len().min(buf.remaining());
                buf.put_slice(&this.accepted.split_to(n));
                return Poll::Ready(Ok(()));
            }
            match this.end {
                None => {}
                Some(End::Substitute) => {
                    this.accepted = Bytes::from_static(SUBSTITUTE);
                    this.end = Some(End::Eof);
                    continue;
                }
                Some(End::Eof) => return Poll::Ready(Ok(())),
                Some(End::Error) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            this.parse(buf, before);
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
        self.check_client(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        if self.end.is_some() {
            self.state.begin_close();
            ready!(self.poll_discard(cx));
        }
        Poll::Ready(Ok(()))
    }
}
