//! The test sends thousands of nearly valid requests to nginx, to HAProxy and to this proxy, each
//! in front of an upstream that records every byte. This proxy forwards each request as exactly one
//! request. It refuses each request that one of the two refuses, and no other; `differences` lists
//! the exceptions in both directions, with their reasons.
#![cfg(target_os = "linux")]

mod differences;
mod mutations;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use differences::{more_lenient, stricter};
use http_desync_guardian::{RequestSafetyTier, request_analyzer::HttpRequestData};
use mutations::{MARK, MARK_WITHIN};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
};
use yaml_rust2::{Yaml, YamlLoader};

use crate::common::{
    LIMIT, Proxy, in_front_of,
    process::{Running, free_address, listens, start_installed},
    strict::{Log, Strict, requests_in},
};

/// The number of concurrent connections.
const AT_ONCE: usize = 64;

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    PassedOn,
    Refused,
    /// The server waits for the rest of the request.
    Unfinished,
}

/// Sends a request and reads the whole response. Only a proxy that hangs reaches the limit.
async fn answers(address: SocketAddr, request: &[u8], number: usize) -> Vec<u8> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = Vec::new();
        // A reset may arrive before the write or the read is complete.
        let _ = stream.write_all(request).await;
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    let text = request.escape_ascii();
    tokio::time::timeout(LIMIT, exchange)
        .await
        .unwrap_or_else(|_| panic!("{address} hangs after {number}: {text}"))
}

fn fate(answer: &[u8]) -> Fate {
    let text = String::from_utf8_lossy(answer);
    // An interim response does not count.
    let text = text
        .strip_prefix("HTTP/1.1 100 Continue\r\n\r\n")
        .unwrap_or(&text);
    let head = text
        .split("\r\n\r\n")
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match () {
        () if head.contains("x-reached") => Fate::PassedOn,
        () if head.starts_with("http/1.1 408")
            || head.starts_with("http/1.0 408")
            || head.is_empty() =>
        {
            Fate::Unfinished
        }
        () => Fate::Refused,
    }
}

/// The outcome of each request, in their order.
async fn fates(address: SocketAddr, requests: &Arc<Vec<Vec<u8>>>) -> Vec<Fate> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let sent = (0..requests.len()).map(|number| {
        let (places, requests) = (Arc::clone(&places), Arc::clone(requests));
        tokio::spawn(async move {
            let _place = places.acquire().await.unwrap();
            fate(&answers(address, &requests[number], number).await)
        })
    });
    let mut all = Vec::new();
    for one in sent.collect::<Vec<_>>() {
        all.push(one.await.unwrap());
    }
    all
}

async fn nginx(folder: &Path, upstream: SocketAddr) -> (Running, SocketAddr) {
    let at = free_address();
    let path = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {path}/{name};\n"))
        .concat();
    let text = format!(
        "daemon off;\nmaster_process off;\npid {path}/nginx.pid;\nerror_log {path}/nginx.log;\n\
         events {{ worker_connections 1024; }}\nhttp {{\naccess_log off;\n{temporary}client_header_timeout 500ms;\n\
         client_body_timeout 500ms;\nkeepalive_timeout 0;\nlingering_close off;\n\
         server {{ listen {at}; location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; }} }}\n}}\n"
    );
    fs::write(folder.join("nginx.conf"), text).unwrap();
    let (conf, log) = (folder.join("nginx.conf"), folder.join("nginx.log"));
    let running = start_installed(
        "nginx",
        &[
            "-e",
            log.to_str().unwrap(),
            "-p",
            folder.to_str().unwrap(),
            "-c",
            conf.to_str().unwrap(),
        ],
    );
    listens(at).await;
    (running, at)
}

async fn haproxy(folder: &Path, upstream: SocketAddr) -> (Running, SocketAddr) {
    let at = free_address();
    let text = format!(
        "global\n  maxconn 2000\ndefaults\n  mode http\n  option httpclose\n  timeout connect 5s\n  timeout client 500ms\n\
         \x20 timeout server 20s\n  timeout http-request 500ms\n  timeout http-keep-alive 500ms\n\
         listen it\n  bind {at}\n  server upstream {upstream}\n"
    );
    fs::write(folder.join("haproxy.cfg"), text).unwrap();
    let running = start_installed(
        "haproxy",
        &["-db", "-f", folder.join("haproxy.cfg").to_str().unwrap()],
    );
    listens(at).await;
    (running, at)
}

