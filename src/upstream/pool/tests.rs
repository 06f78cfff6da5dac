//! Connections to servers on loopback: who shares one, and what its loss means.

use std::{cell::Cell, convert::Infallible};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Empty;
use hyper::{server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::spawn_local,
    time::{sleep, timeout},
};
use tokio_util::either::Either;

use super::{lease::IDLE_LOSS, *};
use crate::{
    base::clock,
    net::socket,
    upstream::{
        AddressId, Dial, Error, Place, Reason, Sockets, Upstream, Visited,
        connect::UpstreamIo,
        health::State,
        testing::{self, LIMIT},
    },
};

type Body = Empty<Bytes>;

/// A listener, and its port.
async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

/// Serves each connection, and counts them.
async fn serve<F: Future<Output = ()> + 'static>(
    serve: impl Fn(usize, TcpStream) -> F + 'static,
) -> (u16, Rc<Cell<usize>>) {
    let (listener, port) = listener().await;
    let accepted = Rc::new(Cell::new(0));
    let count = Rc::clone(&accepted);
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            count.set(count.get() + 1);
            spawn_local(serve(count.get(), stream));
        }
    });
    (port, accepted)
}

/// Responds 200 to each request without a body.
async fn http1(_: usize, mut stream: TcpStream) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream
                .write_all(response)
                .await
                .expect("an open connection");
        }
    }
}

/// Responds with the number of the connection as the field `connection-number`.
async fn http2(number: usize, stream: TcpStream) {
    let service = service_fn(move |_| async move {
        let mut response = Response::new(Empty::<Bytes>::new());
        let value = HeaderValue::from(number);
        response.headers_mut().insert("connection-number", value);
        Ok::<_, Infallible>(response)
    });
    let serving = server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    let _ = serving.await;
}

/// Endpoints at these ports, with room for a few requests.
fn config(ports: &[u16]) -> Config {
    let endpoints = ports
        .iter()
        .map(|port| testing::endpoint("127.0.0.1", *port));
    Config {
        max_connections: 10,
        max_requests: 10,
        ..testing::config(endpoints.collect())
    }
}

fn upstream(config: Config, sockets: &Arc<Sockets>) -> Upstream<Body> {
    let ticker = Ticker::new();
    spawn_local(Rc::clone(&ticker).run());
    let shared = Shared::new(config, sockets, 1, clock::system()).expect("valid");
    Upstream::new(shared, 0, &ticker, |_| Arc::default())
}

async fn dial(upstream: &Upstream<Body>, lost: Option<AddressId>) -> Result<Lease<Body>, Error> {
    let place = upstream.place(&Visited::default(), None).expect("room");
    dial_at(upstream, place, lost).await
}

async fn dial_at(
    upstream: &Upstream<Body>,
    place: Place<Body>,
    lost: Option<AddressId>,
) -> Result<Lease<Body>, Error> {
    let dial = Dial {
        is_upgrade: false,
        is_alone: false,
        lost,
    };
    let mut visited = Visited::default();
    upstream.dial(place, dial, &mut visited, None).await
}

fn request() -> Request<Body> {
    let request = Request::get("/").header("host", "localhost");
    request.body(Empty::new()).expect("a request")
}

/// Sends a request and waits for the head of the response.
async fn response(lease: &mut Lease<Body>) -> Response<hyper::body::Incoming> {
    let (sending, _) = lease.send(request());
    sending
        .await
        .unwrap_or_else(|failed| panic!("{}", failed.error()))
}

