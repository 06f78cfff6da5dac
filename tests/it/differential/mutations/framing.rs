//! Where lines, bodies and chunks end, or seem to.

use super::{Good, SMUGGLED};

/// Where lines end, good and bad.
const ENDINGS: &[&str] = &[
    "\n",
    "\r",
    "\r\r\n",
    "\n\r",
    "\r\n\n",
    "\n\r\n",
    "",
    "\x0b\r\n",
    " \r\n",
    "\t\r\n",
    "\0\r\n",
    "\u{85}\r\n",
    "\\r\\n",
];

const LENGTHS: &[&str] = &[
    "",
    " ",
    "0",
    "00",
    "05",
    "44",
    " 44",
    "44 ",
    "\t44\t",
    "044",
    "+44",
    "-44",
    "44,44",
    "44, 44",
    "44,0",
    "44;q=1",
    "44 44",
    "0x3c",
    "3c",
    "4 4",
    "44\x0b",
    "\x0b44",
    "44\0",
    "\"44\"",
    "44.0",
    "4e1",
    "44\r",
    "\r\n 44",
    "44\r\n 0",
    "４４",
    "9999999999999999999",
    "18446744073709551660",
    "99999999999999999999999999999999999",
    "-0",
    "+0",
    "0,0",
    "NaN",
    "null",
    "44;",
    "44_",
    "4_4",
    "۴۴",
    "44-",
    "٤٤",
];

const CODINGS: &[&str] = &[
    "chunked",
    "Chunked",
    "CHUNKED",
    " chunked",
    "chunked ",
    "\tchunked",
    "chunked\t",
    "\x0bchunked",
    "chunked\x0b",
    "chunked\0",
    "\0chunked",
    "xchunked",
    "chunkedx",
    "chunk",
    "x",
    "",
    " ",
    "identity",
    "gzip",
    "gzip, chunked",
    "chunked, gzip",
    "chunked,chunked",
    "chunked, identity",
    "identity, chunked",
    "chunked;q=1",
    "chunked; x=y",
    ",chunked",
    "chunked,",
    " , chunked",
    "\"chunked\"",
    "'chunked'",
    "chunked\r\n ",
    "\r\n chunked",
    "\r\n\tchunked",
    "x\r\n chunked",
    "chu\u{212a}ed",
    "chunKed\u{a0}",
    "\u{a0}chunked",
    "c\\hunked",
    "[chunked]",
    "chunked chunked",
    "cow",
    "chunked\r",
    "chunked\u{85}",
    "trailers",
    "deflate",
    "compress",
];

/// Spellings of a field's name before its value.
fn spellings(name: &str) -> Vec<String> {
    let (first, second) = name.split_once('-').unwrap();
    let mut all: Vec<String> = [
        " :", "\t:", "\0:", "\x0b:", "\r\n :", "\r:", ": :", "::", ";:", " ", "", "\x7f:",
        "\u{a0}:", "\":", "=:",
    ]
    .iter()
    .map(|tail| format!("{name}{tail} "))
    .collect();
    all.extend(
        [
            " ", "\t", "\0", "\x0b", "X: y\n", "X: y\r", "X:\n", "\"", ":", ",", "(", "\u{feff}",
        ]
        .map(|begin| format!("{begin}{name}: ")),
    );
    all.extend(
        ["_", " ", "", "--", "\u{2010}", ".", "-\0", "\r\n-"]
            .map(|middle| format!("{first}{middle}{second}: ")),
    );
    all.extend([
        format!("{}:", name.to_uppercase()),
        format!("{}:\t", name.to_lowercase()),
        format!("X-{name}: "),
    ]);
    all
}

pub(super) fn framing(all: &mut Vec<Good>) {
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let length = format!("Content-Length: {}\r\n", SMUGGLED.len());
    for value in LENGTHS {
        let value = value.replace("44", &SMUGGLED.len().to_string());
        let line = format!("Content-Length: {value}\r\n");
        all.push(Good::post(&line, SMUGGLED));
        all.push(Good {
            line: b"GET /path HTTP/1.1\r\n".to_vec(),
            ..Good::post(&line, SMUGGLED)
        });
        all.push(Good {
            line: b"POST /path HTTP/1.0\r\n".to_vec(),
            ..Good::post(&line, SMUGGLED)
        });
        all.push(Good::post(format!("{line}{length}"), SMUGGLED));
        all.push(Good::post(format!("{length}{line}"), SMUGGLED));
        all.push(Good::post(
            format!("{line}Transfer-Encoding: chunked\r\n"),
            &chunked,
        ));
    }
    for value in CODINGS {
        let line = format!("Transfer-Encoding: {value}\r\n");
        for fields in [
            line.clone(),
            format!("{length}{line}"),
            format!("{line}{length}"),
            format!("{line}Transfer-Encoding: chunked\r\n"),
            format!("Transfer-Encoding: chunked\r\n{line}"),
            format!("Connection: Transfer-Encoding\r\n{line}"),
        ] {
            all.push(Good::post(
                &fields,
                if value.eq_ignore_ascii_case("chunked") {
                    "0\r\n\r\n"
                } else {
                    &chunked
                },
            ));
        }
        all.push(Good {
            line: b"POST /path HTTP/1.0\r\n".to_vec(),
            ..Good::post(&line, &chunked)
        });
        all.push(Good {
            line: b"GET /path HTTP/1.1\r\n".to_vec(),
            ..Good::post(&line, &chunked)
        });
    }
    for spelling in spellings("Transfer-Encoding") {
        let line = format!("{spelling}chunked\r\n");
        all.push(Good::post(&line, "0\r\n\r\n"));
        all.push(Good::post(format!("{length}{line}"), SMUGGLED));
        all.push(Good::post(format!("{line}{length}"), SMUGGLED));
    }
    for spelling in spellings("Content-Length") {
        let line = format!("{spelling}{}\r\n", SMUGGLED.len());
        all.push(Good::post(&line, SMUGGLED));
        all.push(Good::post(
            format!("Transfer-Encoding: chunked\r\n{line}"),
            "0\r\n\r\n",
        ));
        all.push(Good::post(format!("Content-Length: 0\r\n{line}"), ""));
    }
}

