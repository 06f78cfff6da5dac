//! A small HTTP/1.1 server for responses that are ready at once: the admin endpoint, and the
//! callback of a login.
//!
//! It bounds what a client can hold: connections, the time for a head, the life of a connection.

use std::{
    convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::socket::Listener;

/// How long a client may take for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last: some clients never read the response that they requested.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take for its last response, once its time is up or the server stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`: without it, a process that is out of descriptors would retry in a
/// busy loop.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The response of such a server.
pub type HttpResponse = Response<Full<Bytes>>;

/// Serves `respond` until `stop` resolves, at most `limit` connections at a time; returns once all
/// of them have ended, a second later at the latest.
///
/// `admit` decides by the peer's address whether a connection is served; what it returns is dropped
/// with the connection.
pub async fn serve<P, R>(
    listener: Listener,
    limit: usize,
    admit: impl Fn(Option<SocketAddr>) -> Option<P>,
    respond: R,
    stop: impl Future<Output = ()>,
) where
    P: Send + 'static,
    R: Fn(&Parts) -> HttpResponse + Clone + Send + Sync + 'static,
{
    let slots = Arc::new(Semaphore::new(limit));
    let stopping = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&slots, || listener.accept(), &admit) => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, admission)) => {
                let (respond, stopping) = (respond.clone(), stopping.clone());
                connections.spawn(async move {
                    serve_connection(stream, respond, stopping.cancelled()).await;
                    drop(admission);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
    drop(listener);
    stopping.cancel();
    while connections.join_next().await.is_some() {}
}

/// The next connection that is admitted, and what it holds for as long as it is open. The others
/// are closed.
async fn accept<S, F, P>(
    slots: &Arc<Semaphore>,
    accept: impl Fn() -> F,
    admit: impl Fn(Option<SocketAddr>) -> Option<P>,
) -> io::Result<(S, (OwnedSemaphorePermit, P))>
where
    F: Future<Output = io::Result<(S, Option<SocketAddr>)>>,
{
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    loop {
        let (stream, peer) = accept().await?;
        if let Some(admission) = admit(peer) {
            return Ok((stream, (slot, admission)));
        }
    }
}

/// Serves a connection until its client closes it, its time is up, or `stop` resolves.
async fn serve_connection<S>(
    stream: S,
    respond: impl Fn(&Parts) -> HttpResponse,
    stop: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (head, _) = request.into_parts();
        let response = respond(&head);
        async { Ok::<_, Infallible>(response) }
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    // Errors are dropped: they concern this client alone, which sees its connection end.
    tokio::select! {
        _ = serving.as_mut() => return,
        () = tokio::time::sleep(CONNECTION_TIMEOUT) => {}
        () = stop => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, serving).await;
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, future, sync::Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn respond_with(size: usize) -> impl Fn(&Parts) -> HttpResponse {
        move |_| Response::new(Full::new(vec![b'x'; size].into()))
    }

    #[tokio::test]
    async fn a_connection_that_is_not_admitted_takes_no_slot() {
        let slots = Arc::new(Semaphore::new(1));
        let queue = Mutex::new(VecDeque::from([1, 2, 3]));
        let next = || {
            let port = queue.lock().unwrap().pop_front().unwrap();
            future::ready(Ok((port, Some(([192, 0, 2, 1], port).into()))))
        };
        let admit = |peer: Option<SocketAddr>| Some(()).filter(|()| peer.unwrap().port() != 1);
        let (first, held) = accept(&slots, next, admit).await.unwrap();
        assert_eq!((first, slots.available_permits()), (2, 0));
        drop(held);
        let (second, _held) = accept(&slots, next, admit).await.unwrap();
        assert_eq!(second, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unfinished_head_ends_the_connection() {
        for begun in ["", "GET / HTTP/1.1\r\nHost: "] {
            let (mut client, server) = tokio::io::duplex(1024);
            let serving =
                tokio::spawn(serve_connection(server, respond_with(0), future::pending()));
            client.write_all(begun.as_bytes()).await.unwrap();
            assert!(
                tokio::time::timeout(HEAD_TIMEOUT + CLOSE_TIMEOUT, serving)
                    .await
                    .is_ok(),
                "still served: {begun}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_not_read_ends_the_connection() {
        let (mut client, server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve_connection(
            server,
            respond_with(4096),
            future::pending(),
        ));
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'H');
        let limit = CONNECTION_TIMEOUT + 2 * CLOSE_TIMEOUT;
        assert!(
            tokio::time::timeout(limit, serving).await.is_ok(),
            "still served"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_idle_connections_and_lets_a_response_be_read() {
        let stop = CancellationToken::new();
        let (mut idle, server) = tokio::io::duplex(1024);
        let idle_serving = tokio::spawn(serve_connection(
            server,
            respond_with(0),
            stop.clone().cancelled_owned(),
        ));
        idle.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(idle.read_u8().await.unwrap(), b'H');
        let (mut busy, server) = tokio::io::duplex(1024);
        let busy_serving = tokio::spawn(serve_connection(
            server,
            respond_with(4096),
            stop.clone().cancelled_owned(),
        ));
        busy.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(busy.read_u8().await.unwrap(), b'H');

        stop.cancel();
        idle_serving.await.unwrap();
        let mut rest = Vec::new();
        busy.read_to_end(&mut rest).await.unwrap();
        assert!(rest.ends_with(&[b'x'; 4096]), "{} bytes", rest.len());
        busy_serving.await.unwrap();
    }
}
