use proptest::prelude::*;

use super::*;

const LIMITS: HeadLimits = HeadLimits {
    target: 100,
    head: 500,
    fields: 6,
};

const MALFORMED: u16 = 400;

/// The number of good heads, the status of the fault if there is one, and the bytes handed on, with
/// repaired heads in place of the odd ones.
fn verdict(pieces: &[&[u8]]) -> (u32, Option<(FaultSite, u16)>, Vec<u8>) {
    let mut framing = Framing::new(LIMITS);
    let (mut held, mut passed, mut heads) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        held.extend_from_slice(piece);
        let scan = framing.read(&held);
        heads += scan.heads;
        let good: Vec<u8> = held.drain(..scan.good).collect();
        passed.extend(scan.repaired.unwrap_or(good));
        if let Some((site, fault)) = scan.fault {
            let status = match fault {
                Fault::Malformed(_) => MALFORMED,
                Fault::TargetTooLong => 414,
                Fault::HeadTooLarge => 431,
                Fault::Version => 505,
            };
            return (heads, Some((site, status)), passed);
        }
    }
    (heads, None, passed)
}

fn status(request: &[u8]) -> u16 {
    match verdict(&[request]) {
        (heads, None, passed) => {
            assert_eq!(heads, 1, "{}", request.escape_ascii());
            // What was repaired needs no repair.
            let mut framing = Framing::new(LIMITS);
            let scan = framing.read(&passed);
            let whole = (passed.len(), None, None);
            assert_eq!((scan.good, scan.repaired, scan.fault), whole);
            200
        }
        (heads, Some((site, status)), passed) => {
            assert_eq!(
                (heads, site, passed.len()),
                (0, FaultSite::Request, 0),
                "{}",
                request.escape_ascii()
            );
            status
        }
    }
}

#[test]
fn first_lines() {
    let table: &[(&[u8], u16)] = &[
        (b"GET / HTTP/1.1\r\n", 200),
        (b"GET / HTTP/1.0\r\n", 200),
        (b"PROPFIND /x?y=%zz HTTP/1.1\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\n", 200),
        (b"GET http://localhost/ HTTP/1.1\r\n", 200),
        (b"CONNECT localhost:443 HTTP/1.1\r\n", 200),
        ("GET /ä HTTP/1.1\r\n".as_bytes(), 200),
        (b"\r\nGET / HTTP/1.1\r\n", 200),
        (b"\r\n\r\n\r\nGET / HTTP/1.1\r\n", 200),
        (b"\nGET / HTTP/1.1\r\n", 400),
        (b"\rGET / HTTP/1.1\r\n", 400),
        (b"\r\r\nGET / HTTP/1.1\r\n", 400),
        (b"\r\n GET / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1\n", 400),
        (b"GET / HTTP/1.1\r\r\n", 400),
        (b" GET / HTTP/1.1\r\n", 400),
        (b"GET  / HTTP/1.1\r\n", 200),
        (b"GET /   HTTP/1.1\r\n", 200),
        (b"GET  HTTP/1.1\r\n", 400),
        (b"GET \t/ HTTP/1.1\r\n", 400),
        (b"GET / \tHTTP/1.1\r\n", 400),
        (b"GET\t/ HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1 \r\n", 400),
        (b"GET /\r\n", 400),
        (b"GET HTTP/1.1\r\n", 400),
        (b"GE(T / HTTP/1.1\r\n", 400),
        (b"\x16\x03\x01 / HTTP/1.1\r\n", 400),
        (b"GET /a b HTTP/1.1\r\n", 400),
        (b"GET /#a HTTP/1.1\r\n", 400),
        (b"GET /\0 HTTP/1.1\r\n", 400),
        (b"GET /\x7f HTTP/1.1\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n", 200),
        (b"GET /<`>?\"<\xc4\xe3\xba\xc3> HTTP/1.1\r\n", 200),
        (b"GET <a> HTTP/1.1\r\n", 400),
        (b"GET http://<a>/ HTTP/1.1\r\n", 400),
        (b"GET http://a\xe4/ HTTP/1.1\r\n", 400),
        (b"GET ? HTTP/1.1\r\n", 400),
        (b"GET http:///x HTTP/1.1\r\n", 400),
        (b"GET / http/1.1\r\n", 400),
        (b"GET / HTTP/1.1.1\r\n", 400),
        (b"GET / HTTP/1.01\r\n", 400),
        (b"GET / HTTP/1.2\r\n", 200),
        (b"GET / HTTP/1.9\r\n", 200),
        (b"GET / HTTP/1.10\r\n", 400),
        (b"GET / HTTP/2.1\r\n", 505),
        (b"GET / HTTP/0.9\r\n", 505),
        (b"PRI * HTTP/2.0\r\n", 505),
    ];
    for (line, expected) in table {
        let request = [line, &b"Host: localhost\r\n\r\n"[..]].concat();
        assert_eq!(status(&request), *expected, "{}", line.escape_ascii());
    }
}

