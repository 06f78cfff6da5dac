//! Maps absolute URLs in JSON while the body streams.
//!
//! Only strings that begin with a mapped origin are changed, object keys included. So no more is
//! held back than the longest origin in its longest escaped form. A body that is not valid JSON is
//! forwarded unchanged, unless a quote is followed by a mapped origin.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::{UrlMap, ends_origin};

/// The rewriter of one response's body.
#[derive(Debug)]
pub(crate) struct JsonRewriter {
    urls: Rc<UrlMap>,
    /// The proxy's origin as the client sees it: `scheme://host`, or empty.
    public_origin: Vec<u8>,
    state: State,
    /// The start of a string that may be a mapped URL, as received.
    held: Vec<u8>,
    /// The same, unescaped and in lower case.
    unescaped: Vec<u8>,
    /// An escape sequence that is not complete.
    escape: Vec<u8>,
    has_escaped_slashes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between strings.
    Outside,
    /// At the start of a string that may be a mapped URL.
    Start,
    /// In the rest of a string.
    Inside,
    /// After a backslash in the rest of a string.
    Escaped,
}

/// Whether the start of a string, with one more character, is a mapped origin.
enum Match {
    Possible,
    Impossible,
    /// The origin ends before the character. The value is the position of its mapping.
    Complete(usize),
}

impl JsonRewriter {
    pub(crate) fn new(urls: Rc<UrlMap>, public_origin: Vec<u8>) -> Self {
        Self {
            urls,
            public_origin,
            state: State::Outside,
            held: Vec::new(),
            unescaped: Vec::new(),
            escape: Vec::new(),
            has_escaped_slashes: false,
        }
    }

