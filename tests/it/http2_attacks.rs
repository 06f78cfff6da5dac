//! HTTP/2 floods: frames that cost the sender nothing. The proxy closes the attacker's connection,
//! memory does not grow, and the proxy serves other clients.
#![cfg(target_os = "linux")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::io::{AsyncWrite, sink};

use crate::common::{
    Client, LIMIT, eventually,
    frames::{
        CANCEL, DATA, END_HEADERS, END_STREAM, GET, HEADERS, PING, POST, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, greeted, head, write,
    },
    get,
    process::ReadyProgram,
    upstream::{Upstream, silence},
};

const CONTINUATION: u8 = 9;

/// More than the space in an open window.
const BEYOND: u32 = 0x7fff_ffff;

/// The maximum growth of resident memory, in KiB.
const MOST: u64 = 10 * 1024;

#[derive(Debug, Clone, Copy)]
enum Attack {
    /// The client opens streams and resets them: CVE-2023-44487.
    RapidReset,
    /// The client opens streams and makes the server reset them: CVE-2025-8671.
    MadeYouReset,
    /// The same by malformed trailers that do not end the stream.
    Trailers,
    /// An endless head: CVE-2024-27316.
    Continuation,
    /// Empty DATA frames: CVE-2019-9518.
    EmptyData,
    /// Frames that the server must acknowledge: CVE-2019-9512 and CVE-2019-9515.
    Pings,
    Settings,
}

impl Attack {
    /// One step of the attack.
    async fn step(self, stream: &mut (impl AsyncWrite + Unpin), round: u32) -> std::io::Result<()> {
        let number = 2 * round + 1;
        let whole = END_HEADERS | END_STREAM;
        match self {
            Self::RapidReset => {
                write(stream, HEADERS, whole, number, &head(GET, "/")).await?;
                write(stream, RST_STREAM, 0, number, &CANCEL.to_be_bytes()).await
            }
            Self::MadeYouReset => {
                write(stream, HEADERS, whole, number, &head(GET, "/")).await?;
                // A window beyond its bounds is a stream error: RFC 9113 §6.9.1.
                write(stream, WINDOW_UPDATE, 0, number, &BEYOND.to_be_bytes()).await
            }
            Self::Trailers => {
                write(stream, HEADERS, END_HEADERS, number, &head(POST, "/upload")).await?;
                write(stream, HEADERS, END_HEADERS, number, b"\0\x01A\x01b").await
            }
            Self::Continuation => {
                if round == 0 {
                    write(stream, HEADERS, END_STREAM, 1, &head(GET, "/")).await?;
                }
                let name = format!("x-{round:08}");
                let mut block = vec![0x10, name.len() as u8];
                block.extend(name.as_bytes());
                block.extend(b"\x05value");
                write(stream, CONTINUATION, 0, 1, &block.repeat(20)).await
            }
            Self::EmptyData => {
                if round == 0 {
                    write(stream, HEADERS, END_HEADERS, 1, &head(POST, "/upload")).await?;
                }
                write(stream, DATA, 0, 1, &[]).await
            }
            Self::Pings => write(stream, PING, 0, 0, &u64::from(round).to_be_bytes()).await,
            Self::Settings => write(stream, SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).await,
        }
    }

    /// Attacks until the connection closes. Returns false if it does not close.
    async fn run(self, address: SocketAddr, reads: bool) -> bool {
        let (mut read, mut stream) = greeted(address, &[]).await.into_split();
        // The connection of a client that does not read must close too, at the latest at the limit.
        let reading = reads
            .then(|| tokio::spawn(async move { tokio::io::copy(&mut read, &mut sink()).await }));
        let attacking = async {
            for round in 0.. {
                self.step(&mut stream, round).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        let ended = tokio::time::timeout(LIMIT, attacking).await;
        drop(reading);
        matches!(ended, Ok(Err(_)))
    }
}

async fn cloud() -> SocketAddr {
    let cloud = Upstream::new().on("/upload", silence()).issuing();
    cloud.early().unrecorded().start().await.address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_07_floods_of_frames() {
    use Attack::{Continuation, EmptyData, MadeYouReset, Pings, RapidReset, Settings, Trailers};
    let attacks = [
        RapidReset,
        MadeYouReset,
        Trailers,
        Continuation,
        EmptyData,
        Pings,
        Settings,
    ];
    for (attack, reads) in attacks
        .into_iter()
        .flat_map(|attack| [(attack, false), (attack, true)])
    {
        let proxy = ReadyProgram::start(
            cloud().await,
            "proxy.workers = 1\nproxy.body_idle_timeout = \"1s\"\n",
        )
        .await;
        let mut good = Client::connect(proxy.address).await;
        for _ in 0..200 {
            assert_eq!(good.send(get("/")).await.unwrap().status(), 200);
        }
        let before = proxy.memory("VmRSS");
        let (goes_on, served) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(AtomicUsize::new(0)),
        );
        let beside = tokio::spawn({
            let (goes_on, served) = (Arc::clone(&goes_on), Arc::clone(&served));
            async move {
                while goes_on.load(SeqCst) {
                    let response = tokio::time::timeout(LIMIT, good.send(get("/")))
                        .await
                        .expect("in time")
                        .unwrap();
                    assert_eq!(response.status(), 200);
                    served.fetch_add(1, SeqCst);
                }
            }
        });
        let attackers: Vec<_> = (0..4)
            .map(|_| tokio::spawn(attack.run(proxy.address, reads)))
            .collect();
        let mut closed = 0;
        for attacker in attackers {
            closed += usize::from(attacker.await.unwrap());
        }
        let after = served.load(SeqCst);
        eventually("the proxy continues to serve the good client", async || {
            served.load(SeqCst) > after + 10
        })
        .await;
        goes_on.store(false, SeqCst);
        beside.await.unwrap();
        let grown = proxy.memory("VmHWM").saturating_sub(before);
        println!(
            "{attack:?}, {reads}: {closed} of 4 closed, {after} requests beside them, {grown} KiB more resident"
        );
        assert!(grown < MOST, "{attack:?}: {grown} KiB");
        assert_eq!(closed, 4, "{attack:?}");
    }
}
