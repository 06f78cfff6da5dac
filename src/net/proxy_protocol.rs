//! The PROXY protocol, versions 1 and 2: a load balancer begins each connection with a header that
//! states the address of its client. <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>

use std::{io, net::SocketAddr};

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The largest header that is read, in bytes. Version 2 allows 64 KiB, most of it for extensions.
const MAX_LENGTH: usize = 4096;

/// The largest header of version 1, §2.1.
const MAX_LENGTH_V1: usize = 107;

const SIGNATURE_V1: &[u8] = b"PROXY ";
const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// `PROXY UNKNOWN` and the line end.
const MIN_LENGTH_V1: usize = 15;

/// The signature, version and command, family, and the length of the rest.
const MIN_LENGTH_V2: usize = 16;

/// Version 2 and the command: of the load balancer itself, or of a client.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From this client of the load balancer.
    Client(SocketAddr),
    /// From the load balancer itself (LOCAL, as for health checks), or from a client of which it
    /// states no TCP address (UNKNOWN, UNSPEC, a Unix socket).
    LoadBalancer,
}

/// Reads the header at the beginning of a connection, and not a byte more.
///
/// # Errors
/// `InvalidData` if the connection does not begin with a header, or with one that is malformed or
/// too large; `UnexpectedEof` if it ends before; otherwise those of the connection.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Origin> {
    let mut header = Vec::with_capacity(MAX_LENGTH_V1);
    loop {
        let missing = missing(&header)?;
        if missing == 0 {
            return parse(&header);
        }
        let mut rest = (&mut *stream).take(missing as u64);
        if rest.read_buf(&mut header).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// How many bytes the header has at least beyond these; 0 if it is complete. What follows it belongs
/// to TLS or HTTP, and stays in the socket.
fn missing(header: &[u8]) -> io::Result<usize> {
    let begins_like = |signature: &[u8]| {
        let known = header.len().min(signature.len());
        header[..known] == signature[..known]
    };
    if begins_like(SIGNATURE_V1) {
        return missing_of_v1(header);
    }
    if !begins_like(SIGNATURE_V2) {
        return Err(malformed(
            "the connection does not begin with a PROXY header",
        ));
    }
    if !matches!(
        header.get(SIGNATURE_V2.len()),
        None | Some(&(LOCAL | PROXY))
    ) {
        return Err(malformed(
            "the PROXY header has an unknown version or command",
        ));
    }
    let &[_, _, _, _, _, _, _, _, _, _, _, _, _, _, high, low, ..] = header else {
        return Ok(MIN_LENGTH_V2 - header.len());
    };
    let length = MIN_LENGTH_V2 + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_LENGTH {
        return Err(malformed("the PROXY header is larger than 4 KiB"));
    }
    Ok(length - header.len())
}

/// A line: its length is not known in advance.
fn missing_of_v1(header: &[u8]) -> io::Result<usize> {
    match header.iter().position(|byte| *byte == b'\n') {
        Some(end) if end + 1 == header.len() && header.ends_with(b"\r\n") => Ok(0),
        Some(_) => Err(malformed("the line of the PROXY header is malformed")),
        None if header.len() >= MAX_LENGTH_V1 => Err(malformed(
            "the line of the PROXY header is longer than 107 bytes",
        )),
        None => Ok(MIN_LENGTH_V1.saturating_sub(header.len()).max(1)),
    }
}

fn parse(header: &[u8]) -> io::Result<Origin> {
    // The parser requires an address of LOCAL, too, if a family is stated; §2.2: it is ignored.
    if header.get(SIGNATURE_V2.len()) == Some(&LOCAL) && header.starts_with(SIGNATURE_V2) {
        return Ok(Origin::LoadBalancer);
    }
    // It accepts numbers with a sign.
    let is_signed = header.starts_with(b"PROXY TCP") && header.contains(&b'+');
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    let parsed = ProxyHeader::parse(header, config).ok();
    let (parsed, length) = parsed.ok_or_else(|| malformed("the PROXY header is malformed"))?;
    if is_signed || length != header.len() {
        return Err(malformed("the PROXY header is malformed"));
    }
    Ok(match parsed.proxied_address() {
        Some(address) if address.protocol == Protocol::Stream => {
            let mut client = address.source;
            client.set_ip(client.ip().to_canonical());
            Origin::Client(client)
        }
        Some(_) | None => Origin::LoadBalancer,
    })
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// What is read of a connection that brings these pieces and ends: the origin, and how many
    /// bytes are left.
    fn read_of(first: &[u8], second: &[u8]) -> (Result<Origin, io::ErrorKind>, usize) {
        let mut stream = first.chain(second);
        let origin = read(&mut stream).now_or_never().expect("never waits");
        let (first, second) = stream.into_inner();
        (
            origin.map_err(|error| error.kind()),
            first.len() + second.len(),
        )
    }

    fn v2(command: u8, family: u8, addresses: &[u8], extensions: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len() + extensions.len()).unwrap();
        let rest = [
            &[command, family][..],
            &length.to_be_bytes(),
            addresses,
            extensions,
        ];
        [SIGNATURE_V2, &rest.concat()].concat()
    }

    const IPV4: [u8; 12] = [192, 0, 2, 7, 203, 0, 113, 1, 0x13, 0x88, 0x01, 0xbb];

    fn ipv6(source: &str) -> Vec<u8> {
        let source: std::net::Ipv6Addr = source.parse().unwrap();
        [&source.octets()[..], &[0; 16], &[0x13, 0x88, 0x01, 0xbb]].concat()
    }

    fn client(address: &str) -> Origin {
        Origin::Client(address.parse().unwrap())
    }

    #[test]
    fn headers_of_both_versions_are_read_to_their_end_however_they_arrive() {
        let noop = [&[4, 0, 100][..], &[0; 100]].concat();
        let largest = vec![0; MAX_LENGTH - MIN_LENGTH_V2 - IPV4.len()];
        let v1 = |line: &str| line.as_bytes().to_vec();
        let four = client("192.0.2.7:5000");
        let six = client("[2001:db8::7]:5000");
        for (header, expected) in [
            (v1("PROXY TCP4 192.0.2.7 203.0.113.1 5000 443\r\n"), four),
            (v1("PROXY TCP6 2001:db8::7 ::1 5000 443\r\n"), six),
            (v1("PROXY TCP6 ::ffff:192.0.2.7 ::1 5000 443\r\n"), four),
            (
                v1("PROXY TCP6 ffff:f:f:f:f:f:f:ffff ffff:f:f:f:f:f:f:ffff 65535 65535\r\n"),
                client("[ffff:f:f:f:f:f:f:ffff]:65535"),
            ),
            (v1("PROXY UNKNOWN\r\n"), Origin::LoadBalancer),
            (
                v1("PROXY UNKNOWN 192.0.2.7 203.0.113.1 5000 443\r\n"),
                Origin::LoadBalancer,
            ),
            (v2(0x21, 0x11, &IPV4, &[]), four),
            (v2(0x21, 0x11, &IPV4, &noop), four),
            (v2(0x21, 0x11, &IPV4, b"no extension"), four),
            (v2(0x21, 0x11, &IPV4, &largest), four),
            (v2(0x21, 0x21, &ipv6("2001:db8::7"), &[]), six),
            (v2(0x21, 0x21, &ipv6("::ffff:192.0.2.7"), &noop), four),
            // UDP, Unix sockets, and no address.
            (v2(0x21, 0x12, &IPV4, &[]), Origin::LoadBalancer),
            (v2(0x21, 0x31, &[b'a'; 216], &[]), Origin::LoadBalancer),
            (v2(0x21, 0x00, &[], &noop), Origin::LoadBalancer),
            // LOCAL, with whatever else.
            (v2(0x20, 0x00, &[], &[]), Origin::LoadBalancer),
            (v2(0x20, 0x11, &IPV4, &noop), Origin::LoadBalancer),
            (v2(0x20, 0x11, &[], &[]), Origin::LoadBalancer),
            (v2(0x20, 0xff, b"what", &[]), Origin::LoadBalancer),
        ] {
            let rest: &[u8] = b"\x16\x03\x01 or GET / HTTP/1.1\r\n";
            let stream = [&header, rest].concat();
            for cut in (0..=stream.len()).filter(|cut| *cut < 300 || cut % 97 == 0) {
                let (first, second) = stream.split_at(cut);
                assert_eq!(
                    read_of(first, second),
                    (Ok(expected), rest.len()),
                    "cut at {cut}: {}",
                    header.escape_ascii()
                );
            }
            for end in (0..header.len()).filter(|end| *end < 300 || end % 97 == 0) {
                let cut_short = Err(io::ErrorKind::UnexpectedEof);
                assert_eq!(read_of(&header[..end], b"").0, cut_short, "{end}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_it_is_known() {
        let too_large = vec![0; MAX_LENGTH - MIN_LENGTH_V2 - IPV4.len() + 1];
        let v1 = |line: &str| line.as_bytes().to_vec();
        for header in [
            v1("G"),
            v1("GET / HTTP/1.1\r\n\r\n"),
            v1("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            vec![0x16, 0x03, 0x01],
            v1("proxy TCP4 192.0.2.7 203.0.113.1 5000 443\r\n"),
            v1("PROXY\tTCP4 192.0.2.7 203.0.113.1 5000 443\r\n"),
            v1("PROXY  TCP4 192.0.2.7 203.0.113.1 5000 443\r\n"),
            v1("PROXY TCP4 192.0.2.7 203.0.113.1 5000 443\n"),
            v1("PROXY TCP4 192.0.2.7 203.0.113.1 5000 443 \r\n"),
            v1("PROXY TCP4 192.0.2.7 203.0.113.1 5000 443\rX\r\n"),
            v1("PROXY TCP4 192.0.2.7 203.0.113.1 5000\r\n"),
            v1("PROXY TCP4 192.0.2.7 203.0.113.1 +5000 443\r\n"),
            v1("PROXY TCP4 192.0.2.7 203.0.113.1 65536 443\r\n"),
            v1("PROXY TCP4 192.0.2 203.0.113.1 5000 443\r\n"),
            v1("PROXY TCP4 192.0.2.007 203.0.113.1 5000 443\r\n"),
            v1("PROXY TCP4 2001:db8::7 ::1 5000 443\r\n"),
            v1("PROXY TCP6 192.0.2.7 203.0.113.1 5000 443\r\n"),
            v1("PROXY TCP4 localhost 203.0.113.1 5000 443\r\n"),
            v1("PROXY UDP4 192.0.2.7 203.0.113.1 5000 443\r\n"),
            v1("PROXY \r\n"),
            v1("PROXY A\nGET"),
            v1("PROXY UNKNOWN\rX\r\n"),
            v1(&format!("PROXY UNKNOWN {}", "x".repeat(93))),
            v1(&format!("PROXY UNKNOWN {}", "x".repeat(5000))),
            vec![b'\r', b'\n', b'\r', b'\n', b'G'],
            [SIGNATURE_V2, &[0x31]].concat(),
            // Version 1 and 3, an unknown command, unknown families, too short for its addresses.
            v2(0x11, 0x11, &IPV4, &[]),
            v2(0x31, 0x11, &IPV4, &[]),
            v2(0x22, 0x11, &IPV4, &[]),
            v2(0x21, 0x13, &IPV4, &[]),
            v2(0x21, 0x41, &IPV4, &[]),
            v2(0x21, 0x11, &IPV4[..11], &[]),
            v2(0x21, 0x21, &IPV4, &[]),
            v2(0x21, 0x31, &[b'a'; 215], &[]),
            v2(0x21, 0x11, &IPV4, &too_large),
            [SIGNATURE_V2, &[0x21, 0x11, 0xff, 0xff]].concat(),
        ] {
            for cut in 0..header.len().min(120) {
                let (first, second) = header.split_at(cut);
                let (origin, _) = read_of(first, second);
                let refused = Err(io::ErrorKind::InvalidData);
                assert_eq!(origin, refused, "{}", header.escape_ascii());
            }
        }
    }
}
