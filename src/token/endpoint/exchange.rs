//! One request and its response on a connection of their own.
//!
//! hyper reads the response. Where it fails or finds no JSON object, the recorded bytes are read
//! leniently ([`RawResponse::salvaged`]): a whole object in a response whose framing is wrong is as
//! good as any.

use std::{error::Error as _, future::poll_fn, io, pin::pin, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    time::{interval, timeout},
};
use zeroize::Zeroizing;

use super::{
    describe,
    recording::{RECORDED, Recording},
};
use crate::{
    net::tls,
    token::{
        deadline::CallDeadline,
        token_response::{BODY_LIMIT, Failure, FailureClass, RawResponse},
    },
};

/// The most fields of a response that hyper reads: as many as of a request at most.
const MAX_FIELDS: usize = 10_000;
/// A pause after which a response counts as complete if it can be read, although its framing
/// announces more.
const PAUSE: Duration = Duration::from_secs(1);
/// So many pauses end a response that has a final status other than 2xx, and no object.
const LONG_PAUSE: u32 = 10;

/// Sends the request once and reads the response, until `deadline`. A response that is incomplete
/// is not an error ([`RawResponse::flaw`]).
///
/// # Errors
/// When no byte of a response has arrived.
pub(super) async fn exchange(
    transport: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
    deadline: &CallDeadline,
) -> Result<RawResponse, Failure> {
    let recording = Recording::default();
    let io = TokioIo::new(recording.of(transport));
    let failure = match deadline.run(converse(io, request, &recording)).await {
        Some(Ok(response)) => return Ok(response),
        Some(Err(error)) => failure(&error, recording.lock().is_sent),
        None => Failure::new(
            FailureClass::Ambiguous,
            "the issuer did not respond in time (token.timeout)",
        ),
    };
    let recorded = recording.lock();
    if recorded.received.is_empty() {
        return Err(failure);
    }
    Ok(RawResponse {
        flaw: Some(failure),
        ..RawResponse::salvaged(&recorded.received)
    })
}

async fn converse<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    io: TokioIo<T>,
    request: Request<Full<Bytes>>,
    recording: &Recording,
) -> Result<RawResponse, hyper::Error> {
    let (mut sender, mut connection) = Builder::new()
        .max_headers(MAX_FIELDS)
        .max_buf_size(RECORDED)
        .ignore_invalid_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .handshake(io)
        .await?;
    let response = {
        let mut reading = pin!(read(&mut sender, request));
        let mut pauses = interval(PAUSE);
        let (mut seen, mut silent) = (0, 0);
        let mut is_open = true;
        loop {
            tokio::select! {
                biased;
                // Its errors reach the response.
                _ = poll_fn(|cx| connection.poll_without_shutdown(cx)), if is_open => {
                    is_open = false;
                }
                response = &mut reading => break response?,
                _ = pauses.tick() => {
                    let recorded = recording.lock();
                    let before = std::mem::replace(&mut seen, recorded.received.len());
                    silent = if before == seen && seen > 0 { silent + 1 } else { 0 };
                    if silent == 0 {
                        continue;
                    }
                    let response = RawResponse::salvaged(&recorded.received);
                    if response.is_whole() || silent >= LONG_PAUSE && response.is_conclusive() {
                        return Ok(response);
                    }
                }
            }
        }
    };
    if response.is_conclusive() {
        return Ok(response);
    }
    // The framing has ended the body too early. The rest of it may follow.
    let mut transport = connection.into_parts().io.into_inner();
    let mut buffer = Zeroizing::new([0; 4096]);
    while recording.lock().received.len() < RECORDED
        && let Ok(Ok(1..)) = timeout(PAUSE, transport.read(&mut *buffer)).await
    {}
    let salvaged = RawResponse::salvaged(&recording.lock().received);
    Ok(if salvaged.is_conclusive() {
        salvaged
    } else {
        response
    })
}

