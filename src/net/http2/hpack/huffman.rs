//! The Huffman code of HPACK, RFC 7541 §5.2 and Appendix B.

use super::CompressionError;

/// The lengths of the codes of all bytes, and of the end of a string (EOS). The code is canonical:
/// its lengths define it.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const EOS: u16 = 256;
const LONGEST: usize = 30;

/// Codes of up to this many bits are looked up, longer ones searched by length.
const SHORT: usize = 8;

/// The code, by length. Codes of one length are consecutive numbers, in the order of their symbols.
struct Code {
    /// Symbols by code.
    symbols: [u16; 257],
    /// The position in `symbols` of the first code of each length.
    offsets: [u16; LONGEST + 1],
    /// The first code of each length.
    first: [u32; LONGEST + 1],
    /// The first number of 32 bits that does not begin with a code of this length or a shorter one.
    limits: [u64; LONGEST + 1],
    /// Symbol and length of the code that a byte begins with; length 0: a longer code.
    short: [(u8, u8); 1 << SHORT],
}

static CODE: Code = Code::new();

impl Code {
    const fn new() -> Self {
        let mut code = Self {
            symbols: [0; 257],
            offsets: [0; LONGEST + 1],
            first: [0; LONGEST + 1],
            limits: [0; LONGEST + 1],
            short: [(0, 0); 1 << SHORT],
        };
        let (mut next, mut known, mut length) = (0_u32, 0, 1);
        while length <= LONGEST {
            code.offsets[length] = known as u16;
            code.first[length] = next;
            let mut symbol = 0;
            while symbol < LENGTHS.len() {
                if LENGTHS[symbol] as usize == length {
                    code.symbols[known] = symbol as u16;
                    known += 1;
                    if length <= SHORT {
                        let begin = (next as usize) << (SHORT - length);
                        let mut padded = begin;
                        while padded < begin + (1 << (SHORT - length)) {
                            code.short[padded] = (symbol as u8, length as u8);
                            padded += 1;
                        }
                    }
                    next += 1;
                }
                symbol += 1;
            }
            code.limits[length] = (next as u64) << (32 - length);
            next <<= 1;
            length += 1;
        }
        code
    }

    /// The symbol that `bits` begin with, and the length of its code.
    fn symbol(&self, bits: u32) -> (u16, usize) {
        let (symbol, length) = self.short[(bits >> (32 - SHORT)) as usize];
        if length > 0 {
            return (symbol.into(), length.into());
        }
        let length = (SHORT + 1..LONGEST)
            .find(|length| u64::from(bits) < self.limits[*length])
            .unwrap_or(LONGEST);
        let index = (bits >> (32 - length)) - self.first[length] + u32::from(self.offsets[length]);
        (self.symbols[index as usize], length)
    }
}

/// Appends the bytes that a string encodes.
///
/// # Errors
/// An end of the string within it, or padding that is longer than seven bits or not all ones.
pub(super) fn decode(encoded: &[u8], decoded: &mut Vec<u8>) -> Result<(), CompressionError> {
    let mut encoded = encoded.iter();
    let (mut bits, mut known) = (0_u64, 0);
    loop {
        while known <= 56
            && let Some(byte) = encoded.next()
        {
            bits |= u64::from(*byte) << (56 - known);
            known += 8;
        }
        // Behind the end as in the padding: ones.
        let window = (bits | u64::MAX.checked_shr(known as u32).unwrap_or(0)) >> 32;
        let (symbol, length) = CODE.symbol(window as u32);
        if length > known {
            let is_padding = known < 8 && window == u64::from(u32::MAX);
            return is_padding.then_some(()).ok_or(CompressionError);
        }
        if symbol == EOS {
            return Err(CompressionError);
        }
        decoded.push(symbol as u8);
        bits <<= length;
        known -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(hex: &str) -> Result<String, CompressionError> {
        let mut decoded = Vec::new();
        decode(&super::super::tests::bytes(hex), &mut decoded)?;
        Ok(String::from_utf8(decoded).unwrap())
    }

    #[test]
    fn the_examples_of_rfc_7541() {
        for (hex, expected) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            ("", ""),
        ] {
            assert_eq!(decoded(hex), Ok(expected.to_owned()));
        }
    }

    #[test]
    fn every_byte_and_only_short_padding_of_ones() {
        // Each code, padded with ones.
        for (symbol, length) in LENGTHS.into_iter().enumerate() {
            let length = usize::from(length);
            let index = (0..257)
                .find(|index| usize::from(CODE.symbols[*index]) == symbol)
                .unwrap();
            let code = CODE.first[length] + index as u32 - u32::from(CODE.offsets[length]);
            let padded = (u64::from(code) << (40 - length)) | ((1 << (40 - length)) - 1);
            let bytes = &padded.to_be_bytes()[3..][..length.div_ceil(8)];
            let mut decoded = Vec::new();
            let result = decode(bytes, &mut decoded);
            if symbol == usize::from(EOS) {
                assert_eq!(result, Err(CompressionError));
            } else {
                assert_eq!((result, decoded), (Ok(()), vec![symbol as u8]));
            }
        }
        for wrong in ["ff", "a8eb10649cbfff", "a8eb10649cb0", "00", "fffffffc"] {
            assert_eq!(decoded(wrong), Err(CompressionError), "{wrong}");
        }
    }
}
