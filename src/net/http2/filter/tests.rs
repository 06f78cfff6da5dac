use std::collections::VecDeque;

use proptest::prelude::*;
use tokio::io::AsyncReadExt as _;

use super::{super::hpack::tests::bytes, *};

const MAX_HEAD: usize = 4096;

/// A connection from which these parts arrive.
struct Parts(VecDeque<Vec<u8>>);

impl AsyncRead for Parts {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut part) = self.0.pop_front() {
            let rest = part.split_off(part.len().min(buf.remaining()));
            buf.put_slice(&part);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What h2 reads of bytes that arrive in parts of this length.
fn filtered(messages: Messages, sent: &[u8], part: usize) -> Vec<u8> {
    let parts = sent.chunks(part.max(1)).map(<[u8]>::to_vec).collect();
    let mut filter = HeaderFilter::new(Parts(parts), messages, MAX_HEAD);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut read = Vec::new();
    runtime.block_on(filter.read_to_end(&mut read)).unwrap();
    read
}

/// The same, however the bytes are split.
fn filtered_in_any_parts(messages: Messages, sent: &[u8]) -> Vec<u8> {
    let whole = filtered(messages, sent, sent.len());
    for part in 1..sent.len() {
        assert_eq!(filtered(messages, sent, part), whole, "in parts of {part}");
    }
    whole
}

fn write(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let length = payload.len();
    let header = FrameHeader {
        length,
        kind,
        flags,
        stream,
    };
    header.write(&mut frame);
    frame.extend_from_slice(payload);
    frame
}

/// A literal without indexing.
fn field(name: &str, value: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    hpack::encode(name.as_bytes(), value, &mut field);
    field
}

/// A literal with incremental indexing.
fn indexed(name: &str, value: &[u8]) -> Vec<u8> {
    let mut field = field(name, value);
    field[0] = 0x40;
    field
}

/// The fields of each HEADERS frame as h2 decodes them, with its stream.
fn fields(mut read: &[u8]) -> Vec<(u32, Vec<String>)> {
    let (mut all, mut decoder) = (Vec::new(), Decoder::new());
    while let Frame::Complete(header, payload) = frame(read) {
        if header.kind == HEADERS {
            let mut fields = Vec::new();
            let decoded = decoder.decode(payload, |field| {
                let text = [field.name, b"=", field.value].concat();
                fields.push(text.escape_ascii().to_string());
            });
            assert_eq!((decoded, header.flags & END_HEADERS), (Ok(()), END_HEADERS));
            all.push((header.stream, fields));
        }
        read = &read[FRAME_HEADER + header.length..];
    }
    assert!(read.is_empty());
    all
}

#[test]
fn valid_messages_pass_as_they_came() {
    let mut sent = PREFACE.to_vec();
    sent.extend(write(4, 0, 0, &[]));
    // The requests of RFC 7541, Appendix C.4: Huffman code, entries of the dynamic table.
    for (stream, block) in [
        (1, "828684418cf1e3c2e5f23a6ba0ab90f4ff"),
        (3, "828684be5886a8eb10649cbf"),
        (5, "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"),
    ] {
        sent.extend(write(HEADERS, END_HEADERS, stream, &bytes(block)));
        sent.extend(write(0, END_STREAM, stream, b"some data"));
    }
    // Padding and a priority.
    let padded = [&[3, 0, 0, 0, 9, 16][..], &bytes("828684be"), &[0, 0, 0]].concat();
    let flags = END_HEADERS | PADDED | PRIORITY;
    sent.extend(write(HEADERS, flags, 7, &padded));
    // What is no header block, or not complete.
    sent.extend(write(8, 0, 0, &[0, 0, 1, 0]));
    sent.extend(&write(HEADERS, END_HEADERS, 9, &bytes("828684be"))[..11]);
    assert_eq!(filtered_in_any_parts(Messages::Requests, &sent), sent);
}

#[test]
fn a_malformed_request_is_replaced_and_those_after_it_keep_their_meaning() {
    let request = bytes("828684410161");
    let mut sent = PREFACE.to_vec();
    sent.extend(write(HEADERS, END_HEADERS, 1, &request));
    let malformed = [
        bytes("828684be"),
        indexed("Bad", b"x"),
        indexed("good", b"y"),
    ]
    .concat();
    sent.extend(write(HEADERS, END_HEADERS | END_STREAM, 3, &malformed));
    // 62 is `good`, 63 is `Bad`, 64 the authority of the first request.
    sent.extend(write(HEADERS, END_HEADERS, 5, &bytes("828684c0be")));
    sent.extend(write(HEADERS, END_HEADERS, 7, &bytes("828684c0bf")));
    // The name of an entry, and trailers.
    let named = [bytes("828684c07f00017a"), field("caf", &[0xe9])].concat();
    sent.extend(write(HEADERS, END_HEADERS, 9, &named));
    sent.extend(write(
        HEADERS,
        END_HEADERS | END_STREAM,
        9,
        &field("A", b""),
    ));
    let read = filtered_in_any_parts(Messages::Requests, &sent);
    let first = PREFACE.len() + FRAME_HEADER + request.len();
    assert_eq!(read[..first], sent[..first]);
    let get = [":method=GET", ":scheme=http", ":path=/", ":authority=a"];
    let with = |more: &[&str]| [&get[..], more].concat().join(" ");
    let rejected = |reason| format!(":method=MALFORMED :scheme=http :path=* reason={reason}");
    let read: Vec<_> = fields(&read[PREFACE.len()..])
        .into_iter()
        .map(|(stream, fields)| (stream, fields.join(" ")))
        .collect();
    assert_eq!(
        read,
        [
            (1, with(&[])),
            (3, rejected(0)),
            (5, with(&["good=y"])),
            (7, rejected(0)),
            (9, rejected(0)),
            (9, "bearer-proxy-malformed-trailers=0".to_owned()),
        ]
    );
}

#[test]
fn field_f5_static_entries_are_valid_in_messages_of_their_side_only() {
    let rejected = |reason: u8| {
        let reason = format!("reason={reason}");
        [":method=MALFORMED", ":scheme=http", ":path=*", &reason].map(str::to_owned)
    };
    let sent = |start: &[u8], block| {
        [
            start,
            &write(HEADERS, END_HEADERS | END_STREAM, 1, &bytes(block)),
        ]
        .concat()
    };
    // `:status: 200`, `:status: 500` behind others, and `transfer-encoding`.
    for (block, reason) in [("88828684", 2), ("8286848e", 2), ("828684b9", 3)] {
        let read = filtered_in_any_parts(Messages::Requests, &sent(PREFACE, block));
        let fields = fields(&read[PREFACE.len()..]);
        assert_eq!(fields, [(1, rejected(reason).to_vec())], "{block}");
    }
    for block in ["82", "8882", "8884", "8887", "8881", "88b9"] {
        let read = filtered_in_any_parts(Messages::Responses, &sent(&[], block));
        let expected = vec!["connection=close".to_owned()];
        assert_eq!(fields(&read), [(1, expected)], "{block}");
    }
    for block in ["88", "8eb6", "8898"] {
        let sent = sent(&[], block);
        assert_eq!(filtered_in_any_parts(Messages::Responses, &sent), sent);
    }
}

#[test]
fn blocks_on_streams_that_the_client_ended_are_left_to_the_state_machine_of_h2() {
    let head = bytes("828684410161");
    let trailers = field("a", b"b");
    let second = |frames: &[(u8, u8, u32)], block: &[u8]| {
        let mut sent = PREFACE.to_vec();
        for (kind, flags, stream) in frames {
            let payload = match *kind {
                HEADERS => &head[..],
                RST_STREAM => &[0, 0, 0, 8],
                _ => b"data",
            };
            sent.extend(write(*kind, flags | END_HEADERS, *stream, payload));
        }
        let before = sent.len();
        sent.extend(write(HEADERS, END_HEADERS, 3, block));
        let read = filtered_in_any_parts(Messages::Requests, &sent);
        assert_eq!(read[..before], sent[..before]);
        read[before..].to_vec()
    };
    let ended: [&[_]; 5] = [
        &[(HEADERS, END_STREAM, 3)],
        &[(HEADERS, 0, 3), (DATA, 0, 3), (DATA, END_STREAM, 3)],
        &[(HEADERS, 0, 3), (RST_STREAM, 0, 3)],
        &[(HEADERS, END_STREAM, 5)],
        &[(HEADERS, 0, 2001)],
    ];
    for frames in ended {
        for block in [&head, &trailers] {
            let expected = write(HEADERS, END_HEADERS | END_STREAM, 3, &[]);
            assert_eq!(second(frames, block), expected, "{frames:?}");
        }
    }
    let open: [&[_]; 3] = [
        &[(HEADERS, 0, 3)],
        &[(HEADERS, 0, 3), (DATA, 0, 3), (DATA, END_STREAM, 1)],
        &[
            (HEADERS, 0, 3),
            (HEADERS, END_STREAM, 5),
            (RST_STREAM, 0, 5),
        ],
    ];
    for frames in open {
        let passed = write(HEADERS, END_HEADERS, 3, &trailers);
        assert_eq!(second(frames, &trailers), passed, "{frames:?}");
        let reset = write(HEADERS, END_HEADERS, 3, &field("connection", b"close"));
        assert_eq!(second(frames, &head), reset, "{frames:?}");
    }
}

#[test]
fn control_characters_in_responses_are_replaced_also_where_they_are_indexed() {
    let mut sent = write(
        HEADERS,
        END_HEADERS,
        1,
        &[bytes("88"), indexed("a", b"x")].concat(),
    );
    let odd = [bytes("88be"), indexed("b", b"a\x01b"), field("c", b"\x7f")].concat();
    sent.extend(write(HEADERS, END_HEADERS, 3, &odd));
    sent.extend(write(HEADERS, END_HEADERS, 5, &bytes("88bebf")));
    for status in ["99", "2000"] {
        sent.extend(write(
            HEADERS,
            END_HEADERS,
            7,
            &field(":status", status.as_bytes()),
        ));
    }
    let read = fields(&filtered_in_any_parts(Messages::Responses, &sent));
    let read: Vec<_> = read
        .iter()
        .map(|(stream, fields)| (*stream, fields.join(" ")))
        .collect();
    let read: Vec<_> = read
        .iter()
        .map(|(stream, fields)| (*stream, &**fields))
        .collect();
    assert_eq!(
        read,
        [
            (1, ":status=200 a=x"),
            (3, ":status=200 a=x b=a b c= "),
            (5, ":status=200 b=a b a=x"),
            (7, "connection=close"),
            (7, "connection=close"),
        ]
    );
}

#[test]
fn heads_are_limited_and_continued_blocks_are_joined() {
    let block = [bytes("88"), field("a", &[b'v'; 1000])].concat();
    let split = |frames: usize| {
        let parts: Vec<_> = block.chunks(block.len().div_ceil(frames)).collect();
        let mut sent = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let kind = if number == 0 { HEADERS } else { CONTINUATION };
            let is_end = number + 1 == parts.len();
            sent.extend(write(kind, if is_end { END_HEADERS } else { 0 }, 1, part));
        }
        sent
    };
    let joined = write(HEADERS, END_HEADERS, 1, &block);
    for frames in [2, 3, 10, 16] {
        assert_eq!(filtered(Messages::Responses, &split(frames), 100), joined);
    }
    // h2 ends the connection.
    let flood = split(100);
    assert_eq!(filtered(Messages::Responses, &flood, 100), flood);
    let mut large = PREFACE.to_vec();
    let block = [bytes("828684410161"), field("a", &[b'v'; MAX_HEAD])].concat();
    large.extend(write(HEADERS, END_HEADERS, 1, &block));
    let read = filtered(Messages::Requests, &large, 1000);
    let expected = [":method=MALFORMED", ":scheme=http", ":path=*", "reason=5"];
    assert_eq!(fields(&read[PREFACE.len()..])[0].1, expected);
}

proptest! {
    #[test]
    fn no_input_panics_and_no_split_matters(
        tail in proptest::collection::vec(any::<u8>(), 0..300),
        blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..5),
        part in 1_usize..50,
    ) {
        for messages in [Messages::Requests, Messages::Responses] {
            let mut sent = match messages {
                Messages::Requests => PREFACE.to_vec(),
                Messages::Responses => Vec::new(),
            };
            for (number, block) in blocks.iter().enumerate() {
                sent.extend(write(HEADERS, END_HEADERS, number as u32, block));
            }
            sent.extend(&tail);
            let whole = filtered(messages, &sent, sent.len());
            prop_assert_eq!(filtered(messages, &sent, part), whole);
        }
    }
}
