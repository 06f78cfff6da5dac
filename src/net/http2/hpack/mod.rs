//! Reads header blocks (HPACK, RFC 7541).

mod huffman;
mod table;

pub(super) use self::table::ENTRY_OVERHEAD;
use self::table::Table;

/// A header block that cannot be decoded: those after it cannot either, since the state of the
/// compression is lost. RFC 9113 §4.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CompressionError;

/// A field of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    /// It is an entry of the dynamic table, which an earlier field defined.
    pub(super) is_dynamic: bool,
    /// The position of its representation in the block.
    pub(super) position: usize,
}

/// The decoder of one direction of a connection.
#[derive(Debug)]
pub(super) struct Decoder {
    table: Table,
    /// Name and value of the current literal.
    literal: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            table: Table::new(),
            literal: Vec::new(),
        }
    }

    /// Calls `visit` for each field of a complete block.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        mut visit: impl FnMut(Field<'_>),
    ) -> Result<(), CompressionError> {
        let mut rest = block;
        let mut is_beginning = true;
        while let Some(&first) = rest.first() {
            let position = block.len() - rest.len();
            match first {
                0x80.. => {
                    let index = integer(&mut rest, 7)?;
                    let (name, value) = self.table.get(index).ok_or(CompressionError)?;
                    visit(Field {
                        name,
                        value,
                        is_dynamic: table::is_dynamic(index),
                        position,
                    });
                }
                0x20..0x40 => {
                    // RFC 7541 §4.2: only at the beginning of a block.
                    let size = integer(&mut rest, 5)?;
                    if !is_beginning || size > table::MAX_SIZE {
                        return Err(CompressionError);
                    }
                    self.table.resize(size);
                    continue;
                }
                0x00..0x20 | 0x40..0x80 => {
                    let is_indexed = first >= 0x40;
                    let name = self.literal(&mut rest, if is_indexed { 6 } else { 4 })?;
                    let (name, value) = self.literal.split_at(name);
                    visit(Field {
                        name,
                        value,
                        is_dynamic: false,
                        position,
                    });
                    if is_indexed {
                        self.table.insert(name, value);
                    }
                }
            }
            is_beginning = false;
        }
        if self.literal.capacity() > table::MAX_SIZE {
            self.literal = Vec::new();
        }
        Ok(())
    }

    /// Reads a literal field into `self.literal`. Returns the length of its name.
    fn literal(&mut self, rest: &mut &[u8], prefix: u32) -> Result<usize, CompressionError> {
        self.literal.clear();
        match integer(rest, prefix)? {
            0 => string(rest, &mut self.literal)?,
            index => {
                let (name, _) = self.table.get(index).ok_or(CompressionError)?;
                self.literal.extend_from_slice(name);
            }
        }
        let name = self.literal.len();
        string(rest, &mut self.literal)?;
        Ok(name)
    }
}

/// Reads an integer whose first byte has a prefix of `prefix` bits, RFC 7541 §5.1. No length or
/// index needs more than the 28 bits of four bytes.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, CompressionError> {
    let mask = (1 << prefix) - 1;
    let mut number = usize::from(byte(rest)?) & mask;
    if number < mask {
        return Ok(number);
    }
    for shift in [0, 7, 14, 21] {
        let next = byte(rest)?;
        number += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(CompressionError)
}

/// Appends a string, RFC 7541 §5.2.
fn string(rest: &mut &[u8], decoded: &mut Vec<u8>) -> Result<(), CompressionError> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (string, behind) = rest.split_at_checked(length).ok_or(CompressionError)?;
    *rest = behind;
    if is_huffman {
        return huffman::decode(string, decoded);
    }
    decoded.extend_from_slice(string);
    Ok(())
}

fn byte(rest: &mut &[u8]) -> Result<u8, CompressionError> {
    let (first, behind) = rest.split_first().ok_or(CompressionError)?;
    *rest = behind;
    Ok(*first)
}

