//! Addresses in JSON, rewritten while it streams.
//!
//! Only strings are observed_rate at, and only their beginnings: a string that is an address begins with its origin. So no more than
//! the longest origin is ever held back, escaped in the longest way. What is no JSON passes as it is, except that a quote
//! followed by such an origin is taken for a string. Keys are strings too.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::{UrlMap, ends_an_origin};

/// One answer's body on its way.
#[derive(Debug)]
pub(crate) struct Stream {
    rewrites: Rc<UrlMap>,
    /// How the client reaches us: `scheme://host`, or nothing.
    base: Vec<u8>,
    state: State,
    /// The beginning of a string that may turn out to be an address, as it came.
    held: Vec<u8>,
    /// The same without its escapes, in lower case.
    plain: Vec<u8>,
    /// What an escape has so far.
    escape: Vec<u8>,
    has_escaped_slashes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between strings.
    Outside,
    /// At the beginning of a string, which may still be an address.
    Beginning,
    /// In a string that is none, or whose origin is behind us.
    Inside,
    /// Behind a backslash there.
    Escaped,
}

/// What one more character makes of the beginning of a string.
enum Match {
    Possible,
    Impossible,
    /// The origin ended before it; this rule's place.
    Complete(usize),
}

impl Stream {
    pub(crate) fn new(rewrites: Rc<UrlMap>, base: Vec<u8>) -> Self {
        Self {
            rewrites,
            base,
            state: State::Outside,
            held: Vec::new(),
            plain: Vec::new(),
            escape: Vec::new(),
            has_escaped_slashes: false,
        }
    }

    /// The next piece, as far as it is decided. It may be empty.
    pub(crate) fn feed(&mut self, data: &Bytes) -> Bytes {
        let mut out: Option<BytesMut> = None;
        let mut rest = &data[..];
        while let Some(&byte) = rest.first() {
            match self.state {
                State::Outside | State::Inside => {
                    let end = match self.state {
                        State::Outside => rest.iter().position(|byte| *byte == b'"'),
                        _ => rest.iter().position(|byte| matches!(byte, b'"' | b'\\')),
                    };
                    let taken = end.map_or(rest.len(), |end| end + 1);
                    let (passed, left) = rest.split_at(taken);
                    // A piece without any string that begins in it is handed on as it came.
                    if out.is_none()
                        && left.is_empty()
                        && passed.len() == data.len()
                        && !self.begins_behind(passed)
                    {
                        self.step_over(passed);
                        return data.clone();
                    }
                    out.get_or_insert_with(|| BytesMut::with_capacity(data.len() + 256))
                        .extend_from_slice(passed);
                    self.step_over(passed);
                    rest = left;
                }
                State::Escaped => {
                    out.get_or_insert_with(|| BytesMut::with_capacity(data.len() + 256))
                        .extend_from_slice(&[byte]);
                    self.state = State::Inside;
                    rest = &rest[1..];
                }
                State::Beginning => {
                    let out = out.get_or_insert_with(|| BytesMut::with_capacity(data.len() + 256));
                    self.look_at(byte, out);
                    rest = &rest[1..];
                }
            }
        }
        out.map(BytesMut::freeze).unwrap_or_default()
    }