async fn ours(upstream: &Strict) -> Proxy {
    let short = [
        ("proxy.head_timeout", "500ms"),
        ("proxy.body_idle_timeout", "500ms"),
        ("proxy.idle_timeout", "200ms"),
    ];
    in_front_of(upstream.address, &short).await
}

/// The numbers after this mark in the head of a request that the upstream received.
fn numbers(request: &[u8], mark: &str) -> Vec<usize> {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let head = text.split("\r\n\r\n").next().unwrap();
    assert_eq!(
        head.matches("\r\nauthorization: bearer token-").count(),
        1,
        "{text:?}"
    );
    let mark = format!("\r\n{}", mark.to_ascii_lowercase());
    head.match_indices(&mark)
        .map(|(at, _)| {
            head[at + mark.len()..]
                .lines()
                .next()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
}

/// The numbers of the requests that the upstream received completely. Panics if the upstream
/// received anything else.
fn arrived(log: &Log, sent: &[Vec<u8>], fates: &[Fate]) -> BTreeSet<usize> {
    if let Some(odd) = log.odd.first() {
        panic!("the upstream received no request: {}", odd.escape_ascii());
    }
    let mut arrived = BTreeSet::new();
    for request in &log.requests {
        match (
            &numbers(request, MARK)[..],
            &numbers(request, MARK_WITHIN)[..],
        ) {
            ([number], []) => assert!(
                arrived.insert(*number),
                "the request arrived twice: {}",
                request.escape_ascii()
            ),
            // By the narrowest reading the client sent two requests, and the upstream received two.
            ([], [number]) if requests_in(&sent[*number]) == 2 => {}
            ([], [number]) => panic!("smuggled: {}", sent[*number].escape_ascii()),
            _ => panic!(
                "the client did not send this request: {}",
                request.escape_ascii()
            ),
        }
    }
    for begun in &log.partial {
        let [number] = numbers(begun, MARK)[..] else {
            panic!("the client did not send {}", begun.escape_ascii())
        };
        assert_ne!(
            fates[number],
            Fate::PassedOn,
            "forwarded and truncated: {}",
            begun.escape_ascii()
        );
    }
    arrived
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_strict_as_the_stricter_of_nginx_and_haproxy_and_always_one_request_upstream() {
    let requests = Arc::new(mutations::all());
    assert!(requests.len() >= 1500, "{}", requests.len());
    let folder = tempfile::tempdir().unwrap();
    let (behind_nginx, behind_haproxy, behind_us) = (
        Strict::start().await,
        Strict::start().await,
        Strict::start().await,
    );
    let (_nginx, nginx) = nginx(folder.path(), behind_nginx.address).await;
    let (_haproxy, haproxy) = haproxy(folder.path(), behind_haproxy.address).await;
    let proxy = ours(&behind_us).await;
    let (by_nginx, by_haproxy, by_us) = tokio::join!(
        fates(nginx, &requests),
        fates(haproxy, &requests),
        fates(proxy.address, &requests)
    );

    let arrived = arrived(&behind_us.take(), &requests, &by_us);
    let (mut lenient, mut strict, mut severe, mut excepted, mut tally) =
        (Vec::new(), Vec::new(), Vec::new(), BTreeMap::new(), [0; 4]);
    for (number, request) in requests.iter().enumerate() {
        let (nginx, haproxy, us) = (by_nginx[number], by_haproxy[number], by_us[number]);
        assert_eq!(
            us == Fate::PassedOn,
            arrived.contains(&number),
            "{number}: {}",
            request.escape_ascii()
        );
        let refused_by = [("nginx", nginx), ("haproxy", haproxy)]
            .map(|(name, fate)| (fate == Fate::Refused).then_some(name));
        let is_refused = refused_by.iter().any(Option::is_some);
        let is_severe =
            HttpRequestData::analyze_raw_request(request).tier == RequestSafetyTier::Severe;
        for (count, counts) in tally.iter_mut().zip([
            us == Fate::PassedOn,
            refused_by[0].is_some(),
            refused_by[1].is_some(),
            is_severe,
        ]) {
            *count += usize::from(counts);
        }
        if us != Fate::PassedOn {
            if nginx == Fate::PassedOn && haproxy == Fate::PassedOn {
                match stricter(request) {
                    Some(why) => *excepted.entry(why).or_insert(0) += 1,
                    None => strict.push(format!("{us:?} {}", request.escape_ascii())),
                }
            }
            continue;
        }
        let excuse = more_lenient(request);
        if let Some(why) = excuse.filter(|_| is_refused || is_severe) {
            *excepted.entry(why).or_insert(0) += 1;
        } else if is_refused {
            lenient.push(format!("{refused_by:?} {}", request.escape_ascii()));
        } else if is_severe {
            severe.push(request.escape_ascii().to_string());
        }
    }
    let [passed, nginx, haproxy, dangerous] = tally;
    println!(
        "{} requests: {passed} passed on; {nginx} refused by nginx, {haproxy} by HAProxy; {dangerous} called severe by \
         http_desync_guardian; excepted: {excepted:?}",
        requests.len()
    );
    assert!(
        lenient.is_empty(),
        "more lenient {} times:\n{}",
        lenient.len(),
        lenient.join("\n")
    );
    assert!(
        strict.is_empty(),
        "stricter than both {} times:\n{}",
        strict.len(),
        strict.join("\n")
    );
    for why in differences::REASONS {
        assert!(excepted.contains_key(why), "no request needs it: {why}");
    }
    assert!(
        severe.is_empty(),
        "severe, and forwarded {} times:\n{}",
        severe.len(),
        severe.join("\n")
    );
    // All three servers work: each forwards the valid requests and refuses some of the others.
    assert_eq!(
        (by_nginx[0], by_haproxy[0], by_us[0]),
        (Fate::PassedOn, Fate::PassedOn, Fate::PassedOn)
    );
    assert!(
        passed > 500 && nginx > 200 && haproxy > 200 && dangerous > 100,
        "{tally:?}"
    );
}

/// The cases that `http_desync_guardian` ships: the proxy refuses those that it classifies as
/// severe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_http_desync_guardian_ships_as_severe_is_refused() {
    let upstream = Strict::start().await;
    let proxy = ours(&upstream).await;
    let mut count = 0;
    for file in fs::read_dir(shipped_cases()).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for case in YamlLoader::load_from_str(&fs::read_to_string(&file).unwrap()).unwrap()[0]
            .as_vec()
            .unwrap()
        {
            if case["expected"]["tier"].as_str() != Some("Severe") {
                continue;
            }
            count += 1;
            let request = written(case);
            let answer = answers(proxy.address, &request, count).await;
            assert_eq!(
                fate(&answer),
                Fate::Refused,
                "{}: {}",
                request.escape_ascii(),
                answer.escape_ascii()
            );
        }
    }
    assert_eq!(count, 58);
    assert!(upstream.requests().is_empty());
}

/// The folder of its cases in cargo's download directory.
fn shipped_cases() -> PathBuf {
    let cargo = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    // Cargo may not have downloaded the packages of other platforms.
    let version = cargo(&["-vV"]);
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    let metadata = cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--offline",
        "--filter-platform",
        host,
    ]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages
        .iter()
        .find(|package| package["name"] == "http_desync_guardian")
        .unwrap();
    Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("tests")
}

