//! Where this proxy differs from nginx and HAProxy, in both directions, and why.

/// It forwards what one of the two refuses, or what `http_desync_guardian` calls severe.
const ENCODED: &str = "bytes outside ASCII in a target are percent-encoded before it is judged: old \
                       clients write their charset as it is";

/// It refuses what both forward.
const BARE_LF: &str = "a line that ends with LF alone: a proxy in front may read two lines as one \
                       value, and hide a request in it (RFC 9112, section 2.2 allows either)";
const MISSPELLED: &str = "a name that CGI servers read as Content-Length or Transfer-Encoding";
const HOST: &str = "Host is not a name of this proxy: protection from DNS rebinding. The two serve \
                    any host unless they are configured otherwise";
const HOST_BYTES: &str = "Host with bytes that are no name";
const PATH: &str = "a path that servers resolve differently, so that it could escape the rules";
const SCHEME: &str = "the URL of another scheme is for a forward proxy";
const EXPECT: &str = "an expectation that nothing will meet gets 417 (RFC 9110, section 10.1.1)";
const TRAILERS: &str = "trailers are judged as fields are: servers merge them into the head";

/// All reasons. Each applies to a request of the test.
pub(crate) const REASONS: &[&str] = &[
    ENCODED, BARE_LF, MISSPELLED, HOST, HOST_BYTES, PATH, SCHEME, EXPECT, TRAILERS,
];

/// Why this proxy forwards a request that one of the two refuses or that counts as severe.
pub(crate) fn more_lenient(request: &[u8]) -> Option<&'static str> {
    (!target(request).is_ascii()).then_some(ENCODED)
}

/// Why this proxy refuses a request that both forward.
pub(crate) fn stricter(request: &[u8]) -> Option<&'static str> {
    let target = target(request);
    let target = String::from_utf8_lossy(target);
    let hosts = values(request, "host");
    let is_own = |host: &String| host.split(':').next() == Some("localhost") && is_port(host);
    match () {
        () if has_bare_lf(request) => Some(BARE_LF),
        () if is_misspelled(request) => Some(MISSPELLED),
        () if hosts.iter().any(|host| !host.is_ascii()) => Some(HOST_BYTES),
        () if !hosts.iter().all(is_own) => Some(HOST),
        () if ["/..%5c", "/%252e", "/..;", "\\"]
            .iter()
            .any(|odd| target.contains(odd)) =>
        {
            Some(PATH)
        }
        () if target.contains("://") && !target.starts_with("http") => Some(SCHEME),
        () if values(request, "expect") == ["foo"] => Some(EXPECT),
        () if has_trailers(request) => Some(TRAILERS),
        () => None,
    }
}

fn is_port(host: &str) -> bool {
    let port = host.split_once(':').map_or("", |(_, port)| port);
    port.is_empty() || port.parse::<u16>().is_ok()
}

fn lines(request: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = request.split(|byte| *byte == b'\n');
    lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

fn first_line(request: &[u8]) -> &[u8] {
    lines(request)
        .find(|line| !line.is_empty())
        .unwrap_or_default()
}

fn target(request: &[u8]) -> &[u8] {
    let mut words = first_line(request).split(|byte| *byte == b' ');
    words.nth(1).unwrap_or_default()
}

/// The lines of the head after the first.
fn fields(request: &[u8]) -> impl Iterator<Item = String> {
    lines(request)
        .skip_while(|line| line.is_empty())
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line.iter().copied().map(char::from).collect())
}

fn values(request: &[u8], name: &str) -> Vec<String> {
    fields(request)
        .filter_map(|line| {
            let (other, value) = line.split_once(':')?;
            other
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
        .collect()
}

/// Also one behind the data of a chunk, whose last byte is a CR.
fn has_bare_lf(request: &[u8]) -> bool {
    let short_chunk = b"\r\n3\r\nab\r\n";
    request.starts_with(b"\n")
        || request
            .windows(2)
            .any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
        || request
            .windows(short_chunk.len())
            .any(|window| window == short_chunk)
}

fn is_misspelled(request: &[u8]) -> bool {
    fields(request).any(|line| {
        let name = line
            .split(':')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        matches!(&*letters, "contentlength" | "transferencoding")
            && !matches!(&*name, "content-length" | "transfer-encoding")
    })
}

fn has_trailers(request: &[u8]) -> bool {
    let last = b"\r\n0\r\n";
    let chunk = request
        .windows(last.len())
        .rposition(|window| window == last);
    chunk.is_some_and(|at| &request[at + last.len()..] != b"\r\n")
}