async fn read(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<RawResponse, hyper::Error> {
    let (head, mut incoming) = sender.send_request(request).await?.into_parts();
    // One more byte shows that the limit is exceeded. In one allocation, which is wiped on drop.
    let mut body = Zeroizing::new(Vec::with_capacity(BODY_LIMIT + 1));
    while body.len() <= BODY_LIMIT
        && let Some(frame) = incoming.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            let room = BODY_LIMIT + 1 - body.len();
            body.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(RawResponse::new(head.status, head.headers, body))
}

/// Classifies a transport error: as long as nothing was sent, nothing was used.
fn failure(error: &hyper::Error, is_sent: bool) -> Failure {
    let io_error = io_error(error);
    let tls_error = io_error.and_then(tls::cause);
    let (class, what) = if !is_sent || tls_error.is_some_and(refuses_handshake) {
        (FailureClass::Unreachable, "the issuer cannot be reached")
    } else {
        (
            FailureClass::Ambiguous,
            "the issuer's response is incomplete or not HTTP",
        )
    };
    let cause = match io_error {
        Some(error) => describe(error),
        None => error.to_string(),
    };
    Failure::new(class, format!("{what}: {cause}"))
}

fn io_error(error: &hyper::Error) -> Option<&io::Error> {
    error.source()?.downcast_ref()
}

/// With TLS 1.3 a server refuses our certificate after the request was sent, and without reading
/// it.
fn refuses_handshake(error: &rustls::Error) -> bool {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, HandshakeFailure, UnknownCA, UnsupportedCertificate,
    };
    matches!(
        error,
        rustls::Error::AlertReceived(
            AccessDenied
                | BadCertificate
                | CertificateExpired
                | CertificateRequired
                | CertificateRevoked
                | CertificateUnknown
                | HandshakeFailure
                | UnknownCA
                | UnsupportedCertificate
        )
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::AsyncWriteExt as _,
        time::{Instant, sleep},
    };

    use super::*;
    use crate::base::clock::{SharedClock, Simulated};

    /// The status and the body of a response that is sent in parts, each after a wait in seconds,
    /// over a connection that then stays open; and how many seconds that takes.
    async fn receive(parts: &'static [(u64, &'static str)]) -> (u16, String, u64) {
        let (client, mut server) = tokio::io::duplex(4096);
        let issuer = tokio::spawn(async move {
            let _ = server.read(&mut [0; 1024]).await;
            for (wait, part) in parts {
                sleep(Duration::from_secs(*wait)).await;
                server.write_all(part.as_bytes()).await.expect("written");
            }
            std::future::pending::<()>().await;
        });
        let clock: SharedClock = Arc::new(Simulated::new());
        let deadline = CallDeadline::after(&clock, Duration::from_secs(60));
        let began = Instant::now();
        let request = Request::new(Full::new(Bytes::new()));
        let response = exchange(client, request, &deadline).await;
        issuer.abort();
        let response = response.expect("a response");
        let body = String::from_utf8(response.body.to_vec()).expect("text");
        (response.status.as_u16(), body, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn field_a2_the_body_of_a_refusal_is_awaited() {
        const REFUSED: &str = "{\"error\":\"invalid_grant\"}";
        const CHUNKED: &str = "HTTP/1.1 400 x\r\nTransfer-Encoding: chunked\r\n\r\n";
        for parts in [
            &[(0, CHUNKED), (3, "19\r\n{\"error\":\"invalid_grant\"}\r\n")][..],
            &[
                (0, CHUNKED),
                (3, "5\r\n{\"err\r\n"),
                (3, "14\r\nor\":\"invalid_grant\"}\r\n"),
            ],
            &[
                (0, "HTTP/1.1 400 x\r\nContent-Length: 25\r\n\r\n"),
                (9, "{\"error\":"),
                (9, "\"invalid_grant\"}"),
            ],
            &[
                (0, "HTTP/1.1 400"),
                (3, " x\r\nContent-Length: 99\r\n"),
                (3, "\r\n"),
                (3, REFUSED),
            ],
            &[(0, "HTTP/1.1 400 x\r\n\r\n"), (3, REFUSED)],
        ] {
            let (status, body, _) = receive(parts).await;
            assert_eq!((status, &*body), (400, REFUSED), "{parts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_without_an_object_ends_with_its_framing_or_after_a_long_pause() {
        for (part, at_most) in [
            ("HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n", 1),
            ("HTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\nbusy", 1),
            ("HTTP/1.1 503 x\r\nContent-Length: 9\r\n\r\nbusy", 12),
            ("HTTP/1.1 503 x\r\n\r\n", 12),
        ] {
            let parts: &'static [_] = Box::leak(Box::new([(0, part)]));
            let (status, _, seconds) = receive(parts).await;
            assert_eq!(status, 503, "{part}");
            assert!(seconds <= at_most, "{part}: {seconds} s");
        }
    }
}