pub(super) fn lines(all: &mut Vec<Good>) {
    for ending in ENDINGS {
        let end = |line: &str| format!("{line}{ending}").into_bytes();
        all.push(Good {
            before: end(""),
            ..Good::get()
        });
        all.push(Good {
            line: end("GET /path HTTP/1.1"),
            ..Good::get()
        });
        all.push(Good {
            host: end("Host: localhost"),
            ..Good::get()
        });
        all.push(Good::with(end("X: y")));
        all.push(Good::with(end("X:")));
        all.push(Good::with(
            [&end("X: y")[..], b"Transfer-Encoding: chunked\r\n"].concat(),
        ));
        all.push(Good::with([b"X: y", &end("")[..], b" folded\r\n"].concat()));
        all.push(Good::post(
            end(&format!("Content-Length: {}", SMUGGLED.len())),
            SMUGGLED,
        ));
        all.push(Good::post(end("Transfer-Encoding: chunked"), "0\r\n\r\n"));
        // The empty line itself: what follows is the real one.
        all.push(Good::with(
            [b"X: y\r\n", &end("")[..], SMUGGLED.as_bytes()].concat(),
        ));
    }
    for before in [
        "\r\n\r\n",
        "\r\n\r\n\r\n",
        "\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n",
        "\n",
        "\n\n\n",
        "\r\n\n\r\n",
        "\r\r\n",
        "\r\n ",
        "\r\n\r",
        " ",
        "\t",
        "\0",
        "x",
        "\u{feff}",
        " \r\n",
        "X: y\r\n",
        "HTTP/1.1 200 OK\r\n",
    ] {
        all.push(Good {
            before: before.into(),
            ..Good::get()
        });
    }
}

pub(super) fn chunks(all: &mut Vec<Good>) {
    let mut chunked = |body: String| all.push(Good::post("Transfer-Encoding: chunked\r\n", body));
    for size in [
        "3",
        "03",
        "0000000000000003",
        "00000000000000003",
        "A",
        "0x3",
        "0X3",
        "x3",
        "+3",
        "-3",
        " 3",
        "3 ",
        "3\t",
        "\t3",
        "3 3",
        "3,",
        "3;",
        "3;a",
        "3;a=b",
        "3;a=\"b\"",
        "3;a=\"b\r\"",
        "3;\0",
        "3; a",
        "3 ;a",
        "3  ",
        "3 \t ",
        "3 \t;a=b",
        "3  ; a = \"b\"",
        "3 a",
        "3\t3",
        "3 \x01",
        "3; \x1b",
        "3 \r",
        "3;a\n",
        "3;;",
        "3#",
        "g",
        "",
        " ",
        "3\r",
        "3\x0b",
        "\x0b3",
        "3h",
        "ffffffff",
        "100000003",
        "10000000000000003",
        "fffffffffffffffff3",
        "8000000000000003",
        "3.0",
        "3\0",
        "3\u{a0}",
        "３",
        "3\n",
        "3=",
        "-0",
        "3;\u{85}a",
        "3;a\x7f",
        "3'",
    ] {
        let data = if size == "A" { "0123456789" } else { "abc" };
        chunked(format!("{size}\r\n{data}\r\n0\r\n\r\n"));
        chunked(format!("{size}\n{data}\r\n0\r\n\r\n"));
        chunked(format!("3\r\nabc\r\n{}\r\n\r\n", size.replace('3', "0")));
    }
    for ending in ENDINGS {
        chunked(format!("3{ending}abc\r\n0\r\n\r\n"));
        chunked(format!("3\r\nabc{ending}0\r\n\r\n"));
        chunked(format!("3\r\nabc\r\n0{ending}\r\n"));
        chunked(format!("3\r\nabc\r\n0\r\nX: y{ending}\r\n"));
        chunked(format!("3\r\nabc\r\n0\r\nX: y\r\n{ending}"));
        chunked(format!("3;a{ending}abc\r\n0\r\n\r\n"));
    }
    for data in [
        "ab", "abcd", "abc ", "abc\0", "abc\r", "abc\n", "\r\n\r", "abc\r\n",
    ] {
        chunked(format!("3\r\n{data}\r\n0\r\n\r\n"));
    }
    for trailer in [
        "X : y",
        " X: y",
        "X",
        ": y",
        "X: \0",
        "X: y\r\n folded",
        "X\0: y",
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Host: evil",
        "Authorization: x",
    ] {
        chunked(format!("3\r\nabc\r\n0\r\n{trailer}\r\n\r\n"));
    }
}
