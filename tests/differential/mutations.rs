//! Requests that are nearly good: one good request, changed in one or two places by every entry of a table.

/// What stands in every request, so that it is known again.
pub(crate) const MARK: &str = "X-Case: ";

/// What stands in a request that comes within another.
pub(crate) const MARK_WITHIN: &str = "X-Within: ";

/// Read as a request by whoever takes the end of a body to be earlier than it is.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\nX-Within: NNNN\r\n\r\n";

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
    let mut all: Vec<String> =
        [" :", "\t:", "\0:", "\x0b:", "\r\n :", "\r:", ": :", "::", ";:", " ", "", "\x7f:", "\u{a0}:", "\":", "=:"]
            .iter()
            .map(|tail| format!("{name}{tail} "))
            .collect();
    all.extend(
        [" ", "\t", "\0", "\x0b", "X: y\n", "X: y\r", "X:\n", "\"", ":", ",", "(", "\u{feff}"]
            .map(|begin| format!("{begin}{name}: ")),
    );
    all.extend(
        ["_", " ", "", "--", "\u{2010}", ".", "-\0", "\r\n-"].map(|middle| format!("{first}{middle}{second}: ")),
    );
    all.extend([format!("{}:", name.to_uppercase()), format!("{}:\t", name.to_lowercase()), format!("X-{name}: ")]);
    all
}

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

    /// With these fields and this body.
    fn post(fields: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Self {
        let line = b"POST /path HTTP/1.1\r\n".to_vec();
        Self { line, fields: fields.as_ref().to_vec(), body: body.as_ref().to_vec(), ..Self::get() }
    }

    fn line(line: impl AsRef<[u8]>) -> Self {
        Self { line: [line.as_ref(), b"\r\n"].concat(), ..Self::get() }
    }

    fn with(fields: impl AsRef<[u8]>) -> Self {
        Self { fields: fields.as_ref().to_vec(), ..Self::get() }
    }

    fn host(host: impl AsRef<[u8]>) -> Self {
        Self { host: host.as_ref().to_vec(), ..Self::get() }
    }

    fn bytes(&self, number: usize) -> Vec<u8> {
        let mark = format!("{MARK}{number}\r\n");
        let mut all =
            [&self.before, &self.line, &self.host, mark.as_bytes(), &self.fields, b"\r\n", &self.body].concat();
        if let Some(at) = all.windows(4).position(|window| window == b"NNNN") {
            all[at..at + 4].copy_from_slice(format!("{number:04}").as_bytes());
        }
        all
    }
}

/// All of them. The first is good, and so are those that end chunks well.
pub(crate) fn all() -> Vec<Vec<u8>> {
    let mut all = vec![Good::get()];
    framing(&mut all);
    lines(&mut all);
    chunks(&mut all);
    first_lines(&mut all);
    hosts(&mut all);
    every_byte(&mut all);
    all.iter().enumerate().map(|(number, good)| good.bytes(number)).collect()
}

fn framing(all: &mut Vec<Good>) {
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let length = format!("Content-Length: {}\r\n", SMUGGLED.len());
    for value in LENGTHS {
        let value = value.replace("44", &SMUGGLED.len().to_string());
        let line = format!("Content-Length: {value}\r\n");
        all.push(Good::post(&line, SMUGGLED));
        all.push(Good { line: b"GET /path HTTP/1.1\r\n".to_vec(), ..Good::post(&line, SMUGGLED) });
        all.push(Good { line: b"POST /path HTTP/1.0\r\n".to_vec(), ..Good::post(&line, SMUGGLED) });
        all.push(Good::post(format!("{line}{length}"), SMUGGLED));
        all.push(Good::post(format!("{length}{line}"), SMUGGLED));
        all.push(Good::post(format!("{line}Transfer-Encoding: chunked\r\n"), &chunked));
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
            all.push(Good::post(&fields, if value.eq_ignore_ascii_case("chunked") { "0\r\n\r\n" } else { &chunked }));
        }
        all.push(Good { line: b"POST /path HTTP/1.0\r\n".to_vec(), ..Good::post(&line, &chunked) });
        all.push(Good { line: b"GET /path HTTP/1.1\r\n".to_vec(), ..Good::post(&line, &chunked) });
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
        all.push(Good::post(format!("Transfer-Encoding: chunked\r\n{line}"), "0\r\n\r\n"));
        all.push(Good::post(format!("Content-Length: 0\r\n{line}"), ""));
    }
}

