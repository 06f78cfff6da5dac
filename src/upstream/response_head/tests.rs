use http::Response;
use proptest::prelude::*;

use super::*;

const LIMIT: usize = 4096;

/// What hyper reads of these pieces, and the response as completed afterwards.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Response<()>) {
    let mut reader = HeadReader::new(LIMIT);
    reader.state().expect_head();
    let mut all = Vec::new();
    for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
        let mut space = vec![0; 3 + piece.len()];
        let mut buf = ReadBuf::new(&mut space);
        // What hyper has read before stays as it is.
        buf.put_slice(b"\r\0\n");
        buf.put_slice(piece);
        reader.read(&mut buf, 3);
        all.extend_from_slice(&buf.filled()[3..]);
        take(&mut reader, &mut all);
    }
    reader.read(&mut ReadBuf::new(&mut []), 0);
    take(&mut reader, &mut all);
    let mut response = Response::new(());
    reader.state().complete(&mut response);
    (all, response)
}

fn take(reader: &mut HeadReader, all: &mut Vec<u8>) {
    let mut space = [0; 7];
    loop {
        let mut buf = ReadBuf::new(&mut space);
        if !reader.take_ready(&mut buf) {
            return;
        }
        all.extend_from_slice(buf.filled());
    }
}

fn whole(bytes: &[u8]) -> Vec<u8> {
    read([bytes]).0
}