#[test]
fn targets_are_accepted_if_they_are_encoded() {
    for byte in 0..=255 {
        for target in [[b'/', byte, b'x'], [b'?', byte, b'x'], [byte, b'/', b'?']] {
            let target = [b"/", &target[..]].concat();
            let request = [b"GET ", &target[..], b" HTTP/1.1\r\n\r\n"].concat();
            let is_good = byte != b'#' && byte > b' ' && byte != 0x7f;
            assert_eq!(
                status(&request) == 200,
                is_good,
                "{}",
                target.escape_ascii()
            );
        }
    }
}

#[test]
fn fields() {
    let table: &[(&[u8], u16)] = &[
        (b"X: y", 200),
        (b"X:y", 200),
        (b"X:", 200),
        (b"X: \xe4\t ", 200),
        (b"x_y: z", 200),
        (b"X : y", 400),
        (b" X: y", 400),
        (b"X: y\r\n z", 400),
        (b"X: y\r\n\tz", 400),
        (b"X\t: y", 400),
        (b"X", 400),
        (b": y", 400),
        (b"X\0: y", 400),
        (b"X\xe4: y", 400),
        (b"X: \0", 400),
        (b"X: a\rb", 400),
        (b"X: a\nb: c", 400),
        (b"X: \x0b", 200),
        (b"X: a\x01b\x1b\x7f", 200),
        (b"X: \x01\0", 400),
        (b"X: \x01\r", 400),
        (b"X\x01: y", 400),
        (b"Host: a\x01", 400),
        (b"hOST: \x7fa", 400),
        (b"Content-Length: \x7f0", 400),
        (b"Content_Length: \x01", 400),
        (b"Transfer-Encoding: chunked\x01", 400),
        (b"TransferEncoding: \x01", 400),
        (b"Content-Length: 0", 200),
        (b"Content-Length:  0  ", 200),
        (b"Content-Length:\t0", 400),
        (b"Host: \tlocalhost", 400),
        (b"content-length: 0", 200),
        (b"Content_Length: 0", 400),
        (b"Content-Length : 0", 400),
        (b"Content--Length: 0", 400),
        (b"Content.Length: 0", 400),
        (b"-contentLength: 0", 400),
        (b"X-Content-Length: 0", 200),
        (b"Content-Length: ", 400),
        (b"Content-Length: 00", 200),
        (b"Content-Length: 00000000000000000000", 200),
        (b"Content-Length: +0", 400),
        (b"Content-Length: -1", 400),
        (b"Content-Length: 0x0", 400),
        (b"Content-Length: 0,0", 400),
        (b"Content-Length: 0 0", 400),
        (b"Content-Length: 0\x0b", 400),
        (b"Content-Length: \"0\"", 400),
        (b"Content-Length: 99999999999999999999", 400),
        (b"Content-Length: 0\r\nContent-Length: 0", 400),
        (b"Content-Length: 0\r\nX: y\r\ncontent-length: 1", 400),
        (b"Content-Length: 0\r\nTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 0", 400),
        (b"Transfer-Encoding: gzip", 400),
        (b"Transfer-Encoding: gzip, chunked", 400),
        (b"Transfer-Encoding: chunked, chunked", 400),
        (
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        (b"Transfer-Encoding: xchunked", 400),
        (b"Transfer-Encoding: chunked;x", 400),
        (b"Transfer-Encoding: \"chunked\"", 400),
        (b"Transfer-Encoding:", 400),
        (b"Transfer-Encoding: identity", 400),
        (b"Transfer_Encoding: chunked", 400),
        (b"Transfer-Encoding\t: chunked", 400),
    ];
    for (field, expected) in table {
        let request = [
            b"POST / HTTP/1.1\r\nHost: localhost\r\n",
            *field,
            b"\r\n\r\n",
        ]
        .concat();
        assert_eq!(status(&request), *expected, "{}", field.escape_ascii());
    }
    let chunked = |version: &str| {
        format!("POST / HTTP/{version}\r\ntransfer-encoding:Chunked \r\n\r\n0\r\n\r\n")
    };
    assert_eq!(status(chunked("1.1").as_bytes()), 200);
    assert_eq!(status(chunked("1.0").as_bytes()), 400);
}

#[test]
fn sizes() {
    let target = |length: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(length));
    assert_eq!(status(target(99).as_bytes()), 200);
    assert_eq!(status(target(100).as_bytes()), 414);
    assert_eq!(status(target(1000).as_bytes()), 414);
    let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(status(fields(6).as_bytes()), 200);
    assert_eq!(status(fields(7).as_bytes()), 431);
    let listing = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\na: b\r\nCONNECTION: c{}\r\n\r\n",
            ", d".repeat(count - 1)
        )
    };
    assert_eq!(status(listing(5).as_bytes()), 200);
    assert_eq!(status(listing(6).as_bytes()), 431);
    assert_eq!(
        status(listing(5).replace("c,", "c\r\nConnection: e,").as_bytes()),
        431
    );
    let value = |head: usize| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(head - 23));
    assert_eq!(status(value(500).as_bytes()), 200);
    assert_eq!(status(value(501).as_bytes()), 431);
    assert_eq!(status(&value(900).as_bytes()[..600]), 431);
    assert_eq!(status(&target(900).as_bytes()[..600]), 414);
}