/// A connection that has carried a request.
async fn reused(upstream: &Upstream<Body>) -> Lease<Body> {
    let mut lease = dial(upstream, None).await.expect("a server");
    response(&mut lease).await;
    lease.release();
    loop {
        tokio::task::yield_now().await;
        let place = upstream.place(&Visited::default(), None).expect("room");
        if let Ok(lease) = place.reuse(false) {
            return lease;
        }
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_first_loss_of_a_connection_that_may_have_been_idle_is_no_failure() {
    let (port, _) = serve(http1).await;
    let upstream = upstream(config(&[port]), &Sockets::new(10));
    let mut fresh = dial(&upstream, None).await.expect("a server");
    drop(fresh.send(request()));
    assert_eq!(fresh.loss(), Loss::InUse, "it was not idle");
    sleep(IDLE_LOSS * 2).await;
    drop(fresh);

    let lost = async || {
        let mut lease = reused(&upstream).await;
        drop(lease.send(request()));
        lease.loss()
    };
    assert_eq!(lost().await, Loss::Idle);
    assert_eq!(lost().await, Loss::IdleAgain);
    assert_eq!(lost().await, Loss::IdleAgain);
    reused(&upstream).await.succeeded();
    assert_eq!(lost().await, Loss::Idle);

    reused(&upstream).await.succeeded();
    let mut late = reused(&upstream).await;
    drop(late.send(request()));
    sleep(IDLE_LOSS * 2).await;
    assert_eq!(late.loss(), Loss::InUse, "the server had the request");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn losses_of_streams_of_one_connection_are_one_loss() {
    let (port, _) = serve(http2).await;
    let http2 = Config {
        http2: Http2::Always,
        ..config(&[port])
    };
    let upstream = upstream(http2, &Sockets::new(10));
    let _open = dial(&upstream, None).await.expect("a server");
    for _ in 0..3 {
        let place = upstream.place(&Visited::default(), None).expect("room");
        let mut lease = place.reuse(false).expect("a stream");
        drop(lease.send(request()));
        assert_eq!(lease.loss(), Loss::Idle);
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_verdict_ends_a_trial_though_the_response_goes_on() {
    for is_success in [false, true] {
        let (port, _) = serve(http1).await;
        let upstream = upstream(config(&[port, 1]), &Sockets::new(10));
        let addresses = &upstream.shared.addresses;
        let address = Arc::clone(&addresses.load().listed[0].address);
        let other = Visited::new(addresses.load().listed[1].address.id);
        let begin_trials = || {
            for _ in 0..5 {
                upstream.failed(address.id, Reason::Broken);
            }
            assert_eq!(address.health.snapshot().state, State::Failing);
            address.health.tick(addresses.now() + LIMIT * 100);
            assert_eq!(address.health.snapshot().state, State::Trial);
            addresses.bump();
        };
        upstream.place(&Visited::default(), None).expect("room");
        begin_trials();
        let place = upstream.other_place(&other, None).expect("a trial");
        let lease = dial_at(&upstream, place, None).await.expect("a server");
        assert!(
            upstream.other_place(&other, None).is_none(),
            "one at a time"
        );
        if is_success {
            lease.succeeded();
        } else {
            lease.failed(Reason::Broken);
        }
        begin_trials();
        assert!(upstream.other_place(&other, None).is_some(), "{is_success}");
        drop(lease);
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn after_a_loss_requests_share_one_new_connection_and_use_no_old_one() {
    let (port, accepted) = serve(http2).await;
    let http2 = Config {
        http2: Http2::Always,
        ..config(&[port])
    };
    let upstream = upstream(http2, &Sockets::new(10));
    let old = dial(&upstream, None).await.expect("a server");
    let lost = Some(old.address());
    let (first, second) = tokio::join!(dial(&upstream, lost), dial(&upstream, lost));
    let mut leases = [first.expect("a server"), second.expect("a server")];
    let is_reused = leases.each_ref().map(Lease::is_reused);
    assert_eq!(is_reused, [false, true]);
    for lease in &mut leases {
        let response = response(lease).await;
        assert_eq!(response.headers()["connection-number"], "2");
    }
    assert_eq!(accepted.get(), 2);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_dial_that_has_waited_too_long_for_a_socket_does_not_begin() {
    for (waits, is_late) in [(LIMIT / 2, false), (LIMIT - LIMIT / 20, true)] {
        let (port, accepted) = serve(http1).await;
        let sockets = Sockets::new(1);
        let upstream = upstream(config(&[port]), &sockets);
        let held = sockets.acquire(LIMIT).await.expect("a socket");
        let release = async {
            sleep(waits).await;
            drop(held);
        };
        let (dialled, ()) = tokio::join!(dial(&upstream, None), release);
        let is_refused = matches!(dialled, Err(Error::NoSocket { .. }));
        assert_eq!(is_refused, is_late, "{:?}", dialled.err());
        assert_eq!(accepted.get(), usize::from(!is_late));
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_http2_handshake_on_a_connection_that_was_reset_ends_with_its_limit() {
    let (port, _) = serve(async |_, stream| {
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("an option");
    })
    .await;
    let upstream = upstream(config(&[port]), &Sockets::new(10));
    let place = upstream.place(&Visited::default(), None).expect("room");
    let address = ([127, 0, 0, 1], port).into();
    let mut stream = socket::connect_to(address).await.expect("a server");
    assert!(stream.read_u8().await.is_err(), "it is reset");
    let io = Io::new(UpstreamIo::new(Either::Left(stream)));
    let permit = Rc::new(Sockets::new(1).acquire(LIMIT).await.expect("a socket"));
    let opened = timeout(LIMIT * 3, place.pool.open_http2(io, permit)).await;
    let error = opened.expect("it ends").err().expect("a failure");
    assert!(
        matches!(error, Error::Timeout { limit, .. } if limit == LIMIT),
        "{error}"
    );
}