fn lines(all: &mut Vec<Good>) {
    for ending in ENDINGS {
        let end = |line: &str| format!("{line}{ending}").into_bytes();
        all.push(Good { before: end(""), ..Good::get() });
        all.push(Good { line: end("GET /path HTTP/1.1"), ..Good::get() });
        all.push(Good { host: end("Host: localhost"), ..Good::get() });
        all.push(Good::with(end("X: y")));
        all.push(Good::with(end("X:")));
        all.push(Good::with([&end("X: y")[..], b"Transfer-Encoding: chunked\r\n"].concat()));
        all.push(Good::with([b"X: y", &end("")[..], b" folded\r\n"].concat()));
        all.push(Good::post(end(&format!("Content-Length: {}", SMUGGLED.len())), SMUGGLED));
        all.push(Good::post(end("Transfer-Encoding: chunked"), "0\r\n\r\n"));
        // The empty line itself: what follows is the real one.
        all.push(Good::with([b"X: y\r\n", &end("")[..], SMUGGLED.as_bytes()].concat()));
    }
    for before in
        ["\r\n\r\n", "\r\n\r\n\r\n", " ", "\t", "\0", "x", "\u{feff}", " \r\n", "X: y\r\n", "HTTP/1.1 200 OK\r\n"]
    {
        all.push(Good { before: before.into(), ..Good::get() });
    }
}