#[test]
fn chunks() {
    let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let table: &[(&[u8], u16)] = &[
        (b"0\r\n\r\n", 200),
        (b"3\r\nabc\r\n0\r\n\r\n", 200),
        (b"A\r\n0123456789\r\n00\r\n\r\n", 200),
        (b"3;a=b\r\nabc\r\n0;c\r\n\r\n", 200),
        (b"3\r\nabc\r\n0\r\nX: y\r\n\r\n", 200),
        (b"\r\n0\r\n\r\n", 400),
        (b" 3\r\nabc\r\n0\r\n\r\n", 400),
        (b"3  \r\nabc\r\n0 \t\r\n\r\n", 200),
        (b"3 ;a=b\r\nabc\r\n0\t; c\r\n\r\n", 200),
        (b"3 a\r\nabc\r\n0\r\n\r\n", 400),
        (b"3 3\r\nabc\r\n0\r\n\r\n", 400),
        (b"3 \nabc\r\n0\r\n\r\n", 400),
        (b" \r\nabc\r\n0\r\n\r\n", 400),
        (
            b"00000000000000000000003\r\nabc\r\n0000000000000000000\r\n\r\n",
            200,
        ),
        (b"3\nabc\r\n0\r\n\r\n", 400),
        (b"3\r\nabc\n0\r\n\r\n", 400),
        (b"3\r\nabcd\r\n0\r\n\r\n", 400),
        (b"3\r\nabc0\r\n\r\n", 400),
        (b"0x3\r\nabc\r\n0\r\n\r\n", 400),
        (b"+3\r\nabc\r\n0\r\n\r\n", 400),
        (b"-1\r\nabc\r\n0\r\n\r\n", 400),
        (b"g\r\nabc\r\n0\r\n\r\n", 400),
        (b"3;\na\r\nabc\r\n0\r\n\r\n", 400),
        (b"3;a\0\x0b\x7f\r\nabc\r\n0\r\n\r\n", 200),
        (b"3;a\r3\r\nabc\r\n0\r\n\r\n", 400),
        (b"10000000000000003\r\nabc\r\n0\r\n\r\n", 400),
        (b"0\r\nX : y\r\n\r\n", 400),
        (b"0\r\n X: y\r\n\r\n", 400),
        (b"0\r\nX: y\n\r\n", 400),
        (b"0\r\nX: \0\r\n\r\n", 400),
        (b"0\r\nX\r\n\r\n", 400),
        (b"0\r\n\n", 400),
        (b"0\r\n\r\r\n", 400),
    ];
    for (body, expected) in table {
        assert_eq!(
            status(&[head.as_bytes(), body].concat()),
            *expected,
            "{}",
            body.escape_ascii()
        );
    }
    // Bytes that were handed on before the fault stay good.
    let (heads, fault, passed) = verdict(&[head.as_bytes(), b"3\r\nab", b"c\r\n3\nabc"]);
    assert_eq!((heads, fault), (1, Some((FaultSite::Body, 400))));
    assert!(passed.ends_with(b"3\r\nabc\r\n3"));
}