/// Converts a case to the request that it describes.
fn written(case: &Yaml) -> Vec<u8> {
    let text = |value: &Yaml| match value {
        Yaml::String(text) => unescaped(text),
        Yaml::Integer(number) => number.to_string().into_bytes(),
        other => panic!("{other:?}"),
    };
    let mut request = [
        text(&case["method"]),
        text(&case["uri"]),
        text(&case["version"]),
    ]
    .join(&b' ');
    for header in case["headers"].as_vec().into_iter().flatten() {
        request.extend_from_slice(b"\r\n");
        request.extend(text(&header["name"]));
        request.extend_from_slice(b": ");
        request.extend(text(&header["value"]));
    }
    if !request
        .to_ascii_lowercase()
        .windows(7)
        .any(|window| window == b"\nhost: ")
    {
        request.extend_from_slice(b"\r\nHost: localhost");
    }
    request.extend_from_slice(b"\r\n\r\n");
    request
}

/// The cases write some bytes as `\\x01`, because YAML cannot hold them.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let escape = if c == '\\' { chars.next() } else { None };
        match escape {
            None => bytes.extend_from_slice(c.to_string().as_bytes()),
            Some('x') => {
                let digits: String = chars.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            Some('n') => bytes.push(b'\n'),
            Some('r') => bytes.push(b'\r'),
            Some('t') => bytes.push(b'\t'),
            Some('b') => bytes.push(8),
            Some('f') => bytes.push(12),
            Some(other) => bytes.extend_from_slice(other.to_string().as_bytes()),
        }
    }
    bytes
}
