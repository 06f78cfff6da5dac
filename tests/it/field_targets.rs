//! Request targets that grow when they are encoded.

use crate::common::{
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, POST, greeted, until, write},
    upstream::{Upstream, ok},
};

const CONTINUATION: u8 = 9;
/// `:path` as a literal without indexing.
const PATH: u8 = 0x04;
const DELETE: &[u8] = b"\x02\x06DELETE";

/// A string of HPACK, without Huffman coding (RFC 7541 §5.2).
fn string(text: &str) -> Vec<u8> {
    let mut encoded = Vec::new();
    match text.len().checked_sub(127) {
        None => encoded.push(text.len() as u8),
        Some(mut rest) => {
            encoded.push(127);
            while rest >= 128 {
                encoded.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            encoded.push(rest as u8);
        }
    }
    encoded.extend_from_slice(text.as_bytes());
    encoded
}

/// The status of a request with this path over HTTP/2, and its body.
async fn status(proxy: std::net::SocketAddr, method: &[u8], path: &str) -> (Vec<u8>, Vec<u8>) {
    let block = [method, &[0x86, PATH], &string(path), b"\x01\x09localhost"].concat();
    let mut client = greeted(proxy, &[]).await;
    let mut parts = block.chunks(16_000).peekable();
    let mut kind = HEADERS;
    while let Some(part) = parts.next() {
        let end = if parts.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        let flags = end | if kind == HEADERS { END_STREAM } else { 0 };
        write(&mut client, kind, flags, 1, part).await.unwrap();
        kind = CONTINUATION;
    }
    let head = until(&mut client, HEADERS, 1).await.expect("a response");
    let body = until(&mut client, DATA, 1).await.expect("its body");
    (head.payload, body.payload)
}

#[tokio::test]
async fn field_f1_a_target_that_is_too_long_when_encoded_is_never_sent_as_another_one() {
    let upstream = Upstream::always(ok("ok")).start().await;
    let proxy = upstream.proxy(&[("proxy.max_head_size", "100KiB")]).await;
    for letters in [4_096, 11_000, 21_000] {
        let path = format!("/{}", "é".repeat(letters));
        for method in [DELETE, &[POST]] {
            let (_, body) = status(proxy.address, method, &path).await;
            let body = String::from_utf8(body).unwrap();
            assert!(
                body.contains("target_too_long") || body.contains("414"),
                "{body}"
            );
        }
        let request = format!("DELETE {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let response = proxy.raw(&request).await;
        assert!(response.starts_with("HTTP/1.1 414 "), "{response}");
    }
    assert_eq!(upstream.count(), 0);
    // The limit is one of the target as it was received, over both versions.
    let path = format!("/{}", "é".repeat(4_095));
    let (head, _) = status(proxy.address, DELETE, &path).await;
    assert_eq!(head[0], 0x88, "`:status: 200` in HPACK");
    let received = upstream.requests().pop().unwrap().head;
    let expected = format!("DELETE /{} HTTP/1.1\r\n", "%C3%A9".repeat(4_095));
    assert!(received.starts_with(&expected), "{received}");
}