#[test]
fn field_b13_odd_heads_are_handed_on_in_the_form_of_the_standard() {
    for (sent, expected) in [
        ("GET / HTTP/1.2\r\n", "GET / HTTP/1.1\r\n"),
        ("GET  /  HTTP/1.0\r\n", "GET / HTTP/1.0\r\n"),
        (
            "GET /a\"<b>`?\"<`> HTTP/1.1\r\n",
            "GET /a%22%3Cb%3E%60?%22%3C%60%3E HTTP/1.1\r\n",
        ),
        ("GET /a\"b?\"c HTTP/1.1\r\n", "GET /a%22b?%22c HTTP/1.1\r\n"),
        ("GET /\" HTTP/1.1\r\n", "GET /%22 HTTP/1.1\r\n"),
        (
            "GET http://a/\" HTTP/1.1\r\n",
            "GET http://a/%22 HTTP/1.1\r\n",
        ),
        (
            "\r\n\r\nGET /{}|^\\`%zz HTTP/1.1\r\n",
            "GET /{}|^\\%60%zz HTTP/1.1\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nX: \x01a\x7fb\x0b\r\n",
            "GET / HTTP/1.1\r\nX:  a b \r\n",
        ),
        (
            "GET http://a/< HTTP/1.1\r\nX:\ty\r\n",
            "GET http://a/%3C HTTP/1.1\r\nX:\ty\r\n",
        ),
    ] {
        let whole = |head: &str| [head.as_bytes(), b"Content-Length: 3\r\n\r\n\x01<\n"].concat();
        let (sent, expected) = (whole(sent), whole(expected));
        assert_eq!(verdict(&[&sent]), (1, None, expected.clone()));
        // Between other requests.
        let next = b"GET /n HTTP/1.1\r\n\r\n";
        let all = [next, &sent[..], next, &sent, next].concat();
        let all_expected = [next, &expected[..], next, &expected, next].concat();
        assert_eq!(verdict(&[&all]), (5, None, all_expected));
    }
    let gbk = b"GET /\xc4\xe3?\xba\xc3 HTTP/1.1\r\n\r\n";
    let (_, _, passed) = verdict(&[gbk]);
    assert_eq!(passed, b"GET /%C4%E3?%BA%C3 HTTP/1.1\r\n\r\n");
    // A fault in the body of an odd request, whose head is then not handed on.
    let first = b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.3\r\n\r\n";
    let bad = b"POST /< HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx";
    let (heads, fault, passed) = verdict(&[&[&first[..], bad].concat()]);
    assert_eq!((heads, fault), (2, Some((FaultSite::Request, 400))));
    let expected = b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
    assert_eq!(
        passed.escape_ascii().to_string(),
        expected.escape_ascii().to_string()
    );
    let (heads, _, passed) = verdict(&[bad]);
    assert_eq!((heads, passed.len()), (0, 0));
}

#[test]
fn unusual_names_are_noticed() {
    for (name, expected) in [
        ("Content-Type", false),
        ("X", false),
        ("X-1-A_b", false),
        ("X--Y", false),
        ("Etag", false),
        ("ETag", true),
        ("content-type", true),
        ("Content-type", true),
        ("DNT", true),
        ("X_Y", true),
        ("X-y", true),
        ("xY", true),
    ] {
        let mut framing = Framing::new(LIMITS);
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: b\r\n\r\n");
        framing.read(head.as_bytes());
        assert_eq!(framing.has_unusual_names(), expected, "{name}");
        framing.read(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(framing.has_unusual_names(), expected, "{name}: of any head");
    }
}

#[test]
fn requests_follow_each_other() {
    let three = b"POST /1 HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /\
        POST /2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\r\n\r\r\n0\r\n\r\n\
        \r\nGET /3 HTTP/1.1\r\n\r\n";
    assert_eq!(verdict(&[three]), (3, None, three.to_vec()));
    let (heads, fault, passed) = verdict(&[&three[..], b"GET / HTTP/1.1\r\nX : y\r\n\r\n"]);
    assert_eq!(
        (heads, fault, passed.len()),
        (3, Some((FaultSite::Request, 400)), three.len())
    );
    // The last body is malformed: its head is not handed on, the requests before it are.
    let (heads, fault, passed) = verdict(&[&[
        three,
        &b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx"[..],
    ]
    .concat()]);
    assert_eq!(
        (heads, fault, passed.len()),
        (3, Some((FaultSite::Request, 400)), three.len())
    );
}

/// Requests, valid and nearly valid ones, and random bytes.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let pieces: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"POST /x HTTP/1.0\r\n",
        b"Host: a\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\r\n",
        b"\n",
        b"abc",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"GET /",
        b": \0",
        b"GET  /< HTTP/1.2\r\n",
        b"X: \x01\r\n",
        b"3 ;a\r\nabc\r\n",
    ];
    let piece = prop::sample::select(pieces);
    prop_oneof![
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat()),
        prop::collection::vec(any::<u8>(), 0..60),
    ]
}

proptest! {
    #[test]
    fn the_result_does_not_depend_on_the_read_boundaries(
        bytes in bytes(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (heads, fault, passed) = verdict(&[&bytes]);
        let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        for pieces in [vec![first, second], single] {
            let (split_heads, split_fault, split_passed) = verdict(&pieces);
            prop_assert_eq!(fault.map(|(_, status)| status), split_fault.map(|(_, status)| status));
            match split_fault {
                // The head was handed on before its body was scanned.
                Some((FaultSite::Body, _)) => {
                    prop_assert!(split_heads >= heads && split_passed.starts_with(&passed));
                }
                _ => prop_assert_eq!((heads, &passed), (split_heads, &split_passed)),
            }
        }
    }
}