fn assert_read(sent: &[u8], expected: &[u8]) {
    let body = b"\r\n\x01a\r\n\r\n";
    for at in 0..=sent.len() {
        let (head, rest) = sent.split_at(at);
        let (read, _) = read([head, rest, body]);
        let expected = [expected, body].concat();
        assert_eq!(
            read.escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
    }
}

#[test]
fn field_f3_what_cannot_become_a_status_line_is_handed_on_at_once() {
    let held = |sent: &str| {
        let mut reader = HeadReader::new(LIMIT);
        reader.state().expect_head();
        let mut read = Vec::new();
        for byte in sent.as_bytes() {
            let mut space = [*byte];
            let mut buf = ReadBuf::new(&mut space);
            buf.set_filled(1);
            reader.read(&mut buf, 0);
            read.extend_from_slice(buf.filled());
            take(&mut reader, &mut read);
        }
        assert!(read.is_empty() || read == sent.as_bytes(), "{sent:?}");
        read.is_empty()
    };
    for sent in [
        "SSH-2.0-x\r\n",
        "220 mail ESMTP\r\n",
        "\x16\x03\x01",
        "\r\n\nX",
        "\rX",
        "http/1.1 ",
        "HTTP /1.1",
        "HTTP/1.1\r\n",
        "HTTP/11",
        "\r\nHTTP/x",
        " HTTP/1.1 200 OK\r\n",
    ] {
        assert!(!held(sent), "{sent:?}");
    }
    for sent in [
        "\r\n\r",
        "\n\r\n",
        "H",
        "HTTP/1.",
        "\r\n\r\nHTTP/1.1",
        "HTTP/1.1 ",
        "HTTP/2.0 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nSSH-2.0-x\r\n",
    ] {
        assert!(held(sent), "{sent:?}");
    }
}

#[test]
fn field_b11_what_hyper_refuses_is_repaired() {
    for (sent, expected) in [
        ("X: a\x1bb", "X: a b"),
        ("X: a\x7fb", "X: a b"),
        ("X: \x01", "X:  "),
        ("X: a\0b", "X: a b"),
        ("X: a\rb", "X: a b"),
        ("X: a\r", "X: a "),
        ("X:\x0b\x0ca\x08", "X:  a "),
        ("X: a\tb", "X: a\tb"),
        ("X: \u{e4}\u{20ac}", "X: \u{e4}\u{20ac}"),
        ("X: a\r\n b", "X: a b"),
        ("X: a\r\n\t b\x01\r\n  c", "X: a b c"),
        ("X: a\n b", "X: a b"),
        ("X:\r\n b", "X: b"),
        // Names are not repaired, and neither is what frames the body.
        ("X\x01: a", "X\x01: a"),
        ("X\x01: a\x01", "X\x01: a "),
        ("Content-Length: 2\x01", "Content-Length: 2\x01"),
        ("content-length : 2\x01", "content-length : 2\x01"),
        ("Content-Length: 2\r\n 0", "Content-Length: 2\r\n 0"),
        (
            "Transfer-Encoding:\r\n chunked",
            "Transfer-Encoding:\r\n chunked",
        ),
        (
            "TRANSFER-ENCODING: chunked\0",
            "TRANSFER-ENCODING: chunked\0",
        ),
        ("no colon\x01", "no colon\x01"),
    ] {
        let head = |line: &str| format!("HTTP/1.1 200 OK\r\nA: 1\r\n{line}\r\nB: 2\r\n\r\n");
        assert_read(head(sent).as_bytes(), head(expected).as_bytes());
    }
}

#[test]
fn field_b11_status_lines_are_repaired_and_the_reason_phrase_is_kept() {
    for (sent, expected, reason) in [
        ("HTTP/1.1 200 OK", "HTTP/1.1 200 OK", ""),
        ("HTTP/1.0 404 Not Found", "HTTP/1.0 404 Not Found", ""),
        ("HTTP/1.1 200", "HTTP/1.1 200", ""),
        ("HTTP/1.1 200 ", "HTTP/1.1 200 ", ""),
        (
            "HTTP/1.1 404 Nicht gefunden",
            "HTTP/1.1 404 Nicht gefunden",
            "",
        ),
        ("HTTP/1.1 404 \u{e4}rger", "HTTP/1.1 404 ", "\u{e4}rger"),
        (
            "HTTP/1.1 404 \x1b\u{627e}\x01\u{4e0d} x",
            "HTTP/1.1 404 ",
            "\u{627e} \u{4e0d} x",
        ),
        ("HTTP/1.1 200 a\x1bb\0", "HTTP/1.1 200 a b", ""),
        ("HTTP/1.1 200\x01OK", "HTTP/1.1 200 OK", ""),
        ("HTTP/1.2 200 OK", "HTTP/1.1 200 OK", ""),
        ("HTTP/2.0 200 OK", "HTTP/1.1 200 OK", ""),
        ("HTTP/1.1  200 OK", "HTTP/1.1 200 OK", ""),
        // Not repaired.
        ("HTTP/1.1 2000 \x01", "HTTP/1.1 2000 \x01", ""),
        ("HTTP/1.1 2 \x01", "HTTP/1.1 2 \x01", ""),
        ("HTTP/0.9 200 OK", "HTTP/0.9 200 OK", ""),
        ("ICY 200 OK", "ICY 200 OK", ""),
        ("\x01", "\x01", ""),
        ("X: y", "X: y", ""),
    ] {
        let head = |line: &str| format!("{line}\r\nA: 1\r\n\r\n");
        assert_read(head(sent).as_bytes(), head(expected).as_bytes());
        let (_, response) = read([head(sent).as_bytes()]);
        let kept = response.extensions().get::<ReasonPhrase>();
        let kept = kept.map_or(&b""[..], ReasonPhrase::as_bytes);
        assert_eq!(String::from_utf8_lossy(kept), reason);
    }
    // Empty lines before the head are not the end of it.
    let head = b"HTTP/1.1 200 OK\r\n\r\n";
    assert_read(&[&b"\r\n\n\r\n"[..], head].concat(), head);
    let latin1 = b"HTTP/1.1 500 \xc4rger\r\n\r\n";
    let (read, response) = read([&latin1[..]]);
    assert_eq!(read, b"HTTP/1.1 500 \r\n\r\n");
    let kept = response.extensions().get::<ReasonPhrase>().unwrap();
    assert_eq!(kept.as_bytes(), b"\xc4rger");
}

#[test]
fn interim_responses_are_repaired_and_the_final_one_is_found() {
    let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \xe4\x01\r\nLink: \x01\r\n\r\n";
    let last = b"HTTP/1.1 200 \xc4\r\nX: \x01a\r\n\r\n";
    let expected = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\nLink:  \r\n\r\n\
                     HTTP/1.1 200 \r\nX:  a\r\n\r\n";
    assert_read(&[&interim[..], last].concat(), expected);
    // 101 is final: what follows is another protocol.
    let upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n";
    assert_read(upgrade, upgrade);
}

#[test]
fn field_b10_fields_beyond_those_that_hyper_takes_are_added_to_the_response() {
    for count in [79, 80, 81, 100, 101, 150, 300] {
        let fields: String = (0..count).map(|n| format!("x-{n}: {n}\r\n")).collect();
        let framing = "Content-Length: 0\r\nConnection: close\r\n";
        let sent = format!("HTTP/1.1 200 OK\r\n{fields}{framing}\r\n");
        let (read, mut response) = read([sent.as_bytes()]);
        let read = String::from_utf8(read).unwrap();
        assert!(read.matches("\r\n").count() <= 100, "{count}");
        assert!(read.contains(framing), "{count}");
        let lines = read.split("\r\n").filter_map(|line| line.split_once(": "));
        let headers = lines.chain(
            response
                .headers()
                .iter()
                .map(|(name, value)| (name.as_str(), value.to_str().unwrap())),
        );
        let seen: Vec<_> = headers.filter(|(name, _)| name.starts_with("x-")).collect();
        assert_eq!(seen.len(), count);
        for (n, (name, value)) in seen.iter().enumerate() {
            assert_eq!((*name, *value), (&*format!("x-{n}"), &*n.to_string()));
        }
        response.headers_mut().clear();
    }
}

#[test]
fn field_b10_a_head_over_the_limit_is_no_head() {
    let head = |length: usize| {
        let begin = "HTTP/1.1 200 OK\r\nX: ";
        format!("{begin}{}\r\n\r\n", "x".repeat(length - begin.len() - 4)).into_bytes()
    };
    assert_eq!(whole(&head(LIMIT)), head(LIMIT));
    assert_eq!(whole(&head(LIMIT + 1)), SUBSTITUTE);
    assert_eq!(whole(&[b'\n'; LIMIT]), SUBSTITUTE);
    let start = std::iter::once(&b"HTTP/1.1 200 OK\r\nX: "[..]);
    let (read, _) = read(start.chain(std::iter::repeat_n(&[b'x'; 100][..], 42)));
    assert!(read.starts_with(SUBSTITUTE));
}

#[test]
fn without_a_request_bytes_pass_as_they_are() {
    let mut reader = HeadReader::new(LIMIT);
    let mut space = *b"HTTP/1.1 200 \x01\r\n\r\n";
    let sent = space;
    let mut buf = ReadBuf::new(&mut space);
    buf.set_filled(sent.len());
    reader.read(&mut buf, 0);
    assert_eq!(buf.filled(), sent);
}

proptest! {
    /// Bytes behind the head are never changed, and pieces make no difference.
    #[test]
    fn pieces_make_no_difference_and_the_body_is_untouched(
        head in "(HTTP/1.[0-2] [12]0[013]( [ -~\u{1}\u{e4}]{0,4})?\r?\n)?\
                 (\r?\n)?([A-C:]{0,2}[ -~\u{0}\u{1}\r\t\u{e4}]{0,6}\r?\n){0,4}",
        body in prop::collection::vec(any::<u8>(), 0..20),
        cuts in prop::collection::vec(0usize..80, 0..4),
    ) {
        let sent = [head.as_bytes(), b"HTTP/1.1 200 OK\r\n\r\n", &body].concat();
        let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut < sent.len()).collect();
        cuts.extend([0, sent.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &sent[pair[0]..pair[1]]);
        let (read_in_pieces, _) = read(pieces);
        let at_once = whole(&sent);
        prop_assert_eq!(read_in_pieces.escape_ascii().to_string(), at_once.escape_ascii().to_string());
        prop_assert!(at_once.ends_with(&body));
    }
}