/// Appends a field that no table keeps, so that its meaning does not depend on any block before.
pub(super) fn encode(name: &[u8], value: &[u8], block: &mut Vec<u8>) {
    block.push(0);
    for string in [name, value] {
        let mut length = string.len();
        if length < 0x7f {
            block.push(length as u8);
        } else {
            block.push(0x7f);
            length -= 0x7f;
            while length >= 0x80 {
                block.push(length as u8 | 0x80);
                length >>= 7;
            }
            block.push(length as u8);
        }
        block.extend_from_slice(string);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::net::http2) fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex
            .chars()
            .filter_map(|digit| Some(digit.to_digit(16)? as u8))
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, CompressionError> {
        let mut fields = Vec::new();
        decoder.decode(block, |field| {
            let text = [field.name, b"=", field.value].concat();
            fields.push(String::from_utf8(text).unwrap());
        })?;
        Ok(fields)
    }

    #[test]
    fn the_sequences_of_rfc_7541() {
        let requests: [(&str, &[&str]); 3] = [
            (
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                &[
                    ":method=GET",
                    ":scheme=http",
                    ":path=/",
                    ":authority=www.example.com",
                ],
            ),
            (
                "828684be5886a8eb10649cbf",
                &[
                    ":method=GET",
                    ":scheme=http",
                    ":path=/",
                    ":authority=www.example.com",
                    "cache-control=no-cache",
                ],
            ),
            (
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
                &[
                    ":method=GET",
                    ":scheme=https",
                    ":path=/index.html",
                    ":authority=www.example.com",
                    "custom-key=custom-value",
                ],
            ),
        ];
        let mut decoder = Decoder::new();
        for (block, expected) in requests {
            assert_eq!(fields(&mut decoder, &bytes(block)).unwrap(), expected);
        }
        // Appendix C.5: a table of 256 bytes, in which entries are evicted.
        let mut decoder = Decoder::new();
        decoder.table.resize(256);
        let first = "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a\
                     323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d";
        let second = "4803333037c1c0bf";
        assert_eq!(fields(&mut decoder, &bytes(first)).unwrap().len(), 4);
        assert_eq!(
            fields(&mut decoder, &bytes(second)).unwrap(),
            [
                ":status=307",
                "cache-control=private",
                "date=Mon, 21 Oct 2013 20:13:21 GMT",
                "location=https://www.example.com"
            ]
        );
        assert!(
            decoder.table.get(66).is_none(),
            "the first status is evicted"
        );
    }

    #[test]
    fn blocks_that_cannot_be_decoded() {
        for block in [
            "80",           // Index 0.
            "be",           // An entry that does not exist.
            "ffffffff7f",   // An index of more than 28 bits.
            "ff",           // A number without an end.
            "00",           // A literal without a name.
            "0001",         // A name that is cut short.
            "000161",       // A field without a value.
            "0001610461",   // A value that is cut short.
            "000161820000", // Huffman code with wrong padding.
            "7e0161",       // The name of an entry that does not exist.
            "3fe21f",       // A table larger than 4096.
            "823f00",       // A table that is resized within the block.
        ] {
            assert_eq!(
                fields(&mut Decoder::new(), &bytes(block)),
                Err(CompressionError),
                "{block}"
            );
        }
        for block in ["", "20", "3fe11f", "2020", "0000 00"] {
            assert!(
                fields(&mut Decoder::new(), &bytes(block)).is_ok(),
                "{block}"
            );
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for length in [0, 1, 126, 127, 128, 254, 255, 256, 16_383, 16_384, 70_000] {
            let (name, value) = (vec![b'n'; length + 1], vec![b'v'; length]);
            let mut block = Vec::new();
            encode(&name, &value, &mut block);
            let mut seen = 0;
            let result = Decoder::new().decode(&block, |field| {
                assert_eq!((field.name, field.value), (&name[..], &value[..]));
                seen += 1;
            });
            assert_eq!((result, seen), (Ok(()), 1), "{length}");
        }
    }
}
