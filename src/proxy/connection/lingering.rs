//! Drains request bodies whose response has already been sent.
//!
//! A client may not read the response before it has sent its whole request, and a socket that is
//! closed while bytes arrive is reset, which can discard the response. The rest of the body is
//! therefore read, within limits.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::proxy::connection::http1_state::Http1State;

/// Limit for draining one body.
const LINGER: Duration = Duration::from_secs(30);
/// Limit for each pause of it.
const LINGER_PAUSE: Duration = Duration::from_secs(5);

/// Limit for the first byte of a body that the client was never asked for: few clients send it all
/// the same, and those that wait for the connection to close wait as long.
const UNREQUESTED_PAUSE: Duration = Duration::from_millis(500);

/// The rest of a request body that has no reader any more.
#[derive(Debug)]
pub(crate) struct UnreadBody {
    pub(crate) body: Incoming,
    pub(crate) state: Arc<Http1State>,
    /// The number of its exchange.
    pub(crate) exchange: u32,
    /// The client sent `Expect: 100-continue` and got no 100.
    pub(crate) is_unrequested: bool,
}

/// Reads each body to its end and then ends its exchange. Beyond the limits the exchange's deadline
/// closes the connection.
pub(crate) async fn drain(mut unread_bodies: mpsc::UnboundedReceiver<UnreadBody>) {
    while let Some(UnreadBody {
        mut body,
        state,
        exchange,
        is_unrequested,
    }) = unread_bodies.recv().await
    {
        tokio::task::spawn_local(async move {
            let mut pause = if is_unrequested {
                UNREQUESTED_PAUSE
            } else {
                LINGER_PAUSE
            };
            let reading = async {
                loop {
                    match tokio::time::timeout(pause, body.frame()).await {
                        Ok(Some(Ok(_))) => pause = LINGER_PAUSE,
                        Ok(None) => return true,
                        Ok(Some(Err(_))) | Err(_) => return false,
                    }
                }
            };
            if tokio::time::timeout(LINGER, reading).await == Ok(true) {
                state.end_exchange(exchange);
            }
        });
    }
}