    /// What is still held at the end.
    pub(crate) fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held).into()
    }

    fn begins_behind(&self, passed: &[u8]) -> bool {
        self.state == State::Outside && passed.ends_with(b"\"")
    }

    fn step_over(&mut self, passed: &[u8]) {
        self.state = match (self.state, passed.last()) {
            (State::Outside, Some(b'"')) => State::Beginning,
            (State::Inside, Some(b'"')) => State::Outside,
            (State::Inside, Some(b'\\')) => State::Escaped,
            (state, _) => state,
        };
    }

    /// One more byte of a string's beginning.
    fn look_at(&mut self, byte: u8, out: &mut BytesMut) {
        if self.escape.is_empty() && byte == b'"' {
            match self.matched(None) {
                Match::Complete(rule) => self.replace(rule, out),
                Match::Possible | Match::Impossible => self.give_up(out),
            }
            out.extend_from_slice(b"\"");
            self.state = State::Outside;
            return;
        }
        self.held.push(byte);
        let character = if self.escape.is_empty() && byte != b'\\' {
            byte
        } else {
            self.escape.push(byte);
            match unescaped(&self.escape) {
                Unescaped::Unfinished => return,
                Unescaped::Character(character) => {
                    self.has_escaped_slashes |= character == b'/';
                    character
                }
                // Whatever it is, no origin has it. A backslash before it must not be lost count of.
                Unescaped::Other => return self.give_up(out),
            }
        };
        let length = self.escape.len().max(1);
        self.escape.clear();
        match self.matched(Some(character)) {
            Match::Possible => self.plain.push(character.to_ascii_lowercase()),
            Match::Impossible => self.give_up(out),
            Match::Complete(rule) => {
                let next = self.held.split_off(self.held.len() - length);
                self.replace(rule, out);
                out.extend_from_slice(&next);
            }
        }
    }

    fn matched(&self, next: Option<u8>) -> Match {
        let rules = &self.rewrites.rules;
        if ends_an_origin(next)
            && let Some(rule) = rules
                .iter()
                .position(|rule| rule.from.as_bytes() == self.plain)
        {
            return Match::Complete(rule);
        }
        let Some(next) = next else {
            return Match::Impossible;
        };
        let goes_on = |from: &str| {
            from.as_bytes().starts_with(&self.plain)
                && from.as_bytes().get(self.plain.len()) == Some(&next.to_ascii_lowercase())
        };
        if rules.iter().any(|rule| goes_on(&rule.from)) {
            Match::Possible
        } else {
            Match::Impossible
        }
    }

    fn replace(&mut self, rule: usize, out: &mut BytesMut) {
        let to = self.rewrites.rules[rule].to.as_bytes();
        for &byte in self.base.iter().chain(to) {
            if byte == b'/' && self.has_escaped_slashes {
                out.extend_from_slice(b"\\/");
            } else {
                out.extend_from_slice(&[byte]);
            }
        }
        self.held.clear();
        self.leave_beginning();
    }

    /// It is no address: what was held goes on as it came.
    fn give_up(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.held);
        self.held.clear();
        self.leave_beginning();
    }

    fn leave_beginning(&mut self) {
        self.plain.clear();
        self.escape.clear();
        self.has_escaped_slashes = false;
        self.state = State::Inside;
    }
}

enum Unescaped {
    Unfinished,
    Character(u8),
    Other,
}

