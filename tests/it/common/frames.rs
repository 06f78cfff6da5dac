//! HTTP/2 frames (RFC 9113 §4.1), for sequences that HTTP/2 libraries do not send.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use super::LIMIT;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const NO_ERROR: u32 = 0;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or a GOAWAY. A GOAWAY has it after the last stream number.
    pub fn reason(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub async fn read(stream: &mut TcpStream) -> io::Result<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    let number = u32::from_be_bytes(head[5..].try_into().unwrap());
    Ok(Frame {
        kind: head[3],
        flags: head[4],
        stream: number,
        payload,
    })
}

pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: u8,
    flags: u8,
    number: u32,
    payload: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(number.to_be_bytes());
    frame.extend(payload);
    stream.write_all(&frame).await
}

/// `:method`, `:scheme: http`, `:path` and `:authority: localhost` in HPACK, without the dynamic
/// table.
pub fn head(method: u8, path: &str) -> Vec<u8> {
    let mut block = vec![method, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x09localhost");
    block
}
pub const GET: u8 = 0x82;
pub const POST: u8 = 0x83;

/// Reads until a frame of this kind for this stream arrives; `None` if the connection closes.
pub async fn until(stream: &mut TcpStream, kind: u8, number: u32) -> Option<Frame> {
    let reading = async {
        loop {
            match read(stream).await {
                Ok(frame) if frame.kind == kind && frame.stream == number => return Some(frame),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    };
    tokio::time::timeout(LIMIT, reading)
        .await
        .expect("the frame arrives or the connection closes in time")
}

/// Opens a client connection. Sends the preface and these settings.
pub async fn greeted(address: SocketAddr, settings: &[u8]) -> TcpStream {
    let mut stream = super::connect(address, PREFACE).await;
    write(&mut stream, SETTINGS, 0, 0, settings).await.unwrap();
    stream
}

/// Sends a request without a body on the stream with this number.
pub async fn request(stream: &mut (impl AsyncWrite + Unpin), number: u32, method: u8, path: &str) {
    let flags = END_HEADERS | END_STREAM;
    write(stream, HEADERS, flags, number, &head(method, path))
        .await
        .unwrap();
}

/// Sends the head of a request that has a body.
pub async fn begin(stream: &mut (impl AsyncWrite + Unpin), number: u32, method: u8, path: &str) {
    write(stream, HEADERS, END_HEADERS, number, &head(method, path))
        .await
        .unwrap();
}

pub async fn reset(stream: &mut (impl AsyncWrite + Unpin), number: u32, reason: u32) {
    write(stream, RST_STREAM, 0, number, &reason.to_be_bytes())
        .await
        .unwrap();
}

/// Reads the preface of a client and sends these settings, as a server.
pub async fn accept(stream: &mut TcpStream, settings: &[u8]) -> io::Result<()> {
    stream.read_exact(&mut [0; PREFACE.len()]).await?;
    write(stream, SETTINGS, 0, 0, settings).await
}

/// Returns the next frame other than SETTINGS. Acknowledges SETTINGS.
pub async fn next(stream: &mut TcpStream) -> io::Result<Frame> {
    loop {
        let frame = read(stream).await?;
        if frame.kind != SETTINGS {
            return Ok(frame);
        }
        if frame.flags & ACK == 0 {
            write(stream, SETTINGS, ACK, 0, &[]).await?;
        }
    }
}
