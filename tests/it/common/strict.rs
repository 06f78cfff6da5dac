//! An upstream that records every byte and parses requests strictly. It shares no code with the
//! proxy.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The received bytes, in the order of completion.
#[derive(Debug, Default)]
pub struct Log {
    /// The exact bytes of complete requests.
    pub requests: Vec<Vec<u8>>,
    /// Bytes that are not a valid request, with all bytes after them.
    pub odd: Vec<Vec<u8>>,
    /// Incomplete requests.
    pub partial: Vec<Vec<u8>>,
}

/// Responds to requests with 200 and `X-Reached`.
pub struct Strict {
    pub address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nX-Reached: yes\r\nContent-Length: 2\r\n\r\nok";
const ODD: &[u8] =
    b"HTTP/1.1 400 Odd\r\nX-Reached: yes\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

impl Strict {
    pub async fn start() -> Self {
        let log = Arc::<Mutex<Log>>::default();
        let notes = Arc::clone(&log);
        let address = super::scripted(move |_, stream| serve(stream, Arc::clone(&notes))).await;
        Self { address, log }
    }

    /// The bytes received since the last call.
    pub fn take(&self) -> Log {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    /// The requests received since the last call, as text. Panics if other bytes arrived.
    pub fn requests(&self) -> Vec<String> {
        let log = self.take();
        if let Some(odd) = log.odd.iter().chain(&log.partial).next() {
            panic!("not a complete request: {}", odd.escape_ascii());
        }
        log.requests
            .iter()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    }
}

/// The number of complete requests in these bytes; 0 if the bytes contain anything else.
pub fn requests_in(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while !bytes.is_empty() {
        let Ok(Some(end)) = end(bytes) else { return 0 };
        bytes = &bytes[end..];
        count += 1;
    }
    count
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Log>>) -> io::Result<()> {
    let mut read = Vec::new();
    loop {
        match end(&read) {
            Ok(Some(end)) => {
                log.lock()
                    .unwrap()
                    .requests
                    .push(read.drain(..end).collect());
                stream.write_all(ANSWER).await?;
            }
            Ok(None) => {
                if !matches!(stream.read_buf(&mut read).await, Ok(n) if n > 0) {
                    if !read.is_empty() {
                        log.lock().unwrap().partial.push(read);
                    }
                    return Ok(());
                }
            }
            Err(()) => {
                log.lock().unwrap().odd.push(read);
                return stream.write_all(ODD).await;
            }
        }
    }
}

/// The length of the first request; `None` if the request is incomplete.
fn end(bytes: &[u8]) -> Result<Option<usize>, ()> {
    let Some(head) = position(bytes, b"\r\n\r\n") else {
        return Ok(None);
    };
    // A field value may contain any byte outside ASCII.
    let text: String = bytes[..head].iter().copied().map(char::from).collect();
    let body = head + 4;
    let mut lines = text.split("\r\n");
    let first: Vec<_> = lines.next().ok_or(())?.split(' ').collect();
    if first.len() != 3 || !first[1].starts_with(['/', '*']) || first[2] != "HTTP/1.1" {
        return Err(());
    }
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(())?;
        let value = value.trim_matches([' ', '\t']);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty()
            || !name.chars().all(is_name)
            || value.contains(|c: char| c.is_ascii_control() && c != '\t')
        {
            return Err(());
        }
        match name.to_ascii_lowercase().as_str() {
            "content-length" => lengths.push(value),
            "transfer-encoding" => codings.push(value),
            _ => {}
        }
    }
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Some(body)),
        ([length], []) => {
            let end = body + length.parse::<usize>().map_err(drop)?;
            Ok((bytes.len() >= end).then_some(end))
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => {
            Ok(chunks(&bytes[body..])?.map(|length| body + length))
        }
        _ => Err(()),
    }
}

fn chunks(bytes: &[u8]) -> Result<Option<usize>, ()> {
    let mut at = 0;
    loop {
        let Some(line) = position(&bytes[at..], b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&bytes[at..at + line]).map_err(drop)?;
        let size = usize::from_str_radix(size, 16).map_err(drop)?;
        at += line + 2;
        if size == 0 {
            let trailers = position(&bytes[at..], b"\r\n\r\n");
            return Ok(if bytes[at..].starts_with(b"\r\n") {
                Some(at + 2)
            } else {
                trailers.map(|end| at + end + 4)
            });
        }
        match bytes.get(at + size..at + size + 2) {
            Some(b"\r\n") => at += size + 2,
            Some(_) => return Err(()),
            None => return Ok(None),
        }
    }
}

fn position(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}
