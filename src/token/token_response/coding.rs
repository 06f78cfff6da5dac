//! Content codings (RFC 9110 §8.4.1). The request asks for none; some servers compress all the
//! same.

use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, header};
use zeroize::Zeroizing;

const GZIP_MAGIC: &[u8] = b"\x1f\x8b";

/// Decodes `gzip`, also without the field that should state it, and `deflate` with or without the
/// frame of zlib. At most `limit` bytes come out of it, and one more if there are further ones.
/// What precedes an error in the coding is kept.
pub(super) fn decode(
    headers: &HeaderMap,
    body: Zeroizing<Vec<u8>>,
    limit: usize,
) -> Zeroizing<Vec<u8>> {
    let names_deflate = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| coding.as_bytes().eq_ignore_ascii_case(b"deflate"));
    if body.starts_with(GZIP_MAGIC) {
        read(MultiGzDecoder::new(&body[..]), limit)
    } else if names_deflate && !body.trim_ascii_start().starts_with(b"{") {
        let framed = read(ZlibDecoder::new(&body[..]), limit);
        if framed.is_empty() {
            read(DeflateDecoder::new(&body[..]), limit)
        } else {
            framed
        }
    } else {
        body
    }
}

/// Reads into one allocation, which is wiped on drop.
fn read(mut decoder: impl Read, limit: usize) -> Zeroizing<Vec<u8>> {
    let mut decoded = Zeroizing::new(vec![0; limit + 1]);
    let mut length = 0;
    while length < decoded.len()
        && let Ok(read @ 1..) = decoder.read(&mut decoded[length..])
    {
        length += read;
    }
    decoded.truncate(length);
    decoded
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };
    use http::HeaderValue;

    use super::*;

    const LIMIT: usize = 1000;

    fn decoded(coding: &'static str, body: &[u8]) -> Vec<u8> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        decode(&headers, Zeroizing::new(body.to_vec()), LIMIT).to_vec()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("written");
        encoder.finish().expect("encoded")
    }

    #[test]
    fn field_a1_codings_are_decoded_whatever_the_field_says() {
        let text = b"{\"access_token\":\"a\"}";
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(text).expect("written");
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
        raw.write_all(text).expect("written");
        for (coding, body) in [
            ("gzip", gzip(text)),
            ("x-gzip", gzip(text)),
            ("identity", gzip(text)),
            ("deflate", zlib.finish().expect("encoded")),
            ("Deflate", raw.finish().expect("encoded")),
            ("deflate", text.to_vec()),
            ("gzip", text.to_vec()),
            ("br", text.to_vec()),
        ] {
            assert_eq!(decoded(coding, &body), text, "{coding}");
        }
    }

    #[test]
    fn a_cut_or_damaged_coding_yields_what_precedes_the_damage() {
        let text = b"{\"access_token\":\"a\"}";
        let whole = gzip(text);
        // The checksum and the length are missing.
        assert_eq!(decoded("gzip", &whole[..whole.len() - 8]), text);
        let mut damaged = whole;
        *damaged.last_mut().expect("there") ^= 1;
        assert_eq!(decoded("gzip", &damaged), text);
        assert_eq!(decoded("gzip", b"\x1f\x8b"), b"");
        assert_eq!(decoded("deflate", b"\xff\xff\xff"), b"");
    }

    #[test]
    fn what_comes_out_is_bounded() {
        assert_eq!(decoded("gzip", &gzip(&[b' '; LIMIT])).len(), LIMIT);
        let bomb = gzip(&vec![b' '; 10 << 20]);
        assert_eq!(decoded("gzip", &bomb).len(), LIMIT + 1);
    }
}
