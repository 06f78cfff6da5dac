//! Nearly valid requests: one valid request, changed in one or two places by every entry of a
//! table.

mod fields;
mod first_lines;
mod framing;

/// The mark in every request, which identifies it.
pub(crate) const MARK: &str = "X-Case: ";

/// The mark in a request inside the body of another request.
pub(crate) const MARK_WITHIN: &str = "X-Within: ";

/// A parser reads this as a request if it assumes an earlier end of the body.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\nX-Within: NNNN\r\n\r\n";

/// One request in parts.
#[derive(Clone)]
struct Good {
    before: Vec<u8>,
    line: Vec<u8>,
    host: Vec<u8>,
    fields: Vec<u8>,
    body: Vec<u8>,
}

impl Good {
    fn get() -> Self {
        Self {
            before: Vec::new(),
            line: b"GET /path HTTP/1.1\r\n".to_vec(),
            host: b"Host: localhost\r\n".to_vec(),
            fields: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Returns the request with these fields and this body.
    fn post(fields: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Self {
        let line = b"POST /path HTTP/1.1\r\n".to_vec();
        Self {
            line,
            fields: fields.as_ref().to_vec(),
            body: body.as_ref().to_vec(),
            ..Self::get()
        }
    }

    fn line(line: impl AsRef<[u8]>) -> Self {
        Self {
            line: [line.as_ref(), b"\r\n"].concat(),
            ..Self::get()
        }
    }

    fn with(fields: impl AsRef<[u8]>) -> Self {
        Self {
            fields: fields.as_ref().to_vec(),
            ..Self::get()
        }
    }

    fn host(host: impl AsRef<[u8]>) -> Self {
        Self {
            host: host.as_ref().to_vec(),
            ..Self::get()
        }
    }

    fn bytes(&self, number: usize) -> Vec<u8> {
        let mark = format!("{MARK}{number}\r\n");
        let mut all = [
            &self.before,
            &self.line,
            &self.host,
            mark.as_bytes(),
            &self.fields,
            b"\r\n",
            &self.body,
        ]
        .concat();
        if let Some(at) = all.windows(4).position(|window| window == b"NNNN") {
            all[at..at + 4].copy_from_slice(format!("{number:04}").as_bytes());
        }
        all
    }
}

/// All requests. The first one is valid, as are those with correct chunk endings.
pub(crate) fn all() -> Vec<Vec<u8>> {
    let mut all = vec![Good::get()];
    framing::framing(&mut all);
    framing::lines(&mut all);
    framing::chunks(&mut all);
    first_lines::first_lines(&mut all);
    fields::hosts(&mut all);
    fields::others(&mut all);
    every_byte(&mut all);
    all.iter()
        .enumerate()
        .map(|(number, good)| good.bytes(number))
        .collect()
}

/// Every byte at each position where a byte is significant.
fn every_byte(all: &mut Vec<Good>) {
    for byte in 0..=u8::MAX {
        all.push(Good::line([b"GET /a", &[byte][..], b"b HTTP/1.1"].concat()));
        all.push(Good::line(
            [b"GET /a?b", &[byte][..], b"c HTTP/1.1"].concat(),
        ));
        all.push(Good::line([b"G", &[byte][..], b"T / HTTP/1.1"].concat()));
        all.push(Good::with([b"X", &[byte][..], b"Y: z\r\n"].concat()));
        all.push(Good::with([b"X", &[byte][..], b": z\r\n"].concat()));
        all.push(Good::with([b"X: y", &[byte][..], b"z\r\n"].concat()));
    }
}
