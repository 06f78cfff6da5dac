//! Connections of clients and of the pool: how many there may be, what they carry, and how they end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::common::{
    Client, LIMIT, closed_address, connect, eventually, get, in_front_of, issuer, proxy, raw,
    read_head, read_to_close, scripted, send, silent_upstream, status,
    upstream::{Upstream, ok},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_one_endpoint_is_down_the_other_serves() {
    let upstream = Upstream::new().start().await;
    let issuer = issuer().await;
    let both = format!("http://{},{}", closed_address(), upstream.origin());
    let proxy = proxy(&both, &[("token.issuer", &issuer)]);
    proxy.ready().await;
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_endpoints_share_the_load_on_connections_that_are_reused() {
    let (first, second) = (Upstream::new().start().await, Upstream::new().start().await);
    let issuer = issuer().await;
    let proxy = proxy(
        &format!("{},{}", first.origin(), second.origin()),
        &[("token.issuer", &issuer), ("proxy.workers", "1")],
    );
    proxy.ready().await;
    let mut client = Client::connect(proxy.address).await;
    for _ in 0..50 {
        assert_eq!(client.send(get("/")).await.unwrap().status(), 200);
    }
    assert_eq!((first.connections(), second.connections()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_of_one_worker_do_not_use_up_the_limit_for_another() {
    let upstream = Upstream::new().start().await;
    let limits = [("upstream.max_connections", "1"), ("proxy.workers", "4")];
    let proxy = upstream.proxy(&limits).await;
    for _ in 0..50 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_at_a_time_than_an_endpoint_may_get_are_shed() {
    let limit = [("upstream.max_connections", "1")];
    let proxy = in_front_of(silent_upstream().await, &limit).await;
    let address = proxy.address;
    let holder = tokio::spawn(async move { Client::connect(address).await.send(get("/")).await });
    proxy.until_in_flight(1).await;
    let response = proxy.get("/").await;
    assert_eq!(response.status(), 503);
    assert_eq!(
        response.headers()["proxy-status"],
        "bearer-proxy; error=connection_limit_reached"
    );
    holder.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_clients_are_limited_and_the_rest_rejected() {
    let upstream = Upstream::new().start().await;
    let proxy = upstream.proxy(&[("proxy.max_connections", "1")]).await;
    let holder = TcpStream::connect(proxy.address).await.unwrap();
    proxy.until_open(1).await;
    let response = raw(proxy.address, b"", Duration::from_secs(10)).await;
    assert_eq!(status(&response), 503, "{response}");
    drop(holder);
    proxy.until_open(0).await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_requests_in_flight_and_accepts_no_new_connections() {
    let (release, released) = tokio::sync::watch::channel(false);
    let late = ok("late").after(move || {
        let mut released = released.clone();
        async move { drop(released.wait_for(|released| *released).await) }
    });
    let upstream = Upstream::always(late).start().await;
    let proxy = upstream.proxy(&[]).await;
    let address = proxy.address;
    let mut idle = Client::connect(address).await;
    let in_flight = tokio::spawn(async move { send(address, get("/slow")).await });
    proxy.until_in_flight(1).await;
    let ending = tokio::spawn(proxy.app.shut_down());
    eventually("the listener is closed", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
    assert!(!in_flight.is_finished() && !ending.is_finished());
    release.send_replace(true);
    let response = in_flight.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.body(), "late");
    assert_eq!(response.headers()["connection"], "close");
    tokio::time::timeout(LIMIT, ending)
        .await
        .expect("it ends")
        .unwrap();
    assert!(
        idle.send(get("/")).await.is_err(),
        "an idle connection outlived the proxy"
    );
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_serves_any_host() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("proxy.sock");
    let upstream = Upstream::new().start().await;
    let listen = format!("127.0.0.1:0,unix:{}", path.display());
    let _proxy = upstream.proxy(&[("proxy.listen", &listen)]).await;
    for host in ["localhost", "anything.example"] {
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let response = read_to_close(&mut stream).await;
        assert_eq!(status(&response), 200, "{response}");
        assert!(response.ends_with("ok"), "{response}");
    }
}

/// What a client does not read stays with the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_the_upstream_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let upstream = scripted(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            read_head(&mut stream).await?;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
                .await?;
            let chunk = [b'x'; 64 * 1024];
            loop {
                stream.write_all(&chunk).await?;
                count.fetch_add(chunk.len(), SeqCst);
            }
        }
    })
    .await;
    let proxy = in_front_of(upstream, &[]).await;
    let _stream = connect(proxy.address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    // Until nothing moves any more: twice the same count, a while apart.
    let mut last = 0;
    eventually("the upstream is held back", async || {
        tokio::time::sleep(Duration::from_millis(300)).await; // the while
        let now = sent.load(SeqCst);
        std::mem::replace(&mut last, now) == now && now > 0
    })
    .await;
    // The sockets' buffers hold some megabytes, the proxy itself next to nothing.
    assert!(last < 50_000_000, "{last} bytes were taken");
}