    /// Rewrites the next data of the body. The result may be empty while data is held back.
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
                    // Data in which no string starts is returned without a copy.
                    if out.is_none()
                        && left.is_empty()
                        && passed.len() == data.len()
                        && !self.starts_string(passed)
                    {
                        self.advance(passed);
                        return data.clone();
                    }
                    out.get_or_insert_with(|| BytesMut::with_capacity(data.len() + 256))
                        .extend_from_slice(passed);
                    self.advance(passed);
                    rest = left;
                }
                State::Escaped => {
                    out.get_or_insert_with(|| BytesMut::with_capacity(data.len() + 256))
                        .extend_from_slice(&[byte]);
                    self.state = State::Inside;
                    rest = &rest[1..];
                }
                State::Start => {
                    let out = out.get_or_insert_with(|| BytesMut::with_capacity(data.len() + 256));
                    self.match_byte(byte, out);
                    rest = &rest[1..];
                }
            }
        }
        out.map(BytesMut::freeze).unwrap_or_default()
    }

    /// Returns the data that is still held back at the end of the body.
    pub(crate) fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held).into()
    }

    fn starts_string(&self, passed: &[u8]) -> bool {
        self.state == State::Outside && passed.ends_with(b"\"")
    }

    fn advance(&mut self, passed: &[u8]) {
        self.state = match (self.state, passed.last()) {
            (State::Outside, Some(b'"')) => State::Start,
            (State::Inside, Some(b'"')) => State::Outside,
            (State::Inside, Some(b'\\')) => State::Escaped,
            (state, _) => state,
        };
    }

    /// Matches one more byte of the start of a string.
    fn match_byte(&mut self, byte: u8, out: &mut BytesMut) {
        if self.escape.is_empty() && byte == b'"' {
            match self.matched(None) {
                Match::Complete(mapping) => self.replace(mapping, out),
                Match::Possible | Match::Impossible => self.pass_through(out),
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
            match unescape(&self.escape) {
                Unescaped::Unfinished => return,
                Unescaped::Character(character) => {
                    self.has_escaped_slashes |= character == b'/';
                    character
                }
                // No origin contains it. `pass_through` writes the whole escape sequence, so that
                // its backslash does not escape what follows.
                Unescaped::Other => return self.pass_through(out),
            }
        };
        let length = self.escape.len().max(1);
        self.escape.clear();
        match self.matched(Some(character)) {
            Match::Possible => self.unescaped.push(character.to_ascii_lowercase()),
            Match::Impossible => self.pass_through(out),
            Match::Complete(mapping) => {
                let next = self.held.split_off(self.held.len() - length);
                self.replace(mapping, out);
                out.extend_from_slice(&next);
            }
        }
    }

    fn matched(&self, next: Option<u8>) -> Match {
        let mappings = &self.urls.mappings;
        if ends_origin(next)
            && let Some(mapping) = mappings
                .iter()
                .position(|mapping| mapping.from.as_bytes() == self.unescaped)
        {
            return Match::Complete(mapping);
        }
        let Some(next) = next else {
            return Match::Impossible;
        };
        let continues = |from: &str| {
            from.as_bytes().starts_with(&self.unescaped)
                && from.as_bytes().get(self.unescaped.len()) == Some(&next.to_ascii_lowercase())
        };
        if mappings.iter().any(|mapping| continues(&mapping.from)) {
            Match::Possible
        } else {
            Match::Impossible
        }
    }

    fn replace(&mut self, mapping: usize, out: &mut BytesMut) {
        self.urls.mapped_by(mapping);
        let to = self.urls.mappings[mapping].to.as_bytes();
        for &byte in self.public_origin.iter().chain(to) {
            if byte == b'/' && self.has_escaped_slashes {
                out.extend_from_slice(b"\\/");
            } else {
                out.extend_from_slice(&[byte]);
            }
        }
        self.held.clear();
        self.end_match();
    }

    /// The string is not a mapped URL: writes what was held back.
    fn pass_through(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.held);
        self.held.clear();
        self.end_match();
    }

    fn end_match(&mut self) {
        self.unescaped.clear();
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

/// Decodes an escape sequence (RFC 8259 §7) of a character that an origin can contain.
fn unescape(escape: &[u8]) -> Unescaped {
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

    use super::{super::tests::url_map, *};

    fn rewritten(text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut rewriter = JsonRewriter::new(Rc::new(url_map()), b"http://localhost:8080".to_vec());
        let mut out = Vec::new();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        for piece in cuts.windows(2) {
            out.extend(rewriter.feed(&Bytes::copy_from_slice(&text[piece[0]..piece[1]])));
        }
        out.extend(rewriter.finish());
        out
    }

    #[test]
    fn urls_in_every_spelling_are_mapped() {
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
    fn other_strings_are_unchanged() {
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
    fn data_in_which_no_string_starts_is_not_copied() {
        let mut rewriter = JsonRewriter::new(Rc::new(url_map()), Vec::new());
        rewriter.feed(&Bytes::from_static(b"[\"no address"));
        let piece = Bytes::from(vec![b'x'; 1000]);
        assert_eq!(rewriter.feed(&piece).as_ptr(), piece.as_ptr());
    }

    /// The expected result, computed with a JSON parser.
    fn reference(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => {
                if let Some(mapped) = url_map().map(text.as_bytes(), b"http://localhost:8080") {
                    *text = String::from_utf8(mapped).expect("text");
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
        fn json_in_any_pieces_is_rewritten_as_by_a_parser(
            mut value in value(),
            is_escaped in any::<bool>(),
            cuts in prop::collection::vec(any::<usize>(), 0..10),
        ) {
            let mut text = value.to_string();
            if is_escaped {
                text = text.replace('/', "\\/");
            }
            reference(&mut value);
            let out = rewritten(text.as_bytes(), &cuts);
            let out: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
            prop_assert_eq!(out, value);
        }

        #[test]
        fn bytes_without_a_mapped_origin_are_unchanged(
            bytes in prop::collection::vec(prop_oneof![
                Just(b'"'), Just(b'\\'), Just(b'/'), Just(b'u'), Just(b'0'), any::<u8>(),
            ], 0..200),
            cuts in prop::collection::vec(any::<usize>(), 0..10),
        ) {
            prop_assert_eq!(rewritten(&bytes, &cuts), bytes);
        }
    }
}