fn chunks(all: &mut Vec<Good>) {
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
    for data in ["ab", "abcd", "abc ", "abc\0", "abc\r", "abc\n", "\r\n\r", "abc\r\n"] {
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

fn first_lines(all: &mut Vec<Good>) {
    for version in [
        "HTTP/1.1",
        "HTTP/1.0",
        "HTTP/0.9",
        "HTTP/1.2",
        "HTTP/1.9",
        "HTTP/2.0",
        "HTTP/2",
        "HTTP/3.0",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/",
        "HTTP",
        "http/1.1",
        "Http/1.1",
        "HTTPS/1.1",
        "HTTP/1.1.1",
        "HTTP/01.1",
        "HTTP/1.01",
        "HTTP/1.10",
        "HTTP/1,1",
        "HTTP /1.1",
        "HTTP/ 1.1",
        "HTTP/1 .1",
        "HTTP/1.1 ",
        "HTTP/1.1\t",
        "HTTP/1.1x",
        "HTTP/+1.1",
        "HTTP/-1.1",
        "HTTP/1.1 HTTP/1.1",
        "HTTP\\1.1",
        "FTP/1.1",
        "1.1",
        "",
        "HTTP/1.1\0",
        "\"HTTP/1.1\"",
        "HTTP/11",
        "HTTP/a.b",
        "SIP/2.0",
        "ICAP/1.0",
        "HTTP/\u{ff11}.1",
        "RTSP/1.0",
        "HTTP/1.-1",
        "HTTP/10.1",
    ] {
        all.push(Good::line(format!("GET /path {version}")));
        all.push(Good::line(format!("GET /path\t{version}")));
        all.push(Good::line(format!("GET /path  {version}")));
    }
    for method in [
        "HEAD",
        "PUT",
        "DELETE",
        "OPTIONS",
        "PATCH",
        "PROPFIND",
        "MKCOL",
        "REPORT",
        "X",
        "get",
        "Get",
        "gET",
        "GET1",
        "G-T",
        "G_T",
        "G.T",
        "G!T",
        "G:T",
        "G/T",
        "",
        " GET",
        "\tGET",
        "GET\t",
        "GET\0",
        "GET\x0b",
        "(GET)",
        "\"GET\"",
        "GET,",
        "GET;",
        "GÉT",
        "TRACE",
        "TRACK",
        "CONNECT",
        "PRI",
        "VERSION-CONTROL",
        "BASELINE-CONTROL",
        "\r\n GET",
        "GET\r\n",
        "UNLOCK",
        "QUERY",
    ] {
        all.push(Good::line(format!("{method} /path HTTP/1.1")));
    }
    for target in TARGETS {
        all.push(Good::line(format!("GET {target} HTTP/1.1")));
        all.push(Good::line(format!("OPTIONS {target} HTTP/1.1")));
    }
}

const TARGETS: &[&str] = &[
    "/",
    "//",
    "///",
    "//evil",
    "//evil/x",
    "/./",
    "/../",
    "/a/../b",
    "/a/../../b",
    "/%2e%2e/",
    "/%2E%2e/x",
    "/a/%2e%2e/b",
    "/..%2f",
    "/..%5c",
    "/%252e%252e/",
    "/a%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a\\b",
    "\\a",
    "/a;x",
    "/a;x/../b",
    "/;",
    "/%00",
    "/a%00b",
    "/%zz",
    "/%",
    "/%2",
    "/%g0",
    "/%u002e",
    "/%c0%ae",
    "/%ff",
    "/a?b?c",
    "/?",
    "/?#",
    "/#",
    "/a#b",
    "/a?b#c",
    "#",
    "?",
    "?x",
    "*",
    "/*",
    "*x",
    "*/",
    ".",
    "..",
    "a",
    "a/b",
    "./a",
    "../a",
    "@evil/x",
    "/@evil/x",
    ":80/x",
    "evil:80",
    "evil",
    "localhost:80",
    "http:",
    "http:/",
    "http://",
    "http:///",
    "http:///x",
    "http://localhost",
    "http://localhost/",
    "http://localhost/x?y",
    "http://localhost:80/",
    "http://localhost:/",
    "http://localhost:x/",
    "http://localhost:99999/",
    "http://evil/x",
    "http://evil:80/",
    "http://u@localhost/",
    "http://u:p@localhost/",
    "http://localhost@evil/",
    "http://localhost\\@evil/",
    "http://[::1]/",
    "http://[::1/",
    "http://[]/",
    "http://localhost#x",
    "http://localhost?x",
    "http://local host/",
    "HTTP://localhost/",
    "hTTp://localhost/",
    "https://localhost/",
    "https://evil/",
    "ftp://localhost/",
    "file:///x",
    "javascript:x",
    "mailto:x",
    "urn:x:y",
    "x://localhost/",
    "://x",
    "//localhost:80/",
    "/http://evil/",
    "/a b",
    "/a\tb",
    "/a\x0bb",
    "/a\0b",
    "/a\rb",
    "/a\nb",
    "/a\r\nX: y",
    "/a HTTP/1.1",
    "/ä",
    "/%e4",
    "/\u{202e}",
    "/\u{feff}",
    "/<a>",
    "/\"a\"",
    "/{a}",
    "/|a",
    "/^a",
    "/`a",
    "/[a]",
    "/a'b",
    "/~a",
    "/!$&'()*+,;=:@",
    "/a&b=c",
    "/a=b",
    "/?a=%",
    "/?a=%zz",
    "/?a=%00",
    "/?a=\0",
    "/?a=\"",
    "/?a=<b>",
    "/?a={b}",
    "/?a=ä",
    "/?a= b",
    "/?a\\b",
    "/?a=//evil",
    "",
    "/\x7f",
    "/\u{80}",
    "/CON",
    "/con.txt::$DATA",
    "/a/",
    "/a//b",
    "/a/./b",
    "/a/.",
    "/a/..",
    "/.../a",
    "/a%20b",
    "/a+b",
    "/%2f",
    "/%2f%2fevil",
    "/%23",
    "/%3f",
    "/%25",
    "/a%0d%0aX:y",
    "/a%0a",
    "/a%09",
    "/a;jsessionid=1",
    "/a.;/b",
    "/..;/",
];

fn hosts(all: &mut Vec<Good>) {
    let hosts: &[&str] = &[
        "localhost",
        "LOCALHOST",
        "localhost:80",
        "localhost:",
        "localhost:x",
        "localhost:99999",
        "localhost:-1",
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
        all.push(Good { line: b"GET /path HTTP/1.0\r\n".to_vec(), ..Good::host(format!("Host: {host}\r\n")) });
        all.push(Good::host(format!("Host: {host}\r\nHost: localhost\r\n")));
        all.push(Good::host(format!("Host: localhost\r\nHost: {host}\r\n")));
        all.push(Good {
            line: b"GET http://localhost/path HTTP/1.1\r\n".to_vec(),
            ..Good::host(format!("Host: {host}\r\n"))
        });
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
        all.push(Good { line: b"GET /path HTTP/1.0\r\n".to_vec(), ..Good::host(spelling) });
    }
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
        all.push(Good::post(format!("{field}\r\nContent-Length: {}\r\n", SMUGGLED.len()), SMUGGLED));
        all.push(Good { line: b"GET /path HTTP/1.0\r\n".to_vec(), ..Good::with(format!("{field}\r\n")) });
    }
}

/// Every byte where bytes matter.
fn every_byte(all: &mut Vec<Good>) {
    for byte in 0..=u8::MAX {
        all.push(Good::line([b"GET /a", &[byte][..], b"b HTTP/1.1"].concat()));
        all.push(Good::line([b"GET /a?b", &[byte][..], b"c HTTP/1.1"].concat()));
        all.push(Good::line([b"G", &[byte][..], b"T / HTTP/1.1"].concat()));
        all.push(Good::with([b"X", &[byte][..], b"Y: z\r\n"].concat()));
        all.push(Good::with([b"X", &[byte][..], b": z\r\n"].concat()));
        all.push(Good::with([b"X: y", &[byte][..], b"z\r\n"].concat()));
    }
}
