//! Memory use does not depend on the size of a transfer.
#![cfg(target_os = "linux")]

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::common::{
    LIMIT, get,
    process::ReadyProgram,
    read_head, scripted, send,
    upstream::{Upstream, grant, response},
};

const GIB: u64 = 1 << 30;
/// The maximum resident memory of the proxy, in KiB.
const MOST: u64 = 48 * 1024;

/// A cloud that refuses the first token, accepts uploads and serves files. It counts the calls to
/// its issuer and the bytes that it sends.
async fn cloud() -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicU64>) {
    let (calls, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let (counted, sending) = (Arc::clone(&calls), Arc::clone(&sent));
    let address = scripted(move |_, mut stream| {
        let (calls, sent) = (Arc::clone(&counted), Arc::clone(&sending));
        async move {
            loop {
                let head = read_head(&mut stream).await?;
                if head.is_empty() {
                    return Ok(());
                }
                if head.starts_with("POST /api/refreshToken.do") {
                    let call = calls.fetch_add(1, Relaxed) + 1;
                    grant(&format!("token-{call}"), 3600)
                        .send(&mut stream)
                        .await?;
                } else if head.contains("token-1\r\n") {
                    stream
                        .write_all(
                            b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                        )
                        .await?;
                    return Ok(());
                } else if head.starts_with("GET /") {
                    let size: u64 = head.split([' ', '/']).nth(2).unwrap().parse().unwrap();
                    stream
                        .write_all(
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes(),
                        )
                        .await?;
                    write(&mut stream, size, &sent).await?;
                } else {
                    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                    let sum = hash(&mut stream, GIB).await?;
                    stream
                        .write_all(
                            format!("HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n{sum}")
                                .as_bytes(),
                        )
                        .await?;
                }
            }
        }
    })
    .await;
    (address, calls, sent)
}

fn block(number: u64) -> Vec<u8> {
    (0..1 << 16)
        .map(|n: u64| (n ^ (n >> 8) ^ number) as u8)
        .collect()
}

async fn write(to: &mut (impl AsyncWrite + Unpin), size: u64, sent: &AtomicU64) -> io::Result<()> {
    let blocks: Vec<_> = (0..16).map(block).collect();
    for block in blocks
        .iter()
        .cycle()
        .take(usize::try_from(size >> 16).unwrap())
    {
        to.write_all(block).await?;
        sent.fetch_add(block.len() as u64, Relaxed);
    }
    Ok(())
}

async fn hash(from: &mut (impl AsyncRead + Unpin), size: u64) -> io::Result<String> {
    let (mut hash, mut buffer, mut left) = (Context::new(&SHA256), vec![0; 1 << 18], size);
    while left > 0 {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&buffer[..n]);
        left -= n as u64;
    }
    Ok(hash
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

async fn expected() -> String {
    let (mut from, mut to) = tokio::io::duplex(1 << 20);
    let writing = tokio::spawn(async move { write(&mut to, GIB, &AtomicU64::new(0)).await });
    let sum = hash(&mut from, GIB).await.unwrap();
    writing.await.unwrap().unwrap();
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_up_and_one_down_with_a_dead_token_stay_within_48_mib() {
    let sum = expected().await;
    for is_upload in [true, false] {
        let (cloud, calls, _) = cloud().await;
        let proxy = ReadyProgram::start(cloud, "proxy.workers = 2\n").await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let work = async {
            if is_upload {
                let head =
                    format!("PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {GIB}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                write(&mut stream, GIB, &AtomicU64::new(0)).await.unwrap();
                assert!(
                    read_head(&mut stream)
                        .await
                        .unwrap()
                        .starts_with("HTTP/1.1 200")
                );
                let mut answer = String::new();
                (&mut stream)
                    .take(64)
                    .read_to_string(&mut answer)
                    .await
                    .unwrap();
                assert_eq!(answer, sum);
            } else {
                let head = format!("GET /{GIB} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                assert!(
                    read_head(&mut stream)
                        .await
                        .unwrap()
                        .starts_with("HTTP/1.1 200")
                );
                assert_eq!(hash(&mut stream, GIB).await.unwrap(), sum);
            }
        };
        tokio::time::timeout(4 * LIMIT, work)
            .await
            .expect("in time");
        assert_eq!(calls.load(Relaxed), 2, "one refresh after the first token");
        let peak = proxy.memory("VmHWM");
        println!("upload: {is_upload}, resident at most {peak} KiB");
        assert!(peak <= MOST, "{peak} KiB");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_24_an_answer_of_ten_gibibytes_waits_for_its_slow_reader() {
    let (cloud, _, sent) = cloud().await;
    let proxy = ReadyProgram::start(cloud, "proxy.workers = 2\n").await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", 10 * GIB);
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(
        read_head(&mut stream)
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    let (mut buffer, mut seen) = (vec![0; 1 << 20], Vec::new());
    for second in 1..=8 {
        // The test measures the pace of the reader.
        every_second.tick().await;
        stream.read_exact(&mut buffer).await.unwrap();
        let ahead = sent.load(Relaxed) - (second << 20);
        // The size of the socket buffers of two connections, and a small part of the proxy's own.
        assert!(
            ahead < 24 << 20,
            "{ahead} bytes were read ahead of the reader"
        );
        seen.push(proxy.memory("VmRSS"));
    }
    println!("resident, second by second: {seen:?} KiB");
    // Half of the bytes read; the allocator requests memory from the system in pieces of a few MiB.
    let most = *seen.iter().max().unwrap();
    assert!(most - seen[0] < 4 * 1024 && most <= MOST, "{seen:?} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_at_rest_keeps_nothing_of_the_heads_that_it_brought() {
    const CONNECTIONS: u64 = 100;
    let (cloud, ..) = cloud().await;
    let proxy = ReadyProgram::start_thrifty(cloud, "proxy.workers = 1\n").await;
    let head = format!(
        "GET /0 HTTP/1.1\r\nHost: localhost\r\nCookie: {}\r\n\r\n",
        "x".repeat(60_000)
    );
    let ask = async || {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(
            read_head(&mut stream)
                .await
                .unwrap()
                .starts_with("HTTP/1.1 200")
        );
        stream
    };
    let mut streams = vec![ask().await];
    let before = proxy.memory("VmRSS");
    while streams.len() as u64 <= CONNECTIONS {
        streams.push(ask().await);
    }
    let each = proxy.memory("VmRSS").saturating_sub(before) / CONNECTIONS;
    println!("{each} KiB a connection");
    // hyper's buffer has the size of the head, and a build without optimization has large tasks.
    assert!(each < 160, "{each} KiB a connection");
}

/// A deflated gibibyte of zeros, in about 6 MB: a block of fixed codes (RFC 1951 §3.2.6) that
/// repeats one byte. It has no checksum: a program that inflates it has used the memory before it
/// reads the checksum.
fn bomb() -> Vec<u8> {
    let (mut bomb, mut bits, mut count) = (vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], 0_u32, 0);
    let mut push = |code: u32, length: u32| {
        bits |= code << count;
        count += length;
        while count >= 8 {
            bomb.push(bits as u8);
            bits >>= 8;
            count -= 8;
        }
    };
    // The last block, of fixed codes: the literal 0, then repeated copies of 258 bytes at distance
    // one.
    push(0b011, 3);
    push(0b0000_1100, 8);
    for _ in 0..GIB / 258 {
        push(0b1010_0011, 8);
        push(0, 5);
    }
    push(0, 7 + 7);
    bomb.extend([0; 8]);
    bomb
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_25_a_gzip_bomb_passes_undecoded() {
    let bomb = Arc::new(bomb());
    for fields in [
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
        "Content-Type: application/gzip\r\n",
    ] {
        let cloud = Upstream::always(response("200 OK", fields, &*bomb)).issuing();
        let cloud = cloud.start().await.address;
        let proxy = ReadyProgram::start(cloud, "proxy.workers = 2\n").await;
        for _ in 0..5 {
            let received = send(proxy.address, get("/bomb")).await;
            assert!(received.body()[..] == bomb[..], "the body was changed");
        }
        let peak = proxy.memory("VmHWM");
        assert!(peak <= MOST, "{peak} KiB");
    }
}
