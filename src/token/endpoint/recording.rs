//! What a connection has sent and received, whatever the HTTP parser makes of it.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::{InspectReader, InspectWriter};
use zeroize::Zeroizing;

/// The first bytes of a connection that are kept, in bytes: head, body and its framing.
pub(super) const RECORDED: usize = 256 * 1024;

/// The record of one connection, shared with its [transport](Recording::of).
#[derive(Clone, Default)]
pub(super) struct Recording(Arc<Mutex<Recorded>>);

/// What has passed through a connection.
#[derive(Default)]
pub(super) struct Recorded {
    /// At most [`RECORDED`] bytes.
    pub(super) received: Zeroizing<Vec<u8>>,
    /// Whether a byte of the request was written.
    pub(super) is_sent: bool,
}

impl Recording {
    /// The transport, which now records what it transports.
    pub(super) fn of<T: AsyncRead + AsyncWrite + Send + Unpin>(
        &self,
        transport: T,
    ) -> impl AsyncRead + AsyncWrite + Send + Unpin + use<T> {
        let (sent, received) = (self.clone(), self.clone());
        let writer = InspectWriter::new(transport, move |_: &[u8]| sent.lock().is_sent = true);
        InspectReader::new(writer, move |bytes: &[u8]| {
            if !bytes.is_empty() {
                received.lock().receive(bytes);
            }
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock()
    }
}

impl Recorded {
    fn receive(&mut self, bytes: &[u8]) {
        if self.received.capacity() == 0 {
            // In one allocation: a vector that grows would leave unwiped copies behind.
            self.received.reserve_exact(RECORDED);
        }
        let room = RECORDED - self.received.len();
        self.received
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}
