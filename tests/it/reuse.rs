//! The upstream closes connections while they are idle: the next request must succeed, and no
//! request may be sent twice.
//!
//! `SOAK_REUSES` sets the number of requests (default 10,000), `SOAK_MARKS` the number of marked
//! requests (default 20,000).
#![cfg(target_os = "linux")]

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use rustix::process::Signal;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::Notify};

use crate::common::{
    Client, LIMIT, closed_address, eventually, get, in_front_of, post,
    process::ReadyProgram,
    read_head, scripted,
    upstream::{grant, read_body, response, values},
};

/// A pseudo-random sequence of numbers that is the same in every run.
fn mixed(mut number: u64) -> u64 {
    number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Reads a request. Returns its path, or nothing if the peer has closed the connection.
async fn request(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let head = read_head(stream).await?;
    read_body(stream, &head).await?;
    Ok(head.split(' ').nth(1).map(str::to_owned))
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_22_an_upstream_closes_idle_connections_at_random() {
    const CLIENTS: u64 = 8;
    let total: u64 = std::env::var("SOAK_REUSES")
        .ok()
        .map_or(10_000, |text| text.parse().unwrap());
    let seen = Arc::new(Mutex::new(HashMap::<String, u32>::new()));
    let unread = Arc::new(AtomicUsize::new(0));
    let (notes, unread_count) = (Arc::clone(&seen), Arc::clone(&unread));
    let address = scripted(move |connection, mut stream| {
        let (seen, unread) = (Arc::clone(&notes), Arc::clone(&unread_count));
        async move {
            for turn in 0_u64.. {
                let Some(path) = request(&mut stream).await? else {
                    return Ok(());
                };
                if path.starts_with("/post") {
                    *seen.lock().unwrap().entry(path).or_default() += 1;
                }
                stream.write_all(OK).await?;
                let fate = mixed(connection as u64 * 1000 + turn);
                match fate % 10 {
                    // Closes immediately.
                    0 => return Ok(()),
                    // Closes after a short delay.
                    1 => {
                        tokio::time::sleep(Duration::from_micros(fate / 10 % 3000)).await; // a random delay
                        return Ok(());
                    }
                    // Closes when the next request has arrived, without reading it: this causes a
                    // reset.
                    2 => {
                        stream.readable().await?;
                        unread.fetch_add(1, SeqCst);
                        return Ok(());
                    }
                    _ => {}
                }
            }
            Ok(())
        }
    })
    .await;
    let proxy = in_front_of(address, &[]).await;
    let clients = (0..CLIENTS).map(|number| {
        let at = proxy.address;
        tokio::spawn(async move {
            let mut client = Client::connect(at).await;
            let (mut gets_failed, mut posts_failed) = (0, 0);
            for turn in 0..total / CLIENTS {
                let is_post = turn % 10 == 0;
                let request = if is_post {
                    post(&format!("/post/{number}/{turn}"), "body")
                } else {
                    get("/")
                };
                let response = tokio::time::timeout(LIMIT, client.send(request))
                    .await
                    .unwrap();
                let is_good = response.is_ok_and(|response| response.status() == 200);
                match is_post {
                    true => posts_failed += u32::from(!is_good),
                    false => gets_failed += u32::from(!is_good),
                }
            }
            (gets_failed, posts_failed)
        })
    });
    let (mut gets_failed, mut posts_failed) = (0, 0);
    for client in clients.collect::<Vec<_>>() {
        let (gets, posts) = client.await.unwrap();
        gets_failed += gets;
        posts_failed += posts;
    }
    let doubled = seen
        .lock()
        .unwrap()
        .values()
        .filter(|count| **count > 1)
        .count();
    let (unread, posts) = (unread.load(SeqCst), total / 10);
    println!(
        "{total} requests: {gets_failed} GETs failed; {posts} POSTs, {posts_failed} failed, {doubled} doubled; {unread} requests reset unread"
    );
    assert_eq!((gets_failed, doubled), (0, 0));
    // The upstream may have processed a POST before the close: only POST requests fail.
    assert!(
        u64::from(posts_failed) < posts / 5,
        "{posts_failed} of {posts}"
    );
    assert!(
        proxy
            .metric("bearer_proxy_retries_total{reason=\"connection_lost\",outcome=\"accepted\"}")
            .await
            > 0.0
    );
}

/// The test stops the proxy. Then the request arrives, and then the close of the connection that
/// would carry the request. When the proxy continues, it detects both at once, the request first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_has_arrived_is_noticed_before_a_post_is_sent() {
    let (close, closed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (asked, tell) = (Arc::clone(&close), Arc::clone(&closed));
    let address = scripted(move |_, mut stream| {
        let (asked, tell) = (Arc::clone(&asked), Arc::clone(&tell));
        async move {
            match request(&mut stream).await?.as_deref() {
                None => return Ok(()),
                Some(path) if path.starts_with("/api/refreshToken.do") => {
                    return grant("token", 3600).send(&mut stream).await;
                }
                Some(_) => stream.write_all(OK).await?,
            }
            asked.notified().await;
            drop(stream);
            tell.notify_one();
            Ok(())
        }
    })
    .await;
    let proxy = ReadyProgram::start(address, "proxy.workers = 1\n").await;
    for turn in 0..20 {
        let mut client = Client::connect(proxy.address).await;
        assert_eq!(client.send(get("/")).await.unwrap().status(), 200);
        proxy.running.signal(Signal::STOP);
        eventually("every thread is stopped", async || {
            stands_still(proxy.running.0.id())
        })
        .await;
        let posting = tokio::spawn(async move { client.send(post("/", "body")).await });
        eventually("the request arrives", async || {
            received_unread(proxy.address)
        })
        .await;
        close.notify_one();
        closed.notified().await;
        proxy.running.signal(Signal::CONT);
        assert_eq!(posting.await.unwrap().unwrap().status(), 200, "{turn}");
        // The upstream closes the new connection too: the next turn begins with a new one.
        close.notify_one();
        closed.notified().await;
    }
}

fn stands_still(process: u32) -> bool {
    let mut threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads.all(|thread| {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        status
            .lines()
            .any(|line| line.starts_with("State:") && line.contains("T (stopped)"))
    })
}

/// Whether a connection to this address holds unread bytes.
fn received_unread(address: SocketAddr) -> bool {
    let local = format!(" 0100007F:{:04X} ", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        // Established, on the proxy's side: the queue sizes follow the state.
        let mut words = line.split_whitespace().skip(1);
        let is_ours = words.next().is_some_and(|at| local.trim() == at);
        let queue = words.nth(2).and_then(|queues| queues.split(':').nth(1));
        is_ours
            && line.contains(" 01 ")
            && queue.is_some_and(|queue| queue.bytes().any(|digit| digit != b'0'))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_20_connections_that_are_refused_or_time_out() {
    let (full, _held) = black_hole();
    for (address, status) in [(closed_address(), 502), (full, 504)] {
        let proxy = in_front_of(address, &[("upstream.connect_timeout", "300ms")]).await;
        for request in [get("/"), post("/", "body")] {
            // Much shorter than every other limit.
            let response = tokio::time::timeout(Duration::from_secs(4), proxy.send(request)).await;
            assert_eq!(
                response.expect("within the limit").status(),
                status,
                "{address}"
            );
        }
    }
}

/// A listener with a full queue: the kernel drops further SYNs.
fn black_hole() -> (SocketAddr, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let callers = (0..4).map(|_| {
        let caller = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        caller.set_nonblocking(true).unwrap();
        let _ = caller.connect(&address); // in progress
        caller
    });
    let mut held: Vec<Socket> = callers.collect();
    held.push(listener);
    (address.as_socket().unwrap(), held)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_21_a_reset_before_and_in_the_middle_of_a_response() {
    let posts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&posts);
    let address =
        scripted(move |_, mut stream| {
            let posts = Arc::clone(&count);
            async move {
                let Some(path) = request(&mut stream).await? else {
                    return Ok(());
                };
                posts.fetch_add(1, SeqCst);
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                match path.as_str() {
                    "/length" => {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                            .await
                    }
                    "/chunked" => stream
                        .write_all(
                            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
                        )
                        .await,
                    "/close" => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").await,
                    "/head" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-").await,
                    _ => Ok(()),
                }?;
                Ok(())
            }
        })
        .await;
    let proxy = in_front_of(address, &[]).await;
    for path in ["/nothing", "/head"] {
        assert_eq!(proxy.send(post(path, "body")).await.status(), 502, "{path}");
    }
    assert_eq!(posts.load(SeqCst), 2, "a POST was sent twice");
    for path in ["/length", "/chunked", "/close"] {
        let mut client = Client::connect(proxy.address).await;
        let response = tokio::time::timeout(LIMIT, client.send(get(path)))
            .await
            .unwrap();
        assert!(
            response
                .as_ref()
                .map_or(true, |response| response.status() == 502),
            "{path}: {response:?}"
        );
    }
}

/// Each request has its own mark in its cookie, its credentials, a field and its body, or has no
/// mark; each response has the same marks. No client may receive the mark of another client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_20_clients_over_shared_connections_see_nothing_of_each_other() {
    const CLIENTS: usize = 4;
    let total: usize = std::env::var("SOAK_MARKS")
        .ok()
        .map_or(20_000, |text| text.parse().unwrap());
    let turns = Arc::new(AtomicUsize::new(0));
    let taken = Arc::clone(&turns);
    let address = scripted(move |_, mut stream| {
        let turns = Arc::clone(&taken);
        async move {
            let mut last = String::new();
            loop {
                let head = read_head(&mut stream).await?;
                if head.is_empty() {
                    return Ok(());
                }
                let body = read_body(&mut stream, &head).await?;
                let seen = format!(
                    "{:?} {:?} {:?} {}",
                    values(&head, "cookie"),
                    values(&head, "x-mark"),
                    values(&head, "authorization")
                        .iter()
                        .map(|value| value.starts_with("Bearer token-"))
                        .collect::<Vec<_>>(),
                    String::from_utf8_lossy(&body)
                );
                let path = head.split(' ').nth(1).unwrap();
                let client = path.split('-').nth(1).unwrap();
                turns.fetch_add(usize::from(!last.is_empty() && last != client), SeqCst);
                last = client.to_owned();
                let cookie = values(&head, "cookie")
                    .first()
                    .map(|cookie| format!("Set-Cookie: {cookie}\r\n"));
                let fields = format!("X-Path: {path}\r\n{}", cookie.unwrap_or_default());
                response("200 OK", &fields, seen).send(&mut stream).await?;
            }
        }
    })
    .await;
    let proxy = in_front_of(address, &[("proxy.workers", "1")]).await;
    let clients = (0..CLIENTS).map(|number| {
        let at = proxy.address;
        tokio::spawn(async move {
            let mut client = Client::connect(at).await;
            for turn in 0..total / CLIENTS {
                let mark = format!("mark-{number}-{turn}");
                let path = format!("/{mark}");
                let is_marked = (turn + number) % 2 == 0;
                let mut request = if is_marked {
                    post(&path, mark.clone())
                } else {
                    get(&path)
                };
                let mut expected = "[] [] [true] ".to_owned();
                if is_marked {
                    let cookie = format!("id={mark}");
                    request
                        .headers_mut()
                        .insert("cookie", cookie.parse().unwrap());
                    request
                        .headers_mut()
                        .insert("x-mark", mark.parse().unwrap());
                    request
                        .headers_mut()
                        .insert("authorization", format!("Basic {mark}").parse().unwrap());
                    expected = format!("{:?} {:?} [true] {mark}", [&cookie], [&mark]);
                }
                let received = tokio::time::timeout(LIMIT, client.send(request))
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!(String::from_utf8_lossy(received.body()), expected);
                assert_eq!(received.headers()["x-path"], path);
                let cookies: Vec<_> = received
                    .headers()
                    .get_all("set-cookie")
                    .iter()
                    .map(|value| value.to_str().unwrap())
                    .collect();
                assert_eq!(
                    cookies,
                    if is_marked {
                        vec![format!("id={mark}")]
                    } else {
                        Vec::new()
                    }
                );
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let turns = turns.load(SeqCst);
    println!(
        "{total} marked requests of {CLIENTS} clients; connections went from one client to another {turns} times"
    );
    assert!(turns > CLIENTS, "the connections are not shared");
}
