//! Hosts, and fields beside them.

use super::{Good, SMUGGLED};

pub(super) fn hosts(all: &mut Vec<Good>) {
    let hosts: &[&str] = &[
        "localhost",
        "LOCALHOST",
        "localhost:80",
        "localhost:",
        "localhost:x",
        "localhost:99999",
        "localhost:-1",
        "localhost:443",
        "localhost:080",
        "localhost:80:80",
        "localhost.",
        "127.0.0.1",
        "[::1]",
        "[::1]:80",
        "[::1",
        "::1",
        "[]",
        "",
        " ",
        "a b",
        "a,b",
        "localhost, evil",
        "a/b",
        "/",
        "a/b@c",
        "u@localhost",
        "localhost@evil",
        "a\\b",
        "a?b",
        "a#b",
        "a\tb",
        "a\0b",
        "a\x0bb",
        "a\rb",
        "<a>",
        "\"localhost\"",
        "localhost%00",
        "%6c",
        "a%2fb",
        "ä",
        "\u{ff4c}ocalhost",
        "localhost\u{a0}",
        "http://localhost",
        "//localhost",
        "localhost/",
        "*",
        ".",
        "..",
        "-",
        "_",
        "a_b",
        "a..b",
        ".a",
        "evil",
        "localhost evil",
        "localhost\r\n evil",
        "localhost;x",
        "localhost&x",
        "'",
        "(a)",
        "{a}",
        "$a",
        "|a",
        "`a`",
        "0",
        "0x7f.1",
        "127.1",
        "2130706433",
        "[::ffff:127.0.0.1]",
        "[fe80::1%25lo]",
        "[v1.x]",
    ];
    for host in hosts {
        all.push(Good::host(format!("Host: {host}\r\n")));
        all.push(Good {
            line: b"GET /path HTTP/1.0\r\n".to_vec(),
            ..Good::host(format!("Host: {host}\r\n"))
        });
        all.push(Good::host(format!("Host: {host}\r\nHost: localhost\r\n")));
        all.push(Good::host(format!("Host: localhost\r\nHost: {host}\r\n")));
        for target in [
            "http://localhost",
            "http://localhost:80",
            "https://localhost:443",
        ] {
            all.push(Good {
                line: format!("GET {target}/path HTTP/1.1\r\n").into_bytes(),
                ..Good::host(format!("Host: {host}\r\n"))
            });
        }
    }
    for spelling in [
        "",
        "Host : localhost\r\n",
        "Host\t: localhost\r\n",
        " Host: localhost\r\n",
        "Host:localhost\r\n",
        "HOST: localhost\r\n",
        "H\0ost: localhost\r\n",
        "Host;: localhost\r\n",
        "X-Host: localhost\r\n",
        "Host\r\n",
        "Host: localhost\n",
        "Host=localhost\r\n",
        "Host: localhost\r\nHost : evil\r\n",
        "Host : evil\r\nHost: localhost\r\n",
        "Host: localhost\r\n Host: evil\r\n",
    ] {
        all.push(Good::host(spelling));
        all.push(Good {
            line: b"GET /path HTTP/1.0\r\n".to_vec(),
            ..Good::host(spelling)
        });
    }
}

pub(super) fn others(all: &mut Vec<Good>) {
    let fields: &[&str] = &[
        "Connection: close",
        "Connection: keep-alive",
        "Connection: Host",
        "Connection: Content-Length",
        "Connection: x, y, z",
        "Connection: \"x\"",
        "Connection: ,",
        "Connection:",
        "Expect: 100-continue",
        "Expect: foo",
        "Expect:",
        "Expect: ,",
        "Expect: 100-Continue",
        "Expect: 100-continue, 100-continue",
        "Expect: 100-continue\r\nExpect: 100-continue",
        "Upgrade: websocket",
        "Upgrade: h2c",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        "TE: trailers",
        "TE: chunked",
        "TE: x;q=0",
        "Trailer: X",
        "Trailer: Content-Length",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Max-Forwards: 0",
        "Range: bytes=0-",
        "X: y\0",
        "X\u{e4}: y",
        "X Y: z",
        "X: \u{e4}",
        "",
        ":",
        ": y",
        "X",
        "X;y",
        "=",
        "{}: x",
        "(X): y",
        "X: y\r\n z",
        "X: y\r\n\tz",
        "X:\r\n y",
        "\tX: y",
        " X: y",
        "X\r\n: y",
    ];
    for field in fields {
        all.push(Good::with(format!("{field}\r\n")));
        all.push(Good::post(
            format!("{field}\r\nContent-Length: {}\r\n", SMUGGLED.len()),
            SMUGGLED,
        ));
        all.push(Good {
            line: b"GET /path HTTP/1.0\r\n".to_vec(),
            ..Good::with(format!("{field}\r\n"))
        });
    }
}