/// An escape of RFC 8259 §7, as far as an origin may be written with it.
fn unescaped(escape: &[u8]) -> Unescaped {
    match escape {
        [b'\\'] => Unescaped::Unfinished,
        [b'\\', b'/'] => Unescaped::Character(b'/'),
        [b'\\', b'u', digits @ ..] if digits.iter().all(u8::is_ascii_hexdigit) => {
            if digits.len() < 4 {
                return Unescaped::Unfinished;
            }
            let code = std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok());
            code.filter(u8::is_ascii_graphic)
                .map_or(Unescaped::Other, Unescaped::Character)
        }
        _ => Unescaped::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::rewrites, *};

    fn rewritten(text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut stream = Stream::new(Rc::new(rewrites()), b"http://localhost:8080".to_vec());
        let mut out = Vec::new();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        for piece in cuts.windows(2) {
            out.extend(stream.feed(&Bytes::copy_from_slice(&text[piece[0]..piece[1]])));
        }
        out.extend(stream.finish());
        out
    }

    #[test]
    fn addresses_in_every_spelling() {
        for (text, expected) in [
            (
                r#"{"url":"http://document.example.com/a?b"}"#,
                r#"{"url":"http://localhost:8080/_document/a?b"}"#,
            ),
            (
                r#"["HTTP:\/\/Document.Example.Com\/a\/b"]"#,
                r#"["http:\/\/localhost:8080\/_document\/a\/b"]"#,
            ),
            (
                r#"["http:\u002f\u002Fdocument.example.com\u002fa"]"#,
                r#"["http:\/\/localhost:8080\/_document\u002fa"]"#,
            ),
            (
                r#"["http://document.example.com"]"#,
                r#"["http://localhost:8080/_document"]"#,
            ),
            (
                r#"["http://document.example.com:80/"]"#,
                r#"["http://localhost:8080/_document/"]"#,
            ),
            (
                r#"["https://cloud.example.com/x"]"#,
                r#"["http://localhost:8080/x"]"#,
            ),
        ] {
            assert_eq!(
                String::from_utf8(rewritten(text.as_bytes(), &[])).as_deref(),
                Ok(expected)
            );
        }
    }

    #[test]
    fn what_is_no_address_of_theirs_stays() {
        for text in [
            r#"{"url":"http://document.example.com:8080/a"}"#,
            r#"{"url":"http://document.example.com.evil/a"}"#,
            r#"{"url":"http://document.example.com\"/a"}"#,
            r#"["see http://document.example.com/a", "\"http://document.example.com/a"]"#,
            r#"["http:\\/\\/document.example.com", "\\", "http://document.example.com\u0000"]"#,
            r#"{"half": "http://document.exam"#,
            r#"{"half": "http:\/\/document\u00"#,
            "http://document.example.com/ without quotes",
            "",
        ] {
            assert_eq!(
                String::from_utf8(rewritten(text.as_bytes(), &[])).as_deref(),
                Ok(text)
            );
        }
    }

    #[test]
    fn a_piece_without_a_string_is_not_copied() {
        let mut stream = Stream::new(Rc::new(rewrites()), Vec::new());
        stream.feed(&Bytes::from_static(b"[\"no address"));
        let piece = Bytes::from(vec![b'x'; 1000]);
        assert_eq!(stream.feed(&piece).as_ptr(), piece.as_ptr());
    }

    /// The same, made from the whole by a parser.
    fn reference(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => {
                if let Some(home) = rewrites().home(text.as_bytes(), b"http://localhost:8080") {
                    *text = String::from_utf8(home).expect("text");
                }
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(reference),
            serde_json::Value::Object(entries) => entries.values_mut().for_each(reference),
            _ => {}
        }
    }

    fn text() -> impl Strategy<Value = String> {
        let origin = prop_oneof![
            Just("http://document.example.com"),
            Just("https://share.example.com:8443"),
            Just("https://cloud.example.com"),
            Just("http://document.example.comx"),
            Just("http://document"),
            Just(""),
        ];
        let rest = prop_oneof![
            Just(""),
            Just("/a/b?c=d"),
            Just(":80/x"),
            Just("?q"),
            Just("\"\\\u{1F600}\u{1}é")
        ];
        prop_oneof![
            (origin, rest).prop_map(|(origin, rest)| format!("{origin}{rest}")),
            ".{0,20}"
        ]
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            text().prop_map(serde_json::Value::from),
            any::<i32>().prop_map(serde_json::Value::from),
            Just(serde_json::Value::Null),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::vec(("[a-z\"\\\\]{0,4}", inner), 0..4)
                    .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_in_any_pieces_is_as_a_parser_would_have_it(
            mut value in value(),
            is_escaped in any::<bool>(),
            cuts in prop::collection::vec(any::<usize>(), 0..10),
        ) {
            let mut text = value.to_string();
            if is_escaped {
                text = text.replace('/', "\\/");
            }
            reference(&mut value);
            let out: serde_json::Value = serde_json::from_slice(&rewritten(text.as_bytes(), &cuts)).expect("JSON");
            prop_assert_eq!(out, value);
        }

        #[test]
        fn any_bytes_in_any_pieces_are_the_same_as_in_one(
            bytes in prop::collection::vec(prop_oneof![
                Just(b'"'), Just(b'\\'), Just(b'/'), Just(b'u'), Just(b'0'), any::<u8>(),
            ], 0..200),
            cuts in prop::collection::vec(any::<usize>(), 0..10),
        ) {
            prop_assert_eq!(rewritten(&bytes, &cuts), bytes);
        }
    }
}
