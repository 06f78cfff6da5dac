//! Bodies that nobody wants any more: they are read all the same, within bounds, so that their clients see the answer.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::proxy::connection::state::ConnState;

/// Bounds for reading one out: in all, and for each silence.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(5);

/// How long a client that was not asked for its body may take to send some of it all the same. Those that wait for the
/// close of the connection wait as long.
const UNASKED_SILENCE: Duration = Duration::from_millis(500);

/// A client's body that nobody wants any more.
#[derive(Debug)]
pub(crate) struct UnreadBody {
    pub(crate) body: Incoming,
    pub(crate) monitor: Arc<ConnState>,
    pub(crate) exchange: u32,
    /// The client was to send it when asked, and was not: few do all the same.
    pub(crate) is_unasked: bool,
}

/// Reads abandoned bodies to their end, within bounds; beyond them the connection closes.
pub(crate) async fn read_out(mut unread_bodies: mpsc::UnboundedReceiver<UnreadBody>) {
    while let Some(UnreadBody {
        mut body,
        monitor,
        exchange,
        is_unasked,
    }) = unread_bodies.recv().await
    {
        tokio::task::spawn_local(async move {
            let mut silence = if is_unasked {
                UNASKED_SILENCE
            } else {
                LINGER_SILENCE
            };
            let reading = async {
                loop {
                    match tokio::time::timeout(silence, body.frame()).await {
                        Ok(Some(Ok(_))) => silence = LINGER_SILENCE,
                        Ok(None) => return true,
                        Ok(Some(Err(_))) | Err(_) => return false,
                    }
                }
            };
            if tokio::time::timeout(LINGER, reading).await == Ok(true) {
                monitor.end_exchange(exchange);
            }
        });
    }
}
